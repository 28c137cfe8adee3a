/* SPDX-License-Identifier: Apache-2.0
 *
 * Streams and their FIFOs.
 */
#include "quic/stream.h"

#include <stdlib.h>

#include "memory/fifo.h"
#include "quic/connection_schedule.h"
#include "quic/send_order.h"
#include "quic/stream_limits.h"
#include "quic/tables.h"
#include "quic/window.h"
#include "session/transport.h"

enum {
	/* How much ngtcp2 is offered at once: more than fits into any packet. */
	OFFER_BYTES = 65536,
};

struct hs_stream *hs_stream_new(struct hs_connection *c, int64_t id, int is_local)
{
	struct hs_stream *s = calloc(1, sizeof(*s));
	if (!s)
		return NULL;
	s->connection = c;
	s->id = id;
	s->is_local = is_local != 0;
	s->next = c->streams;
	if (s->next)
		s->next->previous = s;
	c->streams = s;
	c->stream_count++;
	hs_streams_add(&c->q->streams, s);
	return s;
}

void hs_stream_set_session(struct hs_stream *s, void *session, struct hs_fifo_producer *rx,
			   struct hs_fifo_consumer *tx)
{
	uint64_t first_bytes = s->connection->config.first_window_bytes;
	s->session = session;
	s->rx = rx;
	s->tx = tx;
	s->tx_is_over = !tx;
	s->has_reported_finished = !tx;
	if (!rx)
		return;
	s->window_bytes = rx->size_bytes < first_bytes ? rx->size_bytes : first_bytes;
	hs_fifo_begin_small(rx, s->window_bytes);
}

void hs_stream_unlink(struct hs_stream *s)
{
	struct hs_connection *c = s->connection;
	hs_stream_stop_listing(s);
	hs_window_forget(s);
	hs_streams_remove(&c->q->streams, s);
	if (s->previous)
		s->previous->next = s->next;
	else
		c->streams = s->next;
	if (s->next)
		s->next->previous = s->previous;
	c->stream_count--;
}

/* --- sending ---------------------------------------------------------------------------------- */

/* How many bytes are unsent, or -1 for invalid data in the FIFO's shared block. *at_end: none
 * follow. */
static int64_t waiting(struct hs_stream *s, int *at_end)
{
	/* In this order: bytes that were written before the end was set are seen. */
	*at_end = hs_fifo_eof(s->tx);
	return hs_fifo_available(s->tx, s->tx_next);
}

void hs_stream_look(struct hs_stream *s)
{
	int at_end;
	if (s->tx_is_over || s->is_blocked || s->has_sent_fin)
		return;
	int64_t bytes = waiting(s, &at_end);
	if (bytes < 0)
		hs_stream_reset(s, 0); /* invalid data in the application's memory */
	else if (bytes > 0 || at_end)
		hs_stream_list(s);
}

size_t hs_stream_gather(struct hs_stream *s, ngtcp2_vec out[2], size_t *bytes, int *fin)
{
	struct hs_fifo_span spans[2];
	int at_end = 0;
	*bytes = 0;
	*fin = 0;
	int64_t all = waiting(s, &at_end);
	if (all < 0)
		return 0;
	int64_t n = hs_fifo_spans(s->tx, s->tx_next, OFFER_BYTES, spans);
	if (n < 0)
		return 0;
	*bytes = (size_t)n;
	*fin = at_end && n == all;
	out[0] = (ngtcp2_vec){ spans[0].base, spans[0].bytes };
	out[1] = (ngtcp2_vec){ spans[1].base, spans[1].bytes };
	return spans[1].bytes ? 2 : spans[0].bytes ? 1 : 0;
}

void hs_stream_was_sent(struct hs_stream *s, size_t taken, size_t offered, int fin)
{
	s->tx_next += taken;
	s->has_had_credit |= taken > 0;
	s->connection->new_stream_bytes += taken;
	if (fin && taken == offered) {
		s->has_sent_fin = 1;
		s->fin_went_alone = taken == 0;
		hs_stream_stop_listing(s);
	} else if (taken == offered) {
		/* More may have been written in the meantime. */
		int at_end;
		if (waiting(s, &at_end) <= 0 && !at_end)
			hs_stream_stop_listing(s);
	}
}

static void finish_sending(struct hs_stream *s)
{
	hs_stream_stop_listing(s);
	s->tx_is_over = 1;
	/* Of one that was reset, the application learns how much was sent. */
	if (s->tx && s->tx_next > s->tx_acked)
		hs_fifo_drop_to(s->tx, s->tx_next);
	if (!s->has_reported_finished) {
		s->has_reported_finished = 1;
		hs_touch_stream(s, HS_STREAM_FINISHED);
	}
}

/* Whether waking a writer is worthwhile: for a quarter of the FIFO, or if no outstanding
 * acknowledgement would free more. A writer that is woken for each acknowledgement writes that
 * little each time. */
static int has_much_room(struct hs_stream *s)
{
	if (s->tx_acked == s->tx_next)
		return 1;
	int64_t unacked = hs_fifo_available(s->tx, s->tx_acked);
	return unacked >= 0 && (uint64_t)unacked <= s->tx->size_bytes / 4 * 3;
}

void hs_stream_acknowledge(struct hs_stream *s, uint64_t offset, uint64_t bytes)
{
	if (s->tx_is_over)
		return;
	if (bytes) {
		s->tx_acked = offset + bytes;
		s->connection->acked_bytes += bytes;
		if (hs_fifo_drop_to(s->tx, s->tx_acked) == 0 && has_much_room(s))
			hs_touch_stream(s, HS_STREAM_WRITABLE);
	} else {
		s->fin_is_acked = 1;
	}
	/* A FIN sent with the last bytes is acknowledged together with them. For one sent alone,
	 * ngtcp2 calls back without bytes, unless a loss made it send the FIN again together
	 * with bytes. */
	if (s->has_sent_fin && s->tx_acked == s->tx_next &&
	    (!s->fin_went_alone || s->fin_is_acked ||
	     ngtcp2_conn_get_stream_loss_count(s->connection->conn, s->id)))
		finish_sending(s);
}

