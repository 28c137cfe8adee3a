/* SPDX-License-Identifier: Apache-2.0
 *
 * Usage: tls_stacks CERTIFICATE KEY CA SECONDS
 *
 * Full TLS 1.3 handshakes in memory, without QUIC, of GnuTLS, of GnuTLS with the native engine's
 * signatures, and of OpenSSL: the CPU time of each side, and the bytes that a pair of sessions
 * keeps. X25519, AES-128-GCM, one ALPN name; the client verifies the server's certificate.
 *
 *   gcc -O2 -Ihoststack/native bench/tls_stacks.c hoststack/native/quic/signing.c \
 *       -o build/tls_stacks -lgnutls -lssl -lcrypto
 */
#include <errno.h>
#include <gnutls/gnutls.h>
#include <malloc.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "quic/signing.h"

enum { QUEUE_BYTES = 32768, KEPT = 200, ROUNDS_MOST = 16 };
#define NAME "localhost"

struct queue {
	size_t bytes;
	unsigned char data[QUEUE_BYTES];
};

static const char *certificate, *key, *ca;

static double cpu_s(void)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static void fail(const char *what)
{
	fprintf(stderr, "tls_stacks: %s failed\n", what);
	ERR_print_errors_fp(stderr);
	exit(1);
}

static void check(int is_right, const char *what)
{
	if (!is_right)
		fail(what);
}

/* --- GnuTLS ----------------------------------------------------------------------------------- */

struct gnutls_side {
	gnutls_session_t session;
	struct queue *in, *out;
};

static gnutls_certificate_credentials_t gnutls_own, gnutls_trust;
static gnutls_priority_t gnutls_priority;

static ssize_t gnutls_push(gnutls_transport_ptr_t pointer, const void *data, size_t bytes)
{
	struct gnutls_side *side = pointer;
	check(side->out->bytes + bytes <= QUEUE_BYTES, "the queue");
	memcpy(side->out->data + side->out->bytes, data, bytes);
	side->out->bytes += bytes;
	return (ssize_t)bytes;
}

static ssize_t gnutls_pull(gnutls_transport_ptr_t pointer, void *data, size_t room)
{
	struct gnutls_side *side = pointer;
	size_t bytes = side->in->bytes < room ? side->in->bytes : room;
	if (!bytes) {
		gnutls_transport_set_errno(side->session, EAGAIN);
		return -1;
	}
	memcpy(data, side->in->data, bytes);
	memmove(side->in->data, side->in->data + bytes, side->in->bytes - bytes);
	side->in->bytes -= bytes;
	return (ssize_t)bytes;
}

static void load_by_file(void)
{
	check(!gnutls_certificate_set_x509_key_file(gnutls_own, certificate, key,
						    GNUTLS_X509_FMT_PEM),
	      "GnuTLS: the certificate");
}

static void load_for_openssl(void)
{
	gnutls_datum_t chain, private_key;
	check(!gnutls_load_file(certificate, &chain) && !gnutls_load_file(key, &private_key) &&
		      !hs_signing_load(gnutls_own, &chain, &private_key),
	      "GnuTLS: the certificate");
	gnutls_free(chain.data);
	gnutls_free(private_key.data);
}

static void gnutls_begin(void (*load)(void))
{
	static const char PRIORITY[] =
		"NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-128-GCM:"
		"-GROUP-ALL:+GROUP-X25519:+GROUP-SECP256R1:%DISABLE_TLS13_COMPAT_MODE";
	gnutls_certificate_allocate_credentials(&gnutls_own);
	gnutls_certificate_allocate_credentials(&gnutls_trust);
	load();
	check(gnutls_certificate_set_x509_trust_file(gnutls_trust, ca,
						     GNUTLS_X509_FMT_PEM) > 0, "GnuTLS: the CA");
	check(!gnutls_priority_init(&gnutls_priority, PRIORITY, NULL), "GnuTLS: priorities");
}

static void gnutls_begin_alone(void)
{
	gnutls_begin(load_by_file);
}

static void gnutls_begin_signing(void)
{
	gnutls_begin(load_for_openssl);
}

