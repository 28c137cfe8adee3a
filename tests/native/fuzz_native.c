/* SPDX-License-Identifier: Apache-2.0
 *
 * Drives the C core with seeded random calls, under the sanitizers that test_sanitizers.py
 * compiles it with. Every buffer has its exact size, so that a byte too far is seen.
 *
 * Usage: fuzz_native SEED ROUNDS. Prints what it did; exits with 1 where the core contradicts
 * the model.
 */
#include "memory/event_ring.h"
#include "memory/fifo.h"
#include "session/table.h"
#include "wire/frames.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                   \
	do {                                                                               \
		if (!(condition)) {                                                        \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__,       \
				#condition);                                               \
			exit(1);                                                           \
		}                                                                          \
	} while (0)

enum { OPERATIONS = 400, MAX_PAYLOAD = 300 };

static uint64_t state;
static uint64_t good_frames, dropped_frames, corrupt_seen, full_of_gaps;

/* xorshift64*: Vigna, "An experimental exploration of Marsaglia's xorshift generators" */
static uint64_t random_bits(void)
{
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 0x2545f4914f6cdd1dULL;
}

/* 0 to limit - 1 */
static uint64_t below(uint64_t limit)
{
	return (random_bits() >> 11) % limit;
}

static void fill(void *to, size_t n)
{
	uint8_t *bytes = to;
	for (size_t i = 0; i < n; i++)
		bytes[i] = (uint8_t)(random_bits() >> 56);
}

static void *take(size_t n)
{
	void *memory = calloc(1, n ? n : 1);
	CHECK(memory);
	return memory;
}

/* The byte of a stream at an offset, so that a reader knows what to expect. */
static uint8_t byte_at(uint64_t offset)
{
	return (uint8_t)((offset * 0x9e3779b97f4a7c15ULL) >> 53);
}

static uint8_t *bytes_from(uint64_t offset, size_t n)
{
	uint8_t *bytes = take(n);
	for (size_t i = 0; i < n; i++)
		bytes[i] = byte_at(offset + i);
	return bytes;
}

/* What a FIFO should hold: `have` marks the bytes put above the tail. */
struct fifo_model {
	uint64_t size, head, tail;
	uint8_t have[4096];
};

static int64_t model_put(struct fifo_model *m, uint64_t offset, size_t n)
{
	uint64_t before = m->tail;
	for (uint64_t o = offset < m->tail ? m->tail : offset; o < offset + n; o++)
		m->have[o & (m->size - 1)] = 1;
	while (m->tail < m->head + m->size && m->have[m->tail & (m->size - 1)])
		m->have[m->tail++ & (m->size - 1)] = 0;
	return (int64_t)(m->tail - before);
}

static void put_one(struct hs_fifo_producer *p, struct fifo_model *m, int sparse)
{
	size_t n = sparse || below(3) ? 1 : below(m->size + 8);
	uint64_t base = m->tail > 8 ? m->tail - 8 : 0;
	uint64_t offset = below(64) ? base + below(m->size + 16) : random_bits();
	if (sparse) /* single bytes with gaps between them use the ranges up */
		offset = m->tail + 1 + 2 * below(m->size);
	uint64_t end = offset + n;
	uint8_t *bytes = bytes_from(offset, n);
	int64_t got = hs_fifo_put(p, offset, bytes, n);
	free(bytes);
	if (end < offset || end > m->head + m->size) {
		CHECK(got == HS_FIFO_OUTSIDE);
	} else if (got == HS_FIFO_NO_RANGE) {
		CHECK(offset > m->tail && p->range_count == HS_FIFO_MAX_RANGES);
		full_of_gaps++;
	} else {
		CHECK(got == model_put(m, offset, n));
	}
}

static void write_one(struct hs_fifo_producer *p, struct fifo_model *m)
{
	size_t n = below(m->size * 2);
	uint64_t room = m->size - (m->tail - m->head);
	uint8_t *bytes = bytes_from(m->tail, n);
	CHECK(hs_fifo_writable(p) == (int64_t)room);
	CHECK(hs_fifo_write(p, bytes, n) == (int64_t)(n < room ? n : room));
	m->tail += n < room ? n : room;
	free(bytes);
}

