/* SPDX-License-Identifier: Apache-2.0 */
#include "http3/internal.h"

#include <stdlib.h>
#include <string.h>

enum {
	FEW_FIELDS = 64,
	MAX_FIELDS = 4096,
	VECTORS = 16,
	/* Written of a stream before another one of the same urgency may follow. */
	SHARE_BYTES = 16384,
};

/* --- what is to be sent ----------------------------------------------------------------------- */

static nghttp3_ssize read_body(nghttp3_conn *conn, int64_t id, nghttp3_vec *out, size_t room,
			       uint32_t *flags, void *user, void *stream_user)
{
	struct hs_http3 *h = user;
	struct hs_http3_stream *s = hs_http3_find(h, id);
	(void)conn;
	(void)room;
	(void)stream_user;
	if (!s || s->is_abandoned || (!s->body_bytes && !s->is_ended)) {
		h->has_skipped = 1;
		return NGHTTP3_ERR_WOULDBLOCK;
	}
	if (s->is_ended) {
		*flags |= NGHTTP3_DATA_FLAG_EOF;
		if (s->has_trailers)
			*flags |= NGHTTP3_DATA_FLAG_NO_END_STREAM;
	}
	if (!s->body_bytes)
		return 0;
	out[0] = (nghttp3_vec){ (uint8_t *)s->body, s->body_bytes };
	s->body = NULL;
	s->body_bytes = 0;
	return 1;
}

static int is_valid(const nghttp3_nv *field)
{
	return nghttp3_check_header_name(field->name, field->namelen) &&
	       hs_http3_is_value(field->value, field->valuelen);
}

/* Fields whose values are other ones each time, or secret: QPACK's table is of no use to them. */
static const char *const CHANGING[] = {
	":path",	 "age",		      "authorization", "content-length", "cookie",
	"etag",		 "if-modified-since", "if-none-match", "location",	 "proxy-authorization",
	"set-cookie",
};

static uint8_t flags_of(const nghttp3_nv *field)
{
	for (size_t i = 0; i < sizeof(CHANGING) / sizeof(CHANGING[0]); i++) {
		if (strlen(CHANGING[i]) == field->namelen &&
		    !memcmp(CHANGING[i], field->name, field->namelen))
			return NGHTTP3_NV_FLAG_NONE;
	}
	return NGHTTP3_NV_FLAG_TRY_INDEX;
}

/* Point `out` to the fields of a text: name NUL value NUL ... Returns 0 or HS_HTTP3_INVALID. */
static int split(const uint8_t *text, size_t bytes, uint32_t fields, nghttp3_nv *out)
{
	const uint8_t *at = text, *end = text + bytes;
	for (uint32_t i = 0; i < 2 * fields; i++) {
		nghttp3_nv *field = &out[i / 2];
		size_t left = (size_t)(end - at);
		const uint8_t *stop = left ? memchr(at, 0, left) : NULL;
		if (!stop) {
			if (i + 1 < 2 * fields)
				return HS_HTTP3_INVALID;
			stop = end;
		}
		if (i % 2) {
			field->value = (uint8_t *)at;
			field->valuelen = (size_t)(stop - at);
			if (!is_valid(field))
				return HS_HTTP3_INVALID;
		} else {
			*field = (nghttp3_nv){ .name = (uint8_t *)at,
					       .namelen = (size_t)(stop - at) };
			field->flags = flags_of(field);
		}
		at = stop < end ? stop + 1 : end;
	}
	return at == end ? 0 : HS_HTTP3_INVALID;
}

static int may_send(const struct hs_http3_stream *s, int kind)
{
	if (s->is_abandoned || s->is_ended)
		return 0;
	return kind == HS_HTTP3_TRAILER ? s->has_response : !s->has_response;
}

