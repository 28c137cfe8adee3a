/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "session/internal.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/* A finalizer may run in another thread, while this one is in C. The second is taken first; with it
 * nothing of a released plane is freed by another thread. An owner that is called while a plane
 * collects may drop what is of another one, which is released. */
static pthread_mutex_t drop_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t collect_lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

/* --- the plane -------------------------------------------------------------------------------- */

struct hs_plane *hs_plane_new(uint32_t worker, uint32_t first, hs_session_command_to command,
			      hs_session_make_blocks make_blocks, void *owner)
{
	struct hs_plane *plane = calloc(1, sizeof(*plane));
	if (!plane)
		return NULL;
	plane->pool = hs_pool_new();
	if (!plane->pool) {
		free(plane);
		return NULL;
	}
	plane->worker = worker;
	plane->first = first & ~(uint32_t)HS_SESSION_STREAM;
	plane->command = command;
	plane->make_blocks = make_blocks;
	plane->owner = owner;
	plane->references = 1;
	return plane;
}

static void collect(struct hs_plane *plane);

static void unref_plane(struct hs_plane *plane)
{
	if (--plane->references)
		return;
	for (uint32_t i = 0; i < plane->top; i++)
		free(plane->table[i]);
	hs_pool_free(plane->pool);
	hs_table_free(&plane->connections);
	free(plane->table);
	free(plane->freed);
	free(plane);
}

void hs_plane_release(struct hs_plane *plane)
{
	pthread_mutex_lock(&collect_lock);
	plane->command = NULL;
	plane->make_blocks = NULL;
	pthread_mutex_lock(&drop_lock);
	plane->is_released = 1;
	pthread_mutex_unlock(&drop_lock);
	collect(plane);
	unref_plane(plane); /* the owner's */
	pthread_mutex_unlock(&collect_lock);
}

void hs_plane_refused(const struct hs_plane *plane, uint64_t out[HS_SESSION_REFUSALS])
{
	memcpy(out, plane->refused, sizeof(plane->refused));
}

uint32_t hs_plane_streams(const struct hs_plane *plane)
{
	return plane->streams;
}

int hs_plane_has_credit(const struct hs_plane *plane)
{
	return plane->is_credit_due;
}

static int take_index(struct hs_plane *plane, struct hs_stream_session *s)
{
	if (plane->freed_count > HS_SESSION_REUSE) {
		s->index = plane->freed[plane->freed_first];
		plane->freed_first = (plane->freed_first + 1) % plane->freed_room;
		plane->freed_count--;
	} else {
		if (plane->top == plane->room) {
			uint32_t room = plane->room ? plane->room * 2 : 256;
			void *grown = realloc(plane->table, room * sizeof(*plane->table));
			if (!grown)
				return -1;
			plane->table = grown;
			plane->room = room;
		}
		s->index = plane->top++;
	}
	plane->table[s->index] = s;
	return 0;
}

static void give_index(struct hs_plane *plane, uint32_t index)
{
	plane->table[index] = NULL;
	if (plane->freed_count == plane->freed_room) {
		uint32_t room = plane->freed_room ? plane->freed_room * 2 : 2 * HS_SESSION_REUSE;
		uint32_t *grown = malloc(room * sizeof(*grown));
		if (!grown)
			return; /* the index is not used again */
		for (uint32_t i = 0; i < plane->freed_count; i++)
			grown[i] = plane->freed[(plane->freed_first + i) % plane->freed_room];
		free(plane->freed);
		plane->freed = grown;
		plane->freed_first = 0;
		plane->freed_room = room;
	}
	plane->freed[(plane->freed_first + plane->freed_count++) % plane->freed_room] = index;
}

static uint64_t handle_of(const struct hs_plane *plane, uint32_t index)
{
	uint32_t low = plane->first + index * 2 + HS_SESSION_STREAM;
	return (uint64_t)plane->worker << 32 | low;
}

struct hs_stream_session *hs_session_find(struct hs_plane *plane, uint64_t handle)
{
	uint32_t low = (uint32_t)handle;
	if (handle >> 32 != plane->worker || !(low & HS_SESSION_STREAM))
		return NULL;
	uint32_t index = (low - plane->first) / 2;
	return index < plane->top ? plane->table[index] : NULL;
}

