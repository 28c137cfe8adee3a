/* SPDX-License-Identifier: Apache-2.0
 *
 * An application's side of its streams: an `end` for each, over the FIFOs that it shares with the
 * stack, and what the application waits for.
 *
 * No call blocks. One that can't go on notes what the stream waits for; when that has come, the
 * stream's key is among the side's wake-ups (hs_side_take). A key is the handle times 4, plus an
 * enum hs_wait. One thread at a time, but for hs_end_drop and hs_end_connection_drop. Streams of a
 * worker in another process come from attached.h, and give no hints but HS_END_WAKES.
 */
#ifndef HS_SESSION_END_H
#define HS_SESSION_END_H

#include <stddef.h>
#include <stdint.h>

struct hs_fifo_producer;
struct hs_fifo_consumer;
struct hs_side;
struct hs_end_connection;
struct hs_end;
struct hs_allowance;

enum hs_wait {
	HS_WAIT_READ = 0,
	HS_WAIT_WRITE = 1,
	HS_WAIT_FINISHED = 2, /* of a connection: nothing is unacknowledged any more */
	HS_WAIT_STREAMS = 3, /* of a connection: the peer opened one */
};

enum hs_wake {
	HS_WAKE_ALL = 0, /* in place of keys that there was no memory for: no stream has handle 0 */
};

/* Results in place of a number of bytes, beside those of enum hs_fifo_error. */
enum hs_end_result {
	HS_END_WAIT = -10, /* nothing now; the end waits for it */
	HS_END_CLOSED = -11, /* by the application, or its end is set */
	HS_END_RESET = -12, /* receiving: by the peer; sending: by this side */
	HS_END_STOPPED = -13, /* sending: by the peer; receiving: by this side */
	HS_END_GONE = -14, /* the connection is closed */
	HS_END_MUCH = -15, /* there is more: see hs_end_look */
	HS_END_CUT = -16, /* a part of what was to be sent is missing */
};

/* Beside the number of bytes in a result: what the caller has to do next. */
enum hs_end_hint {
	HS_END_BYTES_BITS = 40,
	HS_END_MASK = 0xff,
	HS_END_SEND = 1 << 0, /* have the stack send soon */
	HS_END_CREDIT = 1 << 1, /* have the stack extend the windows within a millisecond */
	HS_END_CREDIT_NOW = 1 << 2, /* the peer may be waiting for it */
	HS_END_WAKES = 1 << 3, /* there are wake-ups */
};

/* State of a stream for its application. */
struct hs_end_state {
	uint64_t handle;
	int64_t stream_id;
	uint64_t reset_code; /* why receiving ended: the peer's code or our own */
	uint64_t stop_code; /* why sending ended: the peer's code or our own */
	int32_t rx; /* 0, or the result that says why no more bytes follow; 1: there is no direction */
	int32_t tx;
	uint8_t is_ended; /* the end of sending is set */
	uint8_t is_finished; /* and acknowledged */
	uint8_t is_cut; /* a part of what was to be sent is missing */
	uint8_t has_all; /* all that the peer sent has been read */
};

struct hs_side *hs_side_new(void);
/* After its connections are closed, and those of workers in other processes are dropped. */
void hs_side_free(struct hs_side *side);
/* Whether there are wake-ups. */
int hs_side_has(const struct hs_side *side);
/* Copy and forget up to `n` keys of wake-ups, oldest first; returns how many. */
uint32_t hs_side_take(struct hs_side *side, uint64_t *keys, uint32_t n);

/* --- connections ------------------------------------------------------------------------------ */

/* The application no longer uses it, but perhaps streams of it, which may be dropped before or
 * after it. What it has not accepted counts as accepted. */
void hs_end_connection_drop(struct hs_end_connection *c);
/* Accept the next stream that the peer opened; the peer gets credit for another one when it has
 * ended. Returns 0 if there is none: the connection's task is woken for the next one. */
struct hs_accepted {
	struct hs_end *end;
	uint64_t handle;
	int64_t stream_id;
	uint32_t hints; /* enum hs_end_hint */
	uint8_t has_tx;
};
int hs_end_accept(struct hs_end_connection *c, struct hs_accepted *out);
/* How many streams wait to be accepted, with those that were dropped since the last one was. */
uint32_t hs_end_untaken(const struct hs_end_connection *c);
/* How many streams have ended sending, but not all of it is acknowledged. With `waits`, HS_WAIT_FINISHED
 * follows when there are none, unless the connection is closed before. */
