/* SPDX-License-Identifier: Apache-2.0
 *
 * The session plane (hoststack/native/session) between a transport and applications of this file's
 * own. The input is a program: what peers, the transport and the applications do with connections
 * and streams, in any order that the headers allow. Some applications are in this process, some
 * "in another" one, with rings that are soon full: those may become hostile, give any command, and
 * overwrite what they share. Some connections are of a transport "in Python", which has its streams
 * from hs_session_add and is called with commands.
 *
 * What is checked: a transport is called about streams that it has, and never again after their
 * end; FIFOs are freed once, not used after that, and not given to a stream while another's
 * application uses them; bytes arrive as they were written; messages and news of streams arrive in
 * order; a peer gets credit once for each stream that is over and taken; at the end nothing is left.
 */
#include "session/internal.h"

#include "fuzz.h"
#include "remote.h"

enum {
	APPLICATIONS = 3,
	CONNECTIONS = 8,
	STREAMS = 64,
	RX_BYTES = 1024,
	TX_BYTES = 2048,
	CHUNK_BYTES = 512,
	WORKER = 5,
	CONSUMERS_INDEX = 64, /* where it lies in a FIFO's block */
	KEY = 1000, /* the first connection's */
	APPLICATION_KEY = 2000,
	MOST_ASKED = 64, /* streams, of one application in another process */
	MOST_PINGS = 40,
	MOST_MESSAGES = MOST_PINGS + 2 * CONNECTIONS,
	MOST_ROUNDS = 1000, /* until an application in another process has nothing to do */
};

#define BYTES_MASK ((INT64_C(1) << HS_END_BYTES_BITS) - 1)

/* The FIFOs of a stream that the owner made: of the heap, or in the memory of an application in
 * another process. */
struct outside {
	uint8_t *rx_block, *tx_block; /* NULL: none */
	struct hs_fifo_producer rx_in, tx_in;
	struct hs_fifo_consumer rx_out, tx_out;
	uint64_t rx_place, tx_place;
};

/* The transport's stream. */
struct carried {
	struct stream *stream;
};

struct stream {
	struct connection *connection;
	struct carried *carried; /* NULL: it is over, or let go */
	struct hs_stream_session *session; /* exists as long as that does */
	struct hs_fifo_producer *rx; /* as does what the transport uses */
	struct hs_fifo_consumer *tx;
	struct outside *outside; /* NULL: freed, or none */
	struct hs_end *end; /* NULL: the application does not have it, or no longer */
	uint64_t places[2]; /* of its FIFOs, in the memory of an application in another process */
	uint64_t handle;
	int64_t id;
	uint8_t has_rx, has_tx;
	uint8_t is_peers, is_opened, is_taken, is_over, is_credited;
	uint8_t is_spoilt; /* its FIFOs were overwritten */
};

struct connection {
	struct hs_connection_session *session; /* NULL: closed, or none yet */
	struct hs_end_connection *held; /* NULL: not by the application, or no longer */
	struct application *application;
	uint64_t key, handle;
	int64_t next_id[4];
	uint32_t allowed, expected; /* credit for streams of the peer */
	uint8_t is_in_python, is_announced, is_closing;
	uint8_t is_dropped, is_let_go; /* by an application in this process; and collected */
	uint8_t is_known, is_known_closed; /* to an application in another process */
	uint8_t may_open, fails_to_open;
};

enum message_kind { PING, ANNOUNCED, CLOSED };
struct message {
	enum message_kind kind;
	struct connection *connection;
};

struct application {
	struct hs_application *it; /* NULL: released */
	struct hs_side *side;
	uint8_t is_remote;
	/* Of one in another process. */
	struct remote remote;
	struct message messages[MOST_MESSAGES]; /* on the channel */
	uint32_t first_message, message_count, asked;
	uint8_t is_answered[MOST_ASKED + 1];
	uint8_t is_hostile;
	uint8_t has_left; /* the worker serves it no more */
};

static struct world {
	struct hs_plane *plane; /* NULL: released */
	const struct hs_session_verbs *verbs;
	struct application applications[APPLICATIONS];
	struct connection connections[CONNECTIONS];
	struct stream streams[STREAMS];
	uint32_t connection_count, stream_count;
	uint8_t has_memory; /* for FIFOs of applications in other processes */
	struct stream *opening; /* for the calls that the plane makes meanwhile; NULL: a new one */
	struct input *in;
} w;

static uint8_t byte_at(uint64_t offset)
{
	return (uint8_t)((offset * 0x9e3779b97f4a7c15ULL) >> 53);
}

/* --- FIFOs of others ---------------------------------------------------------------------------- */

static int is_spoilt(const struct stream *s)
{
	return s->is_spoilt || s->connection->application->is_hostile;
}

static uint8_t *new_fifo(struct application *a, struct hs_fifo_producer *in,
			 struct hs_fifo_consumer *out, size_t bytes, uint64_t *place)
{
	size_t block_bytes = HS_FIFO_HEADER_BYTES + bytes;
	uint8_t *block;
	if (a->is_remote) {
		struct hs_made_block made = { .bytes = bytes };
		remote_make_block(&a->remote, &made);
		block = memset((void *)(uintptr_t)made.address, 0, HS_FIFO_HEADER_BYTES);
		*place = made.place;
	} else {
		block = take_memory(block_bytes);
	}
	CHECK(!hs_fifo_producer_open(in, block, block_bytes));
	CHECK(!hs_fifo_consumer_open(out, block, block_bytes));
	return block;
}

