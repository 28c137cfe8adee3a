/* SPDX-License-Identifier: Apache-2.0
 *
 * Packets as they pass encryption or decryption: counted and inspected. ngtcp2's callbacks for that
 * have no connection argument, so a caller sets it first.
 */
#include "quic/packets.h"

#include "quic/chacha.h"
#include "quic/frames.h"
#include "quic/size.h"

enum {
	AEAD_TAG_BYTES = 16,
	TYPE_SHIFT = 4, /* in a long header's first byte (RFC 9000 section 17.2) */
	TYPES = 4,
};

static _Thread_local struct hs_connection *current;

void hs_packets_of(struct hs_connection *c)
{
	current = c;
}

/* The callbacks see the header without protection. */
static enum hs_quic_packet type_of(const uint8_t *header, size_t bytes)
{
	if (!(header[0] & HS_QUIC_LONG_HEADER))
		return HS_QUIC_PACKET_1RTT;
	int is_v2 = bytes > 4 && (uint32_t)header[1] << 24 == (NGTCP2_PROTO_VER_V2 & 0xff000000) &&
		    header[4] == (NGTCP2_PROTO_VER_V2 & 0xff);
	/* Initial, 0-RTT, Handshake, Retry; version 2 adds one (RFC 9369 section 3.2). */
	return (enum hs_quic_packet)((header[0] >> TYPE_SHIFT) - is_v2) & (TYPES - 1);
}

int hs_encrypt(uint8_t *out, const ngtcp2_crypto_aead *aead, const ngtcp2_crypto_aead_ctx *context,
	       const uint8_t *plaintext, size_t bytes, const uint8_t *nonce, size_t nonce_bytes,
	       const uint8_t *header, size_t header_bytes)
{
	/* Without content this verifies the tag of a Retry packet. */
	if (current && bytes && header_bytes) {
		struct hs_connection *c = current;
		enum hs_quic_packet type = type_of(header, header_bytes);
		c->tx_packets[type]++;
		c->q->counters.tx_packets[type]++;
		if (type == HS_QUIC_PACKET_1RTT || type == HS_QUIC_PACKET_0RTT)
			c->sent_stream_bytes += hs_frames_stream_bytes(plaintext, bytes);
		if (type == HS_QUIC_PACKET_1RTT)
			hs_size_sent(c, header, header_bytes,
				     header_bytes + bytes + AEAD_TAG_BYTES);
	}
	return hs_chacha_encrypt(out, aead, context, plaintext, bytes, nonce, nonce_bytes, header,
				 header_bytes);
}

int hs_decrypt(uint8_t *out, const ngtcp2_crypto_aead *aead, const ngtcp2_crypto_aead_ctx *context,
	       const uint8_t *ciphertext, size_t bytes, const uint8_t *nonce, size_t nonce_bytes,
	       const uint8_t *header, size_t header_bytes)
{
	int failed = hs_chacha_decrypt(out, aead, context, ciphertext, bytes, nonce, nonce_bytes,
				       header, header_bytes);
	if (!current || !header_bytes || bytes < AEAD_TAG_BYTES)
		return failed;
	struct hs_connection *c = current;
	if (failed) { /* ngtcp2 does not report packets that it ignores */
		c->q->counters.drops[HS_QUIC_DROP_UNDECRYPTABLE]++;
		return failed;
	}
	enum hs_quic_packet type = type_of(header, header_bytes);
	c->rx_packets[type]++;
	c->q->counters.rx_packets[type]++;
	if (type == HS_QUIC_PACKET_1RTT)
		hs_frames_look(c->q, &c->size, out, bytes - AEAD_TAG_BYTES);
	return 0;
}
