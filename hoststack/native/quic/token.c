/* SPDX-License-Identifier: Apache-2.0
 *
 * Tokens that prove a client's address: those of Retry packets, and those for its next connection
 * (RFC 9000 section 8.1).
 */
#include "quic/token.h"

#include <string.h>
#include <time.h>

#include "quic/version.h"
#include "wire/paths.h"

#define SECOND_NS 1000000000ULL
#define RETRY_TOKEN_NS (10 * SECOND_NS)
#define REGULAR_TOKEN_NS (3600 * SECOND_NS)

/* The time in tokens must be the same for all workers, including later ones; `now_ns` is not. */
static uint64_t utc_ns(void)
{
	struct timespec now;
	timespec_get(&now, TIME_UTC);
	return (uint64_t)now.tv_sec * SECOND_NS + (uint64_t)now.tv_nsec;
}

/* RFC 9369 section 5: "Servers MUST validate the originating version of any session ticket or
 * token and not accept one issued from a different version." So each version has its own secret. */
static void make_secret(const struct hs_quic *q, uint32_t version,
			uint8_t secret[HS_QUIC_SECRET_BYTES])
{
	memcpy(secret, q->secret, HS_QUIC_SECRET_BYTES);
	if (version != hs_versions[0])
		secret[0] ^= 1;
}

void hs_token_offer(struct hs_connection *c, const ngtcp2_addr *remote)
{
	uint8_t token[NGTCP2_CRYPTO_MAX_REGULAR_TOKENLEN], secret[HS_QUIC_SECRET_BYTES];
	make_secret(c->q, ngtcp2_conn_get_negotiated_version(c->conn), secret);
	ngtcp2_ssize bytes = ngtcp2_crypto_generate_regular_token(
		token, secret, sizeof(secret), remote->addr, remote->addrlen, utc_ns());
	if (bytes > 0)
		ngtcp2_conn_submit_new_token(c->conn, token, (size_t)bytes);
}

ngtcp2_ssize hs_token_for_retry(const struct hs_quic *q, const struct hs_path *path,
				const ngtcp2_pkt_hd *hd, const ngtcp2_cid *scid,
				uint8_t token[NGTCP2_CRYPTO_MAX_RETRY_TOKENLEN2])
{
	return ngtcp2_crypto_generate_retry_token2(token, q->secret, sizeof(q->secret), hd->version,
						   &path->remote.any, hs_address_bytes(&path->remote),
						   scid, &hd->dcid, utc_ns());
}

int hs_token_verify(const struct hs_quic *q, const struct hs_path *path, const ngtcp2_pkt_hd *hd,
		    ngtcp2_cid *original_dcid, ngtcp2_token_type *type)
{
	const struct sockaddr *remote = &path->remote.any;
	socklen_t remote_bytes = hs_address_bytes(&path->remote);
	uint8_t secret[HS_QUIC_SECRET_BYTES];
	*type = NGTCP2_TOKEN_TYPE_UNKNOWN;
	if (!hd->tokenlen)
		return 0;
	if (hd->token[0] == NGTCP2_CRYPTO_TOKEN_MAGIC_RETRY2) {
		if (ngtcp2_crypto_verify_retry_token2(original_dcid, hd->token, hd->tokenlen, q->secret,
						      sizeof(q->secret), hd->version, remote,
						      remote_bytes, &hd->dcid, RETRY_TOKEN_NS,
						      utc_ns()))
			return -1;
		*type = NGTCP2_TOKEN_TYPE_RETRY;
		return 0;
	}
	make_secret(q, hd->version, secret);
	if (hd->token[0] == NGTCP2_CRYPTO_TOKEN_MAGIC_REGULAR &&
	    !ngtcp2_crypto_verify_regular_token(hd->token, hd->tokenlen, secret, sizeof(secret), remote,
						remote_bytes, REGULAR_TOKEN_NS, utc_ns()))
		*type = NGTCP2_TOKEN_TYPE_NEW_TOKEN;
	return 0;
}
