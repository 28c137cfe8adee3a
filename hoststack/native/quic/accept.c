/* SPDX-License-Identifier: Apache-2.0
 *
 * Datagrams that match no connection: answers to addresses that nobody has proven, and new
 * connections.
 */
#include "quic/accept.h"

#include <string.h>

#include "quic/begin.h"
#include "quic/cid.h"
#include "quic/close.h"
#include "quic/connection.h"
#include "quic/half_open.h"
#include "quic/held.h"
#include "quic/listener.h"
#include "quic/token.h"
#include "quic/version.h"
#include "wire/paths.h"
#include "wire/verbs.h"

enum {
	LEAST_INITIAL_BYTES = 1200, /* RFC 9000 section 14.1 */
	/* RFC 9000 section 10.3: a reset must look like a packet, and be smaller than the packet
	 * it answers, so that two endpoints can't reset each other endlessly. */
	MOST_RESET_BYTES = 43,
};

#define SECOND_NS 1000000000ULL

/* In a burst, while more arrives than can be read: what is read and not answered costs little. */
enum { ANSWERS_WHILE_OVERLOADED = 4 };

/* The most answers of each kind in a second: an answer costs more than the packet that causes it.
 * Retry has the most, since honest clients need it; the others are rare except in attacks. */
static const uint32_t PER_SECOND[HS_ANSWERS] = {
	[HS_ANSWER_VERSION_NEGOTIATION] = 1000,
	[HS_ANSWER_RETRY] = 20000,
	[HS_ANSWER_REFUSAL] = 1000,
	[HS_ANSWER_RESET] = 64,
};
/* What is counted for a packet that got no answer. */
static const enum hs_quic_drop UNANSWERED[HS_ANSWERS] = {
	[HS_ANSWER_VERSION_NEGOTIATION] = HS_QUIC_DROP_UNANSWERED_VERSION,
	[HS_ANSWER_RETRY] = HS_QUIC_DROP_UNANSWERED_INITIAL,
	[HS_ANSWER_REFUSAL] = HS_QUIC_DROP_UNANSWERED_TOKEN,
	[HS_ANSWER_RESET] = HS_QUIC_DROP_UNANSWERED_CID,
};

static void drop(struct hs_quic *q, enum hs_quic_drop reason)
{
	q->counters.drops[reason]++;
}

/* --- answers without a connection ------------------------------------------------------------- */

static uint8_t *reserve(struct hs_quic *q, size_t *room)
{
	return q->wire->verbs->reserve(q->wire, room);
}

static int commit(struct hs_quic *q, struct hs_path *path, ngtcp2_ssize bytes)
{
	if (bytes <= 0)
		return 0;
	q->wire->verbs->commit(q->wire, path, (uint32_t)bytes, 0);
	return 1;
}

/* The path of an answer: the datagram's path, or, while that is unknown, back to the sender. */
static struct hs_path *answer_path(struct hs_quic *q, const struct hs_received *datagram,
				   struct hs_path *room)
{
	if (datagram->path)
		return datagram->path;
	q->wire->verbs->reverse(q->wire, datagram->key, room);
	return room;
}

/* Whether an answer of this kind may be sent now; if not, count the packet. */
static int may_answer(struct hs_quic *q, enum hs_answer kind)
{
	struct hs_budget *budget = &q->budgets[kind];
	uint64_t left_ns = budget->left_ns + (q->now_ns - budget->filled_ns);
	uint64_t each_ns = SECOND_NS / PER_SECOND[kind];
	if (left_ns > SECOND_NS)
		left_ns = SECOND_NS;
	budget->filled_ns = q->now_ns;
	budget->left_ns = left_ns;
	if (left_ns < each_ns || (q->full_bursts >= HS_OVERLOADED_AFTER &&
				  q->answers_in_burst >= ANSWERS_WHILE_OVERLOADED)) {
		drop(q, UNANSWERED[kind]);
		return 0;
	}
	budget->left_ns -= each_ns;
	q->answers_in_burst++;
	return 1;
}

/* RFC 9000 section 6.1. */
void hs_answer_version(struct hs_quic *q, const struct hs_received *datagram,
		       const ngtcp2_version_cid *ids)
{
	uint8_t random;
	size_t room;
	if (!q->listeners) {
		drop(q, HS_QUIC_DROP_NO_LISTENER);
		return;
	}
	if (datagram->bytes < LEAST_INITIAL_BYTES) {
		drop(q, HS_QUIC_DROP_TOO_SHORT);
		return;
	}
	struct hs_path back, *path = answer_path(q, datagram, &back);
	if (!hs_listener_find(q, &path->local)) {
		drop(q, HS_QUIC_DROP_NO_LISTENER);
		return;
	}
	if (!may_answer(q, HS_ANSWER_VERSION_NEGOTIATION))
		return;
	drop(q, HS_QUIC_DROP_UNKNOWN_VERSION);
	uint8_t *out = reserve(q, &room);
	if (!out || gnutls_rnd(GNUTLS_RND_NONCE, &random, 1))
		return;
	q->counters.version_negotiations +=
		(uint64_t)commit(q, path,
				 ngtcp2_pkt_write_version_negotiation(
					 out, room, random, ids->scid, ids->scidlen, ids->dcid,
					 ids->dcidlen, hs_versions,
					 HS_QUIC_VERSIONS));
}

