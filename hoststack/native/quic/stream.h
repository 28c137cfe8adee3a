/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_STREAM_H
#define HS_QUIC_STREAM_H

#include "quic/state.h"

struct hs_stream *hs_stream_new(struct hs_connection *c, int64_t id, int is_local);
void hs_stream_set_session(struct hs_stream *s, void *session, struct hs_fifo_producer *rx,
			   struct hs_fifo_consumer *tx);
void hs_stream_unlink(struct hs_stream *s);
/* The application wrote into the tx FIFO, or set its end. */
void hs_stream_send_ready(struct hs_stream *s);
/* The application read from the rx FIFO. Returns whether to send the credit soon. */
int hs_stream_consumed(struct hs_stream *s);
void hs_stream_reset(struct hs_stream *s, uint64_t code);
void hs_stream_stop_sending(struct hs_stream *s, uint64_t code);
/* List the stream if it has something to send. */
void hs_stream_look(struct hs_stream *s);
/* Return what to send next in up to two pieces, and their number; *fin if the stream ends with
 * them. */
size_t hs_stream_gather(struct hs_stream *s, ngtcp2_vec out[2], size_t *bytes, int *fin);
void hs_stream_was_sent(struct hs_stream *s, size_t taken, size_t offered, int fin);
int hs_stream_receive(struct hs_stream *s, uint64_t offset, const uint8_t *data, size_t bytes,
		      int fin);
void hs_stream_acknowledge(struct hs_stream *s, uint64_t offset, uint64_t bytes);
void hs_stream_on_reset(struct hs_stream *s, uint64_t code);
void hs_stream_on_stopped(struct hs_stream *s, uint64_t code);
void hs_stream_on_gone(struct hs_stream *s);
/* Send from the first byte again: ngtcp2 has just reopened the stream. */
void hs_stream_rewind(struct hs_stream *s);

#endif
