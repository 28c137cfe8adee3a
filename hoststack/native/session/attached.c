/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "memory/event_ring.h"
#include "session/internal.h"
#include "session/records.h"
#include "session/segments.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
	BATCH = 64, /* news that are read at once */
	MOST_BATCHES = 64, /* in one call: the worker may write as fast as this side reads */
};

/* Handles with an enum hs_wait are wake-ups. */
#define MOST_HANDLE ((UINT64_C(1) << 62) - 1)

/* Bits of hs_end.due, in the order in which the worker is told. */
enum due {
	DUE_TAKEN = 1 << 0,
	DUE_SENT = 1 << 1,
	DUE_CONSUMED = 1 << 2,
	DUE_RESET = 1 << 3,
	DUE_STOP = 1 << 4,
	DUE_RELEASED = 1 << 5,
};

static const uint32_t COMMANDS[] = {
	HS_COMMAND_TAKEN, HS_COMMAND_SENT, HS_COMMAND_CONSUMED,
	HS_COMMAND_RESET, HS_COMMAND_STOP, HS_COMMAND_RELEASED,
};

struct hs_attached {
	struct hs_side *side;
	struct hs_event_ring_side down, up;
	struct hs_table ends, connections; /* by handle */
	struct hs_end_connection *first_connection; /* all that exist */
	struct hs_end_connection orphans; /* streams of connections that are gone */
	struct hs_segment *segments;
	struct hs_end *first_due, *last_due;
	struct hs_event batch[BATCH];
	int at, count; /* of the batch */
	int wake_fd; /* -1: the worker is gone */
	int error; /* of the ring */
	uint32_t references; /* the owner's, and one for each connection */
	/* Under drop_lock, as any thread may drop. */
	uint8_t is_freed; /* by the owner */
	struct hs_end *dropped_ends;
	struct hs_end_connection *dropped_connections;
};

/* A stream of a worker in another process. */
struct remote {
	struct hs_end end;
	struct hs_fifo_consumer rx;
	struct hs_fifo_producer tx;
	struct hs_segment *rx_segment, *tx_segment;
};

/* The second is for what the owner has freed, when any thread may forget what it drops; it is taken
 * first. */
static pthread_mutex_t drop_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_mutex_t freed_lock = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP;

/* --- the worker ------------------------------------------------------------------------------- */

static const struct hs_end_verbs END_VERBS;

struct hs_attached *hs_attached_new(struct hs_side *side, void *down, void *up, size_t block_bytes,
				    int wake_fd)
{
	struct hs_attached *attached = calloc(1, sizeof(*attached));
	if (!attached)
		return NULL;
	if (hs_event_ring_open(&attached->down, down, block_bytes) ||
	    hs_event_ring_open(&attached->up, up, block_bytes)) {
		free(attached);
		return NULL;
	}
	attached->side = side;
	attached->wake_fd = wake_fd;
	attached->references = 1;
	attached->orphans.verbs = &END_VERBS;
	attached->orphans.side = side;
	attached->orphans.attached = attached;
	attached->orphans.is_gone = 1;
	return attached;
}

void hs_attached_join(struct hs_attached *attached, struct hs_side *side)
{
	attached->side = attached->orphans.side = side;
}

static void unref(struct hs_attached *attached)
{
	if (--attached->references)
		return;
	hs_segments_free(&attached->segments);
	hs_table_free(&attached->ends);
	hs_table_free(&attached->connections);
	free(attached);
}

