/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/wire.h"

#include <string.h>

#include "wire/verbs.h"

void hs_wire_get_figures(const struct hs_wire *wire, struct hs_wire_figures *out)
{
	const struct hs_wire_counters *c = &wire->counters;
	*out = (struct hs_wire_figures){ c->rx_datagrams, c->rx_bytes, c->tx_datagrams,
					 c->tx_bytes, c->tx_full, { 0 } };
	memcpy(out->drops, c->drops, sizeof(out->drops));
}

int64_t hs_wire_add_path(struct hs_wire *wire, uint8_t ip_version, const uint8_t *local_ip,
			 uint16_t local_port, const uint8_t *remote_ip, uint16_t remote_port,
			 uint32_t scope)
{
	union hs_address local, remote;
	hs_address_fill(&local, ip_version, local_ip, local_port, 0);
	hs_address_fill(&remote, ip_version, remote_ip, remote_port, scope);
	struct hs_path *path = hs_paths_add(&wire->paths, &local, &remote);
	return path ? (int64_t)path->id : -1;
}

void hs_wire_set_key(struct hs_wire *wire, uint32_t path_id, const uint8_t *key)
{
	struct hs_path *path = hs_paths_by_id(&wire->paths, path_id);
	if (!path)
		return;
	hs_paths_set_key(&wire->paths, path, key);
	memcpy(wire->resolved_key, key, HS_PATH_KEY_BYTES);
	wire->has_resolved_key = 1;
}

void hs_wire_set_size(struct hs_wire *wire, uint32_t path_id, uint32_t max_datagram_bytes)
{
	struct hs_path *path = hs_paths_by_id(&wire->paths, path_id);
	if (path)
		path->max_datagram_bytes = max_datagram_bytes;
}

void hs_wire_set_header(struct hs_wire *wire, uint32_t path_id, const void *frame_header)
{
	struct hs_path *path = hs_paths_by_id(&wire->paths, path_id);
	if (!path)
		return;
	path->has_header = frame_header != NULL;
	if (frame_header)
		memcpy(&path->header, frame_header, sizeof(path->header));
}

void hs_wire_set_socket(struct hs_wire *wire, uint32_t path_id, int fd, const void *udp_flow)
{
	struct hs_path *path = hs_paths_by_id(&wire->paths, path_id);
	if (!path)
		return;
	path->fd = fd;
	if (udp_flow)
		memcpy(&path->flow, udp_flow, sizeof(path->flow));
}

uint64_t hs_wire_path_sent(const struct hs_wire *wire, uint32_t path_id)
{
	struct hs_path *path = hs_paths_by_id(&wire->paths, path_id);
	return path ? path->tx_datagrams : 0;
}