static void *gnutls_new(int is_server, struct queue *in, struct queue *out)
{
	static gnutls_datum_t alpn = { (unsigned char *)"h3", 2 };
	struct gnutls_side *side = calloc(1, sizeof(*side));
	side->in = in;
	side->out = out;
	gnutls_init(&side->session,
		    GNUTLS_NONBLOCK | (is_server ? GNUTLS_SERVER | GNUTLS_NO_AUTO_SEND_TICKET :
						   GNUTLS_CLIENT));
	gnutls_priority_set(side->session, gnutls_priority);
	gnutls_credentials_set(side->session, GNUTLS_CRD_CERTIFICATE,
			       is_server ? gnutls_own : gnutls_trust);
	gnutls_alpn_set_protocols(side->session, &alpn, 1, GNUTLS_ALPN_MANDATORY);
	if (!is_server) {
		gnutls_server_name_set(side->session, GNUTLS_NAME_DNS, NAME, strlen(NAME));
		gnutls_session_set_verify_cert(side->session, NAME, 0);
	}
	gnutls_transport_set_ptr(side->session, side);
	gnutls_transport_set_push_function(side->session, gnutls_push);
	gnutls_transport_set_pull_function(side->session, gnutls_pull);
	return side;
}

static int gnutls_step(void *pointer)
{
	struct gnutls_side *side = pointer;
	int result = gnutls_handshake(side->session);
	check(!gnutls_error_is_fatal(result), gnutls_strerror(result));
	return result == 0;
}

static void gnutls_end(void *pointer)
{
	struct gnutls_side *side = pointer;
	gnutls_deinit(side->session);
	free(side);
}

/* --- OpenSSL ---------------------------------------------------------------------------------- */

struct openssl_side {
	SSL *ssl;
	BIO *rx, *tx;
	struct queue *in, *out;
};

static SSL_CTX *openssl_own, *openssl_trust;

static int choose_alpn(SSL *ssl, const unsigned char **out, unsigned char *bytes,
		       const unsigned char *in, unsigned int in_bytes, void *unused)
{
	static const unsigned char OURS[] = "\2h3";
	(void)ssl, (void)unused;
	return SSL_select_next_proto((unsigned char **)(uintptr_t)out, bytes, OURS, 3, in, in_bytes) ==
		OPENSSL_NPN_NEGOTIATED ? SSL_TLSEXT_ERR_OK : SSL_TLSEXT_ERR_ALERT_FATAL;
}

static SSL_CTX *openssl_context(int is_server)
{
	SSL_CTX *context = SSL_CTX_new(is_server ? TLS_server_method() : TLS_client_method());
	check(context && SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) &&
	      SSL_CTX_set_ciphersuites(context, "TLS_AES_128_GCM_SHA256") &&
	      SSL_CTX_set1_groups_list(context, "X25519:P-256"), "OpenSSL: settings");
	SSL_CTX_clear_options(context, SSL_OP_ENABLE_MIDDLEBOX_COMPAT);
	return context;
}

static void openssl_begin(void)
{
	openssl_own = openssl_context(1);
	openssl_trust = openssl_context(0);
	check(SSL_CTX_use_certificate_file(openssl_own, certificate, SSL_FILETYPE_PEM) == 1 &&
	      SSL_CTX_use_PrivateKey_file(openssl_own, key, SSL_FILETYPE_PEM) == 1 &&
	      SSL_CTX_load_verify_locations(openssl_trust, ca, NULL) == 1,
	      "OpenSSL: certificate, key or CA");
	SSL_CTX_set_alpn_select_cb(openssl_own, choose_alpn, NULL);
	SSL_CTX_set_num_tickets(openssl_own, 0);
	SSL_CTX_set_verify(openssl_trust, SSL_VERIFY_PEER, NULL);
}

static void *openssl_new(int is_server, struct queue *in, struct queue *out)
{
	struct openssl_side *side = calloc(1, sizeof(*side));
	*side = (struct openssl_side){ SSL_new(is_server ? openssl_own : openssl_trust),
				       BIO_new(BIO_s_mem()), BIO_new(BIO_s_mem()), in, out };
	SSL_set_bio(side->ssl, side->rx, side->tx);
	if (is_server) {
		SSL_set_accept_state(side->ssl);
	} else {
		SSL_set_connect_state(side->ssl);
		SSL_set_tlsext_host_name(side->ssl, NAME);
		SSL_set1_host(side->ssl, NAME);
		SSL_set_alpn_protos(side->ssl, (const unsigned char *)"\2h3", 3);
	}
	return side;
}

