/* SPDX-License-Identifier: Apache-2.0
 *
 * HTTP/3 (hoststack/native/http3) between a hostile peer and an application that uses it as the
 * header allows. The input is a program: which streams the peer opens, what it sends on them, in
 * which pieces, where it ends, resets and stops, and what the application sends and gives up.
 *
 * What is checked: nghttp3 asserts nothing; events lie within their batch, and sections are what
 * they say; content is not read after it was given up, or written.
 */
#include "http3/http3.h"
#include "session/end.h"

#include "fuzz.h"

enum {
	STREAMS = 24,
	PIECE_BYTES = 300,
	BODY_BYTES = 20000,
	WRITTEN = 4,
};

#define BYTES_MASK ((INT64_C(1) << HS_END_BYTES_BITS) - 1)

/* A stream, in place of the session plane's. */
struct hs_end {
	uint8_t *rx;
	size_t rx_bytes;
	size_t room;
	uint8_t *body; /* what was given, and perhaps not written */
	int64_t id;
	uint8_t has_eof, is_reset, is_stopped, is_finished, is_full, is_open, is_session;
};

static struct world {
	struct hs_http3 *http3;
	struct hs_end ends[STREAMS], critical[3];
	int count;
	int64_t next_request, next_unidirectional;
	uint8_t is_server, has_sessions;
	uint64_t sum; /* of what was written: all of it is read */
} w;

/* --- ends ------------------------------------------------------------------------------------- */

static int64_t end_look(struct hs_end *end, size_t n, const uint8_t **out)
{
	*out = end->rx;
	return (int64_t)(end->rx_bytes < n ? end->rx_bytes : n);
}

static int64_t end_skip(struct hs_end *end, size_t n)
{
	CHECK(n <= end->rx_bytes);
	uint8_t *rest = copy_of(end->rx + n, end->rx_bytes - n);
	free(end->rx);
	end->rx = rest;
	end->rx_bytes -= n;
	return (int64_t)HS_END_CREDIT << HS_END_BYTES_BITS;
}

static int64_t end_read(struct hs_end *end, uint8_t *out, size_t n, int wants_more)
{
	CHECK(n && !wants_more);
	if (end->is_reset)
		return HS_END_RESET;
	if (n > end->rx_bytes)
		n = end->rx_bytes;
	if (!n)
		return end->has_eof ? 0 : HS_END_WAIT;
	memcpy(out, end->rx, n);
	return (int64_t)n | end_skip(end, n);
}

static int64_t end_write(struct hs_end *end, const uint8_t *data, size_t n)
{
	CHECK(!end->is_finished && end->is_open);
	if (end->is_stopped)
		return HS_END_STOPPED;
	if (n > end->room)
		n = end->room;
	for (size_t i = 0; i < n; i++)
		w.sum += data[i];
	end->room -= n;
	return (int64_t)n | (int64_t)HS_END_SEND << HS_END_BYTES_BITS;
}

static int64_t end_finish(struct hs_end *end)
{
	CHECK(!end->is_finished && end->is_open);
	if (end->is_stopped)
		return HS_END_STOPPED;
	end->is_finished = 1;
	return (int64_t)HS_END_SEND << HS_END_BYTES_BITS;
}

static int64_t end_prioritize(struct hs_end *end, uint32_t urgency, int is_incremental)
{
	(void)end;
	CHECK(urgency < 8 && (is_incremental == 0 || is_incremental == 1));
	return 0;
}

static const struct hs_http3_ends ENDS = {
	end_read, end_look, end_skip, end_write, end_finish, end_prioritize,
};

/* --- what a peer sends, whole or in parts ----------------------------------------------------- */

