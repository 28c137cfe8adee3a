/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared by the files of the native engine. Each has one subject:
 *
 *   quic/turn.c        bursts in and out, timers, events for the caller
 *   quic/accept.c      datagrams that match no connection
 *   quic/half_open.c   handshakes of peers in progress: limits, total and per source
 *   quic/held.c        0-RTT packets that wait for their ClientHello
 *   quic/connection.c  a connection's life: beginning, reading, writing
 *   quic/version.c     version negotiation
 *   quic/close.c       closing and draining
 *   quic/resume.c      session resumption, and 0-RTT
 *   quic/callbacks.c   the callbacks of ngtcp2
 *   quic/packets.c     packets as they pass encryption: counted and inspected
 *   quic/frames.c      frames for which ngtcp2 has no callback
 *   quic/sessions.c    the engine as the session plane calls it
 *   quic/stream.c      streams and their FIFOs
 *   quic/datagram.c    datagrams and their FIFOs
 *   quic/path.c        the path of a connection, and migration
 *   quic/size.c        the size of its datagrams
 *   quic/tls.c         GnuTLS credentials and sessions
 *   quic/handshake.c   the peer's TLS messages, before GnuTLS reads them
 *   quic/chacha.c      OpenSSL's ChaCha20-Poly1305 in place of GnuTLS's
 *   quic/tables.c      connections by connection ID and by deadline; streams by number
 *
 * A file calls only those below it in this list; ngtcp2 alone calls quic/callbacks.c.
 */
#ifndef HS_QUIC_INTERNAL_H
#define HS_QUIC_INTERNAL_H

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <ngtcp2/ngtcp2.h>
#include <ngtcp2/ngtcp2_crypto.h>
#include <ngtcp2/ngtcp2_crypto_gnutls.h>

#include "memory/fifo.h"
#include "quic/quic.h"
#include "session/transport.h"
#include "steer.h"
#include "wire/verbs.h"

