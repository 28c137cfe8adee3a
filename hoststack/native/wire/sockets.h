/* SPDX-License-Identifier: Apache-2.0
 *
 * The wire over the kernel's UDP sockets: one recvmmsg and one sendmmsg per burst, and segments of
 * one size in one message where the kernel can do that (UDP_SEGMENT, UDP_GRO: udp(7)).
 */
#ifndef HS_WIRE_UDP_H
#define HS_WIRE_UDP_H

#include <stdint.h>

struct hs_wire;

enum {
	HS_WIRE_UDP_MAX_SOCKETS = 256,
	/* The loopback interface carries 64 KiB, but one lost datagram should not cost that much.
	 * Above this size the cost of a single datagram hardly matters. */
	HS_WIRE_UDP_MOST_BYTES = 16 * 1024,
};

enum hs_wire_udp_drop {
	HS_WIRE_UDP_RX_TRUNCATED, /* truncated, or without a local address */
	HS_WIRE_UDP_RX_ERROR,
	/* The kernel refused the datagram for good, by errno. */
	HS_WIRE_UDP_TX_EMSGSIZE,
	HS_WIRE_UDP_TX_EBADF, /* the path's port was closed */
	HS_WIRE_UDP_TX_EINVAL, /* most likely the local address is gone */
	HS_WIRE_UDP_TX_EPERM, /* a firewall */
	HS_WIRE_UDP_TX_ENETUNREACH,
	HS_WIRE_UDP_TX_EHOSTUNREACH,
	HS_WIRE_UDP_TX_ENETDOWN,
	HS_WIRE_UDP_TX_ERROR,
};

/* NULL without memory. With `segments` 0 each message is one datagram. */
struct hs_wire *hs_wire_udp_new(uint32_t max_paths, int segments);
/* Use a bound socket. Returns -1 if there are too many. */
int hs_wire_udp_add(struct hs_wire *wire, int fd, uint16_t local_port);
void hs_wire_udp_remove(struct hs_wire *wire, int fd);
/* The largest datagram on a path whose route has this MTU. */
uint32_t hs_wire_udp_path_bytes(uint32_t mtu_bytes, uint8_t ip_version);
/* The socket that was full at the last `flush`; -1 for none. */
int hs_wire_udp_blocked(struct hs_wire *wire);

#endif
