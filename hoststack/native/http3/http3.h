/* SPDX-License-Identifier: Apache-2.0
 *
 * HTTP/3 on a connection: nghttp3 between an application and the ends of its streams
 * (session/end.h). Framing, QPACK and the rules (RFC 9114, 9204, 9218) are nghttp3's.
 *
 * A call reads what a stream has, another one writes what is to be sent, on any stream. What was
 * received comes as events, in batches. No call blocks; a stream that can't go on waits as its end
 * does. One thread at a time.
 */
#ifndef HS_HTTP3_HTTP3_H
#define HS_HTTP3_HTTP3_H

#include <stddef.h>
#include <stdint.h>

struct hs_http3;
struct hs_end;

/* The functions of session/end.h, which are in another shared object. */
struct hs_http3_ends {
	int64_t (*read)(struct hs_end *end, uint8_t *out, size_t n, int wants_more);
	int64_t (*look)(struct hs_end *end, size_t n, const uint8_t **out);
	int64_t (*skip)(struct hs_end *end, size_t n);
	int64_t (*write)(struct hs_end *end, const uint8_t *data, size_t n);
	int64_t (*finish)(struct hs_end *end);
	int64_t (*prioritize)(struct hs_end *end, uint32_t urgency, int is_incremental);
};

enum { HS_HTTP3_MORE_SETTINGS = 8 };

struct hs_http3_config {
	uint64_t max_section_bytes; /* of a field section that is accepted: RFC 9114 section 4.2.2 */
	uint32_t max_fields; /* in one */
	uint32_t table_bytes; /* QPACK's dynamic table, in each direction */
	uint32_t blocked_streams; /* that may wait for QPACK's encoder stream */
	uint32_t max_streams; /* requests that a client may have open */
	uint8_t is_server;
	uint8_t has_connect_protocol; /* RFC 9220; a server's */
	uint8_t has_datagrams; /* RFC 9297 */
	uint8_t has_webtransport; /* streams may belong to sessions */
	uint32_t more_count;
	uint64_t more_settings[HS_HTTP3_MORE_SETTINGS][2]; /* that nghttp3 does not know */
};

/* Results, beside those of session/end.h: negative ones, bytes, and hints above them. */
enum hs_http3_result {
	HS_HTTP3_BLOCKED = -40, /* the field section waits for QPACK's encoder stream */
	HS_HTTP3_FAILED = -41, /* the connection has to be closed: hs_http3_error */
	HS_HTTP3_MISUSED = -42, /* the stream is not there, or not in the state for this */
	HS_HTTP3_INVALID = -43, /* a field contains what it must not */
	HS_HTTP3_GOING_AWAY = -44, /* the peer accepts no more requests */
	HS_HTTP3_NO_MEMORY = -45,
};

enum hs_http3_kind {
	HS_HTTP3_SECTION = 1, /* header section: text is name NUL value NUL ... */
	HS_HTTP3_TRAILERS = 2, /* as SECTION */
	HS_HTTP3_DATA = 3, /* content: text */
	HS_HTTP3_END = 4, /* of the message, if no event before has HS_HTTP3_IS_LAST */
	HS_HTTP3_TOO_LARGE = 5, /* the section is above the limits; nothing more is read */
	HS_HTTP3_STOP = 6, /* ask the peer to stop sending, with `code` */
	HS_HTTP3_RESET = 7, /* reset the stream with `code` */
	HS_HTTP3_GOAWAY = 8, /* `code` is its ID (RFC 9114 section 5.2) */
	HS_HTTP3_SETTINGS = 9, /* text is pairs of an identifier and its value, uint64_t each */
	HS_HTTP3_WEBTRANSPORT = 10, /* the stream belongs to the session `code`; what follows its
				     * head is not read, and hs_http3_close is next */
};

enum hs_http3_event_flag {
	HS_HTTP3_IS_LAST = 1, /* the message ends with this */
};

struct hs_http3_event {
	int64_t stream_id; /* -1: none */
	uint64_t code;
	uint32_t offset, bytes; /* in the batch's text */
	uint16_t kind; /* enum hs_http3_kind */
	uint16_t flags; /* enum hs_http3_event_flag */
	uint32_t fields; /* in a section */
};

struct hs_http3_batch {
	const struct hs_http3_event *events;
	const uint8_t *text;
	uint32_t count;
	uint32_t text_bytes;
};

