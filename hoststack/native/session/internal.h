/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared by the files of the session plane. Each has one subject:
 *
 *   session/plane.c  streams of a worker: opening, accepting, events, credit, forgetting
 *   session/end.c    an application's side of its streams
 *   session/pool.c   memory for FIFOs within this process
 *
 * A file calls only those below it in this list, and end.c a transport's verbs.
 */
#ifndef HS_SESSION_INTERNAL_H
#define HS_SESSION_INTERNAL_H

#include "memory/fifo.h"
#include "session/end.h"
#include "session/session.h"
#include "session/transport.h"

struct hs_side {
	uint64_t *wakes;
	uint32_t first, end, room; /* of `wakes` */
};

struct hs_end_connection {
	struct hs_side *side; /* NULL: the application is in another process */
	struct hs_connection_session *session; /* NULL: the worker is in another process */
	uint64_t handle;
	struct hs_end *ends; /* all of its streams */
	struct hs_end *first_untaken, *last_untaken;
	uint32_t untaken_count;
	uint32_t unacknowledged;
	uint32_t cut_short;
	uint8_t waits_for_streams;
	uint8_t waits_for_finished;
	uint8_t is_gone;
	/* Of a worker in another process, and under a lock: any thread may drop. */
	struct hs_end *dropped;
	uint8_t is_dropped;
};

struct hs_end {
	struct hs_end_connection *connection;
	struct hs_stream_session *session; /* NULL: the worker is in another process */
	struct hs_end *next, *previous; /* of the connection */
	struct hs_end *next_untaken, *previous_untaken;
	struct hs_end *next_dropped;
	struct hs_fifo_consumer *rx; /* NULL: none, or no longer */
	struct hs_fifo_producer *tx;
	uint64_t handle;
	int64_t id;
	uint64_t reset_code, stop_code;
	uint64_t unannounced; /* bytes read since the last urgent notification of the stack */
	int8_t rx_error, tx_error; /* 0, or enum hs_end_result */
	uint8_t waits; /* bits of enum hs_wait */
	unsigned int arms : 1; /* notify the other side only if it has armed the FIFO: see fifo.h */
	unsigned int has_rx : 1;
	unsigned int has_tx : 1;
	unsigned int is_receiving_closed : 1;
	unsigned int is_sending_closed : 1;
	unsigned int is_ended : 1;
	unsigned int is_finished : 1;
	unsigned int is_cut : 1;
	unsigned int has_told_lazily : 1;
	unsigned int is_unacknowledged : 1; /* counted by the connection, as is the next */
	unsigned int is_cut_short : 1;
	unsigned int is_untaken : 1;
};

struct hs_connection_session {
	struct hs_end_connection end;
	struct hs_application *application;
	const struct hs_transport_verbs *verbs;
	void *transport; /* NULL: closed */
	uint64_t key;
	uint64_t rx_bytes, tx_bytes;
	struct hs_connection_session *next_dropped;
	struct hs_stream_session *first_touched, *last_touched; /* until it is announced */
	uint32_t references; /* the owner's, the application's, and one for each stream */
	uint32_t streams;
	uint8_t is_announced;
	uint8_t is_held; /* by the application */
	uint8_t is_closed;
	uint8_t is_shared; /* its FIFOs are between two applications, which arm for each other */
};

struct hs_stream_session {
	struct hs_end end;
	struct hs_connection_session *connection;
	void *stream; /* the transport's; NULL: it has ended */
	struct hs_fifo_producer *rx;
	struct hs_fifo_consumer *tx;
	struct hs_fifo_producer rx_side, application_tx;
	struct hs_fifo_consumer tx_side, application_rx;
	void *rx_block, *tx_block; /* of the plane's pool */
	struct hs_stream_session *next_touched, *next_dropped;
	uint32_t index;
	uint32_t events; /* of an application in another process: not taken yet */
	unsigned int is_peers : 1;
	unsigned int is_taken : 1; /* by the program; its own streams are */
	unsigned int is_over : 1;
	unsigned int is_in_use : 1; /* the application has it: hs_end_drop follows */
	unsigned int is_dropped : 1;
	unsigned int is_counted : 1; /* among the application's sessions */
	unsigned int is_touched : 1;
	unsigned int is_outside : 1; /* its FIFOs are not of the pool */
	unsigned int is_told_over : 1; /* to an application in another process */
};

/* end.c */
void hs_end_init(struct hs_end *end, struct hs_end_connection *c, uint64_t handle, int64_t id);
void hs_end_append_untaken(struct hs_end *end);
void hs_end_unlink(struct hs_end *end); /* from all lists of its connection */
/* Whether the application reads and writes no more. */
int hs_end_is_closed(const struct hs_end *end);
void hs_end_connection_free_wakes(struct hs_side *side);

/* plane.c: the application took a peer's stream; hints as in hs_end_accept */
uint32_t hs_session_taken(struct hs_stream_session *s);
/* What an end does with its stream. */
void hs_session_send_ready(struct hs_stream_session *s);
/* Returns whether this is the first credit since the stack's last turn. */
int hs_session_consumed(struct hs_stream_session *s);
void hs_session_reset(struct hs_stream_session *s, uint64_t code);
void hs_session_stop(struct hs_stream_session *s, uint64_t code);
void hs_session_closed(struct hs_stream_session *s);
void hs_session_dropped(struct hs_stream_session *s);
void hs_connection_session_dropped(struct hs_connection_session *c);

/* pool.c */
struct hs_pool;
struct hs_pool *hs_pool_new(void);
void hs_pool_free(struct hs_pool *pool);
/* A block for a FIFO of `size_bytes`, with a header of zeros; NULL without memory. */
void *hs_pool_take(struct hs_pool *pool, uint64_t size_bytes, uint64_t *block_bytes);
/* `used_bytes` is how much of it may have been written. */
void hs_pool_give(struct hs_pool *pool, void *block, uint64_t size_bytes, uint64_t used_bytes);
/* The size of a FIFO for which `bytes` were asked. */
uint64_t hs_pool_rounded(uint64_t bytes);

#endif
