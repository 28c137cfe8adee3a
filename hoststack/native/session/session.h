/* SPDX-License-Identifier: Apache-2.0
 *
 * The session plane: the streams of one worker, between the transports that carry them and the
 * applications that own them. Opening, accepting, ending, credit and forgetting happen here.
 *
 * Connections and listeners are sessions of the layer above (hoststack/session), which registers
 * its connections here. An application in this process uses its streams through end.h; those of an
 * application in another process are commanded through rings (records.h).
 *
 * One thread at a time, but for hs_application_release.
 */
#ifndef HS_SESSION_H
#define HS_SESSION_H

#include <stddef.h>
#include <stdint.h>

struct hs_plane;
struct hs_application;
struct hs_connection_session;
struct hs_stream_session;
struct hs_end;
struct hs_end_connection;
struct hs_side;
struct hs_fifo_producer;
struct hs_fifo_consumer;
struct hs_transport_verbs;

enum {
	HS_SESSION_STREAM = 1, /* the bit of a handle that marks a stream */
	HS_SESSION_REUSE = 1024, /* freed indices that are kept unused before the oldest is reused */
};

/* Why an application, or its peer, got no stream. */
enum hs_session_refusal {
	HS_SESSION_NO_CREDIT = 1, /* of the peer, for now */
	HS_SESSION_MAX_SESSIONS = 2, /* of the application */
	HS_SESSION_SHARE = 3, /* of the connection in these */
	HS_SESSION_NO_MEMORY = 4,
	HS_SESSION_CLOSED = 5,
	HS_SESSION_REFUSALS = 6, /* the number of values */
};

/* What a transport that is written in Python has to do. */
enum hs_session_command {
	HS_SESSION_SEND_READY = 1,
	HS_SESSION_CONSUMED = 2,
	HS_SESSION_RESET = 3,
	HS_SESSION_STOP = 4,
	HS_SESSION_ALLOW = 5, /* about a connection, by its key; `code` is 1 for unidirectional ones */
	HS_SESSION_LET_GO = 6, /* the stream's connection is closed */
	HS_SESSION_FREED = 7, /* the FIFOs of a stream, which the owner made, are unused from now on */
	HS_SESSION_FREE_BLOCK = 8, /* about an application, by its key; `code` is the block's place */
};
typedef void (*hs_session_command_to)(void *owner, uint64_t handle, uint32_t command, uint64_t code);
/* Make blocks for FIFOs of a connection's streams in the memory of an application in another
 * process: one for rx, where `out[0].bytes` is not 0, and one for tx, where `out[1].bytes` is not,
 * of about so many bytes of data. `is_peers`: because the peer opens a stream. Returns 0, or -1 if
 * there is no room. HS_SESSION_FREE_BLOCK gives each back. */
struct hs_made_block {
	uint64_t bytes; /* in: of data; out: with the header */
	uint64_t address;
	uint64_t place; /* records.h */
};
typedef int (*hs_session_make_blocks)(void *owner, uint64_t connection_key, int is_peers,
				      struct hs_made_block out[2]);

/* `first` is the first index, an even number: streams have the odd ones. NULL without memory. */
struct hs_plane *hs_plane_new(uint32_t worker, uint32_t first, hs_session_command_to command,
			      hs_session_make_blocks make_blocks, void *owner);
/* After all connections are closed. Calls nothing in Python from now on; freed after its last
 * application. */
void hs_plane_release(struct hs_plane *plane);
/* The address of struct hs_session_verbs, for a transport in C. */
uint64_t hs_plane_verbs(void);
/* How often streams were refused, by enum hs_session_refusal. */
void hs_plane_refused(const struct hs_plane *plane, uint64_t out[HS_SESSION_REFUSALS]);
/* How many streams are open. */
uint32_t hs_plane_streams(const struct hs_plane *plane);
/* Forget what applications have dropped; called before each turn. */
void hs_plane_collect(struct hs_plane *plane);
/* Whether a transport has had credit to give since then. */
int hs_plane_has_credit(const struct hs_plane *plane);

/* --- applications ----------------------------------------------------------------------------- */

/* `side` is NULL for one in another process; `key` names it in calls to the owner. */
struct hs_application *hs_application_new(struct hs_plane *plane, struct hs_side *side,
					  uint64_t key);
/* Stop reporting events of its streams from the next turn on; streams and connections continue. */
void hs_application_release(struct hs_application *a);
/* Its sessions: all of them, and the most; 0: any number. */
uint32_t hs_application_sessions(const struct hs_application *a);
void hs_application_count(struct hs_application *a, int32_t more);
void hs_application_set_max(struct hs_application *a, uint32_t most);
int hs_application_is_full(struct hs_application *a);
/* The application has ended: what it has not accepted counts as accepted, and what it has not
 * released as released. */
void hs_application_leave(struct hs_application *a);

/* --- applications in other processes ---------------------------------------------------------- */

/* Its rings (records.h), of two events or more, whose blocks outlive it. Returns 0, or -1 for
 * blocks of a wrong size. */
int hs_application_set_rings(struct hs_application *a, void *down, void *up, size_t block_bytes);
/* A message to it was queued: it processes that after all news up to now. Returns 0, or -1 without
 * memory. */
int hs_application_queue_message(struct hs_application *a);
/* Write one of HS_NEWS_READABLE and HS_NEWS_WRITABLE. Returns 1, 0 if the ring has no room or
 * other news are ahead of it, or HS_EVENT_RING_CORRUPT. */
int hs_application_push(struct hs_application *a, uint64_t handle, uint32_t news);
/* Write the news about its streams, as many as the ring has room for. Returns bits of enum
 * hs_told, or HS_EVENT_RING_CORRUPT. HS_TOLD_SOME also stands for refusals since the last call. */
