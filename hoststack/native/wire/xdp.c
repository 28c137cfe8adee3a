/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/xdp.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "wire/datagram_ports.h"
#include "pyxdp.h"
#include "wire/verbs.h"

enum {
	DETACHED_BYTES = 4096,
	TX_ROOM = 2 * HS_WIRE_BURST, /* frames in hand: a burst, and answers without a connection */
	ANSWER_BYTES = 1200, /* every QUIC path carries this size */
	HOP_LIMIT = 64, /* the kernel's default (RFC 1700) */
};

_Static_assert((int)HS_FRAME_DROPS <= (int)HS_WIRE_XDP_TX_NO_NEXT_HOP,
	       "drops have numbers of their own");
_Static_assert((int)HS_WIRE_XDP_RX_DATAGRAM_NO_ROOM < (int)HS_WIRE_KINDS_OF_DROP,
	       "every drop has a counter");
_Static_assert(sizeof(struct hs_frame_flow) == HS_PATH_KEY_BYTES, "a flow is a path's key");
_Static_assert(sizeof(struct pyxdp_desc) == sizeof(struct hs_frame_desc), "both are xdp_desc");

struct xdp_wire {
	struct hs_wire wire;
	const struct pyxdp_verbs *verbs;
	struct pyxdp_socket *sockets[HS_WIRE_XDP_MAX_SOCKETS];
	int socket_count; /* 0: detached */
	int next_socket;
	uint8_t *umem;
	size_t umem_bytes;
	uint32_t frame_bytes;
	int rx_first; /* the socket of the first descriptors in `rx` */
	struct pyxdp_desc rx[HS_WIRE_BURST]; /* received and not released yet, by socket */
	int rx_of_socket[HS_WIRE_XDP_MAX_SOCKETS];
	int rx_count;
	struct hs_datagram parsed[HS_WIRE_BURST];
	struct pyxdp_desc tx[TX_ROOM]; /* committed ones, then reserved ones */
	int committed;
	int reserved; /* including the committed ones */
	int is_backlogged;
	int left;
	struct hs_datagram_ports datagram_ports;
	uint8_t detached[DETACHED_BYTES]; /* for packets to drop while detached */
};

static struct xdp_wire *own(struct hs_wire *wire)
{
	return (struct xdp_wire *)wire;
}

static void release(struct hs_wire *wire)
{
	struct xdp_wire *w = own(wire);
	const struct pyxdp_desc *at = w->rx;
	for (int step = 0; step < w->socket_count && w->rx_count; step++) {
		int i = (w->rx_first + step) % w->socket_count, n = w->rx_of_socket[i];
		if (n && w->verbs->rx_release(w->sockets[i], at, n) < 0)
			wire->counters.drops[HS_WIRE_XDP_RX_ERROR] += (uint64_t)n;
		at += n;
		w->rx_count -= n;
		w->rx_of_socket[i] = 0;
	}
}

/* Parse one socket's burst and keep the datagrams for the engine. */
static int parse(struct xdp_wire *w, const struct pyxdp_desc *descs, int n,
		 struct hs_datagram *parsed, struct hs_received *out)
{
	int good = 0;
	hs_frames_parse(w->umem, w->umem_bytes, (const struct hs_frame_desc *)descs, n, parsed);
	for (int i = 0; i < n; i++) {
		const struct hs_datagram *d = &parsed[i];
		if (d->drop != HS_FRAME_GOOD) {
			w->wire.counters.drops[d->drop]++;
			continue;
		}
		w->wire.counters.rx_datagrams++;
		w->wire.counters.rx_bytes += d->payload_bytes;
		if (hs_datagram_ports_has(&w->datagram_ports, &d->flow)) {
			if (!hs_frame_sums_hold(w->umem, d))
				w->wire.counters.drops[HS_FRAME_BAD_SUM]++;
			else if (hs_datagram_ports_put(&w->datagram_ports, &d->flow,
						  w->umem + d->payload, d->payload_bytes))
				w->wire.counters.drops[HS_WIRE_XDP_RX_DATAGRAM_NO_ROOM]++;
			continue;
		}
		const uint8_t *key = (const uint8_t *)&d->flow;
		out[good++] = (struct hs_received){
			.data = w->umem + d->payload,
			.bytes = d->payload_bytes,
			.ecn = d->ecn,
			.path = hs_paths_by_key(&w->wire.paths, key),
			.key = key,
		};
	}
	return good;
}

