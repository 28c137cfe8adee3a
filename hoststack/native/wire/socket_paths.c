/* SPDX-License-Identifier: Apache-2.0
 *
 * Paths of the wire over the kernel's UDP sockets: which socket a path uses, and how large its
 * datagrams may be.
 */
#define _GNU_SOURCE
#include "wire/sockets_state.h"

#include <string.h>
#include <time.h>

#include "wire/paths.h"

enum {
	/* QUIC works on no path that carries less (RFC 9000 section 14). */
	LEAST_PATH_BYTES = 1200,
	IPV4_HEADERS_BYTES = 28, /* IP and UDP */
	IPV6_HEADERS_BYTES = 48,
};

/* Least time between two queries of a path's size, which cost system calls. */
#define SIZES_AFTER_NS 100000000ULL

/* The MTU of the route to an address; 0 without a route, or without a descriptor. */
static uint32_t route_mtu(const struct hs_sockets *w, const union hs_address *remote)
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

uint32_t hs_sockets_size(struct hs_wire *wire, struct hs_path *path)
{
	if (path->fd < 0)
		return 0;
	if (path->asked == hs_sockets_of(wire)->sizes)
		return path->max_datagram_bytes;
	path->asked = hs_sockets_of(wire)->sizes;
	uint32_t mtu = route_mtu(hs_sockets_of(wire), &path->remote);
	/* The peer may be unreachable now: the kernel then refuses to send there. */
	if (mtu)
		path->max_datagram_bytes = hs_wire_udp_path_bytes(
			mtu, path->remote.any.sa_family == AF_INET ? 4 : 6);
	return path->max_datagram_bytes;
}

void hs_sockets_note_too_large(struct hs_sockets *w)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	uint64_t now_ns = (uint64_t)now.tv_sec * 1000000000 + (uint64_t)now.tv_nsec;
	if (now_ns - w->shrunk_at_ns < SIZES_AFTER_NS)
		return;
	w->shrunk_at_ns = now_ns;
	w->sizes++;
}

void hs_sockets_reverse(struct hs_wire *wire, const uint8_t *key, struct hs_path *out)
{
	struct hs_sockets *w = hs_sockets_of(wire);
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
static void use_socket(struct hs_sockets *w, struct hs_path *path, int fd)
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
	hs_sockets_size(&w->wire, path);
}

struct hs_path *hs_sockets_learn(struct hs_wire *wire, const uint8_t *key)
{
	struct hs_path back, *path = hs_paths_by_key(&wire->paths, key);
	if (path)
		return path;
	hs_sockets_reverse(wire, key, &back);
	path = hs_paths_add(&wire->paths, &back.local, &back.remote);
	if (!path)
		return NULL;
	hs_paths_set_key(&wire->paths, path, key);
	if (path->fd != back.fd)
		use_socket(hs_sockets_of(wire), path, back.fd);
	return path;
}

/* The socket that has a path's local endpoint, else the one with its port on all addresses. */
void hs_sockets_route(struct hs_wire *wire, struct hs_path *path)
{
	struct hs_sockets *w = hs_sockets_of(wire);
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
