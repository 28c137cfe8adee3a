/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_SERVER_NAMES_H
#define HS_QUIC_SERVER_NAMES_H

#include "quic/state.h"

/* Note the name that a client asks for, as it came; a text that is no name is left out. Returns 0,
 * or -1 without memory. */
int hs_names_note(struct hs_connection *c, const uint8_t *name, size_t bytes);
/* Present the certificates for that name or, without one, for the address at which the client came.
 * Returns 0, or an error of GnuTLS. */
int hs_names_choose(struct hs_connection *c);
/* The credentials of a group, which begins if it is the next one; NULL if there can be none. */
gnutls_certificate_credentials_t hs_names_group(struct hs_tls *tls, uint32_t group);
void hs_names_free(struct hs_tls *tls);

#endif
