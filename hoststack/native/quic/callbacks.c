/* SPDX-License-Identifier: Apache-2.0
 *
 * The callbacks of ngtcp2.
 */
#include "quic/callbacks.h"

#include <stdlib.h>
#include <string.h>

#include "quic/chacha.h"
#include "quic/cid.h"
#include "quic/connection_schedule.h"
#include "quic/datagram.h"
#include "quic/half_open.h"
#include "quic/handshake.h"
#include "quic/packets.h"
#include "quic/path.h"
#include "quic/resume.h"
#include "quic/stream.h"
#include "quic/stream_limits.h"
#include "quic/token.h"
#include "quic/version.h"
#include "quic/window.h"
#include "session/transport.h"

#define UNUSED __attribute__((unused))

static int get_new_connection_id(UNUSED ngtcp2_conn *conn, ngtcp2_cid *cid, uint8_t *token,
				 UNUSED size_t bytes, void *user_data)
{
	return hs_new_cid(user_data, cid, token) ? NGTCP2_ERR_CALLBACK_FAILURE : 0;
}

static int remove_connection_id(UNUSED ngtcp2_conn *conn, const ngtcp2_cid *cid, void *user_data)
{
	struct hs_connection *c = user_data;
	hs_cids_remove(&c->q->cids, c, cid->data, cid->datalen);
	return 0;
}

static void get_random(uint8_t *out, size_t bytes, UNUSED const ngtcp2_rand_ctx *context)
{
	/* Not for secrets: ngtcp2 uses it for packet numbers and the like. */
	if (gnutls_rnd(GNUTLS_RND_NONCE, out, bytes))
		memset(out, 0, bytes);
}

static int handshake_completed(UNUSED ngtcp2_conn *conn, void *user_data)
{
	struct hs_connection *c = user_data;
	struct hs_quic *q = c->q;
	if (hs_resume_completed(c))
		return NGTCP2_ERR_CALLBACK_FAILURE;
	c->state = HS_OPEN;
	if (c->listener) {
		/* RFC 9001 section 4.1.2: "the TLS handshake is considered confirmed at the server when
		 * the handshake completes." */
		c->is_confirmed = 1;
		hs_half_open_end(c);
		q->counters.accepted++;
		/* Failing to send a ticket is no reason to close the connection. */
		if (!c->tls->asks_clients)
			gnutls_session_ticket_send(c->session, 1, 0);
		hs_token_offer(c, &ngtcp2_conn_get_path(c->conn)->remote);
	} else {
		q->counters.connected++;
	}
	hs_datagrams_open(c);
	hs_window_open(c);
	if (c->config.keep_alive_ns)
		ngtcp2_conn_set_keep_alive_timeout(c->conn, c->config.keep_alive_ns);
	if (!c->is_early)
		hs_touch(c, HS_PENDING_ESTABLISHED);
	return 0;
}

static int recv_new_token(UNUSED ngtcp2_conn *conn, const uint8_t *token, size_t bytes,
			  void *user_data)
{
	hs_resume_keep_token(user_data, token, bytes);
	return 0;
}

static int handshake_confirmed(UNUSED ngtcp2_conn *conn, void *user_data)
{
	struct hs_connection *c = user_data;
	/* Refuse a HANDSHAKE_DONE from a server that can't have received our last handshake
	 * message: ngtcp2 (including 1.22) would discard the handshake's keys, and read its next
	 * handshake packet through a NULL pointer. */
	if (!c->has_written_open)
		return NGTCP2_ERR_CALLBACK_FAILURE;
	c->is_confirmed = 1;
	return 0;
}

static int dcid_status(UNUSED ngtcp2_conn *conn, ngtcp2_connection_id_status_type type,
		       uint64_t number, UNUSED const ngtcp2_cid *cid, const uint8_t *token,
		       void *user_data)
{
	struct hs_connection *c = user_data;
	/* A token that is registered for another connection stays with that one; this one then
	 * times out instead. */
	if (token && type == NGTCP2_CONNECTION_ID_STATUS_TYPE_ACTIVATE)
		(void)hs_cids_add(&c->q->cids, c, token, NGTCP2_STATELESS_RESET_TOKENLEN);
	else if (token)
		hs_cids_remove(&c->q->cids, c, token, NGTCP2_STATELESS_RESET_TOKENLEN);
	/* Refuse a server that retires its first connection ID this early: ngtcp2 fails an
	 * assertion when it writes our Finished. */
	return number && !c->has_written_open ? NGTCP2_ERR_CALLBACK_FAILURE : 0;
}

