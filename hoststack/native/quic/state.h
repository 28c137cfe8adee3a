/* SPDX-License-Identifier: Apache-2.0
 *
 * The native engine's state, which its files share. Each has one subject:
 *
 *   quic/turn.c                 bursts in and out, timers, events for the caller
 *   quic/sessions.c             the engine as the session plane calls it
 *   quic/accept.c               datagrams that match no connection
 *   quic/held.c                 0-RTT packets that wait for their ClientHello
 *   quic/connection.c           a connection reads, writes and counts
 *   quic/close.c                closing and draining
 *   quic/begin.c                how connections begin, and are freed
 *   quic/listener.c             listeners
 *   quic/tls.c                  GnuTLS credentials and sessions
 *   quic/callbacks.c            the callbacks of ngtcp2
 *   quic/handshake.c            the peer's TLS messages, before GnuTLS reads them
 *   quic/resume.c               session resumption, and 0-RTT
 *   quic/half_open.c            handshakes of peers in progress: limits, total and per source
 *   quic/packets.c              packets as they pass encryption: counted and inspected
 *   quic/frames.c               frames for which ngtcp2 has no callback
 *   quic/datagram.c             datagrams and their FIFOs
 *   quic/path.c                 the path of a connection, and migration
 *   quic/size.c                 the size of its datagrams
 *   quic/stream.c               streams and their FIFOs
 *   quic/send_order.c           which stream is sent first
 *   quic/stream_limits.c        how many streams the peer may open
 *   quic/window.c               how much the peer may send
 *   quic/connection_schedule.c  which connections have work, events or a deadline
 *   quic/token.c                tokens that prove an address
 *   quic/version.c              versions and their negotiation
 *   quic/cid.c                  connection IDs, and the connections by them
 *   quic/tables.c               connections by number; streams by stream ID
 *   quic/server_names.c         a server's certificates by name
 *   quic/key_limits.c           limits of the keys in certificates
 *   quic/signing.c              OpenSSL's signatures with this side's keys
 *   quic/chacha.c               OpenSSL's ChaCha20-Poly1305 in place of GnuTLS's
 *
 * A file calls only those below it in this list (tests/test_c_architecture.py). What a file offers to
 * those above it is in the header of its name.
 */
#ifndef HS_QUIC_STATE_H
#define HS_QUIC_STATE_H

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto.h>

#include "memory/fifo.h"
#include "quic/quic.h"
#include "steer.h"

struct hs_path; /* wire/paths.h */
struct hs_received; /* wire/verbs.h */
union hs_address; /* wire/paths.h */

enum {
	HS_QUIC_TICKET_KEY_BYTES = 64, /* required by GnuTLS */
	HS_QUIC_NAME_BYTES = 255,
	HS_QUIC_LONG_HEADER = 0x80, /* in a packet's first byte (RFC 9000 section 17.2) */
	HS_QUIC_VERSIONS = 2,
	/* More arrives than can be read: so many more bursts were full than not. A crowd of honest
	 * clients is over before that. */
	HS_OVERLOADED_AFTER = 16,
	/* A stateless reset has 5 unpredictable bytes and the token (RFC 9000 section 10.3). */
	HS_QUIC_LEAST_RESET_BYTES = 5 + NGTCP2_STATELESS_RESET_TOKENLEN,
};

struct hs_cid_entry {
	struct hs_cid_entry *next; /* in the bucket */
	struct hs_cid_entry *next_own; /* of the connection */
	struct hs_connection *connection;
	uint8_t bytes;
	uint8_t cid[NGTCP2_MAX_CIDLEN];
};

struct hs_cid_table {
	uint64_t seed[2];
	uint32_t mask;
	uint32_t count;
	struct hs_cid_entry **buckets;
};

struct hs_stream_table {
	uint64_t seed[2];
	uint32_t mask;
	uint32_t count;
	struct hs_stream **buckets;
};

/* Trusted CAs, and a certificate with its key. A garbage collection in any thread may release
 * references, so they are counted atomically. */
struct hs_credentials {
	_Atomic uint32_t references;
	gnutls_certificate_credentials_t credentials;
};

struct hs_name {
	char *name;
	uint32_t group;
};

struct hs_tls {
	_Atomic uint32_t references;
	struct hs_credentials *shared;
	/* A server's certificates in groups for the same names, of which the first is in `shared`, and
	 * names in ascending order. */
	gnutls_certificate_credentials_t *groups;
	struct hs_name *names;
	uint32_t group_count; /* without the first */
	uint32_t name_count;
	gnutls_priority_t priority;
	gnutls_datum_t alpn[HS_QUIC_MAX_ALPN];
	uint32_t alpn_count;
	uint8_t *alpn_names;
	uint8_t verifies;
	uint8_t asks_clients; /* sends a CertificateRequest */
	uint8_t requires_clients; /* a client must present a certificate */
};

