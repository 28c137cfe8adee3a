/* SPDX-License-Identifier: Apache-2.0 */
#include "http3/internal.h"

/* What a stream's parser reads next. */
enum {
	STREAM_TYPE = 0,
	FRAME_TYPE,
	FRAME_LENGTH,
	PAYLOAD, /* of a frame that nghttp3 checks */
	SETTING,
	SETTING_VALUE,
	IDENTIFIER, /* the whole payload is one number */
	PRIORITY_IDENTIFIER, /* the payload begins with one */
	NOTHING, /* of any other stream */
};

enum {
	FRAME_SETTINGS = 0x04,
	FRAME_GOAWAY = 0x07,
	FRAME_MAX_PUSH_ID = 0x0d,
	FRAME_PRIORITY_UPDATE = 0xf0700,
};

enum { BLOCKED_STREAMS = 0x07 }; /* a setting: RFC 9204 section 5 */

int hs_http3_is_value(const uint8_t *value, size_t bytes)
{
	/* nghttp3 1.8 takes any single byte but a space. */
	if (bytes == 1)
		return *value > 0x20 && *value != 0x7f;
	return nghttp3_check_header_value(value, bytes);
}

/* Read a byte of a variable-length integer; returns whether it was the last (RFC 9000 section 16). */
static int read_number(struct hs_http3_control *c, uint8_t byte)
{
	if (!c->number_bytes) {
		c->number_left = (uint8_t)((1 << (byte >> 6)) - 1);
		c->number = byte & 0x3f;
		c->number_bytes = 1;
	} else {
		c->number = c->number << 8 | byte;
		c->number_bytes++;
		c->number_left--;
	}
	return !c->number_left;
}

static void next(struct hs_http3_control *c, int state)
{
	c->state = (uint8_t)state;
	c->number_bytes = 0;
}

/* The first frame is SETTINGS, and no other one: nghttp3 refuses what is not. */
static int begin_payload(struct hs_http3_control *c)
{
	int is_first = !c->has_settings;
	c->left = c->number;
	c->has_settings = 1;
	switch (c->frame_type) {
	case FRAME_SETTINGS:
		return is_first ? SETTING : PAYLOAD;
	case FRAME_GOAWAY:
	case FRAME_MAX_PUSH_ID:
		return is_first ? PAYLOAD : IDENTIFIER;
	case FRAME_PRIORITY_UPDATE:
		return is_first ? PAYLOAD : PRIORITY_IDENTIFIER;
	default:
		return PAYLOAD;
	}
}

/* A setting comes once (RFC 9114 section 7.2.4), and none that only HTTP/2 has (section 7.2.4.1). */
static int add_setting(struct hs_http3 *h, uint64_t setting, uint64_t value)
{
	if (setting == 0)
		return hs_http3_fail(h, NGHTTP3_H3_SETTINGS_ERROR, "a reserved setting");
	for (uint32_t i = 0; i < h->setting_count; i++) {
		if (h->settings[i][0] == setting)
			return hs_http3_fail(h, NGHTTP3_H3_SETTINGS_ERROR, "a setting came twice");
	}
	if (h->setting_count == HS_HTTP3_MAX_SETTINGS)
		return hs_http3_fail(h, NGHTTP3_H3_EXCESSIVE_LOAD, "too many settings");
	h->settings[h->setting_count][0] = setting;
	h->settings[h->setting_count++][1] = value;
	return 0;
}

static int end_identifier(struct hs_http3 *h, struct hs_http3_control *c)
{
	if (c->left)
		return hs_http3_fail(h, NGHTTP3_H3_FRAME_ERROR, "a frame is longer than it may be");
	if (c->frame_type == FRAME_MAX_PUSH_ID) {
		if (c->has_push_id && c->number < c->push_id)
			return hs_http3_fail(h, NGHTTP3_H3_ID_ERROR, "MAX_PUSH_ID was reduced");
		c->has_push_id = 1;
		c->push_id = c->number;
	}
	return 0;
}

/* Read a byte of a number within a frame. Returns 0, or HS_HTTP3_FAILED.
 *
 * nghttp3 as an encoder refers to entries that the peer may not have yet, on as many streams as the
 * peer allows. Some peers lose such streams. So it is not told that any may wait, and refers to what
 * was acknowledged (RFC 9204 section 2.1.2). The number keeps its length. */
static int read_payload_number(struct hs_http3 *h, struct hs_http3_control *c, uint8_t *byte)
{
	int is_hidden = c->state == SETTING_VALUE && c->setting == BLOCKED_STREAMS;
	int is_first = !c->number_bytes;
	int failed = 0, is_last = read_number(c, *byte), state = c->state;
	if (is_hidden)
		*byte &= is_first ? 0xc0 : 0x00;
	c->left--;
	if (!is_last)
		return 0; /* if the frame ends here, nghttp3 says so */
	if (state == SETTING) {
		c->setting = c->number;
		next(c, SETTING_VALUE);
	} else if (state == SETTING_VALUE) {
		failed = add_setting(h, c->setting, c->number);
		next(c, SETTING);
	} else if (state == PRIORITY_IDENTIFIER) {
		next(c, PAYLOAD);
	} else {
		failed = end_identifier(h, c);
	}
	if (!failed && !c->left)
		next(c, FRAME_TYPE);
	return failed;
}

int hs_http3_check_control(struct hs_http3 *h, struct hs_http3_control *c, uint8_t *data,
			   size_t bytes)
{
	c->is_after_identifier = 0;
	for (size_t i = 0; i < bytes; i++) {
		int failed = 0, state_before = c->state;
		switch (c->state) {
		case STREAM_TYPE:
			if (read_number(c, data[i])) {
				c->stream_type = (int64_t)c->number;
				next(c, c->stream_type || h->has_control ? NOTHING : FRAME_TYPE);
				h->has_control |= !c->stream_type;
			}
			break;
		case FRAME_TYPE:
			if (read_number(c, data[i])) {
				c->frame_type = c->number;
				next(c, FRAME_LENGTH);
			}
			break;
		case FRAME_LENGTH:
			if (read_number(c, data[i])) {
				int state = begin_payload(c);
				next(c, c->left ? state : FRAME_TYPE);
			}
			break;
		case SETTING:
		case SETTING_VALUE:
		case IDENTIFIER:
		case PRIORITY_IDENTIFIER:
			failed = read_payload_number(h, c, &data[i]);
			c->is_after_identifier = state_before == PRIORITY_IDENTIFIER &&
						 c->state == PAYLOAD && i + 1 == bytes;
			break;
		case PAYLOAD:
			if (bytes - i >= c->left) {
				i += (size_t)c->left - 1;
				next(c, FRAME_TYPE);
			} else {
				c->left -= bytes - i;
				i = bytes - 1;
			}
			break;
		default:
			return 0;
		}
		if (failed)
			return failed;
	}
	return 0;
}