static int receive(struct hs_wire *wire, struct hs_received *out, int budget)
{
	struct xdp_wire *w = own(wire);
	int good = 0;
	if (budget > HS_WIRE_BURST)
		budget = HS_WIRE_BURST;
	/* Round robin: the next burst begins with the next socket. */
	w->rx_first = w->next_socket;
	for (int step = 0; step < w->socket_count && w->rx_count < budget; step++) {
		int i = (w->rx_first + step) % w->socket_count;
		struct pyxdp_desc *descs = w->rx + w->rx_count;
		int n = w->verbs->rx_burst(w->sockets[i], descs, budget - w->rx_count);
		w->next_socket = (i + 1) % w->socket_count;
		if (n < 0)
			wire->counters.drops[HS_WIRE_XDP_RX_ERROR]++;
		if (n <= 0)
			continue;
		good += parse(w, descs, n, w->parsed + w->rx_count, out + good);
		w->rx_of_socket[i] = n;
		w->rx_count += n;
	}
	if (good == 0)
		release(wire);
	return good;
}

static uint8_t *reserve(struct hs_wire *wire, size_t *room)
{
	struct xdp_wire *w = own(wire);
	if (!w->socket_count) {
		*room = DETACHED_BYTES;
		return w->detached;
	}
	if (!w->is_backlogged && w->committed == w->reserved && w->socket_count &&
	    w->reserved + HS_WIRE_BURST <= TX_ROOM) {
		int n = w->verbs->tx_reserve(w->sockets[0], w->tx + w->reserved, HS_WIRE_BURST);
		if (n < 0)
			wire->counters.drops[HS_WIRE_XDP_TX_ERROR]++;
		w->reserved += n > 0 ? n : 0;
	}
	if (w->is_backlogged || w->committed == w->reserved) {
		wire->counters.tx_full++;
		return NULL;
	}
	*room = w->frame_bytes - HS_FRAME_MAX_HEADER_BYTES;
	return w->umem + w->tx[w->committed].addr + HS_FRAME_MAX_HEADER_BYTES;
}

static void commit(struct hs_wire *wire, struct hs_path *path, uint32_t bytes, uint8_t ecn)
{
	struct xdp_wire *w = own(wire);
	struct pyxdp_desc *desc = &w->tx[w->committed];
	if (!w->socket_count) {
		wire->counters.drops[HS_WIRE_XDP_TX_ENETDOWN]++;
		return;
	}
	if (!path->has_header) {
		wire->counters.drops[HS_WIRE_XDP_TX_NO_NEXT_HOP]++;
		return;
	}
	if (bytes > path->max_datagram_bytes) {
		wire->counters.drops[HS_WIRE_XDP_TX_TOO_LARGE]++;
		return;
	}
	desc->addr += HS_FRAME_MAX_HEADER_BYTES;
	hs_frame_finish(w->umem + desc->addr, &path->header, bytes, ecn);
	desc->addr -= path->header.header_bytes;
	desc->len = path->header.header_bytes + bytes;
	w->committed++;
	wire->counters.tx_datagrams++;
	wire->counters.tx_bytes += bytes;
}

static int flush(struct hs_wire *wire)
{
	struct xdp_wire *w = own(wire);
	if (!w->socket_count || !w->committed)
		return 0;
	int taken = w->verbs->tx_submit(w->sockets[0], w->tx, w->committed);
	if (taken < 0) {
		/* The rings refused them as foreign or incomplete: never send or reuse them. */
		wire->counters.drops[HS_WIRE_XDP_TX_ERROR] += (uint64_t)w->committed;
		taken = w->committed;
	}
	if (taken > 0) {
		w->committed -= taken;
		w->reserved -= taken;
		memmove(w->tx, w->tx + taken, (size_t)w->reserved * sizeof(w->tx[0]));
	}
	w->is_backlogged = w->committed > 0;
	int left = w->verbs->kick(w->sockets[0]);
	if (left < 0)
		wire->counters.drops[left == -ENETDOWN ? HS_WIRE_XDP_TX_ENETDOWN :
							 HS_WIRE_XDP_TX_ERROR]++;
	w->left = left > 0 ? left : 0;
	return w->committed;
}

/* Only Python knows which addresses are this machine's: here, a flow to the same address as the
 * one that was looked up last. */
static int is_for_us(const struct hs_wire *wire, const struct hs_frame_flow *flow)
{
	struct hs_frame_flow known;
	memcpy(&known, wire->resolved_key, sizeof(known));
	return wire->has_resolved_key && known.ip_version == flow->ip_version &&
	       !memcmp(known.local_mac, flow->local_mac, sizeof(known.local_mac)) &&
	       !memcmp(known.local_ip, flow->local_ip, sizeof(known.local_ip));
}

