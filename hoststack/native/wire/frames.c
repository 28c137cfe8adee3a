/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/frames.h"

#include <arpa/inet.h>
#include <string.h>

enum {
	ETHERNET_BYTES = 14,
	VLAN_BYTES = 4,
	IPV4_BYTES = 20,
	IPV6_BYTES = 40,
	UDP_BYTES = 8,

	ETHERTYPE_VLAN = 0x8100, /* IEEE 802.1Q */
	ETHERTYPE_QINQ = 0x88a8, /* IEEE 802.1ad */
	ETHERTYPE_V4 = 0x0800,
	ETHERTYPE_V6 = 0x86dd,
	VLAN_ID_MASK = 0x0fff,

	NEXT_HOP_BY_HOP = 0, /* RFC 8200, sections 4.3 to 4.6 */
	NEXT_ROUTING = 43,
	NEXT_FRAGMENT = 44,
	NEXT_DESTINATION = 60,
	NEXT_UDP = 17,
	MAX_EXTENSION_HEADERS = 8,

	IPV4_MORE_FRAGMENTS = 0x2000,
	IPV4_OFFSET_MASK = 0x1fff,
	IPV4_DONT_FRAGMENT = 0x4000,

	OPTION_END = 0, /* of IPv4, RFC 791 section 3.1 */
	OPTION_NOTHING = 1,
	OPTION_LOOSE_ROUTE = 131,
	OPTION_STRICT_ROUTE = 137,
};

_Static_assert(sizeof(struct hs_frame_flow) == 64, "a flow has no padding bytes");

/* The part of a frame that is not parsed yet. */
struct cursor {
	const uint8_t *at;
	size_t left;
};

static uint16_t get16(const uint8_t *at)
{
	return (uint16_t)(at[0] << 8 | at[1]);
}

static void put16(uint8_t *at, uint16_t value)
{
	at[0] = (uint8_t)(value >> 8);
	at[1] = (uint8_t)value;
}

/* One's complement sum (RFC 1071) in memory byte order. The sum may be taken in words of any
 * width, with the carries added in at the end. */
static uint64_t sum_bytes(const uint8_t *at, size_t n)
{
	uint64_t sums[4] = { 0 };
	for (; n >= 16; at += 16, n -= 16) {
		uint32_t words[4];
		memcpy(words, at, sizeof(words));
		sums[0] += words[0];
		sums[1] += words[1];
		sums[2] += words[2];
		sums[3] += words[3];
	}
	uint64_t sum = sums[0] + sums[1] + sums[2] + sums[3];
	for (; n >= 2; at += 2, n -= 2) {
		uint16_t word;
		memcpy(&word, at, sizeof(word));
		sum += word;
	}
	if (n) {
		uint16_t word = 0;
		memcpy(&word, at, 1);
		sum += word;
	}
	return sum;
}

static uint16_t fold(uint64_t sum)
{
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return (uint16_t)sum;
}

static void advance(struct cursor *c, size_t n)
{
	c->at += n;
	c->left -= n;
}

/* Cut the cursor to the `bytes` that follow the IP header; the rest is Ethernet padding. */
static enum hs_frame_drop cut_to(struct cursor *c, size_t bytes)
{
	if (bytes > c->left)
		return HS_FRAME_TRUNCATED;
	c->left = bytes;
	return HS_FRAME_GOOD;
}

static enum hs_frame_drop parse_ethernet(struct cursor *c, struct hs_frame_flow *flow,
					 uint16_t *type)
{
	if (c->left < ETHERNET_BYTES)
		return HS_FRAME_TRUNCATED;
	memcpy(flow->local_mac, c->at, 6);
	memcpy(flow->remote_mac, c->at + 6, 6);
	*type = get16(c->at + 12);
	advance(c, ETHERNET_BYTES);
	while (*type == ETHERTYPE_VLAN || *type == ETHERTYPE_QINQ) {
		if (flow->vlan_tags == HS_FRAME_MAX_VLAN_TAGS)
			return HS_FRAME_NOT_IP;
		if (c->left < VLAN_BYTES)
			return HS_FRAME_TRUNCATED;
		flow->vlan_tpid[flow->vlan_tags] = *type;
		flow->vlan_id[flow->vlan_tags] = get16(c->at) & VLAN_ID_MASK;
		flow->vlan_tags++;
		*type = get16(c->at + 2);
		advance(c, VLAN_BYTES);
	}
	return HS_FRAME_GOOD;
}

