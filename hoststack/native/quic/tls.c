/* SPDX-License-Identifier: Apache-2.0
 *
 * GnuTLS credentials and sessions.
 */
#include "quic/tls.h"

#include <arpa/inet.h>
#include <gnutls/x509.h>
#include <ngtcp2/ngtcp2_crypto_gnutls.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "quic/handshake.h"
#include "quic/key_limits.h"
#include "quic/server_names.h"
#include "quic/signing.h"

/* AES first: processors have instructions for it. */
static const char CIPHERS[] = "AES-128-GCM:+AES-256-GCM:+CHACHA20-POLY1305";

enum { PRIORITY_BYTES = 512 };

/* `option` begins with a colon, or is empty. */
static int set_priority(struct hs_tls *tls, const char *ciphers, const char *option)
{
	char text[PRIORITY_BYTES];
	gnutls_priority_t made;
	snprintf(text, sizeof(text),
		 "NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+%s:"
		 "-GROUP-ALL:+GROUP-X25519:+GROUP-SECP256R1:+GROUP-SECP384R1:"
		 "%%DISABLE_TLS13_COMPAT_MODE%s",
		 ciphers, option);
	int failed = gnutls_priority_init(&made, text, NULL);
	if (failed < 0)
		return failed;
	if (tls->priority)
		gnutls_priority_deinit(tls->priority);
	tls->priority = made;
	return 0;
}

static gnutls_datum_t datum(const char *text)
{
	return (gnutls_datum_t){ (unsigned char *)(uintptr_t)text, (unsigned int)strlen(text) };
}

static int load_trust(struct hs_tls *tls, const char *ca)
{
	gnutls_certificate_credentials_t credentials = tls->shared->credentials;
	if (!ca)
		return gnutls_certificate_set_x509_system_trust(credentials);
	gnutls_datum_t pem = datum(ca);
	return hs_certificates_trust(credentials, &pem);
}

static int load_own(gnutls_certificate_credentials_t credentials, const char *certificate,
		    const char *key)
{
	gnutls_datum_t chain = datum(certificate), private_key = datum(key);
	return hs_signing_load(credentials, &chain, &private_key);
}

/* The list as in TLS: length, name, length, name. */
static int load_alpn(struct hs_tls *tls, const uint8_t *names, size_t bytes)
{
	tls->alpn_names = malloc(bytes ? bytes : 1);
	if (!tls->alpn_names)
		return GNUTLS_E_MEMORY_ERROR;
	memcpy(tls->alpn_names, names, bytes);
	for (size_t at = 0; at < bytes; at += 1 + (size_t)tls->alpn_names[at]) {
		uint8_t length = tls->alpn_names[at];
		if (length == 0 || length > HS_QUIC_ALPN_BYTES || length > bytes - at - 1 ||
		    tls->alpn_count == HS_QUIC_MAX_ALPN)
			return GNUTLS_E_INVALID_REQUEST;
		tls->alpn[tls->alpn_count++] =
			(gnutls_datum_t){ tls->alpn_names + at + 1, length };
	}
	return 0;
}

static void release_credentials(struct hs_credentials *shared)
{
	if (--shared->references)
		return;
	if (shared->credentials)
		gnutls_certificate_free_credentials(shared->credentials);
	free(shared);
}

static struct hs_tls *new_tls(struct hs_credentials *shared, int verify)
{
	struct hs_tls *tls = calloc(1, sizeof(*tls));
	if (!tls)
		return NULL;
	tls->references = 1;
	tls->verifies = verify != 0;
	tls->shared = shared ? shared : calloc(1, sizeof(*tls->shared));
	if (!tls->shared) {
		free(tls);
		return NULL;
	}
	tls->shared->references++;
	return tls;
}

static int set_up(struct hs_tls *tls, const uint8_t *alpn, size_t alpn_bytes, const char **what)
{
	*what = "the priorities";
	int failed = set_priority(tls, CIPHERS, "");
	if (failed < 0)
		return failed;
	*what = "the list of application protocols (ALPN)";
	return load_alpn(tls, alpn, alpn_bytes);
}

static int load(struct hs_tls *tls, const char *certificate, const char *key, const char *ca,
		int trusts, const char **what)
{
	*what = "memory";
	int failed = gnutls_certificate_allocate_credentials(&tls->shared->credentials);
	if (failed < 0)
		return failed;
	*what = "the trusted CAs";
	failed = trusts ? load_trust(tls, ca) : 0;
	if (failed < 0)
		return failed;
	*what = "certificate and key";
	return certificate && key ? load_own(tls->shared->credentials, certificate, key) : 0;
}

