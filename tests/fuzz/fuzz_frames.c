/* SPDX-License-Identifier: Apache-2.0
 *
 * The frame parser (hoststack/native/wire/frames.c). Input: how many descriptors, the descriptors, and
 * then the UMEM; without descriptors the rest is one frame. What parses lies inside its frame; built
 * again, with checksums that hold, it parses to the same.
 */
#include "wire/frames.h"

#include "fuzz.h"

enum { MOST_DESCS = 8, IPV4_BYTES = 20, UDP_BYTES = 8 };

/* As the sender of it sees it. */
static struct hs_frame_flow turned(const struct hs_frame_flow *flow)
{
	struct hs_frame_flow other = *flow;
	other.local_port = flow->remote_port;
	other.remote_port = flow->local_port;
	memcpy(other.local_mac, flow->remote_mac, sizeof(other.local_mac));
	memcpy(other.remote_mac, flow->local_mac, sizeof(other.remote_mac));
	memcpy(other.local_ip, flow->remote_ip, sizeof(other.local_ip));
	memcpy(other.remote_ip, flow->local_ip, sizeof(other.remote_ip));
	return other;
}

/* RFC 1071, as it is written there. */
static uint32_t add_words(uint32_t sum, const uint8_t *at, size_t n)
{
	for (size_t i = 0; i < n; i++)
		sum += i & 1 ? at[i] : (uint32_t)at[i] << 8;
	while (sum >> 16)
		sum = (sum & 0xffff) + (sum >> 16);
	return sum;
}

static void check_checksums(const uint8_t *frame, size_t bytes, const struct hs_frame_header *header)
{
	const uint8_t *ip = frame + header->ip_offset;
	const uint8_t *udp = frame + header->header_bytes - UDP_BYTES;
	size_t udp_bytes = bytes - (size_t)(udp - frame);
	uint32_t sum = add_words(17, udp + 4, 2); /* the pseudo header: protocol and length */
	if (header->ip_version == 4) {
		CHECK(add_words(0, ip, IPV4_BYTES) == 0xffff);
		sum = add_words(sum, ip + 12, 8);
	} else {
		sum = add_words(sum, ip + 8, 32);
	}
	CHECK(add_words(sum, udp, udp_bytes) == 0xffff);
	CHECK(udp[6] || udp[7]); /* 0 would mean that there is none */
}

static void build_again(const uint8_t *umem, const struct hs_datagram *datagram)
{
	struct hs_frame_flow sender = turned(&datagram->flow);
	struct hs_frame_header header, unmarked;
	const uint8_t *payload = umem + datagram->payload;
	uint32_t payload_bytes = datagram->payload_bytes;
	CHECK(hs_frame_header_init(&header, &sender, 64, datagram->ecn) == 0);
	CHECK(hs_frame_header_init(&unmarked, &sender, 64, 0) == 0);
	size_t frame_bytes = header.header_bytes + payload_bytes;
	uint8_t *built = take_memory(frame_bytes);
	uint8_t *finished = take_memory(frame_bytes);
	struct hs_frame_desc desc = { 0, (uint32_t)frame_bytes, 0 };
	struct hs_datagram again;

	memcpy(built + header.header_bytes, payload, payload_bytes);
	hs_frame_finish(built + header.header_bytes, &header, payload_bytes, 0);
	check_checksums(built, frame_bytes, &header);
	memcpy(finished + unmarked.header_bytes, payload, payload_bytes);
	hs_frame_finish(finished + unmarked.header_bytes, &unmarked, payload_bytes, datagram->ecn);
	CHECK(!memcmp(built, finished, frame_bytes));

	CHECK(hs_frames_parse(built, frame_bytes, &desc, 1, &again) == 1);
	CHECK(!memcmp(&again.flow, &datagram->flow, sizeof(again.flow)));
	CHECK(hs_frame_sums_hold(built, &again));
	CHECK(again.ecn == datagram->ecn && again.payload_bytes == payload_bytes);
	CHECK(!memcmp(built + again.payload, payload, payload_bytes));

	/* Cut anywhere, it is no frame any more. */
	for (desc.len = 0; desc.len < header.header_bytes; desc.len++) {
		uint8_t *cut = copy_of(built, desc.len);
		CHECK(hs_frames_parse(cut, desc.len, &desc, 1, &again) == 0);
		free(cut);
	}
	free(finished);
	free(built);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct input in = { data, bytes };
	struct hs_frame_desc descs[MOST_DESCS] = { { 0 } };
	struct hs_datagram out[MOST_DESCS];
	size_t umem_bytes;
	int n = take_8(&in) % (MOST_DESCS + 1), counted = 0;
	for (int i = 0; i < n; i++) {
		uint16_t shape = take_16(&in);
		/* Most lie within a few hundred bytes; some anywhere. */
		descs[i].addr = shape & 0x8000 ? take_64(&in) : shape & 0x1ff;
		descs[i].len = shape & 0x4000 ? (uint32_t)take_64(&in) : take_16(&in);
	}
	const uint8_t *rest = take_bytes(&in, in.left, &umem_bytes);
	uint8_t *umem = copy_of(rest, umem_bytes);
	if (!n) {
		n = 1;
		descs[0].len = (uint32_t)umem_bytes;
	}
	memset(out, 0xff, sizeof(out));
	int good = hs_frames_parse(umem, umem_bytes, descs, n, out);
	for (int i = 0; i < n; i++) {
		int is_outside = descs[i].addr > umem_bytes ||
				 descs[i].len > umem_bytes - descs[i].addr;
		CHECK(out[i].drop < HS_FRAME_DROPS);
		CHECK(is_outside == (out[i].drop == HS_FRAME_OUTSIDE_UMEM));
		if (out[i].drop != HS_FRAME_GOOD)
			continue;
		counted++;
		CHECK(out[i].payload >= descs[i].addr &&
		      out[i].payload + out[i].payload_bytes <= descs[i].addr + descs[i].len);
		hs_frame_sums_hold(umem, &out[i]);
		build_again(umem, &out[i]);
	}
	CHECK(good == counted);
	free(umem);
	return 0;
}
