/* SPDX-License-Identifier: Apache-2.0
 *
 * Turns: bursts in and out, timers, and events for the caller.
 */
#define _GNU_SOURCE
#include "quic/state.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "quic/accept.h"
#include "quic/begin.h"
#include "quic/cid.h"
#include "quic/connection.h"
#include "quic/connection_schedule.h"
#include "quic/datagram.h"
#include "quic/half_open.h"
#include "quic/held.h"
#include "quic/resume.h"
#include "quic/stream.h"
#include "quic/tables.h"
#include "session/transport.h"
#include "wire/verbs.h"

enum {
	LEAST_SHARE = 32, /* packets per connection, at least, when several have data */
	LEAST_EVENTS = 256,
	MOST_TURN_NS = 1000000, /* leave time for other tasks */
	BULK_DATAGRAMS = 16, /* a turn with this many is part of a bulk transfer */
	LINGER_NS = 20000,
	/* More is part of a bulk transfer, whose sender waits for acknowledgements. */
	HELD_BYTES = 4096,
};

/* --- receiving -------------------------------------------------------------------------------- */

/* RFC 9000 section 10.3.1: "An endpoint detects a potential Stateless Reset using the trailing
 * 16 bytes of the UDP datagram." It has no connection ID of ours. The table also contains the
 * peers' tokens. */
static struct hs_connection *find_reset(const struct hs_quic *q, const struct hs_received *datagram)
{
	if (datagram->bytes < HS_QUIC_LEAST_RESET_BYTES)
		return NULL;
	const uint8_t *token = datagram->data + datagram->bytes - NGTCP2_STATELESS_RESET_TOKENLEN;
	return hs_cids_find(&q->cids, token, NGTCP2_STATELESS_RESET_TOKENLEN);
}

static void read_datagram(struct hs_quic *q, const struct hs_received *datagram)
{
	ngtcp2_version_cid ids = { 0 };
	struct hs_connection *c;
	if (datagram->bytes < 1 + HS_CID_BYTES) {
		q->counters.drops[HS_QUIC_DROP_MALFORMED]++;
		return;
	}
	if (datagram->data[0] & HS_QUIC_LONG_HEADER) {
		int result = ngtcp2_pkt_decode_version_cid(&ids, datagram->data, datagram->bytes,
							   HS_CID_BYTES);
		if (result == NGTCP2_ERR_VERSION_NEGOTIATION) {
			hs_answer_version(q, datagram, &ids);
			return;
		}
		if (result) {
			q->counters.drops[HS_QUIC_DROP_MALFORMED]++;
			return;
		}
		c = hs_cids_find(&q->cids, ids.dcid, ids.dcidlen);
	} else {
		c = hs_cids_find(&q->cids, datagram->data + 1, HS_CID_BYTES);
		if (!c)
			c = find_reset(q, datagram);
	}
	if (!c)
		hs_read_unmatched(q, datagram, &ids);
	else if (c->is_half_open && ids.version)
		hs_read_early(c, datagram, &ids);
	else if (c->state != HS_OVER)
		hs_connection_read(c, datagram);
}

static int receive(struct hs_quic *q, uint64_t *bytes)
{
	struct hs_received burst[HS_WIRE_BURST];
	int n = q->wire->verbs->receive(q->wire, burst, HS_WIRE_BURST);
	/* Over sockets half a burst is the most that one system call receives. */
	if (n < HS_WIRE_BURST / 2)
		q->full_bursts -= q->full_bursts > 0;
	else if (q->full_bursts < 2 * HS_OVERLOADED_AFTER)
		q->full_bursts++;
	q->answers_in_burst = 0;
	*bytes = 0;
	if (n <= 0)
		return 0;
	q->counters.rx_datagrams += (uint64_t)n;
	for (int i = 0; i < n; i++) {
		*bytes += burst[i].bytes;
		read_datagram(q, &burst[i]);
	}
	q->wire->verbs->release(q->wire);
	return n;
}

static void fire_timers(struct hs_quic *q)
{
	while (q->heap_count && q->heap[1]->deadline_ns <= q->now_ns) {
		struct hs_connection *c = q->heap[1];
		hs_heap_remove(q, c);
		hs_connection_expire(c);
		hs_touch(c, 0);
		hs_connection_set_timer(c);
		if (c->heap_place && c->deadline_ns <= q->now_ns)
			hs_heap_set(q, c, q->now_ns + 1); /* at most once a turn */
	}
}

