/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "wire/sockets.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <linux/udp.h>

#include "wire/udp_messages.h"
#include "wire/verbs.h"

enum {
	RX_MESSAGES = 32, /* of one recvmmsg; with GRO each may hold many datagrams */
	RX_SLOT_BYTES = 65536,
	TX_DATAGRAMS = 2 * HS_WIRE_BURST, /* a burst, and answers without a connection */
	TX_DATAGRAM_BYTES = 65527, /* the maximum over UDP */
	TX_BUFFER_BYTES = 2 * 1024 * 1024, /* a burst of the largest datagrams of paths */
	/* QUIC works on no path that carries less (RFC 9000 section 14). */
	LEAST_PATH_BYTES = 1200,
	IPV4_HEADERS_BYTES = 28, /* IP and UDP */
	IPV6_HEADERS_BYTES = 48,
	MOST_SEGMENTS = 64, /* UDP_MAX_SEGMENTS of kernels before 6.9 */
	MOST_MESSAGE_BYTES = 65000,
};

/* Least time between two queries of a path's size, which cost system calls. */
#define SIZES_AFTER_NS 100000000ULL

/* A datagram that was committed; its bytes lie in the buffer, after those of the one before. */
struct outgoing {
	struct hs_udp_flow flow;
	int fd;
	uint32_t offset;
	uint32_t bytes;
	uint8_t ecn;
};

struct udp_wire {
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
	struct mmsghdr messages[RX_MESSAGES];
	struct iovec parts[RX_MESSAGES];
	union hs_address remotes[RX_MESSAGES];
	_Alignas(struct cmsghdr) uint8_t controls[RX_MESSAGES][HS_UDP_CONTROL_BYTES];
	struct hs_udp_datagram about; /* describes the message at message_at */
	uint32_t segment_bytes;
	uint8_t keys[RX_MESSAGES][HS_PATH_KEY_BYTES];
	uint8_t *rx_slots;

	struct outgoing out[TX_DATAGRAMS];
	int first_out, out_count; /* unsent: from first_out to out_count */
	/* Datagrams before this index are sent alone: the kernel refused a message of several,
	 * and sending the first of them alone shows whether segmentation was the cause. */
	int alone_until;
	int is_doubted;
	uint32_t tx_used;
	uint8_t *tx_buffer;
};

static struct udp_wire *own(struct hs_wire *wire)
{
	return (struct udp_wire *)wire;
}

/* --- sockets ---------------------------------------------------------------------------------- */

int hs_wire_udp_add(struct hs_wire *wire, int fd, uint16_t local_port)
{
	struct udp_wire *w = own(wire);
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
	struct udp_wire *w = own(wire);
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
	return own(wire)->blocked_fd;
}

/* --- paths ------------------------------------------------------------------------------------ */

/* The MTU of the route to an address; 0 without a route, or without a descriptor. */
static uint32_t route_mtu(const struct udp_wire *w, const union hs_address *remote)
{
	static const struct sockaddr UNSPECIFIED = { .sa_family = AF_UNSPEC };
	int is_v4 = remote->any.sa_family == AF_INET, mtu = 0;
	int probe = w->probes[is_v4];
	socklen_t bytes = sizeof(mtu);
	/* Connecting looks up the route, and sends nothing; the last route's source address must
	 * not stay. */
	if (probe < 0 || connect(probe, &UNSPECIFIED, sizeof(UNSPECIFIED)) ||
	    connect(probe, &remote->any, hs_address_bytes(remote)) ||
	    getsockopt(probe, is_v4 ? IPPROTO_IP : IPPROTO_IPV6, is_v4 ? IP_MTU : IPV6_MTU, &mtu,
		       &bytes))
		return 0;
	return mtu > 0 ? (uint32_t)mtu : 0;
}

uint32_t hs_wire_udp_path_bytes(uint32_t mtu_bytes, uint8_t ip_version)
{
	uint32_t headers = ip_version == 4 ? IPV4_HEADERS_BYTES : IPV6_HEADERS_BYTES;
	uint32_t bytes = mtu_bytes > headers ? mtu_bytes - headers : 0;
	return bytes < HS_WIRE_UDP_MOST_BYTES ? bytes : HS_WIRE_UDP_MOST_BYTES;
}