struct hs_listener {
	struct hs_listener *next;
	uint32_t references; /* one for the engine, and one for each connection */
	uint32_t number;
	uint8_t ip_version;
	uint8_t ip[16]; /* all zeros: any */
	uint16_t port;
	struct hs_tls *tls;
	struct hs_quic_config config;
	uint8_t ticket_keys[HS_QUIC_VERSIONS][HS_QUIC_TICKET_KEY_BYTES]; /* in the order of hs_versions */
};

/* Pending events of a connection, as bits. */
enum hs_pending {
	HS_PENDING_ESTABLISHED = 1 << 0,
	HS_PENDING_STREAMS_AVAILABLE = 1 << 1,
	HS_PENDING_CLOSED = 1 << 2,
	HS_PENDING_FORGOTTEN = 1 << 3,
	HS_PENDING_READABLE = 1 << 5,
	HS_PENDING_WRITABLE = 1 << 8,
	HS_PENDING_DATAGRAMS = 1 << 11,
	HS_PENDING_PATH_CHANGED = 1 << 12,
	HS_PENDING_MIGRATION_FAILED = 1 << 13,
	HS_PENDING_HANDSHAKE = 1 << 14,
	HS_PENDING_TICKET = 1 << 15,
	HS_PENDING_TOKEN = 1 << 16,
};

/* Streams with something to send. */
struct hs_stream_list {
	struct hs_stream *first, *last;
};

struct hs_stream {
	struct hs_connection *connection;
	void *session; /* the plane's; NULL: the plane does not know the stream */
	int64_t id;
	struct hs_stream *next, *previous; /* in the connection's list */
	struct hs_stream *next_in_bucket;
	struct hs_stream *next_to_send, *previous_to_send;
	struct hs_stream *next_touched;
	struct hs_stream *next_read, *previous_read; /* since the last turn */
	struct hs_fifo_producer *rx; /* NULL: send only */
	struct hs_fifo_consumer *tx; /* NULL: receive only */
	uint64_t credited; /* received bytes that are stored no more */
	uint64_t extended; /* those for which its window was extended */
	uint64_t window_bytes; /* from what was read on, the peer may send so much */
	/* Since this time, and from this offset on: how fast the application reads. */
	uint64_t reading_since_ns, reading_from;
	uint64_t tx_next; /* the first byte that was not sent yet */
	uint64_t tx_acked;
	uint64_t reset_code; /* from the peer, as is the next */
	uint64_t stop_code;
	uint64_t own_reset_code;
	uint64_t own_stop_code;
	uint32_t pending; /* enum hs_stream_event */
	uint8_t list; /* of its connection's lists to send, that in which it is listed */
	unsigned int is_local : 1;
	unsigned int is_listed : 1; /* in one of its connection's lists */
	unsigned int has_had_credit : 1; /* of the connection's window, since it became starved */
	unsigned int is_touched : 1;
	unsigned int is_read : 1; /* in its connection's list */
	unsigned int is_read_fast : 1; /* it gets its whole FIFO as the window */
	unsigned int is_blocked : 1; /* by the peer's window for this stream */
	unsigned int has_sent_fin : 1;
	unsigned int fin_went_alone : 1; /* in a frame without bytes */
	unsigned int fin_is_acked : 1;
	unsigned int tx_is_over : 1; /* finished, or abandoned */
	unsigned int has_reported_finished : 1;
	unsigned int has_rx_end : 1; /* FIN or RESET_STREAM was received */
	unsigned int is_discarding : 1; /* the application stopped reading */
	unsigned int is_gone : 1; /* ngtcp2 has closed it */
};

enum hs_connection_state {
	HS_OPENING,
	HS_OPEN,
	HS_CLOSING, /* our CONNECTION_CLOSE was sent (RFC 9000 section 10.2.1) */
	HS_DRAINING, /* the peer's was received (section 10.2.2) */
	HS_OVER,
};

/* The peer's progress in the handshake: its last message, in the order of RFC 8446 section 2. */
enum hs_handshake_step {
	HS_STEP_BEGIN, /* or a HelloRetryRequest */
	HS_STEP_HELLO,
	HS_STEP_EXTENSIONS,
	HS_STEP_CERTIFICATE_REQUEST,
	HS_STEP_CERTIFICATE,
	HS_STEP_CERTIFICATE_VERIFY,
	HS_STEP_FINISHED,
	HS_STEP_TICKET,
};

