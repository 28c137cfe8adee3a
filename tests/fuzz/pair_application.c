/* SPDX-License-Identifier: Apache-2.0
 *
 * What the pair's applications do: they open, accept, write, read and end streams.
 */
#include "pair_parts.h"

#include "fuzz.h"

enum {
	CHUNK_BYTES = 4096,
	PATTERN_PERIOD = 4093,
	MOST_MESSAGES = 8,
};

#define BIT_OF(bit) (UINT64_C(1) << (bit))

/* What a stream carries in one direction, from an offset on: CHUNK_BYTES of it. */
static const uint8_t *pattern(const struct flow *f, int from, uint64_t offset)
{
	static uint8_t bytes[PATTERN_PERIOD + CHUNK_BYTES];
	if (!bytes[1]) {
		for (uint32_t i = 0; i < sizeof(bytes); i++)
			bytes[i] = (uint8_t)(i % PATTERN_PERIOD * 2654435761U >> 24);
	}
	uint64_t shift = (uint64_t)f->id * 7 + (uint64_t)from * 101;
	return bytes + (offset + shift) % PATTERN_PERIOD;
}

static int64_t checked(const struct pair *p, const struct flow *f, int64_t result)
{
	uint32_t hints = result < 0 ? 0 : (uint32_t)(result >> HS_END_BYTES_BITS);
	CHECK(!p->side[f->side].is_remote || !(hints & ~(uint32_t)HS_END_WAKES));
	return result;
}

void pair_reset(struct pair *p, struct flow *f, uint64_t code)
{
	checked(p, f, hs_end_reset(f->end, code));
}

void pair_stop(struct pair *p, struct flow *f, uint64_t code)
{
	checked(p, f, hs_end_stop(f->end, code));
}

void pair_poke(struct pair *p, struct flow *f)
{
	const struct hs_end_verbs *verbs = f->end->connection->verbs;
	(void)p;
	if (f->end->tx)
		verbs->sent(f->end, 1);
	if (f->end->rx)
		verbs->consumed(f->end, 1);
}

void pair_add_stream(struct pair *p, int side, uint32_t connection, struct hs_end *end,
		       uint64_t handle, int64_t id)
{
	if (p->distrusts && id >= MOST_STREAM_NUMBERS) {
		hs_end_close(end, 1, 0);
		hs_end_drop(end);
		return;
	}
	CHECK(!pair_find_flow(p, side, connection, id));
	struct flow *f = pair_new_flow(p, side, connection, id);
	f->end = end;
	f->handle = handle;
}

int64_t pair_own_id(const struct pair *p, int i)
{
	int is_uni = p->shape.is_uni && i % 2;
	return (i / (p->shape.is_uni ? 2 : 1)) * 4 + (is_uni ? 2 : 0);
}

void pair_open_streams(struct pair *p)
{
	struct side *client = &p->side[CLIENT];
	uint32_t number = hs_connection_number(client->connection);
	for (int i = 0; i < p->shape.streams; i++) {
		struct hs_opened opened;
		int64_t id = pair_own_id(p, i);
		int refusal =
			hs_session_open(client->links[number].session, (id & 2) != 0, &opened);
		if (refusal) {
			CHECK(p->distrusts); /* a hostile server allowed none */
			continue;
		}
		CHECK(opened.stream_id == id);
		pair_add_stream(p, CLIENT, number, opened.end, opened.handle, id);
	}
}

static void accept_streams(struct pair *p, int side, uint32_t connection)
{
	struct link *link = pair_link_of(p, side, connection);
	struct hs_accepted accepted;
	if (!link->held || !link->may_accept)
		return;
	link->may_accept = 0;
	while (hs_end_accept(link->held, &accepted)) {
		CHECK((accepted.stream_id & 1) == (side == CLIENT));
		CHECK(accepted.has_tx == !(accepted.stream_id & 2));
		pair_add_stream(p, side, connection, accepted.end, accepted.handle,
				accepted.stream_id);
	}
}

/* A stream was given up. */
static void lose(struct pair *p, struct flow *f, int64_t error)
{
	CHECK(error == HS_END_RESET || error == HS_END_STOPPED);
	CHECK(p->is_spoilt[f->id] || p->distrusts);
	p->is_spoilt[f->id] |= GIVEN_UP;
}

static void set_end(struct pair *p, struct flow *f)
{
	int64_t result = checked(p, f, hs_end_finish(f->end));
	if (result < 0)
		lose(p, f, result);
	f->has_set_end = 1;
	f->is_send_finished = hs_end_wait_finished(f->end) == 1;
}

