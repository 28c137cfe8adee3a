/* SPDX-License-Identifier: Apache-2.0
 *
 * TLS messages of the peer, received in CRYPTO frames. GnuTLS checks the rules of TLS and leaves
 * those of QUIC to its caller, and ngtcp2 has assertions about the behaviour of GnuTLS. So GnuTLS
 * is passed whole messages only, each at the encryption level and in the order that QUIC allows.
 */
#include "quic/handshake.h"

#include <stdlib.h>
#include <string.h>

#include "quic/chacha.h"
#include "quic/key_limits.h"
#include "quic/resume.h"
#include "quic/server_names.h"
#include "quic/varint.h"
#include "quic/version.h"

enum {
	/* Types of messages, RFC 8446 section B.3. */
	CLIENT_HELLO = 1,
	SERVER_HELLO = 2,
	NEW_SESSION_TICKET = 4,
	ENCRYPTED_EXTENSIONS = 8,
	CERTIFICATE = 11,
	CERTIFICATE_REQUEST = 13,
	CERTIFICATE_VERIFY = 15,
	FINISHED = 20,
	/* Extensions, section 4.2, and RFC 9001 section 8.2. */
	SERVER_NAME = 0,
	ALPN = 16,
	EARLY_DATA = 42,
	TRANSPORT_PARAMETERS = 57,
	/* Transport parameters below this are checked for duplicates: all those of RFC 9000,
	 * 9221 and 9368. */
	KNOWN_PARAMETERS = 64,
	HOST_NAME = 0, /* the type of a server's name (RFC 6066 section 3) */
	HEADER_BYTES = 4, /* of a message: type, length */
	VERSION_BYTES = 2,
	RANDOM_BYTES = 32,
	MOST_MESSAGE_BYTES = 65536,
	MOST_HELLOS = 2, /* the second answers a HelloRetryRequest */
	ALL_EARLY_DATA_BYTES = 4,
	MOST_SECRET_BYTES = 48, /* SHA-384's */
};

/* The secret of a server's 0-RTT keys, until they are installed. */
struct hs_early_secret {
	uint8_t secret[MOST_SECRET_BYTES];
	size_t bytes; /* 0: none */
};

/* RFC 8446 section 4.1.3: the random of a ServerHello that is a HelloRetryRequest. */
static const uint8_t RETRY_RANDOM[RANDOM_BYTES] = {
	0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91,
	0xc2, 0xa2, 0x11, 0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
};

/* The position of a message in the handshake. Each occurs once, except that a hello may be
 * repeated and tickets may follow each other. 0: the peer may not send such a message at this
 * level. */
static enum hs_handshake_step step_of(int is_server, ngtcp2_encryption_level level, uint8_t type)
{
	switch (level) {
	case NGTCP2_ENCRYPTION_LEVEL_INITIAL:
		return type == (is_server ? CLIENT_HELLO : SERVER_HELLO) ? HS_STEP_HELLO : 0;
	case NGTCP2_ENCRYPTION_LEVEL_HANDSHAKE:
		break;
	case NGTCP2_ENCRYPTION_LEVEL_1RTT:
		return !is_server && type == NEW_SESSION_TICKET ? HS_STEP_TICKET : 0;
	default:
		return 0;
	}
	switch (type) {
	case ENCRYPTED_EXTENSIONS:
		return is_server ? 0 : HS_STEP_EXTENSIONS;
	case CERTIFICATE_REQUEST:
		return is_server ? 0 : HS_STEP_CERTIFICATE_REQUEST;
	case CERTIFICATE:
		return HS_STEP_CERTIFICATE;
	case CERTIFICATE_VERIFY:
		return HS_STEP_CERTIFICATE_VERIFY;
	case FINISHED:
		return HS_STEP_FINISHED;
	default:
		return 0;
	}
}

/* Only a TLS error ends a connection during its first packets, so every refusal is one. */
static int refuse(struct hs_connection *c, int error, const char *why)
{
	c->failure = why;
	c->tls_messages.error = error;
	return NGTCP2_ERR_CRYPTO;
}

static int alert(struct hs_connection *c, gnutls_alert_description_t description, const char *why)
{
	ngtcp2_conn_set_tls_alert(c->conn, (uint8_t)description);
	return refuse(c, NGTCP2_ERR_CRYPTO, why);
}

static int malformed(struct hs_connection *c)
{
	return alert(c, GNUTLS_A_DECODE_ERROR, "The peer sent a malformed TLS message");
}

/* --- order of messages ------------------------------------------------------------------------ */

