/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_ACCEPT_H
#define HS_QUIC_ACCEPT_H

#include "quic/state.h"

/* Read a datagram that matches no connection. */
void hs_read_unmatched(struct hs_quic *q, const struct hs_received *datagram,
		       const ngtcp2_version_cid *ids);
/* A datagram with a long header for a connection whose handshake is in progress. */
void hs_read_early(struct hs_connection *c, const struct hs_received *datagram,
		   const ngtcp2_version_cid *ids);
void hs_answer_version(struct hs_quic *q, const struct hs_received *datagram,
		       const ngtcp2_version_cid *ids);

#endif
