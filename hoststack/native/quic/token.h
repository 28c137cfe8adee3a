/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_TOKEN_H
#define HS_QUIC_TOKEN_H

#include "quic/state.h"

/* Make the token of a Retry packet; `scid` is the connection ID that the packet offers. Returns
 * its length, or an ngtcp2 error. */
ngtcp2_ssize hs_token_for_retry(const struct hs_quic *q, const struct hs_path *path,
				const ngtcp2_pkt_hd *hd, const ngtcp2_cid *scid,
				uint8_t token[NGTCP2_CRYPTO_MAX_RETRY_TOKENLEN2]);
/* Validate the token in an Initial packet. *type is NGTCP2_TOKEN_TYPE_UNKNOWN if there is none, or if
 * it proves nothing; with NGTCP2_TOKEN_TYPE_RETRY *original_dcid is set. Returns -1 for an invalid
 * token of a Retry packet, else 0. */
int hs_token_verify(const struct hs_quic *q, const struct hs_path *path, const ngtcp2_pkt_hd *hd,
		    ngtcp2_cid *original_dcid, ngtcp2_token_type *type);
/* Send a client a token, with which its next connection needs no Retry (RFC 9000 section 8.1.3). */
void hs_token_offer(struct hs_connection *c, const ngtcp2_addr *remote);

#endif
