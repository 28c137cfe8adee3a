/* SPDX-License-Identifier: Apache-2.0
 *
 * The way to the network, as the native turn sees it: bursts of datagrams in, room to write
 * datagrams into, and paths. One wire belongs to one engine and one thread at a time.
 *
 * A path is a pair of endpoints (RFC 9000 section 9). What it takes to send along it (a socket, a
 * prepared frame header) is decided in Python and kept here; what marks a received datagram as
 * one of the path's is its key: struct hs_frame_flow, or struct hs_udp_flow and the local port.
 */
#ifndef HS_WIRE_H
#define HS_WIRE_H

#include <netinet/in.h>
#include <stddef.h>
#include <stdint.h>

#include "frames.h"
#include "quic.h"
#include "udp.h"

enum {
	HS_WIRE_BURST = 64, /* datagrams that one call of a wire moves */
	HS_WIRE_KINDS_OF_DROP = 24,
};

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

/* A datagram that came. `data` is good until the wire's `release`. */
struct hs_received {
	const uint8_t *data;
	uint32_t bytes;
	uint8_t ecn; /* 0 to 3, RFC 3168 */
	struct hs_path *path; /* NULL: not known yet */
	const uint8_t *key; /* HS_PATH_KEY_BYTES of it; good as long as `data` */
};

struct hs_wire;

struct hs_wire_verbs {
	/* Take up to `budget` datagrams (HS_WIRE_BURST at most) without waiting. Returns how many. */
	int (*receive)(struct hs_wire *wire, struct hs_received *out, int budget);
	/* The datagrams of the last `receive` are done with. */
	void (*release)(struct hs_wire *wire);
	/* Room for one datagram, `*room` bytes; NULL when the way out is full. Until `commit` the
	 * same room is given again. */
	uint8_t *(*reserve)(struct hs_wire *wire, size_t *room);
	/* What was written into the room goes along `path`. One that can't go is counted and
	 * dropped: the network may lose any. */
	void (*commit)(struct hs_wire *wire, struct hs_path *path, uint32_t bytes, uint8_t ecn);
	/* Hand over what was committed. Returns how many datagrams have to wait for the way out. */
	int (*flush)(struct hs_wire *wire);
	/* Fill in a path for answers to a datagram of the last `receive` whose path is not known: back to
	 * where it came from. It is good for `commit` alone, until the next `receive`. Returns 0, or -1 if
	 * it has to be looked up first. */
	int (*reverse)(struct hs_wire *wire, const uint8_t *key, struct hs_path *out);
	/* The engine that it was given to is gone. */
	void (*free)(struct hs_wire *wire);
};

struct hs_wire_counters {
	uint64_t rx_datagrams;
	uint64_t rx_bytes;
	uint64_t tx_datagrams;
	uint64_t tx_bytes;
	uint64_t tx_full; /* times that `reserve` had no room */
	uint64_t drops[HS_WIRE_KINDS_OF_DROP]; /* what they mean is the wire's to say */
};

struct hs_wire {
	const struct hs_wire_verbs *verbs;
	struct hs_paths paths;
	struct hs_wire_counters counters;
	uint8_t admitted[HS_PATH_KEY_BYTES]; /* the key of the path that was looked up last */
	uint8_t has_admitted;
};

#endif
