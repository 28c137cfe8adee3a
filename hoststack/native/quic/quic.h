/* SPDX-License-Identifier: Apache-2.0
 *
 * The native QUIC engine: ngtcp2 for the state machine, GnuTLS for TLS, and a turn that, in one
 * call, receives a burst of datagrams, processes the connections, and fills the wire's output.
 *
 * Stream data lies in FIFOs (fifo.h) shared with the application. Received bytes are copied from
 * the decryption buffer into the rx FIFO. Packets are written from the tx FIFO, which stores the
 * bytes until they are acknowledged.
 *
 * Streams belong to the session plane (session/transport.h): the engine reports their events to it,
 * and implements its operations.
 *
 * One thread at a time. Times are nanoseconds on the caller's clock. Pointers to connections are
 * valid until the turn after the one that reported HS_QUIC_FORGOTTEN, and pointers to streams until
 * HS_STREAM_OVER.
 */
#ifndef HS_QUIC_H
#define HS_QUIC_H

#include <stddef.h>
#include <stdint.h>

struct hs_wire; /* wire/wire.h */
struct hs_quic;
struct hs_connection;
struct hs_stream;
struct hs_listener;
struct hs_tls;
struct hs_fifo_producer;
struct hs_fifo_consumer;
struct hs_session_verbs; /* session/transport.h */

enum {
	HS_QUIC_SECRET_BYTES = 32,
	HS_QUIC_MAX_ALPN = 8, /* limits of GnuTLS, as is the next */
	HS_QUIC_ALPN_BYTES = 31,
	HS_QUIC_REASON_BYTES = 256,
	HS_QUIC_TOKEN_BYTES = 512, /* longer tokens are ignored */
	HS_QUIC_NO_RETRY = 0x7fffffff, /* as `retry_above`: never */
};

/* The numbers are those of EventKind (hoststack/quic/seam.py); those from 100 on are internal to
 * the engine and its Python part. */
enum hs_quic_event_kind {
	HS_QUIC_ACCEPTED = 1,
	HS_QUIC_CONNECTED = 2,
	HS_QUIC_CLOSED = 3,
	HS_QUIC_READABLE = 5, /* datagrams, as is the next */
	HS_QUIC_WRITABLE = 6,
	HS_QUIC_STREAMS_AVAILABLE = 10,
	HS_QUIC_DATAGRAMS_READY = 12,
	HS_QUIC_PATH_CHANGED = 13,
	HS_QUIC_MIGRATION_FAILED = 14,
	HS_QUIC_HANDSHAKE_DONE = 15,
	HS_QUIC_FORGOTTEN = 100, /* the connection's number is free again */
	HS_QUIC_TICKET = 101, /* see hs_connection_ticket */
	HS_QUIC_TOKEN = 102, /* see hs_connection_token */
};

struct hs_quic_event {
	uint32_t kind;
	uint32_t connection; /* its number */
	/* The limit for DATAGRAMS_READY; bits of enum hs_quic_handshake for ACCEPTED, CONNECTED
	 * and HANDSHAKE_DONE. */
	uint64_t info;
};

enum hs_quic_handshake {
	HS_QUIC_IS_EARLY = 1, /* not complete yet: HANDSHAKE_DONE follows */
	HS_QUIC_IS_RESUMED = 2,
	HS_QUIC_WAS_REJECTED = 4, /* early data were sent, and are sent again */
};