static void consume_one(struct hs_fifo_consumer *c, struct fifo_model *m)
{
	uint64_t waiting = m->tail - m->head;
	size_t n = below(m->size + 8);
	CHECK(hs_fifo_tail(c) == (int64_t)m->tail);
	CHECK(hs_fifo_available(c, m->head) == (int64_t)waiting);
	CHECK(hs_fifo_available(c, m->tail + 1) == HS_FIFO_OUTSIDE);
	if (below(4) == 0) {
		CHECK(hs_fifo_drop_to(c, m->head + n) == (n > waiting ? HS_FIFO_OUTSIDE : 0));
		m->head += n > waiting ? 0 : n;
		return;
	}
	uint8_t *out = take(n);
	int64_t got = hs_fifo_read(c, out, n);
	CHECK(got == (int64_t)(n < waiting ? n : waiting));
	for (int64_t i = 0; i < got; i++)
		CHECK(out[i] == byte_at(m->head + (uint64_t)i));
	m->head += (uint64_t)got;
	free(out);
}

static void fifo_against_model(void)
{
	struct fifo_model *m = take(sizeof(*m));
	struct hs_fifo_producer p;
	struct hs_fifo_consumer c;
	int out_of_order = below(2) == 0, sparse = below(4) == 0;

	m->size = 1ULL << below(13);
	size_t block_bytes = HS_FIFO_HEADER_BYTES + m->size;
	void *block = take(block_bytes);
	CHECK(hs_fifo_producer_open(&p, block, block_bytes) == 0);
	CHECK(hs_fifo_consumer_open(&c, block, block_bytes) == 0);
	for (int i = 0; i < OPERATIONS * 2; i++) {
		if (below(out_of_order ? 8 : 2))
			out_of_order ? put_one(&p, m, sparse) : write_one(&p, m);
		else if (!out_of_order || below(64) == 0 || m->size < 1024)
			consume_one(&c, m);
	}
	hs_fifo_set_eof(&p);
	CHECK(hs_fifo_eof(&c));
	hs_fifo_producer_close(&p);
	free(block);
	free(m);
}

/* What a hostile peer writes: anything, and what lies close to what is true. */
static void scribble(void *block, size_t header_bytes, uint64_t near)
{
	size_t words = header_bytes / sizeof(uint64_t);
	uint64_t value = below(2) ? random_bits() : near + below(64) - 32;
	memcpy((uint8_t *)block + below(words) * sizeof(value), &value, sizeof(value));
	/* the indices are the first words of their cache lines */
	if (below(2))
		memcpy((uint8_t *)block + below(2) * 64, &value, sizeof(value));
}

