/* SPDX-License-Identifier: Apache-2.0
 *
 * A path is a pair of endpoints (RFC 9000 section 9). Python decides how datagrams are sent along
 * it (a socket, a prepared frame header), and this table stores that. A received datagram belongs
 * to the path with its key: struct hs_frame_flow, or struct hs_udp_flow and the local port.
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
	uint32_t id; /* the index that Python uses */
	uint32_t references; /* connections that use it; it is not evicted while there are any */
	uint32_t max_datagram_bytes; /* the largest UDP payload, 0 while there is no route */
	uint8_t has_key;
	uint8_t key[HS_PATH_KEY_BYTES];
	union hs_address local;
	union hs_address remote;
	uint64_t tx_datagrams;
	/* How the path's wire sends datagrams along it. */
	int fd; /* -1: none */
	struct hs_udp_flow flow;
	uint8_t has_header;
	struct hs_frame_header header; /* without ECN bits: hs_frame_finish adds them */
};

/* All paths of a wire. Bounded, because anyone can create paths by forging addresses: a path
 * without connections is evicted for a new one. */
struct hs_paths {
	uint64_t seed[2];
	uint32_t capacity; /* the most paths there may be */
	uint32_t bucket_mask;
	uint32_t count;
	uint32_t next_victim;
	struct hs_path **by_id;
	struct hs_path **by_key;
	struct hs_path **by_address;
	struct hs_path *last; /* the last result of hs_paths_by_key */
};

/* Returns 0, or -1 without memory. */
int hs_paths_init(struct hs_paths *paths, uint32_t capacity);
void hs_paths_free(struct hs_paths *paths);
/* The path with that number; NULL if there is none. */
struct hs_path *hs_paths_by_id(const struct hs_paths *paths, uint32_t id);
/* The path of received datagrams with this key; NULL if there is none. */
struct hs_path *hs_paths_by_key(struct hs_paths *paths, const uint8_t *key);
/* The path between two addresses; NULL if there is none. */
struct hs_path *hs_paths_by_address(struct hs_paths *paths, const union hs_address *local,
				    const union hs_address *remote);
/* Find the path between two addresses, or create it. NULL without memory, or if all are in use. */
struct hs_path *hs_paths_add(struct hs_paths *paths, const union hs_address *local,
			     const union hs_address *remote);
/* Set a path's key in place of its old one; another path with the same key loses it. */
void hs_paths_set_key(struct hs_paths *paths, struct hs_path *path, const uint8_t *key);
/* Remove a path's key: datagrams with it then belong to an unknown path, until a path gets the
 * key again. */
void hs_paths_drop_key(struct hs_paths *paths, struct hs_path *path);
socklen_t hs_address_bytes(const union hs_address *address);
/* `ip` is 4 or 16 bytes, the port in host byte order. */
void hs_address_fill(union hs_address *out, uint8_t ip_version, const uint8_t *ip, uint16_t port,
		     uint32_t scope);

#endif
