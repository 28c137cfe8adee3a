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

/* What an application in another process tells its worker. */
static int64_t act(struct pair *p, const struct flow *f, int64_t result, uint64_t code)
{
	struct hs_application *a = p->side[f->side].application;
	uint32_t hints = result < 0 ? 0 : (uint32_t)(result >> HS_END_BYTES_BITS);
	CHECK(f->shared || !(hints & (HS_END_MUST_RESET | HS_END_MUST_STOP)));
	if (!f->shared)
		return result;
	if (hints & HS_END_SEND)
		hs_session_signal(a, f->handle, HS_SIGNAL_SENT, 0);
	if (hints & (HS_END_CREDIT | HS_END_CREDIT_NOW))
		hs_session_signal(a, f->handle, HS_SIGNAL_CONSUMED, 0);
	if (hints & HS_END_MUST_RESET)
		hs_session_signal(a, f->handle, HS_SIGNAL_RESET, code);
	if (hints & HS_END_MUST_STOP)
		hs_session_signal(a, f->handle, HS_SIGNAL_STOP, code);
	return result;
}

void pair_reset(struct pair *p, struct flow *f, uint64_t code)
{
	act(p, f, hs_end_reset(f->end, code), code);
}

void pair_stop(struct pair *p, struct flow *f, uint64_t code)
{
	act(p, f, hs_end_stop(f->end, code), code);
}

void pair_poke(struct pair *p, struct flow *f)
{
	if (f->shared) {
		hs_session_signal(p->side[f->side].application, f->handle, HS_SIGNAL_SENT, 0);
		hs_session_signal(p->side[f->side].application, f->handle, HS_SIGNAL_CONSUMED, 0);
	} else {
		hs_session_send_ready(f->end->session);
		hs_session_consumed(f->end->session);
	}
}

static void add_stream(struct pair *p, int side, uint32_t connection, struct hs_end *end,
		       uint64_t handle, int64_t id)
{
	struct shared *shared = NULL;
	if (p->side[side].is_remote) {
		shared = pair_find_shared(&p->side[side], handle);
		CHECK(shared->end == end);
		shared->is_taken = 1;
	}
	if (p->distrusts && id >= MOST_STREAM_NUMBERS) {
		struct flow too_many = { .side = side, .handle = handle, .shared = shared };
		act(p, &too_many, hs_end_close(end, 1, 0), 0);
		hs_end_drop(end);
		if (shared)
			shared->end = NULL;
		return;
	}
	CHECK(!pair_find_flow(p, side, connection, id));
	struct flow *f = pair_new_flow(p, side, connection, id);
	f->end = end;
	f->handle = handle;
	f->shared = shared;
}

static void new_remote_end(struct side *s, struct shared *shared, int64_t id, int is_peers)
{
	int has_rx = shared->rx_block != NULL, has_tx = shared->tx_block != NULL;
	if (has_tx)
		hs_fifo_arm_read(&shared->tx_out);
	if (has_rx)
		hs_fifo_arm_write(&shared->rx_in);
	shared->end = hs_end_new(s->links[shared->connection].held, shared->handle, id, is_peers,
				 has_rx ? &shared->rx_out : NULL, has_tx ? &shared->tx_in : NULL);
	CHECK(shared->end);
}

/* Returns 0, or a refusal. */
static int open_remote(struct side *s, uint32_t connection, int is_uni, struct hs_opened *out)
{
	struct hs_connection_session *c = s->links[connection].session;
	int refusal = hs_session_why_not(c, is_uni);
	if (refusal)
		return refusal;
	struct shared *shared = pair_new_shared(s, connection, !is_uni, 1);
	struct hs_stream_session *session = hs_session_open_over(
		c, is_uni, is_uni ? NULL : &shared->rx_in, &shared->tx_out);
	if (!session) {
		shared->is_over = 1;
		return HS_SESSION_CLOSED;
	}
	shared->handle = hs_session_handle(session);
	new_remote_end(s, shared, hs_session_stream_id(session), 0);
	*out = (struct hs_opened){ shared->end, shared->handle, hs_session_stream_id(session) };
	return 0;
}

