/* SPDX-License-Identifier: Apache-2.0
 *
 * A wire as its engine sees it: bursts of datagrams in, room to write datagrams into, and paths.
 * One wire belongs to one engine and one thread at a time.
 */
#ifndef HS_VERBS_H
#define HS_VERBS_H

#include <stddef.h>
#include <stdint.h>

#include "wire/paths.h"
#include "wire/wire.h"

enum {
	HS_WIRE_BURST = 64, /* datagrams that one call of a wire moves */
	HS_WIRE_KINDS_OF_DROP = 24,
};

/* A datagram that came. `data` is good until the wire's `release`. */
struct hs_received {
	const uint8_t *data;
	uint32_t bytes;
	uint8_t ecn; /* 0 to 3, RFC 3168 */
	struct hs_path *path; /* NULL: not known yet */
	const uint8_t *key; /* HS_PATH_KEY_BYTES of it; good as long as `data` */
};

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
