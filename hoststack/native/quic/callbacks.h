/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_CALLBACKS_H
#define HS_QUIC_CALLBACKS_H

#include "quic/state.h"

extern const ngtcp2_callbacks hs_client_callbacks;
extern const ngtcp2_callbacks hs_server_callbacks;

#endif
