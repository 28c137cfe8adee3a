/* SPDX-License-Identifier: Apache-2.0
 *
 * The FILL ring of a queue: its lock, and which frames are pushed into it.
 *
 * Between processes the lock is one word. A thread that finds it held retries for some microseconds
 * and then gives up: the frames that a worker releases meanwhile are owed to the ring, and pushed
 * by the next call. So no process blocks on another one, whatever that does.
 */
#include "internal.h"

#include <sched.h>
#include <string.h>

enum {
	CHUNK = 64,
	/* The most frames pushed while holding the lock. */
	PUSH = 256,
	TRIES = 64,
	YIELDS = 8,
	HOLDER_BITS = 8,
};

static uint32_t holder_number(const struct pyxdp_umem *umem)
{
	return umem->worker == PYXDP_NO_WORKER ? PYXDP_MAKER : umem->worker + 1;
}

static int acquire(const struct pyxdp_umem *umem, struct pyxdp_queue *queue)
{
	uint32_t mine = ++queue->acquisitions << HOLDER_BITS | holder_number(umem);

	for (int i = 0; i < TRIES + YIELDS; i++) {
		uint32_t unlocked = 0;

		if (__atomic_compare_exchange_n(&queue->shared_lock->word, &unlocked, mine, 0,
						__ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
			queue->acquired = mine;
			return 1;
		}
		if (i >= TRIES)
			sched_yield();
	}
	return 0;
}

/* Update our copy of the indices: other processes have pushed since. Returns how many slots are
 * free, or 0 if the ring's indices are invalid. */
static uint32_t refresh(struct xsk_ring_prod *ring)
{
	uint32_t producer = __atomic_load_n(ring->producer, __ATOMIC_RELAXED);
	uint32_t used = producer - __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);

	ring->cached_prod = producer;
	return used <= ring->size ? ring->size - used : 0;
}

int pyxdp_fill_lock(struct pyxdp_umem *umem, struct pyxdp_queue *queue)
{
	pthread_mutex_lock(&queue->fill_lock);
	if (!queue->shared_lock || acquire(umem, queue))
		return 1;
	pthread_mutex_unlock(&queue->fill_lock);
	return 0;
}