static const struct piece {
	const char *text;
	uint8_t bytes;
} PIECES[] = {
#define PIECE(text) { text, sizeof(text) - 1 }
	PIECE("\x00"), /* types of streams */
	PIECE("\x02"),
	PIECE("\x03"),
	PIECE("\x40\x54"),
	PIECE("\x04\x00"), /* SETTINGS */
	PIECE("\x04\x08\x01\x50\x00\x07\x40\x64\x33\x01"),
	PIECE("\x04\x0a\x01\x50\x00\x07\x40\x64\x33\x01\x21\x05"),
	PIECE("\x80\x0f\x07\x00\x04\x00"), /* PRIORITY_UPDATE, and its value */
	PIECE("u=1"),
	PIECE("u=5,i"),
	PIECE("\x80\x0f\x07\x00\x07\x40\x04u=0,i"),
	PIECE("\x07\x01\x00"), /* GOAWAY, MAX_PUSH_ID */
	PIECE("\x07\x01\x04"),
	PIECE("\x0d\x01\x02"),
	PIECE("\x01\x0f\x00\x00\xd1\xd7\x50\x08" "10.0.0.1" "\xc1"), /* GET / */
	PIECE("\x01\x0f\x00\x00\xd4\xd7\x50\x08" "10.0.0.1" "\xc1"), /* POST / */
	PIECE("\x01\x10\x02\x00\xd1\xd7\x50\x08" "10.0.0.1" "\xc1\x80"), /* and an entry */
	PIECE("\x01\x12\x02\x00\xd4\xd7\x50\x08" "10.0.0.1" "\xc1\x54\x01" "5"), /* and a length */
	PIECE("\x01\x03\x00\x00\xd9"), /* :status 200, 103, 304 */
	PIECE("\x01\x03\x00\x00\xd8"),
	PIECE("\x01\x03\x00\x00\xda"),
	PIECE("\x01\x06\x00\x00\x21" "a" "\x01" "b"), /* trailers */
	PIECE("\x00\x05hello"), /* DATA */
	PIECE("\x00\x40\x80"),
	PIECE("\x00\x00"),
	PIECE("\x21\x03xyz"), /* a reserved type */
	PIECE("\x3f\xbd\x01\x48my-field\x08my value"), /* to the encoder stream */
	PIECE("\x3f\xe1\x1f"),
	PIECE("\x00"),
	PIECE("\x01"), /* to the decoder stream */
	PIECE("\x80"),
	PIECE("\x40"),
	PIECE("\x40\x54\x00"), /* streams of sessions */
	PIECE("\x40\x41\x00"),
	PIECE("\x80\x00\x00\x41\xc0\x00\x00\x00\x00\x00\x00\x04"),
#undef PIECE
};

static const char FIELDS[] = ":status\000200\000server\000fuzz\000x-y\000a value that is stored";
static const char INTERIM[] = ":status\000103\000link\000a";
static const char ASKED[] = ":method\000GET\000:scheme\000https\000:authority\000a\000:path\000/\000b\000c";
static const char TRAILERS[] = "digest\0001";

static void append(struct hs_end *end, const void *data, size_t bytes)
{
	uint8_t *more = take_memory(end->rx_bytes + bytes);
	if (end->rx_bytes)
		memcpy(more, end->rx, end->rx_bytes);
	if (bytes)
		memcpy(more + end->rx_bytes, data, bytes);
	free(end->rx);
	end->rx = more;
	end->rx_bytes += bytes;
}

/* --- the application -------------------------------------------------------------------------- */

static struct hs_end *find(int64_t id)
{
	for (int i = 0; i < w.count; i++) {
		if (w.ends[i].is_open && w.ends[i].id == id)
			return &w.ends[i];
	}
	return NULL;
}

static void give_up(struct hs_end *end)
{
	hs_http3_abandon(w.http3, end->id);
	free(end->body);
	end->body = NULL;
	end->is_full = 0;
}

static void look_at_section(const struct hs_http3_event *event, const uint8_t *text)
{
	uint32_t ends = 0;
	for (uint32_t i = 0; i < event->bytes; i++)
		ends += text[event->offset + i] == 0;
	CHECK(ends == 2 * event->fields);
	CHECK(!event->bytes || !text[event->offset + event->bytes - 1]);
}