static void describe(const struct hs_stream_session *s, struct hs_session_about *out)
{
	uint64_t positions[2];
	memset(out, 0, sizeof(*out));
	out->handle = s->end.handle;
	out->connection = s->connection->end.handle;
	out->stream_id = s->end.id;
	if (s->rx) {
		struct hs_fifo_consumer look = { .shared = s->rx->shared };
		hs_fifo_look(&look, positions);
		out->rx_bytes = s->rx->size_bytes;
		out->rx_head = positions[0];
		out->rx_tail = positions[1];
		out->rx_eof = hs_fifo_eof(&look) != 0;
	}
	if (s->tx) {
		hs_fifo_look(s->tx, positions);
		out->tx_bytes = s->tx->size_bytes;
		out->tx_head = positions[0];
		out->tx_tail = positions[1];
		out->tx_eof = hs_fifo_eof(s->tx) != 0;
	}
}

/* Skip ended streams, which only their application still holds. */
uint32_t hs_plane_next(const struct hs_plane *plane, uint32_t index, struct hs_session_about *out)
{
	for (; index < plane->top; index++) {
		const struct hs_stream_session *s = plane->table[index];
		if (s && !s->is_over) {
			describe(s, out);
			return index + 1;
		}
	}
	return 0;
}

int hs_plane_look(struct hs_plane *plane, uint64_t handle, struct hs_session_about *out)
{
	const struct hs_stream_session *s = hs_session_find(plane, handle);
	if (!s || s->is_over)
		return 0;
	describe(s, out);
	return 1;
}

/* --- applications ----------------------------------------------------------------------------- */

struct hs_application *hs_application_new(struct hs_plane *plane, struct hs_side *side,
					  uint64_t key)
{
	struct hs_application *a = calloc(1, sizeof(*a));
	if (!a)
		return NULL;
	a->plane = plane;
	a->side = side;
	a->key = key;
	a->references = 1;
	plane->references++;
	return a;
}

static void unref_application(struct hs_application *a)
{
	if (--a->references)
		return;
	unref_plane(a->plane);
	free(a);
}

static void release(struct hs_application *a)
{
	a->is_gone = a->has_left = 1;
	hs_session_forget_touched(&a->first_touched, &a->last_touched);
	for (uint32_t i = 0; i < a->plane->top; i++) {
		struct hs_stream_session *s = a->plane->table[i];
		if (s && s->connection->application == a && s->connection->is_closed) {
			s->is_taken = 1;
			hs_session_closed(s);
		}
	}
	unref_application(a);
}

uint32_t hs_application_sessions(const struct hs_application *a)
{
	return a->sessions;
}

void hs_application_count(struct hs_application *a, int32_t more)
{
	a->sessions += (uint32_t)more;
}

void hs_application_set_max(struct hs_application *a, uint32_t most)
{
	a->most_sessions = most;
}

int hs_application_is_full(struct hs_application *a)
{
	return a->most_sessions && a->sessions >= a->most_sessions;
}

/* --- connections ------------------------------------------------------------------------------ */

static uint64_t python_openings(void *connection, int is_unidirectional)
{
	(void)connection;
	(void)is_unidirectional;
	return 0;
}

static void *python_open(void *connection, int is_unidirectional, void *session,
			 struct hs_fifo_producer *rx, struct hs_fifo_consumer *tx, int64_t *id)
{
	(void)connection;
	(void)is_unidirectional;
	(void)session;
	(void)rx;
	(void)tx;
	(void)id;
	return NULL;
}

void hs_session_command(struct hs_stream_session *s, uint32_t what, uint64_t code)
{
	struct hs_plane *plane = s->connection->application->plane;
	if (plane->command)
		plane->command(plane->owner, s->end.handle, what, code);
}

static int python_allow(void *connection, int is_unidirectional)
{
	struct hs_connection_session *c = connection;
	struct hs_plane *plane = c->application->plane;
	if (plane->command)
		plane->command(plane->owner, c->key, HS_SESSION_ALLOW, is_unidirectional != 0);
	return 1;
}

