/* SPDX-License-Identifier: Apache-2.0
 *
 * A peer whose TLS messages are hostile: one of two live engines (pair.h) offers what the input says
 * in its hello or its encrypted extensions, and its messages are changed, left out, repeated or
 * mixed with others on their way into CRYPTO frames, during the handshake and after it. What the
 * input makes it offer is in its transcript as well, so such a handshake may go on to its end. The
 * other engine must stay whole, and forget the connection.
 */
#include <ngtcp2/ngtcp2_crypto_gnutls.h>

#include "fuzz.h"
#include "pair.h"
#include "quic/connection_schedule.h"
#include "steady.h"

enum {
	TIME_TO_LIVE_MS = 2000,
	MOST_PARAMETERS_BYTES = 1024,
	MOST_STRIKES = 64,
	PARAMETERS_EXTENSION = 57,
	MOST_NAMES = 2,
};

enum action { PASS, DROP, CHANGE, BEFORE, BEHIND, TWICE, CUT, LATER, ACTIONS };

enum {
	OTHER_GROUPS = 1, /* the first is not the honest side's: HelloRetryRequest */
	OTHER_NAMES = 2, /* application protocols are the input's */
	OTHER_PARAMETERS = 4, /* transport parameters are changed */
	COMPATIBLE = 8, /* a session ID, and ChangeCipherSpec */
};

static struct {
	struct pair *pair; /* NULL: nobody is hostile */
	int side;
	uint8_t offers; /* of the bits above */
	uint32_t strikes;
	uint32_t to_pass; /* datagrams until something is written after the handshake */
	struct input in;
} hostile;

static ngtcp2_conn *conn_of(gnutls_session_t session)
{
	ngtcp2_crypto_conn_ref *ref = gnutls_session_get_ptr(session);
	return ref->get_conn(ref);
}

/* --- what it offers ----------------------------------------------------------------------------- */

static int receive_parameters(gnutls_session_t session, const uint8_t *data, size_t bytes)
{
	int failed = ngtcp2_conn_decode_and_set_remote_transport_params(conn_of(session), data, bytes);
	if (failed)
		ngtcp2_conn_set_tls_error(conn_of(session), failed);
	return failed ? -1 : 0;
}

static int send_parameters(gnutls_session_t session, gnutls_buffer_t out)
{
	uint8_t made[MOST_PARAMETERS_BYTES];
	size_t n, at;
	ngtcp2_ssize bytes =
		ngtcp2_conn_encode_local_transport_params(conn_of(session), made, sizeof(made) / 2);
	CHECK(bytes > 0);
	uint8_t action = take_8(&hostile.in);
	const uint8_t *more = take_bytes(&hostile.in, take_8(&hostile.in), &n);
	switch (action & 3) {
	case 0: /* none */
		return 0;
	case 1: /* more */
		if (n)
			memcpy(made + bytes, more, n);
		bytes += (ngtcp2_ssize)n;
		break;
	case 2: /* fewer */
		bytes = action >> 2 < bytes ? action >> 2 : bytes;
		break;
	default: /* others */
		at = action >> 2;
		for (size_t i = 0; i < n && at + i < (size_t)bytes; i++)
			made[at + i] ^= more[i];
	}
	return gnutls_buffer_append_data(out, made, (size_t)bytes);
}

static void offer_names(gnutls_session_t session)
{
	gnutls_datum_t names[MOST_NAMES];
	unsigned int count = take_8(&hostile.in) % (MOST_NAMES + 1);
	for (unsigned int i = 0; i < count; i++) {
		size_t n;
		const uint8_t *name = take_bytes(&hostile.in, 1 + take_8(&hostile.in) % 4, &n);
		names[i] = (gnutls_datum_t){ (unsigned char *)(uintptr_t)(n ? name :
									      (const uint8_t *)"hs"),
					     (unsigned int)(n ? n : 2) };
	}
	CHECK(!gnutls_alpn_set_protocols(session, names, count, 0));
}

/* --- what it writes ----------------------------------------------------------------------------- */

static void submit(ngtcp2_conn *conn, ngtcp2_encryption_level level, const uint8_t *data,
		   size_t bytes)
{
	CHECK(!ngtcp2_conn_submit_crypto_data(conn, level, data, bytes));
}