/* Why a datagram was dropped, alone or with its connection. */
enum hs_quic_drop {
	HS_QUIC_DROP_MALFORMED,
	HS_QUIC_DROP_UNKNOWN_CID,
	HS_QUIC_DROP_UNKNOWN_VERSION,
	HS_QUIC_DROP_NO_LISTENER,
	HS_QUIC_DROP_TOO_SHORT,
	HS_QUIC_DROP_REFUSED,
	HS_QUIC_DROP_NO_PATH,
	HS_QUIC_DROP_UNREADABLE_INITIAL,
	HS_QUIC_DROP_BAD_TOKEN,
	HS_QUIC_DROP_CLOSING,
	HS_QUIC_DROP_EARLY_PROBE,
	HS_QUIC_DROP_UNDECRYPTABLE, /* packets: damaged in transit, or forged */
	HS_QUIC_DROP_REPLACED, /* handshakes that were abandoned for newer ones */
	/* Answers to these were limited to a number a second, which was used up. */
	HS_QUIC_DROP_UNANSWERED_VERSION,
	HS_QUIC_DROP_UNANSWERED_INITIAL,
	HS_QUIC_DROP_UNANSWERED_TOKEN,
	HS_QUIC_DROP_UNANSWERED_CID,
	HS_QUIC_DROPS, /* the number of values */
};

/* Kinds of packets (RFC 9000 section 17); Retry and Version Negotiation have their own counters. */
enum hs_quic_packet {
	HS_QUIC_PACKET_INITIAL,
	HS_QUIC_PACKET_0RTT,
	HS_QUIC_PACKET_HANDSHAKE,
	HS_QUIC_PACKET_1RTT,
	HS_QUIC_PACKETS, /* the number of kinds */
	/* Datagrams in a turn, counted by powers of two: 0, 1, 2 and 3, 4 to 7, ..., 64 and
	 * more. */
	HS_QUIC_TURN_SIZES = 8,
};

/* Counters of a worker. Another thread may read them while the engine runs: one thread writes
 * naturally aligned 64-bit words, so no word is read half written. Different words may be from
 * different moments. */
struct hs_quic_counters {
	uint64_t turns;
	uint64_t empty_turns;
	uint64_t rx_datagrams;
	uint64_t tx_datagrams;
	uint64_t tx_full; /* turns that ended because the wire was full */
	uint64_t accepted;
	uint64_t connected;
	uint64_t closed;
	uint64_t retries; /* Retry packets sent */
	uint64_t version_negotiations; /* sent */
	uint64_t stateless_resets; /* sent */
	uint64_t key_updates; /* begun by this side */
	uint64_t black_holes; /* times that a connection fell back to 1,200 bytes */
	uint64_t connections; /* current number */
	uint64_t half_open; /* current number of peers' handshakes in progress */
	uint64_t rx_packets[HS_QUIC_PACKETS]; /* those that could be decrypted */
	uint64_t tx_packets[HS_QUIC_PACKETS];
	uint64_t rx_in_turns[HS_QUIC_TURN_SIZES]; /* turns that received this many datagrams */
	uint64_t tx_in_turns[HS_QUIC_TURN_SIZES];
	uint64_t drops[HS_QUIC_DROPS];
};

/* The settings of one connection; sizes in bytes. */
struct hs_quic_config {
	uint64_t first_window_bytes; /* of a stream; all of its rx FIFO once it is read fast */
	uint64_t connection_window_bytes;
	uint64_t max_streams_bidi;
	uint64_t max_streams_uni;
	uint64_t idle_timeout_ns; /* 0: none */
	uint64_t handshake_timeout_ns;
	uint64_t keep_alive_ns; /* 0: none */
	uint64_t packets_per_key; /* the key is updated after this many sent packets */
	uint64_t datagram_fifo_bytes; /* each direction, for DATAGRAM frames; 0: not offered */
	uint32_t max_datagram_bytes; /* 0: as much as the path carries */
	uint32_t max_connections;
	uint8_t congestion_control; /* 0 reno, 1 cubic, 2 bbr */
	uint8_t probes_mtu; /* PMTUD; without it the interface's MTU is assumed for the path */
	uint8_t follows_preferred; /* a client moves to the server's preferred address */
	uint8_t early_data; /* a server offers 0-RTT */
	uint32_t retry_above; /* Retry is required from this many handshakes in progress on */
	uint32_t half_open_per_source; /* the limit for one proven address or IPv6 /64 */
	uint32_t version; /* the client's first choice */
	/* A server's preferred addresses (RFC 9000 section 9.6); port 0: none. */
	uint16_t preferred_v4_port;
	uint16_t preferred_v6_port;
	uint8_t preferred_v4[4];
	uint8_t preferred_v6[16];
};

