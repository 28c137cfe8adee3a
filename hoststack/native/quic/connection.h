/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_CONNECTION_H
#define HS_QUIC_CONNECTION_H

#include "quic/state.h"

void hs_connection_read(struct hs_connection *c, const struct hs_received *datagram);
/* Write up to `share` packets. Returns how many; -1 when the wire is full. */
int hs_connection_write(struct hs_connection *c, int share);
void hs_connection_expire(struct hs_connection *c);
void hs_connection_set_timer(struct hs_connection *c);

#endif