static void change_and_submit(ngtcp2_conn *conn, ngtcp2_encryption_level level,
			      const uint8_t *data, size_t bytes)
{
	size_t n, at = take_16(&hostile.in) % bytes;
	const uint8_t *change = take_bytes(&hostile.in, 1 + take_8(&hostile.in) % 8, &n);
	uint8_t *changed = copy_of(data, bytes);
	for (size_t i = 0; i < n && at + i < bytes; i++)
		changed[at + i] ^= change[i];
	submit(conn, level, changed, bytes);
	free(changed);
}

/* In place of the glue's, which takes what GnuTLS wants to send. */
static int write_message(gnutls_session_t session, gnutls_record_encryption_level_t gnutls_level,
			 gnutls_handshake_description_t type, const void *data, size_t bytes)
{
	ngtcp2_conn *conn = conn_of(session);
	ngtcp2_encryption_level level =
		ngtcp2_crypto_gnutls_from_gnutls_record_encryption_level(gnutls_level);
	const uint8_t *more;
	size_t n;
	uint8_t action = take_8(&hostile.in);
	if (type == GNUTLS_HANDSHAKE_CHANGE_CIPHER_SPEC || !bytes)
		return 0;
	if (hostile.strikes++ > MOST_STRIKES)
		action = PASS;
	switch (action % ACTIONS) {
	case DROP:
		/* A client of ngtcp2's must have something to send first. */
		if (level == NGTCP2_ENCRYPTION_LEVEL_INITIAL)
			submit(conn, level, data, 1);
		break;
	case CHANGE:
		change_and_submit(conn, level, data, bytes);
		break;
	case BEFORE:
		more = take_bytes(&hostile.in, take_8(&hostile.in), &n);
		submit(conn, level, more, n);
		submit(conn, level, data, bytes);
		break;
	case BEHIND:
		more = take_bytes(&hostile.in, take_8(&hostile.in), &n);
		submit(conn, level, data, bytes);
		submit(conn, level, more, n);
		break;
	case TWICE:
		submit(conn, level, data, bytes);
		submit(conn, level, data, bytes);
		break;
	case CUT:
		submit(conn, level, data, 1 + take_16(&hostile.in) % bytes);
		break;
	case LATER: /* at the last level, once there are keys for it */
		submit(conn, level, data, bytes);
		submit(conn, NGTCP2_ENCRYPTION_LEVEL_1RTT, data, bytes);
		break;
	default:
		submit(conn, level, data, bytes);
	}
	return 0;
}

/* The handshake is over: what now? */
static void write_late(struct pair *p)
{
	struct side *s = &p->side[hostile.side];
	size_t n;
	if (!s->is_established || s->is_closed || !s->connection || !hostile.in.left ||
	    hostile.strikes > MOST_STRIKES || hostile.to_pass--)
		return;
	uint8_t code = take_8(&hostile.in);
	const uint8_t *data = take_bytes(&hostile.in, take_8(&hostile.in) % 64, &n);
	hostile.to_pass = code & 7;
	hostile.strikes++;
	if (s->connection->state == HS_OPEN) {
		submit(s->connection->conn, NGTCP2_ENCRYPTION_LEVEL_1RTT, data, n);
		hs_schedule(s->connection);
	}
}

static int configure(gnutls_session_t session, int (*real)(gnutls_session_t))
{
	gnutls_priority_t priority;
	if (hostile.offers & OTHER_PARAMETERS)
		CHECK(!gnutls_session_ext_register(session, "changed", PARAMETERS_EXTENSION,
						   GNUTLS_EXT_TLS, receive_parameters,
						   send_parameters, NULL, NULL, NULL,
						   GNUTLS_EXT_FLAG_TLS |
							   GNUTLS_EXT_FLAG_CLIENT_HELLO |
							   GNUTLS_EXT_FLAG_EE));
	else
		CHECK(!real(session));
	gnutls_handshake_set_read_function(session, write_message);
	if (hostile.offers & OTHER_NAMES)
		offer_names(session);
	if (hostile.offers & (OTHER_GROUPS | COMPATIBLE)) {
		CHECK(!gnutls_priority_init(
			&priority,
			hostile.offers & OTHER_GROUPS ?
				"NORMAL:-VERS-ALL:+VERS-TLS1.3:-GROUP-ALL:+GROUP-X448:+GROUP-X25519" :
				"NORMAL:-VERS-ALL:+VERS-TLS1.3:-GROUP-ALL:+GROUP-X25519",
			NULL));
		CHECK(!gnutls_priority_set(session, priority));
		gnutls_priority_deinit(priority);
	}
	return 0;
}