static struct outside *new_outside(struct application *a, int has_rx, int has_tx)
{
	struct outside *o = take_memory(sizeof(*o));
	if (has_rx)
		o->rx_block = new_fifo(a, &o->rx_in, &o->rx_out, RX_BYTES, &o->rx_place);
	if (has_tx)
		o->tx_block = new_fifo(a, &o->tx_in, &o->tx_out, TX_BYTES, &o->tx_place);
	return o;
}

static void free_fifo(struct application *a, struct hs_fifo_producer *in, uint8_t *block,
		      uint64_t place)
{
	hs_fifo_producer_close(in);
	if (block && a->is_remote)
		remote_free_block(&a->remote, place);
	else
		free(block);
}

/* Neither side of a stream uses a block. */
static void check_unused(const struct application *a, uint64_t place)
{
	for (uint32_t i = 0; place && i < w.stream_count && !a->is_hostile && !a->has_left; i++) {
		const struct stream *s = &w.streams[i];
		if (s->connection->application == a && (s->carried || s->end) &&
		    (s->places[0] == place || s->places[1] == place))
			CHECK(!s->carried && s->end->is_released);
	}
}

/* The plane no longer uses them. */
static void free_outside(struct stream *s)
{
	struct application *a = s->connection->application;
	struct outside *o = s->outside;
	CHECK(o && !s->carried);
	if (a->is_remote && w.plane) {
		check_unused(a, o->rx_place);
		check_unused(a, o->tx_place);
	}
	free_fifo(a, &o->rx_in, o->rx_block, o->rx_place);
	free_fifo(a, &o->tx_in, o->tx_block, o->tx_place);
	free(o);
	s->outside = NULL;
}

static int make_blocks(void *owner, uint64_t key, int is_peers, struct hs_made_block out[2])
{
	CHECK(owner == &w && key - KEY < w.connection_count && is_peers >> 1 == 0);
	struct application *a = w.connections[key - KEY].application;
	CHECK(a->is_remote && (out[0].bytes || out[1].bytes));
	if (!w.has_memory)
		return -1;
	for (int d = 0; d < 2; d++) {
		CHECK(!out[d].bytes || out[d].bytes == (d ? TX_BYTES : RX_BYTES));
		if (out[d].bytes)
			remote_make_block(&a->remote, &out[d]);
	}
	return 0;
}

static void free_block(struct application *a, uint64_t place)
{
	CHECK(a->is_remote);
	check_unused(a, place);
	remote_free_block(&a->remote, place);
}

/* --- streams ------------------------------------------------------------------------------------ */

static struct stream *new_stream(struct connection *c, int is_peers, int is_uni)
{
	struct stream *s = &w.streams[w.stream_count];
	if (w.stream_count == STREAMS)
		return NULL;
	w.stream_count++;
	memset(s, 0, sizeof(*s));
	s->connection = c;
	s->is_peers = is_peers != 0;
	s->is_taken = !is_peers || c->is_let_go || (c->application->is_remote && c->application->has_left);
	s->has_rx = is_peers || !is_uni;
	s->has_tx = !is_peers || !is_uni;
	s->id = c->next_id[is_peers | is_uni << 1]++ * 4 + (is_peers | is_uni << 1);
	return s;
}

static void *carry(struct stream *s)
{
	s->carried = take_memory(sizeof(*s->carried));
	s->carried->stream = s;
	return s->carried;
}

static void uncarry(struct stream *s)
{
	CHECK(s->carried);
	free(s->carried);
	s->carried = NULL;
	s->session = NULL;
	s->rx = NULL;
	s->tx = NULL;
}

static struct stream *by_handle(uint64_t handle)
{
	for (uint32_t i = w.stream_count; i-- > 0;) {
		if (handle && w.streams[i].handle == handle)
			return &w.streams[i];
	}
	return NULL;
}

/* It has its session. */
static void note_session(struct stream *s)
{
	struct application *a = s->connection->application;
	s->handle = hs_session_handle(s->session);
	if (!a->is_remote)
		return;
	const uint64_t places[2] = { s->session->rx_block.place, s->session->tx_block.place };
	for (int d = 0; d < 2; d++) {
		s->places[d] = 0;
		if (places[d])
			check_unused(a, places[d]);
		s->places[d] = places[d];
	}
}

/* The peer may have credit for a stream. */
static void settle(struct stream *s)
{
	if (!s->is_peers || !s->is_taken || !s->is_over || s->is_credited ||
	    !s->connection->session || s->connection->is_closing)
		return;
	s->is_credited = 1;
	s->connection->expected++;
}

static void take(struct stream *s)
{
	s->is_taken = 1;
	settle(s);
}

/* --- the transport ------------------------------------------------------------------------------ */

static uint64_t openings(void *connection, int is_unidirectional)
{
	struct connection *c = connection;
	(void)is_unidirectional;
	CHECK(c->session && !c->is_closing);
	return c->may_open;
}

static void *open_stream(void *connection, int is_unidirectional, void *session,
			 struct hs_fifo_producer *rx, struct hs_fifo_consumer *tx, int64_t *id)
{
	struct connection *c = connection;
	CHECK(c->session && tx && (rx == NULL) == (is_unidirectional != 0));
	if (c->fails_to_open)
		return NULL;
	struct stream *s = w.opening ? w.opening : new_stream(c, 0, is_unidirectional != 0);
	if (!s)
		return NULL;
	CHECK(s->connection == c);
	s->session = session;
	s->rx = rx;
	s->tx = tx;
	*id = s->id;
	note_session(s);
	return carry(s);
}