static void look_at_events(void)
{
	struct hs_http3_batch batch;
	hs_http3_events(w.http3, &batch);
	for (uint32_t i = 0; i < batch.count; i++) {
		const struct hs_http3_event *event = &batch.events[i];
		CHECK((uint64_t)event->offset + event->bytes <= batch.text_bytes);
		struct hs_end *end = find(event->stream_id);
		if (event->kind == HS_HTTP3_SECTION || event->kind == HS_HTTP3_TRAILERS)
			look_at_section(event, batch.text);
		if (event->kind == HS_HTTP3_RESET && end)
			give_up(end);
		if (event->kind == HS_HTTP3_WEBTRANSPORT) {
			CHECK(end);
			end->is_session = 1;
		}
		if (event->kind == HS_HTTP3_TOO_LARGE)
			hs_http3_stop(w.http3, event->stream_id);
	}
	CHECK(hs_http3_events(w.http3, &batch) == 0);
}

static void write_all(void)
{
	struct hs_http3_written out[WRITTEN];
	int n = WRITTEN;
	while (n == WRITTEN) {
		n = hs_http3_write(w.http3, out, WRITTEN);
		for (int i = 0; i < n; i++) {
			struct hs_end *end = find(out[i].stream_id);
			if (!end)
				continue; /* a critical one */
			end->is_full = out[i].state == HS_HTTP3_FULL;
			if (out[i].state < 0)
				give_up(end);
		}
	}
	/* What is not full was written as a whole. */
	for (int i = 0; i < w.count && n >= 0; i++) {
		if (!w.ends[i].is_full) {
			free(w.ends[i].body);
			w.ends[i].body = NULL;
		}
	}
}

static void close_stream(struct hs_end *end, uint8_t code)
{
	hs_http3_close(w.http3, end->id, code);
	free(end->body);
	free(end->rx);
	end->body = end->rx = NULL;
	end->rx_bytes = 0;
	end->is_open = 0;
}

static void read_some(struct hs_end *end, size_t most)
{
	int64_t got = hs_http3_read(w.http3, end->id, most);
	const char *text;
	CHECK((got & BYTES_MASK) <= (int64_t)most || got < 0);
	if (got == HS_HTTP3_FAILED)
		CHECK(hs_http3_error(w.http3, &text) && *text);
	look_at_events();
	if (end->is_session)
		close_stream(end, 0); /* what it has more is the program's */
}

static void open_stream(int64_t *id)
{
	if (w.count == STREAMS)
		return;
	struct hs_end *end = &w.ends[w.count++];
	end->id = *id;
	end->is_open = 1;
	end->room = 1000;
	*id += 4;
	if (!w.is_server && w.has_sessions && id == &w.next_request && w.count % 3 == 0)
		end->id++; /* the server's */
	hs_http3_add(w.http3, end->id, end);
}

static void send_section(struct hs_end *end, struct input *in)
{
	uint8_t how = take_8(in);
	int is_last = how >> 7;
	switch (how & 3) {
	case 0:
		hs_http3_send_section(w.http3, end->id, HS_HTTP3_RESPONSE, (const uint8_t *)FIELDS,
				      sizeof(FIELDS), 3, is_last);
		break;
	case 1:
		hs_http3_send_section(w.http3, end->id, HS_HTTP3_INFORMATIONAL,
				      (const uint8_t *)INTERIM, sizeof(INTERIM), 2, 0);
		break;
	case 2:
		hs_http3_send_section(w.http3, end->id, HS_HTTP3_TRAILER,
				      (const uint8_t *)TRAILERS, sizeof(TRAILERS), 1, 1);
		break;
	default:
		hs_http3_send_section(w.http3, end->id, HS_HTTP3_REQUEST, (const uint8_t *)ASKED,
				      sizeof(ASKED), 5, is_last);
	}
}

/* A program's own fields, which may be anything. */
static void send_fields(struct hs_end *end, struct input *in)
{
	uint8_t how = take_8(in);
	size_t n;
	const uint8_t *taken = take_bytes(in, how & 0x3f, &n);
	uint8_t *text = copy_of(taken, n);
	hs_http3_send_section(w.http3, end->id, 1 + (how >> 6), text, n, take_8(in) & 7, 0);
	free(text);
}

static void send_data(struct hs_end *end, struct input *in)
{
	uint16_t how = take_16(in);
	size_t bytes = (how >> 1) % BODY_BYTES;
	if (end->body || end->is_full)
		return; /* one at a time */
	uint8_t *body = take_memory(bytes);
	if (hs_http3_send_data(w.http3, end->id, body, bytes, how & 1) == 0)
		end->body = body;
	else
		free(body);
}

