/* SPDX-License-Identifier: Apache-2.0
 *
 * A wire as its engine sees it: bursts of received datagrams, room to write datagrams into, and
 * paths. A wire belongs to one engine, and to one thread at a time.
 */
#ifndef HS_VERBS_H
#define HS_VERBS_H

#include <stddef.h>
#include <stdint.h>

#include "wire/paths.h"
#include "wire/wire.h"

enum {
	HS_WIRE_BURST = 64, /* the most datagrams that one call moves */
	HS_WIRE_KINDS_OF_DROP = 24,
};

/* A received datagram. `data` is valid until the wire's `release`. */
struct hs_received {
	const uint8_t *data;
	uint32_t bytes;
	uint8_t ecn; /* 0 to 3, RFC 3168 */
	struct hs_path *path; /* NULL: unknown so far */
	const uint8_t *key; /* HS_PATH_KEY_BYTES; valid as long as `data` */
};

struct hs_wire_verbs {
	/* Receive up to `budget` datagrams (HS_WIRE_BURST at most) without blocking. Returns how
	 * many. */
	int (*receive)(struct hs_wire *wire, struct hs_received *out, int budget);
	/* Release the datagrams of the last `receive`. */
	void (*release)(struct hs_wire *wire);
	/* Return room for one datagram, `*room` bytes; NULL while the wire's output is full.
	 * Until `commit` it returns the same room again. */
	uint8_t *(*reserve)(struct hs_wire *wire, size_t *room);
	/* Queue what was written into the room, to be sent along `path`. A datagram that can't
	 * be sent, or does not fit, is counted and dropped: the network may lose any. */
	void (*commit)(struct hs_wire *wire, struct hs_path *path, uint32_t bytes, uint8_t ecn);
	/* Send the committed datagrams. Returns how many are still queued because the output is
	 * full. */
	int (*flush)(struct hs_wire *wire);
	/* Fill in a path for answers to a datagram of the last `receive` with an unknown path:
	 * back to the sender. It is valid for `commit` only, until the next `receive`. */
	void (*reverse)(struct hs_wire *wire, const uint8_t *key, struct hs_path *out);
	/* Add the path of a datagram of the last `receive`, so that later ones with its key belong
	 * to it: it was proven, or is about to be. NULL without memory, or if all are in use. */
	struct hs_path *(*learn)(struct hs_wire *wire, const uint8_t *key);
	/* A path that the program asked for: find out how to send along it. */
	void (*route)(struct hs_wire *wire, struct hs_path *path);
	/* The largest datagram that can be sent along a path now; 0 for none. */
	uint32_t (*size)(struct hs_wire *wire, struct hs_path *path);
	/* Free the wire; its engine calls this when it is freed. */
	void (*free)(struct hs_wire *wire);
};

struct hs_wire_counters {
	uint64_t rx_datagrams;
	uint64_t rx_bytes;
	uint64_t tx_datagrams;
	uint64_t tx_bytes;
	uint64_t tx_full; /* times that `reserve` had no room */
	uint64_t drops[HS_WIRE_KINDS_OF_DROP]; /* the wire's header defines them */
};

struct hs_wire {
	const struct hs_wire_verbs *verbs;
	struct hs_paths paths;
	struct hs_wire_counters counters;
};

/* wire/wire.c */
void hs_path_read_ends(const struct hs_path *path, struct hs_path_ends *out);

#endif
