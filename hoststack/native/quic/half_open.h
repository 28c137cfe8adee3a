/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_HALF_OPEN_H
#define HS_QUIC_HALF_OPEN_H

#include "quic/state.h"

struct hs_half_open *hs_half_open_new(void);
void hs_half_open_free(struct hs_half_open *all);
/* Make room for another handshake. Returns 0, or -1 if this source has no room; *replaced is an
 * older handshake that the caller has to abandon for it (hs_close_give_up), or NULL. */
int hs_half_open_make_room(struct hs_quic *q, const struct hs_quic_config *config,
			   const union hs_address *remote, int is_proven,
			   struct hs_connection **replaced);
/* Register a new connection of a peer; `is_proven` says whether its address was validated. */
void hs_half_open_begin(struct hs_connection *c, int is_proven);
/* Unregister it: its handshake is complete, or was abandoned. Idempotent. */
void hs_half_open_end(struct hs_connection *c);

#endif
