/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_PACKETS_H
#define HS_QUIC_PACKETS_H

#include "quic/state.h"

/* Set the connection whose packets are read or written from now on; NULL: none. */
void hs_packets_of(struct hs_connection *c);
int hs_encrypt(uint8_t *out, const ngtcp2_crypto_aead *aead, const ngtcp2_crypto_aead_ctx *context,
	       const uint8_t *plaintext, size_t bytes, const uint8_t *nonce, size_t nonce_bytes,
	       const uint8_t *header, size_t header_bytes);
int hs_decrypt(uint8_t *out, const ngtcp2_crypto_aead *aead, const ngtcp2_crypto_aead_ctx *context,
	       const uint8_t *ciphertext, size_t bytes, const uint8_t *nonce, size_t nonce_bytes,
	       const uint8_t *header, size_t header_bytes);

#endif