/* --- streams ---------------------------------------------------------------------------------- */

/* There is no room for the stream. ngtcp2 discards its data and returns the credit; the peer may
 * open another stream when this one is closed. */
static int refuse_stream(ngtcp2_conn *conn, int64_t stream_id)
{
	int failed = ngtcp2_conn_shutdown_stream_read(conn, 0, stream_id, 0);
	if (!failed && ngtcp2_is_bidi_stream(stream_id))
		failed = ngtcp2_conn_shutdown_stream_write(conn, 0, stream_id, 0);
	return failed ? NGTCP2_ERR_CALLBACK_FAILURE : 0;
}

static int stream_open(ngtcp2_conn *conn, int64_t stream_id, void *user_data)
{
	struct hs_connection *c = user_data;
	struct hs_fifo_producer *rx = NULL;
	struct hs_fifo_consumer *tx = NULL;
	int is_uni = !ngtcp2_is_bidi_stream(stream_id);
	struct hs_quic *q = c->q;
	hs_count_opened(c, stream_id);
	if (!c->streams_owner) {
		c->is_known = 1;
		c->streams_owner = q->find_session(q->owner, c->number);
	}
	struct hs_stream *s = hs_stream_new(c, stream_id, 0);
	if (!s)
		return NGTCP2_ERR_CALLBACK_FAILURE;
	void *session = c->streams_owner ? q->sessions->open(c->streams_owner, s, stream_id, &rx,
							     is_uni ? NULL : &tx) :
					   NULL;
	if (!session) {
		hs_stream_unlink(s);
		free(s);
		return refuse_stream(conn, stream_id);
	}
	hs_stream_set_session(s, session, rx, tx);
	ngtcp2_conn_set_stream_user_data(conn, stream_id, s);
	if (c->state == HS_OPENING && !c->is_early) {
		/* Before the handshake is complete all data is 0-RTT. The application decides
		 * what to do with data that may be a replay. */
		c->is_early = 1;
		hs_touch(c, HS_PENDING_ESTABLISHED);
	}
	hs_touch_stream(s, HS_STREAM_OPENED);
	return 0;
}

static int recv_stream_data(UNUSED ngtcp2_conn *conn, uint32_t flags, UNUSED int64_t stream_id,
			    uint64_t offset, const uint8_t *data, size_t bytes,
			    UNUSED void *user_data, void *stream_user_data)
{
	struct hs_stream *s = stream_user_data;
	if (s && hs_stream_receive(s, offset, data, bytes, flags & NGTCP2_STREAM_DATA_FLAG_FIN))
		return NGTCP2_ERR_CALLBACK_FAILURE;
	return 0;
}

static int acked_stream_data_offset(UNUSED ngtcp2_conn *conn, UNUSED int64_t stream_id,
				    uint64_t offset, uint64_t bytes, UNUSED void *user_data,
				    void *stream_user_data)
{
	if (stream_user_data)
		hs_stream_acknowledge(stream_user_data, offset, bytes);
	return 0;
}

static int stream_close(ngtcp2_conn *conn, UNUSED uint32_t flags, int64_t stream_id,
			UNUSED uint64_t code, void *user_data, void *stream_user_data)
{
	if (stream_user_data)
		hs_stream_on_gone(stream_user_data);
	else if (!ngtcp2_conn_is_local_stream(conn, stream_id))
		hs_allow_stream(user_data, !ngtcp2_is_bidi_stream(stream_id));
	return 0;
}

static int stream_reset(UNUSED ngtcp2_conn *conn, UNUSED int64_t stream_id,
			UNUSED uint64_t final_size, uint64_t code, UNUSED void *user_data,
			void *stream_user_data)
{
	if (stream_user_data)
		hs_stream_on_reset(stream_user_data, code);
	return 0;
}

static int extend_max_streams(UNUSED ngtcp2_conn *conn, UNUSED uint64_t most, void *user_data)
{
	hs_touch(user_data, HS_PENDING_STREAMS_AVAILABLE);
	return 0;
}