static void write_some(struct pair *p, struct flow *f)
{
	if (!f->has_tx || f->has_set_end || p->is_spoilt[f->id] == SCRIBBLED)
		return;
	while (f->may_write && f->written < p->shape.stream_bytes) {
		uint64_t left = p->shape.stream_bytes - f->written;
		size_t n = left < CHUNK_BYTES ? (size_t)left : CHUNK_BYTES;
		int64_t result =
			checked(p, f, hs_end_write(f->end, pattern(f, f->side, f->written), n));
		if (result < 0) {
			lose(p, f, result);
			f->may_write = 0;
			return;
		}
		uint64_t took = (uint64_t)result & (BIT_OF(HS_END_BYTES_BITS) - 1);
		CHECK(took <= n);
		f->written += took;
		f->may_write = took == n;
	}
	if (f->written == p->shape.stream_bytes)
		set_end(p, f);
}

/* Whether there may be more. */
static int note_read(struct pair *p, struct flow *f, const uint8_t *bytes, int64_t result)
{
	if (result == 0) {
		f->has_read_end = 1;
	} else if (result > 0) {
		uint64_t n = (uint64_t)result & (BIT_OF(HS_END_BYTES_BITS) - 1);
		CHECK(n && n <= CHUNK_BYTES);
		CHECK(p->distrusts || !memcmp(bytes, pattern(f, !f->side, f->read), n));
		f->read += n;
		return 1;
	} else if (result != HS_END_WAIT) {
		lose(p, f, result);
	}
	f->may_read = 0;
	return 0;
}

/* In place, or copied. */
static void read_some(struct pair *p, struct flow *f)
{
	uint8_t chunk[CHUNK_BYTES];
	const uint8_t *there;
	if (!f->has_rx || p->is_spoilt[f->id] == SCRIBBLED)
		return;
	while (f->may_read) {
		int64_t n = f->id & 2 ? hs_end_look(f->end, CHUNK_BYTES, &there) : 0;
		CHECK(n >= 0);
		if (n) {
			note_read(p, f, there, n);
			CHECK(checked(p, f, hs_end_skip(f->end, (size_t)n)) >= 0);
			continue;
		}
		n = checked(p, f, hs_end_read(f->end, chunk, sizeof(chunk), 0));
		if (!note_read(p, f, chunk, n))
			return;
	}
}

/* Messages say which they are: the network may lose any. */
static void write_messages(struct pair *p, struct flow *f)
{
	uint8_t message[CHUNK_BYTES];
	while (f->written < MOST_MESSAGES && f->largest_message) {
		size_t n = 1 + f->written * 331 % f->largest_message;
		CHECK(n <= sizeof(message));
		memcpy(message, pattern(f, f->side, f->written), n);
		message[0] = (uint8_t)f->written;
		int took = hs_fifo_write_message(&f->tx_in, message, n);
		CHECK(took >= 0);
		if (!took)
			break;
		f->written++;
		hs_connection_send_datagrams(p->side[f->side].connection);
	}
}

static void read_messages(struct pair *p, struct flow *f)
{
	struct hs_fifo_span spans[2];
	uint8_t message[CHUNK_BYTES];
	size_t n;
	int64_t end;
	while ((end = hs_fifo_peek_message(&f->rx_out, spans, &n)) > 0) {
		CHECK(n <= sizeof(message) && spans[0].bytes + spans[1].bytes == n);
		memcpy(message, spans[0].base, spans[0].bytes);
		memcpy(message + spans[0].bytes, spans[1].base, spans[1].bytes);
		CHECK(!hs_fifo_drop_to(&f->rx_out, (uint64_t)end));
		CHECK(p->distrusts || (n && message[0] < MOST_MESSAGES));
		CHECK(p->distrusts ||
		      !memcmp(message + 1, pattern(f, !f->side, message[0]) + 1, n - 1));
	}
	CHECK(end == 0);
}

/* Every second stream is dropped as soon as the application has done with it. */
static int is_dropped_early(const struct pair *p, const struct flow *f)
{
	return f->id & 4 && !p->is_spoilt[f->id] && (!f->has_tx || f->has_set_end) &&
	       (!f->has_rx || f->has_read_end);
}

static void stream_is_over(struct pair *p, struct flow *f)
{
	struct hs_end_state state;
	hs_end_state(f->end, &state);
	if (state.rx == HS_END_RESET)
		lose(p, f, state.rx);
	if (state.tx == HS_END_RESET || state.tx == HS_END_STOPPED)
		lose(p, f, state.tx);
	if (!p->distrusts && !p->is_spoilt[f->id]) {
		CHECK(!f->has_tx || (f->has_set_end && f->is_send_finished && state.is_finished));
		CHECK(!f->has_rx || (f->has_read_end && f->read == p->shape.stream_bytes));
		CHECK(state.has_all);
	}
}

