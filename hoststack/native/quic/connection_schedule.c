/* SPDX-License-Identifier: Apache-2.0
 *
 * Which connections the next turn serves, whose events it reports, and when a timer is due.
 */
#include "quic/connection_schedule.h"

#include <stdlib.h>

enum { LEAST_ROOM = 64 };

/* --- connections and streams with work -------------------------------------------------------- */

void hs_schedule(struct hs_connection *c)
{
	struct hs_quic *q = c->q;
	if (c->is_due)
		return;
	c->is_due = 1;
	c->next_due = NULL;
	c->previous_due = q->last_due;
	if (q->last_due)
		q->last_due->next_due = c;
	else
		q->first_due = c;
	q->last_due = c;
}

void hs_unschedule(struct hs_connection *c)
{
	struct hs_quic *q = c->q;
	if (!c->is_due)
		return;
	c->is_due = 0;
	if (c->previous_due)
		c->previous_due->next_due = c->next_due;
	else
		q->first_due = c->next_due;
	if (c->next_due)
		c->next_due->previous_due = c->previous_due;
	else
		q->last_due = c->previous_due;
}

void hs_touch(struct hs_connection *c, uint32_t pending)
{
	c->pending |= pending;
	if (c->is_touched)
		return;
	c->is_touched = 1;
	c->next_touched = NULL;
	*c->q->touched_end = c;
	c->q->touched_end = &c->next_touched;
}

void hs_touch_stream(struct hs_stream *s, uint32_t events)
{
	struct hs_connection *c = s->connection;
	s->pending |= events;
	if (!s->is_touched) {
		s->is_touched = 1;
		s->next_touched = NULL;
		*c->touched_end = s;
		c->touched_end = &s->next_touched;
	}
	hs_touch(c, 0);
}

/* --- connections by deadline ------------------------------------------------------------------ */

static void place(struct hs_quic *q, struct hs_connection *c, uint32_t at)
{
	q->heap[at] = c;
	c->heap_place = at;
}

static void sift_up(struct hs_quic *q, struct hs_connection *c, uint32_t at)
{
	for (; at > 1 && q->heap[at / 2]->deadline_ns > c->deadline_ns; at /= 2)
		place(q, q->heap[at / 2], at);
	place(q, c, at);
}

static void sift_down(struct hs_quic *q, struct hs_connection *c, uint32_t at)
{
	for (;;) {
		uint32_t child = at * 2;
		if (child > q->heap_count)
			break;
		if (child < q->heap_count &&
		    q->heap[child + 1]->deadline_ns < q->heap[child]->deadline_ns)
			child++;
		if (q->heap[child]->deadline_ns >= c->deadline_ns)
			break;
		place(q, q->heap[child], at);
		at = child;
	}
	place(q, c, at);
}

int hs_heap_set(struct hs_quic *q, struct hs_connection *c, uint64_t deadline_ns)
{
	if (deadline_ns == UINT64_MAX) {
		hs_heap_remove(q, c);
		c->deadline_ns = deadline_ns;
		return 0;
	}
	if (!c->heap_place) {
		if (q->heap_count + 1 >= q->heap_room) {
			uint32_t room = q->heap_room ? q->heap_room * 2 : LEAST_ROOM;
			void *heap = realloc(q->heap, room * sizeof(*q->heap));
			if (!heap)
				return -1;
			q->heap = heap;
			q->heap_room = room;
		}
		c->deadline_ns = deadline_ns;
		sift_up(q, c, ++q->heap_count);
		return 0;
	}
	uint64_t before = c->deadline_ns;
	c->deadline_ns = deadline_ns;
	if (deadline_ns < before)
		sift_up(q, c, c->heap_place);
	else if (deadline_ns > before)
		sift_down(q, c, c->heap_place);
	return 0;
}

void hs_heap_remove(struct hs_quic *q, struct hs_connection *c)
{
	uint32_t at = c->heap_place;
	if (!at)
		return;
	c->heap_place = 0;
	struct hs_connection *last = q->heap[q->heap_count--];
	if (last == c)
		return;
	if (at > 1 && q->heap[at / 2]->deadline_ns > last->deadline_ns)
		sift_up(q, last, at);
	else
		sift_down(q, last, at);
}

/* --- the clock -------------------------------------------------------------------------------- */

/* ngtcp2 aborts if a connection's time goes backwards. The caller may have read its clock before
 * the last turn advanced the time. */
void hs_quic_advance(struct hs_quic *q, uint64_t now_ns)
{
	if (q->now_ns < now_ns)
		q->now_ns = now_ns;
}
