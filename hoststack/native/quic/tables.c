/* SPDX-License-Identifier: Apache-2.0 */
#include "quic/internal.h"

#include <stdlib.h>
#include <string.h>

#include "memory/mix.h"

enum {
	LEAST_BUCKETS = 256,
	LEAST_CONNECTIONS = 64,
};

/* --- connections by connection ID ------------------------------------------------------------- */

static int random_seed(uint64_t seed[2])
{
	return gnutls_rnd(GNUTLS_RND_RANDOM, seed, 16) ? -1 : 0;
}

int hs_cids_init(struct hs_cid_table *table)
{
	memset(table, 0, sizeof(*table));
	table->buckets = calloc(LEAST_BUCKETS, sizeof(*table->buckets));
	table->mask = LEAST_BUCKETS - 1;
	if (!table->buckets || random_seed(table->seed)) {
		free(table->buckets);
		return -1;
	}
	return 0;
}

void hs_cids_free(struct hs_cid_table *table)
{
	free(table->buckets);
}

/* Keyed: a client chooses the connection ID of its first packets, and must not choose the
 * bucket. */
static uint32_t hash(const struct hs_cid_table *table, const uint8_t *cid, size_t bytes)
{
	uint64_t words[3] = { 0 };
	memcpy(words, cid, bytes);
	uint64_t h = hs_mix(words[0] ^ table->seed[0], words[1] ^ table->seed[1]);
	h = hs_mix(h ^ words[2], table->seed[0] ^ bytes);
	return (uint32_t)(h ^ h >> 32);
}

static int is_cid(const struct hs_cid_entry *entry, const uint8_t *cid, size_t bytes)
{
	return entry->bytes == bytes && !memcmp(entry->cid, cid, bytes);
}

struct hs_connection *hs_cids_find(const struct hs_cid_table *table, const uint8_t *cid,
				   size_t bytes)
{
	if (bytes > NGTCP2_MAX_CIDLEN)
		return NULL;
	const struct hs_cid_entry *entry = table->buckets[hash(table, cid, bytes) & table->mask];
	while (entry && !is_cid(entry, cid, bytes))
		entry = entry->next;
	return entry ? entry->connection : NULL;
}

static void grow(struct hs_cid_table *table)
{
	uint32_t mask = table->mask * 2 + 1;
	struct hs_cid_entry **buckets = calloc((size_t)mask + 1, sizeof(*buckets));
	if (!buckets)
		return; /* continue with longer chains */
	for (uint32_t i = 0; i <= table->mask; i++) {
		struct hs_cid_entry *entry = table->buckets[i];
		while (entry) {
			struct hs_cid_entry *next = entry->next;
			uint32_t at = hash(table, entry->cid, entry->bytes) & mask;
			entry->next = buckets[at];
			buckets[at] = entry;
			entry = next;
		}
	}
	free(table->buckets);
	table->buckets = buckets;
	table->mask = mask;
}

int hs_cids_add(struct hs_cid_table *table, struct hs_connection *c, const uint8_t *cid,
		size_t bytes)
{
	if (bytes > NGTCP2_MAX_CIDLEN || hs_cids_find(table, cid, bytes))
		return -1;
	struct hs_cid_entry *entry = calloc(1, sizeof(*entry));
	if (!entry)
		return -1;
	if (table->count > table->mask)
		grow(table);
	uint32_t at = hash(table, cid, bytes) & table->mask;
	entry->bytes = (uint8_t)bytes;
	memcpy(entry->cid, cid, bytes);
	entry->connection = c;
	entry->next = table->buckets[at];
	table->buckets[at] = entry;
	entry->next_own = c->cids;
	c->cids = entry;
	table->count++;
	return 0;
}

static void unlink_entry(struct hs_cid_table *table, struct hs_cid_entry *entry)
{
	uint32_t at = hash(table, entry->cid, entry->bytes) & table->mask;
	struct hs_cid_entry **link = &table->buckets[at];
	while (*link != entry)
		link = &(*link)->next;
	*link = entry->next;
	table->count--;
}

void hs_cids_remove(struct hs_cid_table *table, struct hs_connection *c, const uint8_t *cid,
		    size_t bytes)
{
	for (struct hs_cid_entry **link = &c->cids; *link; link = &(*link)->next_own) {
		struct hs_cid_entry *entry = *link;
		if (is_cid(entry, cid, bytes)) {
			*link = entry->next_own;
			unlink_entry(table, entry);
			free(entry);
			return;
		}
	}
}

void hs_cids_remove_all(struct hs_cid_table *table, struct hs_connection *c)
{
	while (c->cids) {
		struct hs_cid_entry *entry = c->cids;
		c->cids = entry->next_own;
		unlink_entry(table, entry);
		free(entry);
	}
}

/* --- streams by connection and stream ID ------------------------------------------------------ */

int hs_streams_init(struct hs_stream_table *table)
{
	memset(table, 0, sizeof(*table));
	table->buckets = calloc(LEAST_BUCKETS, sizeof(*table->buckets));
	table->mask = LEAST_BUCKETS - 1;
	if (!table->buckets || random_seed(table->seed)) {
		free(table->buckets);
		return -1;
	}
	return 0;
}

void hs_streams_free(struct hs_stream_table *table)
{
	free(table->buckets);
}

/* Keyed: a peer chooses the numbers of its streams. */
static uint32_t hash_stream(const struct hs_stream_table *table, const struct hs_connection *c,
			    int64_t id)
{
	uint64_t h = hs_mix((uint64_t)id ^ table->seed[0], c->number ^ table->seed[1]);
	return (uint32_t)(h ^ h >> 32);
}

