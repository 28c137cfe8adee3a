/* SPDX-License-Identifier: Apache-2.0
 *
 * What a dead worker leaves behind. That worker wrote all of it, and other workers write next to
 * it: it is searched for valid entries only, within bounds known here.
 */
#include "internal.h"

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

enum {
	CHUNK = 64,
	TRIES = 64,
	HOLDER_MASK = PYXDP_HOLDERS - 1,
};

/* The search through one queue's frames, while its FILL ring's lock is held. */
struct look {
	struct pyxdp_umem *umem;
	struct pyxdp_queue *queue;
	struct pyxdp_ledger *ledger; /* the dead worker's */
	uint32_t worker;
	uint32_t first; /* of the queue's frames */
	uint32_t n;
	int is_ring_lost; /* the FILL ring's indices were invalid, and it was emptied */
	uint8_t *seen; /* which of them are in a ring, or with another worker */
};

/* Whether the lock may be acquired: it is free, or its holder is the dead worker or does not
 * exist. */
static int is_free(const struct pyxdp_umem *umem, uint32_t word, uint32_t dead)
{
	uint32_t holder = word & HOLDER_MASK;

	return holder == 0 || holder == dead || holder > umem->shape.workers;
}

/* Returns 1 with the lock; `*was_dead` is whether the dead worker held it. */
static int take_lock(struct look *look, int *was_dead)
{
	struct pyxdp_queue *queue = look->queue;
	uint32_t dead = look->worker + 1;
	uint32_t mine = ++queue->acquisitions << 8 | PYXDP_MAKER;

	pthread_mutex_lock(&queue->fill_lock);
	for (int i = 0; i < TRIES; i++) {
		uint32_t word = __atomic_load_n(&queue->shared_lock->word, __ATOMIC_RELAXED);

		if (!is_free(look->umem, word, dead)) {
			sched_yield();
			continue;
		}
		if (__atomic_compare_exchange_n(&queue->shared_lock->word, &word, mine, 0,
						__ATOMIC_ACQUIRE, __ATOMIC_RELAXED)) {
			queue->acquired = mine;
			*was_dead = (word & HOLDER_MASK) == dead;
			return 1;
		}
	}
	pthread_mutex_unlock(&queue->fill_lock);
	return 0;
}

static int is_of_queue(const struct look *look, uint64_t addr)
{
	return pyxdp_is_among(look->umem, addr, look->first, look->n);
}

static void see(struct look *look, uint64_t addr)
{
	if (is_of_queue(look, addr))
		look->seen[(addr >> look->umem->frame_shift) - look->first] = 1;
}

static uint64_t fill_entry(struct xsk_ring_prod *fill, uint32_t at)
{
	return __atomic_load_n(xsk_ring_prod__fill_addr(fill, at), __ATOMIC_RELAXED);
}

/* If the worker was killed during a push, the frames that it had put into the ring count as in
 * hand. */
static void find_unpushed(struct look *look)
{
	struct xsk_ring_prod *fill = &look->queue->fill;
	uint32_t start = __atomic_load_n(fill->producer, __ATOMIC_ACQUIRE);
	uint32_t n = __atomic_load_n(pyxdp_filling_to(look->ledger, look->queue->id),
				     __ATOMIC_ACQUIRE) - start;
	uint8_t *holds = pyxdp_holds(look->umem, look->ledger);

	for (uint32_t i = 0; n <= fill->size && i < n; i++) {
		uint64_t addr = fill_entry(fill, start + i);

		if (is_of_queue(look, addr))
			__atomic_store_n(&holds[addr >> look->umem->frame_shift], 1,
					 __ATOMIC_RELAXED);
	}
}

static void see_fill_ring(struct look *look)
{
	struct xsk_ring_prod *fill = &look->queue->fill;
	uint32_t consumer = __atomic_load_n(fill->consumer, __ATOMIC_ACQUIRE);
	uint32_t n = __atomic_load_n(fill->producer, __ATOMIC_ACQUIRE) - consumer;

	if (n > fill->size) {
		look->is_ring_lost = 1;
		__atomic_store_n(fill->producer, consumer, __ATOMIC_RELEASE);
		return;
	}
	for (uint32_t i = 0; i < n; i++)
		see(look, fill_entry(fill, consumer + i));
}

static void see_rx_ring(struct look *look, struct pyxdp_socket *socket)
{
	struct xsk_ring_cons *rx = &socket->rx;
	uint32_t consumer = __atomic_load_n(rx->consumer, __ATOMIC_ACQUIRE);
	uint32_t n = __atomic_load_n(rx->producer, __ATOMIC_ACQUIRE) - consumer;

	/* With invalid indices any slot may be in use. */
	if (n > rx->size)
		n = rx->size;
	for (uint32_t i = 0; i < n; i++)
		see(look, __atomic_load_n(&xsk_ring_cons__rx_desc(rx, consumer + i)->addr,
					  __ATOMIC_RELAXED));
}

