/* SPDX-License-Identifier: Apache-2.0 */
#include "pair.h"

#include "fuzz.h"
#include "kept_wire.h"
#include "steady.h"

enum {
	CLIENT_PORT = 5000,
	SERVER_PORT = 443,
	DATAGRAM_BYTES = 1452,
	CHUNK_BYTES = 4096,
	PATTERN_PERIOD = 4093,
	TRIP_NS = 100000,
	MOST_TURNS = 20000,
	MOST_MESSAGES = 8,
	MOST_ROUNDS_OF_A_MOMENT = 200, /* turns without time going on */
};

#define FIRST_NS (1ULL << 41)
#define IDLE_NS (10000 * MS_NS)
#define BIT_OF(bit) (UINT64_C(1) << (bit))

static const uint8_t CLIENT_IP[4] = { 10, 0, 0, 2 };
static const uint8_t SERVER_IPS[PAIR_PATHS / PAIR_PORTS][4] = { { 10, 0, 0, 1 }, { 10, 0, 0, 3 } };

/* --- the applications --------------------------------------------------------------------------- */

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

static void open_fifo(uint8_t **block, struct hs_fifo_producer *in, struct hs_fifo_consumer *out,
		      uint32_t bytes)
{
	size_t block_bytes = HS_FIFO_HEADER_BYTES + bytes;
	*block = take_memory(block_bytes);
	CHECK(!hs_fifo_producer_open(in, *block, block_bytes));
	CHECK(!hs_fifo_consumer_open(out, *block, block_bytes));
}

static struct shared *new_shared(struct side *s, uint32_t connection, int has_rx, int has_tx)
{
	struct shared *made = take_memory(sizeof(*made));
	uint32_t bytes = s->pair->shape.fifo_bytes;
	if (has_rx)
		open_fifo(&made->rx_block, &made->rx_in, &made->rx_out, bytes);
	if (has_tx)
		open_fifo(&made->tx_block, &made->tx_in, &made->tx_out, bytes);
	made->connection = connection;
	made->next = s->shared;
	s->shared = made;
	return made;
}

static struct shared *find_shared(struct side *s, uint64_t handle)
{
	struct shared *shared = s->shared;
	while (shared && shared->handle != handle)
		shared = shared->next;
	CHECK(shared);
	return shared;
}

static void free_unused(struct side *s)
{
	for (struct shared **at = &s->shared; *at;) {
		struct shared *shared = *at;
		if (shared->end || !shared->is_over) {
			at = &shared->next;
			continue;
		}
		*at = shared->next;
		hs_fifo_producer_close(&shared->rx_in);
		hs_fifo_producer_close(&shared->tx_in);
		free(shared->rx_block);
		free(shared->tx_block);
		free(shared);
	}
}

/* For the plane: of a stream that the peer opened. */
static int make_stream_fifos(void *owner, uint64_t key, uint64_t handle,
			     struct hs_fifo_producer **rx, struct hs_fifo_consumer **tx)
{
	struct side *s = owner;
	struct shared *made = new_shared(s, (uint32_t)key, 1, tx != NULL);
	CHECK(s->is_remote);
	made->handle = handle;
	*rx = &made->rx_in;
	if (tx)
		*tx = &made->tx_out;
	return 0;
}

static void on_command(void *owner, uint64_t handle, uint32_t command, uint64_t code)
{
	struct shared *shared = find_shared(owner, handle);
	(void)code;
	CHECK(command == HS_SESSION_FREED && !shared->is_over);
	shared->is_over = 1;
}

static struct flow *new_flow(struct pair *p, int side, uint32_t connection, int64_t id)
{
	struct flow *f = take_memory(sizeof(*f));
	int is_uni = id >= 0 && id & 2, is_own = (id & 1) == (side == SERVER);
	CHECK(id >= PAIR_DATAGRAMS && id < MOST_STREAM_NUMBERS);
	f->side = side;
	f->connection = connection;
	f->id = id;
	f->has_rx = !is_uni || !is_own;
	f->has_tx = !is_uni || is_own;
	f->may_read = f->may_write = 1;
	f->next = p->side[side].flows;
	p->side[side].flows = f;
	return f;
}

