/* SPDX-License-Identifier: Apache-2.0
 *
 * A client and a server, two native engines with real TLS, a network between them on a simulated
 * clock, and applications on both that send a pattern along streams and check what they read.
 * A target says what becomes of each datagram.
 *
 * The applications use their streams through the session plane, in this process or as if they were
 * in another one (remote.h), and only when they are woken: a wake-up that is lost leaves a transfer incomplete.
 *
 * What is checked whatever happens: bytes that an application reads are those that the other wrote
 * (unless the target says that nothing may be trusted); a stream is over when both sides of it are;
 * nothing is reported about a connection after its end; no more turns than such a transfer can
 * take; at the end nothing is left in either engine, nor in a plane.
 */
#ifndef HS_FUZZ_PAIR_H
#define HS_FUZZ_PAIR_H

#include "quic/state.h"
#include "remote.h"
#include "session/internal.h"
#include "wire/handed.h"

#define MS_NS 1000000ULL

enum {
	CLIENT,
	SERVER,
	SIDES,
	MOST_STREAMS = 16, /* of one connection; their numbers are below 64 */
	MOST_STREAM_NUMBERS = 64,
	MOST_WAITING = 256, /* datagrams on their way */
	/* A path's number is that of the server's address, times PAIR_PORTS, and that of the client's
	 * port, as that side sees it. */
	PAIR_PORTS = 4,
	PAIR_PATHS = 2 * PAIR_PORTS,
	PAIR_CONNECTIONS = 16, /* that the server takes at once */
	PAIR_NUMBERS = 64, /* of connections */
	PAIR_MESSAGES = 256, /* unread ones */
};

/* What an application did to a stream. */
enum pair_spoilt {
	GIVEN_UP = 1, /* reset, or it wants no more */
	SCRIBBLED = 2, /* rubbish in its FIFO: nobody touches it any more */
};

struct pair_shape {
	uint8_t congestion_control;
	uint8_t is_v2;
	uint8_t wants_retry;
	uint8_t probes_mtu;
	uint8_t streams; /* that the client opens */
	uint8_t is_uni; /* every second one */
	uint32_t stream_bytes; /* each way */
	uint32_t fifo_bytes;
	uint64_t packets_per_key;
	uint64_t keep_alive_ns;
	uint32_t datagram_fifo_bytes;
	uint8_t has_preferred; /* the server has another address, and the client goes there */
	uint8_t is_remote[SIDES]; /* the application is "in another process" */
	uint8_t early_data; /* is offered, and sent where the client resumes */
	const struct hs_quic_resume *resume; /* NULL: it does not */
};

/* A stream as the application has it; with PAIR_DATAGRAMS for its ID, the connection's datagrams. */
enum { PAIR_DATAGRAMS = -1 };
struct flow {
	struct flow *next;
	struct hs_end *end;
	int64_t id;
	uint64_t handle;
	uint32_t connection;
	int side;
	uint64_t written, read;
	uint8_t has_rx, has_tx;
	uint8_t may_read, may_write; /* cleared when the end waits */
	uint8_t has_set_end, has_read_end, is_send_finished;
	uint8_t is_lost; /* the connection is closed */
	/* Of datagrams. */
	uint8_t *rx_block, *tx_block;
	struct hs_fifo_producer rx_in, tx_in;
	struct hs_fifo_consumer rx_out, tx_out;
	uint64_t largest_message;
};

/* To an application in another process, about a connection. */
enum pair_message_kind { PAIR_ANNOUNCED, PAIR_CLOSED, PAIR_FORGOTTEN };
struct pair_message {
	enum pair_message_kind kind;
	uint32_t connection;
};

/* A connection's sessions. */
struct link {
	struct hs_connection_session *session; /* NULL: none yet, or closed */
	struct hs_end_connection *held; /* by the application */
	uint8_t may_accept;
};

struct side {
	struct hs_quic *q;
	struct hs_wire *wire;
	struct hs_tls *tls;
	struct hs_plane *plane;
	struct hs_side *wakes;
	struct hs_application *application;
	struct link links[PAIR_NUMBERS]; /* by the connection's number */
	struct flow *flows;
	struct pair *pair;
	uint8_t is_remote;
	/* Of an application in another process. */
	struct remote remote;
	struct pair_message messages[PAIR_MESSAGES];
	uint32_t sent_messages, read_messages;
	uint32_t asking, asked, to_ask; /* streams of its own: for which connection, and how many */
	/* Of the connection that was told last. */
	struct hs_connection *connection;
	struct hs_quic_close_info close;
	uint8_t is_established, is_closed, is_forgotten;
	uint8_t is_not_reading;
	uint32_t streams_over;
};

struct travelling {
	uint8_t *data; /* of its exact size */
	uint32_t bytes;
	uint8_t ecn; /* with UNKNOWN_PATH */
	uint8_t to;
	uint8_t path;
	uint64_t at_ns;
};

struct pair {
	struct side side[SIDES];
	struct pair_shape shape;
	uint64_t now_ns;
	struct travelling waiting[MOST_WAITING]; /* by the time of arrival */
	uint32_t waiting_count;
	uint32_t turns;
	uint8_t nat_shift; /* between the client's ports and those that the server sees */
	uint8_t behind_nat[PAIR_PORTS]; /* the client's ports by those */
	uint8_t carried_path; /* the way of the datagram that is carried, as its sender numbers it */
	uint8_t ecn;
	uint8_t distrusts; /* applications take what comes */
	uint8_t is_spoilt[MOST_STREAM_NUMBERS]; /* enum pair_spoilt, by the stream's number */
	int turning; /* the side whose turn it is */
	/* What becomes of a datagram. It is the target's to send, changed or not. */
	void (*carry)(struct pair *p, int from, const uint8_t *data, uint32_t bytes);
	/* A ticket for the client's next connection; NULL: nobody wants it. */
	void (*keep_ticket)(const struct hs_quic_ticket *ticket);
	void *target;
};

/* Two engines, of which the client begins a connection. */
void pair_begin(struct pair *p, const struct pair_shape *shape);
/* Puts a datagram on its way to a side. */
void pair_send(struct pair *p, int to, const uint8_t *data, uint32_t bytes, uint64_t delay_ns,
	       uint8_t ecn);
/* Turns until everything that the applications wanted is there, a connection has ended, or there
 * is nothing more to wait for before `until_ns`. */
void pair_run(struct pair *p, uint64_t until_ns);
/* Whether all streams of both sides came to their ends. */
int pair_is_complete(const struct pair *p);
/* Ends the connection from one side and waits until it is forgotten on both. */
void pair_end(struct pair *p, int from);
/* Frees both engines. */
void pair_free(struct pair *p);
struct flow *pair_flow(struct pair *p, int side, unsigned int which);
/* What an application does with a stream. */
void pair_reset(struct pair *p, struct flow *f, uint64_t code);
void pair_stop(struct pair *p, struct flow *f, uint64_t code);
/* It says that it has read and written. */
void pair_poke(struct pair *p, struct flow *f);

#endif
