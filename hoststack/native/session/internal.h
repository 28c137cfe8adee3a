/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared by the files of the session plane. Each has one subject:
 *
 *   session/lane.c      commands of applications in other processes, and their news
 *   session/plane.c     streams of a worker: opening, accepting, events, credit, forgetting
 *   session/touch.c     what these are to be told
 *   session/blocks.c    memory for FIFOs
 *   session/pool.c      such memory within this process
 *   session/attached.c  a worker in another process, as its application sees it
 *   session/segments.c  its FIFOs' memory, mapped here
 *   session/end.c       an application's side of its streams
 *   session/allowance.c what some of them may send in all
 *   session/table.c     objects by handle
 *
 * A file calls only those below it; an end calls its worker through struct hs_end_verbs.
 */
#ifndef HS_SESSION_INTERNAL_H
#define HS_SESSION_INTERNAL_H

#include "memory/fifo.h"
#include "memory/event_ring.h"
#include "session/attached.h"
#include "session/end.h"
#include "session/session.h"
#include "session/table.h"
#include "session/transport.h"

#include <stdatomic.h>

struct hs_side {
	uint64_t *wakes;
	uint32_t first, end, room; /* of `wakes` */
	uint8_t has_lost; /* wake-ups that there was no memory for */
};

/* What an end does with its worker: in this process (plane.c), or in another (attached.c). The
 * results are hints, bits of enum hs_end_hint. */
struct hs_end_verbs {
	uint32_t (*taken)(struct hs_end *end);
	uint32_t (*sent)(struct hs_end *end, int is_end);
	uint32_t (*consumed)(struct hs_end *end, int is_urgent); /* the peer may wait for room */
	uint32_t (*reset)(struct hs_end *end, uint64_t code);
	uint32_t (*stop)(struct hs_end *end, uint64_t code);
	void (*closed)(struct hs_end *end); /* a direction, or both */
	int (*dropped)(struct hs_end *end); /* as hs_end_drop */
	void (*connection_dropped)(struct hs_end_connection *c);
	void (*connection_gone)(struct hs_end_connection *c);
};

struct hs_end_connection {
	const struct hs_end_verbs *verbs;
	struct hs_side *side; /* NULL: the application is in another process */
	struct hs_connection_session *session; /* NULL: the worker is in another process */
	struct hs_attached *attached; /* NULL: the worker is in this process */
	uint64_t handle;
	struct hs_end *ends; /* all of its streams */
	struct hs_end *first_untaken, *last_untaken;
	uint32_t untaken_count;
	uint32_t unacknowledged;
	uint32_t cut_short;
	uint8_t waits_for_streams;
	uint8_t waits_for_finished;
	uint8_t is_gone;
	/* Of a worker in another process. */
	struct hs_end_connection *next, *previous, *next_dropped;
	uint8_t is_dropped;
};

struct hs_end {
	struct hs_end_connection *connection;
	struct hs_stream_session *session; /* NULL: the worker is in another process */
	struct hs_end *next, *previous; /* of the connection */
	struct hs_end *next_untaken, *previous_untaken;
	struct hs_end *next_dropped, *next_due;
	struct hs_fifo_consumer *rx; /* NULL: none, or no longer */
	struct hs_fifo_producer *tx;
	uint64_t handle;
	int64_t id;
	uint64_t reset_code, stop_code;
	uint64_t due_reset_code, due_stop_code;
	struct hs_allowance *allowance; /* NULL: as much as there is room for */
	uint64_t allowance_from, used_bytes; /* where it began to count, and what it counted since */
	uint64_t unannounced; /* bytes read since the last urgent notification of the stack */
	int8_t rx_error, tx_error; /* 0, or enum hs_end_result */
	uint8_t waits; /* bits of enum hs_wait */
	/* Of a worker in another process: what is to be said to it (attached.c), and whether this
	 * side uses its FIFOs no more. */
	uint8_t due;
	uint8_t is_released;
	unsigned int arms : 1; /* notify the other side only if it has armed the FIFO: see fifo.h */
	unsigned int has_rx : 1;
	unsigned int has_tx : 1;
	unsigned int is_receiving_closed : 1;
	unsigned int is_sending_closed : 1;
	unsigned int is_ended : 1;
	unsigned int is_finished : 1;
	unsigned int is_sent : 1; /* the transport sends no more of it */
	unsigned int is_cut : 1;
	unsigned int has_told_lazily : 1;
	unsigned int is_unacknowledged : 1; /* counted by the connection, as is the next */
	unsigned int is_cut_short : 1;
	unsigned int is_untaken : 1;
	/* Of a worker in another process. */
	unsigned int is_due : 1;
	unsigned int is_dropped : 1;
	unsigned int is_forgotten : 1; /* and freed when that is said */
};

struct hs_allowance {
	uint64_t most_bytes, used_bytes;
	_Atomic uint32_t references; /* its maker's, and one for each stream */
};

/* The memory of a FIFO: header and data. */
struct hs_block {
	void *memory;
	uint64_t bytes;
	uint64_t place; /* records.h, of an application in another process */
};

/* What an application in another process is to be told, in order. */
struct hs_touch {
	struct hs_touch *next;
	struct hs_stream_session *stream; /* NULL: messages */
	uint32_t messages;
};

