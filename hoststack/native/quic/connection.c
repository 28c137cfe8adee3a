/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE
#include "quic/internal.h"

#include <stdlib.h>
#include <string.h>

enum {
	ACTIVE_CID_LIMIT = 4, /* of the peer's connection IDs, stored for path changes */
	MILLISECOND_NS = 1000000,
	/* Below this RTT a burst is not paced: the caller's timers are no finer, and on such a
	 * path a burst is what fills it. */
	PACED_RTT_NS = 4 * MILLISECOND_NS,
	/* RFC 9000 section 13.2.2: "A receiver SHOULD send an ACK frame after receiving at least
	 * two ack-eliciting packets. This recommendation is general in nature and consistent
	 * with recommendations for TCP endpoint behavior [...] Knowledge of network conditions
	 * [...] might suggest alternative acknowledgment strategies with better performance
	 * characteristics." Acknowledgements would be half of a bulk sender's work. After fewer
	 * packets than this, an ACK is sent within an eighth of the RTT, or a millisecond. */
	PACKETS_PER_ACK = 10,
	LEAST_DATAGRAM_BYTES = 1200, /* RFC 9000 section 14.1 */
};

const uint32_t hs_versions[HS_QUIC_VERSIONS] = { NGTCP2_PROTO_VER_V1, NGTCP2_PROTO_VER_V2 };

/* --- creation --------------------------------------------------------------------------------- */

static void fill_settings(const struct hs_connection *c, ngtcp2_settings *settings,
			  uint16_t probes[HS_SIZE_CANDIDATES])
{
	static const ngtcp2_cc_algo ALGORITHMS[] = { NGTCP2_CC_ALGO_RENO, NGTCP2_CC_ALGO_CUBIC,
						     NGTCP2_CC_ALGO_BBR };
	const struct hs_quic_config *config = &c->config;
	uint32_t most = c->path->max_datagram_bytes;
	if (config->max_datagram_bytes && config->max_datagram_bytes < most)
		most = config->max_datagram_bytes;
	if (most < LEAST_DATAGRAM_BYTES)
		most = LEAST_DATAGRAM_BYTES;
	ngtcp2_settings_default(settings);
	settings->initial_ts = c->q->now_ns;
	settings->cc_algo = ALGORITHMS[config->congestion_control % 3];
	settings->max_tx_udp_payload_size = most;
	settings->no_tx_udp_payload_size_shaping = !config->probes_mtu;
	/* The interface's MTU is known, that of the rest of the path is not. No PMTUD means to
	 * probe for a size that no datagram has: with `no_pmtud`, ngtcp2 before 1.12 fails an
	 * assertion when a client's packets arrive from its first address again. */
	int ip_version = c->path->local.any.sa_family == AF_INET ? 4 : 6;
	size_t count = config->probes_mtu ? hs_size_candidates(most, ip_version, probes) : 0;
	if (!count)
		probes[count++] = UINT16_MAX;
	settings->pmtud_probes = probes;
	settings->pmtud_probeslen = count;
	settings->ack_thresh = PACKETS_PER_ACK;
	settings->handshake_timeout = config->handshake_timeout_ns;
}

/* Both sides list the versions that they support; a server also those that it prefers to the
 * client's first. */
static void set_versions(ngtcp2_settings *settings, uint32_t versions[HS_QUIC_VERSIONS],
			 const struct hs_connection *c, uint32_t client_chosen)
{
	uint32_t first = c->config.version;
	if (c->listener)
		first = client_chosen == hs_versions[0] ? hs_versions[1] : hs_versions[0];
	hs_version_order(versions, first);
	settings->available_versions = settings->preferred_versions = versions;
	settings->available_versionslen = settings->preferred_versionslen = HS_QUIC_VERSIONS;
}

