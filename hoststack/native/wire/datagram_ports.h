/* SPDX-License-Identifier: Apache-2.0
 *
 * Ports of plain UDP datagrams on a wire whose other ports are QUIC's: which those are, and what came
 * for them since somebody looked. */
#ifndef HS_DATAGRAM_PORTS_H
#define HS_DATAGRAM_PORTS_H

#include <stddef.h>
#include <stdint.h>

#include "wire/frames.h"

enum {
	HS_DATAGRAM_PORT_BUCKETS = 256,
	/* Some eight bursts of full packets: a turn takes no more. */
	HS_DATAGRAM_BAG_BYTES = 1 << 20,
};

struct hs_datagram_port {
	struct hs_datagram_port *next;
	uint16_t port;
	uint8_t ip_version;
	uint8_t ip[16]; /* all zeros for any; an IPv4 address takes the first 4 bytes */
};

/* In the bag before each payload, which ends at a multiple of 8 bytes. */
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

/* Returns 0, or -1 without memory. One that is there already stays. */
int hs_datagram_ports_add(struct hs_datagram_ports *ports, uint8_t ip_version, const uint8_t *ip,
			  uint16_t port);
void hs_datagram_ports_remove(struct hs_datagram_ports *ports, uint8_t ip_version,
			      const uint8_t *ip, uint16_t port);
/* Whether a datagram is for one of them. */
int hs_datagram_ports_has(const struct hs_datagram_ports *ports, const struct hs_frame_flow *flow);
/* Put a copy into the bag. Returns 0, or -1 where it is full. */
int hs_datagram_ports_put(struct hs_datagram_ports *ports, const struct hs_frame_flow *flow,
			  const uint8_t *payload, uint32_t bytes);
void hs_datagram_ports_free(struct hs_datagram_ports *ports);

#endif