void hs_stream_send_ready(struct hs_stream *s)
{
	if (!s->tx || s->connection->state > HS_OPEN)
		return;
	hs_stream_look(s);
	if (s->is_listed)
		hs_schedule(s->connection);
}

void hs_stream_reset(struct hs_stream *s, uint64_t code)
{
	if (s->tx_is_over || s->connection->state > HS_OPEN)
		return;
	s->own_reset_code = code;
	if (!s->is_gone)
		ngtcp2_conn_shutdown_stream_write(s->connection->conn, 0, s->id, code);
	finish_sending(s);
	hs_schedule(s->connection);
}

void hs_stream_on_stopped(struct hs_stream *s, uint64_t code)
{
	/* ngtcp2 answers with RESET_STREAM by itself (RFC 9000 section 3.5). */
	if (s->tx_is_over)
		return;
	s->stop_code = code;
	hs_touch_stream(s, HS_STREAM_STOPPED);
	finish_sending(s);
}

/* --- receiving -------------------------------------------------------------------------------- */

/* Extend the windows by what the application has consumed. Returns whether the peer is allowed
 * more. */
static int credit(struct hs_stream *s, uint64_t offset)
{
	if (offset <= s->credited)
		return 0;
	uint64_t more = offset - s->credited;
	s->credited = offset;
	int is_due = hs_window_credit(s->connection, more);
	if (!s->is_gone && !s->has_rx_end && !s->is_discarding)
		is_due |= hs_window_follow(s);
	return is_due;
}

/* A stream has ended when ngtcp2 has closed it and the application has read everything. The caller
 * decides when the peer may open another one (hs_allow_stream). */
static void end_if_over(struct hs_stream *s)
{
	if (!s->is_gone || (s->pending & HS_STREAM_OVER))
		return;
	if (s->rx && !s->is_discarding && s->credited != s->rx->tail)
		return;
	hs_touch_stream(s, HS_STREAM_OVER);
}

int hs_stream_receive(struct hs_stream *s, uint64_t offset, const uint8_t *data, size_t bytes,
		      int fin)
{
	if (!s->rx)
		return -1;
	if (s->is_discarding) {
		credit(s, offset + bytes);
	} else if (bytes) {
		/* In order, and within the window, which is the ring's size at most: it fits. */
		if (!offset)
			s->reading_since_ns = s->connection->q->now_ns;
		if (offset != s->rx->tail || hs_fifo_write(s->rx, data, bytes) != (int64_t)bytes)
			return -1;
	}
	if (fin) {
		s->has_rx_end = 1;
		if (!s->is_discarding)
			hs_fifo_set_eof(s->rx);
	}
	if (!s->is_discarding)
		hs_touch_stream(s, HS_STREAM_READABLE);
	return 0;
}

int hs_stream_consumed(struct hs_stream *s)
{
	if (!s->rx || s->is_discarding || s->connection->state > HS_OPEN)
		return 0;
	int64_t head = hs_fifo_head(s->rx);
	if (head < 0) {
		hs_stream_stop_sending(s, 0); /* invalid data in the application's memory */
		return 1;
	}
	hs_window_grow_if_fast(s);
	int is_due = credit(s, (uint64_t)head);
	hs_window_note_read(s);
	end_if_over(s);
	hs_schedule(s->connection);
	return is_due || (s->pending & HS_STREAM_OVER && !s->is_local &&
			  hs_streams_are_scarce(s->connection, (s->id & 2) != 0));
}

static void discard(struct hs_stream *s)
{
	credit(s, s->rx->tail);
	hs_window_drop(s->connection);
	s->is_discarding = 1;
	end_if_over(s);
}

void hs_stream_stop_sending(struct hs_stream *s, uint64_t code)
{
	if (!s->rx || s->is_discarding || s->connection->state > HS_OPEN)
		return;
	s->own_stop_code = code;
	if (!s->is_gone && !s->has_rx_end)
		ngtcp2_conn_shutdown_stream_read(s->connection->conn, 0, s->id, code);
	discard(s);
	hs_schedule(s->connection);
}

void hs_stream_on_reset(struct hs_stream *s, uint64_t code)
{
	if (!s->rx || s->has_rx_end)
		return;
	s->has_rx_end = 1;
	if (!s->is_discarding) {
		s->reset_code = code;
		hs_touch_stream(s, HS_STREAM_RESET);
		discard(s);
	}
}

void hs_stream_on_gone(struct hs_stream *s)
{
	s->is_gone = 1;
	/* Everything was acknowledged, or abandoned. */
	if (!s->tx_is_over)
		finish_sending(s);
	end_if_over(s);
}

void hs_stream_rewind(struct hs_stream *s)
{
	ngtcp2_conn *conn = s->connection->conn;
	s->tx_next = s->tx_acked;
	s->has_sent_fin = 0;
	s->fin_went_alone = 0;
	s->fin_is_acked = 0;
	s->is_blocked = 0;
	if (s->tx && s->tx_is_over)
		ngtcp2_conn_shutdown_stream_write(conn, 0, s->id, s->own_reset_code);
	if (s->rx && s->is_discarding)
		ngtcp2_conn_shutdown_stream_read(conn, 0, s->id, s->own_stop_code);
	hs_stream_look(s);
}
