/* SPDX-License-Identifier: Apache-2.0
 *
 * The interface to the network: sockets, rings or a buffer behind one set of function pointers
 * (verbs.h), and a table of paths. An engine owns its wire and calls those functions; a link fills
 * in the paths with the functions below.
 */
#ifndef HS_WIRE_H
#define HS_WIRE_H

#include <stddef.h>
#include <stdint.h>

struct hs_wire;

enum { HS_PATH_KEY_BYTES = 64 }; /* what identifies the path of a received datagram */

/* Add the path between two endpoints, or find it. `ip` is 4 or 16 bytes as on the wire, ports
 * are in host byte order. Returns the path's number, or -1 if the table is full. */
int64_t hs_wire_add_path(struct hs_wire *wire, uint8_t ip_version, const uint8_t *local_ip,
			 uint16_t local_port, const uint8_t *remote_ip, uint16_t remote_port,
			 uint32_t scope);
/* These ignore a number that is no path's. */
void hs_wire_set_key(struct hs_wire *wire, uint32_t path_id, const uint8_t *key);
void hs_wire_set_size(struct hs_wire *wire, uint32_t path_id, uint32_t max_datagram_bytes);
/* NULL: no route */
void hs_wire_set_header(struct hs_wire *wire, uint32_t path_id, const void *frame_header);
void hs_wire_set_socket(struct hs_wire *wire, uint32_t path_id, int fd, const void *udp_flow);
/* How many datagrams were sent along the path. */
uint64_t hs_wire_path_sent(const struct hs_wire *wire, uint32_t path_id);

/* A wire's counters; the wire's header says what the drops mean. */
struct hs_wire_figures {
	uint64_t rx_datagrams;
	uint64_t rx_bytes;
	uint64_t tx_datagrams;
	uint64_t tx_bytes;
	uint64_t tx_full;
	uint64_t drops[24];
};
void hs_wire_get_figures(const struct hs_wire *wire, struct hs_wire_figures *out);

#endif
