/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_PATH_H
#define HS_QUIC_PATH_H

#include "quic/state.h"

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

#endif
