/* SPDX-License-Identifier: Apache-2.0
 *
 * Datagrams over kernel UDP sockets, with the local address and the ECN bits of each (ip(7),
 * ipv6(7)).
 */
#ifndef HS_UDP_H
#define HS_UDP_H

#include <stddef.h>
#include <stdint.h>

/* The addresses of a datagram. It has no padding bytes, and unused bytes are zero, so that the
 * whole struct can serve as a key. Numbers are in host byte order, addresses as on the wire; an
 * IPv4 address takes the first 4 bytes. */
struct hs_udp_flow {
	uint8_t ip_version; /* 4 or 6 */
	uint8_t zero;
	uint16_t remote_port;
	uint32_t remote_scope; /* the interface of a link-local IPv6 address, else 0 */
	uint8_t remote_ip[16];
	uint8_t local_ip[16];
};

/* What a received message is. */
struct hs_udp_datagram {
	uint32_t payload_bytes;
	uint8_t ecn; /* 0 to 3, RFC 3168 */
	uint8_t is_good; /* 0: truncated, or without a local address */
	uint16_t zero;
	struct hs_udp_flow flow;
};

/* Set a socket's options: ECN and local addresses of received datagrams, no fragmentation of
 * sent ones. Returns 0, or -errno. */
int hs_udp_prepare(int fd, int ip_version);

#endif