static void fill_parameters(const struct hs_connection *c, ngtcp2_transport_params *params)
{
	const struct hs_quic_config *config = &c->config;
	ngtcp2_transport_params_default(params);
	params->initial_max_stream_data_bidi_local = config->first_window_bytes;
	params->initial_max_stream_data_bidi_remote = config->first_window_bytes;
	params->initial_max_stream_data_uni = config->first_window_bytes;
	params->initial_max_data = config->connection_window_bytes;
	params->initial_max_streams_bidi = config->max_streams_bidi;
	params->initial_max_streams_uni = config->max_streams_uni;
	params->max_idle_timeout = config->idle_timeout_ns;
	params->active_connection_id_limit = ACTIVE_CID_LIMIT;
	params->max_datagram_frame_size = hs_datagrams_offer(c);
}

static struct hs_connection *new_connection(struct hs_quic *q, struct hs_path *path,
					    struct hs_tls *tls, const struct hs_quic_config *config)
{
	struct hs_connection *c = calloc(1, sizeof(*c));
	if (!c)
		return NULL;
	c->q = q;
	c->deadline_ns = UINT64_MAX;
	c->config = *config;
	c->key_update_at = config->packets_per_key;
	c->touched_end = &c->touched_streams;
	c->tls = tls;
	hs_tls_hold(tls);
	hs_path_begin(c, path);
	if (hs_datagrams_new(c) || hs_number_allocate(q, c)) {
		hs_path_end(c);
		hs_tls_free(tls);
		free(c->datagrams);
		free(c);
		return NULL;
	}
	return c;
}

struct hs_connection *hs_connection_accept(struct hs_listener *listener, struct hs_quic *q,
					   struct hs_path *path, const ngtcp2_pkt_hd *hd,
					   const ngtcp2_cid *original_dcid,
					   ngtcp2_token_type token_type)
{
	struct hs_connection *c = new_connection(q, path, listener->tls, &listener->config);
	if (!c)
		return NULL;
	c->listener = listener;
	listener->references++;
	hs_half_open_begin(c, token_type != NGTCP2_TOKEN_TYPE_UNKNOWN);
	ngtcp2_settings settings;
	ngtcp2_transport_params params;
	ngtcp2_cid scid;
	uint32_t versions[HS_QUIC_VERSIONS];
	uint16_t probes[HS_SIZE_CANDIDATES];
	fill_settings(c, &settings, probes);
	set_versions(&settings, versions, c, hd->version);
	fill_parameters(c, &params);
	if (token_type != NGTCP2_TOKEN_TYPE_UNKNOWN) {
		settings.token = hd->token;
		settings.tokenlen = hd->tokenlen;
		settings.token_type = token_type;
	}
	params.original_dcid = original_dcid ? *original_dcid : hd->dcid;
	params.original_dcid_present = 1;
	if (original_dcid) {
		params.retry_scid = hd->dcid;
		params.retry_scid_present = 1;
	}
	params.stateless_reset_token_present = 1;
	ngtcp2_path endpoints = hs_ngtcp2_path(path);
	/* A client's first flight is sent to the connection ID that the client chose. */
	if (hs_new_cid(c, &scid, params.stateless_reset_token) ||
	    hs_path_offer_preferred(c, &params) ||
	    (hs_cids_add(&q->cids, c, hd->dcid.data, hd->dcid.datalen) && !original_dcid) ||
	    ngtcp2_conn_server_new(&c->conn, &hd->scid, &scid, &endpoints, hd->version,
				   &hs_server_callbacks, &settings, &params, NULL, c) ||
	    hs_tls_session(c, 1, c->config.early_data)) {
		hs_connection_free(c);
		return NULL;
	}
	ngtcp2_conn_set_tls_native_handle(c->conn, c->session);
	return c;
}

/* Create the client side of the handshake. Returns 0, or -1. */
static int begin_client(struct hs_connection *c, uint32_t version,
			const struct hs_quic_resume *resume)
{
	ngtcp2_settings settings;
	ngtcp2_transport_params params;
	ngtcp2_cid scid, dcid;
	uint8_t unused_token[NGTCP2_STATELESS_RESET_TOKENLEN];
	uint32_t versions[HS_QUIC_VERSIONS];
	uint16_t probes[HS_SIZE_CANDIDATES];
	fill_settings(c, &settings, probes);
	set_versions(&settings, versions, c, version);
	fill_parameters(c, &params);
	settings.original_version = c->config.version;
	settings.token = resume->token;
	settings.tokenlen = resume->token_bytes;
	/* RFC 9000 section 7.2: "This Destination Connection ID MUST be at least 8 bytes in length"
	 * and "MUST be unpredictable". */
	dcid.datalen = HS_CID_MAX_BYTES;
	ngtcp2_path path = hs_ngtcp2_path(c->path);
	if (gnutls_rnd(GNUTLS_RND_NONCE, dcid.data, dcid.datalen) ||
	    hs_new_cid(c, &scid, unused_token) ||
	    ngtcp2_conn_client_new(&c->conn, &dcid, &scid, &path, version, &hs_client_callbacks,
				   &settings, &params, NULL, c) ||
	    hs_tls_session(c, 0, resume->early_data))
		return -1;
	ngtcp2_conn_set_tls_native_handle(c->conn, c->session);
	return 0;
}

