/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_QUIC_FRAMES_H
#define HS_QUIC_FRAMES_H

#include "quic/state.h"

void hs_stops_begin(struct hs_quic *q);
void hs_stops_end(struct hs_connection *c);
/* Inspect the frames of a packet. */
void hs_frames_look(struct hs_quic *q, struct hs_size *size, const uint8_t *frames, size_t bytes);
/* How many bytes of stream data the STREAM frames hold. */
uint64_t hs_frames_stream_bytes(const uint8_t *frames, size_t bytes);

#endif
