/* SPDX-License-Identifier: Apache-2.0
 *
 * A path is a pair of endpoints (RFC 9000 section 9). This table is the only one of a link: it
 * stores how datagrams are sent along each path. A received datagram belongs to the path with its
 * key: struct hs_frame_flow, or struct hs_udp_flow and the local port.
 *
 * Anyone can forge addresses, so the table is bounded, and a path is added only when a connection
 * begins on it, a packet from it was decrypted, or the program asked for it. When the table is
 * full, or has HS_PATHS_MOST_UNUSED paths without references, the one that was unused for longest
 * makes room. Paths that are referenced, and those that
 * the current burst has found, stay.
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

enum { HS_PATHS_MOST_UNUSED = 4096 };

struct hs_path {
	struct hs_path *next_by_key;
	struct hs_path *next_by_address;
	struct hs_path *older, *newer; /* without references: in the order of their last use */
	struct hs_path *next_asking;
	uint64_t burst; /* the last one that found it */
	uint32_t id;
	uint32_t references;
	uint32_t max_datagram_bytes; /* the largest UDP payload, 0 while there is no route */
	uint8_t has_key; /* datagrams with `key` belong to it */
	uint8_t has_come; /* there was a datagram with `key` */
	uint8_t key[HS_PATH_KEY_BYTES];
	union hs_address local;
	union hs_address remote;
	uint64_t tx_datagrams; /* while it was referenced */
	/* wire/sockets.c */
	int fd; /* -1: none */
	uint32_t asked; /* its wire's `sizes` when the kernel was asked for the path's size */
	struct hs_udp_flow flow;
	/* wire/xdp.c */
	uint64_t reported; /* `tx_datagrams` when it was last reported as used */
	uint32_t hop_bytes; /* the largest IP packet of its route; 0: none is known */
	uint8_t hop_mac[6]; /* of the next hop */
	uint8_t has_hop_mac;
	uint8_t is_routed; /* by the kernel's routes; if not, frames return to where they came from */
	uint8_t is_asking; /* its next hop is to be looked up */
	uint8_t has_header;
	struct hs_frame_header header; /* without ECN bits: hs_frame_finish adds them */
};

struct hs_paths {
	uint64_t seed[2];
	uint64_t burst; /* the current one */
	uint32_t capacity; /* the most paths there may be */
	uint32_t bucket_mask;
	uint32_t count;
	struct hs_path **by_id;
	struct hs_path **by_key;
	struct hs_path **by_address;
	struct hs_path *oldest, *newest; /* of those without references */
	uint32_t unused; /* how many these are */
	struct hs_path *first_asking, **asking_end;
	struct hs_path *last; /* the last result of hs_paths_by_key */
};

/* Returns 0, or -1 without memory. */
int hs_paths_init(struct hs_paths *paths, uint32_t capacity);
void hs_paths_free(struct hs_paths *paths);
/* A new burst begins: paths that the last one found may be replaced from now on. */
void hs_paths_begin_burst(struct hs_paths *paths);
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
/* Keep a path in the table; as many calls of hs_paths_let_go end that. */
void hs_paths_hold(struct hs_paths *paths, struct hs_path *path);
void hs_paths_let_go(struct hs_paths *paths, struct hs_path *path);
/* Set a path's key in place of its old one; another path with the same key loses it. */
void hs_paths_set_key(struct hs_paths *paths, struct hs_path *path, const uint8_t *key);
/* Remove a path's key: datagrams with it then belong to an unknown path, until a path gets the
 * key again. */
void hs_paths_drop_key(struct hs_paths *paths, struct hs_path *path);
/* List a path whose next hop is to be looked up; hs_paths_take_asking takes the first one, NULL
 * if there is none. */
void hs_paths_ask(struct hs_paths *paths, struct hs_path *path);
struct hs_path *hs_paths_take_asking(struct hs_paths *paths);
socklen_t hs_address_bytes(const union hs_address *address);
/* `ip` is 4 or 16 bytes, the port in host byte order. `scope` is the interface, which only a
 * link-local IPv6 address has. */
void hs_address_fill(union hs_address *out, uint8_t ip_version, const uint8_t *ip, uint16_t port,
		     uint32_t scope);

#endif
