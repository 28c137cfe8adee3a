/* SPDX-License-Identifier: Apache-2.0
 *
 * A ring of session events with one producer and one consumer, which may be in two processes. The
 * same rules as in fifo.h: the shared block holds no pointers, and nothing in it is trusted.
 */
#ifndef HS_EVENT_RING_H
#define HS_EVENT_RING_H

#include <stddef.h>
#include <stdint.h>

enum {
	HS_EVENT_RING_HEADER_BYTES = 128, /* before the events, in the shared block */
	HS_EVENT_WORDS = 6,
	HS_EVENT_BYTES = 64,
	HS_EVENT_RING_CORRUPT = -2, /* the other side wrote an impossible index */
};

struct hs_event {
	uint64_t handle; /* of a session */
	uint32_t kind;
	uint32_t arg;
	uint64_t words[6]; /* HS_EVENT_WORDS */
};

/* One side: the producer counts what it pushed, the consumer what it popped. */
struct hs_event_ring_side {
	struct hs_event_ring_shared *shared;
	uint64_t size; /* events, a power of two */
	uint64_t own;
	uint64_t other_seen;
};

/* Open a side of a shared block of `block_bytes`, which starts as zeros: the header and a power
 * of two of events. Returns 0, or -1 for any other size. */
int hs_event_ring_open(struct hs_event_ring_side *side, void *block, size_t block_bytes);

/* Producer: append an event. Returns 1, 0 if the ring is full, or HS_EVENT_RING_CORRUPT. */
int hs_event_ring_push(struct hs_event_ring_side *producer, const struct hs_event *event);
/* Producer: how many events fit now, or HS_EVENT_RING_CORRUPT. */
int64_t hs_event_ring_room(struct hs_event_ring_side *producer);
/* Consumer: copy and drop at most `n` events; returns how many, or HS_EVENT_RING_CORRUPT. */
int hs_event_ring_pop(struct hs_event_ring_side *consumer, struct hs_event *out, int n);
/* Consumer: the number of queued events, or HS_EVENT_RING_CORRUPT. */
int64_t hs_event_ring_length(struct hs_event_ring_side *consumer);

/* Before it sleeps, a consumer arms its flag and then checks the ring once more. The producer
 * clears the flag after a push, and wakes the consumer only if the flag was set. */
void hs_event_ring_arm(struct hs_event_ring_side *consumer);
int hs_event_ring_take_armed(struct hs_event_ring_side *producer);
/* The same for a producer that waits for room. Returns what hs_event_ring_room does then. */
int64_t hs_event_ring_arm_room(struct hs_event_ring_side *producer);
int hs_event_ring_take_room_armed(struct hs_event_ring_side *consumer);

#endif
