/* SPDX-License-Identifier: Apache-2.0
 *
 * A table of objects by handle.
 */
#ifndef HS_SESSION_TABLE_H
#define HS_SESSION_TABLE_H

#include <stdint.h>

struct hs_table_slot {
	uint64_t handle;
	void *object; /* NULL: free */
};

/* Starts as zeros. */
struct hs_table {
	struct hs_table_slot *slots;
	uint32_t room; /* 0, or a power of two */
	uint32_t count;
};

/* NULL if there is none. */
void *hs_table_get(const struct hs_table *table, uint64_t handle);
/* Add an object under a handle that has none. Returns 0, or -1 without memory. */
int hs_table_add(struct hs_table *table, uint64_t handle, void *object);
void hs_table_remove(struct hs_table *table, uint64_t handle);
void hs_table_free(struct hs_table *table);

#endif