/* The peer's TLS messages. */
struct hs_handshake {
	uint8_t *message; /* an incomplete message; NULL: none */
	uint32_t bytes, room; /* of `message` */
	uint8_t level; /* its ngtcp2_encryption_level */
	uint8_t step; /* enum hs_handshake_step */
	uint8_t hellos; /* ClientHellos or ServerHellos received */
	uint8_t keys; /* installed in ngtcp2, see hs_handshake_on_secrets */
	int error; /* the ngtcp2 error for an invalid message; 0: none */
	struct hs_early_secret *early; /* while a message is processed */
};

enum {
	HS_SIZE_WORDS = 64,
	HS_SIZE_CANDIDATES = 5,
};

/* What is known of the path's MTU beside ngtcp2's own probes. */
struct hs_size {
	/* When the first packet above 1,200 bytes since the last acknowledged one was sent; 0:
	 * none was. */
	uint64_t silent_since_ns;
	uint64_t next_number; /* lower bound of the next 1-RTT packet's number */
	uint64_t largest_acked;
	uint64_t raise_at_ns; /* when to try larger packets again, if there is a limit */
	uint64_t raise_after_ns; /* how long to wait the next time */
	uint64_t large[HS_SIZE_WORDS]; /* bits, by packet number: above 1,200 and unacknowledged */
	uint32_t limit; /* the largest datagram; 0: no limit */
	uint32_t trial_bytes; /* one datagram may have this size; 0: no trial now */
	uint8_t tried; /* number of sizes tried since `raise_at_ns` */
	uint8_t was_large; /* a packet above 1,200 was sent since the trial began */
	uint8_t may_be_late; /* packets sent before the fall-back may still be acknowledged */
	uint8_t is_proven; /* one of them was acknowledged; input for hs_size_check */
};

struct hs_connection {
	struct hs_quic *q;
	ngtcp2_conn *conn;
	gnutls_session_t session;
	ngtcp2_crypto_conn_ref ref;
	struct hs_tls *tls; /* NULL: a server's, after hs_connection_release_tls */
	struct hs_listener *listener; /* NULL: a client's connection */
	void *streams_owner; /* the plane's session; NULL: none yet */
	char *server_name; /* NULL: a server's client asked for none */
	struct hs_path *path;
	struct hs_path *last_path; /* the previous one; any of these three may be NULL */
	struct hs_path *next_path; /* being validated */
	struct hs_path *wanted_path; /* to migrate to, as soon as the peer allows it */
	struct hs_cid_entry *cids;
	struct hs_connection *next_due, *previous_due;
	struct hs_connection *next_touched;
	/* While half open: neighbours in the list of all, and of its source; see
	 * quic/half_open.c. */
	struct hs_connection *older, *newer, *older_of_source, *newer_of_source;
	struct hs_source *source; /* NULL: none */
	uint64_t began_ns;
	struct hs_stream *streams;
	/* By rank (memory/fifo.h): they need no credit, or credit was available. The last one: those
	 * that wait for credit in the connection's window. */
	struct hs_stream_list to_send[HS_FIFO_RANKS + 1];
	uint32_t ranks; /* a bit for each of these that has streams, without the last */
	uint32_t rounds; /* of sending */
	struct hs_stream *first_read; /* those that may get a larger window */
	struct hs_stream *touched_streams, **touched_end;
	struct hs_datagrams *datagrams; /* NULL: not offered */
	uint8_t *close_packet;
	uint64_t deadline_ns;
	uint64_t came_while_closing;
	uint64_t key_update_at; /* in packets sent */
	uint64_t rx_datagrams, rx_bytes, tx_datagrams, tx_bytes, acked_bytes, rx_ecn_ce;
	uint64_t rx_packets[HS_QUIC_PACKETS], tx_packets[HS_QUIC_PACKETS];
	uint64_t credited; /* as of a stream, over all */
	uint64_t extended; /* by so much the window was extended */
	/* The peer's streams by direction: opened, allowed, and credit that is not sent yet. */
	struct {
		uint64_t opened, allowed, held_back;
	} peers_streams[2];
	uint64_t allow_at_ns; /* when these are sent at the latest; 0: no time is set */
	uint64_t sent_stream_bytes; /* everything sent in STREAM frames */
	uint64_t new_stream_bytes; /* sent for the first time */
	uint32_t heap_place; /* from 1; 0: not in the heap */
	uint32_t number;
	uint32_t stream_count;
	uint32_t pending;
	uint32_t path_changes;
	uint16_t close_bytes;
	uint8_t state; /* enum hs_connection_state */
	uint8_t is_due;
	uint8_t is_touched;
	uint8_t is_dead; /* the application was notified, and no longer counts it */
	uint8_t close_is_due; /* the application requested it, or its packet must be sent again */
	uint8_t was_reset; /* by a stateless reset */
	uint8_t is_known; /* it was reported to the caller */
	uint8_t is_half_open; /* a peer's handshake in progress */
	uint8_t has_peer_cids; /* the peer provided connection IDs beside its first */
	uint8_t has_written_open; /* so our last handshake message was sent */
	uint8_t has_open_window; /* the connection's, beyond its first part */
	uint8_t has_dropped; /* bytes of streams that were reset or stopped, perhaps */
	uint8_t is_unpaced; /* for ever: the path was short */
	uint8_t is_confirmed; /* the handshake, for both sides (RFC 9001 section 4.1.2) */
	uint8_t is_early; /* reported to the application before its handshake was complete */
	uint8_t was_early_rejected;
	uint8_t keeps_tickets; /* and tokens */
	uint16_t token_bytes;
	uint32_t ticket_lifetime_s;
	uint32_t next_version; /* for a client after Version Negotiation; 0: none */
	uint8_t *token;
	gnutls_datum_t ticket;
	gnutls_typed_vdata_st expected[2]; /* of the server's certificate */
	unsigned int client_flaws; /* of its certificate (gnutls_certificate_status_t) */
	const char *failure; /* why a callback failed; NULL: use ngtcp2's error text */
	struct hs_handshake tls_messages;
	struct hs_size size;
	struct hs_quic_config config;
	struct hs_quic_close_info close_info;
};

