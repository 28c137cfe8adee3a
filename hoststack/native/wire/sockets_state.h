/* SPDX-License-Identifier: Apache-2.0
 *
 * The state of the wire over the kernel's UDP sockets (wire/sockets.h), and what its files offer
 * each other. Define _GNU_SOURCE.
 */
#ifndef HS_WIRE_SOCKETS_STATE_H
#define HS_WIRE_SOCKETS_STATE_H

#include "wire/sockets.h"
#include "wire/udp_messages.h"
#include "wire/verbs.h"

enum {
	HS_SOCKETS_RX_MESSAGES = 32, /* of one recvmmsg; with GRO each may hold many datagrams */
	HS_SOCKETS_TX_DATAGRAMS = 2 * HS_WIRE_BURST, /* a burst, and answers without a connection */
	HS_SOCKETS_TX_BUFFER_BYTES = 2 * 1024 * 1024, /* a burst of the largest datagrams of paths */
};

/* A datagram that was committed; its bytes lie in the buffer, after those of the one before. */
struct hs_sockets_datagram {
	struct hs_udp_flow flow;
	int fd;
	uint32_t offset;
	uint32_t bytes;
	uint8_t ecn;
};

struct hs_sockets {
	struct hs_wire wire;
	int fds[HS_WIRE_UDP_MAX_SOCKETS];
	uint16_t ports[HS_WIRE_UDP_MAX_SOCKETS];
	int socket_count;
	int next_socket;
	int segments;
	int blocked_fd;
	int probes[2]; /* sockets that ask for the MTU of routes, by: is it IPv4; -1: none */
	uint32_t sizes; /* counts the times that paths may have shrunk */
	uint64_t shrunk_at_ns;

	/* Received messages whose datagrams were not all returned yet. */
	int message_count, message_at;
	uint32_t message_offset;
	uint16_t message_port;
	int message_fd;
	struct mmsghdr messages[HS_SOCKETS_RX_MESSAGES];
	struct iovec parts[HS_SOCKETS_RX_MESSAGES];
	union hs_address remotes[HS_SOCKETS_RX_MESSAGES];
	_Alignas(struct cmsghdr) uint8_t controls[HS_SOCKETS_RX_MESSAGES][HS_UDP_CONTROL_BYTES];
	struct hs_udp_datagram about; /* describes the message at message_at */
	uint32_t segment_bytes;
	uint8_t keys[HS_SOCKETS_RX_MESSAGES][HS_PATH_KEY_BYTES];
	uint8_t *rx_slots;

	struct hs_sockets_datagram out[HS_SOCKETS_TX_DATAGRAMS];
	int first_out, out_count; /* unsent: from first_out to out_count */
	/* Datagrams before this index are sent alone: the kernel refused a message of several,
	 * and sending the first of them alone shows whether segmentation was the cause. */
	int alone_until;
	int is_doubted;
	uint32_t tx_used;
	uint8_t *tx_buffer;
};

static inline struct hs_sockets *hs_sockets_of(struct hs_wire *wire)
{
	return (struct hs_sockets *)wire;
}

/* wire/socket_paths.c: verbs of the wire, and a report that a datagram exceeded the MTU that the
 * kernel knows for its path, which has shrunk. */
uint32_t hs_sockets_size(struct hs_wire *wire, struct hs_path *path);
void hs_sockets_reverse(struct hs_wire *wire, const uint8_t *key, struct hs_path *out);
struct hs_path *hs_sockets_learn(struct hs_wire *wire, const uint8_t *key);
void hs_sockets_route(struct hs_wire *wire, struct hs_path *path);
void hs_sockets_note_too_large(struct hs_sockets *w);

/* wire/socket_send.c: verbs of the wire. */
uint8_t *hs_sockets_reserve(struct hs_wire *wire, size_t *room);
void hs_sockets_commit(struct hs_wire *wire, struct hs_path *path, uint32_t bytes, uint8_t ecn);
int hs_sockets_flush(struct hs_wire *wire);

#endif