static void prioritize(struct hs_end *end, struct input *in)
{
	uint8_t how = take_8(in);
	hs_http3_priority(w.http3, end->id);
	if (w.is_server)
		hs_http3_set_priority(w.http3, end->id, how & 15, how >> 7);
	else
		hs_http3_update_priority(w.http3, end->id, (const uint8_t *)"u=2", how & 3);
}

static void step(struct input *in)
{
	uint8_t op = take_8(in), which = take_8(in);
	struct hs_end *end = w.count ? &w.ends[which % w.count] : NULL;
	size_t n;
	if (op % 16 < 2) {
		open_stream(op % 2 ? &w.next_unidirectional : &w.next_request);
		return;
	}
	if (!end || !end->is_open)
		return;
	switch (op % 16) {
	case 2: {
		const uint8_t *data = take_bytes(in, take_8(in), &n);
		append(end, data, n);
		read_some(end, SIZE_MAX >> 1);
		break;
	}
	case 3:
	case 4:
	case 5: {
		const struct piece *piece = &PIECES[take_8(in) % (sizeof(PIECES) / sizeof(*PIECES))];
		size_t bytes = op & 0x80 ? (op >> 4 & 7) % (piece->bytes + 1u) : piece->bytes;
		append(end, piece->text, bytes);
		read_some(end, op & 0x40 ? 1 + (which >> 4) : SIZE_MAX >> 1);
		break;
	}
	case 6:
		end->has_eof = 1;
		read_some(end, SIZE_MAX >> 1);
		break;
	case 7:
		end->is_reset = 1;
		if (read_some(end, 100), (end->id & 3) == 0)
			hs_http3_stop(w.http3, end->id);
		break;
	case 8:
		send_section(end, in);
		break;
	case 9:
		send_data(end, in);
		break;
	case 10:
		end->room += take_8(in) * 100;
		hs_http3_unblock(w.http3, end->id);
		w.critical[which % 3].room += 100;
		hs_http3_unblock(w.http3, w.critical[which % 3].id);
		break;
	case 11:
		(op & 0x80 ? &w.critical[which % 3] : end)->is_stopped = (op & 0x70) == 0x70;
		break;
	case 12:
		close_stream(end, op);
		break;
	case 13:
		hs_http3_shutdown(w.http3, op >> 7);
		break;
	case 14:
		prioritize(end, in);
		break;
	default:
		if (op & 0x80)
			give_up(end);
		else
			send_fields(end, in);
	}
	if (!(op & 0x10))
		write_all();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct input in = { data, bytes };
	uint8_t how = take_8(&in);
	struct hs_http3_config config = {
		.max_section_bytes = how & 2 ? 200 : 65536,
		.max_fields = 20,
		.table_bytes = how & 4 ? 0 : 4096,
		.blocked_streams = how & 8 ? 1 : 100,
		.max_streams = 8,
		.is_server = how & 1,
		.has_connect_protocol = how >> 4 & 1,
		.has_datagrams = how >> 5 & 1,
		.has_webtransport = how >> 7,
		.more_count = how >> 7 ? 3 : 0,
		.more_settings = { { 0x2b603742, 1 }, { 0xc671706a, 100 }, { 0x14e9cd29, 1 } },
	};
	struct hs_end *critical[3];
	int64_t ids[3];
	memset(&w, 0, sizeof(w));
	w.is_server = config.is_server;
	w.has_sessions = config.has_webtransport;
	w.http3 = hs_http3_new(&config, &ENDS);
	CHECK(w.http3);
	for (int i = 0; i < 3; i++) {
		critical[i] = &w.critical[i];
		critical[i]->id = ids[i] = 4 * i + (w.is_server ? 3 : 2);
		critical[i]->room = how & 0x40 ? 20 : 10000;
		critical[i]->is_open = 1;
	}
	CHECK(hs_http3_bind(w.http3, ids, critical) == 0);
	w.next_unidirectional = w.is_server ? 2 : 3;
	write_all();
	while (in.left)
		step(&in);
	write_all();
	for (int i = 0; i < w.count; i++) {
		free(w.ends[i].rx);
		free(w.ends[i].body);
	}
	hs_http3_free(w.http3);
	return 0;
}
