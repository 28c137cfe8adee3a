/* SPDX-License-Identifier: Apache-2.0
 *
 * The session plane (hoststack/native/session) between a transport and applications of this file's
 * own. The input is a program: what peers, the transport and the applications do with connections
 * and streams, in any order that the headers allow. Some applications are in this process, some
 * "in another" one: those use their own ends of FIFOs that are made here, send signals about any
 * handle, and overwrite what they share. Some connections are of a transport "in Python", which
 * has its streams from hs_session_add and is called with commands.
 *
 * What is checked: a transport is called about streams that it has, and never again after their
 * end; FIFOs are freed once, and not used after that; bytes arrive as they were written; a peer
 * gets credit once for each stream that is over and taken; at the end nothing is left.
 */
#include "session/internal.h"

#include "fuzz.h"

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
};

#define BYTES_MASK ((INT64_C(1) << HS_END_BYTES_BITS) - 1)

/* The FIFOs of a stream that are not of the plane's pool. */
struct outside {
	uint8_t *rx_block, *tx_block; /* NULL: none */
	struct hs_fifo_producer rx_in, tx_in;
	struct hs_fifo_consumer rx_out, tx_out;
	uint8_t uses; /* the plane's, and the end's of an application in another process */
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
	struct outside *shared; /* with an application in another process */
	struct hs_end *end; /* NULL: the application does not have it, or no longer */
	uint64_t handle;
	int64_t id;
	uint8_t has_rx, has_tx;
	uint8_t is_peers, is_opened, is_taken, is_over, is_credited;
	uint8_t is_told_over; /* to an application in another process */
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
	uint8_t may_open, fails_to_open;
};

struct application {
	struct hs_application *it; /* NULL: released */
	struct hs_side *side;
	uint8_t is_remote;
};

static struct world {
	struct hs_plane *plane; /* NULL: released */
	const struct hs_session_verbs *verbs;
	struct application applications[APPLICATIONS];
	struct connection connections[CONNECTIONS];
	struct stream streams[STREAMS];
	uint32_t connection_count, stream_count;
	uint8_t has_memory; /* for FIFOs of applications in other processes */
	struct stream *opening; /* for the calls that the plane makes meanwhile */
	struct input *in;
} w;

static uint8_t byte_at(uint64_t offset)
{
	return (uint8_t)((offset * 0x9e3779b97f4a7c15ULL) >> 53);
}

/* --- FIFOs of others ---------------------------------------------------------------------------- */

static uint8_t *new_fifo(struct hs_fifo_producer *in, struct hs_fifo_consumer *out, size_t bytes)
{
	size_t block_bytes = HS_FIFO_HEADER_BYTES + bytes;
	uint8_t *block = take_memory(block_bytes);
	CHECK(!hs_fifo_producer_open(in, block, block_bytes));
	CHECK(!hs_fifo_consumer_open(out, block, block_bytes));
	return block;
}

static struct outside *new_outside(int has_rx, int has_tx)
{
	struct outside *o = take_memory(sizeof(*o));
	if (has_rx)
		o->rx_block = new_fifo(&o->rx_in, &o->rx_out, RX_BYTES);
	if (has_tx)
		o->tx_block = new_fifo(&o->tx_in, &o->tx_out, TX_BYTES);
	o->uses = 1;
	return o;
}

static void unuse(struct outside *o)
{
	if (--o->uses)
		return;
	hs_fifo_producer_close(&o->rx_in);
	hs_fifo_producer_close(&o->tx_in);
	free(o->rx_block);
	free(o->tx_block);
	free(o);
}

static struct outside *share(struct stream *s)
{
	s->shared = s->outside;
	s->shared->uses++;
	return s->shared;
}

/* The plane no longer uses them. */
static void free_outside(struct stream *s)
{
	CHECK(s->outside && !s->carried);
	unuse(s->outside);
	s->outside = NULL;
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
	s->is_taken = !is_peers || c->is_let_go;
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
		if (w.streams[i].handle == handle)
			return &w.streams[i];
	}
	return NULL;
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