void pair_open_streams(struct pair *p)
{
	struct side *client = &p->side[CLIENT];
	uint32_t number = hs_connection_number(client->connection);
	for (int i = 0; i < p->shape.streams; i++) {
		int is_uni = p->shape.is_uni && i % 2;
		int64_t id = (i / (p->shape.is_uni ? 2 : 1)) * 4 + (is_uni ? 2 : 0);
		struct hs_opened opened;
		int refusal = client->is_remote ?
				      open_remote(client, number, is_uni, &opened) :
				      hs_session_open(client->links[number].session, is_uni, &opened);
		if (refusal) {
			CHECK(p->distrusts); /* a hostile server allowed none */
			continue;
		}
		CHECK(opened.stream_id == id);
		add_stream(p, CLIENT, number, opened.end, opened.handle, id);
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
		add_stream(p, side, connection, accepted.end, accepted.handle, accepted.stream_id);
		if (p->side[side].is_remote)
			hs_session_signal(p->side[side].application, accepted.handle,
					  HS_SIGNAL_TAKEN, 0);
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
	int64_t result = act(p, f, hs_end_finish(f->end), 0);
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
			act(p, f, hs_end_write(f->end, pattern(f, f->side, f->written), n), 0);
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
			CHECK(act(p, f, hs_end_skip(f->end, (size_t)n), 0) >= 0);
			continue;
		}
		n = act(p, f, hs_end_read(f->end, chunk, sizeof(chunk), 0), 0);
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

static void work_on_stream(struct pair *p, struct flow *f)
{
	struct side *s = &p->side[f->side];
	if (f->is_lost)
		return;
	int is_over = f->shared ? f->shared->is_over : f->end->session->is_over;
	write_some(p, f);
	if (!s->is_not_reading || is_over)
		read_some(p, f);
	if (is_over)
		stream_is_over(p, f);
	else if (!is_dropped_early(p, f))
		return;
	s->streams_over++;
	act(p, f, hs_end_close(f->end, 0, 0), 0);
	CHECK(!is_over || hs_end_is_over(f->end) || p->is_spoilt[f->id] || p->distrusts);
	pair_remove_flow(p, f);
}

/* What the plane tells an application in another process. */
static void hear_of_streams(struct side *s)
{
	struct hs_session_event event;
	while (hs_application_events(s->application, &event, 1)) {
		struct shared *shared = pair_find_shared(s, event.handle);
		uint32_t events = event.events;
		CHECK(s->is_remote && !shared->is_over);
		if (events & HS_STREAM_OPENED)
			new_remote_end(s, shared, event.stream_id, 1);
		if (events & HS_STREAM_READABLE && !hs_fifo_take_read_armed(&shared->rx_in))
			events &= ~(uint32_t)HS_STREAM_READABLE;
		if (events & HS_STREAM_WRITABLE && !hs_fifo_take_write_armed(&shared->tx_out))
			events &= ~(uint32_t)HS_STREAM_WRITABLE;
		if (shared->end)
			hs_end_report(shared->end, events, event.reset_code, event.stop_code);
		shared->is_over = (event.events & HS_STREAM_OVER) != 0;
	}
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

/* The connection is closed. Some of its streams are dropped now, some when it is forgotten. */
void pair_close_session(struct pair *p, int side, uint32_t connection)
{
	struct link *link = pair_link_of(p, side, connection);
	hear_of_streams(&p->side[side]);
	if (link->session)
		hs_connection_session_close(link->session);
	hear_of_streams(&p->side[side]);
	if (p->side[side].is_remote && link->held)
		hs_end_connection_gone(link->held);
	link->session = NULL;
	for (struct flow *f = p->side[side].flows, *next; f; f = next) {
		next = f->next;
		if (f->connection != connection || !f->end)
			continue;
		f->is_lost = 1;
		if (f->id & 4)
			continue;
		act(p, f, hs_end_close(f->end, 1, 0), 0);
		pair_remove_flow(p, f);
	}
}

void pair_forget_flows(struct pair *p, int side, uint32_t connection)
{
	struct link *link = pair_link_of(p, side, connection);
	pair_close_session(p, side, connection);
	for (struct shared *shared = p->side[side].shared; shared; shared = shared->next) {
		if (shared->connection != connection || !shared->end || shared->is_taken)
			continue;
		hs_session_signal(p->side[side].application, shared->handle, HS_SIGNAL_TAKEN, 0);
		hs_end_drop(shared->end);
		shared->end = NULL;
	}
	if (link->held)
		hs_end_connection_drop(link->held);
	link->held = NULL;
	for (struct flow *f = p->side[side].flows, *next; f; f = next) {
		next = f->next;
		if (f->connection == connection)
			pair_remove_flow(p, f);
	}
}

void pair_announce(struct pair *p, int side, uint32_t connection)
{
	struct link *link = pair_link_of(p, side, connection);
	struct hs_connection_session *session = pair_session_of(p, side, connection);
	hs_connection_session_announce(session, (uint64_t)connection << 1); /* streams are odd */
	link->held = p->side[side].is_remote ?
			     hs_end_connection_new(p->side[side].wakes, connection) :
			     hs_connection_session_hold(session);
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
	hear_of_streams(&p->side[side]);
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
