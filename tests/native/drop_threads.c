/* SPDX-License-Identifier: Apache-2.0
 *
 * What applications drop is dropped by finalizers: in any thread, in any order, before and after
 * the plane is released, and while a plane calls its owner. Built with ThreadSanitizer, and with
 * AddressSanitizer.
 */
#define _GNU_SOURCE
#include "session/internal.h"
#include "session/records.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHECK(condition)                                                              \
	do {                                                                          \
		if (!(condition)) {                                                   \
			fprintf(stderr, "%d: not true: %s\n", __LINE__, #condition); \
			abort();                                                      \
		}                                                                     \
	} while (0)

enum {
	ROUNDS = 200,
	THREADS = 4,
	ENDS = 20,
	FIFO_BYTES = 1024,
	RING_EVENTS = 256,
	RING_BYTES = HS_EVENT_RING_HEADER_BYTES + RING_EVENTS * HS_EVENT_BYTES,
	CONNECTION = 100,
};

/* --- a transport -------------------------------------------------------------------------------- */

static uint64_t openings(void *connection, int is_unidirectional)
{
	(void)connection, (void)is_unidirectional;
	return 1;
}

static void *open_stream(void *connection, int is_unidirectional, void *session,
			 struct hs_fifo_producer *rx, struct hs_fifo_consumer *tx, int64_t *id)
{
	(void)is_unidirectional, (void)session, (void)rx, (void)tx;
	*id = 0;
	return connection;
}

static int on_credit(void *connection, int is_unidirectional)
{
	(void)connection, (void)is_unidirectional;
	return 1;
}

static int on_consumed(void *stream)
{
	(void)stream;
	return 1;
}

static void on_stream(void *stream)
{
	(void)stream;
}

static void on_code(void *stream, uint64_t code)
{
	(void)stream, (void)code;
}

static const struct hs_transport_verbs VERBS = {
	.openings = openings,
	.open = open_stream,
	.allow = on_credit,
	.send_ready = on_stream,
	.consumed = on_consumed,
	.reset = on_code,
	.stop = on_code,
	.let_go = on_stream,
};

/* --- one plane ---------------------------------------------------------------------------------- */

struct stack {
	struct hs_plane *plane;
	struct hs_side *side;
	struct hs_application *application;
	struct hs_connection_session *connection;
	struct hs_end_connection *held;
};

static void begin(struct stack *s, hs_session_command_to command, void *owner)
{
	s->plane = hs_plane_new(1, 0, command, NULL, owner);
	s->side = hs_side_new();
	CHECK(s->plane && s->side);
	s->application = hs_application_new(s->plane, s->side, 0);
	CHECK(s->application);
	s->connection = hs_connection_session_new(s->application, 1, (uint64_t)(uintptr_t)&VERBS, s,
						  FIFO_BYTES, FIFO_BYTES);
	CHECK(s->connection);
	hs_connection_session_announce(s->connection, 2);
	s->held = hs_connection_session_hold(s->connection);
}

static struct hs_end *new_end(struct stack *s)
{
	struct hs_opened opened;
	CHECK(!hs_session_open(s->connection, 0, &opened));
	return opened.end;
}

/* --- threads ------------------------------------------------------------------------------------ */

struct job {
	pthread_t thread;
	struct hs_end *ends[ENDS];
};

static void *drop_all(void *argument)
{
	struct job *job = argument;
	for (int i = 0; i < ENDS; i++)
		hs_end_drop(job->ends[i]);
	return NULL;
}

static void start(struct job *job)
{
	CHECK(!pthread_create(&job->thread, NULL, drop_all, job));
}

static void join_all(struct job *jobs)
{
	for (int k = 0; k < THREADS; k++)
		CHECK(!pthread_join(jobs[k].thread, NULL));
}

static void of_this_process(void)
{
	struct stack s;
	struct job jobs[THREADS];
	begin(&s, NULL, NULL);
	for (int i = 0; i < THREADS * ENDS; i++)
		jobs[i / ENDS].ends[i % ENDS] = new_end(&s);
	start(&jobs[0]);
	start(&jobs[1]);
	hs_plane_collect(s.plane);
	hs_connection_session_close(s.connection);
	hs_plane_release(s.plane);
	start(&jobs[2]);
	start(&jobs[3]);
	hs_end_connection_drop(s.held);
	hs_application_release(s.application);
	join_all(jobs);
	hs_side_free(s.side);
}

static void *release_application(void *application)
{
	hs_application_release(application);
	return NULL;
}

/* An application may be a finalizer's as well, while the plane serves others. */
static void of_applications(void)
{
	struct stack s;
	struct hs_application *others[THREADS];
	pthread_t threads[THREADS];
	struct hs_end *ends[ENDS];
	begin(&s, NULL, NULL);
	for (int k = 0; k < THREADS; k++) {
		others[k] = hs_application_new(s.plane, NULL, 0);
		CHECK(others[k]);
	}
	for (int k = 0; k < THREADS; k++)
		CHECK(!pthread_create(&threads[k], NULL, release_application, others[k]));
	for (int i = 0; i < ENDS; i++) {
		ends[i] = new_end(&s);
		hs_plane_collect(s.plane);
	}
	for (int i = 0; i < ENDS; i++)
		hs_end_drop(ends[i]);
	hs_connection_session_close(s.connection);
	hs_plane_release(s.plane);
	hs_end_connection_drop(s.held);
	hs_application_release(s.application);
	for (int k = 0; k < THREADS; k++)
		CHECK(!pthread_join(threads[k], NULL));
	hs_side_free(s.side);
}

/* A worker in another process: rings, and a segment with a FIFO. */
struct elsewhere {
	struct hs_attached *attached;
	struct hs_side *side;
	struct hs_event_ring_side up;
	uint8_t *up_block, *down_block;
	struct hs_end_connection *connection;
	int fd;
};

static void begin_elsewhere(struct elsewhere *w)
{
	w->up_block = calloc(1, RING_BYTES);
	w->down_block = calloc(1, RING_BYTES);
	w->side = hs_side_new();
	w->fd = memfd_create("test", MFD_ALLOW_SEALING);
	CHECK(w->up_block && w->down_block && w->side && w->fd >= 0);
	CHECK(!ftruncate(w->fd, 2 * HS_PLACE_PAGE_BYTES));
	CHECK(!fcntl(w->fd, F_ADD_SEALS, F_SEAL_SHRINK));
	CHECK(!hs_event_ring_open(&w->up, w->up_block, RING_BYTES));
	/* Nobody is woken: the descriptor is no socket. */
	w->attached = hs_attached_new(w->side, w->down_block, w->up_block, RING_BYTES, w->fd);
	CHECK(w->attached && !hs_attached_add_segment(w->attached, 1, w->fd));
	w->connection = hs_attached_connection(w->attached, CONNECTION);
	CHECK(w->connection);
}

static void end_elsewhere(struct elsewhere *w)
{
	hs_side_free(w->side);
	free(w->up_block);
	free(w->down_block);
	close(w->fd);
}

static struct hs_end *opened_elsewhere(struct elsewhere *w, uint64_t number)
{
	const uint64_t place = UINT64_C(1) << (HS_PLACE_LOG_BITS + HS_PLACE_PAGE_BITS) | 10;
	struct hs_attached_news news;
	struct hs_event event = {
		.handle = number * 2 + 1,
		.kind = HS_NEWS_OPENED,
		.words = { CONNECTION, number * 4, place, place | 1 << HS_PLACE_LOG_BITS, number },
	};
	CHECK(hs_event_ring_push(&w->up, &event) == 1);
	CHECK(hs_attached_take(w->attached, 0, &news) == HS_TASK_OPENED && news.token == number);
	return news.end;
}

/* Ends are dropped while their worker is served, after that is gone, and after its owner has freed
 * it: before or after the connection. */
static void of_another_process(int round)
{
	struct elsewhere w;
	struct job jobs[THREADS];
	struct hs_attached_news news;
	begin_elsewhere(&w);
	for (int i = 0; i < THREADS * ENDS; i++) {
		struct hs_end *end = jobs[i / ENDS].ends[i % ENDS] =
			opened_elsewhere(&w, (uint64_t)i);
		hs_end_write(end, (const uint8_t *)"x", 1);
		if (i & 1)
			hs_end_finish(end); /* its acknowledgement is waited for */
	}
	struct hs_end *kept = opened_elsewhere(&w, 1000), *last = opened_elsewhere(&w, 1001);
	start(&jobs[0]);
	for (int i = 0; i < 10; i++) {
		CHECK(!hs_attached_take(w.attached, 0, &news));
		CHECK(hs_attached_settle(w.attached) >= 0);
	}
	start(&jobs[1]);
	if (round & 1)
		hs_end_connection_gone(w.connection);
	if (round & 2)
		hs_attached_gone(w.attached);
	hs_attached_free(w.attached);
	start(&jobs[2]);
	if (round & 4)
		hs_end_connection_drop(w.connection);
	start(&jobs[3]);
	/* The program may still use what it holds. */
	hs_end_finish(kept);
	hs_end_close(kept, 0, 0);
	CHECK(hs_end_write(last, (const uint8_t *)"x", 1) == HS_END_GONE);
	hs_end_drop(last);
	hs_end_close(kept, 1, 7);
	if (!(round & 4)) {
		hs_end_unacknowledged(w.connection, 0);
		hs_end_connection_gone(w.connection);
		hs_end_connection_drop(w.connection);
	}
	hs_end_drop(kept);
	join_all(jobs);
	end_elsewhere(&w);
}

/* --- the owner is called ------------------------------------------------------------------------ */

static void drop_another(void *owner, uint64_t handle, uint32_t command, uint64_t code)
{
	(void)handle, (void)code;
	CHECK(command == HS_SESSION_FREED);
	hs_end_drop(owner);
}

static void while_collecting(void)
{
	struct stack released, s;
	struct hs_fifo_producer rx = { .shared = NULL }, application_tx = { .shared = NULL };
	struct hs_fifo_consumer tx = { .shared = NULL }, application_rx = { .shared = NULL };
	begin(&released, NULL, NULL);
	struct hs_end *end = new_end(&released);
	hs_connection_session_close(released.connection);
	hs_end_connection_drop(released.held);
	hs_plane_release(released.plane);
	begin(&s, drop_another, end);
	struct hs_stream_session *session =
		hs_session_add(s.connection, 0, 0, &rx, &tx, &application_rx, &application_tx, 0, 0);
	CHECK(session);
	hs_end_drop(hs_session_end(session));
	hs_session_report(session, HS_STREAM_OVER, 0, 0);
	hs_plane_collect(s.plane);
	CHECK(!hs_plane_streams(s.plane));
	hs_connection_session_close(s.connection);
	hs_end_connection_drop(s.held);
	hs_plane_release(s.plane);
	hs_application_release(s.application);
	hs_application_release(released.application);
	hs_side_free(s.side);
	hs_side_free(released.side);
}

int main(void)
{
	for (int i = 0; i < ROUNDS; i++) {
		of_this_process();
		of_applications();
		of_another_process(i);
		while_collecting();
	}
	printf("%d rounds\n", ROUNDS);
	return 0;
}