static int is_hostile(gnutls_session_t session)
{
	ngtcp2_crypto_conn_ref *ref = gnutls_session_get_ptr(session);
	const struct hs_connection *c = ref->user_data;
	return hostile.pair && (hostile.side == SERVER) == (c->listener != NULL);
}

/* The linker puts these in front of the glue's (--wrap). */
int __real_ngtcp2_crypto_gnutls_configure_client_session(gnutls_session_t session);
int __wrap_ngtcp2_crypto_gnutls_configure_client_session(gnutls_session_t session);
int __real_ngtcp2_crypto_gnutls_configure_server_session(gnutls_session_t session);
int __wrap_ngtcp2_crypto_gnutls_configure_server_session(gnutls_session_t session);

int __wrap_ngtcp2_crypto_gnutls_configure_client_session(gnutls_session_t session)
{
	int (*real)(gnutls_session_t) = __real_ngtcp2_crypto_gnutls_configure_client_session;
	return is_hostile(session) ? configure(session, real) : real(session);
}

int __wrap_ngtcp2_crypto_gnutls_configure_server_session(gnutls_session_t session)
{
	int (*real)(gnutls_session_t) = __real_ngtcp2_crypto_gnutls_configure_server_session;
	return is_hostile(session) ? configure(session, real) : real(session);
}

static void carry(struct pair *p, int from, const uint8_t *data, uint32_t bytes)
{
	pair_send(p, !from, data, bytes, 0, 0);
	if (from == hostile.side)
		write_late(p);
}

/* --- tickets ------------------------------------------------------------------------------------ */

static struct hs_quic_resume resumed;

static void keep_ticket(const struct hs_quic_ticket *ticket)
{
	if (resumed.session_bytes)
		return;
	resumed.session = copy_of(ticket->session, ticket->session_bytes);
	resumed.session_bytes = ticket->session_bytes;
	resumed.parameters = copy_of(ticket->parameters, ticket->parameters_bytes);
	resumed.parameters_bytes = ticket->parameters_bytes;
	resumed.early_data = 1;
	resumed.keeps = 1;
}

static const struct pair_shape SHAPE = {
	.fifo_bytes = 4096,
	.streams = 1,
	.stream_bytes = 3000,
	.packets_per_key = 1 << 20,
	.keep_alive_ns = 20 * MS_NS, /* it has something to send, again and again */
	.early_data = 1,
};

/* A connection of two honest sides, for the ticket that it gives. */
static void get_ticket(void)
{
	struct pair p = { .carry = carry, .distrusts = 1, .keep_ticket = keep_ticket };
	steady_begin(2);
	hostile.side = SIDES;
	pair_begin(&p, &SHAPE);
	pair_run(&p, p.now_ns + TIME_TO_LIVE_MS * MS_NS);
	pair_end(&p, CLIENT);
	pair_free(&p);
	CHECK(resumed.parameters_bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	struct input in = { data, bytes };
	struct pair p = { .carry = carry, .distrusts = 1 };
	uint8_t a = take_8(&in), b = take_8(&in);
	struct pair_shape shape = SHAPE;
	if (!resumed.session_bytes)
		get_ticket();
	shape.is_v2 = a >> 1 & 1;
	shape.wants_retry = a >> 2 & 1;
	shape.resume = a >> 3 & 1 ? &resumed : NULL;
	steady_begin(1);
	memset(&hostile, 0, sizeof(hostile));
	hostile.pair = &p;
	hostile.side = a & 1;
	hostile.offers = a >> 4;
	hostile.to_pass = b;
	hostile.in = in;
	pair_begin(&p, &shape);
	pair_run(&p, p.now_ns + TIME_TO_LIVE_MS * MS_NS);
	hostile.pair = NULL;
	hostile.side = SIDES;
	pair_end(&p, !(a & 1));
	pair_free(&p);
	return 0;
}
