/* SPDX-License-Identifier: Apache-2.0
 *
 * The size of a connection's datagrams. ngtcp2 probes for the path's MTU (RFC 8899), but never
 * lowers it again. A path whose MTU shrinks then drops every large packet: a black hole. This file
 * detects that by missing acknowledgements of large packets; the connection falls back to 1,200
 * bytes, and tries larger sizes again later.
 */
#include "quic/size.h"

#include <string.h>

#include "wire/paths.h"

enum {
	/* RFC 9000 section 14: every QUIC path carries this size. */
	BASE_BYTES = 1200,
	IPV4_HEADERS_BYTES = 28, /* IP and UDP */
	IPV6_HEADERS_BYTES = 48,
	WINDOW = HS_SIZE_WORDS * 64, /* packets whose size is recorded */
	/* Three probe timeouts in a row take 1 + 2 + 4 PTOs; the third has been sent by then. */
	SILENT_PTOS = 6,
};

#define FIRST_RAISE_NS 10000000000ULL
#define LAST_RAISE_NS 600000000000ULL /* RFC 8899 section 5.1.1: PMTU_RAISE_TIMER */

/* Common path MTUs: Ethernet, PPPoE, tunnels, IPv6's minimum. */
static const uint16_t USUAL_MTUS[] = { 1500, 1492, 1400, 1280 };

size_t hs_size_candidates(uint32_t most, int ip_version, uint16_t out[HS_SIZE_CANDIDATES])
{
	uint32_t headers = ip_version == 4 ? IPV4_HEADERS_BYTES : IPV6_HEADERS_BYTES;
	size_t n = 0;
	if (most > BASE_BYTES)
		out[n++] = (uint16_t)most;
	for (size_t i = 0; i < sizeof(USUAL_MTUS) / sizeof(USUAL_MTUS[0]); i++) {
		uint32_t bytes = USUAL_MTUS[i] - headers;
		if (bytes < most && bytes > BASE_BYTES)
			out[n++] = (uint16_t)bytes;
	}
	return n;
}

/* --- records of sent packets ------------------------------------------------------------------ */

/* The full number of a packet about to be sent: its header has the last `last_bytes` of it, and
 * it is above all earlier ones (RFC 9000 section 12.3). */
static uint64_t full_number(uint64_t least, const uint8_t *last_bytes, size_t bytes)
{
	uint64_t truncated = 0, span = (uint64_t)1 << (8 * bytes);
	for (size_t i = 0; i < bytes; i++)
		truncated = truncated << 8 | last_bytes[i];
	uint64_t number = (least & ~(span - 1)) | truncated;
	return number < least ? number + span : number;
}

static void forget_from(struct hs_size *size, uint64_t first, uint64_t end)
{
	if (end - first >= WINDOW) {
		memset(size->large, 0, sizeof(size->large));
		return;
	}
	for (; first < end; first++)
		size->large[first / 64 % HS_SIZE_WORDS] &= ~((uint64_t)1 << (first % 64));
}

void hs_size_sent(struct hs_connection *c, const uint8_t *header, size_t header_bytes,
		  size_t packet_bytes)
{
	struct hs_size *size = &c->size;
	size_t number_bytes = (size_t)(header[0] & 3) + 1;
	if (header_bytes < number_bytes)
		return;
	uint64_t number = full_number(size->next_number, header + header_bytes - number_bytes,
				      number_bytes);
	uint64_t *word = &size->large[number / 64 % HS_SIZE_WORDS];
	uint64_t bit = (uint64_t)1 << (number % 64);
	/* More packets are in flight than are recorded: it is unknown whether this one arrives. */
	if (*word & bit && number - WINDOW > size->largest_acked)
		size->silent_since_ns = 0;
	forget_from(size, size->next_number, number + 1);
	size->next_number = number + 1;
	/* During a trial only packets of that size count. A packet larger than ngtcp2's proven
	 * size is a probe of its own, and may be lost. */
	if (packet_bytes <= (size->trial_bytes ? size->limit : BASE_BYTES) ||
	    packet_bytes > ngtcp2_conn_get_path_max_tx_udp_payload_size(c->conn))
		return;
	*word |= bit;
	if (!size->silent_since_ns)
		size->silent_since_ns = c->q->now_ns;
	size->was_large = 1;
}

void hs_size_acked(struct hs_size *size, uint64_t first, uint64_t last)
{
	if (last >= size->next_number) /* never sent: ngtcp2 closes the connection for that */
		return;
	if (last > size->largest_acked)
		size->largest_acked = last;
	uint64_t oldest = size->next_number > WINDOW ? size->next_number - WINDOW : 0;
	if (first < oldest)
		first = oldest;
	while (first <= last) {
		uint64_t *word = &size->large[first / 64 % HS_SIZE_WORDS];
		uint64_t in_word = last - first < 63 - first % 64 ? last - first : 63 - first % 64;
		uint64_t mask = (in_word == 63 ? UINT64_MAX : ((uint64_t)1 << (in_word + 1)) - 1)
				<< (first % 64);
		if (*word & mask)
			size->is_proven = 1;
		*word &= ~mask;
		first += in_word + 1;
	}
}

