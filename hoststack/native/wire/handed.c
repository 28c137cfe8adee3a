/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/handed.h"
#include "wire/verbs.h"

#include <stdlib.h>
#include <string.h>

enum {
	SLOT_BYTES = 65536,
	SLOTS = 2 * HS_WIRE_BURST, /* a burst, and answers without a connection */
};

struct handed_wire {
	struct hs_wire wire;
	struct hs_received in[HS_WIRE_BURST];
	uint32_t in_count;
	uint32_t out_count;
	uint32_t out_bytes[SLOTS];
	uint32_t out_path[SLOTS];
	/* Large enough that untouched pages are never allocated. */
	uint8_t *slots;
};

static int receive(struct hs_wire *wire, struct hs_received *out, int budget)
{
	struct handed_wire *w = (struct handed_wire *)wire;
	int n = (int)w->in_count < budget ? (int)w->in_count : budget;
	memcpy(out, w->in, (size_t)n * sizeof(*out));
	w->in_count = 0;
	return n;
}

static void release(struct hs_wire *wire)
{
	(void)wire; /* the caller owns the datagrams */
}

static uint8_t *reserve(struct hs_wire *wire, size_t *room)
{
	struct handed_wire *w = (struct handed_wire *)wire;
	if (w->out_count == SLOTS) {
		wire->counters.tx_full++;
		return NULL;
	}
	*room = SLOT_BYTES;
	return w->slots + (size_t)w->out_count * SLOT_BYTES;
}

static void commit(struct hs_wire *wire, struct hs_path *path, uint32_t bytes, uint8_t ecn)
{
	struct handed_wire *w = (struct handed_wire *)wire;
	(void)ecn; /* a link in Python does not send ECN */
	struct hs_path *own_path = hs_paths_by_id(&wire->paths, path->id);
	if (!own_path)
		return;
	hs_paths_hold(&wire->paths, own_path); /* until it is sent */
	own_path->tx_datagrams++;
	w->out_bytes[w->out_count] = bytes;
	w->out_path[w->out_count] = path->id;
	w->out_count++;
	wire->counters.tx_datagrams++;
	wire->counters.tx_bytes += bytes;
}

static int flush(struct hs_wire *wire)
{
	(void)wire; /* the caller reads the datagrams after the turn */
	return 0;
}

/* The caller adds paths before their datagrams. */
static struct hs_path *learn(struct hs_wire *wire, const uint8_t *key)
{
	return hs_paths_by_key(&wire->paths, key);
}

static void reverse(struct hs_wire *wire, const uint8_t *key, struct hs_path *out)
{
	const struct hs_path *path = learn(wire, key);
	memset(out, 0, sizeof(*out));
	out->id = UINT32_MAX;
	if (path)
		*out = *path;
}

static void route(struct hs_wire *wire, struct hs_path *path)
{
	(void)wire, (void)path; /* the caller sets its size */
}

static uint32_t size(struct hs_wire *wire, struct hs_path *path)
{
	(void)wire;
	return path->max_datagram_bytes;
}

void hs_wire_handed_set_size(struct hs_wire *wire, uint32_t path_id, uint32_t max_datagram_bytes)
{
	struct hs_path *path = hs_paths_by_id(&wire->paths, path_id);
	if (path)
		path->max_datagram_bytes = max_datagram_bytes;
}

static void free_wire(struct hs_wire *wire)
{
	struct handed_wire *w = (struct handed_wire *)wire;
	hs_paths_free(&wire->paths);
	free(w->slots);
	free(w);
}

static const struct hs_wire_verbs VERBS = { receive, release, reserve, commit, flush,
					    reverse, learn,   route,   size,   free_wire };

struct hs_wire *hs_wire_handed_new(uint32_t max_paths)
{
	struct handed_wire *w = calloc(1, sizeof(*w));
	if (!w)
		return NULL;
	w->wire.verbs = &VERBS;
	w->slots = calloc(SLOTS, SLOT_BYTES);
	if (!w->slots || hs_paths_init(&w->wire.paths, max_paths)) {
		free(w->slots);
		free(w);
		return NULL;
	}
	return &w->wire;
}

int hs_wire_handed_put(struct hs_wire *wire, const uint8_t *data, uint32_t bytes, uint8_t ecn,
		       uint32_t path_id)
{
	struct handed_wire *w = (struct handed_wire *)wire;
	if (w->in_count == HS_WIRE_BURST || path_id >= wire->paths.count)
		return -1;
	struct hs_path *path = wire->paths.by_id[path_id];
	if (!w->in_count)
		hs_paths_begin_burst(&wire->paths);
	path->burst = wire->paths.burst;
	w->in[w->in_count++] = (struct hs_received){ data, bytes, ecn, path, path->key };
	wire->counters.rx_datagrams++;
	wire->counters.rx_bytes += bytes;
	return 0;
}

const uint8_t *hs_wire_handed_take(struct hs_wire *wire, uint32_t index, uint32_t *bytes,
				   uint32_t *path_id)
{
	struct handed_wire *w = (struct handed_wire *)wire;
	if (index >= w->out_count)
		return NULL;
	*bytes = w->out_bytes[index];
	*path_id = w->out_path[index];
	return w->slots + (size_t)index * SLOT_BYTES;
}

void hs_wire_handed_sent(struct hs_wire *wire, uint32_t count)
{
	struct handed_wire *w = (struct handed_wire *)wire;
	if (count > w->out_count)
		count = w->out_count;
	w->out_count -= count;
	for (uint32_t i = 0; i < count; i++)
		hs_paths_let_go(&wire->paths, wire->paths.by_id[w->out_path[i]]);
	for (uint32_t i = 0; i < w->out_count; i++) {
		w->out_bytes[i] = w->out_bytes[i + count];
		w->out_path[i] = w->out_path[i + count];
		memmove(w->slots + (size_t)i * SLOT_BYTES, w->slots + (size_t)(i + count) * SLOT_BYTES,
			w->out_bytes[i]);
	}
}
