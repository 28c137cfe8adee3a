/* SPDX-License-Identifier: Apache-2.0
 *
 * Limits of the keys in certificates, checked before a signature is: GnuTLS has none. A key with a
 * modulus and an exponent of 16,384 bits takes most of a second, and a certificate of 64 KiB has
 * room for keys that take minutes. */
#include "quic/key_limits.h"

#include <gnutls/abstract.h>
#include <gnutls/x509.h>

#include <stdio.h>

enum { MOST_RSA_BITS = 8192, MOST_EXPONENT_BITS = 32, MOST_CERTIFICATES = 16 };

static unsigned int bits_of(const gnutls_datum_t *number)
{
	unsigned int at = 0;
	while (at < number->size && !number->data[at])
		at++;
	return (number->size - at) * 8;
}

static int is_small_rsa(gnutls_pubkey_t key)
{
	gnutls_datum_t modulus = { NULL, 0 }, exponent = { NULL, 0 };
	if (gnutls_pubkey_export_rsa_raw(key, &modulus, &exponent) < 0)
		return 0;
	int is_small = bits_of(&modulus) <= MOST_RSA_BITS &&
		       bits_of(&exponent) <= MOST_EXPONENT_BITS;
	gnutls_free(modulus.data);
	gnutls_free(exponent.data);
	return is_small;
}

static int is_cheap(gnutls_x509_crt_t certificate)
{
	gnutls_pubkey_t key;
	int cheap = 0;
	if (gnutls_pubkey_init(&key) < 0)
		return 0;
	if (gnutls_pubkey_import_x509(key, certificate, 0) >= 0) {
		switch (gnutls_pubkey_get_pk_algorithm(key, NULL)) {
		case GNUTLS_PK_RSA:
		case GNUTLS_PK_RSA_PSS:
			cheap = is_small_rsa(key);
			break;
		case GNUTLS_PK_ECDSA:
		case GNUTLS_PK_EDDSA_ED25519:
		case GNUTLS_PK_EDDSA_ED448:
			cheap = 1;
			break;
		default: /* TLS 1.3 has no others (RFC 8446 section 4.2.3) */
			break;
		}
	}
	gnutls_pubkey_deinit(key);
	return cheap;
}

static int is_cheap_der(const gnutls_datum_t *der)
{
	gnutls_x509_crt_t certificate;
	if (gnutls_x509_crt_init(&certificate) < 0)
		return 0;
	int cheap = gnutls_x509_crt_import(certificate, der, GNUTLS_X509_FMT_DER) >= 0 &&
		    is_cheap(certificate);
	gnutls_x509_crt_deinit(certificate);
	return cheap;
}

/* Take a vector with a length of `width` bytes from the front; returns -1 if there is none. */
static int take(gnutls_datum_t *from, unsigned int width, gnutls_datum_t *out)
{
	unsigned int bytes = 0;
	if (from->size < width)
		return -1;
	for (unsigned int i = 0; i < width; i++)
		bytes = bytes << 8 | from->data[i];
	if (bytes > from->size - width)
		return -1;
	*out = (gnutls_datum_t){ from->data + width, bytes };
	from->data += width + bytes;
	from->size -= width + bytes;
	return 0;
}

int hs_certificates_check(const gnutls_datum_t *message)
{
	/* RFC 8446 section 4.4.2: a context, and a list of certificates with extensions. */
	gnutls_datum_t rest = *message, list, der, ignored;
	if (take(&rest, 1, &ignored) || take(&rest, 3, &list))
		return GNUTLS_E_UNEXPECTED_PACKET_LENGTH;
	for (int count = 0; list.size; count++) {
		if (take(&list, 3, &der) || take(&list, 2, &ignored))
			return GNUTLS_E_UNEXPECTED_PACKET_LENGTH;
		if (count == MOST_CERTIFICATES || !is_cheap_der(&der))
			return GNUTLS_E_CERTIFICATE_ERROR;
	}
	return 0;
}

int hs_certificates_trust(gnutls_certificate_credentials_t credentials, const gnutls_datum_t *pem)
{
	gnutls_x509_crt_t *list = NULL;
	unsigned int count = 0;
	int failed = gnutls_x509_crt_list_import2(&list, &count, pem, GNUTLS_X509_FMT_PEM, 0);
	if (failed < 0)
		return failed;
	for (unsigned int i = 0; i < count && failed >= 0; i++)
		failed = is_cheap(list[i]) ? 0 : GNUTLS_E_CONSTRAINT_ERROR;
	if (failed >= 0)
		failed = gnutls_certificate_set_x509_trust(credentials, list, (int)count);
	for (unsigned int i = 0; i < count; i++)
		gnutls_x509_crt_deinit(list[i]);
	gnutls_free(list);
	return failed;
}
