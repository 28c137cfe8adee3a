/* SPDX-License-Identifier: Apache-2.0 */
#include "memory/fifo.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Each side's fields have a cache line of their own. */
struct hs_fifo_shared {
	_Atomic uint64_t tail; /* the producer's */
	_Atomic uint32_t eof;
	_Atomic uint32_t want_write; /* the producer sleeps until there is room */
	_Atomic uint64_t origin; /* the offset of the byte that lies at data[0] */
	_Atomic uint64_t ring_bytes; /* 0: all of the data */
	_Atomic uint32_t rank; /* and 1; 0: none was set */
	uint8_t pad_a[28];
	_Atomic uint64_t head; /* the consumer's */
	_Atomic uint32_t want_read; /* the consumer sleeps until there are bytes */
	uint8_t pad_b[52];
	uint8_t data[];
};

_Static_assert(sizeof(struct hs_fifo_shared) == HS_FIFO_HEADER_BYTES, "two cache lines");

static int is_good_block(size_t block_bytes)
{
	size_t size = block_bytes - HS_FIFO_HEADER_BYTES;
	return block_bytes > HS_FIFO_HEADER_BYTES && (size & (size - 1)) == 0;
}

int hs_fifo_producer_open(struct hs_fifo_producer *p, void *block, size_t block_bytes)
{
	if (!is_good_block(block_bytes))
		return -1;
	memset(p, 0, sizeof(*p));
	p->shared = block;
	p->size_bytes = p->ring_bytes = block_bytes - HS_FIFO_HEADER_BYTES;
	return 0;
}

int hs_fifo_consumer_open(struct hs_fifo_consumer *c, void *block, size_t block_bytes)
{
	if (!is_good_block(block_bytes))
		return -1;
	memset(c, 0, sizeof(*c));
	c->shared = block;
	c->size_bytes = c->ring_bytes = block_bytes - HS_FIFO_HEADER_BYTES;
	return 0;
}

void hs_fifo_producer_close(struct hs_fifo_producer *p)
{
	free(p->ranges);
	p->ranges = NULL;
	p->range_count = 0;
}

int64_t hs_fifo_head(struct hs_fifo_producer *p)
{
	uint64_t head = atomic_load_explicit(&p->shared->head, memory_order_acquire);
	if (head < p->head_seen || head > p->tail)
		return HS_FIFO_CORRUPT;
	p->head_seen = head;
	return (int64_t)head;
}

int64_t hs_fifo_writable(struct hs_fifo_producer *p)
{
	int64_t head = hs_fifo_head(p);
	if (head < 0)
		return head;
	return (int64_t)(p->ring_bytes - (p->tail - (uint64_t)head));
}

/* Restart an empty FIFO at data[0]: one that is read as fast as it is written stays in the cache
 * and touches no more memory than it needs. The consumer reads the new origin with the next
 * tail; until then it has no byte to read. */
static void begin_anew_if_empty(struct hs_fifo_producer *p)
{
	if (p->head_seen != p->tail || p->range_count || p->origin == p->tail)
		return;
	p->origin = p->tail;
	atomic_store_explicit(&p->shared->origin, p->origin, memory_order_relaxed);
}

void hs_fifo_begin_small(struct hs_fifo_producer *p, uint64_t bytes)
{
	uint64_t ring = p->size_bytes;
	while (ring / 2 >= bytes && ring > 1)
		ring /= 2;
	p->ring_bytes = ring;
	atomic_store_explicit(&p->shared->ring_bytes, ring, memory_order_release);
}

int hs_fifo_grow(struct hs_fifo_producer *p, uint64_t bytes)
{
	int64_t head = hs_fifo_head(p);
	if (head < 0)
		return HS_FIFO_CORRUPT;
	if (bytes <= p->ring_bytes || bytes > p->size_bytes)
		return 0;
	/* The stored bytes must not move, for the consumer may be reading them: an origin one or
	 * more rings later leaves them where they are, and so does a larger ring then. */
	uint64_t origin = (uint64_t)head - (((uint64_t)head - p->origin) & (p->ring_bytes - 1));
	uint64_t top = p->range_count ? p->ranges[p->range_count - 1].end : p->tail;
	if (top > origin + p->ring_bytes)
		return 0;
	p->origin = origin;
	p->ring_bytes = bytes;
	/* In this order: a consumer that sees the new size also sees the new origin. */
	atomic_store_explicit(&p->shared->origin, origin, memory_order_relaxed);
	atomic_store_explicit(&p->shared->ring_bytes, bytes, memory_order_release);
	return 1;
}

/* The caller has checked that [offset, offset + n) is free. */
static void store(struct hs_fifo_producer *p, uint64_t offset, const uint8_t *data, size_t n)
{
	size_t at = (offset - p->origin) & (p->ring_bytes - 1);
	size_t first = p->ring_bytes - at < n ? p->ring_bytes - at : n;
	memcpy(p->shared->data + at, data, first);
	memcpy(p->shared->data, data + first, n - first);
}

