/* SPDX-License-Identifier: Apache-2.0
 *
 * Receive windows: how much the peer may send, on each stream and on all of them.
 *
 * ngtcp2 announces a window once it was extended by more than a quarter of its first size. What is
 * extended by less stays unsent, and the peer may wait for it. So windows are extended by more than
 * that at a time, or not at all; see docs/decisions/credit-batches.md.
 */
#include "quic/window.h"

enum {
	FIRST_PART = 16, /* of the connection's window is its first size */
	/* Or this many bytes: more than the peer can send before it learns of more. */
	LEAST_FIRST_BYTES = 16384,
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