struct hs_quic_close_info {
	uint64_t code;
	uint8_t is_application;
	uint8_t by_peer;
	uint16_t reason_bytes;
	uint8_t reason[HS_QUIC_REASON_BYTES];
};

struct hs_quic_statistics {
	uint64_t rtt_ns;
	uint64_t rtt_min_ns;
	uint64_t rtt_latest_ns;
	uint64_t cwnd_bytes;
	uint64_t in_flight_bytes;
	uint64_t rx_datagrams;
	uint64_t rx_bytes;
	uint64_t tx_datagrams;
	uint64_t tx_bytes;
	uint64_t acked_bytes; /* of streams */
	uint64_t streams;
	uint64_t datagram_bytes; /* the current size limit */
	uint64_t rx_ecn_ce; /* datagrams received with the CE mark */
	uint64_t path_changes;
	uint64_t rtt_variance_ns;
	uint64_t ssthresh_bytes; /* all ones: none yet */
	uint64_t resent_bytes; /* of streams, sent more than once */
	uint64_t rx_packets[HS_QUIC_PACKETS];
	uint64_t tx_packets[HS_QUIC_PACKETS];
};

/* DATAGRAM frames of one connection. */
struct hs_datagram_counters {
	uint64_t sent;
	uint64_t received;
	uint64_t rx_dropped; /* the FIFO was full */
	uint64_t tx_dropped; /* the path's MTU has shrunk */
};

struct hs_quic_turn {
	struct hs_quic_event *events;
	uint32_t event_count;
	uint32_t received;
	uint32_t sent;
	uint8_t more; /* there is work left that can continue at once */
	uint8_t blocked; /* datagrams are queued because the wire is full */
	uint8_t held; /* acknowledgements wait for the programs' answers: call again after those */
	uint64_t deadline_ns; /* when to call again even if nothing arrives; all ones: never */
};

/* Creates the FIFOs of a connection's datagrams, for messages. They must exist until the connection
 * is forgotten. Returns 0, or -1 if there is no room. */
typedef int (*hs_quic_make_fifos)(void *owner, uint32_t connection, struct hs_fifo_producer **rx,
				  struct hs_fifo_consumer **tx);

/* The session of a connection whose peer opens a stream (hs_connection_set_session); NULL: its
 * streams are refused. */
typedef void *(*hs_quic_find_session)(void *owner, uint32_t connection);

/* Finds the path to another address of the peer. Returns its id, or -1 without a route. */
typedef int64_t (*hs_quic_find_path)(void *owner, uint32_t connection, uint8_t ip_version,
				     const uint8_t *remote_ip, uint16_t remote_port);

/* `cid_prefix` is 4 bytes (bpf/steer.h), `secret` HS_QUIC_SECRET_BYTES: workers that share it
 * recognise each other's tokens and resets. The engine owns the wire from now on. NULL without
 * memory. */
struct hs_quic *hs_quic_new(struct hs_wire *wire, const uint8_t *cid_prefix, const uint8_t *secret,
			    const struct hs_session_verbs *sessions,
			    hs_quic_find_session find_session, hs_quic_make_fifos make_fifos,
			    hs_quic_find_path find_path, void *owner);
/* The address of struct hs_transport_verbs, for the plane. */
uint64_t hs_quic_transport_verbs(void);
void hs_quic_free(struct hs_quic *q);

/* Receive one burst and send one burst, and repeat while there is work, up to `bursts` times;
 * then poll for more work for `spin_ns` without sleeping. With `bursts` 1 the time does not
 * change during the turn. */
void hs_quic_turn(struct hs_quic *q, uint64_t now_ns, uint32_t bursts, uint32_t spin_ns,
		  struct hs_quic_turn *out);
uint64_t hs_quic_deadline(struct hs_quic *q);

/* TLS. PEM texts end in a zero byte; `certificate` and `key` may be NULL for a client, `ca` NULL
 * means the system's. `alpn` is a list as in TLS: length, name, length, name. On failure returns
 * NULL and writes one line into `error`. May be called in any thread: it may take long. */
