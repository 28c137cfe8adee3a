/* SPDX-License-Identifier: Apache-2.0
 *
 * The wire over the kernel's UDP sockets: its sockets, and receiving from them.
 */
#define _GNU_SOURCE
#include "wire/sockets_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <linux/udp.h>

#include "wire/paths.h"

enum { RX_SLOT_BYTES = 65536 };

/* --- sockets ---------------------------------------------------------------------------------- */

int hs_wire_udp_add(struct hs_wire *wire, int fd, uint16_t local_port)
{
	struct hs_sockets *w = hs_sockets_of(wire);
	int on = 1;
	if (w->socket_count == HS_WIRE_UDP_MAX_SOCKETS)
		return -1;
	for (int is_v4 = 0; is_v4 < 2; is_v4++) {
		if (w->probes[is_v4] < 0)
			w->probes[is_v4] = socket(is_v4 ? AF_INET : AF_INET6,
						  SOCK_DGRAM | SOCK_CLOEXEC, 0);
	}
	/* Where the kernel has no GRO for UDP, messages are datagrams. */
	if (w->segments)
		setsockopt(fd, IPPROTO_UDP, UDP_GRO, &on, sizeof(on));
	w->fds[w->socket_count] = fd;
	w->ports[w->socket_count] = local_port;
	w->socket_count++;
	return 0;
}

void hs_wire_udp_remove(struct hs_wire *wire, int fd)
{
	struct hs_sockets *w = hs_sockets_of(wire);
	for (int i = 0; i < w->socket_count; i++) {
		if (w->fds[i] == fd) {
			w->socket_count--;
			w->fds[i] = w->fds[w->socket_count];
			w->ports[i] = w->ports[w->socket_count];
			break;
		}
	}
	if (w->blocked_fd == fd)
		w->blocked_fd = -1;
	if (w->message_fd == fd) /* the rest of its messages can't be answered */
		w->message_fd = -1;
	for (int i = w->first_out; i < w->out_count; i++) {
		if (w->out[i].fd == fd)
			w->out[i].fd = -1;
	}
	for (uint32_t i = 0; i < wire->paths.count; i++) {
		struct hs_path *path = wire->paths.by_id[i];
		if (path->fd != fd)
			continue;
		path->fd = -1;
		/* Datagrams that arrive on another socket with the same port need a path with
		 * that socket. */
		hs_paths_drop_key(&wire->paths, path);
	}
}

int hs_wire_udp_blocked(struct hs_wire *wire)
{
	return hs_sockets_of(wire)->blocked_fd;
}

/* --- receiving -------------------------------------------------------------------------------- */

/* The size of a message's segments (UDP_GRO), or the whole size if it is one datagram. */
static uint32_t segment_size(struct msghdr *header, uint32_t bytes)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c)) {
		if (c->cmsg_level == IPPROTO_UDP && c->cmsg_type == UDP_GRO) {
			int size;
			memcpy(&size, CMSG_DATA(c), sizeof(size));
			if (size > 0 && (uint32_t)size < bytes)
				return (uint32_t)size;
		}
	}
	return bytes;
}

/* Parse the next message. Returns 0 if it holds no datagram for us. */
static int open_message(struct hs_sockets *w)
{
	struct mmsghdr *message = &w->messages[w->message_at];
	uint8_t *key = w->keys[w->message_at];
	hs_udp_take_message(message, &w->about);
	w->message_offset = 0;
	if (!w->about.is_good) {
		w->wire.counters.drops[HS_WIRE_UDP_RX_TRUNCATED]++;
		return 0;
	}
	w->segment_bytes = segment_size(&message->msg_hdr, w->about.payload_bytes);
	memset(key, 0, HS_PATH_KEY_BYTES);
	memcpy(key, &w->about.flow, sizeof(w->about.flow));
	memcpy(key + sizeof(w->about.flow), &w->message_port, sizeof(w->message_port));
	return 1;
}