uint32_t hs_end_unacknowledged(struct hs_end_connection *c, int waits);
/* How many streams of it are still open for sending though a part is missing. */
uint32_t hs_end_cut_short(const struct hs_end_connection *c);
/* The connection is closed, and so are its streams. */
void hs_end_connection_gone(struct hs_end_connection *c);

/* --- streams ---------------------------------------------------------------------------------- */

/* The application no longer uses it. Returns 1 if a worker in another process is to be told of that
 * (hs_attached_settle). */
int hs_end_drop(struct hs_end *end);
/* What happened to it: bits of enum hs_stream_event; with HS_STREAM_FINISHED, how many bytes were
 * sent in all. */
void hs_end_report(struct hs_end *end, uint32_t events, uint64_t reset_code, uint64_t stop_code,
		   uint64_t sent_bytes);
void hs_end_state(const struct hs_end *end, struct hs_end_state *out);

/* Read up to `n` bytes. Returns how many, 0 only at the end; or an error. If the caller wants more
 * than these, and they are there, nothing is read (HS_END_MUCH). */
int64_t hs_end_read(struct hs_end *end, uint8_t *out, size_t n, int wants_more);
/* Where the next bytes lie, `n` at most; hs_end_skip drops them. Returns how many. */
int64_t hs_end_look(struct hs_end *end, size_t n, const uint8_t **out);
int64_t hs_end_skip(struct hs_end *end, size_t n);
/* Write as much of `data` as fits; returns how much. If that is not all, HS_WAIT_WRITE follows
 * when there is room. */
int64_t hs_end_write(struct hs_end *end, const uint8_t *data, size_t n);
/* How many bytes fit; with none the end waits for room. */
int64_t hs_end_writable(struct hs_end *end);
/* Set the end of sending; returns 0 with hints, or an error. Idempotent, until it is closed. */
int64_t hs_end_finish(struct hs_end *end);
/* Set what is sent first of a connection's streams: an urgency of 0 (first) to 7, and whether it
 * takes turns with others of the same one (RFC 9218 section 4). Returns 0 with hints, or an error. */
int64_t hs_end_prioritize(struct hs_end *end, uint32_t urgency, int is_incremental);
/* Note whether a part of what was to be sent is missing: then hs_end_close resets, unless the end
 * is set already. */
void hs_end_set_cut(struct hs_end *end, int is_cut);
/* For a program that looks before it acts. The bytes that can be read now, and those that fit; or
 * an error of the FIFO. */
int64_t hs_end_readable(const struct hs_end *end);
/* Whether the peer has set the end: no bytes follow those that can be read. */
int hs_end_has_eof(const struct hs_end *end);
/* Wake the program when it can read (`reads`) or write (`writes`), or either direction breaks. Look
 * once more afterwards. */
void hs_end_watch(struct hs_end *end, int reads, int writes);
/* The FIFOs' sizes in bytes; 0: there is none any more. */
void hs_end_sizes(const struct hs_end *end, uint64_t rx_tx[2]);
/* Wait for HS_STREAM_FINISHED. Returns 1 if it has come, 0, or an error. */
int64_t hs_end_wait_finished(struct hs_end *end);
/* Reset sending, or stop receiving, with a code. Return hints. */
int64_t hs_end_reset(struct hs_end *end, uint64_t code);
int64_t hs_end_stop(struct hs_end *end, uint64_t code);
/* Close both directions: set the end of sending, or reset it with `code` if a part is missing or
 * `aborts` is set; stop receiving with `code` if `aborts` is set, else with 0. Returns hints.
 * Idempotent. */
int64_t hs_end_close(struct hs_end *end, int aborts, uint64_t code);
/* Close receiving alone. */
int64_t hs_end_close_receiving(struct hs_end *end, uint64_t code);

/* --- allowances ------------------------------------------------------------------------------- */

/* A number of bytes that some streams of a connection may send in all, beside the windows: once it
 * is used up their writers wait as for room. Bytes count when they are written; those that a reset
 * leaves unsent are given back when the transport has told how many it sent. NULL without memory. */
struct hs_allowance *hs_allowance_new(uint64_t most_bytes);
/* Once, by whoever made it; its streams may go on. Any thread may. */
void hs_allowance_release(struct hs_allowance *a);
uint64_t hs_allowance_left(const struct hs_allowance *a);
/* Raise the number, and never lower it. */
void hs_end_extend_allowance(struct hs_end_connection *c, struct hs_allowance *a,
			     uint64_t most_bytes);
/* Count what the stream sends from now on; once. */
void hs_end_set_allowance(struct hs_end *end, struct hs_allowance *a);

#endif
