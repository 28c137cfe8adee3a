/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_SEND_ORDER_H
#define HS_QUIC_SEND_ORDER_H

#include "quic/state.h"

/* List a stream that has something to send, by its rank as it is now (memory/fifo.h). */
void hs_stream_list(struct hs_stream *s);
void hs_stream_stop_listing(struct hs_stream *s);
/* The next stream to send from, by urgency; NULL if none can. */
struct hs_stream *hs_stream_next(struct hs_connection *c);
/* It has bytes, but the connection's window is empty: serve streams that need no credit first. */
void hs_stream_starve(struct hs_stream *s);
/* Move the stream that has just sent behind the others of its rank, if these take turns. */
void hs_stream_rotate(struct hs_connection *c);

#endif
