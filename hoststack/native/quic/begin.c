/* SPDX-License-Identifier: Apache-2.0
 *
 * How connections begin, and what is freed with them.
 */
#define _GNU_SOURCE
#include "quic/begin.h"

#include <stdlib.h>
#include <string.h>

#include "quic/callbacks.h"
#include "quic/cid.h"
#include "quic/connection_schedule.h"
#include "quic/datagram.h"
#include "quic/half_open.h"
#include "quic/handshake.h"
#include "quic/listener.h"
#include "quic/path.h"
#include "quic/resume.h"
#include "quic/size.h"
#include "quic/stream.h"
#include "quic/tables.h"
#include "quic/tls.h"
#include "quic/version.h"
#include "quic/window.h"
#include "wire/paths.h"
#include "wire/verbs.h"

enum {
	ACTIVE_CID_LIMIT = 4, /* of the peer's connection IDs, stored for path changes */
	/* RFC 9000 section 13.2.2: "A receiver SHOULD send an ACK frame after receiving at least
	 * two ack-eliciting packets. This recommendation is general in nature and consistent
	 * with recommendations for TCP endpoint behavior [...] Knowledge of network conditions
	 * [...] might suggest alternative acknowledgment strategies with better performance
	 * characteristics." Acknowledgements would be half of a bulk sender's work. After fewer
	 * packets than this, an ACK is sent within an eighth of the RTT, or a millisecond. */
	PACKETS_PER_ACK = 10,
	LEAST_DATAGRAM_BYTES = 1200, /* RFC 9000 section 14.1 */
	MOST_DATAGRAM_BYTES = 65527, /* section 18.2 */
};
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
	 * probe for a size above that of every datagram: with `no_pmtud`, ngtcp2 before 1.12 fails an
	 * assertion when a client's packets arrive from its first address again. */
	int ip_version = c->path->local.any.sa_family == AF_INET ? 4 : 6;
	size_t count = config->probes_mtu ? hs_size_candidates(most, ip_version, probes) : 0;
	if (!count)
		probes[count++] = MOST_DATAGRAM_BYTES;
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
	hs_window_begin(config, params);
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
	if (c->tls)
		hs_tls_free(c->tls);
	free(c->server_name);
	free(c->close_packet);
	free(c->datagrams);
	free(c);
}
