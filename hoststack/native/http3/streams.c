/* SPDX-License-Identifier: Apache-2.0 */
#include "http3/internal.h"

#include <stdlib.h>

enum { FIRST_SLOTS = 64 };

/* Requests' identifiers are multiples of 4 in a row; of other streams there are few. */
static uint32_t slot_of(const struct hs_http3 *h, int64_t id)
{
	return (uint32_t)((uint64_t)id >> 2 ^ (uint64_t)(id & 3)) & (h->slot_count - 1);
}

struct hs_http3_stream *hs_http3_find(const struct hs_http3 *h, int64_t id)
{
	struct hs_http3_stream *s = h->slots[slot_of(h, id)];
	while (s && s->id != id)
		s = s->next;
	return s;
}

static void link_in(struct hs_http3 *h, struct hs_http3_stream *s)
{
	struct hs_http3_stream **slot = &h->slots[slot_of(h, s->id)];
	s->next = *slot;
	*slot = s;
}

static void grow(struct hs_http3 *h)
{
	uint32_t old_count = h->slot_count;
	struct hs_http3_stream **old = h->slots;
	struct hs_http3_stream **more = calloc(old_count * 2, sizeof(struct hs_http3_stream *));
	if (!more)
		return; /* chains become longer */
	h->slots = more;
	h->slot_count *= 2;
	for (uint32_t i = 0; i < old_count; i++) {
		while (old[i]) {
			struct hs_http3_stream *s = old[i];
			old[i] = s->next;
			link_in(h, s);
		}
	}
	free(old);
}

struct hs_http3_stream *hs_http3_insert(struct hs_http3 *h, int64_t id, struct hs_end *end)
{
	struct hs_http3_stream *s = calloc(1, sizeof(*s));
	if (!s)
		return NULL;
	s->id = id;
	s->end = end;
	s->control.stream_type = -1;
	/* A response's stream is this side's. */
	s->has_head = !h->config.has_webtransport || (!(id & 3) && !h->config.is_server);
	if (h->stream_count++ == h->slot_count)
		grow(h);
	link_in(h, s);
	return s;
}

int hs_http3_remove(struct hs_http3 *h, int64_t id)
{
	struct hs_http3_stream **link = &h->slots[slot_of(h, id)];
	while (*link && (*link)->id != id)
		link = &(*link)->next;
	struct hs_http3_stream *s = *link;
	if (!s || s->is_critical)
		return 0;
	*link = s->next;
	h->stream_count--;
	free(s->section);
	free(s);
	return 1;
}

int hs_http3_make_streams(struct hs_http3 *h)
{
	h->slots = calloc(FIRST_SLOTS, sizeof(struct hs_http3_stream *));
	h->slot_count = h->slots ? FIRST_SLOTS : 0;
	return h->slots != NULL;
}

void hs_http3_free_streams(struct hs_http3 *h)
{
	for (uint32_t i = 0; i < h->slot_count; i++) {
		while (h->slots[i]) {
			struct hs_http3_stream *s = h->slots[i];
			h->slots[i] = s->next;
			free(s->section);
			free(s);
		}
	}
	free(h->slots);
}