/* RFC 9001 section 6: "Endpoints MUST treat the receipt of a TLS KeyUpdate message as a connection
 * error of type 0x010a, equivalent to a fatal TLS alert of unexpected_message"; RFC 8446 section 4
 * says the same of all messages in the wrong order. */
static int expect(struct hs_connection *c, ngtcp2_encryption_level level, uint8_t type)
{
	const struct hs_handshake *h = &c->tls_messages;
	int is_server = c->listener != NULL;
	enum hs_handshake_step step = step_of(is_server, level, type);
	/* RFC 9001 section 4.4: "servers MUST NOT send post-handshake TLS CertificateRequest messages,
	 * and clients MUST treat receipt of such messages as a connection error of type
	 * PROTOCOL_VIOLATION." */
	if (!is_server && level == NGTCP2_ENCRYPTION_LEVEL_1RTT && type == CERTIFICATE_REQUEST)
		return refuse(c, NGTCP2_ERR_PROTO,
			      "The server asked for a certificate after the handshake");
	int is_next = step > h->step || (step == HS_STEP_TICKET && h->step == step);
	if (!step || !is_next || (step == HS_STEP_HELLO && h->hellos == MOST_HELLOS))
		return alert(c, GNUTLS_A_UNEXPECTED_MESSAGE, "The peer sent an unexpected TLS message");
	return 0;
}

/* --- contents of messages --------------------------------------------------------------------- */

static int take_number(struct hs_cursor *at, size_t bytes, size_t *out)
{
	if ((size_t)(at->end - at->at) < bytes)
		return 0;
	*out = 0;
	while (bytes--)
		*out = *out << 8 | *at->at++;
	return 1;
}

/* A vector: a length field of `length_bytes`, then that many bytes. */
static int take_vector(struct hs_cursor *at, size_t length_bytes, struct hs_cursor *out)
{
	size_t bytes;
	if (!take_number(at, length_bytes, &bytes) || (size_t)(at->end - at->at) < bytes)
		return 0;
	*out = (struct hs_cursor){ at->at, at->at + bytes };
	at->at += bytes;
	return 1;
}

static int skip_bytes(struct hs_cursor *at, size_t bytes)
{
	if ((size_t)(at->end - at->at) < bytes)
		return 0;
	at->at += bytes;
	return 1;
}

/* The extensions of a hello, of EncryptedExtensions or of a ticket, as far as QUIC has rules for
 * them. */
struct extensions {
	struct hs_cursor parameters, early_data, server_name;
	uint8_t has_parameters, has_alpn, has_early_data;
	uint8_t has_duplicate; /* among the transport parameters */
};

static int read_extensions(struct hs_cursor *list, struct extensions *out)
{
	while (list->at < list->end) {
		size_t type;
		struct hs_cursor content;
		if (!take_number(list, 2, &type) || !take_vector(list, 2, &content))
			return 0;
		if (type == TRANSPORT_PARAMETERS) {
			out->has_duplicate |= out->has_parameters;
			out->has_parameters = 1;
			out->parameters = content;
		} else if (type == SERVER_NAME) {
			out->server_name = content;
		} else if (type == ALPN) {
			out->has_alpn = 1;
		} else if (type == EARLY_DATA) {
			out->has_early_data = 1;
			out->early_data = content;
		}
	}
	return 1;
}

/* RFC 9000 section 7.4: "An endpoint SHOULD treat receipt of duplicate transport parameters as a
 * connection error of type TRANSPORT_PARAMETER_ERROR." ngtcp2 detects malformed ones. */
static int has_duplicate_parameter(struct hs_cursor at)
{
	uint64_t seen = 0, id, bytes;
	while (hs_take_varint(&at, &id) && hs_take_varint(&at, &bytes) &&
	       bytes <= (uint64_t)(at.end - at.at)) {
		at.at += bytes;
		if (id >= KNOWN_PARAMETERS)
			continue;
		if (seen >> id & 1)
			return 1;
		seen |= (uint64_t)1 << id;
	}
	return 0;
}

/* What a ClientHello and EncryptedExtensions must both have. */
static int check_extensions(struct hs_connection *c, const struct extensions *found)
{
	/* RFC 9001 section 8.2: "Endpoints MUST send the quic_transport_parameters extension; endpoints
	 * that receive ClientHello or EncryptedExtensions messages without the quic_transport_parameters
	 * extension MUST close the connection with an error of type 0x016d". */
	if (!found->has_parameters)
		return alert(c, GNUTLS_A_MISSING_EXTENSION,
			     "The peer sent no QUIC transport parameters");
	if (found->has_duplicate)
		return alert(c, GNUTLS_A_ILLEGAL_PARAMETER,
			     "The peer sent QUIC transport parameters twice");
	if (has_duplicate_parameter(found->parameters))
		return refuse(c, NGTCP2_ERR_TRANSPORT_PARAM,
			      "The peer sent a transport parameter twice");
	/* Section 8.1: "endpoints MUST immediately close a connection [...] with a
	 * no_application_protocol TLS alert (QUIC error code 0x0178) if an application protocol
	 * is not negotiated." GnuTLS compares the names if the extension is there. */
	if (!found->has_alpn)
		return alert(c, GNUTLS_A_NO_APPLICATION_PROTOCOL,
			     c->listener ? "The client offered no application protocol (ALPN)" :
					   "The server chose no application protocol (ALPN)");
	return 0;
}