/* --- sending ---------------------------------------------------------------------------------- */

/* Whether a connection has nothing to send but an acknowledgement, and a program that has just got
 * bytes and may answer before the next turn: one packet will do for both. */
static int may_wait(const struct hs_connection *c)
{
	if (c->state != HS_OPEN || c->close_is_due || c->ranks)
		return 0;
	for (const struct hs_stream *s = c->touched_streams; s; s = s->next_touched)
		if (s->pending & HS_STREAM_READABLE && s->session)
			return c->q->sessions->is_here(s->session);
	return 0;
}

/* Leave the connections that may wait for the next turn, once. */
static struct hs_connection *hold_back(struct hs_quic *q)
{
	struct hs_connection *held = NULL, *next;
	for (struct hs_connection *c = q->first_due; c; c = next) {
		next = c->next_due;
		if (!may_wait(c))
			continue;
		hs_unschedule(c);
		c->next_due = held;
		held = c;
	}
	return held;
}

/* Write a share for each connection, round robin, until a burst is full. Returns how many
 * packets; *is_full if the wire has no more room. */
static int transmit(struct hs_quic *q, int *is_full)
{
	int written = 0, due = 0;
	for (struct hs_connection *c = q->first_due; c && due < HS_WIRE_BURST; c = c->next_due)
		due++;
	int share = due ? HS_WIRE_BURST / due : 0;
	if (share < LEAST_SHARE)
		share = LEAST_SHARE;
	while (q->first_due && written < HS_WIRE_BURST) {
		struct hs_connection *c = q->first_due;
		int n = hs_connection_write(c, share);
		if (n < 0) {
			*is_full = 1;
			break;
		}
		hs_unschedule(c);
		written += n;
		if (n >= share || c->close_is_due)
			hs_schedule(c); /* it has more to send, after the others */
		hs_connection_set_timer(c);
	}
	return written;
}

/* --- events ----------------------------------------------------------------------------------- */

static void add_event(struct hs_quic *q, uint32_t kind, struct hs_connection *c, uint64_t info)
{
	c->is_known = 1;
	if (q->event_count == q->event_room) {
		uint32_t room = q->event_room ? q->event_room * 2 : LEAST_EVENTS;
		void *events = realloc(q->events, room * sizeof(*q->events));
		if (!events)
			abort(); /* the engine can't work without events */
		q->events = events;
		q->event_room = room;
	}
	q->events[q->event_count++] = (struct hs_quic_event){ kind, c->number, info };
}

static void report_stream(struct hs_quic *q, struct hs_stream *s)
{
	uint32_t events = s->pending;
	s->is_touched = 0;
	s->pending = 0;
	if (s->session && events)
		q->sessions->report(s->session, events, s->reset_code, s->stop_code);
	if (events & HS_STREAM_OVER) {
		if (!s->is_gone)
			ngtcp2_conn_set_stream_user_data(s->connection->conn, s->id, NULL);
		hs_stream_unlink(s);
		s->next = q->dead_streams;
		q->dead_streams = s;
	}
}

static void report_streams(struct hs_quic *q, struct hs_connection *c)
{
	struct hs_stream *s = c->touched_streams;
	c->touched_streams = NULL;
	c->touched_end = &c->touched_streams;
	while (s) {
		struct hs_stream *next = s->next_touched;
		report_stream(q, s);
		s = next;
	}
}

/* Bits of enum hs_quic_handshake. */
static uint64_t handshake_info(const struct hs_connection *c, int is_early)
{
	if (is_early)
		return HS_QUIC_IS_EARLY;
	return (uint64_t)(hs_connection_is_resumed(c) ? HS_QUIC_IS_RESUMED : 0) |
	       (c->was_early_rejected ? HS_QUIC_WAS_REJECTED : 0);
}

