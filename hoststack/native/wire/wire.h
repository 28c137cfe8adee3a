/* SPDX-License-Identifier: Apache-2.0
 *
 * The interface to the network: sockets, rings or a buffer behind one set of function pointers
 * (verbs.h), and a table of paths. An engine in C owns its wire and calls those functions. For an
 * engine in Python its link owns the wire, and moves datagrams with the functions below.
 */
#ifndef HS_WIRE_H
#define HS_WIRE_H

#include <stddef.h>
#include <stdint.h>

struct hs_wire;

enum {
	HS_PATH_KEY_BYTES = 64, /* what identifies the path of a received datagram */
	HS_MAX_PATHS = 65536, /* in the table of a link */
};

/* The addresses of a path; an IPv4 address takes the first 4 bytes, ports are in host byte order.
 * It has no padding bytes, and unused bytes are zero, so that the whole struct can serve as a
 * key. */
struct hs_path_ends {
	uint8_t ip_version; /* 4 or 6 */
	uint8_t zero[3];
	uint16_t local_port;
	uint16_t remote_port;
	uint32_t local_scope; /* the interface of a link-local address, else 0 */
	uint32_t remote_scope;
	uint8_t local_ip[16];
	uint8_t remote_ip[16];
};

/* A part of this machine's addresses (local_addresses.h). */
struct hs_prefix {
	uint8_t ip_version;
	uint8_t bits;
	uint8_t is_broadcast;
	uint8_t ip[16];
};

/* Add the path between two endpoints, or find it. Returns the path's number, or -1 if the table is
 * full. */
int64_t hs_wire_add_path(struct hs_wire *wire, const struct hs_path_ends *ends);
/* The path of a datagram with this key, from now on; its number, or -1. */
int64_t hs_wire_learn(struct hs_wire *wire, const uint8_t *key);
/* How many paths the table has. */
uint32_t hs_wire_path_count(const struct hs_wire *wire);
/* The addresses of a path. Returns 0, or -1 if there is none with that number. */
int hs_wire_path_ends(const struct hs_wire *wire, uint32_t path_id, struct hs_path_ends *out);
/* The largest datagram that can be sent along the path now; 0 for none. */
uint32_t hs_wire_path_bytes(struct hs_wire *wire, uint32_t path_id);
/* Keep a path in the table until it was let go as often. */
void hs_wire_hold_path(struct hs_wire *wire, uint32_t path_id);
void hs_wire_let_go(struct hs_wire *wire, uint32_t path_id);

/* A received datagram; `data` is valid until hs_wire_release. */
struct hs_wire_datagram {
	const uint8_t *data;
	uint32_t bytes;
	uint32_t path_id; /* once it is held, the path keeps its number */
	uint8_t ecn;
};

/* Receive up to `budget` datagrams, 64 at most, without blocking. Returns how many. */
int hs_wire_receive(struct hs_wire *wire, struct hs_wire_datagram *out, int budget);
void hs_wire_release(struct hs_wire *wire);
/* Queue a datagram; `hs_wire_flush` sends what is queued. Only between an engine's turns. Returns
 * 1, or 0 while the output is full. */
int hs_wire_send(struct hs_wire *wire, uint32_t path_id, const uint8_t *data, uint32_t bytes);
/* Returns how many datagrams are still queued because the output is full. */
int hs_wire_flush(struct hs_wire *wire);
void hs_wire_free(struct hs_wire *wire);

/* A wire's counters; the wire's header defines the drops. */
struct hs_wire_figures {
	uint64_t rx_datagrams;
	uint64_t rx_bytes;
	uint64_t tx_datagrams;
	uint64_t tx_bytes;
	uint64_t tx_full;
	uint64_t drops[24];
};
void hs_wire_get_figures(const struct hs_wire *wire, struct hs_wire_figures *out);

#endif