struct hs_tls *hs_tls_new(int is_server, const char *certificate, const char *key, const char *ca,
			  int verify, const uint8_t *alpn, size_t alpn_bytes, char *error,
			  size_t error_bytes);
/* Another configuration with the same CAs, certificate and key, which are not loaded again; NULL
 * without memory. */
struct hs_tls *hs_tls_like(const struct hs_tls *other, const uint8_t *alpn, size_t alpn_bytes);
/* Make a server request certificates from its clients and, if it verifies, check them against
 * `ca`, NULL for the system's. Returns 0, or -1 and one line in `error`. */
int hs_tls_ask_clients(struct hs_tls *tls, int is_required, const char *ca, char *error,
		       size_t error_bytes);
/* Allow only these ciphers, by GnuTLS's names with ":+" between them, in order of preference; a
 * server's order overrides its clients'. Returns 0, or -1 and one line in `error`. */
int hs_tls_set_ciphers(struct hs_tls *tls, const char *ciphers, char *error, size_t error_bytes);
/* Add a certificate to a server's group of certificates for the same names: of a group GnuTLS takes
 * the first one whose signature the client accepts. Group 0 has that of hs_tls_new, and is the
 * default; the next ones begin in ascending order. Returns 0, or -1 with a text. */
int hs_tls_add(struct hs_tls *tls, uint32_t group, const char *certificate, const char *key,
	       char *error, size_t error_bytes);
/* Present a group for a name or address, or for a wildcard ("*.example.com"), in lower case. Names
 * come in ascending order (strcmp). Returns 0, or -1: the order is wrong, or there is no memory. */
int hs_tls_add_name(struct hs_tls *tls, const char *name, uint32_t group);
void hs_tls_free(struct hs_tls *tls); /* freed after the last handshake that uses it */

/* `ip` is 4 or 16 bytes, all zeros for any. */
struct hs_listener *hs_quic_listen(struct hs_quic *q, uint8_t ip_version, const uint8_t *ip,
				   uint16_t port, struct hs_tls *tls,
				   const struct hs_quic_config *config);
/* Use other credentials in handshakes that begin from now on; the old ones are freed after the last
 * handshake that uses them. Returns 0, or -1 without memory: then the old ones stay. */
int hs_quic_replace_tls(struct hs_quic *q, struct hs_listener *listener, struct hs_tls *tls);
/* The listener and its private key are freed after its last connection. */
void hs_quic_unlisten(struct hs_quic *q, struct hs_listener *listener);
/* Whether a listener with that number exists, or a connection of it. */
int hs_quic_has_listener(const struct hs_quic *q, uint32_t number);

/* A client's data of earlier connections to a server: the session and the parameters of a ticket
 * (hs_connection_ticket), and a token (hs_connection_token). Each may be missing: then it has 0
 * bytes. */
struct hs_quic_resume {
	const uint8_t *session;
	const uint8_t *parameters;
	const uint8_t *token;
	uint32_t session_bytes;
	uint32_t parameters_bytes;
	uint32_t token_bytes;
	uint8_t early_data; /* send before the handshake is complete, if the ticket allows it */
	uint8_t keeps; /* store tickets and tokens */
};

/* Begin a connection along a path; NULL without memory. `server_name` may be a host name or an
 * address. */
struct hs_connection *hs_quic_connect(struct hs_quic *q, uint32_t path_id, struct hs_tls *tls,
				      const char *server_name,
				      const struct hs_quic_config *config,
				      const struct hs_quic_resume *resume, uint64_t now_ns);
/* The last ticket received (after HS_QUIC_TICKET); the session is valid until the next turn.
 * Returns 0, or -1 if there is none. */
