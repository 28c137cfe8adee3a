/* SPDX-License-Identifier: Apache-2.0
 *
 * What some streams of a connection may send in all.
 */
#include "session/internal.h"

#include <stdlib.h>

struct hs_allowance *hs_allowance_new(uint64_t most_bytes)
{
	struct hs_allowance *a = calloc(1, sizeof(*a));
	if (!a)
		return NULL;
	a->most_bytes = most_bytes;
	atomic_init(&a->references, 1);
	return a;
}

void hs_allowance_release(struct hs_allowance *a)
{
	if (atomic_fetch_sub(&a->references, 1) == 1)
		free(a);
}

uint64_t hs_allowance_left(const struct hs_allowance *a)
{
	return a->most_bytes - a->used_bytes;
}

void hs_end_set_allowance(struct hs_end *end, struct hs_allowance *a)
{
	if (end->allowance || !end->tx)
		return;
	atomic_fetch_add(&a->references, 1);
	end->allowance = a;
	end->allowance_from = end->tx->tail;
}

void hs_allowance_use(struct hs_end *end, uint64_t bytes)
{
	if (!end->allowance)
		return;
	end->allowance->used_bytes += bytes;
	end->used_bytes += bytes;
}

int hs_allowance_settle(struct hs_end *end, uint64_t sent)
{
	if (!end->allowance)
		return 0;
	uint64_t used = sent > end->allowance_from ? sent - end->allowance_from : 0;
	uint64_t unused = end->used_bytes > used ? end->used_bytes - used : 0;
	end->used_bytes = 0;
	end->allowance->used_bytes -= unused;
	return unused > 0;
}

void hs_allowance_leave(struct hs_end *end)
{
	if (end->allowance)
		hs_allowance_release(end->allowance);
	end->allowance = NULL;
}
