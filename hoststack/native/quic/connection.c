/* SPDX-License-Identifier: Apache-2.0
 *
 * A connection while it lasts: reading, timers, writing, and what it counts.
 */
#include "quic/connection.h"

#include <string.h>

#include "quic/close.h"
#include "quic/connection_schedule.h"
#include "quic/datagram.h"
#include "quic/frames.h"
#include "quic/packets.h"
#include "quic/path.h"
#include "quic/send_order.h"
#include "quic/size.h"
#include "quic/stream.h"
#include "quic/stream_limits.h"
#include "quic/window.h"
#include "wire/verbs.h"

enum {
	MILLISECOND_NS = 1000000,
	/* Below this RTT a burst is not paced: the caller's timers are no finer, and on such a
	 * path a burst is what fills it. */
	PACED_RTT_NS = 4 * MILLISECOND_NS,
	ROUND_PACKETS = 8, /* of a stream, before another one may follow */
};

/* --- reading and timers ----------------------------------------------------------------------- */

static uint64_t decrypted_packets(const struct hs_connection *c)
{
	uint64_t count = 0;
	for (int kind = 0; kind < HS_QUIC_PACKETS; kind++)
		count += c->rx_packets[kind];
	return count;
}

void hs_connection_read(struct hs_connection *c, const struct hs_received *datagram)
{
	if (c->state > HS_OPEN) {
		hs_close_answer(c);
		return;
	}
	struct hs_path back, *from = datagram->path;
	if (!from) {
		c->q->wire->verbs->reverse(c->q->wire, datagram->key, &back);
		from = &back;
	}
	if (hs_path_is_too_early(c, from)) {
		c->q->counters.drops[HS_QUIC_DROP_EARLY_PROBE]++;
		return;
	}
	c->rx_datagrams++;
	c->rx_bytes += datagram->bytes;
	c->rx_ecn_ce += datagram->ecn == 3;
	ngtcp2_path path = hs_ngtcp2_path(from);
	uint64_t decrypted = decrypted_packets(c);
	ngtcp2_pkt_info info = { .ecn = datagram->ecn };
	hs_stops_begin(c->q);
	hs_packets_of(c);
	int result = ngtcp2_conn_read_pkt(c->conn, &path, &info, datagram->data, datagram->bytes,
					  c->q->now_ns);
	hs_stops_end(c);
	/* The peer sent it, from there, so it may be answered there. */
	if (!datagram->path && decrypted_packets(c) != decrypted)
		c->q->wire->verbs->learn(c->q->wire, datagram->key);
	hs_close_on_error(c, result);
	hs_schedule(c);
	hs_packets_of(NULL);
}

void hs_connection_expire(struct hs_connection *c)
{
	if (c->state == HS_CLOSING || c->state == HS_DRAINING) {
		hs_close_expire(c);
		return;
	}
	hs_allow_late(c);
	hs_packets_of(c);
	hs_close_on_error(c, ngtcp2_conn_handle_expiry(c->conn, c->q->now_ns));
	hs_schedule(c);
	hs_packets_of(NULL);
}

void hs_connection_set_timer(struct hs_connection *c)
{
	if (c->state > HS_OPEN)
		return;
	uint64_t expiry_ns = ngtcp2_conn_get_expiry(c->conn);
	if (c->allow_at_ns && c->allow_at_ns < expiry_ns)
		expiry_ns = c->allow_at_ns;
	hs_heap_set(c->q, c, expiry_ns);
}

/* --- writing ---------------------------------------------------------------------------------- */

/* ngtcp2 leaves an Initial packet short where 0-RTT is to fill its datagram, even if the
 * congestion window then forbids 0-RTT; and "a server MUST discard an Initial packet that is
 * carried in a UDP datagram with a payload that is smaller than the smallest allowed maximum
 * datagram size of 1200 bytes" (RFC 9000 section 14.1). */
