/* SPDX-License-Identifier: Apache-2.0
 *
 * The pair's applications in other processes: what they and their workers tell each other.
 */
#include "pair_parts.h"

#include "fuzz.h"

enum { MOST_HEARD = 10000 }; /* in a turn */

/* Streams of its own: as far as the ring has room. */
static void ask_for_streams(struct pair *p)
{
	struct side *s = &p->side[CLIENT];
	while (s->asked < s->to_ask) {
		uint32_t is_uni = (pair_own_id(p, (int)s->asked) & 2) != 0;
		int asked = hs_attached_command(s->remote.attached, (uint64_t)s->asking << 1,
						HS_COMMAND_OPEN, is_uni, s->asked);
		CHECK(asked >= 0);
		if (!asked)
			return;
		s->asked++;
	}
}

void pair_send_message(struct side *s, enum pair_message_kind kind, uint32_t connection)
{
	struct pair_message *m = &s->messages[s->sent_messages++ % PAIR_MESSAGES];
	CHECK(s->sent_messages - s->read_messages <= PAIR_MESSAGES);
	*m = (struct pair_message){ kind, connection };
	CHECK(!hs_application_queue_message(s->application));
}

static void read_message(struct pair *p, int side)
{
	struct side *s = &p->side[side];
	struct pair_message m = s->messages[s->read_messages++ % PAIR_MESSAGES];
	struct link *link = pair_link_of(p, side, m.connection);
	if (m.kind == PAIR_ANNOUNCED) {
		CHECK(!link->held);
		link->held = hs_attached_connection(s->remote.attached, (uint64_t)m.connection << 1);
		CHECK(link->held);
		link->may_accept = 1;
		if (side == CLIENT) {
			s->asking = m.connection;
			s->asked = 0;
			s->to_ask = p->shape.streams;
		}
	} else if (m.kind == PAIR_CLOSED) {
		if (link->held)
			hs_end_connection_gone(link->held);
		pair_lose_flows(p, side, m.connection);
	} else {
		pair_forget_flows(p, side, m.connection);
	}
}

static void hear_one(struct pair *p, int side, int task, const struct hs_attached_news *news)
{
	if (task == HS_TASK_MESSAGE) {
		read_message(p, side);
	} else if (task == HS_TASK_REFUSED) {
		CHECK(p->distrusts || p->side[side].is_closed);
	} else {
		CHECK(task == HS_TASK_OPENED && side == CLIENT);
		CHECK(news->token < p->shape.streams);
		CHECK(p->distrusts || news->stream_id == pair_own_id(p, (int)news->token));
		pair_add_stream(p, side, p->side[side].asking, news->end, news->handle, news->stream_id);
	}
}

/* Returns how much it heard. */
static uint32_t hear(struct pair *p, int side)
{
	struct side *s = &p->side[side];
	struct hs_attached_news news;
	uint32_t count = 0;
	int task;
	while ((task = hs_attached_take(s->remote.attached, s->read_messages != s->sent_messages,
					&news))) {
		CHECK(task > 0 && ++count < MOST_HEARD);
		hear_one(p, side, task, &news);
	}
	return count;
}

/* The worker and the application, until neither has anything for the other. Returns whether the
 * application may have something to do. */
int pair_pump(struct pair *p, int side)
{
	struct side *s = &p->side[side];
	struct hs_event owners[HS_SESSION_COMMANDS];
	struct hs_commanded done;
	uint32_t heard = 0;
	int told;
	if (!s->is_remote)
		return 0;
	for (;;) {
		told = hs_application_tell(s->application);
		CHECK(told >= 0 && heard < MOST_HEARD);
		heard += hear(p, side);
		if (side == CLIENT)
			ask_for_streams(p);
		CHECK(hs_attached_settle(s->remote.attached) >= 0);
		int count = hs_application_commands(s->application, owners, &done);
		CHECK(count >= 0);
		/* Of a connection that is closed. */
		for (int i = 0; i < count; i++)
			CHECK(hs_application_refuse(s->application, owners[i].words[0],
						    HS_SESSION_CLOSED) == 1);
		if (!told && !done.count)
			return heard || hs_side_has(s->wakes);
	}
}

