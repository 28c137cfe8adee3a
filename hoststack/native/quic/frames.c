/* SPDX-License-Identifier: Apache-2.0
 *
 * Frames for which ngtcp2 has no callback, parsed from decrypted packets and packets about to be
 * encrypted: STOP_SENDING, which ngtcp2 answers with RESET_STREAM by itself (before 1.22 without a
 * callback), NEW_CONNECTION_ID, for hs_path_is_too_early, ACK, for hs_size_acked, and the sizes of
 * STREAM frames, to count retransmitted bytes.
 */
#include "quic/frames.h"

#include <stdlib.h>

#include "quic/size.h"
#include "quic/stream.h"
#include "quic/tables.h"
#include "quic/varint.h"

enum {
	/* Frame types, RFC 9000 section 19. */
	PADDING = 0x00,
	PING = 0x01,
	ACK = 0x02,
	ACK_ECN = 0x03,
	RESET_STREAM = 0x04,
	STOP_SENDING = 0x05,
	CRYPTO = 0x06,
	NEW_TOKEN = 0x07,
	STREAM = 0x08, /* to 0x0f */
	STREAM_LAST = 0x0f,
	STREAM_HAS_OFFSET = 0x04,
	STREAM_HAS_LENGTH = 0x02,
	MAX_DATA = 0x10,
	MAX_STREAM_DATA = 0x11,
	DATA_BLOCKED = 0x14,
	STREAM_DATA_BLOCKED = 0x15,
	STREAMS_BLOCKED_UNI = 0x17,
	NEW_CONNECTION_ID = 0x18,
	RETIRE_CONNECTION_ID = 0x19,
	PATH_CHALLENGE = 0x1a,
	PATH_RESPONSE = 0x1b,
	HANDSHAKE_DONE = 0x1e,
	DATAGRAM = 0x30,
	DATAGRAM_WITH_LENGTH = 0x31,
};

static int skip_varints(struct hs_cursor *c, uint64_t n)
{
	uint64_t unused;
	while (n-- > 0) {
		if (!hs_take_varint(c, &unused))
			return 0;
	}
	return 1;
}

static int skip(struct hs_cursor *c, uint64_t bytes)
{
	if ((uint64_t)(c->end - c->at) < bytes)
		return 0;
	c->at += bytes;
	return 1;
}

static int skip_sized(struct hs_cursor *c)
{
	uint64_t bytes;
	return hs_take_varint(c, &bytes) && skip(c, bytes);
}

/* RFC 9000 section 19.3. With `size` NULL the ranges are skipped. */
static int take_ack(struct hs_cursor *c, int has_ecn, struct hs_size *size)
{
	uint64_t last, ranges, length, gap;
	if (!hs_take_varint(c, &last) || !skip_varints(c, 1) || !hs_take_varint(c, &ranges) ||
	    !hs_take_varint(c, &length) || length > last)
		return 0;
	for (;;) {
		if (size)
			hs_size_acked(size, last - length, last);
		if (!ranges--)
			return !has_ecn || skip_varints(c, 3);
		if (!hs_take_varint(c, &gap) || last - length < gap + 2)
			return 0;
		last -= length + gap + 2;
		if (!hs_take_varint(c, &length) || length > last)
			return 0;
	}
}

static int skip_stream(struct hs_cursor *c, uint8_t type)
{
	if (!skip_varints(c, type & STREAM_HAS_OFFSET ? 2 : 1))
		return 0;
	return type & STREAM_HAS_LENGTH ? skip_sized(c) : 0; /* 0: it extends to the packet's end */
}

/* Skip a frame other than STOP_SENDING. Returns 0 at the end, and for an invalid frame: ngtcp2
 * closes the connection for that. */