static void fifo_with_a_hostile_peer(void)
{
	uint64_t size = 1ULL << below(11);
	size_t block_bytes = HS_FIFO_HEADER_BYTES + size;
	void *block = take(block_bytes);
	struct hs_fifo_producer p;
	struct hs_fifo_consumer c;

	CHECK(hs_fifo_producer_open(&p, block, block_bytes) == 0);
	CHECK(hs_fifo_consumer_open(&c, block, block_bytes) == 0);
	for (int i = 0; i < OPERATIONS; i++) {
		size_t n = below(size * 2 + 1);
		uint8_t *bytes = bytes_from(0, n);
		int64_t got = 0;
		if (below(3) == 0) {
			scribble(block, HS_FIFO_HEADER_BYTES, below(2) ? p.tail : c.head);
		} else if (below(2)) { /* the truth, so that the sides go on */
			memcpy(block, &p.tail, sizeof(p.tail));
			memcpy((uint8_t *)block + 64, &c.head, sizeof(c.head));
		}
		struct hs_fifo_span spans[2];
		size_t message_bytes;
		switch (below(9)) {
		case 7:
			got = hs_fifo_write_message(&p, bytes, n);
			CHECK(got <= 1);
			break;
		case 8:
			got = hs_fifo_peek_message(&c, spans, &message_bytes);
			if (got <= 0)
				break;
			CHECK(message_bytes == spans[0].bytes + spans[1].bytes);
			CHECK(message_bytes <= size - HS_FIFO_PREFIX_BYTES);
			for (int k = 0; k < 2; k++) /* all of it is inside the block */
				fill(spans[k].base, spans[k].bytes);
			CHECK(hs_fifo_drop_to(&c, (uint64_t)got) <= 0);
			break;
		case 0:
			got = hs_fifo_write(&p, bytes, n);
			CHECK(got <= (int64_t)n && got <= (int64_t)size);
			break;
		case 1:
			got = hs_fifo_put(&p, below(8) ? p.tail + below(size * 2) : random_bits(),
					  bytes, n);
			CHECK(got <= (int64_t)size);
			break;
		case 2:
			got = hs_fifo_read(&c, bytes, n);
			CHECK(got <= (int64_t)n && got <= (int64_t)size);
			break;
		case 3:
			got = hs_fifo_drop_to(&c, c.head + below(size * 2));
			CHECK(got <= 0);
			break;
		case 4:
			got = hs_fifo_available(&c, c.head);
			CHECK(got <= (int64_t)size);
			break;
		case 5:
			got = hs_fifo_writable(&p);
			CHECK(got <= (int64_t)size);
			break;
		default:
			hs_fifo_arm_read(&c);
			hs_fifo_take_read_armed(&p);
			hs_fifo_arm_write(&p);
			hs_fifo_take_write_armed(&c);
		}
		CHECK(got >= HS_FIFO_OUTSIDE);
		corrupt_seen += got == HS_FIFO_CORRUPT;
		free(bytes);
	}
	hs_fifo_producer_close(&p);
	free(block);
}

/* Messages come out whole and in order, each with the length that it was written with. */
static void messages_in_a_fifo(void)
{
	uint64_t size = 1ULL << (2 + below(11)), lengths[2 * OPERATIONS], position = 0;
	size_t block_bytes = HS_FIFO_HEADER_BYTES + size, written = 0, read = 0, used = 0;
	void *block = take(block_bytes);
	struct hs_fifo_producer p;
	struct hs_fifo_consumer c;
	struct hs_fifo_span spans[2];

	CHECK(hs_fifo_producer_open(&p, block, block_bytes) == 0);
	CHECK(hs_fifo_consumer_open(&c, block, block_bytes) == 0);
	for (int i = 0; i < OPERATIONS; i++) {
		size_t n = below(below(8) ? size / 4 + 1 : size + 8), got_bytes;
		uint8_t *bytes = bytes_from(written, n);
		int fits = used + HS_FIFO_PREFIX_BYTES + n <= size;
		CHECK(hs_fifo_write_message(&p, bytes, n) == fits);
		free(bytes);
		if (fits) {
			lengths[written++] = n;
			used += HS_FIFO_PREFIX_BYTES + n;
		}
		if (below(2))
			continue;
		int64_t end = hs_fifo_peek_message(&c, spans, &got_bytes);
		if (read == written) {
			CHECK(end == 0);
			continue;
		}
		position += HS_FIFO_PREFIX_BYTES + lengths[read];
		CHECK(end == (int64_t)position && got_bytes == lengths[read]);
		for (size_t k = 0; k < got_bytes; k++) {
			uint8_t byte = k < spans[0].bytes ? spans[0].base[k] :
							    spans[1].base[k - spans[0].bytes];
			CHECK(byte == byte_at(read + k));
		}
		CHECK(hs_fifo_drop_to(&c, (uint64_t)end) == 0);
		used -= HS_FIFO_PREFIX_BYTES + lengths[read++];
	}
	hs_fifo_producer_close(&p);
	free(block);
}

