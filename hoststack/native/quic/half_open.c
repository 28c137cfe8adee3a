/* SPDX-License-Identifier: Apache-2.0
 *
 * Handshakes of peers in progress. Anyone can begin one, and most of a handshake's cost arises
 * before the peer has proven more than its address. So the total number is limited, each source
 * with a proven address has its own limit within that, and the newest handshake replaces the
 * oldest: an honest one is complete after a round trip.
 *
 * A source is an IPv4 address or an IPv6 /64, because a host with one address of a /64 usually has
 * them all. Unproven addresses belong to no source; otherwise anyone could exhaust another source's
 * limit.
 */
#include "quic/half_open.h"

#include <stdlib.h>
#include <string.h>

#include "memory/mix.h"
#include "wire/paths.h"

enum {
	/* Concurrent handshakes of peers: anyone can begin one from a forged address. */
	MOST_HALF_OPEN = 1024,
	BUCKETS = 256,
	KEY_BYTES = 9, /* the kind of address, and 4 or 8 bytes of it */
	/* A source at its limit may still begin this many handshakes per second in place of
	 * older ones, from ports that have none in progress: an attacker behind a NAT does not
	 * lock out its neighbours until it uses thousands of ports. They cost the worker a fifth
	 * of its time. */
	REPLACEMENTS_PER_SECOND = 512,
	/* The same, from ports that have some in progress. */
	REPLACEMENTS_OF_BUSY_PORTS = 128,
};

#define SECOND_NS 1000000000ULL
/* A handshake older than this may be replaced even by a port that has others in progress. */
#define REPLACED_AFTER_NS (3 * SECOND_NS)

struct hs_source {
	struct hs_source *next; /* in the bucket */
	struct hs_connection *first, *last; /* the oldest first */
	uint64_t second_began_ns;
	uint32_t replacements; /* in this second */
	uint32_t count;
	uint8_t key[KEY_BYTES];
};

struct hs_half_open {
	uint64_t seed[2];
	struct hs_connection *first, *last; /* of all sources, the oldest first */
	struct hs_source *buckets[BUCKETS];
};

struct hs_half_open *hs_half_open_new(void)
{
	struct hs_half_open *all = calloc(1, sizeof(*all));
	if (all && gnutls_rnd(GNUTLS_RND_RANDOM, all->seed, sizeof(all->seed))) {
		free(all);
		return NULL;
	}
	return all;
}

/* --- sources ---------------------------------------------------------------------------------- */

static void make_key(uint8_t key[KEY_BYTES], const union hs_address *remote)
{
	memset(key, 0, KEY_BYTES);
	if (remote->any.sa_family == AF_INET) {
		key[0] = 4;
		memcpy(key + 1, &remote->v4.sin_addr, 4);
	} else if (IN6_IS_ADDR_V4MAPPED(&remote->v6.sin6_addr)) {
		key[0] = 4;
		memcpy(key + 1, remote->v6.sin6_addr.s6_addr + 12, 4);
	} else {
		key[0] = 6;
		memcpy(key + 1, &remote->v6.sin6_addr, 8);
	}
}

static struct hs_source **bucket_of(struct hs_half_open *all, const uint8_t key[KEY_BYTES])
{
	uint64_t word;
	memcpy(&word, key + 1, sizeof(word));
	uint64_t h = hs_mix(word ^ all->seed[0], all->seed[1] ^ key[0]);
	return &all->buckets[(h ^ h >> 32) & (BUCKETS - 1)];
}

static struct hs_source *find_source(struct hs_half_open *all, const union hs_address *remote)
{
	uint8_t key[KEY_BYTES];
	make_key(key, remote);
	struct hs_source *source = *bucket_of(all, key);
	while (source && memcmp(source->key, key, KEY_BYTES))
		source = source->next;
	return source;
}

static struct hs_source *need_source(struct hs_half_open *all, const union hs_address *remote)
{
	struct hs_source *source = find_source(all, remote);
	if (source)
		return source;
	source = calloc(1, sizeof(*source));
	if (!source)
		return NULL;
	make_key(source->key, remote);
	struct hs_source **bucket = bucket_of(all, source->key);
	source->next = *bucket;
	*bucket = source;
	return source;
}

