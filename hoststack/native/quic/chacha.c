/* SPDX-License-Identifier: Apache-2.0
 *
 * ChaCha20-Poly1305 of OpenSSL, which needs a third of the time of GnuTLS's. For 1-RTT packets
 * only: the handshake, 0-RTT, header protection and all other ciphers stay with GnuTLS and ngtcp2's
 * glue for it. The glue does not expose its keys, so they are derived here (RFC 9001 section 5.1).
 */
#include "quic/chacha.h"

#include <ngtcp2/ngtcp2_crypto_gnutls.h>
#include <openssl/evp.h>

#include <stdio.h>

enum {
	KEY_BYTES = 32, /* of packets and of their headers (RFC 8439 section 2.8, 2.4) */
	NONCE_BYTES = 12,
	TAG_BYTES = 16,
	LENGTHS_BYTES = 3, /* before the label in HkdfLabel */
	INFO_BYTES = 32,
};

/* ngtcp2 stores a pointer, GnuTLS's or OpenSSL's; the lowest bit marks the latter. Both have
 * even addresses. */
static const uintptr_t OURS = 1;

static int is_ours(const ngtcp2_crypto_aead_ctx *context)
{
	return (uintptr_t)context->native_handle & OURS;
}

static EVP_CIPHER_CTX *openssl_of(const ngtcp2_crypto_aead_ctx *context)
{
	return (EVP_CIPHER_CTX *)((uintptr_t)context->native_handle & ~OURS);
}

static int make_context(ngtcp2_crypto_aead_ctx *out, const uint8_t *key, int is_rx)
{
	EVP_CIPHER_CTX *made = EVP_CIPHER_CTX_new();
	if (!made || !EVP_CipherInit_ex(made, EVP_chacha20_poly1305(), NULL, key, NULL, !is_rx)) {
		EVP_CIPHER_CTX_free(made);
		return -1;
	}
	out->native_handle = (void *)((uintptr_t)made | OURS);
	return 0;
}

void hs_chacha_delete(ngtcp2_conn *conn, ngtcp2_crypto_aead_ctx *context, void *user_data)
{
	if (is_ours(context))
		EVP_CIPHER_CTX_free(openssl_of(context));
	else
		ngtcp2_crypto_delete_crypto_aead_ctx_cb(conn, context, user_data);
}

static int is_chacha(ngtcp2_conn *conn)
{
	const ngtcp2_crypto_ctx *crypto = ngtcp2_conn_get_crypto_ctx(conn);
	return crypto->aead.native_handle == (void *)GNUTLS_CIPHER_CHACHA20_POLY1305;
}

/* HKDF-Expand-Label of RFC 8446 section 7.1, with an empty context. RFC 9369 section 3.3.2: version
 * 2 has "quicv2 key", "quicv2 iv", "quicv2 hp". */
static int expand(ngtcp2_conn *conn, const char *what, uint8_t *out, uint8_t bytes,
		  const uint8_t *secret, size_t secret_bytes)
{
	int is_v2 = ngtcp2_conn_get_negotiated_version(conn) == NGTCP2_PROTO_VER_V2;
	char info[INFO_BYTES];
	char *label = info + LENGTHS_BYTES;
	int label_bytes = snprintf(label, sizeof(info) - LENGTHS_BYTES, "tls13 %s %s",
				   is_v2 ? "quicv2" : "quic", what);
	info[0] = 0;
	info[1] = (char)bytes;
	info[2] = (char)label_bytes;
	/* The label's terminating zero byte is the length of the empty context. */
	return ngtcp2_crypto_hkdf_expand(out, bytes, &ngtcp2_conn_get_crypto_ctx(conn)->md, secret,
					 secret_bytes, (uint8_t *)info,
					 LENGTHS_BYTES + (size_t)label_bytes + 1);
}

static int install(ngtcp2_conn *conn, const uint8_t *secret, size_t bytes, int is_rx)
{
	uint8_t key[KEY_BYTES], iv[NONCE_BYTES], header_key[KEY_BYTES];
	gnutls_datum_t header_datum = { header_key, sizeof(header_key) };
	gnutls_cipher_hd_t header_cipher = NULL;
	ngtcp2_crypto_aead_ctx context = { NULL };
	if (expand(conn, "key", key, sizeof(key), secret, bytes) ||
	    expand(conn, "iv", iv, sizeof(iv), secret, bytes) ||
	    expand(conn, "hp", header_key, sizeof(header_key), secret, bytes) ||
	    make_context(&context, key, is_rx))
		return -1;
	/* The same cipher that the glue creates; the glue uses and frees it. */
	if (gnutls_cipher_init(&header_cipher, GNUTLS_CIPHER_CHACHA20_32, &header_datum, NULL) == 0) {
		ngtcp2_crypto_cipher_ctx header = { header_cipher };
		if (!(is_rx ? ngtcp2_conn_install_rx_key : ngtcp2_conn_install_tx_key)(
			    conn, secret, bytes, &context, iv, sizeof(iv), &header))
			return 0;
		gnutls_cipher_deinit(header_cipher);
	}
	EVP_CIPHER_CTX_free(openssl_of(&context));
	return -1;
}

