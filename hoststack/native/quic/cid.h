/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_CID_H
#define HS_QUIC_CID_H

#include "quic/state.h"

/* Generate an unused connection ID for this side. Returns 0, or -1. */
int hs_draw_cid(const struct hs_quic *q, ngtcp2_cid *cid);
/* Generate a connection ID and its token, and register it for a connection. */
int hs_new_cid(struct hs_connection *c, ngtcp2_cid *cid, uint8_t *reset_token);

int hs_cids_init(struct hs_cid_table *table);
void hs_cids_free(struct hs_cid_table *table);
struct hs_connection *hs_cids_find(const struct hs_cid_table *table, const uint8_t *cid,
				   size_t bytes);
int hs_cids_add(struct hs_cid_table *table, struct hs_connection *c, const uint8_t *cid,
		size_t bytes);
void hs_cids_remove(struct hs_cid_table *table, struct hs_connection *c, const uint8_t *cid,
		    size_t bytes);
void hs_cids_remove_all(struct hs_cid_table *table, struct hs_connection *c);

#endif
