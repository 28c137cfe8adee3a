/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "session/segments.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>

#include "memory/fifo.h"
#include "session/attached.h"
#include "session/records.h"

static struct hs_segment *segment_of(struct hs_segment *list, uint32_t number)
{
	while (list && list->number != number)
		list = list->next;
	return list;
}

static void drop(struct hs_segment **list, struct hs_segment *segment)
{
	struct hs_segment **link = list;
	while (*link != segment)
		link = &(*link)->next;
	*link = segment->next;
	if (segment->base)
		munmap(segment->base, segment->bytes);
	free(segment);
}

/* A segment that the worker could shrink could end this process (SIGBUS). */
static int map(struct hs_segment *segment, int fd)
{
	struct stat about;
	int seals = fcntl(fd, F_GET_SEALS);
	if (seals < 0 || !(seals & F_SEAL_SHRINK) || fstat(fd, &about) || about.st_size <= 0)
		return EINVAL;
	void *base = mmap(NULL, (size_t)about.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (base == MAP_FAILED)
		return errno;
	segment->base = base;
	segment->bytes = (size_t)about.st_size;
	return 0;
}

int hs_segments_add(struct hs_segment **list, uint32_t number, int fd)
{
	struct hs_segment *segment = calloc(1, sizeof(*segment));
	if (!segment)
		return ENOMEM;
	segment->number = number;
	segment->next = *list;
	*list = segment;
	return fd < 0 ? EMFILE : map(segment, fd);
}

void hs_segments_remove(struct hs_segment **list, uint32_t number)
{
	struct hs_segment *segment = segment_of(*list, number);
	if (!segment)
		return;
	segment->is_gone = 1;
	if (!segment->blocks)
		drop(list, segment);
}

int hs_segments_find(struct hs_segment *list, uint64_t place, struct hs_segment **segment,
		     uint8_t **block, size_t *block_bytes)
{
	uint32_t log = place & ((1 << HS_PLACE_LOG_BITS) - 1);
	uint64_t page = (place >> HS_PLACE_LOG_BITS) & ((1 << HS_PLACE_PAGE_BITS) - 1);
	struct hs_segment *found =
		segment_of(list, (uint32_t)(place >> (HS_PLACE_LOG_BITS + HS_PLACE_PAGE_BITS)));
	if (!found || found->is_gone || log < HS_PLACE_LEAST_LOG || log > HS_PLACE_MOST_LOG)
		return HS_ATTACHED_INVALID;
	if (!found->base)
		return EMFILE;
	uint64_t start = page * HS_PLACE_PAGE_BYTES;
	uint64_t bytes = HS_FIFO_HEADER_BYTES + (UINT64_C(1) << log);
	if (start + bytes > found->bytes)
		return HS_ATTACHED_INVALID;
	*segment = found;
	*block = found->base + start;
	*block_bytes = bytes;
	return 0;
}

void hs_segments_unuse(struct hs_segment **list, struct hs_segment **segment)
{
	if (*segment && !--(*segment)->blocks && (*segment)->is_gone)
		drop(list, *segment);
	*segment = NULL;
}

void hs_segments_free(struct hs_segment **list)
{
	while (*list)
		drop(list, *list);
}