/* A packet of a past connection: its connection ID is one of ours, and its token can be
 * derived from the secret (RFC 9000 section 10.3). */
static void reset_statelessly(struct hs_quic *q, const struct hs_received *datagram)
{
	uint8_t token[NGTCP2_STATELESS_RESET_TOKENLEN], random[MOST_RESET_BYTES];
	const uint8_t *dcid = datagram->data + 1;
	ngtcp2_cid cid;
	size_t room;
	if (datagram->bytes <= HS_QUIC_LEAST_RESET_BYTES + 1 ||
	    memcmp(dcid, q->cid_prefix, sizeof(q->cid_prefix))) {
		drop(q, HS_QUIC_DROP_UNKNOWN_CID);
		return;
	}
	if (!may_answer(q, HS_ANSWER_RESET))
		return;
	drop(q, HS_QUIC_DROP_UNKNOWN_CID);
	struct hs_path back, *path = answer_path(q, datagram, &back);
	uint8_t *out = reserve(q, &room);
	if (!out)
		return;
	size_t bytes = datagram->bytes - 1 < MOST_RESET_BYTES ? datagram->bytes - 1 :
								MOST_RESET_BYTES;
	ngtcp2_cid_init(&cid, dcid, HS_CID_BYTES);
	if (ngtcp2_crypto_generate_stateless_reset_token(token, q->secret, sizeof(q->secret),
							 &cid) ||
	    gnutls_rnd(GNUTLS_RND_NONCE, random, sizeof(random)))
		return;
	q->counters.stateless_resets +=
		(uint64_t)commit(q, path,
				 ngtcp2_pkt_write_stateless_reset(
					 out, room, token, random,
					 bytes - NGTCP2_STATELESS_RESET_TOKENLEN));
}

/* RFC 9000 section 8.1.2. */
static void retry(struct hs_quic *q, struct hs_path *path, const ngtcp2_pkt_hd *hd)
{
	uint8_t token[NGTCP2_CRYPTO_MAX_RETRY_TOKENLEN2];
	ngtcp2_cid scid;
	size_t room;
	if (!may_answer(q, HS_ANSWER_RETRY) || hs_draw_cid(q, &scid))
		return;
	ngtcp2_ssize bytes = hs_token_for_retry(q, path, hd, &scid, token);
	uint8_t *out = bytes > 0 ? reserve(q, &room) : NULL;
	if (out)
		q->counters.retries += (uint64_t)commit(
			q, path,
			ngtcp2_crypto_write_retry(out, room, hd->version, &hd->scid, &scid,
						  &hd->dcid, token, (size_t)bytes));
}

/* RFC 9000 section 8.1.3: answer an invalid Retry token with INVALID_TOKEN. */
static void refuse_token(struct hs_quic *q, struct hs_path *path, const ngtcp2_pkt_hd *hd)
{
	size_t room;
	if (!may_answer(q, HS_ANSWER_REFUSAL))
		return;
	drop(q, HS_QUIC_DROP_BAD_TOKEN);
	uint8_t *out = reserve(q, &room);
	if (out)
		commit(q, path,
		       ngtcp2_crypto_write_connection_close(out, room, hd->version, &hd->scid,
							    &hd->dcid, NGTCP2_INVALID_TOKEN, NULL,
							    0));
}

/* --- new connections -------------------------------------------------------------------------- */

/* Whether clients must prove their addresses. Invalid first packets cost as much as those that
 * begin a handshake, but leave no half-open connection behind, so they count here as well. */
static int wants_proof(struct hs_quic *q, const struct hs_quic_config *config)
{
	if (config->retry_above == HS_QUIC_NO_RETRY)
		return 0;
	if (q->now_ns - q->unreadable_since_ns >= SECOND_NS) {
		q->unreadable_since_ns = q->now_ns;
		q->unreadable = 0;
	}
	return q->half_open + q->unreadable >= config->retry_above ||
	       (q->half_open && q->connection_count >= config->max_connections);
}

