/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the native engine share. Each has one subject:
 *
 *   quic/turn.c        bursts in and out, timers, what goes to the caller
 *   quic/accept.c      datagrams that belong to no connection
 *   quic/half_open.c   handshakes of peers under way: how many, and of whom
 *   quic/held.c        0-RTT packets that wait for their ClientHello
 *   quic/connection.c  a connection's life: beginning, reading, writing
 *   quic/version.c     which version it speaks
 *   quic/close.c       its end
 *   quic/resume.c      sessions that are resumed, and 0-RTT
 *   quic/callbacks.c   what ngtcp2 tells and asks
 *   quic/packets.c     packets as they pass encryption: counted, and looked into
 *   quic/frames.c      frames of which ngtcp2 does not tell
 *   quic/stream.c      streams and their FIFOs
 *   quic/datagram.c    datagrams and their FIFOs
 *   quic/path.c        the path of a connection, and where it moves to
 *   quic/size.c        how large its datagrams may be
 *   quic/tls.c         GnuTLS credentials and sessions
 *   quic/handshake.c   the peer's TLS messages, before GnuTLS sees them
 *   quic/chacha.c      OpenSSL's ChaCha20-Poly1305 in place of GnuTLS's
 *   quic/tables.c      connections by connection ID, and by deadline; streams by their number
 *
 * Calls go down this list, never up; quic/callbacks.c is entered from ngtcp2 alone.
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
#include "steer.h"
#include "wire/verbs.h"

enum {
	/* Handshakes of peers under way at once: anybody can begin one from a forged address. */
	HS_QUIC_MAX_HALF_OPEN = 1024,
	HS_QUIC_TICKET_KEY_BYTES = 64, /* what GnuTLS wants */
	HS_QUIC_LONG_HEADER = 0x80, /* in a packet's first byte (RFC 9000 section 17.2) */
	HS_QUIC_VERSIONS = 2,
	/* Of a stateless reset: 5 unpredictable bytes and the token (RFC 9000 section 10.3). */
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

struct hs_tls {
	uint32_t references;
	gnutls_certificate_credentials_t credentials;
	gnutls_priority_t priority;
	gnutls_datum_t alpn[HS_QUIC_MAX_ALPN];
	uint32_t alpn_count;
	uint8_t *alpn_names;
	uint8_t verifies;
	uint8_t asks_clients; /* for certificates */
	uint8_t requires_clients; /* to show one */
};

struct hs_listener {
	struct hs_listener *next;
	uint32_t references; /* one of the engine's, and one of each connection */
	uint32_t number;
	uint8_t ip_version;
	uint8_t ip[16]; /* all zeros: any */
	uint16_t port;
	struct hs_tls *tls;
	struct hs_quic_config config;
	uint8_t ticket_keys[HS_QUIC_VERSIONS][HS_QUIC_TICKET_KEY_BYTES]; /* in the order of hs_versions */
};

/* Bits of what there is to tell about a connection or a stream. */
enum hs_pending {
	HS_PENDING_ESTABLISHED = 1 << 0,
	HS_PENDING_STREAMS_AVAILABLE = 1 << 1,
	HS_PENDING_CLOSED = 1 << 2,
	HS_PENDING_FORGOTTEN = 1 << 3,
	HS_PENDING_OPENED = 1 << 4,
	HS_PENDING_READABLE = 1 << 5,
	HS_PENDING_RESET = 1 << 6,
	HS_PENDING_STOPPED = 1 << 7,
	HS_PENDING_WRITABLE = 1 << 8,
	HS_PENDING_SEND_FINISHED = 1 << 9,
	HS_PENDING_STREAM_CLOSED = 1 << 10,
	HS_PENDING_DATAGRAMS = 1 << 11,
	HS_PENDING_PATH_CHANGED = 1 << 12,
	HS_PENDING_MIGRATION_FAILED = 1 << 13,
	HS_PENDING_HANDSHAKE = 1 << 14,
	HS_PENDING_TICKET = 1 << 15,
	HS_PENDING_TOKEN = 1 << 16,
};

/* Streams with something to send, in the order of their turns. */
struct hs_stream_list {
	struct hs_stream *first, *last;
};

struct hs_stream {
	struct hs_connection *connection;
	int64_t id;
	struct hs_stream *next, *previous; /* of the connection */
	struct hs_stream *next_in_bucket;
	struct hs_stream *next_to_send, *previous_to_send;
	struct hs_stream *next_touched;
	struct hs_fifo_producer *rx; /* NULL: it only sends */
	struct hs_fifo_consumer *tx; /* NULL: it only receives */
	uint64_t credited; /* received bytes for which the windows were moved */
	uint64_t ungranted; /* of the rx FIFO: not in the stream's window yet */
	uint64_t tx_next; /* the first byte that was not sent yet */
	uint64_t tx_acked;
	uint64_t reset_code; /* the peer's, as the next */
	uint64_t stop_code;
	uint64_t own_reset_code;
	uint64_t own_stop_code;
	uint32_t pending; /* enum hs_pending */
	unsigned int is_local : 1;
	unsigned int is_listed : 1; /* in one of its connection's lists */
	unsigned int has_had_credit : 1; /* of the connection's window, since it waited for that */
	unsigned int is_touched : 1;
	unsigned int is_blocked : 1; /* by the peer's window for this stream */
	unsigned int has_sent_fin : 1;
	unsigned int fin_went_alone : 1; /* in a frame without bytes */
	unsigned int fin_is_acked : 1;
	unsigned int tx_is_over : 1; /* finished, or given up */
	unsigned int has_told_finished : 1;
	unsigned int has_rx_end : 1; /* FIN or RESET_STREAM came */
	unsigned int is_discarding : 1; /* nobody reads any more */
	unsigned int is_gone : 1; /* ngtcp2 knows it no longer */
};

enum hs_connection_state {
	HS_OPENING,
	HS_OPEN,
	HS_CLOSING, /* our CONNECTION_CLOSE was sent (RFC 9000 section 10.2.1) */
	HS_DRAINING, /* the peer's came (section 10.2.2) */
	HS_OVER,
};

/* How far the peer's part of the handshake has come: the last message, in the order of RFC 8446
 * section 2. */
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
	uint8_t *message; /* of which a part has come; NULL: none */
	uint32_t bytes, room; /* of it */
	uint8_t level; /* its ngtcp2_encryption_level */
	uint8_t step; /* enum hs_handshake_step */
	uint8_t hellos; /* that came */
	uint8_t keys; /* that ngtcp2 has, see hs_handshake_on_secrets */
	int error; /* of ngtcp2's, that stands for what was wrong with one; 0: nothing */
};

