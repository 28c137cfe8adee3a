/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_SIZE_H
#define HS_QUIC_SIZE_H

#include "quic/state.h"

/* The sizes to probe on a path whose interface carries `most`: those above 1,200, from the
 * largest. Returns how many. */
size_t hs_size_candidates(uint32_t most, int ip_version, uint16_t out[HS_SIZE_CANDIDATES]);
/* A 1-RTT packet is about to be sent; its header is not protected yet. */
void hs_size_sent(struct hs_connection *c, const uint8_t *header, size_t header_bytes,
		  size_t packet_bytes);
/* The peer acknowledged these 1-RTT packets. */
void hs_size_acked(struct hs_size *size, uint64_t first, uint64_t last);
/* Before writing: detect whether the path carries less than it did, or may carry more by now. */
void hs_size_check(struct hs_connection *c);
/* Reset what is known of the path. */
void hs_size_begin(struct hs_connection *c);
/* The current limit of datagrams. */
uint32_t hs_size_now(const struct hs_connection *c);
/* How much of `room` the next datagram may use. */
size_t hs_size_room(const struct hs_connection *c, size_t room);

#endif
