/* SPDX-License-Identifier: Apache-2.0 */
#include "http3/internal.h"

#include <stdlib.h>
#include <string.h>

enum { FIRST_EVENTS = 64, FIRST_TEXT = 4096 };

int hs_http3_fail(struct hs_http3 *h, uint64_t code, const char *text)
{
	if (!h->has_failed) {
		h->has_failed = 1;
		h->error_code = code;
		h->error_text = text;
	}
	return HS_HTTP3_FAILED;
}

int hs_http3_fail_as(struct hs_http3 *h, int64_t error)
{
	uint64_t code = nghttp3_err_infer_quic_app_error_code((int)error);
	/* nghttp3's own limits: fields that are too long, what nobody lets it send. */
	if (error == NGHTTP3_ERR_QPACK_HEADER_TOO_LARGE || error == NGHTTP3_ERR_QPACK_FATAL)
		code = NGHTTP3_H3_EXCESSIVE_LOAD;
	return hs_http3_fail(h, code, nghttp3_strerror((int)error));
}

uint64_t hs_http3_error(const struct hs_http3 *h, const char **text)
{
	*text = h->error_text ? h->error_text : "";
	return h->error_code;
}

static int has_room(void **block, uint32_t *room, uint64_t wanted, size_t item_bytes,
		    uint32_t first)
{
	uint64_t more = *room ? *room : first;
	if (wanted <= *room)
		return 1;
	while (more < wanted)
		more *= 2;
	if (more > UINT32_MAX)
		return 0;
	void *grown = realloc(*block, more * item_bytes);
	if (!grown)
		return 0;
	*block = grown;
	*room = (uint32_t)more;
	return 1;
}

struct hs_http3_event *hs_http3_append(struct hs_http3 *h, int kind, int64_t stream_id,
				       const void *text, size_t bytes)
{
	if (h->are_events_taken) {
		h->are_events_taken = 0;
		h->event_count = h->text_bytes = 0;
	}
	void *events = h->events, *texts = h->text;
	int has = has_room(&events, &h->event_room, (uint64_t)h->event_count + 1,
			   sizeof(*h->events), FIRST_EVENTS);
	h->events = events;
	if (has) {
		has = has_room(&texts, &h->text_room, (uint64_t)h->text_bytes + bytes, 1,
			       FIRST_TEXT);
		h->text = texts;
	}
	if (!has) {
		hs_http3_fail(h, NGHTTP3_H3_INTERNAL_ERROR, "no memory for events");
		return NULL;
	}
	struct hs_http3_event *event = &h->events[h->event_count++];
	*event = (struct hs_http3_event){
		.stream_id = stream_id,
		.offset = h->text_bytes,
		.bytes = (uint32_t)bytes,
		.kind = (uint16_t)kind,
	};
	if (bytes)
		memcpy(h->text + h->text_bytes, text, bytes);
	h->text_bytes += (uint32_t)bytes;
	return event;
}

uint32_t hs_http3_events(struct hs_http3 *h, struct hs_http3_batch *out)
{
	int has = !h->are_events_taken;
	*out = (struct hs_http3_batch){ h->events, h->text, has ? h->event_count : 0,
					has ? h->text_bytes : 0 };
	h->are_events_taken = 1;
	return out->count;
}
