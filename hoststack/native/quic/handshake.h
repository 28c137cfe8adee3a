/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_HANDSHAKE_H
#define HS_QUIC_HANDSHAKE_H

#include "quic/state.h"

/* GnuTLS's callback for messages. */
int hs_handshake_on_message(gnutls_session_t session, unsigned int type, unsigned int when,
			    unsigned int incoming, const gnutls_datum_t *message);
/* ngtcp2's callback for data in CRYPTO frames. */
int hs_handshake_receive(ngtcp2_conn *conn, ngtcp2_encryption_level level, uint64_t offset,
			 const uint8_t *data, size_t bytes, void *user_data);
/* GnuTLS's callback for new keys. */
int hs_handshake_on_secrets(gnutls_session_t session, gnutls_record_encryption_level_t level,
			    const void *rx, const void *tx, size_t bytes);
void hs_handshake_free(struct hs_connection *c);

#endif