static int allow(void *connection, int is_unidirectional)
{
	struct connection *c = connection;
	(void)is_unidirectional;
	CHECK(c->session && !c->is_closing);
	c->allowed++;
	return take_8(w.in) & 1;
}

/* What was written, as far as the application has not overwritten it. */
static void send_some(struct stream *s, size_t n)
{
	uint8_t chunk[CHUNK_BYTES];
	if (!s->tx)
		return;
	uint64_t head = s->tx->head;
	int64_t got = hs_fifo_read(s->tx, chunk, n < sizeof(chunk) ? n : sizeof(chunk));
	CHECK(got >= 0 || is_spoilt(s));
	for (int64_t i = 0; i < got && !is_spoilt(s); i++)
		CHECK(chunk[i] == byte_at(head + (uint64_t)i));
}

static void send_ready(void *stream)
{
	struct carried *carried = stream;
	CHECK(carried->stream->carried == carried);
	if (take_8(w.in) & 1)
		send_some(carried->stream, CHUNK_BYTES);
}

static int consumed(void *stream)
{
	struct carried *carried = stream;
	struct stream *s = carried->stream;
	CHECK(s->carried == carried && s->rx);
	CHECK(hs_fifo_head(s->rx) >= 0 || is_spoilt(s));
	return take_8(w.in) & 1;
}

static void reset(void *stream, uint64_t code)
{
	struct carried *carried = stream;
	(void)code;
	CHECK(carried->stream->carried == carried);
}

static void let_go(void *stream)
{
	struct carried *carried = stream;
	CHECK(carried->stream->carried == carried && carried->stream->connection->is_closing);
	uncarry(carried->stream);
}

static const struct hs_transport_verbs VERBS = {
	.openings = openings,
	.open = open_stream,
	.allow = allow,
	.send_ready = send_ready,
	.consumed = consumed,
	.reset = reset,
	.stop = reset,
	.let_go = let_go,
};

/* Of the transport in Python, and about FIFOs. */
static void on_command(void *owner, uint64_t handle, uint32_t command, uint64_t code)
{
	CHECK(owner == &w && w.plane);
	if (command == HS_SESSION_ALLOW) {
		CHECK(code <= 1 && handle - KEY < w.connection_count);
		CHECK(w.connections[handle - KEY].is_in_python);
		allow(&w.connections[handle - KEY], (int)code);
		return;
	}
	if (command == HS_SESSION_FREE_BLOCK) {
		CHECK(handle - APPLICATION_KEY < APPLICATIONS);
		free_block(&w.applications[handle - APPLICATION_KEY], code);
		return;
	}
	struct stream *s = by_handle(handle);
	CHECK(s);
	if (command == HS_SESSION_FREED) {
		free_outside(s);
		return;
	}
	CHECK(s->connection->is_in_python);
	if (command == HS_SESSION_LET_GO)
		let_go(s->carried);
	else if (command == HS_SESSION_SEND_READY)
		send_ready(s->carried);
	else if (command == HS_SESSION_CONSUMED)
		consumed(s->carried);
	else
		reset(s->carried, code);
}

/* --- peers -------------------------------------------------------------------------------------- */

static void report(struct stream *s, uint32_t events)
{
	struct hs_stream_session *session = s->session;
	if (events & HS_STREAM_OVER) {
		s->is_over = 1;
		uncarry(s);
		settle(s);
	}
	if (s->connection->is_in_python)
		hs_session_report(session, events, 1, 2);
	else
		w.verbs->report(session, events, 1, 2);
}

static struct stream *add_in_python(struct connection *c, int is_peers, int is_uni)
{
	int is_remote = c->application->is_remote;
	struct stream *s = new_stream(c, is_peers, is_uni);
	if (!s)
		return NULL;
	struct outside *o = s->outside = new_outside(c->application, s->has_rx, s->has_tx);
	s->rx = s->has_rx ? &o->rx_in : NULL;
	s->tx = s->has_tx ? &o->tx_out : NULL;
	s->session = hs_session_add(c->session, s->id, is_peers, s->rx, s->tx,
				    is_remote || !s->has_rx ? NULL : &o->rx_out,
				    is_remote || !s->has_tx ? NULL : &o->tx_in, o->rx_place,
				    o->tx_place);
	CHECK(s->session && hs_session_stream_id(s->session) == s->id);
	note_session(s);
	carry(s);
	return s;
}

static void peer_opens(struct connection *c, uint8_t how)
{
	int is_uni = how & 1;
	if (c->is_in_python) {
		w.opening = add_in_python(c, 1, is_uni);
	} else {
		struct stream *s = w.opening = new_stream(c, 1, is_uni);
		if (!s)
			return;
		w.has_memory = !(how & 2);
		s->session = w.verbs->open(c->session, carry(s), s->id, &s->rx,
					   s->has_tx ? &s->tx : NULL);
		if (!s->session) {
			uncarry(s);
			CHECK(!s->outside);
			w.opening = NULL;
			return;
		}
		CHECK(s->rx && (s->tx != NULL) == s->has_tx);
		note_session(s);
	}
	if (w.opening && !(how & 4)) {
		w.opening->is_opened = 1;
		report(w.opening, HS_STREAM_OPENED);
	}
	w.opening = NULL;
}

