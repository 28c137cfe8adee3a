/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "remote.h"

#include "fuzz.h"

#include <fcntl.h>
#include <sanitizer/asan_interface.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PAGE_BYTES = HS_PLACE_PAGE_BYTES };

/* What lasts from one input to the next. */
static struct kept {
	uint8_t *memory; /* NULL: none yet */
	int fd, worker_fd, application_fd;
} kept[REMOTES];

static void keep(struct kept *k)
{
	int ends[2];
	if (k->memory)
		return;
	k->fd = memfd_create("fuzz", MFD_ALLOW_SEALING | MFD_CLOEXEC);
	CHECK(k->fd >= 0 && !ftruncate(k->fd, (off_t)REMOTE_PAGES * PAGE_BYTES));
	CHECK(!fcntl(k->fd, F_ADD_SEALS, F_SEAL_SHRINK));
	k->memory = mmap(NULL, (size_t)REMOTE_PAGES * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
			 k->fd, 0);
	CHECK(k->memory != MAP_FAILED);
	ASAN_POISON_MEMORY_REGION(k->memory, (size_t)REMOTE_PAGES * PAGE_BYTES);
	CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends));
	k->worker_fd = ends[0];
	k->application_fd = ends[1];
}

void remote_begin(struct remote *r, int slot, struct hs_application *a, struct hs_side *side,
		  uint32_t ring_events)
{
	CHECK(slot < REMOTES);
	keep(&kept[slot]);
	memset(r, 0, sizeof(*r));
	r->slot = slot;
	r->memory = kept[slot].memory;
	remote_take_wake(r);
	r->ring_bytes = HS_EVENT_RING_HEADER_BYTES + (size_t)ring_events * HS_EVENT_BYTES;
	r->down = take_memory(r->ring_bytes);
	r->up = take_memory(r->ring_bytes);
	CHECK(!hs_application_set_rings(a, r->down, r->up, r->ring_bytes));
	r->attached = hs_attached_new(side, r->down, r->up, r->ring_bytes,
				      kept[slot].application_fd);
	CHECK(r->attached);
	r->segment = 1;
	CHECK(!hs_attached_add_segment(r->attached, r->segment, kept[slot].fd));
}

void remote_make_block(struct remote *r, struct hs_made_block *out)
{
	uint64_t bytes = HS_FIFO_HEADER_BYTES + out->bytes;
	uint32_t pages = (uint32_t)((bytes + PAGE_BYTES - 1) / PAGE_BYTES), page = 0;
	for (uint32_t i = page; i < page + pages; i++) {
		CHECK(i < REMOTE_PAGES);
		if (r->used_pages[i])
			page = i + r->used_pages[i], i = page - 1;
	}
	r->used_pages[page] = (uint16_t)pages;
	r->blocks++;
	out->address = (uint64_t)(uintptr_t)(r->memory + (size_t)page * PAGE_BYTES);
	out->place = (uint64_t)r->segment << (HS_PLACE_LOG_BITS + HS_PLACE_PAGE_BITS) |
		     (uint64_t)page << HS_PLACE_LOG_BITS | (uint64_t)__builtin_ctzll(out->bytes);
	out->bytes = bytes;
	ASAN_UNPOISON_MEMORY_REGION((void *)(uintptr_t)out->address, bytes);
}

static uint32_t page_of(const struct remote *r, uint64_t place)
{
	uint32_t page = (uint32_t)(place >> HS_PLACE_LOG_BITS) & ((1 << HS_PLACE_PAGE_BITS) - 1);
	CHECK(place >> (HS_PLACE_LOG_BITS + HS_PLACE_PAGE_BITS) == r->segment);
	CHECK(page < REMOTE_PAGES && r->used_pages[page]);
	return page;
}

uint8_t *remote_block(const struct remote *r, uint64_t place)
{
	return r->memory + (size_t)page_of(r, place) * PAGE_BYTES;
}

void remote_free_block(struct remote *r, uint64_t place)
{
	uint32_t page = page_of(r, place);
	ASAN_POISON_MEMORY_REGION(r->memory + (size_t)page * PAGE_BYTES,
				  (size_t)r->used_pages[page] * PAGE_BYTES);
	r->used_pages[page] = 0;
	r->blocks--;
}

void remote_end(struct remote *r)
{
	for (uint32_t page = 0; page < REMOTE_PAGES; page++) {
		if (r->used_pages[page])
			ASAN_POISON_MEMORY_REGION(r->memory + (size_t)page * PAGE_BYTES,
						  (size_t)r->used_pages[page] * PAGE_BYTES);
	}
	free(r->down);
	free(r->up);
}

void remote_change_segment(struct remote *r)
{
	CHECK(!r->blocks);
	hs_attached_remove_segment(r->attached, r->segment);
	r->segment++;
	CHECK(!hs_attached_add_segment(r->attached, r->segment, kept[r->slot].fd));
}

int remote_take_wake(const struct remote *r)
{
	char bytes[64];
	int has = 0;
	while (recv(kept[r->slot].worker_fd, bytes, sizeof(bytes), MSG_DONTWAIT) > 0)
		has = 1;
	return has;
}
