/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_TLS_H
#define HS_QUIC_TLS_H

#include "quic/state.h"

int hs_tls_session(struct hs_connection *c, int is_server, int early_data);
void hs_tls_hold(struct hs_tls *tls);
/* Why the peer's certificate was refused; empty if it was not. */
void hs_tls_failure(struct hs_connection *c, char *out, size_t room);

#endif
