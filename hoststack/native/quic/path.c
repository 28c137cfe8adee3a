/* SPDX-License-Identifier: Apache-2.0
 *
 * The paths of a connection: the current one, and those of a migration (RFC 9000 section 9).
 */
#include "quic/path.h"

#include <string.h>

#include "quic/cid.h"
#include "quic/connection_schedule.h"
#include "quic/size.h"
#include "wire/paths.h"
#include "wire/verbs.h"

ngtcp2_path hs_ngtcp2_path(struct hs_path *path)
{
	return (ngtcp2_path){
		.local = { &path->local.any, hs_address_bytes(&path->local) },
		.remote = { &path->remote.any, hs_address_bytes(&path->remote) },
	};
}

static int is_path(struct hs_path *path, const ngtcp2_path *endpoints)
{
	ngtcp2_path own = hs_ngtcp2_path(path);
	return ngtcp2_path_eq(&own, endpoints);
}

/* Store a path in a slot, in place of the previous one; either may be NULL. */
static void assign(struct hs_connection *c, struct hs_path **slot, struct hs_path *path)
{
	struct hs_paths *paths = &c->q->wire->paths;
	if (path)
		hs_paths_hold(paths, path);
	if (*slot)
		hs_paths_let_go(paths, *slot);
	*slot = path;
}

void hs_path_begin(struct hs_connection *c, struct hs_path *path)
{
	assign(c, &c->path, path);
}

void hs_path_end(struct hs_connection *c)
{
	assign(c, &c->path, NULL);
	assign(c, &c->last_path, NULL);
	assign(c, &c->next_path, NULL);
	assign(c, &c->wanted_path, NULL);
}

static void move(struct hs_connection *c, struct hs_path *path)
{
	if (path == c->path)
		return;
	/* The connection returns there if the new path fails. */
	assign(c, &c->last_path, c->path);
	assign(c, &c->path, path);
	c->path_changes++;
	hs_size_begin(c);
	hs_touch(c, HS_PENDING_PATH_CHANGED);
}

struct hs_path *hs_path_for(struct hs_connection *c, const ngtcp2_path *endpoints)
{
	if (is_path(c->path, endpoints))
		return c->path;
	union hs_address local = { 0 }, remote = { 0 };
	memcpy(&local, endpoints->local.addr, endpoints->local.addrlen);
	memcpy(&remote, endpoints->remote.addr, endpoints->remote.addrlen);
	struct hs_path *path = hs_paths_by_address(&c->q->wire->paths, &local, &remote);
	/* The connection has moved there; otherwise this is only a probe. */
	if (path && ngtcp2_path_eq(ngtcp2_conn_get_path(c->conn), endpoints))
		move(c, path);
	return path;
}

/* ngtcp2 (1.11) accepts the probe of a preferred address before it has a connection ID to answer
 * with. From then on it uses each one that the client provides, finds that it may not send, and
 * retires it: endlessly, once per PTO. If it does not see this probe, it answers the client's
 * later ones. */
int hs_path_is_too_early(const struct hs_connection *c, struct hs_path *path)
{
	if (!c->listener || c->has_peer_cids || path == c->path ||
	    !ngtcp2_conn_get_dcid(c->conn)->datalen)
		return 0;
	ngtcp2_path own = hs_ngtcp2_path(c->path), other = hs_ngtcp2_path(path);
	other.remote = own.remote;
	return !ngtcp2_path_eq(&own, &other);
}

void hs_path_validated(struct hs_connection *c, const ngtcp2_path *endpoints, uint32_t flags,
		       int is_good)
{
	struct hs_path *path = c->next_path;
	if (!path || !is_path(path, endpoints))
		return;
	if (is_good)
		move(c, path);
	else if (!(flags & NGTCP2_PATH_VALIDATION_FLAG_PREFERRED_ADDR))
		hs_touch(c, HS_PENDING_MIGRATION_FAILED);
	assign(c, &c->next_path, NULL);
}

/* --- active migration ------------------------------------------------------------------------- */

