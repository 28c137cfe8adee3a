/* SPDX-License-Identifier: Apache-2.0
 *
 * Datagrams that belong to no connection (hoststack/native/quic/accept.c): version negotiation, tokens,
 * Retry, stateless resets. The input is a list of datagrams for a listening engine; some are
 * bytes as they are, some have headers made here, with tokens that are good but for the
 * bytes that the input changes. Nobody here has a client's keys, so no connection ever comes of it.
 */
#include "quic/state.h"
#include "wire/handed.h"

#include "fuzz.h"
#include "kept_wire.h"
#include "no_connection.h"
#include "steady.h"

enum {
	MOST_DATAGRAMS = 24,
	DATAGRAM_ROOM = 1500,
	INITIAL_BYTES = 1200,
	LOCAL_PORT = 443,
	REMOTE_PORT = 5000,
	PATHS = 2,
	/* RFC 9000 section 8.1 */
	AMPLIFICATION = 3,
};

static const uint8_t SECRET[HS_QUIC_SECRET_BYTES] = "a secret that all workers share";
static const uint8_t PREFIX[HS_CID_RANDOM_OFFSET] = { 0x0b, 0, 1, 0 };
static const uint8_t LOCAL_IP[4] = { 10, 0, 0, 1 }, REMOTE_IP[4] = { 10, 0, 0, 2 };

struct target {
	struct hs_quic *q;
	struct hs_wire *wire;
	uint64_t now_ns;
	struct input *in;
};

/* --- datagrams ---------------------------------------------------------------------------------- */

struct packet {
	uint8_t bytes[DATAGRAM_ROOM];
	size_t n;
};

static void put(struct packet *p, const void *bytes, size_t n)
{
	if (n > sizeof(p->bytes) - p->n)
		n = sizeof(p->bytes) - p->n;
	memcpy(p->bytes + p->n, bytes, n);
	p->n += n;
}

static void put_8(struct packet *p, uint8_t value)
{
	put(p, &value, 1);
}

/* RFC 9000 section 16, in two bytes. */
static void put_varint(struct packet *p, size_t value)
{
	put_8(p, (uint8_t)(0x40 | (value >> 8 & 0x3f)));
	put_8(p, (uint8_t)value);
}

static void take_cid(struct input *in, ngtcp2_cid *cid)
{
	size_t n;
	uint8_t shape = take_8(in);
	uint8_t bytes[NGTCP2_MAX_CIDLEN] = { 0 };
	const uint8_t *from = take_bytes(in, shape % (NGTCP2_MAX_CIDLEN + 1), &n);
	memcpy(bytes, from, n);
	if (shape & 0x80) /* one of ours, as far as its beginning says */
		memcpy(bytes, PREFIX, sizeof(PREFIX));
	ngtcp2_cid_init(cid, bytes, shape % (NGTCP2_MAX_CIDLEN + 1));
}

static uint32_t take_version(struct input *in)
{
	static const uint32_t VERSIONS[] = { NGTCP2_PROTO_VER_V1, NGTCP2_PROTO_VER_V2, 0,
					     0x1a2a3a4a };
	uint8_t which = take_8(in);
	return which < 8 ? VERSIONS[which % 4] : (uint32_t)take_64(in);
}

/* A token as this engine would have made it `age_ns` ago; the input may change bytes of it. */
static size_t make_token(struct target *t, uint8_t *token, uint32_t version,
			 const ngtcp2_cid *dcid)
{
	uint8_t how = take_8(t->in);
	struct hs_path *path = hs_paths_by_id(&t->wire->paths, how >> 2 & 1);
	uint64_t age_ns = (uint64_t)take_8(t->in) << 34, then_ns;
	const struct sockaddr *remote = &path->remote.any;
	socklen_t remote_bytes = hs_address_bytes(&path->remote);
	ngtcp2_cid original;
	ngtcp2_ssize n;
	size_t raw;
	then_ns = t->now_ns > age_ns ? t->now_ns - age_ns : 0;
	if ((how & 3) == 0) {
		const uint8_t *bytes = take_bytes(t->in, take_8(t->in), &raw);
		memcpy(token, bytes, raw);
		return raw;
	}
	if ((how & 3) == 1) {
		n = ngtcp2_crypto_generate_regular_token(token, SECRET, sizeof(SECRET), remote,
							 remote_bytes, then_ns);
	} else {
		take_cid(t->in, &original);
		n = ngtcp2_crypto_generate_retry_token2(token, SECRET, sizeof(SECRET), version,
							remote, remote_bytes, dcid, &original,
							then_ns);
	}
	CHECK(n > 0);
	for (int changes = how >> 3 & 3; changes; changes--) {
		uint8_t at = take_8(t->in);
		token[at % (size_t)n] ^= take_8(t->in);
	}
	return how & 0x80 ? take_8(t->in) % (size_t)(n + 1) : (size_t)n;
}

