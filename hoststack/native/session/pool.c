/* SPDX-License-Identifier: Apache-2.0
 *
 * What was given back last is taken first: its pages are there, and in the cache. Pages that were
 * never written cost nothing.
 */
#define _GNU_SOURCE
#include "session/internal.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
	LEAST_LOG = 10, /* of a FIFO's size */
	MOST_LOG = 32,
	CLASSES = MOST_LOG - LEAST_LOG + 1,
	PAGE_BYTES = 4096,
	ARENA_BYTES = 8 << 20,
	/* What is given back with more than WARM_BYTES written keeps its pages only if there are
	 * few of its kind, and with less if there are not very many. */
	WARM_BYTES = 32 << 10,
	FEW = 8,
	MANY = 512,
};

struct arena {
	struct arena *next;
	void *memory;
	size_t bytes;
};

struct class {
	void **free;
	uint32_t count, room;
};

struct hs_pool {
	struct arena *arenas;
	struct class classes[CLASSES];
};

struct hs_pool *hs_pool_new(void)
{
	return calloc(1, sizeof(struct hs_pool));
}

void hs_pool_free(struct hs_pool *pool)
{
	while (pool->arenas) {
		struct arena *arena = pool->arenas;
		pool->arenas = arena->next;
		munmap(arena->memory, arena->bytes);
		free(arena);
	}
	for (int i = 0; i < CLASSES; i++)
		free(pool->classes[i].free);
	free(pool);
}

static int log_of(uint64_t bytes)
{
	int log = LEAST_LOG;
	while (log < MOST_LOG && (UINT64_C(1) << log) < bytes)
		log++;
	return log;
}

uint64_t hs_pool_rounded(uint64_t bytes)
{
	return UINT64_C(1) << log_of(bytes);
}

static size_t stride_of(uint64_t size_bytes)
{
	uint64_t block = HS_FIFO_HEADER_BYTES + size_bytes;
	return (size_t)((block + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES);
}

static int keep(struct class *class, void *block)
{
	if (class->count == class->room) {
		uint32_t room = class->room ? class->room * 2 : 64;
		void *grown = realloc(class->free, room * sizeof(void *));
		if (!grown)
			return -1;
		class->free = grown;
		class->room = room;
	}
	class->free[class->count++] = block;
	return 0;
}

static int fill(struct hs_pool *pool, struct class *class, size_t stride)
{
	size_t count = stride < ARENA_BYTES ? ARENA_BYTES / stride : 1;
	struct arena *arena = malloc(sizeof(*arena));
	if (!arena)
		return -1;
	arena->bytes = count * stride;
	arena->memory = mmap(NULL, arena->bytes, PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (arena->memory == MAP_FAILED) {
		free(arena);
		return -1;
	}
	arena->next = pool->arenas;
	pool->arenas = arena;
	for (size_t i = count; i-- > 0;) {
		if (keep(class, (uint8_t *)arena->memory + i * stride))
			break;
	}
	return class->count ? 0 : -1;
}

void *hs_pool_take(struct hs_pool *pool, uint64_t size_bytes, uint64_t *block_bytes)
{
	int log = log_of(size_bytes);
	struct class *class = &pool->classes[log - LEAST_LOG];
	*block_bytes = HS_FIFO_HEADER_BYTES + (UINT64_C(1) << log);
	if (!class->count && fill(pool, class, stride_of(UINT64_C(1) << log)))
		return NULL;
	void *block = class->free[--class->count];
	memset(block, 0, HS_FIFO_HEADER_BYTES);
	return block;
}

void hs_pool_give(struct hs_pool *pool, void *block, uint64_t size_bytes, uint64_t used_bytes)
{
	int log = log_of(size_bytes);
	struct class *class = &pool->classes[log - LEAST_LOG];
	if (class->count >= (used_bytes > WARM_BYTES ? FEW : MANY))
		madvise(block, stride_of(UINT64_C(1) << log), MADV_DONTNEED);
	/* Without memory for the list the block is lost until the pool is freed. */
	(void)keep(class, block);
}