/* An application in another process has to find out by itself. */
static int is_over(const struct pair *p, const struct flow *f)
{
	struct hs_end_state state;
	if (!p->side[f->side].is_remote)
		return f->end->session->is_over;
	hs_end_state(f->end, &state);
	return (!f->has_rx || f->has_read_end || state.rx) &&
	       (!f->has_tx || f->is_send_finished || state.tx);
}

static void work_on_stream(struct pair *p, struct flow *f)
{
	struct side *s = &p->side[f->side];
	if (f->is_lost)
		return;
	write_some(p, f);
	if (!s->is_not_reading || is_over(p, f))
		read_some(p, f);
	if (is_over(p, f))
		stream_is_over(p, f);
	else if (!is_dropped_early(p, f))
		return;
	s->streams_over++;
	checked(p, f, hs_end_close(f->end, 0, 0));
	pair_remove_flow(p, f);
}

void pair_work(struct pair *p, int side)
{
	struct side *s = &p->side[side];
	for (uint32_t i = 0; i < PAIR_NUMBERS; i++)
		accept_streams(p, side, i);
	if (s->is_closed)
		return;
	for (struct flow *f = s->flows, *next; f; f = next) {
		next = f->next;
		if (f->end) {
			work_on_stream(p, f);
			continue;
		}
		write_messages(p, f);
		read_messages(p, f);
	}
}

/* The application knows that the connection is closed. Some of its streams are dropped now, some when
 * it is forgotten. */
void pair_lose_flows(struct pair *p, int side, uint32_t connection)
{
	for (struct flow *f = p->side[side].flows, *next; f; f = next) {
		next = f->next;
		if (f->connection != connection || !f->end)
			continue;
		f->is_lost = 1;
		if (f->id & 4)
			continue;
		checked(p, f, hs_end_close(f->end, 1, 0));
		pair_remove_flow(p, f);
	}
}

void pair_forget_flows(struct pair *p, int side, uint32_t connection)
{
	struct link *link = pair_link_of(p, side, connection);
	if (link->held)
		hs_end_connection_drop(link->held);
	link->held = NULL;
	for (struct flow *f = p->side[side].flows, *next; f; f = next) {
		next = f->next;
		if (f->connection == connection)
			pair_remove_flow(p, f);
	}
}

void pair_close_session(struct pair *p, int side, uint32_t connection)
{
	struct side *s = &p->side[side];
	struct link *link = pair_link_of(p, side, connection);
	if (link->session) {
		hs_connection_session_close(link->session);
		link->session = NULL;
		if (s->is_remote)
			pair_send_message(s, PAIR_CLOSED, connection);
	}
	if (!s->is_remote)
		pair_lose_flows(p, side, connection);
}

void pair_announce(struct pair *p, int side, uint32_t connection)
{
	struct side *s = &p->side[side];
	struct link *link = pair_link_of(p, side, connection);
	struct hs_connection_session *session = pair_session_of(p, side, connection);
	if (s->is_remote)
		pair_send_message(s, PAIR_ANNOUNCED, connection);
	hs_connection_session_announce(session, (uint64_t)connection << 1); /* streams are odd */
	if (s->is_remote)
		return;
	link->held = hs_connection_session_hold(session);
	CHECK(link->held);
	link->may_accept = 1;
}

static struct flow *find_handle(struct pair *p, int side, uint64_t handle)
{
	struct flow *f = p->side[side].flows;
	while (f && (!f->end || f->handle != handle))
		f = f->next;
	return f;
}

/* What the plane tells the application. */
void pair_wake(struct pair *p, int side)
{
	uint64_t key;
	pair_pump(p, side);
	while (hs_side_take(p->side[side].wakes, &key, 1)) {
		if (!(key >> 2 & HS_SESSION_STREAM)) {
			pair_link_of(p, side, (uint32_t)(key >> 3))->may_accept = 1;
			continue;
		}
		struct flow *f = find_handle(p, side, key >> 2);
		if (!f)
			continue; /* dropped since */
		f->may_read |= (key & 3) == HS_WAIT_READ;
		f->may_write |= (key & 3) == HS_WAIT_WRITE;
		if ((key & 3) == HS_WAIT_FINISHED)
			f->is_send_finished = hs_end_wait_finished(f->end) == 1;
	}
}