/* Skip options. As in the kernel, a sender may not choose the route of the answers
 * (net.ipv4.conf.*.accept_source_route is 0 on hosts by default). */
static enum hs_frame_drop check_options(const uint8_t *at, size_t left)
{
	while (left && *at != OPTION_END) {
		size_t bytes = 1;
		if (*at != OPTION_NOTHING) {
			if (left < 2 || at[1] < 2 || at[1] > left)
				return HS_FRAME_BAD_IP;
			if (*at == OPTION_LOOSE_ROUTE || *at == OPTION_STRICT_ROUTE)
				return HS_FRAME_BAD_IP;
			bytes = at[1];
		}
		at += bytes;
		left -= bytes;
	}
	return HS_FRAME_GOOD;
}

/* RFC 1122 section 3.2.1.3, RFC 6890: "this network", loopback, multicast, reserved and
 * broadcast addresses. */
static int is_martian_v4(const uint8_t *source)
{
	return source[0] == 0 || source[0] == 127 || source[0] >= 224;
}

/* RFC 4291 sections 2.5 and 2.7: multicast; "::", "::1" and the other addresses that begin with
 * 80 zero bits and hold an IPv4 address, none of which may appear on a wire. */
static int is_martian_v6(const uint8_t *source)
{
	static const uint8_t ZEROS[10];
	return source[0] == 0xff ||
	       (!memcmp(source, ZEROS, sizeof(ZEROS)) &&
		((source[10] == 0 && source[11] == 0) || (source[10] == 0xff && source[11] == 0xff)));
}

static enum hs_frame_drop parse_ipv4(struct cursor *c, struct hs_datagram *out)
{
	if (c->left < IPV4_BYTES)
		return HS_FRAME_TRUNCATED;
	const uint8_t *ip = c->at;
	size_t header_bytes = (size_t)(ip[0] & 0x0f) * 4;
	size_t total_bytes = get16(ip + 2);
	if (ip[0] >> 4 != 4 || header_bytes < IPV4_BYTES || total_bytes < header_bytes)
		return HS_FRAME_BAD_IP;
	enum hs_frame_drop drop = cut_to(c, total_bytes);
	if (drop)
		return drop;
	if (get16(ip + 6) & (IPV4_MORE_FRAGMENTS | IPV4_OFFSET_MASK))
		return HS_FRAME_FRAGMENT;
	if (ip[9] != NEXT_UDP)
		return HS_FRAME_NOT_UDP;
	out->ecn = ip[1] & 3;
	out->flow.ip_version = 4;
	memcpy(out->flow.remote_ip, ip + 12, 4);
	memcpy(out->flow.local_ip, ip + 16, 4);
	drop = check_options(ip + IPV4_BYTES, header_bytes - IPV4_BYTES);
	if (drop)
		return drop;
	advance(c, header_bytes);
	/* A datagram that claims the receiver's own address is forged. */
	return is_martian_v4(ip + 12) || !memcmp(ip + 12, ip + 16, 4) ? HS_FRAME_MARTIAN :
									HS_FRAME_GOOD;
}

static enum hs_frame_drop skip_extension_headers(struct cursor *c, uint8_t next)
{
	for (int i = 0; i <= MAX_EXTENSION_HEADERS; i++) {
		switch (next) {
		case NEXT_UDP:
			return HS_FRAME_GOOD;
		case NEXT_FRAGMENT:
			return HS_FRAME_FRAGMENT;
		case NEXT_HOP_BY_HOP:
		case NEXT_ROUTING:
		case NEXT_DESTINATION:
			break;
		default:
			return HS_FRAME_NOT_UDP;
		}
		if (c->left < 8)
			return HS_FRAME_TRUNCATED;
		size_t bytes = ((size_t)c->at[1] + 1) * 8;
		if (bytes > c->left)
			return HS_FRAME_TRUNCATED;
		/* With segments left this host is not the final destination (RFC 8200, section
		 * 4.4). */
		if (next == NEXT_ROUTING && c->at[3] != 0)
			return HS_FRAME_BAD_EXTENSION;
		next = c->at[0];
		advance(c, bytes);
	}
	return HS_FRAME_BAD_EXTENSION;
}

