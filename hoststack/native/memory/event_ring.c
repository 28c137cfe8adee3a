/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/event_ring.h"

#include <stdatomic.h>
#include <string.h>

struct hs_event_ring_shared {
	_Atomic uint64_t pushed;
	_Atomic uint32_t want_room; /* the producer sleeps until there is room */
	uint8_t pad_a[52];
	_Atomic uint64_t popped;
	_Atomic uint32_t want; /* the consumer sleeps until there are events */
	uint8_t pad_b[52];
	struct hs_event events[];
};

_Static_assert(sizeof(struct hs_event_ring_shared) == HS_EVENT_RING_HEADER_BYTES, "header");
_Static_assert(sizeof(struct hs_event) == HS_EVENT_BYTES, "an event has no padding");
_Static_assert(sizeof(((struct hs_event *)0)->words) == HS_EVENT_WORDS * sizeof(uint64_t), "words");

int hs_event_ring_open(struct hs_event_ring_side *side, void *block, size_t block_bytes)
{
	if (block_bytes <= HS_EVENT_RING_HEADER_BYTES)
		return -1;
	size_t data_bytes = block_bytes - HS_EVENT_RING_HEADER_BYTES;
	if (data_bytes < HS_EVENT_BYTES || (data_bytes & (data_bytes - 1)))
		return -1;
	memset(side, 0, sizeof(*side));
	side->shared = block;
	side->size = data_bytes / HS_EVENT_BYTES;
	return 0;
}

int64_t hs_event_ring_room(struct hs_event_ring_side *producer)
{
	uint64_t popped = atomic_load_explicit(&producer->shared->popped, memory_order_acquire);
	if (popped < producer->other_seen || popped > producer->own)
		return HS_EVENT_RING_CORRUPT;
	producer->other_seen = popped;
	return (int64_t)(producer->size - (producer->own - popped));
}

int hs_event_ring_push(struct hs_event_ring_side *producer, const struct hs_event *event)
{
	struct hs_event_ring_shared *shared = producer->shared;
	int64_t room = hs_event_ring_room(producer);
	if (room <= 0)
		return (int)room;
	shared->events[producer->own & (producer->size - 1)] = *event;
	producer->own++;
	atomic_store_explicit(&shared->pushed, producer->own, memory_order_release);
	return 1;
}

int64_t hs_event_ring_length(struct hs_event_ring_side *consumer)
{
	uint64_t pushed = atomic_load_explicit(&consumer->shared->pushed, memory_order_acquire);
	if (pushed < consumer->other_seen || pushed - consumer->own > consumer->size)
		return HS_EVENT_RING_CORRUPT;
	consumer->other_seen = pushed;
	return (int64_t)(pushed - consumer->own);
}

int hs_event_ring_pop(struct hs_event_ring_side *consumer, struct hs_event *out, int n)
{
	int64_t waiting = hs_event_ring_length(consumer);
	if (waiting < n)
		n = (int)waiting;
	for (int i = 0; i < n; i++)
		out[i] = consumer->shared->events[consumer->own++ & (consumer->size - 1)];
	if (n > 0)
		atomic_store_explicit(&consumer->shared->popped, consumer->own,
				      memory_order_release);
	return n;
}

/* Setting the flag and then reading an index must not be reordered, nor moving an index and then
 * reading the flag (as in fifo.c). */
static void arm(_Atomic uint32_t *flag)
{
	atomic_store(flag, 1);
	atomic_thread_fence(memory_order_seq_cst);
}

static int take_armed(_Atomic uint32_t *flag)
{
	atomic_thread_fence(memory_order_seq_cst);
	return atomic_load_explicit(flag, memory_order_relaxed) && atomic_exchange(flag, 0);
}

void hs_event_ring_arm(struct hs_event_ring_side *consumer)
{
	arm(&consumer->shared->want);
}

int hs_event_ring_take_armed(struct hs_event_ring_side *producer)
{
	return take_armed(&producer->shared->want);
}

int64_t hs_event_ring_arm_room(struct hs_event_ring_side *producer)
{
	arm(&producer->shared->want_room);
	return hs_event_ring_room(producer);
}

int hs_event_ring_take_room_armed(struct hs_event_ring_side *consumer)
{
	return take_armed(&consumer->shared->want_room);
}
