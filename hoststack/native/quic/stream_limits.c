/* SPDX-License-Identifier: Apache-2.0
 *
 * How many streams the peer may open.
 */
#include "quic/stream_limits.h"

#include "quic/connection_schedule.h"

enum {
	FEW_LEFT = 8, /* a peer that has this part of its limit left should get more */
	/* And every peer after this time: it may have opened streams that it has sent nothing on. */
	MOST_HELD_BACK_NS = 25000000,
};

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
