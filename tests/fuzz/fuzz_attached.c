/* SPDX-License-Identifier: Apache-2.0
 *
 * An application's side of a worker in another process (hoststack/native/session/attached.c), with a
 * worker that is hostile: the input is a program of what that writes into the ring of news, into the
 * rings' indices and into the segments that FIFOs are in, and of what the application does with the
 * streams that it is told of. The worker reads commands, or does not.
 *
 * What is checked: the application does not crash, reads and writes only its own memory and the
 * segments, and frees all; nothing takes longer than a ring allows.
 */
#define _GNU_SOURCE
#include "session/internal.h"
#include "session/records.h"

#include "fuzz.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

enum {
	CONNECTIONS = 4,
	ENDS = 32,
	SEGMENTS = 3,
	SEGMENT_BYTES = 5 * HS_PLACE_PAGE_BYTES,
	CHUNK_BYTES = 300,
	MOST_TAKEN = 200, /* tasks of one call */
};

static struct world {
	struct hs_attached *attached; /* NULL: freed */
	struct hs_side *side;
	struct hs_event_ring_side up, down; /* the worker's */
	uint8_t *up_block, *down_block;
	size_t ring_bytes;
	struct hs_end_connection *connections[CONNECTIONS]; /* NULL: none */
	struct hs_end *ends[ENDS]; /* that the application has */
	uint32_t end_count;
	uint64_t handles[ENDS]; /* of the last streams that the worker told of */
	uint32_t told;
	uint8_t is_broken; /* what is in the ring of commands */
	struct input *in;
} w;

static uint8_t *segment_memory[SEGMENTS];
static int segment_fds[SEGMENTS];

static void make_segments(void)
{
	for (int i = 0; i < SEGMENTS && !segment_memory[i]; i++) {
		segment_fds[i] = memfd_create("fuzz", MFD_ALLOW_SEALING | MFD_CLOEXEC);
		CHECK(segment_fds[i] >= 0 && !ftruncate(segment_fds[i], SEGMENT_BYTES));
		/* The last one could be shrunk: it is not mapped. */
		if (i < SEGMENTS - 1)
			CHECK(!fcntl(segment_fds[i], F_ADD_SEALS, F_SEAL_SHRINK));
		segment_memory[i] = mmap(NULL, SEGMENT_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED,
					 segment_fds[i], 0);
		CHECK(segment_memory[i] != MAP_FAILED);
	}
}

/* --- the worker --------------------------------------------------------------------------------- */

static uint64_t connection_handle(uint8_t which)
{
	return 100 + (uint64_t)(which % CONNECTIONS) * 2;
}

/* Of a FIFO that could be there, or of anything. */
static uint64_t place(uint8_t how)
{
	if (!how || how == 255)
		return how ? take_64(w.in) : 0;
	uint64_t segment = 1 + (how >> 6), page = how >> 3 & 7, log = 10 + (how & 7);
	return segment << (HS_PLACE_LOG_BITS + HS_PLACE_PAGE_BITS) | page << HS_PLACE_LOG_BITS | log;
}

static uint64_t stream_handle(uint8_t how)
{
	if (how == 255)
		return take_64(w.in);
	return how & 0x80 ? w.handles[how % ENDS] : (uint64_t)(how & 0x7f) * 2 + 1;
}

static void open_stream(uint8_t how)
{
	struct hs_event event = { .kind = HS_NEWS_OPENED, .arg = how & 1 };
	event.handle = stream_handle(take_8(w.in));
	event.words[0] = connection_handle(how >> 1);
	event.words[1] = how >> 3;
	event.words[2] = place(take_8(w.in));
	event.words[3] = place(take_8(w.in));
	event.words[4] = how;
	w.handles[w.told++ % ENDS] = event.handle;
	hs_event_ring_push(&w.up, &event);
}

static void report(uint8_t how)
{
	struct hs_event event = { .kind = HS_NEWS_STREAM, .arg = how };
	event.handle = stream_handle(take_8(w.in));
	event.words[0] = event.words[1] = how;
	hs_event_ring_push(&w.up, &event);
}

static void tell_anything(uint8_t how)
{
	struct hs_event event = { .kind = how & 7, .arg = how >> 3 };
	event.handle = take_64(w.in);
	for (int i = 0; i < HS_EVENT_WORDS && how & 0x80; i++)
		event.words[i] = take_64(w.in);
	hs_event_ring_push(&w.up, &event);
}