struct hs_connection *hs_quic_connect(struct hs_quic *q, uint32_t path_id, struct hs_tls *tls,
				      const char *server_name,
				      const struct hs_quic_config *config,
				      const struct hs_quic_resume *resume, uint64_t now_ns)
{
	struct hs_path *path = hs_paths_by_id(&q->wire->paths, path_id);
	struct hs_connection *c = path ? new_connection(q, path, tls, config) : NULL;
	if (!c)
		return NULL;
	hs_quic_advance(q, now_ns);
	c->is_known = 1;
	c->keeps_tickets = resume->keeps;
	c->server_name = strdup(server_name);
	if (!c->server_name || begin_client(c, config->version, resume)) {
		hs_connection_free(c);
		return NULL;
	}
	hs_resume_begin(c, resume);
	hs_schedule(c);
	return c;
}

int hs_connection_begin_again(struct hs_connection *c)
{
	/* RFC 9369 section 5: "Clients MUST NOT use a session ticket or token from a QUIC version 1
	 * connection to initiate a QUIC version 2 connection, and vice versa." */
	static const struct hs_quic_resume NOTHING = { 0 };
	ngtcp2_conn *old_conn = c->conn;
	gnutls_session_t old_session = c->session;
	hs_cids_remove_all(&c->q->cids, c);
	hs_handshake_free(c);
	memset(&c->tls_messages, 0, sizeof(c->tls_messages));
	c->conn = NULL;
	c->session = NULL;
	int failed = begin_client(c, c->next_version, &NOTHING);
	if (failed) { /* there is always one to try */
		ngtcp2_conn *new_conn = c->conn;
		gnutls_session_t new_session = c->session;
		c->conn = old_conn;
		c->session = old_session;
		old_conn = new_conn;
		old_session = new_session;
	}
	if (old_conn)
		ngtcp2_conn_del(old_conn);
	if (old_session)
		gnutls_deinit(old_session);
	return failed;
}

void hs_connection_free(struct hs_connection *c)
{
	struct hs_quic *q = c->q;
	hs_cids_remove_all(&q->cids, c);
	hs_heap_remove(q, c);
	while (c->streams) {
		struct hs_stream *s = c->streams;
		hs_stream_unlink(s);
		free(s);
	}
	if (c->conn)
		ngtcp2_conn_del(c->conn);
	if (c->session)
		gnutls_deinit(c->session);
	hs_resume_free(c);
	hs_handshake_free(c);
	hs_half_open_end(c);
	if (c->listener)
		hs_listener_release(q, c->listener);
	hs_number_release(q, c);
	hs_path_end(c);
	hs_tls_free(c->tls);
	free(c->server_name);
	free(c->close_packet);
	free(c->datagrams);
	free(c);
}

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

static void pace(struct hs_connection *c)
{
	ngtcp2_conn_info info;
	ngtcp2_conn_get_conn_info(c->conn, &info);
	int is_paced = c->config.congestion_control == 2 || info.smoothed_rtt >= PACED_RTT_NS;
	/* ngtcp2 paces only if this is called. */
	if (is_paced && c->state == HS_OPEN)
		ngtcp2_conn_update_pkt_tx_time(c->conn, c->q->now_ns);
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
		written++;
	}
	if (written) {
		pace(c);
		hs_stream_rotate(c);
	}
	return written;
}

int hs_connection_write(struct hs_connection *c, int share)
{
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