/* Validate a client's token. Returns 0, or -1 if the client was sent an answer instead. */
static int examine_token(struct hs_quic *q, struct hs_listener *listener, struct hs_path *path,
			 const ngtcp2_pkt_hd *hd, ngtcp2_cid *original_dcid,
			 ngtcp2_token_type *type)
{
	if (hs_token_verify(q, path, hd, original_dcid, type)) {
		refuse_token(q, path, hd);
		return -1;
	}
	if (*type == NGTCP2_TOKEN_TYPE_UNKNOWN && wants_proof(q, &listener->config)) {
		retry(q, path, hd);
		return -1;
	}
	return 0;
}

static int has_read_hello(const struct hs_connection *c)
{
	return ngtcp2_conn_get_remote_transport_params(c->conn) != NULL;
}

/* Read a datagram of a handshake, and the 0-RTT packets that were held for it. */
static void read_early(struct hs_connection *c, const struct hs_received *datagram)
{
	/* Only once: an attacker could otherwise trigger a search of the held packets with each
	 * packet. */
	int has_read_before = has_read_hello(c);
	hs_connection_read(c, datagram);
	if (!has_read_before && c->state <= HS_OPEN && has_read_hello(c))
		hs_held_deliver(c);
}

static void take_initial(struct hs_quic *q, const struct hs_received *datagram)
{
	struct hs_path back, *path = answer_path(q, datagram, &back);
	struct hs_listener *listener = hs_listener_find(q, &path->local);
	struct hs_connection *replaced = NULL;
	struct hs_received admitted = *datagram;
	ngtcp2_token_type type;
	ngtcp2_cid original_dcid;
	ngtcp2_pkt_hd hd;
	if (!listener) {
		drop(q, HS_QUIC_DROP_NO_LISTENER);
		return;
	}
	if (ngtcp2_accept(&hd, datagram->data, datagram->bytes)) {
		drop(q, HS_QUIC_DROP_MALFORMED);
		return;
	}
	if (examine_token(q, listener, path, &hd, &original_dcid, &type))
		return;
	if (hs_half_open_make_room(q, &listener->config, &path->remote,
				   type != NGTCP2_TOKEN_TYPE_UNKNOWN, &replaced)) {
		drop(q, HS_QUIC_DROP_REFUSED);
		return;
	}
	if (replaced) {
		drop(q, HS_QUIC_DROP_REPLACED);
		hs_close_give_up(replaced);
	}
	if (!admitted.path)
		admitted.path = q->wire->verbs->learn(q->wire, datagram->key);
	if (!admitted.path) {
		drop(q, HS_QUIC_DROP_NO_PATH);
		return;
	}
	struct hs_connection *c = hs_connection_accept(
		listener, q, admitted.path, &hd,
		type == NGTCP2_TOKEN_TYPE_RETRY ? &original_dcid : NULL, type);
	if (c)
		read_early(c, &admitted);
	else
		drop(q, HS_QUIC_DROP_REFUSED);
}

/* The packet type in a long header, as numbered in version 1: version 2 adds one (RFC 9369
 * section 3.2). */
static uint8_t long_type(const uint8_t *data, uint32_t version)
{
	return (uint8_t)((data[0] >> 4) - (version == NGTCP2_PROTO_VER_V2)) & 3;
}

void hs_read_early(struct hs_connection *c, const struct hs_received *datagram,
		   const ngtcp2_version_cid *ids)
{
	/* ngtcp2 drops 0-RTT packets that arrive between the parts of a ClientHello. */
	if (long_type(datagram->data, ids->version) == HS_QUIC_PACKET_0RTT && !has_read_hello(c))
		hs_held_add(c->q, datagram, ids);
	else
		read_early(c, datagram);
}

void hs_read_unmatched(struct hs_quic *q, const struct hs_received *datagram,
		       const ngtcp2_version_cid *ids)
{
	if (!(datagram->data[0] & HS_QUIC_LONG_HEADER)) {
		reset_statelessly(q, datagram);
		return;
	}
	if (ids->version == 0) { /* Version Negotiation for no connection of ours */
		drop(q, HS_QUIC_DROP_UNKNOWN_CID);
		return;
	}
	uint8_t type = long_type(datagram->data, ids->version);
	if (q->listeners && type == HS_QUIC_PACKET_0RTT) {
		hs_held_add(q, datagram, ids);
		return;
	}
	if (type != HS_QUIC_PACKET_INITIAL) {
		drop(q, HS_QUIC_DROP_UNKNOWN_CID);
		return;
	}
	if (!q->listeners) {
		drop(q, HS_QUIC_DROP_NO_LISTENER);
	} else if (datagram->bytes < LEAST_INITIAL_BYTES) {
		drop(q, HS_QUIC_DROP_TOO_SHORT);
	} else {
		take_initial(q, datagram);
	}
}