static int give_out(struct hs_sockets *w, struct hs_received *out, int budget)
{
	int given = 0;
	while (given < budget && w->message_at < w->message_count) {
		if (w->message_offset == 0 && !open_message(w)) {
			w->message_at++;
			continue;
		}
		uint32_t left = w->about.payload_bytes - w->message_offset;
		uint32_t bytes = w->segment_bytes < left ? w->segment_bytes : left;
		const uint8_t *key = w->keys[w->message_at];
		out[given++] = (struct hs_received){
			.data = w->rx_slots + (size_t)w->message_at * RX_SLOT_BYTES +
				w->message_offset,
			.bytes = bytes,
			.ecn = w->about.ecn,
			.path = hs_paths_by_key(&w->wire.paths, key),
			.key = key,
		};
		w->message_offset += bytes;
		w->wire.counters.rx_bytes += bytes;
		if (w->message_offset == w->about.payload_bytes) {
			w->message_at++;
			w->message_offset = 0;
		}
	}
	w->wire.counters.rx_datagrams += (uint64_t)given;
	return given;
}

static int read_socket(struct hs_sockets *w, int fd)
{
	for (int i = 0; i < HS_SOCKETS_RX_MESSAGES; i++) {
		w->parts[i] = (struct iovec){ w->rx_slots + (size_t)i * RX_SLOT_BYTES,
					      RX_SLOT_BYTES };
		w->messages[i].msg_len = 0;
		w->messages[i].msg_hdr = (struct msghdr){
			.msg_name = &w->remotes[i],
			.msg_namelen = sizeof(w->remotes[i]),
			.msg_iov = &w->parts[i],
			.msg_iovlen = 1,
			.msg_control = w->controls[i],
			.msg_controllen = HS_UDP_CONTROL_BYTES,
		};
	}
	int n = recvmmsg(fd, w->messages, HS_SOCKETS_RX_MESSAGES, MSG_DONTWAIT, NULL);
	/* The error belongs to an earlier datagram (ICMP): go on. */
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		w->wire.counters.drops[HS_WIRE_UDP_RX_ERROR]++;
	return n;
}

static int receive(struct hs_wire *wire, struct hs_received *out, int budget)
{
	struct hs_sockets *w = hs_sockets_of(wire);
	if (budget > HS_WIRE_BURST)
		budget = HS_WIRE_BURST;
	if (budget <= 0)
		return 0;
	hs_paths_begin_burst(&wire->paths);
	/* First return the rest of the last messages, alone: new messages would overwrite it. */
	int given = give_out(w, out, budget);
	for (int tried = 0; !given && tried < w->socket_count; tried++) {
		int i = w->next_socket % w->socket_count;
		w->next_socket = (i + 1) % w->socket_count;
		int n = read_socket(w, w->fds[i]);
		w->message_count = n > 0 ? n : 0;
		w->message_at = 0;
		w->message_offset = 0;
		w->message_port = w->ports[i];
		w->message_fd = w->fds[i];
		given = give_out(w, out, budget);
	}
	return given;
}

static void release(struct hs_wire *wire)
{
	(void)wire; /* the next recvmmsg reuses the slots */
}

/* --- creation and destruction ----------------------------------------------------------------- */

static void free_wire(struct hs_wire *wire)
{
	struct hs_sockets *w = hs_sockets_of(wire);
	hs_paths_free(&wire->paths);
	for (int i = 0; i < 2; i++) {
		if (w->probes[i] >= 0)
			close(w->probes[i]);
	}
	free(w->rx_slots);
	free(w->tx_buffer);
	free(w);
}

static const struct hs_wire_verbs VERBS = {
	.receive = receive,
	.release = release,
	.reserve = hs_sockets_reserve,
	.commit = hs_sockets_commit,
	.flush = hs_sockets_flush,
	.reverse = hs_sockets_reverse,
	.learn = hs_sockets_learn,
	.route = hs_sockets_route,
	.size = hs_sockets_size,
	.free = free_wire,
};

struct hs_wire *hs_wire_udp_new(uint32_t max_paths, int segments)
{
	struct hs_sockets *w = calloc(1, sizeof(*w));
	if (!w)
		return NULL;
	w->wire.verbs = &VERBS;
	w->segments = segments;
	w->blocked_fd = w->probes[0] = w->probes[1] = -1;
	w->rx_slots = calloc(HS_SOCKETS_RX_MESSAGES, RX_SLOT_BYTES);
	w->tx_buffer = calloc(1, HS_SOCKETS_TX_BUFFER_BYTES);
	if (!w->rx_slots || !w->tx_buffer || hs_paths_init(&w->wire.paths, max_paths)) {
		free(w->rx_slots);
		free(w->tx_buffer);
		free(w);
		return NULL;
	}
	return &w->wire;
}
