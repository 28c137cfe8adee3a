/* SPDX-License-Identifier: Apache-2.0
 *
 * Ethernet, IP and UDP headers of frames in a UMEM.
 *
 * Parsing trusts nothing: every length is checked against the frame, and the frame against the
 * UMEM. Received checksums are verified for plain datagrams only, by hs_frame_sums_hold: QUIC
 * authenticates its packets. Sent frames have complete checksums.
 */
#ifndef HS_FRAMES_H
#define HS_FRAMES_H

#include <stddef.h>
#include <stdint.h>

enum {
	HS_FRAME_MAX_VLAN_TAGS = 2,
	/* Ethernet 14, two VLAN tags 8, IPv6 40, UDP 8 */
	HS_FRAME_MAX_HEADER_BYTES = 70,
};

/* Why a frame holds no datagram for us. */
enum hs_frame_drop {
	HS_FRAME_GOOD,
	HS_FRAME_OUTSIDE_UMEM, /* the descriptor points outside the UMEM */
	HS_FRAME_TRUNCATED, /* the frame ends within its headers, or before its IP packet does */
	HS_FRAME_NOT_IP,
	HS_FRAME_BAD_IP, /* invalid version, or header lengths that contradict each other */
	HS_FRAME_FRAGMENT,
	HS_FRAME_BAD_EXTENSION, /* too many IPv6 extension headers, or one with segments left */
	HS_FRAME_NOT_UDP,
	HS_FRAME_BAD_UDP, /* the UDP length does not fit the packet */
	HS_FRAME_MARTIAN, /* its source is not a host's address: never answer it */
	HS_FRAME_BAD_SUM, /* a checksum is wrong; see hs_frame_sums_hold */
	HS_FRAME_DROPS, /* the number of values */
};

/* Where a frame lies in the UMEM. The layout is that of struct xdp_desc (linux/if_xdp.h). */
struct hs_frame_desc {
	uint64_t addr;
	uint32_t len;
	uint32_t options;
};

/* Sender, receiver and VLAN tags of a datagram. It has no padding bytes, and unused bytes are
 * zero, so that the whole struct can serve as a key. Numbers are in host byte order, addresses
 * as on the wire; an IPv4 address takes the first 4 bytes. "Local" is the receiver, "remote" the
 * sender. */
struct hs_frame_flow {
	uint8_t ip_version; /* 4 or 6 */
	uint8_t vlan_tags; /* 0 to 2 */
	uint16_t vlan_tpid[HS_FRAME_MAX_VLAN_TAGS]; /* outermost first: 0x8100 or 0x88a8 */
	uint16_t vlan_id[HS_FRAME_MAX_VLAN_TAGS]; /* without priority bits */
	uint16_t local_port;
	uint16_t remote_port;
	uint8_t local_mac[6];
	uint8_t remote_mac[6];
	uint8_t local_ip[16];
	uint8_t remote_ip[16];
	uint8_t zero[6];
};

/* What a received frame holds. */
struct hs_datagram {
	uint64_t payload; /* offset of the UDP payload in the UMEM */
	uint32_t payload_bytes;
	uint8_t drop; /* enum hs_frame_drop; if not HS_FRAME_GOOD the other fields are invalid */
	uint8_t ecn; /* 0 to 3, RFC 3168 */
	uint16_t header_bytes; /* of IP and UDP, in front of the payload */
	struct hs_frame_flow flow;
};

/* The headers of a path's frames, complete except for lengths and checksums. */
struct hs_frame_header {
	uint8_t bytes[HS_FRAME_MAX_HEADER_BYTES];
	uint8_t header_bytes;
	uint8_t ip_offset;
	uint8_t ip_version;
	uint32_t ip_sum; /* unfolded one's complement sum of the IPv4 header, without the length */
	uint32_t udp_sum; /* the same of pseudo header and ports, without lengths */
};

/* Parse the headers of `n` received frames into as many datagrams. Returns how many are good. */
int hs_frames_parse(const uint8_t *umem, size_t umem_bytes, const struct hs_frame_desc *descs,
		    int n, struct hs_datagram *out);

/* Whether a good datagram's checksums, of IPv4 and of UDP, are right. Where no network card was
 * on the path (between the ends of a veth pair), a UDP checksum that the sender left to its card
 * is unfinished (CHECKSUM_PARTIAL): it is the sum of the pseudo header, and counts as right.
 * Without a checksum a datagram is good over IPv4 (RFC 768), but not over IPv6 (RFC 8200 section
 * 8.1). */
int hs_frame_sums_hold(const uint8_t *umem, const struct hs_datagram *datagram);

/* Prepare the headers of frames from a flow's local to its remote side, with the flow's VLAN
 * tags. `ecn` is 0 to 3. Returns 0, or -1 if the version or the tag count is out of range. */
int hs_frame_header_init(struct hs_frame_header *header, const struct hs_frame_flow *flow,
			 uint8_t hop_limit, uint8_t ecn);

/* Write a header in front of a payload that already lies in its frame: the payload's first byte
 * is at `payload`, and there are header_bytes in front of it. `ecn` is 0 to 3; where it is not 0
 * the header must have been made with 0. */
void hs_frame_finish(uint8_t *payload, const struct hs_frame_header *header, uint32_t payload_bytes,
		     uint8_t ecn);

#endif
