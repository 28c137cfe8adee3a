/* SPDX-License-Identifier: Apache-2.0
 *
 * The look for STOP_SENDING and ACK frames in decrypted packets (hoststack/native/quic/frames.c). The input
 * is a packet's frames. Every beginning of it gives a beginning of what the whole gives: a frame
 * is never misread because the packet ends.
 */
#include "quic/frames.h"

#include "fuzz.h"

enum { LEAST_FRAME_BYTES = 3, MOST_CUTS = 64 };

static uint32_t look(struct hs_quic *q, const uint8_t *data, size_t bytes)
{
	uint8_t *frames = copy_of(data, bytes);
	/* The peer may acknowledge what it likes. */
	struct hs_size size = { .next_number = bytes ? (uint64_t)data[bytes / 2] << data[0] % 54 : 0 };
	hs_stops_begin(q);
	hs_frames_look(q, &size, frames, bytes);
	free(frames);
	return q->stop_count;
}

/* Of a packet's ACK frames ngtcp2 reads the first one. */
static void look_behind_ack(struct hs_quic *q, const uint8_t *data, size_t bytes)
{
	static const uint8_t ACK_OF_THE_FIRST[] = { 0x02, 0, 0, 0, 0 };
	struct hs_size size = { .next_number = HS_SIZE_WORDS * 64 };
	uint8_t *frames = take_memory(sizeof(ACK_OF_THE_FIRST) + bytes);
	memcpy(frames, ACK_OF_THE_FIRST, sizeof(ACK_OF_THE_FIRST));
	if (bytes)
		memcpy(frames + sizeof(ACK_OF_THE_FIRST), data, bytes);
	memset(size.large, 0xff, sizeof(size.large));
	hs_stops_begin(q);
	hs_frames_look(q, &size, frames, sizeof(ACK_OF_THE_FIRST) + bytes);
	CHECK(size.large[0] == UINT64_MAX - 1);
	for (size_t i = 1; i < HS_SIZE_WORDS; i++)
		CHECK(size.large[i] == UINT64_MAX);
	free(frames);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct hs_quic *whole = take_memory(sizeof(*whole));
	struct hs_quic *cut = take_memory(sizeof(*cut));
	uint32_t all = look(whole, data, bytes), before = 0;
	CHECK(all <= bytes / LEAST_FRAME_BYTES);
	for (uint32_t i = 0; i < all; i++)
		CHECK(whole->stops[i].stream_id >= 0 && whole->stops[i].code < 1ULL << 62);
	size_t step = 1 + bytes / MOST_CUTS;
	for (size_t n = 0; n < bytes; n += step) {
		uint32_t found = look(cut, data, n);
		CHECK(found >= before && found <= all);
		for (uint32_t i = 0; i < found; i++)
			CHECK(cut->stops[i].stream_id == whole->stops[i].stream_id &&
			      cut->stops[i].code == whole->stops[i].code);
		before = found;
	}
	look_behind_ack(cut, data, bytes);
	free(whole->stops);
	free(cut->stops);
	free(whole);
	free(cut);
	return 0;
}