static void peer_sends(struct stream *s, uint8_t how)
{
	uint8_t chunk[CHUNK_BYTES];
	if (!s->rx)
		return;
	size_t n = (size_t)how * 2;
	for (size_t i = 0; i < n; i++)
		chunk[i] = byte_at(s->rx->tail + i);
	CHECK(hs_fifo_write(s->rx, chunk, n) >= 0 || is_spoilt(s));
	if (!(how & 7))
		hs_fifo_set_eof(s->rx);
	report(s, HS_STREAM_READABLE);
}

/* --- applications ------------------------------------------------------------------------------- */

static int64_t act(struct stream *s, int64_t result)
{
	if (result < 0)
		return result;
	uint32_t hints = (uint32_t)(result >> HS_END_BYTES_BITS);
	CHECK(!(hints & ~(uint32_t)HS_END_MASK));
	CHECK(!s->connection->application->is_remote || !(hints & ~(uint32_t)HS_END_WAKES));
	return result & BYTES_MASK;
}

static int has_space(const struct stream *s)
{
	return s->end->tx && !s->end->is_ended && !is_spoilt(s);
}

static void write_some(struct stream *s, size_t n)
{
	uint8_t chunk[CHUNK_BYTES];
	uint64_t offset = s->end->tx ? s->end->tx->tail : 0;
	for (size_t i = 0; i < n; i++)
		chunk[i] = byte_at(offset + i);
	int64_t wrote = act(s, hs_end_write(s->end, chunk, n));
	CHECK(wrote <= (int64_t)n);
	CHECK(wrote >= 0 || !has_space(s) || s->end->tx_error || s->end->is_sending_closed);
}

static void check_read(const struct stream *s, const uint8_t *bytes, uint64_t head, int64_t n)
{
	for (int64_t i = 0; i < n && !is_spoilt(s); i++)
		CHECK(bytes[i] == byte_at(head + (uint64_t)i));
}

static void read_some(struct stream *s, uint8_t how)
{
	uint8_t chunk[CHUNK_BYTES];
	const uint8_t *there;
	uint64_t head = s->end->rx ? s->end->rx->head : 0;
	size_t n = 1 + how;
	if (how & 1) {
		int64_t got = act(s, hs_end_read(s->end, chunk, n, how & 2));
		CHECK(got <= (int64_t)n);
		check_read(s, chunk, head, got);
		return;
	}
	int64_t found = hs_end_look(s->end, n, &there);
	check_read(s, there, head, found);
	if (found > 0)
		act(s, hs_end_skip(s->end, how & 4 ? (size_t)found : n));
}

static void drop_end(struct stream *s)
{
	int is_due = s->connection->application->is_remote && !s->end->is_released;
	CHECK(hs_end_drop(s->end) == is_due);
	s->end = NULL;
}

static void use_end(struct stream *s, uint8_t operation)
{
	struct hs_end_state state;
	uint8_t how = take_8(w.in);
	switch (operation % 12) {
	case 0:
		read_some(s, how);
		break;
	case 1:
		write_some(s, how);
		break;
	case 2:
		act(s, hs_end_finish(s->end));
		break;
	case 3:
		act(s, hs_end_close(s->end, how & 1, how));
		break;
	case 4:
		act(s, hs_end_reset(s->end, how));
		break;
	case 5:
		act(s, hs_end_stop(s->end, how));
		break;
	case 6:
		act(s, hs_end_close_receiving(s->end, how));
		break;
	case 7:
		CHECK(hs_end_wait_finished(s->end) <= 1);
		CHECK(hs_end_writable(s->end) <= TX_BYTES);
		break;
	case 8:
		hs_end_set_cut(s->end, how & 1);
		break;
	case 9:
		hs_end_state(s->end, &state);
		CHECK(state.handle == s->handle && state.stream_id == s->id);
		CHECK(s->has_rx == (state.rx != 1) && s->has_tx == (state.tx != 1));
		break;
	default:
		drop_end(s);
	}
}

static void accept_one(struct connection *c)
{
	struct hs_accepted accepted;
	uint32_t untaken = hs_end_untaken(c->held);
	int got = hs_end_accept(c->held, &accepted);
	CHECK(got == (untaken != 0));
	if (!got)
		return;
	struct stream *s = by_handle(accepted.handle);
	if (c->application->is_hostile && (!s || s->end || !s->is_opened)) {
		hs_end_drop(accepted.end); /* its own ring says so */
		return;
	}
	CHECK(s && s->connection == c && s->is_opened && s->id == accepted.stream_id);
	CHECK(accepted.has_tx == s->has_tx && hs_end_untaken(c->held) < untaken);
	CHECK(!s->end);
	s->end = accepted.end;
	if (!c->application->is_remote)
		take(s);
}

static void ask(struct connection *c, int is_uni)
{
	struct application *a = c->application;
	if (!c->held || a->asked == MOST_ASKED)
		return;
	uint64_t token = a->asked + 1;
	int asked = hs_attached_command(a->remote.attached, c->handle, HS_COMMAND_OPEN,
					(uint32_t)is_uni, token);
	CHECK(asked >= 0 || a->is_hostile);
	a->asked += asked == 1;
}

