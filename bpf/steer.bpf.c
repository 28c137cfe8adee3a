// SPDX-License-Identifier: GPL-2.0 OR BSD-3-Clause
/*
 * Steers QUIC packets into AF_XDP sockets by their connection ID.
 *
 * It looks up the destination address and port; then the connection ID says which worker has the
 * connection, whatever queue RSS chose. A port of plain datagrams belongs to one worker. A socket
 * receives only from its own queue, so each worker has one on every queue. All other packets pass to
 * the kernel.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

typedef __u8 uint8_t;
typedef __u16 uint16_t;
typedef __u32 uint32_t;

#include "steer.h"

#define IPV4_MORE_FRAGMENTS 0x2000
#define IPV4_OFFSET_MASK 0x1fff
#define ETH_GROUP_BIT 0x01 /* IEEE 802.3: broadcast and multicast */
#define AF_INET 2
#define AF_INET6 10
#define QUIC_LONG_HEADER 0x80
#define QUIC_FIXED_BIT 0x40
#define QUIC_LONG_CID_OFFSET 6 /* first byte, version, length of the connection ID */

#define likely(x) __builtin_expect(!!(x), 1)

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct hs_steer_config);
} hs_config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, HS_STEER_MAX_PORTS);
	__type(key, struct hs_steer_port);
	__type(value, __u32);
} hs_ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, HS_STEER_MAX_QUEUES); /* the loader sets it to queues * workers */
	__type(key, __u32);
	__type(value, __u32);
} hs_sockets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, HS_STEER_VERDICTS);
	__type(key, __u32);
	__type(value, __u64);
} hs_verdicts SEC(".maps");

/* The unparsed part of a packet. */
struct cursor {
	void *at;
	void *end;
};

struct vlan_tag {
	__be16 tci;
	__be16 next;
};

struct extension {
	__u8 next;
	__u8 length; /* in units of 8 bytes, without the first 8 */
	__u8 type;
	__u8 segments_left; /* in a routing header */
};

static __always_inline void count(__u32 verdict)
{
	__u64 *counter = bpf_map_lookup_elem(&hs_verdicts, &verdict);

	if (counter)
		*counter += 1;
}

static __always_inline int pass(__u32 verdict)
{
	count(verdict);
	return XDP_PASS;
}

static __always_inline int drop(__u32 verdict)
{
	count(verdict);
	return XDP_DROP;
}

static __always_inline void *take(struct cursor *c, __u64 bytes)
{
	void *at = c->at;

	if (at + bytes > c->end)
		return 0;
	c->at = at + bytes;
	return at;
}

/* The functions below return 0, or `verdict + 1` if the packet passes to the kernel's stack. */

static __always_inline int parse_ethernet(struct cursor *c, __be16 *type, int *is_group)
{
	struct ethhdr *eth = take(c, sizeof(*eth));

	if (!eth)
		return HS_STEER_PASSED_MALFORMED + 1;
	*type = eth->h_proto;
	*is_group = eth->h_dest[0] & ETH_GROUP_BIT;
#pragma unroll
	for (int i = 0; i < HS_STEER_VLAN_TAGS; i++) {
		struct vlan_tag *tag;

		if (*type != bpf_htons(ETH_P_8021Q) && *type != bpf_htons(ETH_P_8021AD))
			break;
		tag = take(c, sizeof(*tag));
		if (!tag)
			return HS_STEER_PASSED_MALFORMED + 1;
		*type = tag->next;
	}
	return 0;
}

static __always_inline int parse_ipv4(struct cursor *c, struct hs_steer_port *to, __u32 *left)
{
	struct iphdr *ip = c->at;
	__u32 header_bytes, total_bytes;

	if ((void *)(ip + 1) > c->end || ip->version != 4 || ip->ihl < 5)
		return HS_STEER_PASSED_MALFORMED + 1;
	header_bytes = ip->ihl * 4;
	total_bytes = bpf_ntohs(ip->tot_len);
	if (total_bytes < header_bytes)
		return HS_STEER_PASSED_MALFORMED + 1;
	if (ip->frag_off & bpf_htons(IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK))
		return HS_STEER_PASSED_FRAGMENT + 1;
	if (ip->protocol != IPPROTO_UDP)
		return HS_STEER_PASSED_NOT_UDP + 1;
	to->ip_version = 4;
	__builtin_memcpy(to->ip, &ip->daddr, 4);
	*left = total_bytes - header_bytes;
	return take(c, header_bytes) ? 0 : HS_STEER_PASSED_MALFORMED + 1;
}