enum {
	HS_SIZE_WORDS = 64,
	HS_SIZE_CANDIDATES = 5,
};

/* What is known of the path's MTU beside ngtcp2's own probes. */
struct hs_size {
	/* When the first packet above 1,200 bytes went since one was acknowledged; 0: none did. */
	uint64_t silent_since_ns;
	uint64_t next_number; /* the least that the next 1-RTT packet can have */
	uint64_t largest_acked;
	uint64_t raise_at_ns; /* when larger packets are tried again, where there is a limit */
	uint64_t raise_after_ns; /* how long that takes the next time */
	uint64_t large[HS_SIZE_WORDS]; /* bits, by packet number: above 1,200 and not acknowledged */
	uint32_t limit; /* datagrams are no larger; 0: none */
	uint32_t trial_bytes; /* but for one; 0: none is tried now */
	uint8_t tried; /* sizes, since the last time that they were */
	uint8_t was_large; /* a packet above 1,200 went since the trial began */
	uint8_t may_be_late; /* what went before the fall-back may be acknowledged yet */
	uint8_t is_proven; /* one of them was acknowledged, as hs_size_check is to know */
};

struct hs_connection {
	struct hs_quic *q;
	ngtcp2_conn *conn;
	gnutls_session_t session;
	ngtcp2_crypto_conn_ref ref;
	struct hs_tls *tls;
	struct hs_listener *listener; /* NULL: a connection of ours */
	char *server_name;
	struct hs_path *path;
	struct hs_path *last_path; /* the one before; these may be NULL */
	struct hs_path *next_path; /* that is being validated */
	struct hs_path *wanted_path; /* to migrate to, as soon as the peer allows it */
	struct hs_cid_entry *cids;
	struct hs_connection *next_due, *previous_due;
	struct hs_connection *next_touched;
	/* While it is half open: the next of all, and of its source; see quic/half_open.c. */
	struct hs_connection *older, *newer, *older_of_source, *newer_of_source;
	struct hs_source *source; /* NULL: none */
	uint64_t began_ns;
	struct hs_stream *streams;
	struct hs_stream_list to_send; /* what needs no credit, or for which there was some */
	struct hs_stream_list starved; /* these wait for the connection's window */
	struct hs_stream *touched_streams, **touched_end;
	struct hs_datagrams *datagrams; /* NULL: they are not offered */
	uint8_t *close_packet;
	uint64_t deadline_ns;
	uint64_t came_while_closing;
	uint64_t key_update_at; /* packets sent by then */
	uint64_t rx_datagrams, rx_bytes, tx_datagrams, tx_bytes, acked_bytes, rx_ecn_ce;
	uint64_t rx_packets[HS_QUIC_PACKETS], tx_packets[HS_QUIC_PACKETS];
	uint64_t sent_stream_bytes; /* all that went out in STREAM frames */
	uint64_t new_stream_bytes; /* those that went for the first time */
	uint32_t heap_place; /* from 1; 0: not in the heap */
	uint32_t number;
	uint32_t stream_count;
	uint32_t pending;
	uint32_t path_changes;
	uint16_t close_bytes;
	uint8_t state; /* enum hs_connection_state */
	uint8_t is_due;
	uint8_t is_touched;
	uint8_t is_dead; /* the application was told, and counts it no more */
	uint8_t close_is_due; /* the application wants it closed, or its packet must go again */
	uint8_t was_reset; /* by a stateless reset */
	uint8_t is_half_open; /* a peer's, and its handshake is under way */
	uint8_t has_peer_cids; /* the peer gave more connection IDs than its first */
	uint8_t has_written_open; /* so that the handshake's last message of ours is out */
	uint8_t is_confirmed; /* the handshake, to both sides (RFC 9001 section 4.1.2) */
	uint8_t is_early; /* the application knew of it before its handshake was complete */
	uint8_t was_early_rejected;
	uint8_t keeps_tickets; /* and tokens */
	uint16_t token_bytes;
	uint32_t ticket_lifetime_s;
	uint32_t next_version; /* what a Version Negotiation packet leaves a client; 0: none */
	uint8_t *token;
	gnutls_datum_t ticket;
	gnutls_typed_vdata_st expected[2]; /* of the server's certificate */
	unsigned int client_flaws; /* of its certificate (gnutls_certificate_status_t) */
	const char *failure; /* why a callback failed; NULL: nobody knows better than ngtcp2 */
	struct hs_handshake tls_messages;
	struct hs_size size;
	struct hs_quic_config config;
	struct hs_quic_close_info close_info;
};