/* --- falling back, and raising the size again ------------------------------------------------- */

/* The sizes to try above the limit, the largest first. */
static size_t sizes_to_try(const struct hs_connection *c, uint16_t out[HS_SIZE_CANDIDATES])
{
	uint32_t most = (uint32_t)ngtcp2_conn_get_path_max_tx_udp_payload_size(c->conn);
	size_t n = hs_size_candidates(most, c->path->local.any.sa_family == AF_INET ? 4 : 6, out);
	while (n && out[n - 1] <= c->size.limit)
		n--;
	return n;
}

static void raise_later(struct hs_connection *c)
{
	struct hs_size *size = &c->size;
	size->tried = 0;
	size->trial_bytes = 0;
	size->raise_at_ns = c->q->now_ns + size->raise_after_ns;
	size->raise_after_ns = size->raise_after_ns * 2 < LAST_RAISE_NS ? size->raise_after_ns * 2 :
									  LAST_RAISE_NS;
}

/* Allow one packet of the next size: if it is lost, its data are sent again in small packets. */
static void try_next(struct hs_connection *c)
{
	struct hs_size *size = &c->size;
	uint16_t sizes[HS_SIZE_CANDIDATES];
	size_t n = sizes_to_try(c, sizes);
	if (size->tried >= n) {
		raise_later(c);
		return;
	}
	size->trial_bytes = sizes[size->tried++];
	size->was_large = 0;
	size->may_be_late = 0;
	memset(size->large, 0, sizeof(size->large));
}

static void on_proof(struct hs_connection *c)
{
	struct hs_size *size = &c->size;
	uint16_t sizes[HS_SIZE_CANDIDATES];
	size->silent_since_ns = 0;
	if (!size->limit || !(size->trial_bytes || size->may_be_late))
		return;
	size->limit = size->trial_bytes; /* 0: no black hole, just a late acknowledgement */
	size->may_be_late = 0;
	size->trial_bytes = 0;
	size->tried = 0;
	size->raise_after_ns = FIRST_RAISE_NS;
	if (!size->limit || !sizes_to_try(c, sizes))
		size->limit = 0;
	else
		raise_later(c);
}

static void on_silence(struct hs_connection *c)
{
	struct hs_size *size = &c->size;
	size->silent_since_ns = 0;
	if (size->trial_bytes) {
		size->trial_bytes = 0;
		try_next(c);
		return;
	}
	c->q->counters.black_holes++;
	size->limit = BASE_BYTES;
	size->may_be_late = 1;
	size->raise_after_ns = FIRST_RAISE_NS;
	raise_later(c);
}

void hs_size_check(struct hs_connection *c)
{
	struct hs_size *size = &c->size;
	uint64_t now_ns = c->q->now_ns;
	if (size->is_proven) {
		size->is_proven = 0;
		on_proof(c);
	}
	if (size->silent_since_ns &&
	    now_ns - size->silent_since_ns >= SILENT_PTOS * ngtcp2_conn_get_pto(c->conn))
		on_silence(c);
	if (size->limit && !size->trial_bytes && now_ns >= size->raise_at_ns && c->state == HS_OPEN)
		try_next(c);
}

void hs_size_begin(struct hs_connection *c)
{
	memset(&c->size.large, 0, sizeof(c->size.large));
	c->size.silent_since_ns = 0;
	c->size.limit = 0;
	c->size.trial_bytes = 0;
	c->size.tried = 0;
	c->size.may_be_late = 0;
}

/* --- current size ----------------------------------------------------------------------------- */

static uint32_t least(uint32_t a, uint32_t b)
{
	return a < b ? a : b;
}

static uint32_t limit_of(const struct hs_connection *c)
{
	uint32_t bytes = UINT32_MAX;
	/* The datagrams of this connection may have arrived here on a path that carries more. */
	if (c->path->max_datagram_bytes >= BASE_BYTES)
		bytes = c->path->max_datagram_bytes;
	return c->size.limit ? least(bytes, c->size.limit) : bytes;
}

uint32_t hs_size_now(const struct hs_connection *c)
{
	return least((uint32_t)ngtcp2_conn_get_path_max_tx_udp_payload_size(c->conn), limit_of(c));
}

size_t hs_size_room(const struct hs_connection *c, size_t room)
{
	uint32_t limit = limit_of(c);
	/* ngtcp2 pads a handshake's datagrams to 1,200 bytes. If a datagram is already larger,
	 * it fails an assertion for a packet too short for header protection: a PING that
	 * follows an Initial packet. */
	if (!c->has_written_open)
		limit = BASE_BYTES;
	if (c->size.trial_bytes && !c->size.was_large)
		limit = least(c->size.trial_bytes, c->path->max_datagram_bytes);
	if (limit < BASE_BYTES)
		limit = BASE_BYTES;
	return limit < room ? limit : room;
}
