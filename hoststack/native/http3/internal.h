/* SPDX-License-Identifier: Apache-2.0
 *
 * Shared by the files of HTTP/3. Each has one subject:
 *
 *   http3/connection.c  a connection: its beginning, its streams, its end
 *   http3/receive.c     what streams have, to nghttp3
 *   http3/send.c        what nghttp3 has, to streams
 *   http3/webtransport.c what nghttp3 does not know: heads of sessions' streams, settings
 *   http3/control.c     what nghttp3 does not check: the peer's control stream, short values
 *   http3/streams.c     the table of streams
 *   http3/events.c      what was received, and why the connection has to be closed
 *
 * A file calls only those below it in this list.
 */
#ifndef HS_HTTP3_INTERNAL_H
#define HS_HTTP3_INTERNAL_H

#include "http3/http3.h"
#include "session/end.h"

#include <nghttp3/nghttp3.h>

enum {
	HS_HTTP3_ROOM_BYTES = 16384,
	HS_HTTP3_MAX_SETTINGS = 64,
	HS_HTTP3_PREFACE_BYTES = 256,
};

#define HS_HTTP3_BYTES_MASK ((INT64_C(1) << HS_END_BYTES_BITS) - 1)

/* A parser of what the peer sends on a unidirectional stream: http3/control.c. */
struct hs_http3_control {
	int64_t stream_type; /* -1: not known yet */
	uint64_t number; /* a variable-length integer, as far as it was read */
	uint64_t frame_type, left; /* of a frame */
	uint64_t setting;
	uint8_t state;
	uint8_t number_left; /* bytes */
	uint8_t number_bytes; /* 0: none was read */
	uint8_t has_settings, has_push_id;
	uint8_t is_after_identifier; /* a priority's value follows what was checked */
	uint8_t has_held, held; /* a byte that nghttp3 must not see before the next one */
	uint64_t push_id;
};

struct hs_http3_stream {
	struct hs_http3_stream *next; /* of the same slot */
	struct hs_end *end;
	int64_t id;
	uint8_t *section; /* name NUL value NUL ..., as far as it was received */
	size_t section_bytes, section_room;
	uint64_t section_cost; /* RFC 9114 section 4.2.2 */
	uint32_t fields;
	const uint8_t *body; /* to send: given, and not taken by nghttp3 */
	size_t body_bytes;
	uint32_t written; /* its place in what hs_http3_write fills, plus 1 */
	struct hs_http3_control control;
	uint8_t head[16]; /* a type and a session's ID, while the stream may belong to one */
	uint8_t head_bytes;
	unsigned int is_critical : 1; /* this side's */
	unsigned int has_head : 1; /* whether it belongs to a session is known */
	unsigned int is_fed : 1; /* nghttp3 has it */
	unsigned int has_bytes : 1; /* and something of the peer's */
	unsigned int is_blocked : 1; /* its section waits for QPACK's encoder stream */
	unsigned int is_received : 1; /* there is nothing more to read */
	unsigned int is_too_large : 1;
	unsigned int has_response : 1; /* the final section, or the request's, is on its way */
	unsigned int is_ended : 1; /* no content follows what was given */
	unsigned int has_trailers : 1;
	unsigned int is_full : 1; /* the end has no room */
	unsigned int is_abandoned : 1; /* nothing more is sent */
};

struct hs_http3 {
	nghttp3_conn *conn;
	struct hs_http3_config config;
	struct hs_http3_ends ends;
	struct hs_http3_stream **slots;
	uint32_t slot_count, stream_count;
	struct hs_http3_event *events;
	uint32_t event_count, event_room;
	uint8_t *text;
	uint32_t text_bytes, text_room;
	uint64_t settings[HS_HTTP3_MAX_SETTINGS][2];
	uint32_t setting_count;
	uint64_t max_client_streams;
	int64_t control_id; /* this side's */
	int64_t last_data; /* bytes of content in what nghttp3 reads */
	const char *error_text;
	uint64_t error_code;
	uint8_t has_failed, are_events_taken, is_bound, has_control, has_noticed, is_shut_down;
	uint8_t has_skipped; /* nghttp3 asked for content of a stream that has none */
	uint8_t has_preface; /* the control stream has its type and SETTINGS */
	uint8_t preface[HS_HTTP3_PREFACE_BYTES];
	size_t preface_bytes, preface_written, replaced_bytes;
	uint8_t room[1 + HS_HTTP3_ROOM_BYTES]; /* the first is for a byte that was held */
};

/* streams.c */
/* Whether a stream is one that the client opened for a request. */
static inline int hs_http3_has_requests(const struct hs_http3_stream *s)
{
	return (s->id & 3) == 0;
}
int hs_http3_make_streams(struct hs_http3 *h); /* returns 0 without memory */
void hs_http3_free_streams(struct hs_http3 *h);
struct hs_http3_stream *hs_http3_find(const struct hs_http3 *h, int64_t id);
/* NULL without memory. */
struct hs_http3_stream *hs_http3_insert(struct hs_http3 *h, int64_t id, struct hs_end *end);
/* Free a stream; returns whether there was one that may be. */
int hs_http3_remove(struct hs_http3 *h, int64_t id);

/* events.c */
/* Note why the connection has to be closed; the first reason counts. Returns HS_HTTP3_FAILED. */
int hs_http3_fail(struct hs_http3 *h, uint64_t code, const char *text);
/* The same, for an error of nghttp3. */
int hs_http3_fail_as(struct hs_http3 *h, int64_t error);
/* Append an event with its text. Returns NULL without memory. */
struct hs_http3_event *hs_http3_append(struct hs_http3 *h, int kind, int64_t stream_id,
				       const void *text, size_t bytes);

/* webtransport.c */
/* Read a byte of a stream's head, or find that it is none of a session's (`has_head`): then nghttp3
 * gets what `head` has. Returns as hs_end_read, or HS_HTTP3_FAILED. */
int64_t hs_http3_read_head(struct hs_http3 *h, struct hs_http3_stream *s);
/* Write type and SETTINGS of the control stream, in place of the first `replaced_bytes` that nghttp3
 * has, as far as there is room (`has_preface`). Returns hints, or an error. */
int64_t hs_http3_write_preface(struct hs_http3 *h, struct hs_http3_stream *s, const nghttp3_vec *vec,
			       nghttp3_ssize count);

/* receive.c */
void hs_http3_set_receive_callbacks(nghttp3_callbacks *callbacks);

/* control.c: check bytes of a peer's unidirectional stream, and change what the encoder must not
 * know. Returns 0, or HS_HTTP3_FAILED. */
int hs_http3_check_control(struct hs_http3 *h, struct hs_http3_control *control, uint8_t *data,
			   size_t bytes);
/* Whether a field may have this value (RFC 9110 section 5.5). */
int hs_http3_is_value(const uint8_t *value, size_t bytes);

#endif