struct hs_stop {
	int64_t stream_id;
	uint64_t code;
};

struct hs_parked {
	uint8_t *data;
	uint32_t bytes;
	uint8_t ecn;
	uint8_t is_admitted;
	int64_t path_id;
	uint8_t key[HS_PATH_KEY_BYTES];
};

struct hs_quic {
	struct hs_wire *wire;
	hs_quic_make_fifos make_fifos;
	hs_quic_find_path find_path;
	void *owner;
	uint64_t now_ns;
	uint8_t cid_prefix[HS_CID_RANDOM_OFFSET];
	uint8_t secret[HS_QUIC_SECRET_BYTES];
	struct hs_replays *replays; /* NULL: nobody has offered 0-RTT yet */
	struct hs_cid_table cids;
	struct hs_stream_table streams; /* of all connections */
	struct hs_connection **connections; /* by number */
	uint32_t connection_room, connection_top; /* numbers below top were given out */
	uint32_t connection_count;
	uint32_t *free_numbers;
	uint32_t free_count;
	uint32_t half_open;
	struct hs_half_open *handshakes;
	uint64_t unreadable_since_ns; /* when `unreadable` was 0 last */
	uint32_t unreadable; /* first packets that were none, in this second */
	struct hs_held_store *held; /* NULL: nothing was held yet */
	struct hs_listener *listeners;
	struct hs_listener *closed_listeners; /* that connections still use */
	uint32_t next_listener;
	struct hs_connection **heap; /* by deadline; from 1 */
	uint32_t heap_count, heap_room;
	struct hs_connection *first_due, *last_due;
	struct hs_connection *touched, **touched_end;
	struct hs_connection *dead_connections; /* freed when the next turn begins */
	struct hs_stream *dead_streams;
	struct hs_parked parked[HS_WIRE_BURST];
	uint32_t parked_count;
	struct hs_quic_event *events;
	uint32_t event_count, event_room;
	struct hs_stop *stops; /* of the datagram that is being read */
	uint32_t stop_count, stop_room;
	uint8_t came_with_cid; /* it had a NEW_CONNECTION_ID frame */
	uint64_t reset_tokens_ns; /* when the budget of stateless resets was filled last */
	uint32_t reset_budget;
	struct hs_quic_counters counters;
};