static void python_send_ready(void *stream)
{
	hs_session_command(stream, HS_SESSION_SEND_READY, 0);
}

static int python_consumed(void *stream)
{
	hs_session_command(stream, HS_SESSION_CONSUMED, 0);
	return 1;
}

static void python_reset(void *stream, uint64_t code)
{
	hs_session_command(stream, HS_SESSION_RESET, code);
}

static void python_stop(void *stream, uint64_t code)
{
	hs_session_command(stream, HS_SESSION_STOP, code);
}

static void python_let_go(void *stream)
{
	hs_session_command(stream, HS_SESSION_LET_GO, 0);
}

static const struct hs_transport_verbs PYTHON_VERBS = {
	.openings = python_openings,
	.open = python_open,
	.allow = python_allow,
	.send_ready = python_send_ready,
	.consumed = python_consumed,
	.reset = python_reset,
	.stop = python_stop,
	.let_go = python_let_go,
};

static const struct hs_end_verbs END_VERBS;

struct hs_connection_session *hs_connection_session_new(struct hs_application *a, uint64_t key,
							uint64_t verbs, void *transport,
							uint64_t rx_bytes, uint64_t tx_bytes)
{
	struct hs_connection_session *c = calloc(1, sizeof(*c));
	if (!c)
		return NULL;
	c->next = a->connections;
	if (c->next)
		c->next->previous = c;
	a->connections = c;
	c->end.verbs = &END_VERBS;
	c->end.side = a->side;
	c->end.session = c;
	c->application = a;
	a->references++;
	c->key = key;
	c->verbs = verbs ? (const void *)(uintptr_t)verbs : &PYTHON_VERBS;
	c->transport = verbs ? transport : c;
	c->rx_bytes = hs_pool_rounded(rx_bytes);
	c->tx_bytes = hs_pool_rounded(tx_bytes);
	c->references = 1;
	return c;
}

static void unref_connection(struct hs_connection_session *c)
{
	if (--c->references)
		return;
	if (c->previous)
		c->previous->next = c->next;
	else
		c->application->connections = c->next;
	if (c->next)
		c->next->previous = c->previous;
	unref_application(c->application);
	free(c);
}

int hs_connection_session_is_python(const struct hs_connection_session *c)
{
	return c->verbs == &PYTHON_VERBS;
}

void hs_connection_session_announce(struct hs_connection_session *c, uint64_t handle)
{
	struct hs_application *a = c->application;
	if (c->is_announced)
		return;
	c->is_announced = 1;
	c->end.handle = handle;
	/* Without memory for it, no stream is opened in it. */
	if (!c->is_closed)
		(void)hs_table_add(&a->plane->connections, handle, c);
	if (a->side) {
		c->is_held = 1;
		c->references++;
	}
	if (a->has_left)
		hs_session_forget_touched(&c->first_touched, &c->last_touched);
	if (!c->first_touched)
		return;
	if (a->last_touched)
		a->last_touched->next = c->first_touched;
	else
		a->first_touched = c->first_touched;
	a->last_touched = c->last_touched;
	c->first_touched = c->last_touched = NULL;
}

void hs_connection_session_share(struct hs_connection_session *c)
{
	c->is_shared = 1;
}

uint32_t hs_connection_session_streams(const struct hs_connection_session *c)
{
	return c->streams;
}

struct hs_end_connection *hs_connection_session_hold(struct hs_connection_session *c)
{
	return &c->end;
}

/* --- the life of a stream --------------------------------------------------------------------- */

/* Dynamic thresholds, as in boundary/shares.py. */
static int may_have(uint64_t total, uint64_t left, uint64_t held, uint64_t asked)
{
	if (left < asked)
		return 0;
	uint64_t remains = left - asked;
	if (remains >= total / 2)
		return 1;
	uint64_t reserve = total / 4 * held / (held + asked);
	return remains >= reserve && (!held || held + asked <= left / 4);
}

