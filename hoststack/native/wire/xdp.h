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
	HS_WIRE_XDP_RX_DATAGRAM_NO_ROOM, /* plain datagrams that nobody took in time */
};

/* `verbs` is pyxdp's struct pyxdp_verbs, `sockets` are `count` struct pyxdp_socket's on one UMEM,
 * one for each receive queue; the first sends. NULL without memory. */
struct hs_wire *hs_wire_xdp_new(const void *verbs, const uint64_t *sockets, int count, void *umem,
				size_t umem_bytes, uint32_t frame_bytes, uint32_t max_paths);
/* Frames that the last kick left on the TX ring: wait until the socket is writable, kick again. It
 * is told once. */
int hs_wire_xdp_left(struct hs_wire *wire);
/* What comes for a port of plain datagrams is put aside, and no packet for the engine. `ip` is 4 or
 * 16 bytes, all zeros for any address. Returns 0, or -1 without memory. */
int hs_wire_xdp_open_datagrams(struct hs_wire *wire, uint8_t ip_version, const uint8_t *ip,
			       uint16_t port);
void hs_wire_xdp_close_datagrams(struct hs_wire *wire, uint8_t ip_version, const uint8_t *ip,
				 uint16_t port);
/* What was put aside since the last call, as struct hs_datagram_record's: good until the next turn. */
const uint8_t *hs_wire_xdp_take_datagrams(struct hs_wire *wire, size_t *bytes);
/* Send a plain datagram with a header (struct hs_frame_header); `flush` hands over what there is.
 * Between turns alone. Returns 1, or 0 while the way out is full. */
int hs_wire_xdp_send_datagram(struct hs_wire *wire, const void *header, uint32_t max_bytes,
			      const uint8_t *payload, uint32_t bytes);
void hs_wire_xdp_flush(struct hs_wire *wire);
/* Packets no longer go to the sockets: they are about to be closed. What the engine writes from now
 * on is counted and dropped, as by an interface that is down. Between turns alone, as the next. */
void hs_wire_xdp_detach(struct hs_wire *wire);
/* Go on with other sockets, on another UMEM. Returns 0, or -1 where there are too many. */
int hs_wire_xdp_attach(struct hs_wire *wire, const uint64_t *sockets, int count, void *umem,
		       size_t umem_bytes, uint32_t frame_bytes);

#endif