static struct hs_stream **stream_bucket(const struct hs_stream_table *table,
					const struct hs_stream *s)
{
	return &table->buckets[hash_stream(table, s->connection, s->id) & table->mask];
}

static void put_stream(struct hs_stream_table *table, struct hs_stream *s)
{
	struct hs_stream **bucket = stream_bucket(table, s);
	s->next_in_bucket = *bucket;
	*bucket = s;
}

static void grow_streams(struct hs_stream_table *table)
{
	struct hs_stream_table larger = *table;
	larger.mask = table->mask * 2 + 1;
	larger.buckets = calloc((size_t)larger.mask + 1, sizeof(*larger.buckets));
	if (!larger.buckets)
		return; /* continue with longer chains */
	for (uint32_t i = 0; i <= table->mask; i++) {
		struct hs_stream *s = table->buckets[i];
		while (s) {
			struct hs_stream *next = s->next_in_bucket;
			put_stream(&larger, s);
			s = next;
		}
	}
	free(table->buckets);
	*table = larger;
}

struct hs_stream *hs_streams_find(const struct hs_stream_table *table,
				  const struct hs_connection *c, int64_t id)
{
	struct hs_stream *s = table->buckets[hash_stream(table, c, id) & table->mask];
	while (s && !(s->id == id && s->connection == c))
		s = s->next_in_bucket;
	return s;
}

void hs_streams_add(struct hs_stream_table *table, struct hs_stream *s)
{
	if (table->count > table->mask)
		grow_streams(table);
	put_stream(table, s);
	table->count++;
}

void hs_streams_remove(struct hs_stream_table *table, struct hs_stream *s)
{
	struct hs_stream **link = stream_bucket(table, s);
	while (*link != s)
		link = &(*link)->next_in_bucket;
	*link = s->next_in_bucket;
	table->count--;
}

/* --- connections by deadline ------------------------------------------------------------------ */

static void place(struct hs_quic *q, struct hs_connection *c, uint32_t at)
{
	q->heap[at] = c;
	c->heap_place = at;
}

static void sift_up(struct hs_quic *q, struct hs_connection *c, uint32_t at)
{
	for (; at > 1 && q->heap[at / 2]->deadline_ns > c->deadline_ns; at /= 2)
		place(q, q->heap[at / 2], at);
	place(q, c, at);
}

static void sift_down(struct hs_quic *q, struct hs_connection *c, uint32_t at)
{
	for (;;) {
		uint32_t child = at * 2;
		if (child > q->heap_count)
			break;
		if (child < q->heap_count &&
		    q->heap[child + 1]->deadline_ns < q->heap[child]->deadline_ns)
			child++;
		if (q->heap[child]->deadline_ns >= c->deadline_ns)
			break;
		place(q, q->heap[child], at);
		at = child;
	}
	place(q, c, at);
}

int hs_heap_set(struct hs_quic *q, struct hs_connection *c, uint64_t deadline_ns)
{
	if (deadline_ns == UINT64_MAX) {
		hs_heap_remove(q, c);
		c->deadline_ns = deadline_ns;
		return 0;
	}
	if (!c->heap_place) {
		if (q->heap_count + 1 >= q->heap_room) {
			uint32_t room = q->heap_room ? q->heap_room * 2 : LEAST_CONNECTIONS;
			void *heap = realloc(q->heap, room * sizeof(*q->heap));
			if (!heap)
				return -1;
			q->heap = heap;
			q->heap_room = room;
		}
		c->deadline_ns = deadline_ns;
		sift_up(q, c, ++q->heap_count);
		return 0;
	}
	uint64_t before = c->deadline_ns;
	c->deadline_ns = deadline_ns;
	if (deadline_ns < before)
		sift_up(q, c, c->heap_place);
	else if (deadline_ns > before)
		sift_down(q, c, c->heap_place);
	return 0;
}

void hs_heap_remove(struct hs_quic *q, struct hs_connection *c)
{
	uint32_t at = c->heap_place;
	if (!at)
		return;
	c->heap_place = 0;
	struct hs_connection *last = q->heap[q->heap_count--];
	if (last == c)
		return;
	if (at > 1 && q->heap[at / 2]->deadline_ns > last->deadline_ns)
		sift_up(q, last, at);
	else
		sift_down(q, last, at);
}

/* --- connections by number -------------------------------------------------------------------- */

int hs_number_allocate(struct hs_quic *q, struct hs_connection *c)
{
	if (q->free_count) {
		c->number = q->free_numbers[--q->free_count];
	} else {
		if (q->connection_top == q->connection_room) {
			uint32_t room =
				q->connection_room ? q->connection_room * 2 : LEAST_CONNECTIONS;
			void *table = realloc(q->connections, room * sizeof(*q->connections));
			if (table)
				q->connections = table;
			void *numbers = realloc(q->free_numbers, room * sizeof(*q->free_numbers));
			if (numbers)
				q->free_numbers = numbers;
			if (!table || !numbers)
				return -1;
			q->connection_room = room;
		}
		c->number = q->connection_top++;
	}
	q->connections[c->number] = c;
	q->connection_count++;
	q->counters.connections++;
	return 0;
}

void hs_number_release(struct hs_quic *q, struct hs_connection *c)
{
	q->connections[c->number] = NULL;
	q->free_numbers[q->free_count++] = c->number;
	q->connection_count--;
	if (!c->is_dead)
		q->counters.connections--;
}
