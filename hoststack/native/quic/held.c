/* SPDX-License-Identifier: Apache-2.0
 *
 * 0-RTT packets that arrived before the ClientHello that they depend on: the network has reordered
 * them, or the path of their Initial packet is still being looked up. RFC 9000 section 5.2.2: "If
 * the packet is a 0-RTT packet, the server MAY buffer a limited number of these packets in
 * anticipation of a late-arriving Initial packet." They are held for a limited time in a store of a
 * fixed size, which drops the oldest: a flood of unwanted packets costs nothing else.
 */
#include "quic/held.h"

#include <stdlib.h>
#include <string.h>

#include "quic/cid.h"
#include "quic/connection.h"
#include "wire/verbs.h"

#define HELD_NS 2000000000ULL

enum {
	MOST_HELD = 256, /* datagrams: two large first flights */
	MOST_HELD_BYTES = 512 * 1024,
};

struct hs_held {
	uint8_t *data; /* NULL: it was removed */
	uint32_t bytes;
	uint8_t ecn;
	uint64_t until_ns;
	ngtcp2_cid dcid;
};

struct hs_held_store {
	uint32_t first, count;
	uint64_t bytes;
	struct hs_held ring[MOST_HELD];
};

static struct hs_held *held_at(struct hs_held_store *store, uint32_t index)
{
	return &store->ring[(store->first + index) % MOST_HELD];
}

static void take_out(struct hs_held_store *store, struct hs_held *held)
{
	store->bytes -= held->bytes;
	free(held->data);
	held->data = NULL;
}

static void drop_first(struct hs_quic *q)
{
	struct hs_held_store *store = q->held;
	struct hs_held *held = held_at(store, 0);
	if (held->data) {
		q->counters.drops[HS_QUIC_DROP_UNKNOWN_CID]++;
		take_out(store, held);
	}
	store->first = (store->first + 1) % MOST_HELD;
	store->count--;
}

void hs_held_expire(struct hs_quic *q)
{
	struct hs_held_store *store = q->held;
	while (store && store->count &&
	       (!held_at(store, 0)->data || held_at(store, 0)->until_ns <= q->now_ns))
		drop_first(q);
}

void hs_held_free(struct hs_quic *q)
{
	while (q->held && q->held->count)
		drop_first(q);
	free(q->held);
}

void hs_held_add(struct hs_quic *q, const struct hs_received *datagram,
		 const ngtcp2_version_cid *ids)
{
	if (!q->held)
		q->held = calloc(1, sizeof(*q->held));
	struct hs_held_store *store = q->held;
	uint8_t *copy = store ? malloc(datagram->bytes) : NULL;
	if (!copy) {
		q->counters.drops[HS_QUIC_DROP_UNKNOWN_CID]++;
		return;
	}
	while (store->count &&
	       (store->count == MOST_HELD || store->bytes + datagram->bytes > MOST_HELD_BYTES))
		drop_first(q);
	memcpy(copy, datagram->data, datagram->bytes);
	struct hs_held *held = held_at(store, store->count++);
	*held = (struct hs_held){ copy, datagram->bytes, datagram->ecn, q->now_ns + HELD_NS, { 0 } };
	ngtcp2_cid_init(&held->dcid, ids->dcid, ids->dcidlen);
	store->bytes += datagram->bytes;
}

void hs_held_deliver(struct hs_connection *c)
{
	struct hs_quic *q = c->q;
	struct hs_held_store *store = q->held;
	for (uint32_t i = 0; store && i < store->count && c->state <= HS_OPEN; i++) {
		struct hs_held *held = held_at(store, i);
		if (!held->data ||
		    hs_cids_find(&q->cids, held->dcid.data, held->dcid.datalen) != c)
			continue;
		/* The connection ID that a client has just generated at random identifies the
		 * client, and so its path. */
		struct hs_received datagram = { held->data, held->bytes, held->ecn, c->path, NULL };
		hs_connection_read(c, &datagram);
		take_out(store, held);
	}
	hs_held_expire(q);
}
