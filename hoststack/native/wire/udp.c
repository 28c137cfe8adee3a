/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "wire/udp_messages.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

_Static_assert(sizeof(struct hs_udp_flow) == 40, "a flow has no padding bytes");

int hs_udp_prepare(int fd, int ip_version)
{
	int on = 1;
	/* Don't Fragment, and ignore path MTUs from ICMP messages, which anyone can send: a QUIC
	 * endpoint probes for itself (RFC 9000 section 14.2.1). */
	int probe_v4 = IP_PMTUDISC_PROBE, probe_v6 = IPV6_PMTUDISC_PROBE;
	int failed;
	if (ip_version == 4)
		failed = setsockopt(fd, IPPROTO_IP, IP_PKTINFO, &on, sizeof(on)) ||
			 setsockopt(fd, IPPROTO_IP, IP_RECVTOS, &on, sizeof(on)) ||
			 setsockopt(fd, IPPROTO_IP, IP_MTU_DISCOVER, &probe_v4, sizeof(probe_v4));
	else
		failed = setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) ||
			 setsockopt(fd, IPPROTO_IPV6, IPV6_RECVPKTINFO, &on, sizeof(on)) ||
			 setsockopt(fd, IPPROTO_IPV6, IPV6_RECVTCLASS, &on, sizeof(on)) ||
			 setsockopt(fd, IPPROTO_IPV6, IPV6_MTU_DISCOVER, &probe_v6,
				    sizeof(probe_v6));
	return failed ? -errno : 0;
}

static void take_remote(const union hs_address *remote, struct hs_udp_flow *flow)
{
	if (remote->any.sa_family == AF_INET) {
		flow->ip_version = 4;
		flow->remote_port = ntohs(remote->v4.sin_port);
		memcpy(flow->remote_ip, &remote->v4.sin_addr, 4);
	} else if (remote->any.sa_family == AF_INET6) {
		flow->ip_version = 6;
		flow->remote_port = ntohs(remote->v6.sin6_port);
		flow->remote_scope = remote->v6.sin6_scope_id;
		memcpy(flow->remote_ip, &remote->v6.sin6_addr, 16);
	}
}

/* Parse a control message. Returns whether it was the local address. */
static int take_control(const struct cmsghdr *control, struct hs_udp_datagram *out)
{
	int tclass;
	if (control->cmsg_level == IPPROTO_IP && control->cmsg_type == IP_PKTINFO) {
		struct in_pktinfo info;
		memcpy(&info, CMSG_DATA(control), sizeof(info));
		memcpy(out->flow.local_ip, &info.ipi_addr, 4);
		return 1;
	}
	if (control->cmsg_level == IPPROTO_IPV6 && control->cmsg_type == IPV6_PKTINFO) {
		struct in6_pktinfo info;
		memcpy(&info, CMSG_DATA(control), sizeof(info));
		memcpy(out->flow.local_ip, &info.ipi6_addr, 16);
		return 1;
	}
	if (control->cmsg_level == IPPROTO_IP && control->cmsg_type == IP_TOS) {
		out->ecn = *CMSG_DATA(control) & 3;
	} else if (control->cmsg_level == IPPROTO_IPV6 && control->cmsg_type == IPV6_TCLASS) {
		memcpy(&tclass, CMSG_DATA(control), sizeof(tclass));
		out->ecn = (uint8_t)(tclass & 3);
	}
	return 0;
}

void hs_udp_take_message(struct mmsghdr *message, struct hs_udp_datagram *out)
{
	struct msghdr *header = &message->msg_hdr;
	int has_local = 0;
	memset(out, 0, sizeof(*out));
	out->payload_bytes = message->msg_len;
	take_remote(header->msg_name, &out->flow);
	for (struct cmsghdr *c = CMSG_FIRSTHDR(header); c; c = CMSG_NXTHDR(header, c))
		has_local |= take_control(c, out);
	out->is_good = has_local && out->flow.ip_version &&
		       !(header->msg_flags & (MSG_TRUNC | MSG_CTRUNC));
}

socklen_t hs_udp_fill_remote(union hs_address *remote, const struct hs_udp_flow *flow)
{
	memset(remote, 0, sizeof(*remote));
	if (flow->ip_version == 4) {
		remote->v4.sin_family = AF_INET;
		remote->v4.sin_port = htons(flow->remote_port);
		memcpy(&remote->v4.sin_addr, flow->remote_ip, 4);
		return sizeof(remote->v4);
	}
	remote->v6.sin6_family = AF_INET6;
	remote->v6.sin6_port = htons(flow->remote_port);
	remote->v6.sin6_scope_id = flow->remote_scope;
	memcpy(&remote->v6.sin6_addr, flow->remote_ip, 16);
	return sizeof(remote->v6);
}

/* Send from the flow's local address, which matters for sockets that are bound to none. */
struct cmsghdr *hs_udp_fill_local(struct msghdr *header, uint8_t *control,
				  const struct hs_udp_flow *flow)
{
	struct in_pktinfo v4 = { 0 };
	struct in6_pktinfo v6 = { 0 };
	int is_v4 = flow->ip_version == 4;
	size_t bytes = is_v4 ? sizeof(v4) : sizeof(v6);
	memcpy(&v4.ipi_spec_dst, flow->local_ip, 4);
	memcpy(&v6.ipi6_addr, flow->local_ip, 16);
	header->msg_control = control;
	header->msg_controllen = CMSG_SPACE(bytes);
	struct cmsghdr *c = CMSG_FIRSTHDR(header);
	c->cmsg_level = is_v4 ? IPPROTO_IP : IPPROTO_IPV6;
	c->cmsg_type = is_v4 ? IP_PKTINFO : IPV6_PKTINFO;
	c->cmsg_len = CMSG_LEN(bytes);
	memcpy(CMSG_DATA(c), is_v4 ? (void *)&v4 : (void *)&v6, bytes);
	return c;
}
