/* SPDX-License-Identifier: Apache-2.0
 *
 * The two sides of the session plane's lower edge: what it calls of a transport that carries
 * streams, and what the transport calls of it. Either may be in another shared object.
 *
 * One thread at a time. A transport's own objects are `void *` here, and so are the plane's there.
 */
#ifndef HS_SESSION_TRANSPORT_H
#define HS_SESSION_TRANSPORT_H

#include <stdint.h>

struct hs_fifo_producer;
struct hs_fifo_consumer;

/* What happened to a stream, as bits. */
enum hs_stream_event {
	HS_STREAM_OPENED = 1 << 0, /* by the peer */
	HS_STREAM_READABLE = 1 << 1, /* its rx FIFO got bytes or its end */
	HS_STREAM_WRITABLE = 1 << 2, /* its tx FIFO got room */
	HS_STREAM_RESET = 1 << 3, /* by the peer (RESET_STREAM) */
	HS_STREAM_STOPPED = 1 << 4, /* by the peer (STOP_SENDING) */
	HS_STREAM_FINISHED = 1 << 5, /* the peer acknowledged the end, FIN or reset */
	HS_STREAM_OVER = 1 << 6, /* both directions: its last event, the transport forgets it */
};

/* What a transport does with its streams and connections. */
struct hs_transport_verbs {
	/* How many more streams the peer's limit allows. */
	uint64_t (*openings)(void *connection, int is_unidirectional);
	/* Open a stream over these FIFOs; `rx` is NULL for a unidirectional one. Returns the
	 * transport's stream, and its ID; NULL on failure. */
	void *(*open)(void *connection, int is_unidirectional, void *session,
		      struct hs_fifo_producer *rx, struct hs_fifo_consumer *tx, int64_t *id);
	/* Allow the peer one more stream, for one that has ended and that the program has accepted.
	 * Returns whether the frame should be sent soon. */
	int (*allow)(void *connection, int is_unidirectional);
	void (*send_ready)(void *stream); /* the tx FIFO has new bytes, or its end */
	/* Bytes were read from the rx FIFO. Returns as `allow`. */
	int (*consumed)(void *stream);
	void (*reset)(void *stream, uint64_t code);
	void (*stop)(void *stream, uint64_t code);
	/* The connection is closed: use the stream's FIFOs and its session no more. */
	void (*let_go)(void *stream);
};

/* What the plane does for a transport, which has its sessions from `open` here or there. */
struct hs_session_verbs {
	/* A peer opened a stream. Returns its session and FIFOs, `tx` only if it is not NULL; NULL
	 * if there is no room: the stream is refused. */
	void *(*open)(void *connection_session, void *stream, int64_t id,
		      struct hs_fifo_producer **rx, struct hs_fifo_consumer **tx);
	/* Bits of enum hs_stream_event, and the codes of RESET and STOPPED. */
	void (*report)(void *session, uint32_t events, uint64_t reset_code, uint64_t stop_code);
	/* Whether its program is in this process, so that it runs before the next turn. */
	int (*is_here)(const void *session);
};

#endif