enum hs_told {
	HS_TOLD_SOME = 1,
	HS_TOLD_NOT_ALL = 2,
};
int hs_application_tell(struct hs_application *a);
/* After something was written: whether it asked to be woken; only once. */
int hs_application_take_armed(struct hs_application *a);
/* Ask for a wake-up before sleep. Returns how many commands there are, or HS_EVENT_RING_CORRUPT. */
int64_t hs_application_arm(struct hs_application *a);
/* Follow its commands, HS_SESSION_COMMANDS at most. Those about connections, and streams to be
 * opened by a transport in Python, are copied to `out`, which has room for as many. Returns how
 * many these are, or an error. */
enum {
	HS_SESSION_COMMANDS = 1024,
	HS_SESSION_INVALID = -20, /* a command that no application gives */
};
struct hs_event;
struct hs_commanded {
	uint32_t count; /* of all commands */
	uint8_t is_held_up; /* there may be more, which wait for room in the other ring */
	uint8_t is_due; /* a transport may have something to send */
	uint8_t has_made_room; /* the application may sleep until there is: wake it */
};
int hs_application_commands(struct hs_application *a, struct hs_event *out,
			    struct hs_commanded *done);
/* Answer HS_COMMAND_OPEN: with a stream of a transport in Python, or with an enum
 * hs_session_refusal, for which there is room until hs_application_tell. Returns 1, or
 * HS_EVENT_RING_CORRUPT. */
void hs_session_answer(struct hs_stream_session *s, uint64_t token);
int hs_application_refuse(struct hs_application *a, uint64_t token, uint32_t refusal);

/* --- connections ------------------------------------------------------------------------------ */

/* A connection of an application. `verbs` is the address of its transport's, 0 for one in Python;
 * `key` names it in calls to the owner. Sizes are those of its streams' FIFOs. NULL without
 * memory. */
struct hs_connection_session *hs_connection_session_new(struct hs_application *a, uint64_t key,
							uint64_t verbs, void *transport,
							uint64_t rx_bytes, uint64_t tx_bytes);
/* The application was notified of it, under this handle: its streams may follow. An application in
 * this process owns the connection from now on, until it drops what hs_connection_session_hold
 * returns. */
void hs_connection_session_announce(struct hs_connection_session *c, uint64_t handle);
/* Its FIFOs are between two applications (cut-through), which notify each other directly. */
void hs_connection_session_share(struct hs_connection_session *c);
/* Its transport has closed it: its streams end, and the owner's reference is invalid. No events are
 * reported to an application in another process that it was not announced to. */
void hs_connection_session_close(struct hs_connection_session *c);
uint32_t hs_connection_session_streams(const struct hs_connection_session *c);
/* Whether its application waits for credit to open a stream: since it was refused for lack of it,
 * and until this was called. */
int hs_connection_session_take_waiting(struct hs_connection_session *c);
/* A transport in Python refused it for lack of credit. */
void hs_connection_session_set_waiting(struct hs_connection_session *c);
/* The application's side of an announced connection in this process; hs_end_connection_drop gives
 * it back, once. */
struct hs_end_connection *hs_connection_session_hold(struct hs_connection_session *c);

/* --- streams ---------------------------------------------------------------------------------- */

/* Open a stream for an application in this process, which may wait for credit
 * (HS_SESSION_NO_CREDIT). Returns 0 and the stream, or an enum hs_session_refusal. */
struct hs_opened {
	struct hs_end *end;
	uint64_t handle;
	int64_t stream_id;
};
int hs_session_open(struct hs_connection_session *c, int is_unidirectional,
		    struct hs_opened *out);
/* How many more its peer's limit allows; from now on its application waits for credit. */
uint64_t hs_session_openings(struct hs_connection_session *c, int is_unidirectional);
/* Whether the application may have another stream in this connection, as far as sessions go: 0, or
 * a refusal, which is counted. With `is_peers` the connection's share counts as well. */
int hs_session_may_add(struct hs_connection_session *c, int is_peers);
/* Add a stream over FIFOs that exist until HS_SESSION_FREED. The application's sides are for one in
 * this process, the places (records.h) for one in another. NULL without memory. */
struct hs_stream_session *hs_session_add(struct hs_connection_session *c, int64_t stream_id,
					 int is_peers, struct hs_fifo_producer *rx,
					 struct hs_fifo_consumer *tx,
					 struct hs_fifo_consumer *application_rx,
					 struct hs_fifo_producer *application_tx,
					 uint64_t rx_place, uint64_t tx_place);
struct hs_stream_session *hs_session_find(struct hs_plane *plane, uint64_t handle);
/* For a transport in Python: see hs_session_verbs. */
void hs_session_report(struct hs_stream_session *s, uint32_t events, uint64_t reset_code,
		       uint64_t stop_code);
/* The application's side of a stream in this process; hs_end_drop gives it back. */
struct hs_end *hs_session_end(struct hs_stream_session *s);
uint64_t hs_session_handle(const struct hs_stream_session *s);
int64_t hs_session_stream_id(const struct hs_stream_session *s);

struct hs_session_about {
	uint64_t handle, connection;
	int64_t stream_id;
	uint64_t rx_bytes, rx_head, rx_tail, tx_bytes, tx_head, tx_tail; /* 0 bytes: no FIFO */
	uint8_t rx_eof, tx_eof;
};
/* Describe an open stream; returns 0 if there is none with that handle. */
int hs_plane_look(struct hs_plane *plane, uint64_t handle, struct hs_session_about *out);
/* Describe the next such stream from an index on; returns the index behind it, 0 if there is none. */
uint32_t hs_plane_next(const struct hs_plane *plane, uint32_t index, struct hs_session_about *out);

#endif
