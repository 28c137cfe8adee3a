/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "steady.h"

#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#include <gnutls/x509.h>
#include <sys/random.h>
#include <time.h>

#include "fuzz.h"

enum { FIRST_DAY = 1750000000, VALID_SECONDS = 100000000 };

static uint64_t state = 1;
static uint64_t time_ns;

/* xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators" */
static void draw(uint8_t *out, size_t bytes)
{
	for (size_t i = 0; i < bytes; i++) {
		state ^= state >> 12;
		state ^= state << 25;
		state ^= state >> 27;
		out[i] = (uint8_t)((state * 0x2545f4914f6cdd1dULL) >> 56);
	}
}

void steady_begin(uint64_t seed)
{
	state = seed * 2 + 1;
}

/* These two stand in front of the libraries' own. */
int gnutls_rnd(gnutls_rnd_level_t level, void *data, size_t bytes)
{
	(void)level;
	draw(data, bytes);
	return 0;
}

ssize_t getrandom(void *out, size_t bytes, unsigned int flags)
{
	(void)flags;
	draw(out, bytes);
	return (ssize_t)bytes;
}

static time_t now(time_t *out)
{
	time_t seconds = FIRST_DAY + (time_t)(time_ns / 1000000000);
	if (out)
		*out = seconds;
	return seconds;
}

void steady_set_time(uint64_t now_ns)
{
	time_ns = now_ns;
}

void steady_certificate(const char **certificate, const char **key)
{
	static gnutls_datum_t certificate_pem, key_pem;
	gnutls_x509_privkey_t private_key;
	gnutls_x509_crt_t x509;
	if (!certificate_pem.data) {
		gnutls_global_set_time_function(now);
		CHECK(!gnutls_x509_privkey_init(&private_key));
		CHECK(!gnutls_x509_privkey_generate(private_key, GNUTLS_PK_EDDSA_ED25519, 0, 0));
		CHECK(!gnutls_x509_crt_init(&x509));
		CHECK(!gnutls_x509_crt_set_version(x509, 3));
		CHECK(!gnutls_x509_crt_set_serial(x509, "\1", 1));
		CHECK(!gnutls_x509_crt_set_dn(x509, "CN=localhost", NULL));
		CHECK(!gnutls_x509_crt_set_activation_time(x509, FIRST_DAY - 1));
		CHECK(!gnutls_x509_crt_set_expiration_time(x509, FIRST_DAY + VALID_SECONDS));
		CHECK(!gnutls_x509_crt_set_key(x509, private_key));
		CHECK(!gnutls_x509_crt_sign2(x509, x509, private_key, GNUTLS_DIG_UNKNOWN, 0));
		CHECK(!gnutls_x509_crt_export2(x509, GNUTLS_X509_FMT_PEM, &certificate_pem));
		CHECK(!gnutls_x509_privkey_export2_pkcs8(private_key, GNUTLS_X509_FMT_PEM, NULL,
						       GNUTLS_PKCS_PLAIN, &key_pem));
		gnutls_x509_crt_deinit(x509);
		gnutls_x509_privkey_deinit(private_key);
	}
	*certificate = (const char *)certificate_pem.data;
	*key = (const char *)key_pem.data;
}
