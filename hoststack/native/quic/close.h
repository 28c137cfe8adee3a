/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_CLOSE_H
#define HS_QUIC_CLOSE_H

#include "quic/state.h"

/* Close the connection if ngtcp2 returned a fatal error. */
void hs_close_on_error(struct hs_connection *c, int result);
/* Close because of an ngtcp2 error. */
void hs_close_fail(struct hs_connection *c, int error);
/* A datagram was received for a connection that is closing. */
void hs_close_answer(struct hs_connection *c);
/* Write CONNECTION_CLOSE, or write it again. Returns the packets written; -1 when the wire is
 * full. */
int hs_close_send(struct hs_connection *c);
/* Abandon a peer's handshake without notifying the peer: a newer one needs its place. */
void hs_close_give_up(struct hs_connection *c);
/* The closing or draining period has ended (RFC 9000 section 10.2). */
void hs_close_expire(struct hs_connection *c);

#endif