static void scribble(uint8_t how)
{
	uint64_t value = how & 1 ? take_64(w.in) : take_8(w.in);
	uint8_t *at = how & 2 ? w.up_block : w.down_block;
	size_t bytes = how & 8 ? w.ring_bytes : HS_EVENT_RING_HEADER_BYTES;
	if (how & 4) {
		at = segment_memory[how >> 4 & 1] + (size_t)(how >> 5 & 3) * HS_PLACE_PAGE_BYTES;
		bytes = HS_FIFO_HEADER_BYTES;
	}
	w.is_broken |= !(how & 6);
	memcpy(at + (size_t)take_8(w.in) % (bytes / sizeof(value)) * sizeof(value), &value,
	       sizeof(value));
}

static void obey(uint8_t how)
{
	struct hs_event commands[8];
	int n = hs_event_ring_pop(&w.down, commands, how % 8);
	hs_event_ring_arm(&w.down);
	hs_event_ring_take_room_armed(&w.down);
	for (int i = 0; i < n; i++)
		CHECK(w.is_broken || (commands[i].kind && commands[i].kind <= HS_COMMAND_RELEASED));
}

/* --- the application ---------------------------------------------------------------------------- */

static void have(struct hs_end *end)
{
	if (w.end_count == ENDS)
		hs_end_drop(end);
	else
		w.ends[w.end_count++] = end;
}

static void take(int has_messages)
{
	struct hs_attached_news news;
	int task = 1;
	for (int i = 0; task > 0 && i < MOST_TAKEN; i++) {
		memset(&news, 0, sizeof(news));
		task = hs_attached_take(w.attached, has_messages, &news);
		CHECK(has_messages || task != HS_TASK_MESSAGE);
		if (task == HS_TASK_OPENED)
			have(news.end);
	}
}

static void drop_end(uint32_t at)
{
	struct hs_end *end = w.ends[at];
	w.ends[at] = w.ends[--w.end_count];
	hs_end_drop(end);
}

static void read_some(struct hs_end *end, uint8_t how)
{
	uint8_t chunk[CHUNK_BYTES];
	const uint8_t *there;
	if (how & 1) {
		int64_t got = hs_end_read(end, chunk, how, how & 2);
		CHECK(got < 0 || (got & ((INT64_C(1) << HS_END_BYTES_BITS) - 1)) <= how);
		return;
	}
	int64_t n = hs_end_look(end, how, &there);
	CHECK(n <= how);
	volatile uint8_t sum = 0;
	for (int64_t i = 0; i < n; i++)
		sum = (uint8_t)(sum + there[i]);
	if (n > 0)
		hs_end_skip(end, (size_t)n);
}

static void use_end(uint8_t which, uint8_t how)
{
	static const uint8_t BYTES[CHUNK_BYTES] = { 1, 2, 3 };
	struct hs_end_state state;
	if (!w.end_count)
		return;
	uint32_t at = which % w.end_count;
	struct hs_end *end = w.ends[at];
	switch (how % 12) {
	case 0:
		read_some(end, take_8(w.in));
		break;
	case 1:
		hs_end_write(end, BYTES, take_8(w.in));
		break;
	case 2:
		hs_end_finish(end);
		break;
	case 3:
		hs_end_close(end, how >> 7, how);
		break;
	case 4:
		hs_end_reset(end, how);
		break;
	case 5:
		hs_end_stop(end, how);
		break;
	case 6:
		hs_end_close_receiving(end, how);
		break;
	case 7:
		hs_end_writable(end);
		hs_end_wait_finished(end);
		break;
	case 8:
		hs_end_set_cut(end, how >> 7);
		break;
	case 9:
		hs_end_state(end, &state);
		CHECK(state.handle == end->handle);
		break;
	default:
		drop_end(at);
	}
}

static void use_connection(uint8_t which, uint8_t how)
{
	struct hs_end_connection **c = &w.connections[which % CONNECTIONS];
	struct hs_accepted accepted;
	if (!*c) {
		if (w.attached)
			*c = hs_attached_connection(w.attached, connection_handle(which));
		return;
	}
	switch (how % 5) {
	case 0:
	case 1:
		if (hs_end_accept(*c, &accepted))
			have(accepted.end);
		break;
	case 2:
		hs_end_connection_gone(*c);
		break;
	case 3:
		hs_end_unacknowledged(*c, how >> 7);
		CHECK(hs_end_cut_short(*c) < UINT32_MAX / 2);
		CHECK(hs_end_untaken(*c) < UINT32_MAX / 2);
		break;
	default:
		hs_end_connection_drop(*c);
		*c = NULL;
	}
}

