/* SPDX-License-Identifier: Apache-2.0
 *
 * What the session plane calls of the engine (session/transport.h). Streams that have begun are
 * in stream.c.
 */
#include "quic/state.h"

#include "quic/send_order.h"
#include "quic/stream.h"
#include "quic/stream_limits.h"
#include "session/transport.h"

static int is_usable(const struct hs_connection *c)
{
	return c->state == HS_OPEN || (c->state == HS_OPENING && c->is_early);
}

static uint64_t openings(void *connection, int is_unidirectional)
{
	struct hs_connection *c = connection;
	if (!is_usable(c))
		return 0;
	return is_unidirectional ? ngtcp2_conn_get_streams_uni_left(c->conn) :
				   ngtcp2_conn_get_streams_bidi_left(c->conn);
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
		.openings = openings,
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