int hs_session_may_add(struct hs_connection_session *c, int is_peers)
{
	struct hs_application *a = c->application;
	struct hs_plane *plane = a->plane;
	int refusal = 0;
	if (hs_application_is_full(a))
		refusal = HS_SESSION_MAX_SESSIONS;
	else if (is_peers && a->most_sessions &&
		 !may_have(a->most_sessions, a->most_sessions - a->sessions, c->streams, 1))
		refusal = HS_SESSION_SHARE;
	plane->refused[refusal]++;
	return refusal;
}

/* Whether the application accepts no more streams in the connection: it has dropped it, or left. */
static int is_left(const struct hs_connection_session *c)
{
	if (!c->application->side)
		return c->application->has_left;
	return c->is_announced && !c->is_held;
}

static struct hs_stream_session *new_stream(struct hs_connection_session *c, int64_t id,
					    int is_peers)
{
	struct hs_plane *plane = c->application->plane;
	struct hs_stream_session *s = calloc(1, sizeof(*s));
	if (!s || take_index(plane, s)) {
		free(s);
		return NULL;
	}
	s->connection = c;
	s->end.session = s;
	hs_end_init(&s->end, &c->end, handle_of(plane, s->index), id);
	s->is_peers = is_peers != 0;
	s->is_taken = !is_peers || is_left(c);
	s->is_dropped = is_peers && is_left(c);
	s->is_counted = 1;
	c->application->sessions++;
	c->streams++;
	c->references++;
	plane->streams++;
	return s;
}

static void free_stream(struct hs_stream_session *s)
{
	struct hs_connection_session *c = s->connection;
	struct hs_plane *plane = c->application->plane;
	hs_session_give_fifos(s);
	if (s->is_outside)
		hs_session_command(s, HS_SESSION_FREED, 0);
	if (s->is_counted) {
		c->application->sessions--;
		c->streams--;
	}
	hs_end_unlink(&s->end);
	give_index(plane, s->index);
	if (!s->is_over)
		plane->streams--;
	free(s);
	unref_connection(c);
}

/* The transport has forgotten it. */
static void end_stream(struct hs_stream_session *s)
{
	if (!s->is_over)
		s->connection->application->plane->streams--;
	s->stream = NULL;
	s->is_over = 1;
}

/* Give back what a stream no longer needs; it may be freed. */
void hs_session_closed(struct hs_stream_session *s)
{
	struct hs_connection_session *c = s->connection;
	struct hs_application *a = c->application;
	if (!s->is_over)
		return;
	/* One in another process keeps its memory until it releases it. */
	if (s->is_counted && s->is_taken && (a->side || s->is_released || a->has_left)) {
		s->is_counted = 0;
		a->sessions--;
		c->streams--;
	}
	if (!s->is_settled && s->is_taken) {
		s->is_settled = 1;
		if (s->is_peers && !c->is_closed) {
			if (c->verbs->allow(c->transport, (s->end.id & 2) != 0))
				a->plane->is_credit_due = 1;
		}
	}
	if (!a->side) {
		if (!s->is_touched && !s->is_counted)
			free_stream(s);
		return;
	}
	/* Until it is announced, the application must still be notified of it. */
	int is_unknown = !s->is_in_use && !c->is_held && (c->is_announced || c->is_closed);
	if (s->is_dropped || is_unknown)
		free_stream(s);
	else if (hs_end_is_closed(&s->end))
		hs_session_give_fifos(s);
}

uint32_t hs_session_taken(struct hs_stream_session *s)
{
	struct hs_plane *plane = s->connection->application->plane;
	int was_due = plane->is_credit_due;
	s->is_taken = 1;
	s->is_in_use = 1;
	hs_session_closed(s);
	return plane->is_credit_due && !was_due ? HS_END_CREDIT : 0;
}

/* --- for transports --------------------------------------------------------------------------- */

