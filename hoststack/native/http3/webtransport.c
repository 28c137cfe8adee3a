/* SPDX-License-Identifier: Apache-2.0
 *
 * What nghttp3 1.8 does not know of WebTransport (draft-ietf-webtrans-http3): the head of a session's
 * streams, and further settings.
 */
#include "http3/internal.h"

#include <string.h>

enum {
	BIDIRECTIONAL = 0x41, /* as a frame's type, at the beginning of a stream */
	UNIDIRECTIONAL = 0x54, /* as a stream's type */
	CONTROL_STREAM = 0x00,
	FRAME_SETTINGS = 0x04,
	LONG_NUMBER = 0x40, /* a first byte from here on: the number has more bytes */
};

static size_t bytes_of(uint8_t first)
{
	return (size_t)1 << (first >> 6);
}

/* A variable-length integer whose bytes are all there (RFC 9000 section 16). */
static uint64_t number_at(const uint8_t *at)
{
	uint64_t value = at[0] & 0x3f;
	for (size_t i = 1; i < bytes_of(at[0]); i++)
		value = value << 8 | at[i];
	return value;
}

static size_t put_number(uint8_t *out, uint64_t value)
{
	unsigned int size = value < 1 << 6 ? 0 : value < 1 << 14 ? 1 : value < 1 << 30 ? 2 : 3;
	size_t bytes = (size_t)1 << size;
	for (size_t i = 0; i < bytes; i++)
		out[i] = (uint8_t)(value >> 8 * (bytes - 1 - i));
	out[0] |= (uint8_t)(size << 6);
	return bytes;
}

/* --- the head of a stream --------------------------------------------------------------------- */

static int add_byte(struct hs_http3 *h, struct hs_http3_stream *s, uint8_t byte)
{
	s->head[s->head_bytes++] = byte;
	size_t type_bytes = bytes_of(s->head[0]);
	if (s->head_bytes < type_bytes)
		return 0;
	uint64_t type = number_at(s->head);
	if (type != (s->id & 2 ? UNIDIRECTIONAL : BIDIRECTIONAL)) {
		s->has_head = 1;
		return 0;
	}
	if (s->head_bytes == type_bytes ||
	    s->head_bytes < type_bytes + bytes_of(s->head[type_bytes]))
		return 0;
	s->has_head = s->is_received = 1;
	s->head_bytes = 0;
	struct hs_http3_event *event = hs_http3_append(h, HS_HTTP3_WEBTRANSPORT, s->id, NULL, 0);
	if (!event)
		return HS_HTTP3_FAILED;
	event->code = number_at(s->head + type_bytes);
	return 0;
}

int64_t hs_http3_read_head(struct hs_http3 *h, struct hs_http3_stream *s)
{
	const uint8_t *first;
	uint8_t byte;
	if (!s->head_bytes && hs_http3_has_requests(s) && h->ends.look(s->end, 1, &first) > 0 &&
	    *first < LONG_NUMBER) {
		s->has_head = 1; /* as almost every request */
		return 0;
	}
	int64_t got = h->ends.read(s->end, &byte, 1, 0);
	if (!got) {
		s->has_head = 1;
		if (s->id & 2) { /* may be closed before its type (RFC 9114 section 6.2) */
			s->head_bytes = 0;
			s->is_received = 1;
		}
	}
	if (got <= 0)
		return got;
	return add_byte(h, s, byte) ? HS_HTTP3_FAILED : got;
}

/* --- settings --------------------------------------------------------------------------------- */

/* Make the beginning of the control stream from nghttp3's: with `more_settings` in its first frame.
 * Sets how many of nghttp3's bytes that replaces. Returns whether they are what is expected. */
static int make_preface(struct hs_http3 *h, const uint8_t *theirs, size_t bytes)
{
	uint8_t more[HS_HTTP3_MORE_SETTINGS * 16];
	size_t more_bytes = 0;
	if (bytes < 3 || theirs[0] != CONTROL_STREAM || theirs[1] != FRAME_SETTINGS)
		return 0;
	size_t at = 2 + bytes_of(theirs[2]);
	if (bytes < at)
		return 0;
	uint64_t payload = number_at(theirs + 2);
	if (bytes - at < payload)
		return 0;
	for (uint32_t i = 0; i < h->config.more_count; i++) {
		more_bytes += put_number(more + more_bytes, h->config.more_settings[i][0]);
		more_bytes += put_number(more + more_bytes, h->config.more_settings[i][1]);
	}
	uint8_t *out = h->preface;
	if (payload + more_bytes + 10 > sizeof(h->preface))
		return 0;
	out[0] = theirs[0];
	out[1] = theirs[1];
	size_t done = 2 + put_number(out + 2, payload + more_bytes);
	memcpy(out + done, theirs + at, (size_t)payload);
	done += (size_t)payload;
	memcpy(out + done, more, more_bytes);
	h->preface_bytes = done + more_bytes;
	h->replaced_bytes = at + (size_t)payload;
	return 1;
}

int64_t hs_http3_write_preface(struct hs_http3 *h, struct hs_http3_stream *s, const nghttp3_vec *vec,
			       nghttp3_ssize count)
{
	uint8_t theirs[HS_HTTP3_PREFACE_BYTES];
	size_t bytes = 0;
	for (nghttp3_ssize i = 0; i < count && !h->preface_bytes; i++) {
		size_t left = sizeof(theirs) - bytes, n = vec[i].len < left ? vec[i].len : left;
		memcpy(theirs + bytes, vec[i].base, n);
		bytes += n;
	}
	if (!h->preface_bytes && !make_preface(h, theirs, bytes))
		return hs_http3_fail(h, NGHTTP3_H3_INTERNAL_ERROR, "SETTINGS are not first");
	int64_t taken = h->ends.write(s->end, h->preface + h->preface_written,
				      h->preface_bytes - h->preface_written);
	if (taken < 0)
		return taken;
	h->preface_written += (size_t)(taken & HS_HTTP3_BYTES_MASK);
	h->has_preface = h->preface_written == h->preface_bytes;
	return taken & ~HS_HTTP3_BYTES_MASK;
}