static int reverse(struct hs_wire *wire, const uint8_t *key, struct hs_path *out)
{
	struct hs_frame_flow flow;
	memcpy(&flow, key, sizeof(flow));
	int is_group = flow.remote_mac[0] & 1; /* not a host's address */
	*out = (struct hs_path){ .max_datagram_bytes = ANSWER_BYTES, .fd = -1, .has_header = 1 };
	if (is_group || !is_for_us(wire, &flow) ||
	    hs_frame_header_init(&out->header, &flow, HOP_LIMIT, 0))
		return -1;
	hs_address_fill(&out->local, flow.ip_version, flow.local_ip, flow.local_port, 0);
	hs_address_fill(&out->remote, flow.ip_version, flow.remote_ip, flow.remote_port, 0);
	return 0;
}

static void free_wire(struct hs_wire *wire)
{
	/* The frames in hand are freed with the UMEM. */
	hs_paths_free(&wire->paths);
	hs_datagram_ports_free(&own(wire)->datagram_ports);
	free(own(wire));
}

static const struct hs_wire_verbs VERBS = { receive, release, reserve, commit, flush, reverse, free_wire };

struct hs_wire *hs_wire_xdp_new(const void *verbs, const uint64_t *sockets, int count, void *umem,
				size_t umem_bytes, uint32_t frame_bytes, uint32_t max_paths)
{
	if (count < 1 || count > HS_WIRE_XDP_MAX_SOCKETS)
		return NULL;
	struct xdp_wire *w = calloc(1, sizeof(*w));
	if (!w || hs_paths_init(&w->wire.paths, max_paths)) {
		free(w);
		return NULL;
	}
	w->wire.verbs = &VERBS;
	w->verbs = verbs;
	hs_wire_xdp_attach(&w->wire, sockets, count, umem, umem_bytes, frame_bytes);
	return &w->wire;
}

int hs_wire_xdp_left(struct hs_wire *wire)
{
	int left = own(wire)->left;
	own(wire)->left = 0;
	return left;
}

int hs_wire_xdp_open_datagrams(struct hs_wire *wire, uint8_t ip_version, const uint8_t *ip,
			       uint16_t port)
{
	return hs_datagram_ports_add(&own(wire)->datagram_ports, ip_version, ip, port);
}

void hs_wire_xdp_close_datagrams(struct hs_wire *wire, uint8_t ip_version, const uint8_t *ip,
				 uint16_t port)
{
	hs_datagram_ports_remove(&own(wire)->datagram_ports, ip_version, ip, port);
}

const uint8_t *hs_wire_xdp_take_datagrams(struct hs_wire *wire, size_t *bytes)
{
	struct hs_datagram_ports *ports = &own(wire)->datagram_ports;
	*bytes = ports->bag_used;
	ports->bag_used = 0;
	return ports->bag;
}

int hs_wire_xdp_send_datagram(struct hs_wire *wire, const void *header, uint32_t max_bytes,
			      const uint8_t *payload, uint32_t bytes)
{
	struct hs_path path = { .has_header = 1, .max_datagram_bytes = max_bytes };
	size_t room;
	if (!own(wire)->socket_count)
		return 0;
	uint8_t *at = reserve(wire, &room);
	if (!at) {
		/* Send the engine's frames first; then there may be room for a burst. */
		flush(wire);
		at = reserve(wire, &room);
	}
	if (!at)
		return 0;
	memcpy(&path.header, header, sizeof(path.header));
	if (bytes > room)
		path.max_datagram_bytes = 0; /* commit counts it as too large */
	else
		memcpy(at, payload, bytes);
	commit(wire, &path, bytes, 0);
	return 1;
}

void hs_wire_xdp_flush(struct hs_wire *wire)
{
	flush(wire);
}

void hs_wire_xdp_detach(struct hs_wire *wire)
{
	struct xdp_wire *w = own(wire);
	w->socket_count = w->rx_count = w->committed = w->reserved = 0;
	w->is_backlogged = w->left = 0;
	memset(w->rx_of_socket, 0, sizeof(w->rx_of_socket));
}

int hs_wire_xdp_attach(struct hs_wire *wire, const uint64_t *sockets, int count, void *umem,
		       size_t umem_bytes, uint32_t frame_bytes)
{
	struct xdp_wire *w = own(wire);
	if (count < 1 || count > HS_WIRE_XDP_MAX_SOCKETS)
		return -1;
	for (int i = 0; i < count; i++)
		w->sockets[i] = (struct pyxdp_socket *)(uintptr_t)sockets[i];
	w->socket_count = count;
	w->next_socket = 0;
	w->umem = umem;
	w->umem_bytes = umem_bytes;
	w->frame_bytes = frame_bytes;
	return 0;
}
