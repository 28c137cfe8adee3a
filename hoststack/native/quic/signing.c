/* SPDX-License-Identifier: Apache-2.0
 *
 * Signatures of OpenSSL with this side's keys, RSA's and ECDSA's: they need a third of the time of
 * GnuTLS's. Keys of other kinds stay with GnuTLS, as do all checks of the peer's signatures.
 */
#include "quic/signing.h"

#include <gnutls/abstract.h>
#include <gnutls/x509.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/rsa.h>
#include <openssl/x509.h>

enum { MOST_CERTIFICATES = 16 }; /* that GnuTLS sorts into a chain */

static const EVP_MD *digest_of(gnutls_sign_algorithm_t algorithm)
{
	switch (gnutls_sign_get_hash_algorithm(algorithm)) {
	case GNUTLS_DIG_SHA256:
		return EVP_sha256();
	case GNUTLS_DIG_SHA384:
		return EVP_sha384();
	case GNUTLS_DIG_SHA512:
		return EVP_sha512();
	default: /* TLS 1.3 has no others (RFC 8446 section 4.2.3) */
		return NULL;
	}
}

static gnutls_pk_algorithm_t kind_of(const EVP_PKEY *key)
{
	return EVP_PKEY_get_base_id(key) == EVP_PKEY_RSA ? GNUTLS_PK_RSA : GNUTLS_PK_ECDSA;
}

/* RFC 8446 section 4.2.3: "The length of the Salt MUST be equal to the length of the output of the
 * digest algorithm." */
static int choose_form(EVP_PKEY_CTX *context, gnutls_sign_algorithm_t algorithm)
{
	const EVP_MD *digest = digest_of(algorithm);
	/* RSA with PKCS #1, of a hash that has its prefix already: GnuTLS signs so to see whether a
	 * certificate and a key match. TLS 1.3 does not. */
	if (algorithm == GNUTLS_SIGN_RSA_RAW)
		return EVP_PKEY_CTX_set_rsa_padding(context, RSA_PKCS1_PADDING) > 0;
	if (!digest)
		return 0;
	if (gnutls_sign_get_pk_algorithm(algorithm) == GNUTLS_PK_RSA_PSS &&
	    (EVP_PKEY_CTX_set_rsa_padding(context, RSA_PKCS1_PSS_PADDING) <= 0 ||
	     EVP_PKEY_CTX_set_rsa_pss_saltlen(context, RSA_PSS_SALTLEN_DIGEST) <= 0))
		return 0;
	return EVP_PKEY_CTX_set_signature_md(context, digest) > 0;
}

/* `out` has room for the longest signature, and says so. */
static int sign_into(EVP_PKEY *key, gnutls_sign_algorithm_t algorithm, const gnutls_datum_t *hash,
		     gnutls_datum_t *out)
{
	EVP_PKEY_CTX *context = EVP_PKEY_CTX_new(key, NULL);
	size_t bytes = out->size;
	int is_signed = context && EVP_PKEY_sign_init(context) > 0 &&
			choose_form(context, algorithm) &&
			EVP_PKEY_sign(context, out->data, &bytes, hash->data, hash->size) > 0;
	EVP_PKEY_CTX_free(context);
	if (!is_signed) {
		ERR_clear_error();
		return GNUTLS_E_PK_SIGN_FAILED;
	}
	out->size = (unsigned int)bytes;
	return 0;
}

static int sign(gnutls_privkey_t owner __attribute__((unused)), gnutls_sign_algorithm_t algorithm,
		void *key, unsigned int flags __attribute__((unused)), const gnutls_datum_t *hash,
		gnutls_datum_t *signature)
{
	unsigned int room = (unsigned int)EVP_PKEY_get_size(key);
	gnutls_datum_t made = { gnutls_malloc(room), room };
	if (!made.data)
		return GNUTLS_E_MEMORY_ERROR;
	int failed = sign_into(key, algorithm, hash, &made);
	if (failed)
		gnutls_free(made.data);
	else
		*signature = made;
	return failed;
}

