/* SPDX-License-Identifier: Apache-2.0
 *
 * Ports of plain UDP datagrams on a wire whose other ports carry QUIC: the set of ports, and the
 * datagrams that arrived for them since the last read.
 */
#ifndef HS_DATAGRAM_PORTS_H
#define HS_DATAGRAM_PORTS_H

#include <stddef.h>
#include <stdint.h>

#include "wire/frames.h"

enum {
	HS_DATAGRAM_PORT_BUCKETS = 256,
	/* Some eight bursts of full packets: a turn receives no more. */
	HS_DATAGRAM_BAG_BYTES = 1 << 20,
};

struct hs_datagram_port {
	struct hs_datagram_port *next;
	uint16_t port;
	uint8_t ip_version;
	uint8_t ip[16]; /* all zeros for any; an IPv4 address takes the first 4 bytes */
};

/* In the bag, in front of each payload; the payload is padded to a multiple of 8 bytes. */
struct hs_datagram_record {
	uint32_t payload_bytes;
	uint32_t zero;
	struct hs_frame_flow flow;
};

struct hs_datagram_ports {
	struct hs_datagram_port *by_port[HS_DATAGRAM_PORT_BUCKETS];
	uint8_t *bag; /* NULL until there is a port */
	size_t bag_used;
};

/* Add a port, unless it is there already. Returns 0, or -1 without memory. */
int hs_datagram_ports_add(struct hs_datagram_ports *ports, uint8_t ip_version, const uint8_t *ip,
			  uint16_t port);
void hs_datagram_ports_remove(struct hs_datagram_ports *ports, uint8_t ip_version,
			      const uint8_t *ip, uint16_t port);
/* Whether a datagram is for one of them. */
int hs_datagram_ports_has(const struct hs_datagram_ports *ports, const struct hs_frame_flow *flow);
/* Append a copy to the bag. Returns 0, or -1 if the bag is full. */
int hs_datagram_ports_put(struct hs_datagram_ports *ports, const struct hs_frame_flow *flow,
			  const uint8_t *payload, uint32_t bytes);
void hs_datagram_ports_free(struct hs_datagram_ports *ports);

#endif