/* quic/turn.c */
void hs_make_due(struct hs_connection *c);
void hs_touch(struct hs_connection *c, uint32_t pending);
void hs_touch_stream(struct hs_stream *s, uint32_t pending);

/* quic/accept.c: a datagram whose connection ID nobody knows */
void hs_take_unknown(struct hs_quic *q, const struct hs_received *datagram,
		     const ngtcp2_version_cid *ids);
/* One with a long header for a connection whose handshake is under way. */
void hs_take_early(struct hs_connection *c, const struct hs_received *datagram,
		   const ngtcp2_version_cid *ids);
void hs_answer_version(struct hs_quic *q, const struct hs_received *datagram,
		       const ngtcp2_version_cid *ids);
/* Keep a datagram until its path is known. */
void hs_park(struct hs_quic *q, const struct hs_received *datagram);
void hs_listener_release(struct hs_quic *q, struct hs_listener *listener);

/* quic/half_open.c */
struct hs_half_open *hs_half_open_new(void);
void hs_half_open_free(struct hs_half_open *all);
/* Make room for another handshake, in place of an older one if need be. Returns 0, or -1 if there is
 * none for this source. */
int hs_half_open_make_room(struct hs_quic *q, const struct hs_quic_config *config,
			   const union hs_address *remote, int is_proven);
/* A peer's connection begins; `is_proven` says that its address is the peer's. */
void hs_half_open_begin(struct hs_connection *c, int is_proven);
/* Its handshake is complete, or was given up. Idempotent. */
void hs_half_open_end(struct hs_connection *c);

/* quic/held.c */
void hs_held_add(struct hs_quic *q, const struct hs_received *datagram,
		 const ngtcp2_version_cid *ids);
/* The connection has read its ClientHello: give it what was held for it. */
void hs_held_give(struct hs_connection *c);
/* Drop what was held for too long. */
void hs_held_expire(struct hs_quic *q);
void hs_held_free(struct hs_quic *q);

/* quic/connection.c */
extern const uint32_t hs_versions[HS_QUIC_VERSIONS]; /* those that are spoken here */
struct hs_connection *hs_connection_accept(struct hs_listener *listener, struct hs_quic *q,
					   struct hs_path *path, const ngtcp2_pkt_hd *hd,
					   const ngtcp2_cid *original_dcid,
					   ngtcp2_token_type token_type);
void hs_connection_read(struct hs_connection *c, const struct hs_received *datagram);
/* Write up to `share` packets. Returns how many; -1 when the way out is full. */
int hs_connection_write(struct hs_connection *c, int share);
void hs_connection_expire(struct hs_connection *c);
void hs_connection_set_timer(struct hs_connection *c);
void hs_connection_free(struct hs_connection *c);

/* A client of a server that does not speak its version: begin anew, with `next_version`. Returns 0, or
 * -1 if that can't be. */
int hs_connection_begin_again(struct hs_connection *c);

/* quic/version.c */
/* All versions, in the order of preference of who prefers this one. */
void hs_version_order(uint32_t versions[HS_QUIC_VERSIONS], uint32_t first);
/* Read a client's transport parameters, and choose the version. Returns 0, or an error of ngtcp2's. */
int hs_version_negotiate(struct hs_connection *c, const uint8_t *parameters, size_t bytes);
/* Whether a client speaks the version that it begins with. RFC 9369 section 5: "TLS session tickets
 * and NEW_TOKEN tokens are specific to the QUIC version of the connection that provided them." */
int hs_version_is_first(const struct hs_connection *c);
/* The secret of NEW_TOKEN tokens for a version. */
void hs_version_token_secret(const struct hs_quic *q, uint32_t version,
			     uint8_t secret[HS_QUIC_SECRET_BYTES]);
