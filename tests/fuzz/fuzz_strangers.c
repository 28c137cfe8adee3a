/* SPDX-License-Identifier: Apache-2.0
 *
 * Frames of addresses that nobody has proven (hoststack/native/quic/accept.c over
 * hoststack/native/wire/xdp.c and paths.c). The input is a list of frames for a listening engine over
 * rings made here, and answers to what the wire asks about next hops. Every answer must go back to
 * where a frame of that turn came from, and the table of paths must stay within its bounds.
 */
#include "quic/state.h"
#include "wire/local_addresses.h"
#include "wire/paths.h"
#include "wire/xdp.h"

#include "fuzz.h"
#include "no_connection.h"
#include "pyxdp.h"
#include "steady.h"

enum {
	MOST_TURNS = 24,
	MOST_FRAMES = 8, /* of a turn */
	FRAMES = 160,
	FRAME_BYTES = 2048,
	HEADROOM = 256,
	INITIAL_BYTES = 1200,
	PORT = 443,
	PATHS = 3,
};

static const uint8_t SECRET[HS_QUIC_SECRET_BYTES] = "a secret";
static const uint8_t PREFIX[HS_CID_RANDOM_OFFSET] = { 0x0b, 0, 1, 0 };
static const uint8_t OUR_MAC[6] = { 2, 0, 0, 0, 0, 1 };
static const uint8_t OUR_IP[16] = { 10, 0, 0, 1 };

/* A UMEM, and whose each of its frames is. */
static struct rings {
	uint8_t umem[FRAMES * FRAME_BYTES];
	uint8_t is_taken[FRAMES];
	struct pyxdp_desc arrived[MOST_FRAMES];
	int arrived_count;
	struct pyxdp_desc sent[FRAMES];
	int sent_count;
	int tx_room;
} rings;

static int take_frame(uint64_t *addr)
{
	for (int i = 0; i < FRAMES; i++) {
		if (!rings.is_taken[i]) {
			rings.is_taken[i] = 1;
			*addr = (uint64_t)i * FRAME_BYTES;
			return 0;
		}
	}
	return -1;
}

static void give_back(uint64_t addr)
{
	CHECK(addr < sizeof(rings.umem) && rings.is_taken[addr / FRAME_BYTES]);
	rings.is_taken[addr / FRAME_BYTES] = 0;
}

static int rx_burst(struct pyxdp_socket *socket, struct pyxdp_desc *out, int budget)
{
	(void)socket;
	int n = rings.arrived_count < budget ? rings.arrived_count : budget;
	memcpy(out, rings.arrived, (size_t)n * sizeof(*out));
	rings.arrived_count = 0;
	return n;
}

static int rx_release(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n)
{
	(void)socket;
	for (int i = 0; i < n; i++)
		give_back(descs[i].addr);
	return n;
}

static int tx_reserve(struct pyxdp_socket *socket, struct pyxdp_desc *out, int n)
{
	int given = 0;
	(void)socket;
	while (given < n && !take_frame(&out[given].addr))
		given++;
	return given;
}

static int tx_submit(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n)
{
	int taken = n < rings.tx_room ? n : rings.tx_room;
	(void)socket;
	for (int i = 0; i < taken; i++)
		rings.sent[rings.sent_count++] = descs[i];
	rings.tx_room -= taken;
	return taken;
}

static int kick(struct pyxdp_socket *socket)
{
	(void)socket;
	return 0;
}

static const struct pyxdp_verbs VERBS = { rx_burst, rx_release, tx_reserve, tx_submit, kick };

/* --- frames ------------------------------------------------------------------------------------- */

static struct hs_frame_flow flows[MOST_FRAMES]; /* of the frames of this turn, as senders */