static void *peer_opened(void *connection_session, void *stream, int64_t id,
			 struct hs_fifo_producer **rx, struct hs_fifo_consumer **tx)
{
	struct hs_connection_session *c = connection_session;
	struct hs_plane *plane = c->application->plane;
	if (c->is_closed || hs_session_may_add(c, 1))
		return NULL;
	struct hs_stream_session *s = new_stream(c, id, 1);
	if (!s)
		return NULL;
	if (hs_session_take_fifos(s, 1, tx != NULL)) {
		plane->refused[HS_SESSION_NO_MEMORY]++;
		free_stream(s);
		return NULL;
	}
	s->stream = stream;
	*rx = s->rx;
	if (tx)
		*tx = s->tx;
	return s;
}

void hs_session_report(struct hs_stream_session *s, uint32_t events, uint64_t reset_code,
		       uint64_t stop_code)
{
	struct hs_connection_session *c = s->connection;
	if (events & HS_STREAM_OVER)
		end_stream(s);
	if (c->application->side) {
		hs_end_report(&s->end, events, reset_code, stop_code, s->tx ? s->tx->head : 0);
		if (events & HS_STREAM_OPENED && !s->is_in_use && !s->is_dropped)
			hs_end_append_untaken(&s->end);
		hs_session_closed(s);
		return;
	}
	/* A peer may send them again. */
	if (s->end.rx_error)
		events &= ~(uint32_t)HS_STREAM_RESET;
	if (s->end.tx_error)
		events &= ~(uint32_t)HS_STREAM_STOPPED;
	if (events & HS_STREAM_RESET) {
		s->end.rx_error = HS_END_RESET;
		s->end.reset_code = reset_code;
	}
	if (events & HS_STREAM_STOPPED) {
		s->end.tx_error = HS_END_STOPPED;
		s->end.stop_code = stop_code;
	}
	s->events |= events;
	hs_session_touch(s);
	hs_session_closed(s);
}

static void report(void *session, uint32_t events, uint64_t reset_code, uint64_t stop_code)
{
	hs_session_report(session, events, reset_code, stop_code);
}

static int is_here(const void *session)
{
	const struct hs_stream_session *s = session;
	return s->connection->application->side != NULL;
}

uint64_t hs_plane_verbs(void)
{
	static const struct hs_session_verbs VERBS = {
		.open = peer_opened,
		.report = report,
		.is_here = is_here,
	};
	return (uint64_t)(uintptr_t)&VERBS;
}

struct hs_stream_session *hs_session_add(struct hs_connection_session *c, int64_t stream_id,
					 int is_peers, struct hs_fifo_producer *rx,
					 struct hs_fifo_consumer *tx,
					 struct hs_fifo_consumer *application_rx,
					 struct hs_fifo_producer *application_tx,
					 uint64_t rx_place, uint64_t tx_place)
{
	struct hs_stream_session *s = c->is_closed ? NULL : new_stream(c, stream_id, is_peers);
	if (!s)
		return NULL;
	s->stream = s;
	s->is_outside = 1;
	s->end.arms = c->is_shared & 1;
	s->rx = rx;
	s->tx = tx;
	s->end.rx = application_rx;
	s->end.tx = application_tx;
	s->end.has_rx = rx != NULL;
	s->end.has_tx = tx != NULL;
	s->rx_block.place = rx_place;
	s->tx_block.place = tx_place;
	return s;
}

static int why_not(struct hs_connection_session *c, int is_unidirectional)
{
	if (c->is_closed)
		return HS_SESSION_CLOSED;
	int refusal = hs_session_may_add(c, 0);
	if (refusal)
		return refusal;
	if (c->verbs->openings(c->transport, is_unidirectional))
		return 0;
	c->waits_for_credit = 1;
	return HS_SESSION_NO_CREDIT;
}

uint64_t hs_session_openings(struct hs_connection_session *c, int is_unidirectional)
{
	c->waits_for_credit = 1;
	return c->is_closed ? 0 : c->verbs->openings(c->transport, is_unidirectional);
}

void hs_connection_session_set_waiting(struct hs_connection_session *c)
{
	c->waits_for_credit = 1;
}

int hs_connection_session_take_waiting(struct hs_connection_session *c)
{
	int waits = c->waits_for_credit;
	c->waits_for_credit = 0;
	return waits;
}