static int may_send_data(struct hs_connection *c)
{
	return c->state != HS_OPENING || c->listener || ngtcp2_conn_get_cwnd_left(c->conn);
}

/* Write one packet with the streams and datagrams that fit into it; datagrams come first in
 * every other packet. Returns its size, 0 for none, or an error. */
static ngtcp2_ssize write_packet(struct hs_connection *c, ngtcp2_path *path, ngtcp2_pkt_info *info,
				 uint8_t *out, size_t room)
{
	int streams_may_go = may_send_data(c), datagrams_may_go = c->datagrams != NULL;
	for (;;) {
		struct hs_stream *s = streams_may_go ? hs_stream_next(c) : NULL;
		if (datagrams_may_go && (!s || hs_datagrams_are_first(c))) {
			ngtcp2_ssize bytes = hs_datagrams_write(c, path, info, out, room);
			if (bytes == HS_NO_DATAGRAM)
				datagrams_may_go = 0;
			else if (bytes != NGTCP2_ERR_WRITE_MORE)
				return bytes;
			continue;
		}
		ngtcp2_vec pieces[2];
		ngtcp2_ssize taken = -1;
		size_t count = 0, offered = 0;
		uint32_t flags = 0;
		int fin = 0;
		if (s) {
			count = hs_stream_gather(s, pieces, &offered, &fin);
			if (!offered && !fin) {
				hs_stream_stop_listing(s);
				continue;
			}
			/* RFC 9000 section 4.1: flow control counts bytes. A FIN without bytes
			 * needs no credit, but ngtcp2 would finish the packet at the first
			 * stream that does. */
			if (offered && !ngtcp2_conn_get_max_data_left(c->conn)) {
				hs_stream_starve(s);
				continue;
			}
			flags = NGTCP2_WRITE_STREAM_FLAG_MORE |
				(fin ? NGTCP2_WRITE_STREAM_FLAG_FIN : 0);
		}
		ngtcp2_ssize bytes = ngtcp2_conn_writev_stream(c->conn, path, info, out, room,
							       &taken, flags, s ? s->id : -1,
							       pieces, count, c->q->now_ns);
		if (s && taken >= 0)
			hs_stream_was_sent(s, (size_t)taken, offered, fin);
		switch (bytes) {
		case NGTCP2_ERR_WRITE_MORE:
			break;
		case NGTCP2_ERR_STREAM_DATA_BLOCKED:
			s->is_blocked = 1;
			hs_stream_stop_listing(s);
			break;
		case NGTCP2_ERR_STREAM_SHUT_WR:
		case NGTCP2_ERR_STREAM_NOT_FOUND:
			hs_stream_stop_listing(s);
			break;
		default:
			return bytes;
		}
	}
}

/* Update keys before AES-GCM's limit is reached (RFC 9001 section 6.6). */
static void update_key_if_due(struct hs_connection *c)
{
	if (c->tx_datagrams < c->key_update_at || c->state != HS_OPEN)
		return;
	hs_connection_update_key(c);
}

int hs_connection_update_key(struct hs_connection *c)
{
	/* RFC 9001 section 6.1: "An endpoint MUST NOT initiate a key update prior to having
	 * confirmed the handshake". ngtcp2 fails an assertion if a client's own Finished was not
	 * sent yet. */
	if (c->state != HS_OPEN || !c->is_confirmed ||
	    ngtcp2_conn_initiate_key_update(c->conn, c->q->now_ns))
		return -1;
	c->key_update_at = c->tx_datagrams + c->config.packets_per_key;
	c->q->counters.key_updates++;
	return 0;
}

/* Pace on long paths. ngtcp2 paces only if it is called, and makes up for all bytes since the last call:
 * once bytes went unpaced, a call would stop the connection for seconds. */