static void sizes_that_are_refused(void)
{
	struct hs_fifo_producer p;
	struct hs_fifo_consumer c;
	struct hs_event_ring_side side;
	uint64_t block[512];
	for (size_t n = 0; n <= sizeof(block); n++) {
		size_t data = n > HS_FIFO_HEADER_BYTES ? n - HS_FIFO_HEADER_BYTES : 0;
		int is_power = data && (data & (data - 1)) == 0;
		CHECK(hs_fifo_producer_open(&p, block, n) == (is_power ? 0 : -1));
		CHECK(hs_fifo_consumer_open(&c, block, n) == (is_power ? 0 : -1));
		CHECK(hs_event_ring_open(&side, block, n) ==
		      (is_power && data >= HS_EVENT_BYTES ? 0 : -1));
	}
}

static void event_ring(int hostile)
{
	uint64_t size = 1ULL << below(8), pushed = 0, popped = 0;
	size_t block_bytes = HS_EVENT_RING_HEADER_BYTES + size * HS_EVENT_BYTES;
	void *block = take(block_bytes);
	struct hs_event_ring_side producer, consumer;

	CHECK(hs_event_ring_open(&producer, block, block_bytes) == 0);
	CHECK(hs_event_ring_open(&consumer, block, block_bytes) == 0);
	for (int i = 0; i < OPERATIONS; i++) {
		if (hostile && below(3) == 0)
			scribble(block, HS_EVENT_RING_HEADER_BYTES, producer.own);
		if (below(3)) {
			const struct hs_event event = { .handle = pushed,
							.kind = (uint32_t)pushed,
							.arg = 7,
							.words = { [5] = ~pushed } };
			int64_t room = hs_event_ring_room(&producer);
			int got = hs_event_ring_push(&producer, &event);
			CHECK(hostile || room == (int64_t)(size - (pushed - popped)));
			if (!hostile)
				CHECK(got == (pushed - popped < size));
			CHECK(got == 0 || got == 1 || got == HS_EVENT_RING_CORRUPT);
			corrupt_seen += got == HS_EVENT_RING_CORRUPT;
			pushed += got == 1;
			continue;
		}
		int n = (int)below(size + 4);
		struct hs_event *out = take((size_t)n * sizeof(*out));
		uint64_t waiting = pushed - popped;
		int got = hs_event_ring_pop(&consumer, out, n);
		if (!hostile) {
			CHECK(hs_event_ring_length(&consumer) ==
			      (int64_t)(waiting - (uint64_t)got));
			CHECK(got == (waiting < (uint64_t)n ? (int)waiting : n));
			for (int k = 0; k < got; k++, popped++)
				CHECK(out[k].handle == popped && out[k].arg == 7 &&
				      out[k].kind == (uint32_t)popped && out[k].words[5] == ~popped);
		}
		CHECK(got <= n && (got >= 0 || got == HS_EVENT_RING_CORRUPT));
		corrupt_seen += got == HS_EVENT_RING_CORRUPT;
		free(out);
	}
	free(block);
}

/* Against a list, with handles that collide: of a few slots, or of one another's neighbours. */
static void table_against_model(void)
{
	enum { MOST = 300 };
	struct hs_table table = { NULL, 0, 0 };
	uint64_t handles[MOST] = { 0 };
	uint8_t objects[MOST];
	uint32_t count = 0, most = 1 + (uint32_t)below(MOST);
	uint64_t range = 1 + below(4) * most, step = below(2) ? 1 : UINT64_C(1) << below(60);
	for (int i = 0; i < OPERATIONS * 4; i++) {
		uint64_t handle = below(range + 1) * step;
		uint32_t at = 0;
		while (at < count && handles[at] != handle)
			at++;
		CHECK(hs_table_get(&table, handle) == (at < count ? &objects[at] : NULL));
		if (at == count && count < most) {
			CHECK(!hs_table_add(&table, handle, &objects[count]));
			handles[count++] = handle;
		} else if (below(2)) {
			hs_table_remove(&table, handle);
			if (at < count && --count > at) {
				/* The last one's object moves. */
				hs_table_remove(&table, handles[count]);
				handles[at] = handles[count];
				CHECK(!hs_table_add(&table, handles[at], &objects[at]));
			}
		}
		CHECK(table.count == count && (!count || table.room * 3 >= count * 4));
	}
	for (uint32_t at = 0; at < count; at++)
		CHECK(hs_table_get(&table, handles[at]) == &objects[at]);
	hs_table_free(&table);
	CHECK(!hs_table_get(&table, handles[0]));
}