static void make_long(struct target *t, struct packet *p)
{
	uint8_t token[256], shape = take_8(t->in);
	uint32_t version = take_version(t->in);
	uint8_t version_be[4] = { (uint8_t)(version >> 24), (uint8_t)(version >> 16),
				  (uint8_t)(version >> 8), (uint8_t)version };
	ngtcp2_cid dcid, scid;
	take_cid(t->in, &dcid);
	take_cid(t->in, &scid);
	put_8(p, shape | 0xc0);
	put(p, version_be, sizeof(version_be));
	put_8(p, (uint8_t)dcid.datalen);
	put(p, dcid.data, dcid.datalen);
	put_8(p, (uint8_t)scid.datalen);
	put(p, scid.data, scid.datalen);
	size_t token_bytes = make_token(t, token, version, &dcid);
	put_varint(p, token_bytes);
	put(p, token, token_bytes);
	put_varint(p, INITIAL_BYTES - p->n - 2);
	while (p->n < INITIAL_BYTES)
		put_8(p, 0);
}

static void make_short(struct target *t, struct packet *p)
{
	size_t n;
	uint8_t first = take_8(t->in);
	put_8(p, first & 0x7f);
	if (first & 0x80)
		put(p, PREFIX, sizeof(PREFIX));
	size_t fill = take_8(t->in);
	const uint8_t *bytes = take_bytes(t->in, 20, &n);
	put(p, bytes, n);
	while (p->n < fill)
		put_8(p, (uint8_t)fill);
}

static void make_raw(struct target *t, struct packet *p)
{
	size_t n;
	uint16_t shape = take_16(t->in);
	const uint8_t *bytes = take_bytes(t->in, shape & 0x1ff, &n);
	put(p, bytes, n);
	while (shape & 0x8000 && p->n < INITIAL_BYTES)
		put_8(p, 0);
}

/* --- answers ------------------------------------------------------------------------------------ */

static void check_version_negotiation(const struct packet *p, const uint8_t *answer, size_t n)
{
	ngtcp2_version_cid ids, came;
	uint32_t versions[HS_QUIC_VERSIONS];
	CHECK(!ngtcp2_pkt_decode_version_cid(&ids, answer, n, HS_CID_BYTES));
	CHECK(ngtcp2_pkt_decode_version_cid(&came, p->bytes, p->n, HS_CID_BYTES) ==
	      NGTCP2_ERR_VERSION_NEGOTIATION);
	CHECK(ids.version == 0 && p->n >= INITIAL_BYTES);
	CHECK(ids.dcidlen == came.scidlen && !memcmp(ids.dcid, came.scid, ids.dcidlen));
	CHECK(ids.scidlen == came.dcidlen && !memcmp(ids.scid, came.dcid, ids.scidlen));
	CHECK((size_t)(answer + n - (ids.scid + ids.scidlen)) == sizeof(versions));
}

/* RFC 9000 section 10.3.3: "An endpoint MUST ensure that every Stateless Reset that it sends is smaller
 * than the packet that triggered it". */
static void check_reset(const struct packet *p, const uint8_t *answer, size_t n)
{
	uint8_t token[NGTCP2_STATELESS_RESET_TOKENLEN];
	ngtcp2_cid cid;
	CHECK(n < p->n && n >= 21 && (answer[0] & 0xc0) == 0x40);
	CHECK(!memcmp(p->bytes + 1, PREFIX, sizeof(PREFIX)));
	ngtcp2_cid_init(&cid, p->bytes + 1, HS_CID_BYTES);
	CHECK(!ngtcp2_crypto_generate_stateless_reset_token(token, SECRET, sizeof(SECRET), &cid));
	CHECK(!memcmp(answer + n - sizeof(token), token, sizeof(token)));
}

/* Returns how many bytes went out. */
static size_t check_answers(struct target *t, const struct packet *p)
{
	struct hs_quic_counters counters;
	uint32_t n, path_id;
	uint32_t count = 0;
	size_t total = 0;
	const uint8_t *answer;
	while ((answer = hs_wire_handed_take(t->wire, count, &n, &path_id))) {
		uint8_t *copy = copy_of(answer, n);
		CHECK(n && p->n);
		if (!(copy[0] & HS_QUIC_LONG_HEADER))
			check_reset(p, copy, n);
		else if (!memcmp(copy + 1, "\0\0\0\0", 4))
			check_version_negotiation(p, copy, n);
		else
			CHECK(p->n >= INITIAL_BYTES); /* Retry, CONNECTION_CLOSE */
		free(copy);
		total += n;
		count++;
	}
	hs_wire_handed_sent(t->wire, count);
	hs_quic_counters(t->q, &counters);
	CHECK(count <= 1 && total <= AMPLIFICATION * p->n);
	return total;
}