static void pace(struct hs_connection *c)
{
	ngtcp2_conn_info info;
	if (c->is_unpaced || c->state != HS_OPEN)
		return;
	ngtcp2_conn_get_conn_info(c->conn, &info);
	if (c->config.congestion_control == 2 || info.min_rtt >= PACED_RTT_NS)
		ngtcp2_conn_update_pkt_tx_time(c->conn, c->q->now_ns);
	else
		c->is_unpaced = 1;
}

static int write_packets(struct hs_connection *c, int share)
{
	struct hs_wire *wire = c->q->wire;
	int written = 0;
	if (c->close_is_due)
		return hs_close_send(c);
	hs_size_check(c);
	update_key_if_due(c);
	hs_datagrams_measure(c);
	hs_path_try_wanted(c);
	while (written < share && c->state <= HS_OPEN) {
		ngtcp2_path_storage storage;
		ngtcp2_pkt_info info = { 0 };
		size_t room;
		uint8_t *out = wire->verbs->reserve(wire, &room);
		if (!out)
			return -1;
		room = hs_size_room(c, room);
		ngtcp2_path_storage_zero(&storage);
		ngtcp2_ssize bytes = write_packet(c, &storage.path, &info, out, room);
		if (bytes < 0) {
			hs_close_fail(c, (int)bytes);
			return written;
		}
		c->has_written_open |= c->state == HS_OPEN;
		if (bytes == 0)
			break;
		hs_datagrams_take_turns(c);
		struct hs_path *path = hs_path_for(c, &storage.path);
		c->tx_datagrams++;
		c->tx_bytes += (uint64_t)bytes;
		if (path) {
			path->tx_datagrams++;
			wire->verbs->commit(wire, path, (uint32_t)bytes, info.ecn);
		} else {
			c->q->counters.drops[HS_QUIC_DROP_NO_PATH]++;
		}
		if (++written % ROUND_PACKETS == 0)
			hs_stream_rotate(c);
	}
	if (written)
		pace(c);
	if (written % ROUND_PACKETS)
		hs_stream_rotate(c);
	return written;
}

int hs_connection_write(struct hs_connection *c, int share)
{
	hs_windows_grow(c);
	hs_packets_of(c);
	int written = write_packets(c, share);
	hs_packets_of(NULL);
	return written;
}

/* --- interface for the caller ----------------------------------------------------------------- */

uint32_t hs_connection_number(const struct hs_connection *c)
{
	return c->number;
}

int64_t hs_connection_listener(const struct hs_connection *c)
{
	return c->listener ? (int64_t)c->listener->number : -1;
}

uint32_t hs_connection_path(const struct hs_connection *c)
{
	return c->path->id;
}

void hs_connection_statistics(const struct hs_connection *c, struct hs_quic_statistics *out)
{
	ngtcp2_conn_info info;
	ngtcp2_conn_get_conn_info(c->conn, &info);
	*out = (struct hs_quic_statistics){
		.rtt_variance_ns = info.rttvar,
		.ssthresh_bytes = info.ssthresh,
		.resent_bytes = c->sent_stream_bytes > c->new_stream_bytes ?
					c->sent_stream_bytes - c->new_stream_bytes :
					0,
		.rtt_ns = info.smoothed_rtt,
		.rtt_min_ns = info.min_rtt == UINT64_MAX ? 0 : info.min_rtt,
		.rtt_latest_ns = info.latest_rtt,
		.cwnd_bytes = info.cwnd,
		.in_flight_bytes = info.bytes_in_flight,
		.rx_datagrams = c->rx_datagrams,
		.rx_bytes = c->rx_bytes,
		.tx_datagrams = c->tx_datagrams,
		.tx_bytes = c->tx_bytes,
		.acked_bytes = c->acked_bytes,
		.streams = c->stream_count,
		.datagram_bytes = hs_size_now(c),
		.rx_ecn_ce = c->rx_ecn_ce,
		.path_changes = c->path_changes,
	};
	memcpy(out->rx_packets, c->rx_packets, sizeof(out->rx_packets));
	memcpy(out->tx_packets, c->tx_packets, sizeof(out->tx_packets));
}
