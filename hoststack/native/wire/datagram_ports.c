/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/datagram_ports.h"

#include <stdlib.h>
#include <string.h>

static const uint8_t ANY[16];

_Static_assert(sizeof(struct hs_datagram_record) % 8 == 0, "records follow one another aligned");

static size_t ip_bytes(uint8_t ip_version)
{
	return ip_version == 4 ? 4 : 16;
}

static int is_port(const struct hs_datagram_port *p, uint8_t ip_version, const uint8_t *ip,
		   uint16_t port)
{
	return p->port == port && p->ip_version == ip_version &&
	       !memcmp(p->ip, ip, ip_bytes(ip_version));
}

int hs_datagram_ports_add(struct hs_datagram_ports *ports, uint8_t ip_version, const uint8_t *ip,
			  uint16_t port)
{
	struct hs_datagram_port **bucket = &ports->by_port[port % HS_DATAGRAM_PORT_BUCKETS];
	for (struct hs_datagram_port *p = *bucket; p; p = p->next) {
		if (is_port(p, ip_version, ip, port))
			return 0;
	}
	if (!ports->bag)
		ports->bag = malloc(HS_DATAGRAM_BAG_BYTES);
	struct hs_datagram_port *made = calloc(1, sizeof(*made));
	if (!ports->bag || !made) {
		free(made);
		return -1;
	}
	made->port = port;
	made->ip_version = ip_version;
	memcpy(made->ip, ip, ip_bytes(ip_version));
	made->next = *bucket;
	*bucket = made;
	return 0;
}

void hs_datagram_ports_remove(struct hs_datagram_ports *ports, uint8_t ip_version,
			      const uint8_t *ip, uint16_t port)
{
	struct hs_datagram_port **at = &ports->by_port[port % HS_DATAGRAM_PORT_BUCKETS];
	while (*at && !is_port(*at, ip_version, ip, port))
		at = &(*at)->next;
	if (*at) {
		struct hs_datagram_port *gone = *at;
		*at = gone->next;
		free(gone);
	}
}

int hs_datagram_ports_has(const struct hs_datagram_ports *ports, const struct hs_frame_flow *flow)
{
	const struct hs_datagram_port *p =
		ports->by_port[flow->local_port % HS_DATAGRAM_PORT_BUCKETS];
	for (; p; p = p->next) {
		/* A port that is open on any address has ANY as its address. */
		if (is_port(p, flow->ip_version, flow->local_ip, flow->local_port) ||
		    is_port(p, flow->ip_version, ANY, flow->local_port))
			return 1;
	}
	return 0;
}

int hs_datagram_ports_put(struct hs_datagram_ports *ports, const struct hs_frame_flow *flow,
			  const uint8_t *payload, uint32_t bytes)
{
	size_t padded = ((size_t)bytes + 7) / 8 * 8;
	struct hs_datagram_record record = { .payload_bytes = bytes, .flow = *flow };
	if (!ports->bag || sizeof(record) + padded > HS_DATAGRAM_BAG_BYTES - ports->bag_used)
		return -1;
	memcpy(ports->bag + ports->bag_used, &record, sizeof(record));
	memcpy(ports->bag + ports->bag_used + sizeof(record), payload, bytes);
	ports->bag_used += sizeof(record) + padded;
	return 0;
}

void hs_datagram_ports_free(struct hs_datagram_ports *ports)
{
	for (int i = 0; i < HS_DATAGRAM_PORT_BUCKETS; i++) {
		while (ports->by_port[i]) {
			struct hs_datagram_port *next = ports->by_port[i]->next;
			free(ports->by_port[i]);
			ports->by_port[i] = next;
		}
	}
	free(ports->bag);
	ports->bag = NULL;
}
