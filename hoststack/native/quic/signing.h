/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_SIGNING_H
#define HS_QUIC_SIGNING_H

#include <gnutls/gnutls.h>

/* Adds a chain and its key, both in PEM. Returns 0, or an error of GnuTLS. */
int hs_signing_load(gnutls_certificate_credentials_t credentials, const gnutls_datum_t *chain_pem,
		    const gnutls_datum_t *key_pem);

#endif