int hs_chacha_on_secrets(gnutls_session_t session, gnutls_record_encryption_level_t level,
			 const void *rx, const void *tx, size_t bytes)
{
	ngtcp2_crypto_conn_ref *ref = gnutls_session_get_ptr(session);
	ngtcp2_conn *conn = ref->get_conn(ref);
	if (level == GNUTLS_ENCRYPTION_LEVEL_APPLICATION && is_chacha(conn))
		return (rx && install(conn, rx, bytes, 1)) || (tx && install(conn, tx, bytes, 0)) ?
			       -1 :
			       0;
	ngtcp2_encryption_level same =
		ngtcp2_crypto_gnutls_from_gnutls_record_encryption_level(level);
	if (rx && ngtcp2_crypto_derive_and_install_rx_key(conn, NULL, NULL, NULL, same, rx, bytes))
		return -1;
	if (tx && ngtcp2_crypto_derive_and_install_tx_key(conn, NULL, NULL, NULL, same, tx, bytes))
		return -1;
	return 0;
}

/* The glue derives the keys here, and returns them; only its contexts are not needed. */
int hs_chacha_update_key(ngtcp2_conn *conn, uint8_t *rx_secret, uint8_t *tx_secret,
			 ngtcp2_crypto_aead_ctx *rx, uint8_t *rx_iv, ngtcp2_crypto_aead_ctx *tx,
			 uint8_t *tx_iv, const uint8_t *rx_before, const uint8_t *tx_before,
			 size_t bytes, void *user_data)
{
	if (!is_chacha(conn))
		return ngtcp2_crypto_update_key_cb(conn, rx_secret, tx_secret, rx, rx_iv, tx, tx_iv,
						   rx_before, tx_before, bytes, user_data);
	uint8_t rx_key[KEY_BYTES], tx_key[KEY_BYTES];
	if (ngtcp2_crypto_update_key(conn, rx_secret, tx_secret, rx, rx_key, rx_iv, tx, tx_key,
				     tx_iv, rx_before, tx_before, bytes))
		return NGTCP2_ERR_CALLBACK_FAILURE;
	ngtcp2_crypto_aead_ctx_free(rx);
	ngtcp2_crypto_aead_ctx_free(tx);
	if (make_context(rx, rx_key, 1))
		return NGTCP2_ERR_CALLBACK_FAILURE;
	if (make_context(tx, tx_key, 0)) {
		EVP_CIPHER_CTX_free(openssl_of(rx));
		return NGTCP2_ERR_CALLBACK_FAILURE;
	}
	return 0;
}

int hs_chacha_encrypt(uint8_t *out, const ngtcp2_crypto_aead *aead,
		      const ngtcp2_crypto_aead_ctx *context, const uint8_t *plaintext, size_t bytes,
		      const uint8_t *nonce, size_t nonce_bytes, const uint8_t *header,
		      size_t header_bytes)
{
	if (!is_ours(context))
		return ngtcp2_crypto_encrypt_cb(out, aead, context, plaintext, bytes, nonce,
						nonce_bytes, header, header_bytes);
	EVP_CIPHER_CTX *cipher = openssl_of(context);
	int done;
	if (!EVP_EncryptInit_ex(cipher, NULL, NULL, NULL, nonce) ||
	    !EVP_EncryptUpdate(cipher, NULL, &done, header, (int)header_bytes) ||
	    !EVP_EncryptUpdate(cipher, out, &done, plaintext, (int)bytes) ||
	    !EVP_EncryptFinal_ex(cipher, out + bytes, &done) ||
	    !EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, out + bytes))
		return NGTCP2_ERR_CALLBACK_FAILURE;
	return 0;
}

int hs_chacha_decrypt(uint8_t *out, const ngtcp2_crypto_aead *aead,
		      const ngtcp2_crypto_aead_ctx *context, const uint8_t *ciphertext, size_t bytes,
		      const uint8_t *nonce, size_t nonce_bytes, const uint8_t *header,
		      size_t header_bytes)
{
	if (!is_ours(context))
		return ngtcp2_crypto_decrypt_cb(out, aead, context, ciphertext, bytes, nonce,
						nonce_bytes, header, header_bytes);
	if (bytes < TAG_BYTES)
		return NGTCP2_ERR_DECRYPT;
	EVP_CIPHER_CTX *cipher = openssl_of(context);
	size_t content_bytes = bytes - TAG_BYTES;
	void *tag = (void *)(uintptr_t)(ciphertext + content_bytes);
	int done;
	if (!EVP_DecryptInit_ex(cipher, NULL, NULL, NULL, nonce) ||
	    !EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_AEAD_SET_TAG, TAG_BYTES, tag) ||
	    !EVP_DecryptUpdate(cipher, NULL, &done, header, (int)header_bytes) ||
	    !EVP_DecryptUpdate(cipher, out, &done, ciphertext, (int)content_bytes) ||
	    EVP_DecryptFinal_ex(cipher, out + content_bytes, &done) <= 0)
		return NGTCP2_ERR_DECRYPT;
	return 0;
}