static void wake_worker(struct hs_attached *attached)
{
	/* A full socket has a wake-up already; one that is closed is found out by its reader. */
	if (attached->wake_fd >= 0)
		(void)!send(attached->wake_fd, "\1", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
}

static int push(struct hs_attached *attached, const struct hs_event *event)
{
	int pushed = hs_event_ring_push(&attached->down, event);
	if (!pushed && hs_event_ring_arm_room(&attached->down))
		pushed = hs_event_ring_push(&attached->down, event);
	if (pushed < 0)
		attached->error = pushed;
	if (pushed > 0 && hs_event_ring_take_armed(&attached->down))
		wake_worker(attached);
	return pushed;
}

int hs_attached_command(struct hs_attached *attached, uint64_t handle, uint32_t command,
			uint32_t arg, uint64_t word)
{
	struct hs_event event = { .handle = handle, .kind = command, .arg = arg, .words = { word } };
	return attached->wake_fd < 0 ? 1 : push(attached, &event);
}

int hs_attached_arm(struct hs_attached *attached)
{
	hs_event_ring_arm(&attached->up);
	int64_t length = hs_event_ring_length(&attached->up);
	if (attached->at == attached->count || length < 0)
		return length < 0 ? (int)length : length > 0;
	/* A message has to arrive before the others. */
	const struct hs_event *next = &attached->batch[attached->at];
	return next->kind != HS_NEWS_MESSAGES || !next->arg;
}

/* --- what streams have to say ------------------------------------------------------------------ */

static void free_if_unused(struct hs_end_connection *c)
{
	struct hs_attached *attached = c->attached;
	if (!c->is_dropped || c->ends)
		return;
	if (c->previous)
		c->previous->next = c->next;
	else
		attached->first_connection = c->next;
	if (c->next)
		c->next->previous = c->previous;
	free(c);
	unref(attached);
}

static void free_end(struct hs_end *end)
{
	struct hs_end_connection *c = end->connection;
	hs_end_unlink(end);
	free(end);
	free_if_unused(c); /* which the orphans' never is: it is not dropped */
}

/* Say what is due, as far as the ring has room. Frees ends that are forgotten. */
static void say(struct hs_attached *attached)
{
	while (attached->first_due) {
		struct hs_end *end = attached->first_due;
		while (end->due && attached->wake_fd >= 0) {
			int bit = __builtin_ctz(end->due);
			struct hs_event event = { .handle = end->handle, .kind = COMMANDS[bit] };
			event.words[0] = 1 << bit == DUE_RESET ? end->due_reset_code :
							       end->due_stop_code;
			if (push(attached, &event) <= 0)
				return;
			end->due &= (uint8_t)~(1 << bit);
		}
		attached->first_due = end->next_due;
		if (!attached->first_due)
			attached->last_due = NULL;
		end->is_due = 0;
		end->due = 0;
		if (end->is_forgotten)
			free_end(end);
	}
}

/* What its owner has freed any thread may forget. */
static int lock_if_gone(const struct hs_attached *attached)
{
	int is_gone = attached->wake_fd < 0;
	if (is_gone)
		pthread_mutex_lock(&freed_lock);
	return is_gone;
}

static void unlock_if(int is_locked)
{
	if (is_locked)
		pthread_mutex_unlock(&freed_lock);
}

/* `end` may be freed. */
static void post(struct hs_end *end, uint8_t due)
{
	struct hs_attached *attached = end->connection->attached;
	if (attached->wake_fd < 0) {
		if (end->is_forgotten)
			free_end(end);
		return;
	}
	end->due |= due;
	if (!end->is_due) {
		end->is_due = 1;
		end->next_due = NULL;
		if (attached->last_due)
			attached->last_due->next_due = end;
		else
			attached->first_due = end;
		attached->last_due = end;
	}
	say(attached);
}

static uint32_t end_taken(struct hs_end *end)
{
	post(end, DUE_TAKEN);
	return 0;
}

static uint32_t end_sent(struct hs_end *end, int is_end)
{
	/* The worker is told of the end even if it does not wait for bytes (cut-through). */
	if (hs_fifo_take_read_armed(end->tx) || is_end)
		post(end, DUE_SENT);
	return 0;
}

static uint32_t end_consumed(struct hs_end *end, int is_urgent)
{
	/* A command in time, and another one if much more was read since. */
	if (!hs_fifo_take_write_armed(end->rx) && !(is_urgent && end->has_told_lazily))
		return 0;
	if (is_urgent)
		end->unannounced = 0;
	end->has_told_lazily = !is_urgent;
	post(end, DUE_CONSUMED);
	return 0;
}

static uint32_t end_reset(struct hs_end *end, uint64_t code)
{
	/* Not of a stream that is broken: its handle may be another one's by now. */
	if (!end->tx_error) {
		end->due_reset_code = code;
		post(end, DUE_RESET);
	}
	return 0;
}

static uint32_t end_stop(struct hs_end *end, uint64_t code)
{
	end->due_stop_code = code;
	post(end, DUE_STOP);
	return 0;
}

static void release(struct hs_end *end)
{
	struct remote *r = (struct remote *)end;
	end->is_released = 1;
	end->rx = NULL;
	end->tx = NULL;
	hs_segments_unuse(&end->connection->attached->segments, &r->rx_segment);
	hs_segments_unuse(&end->connection->attached->segments, &r->tx_segment);
	post(end, DUE_RELEASED);
}

static void end_closed(struct hs_end *end)
{
	if (end->is_released || !hs_end_is_closed(end))
		return;
	int is_locked = lock_if_gone(end->connection->attached);
	release(end);
	unlock_if(is_locked);
}

/* --- what the program drops -------------------------------------------------------------------- */

/* The program has dropped it, and learns no more of it. */
static void forget(struct hs_end *end)
{
	struct hs_table *ends = &end->connection->attached->ends;
	if (hs_table_get(ends, end->handle) == end)
		hs_table_remove(ends, end->handle);
	end->is_forgotten = 1;
	if (!end->is_released)
		release(end); /* which frees it when that is said */
	else if (!end->is_due)
		free_end(end);
}

/* What it sent may be acknowledged later: its connection's close waits for that. What it has not
 * sent may be given back to its allowance. */
static int has_news(const struct hs_end *end)
{
	return end->is_unacknowledged || (end->allowance && !end->is_sent);
}

static void drop_end(struct hs_end *end)
{
	const struct hs_end_connection *c = end->connection;
	end->is_dropped = 1;
	if (!has_news(end) || c->is_gone || c->is_dropped)
		forget(end);
	else if (!end->is_released)
		release(end);
}

static void unlist_connection(struct hs_end_connection *c)
{
	if (hs_table_get(&c->attached->connections, c->handle) == c)
		hs_table_remove(&c->attached->connections, c->handle);
}

/* They are released, so that nothing is said: no other end is freed. */
static void forget_dropped(struct hs_end_connection *c)
{
	for (struct hs_end *end = c->ends, *next; end; end = next) {
		next = end->next;
		if (end->is_dropped && !end->is_forgotten)
			forget(end);
	}
}

static void drop_connection(struct hs_end_connection *c)
{
	struct hs_end *end;
	unlist_connection(c);
	while ((end = c->first_untaken)) {
		hs_end_remove_untaken(end);
		end_taken(end);
		drop_end(end);
	}
	forget_dropped(c); /* no close waits for them */
	c->is_dropped = 1;
	free_if_unused(c);
}

static void collect(struct hs_attached *attached)
{
	pthread_mutex_lock(&drop_lock);
	struct hs_end *end = attached->dropped_ends;
	struct hs_end_connection *c = attached->dropped_connections;
	attached->dropped_ends = NULL;
	attached->dropped_connections = NULL;
	pthread_mutex_unlock(&drop_lock);
	if (!end && !c)
		return;
	attached->references++; /* while this runs */
	for (struct hs_end *next; end; end = next) {
		next = end->next_dropped;
		drop_end(end);
	}
	for (struct hs_end_connection *next; c; c = next) {
		next = c->next_dropped;
		drop_connection(c);
	}
	unref(attached);
}

/* Begin to add to what is dropped: until it is there, `attached` exists. Returns whether its owner
 * has freed it: then end_drop forgets what was added. */
static int begin_drop(struct hs_attached *attached)
{
	pthread_mutex_lock(&drop_lock);
	int is_freed = attached->is_freed;
	if (is_freed) {
		pthread_mutex_unlock(&drop_lock);
		pthread_mutex_lock(&freed_lock);
		pthread_mutex_lock(&drop_lock);
	}
	return is_freed;
}

static void end_drop(struct hs_attached *attached, int is_freed)
{
	pthread_mutex_unlock(&drop_lock);
	if (is_freed) {
		collect(attached);
		pthread_mutex_unlock(&freed_lock);
	}
}

static int end_dropped(struct hs_end *end)
{
	struct hs_attached *attached = end->connection->attached;
	int is_held = !end->is_released;
	int is_freed = begin_drop(attached);
	end->next_dropped = attached->dropped_ends;
	attached->dropped_ends = end;
	end_drop(attached, is_freed);
	return is_held;
}

static void end_connection_dropped(struct hs_end_connection *c)
{
	struct hs_attached *attached = c->attached;
	int is_freed = begin_drop(attached);
	c->next_dropped = attached->dropped_connections;
	attached->dropped_connections = c;
	end_drop(attached, is_freed);
}

static void end_connection_gone(struct hs_end_connection *c)
{
	int is_locked = lock_if_gone(c->attached);
	hs_end_set_gone(c);
	hs_end_wake_all(c);
	unlist_connection(c);
	for (struct hs_end *end = c->first_untaken; end; end = end->next_untaken)
		end_taken(end);
	forget_dropped(c);
	unlock_if(is_locked);
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

void hs_attached_gone(struct hs_attached *attached)
{
	attached->wake_fd = -1;
	say(attached); /* which frees what waited for that */
	collect(attached);
}

void hs_attached_free(struct hs_attached *attached)
{
	hs_attached_gone(attached);
	pthread_mutex_lock(&freed_lock);
	pthread_mutex_lock(&drop_lock);
	attached->is_freed = 1;
	pthread_mutex_unlock(&drop_lock);
	collect(attached);
	for (struct hs_end_connection *c = attached->first_connection, *next; c; c = next) {
		next = c->next;
		hs_end_set_gone(c);
		forget_dropped(c);
	}
	unref(attached);
	pthread_mutex_unlock(&freed_lock);
}

int64_t hs_attached_settle(struct hs_attached *attached)
{
	collect(attached);
	say(attached);
	int64_t left = 0;
	for (struct hs_end *end = attached->first_due; end; end = end->next_due)
		left++;
	return attached->error ? attached->error : left;
}

/* --- segments ---------------------------------------------------------------------------------- */

int hs_attached_add_segment(struct hs_attached *attached, uint32_t number, int fd)
{
	return hs_segments_add(&attached->segments, number, fd);
}

void hs_attached_remove_segment(struct hs_attached *attached, uint32_t number)
{
	hs_segments_remove(&attached->segments, number);
}

static int open_fifos(struct remote *r, uint64_t rx_place, uint64_t tx_place)
{
	struct hs_segment *segments = r->end.connection->attached->segments;
	struct hs_segment *rx = NULL, *tx = NULL;
	uint8_t *block;
	size_t bytes;
	int error = rx_place ? hs_segments_find(segments, rx_place, &rx, &block, &bytes) : 0;
	if (error)
		return error;
	if (rx)
		hs_fifo_consumer_open(&r->rx, block, bytes);
	error = tx_place ? hs_segments_find(segments, tx_place, &tx, &block, &bytes) : 0;
	if (error)
		return error;
	if (tx)
		hs_fifo_producer_open(&r->tx, block, bytes);
	if (rx)
		rx->blocks++;
	if (tx)
		tx->blocks++;
	r->rx_segment = rx;
	r->tx_segment = tx;
	r->end.rx = rx ? &r->rx : NULL;
	r->end.tx = tx ? &r->tx : NULL;
	r->end.has_rx = rx != NULL;
	r->end.has_tx = tx != NULL;
	return 0;
}

/* --- news -------------------------------------------------------------------------------------- */

struct hs_end_connection *hs_attached_connection(struct hs_attached *attached, uint64_t handle)
{
	struct hs_end_connection *c = calloc(1, sizeof(*c));
	if (!c)
		return NULL;
	if (hs_table_get(&attached->connections, handle) ||
	    hs_table_add(&attached->connections, handle, c)) {
		free(c);
		return NULL;
	}
	c->verbs = &END_VERBS;
	c->side = attached->side;
	c->attached = attached;
	c->handle = handle;
	c->next = attached->first_connection;
	if (c->next)
		c->next->previous = c;
	attached->first_connection = c;
	attached->references++;
	return c;
}

/* A stream that nobody here will use. */
static void refuse(struct hs_end *end)
{
	end->due_reset_code = end->due_stop_code = 0;
	post(end, DUE_TAKEN | DUE_RESET | DUE_STOP);
	forget(end);
}

static int on_opened(struct hs_attached *attached, const struct hs_event *e,
		     struct hs_attached_news *out)
{
	struct hs_end_connection *c = hs_table_get(&attached->connections, e->words[0]);
	const struct hs_end *old = hs_table_get(&attached->ends, e->handle);
	int is_peers = e->arg & 1;
	if (!(e->handle & HS_SESSION_STREAM) || e->handle > MOST_HANDLE ||
	    (old && !old->is_released))
		return HS_ATTACHED_INVALID;
	/* The program may still hold a stream that the worker has forgotten. */
	if (old)
		hs_table_remove(&attached->ends, e->handle);
	struct remote *r = calloc(1, sizeof(*r));
	if (!r || hs_table_add(&attached->ends, e->handle, r)) {
		free(r);
		return HS_ATTACHED_NO_MEMORY;
	}
	hs_end_init(&r->end, c ? c : &attached->orphans, e->handle, (int64_t)e->words[1]);
	r->end.arms = 1;
	int error = c ? open_fifos(r, e->words[2], e->words[3]) : 0;
	if (error < 0) {
		hs_table_remove(&attached->ends, e->handle);
		free_end(&r->end);
		return error;
	}
	*out = (struct hs_attached_news){ .end = &r->end,
					  .handle = e->handle,
					  .token = e->words[4],
					  .stream_id = r->end.id };
	if (error || !c) {
		refuse(&r->end);
		out->end = NULL;
		out->code = HS_ATTACHED_NO_ROOM;
		return is_peers ? 0 : HS_TASK_REFUSED;
	}
	if (!is_peers)
		return HS_TASK_OPENED;
	hs_end_append_untaken(&r->end);
	return 0;
}

static int on_news(struct hs_attached *attached, const struct hs_event *e,
		   struct hs_attached_news *out)
{
	struct hs_end *end;
	switch (e->kind) {
	case HS_NEWS_OPENED:
		return on_opened(attached, e, out);
	case HS_NEWS_REFUSED:
		*out = (struct hs_attached_news){ .token = e->words[0], .code = e->arg };
		return HS_TASK_REFUSED;
	case HS_NEWS_READABLE:
	case HS_NEWS_WRITABLE:
		*out = (struct hs_attached_news){ .handle = e->handle };
		return e->kind == HS_NEWS_READABLE ? HS_TASK_READABLE : HS_TASK_WRITABLE;
	case HS_NEWS_STREAM:
		end = hs_table_get(&attached->ends, e->handle);
		if (!end)
			return 0; /* the program has dropped it */
		hs_end_report(end, e->arg, e->words[0], e->words[1], e->words[2]);
		if (end->is_dropped && !has_news(end))
			forget(end);
		return 0;
	default:
		return HS_ATTACHED_INVALID;
	}
}

static int refill(struct hs_attached *attached)
{
	int64_t waiting = hs_event_ring_length(&attached->up);
	if (waiting < 0)
		return (int)waiting;
	attached->at = 0;
	attached->count = hs_event_ring_pop(&attached->up, attached->batch, BATCH);
	if (attached->count < 0) {
		int error = attached->count;
		attached->count = 0;
		return error;
	}
	if ((waiting - attached->count) * 2 <= (int64_t)attached->up.size &&
	    hs_event_ring_take_room_armed(&attached->up))
		wake_worker(attached);
	return attached->count;
}

int hs_attached_take(struct hs_attached *attached, int has_message, struct hs_attached_news *out)
{
	for (int batches = 0;;) {
		if (attached->at == attached->count) {
			collect(attached);
			int n = batches++ < MOST_BATCHES ? refill(attached) : 0;
			if (n <= 0)
				return n;
		}
		struct hs_event *e = &attached->batch[attached->at];
		if (e->kind == HS_NEWS_MESSAGES && e->arg) {
			if (!has_message)
				return 0;
			e->arg--;
			return HS_TASK_MESSAGE;
		}
		attached->at++;
		int task = e->kind == HS_NEWS_MESSAGES ? 0 : on_news(attached, e, out);
		if (task)
			return task;
	}
}