static void random_flow(struct hs_frame_flow *flow)
{
	size_t ip_bytes;

	memset(flow, 0, sizeof(*flow));
	flow->ip_version = below(2) ? 4 : 6;
	ip_bytes = flow->ip_version == 4 ? 4 : 16;
	flow->vlan_tags = (uint8_t)below(HS_FRAME_MAX_VLAN_TAGS + 1);
	for (int i = 0; i < flow->vlan_tags; i++) {
		flow->vlan_tpid[i] = below(2) ? 0x8100 : 0x88a8;
		flow->vlan_id[i] = (uint16_t)below(4096);
	}
	flow->local_port = (uint16_t)random_bits();
	flow->remote_port = (uint16_t)random_bits();
	fill(flow->local_mac, 6);
	fill(flow->remote_mac, 6);
	fill(flow->local_ip, ip_bytes);
	fill(flow->remote_ip, ip_bytes);
	/* A host's, and not the same: others are no sources (HS_FRAME_MARTIAN). */
	flow->local_ip[0] = 10;
	flow->remote_ip[0] = 32;
}

/* As the receiver at the other end sees it. */
static struct hs_frame_flow turned(const struct hs_frame_flow *flow)
{
	struct hs_frame_flow other = *flow;
	other.local_port = flow->remote_port;
	other.remote_port = flow->local_port;
	memcpy(other.local_mac, flow->remote_mac, sizeof(other.local_mac));
	memcpy(other.remote_mac, flow->local_mac, sizeof(other.remote_mac));
	memcpy(other.local_ip, flow->remote_ip, sizeof(other.local_ip));
	memcpy(other.remote_ip, flow->local_ip, sizeof(other.remote_ip));
	return other;
}

/* Parse one frame in a UMEM of its exact size, and hold the answer to the frame's bounds. */
static struct hs_datagram parse_alone(const uint8_t *frame, size_t n)
{
	uint8_t *umem = take(n);
	memcpy(umem, frame, n);
	struct hs_frame_desc desc = { .addr = 0, .len = (uint32_t)n };
	struct hs_datagram datagram;
	memset(&datagram, 0xff, sizeof(datagram));
	int good = hs_frames_parse(umem, n, &desc, 1, &datagram);
	CHECK(datagram.drop < HS_FRAME_DROPS);
	CHECK(good == (datagram.drop == HS_FRAME_GOOD));
	if (good)
		CHECK(datagram.payload <= n && datagram.payload_bytes <= n - datagram.payload);
	good_frames += (uint64_t)good;
	dropped_frames += !good;
	free(umem);
	return datagram;
}

