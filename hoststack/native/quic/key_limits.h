/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_KEY_LIMITS_H
#define HS_QUIC_KEY_LIMITS_H

#include <gnutls/gnutls.h>

/* Whether the keys in a Certificate message cost little to use: 0, or an error of GnuTLS. */
int hs_certificates_check(const gnutls_datum_t *message);
/* Trust the CAs of a PEM text, if their keys cost little to use. As GnuTLS, returns how many, or an
 * error. */
int hs_certificates_trust(gnutls_certificate_credentials_t credentials, const gnutls_datum_t *pem);

#endif