static void turn(struct target *t, struct hs_quic_turn *out)
{
	hs_quic_turn(t->q, t->now_ns, 1, 0, out);
	for (uint32_t i = 0; i < out->event_count; i++)
		CHECK(out->events[i].kind == HS_QUIC_FORGOTTEN);
}

static void send_one(struct target *t, const struct packet *p, uint8_t how)
{
	struct hs_quic_turn out;
	uint32_t path_id = how & 1;
	uint8_t *copy = copy_of(p->bytes, p->n);
	uint8_t ecn = (how >> 1 & 3) | (how & 8 ? UNKNOWN_PATH : 0);
	CHECK(!hs_wire_handed_put(t->wire, copy, (uint32_t)p->n, ecn, path_id));
	turn(t, &out);
	free(copy);
	check_answers(t, p);
}

/* --- the target --------------------------------------------------------------------------------- */

static void begin(struct target *t, uint8_t shape)
{
	static struct hs_tls *tls;
	char error[128];
	const char *certificate, *key;
	struct hs_quic_config config = {
		.first_window_bytes = 4096,
		.connection_window_bytes = 16384,
		.max_streams_bidi = 4,
		.max_streams_uni = 4,
		.idle_timeout_ns = 10000000000,
		.handshake_timeout_ns = 1000000000,
		.packets_per_key = 1 << 20,
		.max_connections = shape & 2 ? 1 : 16,
		.retry_above = shape & 1 ? 0 : 1000,
		.half_open_per_source = 4,
	};
	if (!tls) {
		steady_certificate(&certificate, &key);
		tls = hs_tls_new(1, certificate, key, NULL, 0, (const uint8_t *)"\2hs", 3, error,
				 sizeof(error));
		CHECK(tls);
	}
	t->wire = kept_wire(0);
	t->q = hs_quic_new(t->wire, PREFIX, SECRET, NULL, no_session, no_fifos, no_path, t);
	CHECK(t->q);
	for (uint32_t i = 0; i < PATHS; i++) {
		uint8_t path_key[HS_PATH_KEY_BYTES] = { (uint8_t)(1 + i) };
		struct hs_path_ends ends = { .ip_version = 4,
					     .local_port = LOCAL_PORT,
					     .remote_port = (uint16_t)(REMOTE_PORT + i) };
		memcpy(ends.local_ip, LOCAL_IP, sizeof(LOCAL_IP));
		memcpy(ends.remote_ip, REMOTE_IP, sizeof(REMOTE_IP));
		CHECK(hs_wire_add_path(t->wire, &ends) == i);
		hs_wire_handed_set_size(t->wire, i, 1452);
		hs_paths_set_key(&t->wire->paths, hs_paths_by_id(&t->wire->paths, i), path_key);
	}
	static const uint8_t ANY[16];
	if (!(shape & 4))
		CHECK(hs_quic_listen(t->q, 4, shape & 8 ? ANY : LOCAL_IP, LOCAL_PORT, tls, &config));
}

/* FNV-1a */
static uint64_t hash(const uint8_t *data, size_t bytes)
{
	uint64_t h = 0xcbf29ce484222325;
	for (size_t i = 0; i < bytes; i++)
		h = (h ^ data[i]) * 0x100000001b3;
	return h;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct input in = { data, bytes };
	struct target t = { .now_ns = 1ULL << 41, .in = &in };
	struct hs_quic_counters counters;
	struct hs_quic_turn out;
	/* Or the fuzzer would learn which connection ID comes next, which nobody can. */
	steady_begin(hash(data, bytes));
	begin(&t, take_8(&in));
	for (int i = 0; in.left && i < MOST_DATAGRAMS; i++) {
		static void (*const MAKERS[])(struct target *, struct packet *) = {
			make_raw, make_long, make_short, make_long
		};
		struct packet p = { .n = 0 };
		uint8_t how = take_8(&in);
		t.now_ns += (uint64_t)take_8(&in) << 24;
		MAKERS[how >> 6](&t, &p);
		send_one(&t, &p, how);
	}
	t.now_ns += 1ULL << 40;
	turn(&t, &out);
	turn(&t, &out);
	hs_quic_counters(t.q, &counters);
	CHECK(!counters.accepted && !counters.half_open && !counters.connections);
	hs_quic_free(t.q);
	return 0;
}