/* Choose the certificate for the name in a list of one (RFC 6066 section 3). GnuTLS refuses lists
 * that are malformed. */
static int choose_certificate(struct hs_connection *c, struct hs_cursor extension)
{
	struct hs_cursor list, name;
	size_t type;
	if (extension.at && take_vector(&extension, 2, &list) && take_number(&list, 1, &type) &&
	    type == HOST_NAME && take_vector(&list, 2, &name) &&
	    hs_names_note(c, name.at, (size_t)(name.end - name.at)))
		return -1;
	return hs_names_choose(c);
}

static int check_client_hello(struct hs_connection *c, struct hs_cursor at)
{
	struct hs_cursor session_id, unused, list;
	struct extensions found = { 0 };
	if (!skip_bytes(&at, VERSION_BYTES + RANDOM_BYTES) || !take_vector(&at, 1, &session_id) ||
	    !take_vector(&at, 2, &unused) || !take_vector(&at, 1, &unused))
		return malformed(c);
	/* RFC 9001 section 8.4: "A server SHOULD treat the receipt of a TLS ClientHello with a non-empty
	 * legacy_session_id field as a connection error of type PROTOCOL_VIOLATION." */
	if (session_id.at < session_id.end)
		return refuse(c, NGTCP2_ERR_PROTO,
			      "The client asked for TLS's middlebox compatibility mode");
	/* A ClientHello of an old TLS version may have no extensions. */
	if (at.at < at.end &&
	    (!take_vector(&at, 2, &list) || at.at < at.end || !read_extensions(&list, &found)))
		return malformed(c);
	/* RFC 8446 section 4.2.10: early_data is forbidden in the second one, whose keys exist
	 * already. */
	if (found.has_early_data && c->tls_messages.hellos)
		return alert(c, GNUTLS_A_ILLEGAL_PARAMETER,
			     "The client offered early data after a HelloRetryRequest");
	int failed = check_extensions(c, &found);
	if (failed || c->tls_messages.hellos)
		return failed;
	failed = hs_version_negotiate(c, found.parameters.at,
				      (size_t)(found.parameters.end - found.parameters.at));
	if (!failed && (choose_certificate(c, found.server_name) || hs_resume_offer(c)))
		failed = NGTCP2_ERR_NOMEM;
	return failed ? refuse(c, failed, NULL) : 0;
}

/* Section 4.1.4: "If a client receives a second HelloRetryRequest in the same connection [...], it
 * MUST abort the handshake with an "unexpected_message" alert." */
static int check_server_hello(struct hs_connection *c, struct hs_cursor at)
{
	struct hs_handshake *h = &c->tls_messages;
	if (!skip_bytes(&at, VERSION_BYTES) || (size_t)(at.end - at.at) < RANDOM_BYTES)
		return malformed(c);
	int is_retry = !memcmp(at.at, RETRY_RANDOM, RANDOM_BYTES);
	if (is_retry && h->hellos)
		return alert(c, GNUTLS_A_UNEXPECTED_MESSAGE,
			     "The server sent a second HelloRetryRequest");
	h->step = is_retry ? HS_STEP_BEGIN : HS_STEP_HELLO;
	return 0;
}

static int check_encrypted_extensions(struct hs_connection *c, struct hs_cursor at)
{
	struct hs_cursor list;
	struct extensions found = { 0 };
	if (!take_vector(&at, 2, &list) || at.at < at.end || !read_extensions(&list, &found))
		return malformed(c);
	return check_extensions(c, &found);
}

/* RFC 9001 section 4.6.1: "A client MUST treat receipt of a NewSessionTicket frame that contains an
 * early_data extension with any other value as a connection error of type PROTOCOL_VIOLATION." */