static void change_segments(uint8_t how)
{
	uint32_t number = how & 3;
	int which = (how >> 2) % (SEGMENTS + 1);
	if (how & 0x80)
		hs_attached_remove_segment(w.attached, number);
	else
		hs_attached_add_segment(w.attached, number,
					which < SEGMENTS ? segment_fds[which] : -1);
}

static void settle(uint8_t how)
{
	uint64_t keys[4];
	hs_side_take(w.side, keys, 4);
	CHECK(hs_attached_settle(w.attached) <= ENDS + 256);
	hs_attached_arm(w.attached);
	if (how & 0x80)
		hs_attached_command(w.attached, connection_handle(how), HS_COMMAND_OPEN, how & 1, how);
}

/* --- the program -------------------------------------------------------------------------------- */

static void on_worker(uint8_t operation, uint8_t how)
{
	switch (operation & 7) {
	case 0:
	case 1:
		open_stream(how);
		break;
	case 2:
	case 3:
		report(how);
		break;
	case 4:
		tell_anything(how);
		break;
	case 5:
		scribble(how);
		break;
	default:
		obey(how);
	}
}

static void on_attached(uint8_t operation, uint8_t how)
{
	if (!w.attached)
		return;
	switch (operation & 7) {
	case 4:
		change_segments(how);
		break;
	case 5:
		settle(how);
		break;
	case 6:
		if (how == 0x66)
			hs_attached_gone(w.attached);
		if (how != 0x67)
			break;
		hs_attached_free(w.attached);
		w.attached = NULL;
		break;
	default:
		take(how & 1);
	}
}

static void run(void)
{
	while (w.in->left) {
		uint8_t operation = take_8(w.in), how = take_8(w.in);
		if (!(operation & 8))
			on_worker(operation, how);
		else if (operation & 0x10)
			on_attached(operation, how);
		else if (operation & 1)
			use_connection(operation >> 1 & 3, how);
		else
			use_end(operation >> 1, how);
	}
}

static void begin(uint8_t shape)
{
	memset(&w, 0, sizeof(w));
	w.ring_bytes = HS_EVENT_RING_HEADER_BYTES + ((size_t)HS_EVENT_BYTES << (shape & 7));
	w.up_block = take_memory(w.ring_bytes);
	w.down_block = take_memory(w.ring_bytes);
	CHECK(!hs_event_ring_open(&w.up, w.up_block, w.ring_bytes));
	CHECK(!hs_event_ring_open(&w.down, w.down_block, w.ring_bytes));
	w.side = hs_side_new();
	/* Nobody listens to wake-ups: a descriptor that is no socket. */
	w.attached = hs_attached_new(w.side, w.down_block, w.up_block, w.ring_bytes, segment_fds[0]);
	CHECK(w.side && w.attached);
	for (int i = 0; i < SEGMENTS; i++) {
		int failed = hs_attached_add_segment(w.attached, (uint32_t)i + 1, segment_fds[i]);
		CHECK((failed != 0) == (i == SEGMENTS - 1));
		for (size_t at = 0; at < SEGMENT_BYTES; at += HS_PLACE_PAGE_BYTES)
			memset(segment_memory[i] + at, 0, HS_FIFO_HEADER_BYTES);
	}
}

static void end(uint8_t order)
{
	if (order & 1 && w.attached)
		hs_attached_free(w.attached);
	for (int i = 0; i < CONNECTIONS && order & 2; i++) {
		if (w.connections[i])
			hs_end_connection_drop(w.connections[i]);
		w.connections[i] = NULL;
	}
	while (w.end_count)
		drop_end(order & 4 ? 0 : w.end_count - 1);
	for (int i = 0; i < CONNECTIONS; i++) {
		if (w.connections[i])
			hs_end_connection_drop(w.connections[i]);
	}
	if (!(order & 1) && w.attached)
		hs_attached_free(w.attached);
	hs_side_free(w.side);
	free(w.up_block);
	free(w.down_block);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct input in = { data, bytes };
	make_segments();
	begin(take_8(&in));
	w.in = &in;
	uint8_t order = take_8(&in);
	run();
	end(order);
	return 0;
}
