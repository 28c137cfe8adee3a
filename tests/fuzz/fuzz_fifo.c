/* SPDX-License-Identifier: Apache-2.0
 *
 * FIFOs and event rings (hoststack/native/memory/fifo.c, event_ring.c) with a hostile other side. The input
 * is a program: what each side does, and what is written into the shared block behind their backs.
 * Until that begins, both sides are held to what they promise; after it, to the block's bounds.
 */
#include "memory/event_ring.h"
#include "memory/fifo.h"

#include "fuzz.h"

enum { MOST_SIZE_BITS = 10, INDEX_B = 64 /* where the consumer's index lies */ };

/* The byte of a stream at an offset, so that a reader knows what to expect. */
static uint8_t byte_at(uint64_t offset)
{
	return (uint8_t)((offset * 0x9e3779b97f4a7c15ULL) >> 53);
}

static uint8_t *bytes_from(uint64_t offset, size_t n)
{
	uint8_t *bytes = take_memory(n);
	for (size_t i = 0; i < n; i++)
		bytes[i] = byte_at(offset + i);
	return bytes;
}

/* What the other side writes: near to what is true, or anything; at an index, or anywhere. */
static void scribble(struct input *in, uint8_t *block, size_t header_bytes, uint64_t near)
{
	uint8_t how = take_8(in);
	uint64_t value = how & 1 ? take_64(in) : near + take_8(in) - 128;
	size_t at = how & 2 ? (size_t)(how >> 2) % (header_bytes - sizeof(value) + 1) :
			      (how & 4 ? INDEX_B : 0);
	memcpy(block + at, &value, sizeof(value));
}

struct fifo {
	struct hs_fifo_producer p;
	struct hs_fifo_consumer c;
	uint8_t *block;
	uint64_t size;
	int is_hostile;
	int puts; /* the producer puts at offsets; else it writes in order */
};

/* An honest side never hears of rubbish. */
static int64_t bounded(const struct fifo *f, int64_t got, uint64_t most)
{
	CHECK(got >= HS_FIFO_OUTSIDE && (got < 0 || (uint64_t)got <= most));
	CHECK(f->is_hostile || got != HS_FIFO_CORRUPT);
	return got;
}

static void produce(struct fifo *f, struct input *in)
{
	size_t n = take_16(in) % (f->size * 2 + 1);
	uint64_t before = f->p.tail, ahead = f->puts ? take_16(in) % (f->size + 8) : 0;
	uint64_t offset = ahead == f->size + 7 ? take_64(in) : before + ahead;
	uint8_t *bytes = bytes_from(offset, n);
	int64_t got;
	if (f->puts) {
		got = bounded(f, hs_fifo_put(&f->p, offset, bytes, n), f->size);
	} else {
		int64_t room = bounded(f, hs_fifo_writable(&f->p), f->size);
		got = bounded(f, hs_fifo_write(&f->p, bytes, n), n);
		CHECK(got < 0 || got == (room < (int64_t)n ? room : (int64_t)n));
	}
	CHECK(f->p.tail == before + (got > 0 ? (uint64_t)got : 0));
	CHECK(f->p.range_count <= HS_FIFO_MAX_RANGES);
	CHECK(f->is_hostile || f->p.tail - f->c.head <= f->size);
	free(bytes);
}

/* They lie in the block, and hold what was written from an offset on. */
static void check_spans(const struct fifo *f, const struct hs_fifo_span spans[2], uint64_t offset)
{
	uint8_t *data = f->block + HS_FIFO_HEADER_BYTES;
	for (int i = 0; i < 2; i++) {
		if (!spans[i].bytes)
			continue;
		CHECK(spans[i].base >= data && spans[i].base + spans[i].bytes <= data + f->size);
		for (size_t k = 0; k < spans[i].bytes && !f->is_hostile; k++)
			CHECK(spans[i].base[k] == byte_at(offset++));
	}
}

static void look(struct fifo *f, struct input *in)
{
	struct hs_fifo_span spans[2];
	size_t n = take_16(in);
	uint64_t ahead = take_16(in) % (f->size + 8), offset = f->c.head + ahead;
	int64_t got = bounded(f, hs_fifo_spans(&f->c, offset, n, spans), n);
	if (got < 0)
		return;
	CHECK((size_t)got <= f->size && spans[0].bytes + spans[1].bytes == (size_t)got);
	check_spans(f, spans, offset);
}