static void opens(struct connection *c, uint8_t how)
{
	struct hs_opened opened;
	int is_uni = how & 1;
	c->may_open = !(how & 2);
	c->fails_to_open = how >> 2 & 1;
	if (c->application->is_remote) {
		ask(c, is_uni);
		return;
	}
	if (w.stream_count == STREAMS || hs_session_may_add(c->session, 0))
		return;
	struct stream *s = w.opening = c->is_in_python ? add_in_python(c, 0, is_uni) :
							 new_stream(c, 0, is_uni);
	if (c->is_in_python) {
		s->end = hs_session_end(s->session);
	} else {
		int refusal = hs_session_open(c->session, is_uni, &opened);
		CHECK(refusal == (!c->may_open	     ? HS_SESSION_NO_CREDIT :
				  c->fails_to_open ? HS_SESSION_CLOSED :
						     0));
		w.opening = NULL;
		if (refusal)
			return;
		CHECK(opened.handle == s->handle && opened.stream_id == s->id);
		s->end = opened.end;
		CHECK(hs_session_end(s->session) == s->end);
	}
	w.opening = NULL;
	CHECK(hs_session_find(w.plane, s->handle) == s->session);
}

/* --- in other processes: the worker's side ------------------------------------------------------ */

static void leave(struct application *a)
{
	a->has_left = 1;
	for (uint32_t i = 0; i < w.stream_count; i++) {
		if (w.streams[i].connection->application == a)
			take(&w.streams[i]);
	}
	hs_application_leave(a->it);
	if (a->is_remote)
		hs_attached_gone(a->remote.attached);
}

static void send(struct application *a, enum message_kind kind, struct connection *c)
{
	uint32_t sent = a->first_message + a->message_count;
	if (a->has_left || !a->it || (kind == PING && sent >= MOST_PINGS))
		return;
	a->message_count++;
	a->messages[sent] = (struct message){ kind, c };
	CHECK(!hs_application_queue_message(a->it));
}

static struct connection *by_connection(uint64_t handle)
{
	uint64_t number = (handle & UINT32_MAX) / 2;
	if (handle >> 32 != WORKER || handle & 1 || number >= w.connection_count)
		return NULL;
	return &w.connections[number];
}

/* Of a transport in Python, or of no connection of this application. */
static void answer(struct application *a, const struct hs_event *command, int refuses)
{
	struct connection *c = by_connection(command->handle);
	if (command->kind != HS_COMMAND_OPEN) {
		CHECK(!(command->handle & HS_SESSION_STREAM));
		return;
	}
	int is_own = c && c->application == a && c->session && c->is_announced;
	CHECK(!is_own || c->is_in_python);
	struct stream *s = !is_own || refuses || hs_session_may_add(c->session, 0) ?
				   NULL :
				   add_in_python(c, 0, command->arg & 1);
	if (s) {
		hs_session_answer(s->session, command->words[0]);
		return;
	}
	int told = hs_application_refuse(a->it, command->words[0], HS_SESSION_NO_CREDIT);
	CHECK(told == 1 || a->is_hostile);
}

/* What the commands that were followed say of credit. */
static void note_taken(struct application *a, const struct hs_event *commands, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++) {
		struct stream *s = by_handle(commands[i].handle);
		if (commands[i].kind == HS_COMMAND_TAKEN && s && s->connection->application == a)
			take(s);
	}
}

static uint32_t peek(struct application *a, struct hs_event **out)
{
	struct hs_event_ring_side look = a->it->down;
	int64_t n = hs_event_ring_length(&look);
	const struct hs_event *events = (const void *)(a->remote.down + HS_EVENT_RING_HEADER_BYTES);
	*out = take_memory((size_t)(n > 0 ? n : 0) * sizeof(**out));
	for (int64_t i = 0; i < n; i++)
		(*out)[i] = events[(look.own + (uint64_t)i) & (look.size - 1)];
	return n > 0 ? (uint32_t)n : 0;
}

static uint32_t follow(struct application *a, uint8_t how)
{
	static struct hs_event out[HS_SESSION_COMMANDS];
	struct hs_event *waiting;
	struct hs_commanded done;
	w.has_memory = !(how & 4);
	for (uint32_t i = 0; i < w.connection_count; i++) {
		w.connections[i].may_open = !(how & 8);
		w.connections[i].fails_to_open = how >> 4 & 1;
	}
	uint32_t waiting_count = peek(a, &waiting);
	int count = hs_application_commands(a->it, out, &done);
	CHECK(count >= 0 ? (uint32_t)count <= done.count : a->is_hostile);
	CHECK(count < 0 || done.count <= waiting_count);
	note_taken(a, waiting, done.count < waiting_count ? done.count : waiting_count);
	for (int i = 0; i < count; i++)
		answer(a, &out[i], how >> 5 & 1);
	if (count < 0)
		leave(a);
	free(waiting);
	return done.count;
}

static int tell(struct application *a)
{
	int told = hs_application_tell(a->it);
	CHECK(told >= 0 || a->is_hostile);
	if (told < 0)
		leave(a);
	else if (told & HS_TOLD_NOT_ALL)
		CHECK(hs_event_ring_room(&a->it->up) < 2);
	return told > 0 && told & HS_TOLD_SOME;
}

static void push_readable(struct application *a, uint8_t which)
{
	if (!w.connection_count)
		return;
	struct connection *c = &w.connections[which % w.connection_count];
	if (c->application != a || !c->is_announced)
		return;
	int pushed = hs_application_push(a->it, c->handle, HS_NEWS_READABLE);
	CHECK(pushed >= 0 || a->is_hostile);
}

/* --- in other processes: the application's side ------------------------------------------------- */