static int submit(struct hs_http3 *h, struct hs_http3_stream *s, int kind, const nghttp3_nv *nv,
		  uint32_t fields, int is_last)
{
	const nghttp3_data_reader reader = { read_body };
	const nghttp3_data_reader *body = is_last ? NULL : &reader;
	int error;
	switch (kind) {
	case HS_HTTP3_REQUEST:
		error = nghttp3_conn_submit_request(h->conn, s->id, nv, fields, body, NULL);
		s->is_fed |= !error;
		break;
	case HS_HTTP3_INFORMATIONAL:
		return nghttp3_conn_submit_info(h->conn, s->id, nv, fields);
	case HS_HTTP3_RESPONSE:
		error = nghttp3_conn_submit_response(h->conn, s->id, nv, fields, body);
		break;
	default:
		error = nghttp3_conn_submit_trailers(h->conn, s->id, nv, fields);
		if (error)
			return error;
		s->is_ended = s->has_trailers = 1;
		return nghttp3_conn_resume_stream(h->conn, s->id);
	}
	if (!error) {
		s->has_response = 1;
		s->is_ended = is_last != 0;
	}
	return error;
}

int hs_http3_send_section(struct hs_http3 *h, int64_t id, int kind, const uint8_t *text,
			  size_t bytes, uint32_t fields, int is_last)
{
	struct hs_http3_stream *s = hs_http3_find(h, id);
	nghttp3_nv few[FEW_FIELDS], *nv = few;
	if (h->has_failed)
		return HS_HTTP3_FAILED;
	if (!h->is_bound || !s || s->is_critical || (id & 3) || kind < HS_HTTP3_REQUEST ||
	    kind > HS_HTTP3_TRAILER || !may_send(s, kind))
		return HS_HTTP3_MISUSED;
	int is_request = kind == HS_HTTP3_REQUEST;
	if (kind != HS_HTTP3_TRAILER && is_request == h->config.is_server)
		return HS_HTTP3_MISUSED;
	if (fields > MAX_FIELDS)
		return HS_HTTP3_INVALID;
	if (fields > FEW_FIELDS) {
		nv = malloc(fields * sizeof(*nv));
		if (!nv)
			return HS_HTTP3_NO_MEMORY;
	}
	int error = split(text, bytes, fields, nv);
	if (!error) {
		error = submit(h, s, kind, nv, fields, is_last);
		if (error == NGHTTP3_ERR_CONN_CLOSING)
			error = HS_HTTP3_GOING_AWAY;
		else if (error == NGHTTP3_ERR_STREAM_NOT_FOUND ||
			 error == NGHTTP3_ERR_STREAM_IN_USE || error == NGHTTP3_ERR_INVALID_STATE)
			error = HS_HTTP3_MISUSED;
		else if (error)
			error = hs_http3_fail_as(h, error);
	}
	if (nv != few)
		free(nv);
	return error;
}

int hs_http3_send_data(struct hs_http3 *h, int64_t id, const uint8_t *data, size_t bytes,
		       int is_last)
{
	struct hs_http3_stream *s = hs_http3_find(h, id);
	if (h->has_failed)
		return HS_HTTP3_FAILED;
	if (!s || !s->has_response || s->is_ended || s->is_abandoned || s->body_bytes)
		return HS_HTTP3_MISUSED;
	s->body = data;
	s->body_bytes = bytes;
	s->is_ended = is_last != 0;
	int error = nghttp3_conn_resume_stream(h->conn, id);
	return error ? hs_http3_fail_as(h, error) : 0;
}

void hs_http3_abandon(struct hs_http3 *h, int64_t id)
{
	struct hs_http3_stream *s = hs_http3_find(h, id);
	if (!s || s->is_critical)
		return;
	/* nghttp3 may have pointers to the content: no more of it is read. */
	s->is_abandoned = 1;
	s->body = NULL;
	s->body_bytes = 0;
	if (!h->has_failed)
		nghttp3_conn_shutdown_stream_write(h->conn, id);
}

int hs_http3_unblock(struct hs_http3 *h, int64_t id)
{
	struct hs_http3_stream *s = hs_http3_find(h, id);
	if (h->has_failed)
		return HS_HTTP3_FAILED;
	if (!s || !s->is_full || s->is_abandoned)
		return 0;
	s->is_full = 0;
	int error = nghttp3_conn_unblock_stream(h->conn, id);
	return error ? hs_http3_fail_as(h, error) : 0;
}

/* --- writing ---------------------------------------------------------------------------------- */