struct hs_connection_session {
	struct hs_end_connection end;
	struct hs_application *application;
	struct hs_connection_session *next, *previous; /* of the application */
	const struct hs_transport_verbs *verbs;
	void *transport; /* NULL: closed */
	uint64_t key;
	uint64_t rx_bytes, tx_bytes;
	struct hs_connection_session *next_dropped;
	struct hs_touch *first_touched, *last_touched; /* until it is announced */
	/* Blocks that streams of an application in another process have given back, for rx and
	 * tx. */
	struct hs_block *spares[2];
	uint32_t spare_count[2], spare_room[2];
	uint32_t references; /* the owner's, the application's, and one for each stream */
	uint32_t streams;
	uint8_t is_announced;
	uint8_t is_held; /* by the application */
	uint8_t is_closed;
	uint8_t is_shared; /* its FIFOs are between two applications, which arm for each other */
	uint8_t waits_for_credit; /* the application does, to open a stream */
};

struct hs_stream_session {
	struct hs_end end;
	struct hs_connection_session *connection;
	void *stream; /* the transport's; NULL: it has ended */
	struct hs_fifo_producer *rx;
	struct hs_fifo_consumer *tx;
	struct hs_fifo_producer rx_side, application_tx;
	struct hs_fifo_consumer tx_side, application_rx;
	struct hs_block rx_block, tx_block;
	struct hs_touch touch;
	struct hs_stream_session *next_dropped;
	uint64_t token; /* of an application in another process that opened it */
	uint32_t index;
	uint32_t events; /* of an application in another process: not taken yet */
	unsigned int is_peers : 1;
	unsigned int is_taken : 1; /* by the program; its own streams are */
	unsigned int is_over : 1;
	unsigned int is_in_use : 1; /* the application has it: hs_end_drop follows */
	unsigned int is_dropped : 1;
	unsigned int is_counted : 1; /* among the application's sessions */
	unsigned int is_settled : 1; /* over and taken: the peer has its credit */
	unsigned int is_touched : 1;
	unsigned int is_outside : 1; /* its FIFOs are the owner's */
	unsigned int is_released : 1; /* by an application in another process */
};

struct hs_plane {
	hs_session_command_to command; /* NULL: the owner was released */
	hs_session_make_blocks make_blocks;
	void *owner;
	struct hs_pool *pool;
	struct hs_stream_session **table; /* by index */
	uint32_t room, top; /* indices below `top` were used */
	uint32_t *freed; /* a ring of indices, oldest first */
	uint32_t freed_first, freed_count, freed_room;
	struct hs_table connections; /* announced ones, by handle */
	uint32_t first;
	uint32_t worker;
	uint32_t streams;
	uint32_t references; /* the owner's, and one for each application */
	uint8_t is_credit_due; /* since the last turn */
	uint8_t is_released;
	uint64_t refused[HS_SESSION_REFUSALS];
	/* What applications have dropped: any thread may add to it. */
	struct hs_stream_session *dropped_streams;
	struct hs_connection_session *dropped_connections;
	struct hs_application *released_applications;
};

struct hs_application {
	struct hs_plane *plane;
	struct hs_side *side; /* NULL: in another process */
	struct hs_application *next_released;
	struct hs_connection_session *connections;
	struct hs_touch *first_touched, *last_touched;
	struct hs_event_ring_side down, up; /* of one in another process */
	uint64_t key;
	uint32_t references; /* the owner's, and one for each connection */
	uint32_t sessions;
	uint32_t most_sessions; /* 0: any number */
	uint8_t has_refused; /* since it was told of anything else */
	uint8_t has_left; /* it takes and releases no more */
	uint8_t is_gone; /* the owner was released: its events are discarded */
};

/* end.c */
/* No more comes from its connection, nor goes to it. */
void hs_end_set_gone(struct hs_end_connection *c);
void hs_end_wake_all(struct hs_end_connection *c);
void hs_end_init(struct hs_end *end, struct hs_end_connection *c, uint64_t handle, int64_t id);
void hs_end_append_untaken(struct hs_end *end);
void hs_end_unlink(struct hs_end *end); /* from all lists of its connection */
void hs_end_remove_untaken(struct hs_end *end);
/* Whether the application reads and writes no more. */
int hs_end_is_closed(const struct hs_end *end);

/* allowance.c: of a stream that may have one */
void hs_allowance_use(struct hs_end *end, uint64_t bytes);
/* No more is sent than the `sent` bytes. Returns whether the others have more now. */
int hs_allowance_settle(struct hs_end *end, uint64_t sent);
void hs_allowance_leave(struct hs_end *end);

/* touch.c: have an application in another process told of the stream */
void hs_touch_append(struct hs_touch **first, struct hs_touch **last, struct hs_touch *touch);
void hs_session_touch(struct hs_stream_session *s);
void hs_session_forget_touched(struct hs_touch **first, struct hs_touch **last);

/* blocks.c: the FIFOs of a stream */
/* Returns 0, or -1 without memory. */
int hs_session_take_fifos(struct hs_stream_session *s, int has_rx, int has_tx);
/* Neither side uses them any more. */
void hs_session_give_fifos(struct hs_stream_session *s);
/* Returns how many there were. */
uint32_t hs_connection_session_drop_spares(struct hs_connection_session *c);

/* plane.c: have the owner do something about a stream, or its application */
void hs_session_command(struct hs_stream_session *s, uint32_t what, uint64_t code);
/* Whether the owner carries the streams of a connection. */
int hs_connection_session_is_python(const struct hs_connection_session *c);
/* plane.c: the application took a peer's stream; hints as in hs_end_accept */
uint32_t hs_session_taken(struct hs_stream_session *s);
/* Open a stream, over FIFOs of its application. Returns 0, or an enum hs_session_refusal. */
int hs_session_begin(struct hs_connection_session *c, int is_unidirectional,
		     struct hs_stream_session **out);
void hs_session_closed(struct hs_stream_session *s);

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