static void take_flow(struct input *in, struct hs_frame_flow *flow)
{
	uint8_t shape = take_8(in), who = take_8(in);
	memset(flow, 0, sizeof(*flow));
	flow->ip_version = 4;
	flow->vlan_tags = shape & 3 ? 0 : shape >> 2 & 1;
	flow->vlan_tpid[0] = flow->vlan_tags ? 0x8100 : 0;
	flow->vlan_id[0] = flow->vlan_tags ? 7 : 0;
	flow->local_port = (uint16_t)(1000 + (who & 3));
	flow->remote_port = shape & 0x80 ? take_16(in) : PORT;
	memcpy(flow->remote_mac, OUR_MAC, sizeof(OUR_MAC));
	flow->local_mac[0] = 2;
	flow->local_mac[5] = (uint8_t)(16 + (who >> 2 & 1));
	memcpy(flow->remote_ip, OUR_IP, 4);
	flow->local_ip[0] = 10;
	flow->local_ip[3] = (uint8_t)(2 + (who >> 3 & 7));
	if (shape & 0x40) /* to or from somewhere else */
		(who & 0x40 ? flow->remote_ip : flow->local_ip)[3] = take_8(in);
	if (shape & 0x20)
		flow->remote_mac[take_8(in) % 6] ^= take_8(in);
	if (shape & 0x10)
		flow->local_mac[0] = take_8(in);
}

static size_t take_payload(struct input *in, uint8_t *out)
{
	static const uint8_t VERSIONS[4][4] = { { 0, 0, 0, 1 }, { 0x1a, 0x2a, 0x3a, 0x4a } };
	uint8_t shape = take_8(in);
	size_t n, bytes = shape & 0x80 ? take_16(in) % 1400 : INITIAL_BYTES;
	memset(out, 0, INITIAL_BYTES);
	if (shape & 0x40) {
		out[0] = 0x40;
		memcpy(out + 1, PREFIX, sizeof(PREFIX));
		out[5] = take_8(in);
		return bytes;
	}
	out[0] = 0xc0 | (shape & 0x30);
	memcpy(out + 1, VERSIONS[shape & 1], 4);
	out[5] = 8;
	out[6] = take_8(in);
	out[14] = 8;
	if (shape & 2) { /* a token of the sort that Retry gives */
		out[23] = 90;
		out[24] = NGTCP2_CRYPTO_TOKEN_MAGIC_RETRY2;
		out[114] = 0x44;
		out[115] = (uint8_t)(INITIAL_BYTES - 116 - 0x400);
	} else {
		out[24] = 0x44;
		out[25] = (uint8_t)(INITIAL_BYTES - 26 - 0x400);
	}
	const uint8_t *changes = take_bytes(in, shape & 4 ? 6 : 0, &n);
	for (size_t i = 0; i + 1 < n; i += 2)
		out[changes[i]] ^= changes[i + 1];
	return bytes;
}

static void arrive(struct input *in)
{
	struct hs_frame_header header;
	struct hs_frame_flow *flow = &flows[rings.arrived_count];
	struct pyxdp_desc *desc = &rings.arrived[rings.arrived_count];
	uint64_t frame;
	uint8_t payload[1400];
	if (take_frame(&frame))
		return;
	take_flow(in, flow);
	size_t bytes = take_payload(in, payload);
	CHECK(!hs_frame_header_init(&header, flow, 64, 0));
	*desc = (struct pyxdp_desc){ frame + HEADROOM, (uint32_t)(header.header_bytes + bytes), 0 };
	memcpy(rings.umem + desc->addr + header.header_bytes, payload, bytes);
	hs_frame_finish(rings.umem + desc->addr + header.header_bytes, &header, (uint32_t)bytes, 0);
	rings.arrived_count++;
}

/* --- answers ------------------------------------------------------------------------------------ */

static int is_back(const struct hs_frame_flow *answer, const struct hs_frame_flow *asked)
{
	/* Both are as their senders wrote them: what was local there is remote here. */
	return answer->local_port == asked->local_port && answer->remote_port == asked->remote_port &&
	       !memcmp(answer->local_mac, asked->local_mac, 6) &&
	       !memcmp(answer->remote_mac, OUR_MAC, 6) &&
	       !memcmp(answer->local_ip, asked->local_ip, 4) &&
	       !memcmp(answer->remote_ip, OUR_IP, 4) && answer->vlan_tags == asked->vlan_tags &&
	       answer->vlan_id[0] == asked->vlan_id[0];
}