static void set_tail(struct hs_fifo_producer *p, uint64_t tail)
{
	p->tail = tail;
	atomic_store_explicit(&p->shared->tail, tail, memory_order_release);
}

int64_t hs_fifo_write(struct hs_fifo_producer *p, const uint8_t *data, size_t n)
{
	int64_t room = hs_fifo_writable(p);
	if (room < 0)
		return room;
	if (n > (uint64_t)room)
		n = (size_t)room;
	begin_anew_if_empty(p);
	store(p, p->tail, data, n);
	set_tail(p, p->tail + n);
	return (int64_t)n;
}

/* Add a range and merge it with those that it touches. Returns 0 if there is no room for it. */
static int add_range(struct hs_fifo_producer *p, uint64_t start, uint64_t end)
{
	if (!p->ranges) {
		p->ranges = malloc(HS_FIFO_MAX_RANGES * sizeof(*p->ranges));
		if (!p->ranges)
			return 0;
	}
	uint32_t first = 0;
	while (first < p->range_count && p->ranges[first].end < start)
		first++;
	uint32_t after = first;
	while (after < p->range_count && p->ranges[after].start <= end) {
		if (p->ranges[after].start < start)
			start = p->ranges[after].start;
		if (p->ranges[after].end > end)
			end = p->ranges[after].end;
		after++;
	}
	if (after == first && p->range_count == HS_FIFO_MAX_RANGES)
		return 0;
	memmove(p->ranges + first + 1, p->ranges + after,
		(p->range_count - after) * sizeof(*p->ranges));
	p->range_count = p->range_count - (after - first) + 1;
	p->ranges[first] = (struct hs_fifo_range){ start, end };
	return 1;
}

/* Return the tail once the bytes up to `tail` are stored, beyond all ranges that it now reaches. */
static uint64_t take_ranges(struct hs_fifo_producer *p, uint64_t tail)
{
	uint32_t reached = 0;
	for (; reached < p->range_count && p->ranges[reached].start <= tail; reached++) {
		if (p->ranges[reached].end > tail)
			tail = p->ranges[reached].end;
	}
	p->range_count -= reached;
	if (p->range_count)
		memmove(p->ranges, p->ranges + reached, p->range_count * sizeof(*p->ranges));
	return tail;
}

int64_t hs_fifo_put(struct hs_fifo_producer *p, uint64_t offset, const uint8_t *data, size_t n)
{
	int64_t head = hs_fifo_head(p);
	if (head < 0)
		return head;
	uint64_t end = offset + n;
	if (end < offset || end > (uint64_t)head + p->ring_bytes)
		return HS_FIFO_OUTSIDE;
	if (end <= p->tail)
		return 0;
	if (offset < p->tail) {
		data += p->tail - offset;
		n -= p->tail - offset;
		offset = p->tail;
	}
	begin_anew_if_empty(p);
	uint64_t before = p->tail;
	if (offset > before) {
		if (!add_range(p, offset, end))
			return HS_FIFO_NO_RANGE;
		store(p, offset, data, n);
		return 0;
	}
	store(p, offset, data, n);
	set_tail(p, take_ranges(p, end));
	return (int64_t)(p->tail - before);
}

void hs_fifo_set_eof(struct hs_fifo_producer *p)
{
	atomic_store_explicit(&p->shared->eof, 1, memory_order_release);
}

int hs_fifo_set_rank(struct hs_fifo_producer *p, uint32_t rank)
{
	uint32_t before =
		atomic_exchange_explicit(&p->shared->rank, rank + 1, memory_order_relaxed);
	return before != rank + 1;
}

int64_t hs_fifo_tail(struct hs_fifo_consumer *c)
{
	uint64_t tail = atomic_load_explicit(&c->shared->tail, memory_order_acquire);
	uint64_t ring = atomic_load_explicit(&c->shared->ring_bytes, memory_order_acquire);
	if (!ring)
		ring = c->size_bytes;
	if (ring > c->size_bytes || (ring & (ring - 1)) || tail < c->tail_seen ||
	    tail - c->head > ring || tail > INT64_MAX)
		return HS_FIFO_CORRUPT;
	c->ring_bytes = ring;
	c->tail_seen = tail;
	/* Whatever a malicious producer writes here, reads stay within the ring. */
	c->origin = atomic_load_explicit(&c->shared->origin, memory_order_relaxed);
	return (int64_t)tail;
}

int64_t hs_fifo_available(struct hs_fifo_consumer *c, uint64_t offset)
{
	int64_t tail = hs_fifo_tail(c);
	if (tail < 0)
		return tail;
	if (offset < c->head || offset > (uint64_t)tail)
		return HS_FIFO_OUTSIDE;
	return (int64_t)((uint64_t)tail - offset);
}