int hs_connection_migrate(struct hs_connection *c, uint32_t path_id)
{
	struct hs_path *path = hs_paths_by_id(&c->q->wire->paths, path_id);
	if (c->listener)
		return HS_MIGRATION_OF_SERVER;
	if (c->state != HS_OPEN || !path)
		return HS_MIGRATION_TOO_LATE;
	if (ngtcp2_conn_get_remote_transport_params(c->conn)->disable_active_migration)
		return HS_MIGRATION_FORBIDDEN;
	assign(c, &c->wanted_path, path);
	hs_schedule(c);
	return 0;
}

void hs_connection_stay(struct hs_connection *c)
{
	if (c->wanted_path) {
		assign(c, &c->wanted_path, NULL);
		hs_touch(c, HS_PENDING_MIGRATION_FAILED);
	}
}

void hs_path_try_wanted(struct hs_connection *c)
{
	if (!c->wanted_path)
		return;
	ngtcp2_path path = hs_ngtcp2_path(c->wanted_path);
	switch (ngtcp2_conn_initiate_migration(c->conn, &path, c->q->now_ns)) {
	case 0:
		assign(c, &c->next_path, c->wanted_path);
		assign(c, &c->wanted_path, NULL);
		break;
	case NGTCP2_ERR_INVALID_STATE: /* RFC 9000 section 9: not before the handshake is confirmed */
	case NGTCP2_ERR_CONN_ID_BLOCKED:
		break; /* wait for the peer's HANDSHAKE_DONE or NEW_CONNECTION_ID */
	default:
		hs_connection_stay(c);
	}
}

/* --- the server's preferred address (RFC 9000 section 9.6) ------------------------------------ */

int hs_path_offer_preferred(struct hs_connection *c, ngtcp2_transport_params *params)
{
	const struct hs_quic_config *config = &c->config;
	ngtcp2_preferred_addr *out = &params->preferred_addr;
	if (!config->preferred_v4_port && !config->preferred_v6_port)
		return 0;
	params->preferred_addr_present = 1;
	if (config->preferred_v4_port) {
		out->ipv4_present = 1;
		out->ipv4.sin_family = AF_INET;
		out->ipv4.sin_port = htons(config->preferred_v4_port);
		memcpy(&out->ipv4.sin_addr, config->preferred_v4, sizeof(config->preferred_v4));
	}
	if (config->preferred_v6_port) {
		out->ipv6_present = 1;
		out->ipv6.sin6_family = AF_INET6;
		out->ipv6.sin6_port = htons(config->preferred_v6_port);
		memcpy(&out->ipv6.sin6_addr, config->preferred_v6, sizeof(config->preferred_v6));
	}
	return hs_new_cid(c, &out->cid, out->stateless_reset_token);
}

/* The path to one of the server's addresses; NULL without a route. */
static struct hs_path *find(struct hs_connection *c, const ngtcp2_preferred_addr *theirs, int is_v4)
{
	struct hs_quic *q = c->q;
	int64_t id = -1;
	if (is_v4 && theirs->ipv4_present)
		id = q->find_path(q->owner, c->number, 4, (const uint8_t *)&theirs->ipv4.sin_addr,
				  ntohs(theirs->ipv4.sin_port));
	else if (!is_v4 && theirs->ipv6_present)
		id = q->find_path(q->owner, c->number, 6, (const uint8_t *)&theirs->ipv6.sin6_addr,
				  ntohs(theirs->ipv6.sin6_port));
	return id < 0 ? NULL : hs_paths_by_id(&q->wire->paths, (uint32_t)id);
}

void hs_path_select_preferred(struct hs_connection *c, const ngtcp2_preferred_addr *theirs,
			      ngtcp2_path *out)
{
	int is_v4 = c->path->remote.any.sa_family == AF_INET;
	if (!c->config.follows_preferred)
		return;
	struct hs_path *path = find(c, theirs, is_v4);
	if (!path)
		path = find(c, theirs, !is_v4);
	if (!path)
		return;
	ngtcp2_path endpoints = hs_ngtcp2_path(path);
	ngtcp2_path_copy(out, &endpoints);
	assign(c, &c->next_path, path);
}
