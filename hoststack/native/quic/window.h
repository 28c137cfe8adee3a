/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_WINDOW_H
#define HS_QUIC_WINDOW_H

#include "quic/state.h"

/* The first windows that the peer is allowed, as transport parameters. */
void hs_window_begin(const struct hs_quic_config *config, ngtcp2_transport_params *params);
/* The handshake is complete: allow the peer the connection's whole window. */
void hs_window_open(struct hs_connection *c);
/* `bytes` more of what was received are stored no longer. Returns whether the peer is allowed more. */
int hs_window_credit(struct hs_connection *c, uint64_t bytes);
/* A stream was reset or stopped. ngtcp2 extends the connection's window for those of its bytes that it
 * does not pass on: by less than it announces, perhaps, so the peer is allowed that much in advance. */
void hs_window_drop(struct hs_connection *c);
/* Extend a stream's window to where the application has read. Returns whether the peer is allowed
 * more. */
int hs_window_follow(struct hs_stream *s);
/* Give a fast reader its whole FIFO as the window, as soon as what is stored allows it. */
void hs_window_grow_if_fast(struct hs_stream *s);
/* The application has read: the next turn, which knows the time, sees how fast. */
void hs_window_note_read(struct hs_stream *s);
/* Let the windows of streams grow whose application reads fast, of those read since the last turn. */
void hs_windows_grow(struct hs_connection *c);
/* The stream goes. */
void hs_window_forget(struct hs_stream *s);

#endif
