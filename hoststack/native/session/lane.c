/* SPDX-License-Identifier: Apache-2.0
 *
 * The fast lane of an application in another process: its commands, and the news about its streams.
 * What does not fit into a ring stays where it is: commands in theirs, news with their stream.
 */
#include "session/internal.h"
#include "session/records.h"

#include <stdlib.h>

enum {
	BATCH = 64, /* commands that are read at once */
	MOST_RECORDS = 2, /* about one stream */
};

#define MOST_CODE ((UINT64_C(1) << 62) - 1) /* RFC 9000 section 16 */

int hs_application_set_rings(struct hs_application *a, void *down, void *up, size_t block_bytes)
{
	if (hs_event_ring_open(&a->down, down, block_bytes) ||
	    hs_event_ring_open(&a->up, up, block_bytes))
		return -1;
	return a->up.size < MOST_RECORDS ? -1 : 0;
}

/* --- news -------------------------------------------------------------------------------------- */

int hs_application_queue_message(struct hs_application *a)
{
	if (a->has_left)
		return 0;
	if (a->last_touched && !a->last_touched->stream) {
		a->last_touched->messages++;
		return 0;
	}
	struct hs_touch *touch = calloc(1, sizeof(*touch));
	if (!touch)
		return -1;
	touch->messages = 1;
	hs_touch_append(&a->first_touched, &a->last_touched, touch);
	return 0;
}

int hs_application_push(struct hs_application *a, uint64_t handle, uint32_t news)
{
	struct hs_event event = { .handle = handle, .kind = news };
	/* Not ahead of the message about its connection. */
	return a->first_touched ? 0 : hs_event_ring_push(&a->up, &event);
}

int hs_application_refuse(struct hs_application *a, uint64_t token, uint32_t refusal)
{
	struct hs_event event = { .kind = HS_NEWS_REFUSED, .arg = refusal, .words = { token } };
	a->has_refused = 1;
	return hs_event_ring_push(&a->up, &event);
}

/* A new stream: both sides ask for signals. With cut-through the two applications do. */
static int tell_opened(struct hs_application *a, struct hs_stream_session *s)
{
	struct hs_event event = {
		.handle = s->end.handle,
		.kind = HS_NEWS_OPENED,
		.arg = s->is_peers,
		.words = { s->connection->end.handle, (uint64_t)s->end.id, s->rx_block.place,
			   s->tx_block.place, s->token },
	};
	if (!s->connection->is_shared && s->tx)
		hs_fifo_arm_read(s->tx);
	if (!s->connection->is_shared && s->rx)
		hs_fifo_arm_write(s->rx);
	return hs_event_ring_push(&a->up, &event);
}

/* What the application is to know of a stream: it has to have asked for most of it. */
static uint32_t wanted(struct hs_stream_session *s)
{
	int is_shared = s->connection->is_shared;
	uint32_t events = s->events &
			  (HS_STREAM_RESET | HS_STREAM_STOPPED | HS_STREAM_FINISHED);
	if (s->events & HS_STREAM_READABLE && s->rx &&
	    (is_shared || hs_fifo_take_read_armed(s->rx)))
		events |= HS_STREAM_READABLE;
	if (s->events & HS_STREAM_WRITABLE && s->tx &&
	    (is_shared || hs_fifo_take_write_armed(s->tx)))
		events |= HS_STREAM_WRITABLE;
	return events;
}

static int tell_stream(struct hs_application *a, struct hs_stream_session *s)
{
	int told = s->events & HS_STREAM_OPENED ? tell_opened(a, s) : 0;
	uint32_t events = wanted(s);
	s->events = 0;
	s->is_touched = 0;
	if (events && told >= 0) {
		struct hs_event event = {
			.handle = s->end.handle,
			.kind = HS_NEWS_STREAM,
			.arg = events,
			.words = { s->end.reset_code, s->end.stop_code,
				   s->tx ? s->tx->head : 0 },
		};
		told = hs_event_ring_push(&a->up, &event);
	}
	hs_session_closed(s);
	return told;
}

static int tell_messages(struct hs_application *a, struct hs_touch *touch)
{
	struct hs_event event = { .kind = HS_NEWS_MESSAGES, .arg = touch->messages };
	free(touch);
	return hs_event_ring_push(&a->up, &event);
}

int hs_application_tell(struct hs_application *a)
{
	int told = a->has_refused ? HS_TOLD_SOME : 0;
	a->has_refused = 0;
	while (a->first_touched) {
		struct hs_touch *touch = a->first_touched;
		int64_t room = hs_event_ring_room(&a->up);
		if (room >= 0 && room < MOST_RECORDS)
			room = hs_event_ring_arm_room(&a->up);
		if (room < 0)
			return (int)room;
		if (room < MOST_RECORDS)
			return told | HS_TOLD_NOT_ALL;
		a->first_touched = touch->next;
		if (!a->first_touched)
			a->last_touched = NULL;
		int done = touch->stream ? tell_stream(a, touch->stream) : tell_messages(a, touch);
		if (done < 0)
			return done;
		told |= done ? HS_TOLD_SOME : 0;
	}
	return told;
}

