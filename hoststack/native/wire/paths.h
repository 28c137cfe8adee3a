/* SPDX-License-Identifier: Apache-2.0
 *
 * A path is a pair of endpoints (RFC 9000 section 9). What it takes to send along it (a socket, a
 * prepared frame header) is decided in Python and kept here; what marks a received datagram as
 * one of the path's is its key: struct hs_frame_flow, or struct hs_udp_flow and the local port.
 */
#ifndef HS_PATHS_H
#define HS_PATHS_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>

#include "wire/frames.h"
#include "wire/udp.h"
#include "wire/wire.h"

union hs_address {
	struct sockaddr any;
	struct sockaddr_in v4;
	struct sockaddr_in6 v6;
};

struct hs_path {
	struct hs_path *next_by_key;
	struct hs_path *next_by_address;
	uint32_t id; /* the index by which Python knows it */
	uint32_t references; /* connections that use it; while there are any it is kept */
	uint32_t max_datagram_bytes; /* the largest UDP payload, 0 while there is no way */
	uint8_t has_key;
	uint8_t key[HS_PATH_KEY_BYTES];
	union hs_address local;
	union hs_address remote;
	uint64_t tx_datagrams;
	/* How datagrams go, for the wire that it belongs to. */
	int fd; /* -1: none */
	struct hs_udp_flow flow;
	uint8_t has_header;
	struct hs_frame_header header; /* without ECN bits: those go in with the lengths */
};

/* All paths of a wire. Bounded: anyone can make new ones by forging addresses, so the oldest that
 * no connection uses makes room. */
struct hs_paths {
	uint64_t seed[2];
	uint32_t capacity; /* how many there may be */
	uint32_t bucket_mask;
	uint32_t count;
	uint32_t next_victim;
	struct hs_path **by_id;
	struct hs_path **by_key;
	struct hs_path **by_address;
	struct hs_path *last; /* the one found last by its key */
};

/* Returns 0, or -1 without memory. */
int hs_paths_init(struct hs_paths *paths, uint32_t capacity);
void hs_paths_free(struct hs_paths *paths);
/* The path of a number; NULL if there is none. */
struct hs_path *hs_paths_by_id(const struct hs_paths *paths, uint32_t id);
/* The path that a received datagram of this key came along; NULL if there is none. */
struct hs_path *hs_paths_by_key(struct hs_paths *paths, const uint8_t *key);
/* The path between two addresses; NULL if there is none. */
struct hs_path *hs_paths_by_address(struct hs_paths *paths, const union hs_address *local,
				    const union hs_address *remote);
/* The same, made if there is none; NULL without memory, or if all are in use. */
struct hs_path *hs_paths_add(struct hs_paths *paths, const union hs_address *local,
			     const union hs_address *remote);
/* Give a path its key, in place of the one it had; another path that had it loses it. */
void hs_paths_set_key(struct hs_paths *paths, struct hs_path *path, const uint8_t *key);
/* What comes with its key is of no known path then, until it is given one again. */
void hs_paths_drop_key(struct hs_paths *paths, struct hs_path *path);
socklen_t hs_address_bytes(const union hs_address *address);
/* `ip` is 4 or 16 bytes, the port in host byte order. */
void hs_address_fill(union hs_address *out, uint8_t ip_version, const uint8_t *ip, uint16_t port,
		     uint32_t scope);

#endif
