/* SPDX-License-Identifier: Apache-2.0 */
#include "http3/internal.h"

#include <stdlib.h>
#include <string.h>

/* A span that is read where it lies; fewer bytes are copied out in the call that reads them. */
enum { LONG_BYTES = 4096 };

/* What a field costs beside its characters: RFC 9114 section 4.2.2. */
enum { FIELD_BYTES = 32 };

/* --- nghttp3's callbacks ---------------------------------------------------------------------- */

/* What a callback returns: without memory for an event, nghttp3 gives up the connection. */
static int noted(const struct hs_http3_event *event)
{
	return event ? 0 : NGHTTP3_ERR_CALLBACK_FAILURE;
}

static int begin_section(nghttp3_conn *conn, int64_t id, void *user, void *stream_user)
{
	struct hs_http3_stream *s = hs_http3_find(user, id);
	(void)conn;
	(void)stream_user;
	if (s) {
		s->section_bytes = 0;
		s->section_cost = 0;
		s->fields = 0;
	}
	return 0;
}

static int store(struct hs_http3_stream *s, nghttp3_vec name, nghttp3_vec value)
{
	size_t wanted = s->section_bytes + name.len + value.len + 2;
	if (wanted > s->section_room) {
		size_t room = wanted < 512 ? 512 : wanted * 2;
		uint8_t *grown = realloc(s->section, room);
		if (!grown)
			return NGHTTP3_ERR_CALLBACK_FAILURE;
		s->section = grown;
		s->section_room = room;
	}
	uint8_t *at = s->section + s->section_bytes;
	memcpy(at, name.base, name.len);
	at += name.len;
	*at++ = 0;
	if (value.len)
		memcpy(at, value.base, value.len);
	at[value.len] = 0;
	s->section_bytes = wanted;
	s->fields++;
	return 0;
}

static int on_field(nghttp3_conn *conn, int64_t id, int32_t token, nghttp3_rcbuf *name,
		    nghttp3_rcbuf *value, uint8_t flags, void *user, void *stream_user)
{
	struct hs_http3 *h = user;
	struct hs_http3_stream *s = hs_http3_find(h, id);
	nghttp3_vec text[2] = { nghttp3_rcbuf_get_buf(name), nghttp3_rcbuf_get_buf(value) };
	(void)conn;
	(void)token;
	(void)flags;
	(void)stream_user;
	if (!s || s->is_too_large || !hs_http3_is_value(text[1].base, text[1].len))
		return 0; /* as nghttp3 leaves out what is longer */
	s->section_cost += text[0].len + text[1].len + FIELD_BYTES;
	if (s->section_cost > h->config.max_section_bytes || s->fields >= h->config.max_fields) {
		s->is_too_large = 1;
		return noted(hs_http3_append(h, HS_HTTP3_TOO_LARGE, id, NULL, 0));
	}
	return store(s, text[0], text[1]);
}

static int end_section(struct hs_http3 *h, int64_t id, int kind)
{
	struct hs_http3_stream *s = hs_http3_find(h, id);
	if (!s || s->is_too_large)
		return 0;
	struct hs_http3_event *event =
		hs_http3_append(h, kind, id, s->section, s->section_bytes);
	s->is_blocked = 0;
	if (event)
		event->fields = s->fields;
	return noted(event);
}

static int end_headers(nghttp3_conn *conn, int64_t id, int fin, void *user, void *stream_user)
{
	(void)conn;
	(void)fin;
	(void)stream_user;
	return end_section(user, id, HS_HTTP3_SECTION);
}

static int end_trailers(nghttp3_conn *conn, int64_t id, int fin, void *user, void *stream_user)
{
	(void)conn;
	(void)fin;
	(void)stream_user;
	return end_section(user, id, HS_HTTP3_TRAILERS);
}

static int on_data(nghttp3_conn *conn, int64_t id, const uint8_t *data, size_t bytes, void *user,
		   void *stream_user)
{
	struct hs_http3 *h = user;
	struct hs_http3_stream *s = hs_http3_find(h, id);
	(void)conn;
	(void)stream_user;
	h->last_data += (int64_t)bytes;
	if (!s || s->is_too_large || !bytes)
		return 0;
	/* Frames of one message make one event. */
	struct hs_http3_event *last =
		h->event_count && !h->are_events_taken ? &h->events[h->event_count - 1] : NULL;
	if (last && last->kind == HS_HTTP3_DATA && last->stream_id == id) {
		struct hs_http3_event *more = hs_http3_append(h, HS_HTTP3_DATA, id, data, bytes);
		if (more) {
			h->event_count--;
			h->events[h->event_count - 1].bytes += (uint32_t)bytes;
		}
		return noted(more);
	}
	return noted(hs_http3_append(h, HS_HTTP3_DATA, id, data, bytes));
}