static int check_ticket(struct hs_connection *c, struct hs_cursor at)
{
	static const uint8_t ALL[ALL_EARLY_DATA_BYTES] = { 0xff, 0xff, 0xff, 0xff };
	struct hs_cursor nonce, ticket, list;
	struct extensions found = { 0 };
	/* RFC 8446 section 4.6.1: "opaque ticket<1..2^16-1>"; GnuTLS ignores an empty one. */
	if (!skip_bytes(&at, 8) || !take_vector(&at, 1, &nonce) || !take_vector(&at, 2, &ticket) ||
	    ticket.at == ticket.end || !take_vector(&at, 2, &list) || at.at < at.end || !read_extensions(&list, &found))
		return malformed(c);
	if (found.has_early_data && found.early_data.end - found.early_data.at == sizeof(ALL) &&
	    memcmp(found.early_data.at, ALL, sizeof(ALL)))
		return refuse(c, NGTCP2_ERR_PROTO,
			      "The server's ticket limits early data, which QUIC forbids");
	return 0;
}

static int check(struct hs_connection *c, uint8_t type, struct hs_cursor content)
{
	switch (type) {
	case CLIENT_HELLO:
		return check_client_hello(c, content);
	case SERVER_HELLO:
		return check_server_hello(c, content);
	case ENCRYPTED_EXTENSIONS:
		return check_encrypted_extensions(c, content);
	case NEW_SESSION_TICKET:
		return check_ticket(c, content);
	default:
		return 0;
	}
}

/* --- messages from frames --------------------------------------------------------------------- */

/* A bit for each level and direction. */
static uint8_t key_bits(gnutls_record_encryption_level_t level, int has_rx, int has_tx)
{
	return (uint8_t)(((has_rx ? 1 : 0) | (has_tx ? 2 : 0)) << 2 * (int)level);
}

static int deliver(struct hs_connection *c, ngtcp2_encryption_level level, const uint8_t *message,
		   size_t bytes)
{
	struct hs_handshake *h = &c->tls_messages;
	enum hs_handshake_step step = step_of(c->listener != NULL, level, message[0]);
	int failed = check(c, message[0],
			   (struct hs_cursor){ message + HEADER_BYTES, message + bytes });
	if (failed)
		return failed;
	if (step == HS_STEP_HELLO)
		h->hellos++;
	else
		h->step = (uint8_t)step;
	struct hs_early_secret early = { .bytes = 0 };
	h->early = &early;
	failed = ngtcp2_crypto_recv_crypto_data_cb(c->conn, level, 0, message, bytes, c);
	h->early = NULL;
	gnutls_memset(&early, 0, sizeof(early));
	/* GnuTLS made no keys, so it has answered with a HelloRetryRequest. */
	if (!failed && c->listener && step == HS_STEP_HELLO &&
	    h->keys & key_bits(GNUTLS_ENCRYPTION_LEVEL_HANDSHAKE, 1, 1))
		h->step = HS_STEP_HELLO;
	return failed;
}

/* The length of a message including its header; 0 while the header is incomplete. */
static size_t length_of(const uint8_t *message, size_t bytes)
{
	return bytes < HEADER_BYTES ? HEADER_BYTES :
				      HEADER_BYTES + ((size_t)message[1] << 16 |
						      (size_t)message[2] << 8 | message[3]);
}

/* Append to the incomplete message. Returns how many bytes were used; 0 without memory. */
static size_t keep(struct hs_handshake *h, const uint8_t *data, size_t bytes)
{
	size_t left = length_of(h->message, h->bytes) - h->bytes;
	size_t n = bytes < left ? bytes : left;
	if (h->bytes + n > h->room) {
		size_t room = 2 * (h->bytes + n);
		uint8_t *larger = realloc(h->message, room);
		if (!larger)
			return 0;
		h->message = larger;
		h->room = (uint32_t)room;
	}
	memcpy(h->message + h->bytes, data, n);
	h->bytes += (uint32_t)n;
	return n;
}

static void forget_message(struct hs_handshake *h)
{
	free(h->message);
	h->message = NULL;
	h->bytes = h->room = 0;
}

/* Process the next message, or a part of it. Returns 0, or an ngtcp2 error. */
static int take_message(struct hs_connection *c, ngtcp2_encryption_level level,
			const uint8_t *data, size_t bytes, size_t *taken)
{
	struct hs_handshake *h = &c->tls_messages;
	size_t size = length_of(data, bytes);
	if (!h->bytes) {
		int failed = expect(c, level, data[0]);
		if (failed)
			return failed;
		h->level = (uint8_t)level;
		if (bytes >= HEADER_BYTES && size <= bytes && size <= MOST_MESSAGE_BYTES) {
			*taken = size;
			return deliver(c, level, data, size);
		}
	} else if (h->level != level) {
		/* RFC 8446 section 5.1: "Handshake messages MUST NOT span key changes." */
		return alert(c, GNUTLS_A_UNEXPECTED_MESSAGE,
			     "The peer changed keys within a TLS message");
	}
	*taken = keep(h, data, bytes);
	if (!*taken)
		return NGTCP2_ERR_NOMEM;
	if (length_of(h->message, h->bytes) > MOST_MESSAGE_BYTES)
		return alert(c, GNUTLS_A_DECODE_ERROR, "The peer sent a TLS message that is too large");
	if (h->bytes < HEADER_BYTES || h->bytes < length_of(h->message, h->bytes))
		return 0;
	int failed = deliver(c, level, h->message, h->bytes);
	forget_message(h);
	return failed;
}