static uint32_t size(struct hs_wire *wire, struct hs_path *path)
{
	if (path->fd < 0)
		return 0;
	if (path->asked == own(wire)->sizes)
		return path->max_datagram_bytes;
	path->asked = own(wire)->sizes;
	uint32_t mtu = route_mtu(own(wire), &path->remote);
	/* The peer may be unreachable now: the kernel then refuses to send there. */
	if (mtu)
		path->max_datagram_bytes = hs_wire_udp_path_bytes(
			mtu, path->remote.any.sa_family == AF_INET ? 4 : 6);
	return path->max_datagram_bytes;
}

/* A datagram exceeded the MTU that the kernel knows for its path: it has shrunk. */
static void note_too_large(struct udp_wire *w)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
	if (now_ns - w->shrunk_at_ns < SIZES_AFTER_NS)
		return;
	w->shrunk_at_ns = now_ns;
	w->sizes++;
}

static void reverse(struct hs_wire *wire, const uint8_t *key, struct hs_path *out)
{
	struct udp_wire *w = own(wire);
	memset(out, 0, sizeof(*out));
	out->max_datagram_bytes = LEAST_PATH_BYTES;
	out->fd = w->message_fd;
	out->asked = w->sizes; /* an answer needs no more room */
	memcpy(&out->flow, key, sizeof(out->flow));
	hs_address_fill(&out->local, out->flow.ip_version, out->flow.local_ip, w->message_port,
			out->flow.remote_scope);
	hs_address_fill(&out->remote, out->flow.ip_version, out->flow.remote_ip,
			out->flow.remote_port, out->flow.remote_scope);
}

/* A path's socket and the addresses of its datagrams. */
static void use_socket(struct udp_wire *w, struct hs_path *path, int fd)
{
	struct hs_path_ends ends;
	hs_path_read_ends(path, &ends);
	path->fd = fd;
	path->flow = (struct hs_udp_flow){ .ip_version = ends.ip_version,
					   .remote_port = ends.remote_port,
					   .remote_scope = ends.remote_scope };
	memcpy(path->flow.remote_ip, ends.remote_ip, sizeof(ends.remote_ip));
	memcpy(path->flow.local_ip, ends.local_ip, sizeof(ends.local_ip));
	if (!path->max_datagram_bytes)
		path->max_datagram_bytes = LEAST_PATH_BYTES;
	path->asked = w->sizes - 1;
	size(&w->wire, path);
}

static struct hs_path *learn(struct hs_wire *wire, const uint8_t *key)
{
	struct hs_path back, *path = hs_paths_by_key(&wire->paths, key);
	if (path)
		return path;
	reverse(wire, key, &back);
	path = hs_paths_add(&wire->paths, &back.local, &back.remote);
	if (!path)
		return NULL;
	hs_paths_set_key(&wire->paths, path, key);
	if (path->fd != back.fd)
		use_socket(own(wire), path, back.fd);
	return path;
}

