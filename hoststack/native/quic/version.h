/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_VERSION_H
#define HS_QUIC_VERSION_H

#include "quic/state.h"

extern const uint32_t hs_versions[HS_QUIC_VERSIONS]; /* the supported ones */
/* All versions, in the order of preference of an endpoint that prefers this one. */
void hs_version_order(uint32_t versions[HS_QUIC_VERSIONS], uint32_t first);
/* Read a client's transport parameters, and choose the version. Returns 0, or an ngtcp2 error. */
int hs_version_negotiate(struct hs_connection *c, const uint8_t *parameters, size_t bytes);
/* Whether a client uses the version that it began with. RFC 9369 section 5: "TLS session tickets
 * and NEW_TOKEN tokens are specific to the QUIC version of the connection that provided them." */
int hs_version_is_first(const struct hs_connection *c);
/* Callback of ngtcp2. */
int hs_version_on_negotiation(ngtcp2_conn *conn, const ngtcp2_pkt_hd *header,
			      const uint32_t *versions, size_t count, void *user_data);

#endif
