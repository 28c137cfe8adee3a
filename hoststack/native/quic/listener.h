/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_LISTENER_H
#define HS_QUIC_LISTENER_H

#include "quic/state.h"

/* The listener for a local endpoint; NULL: none. */
struct hs_listener *hs_listener_find(struct hs_quic *q, const union hs_address *local);
/* A connection of it has ended, or the engine has closed it: free it with the last of them. */
void hs_listener_release(struct hs_quic *q, struct hs_listener *listener);

#endif