static int openssl_step(void *pointer)
{
	struct openssl_side *side = pointer;
	if (side->in->bytes)
		BIO_write(side->rx, side->in->data, (int)side->in->bytes);
	side->in->bytes = 0;
	int result = SSL_do_handshake(side->ssl);
	check(result == 1 || SSL_get_error(side->ssl, result) == SSL_ERROR_WANT_READ,
	      "OpenSSL: the handshake");
	int bytes = BIO_read(side->tx, side->out->data + side->out->bytes,
			     (int)(QUEUE_BYTES - side->out->bytes));
	if (bytes > 0)
		side->out->bytes += (size_t)bytes;
	return result == 1;
}

static void openssl_end(void *pointer)
{
	struct openssl_side *side = pointer;
	SSL_free(side->ssl);
	free(side);
}

/* --- both ------------------------------------------------------------------------------------- */

struct stack {
	const char *name;
	void (*begin)(void);
	void *(*new)(int is_server, struct queue *in, struct queue *out);
	int (*step)(void *);
	void (*end)(void *);
};

static const struct stack STACKS[] = {
	{ "gnutls", gnutls_begin_alone, gnutls_new, gnutls_step, gnutls_end },
	{ "gnutls, openssl signs", gnutls_begin_signing, gnutls_new, gnutls_step, gnutls_end },
	{ "openssl", openssl_begin, openssl_new, openssl_step, openssl_end },
};

struct pair {
	void *client, *server;
};

/* Runs one handshake; adds each side's CPU time. */
static struct pair handshake(const struct stack *stack, double *client_s, double *server_s)
{
	static struct queue up, down;
	up.bytes = down.bytes = 0;
	double t0 = cpu_s();
	struct pair pair = { .client = stack->new(0, &down, &up) };
	double t1 = cpu_s();
	pair.server = stack->new(1, &up, &down);
	double t2 = cpu_s();
	*client_s += t1 - t0;
	*server_s += t2 - t1;
	int is_done = 0;
	for (int round = 0; is_done != 3; round++) {
		check(round < ROUNDS_MOST, "the handshake: too many rounds;");
		t0 = cpu_s();
		is_done |= is_done & 1 ? 0 : stack->step(pair.client);
		t1 = cpu_s();
		is_done |= is_done & 2 ? 0 : 2 * stack->step(pair.server);
		t2 = cpu_s();
		*client_s += t1 - t0;
		*server_s += t2 - t1;
	}
	return pair;
}

static void end(const struct stack *stack, struct pair pair)
{
	stack->end(pair.client);
	stack->end(pair.server);
}

static void measure(const struct stack *stack, double seconds)
{
	double client_s = 0, server_s = 0;
	static struct pair kept[KEPT];
	stack->begin();
	end(stack, handshake(stack, &client_s, &server_s)); /* what is made once */
	size_t before = mallinfo2().uordblks;
	for (int i = 0; i < KEPT; i++)
		kept[i] = handshake(stack, &client_s, &server_s);
	size_t after = mallinfo2().uordblks;
	for (int i = 0; i < KEPT; i++)
		end(stack, kept[i]);
	client_s = server_s = 0;
	double begin = cpu_s();
	int count = 0;
	for (; cpu_s() - begin < seconds; count++)
		end(stack, handshake(stack, &client_s, &server_s));
	printf("%-21s client_us=%.0f server_us=%.0f pair_bytes=%zu\n", stack->name,
	       client_s / count * 1e6, server_s / count * 1e6, (after - before) / KEPT);
}

int main(int argc, char **argv)
{
	check(argc == 5, "usage: tls_stacks CERTIFICATE KEY CA SECONDS;");
	certificate = argv[1];
	key = argv[2];
	ca = argv[3];
	mallopt(M_MMAP_THRESHOLD, 1 << 30);
	printf("GnuTLS %s, %s\n", gnutls_check_version(NULL), OpenSSL_version(OPENSSL_VERSION));
	for (size_t i = 0; i < sizeof(STACKS) / sizeof(*STACKS); i++)
		measure(&STACKS[i], atof(argv[4]));
	return 0;
}