/* Callback of ngtcp2. */
int hs_version_on_negotiation(ngtcp2_conn *conn, const ngtcp2_pkt_hd *header,
			      const uint32_t *versions, size_t count, void *user_data);

/* quic/close.c */
/* What ngtcp2 returned: 0, or why the connection ends. */
void hs_close_heed(struct hs_connection *c, int result);
/* Close because of an error of ngtcp2's. */
void hs_close_fail(struct hs_connection *c, int error);
/* A datagram came for a connection that is closing. */
void hs_close_answer(struct hs_connection *c);
/* Write CONNECTION_CLOSE, or write it again. Returns the packets written; -1 when the way out is
 * full. */
int hs_close_send(struct hs_connection *c);
/* Forget a peer's handshake, without a word to it: another one needs its place. */
void hs_close_give_up(struct hs_connection *c);
/* The time for stragglers is over (RFC 9000 section 10.2). */
void hs_close_expire(struct hs_connection *c);

/* quic/resume.c */
struct hs_replays;
/* For a client's session that was just made. */
void hs_resume_begin(struct hs_connection *c, const struct hs_quic_resume *resume);
/* For a server's: tickets, and early data. Returns 0, or -1. */
int hs_resume_offer(struct hs_connection *c);
/* The handshake is complete. Returns 0, or -1 if the connection can't go on. */
int hs_resume_completed(struct hs_connection *c);
void hs_resume_keep_token(struct hs_connection *c, const uint8_t *token, size_t bytes);
void hs_resume_free(struct hs_connection *c);
void hs_resume_free_replays(struct hs_quic *q);
int hs_resume_ticket_key(struct hs_quic *q, struct hs_listener *listener);

/* quic/callbacks.c */
extern const ngtcp2_callbacks hs_client_callbacks;
extern const ngtcp2_callbacks hs_server_callbacks;
/* A connection ID that may be one of ours, of nobody yet. Returns 0, or -1. */
int hs_draw_cid(const struct hs_quic *q, ngtcp2_cid *cid);
/* The same, for a connection from now on, with its token. */
int hs_new_cid(struct hs_connection *c, ngtcp2_cid *cid, uint8_t *reset_token);

/* quic/packets.c */
/* Whose packets are read or written from now on; NULL: nobody's. */
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
/* Look through the frames of a packet. */
void hs_frames_look(struct hs_quic *q, struct hs_size *size, const uint8_t *frames, size_t bytes);
/* How many bytes of streams are in STREAM frames. */
uint64_t hs_frames_stream_bytes(const uint8_t *frames, size_t bytes);

/* quic/stream.c */
struct hs_stream *hs_stream_new(struct hs_connection *c, int64_t id, int is_local,
				struct hs_fifo_producer *rx, struct hs_fifo_consumer *tx);
void hs_stream_unlink(struct hs_stream *s);
/* The stream whose turn it is to send; NULL if none can. */
struct hs_stream *hs_stream_next(struct hs_connection *c);
/* It has bytes, and the connection's window is empty: let others pass that need none. */
void hs_stream_starve(struct hs_stream *s);
/* Put the stream that has just sent behind the others. */
void hs_stream_rotate(struct hs_connection *c);
/* Put into the connection's list if there is something to send. */
void hs_stream_look(struct hs_stream *s);
/* What to send next: up to two pieces. Returns how many; *fin if the stream ends with them. */
size_t hs_stream_gather(struct hs_stream *s, ngtcp2_vec out[2], size_t *bytes, int *fin);
void hs_stream_was_sent(struct hs_stream *s, size_t taken, size_t offered, int fin);
void hs_stream_stop_listing(struct hs_stream *s);
int hs_stream_receive(struct hs_stream *s, uint64_t offset, const uint8_t *data, size_t bytes,
		      int fin);
void hs_stream_acknowledge(struct hs_stream *s, uint64_t offset, uint64_t bytes);
void hs_stream_on_reset(struct hs_stream *s, uint64_t code);
void hs_stream_on_stopped(struct hs_stream *s, uint64_t code);
void hs_stream_on_gone(struct hs_stream *s);
/* Send it again from its first byte: ngtcp2 has just opened it anew. */
void hs_stream_rewind(struct hs_stream *s);