int hs_fifo_drop_to(struct hs_fifo_consumer *c, uint64_t offset)
{
	if (offset > c->tail_seen) {
		int64_t tail = hs_fifo_tail(c);
		if (tail < 0)
			return (int)tail;
		if (offset > (uint64_t)tail)
			return HS_FIFO_OUTSIDE;
	}
	if (offset > c->head) {
		c->head = offset;
		atomic_store_explicit(&c->shared->head, offset, memory_order_release);
	}
	return 0;
}

int64_t hs_fifo_spans(struct hs_fifo_consumer *c, uint64_t offset, size_t n,
		      struct hs_fifo_span out[2])
{
	int64_t available = hs_fifo_available(c, offset);
	if (available < 0)
		return available;
	if (n > (uint64_t)available)
		n = (size_t)available;
	size_t at = (offset - c->origin) & (c->ring_bytes - 1);
	size_t first = c->ring_bytes - at < n ? c->ring_bytes - at : n;
	out[0] = (struct hs_fifo_span){ c->shared->data + at, first };
	out[1] = (struct hs_fifo_span){ c->shared->data, n - first };
	return (int64_t)n;
}

int64_t hs_fifo_read(struct hs_fifo_consumer *c, uint8_t *out, size_t n)
{
	int64_t available = hs_fifo_available(c, c->head);
	if (available < 0)
		return available;
	if (n > (uint64_t)available)
		n = (size_t)available;
	size_t at = (c->head - c->origin) & (c->ring_bytes - 1);
	size_t first = c->ring_bytes - at < n ? c->ring_bytes - at : n;
	memcpy(out, c->shared->data + at, first);
	memcpy(out + first, c->shared->data, n - first);
	hs_fifo_drop_to(c, c->head + n);
	return (int64_t)n;
}

int hs_fifo_eof(const struct hs_fifo_consumer *c)
{
	return atomic_load_explicit(&c->shared->eof, memory_order_acquire) != 0;
}

uint32_t hs_fifo_rank(const struct hs_fifo_consumer *c)
{
	uint32_t rank = atomic_load_explicit(&c->shared->rank, memory_order_relaxed);
	return rank && rank <= HS_FIFO_RANKS ? rank - 1 : HS_FIFO_RANK;
}

void hs_fifo_look(const struct hs_fifo_consumer *c, uint64_t positions[2])
{
	positions[0] = atomic_load_explicit(&c->shared->head, memory_order_acquire);
	positions[1] = atomic_load_explicit(&c->shared->tail, memory_order_acquire);
}

/* --- messages --------------------------------------------------------------------------------- */

int hs_fifo_write_message(struct hs_fifo_producer *p, const uint8_t *data, size_t n)
{
	int64_t room = hs_fifo_writable(p);
	if (room < 0)
		return (int)room;
	if (n > HS_FIFO_MAX_MESSAGE_BYTES || n + HS_FIFO_PREFIX_BYTES > (uint64_t)room)
		return 0;
	begin_anew_if_empty(p);
	uint16_t length = (uint16_t)n;
	uint8_t prefix[HS_FIFO_PREFIX_BYTES];
	memcpy(prefix, &length, sizeof(prefix));
	store(p, p->tail, prefix, sizeof(prefix));
	if (n)
		store(p, p->tail + HS_FIFO_PREFIX_BYTES, data, n);
	set_tail(p, p->tail + HS_FIFO_PREFIX_BYTES + n);
	return 1;
}

int64_t hs_fifo_peek_message(struct hs_fifo_consumer *c, struct hs_fifo_span out[2], size_t *bytes)
{
	uint16_t length;
	uint8_t prefix[HS_FIFO_PREFIX_BYTES];
	int64_t available = hs_fifo_available(c, c->head);
	if (available <= 0)
		return available;
	if (available < HS_FIFO_PREFIX_BYTES)
		return HS_FIFO_CORRUPT;
	hs_fifo_spans(c, c->head, HS_FIFO_PREFIX_BYTES, out);
	memcpy(prefix, out[0].base, out[0].bytes);
	memcpy(prefix + out[0].bytes, out[1].base, out[1].bytes);
	/* Read once: the other process may change it at any time. */
	memcpy(&length, prefix, sizeof(length));
	uint64_t start = c->head + HS_FIFO_PREFIX_BYTES;
	if (length > available - HS_FIFO_PREFIX_BYTES ||
	    hs_fifo_spans(c, start, length, out) != length)
		return HS_FIFO_CORRUPT;
	*bytes = length;
	return (int64_t)(start + length);
}

/* Setting the flag and then reading an index must not be reordered, nor moving an index and then
 * reading the flag. Both are a store followed by a load, so both need the full order. */
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

void hs_fifo_arm_read(struct hs_fifo_consumer *c)
{
	arm(&c->shared->want_read);
}

int hs_fifo_take_read_armed(struct hs_fifo_producer *p)
{
	return take_armed(&p->shared->want_read);
}

void hs_fifo_arm_write(struct hs_fifo_producer *p)
{
	arm(&p->shared->want_write);
}

int hs_fifo_take_write_armed(struct hs_fifo_consumer *c)
{
	return take_armed(&c->shared->want_write);
}
