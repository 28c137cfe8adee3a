/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_BEGIN_H
#define HS_QUIC_BEGIN_H

#include "quic/state.h"

struct hs_connection *hs_connection_accept(struct hs_listener *listener, struct hs_quic *q,
					   struct hs_path *path, const ngtcp2_pkt_hd *hd,
					   const ngtcp2_cid *original_dcid,
					   ngtcp2_token_type token_type);
/* For a client whose version the server does not support: restart with `next_version`. Returns
 * 0, or -1 on failure. */
int hs_connection_begin_again(struct hs_connection *c);
void hs_connection_free(struct hs_connection *c);

#endif