static __always_inline int parse_ipv6(struct cursor *c, struct hs_steer_port *to, __u32 *left)
{
	struct ipv6hdr *ip = take(c, sizeof(*ip));
	__u8 next;

	if (!ip || ip->version != 6)
		return HS_STEER_PASSED_MALFORMED + 1;
	to->ip_version = 6;
	__builtin_memcpy(to->ip, &ip->daddr, 16);
	*left = bpf_ntohs(ip->payload_len);
	next = ip->nexthdr;
	for (int i = 0; i <= HS_STEER_EXTENSION_HEADERS; i++) {
		struct extension *extension = c->at;
		__u32 bytes;

		if (likely(next == IPPROTO_UDP))
			return 0;
		if (next == IPPROTO_FRAGMENT)
			return HS_STEER_PASSED_FRAGMENT + 1;
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS)
			return HS_STEER_PASSED_NOT_UDP + 1;
		if ((void *)(extension + 1) > c->end)
			return HS_STEER_PASSED_MALFORMED + 1;
		/* With segments left this host is not the final destination (RFC 8200 section
		 * 4.4). */
		if (next == IPPROTO_ROUTING && extension->segments_left)
			return HS_STEER_PASSED_EXTENSION + 1;
		bytes = (extension->length + 1) * 8;
		next = extension->next;
		if (bytes > *left || !take(c, bytes))
			return HS_STEER_PASSED_MALFORMED + 1;
		*left -= bytes;
	}
	return HS_STEER_PASSED_EXTENSION + 1;
}

/* The use of a port of ours, and whether it is open on any address; NULL for other ports. */
static __always_inline __u32 *find_use(const struct hs_steer_port *to, int *is_any)
{
	struct hs_steer_port any = *to;
	__u32 *use = bpf_map_lookup_elem(&hs_ports, to);

	if (use)
		return use;
	*is_any = 1;
	__builtin_memset(any.ip, 0, sizeof(any.ip));
	return bpf_map_lookup_elem(&hs_ports, &any);
}

/* Whether the kernel would forward a packet to another machine, or refuse to. The kernel can
 * tell only if forwarding is enabled: otherwise every packet is for this machine. */
static __always_inline int is_passed_on(struct xdp_md *ctx, const struct cursor *network,
					const struct hs_steer_port *to)
{
	struct bpf_fib_lookup fib = { 0 };
	const struct iphdr *v4 = network->at;
	const struct ipv6hdr *v6 = network->at;
	long found;

	fib.ifindex = ctx->ingress_ifindex;
	fib.l4_protocol = IPPROTO_UDP;
	if (to->ip_version == 4 && (void *)(v4 + 1) <= network->end) {
		fib.family = AF_INET;
		fib.tos = v4->tos;
		fib.ipv4_src = v4->saddr;
		fib.ipv4_dst = v4->daddr;
	} else if (to->ip_version == 6 && (void *)(v6 + 1) <= network->end) {
		fib.family = AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &v6->saddr, 16);
		__builtin_memcpy(fib.ipv6_dst, &v6->daddr, 16);
	}
	found = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	return found >= 0 && found != BPF_FIB_LKUP_RET_NOT_FWDED &&
	       found != BPF_FIB_LKUP_RET_FWD_DISABLED;
}

/* Whether a connection ID of HS_CID_BYTES is one of ours, and of which worker. */
static __always_inline int find_worker(const __u8 *cid, const struct hs_steer_config *config,
				       __u32 *worker)
{
	__u8 rotation = cid[0] >> HS_CID_ROTATION_SHIFT;
	__u16 host = (__u16)(cid[HS_CID_HOST_OFFSET] << 8 | cid[HS_CID_HOST_OFFSET + 1]);

	if ((cid[0] & HS_CID_LENGTH_MASK) != HS_CID_BYTES - 1 || host != config->host ||
	    (rotation != config->rotation && rotation != config->previous_rotation) ||
	    cid[HS_CID_WORKER_OFFSET] >= config->workers)
		return 0;
	*worker = cid[HS_CID_WORKER_OFFSET];
	return 1;
}

static __always_inline int redirect(__u32 queue, __u32 worker, __u32 workers, __u32 verdict)
{
	/* Without a socket at that index the helper returns the action in its flags. */
	int action = bpf_redirect_map(&hs_sockets, queue * workers + worker, XDP_PASS);

	count(action == XDP_REDIRECT ? verdict : HS_STEER_REDIRECT_FAILED);
	return action;
}

/* Whether the payload has `bytes` bytes. Check both its own length, because padding may follow
 * it, and the packet's end, which the verifier requires. */
#define HAS_BYTES(c, payload_bytes, bytes) \
	((payload_bytes) >= (bytes) && (c)->at + (bytes) <= (c)->end)