/* The dead worker's own ring belongs to its successor. With invalid indices it is restarted, and
 * nothing in it counts. */
static int is_ring_sound(struct pyxdp_socket *socket)
{
	uint32_t producer = __atomic_load_n(socket->rx.producer, __ATOMIC_ACQUIRE);

	if (producer - __atomic_load_n(socket->rx.consumer, __ATOMIC_ACQUIRE) <= socket->rx.size)
		return 1;
	__atomic_store_n(socket->rx.consumer, producer, __ATOMIC_RELEASE);
	return 0;
}

/* In the order in which a frame moves, so that one that moves meanwhile is seen at its
 * destination. */
static void see_all(struct look *look, struct pyxdp_socket *own)
{
	const struct pyxdp_umem *umem = look->umem;
	struct pyxdp_socket *each;

	see_fill_ring(look);
	for (each = look->queue->first_socket; each; each = each->next_of_queue) {
		if (each != own || is_ring_sound(own))
			see_rx_ring(look, each);
	}
	for (uint32_t worker = 0; worker < umem->shape.workers; worker++) {
		uint8_t *holds = pyxdp_holds(umem, umem->ledgers[worker]) + look->first;

		for (uint32_t i = 0; worker != look->worker && i < look->n; i++) {
			if (__atomic_load_n(&holds[i], __ATOMIC_RELAXED))
				look->seen[i] = 1;
		}
	}
}

/* Returns how many frames; sets `*is_left` if the ring had no room for all. */
static int give_back(struct look *look, int *is_left)
{
	uint8_t *holds = pyxdp_holds(look->umem, look->ledger) + look->first;
	int given = 0;

	*is_left = 0;
	for (uint32_t i = 0; i < look->n; i++) {
		uint64_t addr = (uint64_t)(look->first + i) << look->umem->frame_shift;

		if (!look->is_ring_lost && !__atomic_load_n(&holds[i], __ATOMIC_RELAXED))
			continue;
		if (!look->seen[i]) {
			if (pyxdp_fill(look->umem, look->queue, &addr, 1) != 1) {
				*is_left = 1;
				continue;
			}
			given++;
		}
		__atomic_store_n(&holds[i], 0, __ATOMIC_RELAXED);
	}
	return given;
}

int pyxdp_reclaim(struct pyxdp_umem *umem, uint32_t worker, struct pyxdp_socket *const *sockets,
		  int n, int *left)
{
	struct look look = {.umem = umem, .worker = worker};
	int given = 0;

	*left = 0;
	if (!umem->ledgers || worker >= umem->shape.workers)
		return -EINVAL;
	look.ledger = umem->ledgers[worker];
	look.n = umem->shape.rx_frames;
	look.seen = malloc(look.n);
	if (!look.seen)
		return -ENOMEM;
	for (int i = 0; i < n; i++) {
		int was_dead = 0, is_left;

		look.queue = sockets[i]->queue;
		look.first = pyxdp_first_rx(umem, look.queue->id);
		look.is_ring_lost = 0;
		memset(look.seen, 0, look.n);
		if (!take_lock(&look, &was_dead)) {
			++*left;
			continue;
		}
		if (was_dead)
			find_unpushed(&look);
		see_all(&look, sockets[i]);
		given += give_back(&look, &is_left);
		*left += is_left;
		pyxdp_fill_unlock(look.queue);
	}
	free(look.seen);
	return given;
}

int pyxdp_break_locks(struct pyxdp_umem *umem)
{
	int broken = 0;

	for (struct pyxdp_queue *queue = umem->queues; queue; queue = queue->next) {
		uint32_t word;

		if (!queue->shared_lock)
			continue;
		word = __atomic_load_n(&queue->shared_lock->word, __ATOMIC_RELAXED);
		if (word && word == queue->seen_word)
			broken += __atomic_compare_exchange_n(&queue->shared_lock->word, &word, 0,
							      0, __ATOMIC_RELAXED,
							      __ATOMIC_RELAXED);
		queue->seen_word = word;
	}
	return broken;
}

int pyxdp_fill_level(struct pyxdp_socket *socket)
{
	const struct xsk_ring_prod *fill = &socket->queue->fill;
	uint32_t level = __atomic_load_n(fill->producer, __ATOMIC_ACQUIRE) -
			 __atomic_load_n(fill->consumer, __ATOMIC_ACQUIRE);

	return (int)(level < fill->size ? level : fill->size);
}