static enum hs_frame_drop parse_ipv6(struct cursor *c, struct hs_datagram *out)
{
	if (c->left < IPV6_BYTES)
		return HS_FRAME_TRUNCATED;
	const uint8_t *ip = c->at;
	if (ip[0] >> 4 != 6)
		return HS_FRAME_BAD_IP;
	advance(c, IPV6_BYTES);
	enum hs_frame_drop drop = cut_to(c, get16(ip + 4));
	if (drop)
		return drop;
	out->ecn = ip[1] >> 4 & 3;
	out->flow.ip_version = 6;
	memcpy(out->flow.remote_ip, ip + 8, 16);
	memcpy(out->flow.local_ip, ip + 24, 16);
	if (is_martian_v6(ip + 8) || !memcmp(ip + 8, ip + 24, 16))
		return HS_FRAME_MARTIAN;
	return skip_extension_headers(c, ip[6]);
}

static enum hs_frame_drop parse_udp(struct cursor *c, struct hs_datagram *out)
{
	if (c->left < UDP_BYTES)
		return HS_FRAME_TRUNCATED;
	size_t udp_bytes = get16(c->at + 4);
	if (udp_bytes < UDP_BYTES || udp_bytes > c->left)
		return HS_FRAME_BAD_UDP;
	out->flow.remote_port = get16(c->at);
	out->flow.local_port = get16(c->at + 2);
	advance(c, UDP_BYTES);
	out->payload_bytes = (uint32_t)(udp_bytes - UDP_BYTES);
	return HS_FRAME_GOOD;
}

static enum hs_frame_drop parse(struct cursor *c, struct hs_datagram *out)
{
	uint16_t type;
	enum hs_frame_drop drop = parse_ethernet(c, &out->flow, &type);
	if (drop)
		return drop;
	const uint8_t *ip = c->at;
	if (type == ETHERTYPE_V4)
		drop = parse_ipv4(c, out);
	else if (type == ETHERTYPE_V6)
		drop = parse_ipv6(c, out);
	else
		drop = HS_FRAME_NOT_IP;
	drop = drop ? drop : parse_udp(c, out);
	out->header_bytes = (uint16_t)(c->at - ip);
	return drop;
}

int hs_frames_parse(const uint8_t *umem, size_t umem_bytes, const struct hs_frame_desc *descs,
		    int n, struct hs_datagram *out)
{
	int good = 0;
	memset(out, 0, (size_t)n * sizeof(*out));
	for (int i = 0; i < n; i++) {
		if (descs[i].addr > umem_bytes || descs[i].len > umem_bytes - descs[i].addr) {
			out[i].drop = HS_FRAME_OUTSIDE_UMEM;
			continue;
		}
		struct cursor c = { umem + descs[i].addr, descs[i].len };
		out[i].drop = (uint8_t)parse(&c, &out[i]);
		out[i].payload = (uint64_t)(c.at - umem);
		good += out[i].drop == HS_FRAME_GOOD;
	}
	return good;
}

int hs_frame_sums_hold(const uint8_t *umem, const struct hs_datagram *datagram)
{
	const struct hs_frame_flow *flow = &datagram->flow;
	const uint8_t *udp = umem + datagram->payload - UDP_BYTES;
	const uint8_t *ip = umem + datagram->payload - datagram->header_bytes;
	/* Another worker may write into the UMEM, so use only the lengths that were checked. */
	size_t address_bytes = flow->ip_version == 4 ? 4 : 16;
	size_t ip_bytes = datagram->header_bytes - (size_t)UDP_BYTES;
	size_t udp_bytes = UDP_BYTES + (size_t)datagram->payload_bytes;
	uint16_t checksum;
	memcpy(&checksum, udp + 6, sizeof(checksum));
	if (flow->ip_version == 4 && fold(sum_bytes(ip, ip_bytes)) != 0xffff)
		return 0;
	if (!checksum)
		return flow->ip_version == 4;
	uint64_t pseudo = sum_bytes(flow->remote_ip, address_bytes) +
			  sum_bytes(flow->local_ip, address_bytes) + htons(NEXT_UDP) +
			  htons((uint16_t)udp_bytes);
	return fold(pseudo + sum_bytes(udp, udp_bytes)) == 0xffff || checksum == fold(pseudo);
}

static void put_checksum(uint8_t *at, uint16_t checksum)
{
	memcpy(at, &checksum, sizeof(checksum)); /* already in memory byte order */
}