/* Uses the invariants of all QUIC versions (RFC 8999), and the short header of versions 1 and 2. */
static __always_inline int steer(struct cursor *c, __u32 payload_bytes, __u32 queue,
				 const struct hs_steer_config *config)
{
	__u8 *quic = c->at;
	__u8 *cid = quic + 1;
	__u32 worker = queue % config->workers;
	__u32 verdict = HS_STEER_REDIRECTED_AS_NEW;

	if (!HAS_BYTES(c, payload_bytes, 1))
		return drop(HS_STEER_DROPPED_EMPTY);
	if (quic[0] & QUIC_LONG_HEADER) {
		__u8 cid_bytes;

		if (!HAS_BYTES(c, payload_bytes, QUIC_LONG_CID_OFFSET))
			return drop(HS_STEER_DROPPED_TOO_SHORT);
		cid = quic + QUIC_LONG_CID_OFFSET;
		cid_bytes = cid[-1];
		if (cid_bytes > HS_CID_MAX_BYTES)
			return drop(HS_STEER_DROPPED_LONG_CID);
		if (!HAS_BYTES(c, payload_bytes, QUIC_LONG_CID_OFFSET + cid_bytes))
			return drop(HS_STEER_DROPPED_TOO_SHORT);
		if (cid_bytes != HS_CID_BYTES)
			return redirect(queue, worker, config->workers, verdict);
	} else if (!(quic[0] & QUIC_FIXED_BIT)) {
		return drop(HS_STEER_DROPPED_NOT_QUIC);
	} else if (!HAS_BYTES(c, payload_bytes, 1 + HS_CID_BYTES)) {
		return drop(HS_STEER_DROPPED_TOO_SHORT);
	}
	if ((void *)(cid + HS_CID_BYTES) > c->end)
		return drop(HS_STEER_DROPPED_TOO_SHORT);
	/* A short header without our connection ID may be a stateless reset (RFC 9000 10.3). */
	if (find_worker(cid, config, &worker))
		verdict = HS_STEER_REDIRECTED_BY_CID;
	return redirect(queue, worker, config->workers, verdict);
}

SEC("xdp")
int hs_steer(struct xdp_md *ctx)
{
	struct cursor c = { (void *)(long)ctx->data, (void *)(long)ctx->data_end }, network;
	struct hs_steer_config *config;
	struct hs_steer_port to = { 0 };
	struct udphdr *udp;
	__u32 zero = 0, left = 0, udp_bytes, *use;
	__be16 type = 0;
	int why, is_group = 0, is_any = 0;

	config = bpf_map_lookup_elem(&hs_config, &zero);
	if (!config || !config->workers || config->workers > HS_STEER_MAX_WORKERS)
		return pass(HS_STEER_PASSED_NOT_STEERING);
	why = parse_ethernet(&c, &type, &is_group);
	if (why)
		return pass(why - 1);
	network = c;
	if (type == bpf_htons(ETH_P_IP))
		why = parse_ipv4(&c, &to, &left);
	else if (type == bpf_htons(ETH_P_IPV6))
		why = parse_ipv6(&c, &to, &left);
	else
		return pass(HS_STEER_PASSED_NOT_IP);
	if (why)
		return pass(why - 1);
	udp = take(&c, sizeof(*udp));
	if (!udp)
		return pass(HS_STEER_PASSED_MALFORMED);
	to.port_be = udp->dest;
	use = find_use(&to, &is_any);
	if (!use)
		return pass(HS_STEER_PASSED_OTHER_PORT);
	/* A port on any address does not claim broadcast and multicast, which others may want
	 * too. */
	if (is_group)
		return pass(HS_STEER_PASSED_GROUP);
	udp_bytes = bpf_ntohs(udp->len);
	if (udp_bytes < sizeof(*udp) || udp_bytes > left)
		return pass(HS_STEER_PASSED_MALFORMED);
	udp_bytes -= sizeof(*udp);
	if (c.at + udp_bytes > c.end)
		return pass(HS_STEER_PASSED_MALFORMED);
	if (is_any && is_passed_on(ctx, &network, &to))
		return pass(HS_STEER_PASSED_ON);
	if (*use == HS_STEER_QUIC)
		return steer(&c, udp_bytes, ctx->rx_queue_index, config);
	if (*use > config->workers)
		return pass(HS_STEER_REDIRECT_FAILED);
	return redirect(ctx->rx_queue_index, *use - 1, config->workers,
			HS_STEER_REDIRECTED_BY_PORT);
}

char hs_license[] SEC("license") = "Dual BSD/GPL";
