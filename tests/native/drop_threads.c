/* SPDX-License-Identifier: Apache-2.0
 *
 * What applications drop is dropped by finalizers: in any thread, in any order, before and after
 * the plane is released, and while a plane calls its owner. Built with ThreadSanitizer, and with
 * AddressSanitizer.
 */
#include "session/internal.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                              \
	do {                                                                          \
		if (!(condition)) {                                                   \
			fprintf(stderr, "%d: not true: %s\n", __LINE__, #condition); \
			abort();                                                      \
		}                                                                     \
	} while (0)

enum { ROUNDS = 200, THREADS = 4, ENDS = 20, FIFO_BYTES = 1024 };

/* --- a transport -------------------------------------------------------------------------------- */

static int may_open(void *connection, int is_unidirectional)
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
	.may_open = may_open,
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
	s->application = hs_application_new(s->plane, s->side);
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
		others[k] = hs_application_new(s.plane, NULL);
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

static void of_another_process(void)
{
	struct job jobs[THREADS];
	struct hs_side *side = hs_side_new();
	struct hs_accepted accepted;
	struct hs_end_connection *c = hs_end_connection_new(side, 1);
	CHECK(side && c);
	for (int i = 0; i < THREADS * ENDS; i++) {
		jobs[i / ENDS].ends[i % ENDS] = hs_end_new(c, (uint64_t)i, i, 1, NULL, NULL);
		CHECK(jobs[i / ENDS].ends[i % ENDS]);
	}
	start(&jobs[0]);
	start(&jobs[1]);
	struct hs_end *last = hs_end_new(c, 1000, 1000, 1, NULL, NULL);
	while (hs_end_accept(c, &accepted) && accepted.end != last)
		;
	start(&jobs[2]);
	hs_end_connection_gone(c);
	start(&jobs[3]);
	hs_end_connection_drop(c);
	hs_end_drop(last);
	join_all(jobs);
	hs_side_free(side);
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
		hs_session_add(s.connection, 0, 0, &rx, &tx, &application_rx, &application_tx);
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
		of_another_process();
		while_collecting();
	}
	printf("%d rounds\n", ROUNDS);
	return 0;
}