/* The socket that has a path's local endpoint, else the one with its port on all addresses. */
static void route(struct hs_wire *wire, struct hs_path *path)
{
	struct udp_wire *w = own(wire);
	struct hs_path_ends ends, bound;
	int fd = -1;
	hs_path_read_ends(path, &ends);
	for (int i = 0; i < w->socket_count; i++) {
		static const uint8_t ANY[16];
		union hs_address address;
		socklen_t bytes = sizeof(address);
		memset(&address, 0, sizeof(address));
		if (w->ports[i] != ends.local_port ||
		    getsockname(w->fds[i], &address.any, &bytes))
			continue;
		struct hs_path of_socket = { .local = address, .remote = address };
		hs_path_read_ends(&of_socket, &bound);
		if (bound.ip_version != ends.ip_version)
			continue;
		if (!memcmp(bound.local_ip, ends.local_ip, sizeof(ends.local_ip))) {
			fd = w->fds[i];
			break;
		}
		if (!memcmp(bound.local_ip, ANY, sizeof(ANY)))
			fd = w->fds[i];
	}
	if (path->fd != fd)
		use_socket(w, path, fd);
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
static int open_message(struct udp_wire *w)
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

static int give_out(struct udp_wire *w, struct hs_received *out, int budget)
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

static int read_socket(struct udp_wire *w, int fd)
{
	for (int i = 0; i < RX_MESSAGES; i++) {
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
	int n = recvmmsg(fd, w->messages, RX_MESSAGES, MSG_DONTWAIT, NULL);
	/* The error belongs to an earlier datagram (ICMP): go on. */
	if (n < 0 && errno != EAGAIN && errno != EINTR)
		w->wire.counters.drops[HS_WIRE_UDP_RX_ERROR]++;
	return n;
}

static int receive(struct hs_wire *wire, struct hs_received *out, int budget)
{
	struct udp_wire *w = own(wire);
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

/* --- sending ---------------------------------------------------------------------------------- */

static uint8_t *reserve(struct hs_wire *wire, size_t *room)
{
	struct udp_wire *w = own(wire);
	uint32_t left = TX_BUFFER_BYTES - w->tx_used;
	if (w->blocked_fd >= 0 || w->out_count == TX_DATAGRAMS || left < TX_DATAGRAM_BYTES) {
		wire->counters.tx_full++;
		return NULL;
	}
	*room = TX_DATAGRAM_BYTES;
	return w->tx_buffer + w->tx_used;
}

static void commit(struct hs_wire *wire, struct hs_path *path, uint32_t bytes, uint8_t ecn)
{
	struct udp_wire *w = own(wire);
	if (path->fd < 0) {
		wire->counters.drops[HS_WIRE_UDP_TX_EBADF]++;
		return;
	}
	if (path->asked != w->sizes)
		size(wire, path);
	if (bytes > path->max_datagram_bytes) {
		wire->counters.drops[HS_WIRE_UDP_TX_EMSGSIZE]++;
		return;
	}
	path->tx_datagrams++;
	w->out[w->out_count++] =
		(struct outgoing){ path->flow, path->fd, w->tx_used, bytes, ecn };
	w->tx_used += bytes;
}

/* How many datagrams from `at` on fit into one message: same path and size, though the last may
 * be shorter. */
static int run_length(const struct udp_wire *w, int at)
{
	const struct outgoing *first = &w->out[at];
	uint32_t bytes = first->bytes;
	int n = 1;
	int may_join = w->segments && at >= w->alone_until && first->bytes;
	while (may_join && n < MOST_SEGMENTS && at + n < w->out_count) {
		const struct outgoing *next = &w->out[at + n];
		if (memcmp(&next->flow, &first->flow, sizeof(next->flow)) ||
		    next->fd != first->fd || next->ecn != first->ecn || !next->bytes ||
		    next->bytes > first->bytes || bytes + next->bytes > MOST_MESSAGE_BYTES)
			break;
		bytes += next->bytes;
		n++;
		if (next->bytes < first->bytes)
			break;
	}
	return n;
}

static void add_control(struct msghdr *header, struct cmsghdr **last, int level, int type,
			const void *data, size_t bytes)
{
	struct cmsghdr *c =
		(struct cmsghdr *)(void *)((uint8_t *)*last + CMSG_ALIGN((*last)->cmsg_len));
	header->msg_controllen += CMSG_SPACE(bytes);
	c->cmsg_level = level;
	c->cmsg_type = type;
	c->cmsg_len = CMSG_LEN(bytes);
	memcpy(CMSG_DATA(c), data, bytes);
	*last = c;
}

static enum hs_wire_udp_drop refusal(int error)
{
	switch (error) {
	case EMSGSIZE:
		return HS_WIRE_UDP_TX_EMSGSIZE;
	case EINVAL:
		return HS_WIRE_UDP_TX_EINVAL;
	case EPERM:
		return HS_WIRE_UDP_TX_EPERM;
	case ENETUNREACH:
		return HS_WIRE_UDP_TX_ENETUNREACH;
	case EHOSTUNREACH:
		return HS_WIRE_UDP_TX_EHOSTUNREACH;
	case ENETDOWN:
		return HS_WIRE_UDP_TX_ENETDOWN;
	default:
		return HS_WIRE_UDP_TX_ERROR;
	}
}

/* Send messages of one socket and count refused ones. Returns how many datagrams are done with:
 * fewer than given when the socket is full, or when those of a message must be sent alone. */
static int send_messages(struct udp_wire *w, int fd, struct mmsghdr *messages, const int *lengths,
			 int n)
{
	int done = 0;
	for (int sent = 0; sent < n;) {
		int taken = sendmmsg(fd, messages + sent, (unsigned int)(n - sent), MSG_DONTWAIT);
		if (taken > 0) {
			if (w->is_doubted)
				w->segments = 0; /* sent alone it worked: this device has no GSO */
			w->is_doubted = 0;
			for (int i = 0; i < taken; i++) {
				done += lengths[sent + i];
				w->wire.counters.tx_datagrams += (uint64_t)lengths[sent + i];
				w->wire.counters.tx_bytes += messages[sent + i].msg_len;
			}
			sent += taken;
		} else if (errno == EAGAIN || errno == ENOBUFS) {
			w->blocked_fd = fd;
			break;
		} else if (errno == EINTR) {
			continue;
		} else if (lengths[sent] > 1) {
			w->alone_until = w->first_out + done + lengths[sent];
			w->is_doubted = errno == EIO || errno == EINVAL;
			break;
		} else {
			w->is_doubted = 0;
			w->wire.counters.drops[refusal(errno)]++;
			if (errno == EMSGSIZE)
				note_too_large(w);
			done++;
			sent++;
		}
	}
	return done;
}

/* Send the datagrams from first_out on that use the same socket. Returns 0 when that is full. */
static int send_run(struct udp_wire *w)
{
	struct mmsghdr messages[HS_WIRE_BURST];
	struct iovec parts[HS_WIRE_BURST];
	union hs_address remotes[HS_WIRE_BURST];
	_Alignas(struct cmsghdr) uint8_t controls[HS_WIRE_BURST][HS_UDP_CONTROL_BYTES];
	int lengths[HS_WIRE_BURST];
	int fd = w->out[w->first_out].fd, n = 0, datagrams = 0;
	memset(controls, 0, sizeof(controls));
	for (int at = w->first_out; at < w->out_count && n < HS_WIRE_BURST && w->out[at].fd == fd;
	     at += lengths[n++]) {
		const struct outgoing *first = &w->out[at];
		int length = run_length(w, at);
		const struct outgoing *last = &w->out[at + length - 1];
		struct msghdr *header = &messages[n].msg_hdr;
		lengths[n] = length;
		datagrams += length;
		parts[n] = (struct iovec){ w->tx_buffer + first->offset,
					   last->offset + last->bytes - first->offset };
		messages[n].msg_len = 0;
		*header = (struct msghdr){
			.msg_name = &remotes[n],
			.msg_namelen = hs_udp_fill_remote(&remotes[n], &first->flow),
			.msg_iov = &parts[n],
			.msg_iovlen = 1,
		};
		struct cmsghdr *c = hs_udp_fill_local(header, controls[n], &first->flow);
		int is_v4 = first->flow.ip_version == 4, ecn = first->ecn;
		uint16_t segment_bytes = (uint16_t)first->bytes;
		if (ecn)
			add_control(header, &c, is_v4 ? IPPROTO_IP : IPPROTO_IPV6,
				    is_v4 ? IP_TOS : IPV6_TCLASS, &ecn, sizeof(ecn));
		if (length > 1)
			add_control(header, &c, IPPROTO_UDP, UDP_SEGMENT, &segment_bytes,
				    sizeof(segment_bytes));
	}
	if (fd < 0) {
		w->wire.counters.drops[HS_WIRE_UDP_TX_EBADF] += (uint64_t)datagrams;
		w->first_out += datagrams;
		w->is_doubted = 0;
		return 1;
	}
	w->first_out += send_messages(w, fd, messages, lengths, n);
	return w->blocked_fd < 0;
}

static int flush(struct hs_wire *wire)
{
	struct udp_wire *w = own(wire);
	w->blocked_fd = -1;
	while (w->first_out < w->out_count && send_run(w))
		;
	if (w->first_out == w->out_count)
		w->first_out = w->out_count = w->alone_until = 0, w->tx_used = 0;
	return w->out_count - w->first_out;
}

/* --- creation and destruction ----------------------------------------------------------------- */

static void free_wire(struct hs_wire *wire)
{
	struct udp_wire *w = own(wire);
	hs_paths_free(&wire->paths);
	for (int i = 0; i < 2; i++) {
		if (w->probes[i] >= 0)
			close(w->probes[i]);
	}
	free(w->rx_slots);
	free(w->tx_buffer);
	free(w);
}

static const struct hs_wire_verbs VERBS = { receive, release, reserve, commit, flush,
					    reverse, learn,   route,   size,   free_wire };

struct hs_wire *hs_wire_udp_new(uint32_t max_paths, int segments)
{
	struct udp_wire *w = calloc(1, sizeof(*w));
	if (!w)
		return NULL;
	w->wire.verbs = &VERBS;
	w->segments = segments;
	w->blocked_fd = w->probes[0] = w->probes[1] = -1;
	w->rx_slots = calloc(RX_MESSAGES, RX_SLOT_BYTES);
	w->tx_buffer = calloc(1, TX_BUFFER_BYTES);
	if (!w->rx_slots || !w->tx_buffer || hs_paths_init(&w->wire.paths, max_paths)) {
		free(w->rx_slots);
		free(w->tx_buffer);
		free(w);
		return NULL;
	}
	return &w->wire;
}