static int may_open(void *connection, int is_unidirectional)
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
	struct stream *s = w.opening;
	CHECK(c->session && s->connection == c && tx && (rx == NULL) == (is_unidirectional != 0));
	if (c->fails_to_open)
		return NULL;
	s->session = session;
	s->rx = rx;
	s->tx = tx;
	*id = s->id;
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
	CHECK(got >= 0 || s->is_spoilt);
	for (int64_t i = 0; i < got && !s->is_spoilt; i++)
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
	CHECK(hs_fifo_head(s->rx) >= 0 || s->is_spoilt);
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
	.may_open = may_open,
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
	struct stream *s = by_handle(handle);
	CHECK(s);
	if (command == HS_SESSION_FREED) {
		CHECK(!s->is_told_over);
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

static int make_fifos(void *owner, uint64_t key, uint64_t handle, struct hs_fifo_producer **rx,
		      struct hs_fifo_consumer **tx)
{
	struct stream *s = w.opening;
	CHECK(owner == &w && s->connection->key == key && !s->outside && rx);
	if (!w.has_memory)
		return -1;
	s->handle = handle;
	s->outside = new_outside(1, tx != NULL);
	*rx = &s->outside->rx_in;
	if (tx)
		*tx = &s->outside->tx_out;
	return 0;
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
	struct outside *o = s->outside = new_outside(s->has_rx, s->has_tx);
	s->rx = s->has_rx ? &o->rx_in : NULL;
	s->tx = s->has_tx ? &o->tx_out : NULL;
	s->session = hs_session_add(c->session, s->id, is_peers, s->rx, s->tx,
				    is_remote || !s->has_rx ? NULL : &o->rx_out,
				    is_remote || !s->has_tx ? NULL : &o->tx_in);
	CHECK(s->session && hs_session_stream_id(s->session) == s->id);
	s->handle = hs_session_handle(s->session);
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
			return;
		}
		CHECK(s->rx && (s->tx != NULL) == s->has_tx);
		s->handle = hs_session_handle(s->session);
	}
	if (w.opening && !(how & 4)) {
		w.opening->is_opened = 1;
		report(w.opening, HS_STREAM_OPENED);
	}
}

static void peer_sends(struct stream *s, uint8_t how)
{
	uint8_t chunk[CHUNK_BYTES];
	if (!s->rx)
		return;
	size_t n = (size_t)how * 2;
	for (size_t i = 0; i < n; i++)
		chunk[i] = byte_at(s->rx->tail + i);
	CHECK(hs_fifo_write(s->rx, chunk, n) >= 0 || s->is_spoilt);
	if (!(how & 7))
		hs_fifo_set_eof(s->rx);
	report(s, HS_STREAM_READABLE);
}

/* --- applications ------------------------------------------------------------------------------- */

/* What an application in another process has to tell, if it gets to that. */
static int64_t act(struct stream *s, int64_t result)
{
	struct application *a = s->connection->application;
	if (result < 0)
		return result;
	uint32_t hints = (uint32_t)(result >> HS_END_BYTES_BITS);
	CHECK(!(hints & ~(uint32_t)HS_END_MASK));
	CHECK(!(hints & (HS_END_MUST_RESET | HS_END_MUST_STOP)) || a->is_remote);
	if (a->is_remote && a->it && hints && take_8(w.in) & 1) {
		if (hints & HS_END_SEND)
			hs_session_signal(a->it, s->handle, HS_SIGNAL_SENT, 0);
		if (hints & (HS_END_CREDIT | HS_END_CREDIT_NOW))
			hs_session_signal(a->it, s->handle, HS_SIGNAL_CONSUMED, 0);
		if (hints & HS_END_MUST_RESET)
			hs_session_signal(a->it, s->handle, HS_SIGNAL_RESET, 3);
		if (hints & HS_END_MUST_STOP)
			hs_session_signal(a->it, s->handle, HS_SIGNAL_STOP, 4);
	}
	return result & BYTES_MASK;
}