int hs_session_begin(struct hs_connection_session *c, int is_unidirectional,
		     struct hs_stream_session **out)
{
	int refusal = why_not(c, is_unidirectional);
	if (refusal)
		return refusal;
	struct hs_stream_session *s = new_stream(c, -1, 0);
	if (!s || hs_session_take_fifos(s, !is_unidirectional, 1))
		refusal = HS_SESSION_NO_MEMORY;
	else if (!(s->stream = c->verbs->open(c->transport, is_unidirectional, s, s->rx, s->tx,
					      &s->end.id)))
		refusal = HS_SESSION_CLOSED;
	if (!refusal) {
		*out = s;
		return 0;
	}
	if (refusal == HS_SESSION_NO_MEMORY)
		c->application->plane->refused[refusal]++;
	if (s)
		free_stream(s);
	return refusal;
}

int hs_session_open(struct hs_connection_session *c, int is_unidirectional, struct hs_opened *out)
{
	struct hs_stream_session *s;
	int refusal = hs_session_begin(c, is_unidirectional, &s);
	if (refusal)
		return refusal;
	s->is_in_use = 1;
	*out = (struct hs_opened){ &s->end, s->end.handle, s->end.id };
	return 0;
}

void hs_connection_session_close(struct hs_connection_session *c)
{
	c->references++; /* while this runs */
	c->is_closed = 1;
	if (!c->is_announced)
		hs_session_forget_touched(&c->first_touched, &c->last_touched);
	else if (hs_table_get(&c->application->plane->connections, c->end.handle) == c)
		hs_table_remove(&c->application->plane->connections, c->end.handle);
	hs_end_connection_gone(&c->end);
	for (struct hs_end *end = c->end.ends, *next; end; end = next) {
		struct hs_stream_session *s = end->session;
		next = end->next;
		if (s->stream)
			c->verbs->let_go(s->stream);
		end_stream(s);
		/* The program can still accept a stream that it was notified of. */
		if (c->application->side || !c->is_announced || c->application->has_left)
			s->is_taken = 1;
		if (!c->is_announced)
			s->is_released = 1; /* nobody was told of it */
		hs_session_closed(s);
	}
	c->transport = NULL;
	hs_connection_session_drop_spares(c);
	unref_connection(c); /* the owner's */
	unref_connection(c);
}

/* --- what an application does ----------------------------------------------------------------- */

struct hs_end *hs_session_end(struct hs_stream_session *s)
{
	s->is_in_use = 1;
	return &s->end;
}

int64_t hs_session_stream_id(const struct hs_stream_session *s)
{
	return s->end.id;
}

uint64_t hs_session_handle(const struct hs_stream_session *s)
{
	return s->end.handle;
}

static uint32_t end_taken(struct hs_end *end)
{
	return hs_session_taken(end->session);
}

static uint32_t end_sent(struct hs_end *end, int is_end)
{
	struct hs_stream_session *s = end->session;
	(void)is_end;
	if (s->stream)
		s->connection->verbs->send_ready(s->stream);
	return HS_END_SEND;
}

static uint32_t end_consumed(struct hs_end *end, int is_urgent)
{
	struct hs_stream_session *s = end->session;
	struct hs_plane *plane = s->connection->application->plane;
	int is_due = s->stream && s->connection->verbs->consumed(s->stream);
	int is_first = is_due && !plane->is_credit_due; /* since the last turn */
	plane->is_credit_due |= is_due != 0;
	if (is_urgent)
		end->unannounced = 0;
	return is_urgent ? HS_END_CREDIT_NOW : is_first ? HS_END_CREDIT : 0;
}

static uint32_t end_reset(struct hs_end *end, uint64_t code)
{
	struct hs_stream_session *s = end->session;
	if (s->stream)
		s->connection->verbs->reset(s->stream, code);
	return HS_END_SEND;
}

static uint32_t end_stop(struct hs_end *end, uint64_t code)
{
	struct hs_stream_session *s = end->session;
	if (s->stream)
		s->connection->verbs->stop(s->stream, code);
	return HS_END_SEND;
}

static void end_closed(struct hs_end *end)
{
	hs_session_closed(end->session);
}

