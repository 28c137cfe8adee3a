/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_CHACHA_H
#define HS_QUIC_CHACHA_H

#include "quic/state.h"

int hs_chacha_on_secrets(gnutls_session_t session, gnutls_record_encryption_level_t level,
			 const void *rx, const void *tx, size_t bytes);
int hs_chacha_update_key(ngtcp2_conn *conn, uint8_t *rx_secret, uint8_t *tx_secret,
			 ngtcp2_crypto_aead_ctx *rx, uint8_t *rx_iv, ngtcp2_crypto_aead_ctx *tx,
			 uint8_t *tx_iv, const uint8_t *rx_before, const uint8_t *tx_before,
			 size_t bytes, void *user_data);
void hs_chacha_delete(ngtcp2_conn *conn, ngtcp2_crypto_aead_ctx *context, void *user_data);
int hs_chacha_encrypt(uint8_t *out, const ngtcp2_crypto_aead *aead,
		      const ngtcp2_crypto_aead_ctx *context, const uint8_t *plaintext, size_t bytes,
		      const uint8_t *nonce, size_t nonce_bytes, const uint8_t *header,
		      size_t header_bytes);
int hs_chacha_decrypt(uint8_t *out, const ngtcp2_crypto_aead *aead,
		      const ngtcp2_crypto_aead_ctx *context, const uint8_t *ciphertext, size_t bytes,
		      const uint8_t *nonce, size_t nonce_bytes, const uint8_t *header,
		      size_t header_bytes);

#endif
