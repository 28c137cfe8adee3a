/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/xdp.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "pyxdp.h"
#include "wire/datagram_ports.h"
#include "wire/local_addresses.h"
#include "wire/verbs.h"

enum {
	DETACHED_BYTES = 4096,
	TX_ROOM = 2 * HS_WIRE_BURST, /* frames in hand: a burst, and answers without a connection */
	ETHERNET_BYTES = 14, /* without VLAN tags */
	HOP_LIMIT = 64, /* the kernel's default (RFC 1700) */
	IPV4_HEADERS_BYTES = 28, /* IP and UDP */
	IPV6_HEADERS_BYTES = 48,
	/* Datagrams sent back to where a path's frames come from before its route is looked up. A
	 * spoofed address is sent a few at most (RFC 9000 section 8.1), and costs no system call. */
	SENT_BEFORE_ROUTE = 16,
	WALK = 256, /* paths that one call looks at */
};

_Static_assert((int)HS_FRAME_DROPS <= (int)HS_WIRE_XDP_TX_NO_NEXT_HOP,
	       "drops have numbers of their own");
_Static_assert((int)HS_WIRE_XDP_RX_NOT_FOR_US < (int)HS_WIRE_KINDS_OF_DROP,
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
	struct hs_local_addresses addresses;
	uint8_t mac[6]; /* of the interface, as are the next two */
	uint32_t ifindex;
	uint32_t ip_bytes; /* the largest IP packet */
	uint32_t stale; /* paths with a lower number have headers from before a change */
	uint32_t unreported; /* the next path whose use may be reported */
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

/* --- paths ------------------------------------------------------------------------------------ */

static void read_key(const struct hs_path *path, struct hs_frame_flow *out)
{
	memset(out, 0, sizeof(*out));
	if (path->has_come)
		memcpy(out, path->key, sizeof(*out));
}

/* Make a path's header and size from what is known: its next hop, or where its frames came from. */
static void prepare(const struct xdp_wire *w, struct hs_path *path)
{
	struct hs_path_ends ends;
	struct hs_frame_flow flow;
	hs_path_read_ends(path, &ends);
	read_key(path, &flow);
	flow.ip_version = ends.ip_version;
	flow.local_port = ends.local_port;
	flow.remote_port = ends.remote_port;
	memcpy(flow.local_ip, ends.local_ip, sizeof(flow.local_ip));
	memcpy(flow.remote_ip, ends.remote_ip, sizeof(flow.remote_ip));
	memcpy(flow.local_mac, w->mac, sizeof(flow.local_mac));
	if (path->has_hop_mac)
		memcpy(flow.remote_mac, path->hop_mac, sizeof(flow.remote_mac));
	uint32_t headers = ends.ip_version == 4 ? IPV4_HEADERS_BYTES : IPV6_HEADERS_BYTES;
	uint32_t bytes = path->hop_bytes && path->hop_bytes < w->ip_bytes ? path->hop_bytes :
									    w->ip_bytes;
	path->max_datagram_bytes = bytes > headers ? bytes - headers : 0;
	path->has_header = (path->has_hop_mac || path->has_come) &&
			   !hs_frame_header_init(&path->header, &flow, HOP_LIMIT, 0);
}

static void reverse(struct hs_wire *wire, const uint8_t *key, struct hs_path *out)
{
	struct xdp_wire *w = own(wire);
	struct hs_frame_flow flow;
	memcpy(&flow, key, sizeof(flow));
	memset(out, 0, sizeof(*out));
	memcpy(out->key, key, sizeof(out->key));
	out->has_come = 1;
	out->fd = -1;
	hs_address_fill(&out->local, flow.ip_version, flow.local_ip, flow.local_port, w->ifindex);
	hs_address_fill(&out->remote, flow.ip_version, flow.remote_ip, flow.remote_port,
			w->ifindex);
	prepare(w, out);
}

static struct hs_path *learn(struct hs_wire *wire, const uint8_t *key)
{
	struct hs_path back, *path = hs_paths_by_key(&wire->paths, key);
	if (path)
		return path;
	reverse(wire, key, &back);
	path = hs_paths_add(&wire->paths, &back.local, &back.remote);
	if (!path)
		return NULL;
	/* Another MAC address or VLAN tag changes where its frames go, not the path. */
	hs_paths_set_key(&wire->paths, path, key);
	prepare(own(wire), path);
	return path;
}

static void route(struct hs_wire *wire, struct hs_path *path)
{
	if (path->is_routed)
		return;
	path->is_routed = 1;
	prepare(own(wire), path);
	hs_paths_ask(&wire->paths, path);
}

static uint32_t size(struct hs_wire *wire, struct hs_path *path)
{
	(void)wire;
	return path->has_header ? path->max_datagram_bytes : 0;
}

/* A port open on all addresses also gets frames that a bridge or router forwards. */
static int is_for_us(struct xdp_wire *w, const struct hs_frame_flow *flow)
{
	if (memcmp(flow->local_mac, w->mac, sizeof(w->mac)) ||
	    !hs_is_local(&w->addresses, flow->ip_version, flow->local_ip)) {
		w->wire.counters.drops[HS_WIRE_XDP_RX_NOT_FOR_US]++;
		return 0;
	}
	/* Nor does a host send from a group's MAC address. */
	if (flow->remote_mac[0] & 1 ||
	    hs_is_martian(&w->addresses, flow->ip_version, flow->remote_ip)) {
		w->wire.counters.drops[HS_FRAME_MARTIAN]++;
		return 0;
	}
	return 1;
}

/* --- receiving -------------------------------------------------------------------------------- */

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
		const uint8_t *key = (const uint8_t *)&d->flow;
		struct hs_path *path = hs_paths_by_key(&w->wire.paths, key);
		if (!path && !is_for_us(w, &d->flow))
			continue;
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
		out[good++] = (struct hs_received){
			.data = w->umem + d->payload,
			.bytes = d->payload_bytes,
			.ecn = d->ecn,
			.path = path,
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
	hs_paths_begin_burst(&wire->paths);
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

/* --- sending ---------------------------------------------------------------------------------- */

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
	if (bytes > path->max_datagram_bytes ||
	    bytes > w->frame_bytes - HS_FRAME_MAX_HEADER_BYTES) {
		wire->counters.drops[HS_WIRE_XDP_TX_TOO_LARGE]++;
		return;
	}
	desc->addr += HS_FRAME_MAX_HEADER_BYTES;
	hs_frame_finish(w->umem + desc->addr, &path->header, bytes, ecn);
	desc->addr -= path->header.header_bytes;
	desc->len = path->header.header_bytes + bytes;
	w->committed++;
	/* Answers to strangers do not count: no connection uses the path. Frames with VLAN tags
	 * belong to an interface that the kernel does not have, so it has no route for them. */
	if (path->references && ++path->tx_datagrams >= SENT_BEFORE_ROUTE && !path->is_routed &&
	    path->header.ip_offset == ETHERNET_BYTES)
		route(wire, path);
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

static void free_wire(struct hs_wire *wire)
{
	/* The frames in hand are freed with the UMEM. */
	hs_paths_free(&wire->paths);
	hs_datagram_ports_free(&own(wire)->datagram_ports);
	hs_local_addresses_free(&own(wire)->addresses);
	free(own(wire));
}

static const struct hs_wire_verbs VERBS = { receive, release, reserve, commit, flush,
					    reverse, learn,   route,   size,   free_wire };

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

/* --- next hops -------------------------------------------------------------------------------- */

int hs_wire_xdp_set_interface(struct hs_wire *wire, const uint8_t *mac, uint32_t ifindex,
			      uint32_t ip_bytes, const struct hs_prefix *prefixes, uint32_t count)
{
	struct xdp_wire *w = own(wire);
	if (hs_local_addresses_set(&w->addresses, prefixes, count))
		return -1;
	memcpy(w->mac, mac, sizeof(w->mac));
	w->ifindex = ifindex;
	w->ip_bytes = ip_bytes;
	w->stale = wire->paths.count;
	return 0;
}

/* Make headers anew, a slice at a time; those by the kernel's routes when their answer is there. */
static void refresh(struct xdp_wire *w)
{
	for (int i = 0; i < WALK && w->stale; i++) {
		struct hs_path *path = w->wire.paths.by_id[--w->stale];
		if (path->is_routed)
			hs_paths_ask(&w->wire.paths, path);
		else
			prepare(w, path);
	}
}

int hs_wire_xdp_asked(struct hs_wire *wire, struct hs_wire_xdp_question *out, int room)
{
	int n = 0;
	refresh(own(wire));
	while (n < room) {
		const struct hs_path *path = hs_paths_take_asking(&wire->paths);
		if (!path)
			break;
		out[n].path_id = path->id;
		hs_path_read_ends(path, &out[n].ends);
		n++;
	}
	return n;
}

void hs_wire_xdp_answer(struct hs_wire *wire, uint32_t path_id, const uint8_t *mac,
			uint32_t ip_bytes)
{
	struct hs_path *path = hs_paths_by_id(&wire->paths, path_id);
	if (!path)
		return;
	path->hop_bytes = ip_bytes;
	path->has_hop_mac = mac != NULL;
	if (mac)
		memcpy(path->hop_mac, mac, sizeof(path->hop_mac));
	prepare(own(wire), path);
}

int hs_wire_xdp_used(struct hs_wire *wire, uint32_t *out, int room, int *is_over)
{
	struct xdp_wire *w = own(wire);
	int n = 0;
	for (int i = 0; i < WALK && n < room && w->unreported < wire->paths.count; i++) {
		struct hs_path *path = wire->paths.by_id[w->unreported++];
		if (path->is_routed && path->tx_datagrams != path->reported)
			out[n++] = path->id;
		path->reported = path->tx_datagrams;
	}
	*is_over = w->unreported >= wire->paths.count;
	if (*is_over)
		w->unreported = 0;
	return n;
}

/* --- plain datagrams -------------------------------------------------------------------------- */

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

/* --- an interface that disappears and returns ------------------------------------------------- */

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
