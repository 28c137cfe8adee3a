/* SPDX-License-Identifier: Apache-2.0
 *
 * A worker in another process, from the application's side: its streams are struct hs_end (end.h),
 * and what they do goes to the worker through a ring at once. The rings' contents are in records.h.
 *
 * The worker is trusted to keep to the rules, but nothing that it writes is used unchecked.
 */
#ifndef HS_SESSION_ATTACHED_H
#define HS_SESSION_ATTACHED_H

#include <stddef.h>
#include <stdint.h>

struct hs_attached;
struct hs_side;
struct hs_end;
struct hs_end_connection;

/* Results in place of a count: beside HS_EVENT_RING_CORRUPT. */
enum hs_attached_error {
	HS_ATTACHED_INVALID = -20, /* news that no worker sends */
	HS_ATTACHED_NO_MEMORY = -21,
};

/* What the caller has to do with news. */
enum hs_attached_task {
	HS_TASK_MESSAGE = 1, /* process the next message of the channel */
	HS_TASK_OPENED = 2, /* `end` is the stream that was asked for with `token` */
	HS_TASK_REFUSED = 3, /* `code` says why there is none: enum hs_session_refusal */
	HS_TASK_READABLE = 4, /* datagrams of the connection `handle` */
	HS_TASK_WRITABLE = 5,
};
/* A refusal of this side: it has no room for the FIFOs. */
enum { HS_ATTACHED_NO_ROOM = 100 };

struct hs_attached_news {
	struct hs_end *end;
	uint64_t handle;
	uint64_t token;
	int64_t stream_id;
	uint32_t code;
};

/* `down` and `up` are the rings' blocks, which outlive it. `wake_fd` is the socket that wakes the
 * worker; the caller closes it after hs_attached_gone. NULL without memory. */
struct hs_attached *hs_attached_new(struct hs_side *side, void *down, void *up,
				    size_t block_bytes, int wake_fd);
/* Wake tasks through this side: that of all the application's workers. Before its first
 * connection. */
void hs_attached_join(struct hs_attached *attached, struct hs_side *side);
/* The worker is gone: nothing more is written to it. */
void hs_attached_gone(struct hs_attached *attached);
/* The caller needs it no more; freed after its last stream and connection, which any thread may drop
 * meanwhile. No other thread is in another call about it. */
void hs_attached_free(struct hs_attached *attached);

/* Map a segment that FIFOs are in; the caller keeps the descriptor. Returns 0 or an errno: streams
 * with FIFOs in it are then refused. */
int hs_attached_add_segment(struct hs_attached *attached, uint32_t number, int fd);
/* The worker has no more FIFOs in it. */
void hs_attached_remove_segment(struct hs_attached *attached, uint32_t number);

/* A connection that the worker reported, with a handle of its own. hs_end_connection_drop gives it
 * back. NULL without memory. */
struct hs_end_connection *hs_attached_connection(struct hs_attached *attached, uint64_t handle);

/* Process the worker's news up to one that the caller has a part in; returns its enum
 * hs_attached_task, 0 if there is none or after very many, or an error. Without `has_message` the
 * next message has not arrived: news that follow it wait. */
int hs_attached_take(struct hs_attached *attached, int has_message, struct hs_attached_news *out);
/* Write a command. Returns 1, 0 if the ring has no room, or an error. */
int hs_attached_command(struct hs_attached *attached, uint64_t handle, uint32_t command,
			uint32_t arg, uint64_t word);
/* Write what the streams have to say and the ring had no room for, and forget what was dropped.
 * Returns how many streams are left, or an error. The worker wakes this side when there is room. */
int64_t hs_attached_settle(struct hs_attached *attached);
/* Ask for a wake-up before sleep; returns whether there are news already, or an error. */
int hs_attached_arm(struct hs_attached *attached);

#endif