static void free_source(struct hs_half_open *all, struct hs_source *source)
{
	struct hs_source **link = bucket_of(all, source->key);
	while (*link != source)
		link = &(*link)->next;
	*link = source->next;
	free(source);
}

void hs_half_open_free(struct hs_half_open *all)
{
	for (uint32_t i = 0; all && i < BUCKETS; i++) {
		while (all->buckets[i])
			free_source(all, all->buckets[i]);
	}
	free(all);
}

/* --- creation and destruction ----------------------------------------------------------------- */

void hs_half_open_begin(struct hs_connection *c, int is_proven)
{
	struct hs_quic *q = c->q;
	struct hs_half_open *all = q->handshakes;
	c->is_half_open = 1;
	c->began_ns = q->now_ns;
	q->half_open++;
	c->older = all->last;
	c->newer = NULL;
	*(all->last ? &all->last->newer : &all->first) = c;
	all->last = c;
	/* Without memory it is counted without a source. */
	struct hs_source *source = is_proven ? need_source(all, &c->path->remote) : NULL;
	c->source = source;
	if (!source)
		return;
	source->count++;
	c->older_of_source = source->last;
	c->newer_of_source = NULL;
	*(source->last ? &source->last->newer_of_source : &source->first) = c;
	source->last = c;
}

static void leave_source(struct hs_half_open *all, struct hs_connection *c)
{
	struct hs_source *source = c->source;
	c->source = NULL;
	*(c->older_of_source ? &c->older_of_source->newer_of_source : &source->first) =
		c->newer_of_source;
	*(c->newer_of_source ? &c->newer_of_source->older_of_source : &source->last) =
		c->older_of_source;
	if (!--source->count)
		free_source(all, source);
}

void hs_half_open_end(struct hs_connection *c)
{
	struct hs_half_open *all = c->q->handshakes;
	if (!c->is_half_open)
		return;
	c->is_half_open = 0;
	c->q->half_open--;
	*(c->older ? &c->older->newer : &all->first) = c->newer;
	*(c->newer ? &c->newer->older : &all->last) = c->older;
	if (c->source)
		leave_source(all, c);
}

/* --- replacing handshakes --------------------------------------------------------------------- */

static uint16_t port_of(const union hs_address *address)
{
	return address->any.sa_family == AF_INET ? address->v4.sin_port : address->v6.sin6_port;
}

static int is_port_busy(const struct hs_source *source, const union hs_address *remote)
{
	const struct hs_connection *c = source->first;
	while (c && !(port_of(&c->path->remote) == port_of(remote) &&
		      !memcmp(&c->path->remote, remote, hs_address_bytes(remote))))
		c = c->newer_of_source;
	return c != NULL;
}

static int may_replace(const struct hs_quic *q, struct hs_source *source,
		       const union hs_address *remote)
{
	uint32_t most = REPLACEMENTS_PER_SECOND;
	if (q->now_ns - source->second_began_ns >= SECOND_NS) {
		source->second_began_ns = q->now_ns;
		source->replacements = 0;
	}
	if (is_port_busy(source, remote)) {
		if (q->now_ns - source->first->began_ns < REPLACED_AFTER_NS)
			return 0;
		most = REPLACEMENTS_OF_BUSY_PORTS;
	}
	if (source->replacements >= most)
		return 0;
	source->replacements++;
	return 1;
}

int hs_half_open_make_room(struct hs_quic *q, const struct hs_quic_config *config,
			   const union hs_address *remote, int is_proven,
			   struct hs_connection **replaced)
{
	struct hs_half_open *all = q->handshakes;
	struct hs_source *source = is_proven ? find_source(all, remote) : NULL;
	if (source && source->count >= config->half_open_per_source) {
		if (!may_replace(q, source, remote))
			return -1;
		*replaced = source->first;
		return 0;
	}
	if (q->half_open >= MOST_HALF_OPEN || q->connection_count >= config->max_connections) {
		if (!all->first)
			return -1;
		*replaced = all->first;
	}
	return 0;
}
