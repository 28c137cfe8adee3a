/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_DATAGRAM_H
#define HS_QUIC_DATAGRAM_H

#include "quic/state.h"

enum { HS_NO_DATAGRAM = -1 }; /* not an ngtcp2 error: those are below -200 */
/* Returns 0, or -1 without memory. */
int hs_datagrams_new(struct hs_connection *c);
/* The largest frame that the peer may send; 0: none at all. */
uint64_t hs_datagrams_offer(const struct hs_connection *c);
/* The handshake is complete. Without memory for FIFOs, received datagrams are dropped. */
void hs_datagrams_open(struct hs_connection *c);
int hs_datagrams_receive(struct hs_connection *c, int is_early, const uint8_t *data, size_t bytes);
/* Determine the largest message now, and notify the application if it has changed. */
void hs_datagrams_measure(struct hs_connection *c);
uint64_t hs_datagrams_limit(const struct hs_connection *c);
/* Whether the next packet is filled with datagrams before streams, as every other one is. */
int hs_datagrams_are_first(const struct hs_connection *c);
void hs_datagrams_take_turns(struct hs_connection *c);
/* Put the oldest message into a packet. Returns ngtcp2's result, HS_NO_DATAGRAM if there is
 * none. */
ngtcp2_ssize hs_datagrams_write(struct hs_connection *c, ngtcp2_path *path, ngtcp2_pkt_info *info,
				uint8_t *out, size_t room);

#endif
