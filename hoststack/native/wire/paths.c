/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/paths.h"

#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "memory/mix.h"

enum { LEAST_BUCKETS = 64 };

socklen_t hs_address_bytes(const union hs_address *address)
{
	return address->any.sa_family == AF_INET ? sizeof(address->v4) : sizeof(address->v6);
}

void hs_address_fill(union hs_address *out, uint8_t ip_version, const uint8_t *ip, uint16_t port,
		     uint32_t scope)
{
	memset(out, 0, sizeof(*out));
	if (ip_version == 4) {
		out->v4.sin_family = AF_INET;
		out->v4.sin_port = htons(port);
		memcpy(&out->v4.sin_addr, ip, 4);
	} else {
		out->v6.sin6_family = AF_INET6;
		out->v6.sin6_port = htons(port);
		memcpy(&out->v6.sin6_addr, ip, 16);
		if (IN6_IS_ADDR_LINKLOCAL(&out->v6.sin6_addr))
			out->v6.sin6_scope_id = scope;
	}
}

static uint32_t round_up(uint32_t n)
{
	uint32_t size = LEAST_BUCKETS;
	while (size < n)
		size <<= 1;
	return size;
}

int hs_paths_init(struct hs_paths *paths, uint32_t capacity)
{
	memset(paths, 0, sizeof(*paths));
	uint32_t buckets = round_up(capacity);
	paths->capacity = capacity;
	paths->burst = 1;
	paths->asking_end = &paths->first_asking;
	paths->bucket_mask = buckets - 1;
	paths->by_id = calloc(capacity, sizeof(*paths->by_id));
	paths->by_key = calloc(buckets, sizeof(*paths->by_key));
	paths->by_address = calloc(buckets, sizeof(*paths->by_address));
	if (!paths->by_id || !paths->by_key || !paths->by_address ||
	    getrandom(paths->seed, sizeof(paths->seed), 0) != sizeof(paths->seed)) {
		hs_paths_free(paths);
		return -1;
	}
	return 0;
}

void hs_paths_free(struct hs_paths *paths)
{
	for (uint32_t i = 0; paths->by_id && i < paths->count; i++)
		free(paths->by_id[i]);
	free(paths->by_id);
	free(paths->by_key);
	free(paths->by_address);
	memset(paths, 0, sizeof(*paths));
}

/* Keyed, so that an attacker can't choose addresses that all fall into one bucket. */
static uint32_t hash(const struct hs_paths *paths, const void *data, size_t bytes)
{
	const uint8_t *at = data;
	uint64_t h = paths->seed[0] ^ bytes;
	for (; bytes >= 8; at += 8, bytes -= 8) {
		uint64_t word;
		memcpy(&word, at, 8);
		h = hs_mix(h ^ word, paths->seed[1] | 1);
	}
	uint64_t rest = 0;
	memcpy(&rest, at, bytes);
	h = hs_mix(h ^ rest, paths->seed[1] | 1);
	return (uint32_t)(h ^ h >> 32) & paths->bucket_mask;
}

static int is_same(const union hs_address *a, const union hs_address *b)
{
	if (a->any.sa_family != b->any.sa_family)
		return 0;
	if (a->any.sa_family == AF_INET)
		return a->v4.sin_port == b->v4.sin_port &&
		       a->v4.sin_addr.s_addr == b->v4.sin_addr.s_addr;
	return a->v6.sin6_port == b->v6.sin6_port && a->v6.sin6_scope_id == b->v6.sin6_scope_id &&
	       !memcmp(&a->v6.sin6_addr, &b->v6.sin6_addr, sizeof(a->v6.sin6_addr));
}

static uint32_t address_bucket(const struct hs_paths *paths, const union hs_address *local,
			       const union hs_address *remote)
{
	uint8_t packed[2 * (2 + 16)] = { 0 };
	const union hs_address *sides[] = { local, remote };
	for (int i = 0; i < 2; i++) {
		uint8_t *at = packed + 18 * i;
		if (sides[i]->any.sa_family == AF_INET) {
			memcpy(at, &sides[i]->v4.sin_port, 2);
			memcpy(at + 2, &sides[i]->v4.sin_addr, 4);
		} else {
			memcpy(at, &sides[i]->v6.sin6_port, 2);
			memcpy(at + 2, &sides[i]->v6.sin6_addr, 16);
		}
	}
	return hash(paths, packed, sizeof(packed));
}

struct hs_path *hs_paths_by_id(const struct hs_paths *paths, uint32_t id)
{
	return id < paths->count ? paths->by_id[id] : NULL;
}

/* --- the order of use ------------------------------------------------------------------------- */

static void put_newest(struct hs_paths *paths, struct hs_path *path)
{
	path->newer = NULL;
	path->older = paths->newest;
	*(paths->newest ? &paths->newest->newer : &paths->oldest) = path;
	paths->newest = path;
	paths->unused++;
}

static void take_out(struct hs_paths *paths, struct hs_path *path)
{
	*(path->older ? &path->older->newer : &paths->oldest) = path->newer;
	*(path->newer ? &path->newer->older : &paths->newest) = path->older;
	paths->unused--;
}

