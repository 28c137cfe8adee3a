/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_RESUME_H
#define HS_QUIC_RESUME_H

#include "quic/state.h"

/* For a client's new session. */
void hs_resume_begin(struct hs_connection *c, const struct hs_quic_resume *resume);
/* A NewSessionTicket came: before GnuTLS reads it (GNUTLS_HOOK_PRE), and after that. */
void hs_resume_on_ticket(struct hs_connection *c, unsigned int when, const gnutls_datum_t *message);
/* For a server's session: tickets, and early data. Returns 0, or -1. */
int hs_resume_offer(struct hs_connection *c);
/* The handshake is complete. Returns 0, or -1 if the connection can't continue. */
int hs_resume_completed(struct hs_connection *c);
void hs_resume_keep_token(struct hs_connection *c, const uint8_t *token, size_t bytes);
void hs_resume_free(struct hs_connection *c);
void hs_resume_free_replays(struct hs_quic *q);
int hs_resume_ticket_keys(struct hs_quic *q, const struct hs_quic_config *config,
			  const struct hs_tls *tls, uint8_t out[][HS_QUIC_TICKET_KEY_BYTES]);

#endif
