/* SPDX-License-Identifier: Apache-2.0
 *
 * Session resumption, and data sent before the handshake is complete: 0-RTT (RFC 9001 section 4.6,
 * RFC 8446 section 2.3).
 */
#include "quic/resume.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "memory/mix.h"
#include "quic/connection_schedule.h"
#include "quic/stream.h"
#include "quic/version.h"

enum {
	PARAMETERS_BYTES = 256,
	LIFETIME_BYTES = 4, /* at the beginning of NewSessionTicket (RFC 8446 section 4.6.1) */
	REPLAY_SLOTS = 8192, /* remembered first flights; a power of two */
	REPLAY_PROBES = 8,
};

/* --- client: tickets and tokens --------------------------------------------------------------- */

static void forget_ticket(struct hs_connection *c)
{
	gnutls_free(c->ticket.data);
	c->ticket = (gnutls_datum_t){ NULL, 0 };
}

/* GnuTLS calls this before it reads the message, which contains the lifetime, and again when it
 * has the ticket. */
void hs_resume_on_ticket(struct hs_connection *c, unsigned int when, const gnutls_datum_t *message)
{
	if (!c->keeps_tickets)
		return;
	if (when == GNUTLS_HOOK_PRE) {
		const uint8_t *lifetime = message->data;
		c->ticket_lifetime_s = 0;
		if (message->size >= LIFETIME_BYTES)
			c->ticket_lifetime_s = (uint32_t)lifetime[0] << 24 |
					       (uint32_t)lifetime[1] << 16 |
					       (uint32_t)lifetime[2] << 8 | lifetime[3];
		return;
	}
	forget_ticket(c);
	/* Without memory the next handshake is a full one. */
	if (hs_version_is_first(c) && gnutls_session_get_data2(c->session, &c->ticket) == 0)
		hs_touch(c, HS_PENDING_TICKET);
}

int hs_connection_ticket(const struct hs_connection *c, struct hs_quic_ticket *out)
{
	if (!c->ticket.data)
		return -1;
	out->lifetime_s = c->ticket_lifetime_s;
	out->session = c->ticket.data;
	out->session_bytes = c->ticket.size;
	out->parameters_bytes = 0;
	/* RFC 9001 section 4.6.1: "a value of 0xffffffff" says that 0-RTT may be sent, and any other
	 * is an error. */
	if (gnutls_record_get_max_early_data_size(c->session)) {
		ngtcp2_ssize bytes = ngtcp2_conn_encode_0rtt_transport_params(
			c->conn, out->parameters, sizeof(out->parameters));
		out->parameters_bytes = bytes > 0 ? (uint32_t)bytes : 0;
	}
	return 0;
}

void hs_resume_keep_token(struct hs_connection *c, const uint8_t *token, size_t bytes)
{
	if (!c->keeps_tickets || bytes > HS_QUIC_TOKEN_BYTES || !hs_version_is_first(c))
		return;
	uint8_t *copy = malloc(bytes);
	if (!copy)
		return;
	memcpy(copy, token, bytes);
	free(c->token);
	c->token = copy;
	c->token_bytes = (uint16_t)bytes;
	hs_touch(c, HS_PENDING_TOKEN);
}

size_t hs_connection_token(const struct hs_connection *c, uint8_t *out)
{
	if (c->token_bytes)
		memcpy(out, c->token, c->token_bytes);
	return c->token_bytes;
}

void hs_resume_free(struct hs_connection *c)
{
	forget_ticket(c);
	free(c->token);
}

/* --- client: resuming ------------------------------------------------------------------------- */

void hs_resume_begin(struct hs_connection *c, const struct hs_quic_resume *resume)
{
	/* If GnuTLS or ngtcp2 can't use the data, the handshake is a full one; that is not a
	 * failure. */
	if (!resume->session_bytes ||
	    gnutls_session_set_data(c->session, resume->session, resume->session_bytes))
		return;
	if (!resume->early_data || !resume->parameters_bytes ||
	    ngtcp2_conn_decode_and_set_0rtt_transport_params(c->conn, resume->parameters,
							     resume->parameters_bytes))
		return;
	c->is_early = 1;
	hs_touch(c, HS_PENDING_ESTABLISHED);
}