static void end_connection_gone(struct hs_end_connection *c)
{
	hs_end_set_gone(c);
	if (c->side)
		hs_end_wake_all(c);
}

/* Begin to add to what the next turn forgets. Until it is there, its plane exists. Returns whether
 * no turn follows: then end_drop forgets it. */
static int begin_drop(struct hs_plane *plane)
{
	pthread_mutex_lock(&drop_lock);
	int is_released = plane->is_released;
	if (is_released) {
		pthread_mutex_unlock(&drop_lock);
		pthread_mutex_lock(&collect_lock);
		pthread_mutex_lock(&drop_lock);
	}
	return is_released;
}

static void end_drop(struct hs_plane *plane, int is_released)
{
	pthread_mutex_unlock(&drop_lock);
	if (is_released) {
		collect(plane);
		pthread_mutex_unlock(&collect_lock);
	}
}

static int end_dropped(struct hs_end *end)
{
	struct hs_stream_session *s = end->session;
	struct hs_plane *plane = s->connection->application->plane;
	int is_released = begin_drop(plane);
	s->next_dropped = plane->dropped_streams;
	plane->dropped_streams = s;
	end_drop(plane, is_released);
	return 0;
}

static void end_connection_dropped(struct hs_end_connection *of)
{
	struct hs_connection_session *c = of->session;
	struct hs_plane *plane = c->application->plane;
	int is_released = begin_drop(plane);
	c->next_dropped = plane->dropped_connections;
	plane->dropped_connections = c;
	end_drop(plane, is_released);
}

static const struct hs_end_verbs END_VERBS = {
	.taken = end_taken,
	.sent = end_sent,
	.consumed = end_consumed,
	.reset = end_reset,
	.stop = end_stop,
	.closed = end_closed,
	.dropped = end_dropped,
	.connection_dropped = end_connection_dropped,
	.connection_gone = end_connection_gone,
};

void hs_application_release(struct hs_application *a)
{
	struct hs_plane *plane = a->plane;
	int is_released = begin_drop(plane);
	a->next_released = plane->released_applications;
	plane->released_applications = a;
	end_drop(plane, is_released);
}

static void let_go(struct hs_connection_session *c)
{
	c->is_held = 0;
	for (struct hs_end *end = c->end.ends, *next; end; end = next) {
		struct hs_stream_session *s = end->session;
		next = end->next;
		if (s->is_in_use || !s->is_peers)
			continue;
		s->is_dropped = 1;
		s->is_taken = 1;
		hs_session_closed(s);
	}
	unref_connection(c);
}

static void collect(struct hs_plane *plane)
{
	pthread_mutex_lock(&drop_lock);
	struct hs_stream_session *s = plane->dropped_streams;
	struct hs_connection_session *c = plane->dropped_connections;
	struct hs_application *a = plane->released_applications;
	plane->dropped_streams = NULL;
	plane->dropped_connections = NULL;
	plane->released_applications = NULL;
	pthread_mutex_unlock(&drop_lock);
	plane->references++; /* while this runs */
	while (s) {
		struct hs_stream_session *next = s->next_dropped;
		s->is_dropped = 1;
		hs_session_closed(s);
		s = next;
	}
	while (c) {
		struct hs_connection_session *next = c->next_dropped;
		let_go(c);
		c = next;
	}
	while (a) {
		struct hs_application *next = a->next_released;
		release(a);
		a = next;
	}
	plane->is_credit_due = 0;
	unref_plane(plane);
}

void hs_plane_collect(struct hs_plane *plane)
{
	pthread_mutex_lock(&collect_lock);
	collect(plane);
	pthread_mutex_unlock(&collect_lock);
}

void hs_application_leave(struct hs_application *a)
{
	struct hs_plane *plane = a->plane;
	a->has_left = 1;
	hs_session_forget_touched(&a->first_touched, &a->last_touched);
	for (uint32_t i = 0; i < plane->top; i++) {
		struct hs_stream_session *s = plane->table[i];
		if (s && s->connection->application == a) {
			s->is_taken = 1;
			hs_session_closed(s);
		}
	}
}