int hs_handshake_receive(ngtcp2_conn *conn __attribute__((unused)), ngtcp2_encryption_level level,
			 uint64_t offset __attribute__((unused)), const uint8_t *data,
			 size_t bytes, void *user_data)
{
	struct hs_connection *c = user_data;
	while (bytes) {
		size_t taken = 0;
		int failed = take_message(c, level, data, bytes, &taken);
		if (failed)
			return failed;
		data += taken;
		bytes -= taken;
	}
	return 0;
}

/* A server's keys for 0-RTT packets are installed with its first others, which are followed by all of
 * them: before a server has its 1-RTT keys, ngtcp2 fails an assertion when it reads a 0-RTT packet.
 * GnuTLS 3.8 makes early keys also for a ClientHello that it answers with a HelloRetryRequest. */
static int keep_early(struct hs_early_secret *early, const void *secret, size_t bytes)
{
	if (!early || bytes > sizeof(early->secret))
		return GNUTLS_E_INTERNAL_ERROR;
	memcpy(early->secret, secret, bytes);
	early->bytes = bytes;
	return 0;
}

static int install_early(gnutls_session_t session, const struct hs_early_secret *early)
{
	if (!early || !early->bytes)
		return 0;
	return hs_chacha_on_secrets(session, GNUTLS_ENCRYPTION_LEVEL_EARLY, early->secret, NULL,
				    early->bytes);
}

int hs_handshake_on_secrets(gnutls_session_t session, gnutls_record_encryption_level_t level,
			    const void *rx, const void *tx, size_t bytes)
{
	ngtcp2_crypto_conn_ref *ref = gnutls_session_get_ptr(session);
	struct hs_connection *c = ref->user_data;
	/* ngtcp2 fails assertions if keys arrive before the peer's transport parameters (any of a
	 * server's, a client's last), or if keys arrive twice. */
	int needs_parameters = c->listener || level == GNUTLS_ENCRYPTION_LEVEL_APPLICATION;
	if (needs_parameters && !ngtcp2_conn_get_remote_transport_params(c->conn))
		return GNUTLS_E_MISSING_EXTENSION;
	uint8_t keys = key_bits(level, rx != NULL, tx != NULL);
	int has_them = c->tls_messages.keys & keys;
	c->tls_messages.keys |= keys;
	/* After a HelloRetryRequest GnuTLS offers early data again with other keys, which it
	 * must not (RFC 8446 section 4.1.2). Servers refuse that, or drop the data. */
	if (has_them)
		return level == GNUTLS_ENCRYPTION_LEVEL_EARLY ? 0 : GNUTLS_E_INTERNAL_ERROR;
	if (c->listener && level == GNUTLS_ENCRYPTION_LEVEL_EARLY)
		return keep_early(c->tls_messages.early, rx, bytes);
	if (c->listener && level == GNUTLS_ENCRYPTION_LEVEL_HANDSHAKE && tx) {
		int failed = install_early(session, c->tls_messages.early);
		if (failed)
			return failed;
	}
	return hs_chacha_on_secrets(session, level, rx, tx, bytes);
}

int hs_handshake_on_message(gnutls_session_t session, unsigned int type, unsigned int when,
			    unsigned int incoming, const gnutls_datum_t *message)
{
	ngtcp2_crypto_conn_ref *ref = gnutls_session_get_ptr(session);
	struct hs_connection *c = ref->user_data;
	if (!incoming)
		return 0;
	if (type == GNUTLS_HANDSHAKE_NEW_SESSION_TICKET)
		hs_resume_on_ticket(c, when, message);
	if (type != GNUTLS_HANDSHAKE_CERTIFICATE_PKT || when != GNUTLS_HOOK_PRE)
		return 0;
	int failed = hs_certificates_check(message);
	if (failed)
		c->failure = "A key in the peer's certificates is too large";
	return failed;
}

void hs_handshake_free(struct hs_connection *c)
{
	forget_message(&c->tls_messages);
}