struct hs_tls *hs_tls_new(int is_server, const char *certificate, const char *key, const char *ca,
			  int verify, const uint8_t *alpn, size_t alpn_bytes, char *error,
			  size_t error_bytes)
{
	struct hs_tls *tls = new_tls(NULL, verify);
	const char *what = "memory";
	int failed = GNUTLS_E_MEMORY_ERROR;
	if (tls)
		failed = load(tls, certificate, key, ca, verify && !is_server, &what);
	if (failed >= 0)
		failed = set_up(tls, alpn, alpn_bytes, &what);
	if (failed >= 0)
		return tls;
	snprintf(error, error_bytes, "GnuTLS can't use %s: %s", what, gnutls_strerror(failed));
	if (tls)
		hs_tls_free(tls);
	return NULL;
}

struct hs_tls *hs_tls_like(const struct hs_tls *other, const uint8_t *alpn, size_t alpn_bytes)
{
	const char *what;
	struct hs_tls *tls = new_tls(other->shared, other->verifies);
	if (tls && set_up(tls, alpn, alpn_bytes, &what) < 0) {
		hs_tls_free(tls);
		return NULL;
	}
	return tls;
}

int hs_tls_ask_clients(struct hs_tls *tls, int is_required, const char *ca, char *error,
		       size_t error_bytes)
{
	int failed = tls->verifies ? load_trust(tls, ca) : 0;
	tls->asks_clients = 1;
	tls->requires_clients = is_required != 0;
	if (failed < 0)
		snprintf(error, error_bytes, "GnuTLS can't use the trusted CAs: %s",
			 gnutls_strerror(failed));
	return failed < 0 ? -1 : 0;
}

int hs_tls_add(struct hs_tls *tls, uint32_t group, const char *certificate, const char *key,
	       char *error, size_t error_bytes)
{
	gnutls_certificate_credentials_t credentials = hs_names_group(tls, group);
	int failed = credentials ? load_own(credentials, certificate, key) :
				   GNUTLS_E_MEMORY_ERROR;
	if (failed < 0)
		snprintf(error, error_bytes, "GnuTLS can't use certificate and key: %s",
			 gnutls_strerror(failed));
	return failed < 0 ? -1 : 0;
}

int hs_tls_set_ciphers(struct hs_tls *tls, const char *ciphers, char *error, size_t error_bytes)
{
	int failed = set_priority(tls, ciphers, ":%SERVER_PRECEDENCE");
	if (failed < 0)
		snprintf(error, error_bytes, "GnuTLS can't use the ciphers: %s",
			 gnutls_strerror(failed));
	return failed < 0 ? -1 : 0;
}

void hs_tls_hold(struct hs_tls *tls)
{
	tls->references++;
}

void hs_tls_free(struct hs_tls *tls)
{
	if (--tls->references)
		return;
	release_credentials(tls->shared);
	hs_names_free(tls);
	if (tls->priority)
		gnutls_priority_deinit(tls->priority);
	free(tls->alpn_names);
	free(tls);
}

static ngtcp2_conn *conn_of(ngtcp2_crypto_conn_ref *ref)
{
	struct hs_connection *c = ref->user_data;
	return c->conn;
}

/* SNI carries only host names (RFC 6066 section 3), which have no underscores: servers with
 * GnuTLS refuse those. */
static int is_name(const char *server_name)
{
	uint8_t address[16];
	return !strchr(server_name, '_') && inet_pton(AF_INET, server_name, address) != 1 &&
	       inet_pton(AF_INET6, server_name, address) != 1;
}

/* GnuTLS checks the purpose of a certificate (RFC 5280 section 4.2.1.12) only if it is passed
 * one. */
static void verify_server(struct hs_connection *c)
{
	c->expected[0] = (gnutls_typed_vdata_st){ .type = GNUTLS_DT_DNS_HOSTNAME,
						  .data = (unsigned char *)c->server_name };
	c->expected[1] = (gnutls_typed_vdata_st){
		.type = GNUTLS_DT_KEY_PURPOSE_OID,
		.data = (unsigned char *)GNUTLS_KP_TLS_WWW_SERVER,
	};
	gnutls_session_set_verify_cert2(c->session, c->expected, 2, 0);
}

static int set_up_client(struct hs_connection *c)
{
	const char *name = c->server_name;
	int failed = ngtcp2_crypto_gnutls_configure_client_session(c->session);
	if (!failed && name && is_name(name))
		failed = gnutls_server_name_set(c->session, GNUTLS_NAME_DNS, name, strlen(name));
	if (!failed && c->tls->verifies)
		verify_server(c);
	return failed;
}

/* Whether a client may continue without a required certificate is decided elsewhere. */
static int verify_client(gnutls_session_t session)
{
	static gnutls_typed_vdata_st PURPOSE = {
		.type = GNUTLS_DT_KEY_PURPOSE_OID,
		.data = (unsigned char *)GNUTLS_KP_TLS_WWW_CLIENT,
	};
	ngtcp2_crypto_conn_ref *ref = gnutls_session_get_ptr(session);
	struct hs_connection *c = ref->user_data;
	if (!gnutls_certificate_get_peers(session, NULL))
		return 0;
	/* Those that were presented may be without the trusted CAs. */
	if (gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, c->tls->shared->credentials))
		return GNUTLS_E_CERTIFICATE_ERROR;
	if (gnutls_certificate_verify_peers(session, &PURPOSE, 1, &c->client_flaws))
		return GNUTLS_E_CERTIFICATE_ERROR;
	return c->client_flaws ? GNUTLS_E_CERTIFICATE_VERIFICATION_ERROR : 0;
}