int hs_application_take_armed(struct hs_application *a)
{
	return hs_event_ring_take_armed(&a->up);
}

/* --- commands ---------------------------------------------------------------------------------- */

int64_t hs_application_arm(struct hs_application *a)
{
	hs_event_ring_arm(&a->down);
	return hs_event_ring_length(&a->down);
}

void hs_session_answer(struct hs_stream_session *s, uint64_t token)
{
	s->token = token;
	s->events |= HS_STREAM_OPENED;
	hs_session_touch(s);
}

/* Returns 1 if the owner has to open the stream. */
static int open(struct hs_application *a, const struct hs_event *command)
{
	struct hs_connection_session *c = hs_table_get(&a->plane->connections, command->handle);
	struct hs_stream_session *s;
	if (!c || c->application != a || hs_connection_session_is_python(c))
		return 1;
	int refusal = hs_session_begin(c, command->arg & 1, &s);
	if (refusal)
		return hs_application_refuse(a, command->words[0], (uint32_t)refusal) < 0 ?
			       HS_EVENT_RING_CORRUPT :
			       0;
	hs_session_answer(s, command->words[0]);
	return 0;
}

/* Ask for the next command before the transport looks. */
static int follow(struct hs_stream_session *s, const struct hs_event *command)
{
	const struct hs_transport_verbs *verbs = s->connection->verbs;
	int arms = !s->connection->is_shared;
	if (!s->stream)
		return 0;
	switch (command->kind) {
	case HS_COMMAND_SENT:
		if (!s->tx)
			return 0;
		if (arms)
			hs_fifo_arm_read(s->tx);
		verbs->send_ready(s->stream);
		return 1;
	case HS_COMMAND_CONSUMED:
		if (!s->rx)
			return 0;
		if (arms)
			hs_fifo_arm_write(s->rx);
		verbs->consumed(s->stream);
		return 1;
	case HS_COMMAND_RESET:
		verbs->reset(s->stream, command->words[0]);
		return 1;
	case HS_COMMAND_STOP:
		verbs->stop(s->stream, command->words[0]);
		return 1;
	default:
		return 0;
	}
}

/* Returns 1 if the command is for the owner, 0, or an error. */
static int obey(struct hs_application *a, const struct hs_event *command, uint8_t *is_due)
{
	if (command->kind == HS_COMMAND_OPEN) {
		*is_due = 1;
		return open(a, command);
	}
	if (!(command->handle & HS_SESSION_STREAM))
		return 1;
	if ((command->kind == HS_COMMAND_RESET || command->kind == HS_COMMAND_STOP) &&
	    command->words[0] > MOST_CODE)
		return HS_SESSION_INVALID;
	struct hs_stream_session *s = hs_session_find(a->plane, command->handle);
	/* It may be late, or another application's. */
	if (!s || s->connection->application != a)
		return 0;
	if (command->kind == HS_COMMAND_TAKEN) {
		if (!s->is_taken)
			hs_session_taken(s);
		*is_due = 1;
	} else if (command->kind == HS_COMMAND_RELEASED) {
		s->is_released = 1;
		hs_session_closed(s);
	} else {
		*is_due |= (uint8_t)follow(s, command);
	}
	return 0;
}

/* How many commands can be followed now: each may be answered at once. Those for the owner are
 * answered later. */
static int64_t most_commands(struct hs_application *a, const struct hs_commanded *done,
			     int owners_opens)
{
	int64_t room = hs_event_ring_room(&a->up);
	if (room >= 0 && room <= owners_opens)
		room = hs_event_ring_arm_room(&a->up);
	if (room < 0)
		return room;
	int64_t most = HS_SESSION_COMMANDS - (int64_t)done->count;
	if (most > BATCH)
		most = BATCH;
	return most < room - owners_opens ? most : room - owners_opens;
}

static int follow_all(struct hs_application *a, struct hs_event *out, struct hs_commanded *done)
{
	struct hs_event batch[BATCH];
	int count = 0, owners_opens = 0;
	while (done->count < HS_SESSION_COMMANDS) {
		int64_t most = most_commands(a, done, owners_opens);
		done->is_held_up = most == 0;
		if (most <= 0)
			return most < 0 ? (int)most : count;
		int n = hs_event_ring_pop(&a->down, batch, (int)most);
		if (n < 0)
			return n;
		for (int i = 0; i < n; i++) {
			int is_owners = obey(a, &batch[i], &done->is_due);
			if (is_owners < 0)
				return is_owners;
			if (is_owners)
				out[count++] = batch[i];
			owners_opens += is_owners && batch[i].kind == HS_COMMAND_OPEN;
		}
		done->count += (uint32_t)n;
		if (n < most)
			return count;
	}
	return count;
}

int hs_application_commands(struct hs_application *a, struct hs_event *out,
			    struct hs_commanded *done)
{
	*done = (struct hs_commanded){ 0, 0, 0, 0 };
	int count = follow_all(a, out, done);
	done->has_made_room = done->count && hs_event_ring_take_room_armed(&a->down);
	return count;
}