static uint8_t *init_ipv4(struct hs_frame_header *header, const struct hs_frame_flow *flow,
			  uint8_t hop_limit, uint8_t ecn)
{
	uint8_t *ip = header->bytes + header->ip_offset;
	ip[0] = 0x45;
	ip[1] = ecn;
	/* Never fragmented (RFC 9000 section 14), so the identification may be 0 (RFC 6864). */
	put16(ip + 6, IPV4_DONT_FRAGMENT);
	ip[8] = hop_limit;
	ip[9] = NEXT_UDP;
	memcpy(ip + 12, flow->local_ip, 4);
	memcpy(ip + 16, flow->remote_ip, 4);
	header->ip_sum = fold(sum_bytes(ip, IPV4_BYTES));
	header->udp_sum = fold(sum_bytes(ip + 12, 8));
	return ip + IPV4_BYTES;
}

static uint8_t *init_ipv6(struct hs_frame_header *header, const struct hs_frame_flow *flow,
			  uint8_t hop_limit, uint8_t ecn)
{
	uint8_t *ip = header->bytes + header->ip_offset;
	ip[0] = 0x60;
	ip[1] = (uint8_t)(ecn << 4);
	ip[6] = NEXT_UDP;
	ip[7] = hop_limit;
	memcpy(ip + 8, flow->local_ip, 16);
	memcpy(ip + 24, flow->remote_ip, 16);
	header->udp_sum = fold(sum_bytes(ip + 8, 32));
	return ip + IPV6_BYTES;
}

int hs_frame_header_init(struct hs_frame_header *header, const struct hs_frame_flow *flow,
			 uint8_t hop_limit, uint8_t ecn)
{
	if ((flow->ip_version != 4 && flow->ip_version != 6) ||
	    flow->vlan_tags > HS_FRAME_MAX_VLAN_TAGS || ecn > 3)
		return -1;
	memset(header, 0, sizeof(*header));
	uint8_t *at = header->bytes;
	memcpy(at, flow->remote_mac, 6);
	memcpy(at + 6, flow->local_mac, 6);
	at += 12;
	for (int i = 0; i < flow->vlan_tags; i++, at += VLAN_BYTES) {
		put16(at, flow->vlan_tpid[i]);
		put16(at + 2, flow->vlan_id[i] & VLAN_ID_MASK);
	}
	put16(at, flow->ip_version == 4 ? ETHERTYPE_V4 : ETHERTYPE_V6);
	at += 2;
	header->ip_offset = (uint8_t)(at - header->bytes);
	header->ip_version = flow->ip_version;
	uint8_t *udp = flow->ip_version == 4 ? init_ipv4(header, flow, hop_limit, ecn) :
					       init_ipv6(header, flow, hop_limit, ecn);
	put16(udp, flow->local_port);
	put16(udp + 2, flow->remote_port);
	header->udp_sum += htons(NEXT_UDP) + fold(sum_bytes(udp, 4));
	header->header_bytes = (uint8_t)(udp + UDP_BYTES - header->bytes);
	return 0;
}

void hs_frame_finish(uint8_t *payload, const struct hs_frame_header *header, uint32_t payload_bytes,
		     uint8_t ecn)
{
	uint8_t *frame = payload - header->header_bytes;
	uint8_t *ip = frame + header->ip_offset;
	uint8_t *udp = payload - UDP_BYTES;
	uint16_t udp_bytes = (uint16_t)(UDP_BYTES + payload_bytes);
	memcpy(frame, header->bytes, header->header_bytes);
	if (header->ip_version == 4) {
		uint16_t total_bytes = (uint16_t)(IPV4_BYTES + udp_bytes);
		ip[1] |= ecn;
		put16(ip + 2, total_bytes);
		/* The ECN bits were zero in the prepared sum, so they can be added. */
		put_checksum(ip + 10, (uint16_t)~fold((uint64_t)header->ip_sum + htons(ecn) +
						      htons(total_bytes)));
	} else {
		ip[1] |= (uint8_t)(ecn << 4);
		put16(ip + 4, udp_bytes);
	}
	put16(udp + 4, udp_bytes);
	/* The length counts twice: in the pseudo header and in the UDP header. */
	uint16_t checksum = (uint16_t)~fold(sum_bytes(payload, payload_bytes) + header->udp_sum +
					    2 * (uint64_t)htons(udp_bytes));
	/* 0 would mean "no checksum" (RFC 768; not allowed in IPv6, RFC 8200). */
	put_checksum(udp + 6, checksum ? checksum : 0xffff);
}