void hs_paths_hold(struct hs_paths *paths, struct hs_path *path)
{
	if (!path->references++)
		take_out(paths, path);
}

void hs_paths_let_go(struct hs_paths *paths, struct hs_path *path)
{
	if (!--path->references)
		put_newest(paths, path);
}

void hs_paths_begin_burst(struct hs_paths *paths)
{
	paths->burst++;
}

/* A path that was returned stays valid until the end of the burst. */
static struct hs_path *found(struct hs_paths *paths, struct hs_path *path)
{
	if (!path || path->burst == paths->burst)
		return path;
	path->burst = paths->burst;
	if (!path->references) {
		take_out(paths, path);
		put_newest(paths, path);
	}
	return path;
}

/* --- look-up ---------------------------------------------------------------------------------- */

struct hs_path *hs_paths_by_key(struct hs_paths *paths, const uint8_t *key)
{
	/* Most datagrams of a burst belong to one path. */
	if (paths->last && !memcmp(paths->last->key, key, HS_PATH_KEY_BYTES))
		return found(paths, paths->last);
	struct hs_path *path = paths->by_key[hash(paths, key, HS_PATH_KEY_BYTES)];
	while (path && memcmp(path->key, key, HS_PATH_KEY_BYTES))
		path = path->next_by_key;
	if (path)
		paths->last = path;
	return found(paths, path);
}

struct hs_path *hs_paths_by_address(struct hs_paths *paths, const union hs_address *local,
				    const union hs_address *remote)
{
	struct hs_path *path = paths->by_address[address_bucket(paths, local, remote)];
	while (path && !(is_same(&path->local, local) && is_same(&path->remote, remote)))
		path = path->next_by_address;
	return found(paths, path);
}

/* --- keys ------------------------------------------------------------------------------------- */

void hs_paths_drop_key(struct hs_paths *paths, struct hs_path *path)
{
	if (!path->has_key)
		return;
	struct hs_path **at = &paths->by_key[hash(paths, path->key, HS_PATH_KEY_BYTES)];
	while (*at != path)
		at = &(*at)->next_by_key;
	*at = path->next_by_key;
	path->has_key = 0;
	if (paths->last == path)
		paths->last = NULL;
}

void hs_paths_set_key(struct hs_paths *paths, struct hs_path *path, const uint8_t *key)
{
	struct hs_path *other = hs_paths_by_key(paths, key);
	if (other == path)
		return;
	if (other)
		hs_paths_drop_key(paths, other);
	hs_paths_drop_key(paths, path);
	memcpy(path->key, key, HS_PATH_KEY_BYTES);
	struct hs_path **bucket = &paths->by_key[hash(paths, key, HS_PATH_KEY_BYTES)];
	path->next_by_key = *bucket;
	*bucket = path;
	path->has_key = path->has_come = 1;
}

/* --- paths without a next hop ----------------------------------------------------------------- */

void hs_paths_ask(struct hs_paths *paths, struct hs_path *path)
{
	if (path->is_asking)
		return;
	path->is_asking = 1;
	path->next_asking = NULL;
	*paths->asking_end = path;
	paths->asking_end = &path->next_asking;
}

struct hs_path *hs_paths_take_asking(struct hs_paths *paths)
{
	struct hs_path *path = paths->first_asking;
	if (!path)
		return NULL;
	paths->first_asking = path->next_asking;
	if (!paths->first_asking)
		paths->asking_end = &paths->first_asking;
	path->is_asking = 0;
	return path;
}

/* --- adding and replacing --------------------------------------------------------------------- */

/* Remove the path that was unused for longest. Returns NULL if all are in use. */
static struct hs_path *evict(struct hs_paths *paths)
{
	struct hs_path *path = paths->oldest;
	while (path && (path->burst == paths->burst || path->is_asking))
		path = path->newer;
	if (!path)
		return NULL;
	take_out(paths, path);
	hs_paths_drop_key(paths, path);
	struct hs_path **at =
		&paths->by_address[address_bucket(paths, &path->local, &path->remote)];
	while (*at != path)
		at = &(*at)->next_by_address;
	*at = path->next_by_address;
	return path;
}

struct hs_path *hs_paths_add(struct hs_paths *paths, const union hs_address *local,
			     const union hs_address *remote)
{
	struct hs_path *path = hs_paths_by_address(paths, local, remote);
	if (path)
		return path;
	int is_full = paths->count == paths->capacity;
	path = is_full || paths->unused >= HS_PATHS_MOST_UNUSED ? evict(paths) : NULL;
	uint32_t id = path ? path->id : paths->count;
	if (!path) {
		path = is_full ? NULL : malloc(sizeof(*path));
		if (!path)
			return NULL;
		paths->by_id[paths->count++] = path;
	}
	memset(path, 0, sizeof(*path));
	path->id = id;
	path->burst = paths->burst;
	path->fd = -1;
	path->local = *local;
	path->remote = *remote;
	struct hs_path **bucket = &paths->by_address[address_bucket(paths, local, remote)];
	path->next_by_address = *bucket;
	*bucket = path;
	put_newest(paths, path);
	return path;
}
