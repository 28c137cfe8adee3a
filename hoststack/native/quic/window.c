/* SPDX-License-Identifier: Apache-2.0
 *
 * Receive windows: how much the peer may send, on each stream and on all of them.
 *
 * ngtcp2 announces a window once it was extended by more than a quarter of its first size. What is
 * extended by less stays unsent, and the peer may wait for it. So windows are extended by more than
 * that at a time, or not at all; see docs/decisions/credit-batches.md.
 */
#include "quic/window.h"

#include "memory/fifo.h"

enum {
	FIRST_PART = 16, /* of the connection's window is its first size */
	/* Or this many bytes: more than the peer can send before it learns of more. */
	LEAST_FIRST_BYTES = 16384,
	/* A reader is fast that reads a quarter of the first window within so many round trips, or
	 * within this time: a window is at least 32 times what it then has in flight. */
	FAST_RTTS = 8,
	FAST_NS = 100000000,
};

static uint64_t first_bytes(const struct hs_quic_config *config)
{
	uint64_t window_bytes = config->connection_window_bytes;
	uint64_t part = window_bytes / FIRST_PART;
	uint64_t first = part > LEAST_FIRST_BYTES ? part : LEAST_FIRST_BYTES;
	return first < window_bytes ? first : window_bytes;
}

/* The least extension that ngtcp2 announces, of a window that began with so much. */
static uint64_t step(uint64_t first)
{
	return first / 4 + 1;
}

void hs_window_begin(const struct hs_quic_config *config, ngtcp2_transport_params *params)
{
	params->initial_max_stream_data_bidi_local = config->first_window_bytes;
	params->initial_max_stream_data_bidi_remote = config->first_window_bytes;
	params->initial_max_stream_data_uni = config->first_window_bytes;
	params->initial_max_data = first_bytes(config);
}

/* The peer may always send a whole window beyond what was read, and up to a step more. */
static int extend(struct hs_connection *c)
{
	uint64_t first = first_bytes(&c->config), least = step(first);
	uint64_t wanted = c->credited + c->config.connection_window_bytes +
			  (c->has_dropped ? least : 0);
	uint64_t allowed = first + c->extended;
	if (!c->has_open_window || !first || allowed >= wanted)
		return 0;
	uint64_t more = wanted - allowed > least ? wanted - allowed : least;
	c->extended += more;
	ngtcp2_conn_extend_max_offset(c->conn, more);
	return 1;
}

void hs_window_open(struct hs_connection *c)
{
	c->has_open_window = 1;
	extend(c);
}

int hs_window_credit(struct hs_connection *c, uint64_t bytes)
{
	c->credited += bytes;
	return extend(c);
}

void hs_window_drop(struct hs_connection *c)
{
	c->has_dropped = 1;
	extend(c);
}

int hs_window_follow(struct hs_stream *s)
{
	uint64_t more = s->credited - s->extended;
	if (more < step(s->connection->config.first_window_bytes))
		return 0;
	s->extended = s->credited;
	ngtcp2_conn_extend_max_stream_offset(s->connection->conn, s->id, more);
	return 1;
}

/* --- windows that grow with their readers ------------------------------------------------------- */

void hs_window_forget(struct hs_stream *s)
{
	if (!s->is_read)
		return;
	s->is_read = 0;
	if (s->next_read)
		s->next_read->previous_read = s->previous_read;
	if (s->previous_read)
		s->previous_read->next_read = s->next_read;
	else
		s->connection->first_read = s->next_read;
}

/* What is stored may wrap around the end of the ring now. It does not when the application has just
 * read beyond that end, for the peer could send no more than the ring's size from before it on. */
void hs_window_grow_if_fast(struct hs_stream *s)
{
	uint64_t more = s->rx->size_bytes - s->window_bytes;
	if (!s->is_read_fast || s->is_gone || s->has_rx_end ||
	    hs_fifo_grow(s->rx, s->rx->size_bytes) != 1)
		return;
	ngtcp2_conn_extend_max_stream_offset(s->connection->conn, s->id, more);
	s->window_bytes += more;
}

/* A window begins small, and is extended to the whole FIFO for a program that reads what comes: by
 * what it reads of the peer's first flight, so that the peer does not wait. */
static void grow_if_read_fast(struct hs_stream *s)
{
	struct hs_connection *c = s->connection;
	if (!s->rx || s->is_gone || s->has_rx_end || s->is_discarding ||
	    s->credited - s->reading_from < c->config.first_window_bytes / 4)
		return;
	ngtcp2_conn_info info;
	ngtcp2_conn_get_conn_info(c->conn, &info);
	uint64_t fast_ns = info.smoothed_rtt * FAST_RTTS;
	uint64_t took_ns = c->q->now_ns - s->reading_since_ns;
	s->reading_since_ns = c->q->now_ns;
	s->reading_from = s->credited;
	s->is_read_fast |= took_ns <= (fast_ns > FAST_NS ? fast_ns : FAST_NS);
	hs_window_grow_if_fast(s);
}

void hs_window_note_read(struct hs_stream *s)
{
	struct hs_connection *c = s->connection;
	if (s->is_read || s->window_bytes == s->rx->size_bytes || s->has_rx_end)
		return;
	s->is_read = 1;
	s->previous_read = NULL;
	s->next_read = c->first_read;
	if (s->next_read)
		s->next_read->previous_read = s;
	c->first_read = s;
}

void hs_windows_grow(struct hs_connection *c)
{
	while (c->first_read) {
		struct hs_stream *s = c->first_read;
		hs_window_forget(s);
		if (c->state <= HS_OPEN)
			grow_if_read_fast(s);
	}
}