int hs_connection_is_resumed(const struct hs_connection *c)
{
	return gnutls_session_is_resumed(c->session) != 0;
}

/* Reopen the stream and send from its first byte: the tx FIFO still has all of it. */
static int reopen_stream(struct hs_stream *s)
{
	ngtcp2_conn *conn = s->connection->conn;
	int64_t id;
	int failed = s->id & 2 ? ngtcp2_conn_open_uni_stream(conn, &id, s) :
				 ngtcp2_conn_open_bidi_stream(conn, &id, s);
	if (failed || id != s->id)
		return -1;
	hs_stream_rewind(s);
	return 0;
}

/* RFC 9001 section 4.6.2: "When 0-RTT is rejected, all connection characteristics that the
 * client assumed might be incorrect. This includes the choice of application protocol, transport
 * parameters, and any application configuration. The client therefore MUST reset the state of
 * all streams, including application state bound to those streams." The only application state
 * here is the bytes: they are sent again, unless the new limits forbid the streams. The caller
 * checks the application protocol. */
static int reopen_streams(struct hs_connection *c)
{
	struct hs_stream *s = c->streams;
	while (s && s->next)
		s = s->next; /* the oldest */
	for (; s; s = s->previous) {
		if (reopen_stream(s)) {
			c->failure = "The server did not accept early data, and allows fewer streams now";
			return -1;
		}
	}
	return 0;
}

int hs_resume_completed(struct hs_connection *c)
{
	if (!c->is_early)
		return 0;
	hs_touch(c, HS_PENDING_HANDSHAKE);
	if (c->listener || gnutls_session_get_flags(c->session) & GNUTLS_SFLAGS_EARLY_DATA)
		return 0;
	c->was_early_rejected = 1;
	return ngtcp2_conn_tls_early_data_rejected(c->conn) || reopen_streams(c) ? -1 : 0;
}

/* --- server: replays -------------------------------------------------------------------------- */

struct hs_replays {
	gnutls_anti_replay_t window;
	uint64_t seed;
	struct {
		uint64_t mark;
		time_t until;
	} seen[REPLAY_SLOTS];
};

/* RFC 8446 section 8.2: "ClientHello recording". Without room, it is treated as a replay: then
 * the handshake has no early data. */
static int note_first_flight(void *pointer, time_t until, const gnutls_datum_t *key,
			     const gnutls_datum_t *data __attribute__((unused)))
{
	struct hs_replays *replays = pointer;
	time_t now = time(NULL);
	uint64_t mark = replays->seed;
	for (unsigned int i = 0; i < key->size; i++)
		mark = hs_mix(mark ^ key->data[i], replays->seed | 1);
	for (int i = 0; i < REPLAY_PROBES; i++) {
		uint32_t at = (uint32_t)(mark + (uint64_t)i) & (REPLAY_SLOTS - 1);
		if (replays->seen[at].until >= now && replays->seen[at].mark == mark)
			return GNUTLS_E_DB_ENTRY_EXISTS;
	}
	for (int i = 0; i < REPLAY_PROBES; i++) {
		uint32_t at = (uint32_t)(mark + (uint64_t)i) & (REPLAY_SLOTS - 1);
		if (replays->seen[at].until < now) {
			replays->seen[at].mark = mark;
			replays->seen[at].until = until;
			return 0;
		}
	}
	return GNUTLS_E_DB_ENTRY_EXISTS;
}

static struct hs_replays *replays_of(struct hs_quic *q)
{
	if (q->replays)
		return q->replays;
	struct hs_replays *made = calloc(1, sizeof(*made));
	if (!made || gnutls_rnd(GNUTLS_RND_NONCE, &made->seed, sizeof(made->seed)) ||
	    gnutls_anti_replay_init(&made->window)) {
		free(made);
		return NULL;
	}
	gnutls_anti_replay_set_add_function(made->window, note_first_flight);
	gnutls_anti_replay_set_ptr(made->window, made);
	q->replays = made;
	return made;
}