enum {
	/* Concurrent handshakes of peers: anyone can begin one from a forged address. */
	HS_QUIC_MAX_HALF_OPEN = 1024,
	HS_QUIC_TICKET_KEY_BYTES = 64, /* required by GnuTLS */
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

struct hs_tls {
	_Atomic uint32_t references;
	struct hs_credentials *shared;
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

/* Streams with something to send, in the order in which they are served. */
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
	struct hs_fifo_producer *rx; /* NULL: send only */
	struct hs_fifo_consumer *tx; /* NULL: receive only */
	uint64_t credited; /* received bytes for which the windows were extended */
	uint64_t credited_soon; /* those of which the peer was to hear soon */
	uint64_t ungranted; /* of the rx FIFO: not in the stream's window yet */
	uint64_t tx_next; /* the first byte that was not sent yet */
	uint64_t tx_acked;
	uint64_t reset_code; /* from the peer, as is the next */
	uint64_t stop_code;
	uint64_t own_reset_code;
	uint64_t own_stop_code;
	uint32_t pending; /* enum hs_stream_event */
	unsigned int is_local : 1;
	unsigned int is_listed : 1; /* in one of its connection's lists */
	unsigned int has_had_credit : 1; /* of the connection's window, since it became starved */
	unsigned int is_touched : 1;
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
	struct hs_tls *tls;
	struct hs_listener *listener; /* NULL: a client's connection */
	void *streams_owner; /* the plane's session; NULL: none yet */
	char *server_name;
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
	struct hs_stream_list to_send; /* need no credit, or credit was available */
	struct hs_stream_list starved; /* wait for credit in the connection's window */
	struct hs_stream *touched_streams, **touched_end;
	struct hs_datagrams *datagrams; /* NULL: not offered */
	uint8_t *close_packet;
	uint64_t deadline_ns;
	uint64_t came_while_closing;
	uint64_t key_update_at; /* in packets sent */
	uint64_t rx_datagrams, rx_bytes, tx_datagrams, tx_bytes, acked_bytes, rx_ecn_ce;
	uint64_t rx_packets[HS_QUIC_PACKETS], tx_packets[HS_QUIC_PACKETS];
	uint64_t credited, credited_soon; /* as of a stream, over all */
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

/* quic/turn.c */
void hs_schedule(struct hs_connection *c);
void hs_touch(struct hs_connection *c, uint32_t pending);
void hs_touch_stream(struct hs_stream *s, uint32_t events);

/* quic/sessions.c */
/* Allow the peer one more stream. Returns whether to send that soon. */
int hs_allow_stream(struct hs_connection *c, int is_unidirectional);
/* Allow the peer what was held back, when it is time to. */
void hs_allow_late(struct hs_connection *c);
/* The peer has opened a stream. */
void hs_count_opened(struct hs_connection *c, int64_t stream_id);
/* Whether the peer has used so much of its limit on streams that it should get more. */
int hs_streams_are_scarce(const struct hs_connection *c, int is_unidirectional);

/* quic/accept.c: a datagram that matches no connection */
void hs_read_unmatched(struct hs_quic *q, const struct hs_received *datagram,
		       const ngtcp2_version_cid *ids);
/* A datagram with a long header for a connection whose handshake is in progress. */
void hs_read_early(struct hs_connection *c, const struct hs_received *datagram,
		   const ngtcp2_version_cid *ids);
void hs_answer_version(struct hs_quic *q, const struct hs_received *datagram,
		       const ngtcp2_version_cid *ids);
void hs_listener_release(struct hs_quic *q, struct hs_listener *listener);

/* quic/half_open.c */
struct hs_half_open *hs_half_open_new(void);
void hs_half_open_free(struct hs_half_open *all);
/* Make room for another handshake, replacing an older one if needed. Returns 0, or -1 if this
 * source has no room. */
int hs_half_open_make_room(struct hs_quic *q, const struct hs_quic_config *config,
			   const union hs_address *remote, int is_proven);
/* Register a new connection of a peer; `is_proven` says whether its address was validated. */
void hs_half_open_begin(struct hs_connection *c, int is_proven);
/* Unregister it: its handshake is complete, or was abandoned. Idempotent. */
void hs_half_open_end(struct hs_connection *c);

/* quic/held.c */
void hs_held_add(struct hs_quic *q, const struct hs_received *datagram,
		 const ngtcp2_version_cid *ids);
/* The connection has read its ClientHello: deliver the packets held for it. */
void hs_held_deliver(struct hs_connection *c);
/* Drop packets that were held for too long. */
void hs_held_expire(struct hs_quic *q);
void hs_held_free(struct hs_quic *q);

/* quic/connection.c */
extern const uint32_t hs_versions[HS_QUIC_VERSIONS]; /* the supported ones */
struct hs_connection *hs_connection_accept(struct hs_listener *listener, struct hs_quic *q,
					   struct hs_path *path, const ngtcp2_pkt_hd *hd,
					   const ngtcp2_cid *original_dcid,
					   ngtcp2_token_type token_type);
void hs_connection_read(struct hs_connection *c, const struct hs_received *datagram);
/* Write up to `share` packets. Returns how many; -1 when the wire is full. */
int hs_connection_write(struct hs_connection *c, int share);
void hs_connection_expire(struct hs_connection *c);
void hs_connection_set_timer(struct hs_connection *c);
void hs_connection_free(struct hs_connection *c);

/* For a client whose version the server does not support: restart with `next_version`. Returns
 * 0, or -1 on failure. */
int hs_connection_begin_again(struct hs_connection *c);

/* quic/version.c */
/* All versions, in the order of preference of an endpoint that prefers this one. */
void hs_version_order(uint32_t versions[HS_QUIC_VERSIONS], uint32_t first);
/* Read a client's transport parameters, and choose the version. Returns 0, or an ngtcp2 error. */
int hs_version_negotiate(struct hs_connection *c, const uint8_t *parameters, size_t bytes);
/* Whether a client uses the version that it began with. RFC 9369 section 5: "TLS session tickets
 * and NEW_TOKEN tokens are specific to the QUIC version of the connection that provided them." */
int hs_version_is_first(const struct hs_connection *c);
/* The secret of NEW_TOKEN tokens for a version. */
void hs_version_token_secret(const struct hs_quic *q, uint32_t version,
			     uint8_t secret[HS_QUIC_SECRET_BYTES]);
/* Callback of ngtcp2. */
int hs_version_on_negotiation(ngtcp2_conn *conn, const ngtcp2_pkt_hd *header,
			      const uint32_t *versions, size_t count, void *user_data);

/* quic/close.c */
/* Close the connection if ngtcp2 returned a fatal error. */
void hs_close_on_error(struct hs_connection *c, int result);
/* Close because of an ngtcp2 error. */
void hs_close_fail(struct hs_connection *c, int error);
/* A datagram was received for a connection that is closing. */
void hs_close_answer(struct hs_connection *c);
/* Write CONNECTION_CLOSE, or write it again. Returns the packets written; -1 when the wire is
 * full. */
int hs_close_send(struct hs_connection *c);
/* Abandon a peer's handshake without notifying the peer: a newer one needs its place. */
void hs_close_give_up(struct hs_connection *c);
/* The closing or draining period has ended (RFC 9000 section 10.2). */
void hs_close_expire(struct hs_connection *c);

/* quic/resume.c */
struct hs_replays;
/* For a client's new session. */
void hs_resume_begin(struct hs_connection *c, const struct hs_quic_resume *resume);
/* A NewSessionTicket came: before GnuTLS reads it (GNUTLS_HOOK_PRE), and after that. */
void hs_resume_on_ticket(struct hs_connection *c, unsigned int when, const gnutls_datum_t *message);
/* For a server's session: tickets, and early data. Returns 0, or -1. */
int hs_resume_offer(struct hs_connection *c);
/* The handshake is complete. Returns 0, or -1 if the connection can't continue. */
int hs_resume_completed(struct hs_connection *c);
void hs_resume_keep_token(struct hs_connection *c, const uint8_t *token, size_t bytes);
void hs_resume_free(struct hs_connection *c);
void hs_resume_free_replays(struct hs_quic *q);
int hs_resume_ticket_key(struct hs_quic *q, struct hs_listener *listener);

/* quic/callbacks.c */
extern const ngtcp2_callbacks hs_client_callbacks;
extern const ngtcp2_callbacks hs_server_callbacks;
/* Generate an unused connection ID for this side. Returns 0, or -1. */
int hs_draw_cid(const struct hs_quic *q, ngtcp2_cid *cid);
/* Generate a connection ID and its token, and register it for a connection. */
int hs_new_cid(struct hs_connection *c, ngtcp2_cid *cid, uint8_t *reset_token);

/* quic/packets.c */
/* Set the connection whose packets are read or written from now on; NULL: none. */
void hs_packets_of(struct hs_connection *c);
int hs_encrypt(uint8_t *out, const ngtcp2_crypto_aead *aead, const ngtcp2_crypto_aead_ctx *context,
	       const uint8_t *plaintext, size_t bytes, const uint8_t *nonce, size_t nonce_bytes,
	       const uint8_t *header, size_t header_bytes);
int hs_decrypt(uint8_t *out, const ngtcp2_crypto_aead *aead, const ngtcp2_crypto_aead_ctx *context,
	       const uint8_t *ciphertext, size_t bytes, const uint8_t *nonce, size_t nonce_bytes,
	       const uint8_t *header, size_t header_bytes);

/* quic/frames.c */
void hs_stops_begin(struct hs_quic *q);
void hs_stops_end(struct hs_connection *c);
/* Inspect the frames of a packet. */
void hs_frames_look(struct hs_quic *q, struct hs_size *size, const uint8_t *frames, size_t bytes);
/* How many bytes of stream data the STREAM frames hold. */
uint64_t hs_frames_stream_bytes(const uint8_t *frames, size_t bytes);

/* quic/stream.c */
struct hs_stream *hs_stream_new(struct hs_connection *c, int64_t id, int is_local);
void hs_stream_set_session(struct hs_stream *s, void *session, struct hs_fifo_producer *rx,
			   struct hs_fifo_consumer *tx);
void hs_stream_unlink(struct hs_stream *s);
/* The application wrote into the tx FIFO, or set its end. */
void hs_stream_send_ready(struct hs_stream *s);
/* The application read from the rx FIFO. Returns whether to send the credit soon. */
int hs_stream_consumed(struct hs_stream *s);
void hs_stream_reset(struct hs_stream *s, uint64_t code);
void hs_stream_stop_sending(struct hs_stream *s, uint64_t code);
/* The next stream to send from; NULL if none can. */
struct hs_stream *hs_stream_next(struct hs_connection *c);
/* It has bytes, but the connection's window is empty: serve streams that need no credit first. */
void hs_stream_starve(struct hs_stream *s);
/* Move the stream that has just sent behind the others. */
void hs_stream_rotate(struct hs_connection *c);
/* List the stream if it has something to send. */
void hs_stream_look(struct hs_stream *s);
/* Return what to send next in up to two pieces, and their number; *fin if the stream ends with
 * them. */
size_t hs_stream_gather(struct hs_stream *s, ngtcp2_vec out[2], size_t *bytes, int *fin);
void hs_stream_was_sent(struct hs_stream *s, size_t taken, size_t offered, int fin);
void hs_stream_stop_listing(struct hs_stream *s);
int hs_stream_receive(struct hs_stream *s, uint64_t offset, const uint8_t *data, size_t bytes,
		      int fin);
void hs_stream_acknowledge(struct hs_stream *s, uint64_t offset, uint64_t bytes);
void hs_stream_on_reset(struct hs_stream *s, uint64_t code);
void hs_stream_on_stopped(struct hs_stream *s, uint64_t code);
void hs_stream_on_gone(struct hs_stream *s);
/* Send from the first byte again: ngtcp2 has just reopened the stream. */
void hs_stream_rewind(struct hs_stream *s);

/* quic/datagram.c */
enum { HS_NO_DATAGRAM = -1 }; /* not an ngtcp2 error: those are below -200 */
/* Returns 0, or -1 without memory. */
int hs_datagrams_new(struct hs_connection *c);
/* The largest frame that the peer may send; 0: none at all. */
uint64_t hs_datagrams_offer(const struct hs_connection *c);
/* The handshake is complete. Without memory for FIFOs, received datagrams are dropped. */
void hs_datagrams_open(struct hs_connection *c);
int hs_datagrams_receive(struct hs_connection *c, int is_early, const uint8_t *data, size_t bytes);
/* Determine the largest message now, and notify the application if it has changed. */
void hs_datagrams_measure(struct hs_connection *c);
uint64_t hs_datagrams_limit(const struct hs_connection *c);
/* Whether the next packet is filled with datagrams before streams, as every other one is. */
int hs_datagrams_are_first(const struct hs_connection *c);
void hs_datagrams_take_turns(struct hs_connection *c);
/* Put the oldest message into a packet. Returns ngtcp2's result, HS_NO_DATAGRAM if there is
 * none. */
ngtcp2_ssize hs_datagrams_write(struct hs_connection *c, ngtcp2_path *path, ngtcp2_pkt_info *info,
				uint8_t *out, size_t room);

/* quic/path.c */
ngtcp2_path hs_ngtcp2_path(struct hs_path *path);
void hs_path_begin(struct hs_connection *c, struct hs_path *path);
void hs_path_end(struct hs_connection *c);
/* The path on which ngtcp2 wants to send a packet; NULL if it is unknown. */
struct hs_path *hs_path_for(struct hs_connection *c, const ngtcp2_path *endpoints);
/* Whether a datagram on this path must be withheld from ngtcp2 for now. */
int hs_path_is_too_early(const struct hs_connection *c, struct hs_path *path);
void hs_path_validated(struct hs_connection *c, const ngtcp2_path *endpoints, uint32_t flags,
		       int is_good);
/* Begin the pending migration, if that is possible by now. */
void hs_path_try_wanted(struct hs_connection *c);
/* Returns 0, or -1 without a connection ID. */
int hs_path_offer_preferred(struct hs_connection *c, ngtcp2_transport_params *params);
void hs_path_select_preferred(struct hs_connection *c, const ngtcp2_preferred_addr *theirs,
			      ngtcp2_path *out);

/* quic/size.c */
/* The sizes to probe on a path whose interface carries `most`: those above 1,200, from the
 * largest. Returns how many. */
size_t hs_size_candidates(uint32_t most, int ip_version, uint16_t out[HS_SIZE_CANDIDATES]);
/* A 1-RTT packet is about to be sent; its header is not protected yet. */
void hs_size_sent(struct hs_connection *c, const uint8_t *header, size_t header_bytes,
		  size_t packet_bytes);
/* The peer acknowledged these 1-RTT packets. */
void hs_size_acked(struct hs_size *size, uint64_t first, uint64_t last);
/* Before writing: detect whether the path carries less than it did, or may carry more by now. */
void hs_size_check(struct hs_connection *c);
/* Reset what is known of the path. */
void hs_size_begin(struct hs_connection *c);
/* The current limit of datagrams. */
uint32_t hs_size_now(const struct hs_connection *c);
/* How much of `room` the next datagram may use. */
size_t hs_size_room(const struct hs_connection *c, size_t room);

/* quic/tls.c */
int hs_tls_session(struct hs_connection *c, int is_server, int early_data);
void hs_tls_hold(struct hs_tls *tls);
/* Why the peer's certificate was refused; empty if it was not. */
void hs_tls_failure(struct hs_connection *c, char *out, size_t room);

/* quic/certificates.c */
/* Whether the keys in a Certificate message cost little to use: 0, or an error of GnuTLS. */
int hs_certificates_check(const gnutls_datum_t *message);
/* Trust the CAs of a PEM text, if their keys cost little to use. As GnuTLS, returns how many, or an
 * error. */
int hs_certificates_trust(gnutls_certificate_credentials_t credentials, const gnutls_datum_t *pem);

/* quic/handshake.c */
/* GnuTLS's callback for messages. */
int hs_handshake_on_message(gnutls_session_t session, unsigned int type, unsigned int when,
			    unsigned int incoming, const gnutls_datum_t *message);
/* ngtcp2's callback for data in CRYPTO frames. */
int hs_handshake_receive(ngtcp2_conn *conn, ngtcp2_encryption_level level, uint64_t offset,
			 const uint8_t *data, size_t bytes, void *user_data);
/* GnuTLS's callback for new keys. */
int hs_handshake_on_secrets(gnutls_session_t session, gnutls_record_encryption_level_t level,
			    const void *rx, const void *tx, size_t bytes);
void hs_handshake_free(struct hs_connection *c);

/* quic/chacha.c: callbacks of ngtcp2 and of GnuTLS, for every cipher */
int hs_chacha_on_secrets(gnutls_session_t session, gnutls_record_encryption_level_t level,
			 const void *rx, const void *tx, size_t bytes);
int hs_chacha_update_key(ngtcp2_conn *conn, uint8_t *rx_secret, uint8_t *tx_secret,
			 ngtcp2_crypto_aead_ctx *rx, uint8_t *rx_iv, ngtcp2_crypto_aead_ctx *tx,
			 uint8_t *tx_iv, const uint8_t *rx_before, const uint8_t *tx_before,
			 size_t bytes, void *user_data);
void hs_chacha_delete(ngtcp2_conn *conn, ngtcp2_crypto_aead_ctx *context, void *user_data);
int hs_chacha_encrypt(uint8_t *out, const ngtcp2_crypto_aead *aead,
		      const ngtcp2_crypto_aead_ctx *context, const uint8_t *plaintext, size_t bytes,
		      const uint8_t *nonce, size_t nonce_bytes, const uint8_t *header,
		      size_t header_bytes);
int hs_chacha_decrypt(uint8_t *out, const ngtcp2_crypto_aead *aead,
		      const ngtcp2_crypto_aead_ctx *context, const uint8_t *ciphertext, size_t bytes,
		      const uint8_t *nonce, size_t nonce_bytes, const uint8_t *header,
		      size_t header_bytes);

/* quic/tables.c */
uint64_t hs_token_time_ns(void);

int hs_cids_init(struct hs_cid_table *table);
void hs_cids_free(struct hs_cid_table *table);
struct hs_connection *hs_cids_find(const struct hs_cid_table *table, const uint8_t *cid,
				   size_t bytes);
int hs_cids_add(struct hs_cid_table *table, struct hs_connection *c, const uint8_t *cid,
		size_t bytes);
void hs_cids_remove(struct hs_cid_table *table, struct hs_connection *c, const uint8_t *cid,
		    size_t bytes);
void hs_cids_remove_all(struct hs_cid_table *table, struct hs_connection *c);

int hs_streams_init(struct hs_stream_table *table);
void hs_streams_free(struct hs_stream_table *table);
struct hs_stream *hs_streams_find(const struct hs_stream_table *table,
				  const struct hs_connection *c, int64_t id);
void hs_streams_add(struct hs_stream_table *table, struct hs_stream *s);
void hs_streams_remove(struct hs_stream_table *table, struct hs_stream *s);
/* Returns 0, or -1 without memory. */
/* Time only moves forward; between turns it does not change. */
void hs_quic_advance(struct hs_quic *q, uint64_t now_ns);
int hs_heap_set(struct hs_quic *q, struct hs_connection *c, uint64_t deadline_ns);
void hs_heap_remove(struct hs_quic *q, struct hs_connection *c);
/* Allocate a connection's number. */
int hs_number_allocate(struct hs_quic *q, struct hs_connection *c);
void hs_number_release(struct hs_quic *q, struct hs_connection *c);

#endif
