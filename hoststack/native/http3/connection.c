/* SPDX-License-Identifier: Apache-2.0 */
#include "http3/internal.h"

#include <stdlib.h>

struct hs_http3 *hs_http3_new(const struct hs_http3_config *config,
			      const struct hs_http3_ends *ends)
{
	nghttp3_callbacks callbacks = { 0 };
	nghttp3_settings settings;
	struct hs_http3 *h = calloc(1, sizeof(*h));
	if (!h || config->more_count > HS_HTTP3_MORE_SETTINGS) {
		free(h);
		return NULL;
	}
	h->config = *config;
	h->ends = *ends;
	h->has_preface = !config->more_count;
	nghttp3_settings_default(&settings);
	settings.max_field_section_size = config->max_section_bytes;
	settings.qpack_max_dtable_capacity = config->table_bytes;
	settings.qpack_encoder_max_dtable_capacity = config->table_bytes;
	settings.qpack_blocked_streams = config->blocked_streams;
	settings.enable_connect_protocol = config->has_connect_protocol;
	settings.h3_datagram = config->has_datagrams;
	hs_http3_set_receive_callbacks(&callbacks);
	int error = !hs_http3_make_streams(h) ? NGHTTP3_ERR_NOMEM :
		    config->is_server ?
				nghttp3_conn_server_new(&h->conn, &callbacks, &settings, NULL, h) :
				nghttp3_conn_client_new(&h->conn, &callbacks, &settings, NULL, h);
	if (error) {
		hs_http3_free(h);
		return NULL;
	}
	nghttp3_conn_set_max_concurrent_streams(h->conn, config->max_streams);
	if (config->is_server) {
		h->max_client_streams = config->max_streams;
		nghttp3_conn_set_max_client_streams_bidi(h->conn, config->max_streams);
	}
	return h;
}

void hs_http3_free(struct hs_http3 *h)
{
	nghttp3_conn_del(h->conn);
	hs_http3_free_streams(h);
	free(h->events);
	free(h->text);
	free(h);
}

int hs_http3_bind(struct hs_http3 *h, const int64_t ids[3], struct hs_end *const ends[3])
{
	int kind = h->config.is_server ? 3 : 2;
	if (h->is_bound)
		return HS_HTTP3_MISUSED;
	for (int i = 0; i < 3; i++) {
		if (ids[i] < 0 || (ids[i] & 3) != kind || hs_http3_find(h, ids[i]))
			return HS_HTTP3_MISUSED;
		struct hs_http3_stream *s = hs_http3_insert(h, ids[i], ends[i]);
		if (!s)
			return HS_HTTP3_NO_MEMORY;
		s->is_critical = 1;
		s->is_received = 1;
	}
	h->control_id = ids[0];
	int error = nghttp3_conn_bind_control_stream(h->conn, ids[0]);
	if (!error)
		error = nghttp3_conn_bind_qpack_streams(h->conn, ids[1], ids[2]);
	h->is_bound = !error;
	return error ? hs_http3_fail_as(h, error) : 0;
}

int hs_http3_shutdown(struct hs_http3 *h, int is_notice)
{
	/* A second notice, or one after the last GOAWAY, would announce more than was allowed. */
	if (h->has_failed)
		return HS_HTTP3_FAILED;
	if (!h->is_bound)
		return HS_HTTP3_MISUSED;
	if (h->is_shut_down || (is_notice && h->has_noticed))
		return 0;
	int error = is_notice ? nghttp3_conn_submit_shutdown_notice(h->conn) :
				nghttp3_conn_shutdown(h->conn);
	if (error)
		return hs_http3_fail_as(h, error);
	h->has_noticed = 1;
	h->is_shut_down = !is_notice;
	return 0;
}

int hs_http3_add(struct hs_http3 *h, int64_t id, struct hs_end *end)
{
	int is_request = (id & 3) == 0;
	int is_peers = (id & 3) == (h->config.is_server ? 2 : 3) ||
		       ((id & 3) == 1 && !h->config.is_server && h->config.has_webtransport);
	if (h->has_failed)
		return HS_HTTP3_FAILED;
	if (id < 0 || hs_http3_find(h, id) || (!is_request && !is_peers))
		return HS_HTTP3_MISUSED;
	if (!hs_http3_insert(h, id, end))
		return HS_HTTP3_NO_MEMORY;
	if (is_request && h->config.is_server) {
		/* A client may prioritize requests that it may open (RFC 9218 section 7.1), and no
		 * others: nghttp3 keeps them all. */
		uint64_t most = ((uint64_t)id >> 2) + 1 + h->config.max_streams;
		if (most > h->max_client_streams) {
			h->max_client_streams = most;
			nghttp3_conn_set_max_client_streams_bidi(h->conn, most);
		}
	}
	return 0;
}

void hs_http3_close(struct hs_http3 *h, int64_t id, uint64_t code)
{
	if (!hs_http3_remove(h, id) || h->has_failed)
		return;
	int error = nghttp3_conn_close_stream(h->conn, id, code);
	if (error && error != NGHTTP3_ERR_STREAM_NOT_FOUND)
		hs_http3_fail_as(h, error);
}
