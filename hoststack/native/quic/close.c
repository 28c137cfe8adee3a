/* SPDX-License-Identifier: Apache-2.0
 *
 * How connections end (RFC 9000 section 10).
 */
#include "quic/close.h"

#include <stdlib.h>
#include <string.h>

#include "quic/begin.h"
#include "quic/connection_schedule.h"
#include "quic/half_open.h"
#include "quic/tls.h"
#include "wire/verbs.h"

enum {
	CLOSING_PTOS = 3, /* RFC 9000 section 10.2 */
	CLOSE_PACKET_BYTES = 1252, /* room for a CONNECTION_CLOSE in any handshake state */
};

static void set_reason(struct hs_connection *c, const uint8_t *reason, size_t bytes)
{
	if (bytes > HS_QUIC_REASON_BYTES)
		bytes = HS_QUIC_REASON_BYTES;
	if (bytes)
		memcpy(c->close_info.reason, reason, bytes);
	c->close_info.reason_bytes = (uint16_t)bytes;
}

/* Change the state; a connection that ends is no longer half open. */
static void leave(struct hs_connection *c, enum hs_connection_state state)
{
	hs_half_open_end(c);
	if (c->state <= HS_OPEN && !(c->listener && c->state == HS_OPENING))
		c->q->counters.closed++;
	/* The application was not notified of a peer's incomplete handshake, so not of its
	 * failure either. */
	if (c->state == HS_OPEN || (c->state == HS_OPENING && (!c->listener || c->is_early)))
		hs_touch(c, HS_PENDING_CLOSED);
	c->state = (uint8_t)state;
	if (state == HS_OVER)
		hs_touch(c, HS_PENDING_FORGOTTEN);
}

/* End without notifying the peer, which is gone. The application sees an error, not a clean
 * close. */
static void end_silently(struct hs_connection *c, const char *reason)
{
	c->close_info.code = NGTCP2_INTERNAL_ERROR;
	c->close_info.is_application = 0;
	set_reason(c, (const uint8_t *)reason, strlen(reason));
	leave(c, HS_OVER);
}

void hs_close_give_up(struct hs_connection *c)
{
	end_silently(c, "Too many handshakes at once");
}

static void wait_for_stragglers(struct hs_connection *c, enum hs_connection_state state)
{
	leave(c, state);
	hs_heap_set(c->q, c, c->q->now_ns + CLOSING_PTOS * ngtcp2_conn_get_pto(c->conn));
}

/* Write CONNECTION_CLOSE and store it, to be repeated when the peer sends more. */
static void begin_closing(struct hs_connection *c, const ngtcp2_ccerr *error)
{
	ngtcp2_path_storage storage;
	ngtcp2_pkt_info info;
	ngtcp2_ssize bytes = 0;
	ngtcp2_path_storage_zero(&storage);
	c->close_packet = malloc(CLOSE_PACKET_BYTES);
	if (c->close_packet)
		bytes = ngtcp2_conn_write_connection_close(c->conn, &storage.path, &info,
							   c->close_packet,
							   CLOSE_PACKET_BYTES, error,
							   c->q->now_ns);
	if (bytes <= 0) {
		leave(c, HS_OVER); /* the peer can't receive one yet */
		return;
	}
	c->close_bytes = (uint16_t)bytes;
	c->close_is_due = 1;
	wait_for_stragglers(c, HS_CLOSING);
	hs_schedule(c);
}

/* Close because of an ngtcp2 error. */
void hs_close_fail(struct hs_connection *c, int error)
{
	char text[HS_QUIC_REASON_BYTES] = "";
	ngtcp2_ccerr why;
	ngtcp2_ccerr_default(&why);
	if (error == NGTCP2_ERR_CRYPTO && c->tls_messages.error)
		error = c->tls_messages.error;
	else if (error == NGTCP2_ERR_CRYPTO)
		hs_tls_failure(c, text, sizeof(text));
	if (error == NGTCP2_ERR_VERSION_NEGOTIATION_FAILURE && !c->failure)
		c->failure = "The peer would have spoken another version of QUIC";
	const char *known = text[0] || !c->failure ? text : c->failure;
	if (error == NGTCP2_ERR_CRYPTO)
		ngtcp2_ccerr_set_tls_alert(&why, ngtcp2_conn_get_tls_alert(c->conn),
					   (const uint8_t *)known, strlen(known));
	else
		ngtcp2_ccerr_set_liberr(&why, error, (const uint8_t *)known, strlen(known));
	const char *reason = known[0] ? known : ngtcp2_strerror(error);
	set_reason(c, (const uint8_t *)reason, strlen(reason));
	c->close_info.code = why.error_code;
	c->close_info.is_application = 0; /* the application may have asked for a close before */
	begin_closing(c, &why);
}