static void read_message(struct application *a)
{
	struct message m = a->messages[a->first_message++];
	struct connection *c = m.connection;
	a->message_count--;
	if (m.kind == ANNOUNCED) {
		CHECK(!c->is_known && !c->held);
		c->is_known = 1;
		c->held = hs_attached_connection(a->remote.attached, c->handle);
		CHECK(c->held);
	} else if (m.kind == CLOSED) {
		CHECK(c->is_known && !c->is_known_closed);
		c->is_known_closed = 1;
		if (c->held)
			hs_end_connection_gone(c->held);
	}
}

static void note_answer(struct application *a, uint64_t token)
{
	if (a->is_hostile)
		return;
	CHECK(token && token <= a->asked && !a->is_answered[token]);
	a->is_answered[token] = 1;
}

/* Returns whether there was something. */
static int hear(struct application *a, int has_messages)
{
	struct hs_attached_news news;
	int has_message = has_messages && a->message_count;
	int task = hs_attached_take(a->remote.attached, has_message, &news);
	CHECK(task >= 0 || a->is_hostile);
	if (task == HS_TASK_MESSAGE) {
		CHECK(has_message);
		read_message(a);
	} else if (task == HS_TASK_OPENED) {
		struct stream *s = by_handle(news.handle);
		if (a->is_hostile && (!s || s->end || s->is_peers)) {
			hs_end_drop(news.end); /* its own ring says so */
			return 1;
		}
		CHECK(s && s->connection->application == a && s->connection->is_known && !s->end);
		CHECK(!s->is_peers && s->id == news.stream_id && !s->connection->is_known_closed);
		CHECK(news.end->has_rx == s->has_rx && news.end->has_tx == s->has_tx);
		note_answer(a, news.token);
		s->end = news.end;
	} else if (task == HS_TASK_REFUSED) {
		note_answer(a, news.token);
	} else if (task == HS_TASK_READABLE) {
		CHECK(by_connection(news.handle)->is_known);
	}
	return task > 0;
}

/* About a stream, or anything. */
static void give_any_command(struct application *a)
{
	uint8_t kind = take_8(w.in), which = take_8(w.in);
	struct stream *s = w.stream_count ? &w.streams[which % w.stream_count] : NULL;
	uint64_t handle = kind & 0x80 || !s ? take_64(w.in) : s->handle;
	if (kind & 0x40)
		handle ^= UINT64_C(1) << which % 64;
	if (kind & 0x20 && w.connection_count)
		handle = w.connections[which % w.connection_count].handle;
	uint64_t word = kind & 0x10 ? take_64(w.in) : which;
	a->is_hostile = 1;
	hs_attached_command(a->remote.attached, handle, kind & 0xf, which >> 1, word);
}

static void scribble_ring(struct application *a, uint8_t which)
{
	uint8_t how = take_8(w.in);
	uint64_t value = how & 1 ? take_64(w.in) : take_8(w.in);
	uint8_t *ring = which & 0x40 ? a->remote.up : a->remote.down;
	size_t words = (how & 2 ? a->remote.ring_bytes : HS_EVENT_RING_HEADER_BYTES) / sizeof(value);
	a->is_hostile = 1;
	memcpy(ring + (size_t)(how >> 2) % words * sizeof(value), &value, sizeof(value));
}

/* A malicious application in another process writes into what it shares. */
static void scribble(struct stream *s)
{
	struct application *a = s->connection->application;
	uint8_t how = take_8(w.in);
	uint64_t value = how & 1 ? take_64(w.in) : take_8(w.in), place = s->places[how >> 1 & 1];
	if (!place || !a->is_remote || !s->carried)
		return;
	s->is_spoilt = 1;
	memcpy(remote_block(&a->remote, place) + (how & 4 ? CONSUMERS_INDEX : 0) + (how >> 3 & 3) * 8,
	       &value, sizeof(value));
}

/* --- connections -------------------------------------------------------------------------------- */

static void new_connection(uint8_t how)
{
	struct application *a = &w.applications[how % APPLICATIONS];
	struct connection *c = &w.connections[w.connection_count];
	if (w.connection_count == CONNECTIONS || !a->it || a->has_left)
		return;
	memset(c, 0, sizeof(*c));
	c->application = a;
	c->key = KEY + w.connection_count;
	c->handle = (uint64_t)WORKER << 32 | w.connection_count * 2;
	c->is_in_python = how >> 6 & 1;
	c->session = hs_connection_session_new(
		a->it, c->key, c->is_in_python ? 0 : (uint64_t)(uintptr_t)&VERBS, c, RX_BYTES,
		TX_BYTES);
	CHECK(c->session);
	if (how & 0x80)
		hs_connection_session_share(c->session);
	w.connection_count++;
}

static void announce(struct connection *c)
{
	if (c->is_announced || !c->session)
		return;
	c->is_announced = 1;
	if (c->application->is_remote)
		send(c->application, ANNOUNCED, c);
	hs_connection_session_announce(c->session, c->handle);
	if (c->application->is_remote)
		return;
	c->held = hs_connection_session_hold(c->session);
	CHECK(c->held);
}

static void close_connection(struct connection *c)
{
	if (!c->session)
		return;
	c->is_closing = 1;
	hs_connection_session_close(c->session);
	c->session = NULL;
	if (c->application->is_remote && c->is_announced)
		send(c->application, CLOSED, c);
	for (uint32_t i = 0; i < w.stream_count; i++)
		CHECK(w.streams[i].connection != c || !w.streams[i].carried);
}

static void drop_connection(struct connection *c)
{
	if (!c->held)
		return;
	hs_end_connection_drop(c->held);
	c->held = NULL;
	c->is_dropped = !c->application->is_remote;
}