void hs_resume_free_replays(struct hs_quic *q)
{
	if (!q->replays)
		return;
	gnutls_anti_replay_deinit(q->replays->window);
	free(q->replays);
}

/* Called once the version is negotiated, before GnuTLS reads the client's ticket. */
int hs_resume_offer(struct hs_connection *c)
{
	uint32_t version = ngtcp2_conn_get_negotiated_version(c->conn);
	uint8_t *bytes = c->listener->ticket_keys[version == hs_versions[0] ? 0 : 1];
	gnutls_datum_t key = { bytes, HS_QUIC_TICKET_KEY_BYTES };
	/* A ticket does not record whose certificate was presented: each connection has to
	 * present it. */
	if (c->tls->asks_clients)
		return 0;
	/* The keys are for the listener's ciphers; it has got others since. */
	if (c->tls != c->listener->tls)
		return 0;
	if (gnutls_session_ticket_enable_server(c->session, &key))
		return -1;
	if (!c->config.early_data)
		return 0;
	struct hs_replays *replays = replays_of(c->q);
	if (!replays)
		return -1;
	gnutls_anti_replay_enable(c->session, replays->window);
	/* RFC 9001 section 4.6.1: "Servers MUST NOT send the early_data extension with a
	 * max_early_data_size field set to any value other than 0xffffffff." */
	return gnutls_record_set_max_early_data_size(c->session, 0xffffffff);
}

/* A key for each version (RFC 9369 section 5). The key of a listener's tickets is derived from
 * the secret that workers share, and from what early data depend on: a ticket from a time with
 * other protocols, other ciphers or higher limits can't be decrypted, so its early data are
 * refused (RFC 8446 section 4.2.10, RFC 9000 section 7.4.1). */
int hs_resume_ticket_keys(struct hs_quic *q, const struct hs_quic_config *config,
			  const struct hs_tls *tls, uint8_t out[][HS_QUIC_TICKET_KEY_BYTES])
{
	static const char LABEL[] = "hoststack session tickets";
	const uint64_t limits[] = { config->first_window_bytes, config->connection_window_bytes,
				    config->max_streams_bidi, config->max_streams_uni,
				    config->datagram_fifo_bytes };
	const unsigned int *ciphers;
	size_t cipher_bytes = sizeof(*ciphers) *
			      (size_t)gnutls_priority_cipher_list(tls->priority, &ciphers);
	size_t names_bytes = 0;
	for (uint32_t i = 0; i < tls->alpn_count; i++)
		names_bytes += 1 + tls->alpn[i].size;
	gnutls_datum_t about = { NULL, (unsigned int)(1 + sizeof(LABEL) + sizeof(limits) +
						      cipher_bytes + names_bytes) };
	about.data = malloc(about.size);
	if (!about.data)
		return -1;
	memcpy(about.data + 1, LABEL, sizeof(LABEL));
	memcpy(about.data + 1 + sizeof(LABEL), limits, sizeof(limits));
	memcpy(about.data + 1 + sizeof(LABEL) + sizeof(limits), ciphers, cipher_bytes);
	memcpy(about.data + 1 + sizeof(LABEL) + sizeof(limits) + cipher_bytes, tls->alpn_names,
	       names_bytes);
	gnutls_datum_t secret = { q->secret, sizeof(q->secret) };
	int failed = 0;
	uint8_t *keys = out[0];
	for (uint8_t half = 0; half < 2 * HS_QUIC_VERSIONS && !failed; half++) {
		about.data[0] = half;
		failed = gnutls_hkdf_expand(GNUTLS_MAC_SHA256, &secret, &about, keys + 32 * half, 32);
	}
	free(about.data);
	return failed ? -1 : 0;
}