/* What hs_http3_write did with a stream. */
struct hs_http3_written {
	int64_t stream_id;
	int32_t state; /* enum hs_http3_sending, or the end's error */
	uint32_t hints; /* enum hs_end_hint */
};

enum hs_http3_sending {
	HS_HTTP3_SENT = 0, /* all that was given */
	HS_HTTP3_FULL = 1, /* the end waits for room: hs_http3_unblock follows */
};

enum hs_http3_section {
	HS_HTTP3_REQUEST = 1,
	HS_HTTP3_INFORMATIONAL = 2,
	HS_HTTP3_RESPONSE = 3,
	HS_HTTP3_TRAILER = 4, /* ends the message */
};

/* NULL without memory. */
struct hs_http3 *hs_http3_new(const struct hs_http3_config *config,
			      const struct hs_http3_ends *ends);
void hs_http3_free(struct hs_http3 *h);
/* This side's critical streams, once: control, QPACK's encoder and decoder. */
int hs_http3_bind(struct hs_http3 *h, const int64_t ids[3], struct hs_end *const ends[3]);
/* A stream of the peer, or a request's. Its end exists until hs_http3_close. */
int hs_http3_add(struct hs_http3 *h, int64_t id, struct hs_end *end);
/* Forget a request's stream, or one that nghttp3 has no use for, after its end was reached, or reset
 * with `code`. */
void hs_http3_close(struct hs_http3 *h, int64_t id, uint64_t code);
/* Why HS_HTTP3_FAILED: the code to close with, and a text of constant lifetime. */
uint64_t hs_http3_error(const struct hs_http3 *h, const char **text);
/* The events since the last call, valid until the next call of hs_http3_read. */
uint32_t hs_http3_events(struct hs_http3 *h, struct hs_http3_batch *out);

/* Read up to `max_bytes` of what a stream has. Returns bytes with hints, 0 at the end of the stream,
 * HS_END_WAIT, what else hs_end_read returns, HS_HTTP3_BLOCKED or HS_HTTP3_FAILED. */
int64_t hs_http3_read(struct hs_http3 *h, int64_t id, size_t max_bytes);
/* Read no more of a request's stream: its content is of no interest, or it was reset. */
int hs_http3_stop(struct hs_http3 *h, int64_t id);

/* A section of `fields` fields, name NUL value NUL ..., of which the last NUL may be missing. With
 * `is_last` the message has no content. */
int hs_http3_send_section(struct hs_http3 *h, int64_t id, int kind, const uint8_t *text,
			  size_t bytes, uint32_t fields, int is_last);
/* Content, which must stay where it is until all is written, or hs_http3_abandon. */
int hs_http3_send_data(struct hs_http3 *h, int64_t id, const uint8_t *data, size_t bytes,
		       int is_last);
/* Send nothing more on a stream. */
void hs_http3_abandon(struct hs_http3 *h, int64_t id);
/* The end has room again. */
int hs_http3_unblock(struct hs_http3 *h, int64_t id);
/* Write what can be written, of the most urgent streams first. Fills `out` with the streams that it
 * wrote, and returns how many, `room` if there may be more to write; or HS_HTTP3_FAILED. */
int hs_http3_write(struct hs_http3 *h, struct hs_http3_written *out, uint32_t room);
/* HS_HTTP3_SECTION of a response and its content, HS_HTTP3_RESPONSE alone, and write. */
int hs_http3_respond(struct hs_http3 *h, int64_t id, const uint8_t *text, size_t bytes,
		     uint32_t fields, const uint8_t *data, size_t data_bytes,
		     struct hs_http3_written *out, uint32_t room);

/* GOAWAY: accept no more requests soon, or from now on. */
int hs_http3_shutdown(struct hs_http3 *h, int is_notice);
/* A server's priority of a stream (RFC 9218), urgency << 1 | incremental; or HS_HTTP3_MISUSED. */
int hs_http3_priority(struct hs_http3 *h, int64_t id);
int hs_http3_set_priority(struct hs_http3 *h, int64_t id, uint32_t urgency, int is_incremental);
/* A client's PRIORITY_UPDATE: the value of a priority field. */
int hs_http3_update_priority(struct hs_http3 *h, int64_t id, const uint8_t *text, size_t bytes);

#endif
