/* SPDX-License-Identifier: Apache-2.0
 *
 * In front of the plane's pool (session/pool.c; --wrap): each FIFO has memory of its exact size
 * from the heap, so that a use behind its end, or after it was given back, is seen.
 */
#include "session/internal.h"

#include "fuzz.h"

void *__wrap_hs_pool_take(struct hs_pool *pool, uint64_t size_bytes, uint64_t *block_bytes);
void __wrap_hs_pool_give(struct hs_pool *pool, void *block, uint64_t size_bytes,
			 uint64_t used_bytes);

void *__wrap_hs_pool_take(struct hs_pool *pool, uint64_t size_bytes, uint64_t *block_bytes)
{
	(void)pool;
	*block_bytes = HS_FIFO_HEADER_BYTES + hs_pool_rounded(size_bytes);
	return take_memory(*block_bytes);
}

void __wrap_hs_pool_give(struct hs_pool *pool, void *block, uint64_t size_bytes,
			 uint64_t used_bytes)
{
	(void)pool, (void)used_bytes;
	CHECK(hs_pool_rounded(size_bytes) == size_bytes);
	free(block);
}