static void check_credit(void)
{
	for (uint32_t i = 0; i < w.connection_count; i++)
		CHECK(w.connections[i].allowed == w.connections[i].expected);
}

static void collect(void)
{
	/* What an application has not taken of a connection that it dropped, it never will. */
	for (uint32_t i = 0; i < w.connection_count; i++)
		w.connections[i].is_let_go = w.connections[i].is_dropped;
	for (uint32_t i = 0; i < w.stream_count; i++) {
		if (w.streams[i].connection->is_let_go)
			take(&w.streams[i]);
	}
	hs_plane_collect(w.plane);
	CHECK(!hs_plane_has_credit(w.plane));
}

static void look(void)
{
	struct hs_session_about about;
	uint32_t index = 0, count = 0, carried = 0;
	while ((index = hs_plane_next(w.plane, index, &about))) {
		struct stream *s = by_handle(about.handle);
		CHECK(s && s->carried && about.stream_id == s->id && ++count <= STREAMS);
		CHECK((about.rx_bytes != 0) == s->has_rx && (about.tx_bytes != 0) == s->has_tx);
	}
	for (uint32_t i = 0; i < w.stream_count; i++) {
		carried += w.streams[i].carried != NULL;
		CHECK(!w.streams[i].handle || hs_plane_look(w.plane, w.streams[i].handle, &about) ==
						     (w.streams[i].carried != NULL));
	}
	CHECK(count == carried && hs_plane_streams(w.plane) == count);
}

/* Both sides of an application in another process do what they can. */
static void quiesce(struct application *a)
{
	int rounds = 0;
	for (int is_busy = 1; is_busy && !a->has_left;) {
		is_busy = 0;
		while (hear(a, 1))
			is_busy = 1;
		hs_attached_settle(a->remote.attached);
		is_busy |= follow(a, 0) != 0;
		if (!a->has_left)
			is_busy |= tell(a);
		CHECK(++rounds < MOST_ROUNDS || a->is_hostile);
		is_busy &= rounds < MOST_ROUNDS;
	}
}

static void take_wakes(struct application *a, uint32_t n)
{
	uint64_t keys[8];
	int has = hs_side_has(a->side);
	uint32_t count = hs_side_take(a->side, keys, n < 8 ? n : 8);
	CHECK(count <= 8 && (count != 0) == (has && n));
	for (uint32_t i = 0; i < count; i++)
		CHECK(keys[i] >> 34 == WORKER);
}

static void release(struct application *a)
{
	if (a->is_remote && !a->has_left)
		leave(a);
	hs_application_release(a->it);
	a->it = NULL;
}

/* --- the program -------------------------------------------------------------------------------- */

static void on_stream(uint8_t operation)
{
	uint8_t which = take_8(w.in);
	if (!w.stream_count)
		return;
	struct stream *s = &w.streams[which % w.stream_count];
	if (operation >= 0x80) {
		if (s->end)
			use_end(s, operation);
	} else if ((operation & 3) == 3) {
		scribble(s);
	} else if (!s->carried) {
		return;
	} else if ((operation & 3) == 0) {
		uint8_t events = take_8(w.in) & 0x7f;
		if (s->connection->application->is_remote && (s->is_opened || !s->is_peers))
			events &= (uint8_t)~HS_STREAM_OPENED; /* once, as transports do */
		s->is_opened |= events & HS_STREAM_OPENED;
		report(s, events);
	} else if ((operation & 3) == 1) {
		peer_sends(s, take_8(w.in));
	} else {
		send_some(s, take_8(w.in));
		report(s, HS_STREAM_WRITABLE);
	}
}

static void on_connection(uint8_t operation)
{
	uint8_t which = take_8(w.in);
	if (!w.connection_count)
		return;
	struct connection *c = &w.connections[which % w.connection_count];
	switch (operation & 7) {
	case 0:
	case 1:
		if (c->session)
			peer_opens(c, take_8(w.in));
		break;
	case 2:
		if (c->session || c->application->is_remote)
			opens(c, take_8(w.in));
		break;
	case 3:
		if (c->held)
			accept_one(c);
		break;
	case 4:
		announce(c);
		break;
	case 5:
		close_connection(c);
		break;
	case 6:
		if (c->held)
			hs_end_unacknowledged(c->held, which & 0x80);
		break;
	default:
		drop_connection(c);
	}
}

static void on_remote(struct application *a, uint8_t operation, uint8_t which)
{
	switch (operation & 0xf) {
	case 0:
		follow(a, which);
		break;
	case 1:
		give_any_command(a);
		break;
	case 8:
		tell(a);
		break;
	case 9:
		for (int i = which >> 3; i >= 0 && hear(a, which & 4); i--)
			;
		break;
	case 10:
		CHECK(hs_attached_settle(a->remote.attached) >= 0 || a->is_hostile);
		break;
	case 11:
		send(a, PING, NULL);
		break;
	case 12:
		scribble_ring(a, which);
		break;
	case 13:
		if (!a->remote.blocks)
			remote_change_segment(&a->remote);
		break;
	case 14:
		push_readable(a, which >> 2);
		break;
	default: /* both sides, until there is no more */
		quiesce(a);
	}
}

