/* SPDX-License-Identifier: Apache-2.0
 *
 * A peer that has the keys: one of two live engines (pair.h) is hostile, and the input says what it
 * writes into its packets before they are encrypted: frames of the input's own, in place of what
 * ngtcp2 had written, in front of it, or changed in it. It holds for handshake packets as well. The
 * other engine must stay whole, whatever it makes of the connection.
 */
#include "fuzz.h"
#include "pair.h"
#include "steady.h"

enum { MOST_PLAINTEXT_BYTES = 2048, TIME_TO_LIVE_MS = 3000, MOST_STRIKES = 64 };

enum manner { REPLACE, PREPEND, OVERWRITE, CHANGE, MANNERS };

static struct {
	struct pair *pair; /* NULL: nobody is hostile */
	int side;
	struct input in;
	uint32_t to_pass; /* packets until the next strike */
	uint8_t is_established_first; /* it waits for the end of the handshake */
	uint8_t manner;
	uint32_t strikes;
} hostile;

/* How many packets go as they are, and then what is done to one. */
static void next_strike(void)
{
	uint8_t code = take_8(&hostile.in);
	hostile.to_pass = code & 0x0f;
	hostile.manner = code >> 4 & 3;
}

static void strike(uint8_t *plaintext, size_t bytes)
{
	size_t n, at = 0;
	uint8_t length = take_8(&hostile.in);
	if (hostile.manner == OVERWRITE || hostile.manner == CHANGE)
		at = take_16(&hostile.in) % bytes;
	/* The lengths are in the header already: what does not fit is cut off. */
	size_t room = bytes - at;
	const uint8_t *frames = take_bytes(&hostile.in, length < room ? length : room, &n);
	if (hostile.manner == REPLACE)
		memset(plaintext, 0, bytes); /* PADDING after them */
	else if (hostile.manner == PREPEND)
		memmove(plaintext + n, plaintext, bytes - n);
	for (size_t i = 0; i < n; i++) {
		if (hostile.manner == CHANGE)
			plaintext[at + i] ^= frames[i];
		else
			plaintext[at + i] = frames[i];
	}
	next_strike();
}

int __real_ngtcp2_crypto_encrypt_cb(uint8_t *out, const ngtcp2_crypto_aead *aead,
				    const ngtcp2_crypto_aead_ctx *context,
				    const uint8_t *plaintext, size_t bytes, const uint8_t *nonce,
				    size_t nonce_bytes, const uint8_t *header,
				    size_t header_bytes);
int __wrap_ngtcp2_crypto_encrypt_cb(uint8_t *out, const ngtcp2_crypto_aead *aead,
				    const ngtcp2_crypto_aead_ctx *context,
				    const uint8_t *plaintext, size_t bytes, const uint8_t *nonce,
				    size_t nonce_bytes, const uint8_t *header,
				    size_t header_bytes);

/* The linker puts this in front of ngtcp2's (--wrap). */
int __wrap_ngtcp2_crypto_encrypt_cb(uint8_t *out, const ngtcp2_crypto_aead *aead,
				    const ngtcp2_crypto_aead_ctx *context,
				    const uint8_t *plaintext, size_t bytes, const uint8_t *nonce,
				    size_t nonce_bytes, const uint8_t *header,
				    size_t header_bytes)
{
	uint8_t changed[MOST_PLAINTEXT_BYTES];
	const struct pair *p = hostile.pair;
	if (p && p->turning == hostile.side && bytes && bytes <= sizeof(changed) &&
	    hostile.in.left && hostile.strikes < MOST_STRIKES &&
	    (!hostile.is_established_first || p->side[hostile.side].is_established) &&
	    !hostile.to_pass--) {
		memcpy(changed, plaintext, bytes);
		strike(changed, bytes);
		hostile.strikes++;
		plaintext = changed;
	}
	return __real_ngtcp2_crypto_encrypt_cb(out, aead, context, plaintext, bytes, nonce,
					       nonce_bytes, header, header_bytes);
}

static void carry(struct pair *p, int from, const uint8_t *data, uint32_t bytes)
{
	pair_send(p, !from, data, bytes, 0, 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct input in = { data, bytes };
	struct pair p = { .carry = carry, .distrusts = 1 };
	uint8_t a = take_8(&in), b = take_8(&in), c = take_8(&in);
	int side = a & 1;
	struct pair_shape shape = {
		.congestion_control = (b & 3) % 3,
		.is_v2 = a >> 1 & 1,
		.is_uni = a >> 2 & 1,
		.probes_mtu = a >> 3 & 1,
		.fifo_bytes = a & 0x10 ? 1024 : 16384,
		.streams = (b >> 2 & 3) + 1,
		.stream_bytes = a & 0x20 ? 20000 : 3000,
		.packets_per_key = b & 0x10 ? 4 : 1 << 20,
		/* The hostile one has something to send, again and again. */
		.keep_alive_ns = b & 0x20 ? 0 : 20 * MS_NS,
		.datagram_fifo_bytes = c & 1 ? 2048 : 0,
		.has_preferred = c >> 1 & 1,
		.is_remote = { c >> 2 & 1, c >> 3 & 1 },
	};
	steady_begin(1);
	memset(&hostile, 0, sizeof(hostile));
	hostile.pair = &p;
	hostile.side = side;
	hostile.is_established_first = a >> 7;
	hostile.in = in;
	p.side[!side].is_not_reading = a >> 6 & 1;
	next_strike();
	pair_begin(&p, &shape);
	pair_run(&p, p.now_ns + TIME_TO_LIVE_MS * MS_NS);
	hostile.pair = NULL;
	pair_end(&p, !side);
	pair_free(&p);
	return 0;
}