static int skip_frame(struct hs_cursor *c, uint8_t type)
{
	if (type >= STREAM && type <= STREAM_LAST)
		return skip_stream(c, type);
	switch (type) {
	case PADDING:
	case PING:
	case HANDSHAKE_DONE:
		return 1;
	case ACK:
	case ACK_ECN:
		return take_ack(c, type == ACK_ECN, NULL);
	case RESET_STREAM:
		return skip_varints(c, 3);
	case CRYPTO:
		return skip_varints(c, 1) && skip_sized(c);
	case NEW_TOKEN:
	case DATAGRAM_WITH_LENGTH:
		return skip_sized(c);
	case MAX_STREAM_DATA:
	case STREAM_DATA_BLOCKED:
		return skip_varints(c, 2);
	case NEW_CONNECTION_ID:
		return skip_varints(c, 2) && c->at < c->end &&
		       skip(c, (uint64_t)1 + *c->at + NGTCP2_STATELESS_RESET_TOKENLEN);
	case PATH_CHALLENGE:
	case PATH_RESPONSE:
		return skip(c, 8);
	default:
		return (type >= MAX_DATA && type <= STREAMS_BLOCKED_UNI) ||
				       type == RETIRE_CONNECTION_ID ?
			       skip_varints(c, 1) :
			       0;
	}
}

static void note(struct hs_quic *q, uint64_t stream_id, uint64_t code)
{
	if (q->stop_count == q->stop_room) {
		uint32_t room = q->stop_room ? q->stop_room * 2 : 16;
		void *stops = realloc(q->stops, room * sizeof(*q->stops));
		if (!stops)
			return; /* without memory the stop is noticed when more is sent */
		q->stops = stops;
		q->stop_room = room;
	}
	q->stops[q->stop_count++] = (struct hs_stop){ (int64_t)stream_id, code };
}

void hs_frames_look(struct hs_quic *q, struct hs_size *size, const uint8_t *frames, size_t bytes)
{
	struct hs_cursor c = { frames, frames + bytes };
	while (c.at < c.end) {
		uint8_t type = *c.at++;
		uint64_t stream_id, code;
		if (type == STOP_SENDING) {
			if (!hs_take_varint(&c, &stream_id) || !hs_take_varint(&c, &code))
				return;
			note(q, stream_id, code);
		} else if (type == ACK || type == ACK_ECN) {
			/* Only the first one: ngtcp2 ignores the others in a packet, and each
			 * may list thousands of ranges. */
			if (!take_ack(&c, type == ACK_ECN, size))
				return;
			size = NULL;
		} else if (!skip_frame(&c, type)) {
			return;
		} else if (type == NEW_CONNECTION_ID) {
			q->came_with_cid = 1;
		}
	}
}

uint64_t hs_frames_stream_bytes(const uint8_t *frames, size_t bytes)
{
	struct hs_cursor c = { frames, frames + bytes };
	uint64_t sum = 0;
	while (c.at < c.end) {
		uint8_t type = *c.at++;
		uint64_t n;
		if (type < STREAM || type > STREAM_LAST) {
			if (type == STOP_SENDING ? !skip_varints(&c, 2) : !skip_frame(&c, type))
				break;
			continue;
		}
		if (!skip_varints(&c, type & STREAM_HAS_OFFSET ? 2 : 1))
			break;
		if (!(type & STREAM_HAS_LENGTH))
			return sum + (uint64_t)(c.end - c.at);
		if (!hs_take_varint(&c, &n) || !skip(&c, n))
			break;
		sum += n;
	}
	return sum;
}

void hs_stops_begin(struct hs_quic *q)
{
	q->stop_count = 0;
	q->came_with_cid = 0;
}

void hs_stops_end(struct hs_connection *c)
{
	struct hs_quic *q = c->q;
	c->has_peer_cids |= q->came_with_cid;
	for (uint32_t i = 0; i < q->stop_count && c->state <= HS_OPEN; i++) {
		struct hs_stream *s = hs_streams_find(&q->streams, c, q->stops[i].stream_id);
		if (s)
			hs_stream_on_stopped(s, q->stops[i].code);
	}
}