static void report(struct hs_quic *q, struct hs_connection *c)
{
	uint32_t pending = c->pending;
	c->pending = 0;
	c->is_touched = 0;
	/* First, because the application may send as soon as it knows the connection. */
	if (pending & HS_PENDING_DATAGRAMS)
		add_event(q, HS_QUIC_DATAGRAMS_READY, c, hs_datagrams_limit(c));
	if (pending & HS_PENDING_ESTABLISHED)
		add_event(q, c->listener ? HS_QUIC_ACCEPTED : HS_QUIC_CONNECTED, c,
			  handshake_info(c, pending & HS_PENDING_HANDSHAKE || c->state == HS_OPENING));
	if (pending & HS_PENDING_HANDSHAKE && c->state == HS_OPEN)
		add_event(q, HS_QUIC_HANDSHAKE_DONE, c, handshake_info(c, 0));
	if (pending & HS_PENDING_TICKET)
		add_event(q, HS_QUIC_TICKET, c, 0);
	if (pending & HS_PENDING_TOKEN)
		add_event(q, HS_QUIC_TOKEN, c, 0);
	if (c->state != HS_OPENING || c->is_early)
		report_streams(q, c);
	if (pending & HS_PENDING_READABLE)
		add_event(q, HS_QUIC_READABLE, c, 0);
	if (pending & HS_PENDING_WRITABLE)
		add_event(q, HS_QUIC_WRITABLE, c, 0);
	if (pending & HS_PENDING_PATH_CHANGED && c->state == HS_OPEN)
		add_event(q, HS_QUIC_PATH_CHANGED, c, 0);
	if (pending & HS_PENDING_MIGRATION_FAILED && c->state == HS_OPEN)
		add_event(q, HS_QUIC_MIGRATION_FAILED, c, 0);
	if (pending & HS_PENDING_STREAMS_AVAILABLE && c->state == HS_OPEN)
		add_event(q, HS_QUIC_STREAMS_AVAILABLE, c, 0);
	if (pending & HS_PENDING_CLOSED)
		add_event(q, HS_QUIC_CLOSED, c, 0);
	if (pending & HS_PENDING_FORGOTTEN) {
		if (c->is_known)
			add_event(q, HS_QUIC_FORGOTTEN, c, 0);
		hs_unschedule(c);
		hs_heap_remove(q, c);
		hs_cids_remove_all(&q->cids, c);
		c->is_dead = 1;
		q->counters.connections--;
		c->next_due = q->dead_connections;
		q->dead_connections = c;
	}
}

static void report_all(struct hs_quic *q)
{
	struct hs_connection *c = q->touched;
	q->touched = NULL;
	q->touched_end = &q->touched;
	while (c) {
		struct hs_connection *next = c->next_touched;
		report(q, c);
		c = next;
	}
}

static void free_closed(struct hs_quic *q)
{
	while (q->dead_streams) {
		struct hs_stream *s = q->dead_streams;
		q->dead_streams = s->next;
		free(s);
	}
	while (q->dead_connections) {
		struct hs_connection *c = q->dead_connections;
		q->dead_connections = c->next_due;
		hs_connection_free(c);
	}
}

/* --- the turn --------------------------------------------------------------------------------- */

static uint64_t monotonic_ns(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
}

uint64_t hs_quic_deadline(struct hs_quic *q)
{
	return q->heap_count ? q->heap[1]->deadline_ns : UINT64_MAX;
}

/* How long to poll for more work. With events to report, only while bulk data arrive: waking the
 * application for a few packets at a time costs more than it gains. */
static uint64_t patience_ns(const struct hs_quic *q, const struct hs_quic_turn *turn,
			    uint32_t spin_ns)
{
	if (!q->touched)
		return spin_ns;
	return turn->received >= BULK_DATAGRAMS ? LINGER_NS : 0;
}

/* Receive and send bursts until there is no more work, or the turn's limit is reached. */
static void run_bursts(struct hs_quic *q, uint32_t bursts, uint32_t spin_ns,
		       struct hs_quic_turn *out)
{
	uint64_t now_ns = q->now_ns;
	const struct hs_wire_verbs *wire = q->wire->verbs;
	int is_clocked = bursts > 1; /* otherwise the time does not change during the turn */
	uint64_t began_ns = is_clocked ? monotonic_ns() : 0, idle_since_ns = began_ns;
	for (;;) {
		int is_full = 0;
		uint64_t bytes;
		int received = receive(q, &bytes);
		fire_timers(q);
		struct hs_connection *held = NULL;
		if (received && bytes <= HELD_BYTES && !q->has_held)
			held = hold_back(q);
		q->has_held = held != NULL;
		int sent = transmit(q, &is_full);
		int has_more = q->first_due != NULL;
		for (struct hs_connection *next; held; held = next) {
			next = held->next_due;
			hs_schedule(held);
		}
		out->held = q->has_held;
		int waiting = wire->flush(q->wire);
		out->received += (uint32_t)received;
		out->sent += (uint32_t)sent;
		q->counters.tx_full += (uint64_t)is_full;
		/* An engine that is full and sent nothing has to wait for the network. */
		out->blocked = waiting || (is_full && !sent);
		out->more = received == HS_WIRE_BURST || has_more;
		if (out->blocked || !is_clocked || q->has_held)
			break;
		uint64_t mono_ns = monotonic_ns();
		q->now_ns = now_ns + (mono_ns - began_ns);
		if (out->received + out->sent >= bursts * HS_WIRE_BURST ||
		    mono_ns - began_ns >= MOST_TURN_NS + spin_ns)
			break;
		if (received || sent)
			idle_since_ns = mono_ns;
		else if (mono_ns - idle_since_ns >= patience_ns(q, out, spin_ns))
			break;
	}
}

