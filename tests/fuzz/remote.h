/* SPDX-License-Identifier: Apache-2.0
 *
 * What a worker and an application "in another process" share: two rings, and a segment that FIFOs
 * are in, which the application maps once more. Blocks that are free are poisoned for the worker's
 * side.
 */
#ifndef HS_FUZZ_REMOTE_H
#define HS_FUZZ_REMOTE_H

#include "session/internal.h"
#include "session/records.h"

enum {
	REMOTES = 3, /* at once */
	REMOTE_PAGES = 4096,
};

struct remote {
	struct hs_attached *attached; /* the application's side */
	uint8_t *down, *up; /* the rings' blocks */
	size_t ring_bytes;
	uint8_t *memory; /* of the worker: that of the segment */
	uint16_t used_pages[REMOTE_PAGES]; /* by a block's first page: how many it has */
	uint32_t segment, blocks;
	int slot;
};

/* `slot` is below REMOTES. */
void remote_begin(struct remote *r, int slot, struct hs_application *a, struct hs_side *side,
		  uint32_t ring_events);
/* After hs_attached_free. */
void remote_end(struct remote *r);
/* A block for a FIFO of out->bytes, a power of two. */
void remote_make_block(struct remote *r, struct hs_made_block *out);
void remote_free_block(struct remote *r, uint64_t place);
/* The worker's address of a block. */
uint8_t *remote_block(const struct remote *r, uint64_t place);
/* Another number for the segment, which no block is in. */
void remote_change_segment(struct remote *r);
/* Whether the application has woken the worker since this was called. */
int remote_take_wake(const struct remote *r);

#endif
