/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_STREAM_LIMITS_H
#define HS_QUIC_STREAM_LIMITS_H

#include "quic/state.h"

/* Allow the peer one more stream. Returns whether to send that soon. */
int hs_allow_stream(struct hs_connection *c, int is_unidirectional);
/* Allow the peer what was held back, when it is time to. */
void hs_allow_late(struct hs_connection *c);
/* The peer has opened a stream. */
void hs_count_opened(struct hs_connection *c, int64_t stream_id);
/* Whether the peer has used so much of its limit on streams that it should get more. */
int hs_streams_are_scarce(const struct hs_connection *c, int is_unidirectional);

#endif