/* Close because the application wants it. */
static void close_for_application(struct hs_connection *c)
{
	ngtcp2_ccerr why;
	ngtcp2_ccerr_default(&why);
	ngtcp2_ccerr_set_application_error(&why, c->close_info.code, c->close_info.reason,
					   c->close_info.reason_bytes);
	begin_closing(c, &why);
}

void hs_connection_close(struct hs_connection *c, uint64_t code, const uint8_t *reason,
			 size_t reason_bytes)
{
	if (c->state > HS_OPEN || c->close_is_due)
		return;
	c->close_info.code = code;
	c->close_info.is_application = 1;
	set_reason(c, reason, reason_bytes);
	c->close_is_due = 1;
	hs_schedule(c);
}

static void end_by_peer(struct hs_connection *c)
{
	static const char RESET[] = "Stateless reset";
	const ngtcp2_ccerr *why = ngtcp2_conn_get_ccerr(c->conn);
	c->close_info.by_peer = 1;
	if (c->was_reset) {
		c->close_info.is_application = 0;
		c->close_info.code = NGTCP2_INTERNAL_ERROR;
		set_reason(c, (const uint8_t *)RESET, sizeof(RESET) - 1);
	} else {
		c->close_info.is_application = why->type == NGTCP2_CCERR_TYPE_APPLICATION;
		c->close_info.code = why->error_code;
		set_reason(c, why->reason, why->reasonlen);
	}
	c->close_is_due = 0;
	wait_for_stragglers(c, HS_DRAINING);
}

void hs_connection_close_info(const struct hs_connection *c, struct hs_quic_close_info *out)
{
	*out = c->close_info;
}

/* Results of ngtcp2 that do not end the connection count as 0. */
void hs_close_on_error(struct hs_connection *c, int result)
{
	switch (result) {
	case 0:
		break;
	case NGTCP2_ERR_DRAINING:
		end_by_peer(c);
		break;
	case NGTCP2_ERR_CLOSING:
		break;
	case NGTCP2_ERR_IDLE_CLOSE:
		end_silently(c, "Idle timeout");
		break;
	case NGTCP2_ERR_HANDSHAKE_TIMEOUT:
		end_silently(c, "No answer");
		break;
	case NGTCP2_ERR_RETRY:
		/* The later part of a ClientHello arrived first, and ngtcp2 has stored it; this
		 * result asks whether to keep it for an unproven address. The handshake occupies
		 * its place already, and this costs less than a whole ClientHello. */
		break;
	case NGTCP2_ERR_RECV_VERSION_NEGOTIATION:
		if (!c->next_version)
			end_silently(c, "The server and the client have no QUIC version in common");
		else if (hs_connection_begin_again(c))
			end_silently(c, "No memory to restart with another version");
		break;
	case NGTCP2_ERR_DROP_CONN:
		c->q->counters.drops[HS_QUIC_DROP_UNREADABLE_INITIAL]++;
		c->q->unreadable++;
		end_silently(c, "The first packet could not be read");
		break;
	default:
		hs_close_fail(c, result);
	}
}

/* RFC 9000 section 10.2.1: "An endpoint SHOULD limit the rate at which it generates packets in
 * the closing state. For instance, an endpoint could wait for a progressively increasing number
 * of received packets": here, powers of two. */
void hs_close_answer(struct hs_connection *c)
{
	uint64_t n = ++c->came_while_closing;
	c->q->counters.drops[HS_QUIC_DROP_CLOSING]++;
	if (c->state == HS_CLOSING && !(n & (n - 1))) {
		c->close_is_due = 1;
		hs_schedule(c);
	}
}

int hs_close_send(struct hs_connection *c)
{
	struct hs_wire *wire = c->q->wire;
	size_t room;
	if (c->state <= HS_OPEN)
		close_for_application(c);
	if (c->state != HS_CLOSING) {
		c->close_is_due = 0;
		return 0;
	}
	uint8_t *out = wire->verbs->reserve(wire, &room);
	if (!out)
		return -1;
	c->close_is_due = 0;
	if (room < c->close_bytes)
		return 0;
	memcpy(out, c->close_packet, c->close_bytes);
	wire->verbs->commit(wire, c->path, c->close_bytes, 0);
	return 1;
}

void hs_close_expire(struct hs_connection *c)
{
	leave(c, HS_OVER);
}