static void check_sent(int asked)
{
	for (int i = 0; i < rings.sent_count; i++) {
		const struct pyxdp_desc *desc = &rings.sent[i];
		struct hs_frame_desc at = { desc->addr, desc->len, 0 };
		struct hs_datagram answer;
		int found = 0;
		CHECK(hs_frames_parse(rings.umem, sizeof(rings.umem), &at, 1, &answer) == 1);
		CHECK(hs_frame_sums_hold(rings.umem, &answer));
		for (int from = 0; from < asked; from++)
			found |= is_back(&answer.flow, &flows[from]);
		CHECK(found);
		give_back(desc->addr);
	}
	CHECK(rings.sent_count <= asked);
	rings.sent_count = 0;
}

static void turn(struct hs_quic *q, struct hs_wire *wire, struct input *in, uint64_t now_ns)
{
	struct hs_wire_xdp_question questions[4];
	struct hs_quic_turn out;
	uint32_t used[4];
	int is_over, asked = rings.arrived_count;
	rings.tx_room = 64;
	hs_quic_turn(q, now_ns, 1, 0, &out);
	CHECK(!out.event_count); /* nobody has made a connection, or has been sent much */
	CHECK(rings.arrived_count == 0 && hs_wire_path_count(wire) <= PATHS);
	check_sent(asked);
	int n = hs_wire_xdp_asked(wire, questions, 4);
	for (int i = 0; i < n; i++) {
		CHECK(questions[i].path_id < PATHS);
		hs_wire_xdp_answer(wire, questions[i].path_id, take_8(in) & 1 ? OUR_MAC : NULL,
				   take_16(in));
	}
	hs_wire_xdp_used(wire, used, 4, &is_over);
}

/* --- the target --------------------------------------------------------------------------------- */

static struct hs_wire *new_wire(void)
{
	static const uint64_t SOCKET = 1;
	static const struct hs_prefix OWN[] = {
		{ 4, 8, 0, { 127 } }, { 4, 32, 0, { 10, 0, 0, 1 } }, { 4, 32, 1, { 10, 0, 0, 255 } }
	};
	struct hs_wire *wire = hs_wire_xdp_new(&VERBS, &SOCKET, 1, rings.umem, sizeof(rings.umem),
					       FRAME_BYTES, PATHS);
	CHECK(wire && !hs_wire_xdp_set_interface(wire, OUR_MAC, 3, 1500, OWN, 3));
	return wire;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	static struct hs_tls *tls;
	static const uint8_t ANY[16];
	struct input in = { data, bytes };
	char error[128];
	const char *certificate, *key;
	uint64_t now_ns = 1ULL << 41;
	uint8_t shape = take_8(&in);
	struct hs_quic_config config = {
		.first_window_bytes = 4096,
		.connection_window_bytes = 16384,
		.max_streams_bidi = 4,
		.max_streams_uni = 4,
		.idle_timeout_ns = 10000000000,
		.handshake_timeout_ns = 1000000000,
		.packets_per_key = 1 << 20,
		.max_connections = 16,
		.retry_above = shape & 1 ? 0 : 1000,
		.half_open_per_source = 4,
	};
	steady_begin(1);
	steady_certificate(&certificate, &key);
	if (!tls)
		tls = hs_tls_new(1, certificate, key, NULL, 0, (const uint8_t *)"\2hs", 3, error,
				 sizeof(error));
	CHECK(tls);
	struct hs_wire *wire = new_wire();
	struct hs_quic *q =
		hs_quic_new(wire, PREFIX, SECRET, NULL, no_session, no_fifos, no_path, NULL);
	CHECK(q && hs_quic_listen(q, 4, ANY, PORT, tls, &config));
	for (int i = 0; i < MOST_TURNS && in.left; i++) {
		for (int count = 1 + take_8(&in) % MOST_FRAMES; count && in.left; count--)
			arrive(&in);
		now_ns += (uint64_t)take_8(&in) << 20;
		steady_set_time(now_ns);
		turn(q, wire, &in, now_ns);
	}
	turn(q, wire, &in, now_ns + (1ULL << 40));
	hs_quic_free(q);
	memset(rings.is_taken, 0, sizeof(rings.is_taken));
	return 0;
}