static void free_flow(struct flow *f)
{
	if (f->end)
		hs_end_drop(f->end);
	if (f->shared)
		f->shared->end = NULL;
	hs_fifo_producer_close(&f->rx_in);
	hs_fifo_producer_close(&f->tx_in);
	free(f->rx_block);
	free(f->tx_block);
	free(f);
}

static void remove_flow(struct pair *p, struct flow *f)
{
	struct flow **at = &p->side[f->side].flows;
	while (*at != f)
		at = &(*at)->next;
	*at = f->next;
	free_flow(f);
}

static struct flow *find_flow(struct pair *p, int side, uint32_t connection, int64_t id)
{
	for (struct flow *f = p->side[side].flows; f; f = f->next) {
		if (f->connection == connection && f->id == id)
			return f;
	}
	return NULL;
}

struct flow *pair_flow(struct pair *p, int side, unsigned int which)
{
	struct flow *f = p->side[side].flows;
	while (f && (!f->end || f->is_lost || which--))
		f = f->next;
	return f;
}

static int make_fifos(void *owner, uint32_t connection, struct hs_fifo_producer **rx,
		      struct hs_fifo_consumer **tx)
{
	struct pair *p = owner;
	uint32_t bytes = p->shape.datagram_fifo_bytes;
	CHECK(rx && tx && !find_flow(p, p->turning, connection, PAIR_DATAGRAMS));
	struct flow *f = new_flow(p, p->turning, connection, PAIR_DATAGRAMS);
	open_fifo(&f->rx_block, &f->rx_in, &f->rx_out, bytes);
	open_fifo(&f->tx_block, &f->tx_in, &f->tx_out, bytes);
	*rx = &f->rx_in;
	*tx = &f->tx_out;
	return 0;
}

static struct link *link_of(struct pair *p, int side, uint32_t connection)
{
	CHECK(connection < PAIR_NUMBERS);
	return &p->side[side].links[connection];
}

/* The connection's session, a new one if it has none. */
static struct hs_connection_session *session_of(struct pair *p, int side, uint32_t connection)
{
	struct link *link = link_of(p, side, connection);
	struct hs_connection *c = hs_quic_connection(p->side[side].q, connection);
	if (link->session)
		return link->session;
	CHECK(c && !link->held);
	link->session = hs_connection_session_new(p->side[side].application, connection,
						  hs_quic_transport_verbs(), c,
						  p->shape.fifo_bytes, p->shape.fifo_bytes);
	CHECK(link->session);
	hs_connection_set_session(c, link->session);
	return link->session;
}

static void *find_session(void *owner, uint32_t connection)
{
	struct pair *p = owner;
	return session_of(p, p->turning, connection);
}

static int64_t find_path(void *owner, uint32_t connection, uint8_t ip_version,
			 const uint8_t *remote_ip, uint16_t remote_port)
{
	struct pair *p = owner;
	(void)connection;
	CHECK(p->turning == CLIENT && (p->shape.has_preferred || p->distrusts));
	int is_known = ip_version == 4 && remote_port == SERVER_PORT &&
		       !memcmp(remote_ip, SERVER_IPS[1], sizeof(SERVER_IPS[1]));
	CHECK(is_known || p->distrusts);
	return is_known ? PAIR_PORTS : -1;
}