struct hs_stop {
	int64_t stream_id;
	uint64_t code;
};

/* How many answers without a connection may be sent: so many a second, and a burst of that many
 * after a quiet second. */
struct hs_budget {
	uint64_t filled_ns; /* when it was last refilled */
	uint64_t left_ns; /* a second at most, of which each answer takes its share */
};

/* Answers to anyone who sends a datagram. */
enum hs_answer {
	HS_ANSWER_VERSION_NEGOTIATION,
	HS_ANSWER_RETRY,
	HS_ANSWER_REFUSAL, /* of a token */
	HS_ANSWER_RESET,
	HS_ANSWERS, /* the number of values */
};

struct hs_quic {
	struct hs_wire *wire;
	uint8_t has_held; /* the last turn left acknowledgements to this one */
	const struct hs_session_verbs *sessions;
	hs_quic_find_session find_session;
	hs_quic_make_fifos make_fifos;
	hs_quic_find_path find_path;
	void *owner;
	uint64_t now_ns;
	uint8_t cid_prefix[HS_CID_RANDOM_OFFSET];
	uint8_t secret[HS_QUIC_SECRET_BYTES];
	struct hs_replays *replays; /* NULL: no listener has offered 0-RTT yet */
	struct hs_cid_table cids;
	struct hs_stream_table streams; /* of all connections */
	struct hs_connection **connections; /* by number */
	uint32_t connection_room, connection_top; /* numbers below top were used */
	uint32_t connection_count;
	uint32_t *free_numbers;
	uint32_t free_count;
	uint32_t half_open;
	struct hs_half_open *handshakes;
	uint64_t unreadable_since_ns; /* when `unreadable` was last reset to 0 */
	uint32_t unreadable; /* invalid first packets in this second */
	struct hs_held_store *held; /* NULL: nothing was held yet */
	struct hs_listener *listeners;
	struct hs_listener *closed_listeners; /* still used by connections */
	uint32_t next_listener;
	struct hs_connection **heap; /* by deadline; from 1 */
	uint32_t heap_count, heap_room;
	struct hs_connection *first_due, *last_due;
	struct hs_connection *touched, **touched_end;
	struct hs_connection *dead_connections; /* freed when the next turn begins */
	struct hs_stream *dead_streams;
	struct hs_quic_event *events;
	uint32_t event_count, event_room;
	struct hs_stop *stops; /* in the datagram that is being read */
	uint32_t stop_count, stop_room;
	uint8_t came_with_cid; /* the datagram had a NEW_CONNECTION_ID frame */
	struct hs_budget budgets[HS_ANSWERS];
	uint32_t full_bursts; /* lately, less those that were not: see HS_OVERLOADED_AFTER */
	uint32_t answers_in_burst;
	struct hs_quic_counters counters;
};

#endif