static void consume(struct fifo *f, struct input *in)
{
	size_t n = take_16(in) % (f->size * 2 + 1);
	uint64_t head = f->c.head;
	uint8_t *out = take_memory(n);
	int64_t got = bounded(f, hs_fifo_read(&f->c, out, n), n);
	for (int64_t i = 0; i < got && !f->is_hostile; i++)
		CHECK(out[i] == byte_at(head + (uint64_t)i));
	CHECK(f->c.head == head + (got > 0 ? (uint64_t)got : 0));
	free(out);
}

static void drop(struct fifo *f, struct input *in)
{
	uint64_t head = f->c.head, to = head + take_16(in) % (f->size + 8);
	int failed = hs_fifo_drop_to(&f->c, to);
	CHECK(bounded(f, failed, 0) <= 0 && f->c.head == (failed ? head : to));
	CHECK(!failed || f->is_hostile || failed == HS_FIFO_OUTSIDE);
}

static void arm(struct fifo *f)
{
	hs_fifo_arm_read(&f->c);
	hs_fifo_arm_write(&f->p);
	CHECK(hs_fifo_rank(&f->c) < HS_FIFO_RANKS);
	CHECK(hs_fifo_take_read_armed(&f->p) && hs_fifo_take_write_armed(&f->c));
	CHECK(!hs_fifo_take_read_armed(&f->p) && !hs_fifo_take_write_armed(&f->c));
}

static void grow(struct fifo *f, struct input *in)
{
	uint64_t before = f->p.ring_bytes, ring = 1ULL << take_8(in) % (MOST_SIZE_BITS + 2);
	int got = hs_fifo_grow(&f->p, ring);
	CHECK(bounded(f, got, 1) <= 1 && f->p.ring_bytes == (got == 1 ? ring : before));
	CHECK(f->p.ring_bytes >= before && f->p.ring_bytes <= f->size);
	CHECK(f->is_hostile || f->p.tail != f->c.head || f->p.range_count ||
	      got == (ring > before && ring <= f->size));
}

static void run_fifo(struct input *in)
{
	uint8_t shape = take_8(in);
	struct fifo f = { .size = 1ULL << (shape >> 1) % (MOST_SIZE_BITS + 1), .puts = shape & 1 };
	size_t block_bytes = HS_FIFO_HEADER_BYTES + f.size;
	f.block = take_memory(block_bytes);
	CHECK(!hs_fifo_producer_open(&f.p, f.block, block_bytes));
	CHECK(!hs_fifo_consumer_open(&f.c, f.block, block_bytes));
	hs_fifo_begin_small(&f.p, f.size >> (shape >> 5));
	while (in->left) {
		uint8_t operation = take_8(in);
		switch (operation & 7) {
		case 0:
		case 1:
			produce(&f, in);
			break;
		case 2:
			look(&f, in);
			break;
		case 3:
			consume(&f, in);
			break;
		case 4:
			drop(&f, in);
			break;
		case 5:
			if (operation & 8)
				grow(&f, in);
			else
				arm(&f);
			break;
		case 6: /* the truth, so that the sides go on */
			memcpy(f.block, &f.p.tail, sizeof(f.p.tail));
			memcpy(f.block + INDEX_B, &f.c.head, sizeof(f.c.head));
			break;
		default:
			f.is_hostile = 1;
			scribble(in, f.block, HS_FIFO_HEADER_BYTES,
				 operation & 8 ? f.p.tail : f.c.head);
		}
	}
	hs_fifo_set_eof(&f.p);
	CHECK(hs_fifo_eof(&f.c));
	hs_fifo_producer_close(&f.p);
	free(f.block);
}