static int on_end(nghttp3_conn *conn, int64_t id, void *user, void *stream_user)
{
	struct hs_http3 *h = user;
	struct hs_http3_stream *s = hs_http3_find(h, id);
	(void)conn;
	(void)stream_user;
	if (!s || s->is_too_large)
		return 0;
	s->is_received = 1;
	struct hs_http3_event *last =
		h->event_count && !h->are_events_taken ? &h->events[h->event_count - 1] : NULL;
	if (last && last->stream_id == id && last->kind <= HS_HTTP3_DATA) {
		last->flags |= HS_HTTP3_IS_LAST;
		return 0;
	}
	struct hs_http3_event *event = hs_http3_append(h, HS_HTTP3_END, id, NULL, 0);
	if (event)
		event->flags = HS_HTTP3_IS_LAST;
	return noted(event);
}

static int note_code(struct hs_http3 *h, int kind, int64_t id, uint64_t code)
{
	struct hs_http3_event *event = hs_http3_append(h, kind, id, NULL, 0);
	if (event)
		event->code = code;
	return noted(event);
}

static int on_stop_sending(nghttp3_conn *conn, int64_t id, uint64_t code, void *user,
			   void *stream_user)
{
	struct hs_http3_stream *s = hs_http3_find(user, id);
	(void)conn;
	(void)stream_user;
	/* nghttp3 asks again with all that follows on a stream of unknown type. */
	if (!s || s->is_received)
		return 0;
	s->is_received = 1;
	return note_code(user, HS_HTTP3_STOP, id, code);
}

static int on_reset_stream(nghttp3_conn *conn, int64_t id, uint64_t code, void *user,
			   void *stream_user)
{
	(void)conn;
	(void)stream_user;
	return note_code(user, HS_HTTP3_RESET, id, code);
}

static int on_goaway(nghttp3_conn *conn, int64_t id, void *user)
{
	(void)conn;
	return note_code(user, HS_HTTP3_GOAWAY, -1, (uint64_t)id);
}

static int on_settings(nghttp3_conn *conn, const nghttp3_settings *settings, void *user)
{
	struct hs_http3 *h = user;
	(void)conn;
	(void)settings;
	return noted(hs_http3_append(h, HS_HTTP3_SETTINGS, -1, h->settings,
					h->setting_count * sizeof(h->settings[0])));
}

void hs_http3_set_receive_callbacks(nghttp3_callbacks *callbacks)
{
	callbacks->recv_data = on_data;
	callbacks->begin_headers = begin_section;
	callbacks->recv_header = on_field;
	callbacks->end_headers = end_headers;
	callbacks->begin_trailers = begin_section;
	callbacks->recv_trailer = on_field;
	callbacks->end_trailers = end_trailers;
	callbacks->stop_sending = on_stop_sending;
	callbacks->end_stream = on_end;
	callbacks->reset_stream = on_reset_stream;
	callbacks->shutdown = on_goaway;
	callbacks->recv_settings = on_settings;
}

/* --- reading ---------------------------------------------------------------------------------- */

/* Nothing more of a request's stream is of interest. */
static int stop(struct hs_http3 *h, struct hs_http3_stream *s)
{
	s->is_received = 1;
	int error = s->is_fed ? nghttp3_conn_shutdown_stream_read(h->conn, s->id) : 0;
	return error ? hs_http3_fail_as(h, error) : 0;
}

/* A message that breaks the rules ends with its stream (RFC 9114 section 4.1.2). */
static int reject(struct hs_http3 *h, struct hs_http3_stream *s, uint64_t code)
{
	if (note_code(h, HS_HTTP3_STOP, s->id, code) || note_code(h, HS_HTTP3_RESET, s->id, code))
		return HS_HTTP3_FAILED;
	return stop(h, s);
}

/* Returns 0 or HS_HTTP3_FAILED. */
static int feed(struct hs_http3 *h, struct hs_http3_stream *s, const uint8_t *data, size_t bytes,
		int fin)
{
	h->last_data = 0;
	nghttp3_ssize used = nghttp3_conn_read_stream(h->conn, s->id, data, bytes, fin);
	s->is_fed = s->has_bytes = 1;
	if (h->has_failed)
		return HS_HTTP3_FAILED;
	if (used == NGHTTP3_ERR_MALFORMED_HTTP_MESSAGING && hs_http3_has_requests(s))
		return reject(h, s, NGHTTP3_H3_MESSAGE_ERROR);
	if (used < 0)
		return hs_http3_fail_as(h, used);
	/* nghttp3 keeps what follows a section that waits for QPACK's encoder stream. */
	if (hs_http3_has_requests(s) && !s->is_received && !s->is_too_large &&
	    used + h->last_data < (int64_t)bytes)
		s->is_blocked = 1;
	return s->is_too_large ? stop(h, s) : 0;
}

/* The bytes begin at room[1]. nghttp3 1.8 asserts that the value of a priority follows its
 * identifier in the same call, so the identifier's last byte is held until it does. */