static int has_space(const struct stream *s)
{
	return s->end->tx && !s->end->is_ended && !s->is_spoilt;
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
	for (int64_t i = 0; i < n && !s->is_spoilt; i++)
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
	hs_end_drop(s->end);
	s->end = NULL;
	if (s->shared)
		unuse(s->shared);
	s->shared = NULL;
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
		hs_end_is_over(s->end);
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
	CHECK(got == (untaken != 0) || c->application->is_remote);
	if (!got)
		return;
	struct stream *s = by_handle(accepted.handle);
	CHECK(s && s->connection == c && s->is_opened && s->id == accepted.stream_id);
	CHECK(accepted.has_tx == s->has_tx && hs_end_untaken(c->held) < untaken);
	if (c->application->is_remote) {
		CHECK(s->end == accepted.end);
		return; /* a signal follows, at some time */
	}
	CHECK(!s->end);
	s->end = accepted.end;
	take(s);
}

static void new_remote_end(struct stream *s)
{
	struct outside *o = share(s);
	s->end = hs_end_new(s->connection->held, s->handle, s->id, s->is_peers,
			    s->has_rx ? &o->rx_out : NULL, s->has_tx ? &o->tx_in : NULL);
	CHECK(s->end);
}

static void opens(struct connection *c, uint8_t how)
{
	struct hs_opened opened;
	int is_uni = how & 1, is_remote = c->application->is_remote;
	struct hs_end *end = NULL;
	c->may_open = !(how & 2);
	c->fails_to_open = how >> 2 & 1;
	if (w.stream_count == STREAMS || hs_session_may_add(c->session, 0))
		return;
	struct stream *s = w.opening = c->is_in_python ? add_in_python(c, 0, is_uni) :
							 new_stream(c, 0, is_uni);
	if (c->is_in_python) {
		end = is_remote ? NULL : hs_session_end(s->session);
	} else if (!is_remote) {
		int refusal = hs_session_open(c->session, is_uni, &opened);
		CHECK(refusal == (!c->may_open	     ? HS_SESSION_NO_CREDIT :
				  c->fails_to_open ? HS_SESSION_CLOSED :
						     0));
		if (refusal)
			return;
		s->handle = opened.handle;
		end = opened.end;
		CHECK(opened.stream_id == s->id && hs_session_end(s->session) == end);
	} else {
		s->outside = new_outside(s->has_rx, s->has_tx);
		if (!hs_session_open_over(c->session, is_uni, s->has_rx ? &s->outside->rx_in : NULL,
					  &s->outside->tx_out)) {
			free_outside(s);
			return;
		}
		s->handle = hs_session_handle(s->session);
	}
	CHECK(hs_session_find(w.plane, s->handle) == s->session);
	s->end = end;
	if (is_remote && c->held)
		new_remote_end(s);
}

/* What an application in another process hears. */
static void take_events(struct application *a, uint32_t n)
{
	struct hs_session_event events[4];
	uint32_t count = hs_application_events(a->it, events, n < 4 ? n : 4);
	CHECK(count <= 4 && (a->is_remote || !count));
	for (uint32_t i = 0; i < count; i++) {
		const struct hs_session_event *event = &events[i];
		struct stream *s = by_handle(event->handle);
		CHECK(s && s->connection->application == a && s->connection->is_announced);
		CHECK(event->connection == s->connection->handle && event->stream_id == s->id);
		CHECK(!s->is_told_over);
		if (event->events & HS_STREAM_OPENED && s->connection->held && s->is_peers &&
		    !s->end)
			new_remote_end(s);
		if (s->end)
			hs_end_report(s->end, event->events, event->reset_code, event->stop_code);
		if (event->events & HS_STREAM_OVER) {
			s->is_told_over = 1;
			free_outside(s);
		}
	}
}

/* About a stream, or anything. */
static void send_signal(struct application *a)
{
	uint8_t signal = take_8(w.in), which = take_8(w.in);
	struct stream *s = w.stream_count ? &w.streams[which % w.stream_count] : NULL;
	uint64_t handle = signal & 0x80 || !s ? take_64(w.in) : s->handle;
	if (signal & 0x40)
		handle ^= UINT64_C(1) << which % 64;
	s = by_handle(handle);
	int is_known = s && s->connection->application == a;
	if ((signal & 7) == HS_SIGNAL_TAKEN && is_known && a->is_remote)
		take(s);
	int is_due = hs_session_signal(a->it, handle, signal & 7, which);
	CHECK(!is_due || is_known);
}