struct writing {
	struct hs_http3_written *out;
	uint32_t count, room;
};

static struct hs_http3_written *entry_of(struct writing *w, struct hs_http3_stream *s)
{
	uint32_t place = s->written;
	if (place && place <= w->count && w->out[place - 1].stream_id == s->id)
		return &w->out[place - 1];
	w->out[w->count] = (struct hs_http3_written){ .stream_id = s->id };
	s->written = ++w->count;
	return &w->out[w->count - 1];
}

/* Have the stack send a response as urgently as nghttp3 does here. Requests take turns, but for
 * critical streams: what they carry holds up others. Returns hints. */
static uint32_t prioritize(struct hs_http3 *h, struct hs_http3_stream *s)
{
	nghttp3_pri priority = { .urgency = 0, .inc = 1 };
	if (!s->is_critical &&
	    (!h->config.is_server || nghttp3_conn_get_stream_priority(h->conn, &priority, s->id)))
		return 0;
	int64_t hints = h->ends.prioritize(s->end, priority.urgency, priority.inc);
	return hints < 0 ? 0 : (uint32_t)(hints >> HS_END_BYTES_BITS) & HS_END_MASK;
}

/* Write a share of the vectors; returns the bytes, and notes in `entry` what happened. */
static size_t write_share(struct hs_http3 *h, struct hs_http3_stream *s, const nghttp3_vec *vec,
			  nghttp3_ssize count, int fin, struct hs_http3_written *entry)
{
	size_t done = 0;
	for (nghttp3_ssize i = 0; i < count; i++) {
		size_t bytes = vec[i].len;
		if (done + bytes > SHARE_BYTES) {
			bytes = done < SHARE_BYTES ? SHARE_BYTES - done : 0;
			fin = 0;
			count = i + 1;
		}
		if (!bytes)
			continue;
		int64_t taken = h->ends.write(s->end, vec[i].base, bytes);
		if (taken < 0) {
			entry->state = (int32_t)taken;
			return done;
		}
		entry->hints |= (uint32_t)(taken >> HS_END_BYTES_BITS) & HS_END_MASK;
		taken &= HS_HTTP3_BYTES_MASK;
		done += (size_t)taken;
		if ((size_t)taken < bytes) {
			entry->state = HS_HTTP3_FULL;
			return done;
		}
	}
	if (fin) {
		int64_t finished = h->ends.finish(s->end);
		if (finished < 0)
			entry->state = (int32_t)finished;
		else
			entry->hints |= (uint32_t)(finished >> HS_END_BYTES_BITS) & HS_END_MASK;
	}
	return done;
}

/* This side's critical streams must not be stopped (RFC 9114 section 6.2.1). */
static int break_off(struct hs_http3 *h, struct hs_http3_stream *s, int32_t state)
{
	if (s->is_critical && state == HS_END_STOPPED)
		return hs_http3_fail(h, NGHTTP3_H3_CLOSED_CRITICAL_STREAM,
				     "a critical stream was stopped");
	s->is_abandoned = 1;
	nghttp3_conn_shutdown_stream_write(h->conn, s->id);
	return 0;
}

/* The end has copied the bytes, so they can go; but not the empty buffer with which nghttp3 schedules a
 * FIN that waits. */
static int on_written(struct hs_http3 *h, struct hs_http3_stream *s, size_t done, int is_full)
{
	int error = nghttp3_conn_add_write_offset(h->conn, s->id, done);
	if (!error && done)
		error = nghttp3_conn_add_ack_offset(h->conn, s->id, done);
	if (error)
		return hs_http3_fail_as(h, error);
	if (is_full) {
		s->is_full = 1;
		nghttp3_conn_block_stream(h->conn, s->id);
	}
	return 1;
}

static int write_preface(struct hs_http3 *h, struct hs_http3_stream *s, const nghttp3_vec *vec,
			 nghttp3_ssize count, struct hs_http3_written *entry)
{
	int64_t hints = hs_http3_write_preface(h, s, vec, count);
	if (hints == HS_HTTP3_FAILED)
		return HS_HTTP3_FAILED;
	if (hints < 0) {
		entry->state = (int32_t)hints;
		return break_off(h, s, entry->state) ? HS_HTTP3_FAILED : 1;
	}
	entry->hints |= (uint32_t)(hints >> HS_END_BYTES_BITS) & HS_END_MASK;
	if (h->has_preface)
		return on_written(h, s, h->replaced_bytes, 0);
	entry->state = HS_HTTP3_FULL;
	return on_written(h, s, 0, 1);
}

