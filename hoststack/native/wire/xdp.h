/* SPDX-License-Identifier: Apache-2.0
 *
 * The wire over AF_XDP: frames are parsed where the kernel put them, and packets are written into
 * the frames that carry them.
 */
#ifndef HS_WIRE_XDP_H
#define HS_WIRE_XDP_H

#include <stddef.h>
#include <stdint.h>

#include "wire/wire.h"

enum { HS_WIRE_XDP_MAX_SOCKETS = 128 };

/* Drops that the wire counts in struct hs_wire_counters after those of enum hs_frame_drop. */
enum hs_wire_xdp_drop {
	HS_WIRE_XDP_TX_NO_NEXT_HOP = 16,
	HS_WIRE_XDP_TX_TOO_LARGE,
	HS_WIRE_XDP_TX_ENETDOWN, /* kicks; frames on the ring are sent once the interface is up */
	HS_WIRE_XDP_TX_ERROR, /* the rings refused frames, or a kick failed for another reason */
	HS_WIRE_XDP_RX_ERROR, /* the rings refused frames that were received */
	HS_WIRE_XDP_RX_DATAGRAM_NO_ROOM, /* plain datagrams that were not read in time */
	HS_WIRE_XDP_RX_NOT_FOR_US, /* to another MAC or IP address */
};

/* `verbs` is pyxdp's struct pyxdp_verbs, `sockets` are `count` pointers to struct pyxdp_socket
 * on one UMEM, one for each receive queue; the first one sends. NULL without memory. */
struct hs_wire *hs_wire_xdp_new(const void *verbs, const uint64_t *sockets, int count, void *umem,
				size_t umem_bytes, uint32_t frame_bytes, uint32_t max_paths);
/* The number of frames that the last kick left on the TX ring: wait until the socket is
 * writable, then kick again. Reset by this call. */
int hs_wire_xdp_left(struct hs_wire *wire);
/* Queue datagrams for a port of plain datagrams, instead of passing them to the engine. `ip` is
 * 4 or 16 bytes, all zeros for any address. Returns 0, or -1 without memory. */
int hs_wire_xdp_open_datagrams(struct hs_wire *wire, uint8_t ip_version, const uint8_t *ip,
			       uint16_t port);
void hs_wire_xdp_close_datagrams(struct hs_wire *wire, uint8_t ip_version, const uint8_t *ip,
				 uint16_t port);
/* The datagrams queued since the last call, as struct hs_datagram_record: valid until the next
 * turn. */
const uint8_t *hs_wire_xdp_take_datagrams(struct hs_wire *wire, size_t *bytes);
/* The interface as it is now: its MAC address, 6 bytes, its index, the largest IP packet, and this
 * machine's addresses. Datagrams for others are dropped. Returns 0, or -1 without memory. */
int hs_wire_xdp_set_interface(struct hs_wire *wire, const uint8_t *mac, uint32_t ifindex,
			      uint32_t ip_bytes, const struct hs_prefix *prefixes, uint32_t count);
/* Paths whose next hop is to be looked up: those that the program added, those along which a
 * peer with a proven address is sent datagrams, and all of these after a change of the interface.
 * Returns how many; each is reported once. */
struct hs_wire_xdp_question {
	uint32_t path_id;
	struct hs_path_ends ends;
};
int hs_wire_xdp_asked(struct hs_wire *wire, struct hs_wire_xdp_question *out, int room);
/* A path's next hop: its MAC address, NULL while it is unknown, and the largest IP packet of the
 * route, 0 without one. Then frames go back to where the path's own came from. */
void hs_wire_xdp_answer(struct hs_wire *wire, uint32_t path_id, const uint8_t *mac,
			uint32_t ip_bytes);
/* Paths with a looked-up next hop along which datagrams were sent since they were last reported.
 * Returns how many; *is_over once all paths were examined, some with each call. */
int hs_wire_xdp_used(struct hs_wire *wire, uint32_t *out, int room, int *is_over);
/* Stop using the sockets, which are about to be closed. Packets that the engine writes from now
 * on are counted and dropped, as by an interface that is down. Only between turns, like the next
 * one. */
void hs_wire_xdp_detach(struct hs_wire *wire);
/* Continue with other sockets, on another UMEM. Returns 0, or -1 if there are too many. */
int hs_wire_xdp_attach(struct hs_wire *wire, const uint64_t *sockets, int count, void *umem,
		       size_t umem_bytes, uint32_t frame_bytes);

#endif
