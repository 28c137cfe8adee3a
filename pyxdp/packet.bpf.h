/* SPDX-License-Identifier: BSD-3-Clause OR GPL-2.0-only
 *
 * What capture and flows share: the flow of a packet, and the filter that the flow is tested with.
 *
 * A filter is a table of tests. Each compares 16 bytes of the flow under a mask, and names the test
 * that comes next if they are equal, and if they are not. pyxdp/tools/filters.py makes the table.
 */
#ifndef PYXDP_PACKET_BPF_H
#define PYXDP_PACKET_BPF_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

enum {
	FILTER_TESTS = 32,
	FILTER_PARTS = 3,
	FILTER_ACCEPT = 0, /* no test jumps to the first one, and a table of zeros accepts all */
	FILTER_REJECT = 255,
	MOST_TAGS = 2,
	MOST_EXTENSIONS = 6,
};

/* All in network byte order. IPv4 addresses are mapped: ::ffff:a.b.c.d (RFC 4291, 2.5.5.2). Without
 * IP the addresses are 0, without ports (no TCP, UDP or SCTP; a later fragment) the ports are 0. */
struct flow {
	__u8 source[16];
	__u8 destination[16];
	__u16 ethertype;
	__u16 source_port;
	__u16 destination_port;
	__u8 protocol;
	__u8 has_ports;
	__u64 unused;
};

struct filter_test {
	__u64 mask[2];
	__u64 value[2];
	__u32 part;
	__u8 if_equal;
	__u8 if_not;
	__u16 unused;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, FILTER_TESTS);
	__type(key, __u32);
	__type(value, struct filter_test);
} filter SEC(".maps");

struct vlan_tag {
	__be16 tag;
	__be16 ethertype;
};

struct extension {
	__u8 next;
	__u8 length; /* in 8 bytes, beyond the first 8 */
	__be16 fragment;
};

static __always_inline void flow_ports(struct flow *flow, void *at, void *end)
{
	__be16 *ports = at;

	if (flow->protocol != IPPROTO_TCP && flow->protocol != IPPROTO_UDP &&
	    flow->protocol != IPPROTO_SCTP)
		return;
	if ((void *)(ports + 2) > end)
		return;
	flow->source_port = ports[0];
	flow->destination_port = ports[1];
	flow->has_ports = 1;
}

static __always_inline void flow_ipv4(struct flow *flow, void *at, void *end)
{
	struct iphdr *ip = at;

	if ((void *)(ip + 1) > end || ip->ihl < 5)
		return;
	flow->source[10] = flow->source[11] = 0xff;
	flow->destination[10] = flow->destination[11] = 0xff;
	__builtin_memcpy(flow->source + 12, &ip->saddr, 4);
	__builtin_memcpy(flow->destination + 12, &ip->daddr, 4);
	flow->protocol = ip->protocol;
	if (!(ip->frag_off & bpf_htons(0x1fff)))
		flow_ports(flow, at + ip->ihl * 4, end);
}

static __always_inline void flow_ipv6(struct flow *flow, void *at, void *end)
{
	struct ipv6hdr *ip = at;

	if ((void *)(ip + 1) > end)
		return;
	__builtin_memcpy(flow->source, &ip->saddr, 16);
	__builtin_memcpy(flow->destination, &ip->daddr, 16);
	flow->protocol = ip->nexthdr;
	at = ip + 1;
	for (int i = 0; i < MOST_EXTENSIONS; i++) {
		struct extension *extension = at;

		switch (flow->protocol) {
		case IPPROTO_HOPOPTS:
		case IPPROTO_ROUTING:
		case IPPROTO_DSTOPTS:
			if ((void *)(extension + 1) > end)
				return;
			at += (extension->length + 1) * 8;
			break;
		case IPPROTO_FRAGMENT:
			if ((void *)(extension + 1) > end)
				return;
			at += 8;
			if (extension->fragment & bpf_htons(0xfff8)) {
				flow->protocol = extension->next;
				return;
			}
			break;
		default:
			flow_ports(flow, at, end);
			return;
		}
		flow->protocol = extension->next;
	}
}

static __always_inline void flow_of(struct xdp_md *packet, struct flow *flow)
{
	void *end = (void *)(long)packet->data_end;
	struct ethhdr *ethernet = (void *)(long)packet->data;
	void *at = ethernet + 1;

	__builtin_memset(flow, 0, sizeof(*flow));
	if (at > end)
		return;
	flow->ethertype = ethernet->h_proto;
	for (int i = 0; i < MOST_TAGS; i++) {
		struct vlan_tag *tag = at;

		if (flow->ethertype != bpf_htons(ETH_P_8021Q) &&
		    flow->ethertype != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(tag + 1) > end)
			return;
		flow->ethertype = tag->ethertype;
		at = tag + 1;
	}
	if (flow->ethertype == bpf_htons(ETH_P_IP))
		flow_ipv4(flow, at, end);
	else if (flow->ethertype == bpf_htons(ETH_P_IPV6))
		flow_ipv6(flow, at, end);
}

static __always_inline int filter_accepts(const struct flow *flow)
{
	__u32 number = 0;

	for (int i = 0; i < FILTER_TESTS; i++) {
		struct filter_test *test = bpf_map_lookup_elem(&filter, &number);
		const __u64 *words;

		if (!test || test->part >= FILTER_PARTS)
			return 0;
		words = (const __u64 *)flow + 2 * test->part;
		number = (words[0] & test->mask[0]) == test->value[0] &&
					 (words[1] & test->mask[1]) == test->value[1] ?
				 test->if_equal :
				 test->if_not;
		if (number == FILTER_ACCEPT)
			return 1;
	}
	return 0;
}

#endif
