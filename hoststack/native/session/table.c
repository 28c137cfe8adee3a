/* SPDX-License-Identifier: Apache-2.0 */
#include "session/table.h"

#include <stdlib.h>

enum { LEAST_ROOM = 64 };

static uint32_t slot_of(const struct hs_table *table, uint64_t handle)
{
	return (uint32_t)((handle * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (table->room - 1);
}

/* The slot of a handle, or the free one where it would be. */
static uint32_t find(const struct hs_table *table, uint64_t handle)
{
	uint32_t at = slot_of(table, handle);
	while (table->slots[at].object && table->slots[at].handle != handle)
		at = (at + 1) & (table->room - 1);
	return at;
}

void *hs_table_get(const struct hs_table *table, uint64_t handle)
{
	return table->room ? table->slots[find(table, handle)].object : NULL;
}

static int grow(struct hs_table *table)
{
	struct hs_table bigger = { .room = table->room ? table->room * 2 : LEAST_ROOM };
	bigger.slots = calloc(bigger.room, sizeof(*bigger.slots));
	if (!bigger.slots)
		return -1;
	for (uint32_t i = 0; i < table->room; i++) {
		if (table->slots[i].object)
			bigger.slots[find(&bigger, table->slots[i].handle)] = table->slots[i];
	}
	bigger.count = table->count;
	free(table->slots);
	*table = bigger;
	return 0;
}

int hs_table_add(struct hs_table *table, uint64_t handle, void *object)
{
	/* At least a quarter is free, so that searches end soon. */
	if ((table->count + 1) * 4 > table->room * 3 && grow(table))
		return -1;
	table->slots[find(table, handle)] = (struct hs_table_slot){ handle, object };
	table->count++;
	return 0;
}

void hs_table_remove(struct hs_table *table, uint64_t handle)
{
	if (!hs_table_get(table, handle))
		return;
	uint32_t hole = find(table, handle), mask = table->room - 1;
	/* Move up what a search would no longer reach. */
	for (uint32_t at = (hole + 1) & mask; table->slots[at].object; at = (at + 1) & mask) {
		uint32_t home = slot_of(table, table->slots[at].handle);
		if (((at - home) & mask) >= ((at - hole) & mask)) {
			table->slots[hole] = table->slots[at];
			hole = at;
		}
	}
	table->slots[hole] = (struct hs_table_slot){ 0, NULL };
	table->count--;
}

void hs_table_free(struct hs_table *table)
{
	free(table->slots);
	*table = (struct hs_table){ NULL, 0, 0 };
}
