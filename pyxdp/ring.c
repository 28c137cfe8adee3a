/* SPDX-License-Identifier: Apache-2.0 */
#include "ring.h"

#include <errno.h>
#include <linux/bpf.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

/* The kernel maps a page with our position, one with its own, and the data twice in a row, so that
 * every record is in one piece. */
struct pyxdp_ring {
	uint64_t *consumed;
	const uint64_t *produced; /* the data is a page further */
	const uint8_t *data;
	uint32_t size_bytes;
	uint32_t page_bytes;
};

static size_t data_map_bytes(const struct pyxdp_ring *ring)
{
	return ring->page_bytes + 2 * (size_t)ring->size_bytes;
}

int pyxdp_ring_open(int map_fd, uint32_t size_bytes, struct pyxdp_ring **out)
{
	struct pyxdp_ring *ring = calloc(1, sizeof(*ring));
	void *ours, *theirs;
	int error;

	if (!ring)
		return -ENOMEM;
	ring->size_bytes = size_bytes;
	ring->page_bytes = (uint32_t)sysconf(_SC_PAGESIZE);
	ours = mmap(NULL, ring->page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, map_fd, 0);
	if (ours == MAP_FAILED) {
		error = errno;
		free(ring);
		return -error;
	}
	theirs = mmap(NULL, data_map_bytes(ring), PROT_READ, MAP_SHARED, map_fd, ring->page_bytes);
	if (theirs == MAP_FAILED) {
		error = errno;
		munmap(ours, ring->page_bytes);
		free(ring);
		return -error;
	}
	ring->consumed = ours;
	ring->produced = theirs;
	ring->data = (const uint8_t *)theirs + ring->page_bytes;
	*out = ring;
	return 0;
}

static uint32_t padded(uint32_t bytes)
{
	return (bytes + 7) & ~7u;
}

int64_t pyxdp_ring_read(struct pyxdp_ring *ring, uint8_t *into, uint32_t room_bytes)
{
	uint64_t end = __atomic_load_n(ring->produced, __ATOMIC_ACQUIRE);
	uint64_t at = *ring->consumed; /* we alone write it */
	uint32_t written = 0;
	int is_full = 0;

	while (at < end) {
		const uint8_t *record = ring->data + (at & (ring->size_bytes - 1));
		uint32_t head = __atomic_load_n((const uint32_t *)record, __ATOMIC_ACQUIRE);
		uint32_t bytes = head & ~(BPF_RINGBUF_BUSY_BIT | BPF_RINGBUF_DISCARD_BIT);
		uint32_t needed = padded(sizeof(bytes) + bytes);

		if (head & BPF_RINGBUF_BUSY_BIT)
			break;
		if (bytes > ring->size_bytes - BPF_RINGBUF_HDR_SZ)
			return -EPROTO;
		if (!(head & BPF_RINGBUF_DISCARD_BIT)) {
			is_full = needed > room_bytes - written;
			if (is_full)
				break;
			memcpy(into + written, &bytes, sizeof(bytes));
			memcpy(into + written + sizeof(bytes), record + BPF_RINGBUF_HDR_SZ, bytes);
			written += needed;
		}
		at += padded(BPF_RINGBUF_HDR_SZ + bytes);
	}
	__atomic_store_n(ring->consumed, at, __ATOMIC_RELEASE);
	return is_full && !written ? -EMSGSIZE : (int64_t)written;
}

void pyxdp_ring_close(struct pyxdp_ring *ring)
{
	munmap(ring->consumed, ring->page_bytes);
	munmap((void *)ring->produced, data_map_bytes(ring));
	free(ring);
}
