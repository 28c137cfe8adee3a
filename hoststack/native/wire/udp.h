/* SPDX-License-Identifier: Apache-2.0
 *
 * Bursts of datagrams over kernel UDP sockets: one recvmmsg or sendmmsg per burst (recvmmsg(2)),
 * with the local address and the ECN bits of each datagram (ip(7), ipv6(7)).
 */
#ifndef HS_UDP_H
#define HS_UDP_H

#include <stddef.h>
#include <stdint.h>

enum {
	HS_UDP_BURST = 64, /* the most datagrams in one call */
	HS_UDP_SLOT_BYTES = 65536, /* room for any datagram */
};

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

/* A received datagram; its payload is in the slot with the same number. */
struct hs_udp_datagram {
	uint32_t payload_bytes;
	uint8_t ecn; /* 0 to 3, RFC 3168 */
	uint8_t is_good; /* 0: truncated, or without a local address */
	uint16_t zero;
	struct hs_udp_flow flow;
};

/* A receiver's buffers. One receiver serves any number of sockets, one after the other. */
struct hs_udp_receiver;
struct hs_udp_receiver *hs_udp_receiver_new(void); /* NULL without memory */
void hs_udp_receiver_free(struct hs_udp_receiver *r);
uint8_t *hs_udp_slots(struct hs_udp_receiver *r); /* HS_UDP_BURST times HS_UDP_SLOT_BYTES */

/* Set a socket's options: ECN and local addresses of received datagrams, no fragmentation of
 * sent ones. Returns 0, or -errno. */
int hs_udp_prepare(int fd, int ip_version);

/* Receive up to `budget` datagrams without blocking. Returns how many, or -errno. */
int hs_udp_receive(struct hs_udp_receiver *r, int fd, int budget, struct hs_udp_datagram *out);

/* Send `n` datagrams without blocking. Their payloads lie in `payloads` one after the other.
 * Returns how many are done with: fewer than `n` once the socket is full. A datagram that the
 * kernel refuses for another reason is done with too; it is counted in *refused and
 * *refused_bytes, and *reason is its errno. */
int hs_udp_send(int fd, int n, const uint8_t *payloads, size_t payloads_bytes,
		const uint32_t *payload_bytes, const struct hs_udp_flow *flows, int *refused,
		size_t *refused_bytes, int *reason);

#endif
