/* SPDX-License-Identifier: Apache-2.0
 *
 * The frames of a UMEM: which are free, and who owns the others.
 */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
	MARK = 0x80,
};

int pyxdp_frames_init(struct pyxdp_umem *umem, int debug)
{
	umem->free = calloc(umem->frame_count, sizeof(*umem->free));
	if (!umem->free)
		return -ENOMEM;
	if (debug) {
		umem->owner = malloc(umem->frame_count);
		if (!umem->owner) {
			free(umem->free);
			return -ENOMEM;
		}
	}
	for (uint32_t i = 0; i < umem->frame_count; i++) {
		/* The first frames are on top: a small load uses few pages. */
		umem->free[i] = (uint64_t)(umem->frame_count - 1 - i) << umem->frame_shift;
		if (debug)
			umem->owner[i] = PYXDP_FREE;
	}
	umem->free_count = umem->frame_count;
	pthread_mutex_init(&umem->lock, NULL);
	return 0;
}

void pyxdp_frames_destroy(struct pyxdp_umem *umem)
{
	pthread_mutex_destroy(&umem->lock);
	free(umem->owner);
	free(umem->free);
}

uint32_t pyxdp_frames_take(struct pyxdp_umem *umem, uint64_t *frames, uint32_t n, uint8_t owner)
{
	pthread_mutex_lock(&umem->lock);
	if (n > umem->free_count)
		n = umem->free_count;
	for (uint32_t i = 0; i < n; i++) {
		frames[i] = umem->free[--umem->free_count];
		if (umem->owner)
			umem->owner[frames[i] >> umem->frame_shift] = owner;
	}
	pthread_mutex_unlock(&umem->lock);
	return n;
}

void pyxdp_frames_put(struct pyxdp_umem *umem, const uint64_t *frames, uint32_t n)
{
	pthread_mutex_lock(&umem->lock);
	/* More free frames than there are means that a caller released one twice; `debug` finds
	 * which. */
	for (uint32_t i = 0; i < n && umem->free_count < umem->frame_count; i++) {
		umem->free[umem->free_count++] = frames[i];
		if (umem->owner)
			umem->owner[frames[i] >> umem->frame_shift] = PYXDP_FREE;
	}
	pthread_mutex_unlock(&umem->lock);
}

static uint8_t *owner_of(struct pyxdp_umem *umem, const uint8_t *first, size_t stride, uint32_t i)
{
	uint64_t addr;

	memcpy(&addr, first + i * stride, sizeof(addr));
	return &umem->owner[addr >> umem->frame_shift];
}

int pyxdp_frames_move(struct pyxdp_umem *umem, const void *addrs, size_t stride, uint32_t n,
		      uint8_t from, uint8_t to)
{
	int error = 0;
	uint32_t i;

	if (!umem->owner)
		return 0;
	pthread_mutex_lock(&umem->lock);
	/* The owner mark detects a frame that occurs twice. */
	for (i = 0; i < n; i++) {
		uint8_t *owner = owner_of(umem, addrs, stride, i);

		if ((*owner & MARK) || !(*owner & from)) {
			memcpy(&umem->violation.addr, (const uint8_t *)addrs + i * stride, 8);
			umem->violation.found = *owner & MARK ? to : *owner;
			umem->violation.expected = from;
			error = -EPROTO;
			break;
		}
		*owner |= MARK;
	}
	for (uint32_t done = 0; done < i; done++) {
		uint8_t *owner = owner_of(umem, addrs, stride, done);

		*owner = error ? *owner & ~MARK : to;
	}
	pthread_mutex_unlock(&umem->lock);
	return error;
}

int pyxdp_frames_violated(struct pyxdp_umem *umem, uint64_t addr, uint32_t found,
			  uint32_t expected)
{
	pthread_mutex_lock(&umem->lock);
	umem->violation =
		(struct pyxdp_violation){.addr = addr, .found = found, .expected = expected};
	pthread_mutex_unlock(&umem->lock);
	return -EPROTO;
}

uint32_t pyxdp_umem_free_frames(struct pyxdp_umem *umem)
{
	uint32_t free_count;

	pthread_mutex_lock(&umem->lock);
	free_count = umem->free_count;
	pthread_mutex_unlock(&umem->lock);
	return free_count;
}

int pyxdp_umem_owned(struct pyxdp_umem *umem, uint32_t owner)
{
	int owned = 0;

	if (!umem->owner)
		return -ENOTSUP;
	pthread_mutex_lock(&umem->lock);
	for (uint32_t i = 0; i < umem->frame_count; i++)
		owned += umem->owner[i] == owner;
	pthread_mutex_unlock(&umem->lock);
	return owned;
}

void pyxdp_umem_violation(struct pyxdp_umem *umem, struct pyxdp_violation *out)
{
	pthread_mutex_lock(&umem->lock);
	*out = umem->violation;
	pthread_mutex_unlock(&umem->lock);
}