/* quic/datagram.c */
enum { HS_NO_DATAGRAM = -1 }; /* no error of ngtcp2's: those are below -200 */
/* Returns 0, or -1 without memory. */
int hs_datagrams_new(struct hs_connection *c);
/* The largest frame that the peer may send; 0: none at all. */
uint64_t hs_datagrams_offer(const struct hs_connection *c);
/* The handshake is complete. Without memory for FIFOs what comes is dropped. */
void hs_datagrams_open(struct hs_connection *c);
int hs_datagrams_receive(struct hs_connection *c, int is_early, const uint8_t *data, size_t bytes);
/* Find out how large a message may be now, and tell the application if that has changed. */
void hs_datagrams_measure(struct hs_connection *c);
uint64_t hs_datagrams_limit(const struct hs_connection *c);
/* Whether the next packet takes them before streams, which it does every other time. */
int hs_datagrams_are_first(const struct hs_connection *c);
void hs_datagrams_take_turns(struct hs_connection *c);
/* Put the oldest message into a packet. Returns what ngtcp2 says, HS_NO_DATAGRAM if there is none. */
ngtcp2_ssize hs_datagrams_write(struct hs_connection *c, ngtcp2_path *way, ngtcp2_pkt_info *info,
				uint8_t *out, size_t room);

/* quic/path.c */
ngtcp2_path hs_ngtcp2_path(struct hs_path *path);
void hs_path_begin(struct hs_connection *c, struct hs_path *path);
void hs_path_end(struct hs_connection *c);
/* The path that ngtcp2 wants a packet to go along; NULL if nothing is known of it. */
struct hs_path *hs_path_for(struct hs_connection *c, const ngtcp2_path *way);
/* Whether ngtcp2 must not see yet what came along a path. */
int hs_path_is_too_early(const struct hs_connection *c, struct hs_path *path);
void hs_path_validated(struct hs_connection *c, const ngtcp2_path *way, uint32_t flags,
		       int is_good);
/* Begin the migration that is waited for, if that is possible by now. */
void hs_path_try_wanted(struct hs_connection *c);
/* Returns 0, or -1 without a connection ID. */
int hs_path_offer_preferred(struct hs_connection *c, ngtcp2_transport_params *params);
void hs_path_select_preferred(struct hs_connection *c, const ngtcp2_preferred_addr *theirs,
			      ngtcp2_path *out);

/* quic/size.c */
/* The sizes to probe on a path whose interface carries `most`, from the largest; those above 1,200.
 * Returns how many. */
size_t hs_size_candidates(uint32_t most, int ip_version, uint16_t out[HS_SIZE_CANDIDATES]);
/* A 1-RTT packet is about to go; the header is not protected yet. */
void hs_size_sent(struct hs_connection *c, const uint8_t *header, size_t header_bytes,
		  size_t packet_bytes);
/* The peer acknowledged these 1-RTT packets. */
void hs_size_acked(struct hs_size *size, uint64_t first, uint64_t last);
/* Before writing: whether the path carries less than it did, or may carry more by now. */
void hs_size_check(struct hs_connection *c);
/* Nothing is known of the connection's path. */
void hs_size_begin(struct hs_connection *c);
/* The largest datagram now. */
uint32_t hs_size_now(const struct hs_connection *c);
/* What of `room` the next datagram may take. */
size_t hs_size_room(const struct hs_connection *c, size_t room);

/* quic/tls.c */
int hs_tls_session(struct hs_connection *c, int is_server, int early_data);
void hs_tls_hold(struct hs_tls *tls);
/* Why the peer's certificate was refused; empty if it was not. */
void hs_tls_failure(struct hs_connection *c, char *out, size_t room);

/* quic/handshake.c */
/* ngtcp2's callback for what came in CRYPTO frames. */
int hs_handshake_receive(ngtcp2_conn *conn, ngtcp2_encryption_level level, uint64_t offset,
			 const uint8_t *data, size_t bytes, void *user_data);
/* GnuTLS's for the keys that it has made. */
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
/* Time goes forward alone; between turns it stands still. */
void hs_quic_advance(struct hs_quic *q, uint64_t now_ns);
int hs_heap_set(struct hs_quic *q, struct hs_connection *c, uint64_t deadline_ns);
void hs_heap_remove(struct hs_quic *q, struct hs_connection *c);
/* Give a connection its number. */
int hs_number_take(struct hs_quic *q, struct hs_connection *c);
void hs_number_give(struct hs_quic *q, struct hs_connection *c);

#endif