static int set_up_server(struct hs_connection *c)
{
	if (c->tls->asks_clients) {
		gnutls_certificate_server_set_request(c->session, c->tls->requires_clients ?
									  GNUTLS_CERT_REQUIRE :
									  GNUTLS_CERT_REQUEST);
		/* Do not disclose the trusted CAs to every client. */
		gnutls_certificate_send_x509_rdn_sequence(c->session, 1);
	}
	if (c->tls->asks_clients && c->tls->verifies)
		gnutls_session_set_verify_function(c->session, verify_client);
	return ngtcp2_crypto_gnutls_configure_server_session(c->session);
}

int hs_tls_session(struct hs_connection *c, int is_server, int early_data)
{
	unsigned int flags = is_server ? GNUTLS_SERVER | GNUTLS_NO_AUTO_SEND_TICKET :
					 GNUTLS_CLIENT;
	if (early_data)
		flags |= GNUTLS_ENABLE_EARLY_DATA;
	/* RFC 9001 section 8.3: "Clients MUST NOT send the EndOfEarlyData message." */
	if (gnutls_init(&c->session, flags | GNUTLS_NO_END_OF_EARLY_DATA))
		return -1;
	c->ref.get_conn = conn_of;
	c->ref.user_data = c;
	gnutls_session_set_ptr(c->session, &c->ref);
	if (gnutls_priority_set(c->session, c->tls->priority) ||
	    gnutls_credentials_set(c->session, GNUTLS_CRD_CERTIFICATE, c->tls->shared->credentials) ||
	    gnutls_alpn_set_protocols(c->session, c->tls->alpn, c->tls->alpn_count,
				      GNUTLS_ALPN_MANDATORY |
					      (is_server ? GNUTLS_ALPN_SERVER_PRECEDENCE : 0)))
		return -1;
	int failed = is_server ? set_up_server(c) : set_up_client(c);
	gnutls_handshake_set_secret_function(c->session, hs_handshake_on_secrets);
	gnutls_handshake_set_hook_function(c->session, GNUTLS_HANDSHAKE_ANY, GNUTLS_HOOK_BOTH,
					   hs_handshake_on_message);
	return failed;
}

void hs_tls_failure(struct hs_connection *c, char *out, size_t room)
{
	gnutls_datum_t text = { 0 };
	out[0] = 0;
	if (!c->tls)
		return;
	if (c->listener && c->tls->requires_clients && !gnutls_certificate_get_peers(c->session, NULL)) {
		snprintf(out, room, "The server requires a client certificate");
		return;
	}
	unsigned int status = c->listener ? c->client_flaws :
					    gnutls_session_get_verify_cert_status(c->session);
	if (!c->tls->verifies || !status || status == (unsigned int)-1)
		return;
	if (gnutls_certificate_verification_status_print(status, GNUTLS_CRT_X509, &text, 0) < 0)
		return;
	snprintf(out, room, "%.*s", (int)text.size, (const char *)text.data);
	gnutls_free(text.data);
}

const uint8_t *hs_connection_certificate(const struct hs_connection *c, uint32_t index,
					 size_t *bytes)
{
	unsigned int count = 0;
	const gnutls_datum_t *chain = gnutls_certificate_get_peers(c->session, &count);
	*bytes = chain && index < count ? chain[index].size : 0;
	return *bytes ? chain[index].data : NULL;
}

const uint8_t *hs_connection_own_certificate(const struct hs_connection *c, size_t *bytes)
{
	const gnutls_datum_t *own = gnutls_certificate_get_ours(c->session);
	*bytes = own ? own->size : 0;
	return *bytes ? own->data : NULL;
}

void hs_connection_release_tls(struct hs_connection *c)
{
	if (!c->listener || !c->tls)
		return;
	gnutls_credentials_clear(c->session);
	hs_tls_free(c->tls);
	c->tls = NULL;
}

const char *hs_connection_server_name(const struct hs_connection *c)
{
	return c->server_name;
}

const char *hs_connection_cipher(const struct hs_connection *c)
{
	return gnutls_cipher_get_name(gnutls_cipher_get(c->session));
}

size_t hs_connection_alpn(const struct hs_connection *c, uint8_t *out, size_t room)
{
	gnutls_datum_t name;
	if (gnutls_alpn_get_selected_protocol(c->session, &name) || name.size > room)
		return 0;
	memcpy(out, name.data, name.size);
	return name.size;
}