static void add_stream(struct pair *p, int side, uint32_t connection, struct hs_end *end,
		       uint64_t handle, int64_t id)
{
	struct shared *shared = NULL;
	if (p->side[side].is_remote) {
		shared = find_shared(&p->side[side], handle);
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
	CHECK(!find_flow(p, side, connection, id));
	struct flow *f = new_flow(p, side, connection, id);
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
	struct shared *shared = new_shared(s, connection, !is_uni, 1);
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

static void open_streams(struct pair *p)
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
	struct link *link = link_of(p, side, connection);
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
	remove_flow(p, f);
}

/* What the plane tells an application in another process. */
static void hear_of_streams(struct side *s)
{
	struct hs_session_event event;
	while (hs_application_events(s->application, &event, 1)) {
		struct shared *shared = find_shared(s, event.handle);
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

static void work(struct pair *p, int side)
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
static void close_session(struct pair *p, int side, uint32_t connection)
{
	struct link *link = link_of(p, side, connection);
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
		remove_flow(p, f);
	}
}

static void forget_flows(struct pair *p, int side, uint32_t connection)
{
	struct link *link = link_of(p, side, connection);
	close_session(p, side, connection);
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
			remove_flow(p, f);
	}
}

static void announce(struct pair *p, int side, uint32_t connection)
{
	struct link *link = link_of(p, side, connection);
	struct hs_connection_session *session = session_of(p, side, connection);
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
static void wake(struct pair *p, int side)
{
	uint64_t key;
	hear_of_streams(&p->side[side]);
	while (hs_side_take(p->side[side].wakes, &key, 1)) {
		if (!(key >> 2 & HS_SESSION_STREAM)) {
			link_of(p, side, (uint32_t)(key >> 3))->may_accept = 1;
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

/* --- what an engine tells ----------------------------------------------------------------------- */

static void hear_of_connection(struct pair *p, int side, const struct hs_quic_event *event)
{
	struct side *s = &p->side[side];
	struct hs_connection *c = hs_quic_connection(s->q, event->connection);
	struct hs_quic_ticket ticket;
	uint8_t token[HS_QUIC_TOKEN_BYTES];
	struct flow *f;
	CHECK(c && hs_connection_number(c) == event->connection);
	switch (event->kind) {
	case HS_QUIC_ACCEPTED:
	case HS_QUIC_CONNECTED:
		CHECK((event->kind == HS_QUIC_CONNECTED) == (side == CLIENT));
		CHECK(!s->is_established || s->is_closed);
		s->connection = c;
		s->is_established = 1;
		s->is_closed = 0;
		s->is_forgotten = 0;
		announce(p, side, event->connection);
		if (side == CLIENT)
			open_streams(p);
		break;
	case HS_QUIC_CLOSED:
		CHECK(c == s->connection && !s->is_closed);
		s->is_closed = 1;
		hs_connection_close_info(c, &s->close);
		CHECK(s->close.reason_bytes <= HS_QUIC_REASON_BYTES);
		close_session(p, side, event->connection);
		break;
	case HS_QUIC_FORGOTTEN:
		if (c == s->connection) {
			CHECK(s->is_closed && !s->is_forgotten);
			s->is_forgotten = 1;
			s->connection = NULL;
		}
		forget_flows(p, side, event->connection);
		break;
	case HS_QUIC_DATAGRAMS_READY:
		f = find_flow(p, side, event->connection, PAIR_DATAGRAMS);
		CHECK(f);
		f->largest_message = event->info;
		break;
	case HS_QUIC_TICKET:
		CHECK(side == CLIENT && !hs_connection_ticket(c, &ticket));
		CHECK(ticket.session_bytes && ticket.parameters_bytes <= sizeof(ticket.parameters));
		if (p->keep_ticket)
			p->keep_ticket(&ticket);
		break;
	case HS_QUIC_TOKEN:
		CHECK(side == CLIENT && hs_connection_token(c, token));
		break;
	case HS_QUIC_PATH_CHANGED:
		CHECK(hs_connection_path(c) < PAIR_PATHS);
		break;
	case HS_QUIC_MIGRATION_FAILED:
		CHECK(side == CLIENT);
		break;
	case HS_QUIC_HANDSHAKE_DONE:
		CHECK(p->shape.early_data);
		break;
	default: /* of the connection: its datagrams */
		CHECK(event->kind == HS_QUIC_STREAMS_AVAILABLE ||
		      event->kind == HS_QUIC_READABLE || event->kind == HS_QUIC_WRITABLE);
	}
}

/* --- the network -------------------------------------------------------------------------------- */

/* The number of the way at its other end. There is a NAT in front of the client, and its ports change
 * at times. */
static uint8_t far_path(struct pair *p, int to)
{
	uint8_t port = p->carried_path % PAIR_PORTS, address = p->carried_path / PAIR_PORTS;
	if (to == CLIENT)
		return (uint8_t)(address * PAIR_PORTS + p->behind_nat[port]);
	uint8_t seen = (uint8_t)(port + p->nat_shift) % PAIR_PORTS;
	p->behind_nat[seen] = port;
	return (uint8_t)(address * PAIR_PORTS + seen);
}

void pair_send(struct pair *p, int to, const uint8_t *data, uint32_t bytes, uint64_t delay_ns,
	       uint8_t ecn)
{
	struct travelling t = { NULL, bytes, ecn, (uint8_t)to, 0, p->now_ns + TRIP_NS + delay_ns };
	uint32_t at = p->waiting_count;
	if (at == MOST_WAITING)
		return; /* lost, as in any full queue */
	t.data = copy_of(data, bytes);
	t.path = far_path(p, to);
	for (; at > 0 && p->waiting[at - 1].at_ns > t.at_ns; at--)
		p->waiting[at] = p->waiting[at - 1];
	p->waiting[at] = t;
	p->waiting_count++;
}

/* Hands over what has arrived; returns how many datagrams, which are to be freed after the turn. */
static uint32_t deliver(struct pair *p, int side, uint8_t *arrived[HS_WIRE_BURST])
{
	uint32_t kept = 0, count = 0;
	for (uint32_t i = 0; i < p->waiting_count; i++) {
		struct travelling t = p->waiting[i];
		if (t.to != side || t.at_ns > p->now_ns || count == HS_WIRE_BURST) {
			p->waiting[kept++] = t;
			continue;
		}
		CHECK(!hs_wire_handed_put(p->side[side].wire, t.data, t.bytes, t.ecn, t.path));
		arrived[count++] = t.data;
	}
	p->waiting_count = kept;
	return count;
}

static void carry_all(struct pair *p, int side)
{
	struct hs_wire *wire = p->side[side].wire;
	uint32_t count = 0, bytes, path;
	const uint8_t *data;
	while ((data = hs_wire_handed_take(wire, count, &bytes, &path))) {
		CHECK(path < PAIR_PATHS);
		p->carried_path = (uint8_t)path;
		count++;
		p->carry(p, side, data, bytes);
	}
	hs_wire_handed_sent(wire, count);
}

/* --- turns -------------------------------------------------------------------------------------- */

/* Returns when this side wants to be called again. */
static uint64_t turn(struct pair *p, int side)
{
	struct side *s = &p->side[side];
	uint8_t *arrived[HS_WIRE_BURST];
	struct hs_quic_turn out;
	p->turning = side;
	steady_set_time(p->now_ns);
	uint32_t n = deliver(p, side, arrived);
	hs_plane_collect(s->plane);
	hs_quic_turn(s->q, p->now_ns, 1, 0, &out);
	while (n)
		free(arrived[--n]);
	for (uint32_t i = 0; i < out.event_count; i++)
		hear_of_connection(p, side, &out.events[i]);
	wake(p, side);
	carry_all(p, side);
	work(p, side);
	free_unused(s);
	CHECK(++p->turns < MOST_TURNS);
	return out.more || s->q->first_due ? p->now_ns : hs_quic_deadline(s->q);
}

int pair_is_complete(const struct pair *p)
{
	return p->side[CLIENT].streams_over >= p->shape.streams &&
	       p->side[SERVER].streams_over >= p->shape.streams;
}

static int is_settled(const struct pair *p)
{
	return pair_is_complete(p) || p->side[CLIENT].is_forgotten ||
	       (p->side[CLIENT].is_closed && p->side[SERVER].is_closed);
}

/* Both sides once, and time goes on if nobody has anything to do now. Returns 0 when nobody ever
 * will have. */
static int step(struct pair *p, uint32_t *rounds)
{
	uint64_t next_ns = UINT64_MAX;
	for (int side = 0; side < SIDES; side++) {
		uint64_t wanted_ns = turn(p, side);
		if (wanted_ns < next_ns)
			next_ns = wanted_ns;
	}
	if (p->waiting_count && p->waiting[0].at_ns < next_ns)
		next_ns = p->waiting[0].at_ns;
	if (next_ns == UINT64_MAX)
		return 0;
	CHECK(next_ns > p->now_ns || ++*rounds < MOST_ROUNDS_OF_A_MOMENT);
	if (next_ns > p->now_ns) {
		p->now_ns = next_ns;
		*rounds = 0;
	}
	return 1;
}

void pair_run(struct pair *p, uint64_t until_ns)
{
	uint32_t rounds = 0;
	while (p->now_ns < until_ns && !is_settled(p)) {
		if (!step(p, &rounds))
			break;
	}
}

static int is_empty(const struct pair *p, int side)
{
	struct hs_quic_counters counters;
	hs_quic_counters(p->side[side].q, &counters);
	return counters.connections == 0;
}

void pair_end(struct pair *p, int from)
{
	uint32_t rounds = 0;
	struct side *s = &p->side[from];
	/* Nobody keeps the other alive for ever: it ends by a close, or by the idle timeout. */
	do {
		if (s->connection && !s->is_closed)
			hs_connection_close(s->connection, 7, (const uint8_t *)"done", 4);
	} while ((!is_empty(p, CLIENT) || !is_empty(p, SERVER)) && step(p, &rounds));
	for (int side = 0; side < SIDES; side++) {
		struct hs_quic_counters counters;
		CHECK(is_empty(p, side));
		CHECK(!p->side[side].connection && !p->side[side].flows);
		hs_quic_counters(p->side[side].q, &counters);
		CHECK(counters.half_open == 0);
		/* With early data they are told before they count. */
		CHECK(counters.accepted + counters.connected == counters.closed ||
		      p->shape.early_data ||
		      (side == CLIENT && !p->side[side].is_established));
	}
}

/* --- beginning and end -------------------------------------------------------------------------- */

static struct hs_tls *new_tls(int is_server)
{
	static struct hs_tls *kept[SIDES];
	const char *certificate, *key;
	char error[256];
	if (!kept[is_server]) {
		steady_certificate(&certificate, &key);
		kept[is_server] = hs_tls_new(is_server, is_server ? certificate : NULL,
					     is_server ? key : NULL, NULL, 0,
					     (const uint8_t *)"\2hs", 3, error, sizeof(error));
		CHECK(kept[is_server]);
	}
	return kept[is_server];
}

static void begin_side(struct pair *p, int side)
{
	static const uint8_t PREFIXES[SIDES][HS_CID_RANDOM_OFFSET] = { { 0x0b, 0, 2, 0 },
								       { 0x0b, 0, 1, 0 } };
	static const uint8_t SECRETS[SIDES][HS_QUIC_SECRET_BYTES] = { "the client's", "the server's" };
	struct side *s = &p->side[side];
	int is_server = side == SERVER;
	s->wire = kept_wire(side);
	s->pair = p;
	s->is_remote = p->shape.is_remote[side];
	s->plane = hs_plane_new((uint32_t)side, 7, on_command, make_stream_fifos, s);
	s->wakes = hs_side_new();
	CHECK(s->plane && s->wakes);
	s->application = hs_application_new(s->plane, s->is_remote ? NULL : s->wakes);
	CHECK(s->application);
	s->q = hs_quic_new(s->wire, PREFIXES[side], SECRETS[side],
			   (const void *)(uintptr_t)hs_plane_verbs(), find_session, make_fifos,
			   find_path, p);
	s->tls = new_tls(is_server);
	CHECK(s->q);
	for (int i = 0; i < PAIR_PATHS; i++) {
		uint8_t key[HS_PATH_KEY_BYTES] = { (uint8_t)i };
		const uint8_t *server_ip = SERVER_IPS[i / PAIR_PORTS];
		uint16_t client_port = (uint16_t)(CLIENT_PORT + i % PAIR_PORTS);
		struct hs_path_ends ends = {
			.ip_version = 4,
			.local_port = is_server ? SERVER_PORT : client_port,
			.remote_port = is_server ? client_port : SERVER_PORT,
		};
		memcpy(ends.local_ip, is_server ? server_ip : CLIENT_IP, 4);
		memcpy(ends.remote_ip, is_server ? CLIENT_IP : server_ip, 4);
		int64_t id = hs_wire_add_path(s->wire, &ends);
		CHECK(id == i);
		hs_wire_handed_set_size(s->wire, (uint32_t)id, DATAGRAM_BYTES);
		hs_paths_set_key(&s->wire->paths, hs_paths_by_id(&s->wire->paths, (uint32_t)id), key);
	}
}

void pair_begin(struct pair *p, const struct pair_shape *shape)
{
	struct hs_quic_config config = {
		.first_window_bytes = shape->fifo_bytes / 2,
		.connection_window_bytes = 4 * (uint64_t)shape->fifo_bytes,
		.max_streams_bidi = MOST_STREAMS / 2,
		.max_streams_uni = MOST_STREAMS / 2,
		.idle_timeout_ns = IDLE_NS,
		.handshake_timeout_ns = IDLE_NS,
		.keep_alive_ns = shape->keep_alive_ns,
		.packets_per_key = shape->packets_per_key,
		.max_connections = PAIR_CONNECTIONS,
		.congestion_control = shape->congestion_control,
		.probes_mtu = shape->probes_mtu,
		.retry_above = shape->wants_retry ? 0 : 1000,
		.half_open_per_source = 4,
		.datagram_fifo_bytes = shape->datagram_fifo_bytes,
		.early_data = shape->early_data,
		.follows_preferred = 1,
		.preferred_v4_port = shape->has_preferred ? SERVER_PORT : 0,
		.version = shape->is_v2 ? NGTCP2_PROTO_VER_V2 : NGTCP2_PROTO_VER_V1,
	};
	struct hs_quic_resume resume = { .keeps = 1 };
	if (shape->resume)
		resume = *shape->resume;
	memcpy(config.preferred_v4, SERVER_IPS[1], sizeof(config.preferred_v4));
	for (uint8_t i = 0; i < PAIR_PORTS; i++)
		p->behind_nat[i] = i;
	p->shape = *shape;
	p->now_ns = FIRST_NS;
	begin_side(p, CLIENT);
	begin_side(p, SERVER);
	struct side *client = &p->side[CLIENT], *server = &p->side[SERVER];
	CHECK(hs_quic_listen(server->q, 4, SERVER_IPS[0], SERVER_PORT, server->tls, &config));
	client->connection = hs_quic_connect(client->q, 0, client->tls, "localhost", &config,
					     &resume, p->now_ns);
	CHECK(client->connection);
}

static void free_side(struct side *s)
{
	hs_quic_free(s->q);
	hs_plane_collect(s->plane);
	free_unused(s);
	CHECK(!s->shared);
	CHECK(!hs_plane_streams(s->plane) && !hs_application_sessions(s->application));
	hs_plane_release(s->plane);
	hs_application_release(s->application);
	hs_side_free(s->wakes);
}

void pair_free(struct pair *p)
{
	for (int side = 0; side < SIDES; side++)
		free_side(&p->side[side]);
	for (uint32_t i = 0; i < p->waiting_count; i++)
		free(p->waiting[i].data);
}