/* Messages, whose lengths lie in the shared block too. */
static void run_messages(struct input *in)
{
	struct fifo f = { .size = 1ULL << take_8(in) % (MOST_SIZE_BITS + 1) };
	size_t block_bytes = HS_FIFO_HEADER_BYTES + f.size, n;
	uint64_t written = 0, read = 0;
	struct hs_fifo_span spans[2];
	f.block = take_memory(block_bytes);
	CHECK(!hs_fifo_producer_open(&f.p, f.block, block_bytes));
	CHECK(!hs_fifo_consumer_open(&f.c, f.block, block_bytes));
	while (in->left) {
		uint8_t operation = take_8(in);
		if ((operation & 3) == 0) {
			n = take_16(in) % (f.size + 4);
			uint8_t *bytes = bytes_from(written, n);
			int64_t took = bounded(&f, hs_fifo_write_message(&f.p, bytes, n), 1);
			written += took == 1;
			free(bytes);
		} else if ((operation & 3) == 1) {
			int64_t end = bounded(&f, hs_fifo_peek_message(&f.c, spans, &n), INT64_MAX);
			CHECK(f.is_hostile || (end > 0) == (read < written));
			if (end <= 0)
				continue;
			CHECK(n <= f.size && spans[0].bytes + spans[1].bytes == n);
			check_spans(&f, spans, read);
			CHECK(!hs_fifo_drop_to(&f.c, (uint64_t)end));
			read++;
		} else if ((operation & 3) == 2) {
			memcpy(f.block, &f.p.tail, sizeof(f.p.tail));
			memcpy(f.block + INDEX_B, &f.c.head, sizeof(f.c.head));
		} else {
			f.is_hostile = 1;
			scribble(in, f.block, operation & 4 ? block_bytes : HS_FIFO_HEADER_BYTES,
				 operation & 8 ? f.p.tail : f.c.head);
		}
	}
	free(f.block);
}

static void run_events(struct input *in)
{
	uint64_t size = 1ULL << take_8(in) % (MOST_SIZE_BITS / 2 + 1);
	size_t block_bytes = HS_EVENT_RING_HEADER_BYTES + size * HS_EVENT_BYTES;
	uint8_t *block = take_memory(block_bytes);
	struct hs_event_ring_side producer, consumer;
	uint64_t pushed = 0, popped = 0;
	int is_hostile = 0;
	CHECK(!hs_event_ring_open(&producer, block, block_bytes));
	CHECK(!hs_event_ring_open(&consumer, block, block_bytes));
	hs_event_ring_arm(&consumer);
	hs_event_ring_arm_room(&producer);
	CHECK(hs_event_ring_take_armed(&producer) && hs_event_ring_take_room_armed(&consumer));
	CHECK(!hs_event_ring_take_armed(&producer) && !hs_event_ring_take_room_armed(&consumer));
	while (in->left) {
		uint8_t operation = take_8(in);
		if ((operation & 3) == 0) {
			const struct hs_event event = { .handle = pushed, .words = { [5] = ~pushed } };
			int64_t room = hs_event_ring_room(&producer);
			int got = hs_event_ring_push(&producer, &event);
			CHECK(room >= 0 ? room <= (int64_t)size && got == (room > 0) :
					  room == HS_EVENT_RING_CORRUPT && got == room);
			CHECK(got == 0 || got == 1 || got == HS_EVENT_RING_CORRUPT);
			CHECK(is_hostile || got == (pushed - popped < size));
			pushed += got == 1;
		} else if ((operation & 3) == 1) {
			int n = (operation >> 2) % (int)(size + 4);
			struct hs_event *out = take_memory((size_t)n * sizeof(*out));
			int got = hs_event_ring_pop(&consumer, out, n);
			CHECK(got <= n && (got >= 0 || got == HS_EVENT_RING_CORRUPT));
			CHECK(got <= (int)size);
			for (int k = 0; k < got && !is_hostile; k++, popped++)
				CHECK(out[k].handle == popped && out[k].words[5] == ~popped);
			free(out);
		} else if ((operation & 3) == 2) {
			memcpy(block, &producer.own, sizeof(producer.own));
			memcpy(block + INDEX_B, &consumer.own, sizeof(consumer.own));
		} else {
			is_hostile = 1;
			scribble(in, block, HS_EVENT_RING_HEADER_BYTES,
				 operation & 4 ? producer.own : consumer.own);
		}
	}
	free(block);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct input in = { data, bytes };
	switch (take_8(&in) & 3) {
	case 1:
		run_events(&in);
		break;
	case 2:
		run_messages(&in);
		break;
	default:
		run_fifo(&in);
	}
	return 0;
}