static void frame_there_and_back(void)
{
	struct hs_frame_flow flow, other;
	struct hs_frame_header header;
	uint8_t payload[MAX_PAYLOAD];
	uint32_t payload_bytes = (uint32_t)below(MAX_PAYLOAD + 1);
	uint8_t ecn = (uint8_t)below(4);
	size_t room = HS_FRAME_MAX_HEADER_BYTES + MAX_PAYLOAD;
	uint8_t *umem = take(room);
	struct hs_frame_desc desc = { .addr = 0 };

	fill(payload, sizeof(payload));
	random_flow(&flow);
	CHECK(hs_frame_header_init(&header, &flow, 64, ecn) == 0);
	memcpy(umem + header.header_bytes, payload, payload_bytes);
	hs_frame_finish(umem + header.header_bytes, &header, payload_bytes, 0);
	desc.len = header.header_bytes + payload_bytes;

	struct hs_datagram datagram = parse_alone(umem, desc.len);
	CHECK(datagram.drop == HS_FRAME_GOOD);
	other = turned(&flow);
	CHECK(memcmp(&datagram.flow, &other, sizeof(other)) == 0);
	CHECK(datagram.ecn == ecn && datagram.payload_bytes == payload_bytes);
	CHECK(memcmp(umem + datagram.payload, payload, payload_bytes) == 0);

	for (uint32_t n = 0; n < header.header_bytes; n++)
		CHECK(parse_alone(umem, n).drop != HS_FRAME_GOOD);
	if (payload_bytes)
		CHECK(parse_alone(umem, desc.len - 1).drop == HS_FRAME_TRUNCATED);
	for (int i = 0; i < 40; i++) {
		for (uint64_t flips = 1 + below(3); flips; flips--)
			umem[below(header.header_bytes)] ^= (uint8_t)(1 + below(255));
		parse_alone(umem, below(desc.len + 1));
		parse_alone(umem, desc.len);
	}
	free(umem);
}

/* A burst of descriptors that point anywhere, into bytes that mean nothing. */
static void burst_of_rubbish(void)
{
	enum { BURST = 16 };
	size_t umem_bytes = below(2048);
	uint8_t *umem = take(umem_bytes);
	struct hs_frame_desc descs[BURST];
	struct hs_datagram out[BURST];
	int good = 0;

	fill(umem, umem_bytes);
	/* so that some get past the Ethernet header */
	for (size_t at = 12; at + 16 < umem_bytes; at += 64) {
		static const uint8_t starts[][3] = { { 0x08, 0x00, 0x45 }, { 0x86, 0xdd, 0x60 },
						     { 0x81, 0x00, 0 },	   { 0x88, 0xa8, 0 } };
		memcpy(umem + at, starts[below(4)], 3);
	}
	for (int i = 0; i < BURST; i++) {
		descs[i].addr = below(4) ? below(64) * 64 : random_bits();
		descs[i].len = (uint32_t)(below(4) ? below(2048) : random_bits());
		descs[i].options = (uint32_t)random_bits();
	}
	int counted = hs_frames_parse(umem, umem_bytes, descs, BURST, out);
	for (int i = 0; i < BURST; i++) {
		int is_good = out[i].drop == HS_FRAME_GOOD;
		CHECK(out[i].drop < HS_FRAME_DROPS);
		if (descs[i].addr > umem_bytes || descs[i].len > umem_bytes - descs[i].addr)
			CHECK(out[i].drop == HS_FRAME_OUTSIDE_UMEM);
		if (is_good)
			CHECK(out[i].payload >= descs[i].addr &&
			      out[i].payload + out[i].payload_bytes <=
				      descs[i].addr + descs[i].len);
		good += is_good;
	}
	CHECK(counted == good);
	free(umem);
}

int main(int argc, char **argv)
{
	CHECK(argc == 3);
	state = strtoull(argv[1], NULL, 10);
	uint64_t rounds = strtoull(argv[2], NULL, 10);
	CHECK(state != 0 && rounds != 0);

	sizes_that_are_refused();
	for (uint64_t i = 0; i < rounds; i++) {
		fifo_against_model();
		fifo_with_a_hostile_peer();
		messages_in_a_fifo();
		event_ring(0);
		event_ring(1);
		table_against_model();
		frame_there_and_back();
		burst_of_rubbish();
	}
	/* a run that met none of these would have tested little */
	CHECK(good_frames && dropped_frames && corrupt_seen && full_of_gaps);
	printf("%" PRIu64 " rounds: frames %" PRIu64 " good, %" PRIu64 " dropped; %" PRIu64
	       " times corrupt, %" PRIu64 " times full of gaps\n",
	       rounds, good_frames, dropped_frames, corrupt_seen, full_of_gaps);
	return 0;
}
