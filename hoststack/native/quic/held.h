/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_HELD_H
#define HS_QUIC_HELD_H

#include "quic/state.h"

void hs_held_add(struct hs_quic *q, const struct hs_received *datagram,
		 const ngtcp2_version_cid *ids);
/* The connection has read its ClientHello: deliver the packets held for it. */
void hs_held_deliver(struct hs_connection *c);
/* Drop packets that were held for too long. */
void hs_held_expire(struct hs_quic *q);
void hs_held_free(struct hs_quic *q);

#endif
