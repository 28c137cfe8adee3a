/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/wire.h"

#include <string.h>

#include "wire/verbs.h"

_Static_assert(sizeof(struct hs_path_ends) == 48, "it has no padding bytes");

void hs_wire_get_figures(const struct hs_wire *wire, struct hs_wire_figures *out)
{
	const struct hs_wire_counters *c = &wire->counters;
	*out = (struct hs_wire_figures){ c->rx_datagrams, c->rx_bytes, c->tx_datagrams,
					 c->tx_bytes, c->tx_full, { 0 } };
	memcpy(out->drops, c->drops, sizeof(out->drops));
}

/* --- paths ------------------------------------------------------------------------------------ */

static int64_t number(const struct hs_path *path)
{
	return path ? (int64_t)path->id : -1;
}

int64_t hs_wire_add_path(struct hs_wire *wire, const struct hs_path_ends *ends)
{
	union hs_address local, remote;
	hs_address_fill(&local, ends->ip_version, ends->local_ip, ends->local_port,
			ends->local_scope);
	hs_address_fill(&remote, ends->ip_version, ends->remote_ip, ends->remote_port,
			ends->remote_scope);
	struct hs_path *path = hs_paths_add(&wire->paths, &local, &remote);
	if (path)
		wire->verbs->route(wire, path);
	return number(path);
}

int64_t hs_wire_learn(struct hs_wire *wire, const uint8_t *key)
{
	return number(wire->verbs->learn(wire, key));
}

static void read_address(const union hs_address *address, uint8_t *ip, uint16_t *port,
			 uint32_t *scope)
{
	if (address->any.sa_family == AF_INET) {
		memcpy(ip, &address->v4.sin_addr, 4);
		*port = ntohs(address->v4.sin_port);
		return;
	}
	memcpy(ip, &address->v6.sin6_addr, 16);
	*port = ntohs(address->v6.sin6_port);
	*scope = address->v6.sin6_scope_id;
}

void hs_path_read_ends(const struct hs_path *path, struct hs_path_ends *out)
{
	memset(out, 0, sizeof(*out));
	out->ip_version = path->local.any.sa_family == AF_INET ? 4 : 6;
	read_address(&path->local, out->local_ip, &out->local_port, &out->local_scope);
	read_address(&path->remote, out->remote_ip, &out->remote_port, &out->remote_scope);
}

uint32_t hs_wire_path_count(const struct hs_wire *wire)
{
	return wire->paths.count;
}

int hs_wire_path_ends(const struct hs_wire *wire, uint32_t path_id, struct hs_path_ends *out)
{
	const struct hs_path *path = hs_paths_by_id(&wire->paths, path_id);
	if (!path)
		return -1;
	hs_path_read_ends(path, out);
	return 0;
}

uint32_t hs_wire_path_bytes(struct hs_wire *wire, uint32_t path_id)
{
	struct hs_path *path = hs_paths_by_id(&wire->paths, path_id);
	return path ? wire->verbs->size(wire, path) : 0;
}

void hs_wire_hold_path(struct hs_wire *wire, uint32_t path_id)
{
	struct hs_path *path = hs_paths_by_id(&wire->paths, path_id);
	if (path)
		hs_paths_hold(&wire->paths, path);
}

void hs_wire_let_go(struct hs_wire *wire, uint32_t path_id)
{
	struct hs_path *path = hs_paths_by_id(&wire->paths, path_id);
	if (path && path->references)
		hs_paths_let_go(&wire->paths, path);
}

/* --- bursts ----------------------------------------------------------------------------------- */

int hs_wire_receive(struct hs_wire *wire, struct hs_wire_datagram *out, int budget)
{
	struct hs_received burst[HS_WIRE_BURST];
	int n = wire->verbs->receive(wire, burst, budget < HS_WIRE_BURST ? budget : HS_WIRE_BURST);
	int count = 0;
	for (int i = 0; i < n; i++) {
		const struct hs_path *path =
			burst[i].path ? burst[i].path : wire->verbs->learn(wire, burst[i].key);
		if (path)
			out[count++] = (struct hs_wire_datagram){ burst[i].data, burst[i].bytes,
								  path->id, burst[i].ecn };
	}
	if (n > 0 && !count)
		wire->verbs->release(wire);
	return count;
}

void hs_wire_release(struct hs_wire *wire)
{
	wire->verbs->release(wire);
}

int hs_wire_send(struct hs_wire *wire, uint32_t path_id, const uint8_t *data, uint32_t bytes)
{
	struct hs_path *path = hs_paths_by_id(&wire->paths, path_id);
	size_t room;
	if (!path)
		return 1;
	uint8_t *at = wire->verbs->reserve(wire, &room);
	if (!at) {
		/* What was queued before goes first; then there may be room. */
		wire->verbs->flush(wire);
		at = wire->verbs->reserve(wire, &room);
	}
	if (!at)
		return 0;
	if (bytes <= room)
		memcpy(at, data, bytes);
	wire->verbs->commit(wire, path, bytes, 0);
	return 1;
}

int hs_wire_flush(struct hs_wire *wire)
{
	return wire->verbs->flush(wire);
}

void hs_wire_free(struct hs_wire *wire)
{
	wire->verbs->free(wire);
}