static int tell(gnutls_privkey_t owner __attribute__((unused)), unsigned int flags, void *key)
{
	gnutls_sign_algorithm_t algorithm = GNUTLS_FLAGS_TO_SIGN_ALGO(flags);
	if (flags & GNUTLS_PRIVKEY_INFO_PK_ALGO)
		return kind_of(key);
	if (flags & GNUTLS_PRIVKEY_INFO_PK_ALGO_BITS)
		return EVP_PKEY_get_bits(key);
	if (flags & GNUTLS_PRIVKEY_INFO_HAVE_SIGN_ALGO)
		return digest_of(algorithm) &&
		       gnutls_sign_supports_pk_algorithm(algorithm, kind_of(key));
	return GNUTLS_E_INVALID_REQUEST;
}

static void release(gnutls_privkey_t owner __attribute__((unused)), void *key)
{
	EVP_PKEY_free(key);
}

/* A key of GnuTLS's as OpenSSL's; NULL if it can't be had. */
static EVP_PKEY *copied(gnutls_x509_privkey_t key)
{
	gnutls_datum_t der;
	if (gnutls_x509_privkey_export2_pkcs8(key, GNUTLS_X509_FMT_DER, NULL, GNUTLS_PKCS_PLAIN, &der))
		return NULL;
	const unsigned char *at = der.data;
	EVP_PKEY *copy = d2i_AutoPrivateKey(NULL, &at, (long)der.size);
	if (!copy)
		ERR_clear_error();
	gnutls_memset(der.data, 0, der.size);
	gnutls_free(der.data);
	return copy;
}

/* Take over `key`, which is freed when `out` is. */
static int import(gnutls_privkey_t out, gnutls_x509_privkey_t key)
{
	int kind = gnutls_x509_privkey_get_pk_algorithm(key);
	EVP_PKEY *copy = kind == GNUTLS_PK_RSA || kind == GNUTLS_PK_ECDSA ? copied(key) : NULL;
	if (!copy)
		return gnutls_privkey_import_x509(out, key, GNUTLS_PRIVKEY_IMPORT_COPY);
	int failed = gnutls_privkey_import_ext4(out, copy, NULL, sign, NULL, release, tell,
						GNUTLS_PRIVKEY_IMPORT_AUTO_RELEASE);
	if (failed)
		EVP_PKEY_free(copy);
	return failed;
}

static int load_key(const gnutls_datum_t *pem, gnutls_privkey_t *out)
{
	gnutls_x509_privkey_t key;
	int failed = gnutls_x509_privkey_init(&key);
	if (failed)
		return failed;
	failed = gnutls_x509_privkey_import2(key, pem, GNUTLS_X509_FMT_PEM, NULL, 0);
	if (!failed)
		failed = gnutls_privkey_init(out);
	if (!failed && (failed = import(*out, key)))
		gnutls_privkey_deinit(*out);
	gnutls_x509_privkey_deinit(key);
	return failed;
}

/* An array of the chain's certificates, the leaf first. */
static int load_chain(const gnutls_datum_t *pem, gnutls_pcert_st **out, unsigned int *count)
{
	gnutls_x509_crt_t *list = NULL;
	unsigned int listed = 0;
	int failed = gnutls_x509_crt_list_import2(&list, &listed, pem, GNUTLS_X509_FMT_PEM, 0);
	if (failed < 0)
		return failed;
	*count = listed < MOST_CERTIFICATES ? listed : MOST_CERTIFICATES;
	*out = gnutls_calloc(*count, sizeof(**out));
	failed = *out ? gnutls_pcert_import_x509_list(*out, list, count, GNUTLS_X509_CRT_LIST_SORT) :
			GNUTLS_E_MEMORY_ERROR;
	for (unsigned int i = 0; i < listed; i++)
		gnutls_x509_crt_deinit(list[i]);
	gnutls_free(list);
	if (failed < 0)
		gnutls_free(*out);
	return failed;
}

int hs_signing_load(gnutls_certificate_credentials_t credentials, const gnutls_datum_t *chain_pem,
		    const gnutls_datum_t *key_pem)
{
	gnutls_privkey_t key;
	gnutls_pcert_st *chain;
	unsigned int count = 0;
	int failed = load_key(key_pem, &key);
	if (failed < 0)
		return failed;
	failed = load_chain(chain_pem, &chain, &count);
	if (failed >= 0) {
		/* The credentials own the key and what the array contains, unless this fails. */
		failed = gnutls_certificate_set_key(credentials, NULL, 0, chain, (int)count, key);
		for (unsigned int i = 0; failed < 0 && i < count; i++)
			gnutls_pcert_deinit(&chain[i]);
		gnutls_free(chain);
	}
	if (failed < 0)
		gnutls_privkey_deinit(key);
	return failed;
}
