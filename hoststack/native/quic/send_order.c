/* SPDX-License-Identifier: Apache-2.0
 *
 * Which of a connection's streams is sent first: by urgency, and in turns (RFC 9218 section 10).
 */
#include "quic/send_order.h"

enum {
	STARVED = HS_FIFO_RANKS, /* the list */
	/* The least urgent streams get one round of so many: they must not stand still. */
	ROUNDS = 16,
};

static int is_incremental(uint32_t rank)
{
	return rank & 1;
}

static void insert(struct hs_stream *s, uint32_t number, int is_first)
{
	struct hs_stream_list *list = &s->connection->to_send[number];
	s->is_listed = 1;
	s->list = (uint8_t)number;
	s->next_to_send = is_first ? list->first : NULL;
	s->previous_to_send = is_first ? NULL : list->last;
	*(s->next_to_send ? &s->next_to_send->previous_to_send : &list->last) = s;
	*(s->previous_to_send ? &s->previous_to_send->next_to_send : &list->first) = s;
	if (number != STARVED)
		s->connection->ranks |= 1u << number;
}

/* Streams that do not take turns are sent in the order of their IDs (RFC 9218 section 10): an earlier
 * one that has something to send again goes before the one that is being sent. */
static void append(struct hs_stream *s, uint32_t rank)
{
	const struct hs_stream *first = s->connection->to_send[rank].first;
	insert(s, rank, !is_incremental(rank) && first && s->id < first->id);
}

void hs_stream_stop_listing(struct hs_stream *s)
{
	struct hs_connection *c = s->connection;
	struct hs_stream_list *list = &c->to_send[s->list];
	if (!s->is_listed)
		return;
	s->is_listed = 0;
	*(s->previous_to_send ? &s->previous_to_send->next_to_send : &list->first) =
		s->next_to_send;
	*(s->next_to_send ? &s->next_to_send->previous_to_send : &list->last) =
		s->previous_to_send;
	if (!list->first && s->list != STARVED)
		c->ranks &= ~(1u << s->list);
}

void hs_stream_list(struct hs_stream *s)
{
	uint32_t rank = hs_fifo_rank(s->tx);
	if (s->is_listed && (s->list == rank || s->list == STARVED))
		return;
	hs_stream_stop_listing(s);
	append(s, rank);
}

static struct hs_stream *next_by_rank(const struct hs_connection *c)
{
	if (!c->ranks)
		return NULL;
	uint32_t round = c->rounds % ROUNDS;
	uint32_t rank = (uint32_t)__builtin_ctz(c->ranks);
	if (round == ROUNDS - 1)
		rank = 31 - (uint32_t)__builtin_clz(c->ranks);
	/* Of one urgency, the two lists alternate. */
	else if (round & 1 && c->ranks & 1u << (rank ^ 1))
		rank ^= 1;
	return c->to_send[rank].first;
}

/* Once the connection's window has moved, streams that were waiting for it are served before others
 * of their rank: they waited longest. */
struct hs_stream *hs_stream_next(struct hs_connection *c)
{
	struct hs_stream_list *starved = &c->to_send[STARVED];
	if (starved->first && ngtcp2_conn_get_max_data_left(c->conn)) {
		for (struct hs_stream *s; (s = starved->last) != NULL;) {
			hs_stream_stop_listing(s);
			insert(s, hs_fifo_rank(s->tx), 1);
		}
	}
	return next_by_rank(c);
}

void hs_stream_starve(struct hs_stream *s)
{
	hs_stream_stop_listing(s);
	/* A stream that got some of the last credit is served after all others. */
	if (s->has_had_credit)
		append(s, hs_fifo_rank(s->tx));
	else
		insert(s, STARVED, 0);
	s->has_had_credit = 0;
}

void hs_stream_rotate(struct hs_connection *c)
{
	struct hs_stream *s = next_by_rank(c);
	if (s && s->next_to_send && is_incremental(s->list)) {
		hs_stream_stop_listing(s);
		append(s, hs_fifo_rank(s->tx));
	}
	c->rounds++;
}