static int turn_size(uint32_t datagrams)
{
	int size = 0;
	for (; datagrams && size < HS_QUIC_TURN_SIZES - 1; datagrams >>= 1)
		size++;
	return size;
}

void hs_quic_turn(struct hs_quic *q, uint64_t now_ns, uint32_t bursts, uint32_t spin_ns,
		  struct hs_quic_turn *out)
{
	memset(out, 0, sizeof(*out));
	free_closed(q);
	q->event_count = 0;
	hs_quic_advance(q, now_ns);
	hs_held_expire(q);
	run_bursts(q, bursts, spin_ns, out);
	report_all(q);
	q->counters.turns++;
	q->counters.rx_in_turns[turn_size(out->received)]++;
	q->counters.tx_in_turns[turn_size(out->sent)]++;
	q->counters.empty_turns += !out->received && !out->sent;
	q->counters.tx_datagrams += out->sent;
	out->events = q->events;
	out->event_count = q->event_count;
	out->deadline_ns = hs_quic_deadline(q);
}

/* --- creation and destruction ----------------------------------------------------------------- */

struct hs_quic *hs_quic_new(struct hs_wire *wire, const uint8_t *cid_prefix, const uint8_t *secret,
			    const struct hs_session_verbs *sessions,
			    hs_quic_find_session find_session, hs_quic_make_fifos make_fifos,
			    hs_quic_find_path find_path, void *owner)
{
	struct hs_quic *q = calloc(1, sizeof(*q));
	struct hs_half_open *handshakes = hs_half_open_new();
	int has_cids = q && handshakes && !hs_cids_init(&q->cids);
	if (!has_cids || hs_streams_init(&q->streams)) {
		if (has_cids)
			hs_cids_free(&q->cids);
		wire->verbs->free(wire);
		hs_half_open_free(handshakes);
		free(q);
		return NULL;
	}
	q->handshakes = handshakes;
	q->wire = wire;
	q->sessions = sessions;
	q->find_session = find_session;
	q->make_fifos = make_fifos;
	q->find_path = find_path;
	q->owner = owner;
	q->touched_end = &q->touched;
	for (int kind = 0; kind < HS_ANSWERS; kind++)
		q->budgets[kind].left_ns = 1000000000; /* a second */
	memcpy(q->cid_prefix, cid_prefix, sizeof(q->cid_prefix));
	memcpy(q->secret, secret, sizeof(q->secret));
	return q;
}

void hs_quic_free(struct hs_quic *q)
{
	free_closed(q);
	for (uint32_t i = 0; i < q->connection_top; i++) {
		if (q->connections[i])
			hs_connection_free(q->connections[i]);
	}
	while (q->listeners)
		hs_quic_unlisten(q, q->listeners);
	hs_held_free(q);
	hs_half_open_free(q->handshakes);
	hs_resume_free_replays(q);
	hs_cids_free(&q->cids);
	hs_streams_free(&q->streams);
	free(q->connections);
	free(q->free_numbers);
	free(q->heap);
	free(q->events);
	free(q->stops);
	q->wire->verbs->free(q->wire);
	free(q);
}

struct hs_connection *hs_quic_connection(struct hs_quic *q, uint32_t number)
{
	return number < q->connection_top ? q->connections[number] : NULL;
}

void hs_quic_counters(const struct hs_quic *q, struct hs_quic_counters *out)
{
	const uint64_t *from = (const uint64_t *)(const void *)&q->counters;
	uint64_t *to = (uint64_t *)(void *)out;
	for (size_t i = 0; i < sizeof(*out) / sizeof(*to); i++)
		to[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
	out->half_open = __atomic_load_n(&q->half_open, __ATOMIC_RELAXED);
}