/* Returns 0 when there is nothing more to write. */
static int write_next(struct hs_http3 *h, struct writing *w)
{
	nghttp3_vec vec[VECTORS];
	int64_t id = -1;
	int fin = 0;
	h->has_skipped = 0;
	nghttp3_ssize count = nghttp3_conn_writev_stream(h->conn, &id, &fin, vec, VECTORS);
	if (count < 0)
		return hs_http3_fail_as(h, count);
	if (id < 0) /* a stream without content hides those after it */
		return h->has_skipped;
	struct hs_http3_stream *s = hs_http3_find(h, id);
	if (!s || s->is_abandoned) {
		/* nghttp3 schedules it again when its priority changes. */
		nghttp3_conn_shutdown_stream_write(h->conn, id);
		return 1;
	}
	struct hs_http3_written *entry = entry_of(w, s);
	entry->hints |= prioritize(h, s);
	if (!h->has_preface && id == h->control_id)
		return write_preface(h, s, vec, count, entry);
	size_t done = write_share(h, s, vec, count, fin, entry);
	if (entry->state < 0)
		return break_off(h, s, entry->state) ? HS_HTTP3_FAILED : 1;
	return on_written(h, s, done, entry->state == HS_HTTP3_FULL);
}

int hs_http3_write(struct hs_http3 *h, struct hs_http3_written *out, uint32_t room)
{
	struct writing w = { .out = out, .room = room };
	int more = 1;
	if (h->has_failed)
		return HS_HTTP3_FAILED;
	while (more > 0 && w.count < w.room)
		more = write_next(h, &w);
	return more < 0 ? HS_HTTP3_FAILED : (int)w.count;
}

int hs_http3_respond(struct hs_http3 *h, int64_t id, const uint8_t *text, size_t bytes,
		     uint32_t fields, const uint8_t *data, size_t data_bytes,
		     struct hs_http3_written *out, uint32_t room)
{
	int error = hs_http3_send_section(h, id, HS_HTTP3_RESPONSE, text, bytes, fields,
					  !data_bytes);
	if (!error && data_bytes)
		error = hs_http3_send_data(h, id, data, data_bytes, 1);
	return error ? error : hs_http3_write(h, out, room);
}

/* --- priorities ------------------------------------------------------------------------------- */

int hs_http3_priority(struct hs_http3 *h, int64_t id)
{
	nghttp3_pri priority;
	if (!h->config.is_server || id < 0 ||
	    nghttp3_conn_get_stream_priority(h->conn, &priority, id))
		return HS_HTTP3_MISUSED;
	return (int)(priority.urgency << 1 | priority.inc);
}

int hs_http3_set_priority(struct hs_http3 *h, int64_t id, uint32_t urgency, int is_incremental)
{
	nghttp3_pri priority = { .urgency = urgency, .inc = is_incremental != 0 };
	struct hs_http3_stream *s = hs_http3_find(h, id);
	if (h->has_failed)
		return HS_HTTP3_FAILED;
	if (!h->config.is_server || !s || !s->is_fed || urgency >= NGHTTP3_URGENCY_LEVELS)
		return HS_HTTP3_MISUSED;
	int error = nghttp3_conn_set_server_stream_priority(h->conn, id, &priority);
	return error ? HS_HTTP3_MISUSED : 0;
}

int hs_http3_update_priority(struct hs_http3 *h, int64_t id, const uint8_t *text, size_t bytes)
{
	if (h->has_failed)
		return HS_HTTP3_FAILED;
	if (h->config.is_server || !h->is_bound || id < 0 || !hs_http3_find(h, id))
		return HS_HTTP3_MISUSED;
	int error = nghttp3_conn_set_client_stream_priority(h->conn, id, text, bytes);
	return error ? HS_HTTP3_MISUSED : 0;
}