static void on_application(uint8_t operation)
{
	uint8_t which = take_8(w.in);
	struct application *a = &w.applications[which % APPLICATIONS];
	if (!a->it)
		return;
	switch (operation & 0xf) {
	case 2:
		take_wakes(a, which >> 2);
		break;
	case 3:
		if (!a->has_left)
			leave(a);
		break;
	case 4:
		hs_application_set_max(a->it, which >> 2);
		break;
	case 5:
		if (which & 0x80)
			release(a);
		break;
	case 6:
	case 7:
		new_connection(which);
		break;
	default:
		if (a->is_remote && !a->has_left)
			on_remote(a, operation, which);
	}
}

static void run(void)
{
	while (w.in->left) {
		uint8_t operation = take_8(w.in);
		if (operation & 0x40)
			on_stream(operation);
		else if (operation & 0x20)
			on_connection(operation);
		else if (operation & 0x10)
			on_application(operation);
		else if (operation & 1)
			collect();
		else
			look();
		check_credit();
	}
}

/* --- beginning and end -------------------------------------------------------------------------- */

static void begin(uint8_t shape)
{
	static const uint32_t FIRST[] = { 0, 1000, 0x7ffffffe, 0xfffffff0 };
	w.plane = hs_plane_new(WORKER, FIRST[shape & 3], on_command, make_blocks, &w);
	w.verbs = (const void *)(uintptr_t)hs_plane_verbs();
	CHECK(w.plane);
	for (int i = 0; i < APPLICATIONS; i++) {
		struct application *a = &w.applications[i];
		a->is_remote = shape >> (2 + i) & 1;
		a->side = hs_side_new();
		a->it = hs_application_new(w.plane, a->is_remote ? NULL : a->side,
					   (uint64_t)APPLICATION_KEY + (uint64_t)i);
		CHECK(a->side && a->it);
		if (a->is_remote)
			remote_begin(&a->remote, i, a->it, a->side, 2U << (shape >> 5 & 3));
	}
}

static void drop_all(void)
{
	for (uint32_t i = 0; i < w.stream_count; i++) {
		if (w.streams[i].end)
			drop_end(&w.streams[i]);
	}
	for (uint32_t i = 0; i < w.connection_count; i++)
		drop_connection(&w.connections[i]);
}

static void release_plane(void)
{
	struct hs_plane *plane = w.plane;
	w.plane = NULL; /* no more commands */
	hs_plane_release(plane);
}

/* A transport reports each stream, but the input may have ended before. */
static int has_unreported(const struct application *a)
{
	for (uint32_t i = 0; i < w.stream_count; i++) {
		const struct stream *s = &w.streams[i];
		if (s->connection->application == a && s->is_peers && s->handle && !s->is_opened)
			return 1;
	}
	return 0;
}

/* An honest application in another process that has dropped everything has nothing any more. */
static void end_remote(struct application *a, uint8_t order)
{
	if (order & 0x40 && !a->has_left)
		leave(a);
	if (order & 0x40)
		return;
	if (!a->has_left)
		quiesce(a);
	drop_all();
	if (!a->has_left)
		quiesce(a);
	if (!a->is_hostile && !a->has_left && !has_unreported(a)) {
		CHECK(!hs_application_sessions(a->it) && !a->remote.blocks);
		for (uint32_t i = 1; i <= a->asked; i++)
			CHECK(a->is_answered[i]);
	}
	if (order & 0x10 && !a->has_left)
		leave(a);
}

static void end_applications(uint8_t order)
{
	for (int i = 0; i < APPLICATIONS; i++) {
		struct application *a = &w.applications[i];
		if (a->it && a->is_remote)
			end_remote(a, order);
		if (!a->it)
			continue;
		if (order & 8 && !a->has_left)
			leave(a);
		else if (!(order & 8))
			release(a);
	}
}

static void free_remotes(void)
{
	for (int i = 0; i < APPLICATIONS; i++) {
		if (w.applications[i].remote.attached)
			hs_attached_free(w.applications[i].remote.attached);
		w.applications[i].remote.attached = NULL;
	}
}

static void check_memory(int is_plane_gone)
{
	for (uint32_t i = 0; i < w.stream_count; i++) {
		if (w.streams[i].outside && is_plane_gone)
			free_outside(&w.streams[i]);
		CHECK(!w.streams[i].outside);
	}
	for (int i = 0; i < APPLICATIONS; i++)
		CHECK(!w.applications[i].remote.blocks || is_plane_gone);
}

/* In one of many orders. */
static void end(uint8_t order)
{
	if (order & 1)
		drop_all();
	for (uint32_t i = 0; i < w.connection_count; i++)
		close_connection(&w.connections[order & 2 ? w.connection_count - 1 - i : i]);
	if (order & 4) {
		for (int i = 0; i < APPLICATIONS; i++) {
			if (w.applications[i].it && !w.applications[i].has_left)
				leave(&w.applications[i]);
		}
		release_plane();
	}
	end_applications(order);
	if (order & 0x20)
		free_remotes();
	drop_all();
	free_remotes();
	if (w.plane) {
		hs_plane_collect(w.plane);
		CHECK(!hs_plane_streams(w.plane));
	}
	check_memory(order & 4);
	for (int i = 0; i < APPLICATIONS; i++) {
		struct application *a = &w.applications[i];
		if (a->it) {
			CHECK(!hs_application_sessions(a->it));
			hs_application_release(a->it);
		}
		hs_side_free(a->side);
		if (a->is_remote)
			remote_end(&a->remote);
	}
	if (w.plane)
		release_plane();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct input in = { data, bytes };
	memset(&w, 0, sizeof(w));
	w.in = &in;
	uint8_t shape = take_8(&in);
	begin(shape);
	shape = take_8(&in);
	run();
	end(shape);
	return 0;
}
