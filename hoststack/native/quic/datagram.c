/* SPDX-License-Identifier: Apache-2.0
 *
 * Datagrams of a connection (RFC 9221): messages that are sent once, and may be lost. They are
 * stored in two FIFOs (hs_fifo_write_message) shared with the application.
 */
#include "quic/datagram.h"

#include <stdlib.h>

#include "memory/fifo.h"
#include "quic/connection_schedule.h"
#include "quic/size.h"

enum {
	/* RFC 9221 section 3: "it is RECOMMENDED to send the special value 65535 [...] to indicate
	 * that this endpoint accepts any DATAGRAM frame that fits inside a QUIC packet." */
	ANY_FRAME_BYTES = 65535,
	/* A short header with the longest packet number, without its connection ID, and the
	 * AEAD's tag (RFC 9000 section 17.3, RFC 9001 section 5.3). */
	PACKET_BYTES = 1 + 4 + 16,
	MOST_IN_1_BYTE = 63, /* as a variable-length integer (RFC 9000 section 16) */
	MOST_IN_2_BYTES = 16383,
};

struct hs_datagrams {
	struct hs_fifo_producer *rx; /* NULL until the handshake is complete */
	struct hs_fifo_consumer *tx;
	uint64_t limit_bytes; /* the largest message that may be sent now; 0: none */
	struct hs_datagram_counters counters;
	uint8_t are_first; /* in the next packet, if there are any */
};

int hs_datagrams_new(struct hs_connection *c)
{
	if (!c->config.datagram_fifo_bytes)
		return 0;
	c->datagrams = calloc(1, sizeof(*c->datagrams));
	return c->datagrams ? 0 : -1;
}

uint64_t hs_datagrams_offer(const struct hs_connection *c)
{
	uint64_t bytes = c->config.datagram_fifo_bytes;
	return bytes < ANY_FRAME_BYTES ? bytes : ANY_FRAME_BYTES;
}

void hs_datagrams_open(struct hs_connection *c)
{
	struct hs_datagrams *d = c->datagrams;
	struct hs_fifo_producer *rx = NULL;
	struct hs_fifo_consumer *tx = NULL;
	c->is_known = 1;
	if (!d || c->q->make_fifos(c->q->owner, c->number, &rx, &tx) || !rx || !tx)
		return;
	d->rx = rx;
	d->tx = tx;
	hs_datagrams_measure(c);
	hs_touch(c, HS_PENDING_DATAGRAMS); /* even if 0: the application needs the FIFOs */
}

/* --- receiving -------------------------------------------------------------------------------- */

int hs_datagrams_receive(struct hs_connection *c, int is_early, const uint8_t *data, size_t bytes)
{
	struct hs_datagrams *d = c->datagrams;
	if (!d)
		return 0;
	/* Data received before the handshake is complete may be a replay (RFC 9001 section 9.2),
	 * and a message has no flag to say so. */
	int taken = d->rx && !is_early ? hs_fifo_write_message(d->rx, data, bytes) : 0;
	if (taken < 0)
		return -1; /* invalid data in the application's memory */
	if (taken) {
		d->counters.received++;
		hs_touch(c, HS_PENDING_READABLE);
	} else {
		/* RFC 9221 section 5.3: "a receiver MAY drop the contents of DATAGRAM frames if it
		 * does not have [...] available buffer space". */
		d->counters.rx_dropped++;
	}
	return 0;
}

/* --- sending ---------------------------------------------------------------------------------- */

/* The largest message whose DATAGRAM frame has so many bytes: a type, the length, and the message
 * (RFC 9221 section 4). */
static uint64_t largest_in(uint64_t frame_bytes)
{
	if (frame_bytes < 2)
		return 0;
	uint64_t n = frame_bytes - 2;
	if (n <= MOST_IN_1_BYTE)
		return n;
	n--;
	if (n <= MOST_IN_2_BYTES)
		return n > MOST_IN_1_BYTE ? n : MOST_IN_1_BYTE;
	n -= 2;
	return n > MOST_IN_2_BYTES ? n : MOST_IN_2_BYTES;
}

void hs_datagrams_measure(struct hs_connection *c)
{
	struct hs_datagrams *d = c->datagrams;
	if (!d || !d->tx)
		return;
	const ngtcp2_transport_params *theirs = ngtcp2_conn_get_remote_transport_params(c->conn);
	uint64_t packet = hs_size_now(c);
	if (theirs->max_udp_payload_size < packet)
		packet = theirs->max_udp_payload_size;
	uint64_t frame = packet - PACKET_BYTES - ngtcp2_conn_get_dcid(c->conn)->datalen;
	if (theirs->max_datagram_frame_size < frame)
		frame = theirs->max_datagram_frame_size;
	uint64_t limit = largest_in(frame);
	if (limit > d->tx->size_bytes - HS_FIFO_PREFIX_BYTES)
		limit = d->tx->size_bytes - HS_FIFO_PREFIX_BYTES;
	if (limit != d->limit_bytes) {
		d->limit_bytes = limit;
		hs_touch(c, HS_PENDING_DATAGRAMS);
	}
}

uint64_t hs_datagrams_limit(const struct hs_connection *c)
{
	return c->datagrams ? c->datagrams->limit_bytes : 0;
}

int hs_datagrams_are_first(const struct hs_connection *c)
{
	return c->datagrams && c->datagrams->are_first;
}

void hs_datagrams_take_turns(struct hs_connection *c)
{
	if (c->datagrams)
		c->datagrams->are_first = !c->datagrams->are_first;
}

static void drop_to(struct hs_connection *c, int64_t end)
{
	hs_fifo_drop_to(c->datagrams->tx, (uint64_t)end);
	hs_touch(c, HS_PENDING_WRITABLE);
}

ngtcp2_ssize hs_datagrams_write(struct hs_connection *c, ngtcp2_path *path, ngtcp2_pkt_info *info,
				uint8_t *out, size_t room)
{
	struct hs_datagrams *d = c->datagrams;
	struct hs_fifo_span spans[2];
	size_t message_bytes;
	int64_t end;
	if (!d || !d->tx)
		return HS_NO_DATAGRAM;
	while ((end = hs_fifo_peek_message(d->tx, spans, &message_bytes)) > 0 &&
	       message_bytes > d->limit_bytes) {
		/* The path's MTU has shrunk since the application wrote it. */
		d->counters.tx_dropped++;
		drop_to(c, end);
	}
	if (end <= 0) /* invalid data in the application's memory ends its connection */
		return end ? NGTCP2_ERR_INTERNAL : HS_NO_DATAGRAM;
	ngtcp2_vec pieces[] = { { spans[0].base, spans[0].bytes }, { spans[1].base, spans[1].bytes } };
	size_t count = spans[1].bytes ? 2 : spans[0].bytes ? 1 : 0;
	int accepted = 0;
	ngtcp2_ssize bytes = ngtcp2_conn_writev_datagram(c->conn, path, info, out, room, &accepted,
							 NGTCP2_WRITE_DATAGRAM_FLAG_MORE, 0,
							 pieces, count, c->q->now_ns);
	if (accepted) {
		d->counters.sent++;
		drop_to(c, end);
	}
	return bytes;
}

/* --- interface for the caller ----------------------------------------------------------------- */

void hs_connection_send_datagrams(struct hs_connection *c)
{
	if (c->state == HS_OPEN)
		hs_schedule(c);
}

void hs_connection_datagram_counters(const struct hs_connection *c,
				     struct hs_datagram_counters *out)
{
	*out = c->datagrams ? c->datagrams->counters : (struct hs_datagram_counters){ 0 };
}