static int feed_unidirectional(struct hs_http3 *h, struct hs_http3_stream *s, size_t bytes)
{
	struct hs_http3_control *c = &s->control;
	uint8_t *data = h->room + 1;
	int failed = hs_http3_check_control(h, c, data, bytes);
	if (failed)
		return failed;
	if (c->has_held) {
		*--data = c->held;
		bytes++;
	}
	c->has_held = c->is_after_identifier;
	if (c->has_held)
		c->held = data[--bytes];
	return bytes ? feed(h, s, data, bytes, 0) : 0;
}

/* What was read to find out whose the stream is. */
static int feed_head(struct hs_http3 *h, struct hs_http3_stream *s)
{
	size_t bytes = s->head_bytes;
	s->head_bytes = 0;
	if (!bytes)
		return 0;
	if (!hs_http3_has_requests(s) && !(s->id & 2))
		return hs_http3_fail(h, NGHTTP3_H3_STREAM_CREATION_ERROR,
				     "a server opens no requests");
	memcpy(h->room + 1, s->head, bytes);
	return hs_http3_has_requests(s) ? feed(h, s, h->room + 1, bytes, 0) :
					  feed_unidirectional(h, s, bytes);
}

static int64_t end(struct hs_http3 *h, struct hs_http3_stream *s)
{
	if (!hs_http3_has_requests(s) && !(s->id & 2)) {
		s->is_received = 1; /* a server's, of which nothing came */
		return 0;
	}
	if (hs_http3_has_requests(s) && !s->has_bytes) /* RFC 9114 section 4.1 */
		return reject(h, s, NGHTTP3_H3_REQUEST_INCOMPLETE);
	s->is_received = 1;
	return feed(h, s, NULL, 0, 1);
}

/* A critical stream must not be reset (RFC 9114 section 6.2.1, RFC 9204 section 4.2). */
static int64_t check_reset(struct hs_http3 *h, struct hs_http3_stream *s, int64_t result)
{
	int64_t type = s->control.stream_type;
	if (result == HS_END_RESET && !hs_http3_has_requests(s) &&
	    (type == 0x00 || type == 0x02 || type == 0x03))
		return hs_http3_fail(h, NGHTTP3_H3_CLOSED_CRITICAL_STREAM,
				     "a critical stream was reset");
	return result;
}

int64_t hs_http3_read(struct hs_http3 *h, int64_t id, size_t max_bytes)
{
	struct hs_http3_stream *s = hs_http3_find(h, id);
	int64_t done = 0, hints = 0;
	if (h->has_failed)
		return HS_HTTP3_FAILED;
	if (!s || s->is_critical)
		return HS_HTTP3_MISUSED;
	while ((size_t)done < max_bytes) {
		size_t left = max_bytes - (size_t)done;
		const uint8_t *place = NULL;
		if (s->is_received)
			break;
		if (s->is_blocked)
			return done ? done | hints : HS_HTTP3_BLOCKED;
		int64_t got;
		if (!s->has_head) {
			got = hs_http3_read_head(h, s);
			if (got == HS_HTTP3_FAILED)
				return got;
			if (got < 0)
				return done ? done | hints : check_reset(h, s, got);
			hints |= got & ~HS_HTTP3_BYTES_MASK;
			done += got & HS_HTTP3_BYTES_MASK;
			if (s->has_head && feed_head(h, s))
				return HS_HTTP3_FAILED;
			continue;
		}
		got = hs_http3_has_requests(s) ? h->ends.look(s->end, left, &place) : 0;
		if (got >= LONG_BYTES) {
			if (feed(h, s, place, (size_t)got, 0))
				return HS_HTTP3_FAILED;
			int64_t skipped = h->ends.skip(s->end, (size_t)got);
			if (skipped < 0)
				return skipped;
			hints |= skipped & ~HS_HTTP3_BYTES_MASK;
			done += got;
			continue;
		}
		got = h->ends.read(s->end, h->room + 1,
				   left < HS_HTTP3_ROOM_BYTES ? left : HS_HTTP3_ROOM_BYTES, 0);
		if (got < 0)
			return done ? done | hints : check_reset(h, s, got);
		hints |= got & ~HS_HTTP3_BYTES_MASK;
		got &= HS_HTTP3_BYTES_MASK;
		int failed = !got	   ? (int)end(h, s) :
			     hs_http3_has_requests(s) ? feed(h, s, h->room + 1, (size_t)got, 0) :
					     feed_unidirectional(h, s, (size_t)got);
		if (failed)
			return HS_HTTP3_FAILED;
		done += got;
	}
	return done | hints;
}

int hs_http3_stop(struct hs_http3 *h, int64_t id)
{
	struct hs_http3_stream *s = hs_http3_find(h, id);
	if (h->has_failed)
		return HS_HTTP3_FAILED;
	if (!s || s->is_critical || !hs_http3_has_requests(s))
		return HS_HTTP3_MISUSED;
	return stop(h, s);
}
