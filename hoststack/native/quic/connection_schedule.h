/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_CONNECTION_SCHEDULE_H
#define HS_QUIC_CONNECTION_SCHEDULE_H

#include "quic/state.h"

/* Serve a connection in the next turn, after those that wait already. Idempotent. */
void hs_schedule(struct hs_connection *c);
void hs_unschedule(struct hs_connection *c);
/* Report events of a connection, or of a stream, at the end of the turn. */
void hs_touch(struct hs_connection *c, uint32_t pending);
void hs_touch_stream(struct hs_stream *s, uint32_t events);
/* Set a connection's deadline; all ones: none. Returns 0, or -1 without memory. */
int hs_heap_set(struct hs_quic *q, struct hs_connection *c, uint64_t deadline_ns);
void hs_heap_remove(struct hs_quic *q, struct hs_connection *c);
/* Time only moves forward; between turns it does not change. */
void hs_quic_advance(struct hs_quic *q, uint64_t now_ns);

#endif