static int extend_max_stream_data(UNUSED ngtcp2_conn *conn, UNUSED int64_t stream_id,
				  UNUSED uint64_t most, UNUSED void *user_data,
				  void *stream_user_data)
{
	struct hs_stream *s = stream_user_data;
	if (s && s->is_blocked) {
		s->is_blocked = 0;
		hs_stream_look(s);
	}
	return 0;
}

static int recv_datagram(UNUSED ngtcp2_conn *conn, uint32_t flags, const uint8_t *data,
			 size_t bytes, void *user_data)
{
	return hs_datagrams_receive(user_data, flags & NGTCP2_DATAGRAM_FLAG_0RTT, data, bytes) ?
		       NGTCP2_ERR_CALLBACK_FAILURE :
		       0;
}

static int recv_stateless_reset(UNUSED ngtcp2_conn *conn,
				UNUSED const ngtcp2_pkt_stateless_reset *reset, void *user_data)
{
	struct hs_connection *c = user_data;
	c->was_reset = 1;
	return 0;
}

static int path_validation(UNUSED ngtcp2_conn *conn, uint32_t flags, const ngtcp2_path *path,
			   UNUSED const ngtcp2_path *old_path, ngtcp2_path_validation_result result,
			   void *user_data)
{
	struct hs_connection *c = user_data;
	int is_good = result == NGTCP2_PATH_VALIDATION_RESULT_SUCCESS;
	hs_path_validated(c, path, flags, is_good);
	/* A token is for one address (RFC 9000 section 8.1.3), and the client has a new one now. */
	if (is_good && flags & NGTCP2_PATH_VALIDATION_FLAG_NEW_TOKEN)
		hs_token_offer(c, &path->remote);
	return 0;
}

static int select_preferred_addr(UNUSED ngtcp2_conn *conn, ngtcp2_path *dest,
				 const ngtcp2_preferred_addr *theirs, void *user_data)
{
	hs_path_select_preferred(user_data, theirs, dest);
	return 0;
}

#define BOTH                                                             \
	.recv_crypto_data = hs_handshake_receive,                        \
	.handshake_completed = handshake_completed,                      \
	.encrypt = hs_encrypt,                             \
	.decrypt = hs_decrypt,                                           \
	.hp_mask = ngtcp2_crypto_hp_mask_cb,                             \
	.recv_stream_data = recv_stream_data,                            \
	.acked_stream_data_offset = acked_stream_data_offset,            \
	.stream_open = stream_open,                                      \
	.stream_close = stream_close,                                    \
	.recv_stateless_reset = recv_stateless_reset,                    \
	.recv_datagram = recv_datagram,                                  \
	.extend_max_local_streams_bidi = extend_max_streams,             \
	.extend_max_local_streams_uni = extend_max_streams,              \
	.rand = get_random,                                              \
	.get_new_connection_id = get_new_connection_id,                  \
	.remove_connection_id = remove_connection_id,                    \
	.update_key = hs_chacha_update_key,                              \
	.stream_reset = stream_reset,                                    \
	.extend_max_stream_data = extend_max_stream_data,                \
	.delete_crypto_aead_ctx = hs_chacha_delete,                      \
	.delete_crypto_cipher_ctx = ngtcp2_crypto_delete_crypto_cipher_ctx_cb, \
	.get_path_challenge_data = ngtcp2_crypto_get_path_challenge_data_cb, \
	.path_validation = path_validation,                              \
	.version_negotiation = ngtcp2_crypto_version_negotiation_cb

const ngtcp2_callbacks hs_client_callbacks = {
	BOTH,
	.client_initial = ngtcp2_crypto_client_initial_cb,
	.recv_version_negotiation = hs_version_on_negotiation,
	.recv_retry = ngtcp2_crypto_recv_retry_cb,
	.handshake_confirmed = handshake_confirmed,
	.dcid_status = dcid_status,
	.select_preferred_addr = select_preferred_addr,
	.recv_new_token = recv_new_token,
};

const ngtcp2_callbacks hs_server_callbacks = {
	BOTH,
	.recv_client_initial = ngtcp2_crypto_recv_client_initial_cb,
};