void pyxdp_fill_unlock(struct pyxdp_queue *queue)
{
	if (queue->shared_lock) {
		uint32_t mine = queue->acquired;

		/* If the lock was broken meanwhile, another process may hold it by now. */
		__atomic_compare_exchange_n(&queue->shared_lock->word, &mine, 0, 0,
					    __ATOMIC_RELEASE, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&queue->fill_lock);
}

static uint32_t fill_own(struct pyxdp_queue *queue, const uint64_t *frames, uint32_t n)
{
	uint32_t start;

	/* There is room for them: the ring has more slots than the UMEM has frames. */
	if (n == 0 || xsk_ring_prod__reserve(&queue->fill, n, &start) != n)
		return 0;
	for (uint32_t i = 0; i < n; i++)
		*xsk_ring_prod__fill_addr(&queue->fill, start + i) = frames[i];
	xsk_ring_prod__submit(&queue->fill, n);
	queue->filled += n;
	return n;
}

static int has_lock_still(const struct pyxdp_queue *queue)
{
	return __atomic_load_n(&queue->shared_lock->word, __ATOMIC_ACQUIRE) == queue->acquired;
}

static void note(const struct pyxdp_umem *umem, const uint64_t *frames, uint32_t n, uint8_t holds)
{
	for (uint32_t i = 0; umem->ledger && i < n; i++)
		pyxdp_hold(umem, frames[i], holds);
}

static uint32_t fill_shared(struct pyxdp_umem *umem, struct pyxdp_queue *queue,
			    const uint64_t *frames, uint32_t n)
{
	struct xsk_ring_prod *ring = &queue->fill;
	uint32_t room = refresh(ring), start = ring->cached_prod;

	if (n > room)
		n = room;
	if (n == 0)
		return 0;
	for (uint32_t i = 0; i < n; i++)
		*xsk_ring_prod__fill_addr(ring, start + i) = frames[i];
	/* A worker killed before this line still holds all of these frames in its ledger; after
	 * it, the maker finds them in the ring, in front of its producer. */
	if (umem->ledger)
		__atomic_store_n(pyxdp_filling_to(umem->ledger, queue->id), start + n,
				 __ATOMIC_RELEASE);
	atomic_signal_fence(memory_order_seq_cst);
	note(umem, frames, n, 0);
	atomic_signal_fence(memory_order_seq_cst);
	if (!has_lock_still(queue)) {
		note(umem, frames, n, 1);
		return 0;
	}
	__atomic_store_n(ring->producer, start + n, __ATOMIC_RELEASE);
	ring->cached_prod = start + n;
	return n;
}

uint32_t pyxdp_fill(struct pyxdp_umem *umem, struct pyxdp_queue *queue, const uint64_t *frames,
		    uint32_t n)
{
	if (queue->shared_lock)
		return fill_shared(umem, queue, frames, n);
	return fill_own(queue, frames, n);
}

uint32_t pyxdp_fill_lacking(const struct pyxdp_queue *queue, uint32_t n)
{
	uint32_t filled = queue->filled;
	uint32_t lacks = filled < queue->fill_target ? queue->fill_target - filled : 0;

	return lacks < n ? lacks : n;
}

void pyxdp_fill_up(struct pyxdp_umem *umem, struct pyxdp_queue *queue)
{
	uint64_t frames[CHUNK];
	uint32_t n;

	if (!pyxdp_fill_lock(umem, queue))
		return;
	while ((n = pyxdp_fill_lacking(queue, CHUNK)) > 0) {
		n = pyxdp_frames_take(umem, frames, n, PYXDP_FILL);
		if (n == 0)
			break;
		pyxdp_fill(umem, queue, frames, n);
	}
	pyxdp_fill_unlock(queue);
}

static void mark(struct pyxdp_umem *umem, const uint64_t *frames, uint32_t n, uint8_t owner)
{
	for (uint32_t i = 0; i < n; i++)
		umem->owner[frames[i] >> umem->frame_shift] = owner;
}

/* Push as many owed frames as the ring has room for. */
static void pay(struct pyxdp_umem *umem, struct pyxdp_queue *queue)
{
	uint32_t n = queue->owed_count < PUSH ? queue->owed_count : PUSH;
	uint64_t *frames = queue->owed + queue->owed_count - n;
	uint32_t pushed;

	if (n == 0 || !pyxdp_fill_lock(umem, queue))
		return;
	mark(umem, frames, n, PYXDP_FILL);
	pushed = pyxdp_fill(umem, queue, frames, n);
	pyxdp_fill_unlock(queue);
	mark(umem, frames + pushed, n - pushed, PYXDP_RESERVED);
	memmove(frames, frames + pushed, (n - pushed) * sizeof(frames[0]));
	queue->owed_count -= pushed;
}

void pyxdp_fill_release(struct pyxdp_umem *umem, struct pyxdp_queue *queue, const void *addrs,
			size_t stride, uint32_t n)
{
	const uint8_t *next = addrs;

	/* Each frame of the queue is owed at most once, so there is room for all. */
	for (uint32_t i = 0; i < n && queue->owed_count < umem->shape.rx_frames; i++, next += stride)
		queue->owed[queue->owed_count++] =
			pyxdp_frame_of(umem, *(const uint64_t *)(const void *)next);
	pay(umem, queue);
}

void pyxdp_fill_first(struct pyxdp_umem *umem, struct pyxdp_queue *queue)
{
	uint32_t first = pyxdp_first_rx(umem, queue->id);

	/* The ring has no other user yet: workers start later. */
	if (!pyxdp_fill_lock(umem, queue))
		return;
	for (uint32_t frame = first; frame < first + umem->shape.rx_frames; frame++) {
		uint64_t addr = (uint64_t)frame << umem->frame_shift;

		pyxdp_fill(umem, queue, &addr, 1);
	}
	pyxdp_fill_unlock(queue);
}
