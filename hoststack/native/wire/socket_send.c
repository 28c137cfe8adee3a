/* SPDX-License-Identifier: Apache-2.0
 *
 * Sending over the kernel's UDP sockets: one sendmmsg per burst and socket, with datagrams of one
 * path and size in one message (UDP_SEGMENT).
 */
#define _GNU_SOURCE
#include "wire/sockets_state.h"

#include <errno.h>
#include <string.h>

#include <linux/udp.h>

#include "wire/paths.h"

enum {
	TX_DATAGRAM_BYTES = 65527, /* the maximum over UDP */
	MOST_SEGMENTS = 64, /* UDP_MAX_SEGMENTS of kernels before 6.9 */
	MOST_MESSAGE_BYTES = 65000,
};

uint8_t *hs_sockets_reserve(struct hs_wire *wire, size_t *room)
{
	struct hs_sockets *w = hs_sockets_of(wire);
	uint32_t left = HS_SOCKETS_TX_BUFFER_BYTES - w->tx_used;
	if (w->blocked_fd >= 0 || w->out_count == HS_SOCKETS_TX_DATAGRAMS || left < TX_DATAGRAM_BYTES) {
		wire->counters.tx_full++;
		return NULL;
	}
	*room = TX_DATAGRAM_BYTES;
	return w->tx_buffer + w->tx_used;
}

void hs_sockets_commit(struct hs_wire *wire, struct hs_path *path, uint32_t bytes, uint8_t ecn)
{
	struct hs_sockets *w = hs_sockets_of(wire);
	if (path->fd < 0) {
		wire->counters.drops[HS_WIRE_UDP_TX_EBADF]++;
		return;
	}
	if (path->asked != w->sizes)
		hs_sockets_size(wire, path);
	if (bytes > path->max_datagram_bytes) {
		wire->counters.drops[HS_WIRE_UDP_TX_EMSGSIZE]++;
		return;
	}
	path->tx_datagrams++;
	w->out[w->out_count++] =
		(struct hs_sockets_datagram){ path->flow, path->fd, w->tx_used, bytes, ecn };
	w->tx_used += bytes;
}

/* How many datagrams from `at` on fit into one message: same path and size, though the last may
 * be shorter. */
static int run_length(const struct hs_sockets *w, int at)
{
	const struct hs_sockets_datagram *first = &w->out[at];
	uint32_t bytes = first->bytes;
	int n = 1;
	int may_join = w->segments && at >= w->alone_until && first->bytes;
	while (may_join && n < MOST_SEGMENTS && at + n < w->out_count) {
		const struct hs_sockets_datagram *next = &w->out[at + n];
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
static int send_messages(struct hs_sockets *w, int fd, struct mmsghdr *messages, const int *lengths,
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
				hs_sockets_note_too_large(w);
			done++;
			sent++;
		}
	}
	return done;
}

/* Send the datagrams from first_out on that use the same socket. Returns 0 when that is full. */
static int send_run(struct hs_sockets *w)
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
		const struct hs_sockets_datagram *first = &w->out[at];
		int length = run_length(w, at);
		const struct hs_sockets_datagram *last = &w->out[at + length - 1];
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

int hs_sockets_flush(struct hs_wire *wire)
{
	struct hs_sockets *w = hs_sockets_of(wire);
	w->blocked_fd = -1;
	while (w->first_out < w->out_count && send_run(w))
		;
	if (w->first_out == w->out_count)
		w->first_out = w->out_count = w->alone_until = 0, w->tx_used = 0;
	return w->out_count - w->first_out;
}
