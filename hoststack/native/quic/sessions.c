/* SPDX-License-Identifier: Apache-2.0
 *
 * What the session plane calls of the engine (session/transport.h). Streams that have begun are
 * in stream.c.
 */
#include "quic/internal.h"

#include <stdlib.h>

enum {
	FEW_LEFT = 8, /* a peer that has this part of its limit left should get more */
	/* And every peer after this time: it may have opened streams that it has sent nothing on. */
	MOST_HELD_BACK_NS = 25000000,
};

static int is_usable(const struct hs_connection *c)
{
	return c->state == HS_OPEN || (c->state == HS_OPENING && c->is_early);
}

static int may_open(void *connection, int is_unidirectional)
{
	struct hs_connection *c = connection;
	if (!is_usable(c))
		return 0;
	return (is_unidirectional ? ngtcp2_conn_get_streams_uni_left(c->conn) :
				    ngtcp2_conn_get_streams_bidi_left(c->conn)) > 0;
}

static void *open_stream(void *connection, int is_unidirectional, void *session,
			 struct hs_fifo_producer *rx, struct hs_fifo_consumer *tx, int64_t *id)
{
	struct hs_connection *c = connection;
	if (!is_usable(c))
		return NULL;
	int failed = is_unidirectional ? ngtcp2_conn_open_uni_stream(c->conn, id, NULL) :
					 ngtcp2_conn_open_bidi_stream(c->conn, id, NULL);
	if (failed)
		return NULL;
	struct hs_stream *s = hs_stream_new(c, *id, 1);
	if (!s) {
		ngtcp2_conn_shutdown_stream(c->conn, 0, *id, 0);
		return NULL;
	}
	hs_stream_set_session(s, session, rx, tx);
	ngtcp2_conn_set_stream_user_data(c->conn, *id, s);
	return s;
}

static uint64_t most_streams(const struct hs_connection *c, int is_unidirectional)
{
	return is_unidirectional ? c->config.max_streams_uni : c->config.max_streams_bidi;
}

int hs_streams_are_scarce(const struct hs_connection *c, int is_unidirectional)
{
	int direction = is_unidirectional != 0;
	uint64_t most = most_streams(c, is_unidirectional);
	uint64_t left = most + c->peers_streams[direction].allowed -
			c->peers_streams[direction].opened;
	return left <= most / FEW_LEFT + 1;
}

static int allow_all(struct hs_connection *c, int is_unidirectional)
{
	int direction = is_unidirectional != 0;
	uint64_t more = c->peers_streams[direction].held_back;
	if (!more)
		return 0;
	c->peers_streams[direction].held_back = 0;
	c->peers_streams[direction].allowed += more;
	if (is_unidirectional)
		ngtcp2_conn_extend_max_streams_uni(c->conn, more);
	else
		ngtcp2_conn_extend_max_streams_bidi(c->conn, more);
	hs_schedule(c);
	return 1;
}

static int allow_if_scarce(struct hs_connection *c, int is_unidirectional)
{
	return hs_streams_are_scarce(c, is_unidirectional) && allow_all(c, is_unidirectional);
}

/* A packet for each stream that has ended would double the packets of short requests: while the peer
 * has some of its limit left, it gets credit for several streams at once. */
int hs_allow_stream(struct hs_connection *c, int is_unidirectional)
{
	if (c->state > HS_OPEN)
		return 0;
	c->peers_streams[is_unidirectional != 0].held_back++;
	if (allow_if_scarce(c, is_unidirectional))
		return 1;
	if (c->allow_at_ns)
		return 0;
	c->allow_at_ns = c->q->now_ns + MOST_HELD_BACK_NS;
	if (!c->heap_place || c->allow_at_ns < c->deadline_ns)
		hs_heap_set(c->q, c, c->allow_at_ns);
	return 1; /* a turn soon, after which the worker knows the new deadline */
}

void hs_allow_late(struct hs_connection *c)
{
	if (!c->allow_at_ns || c->q->now_ns < c->allow_at_ns || c->state > HS_OPEN)
		return;
	c->allow_at_ns = 0;
	allow_all(c, 0);
	allow_all(c, 1);
}

void hs_count_opened(struct hs_connection *c, int64_t stream_id)
{
	int is_unidirectional = !ngtcp2_is_bidi_stream(stream_id);
	/* Opening a stream opens all lower ones of its kind (RFC 9000 section 3.2), whose packets
	 * may arrive later. */
	uint64_t opened = (uint64_t)stream_id / 4 + 1;
	if (opened > c->peers_streams[is_unidirectional].opened)
		c->peers_streams[is_unidirectional].opened = opened;
	allow_if_scarce(c, is_unidirectional);
}

static int allow(void *connection, int is_unidirectional)
{
	return hs_allow_stream(connection, is_unidirectional);
}

static void send_ready(void *stream)
{
	hs_stream_send_ready(stream);
}

static int consumed(void *stream)
{
	return hs_stream_consumed(stream);
}

static void reset(void *stream, uint64_t code)
{
	hs_stream_reset(stream, code);
}

static void stop(void *stream, uint64_t code)
{
	hs_stream_stop_sending(stream, code);
}

/* The connection is closed: nothing is sent or received any more. */
static void let_go(void *stream)
{
	struct hs_stream *s = stream;
	hs_stream_stop_listing(s);
	s->session = NULL;
	s->rx = NULL;
	s->tx = NULL;
	s->tx_is_over = 1;
	s->is_discarding = 1;
}

uint64_t hs_quic_transport_verbs(void)
{
	static const struct hs_transport_verbs VERBS = {
		.may_open = may_open,
		.open = open_stream,
		.allow = allow,
		.send_ready = send_ready,
		.consumed = consumed,
		.reset = reset,
		.stop = stop,
		.let_go = let_go,
	};
	return (uint64_t)(uintptr_t)&VERBS;
}

void hs_connection_set_session(struct hs_connection *c, void *session)
{
	c->streams_owner = session;
}
