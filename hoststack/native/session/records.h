/* SPDX-License-Identifier: Apache-2.0
 *
 * What a worker and an application in another process tell each other in their event rings: an
 * event is a struct hs_event (memory/event_ring.h), and what its fields mean is here.
 *
 * A FIFO's place names its block to the other process: the number of its segment, the page in it,
 * and the binary logarithm of the FIFO's size.
 */
#ifndef HS_SESSION_RECORDS_H
#define HS_SESSION_RECORDS_H

#include <stdint.h>

/* From the application to the worker: commands. */
enum hs_command {
	HS_COMMAND_SENT = 1, /* the session's tx FIFO has bytes, or its end */
	HS_COMMAND_CONSUMED = 2, /* bytes were read from the session's rx FIFO */
	HS_COMMAND_TAKEN = 3, /* the program accepted the session, which a peer opened */
	HS_COMMAND_NOTED = 4, /* the program read the last news of the connection */
	/* Open a stream in the connection. arg: 1 for a unidirectional one; words: the token of the
	 * answer, HS_NEWS_OPENED or HS_NEWS_REFUSED. */
	HS_COMMAND_OPEN = 5,
	HS_COMMAND_RESET = 6, /* words: the code */
	HS_COMMAND_STOP = 7, /* words: the code */
	HS_COMMAND_RELEASED = 8, /* the application uses the stream's FIFOs no more */
};

/* From the worker to the application: news. */
enum hs_news {
	/* `arg` messages of the channel come next in order. */
	HS_NEWS_MESSAGES = 1,
	HS_NEWS_READABLE = 2, /* the connection's FIFO of datagrams has some */
	HS_NEWS_WRITABLE = 3,
	/* A stream. arg: 1 if the peer opened it; words: connection, stream ID, place of the rx
	 * FIFO and of the tx FIFO (0: none), token. */
	HS_NEWS_OPENED = 4,
	/* A stream that was asked for. arg: enum hs_session_refusal; words: the token. */
	HS_NEWS_REFUSED = 5,
	/* What happened to the stream. arg: bits of enum hs_stream_event; words: the codes of RESET
	 * and STOPPED, and with FINISHED how many bytes were sent. */
	HS_NEWS_STREAM = 6,
};

enum {
	HS_PLACE_LOG_BITS = 6,
	HS_PLACE_PAGE_BITS = 26,
	HS_PLACE_SEGMENT_BITS = 32,
	HS_PLACE_PAGE_BYTES = 4096,
	HS_PLACE_LEAST_LOG = 10, /* of a FIFO's size */
	HS_PLACE_MOST_LOG = 32,
};

#endif