/* A malicious application in another process writes into what it shares. */
static void scribble(struct stream *s)
{
	uint8_t how = take_8(w.in);
	uint64_t value = how & 1 ? take_64(w.in) : take_8(w.in);
	uint8_t *block = s->outside ? how & 2 ? s->outside->tx_block : s->outside->rx_block : NULL;
	if (!block || !s->connection->application->is_remote)
		return;
	s->is_spoilt = 1;
	memcpy(block + (how & 4 ? CONSUMERS_INDEX : 0) + (how >> 3 & 3) * 8, &value, sizeof(value));
}

/* --- connections -------------------------------------------------------------------------------- */

static void new_connection(uint8_t how)
{
	struct application *a = &w.applications[how % APPLICATIONS];
	struct connection *c = &w.connections[w.connection_count];
	if (w.connection_count == CONNECTIONS || !a->it)
		return;
	memset(c, 0, sizeof(*c));
	c->application = a;
	c->key = KEY + w.connection_count;
	c->handle = (uint64_t)WORKER << 32 | w.connection_count;
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
	hs_connection_session_announce(c->session, c->handle);
	if (c->application->is_remote)
		c->held = hs_end_connection_new(c->application->side, c->handle);
	else
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
	if (c->application->is_remote && c->held)
		hs_end_connection_gone(c->held);
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

static void forget_untaken(struct application *a)
{
	for (uint32_t i = 0; i < w.stream_count; i++) {
		if (w.streams[i].connection->application == a)
			take(&w.streams[i]);
	}
	hs_application_forget_untaken(a->it);
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
		if (c->session)
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

static void on_application(uint8_t operation)
{
	uint8_t which = take_8(w.in);
	struct application *a = &w.applications[which % APPLICATIONS];
	if (!a->it)
		return;
	switch (operation & 7) {
	case 0:
		take_events(a, which >> 2);
		break;
	case 1:
		send_signal(a);
		break;
	case 2:
		take_wakes(a, which >> 2);
		break;
	case 3:
		forget_untaken(a);
		break;
	case 4:
		hs_application_set_max(a->it, which >> 2);
		break;
	case 5:
		if (which & 0x80)
			release(a);
		break;
	default:
		new_connection(which);
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
	w.plane = hs_plane_new(WORKER, FIRST[shape & 3], on_command, make_fifos, &w);
	w.verbs = (const void *)(uintptr_t)hs_plane_verbs();
	CHECK(w.plane);
	for (int i = 0; i < APPLICATIONS; i++) {
		struct application *a = &w.applications[i];
		a->is_remote = shape >> (2 + i) & 1;
		a->side = hs_side_new();
		a->it = hs_application_new(w.plane, a->is_remote ? NULL : a->side);
		CHECK(a->side && a->it);
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

static void hear_all(void)
{
	for (int i = 0; i < APPLICATIONS; i++) {
		struct application *a = &w.applications[i];
		for (int k = 0; a->it && k < STREAMS; k++)
			take_events(a, 1);
	}
}

static void release_plane(void)
{
	struct hs_plane *plane = w.plane;
	w.plane = NULL; /* no more commands */
	hs_plane_release(plane);
}

/* In one of many orders. */
static void end(uint8_t order)
{
	if (order & 1)
		drop_all();
	for (uint32_t i = 0; i < w.connection_count; i++)
		close_connection(&w.connections[order & 2 ? w.connection_count - 1 - i : i]);
	hear_all();
	if (order & 4)
		release_plane();
	drop_all();
	for (int i = 0; i < APPLICATIONS; i++) {
		if (w.applications[i].it && order & 8)
			forget_untaken(&w.applications[i]);
		else if (w.applications[i].it)
			release(&w.applications[i]);
	}
	if (w.plane) {
		hs_plane_collect(w.plane);
		CHECK(!hs_plane_streams(w.plane));
	}
	for (uint32_t i = 0; i < w.stream_count; i++) {
		if (w.streams[i].outside && order & 4)
			free_outside(&w.streams[i]);
		CHECK(!w.streams[i].outside);
	}
	for (int i = 0; i < APPLICATIONS; i++) {
		struct application *a = &w.applications[i];
		if (a->it) {
			CHECK(!hs_application_sessions(a->it));
			hs_application_release(a->it);
		}
		hs_side_free(a->side);
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
