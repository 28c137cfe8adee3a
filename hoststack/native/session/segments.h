/* SPDX-License-Identifier: Apache-2.0
 *
 * The segments of FIFOs of a worker in another process, mapped here, in a list.
 */
#ifndef HS_SESSION_SEGMENTS_H
#define HS_SESSION_SEGMENTS_H

#include <stddef.h>
#include <stdint.h>

struct hs_segment {
	struct hs_segment *next;
	uint8_t *base; /* NULL: this process had no room for it */
	size_t bytes;
	uint32_t number;
	uint32_t blocks; /* in use here */
	uint8_t is_gone; /* for the worker; it stays mapped while blocks are in use */
};

/* Map a segment's memfd; the descriptor stays the caller's. Returns 0 or an errno: EMFILE for a
 * negative descriptor, which the kernel has dropped, EINVAL if the worker could shrink it. */
int hs_segments_add(struct hs_segment **list, uint32_t number, int fd);
void hs_segments_remove(struct hs_segment **list, uint32_t number);
/* Find a FIFO's block. Returns 0, EMFILE if this process has no room for it, or
 * HS_ATTACHED_INVALID. */
int hs_segments_find(struct hs_segment *list, uint64_t place, struct hs_segment **segment,
		     uint8_t **block, size_t *block_bytes);
/* A block of it, if there is one, is no longer in use; *segment becomes NULL. */
void hs_segments_unuse(struct hs_segment **list, struct hs_segment **segment);
void hs_segments_free(struct hs_segment **list);

#endif
