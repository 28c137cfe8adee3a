/* SPDX-License-Identifier: Apache-2.0
 *
 * The wire over AF_XDP: frames are parsed where the kernel put them, and packets are written into
 * the frames that they leave in. */
#ifndef HS_WIRE_XDP_H
#define HS_WIRE_XDP_H

#include <stddef.h>
#include <stdint.h>

struct hs_wire;

enum { HS_WIRE_XDP_MAX_SOCKETS = 128 };

/* What the wire counts beside struct hs_wire_counters; its drops are enum hs_frame_drop's, and
 * these after them. */
enum hs_wire_xdp_drop {
	HS_WIRE_XDP_TX_NO_NEXT_HOP = 16,
	HS_WIRE_XDP_TX_TOO_LARGE,
	HS_WIRE_XDP_TX_ENETDOWN, /* kicks; what is on the ring goes when the interface is up */
	HS_WIRE_XDP_TX_ERROR, /* the rings refused frames, or a kick failed in another way */
	HS_WIRE_XDP_RX_ERROR, /* the rings refused frames that were received */
};

/* `verbs` is pyxdp's struct pyxdp_verbs, `sockets` are `count` struct pyxdp_socket's on one UMEM,
 * one for each receive queue; the first sends. NULL without memory. */
struct hs_wire *hs_wire_xdp_new(const void *verbs, const uint64_t *sockets, int count, void *umem,
				size_t umem_bytes, uint32_t frame_bytes, uint32_t max_paths);
/* Frames that the last kick left on the TX ring: wait until the socket is writable, kick again. It
 * is told once. */
int hs_wire_xdp_left(struct hs_wire *wire);
/* Packets no longer go to the sockets: they are about to be closed. */
void hs_wire_xdp_detach(struct hs_wire *wire);

#endif