struct hs_quic_ticket {
	const uint8_t *session;
	uint32_t session_bytes;
	uint32_t lifetime_s;
	uint32_t parameters_bytes; /* 0: no early data may be sent with it */
	uint8_t parameters[256];
};
int hs_connection_ticket(const struct hs_connection *c, struct hs_quic_ticket *out);
/* The last token received in a NEW_TOKEN frame, at most HS_QUIC_TOKEN_BYTES; returns its length. */
size_t hs_connection_token(const struct hs_connection *c, uint8_t *out);
/* A certificate of the peer's chain as DER, once the handshake is complete, from the leaf (0) on;
 * NULL if it presented no more, or if the session was resumed. Valid until the next turn. */
const uint8_t *hs_connection_certificate(const struct hs_connection *c, uint32_t index,
					 size_t *bytes);
/* The same for the leaf that this side presented. */
const uint8_t *hs_connection_own_certificate(const struct hs_connection *c, size_t *bytes);
/* A server's handshake is complete, and its caller knows what the sides presented: let go of the
 * credentials. */
void hs_connection_release_tls(struct hs_connection *c);
/* The name that the client asked for, in lower case, or was told to check; NULL if a client sent
 * none. */
const char *hs_connection_server_name(const struct hs_connection *c);
/* GnuTLS's name of the cipher for packets, once the handshake is complete. */
const char *hs_connection_cipher(const struct hs_connection *c);
int hs_connection_is_resumed(const struct hs_connection *c);
struct hs_connection *hs_quic_connection(struct hs_quic *q, uint32_t number);
uint32_t hs_connection_number(const struct hs_connection *c);
/* The number of the listener that accepted it; -1 for a client's connection. */
int64_t hs_connection_listener(const struct hs_connection *c);
uint32_t hs_listener_number(const struct hs_listener *listener);
uint32_t hs_connection_path(const struct hs_connection *c);
enum {
	HS_QUIC_CIDS = 16, /* ngtcp2 (1.11) issues 8 at most, besides the handshake's */
	HS_QUIC_CIDS_BYTES = HS_QUIC_CIDS * 21,
};
/* The connection's local connection IDs or, for the peer's, the one in use, each preceded by its
 * length. Returns the number of bytes, at most HS_QUIC_CIDS_BYTES. */
size_t hs_connection_local_cids(const struct hs_connection *c, uint8_t *out);
size_t hs_connection_remote_cid(const struct hs_connection *c, uint8_t *out);
/* The negotiated protocol; returns its length, 0 for none. */
size_t hs_connection_alpn(const struct hs_connection *c, uint8_t *out, size_t room);
void hs_connection_close_info(const struct hs_connection *c, struct hs_quic_close_info *out);
void hs_connection_statistics(const struct hs_connection *c, struct hs_quic_statistics *out);
void hs_connection_close(struct hs_connection *c, uint64_t code, const uint8_t *reason,
			 size_t reason_bytes);
/* Migrate a client's connection to another local endpoint (RFC 9000 section 9), as soon as the
 * peer has confirmed the handshake and provided a connection ID for it. The path has another
 * local endpoint, and the same remote one. HS_QUIC_PATH_CHANGED or HS_QUIC_MIGRATION_FAILED
 * follows, unless this returns a refusal. */
enum hs_migration_refusal {
	HS_MIGRATION_OF_SERVER = 1, /* only a client may migrate */
	HS_MIGRATION_TOO_LATE,
	HS_MIGRATION_FORBIDDEN, /* by the peer: disable_active_migration */
};
int hs_connection_migrate(struct hs_connection *c, uint32_t path_id);
/* Cancel a migration that has not begun; HS_QUIC_MIGRATION_FAILED follows. */
void hs_connection_stay(struct hs_connection *c);
/* Begin a key update; -1 while the last one is unconfirmed (RFC 9001 section 6.5). */
int hs_connection_update_key(struct hs_connection *c);

/* The application wrote a message into the tx FIFO of the connection's datagrams. */
void hs_connection_send_datagrams(struct hs_connection *c);
void hs_connection_datagram_counters(const struct hs_connection *c,
				     struct hs_datagram_counters *out);

/* What the plane calls the connection. */
void hs_connection_set_session(struct hs_connection *c, void *session);

void hs_quic_counters(const struct hs_quic *q, struct hs_quic_counters *out);

#endif
