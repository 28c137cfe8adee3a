/* SPDX-License-Identifier: Apache-2.0
 *
 * Connections by number, streams by connection and stream ID.
 */
#include "quic/tables.h"

#include <stdlib.h>
#include <string.h>

#include "memory/mix.h"

enum {
	LEAST_BUCKETS = 256,
	LEAST_CONNECTIONS = 64,
};

/* --- streams by connection and stream ID ------------------------------------------------------ */

int hs_streams_init(struct hs_stream_table *table)
{
	memset(table, 0, sizeof(*table));
	table->buckets = calloc(LEAST_BUCKETS, sizeof(*table->buckets));
	table->mask = LEAST_BUCKETS - 1;
	if (!table->buckets || gnutls_rnd(GNUTLS_RND_RANDOM, table->seed, sizeof(table->seed))) {
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
