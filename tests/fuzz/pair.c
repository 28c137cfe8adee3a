/* SPDX-License-Identifier: Apache-2.0
 *
 * The pair's engines, the network between them, and their turns.
 */
#include "pair_parts.h"

#include "fuzz.h"
#include "kept_wire.h"
#include "steady.h"

enum {
	CLIENT_PORT = 5000,
	SERVER_PORT = 443,
	DATAGRAM_BYTES = 1452,
	TRIP_NS = 100000,
	MOST_TURNS = 20000,
	MOST_ROUNDS_OF_A_MOMENT = 200, /* turns without time going on */
	MOST_PUMPED = 10000, /* times in a turn */
	RING_EVENTS = 4,
};

#define FIRST_NS (1ULL << 41)
#define IDLE_NS (10000 * MS_NS)

static const uint8_t CLIENT_IP[4] = { 10, 0, 0, 2 };
static const uint8_t SERVER_IPS[PAIR_PATHS / PAIR_PORTS][4] = { { 10, 0, 0, 1 }, { 10, 0, 0, 3 } };

static int64_t find_path(void *owner, uint32_t connection, uint8_t ip_version,
			 const uint8_t *remote_ip, uint16_t remote_port)
{
	struct pair *p = owner;
	(void)connection;
	CHECK(p->turning == CLIENT && (p->shape.has_preferred || p->distrusts));
	int is_known = ip_version == 4 && remote_port == SERVER_PORT &&
		       !memcmp(remote_ip, SERVER_IPS[1], sizeof(SERVER_IPS[1]));
	CHECK(is_known || p->distrusts);
	return is_known ? PAIR_PORTS : -1;
}

/* --- what an engine tells ----------------------------------------------------------------------- */

/* What a program asks about a handshake that is complete. */
static void ask_about_handshake(struct hs_connection *c)
{
	size_t bytes;
	const char *name = hs_connection_server_name(c);
	CHECK(!name || strlen(name) < 256);
	for (uint32_t i = 0; hs_connection_certificate(c, i, &bytes); i++)
		CHECK(bytes);
	CHECK(!hs_connection_own_certificate(c, &bytes) == !bytes);
	hs_connection_release_tls(c);
	CHECK(hs_connection_listener(c) < 0 || !hs_connection_own_certificate(c, &bytes));
}

static void hear_of_connection(struct pair *p, int side, const struct hs_quic_event *event)
{
	struct side *s = &p->side[side];
	struct hs_connection *c = hs_quic_connection(s->q, event->connection);
	struct hs_quic_ticket ticket;
	uint8_t token[HS_QUIC_TOKEN_BYTES];
	struct flow *f;
	CHECK(c && hs_connection_number(c) == event->connection);
	if ((event->kind == HS_QUIC_ACCEPTED || event->kind == HS_QUIC_CONNECTED ||
	     event->kind == HS_QUIC_HANDSHAKE_DONE) &&
	    !(event->info & HS_QUIC_IS_EARLY))
		ask_about_handshake(c);
	switch (event->kind) {
	case HS_QUIC_ACCEPTED:
	case HS_QUIC_CONNECTED:
		CHECK((event->kind == HS_QUIC_CONNECTED) == (side == CLIENT));
		CHECK(!s->is_established || s->is_closed);
		s->connection = c;
		s->is_established = 1;
		s->is_closed = 0;
		s->is_forgotten = 0;
		pair_announce(p, side, event->connection);
		if (side == CLIENT && !s->is_remote)
			pair_open_streams(p);
		break;
	case HS_QUIC_CLOSED:
		CHECK(c == s->connection && !s->is_closed);
		s->is_closed = 1;
		hs_connection_close_info(c, &s->close);
		CHECK(s->close.reason_bytes <= HS_QUIC_REASON_BYTES);
		pair_close_session(p, side, event->connection);
		break;
	case HS_QUIC_FORGOTTEN:
		if (c == s->connection) {
			CHECK(s->is_closed && !s->is_forgotten);
			s->is_forgotten = 1;
			s->connection = NULL;
		}
		pair_close_session(p, side, event->connection);
		if (s->is_remote)
			pair_send_message(s, PAIR_FORGOTTEN, event->connection);
		else
			pair_forget_flows(p, side, event->connection);
		break;
	case HS_QUIC_DATAGRAMS_READY:
		f = pair_find_flow(p, side, event->connection, PAIR_DATAGRAMS);
		CHECK(f);
		f->largest_message = event->info;
		break;
	case HS_QUIC_TICKET:
		CHECK(side == CLIENT && !hs_connection_ticket(c, &ticket));
		CHECK(ticket.session_bytes && ticket.parameters_bytes <= sizeof(ticket.parameters));
		if (p->keep_ticket)
			p->keep_ticket(&ticket);
		break;
	case HS_QUIC_TOKEN:
		CHECK(side == CLIENT && hs_connection_token(c, token));
		break;
	case HS_QUIC_PATH_CHANGED:
		CHECK(hs_connection_path(c) < PAIR_PATHS);
		break;
	case HS_QUIC_MIGRATION_FAILED:
		CHECK(side == CLIENT);
		break;
	case HS_QUIC_HANDSHAKE_DONE:
		CHECK(p->shape.early_data);
		break;
	default: /* of the connection: its datagrams */
		CHECK(event->kind == HS_QUIC_STREAMS_AVAILABLE ||
		      event->kind == HS_QUIC_READABLE || event->kind == HS_QUIC_WRITABLE);
	}
}

/* --- the network -------------------------------------------------------------------------------- */

/* The number of the way at its other end. There is a NAT in front of the client, and its ports change
 * at times. */
static uint8_t far_path(struct pair *p, int to)
{
	uint8_t port = p->carried_path % PAIR_PORTS, address = p->carried_path / PAIR_PORTS;
	if (to == CLIENT)
		return (uint8_t)(address * PAIR_PORTS + p->behind_nat[port]);
	uint8_t seen = (uint8_t)(port + p->nat_shift) % PAIR_PORTS;
	p->behind_nat[seen] = port;
	return (uint8_t)(address * PAIR_PORTS + seen);
}

void pair_send(struct pair *p, int to, const uint8_t *data, uint32_t bytes, uint64_t delay_ns,
	       uint8_t ecn)
{
	struct travelling t = { NULL, bytes, ecn, (uint8_t)to, 0, p->now_ns + TRIP_NS + delay_ns };
	uint32_t at = p->waiting_count;
	if (at == MOST_WAITING)
		return; /* lost, as in any full queue */
	t.data = copy_of(data, bytes);
	t.path = far_path(p, to);
	for (; at > 0 && p->waiting[at - 1].at_ns > t.at_ns; at--)
		p->waiting[at] = p->waiting[at - 1];
	p->waiting[at] = t;
	p->waiting_count++;
}

/* Hands over what has arrived; returns how many datagrams, which are to be freed after the turn. */
static uint32_t deliver(struct pair *p, int side, uint8_t *arrived[HS_WIRE_BURST])
{
	uint32_t kept = 0, count = 0;
	for (uint32_t i = 0; i < p->waiting_count; i++) {
		struct travelling t = p->waiting[i];
		if (t.to != side || t.at_ns > p->now_ns || count == HS_WIRE_BURST) {
			p->waiting[kept++] = t;
			continue;
		}
		CHECK(!hs_wire_handed_put(p->side[side].wire, t.data, t.bytes, t.ecn, t.path));
		arrived[count++] = t.data;
	}
	p->waiting_count = kept;
	return count;
}

static void carry_all(struct pair *p, int side)
{
	struct hs_wire *wire = p->side[side].wire;
	uint32_t count = 0, bytes, path;
	const uint8_t *data;
	while ((data = hs_wire_handed_take(wire, count, &bytes, &path))) {
		CHECK(path < PAIR_PATHS);
		p->carried_path = (uint8_t)path;
		count++;
		p->carry(p, side, data, bytes);
	}
	hs_wire_handed_sent(wire, count);
}

/* --- turns -------------------------------------------------------------------------------------- */

/* Returns when this side wants to be called again. */
static uint64_t turn(struct pair *p, int side)
{
	struct side *s = &p->side[side];
	uint8_t *arrived[HS_WIRE_BURST];
	struct hs_quic_turn out;
	p->turning = side;
	steady_set_time(p->now_ns);
	uint32_t n = deliver(p, side, arrived);
	hs_plane_collect(s->plane);
	hs_quic_turn(s->q, p->now_ns, 1, 0, &out);
	while (n)
		free(arrived[--n]);
	for (uint32_t i = 0; i < out.event_count; i++)
		hear_of_connection(p, side, &out.events[i]);
	pair_wake(p, side);
	carry_all(p, side);
	pair_work(p, side);
	for (uint32_t rounds = 0; pair_pump(p, side); rounds++) {
		CHECK(rounds < MOST_PUMPED);
		pair_wake(p, side);
		pair_work(p, side);
	}
	CHECK(++p->turns < MOST_TURNS);
	return out.more || s->q->first_due ? p->now_ns : hs_quic_deadline(s->q);
}

int pair_is_complete(const struct pair *p)
{
	return p->side[CLIENT].streams_over >= p->shape.streams &&
	       p->side[SERVER].streams_over >= p->shape.streams;
}

static int is_settled(const struct pair *p)
{
	return pair_is_complete(p) || p->side[CLIENT].is_forgotten ||
	       (p->side[CLIENT].is_closed && p->side[SERVER].is_closed);
}

/* Both sides once, and time goes on if nobody has anything to do now. Returns 0 when nobody ever
 * will have. */
static int step(struct pair *p, uint32_t *rounds)
{
	uint64_t next_ns = UINT64_MAX;
	for (int side = 0; side < SIDES; side++) {
		uint64_t wanted_ns = turn(p, side);
		if (wanted_ns < next_ns)
			next_ns = wanted_ns;
	}
	if (p->waiting_count && p->waiting[0].at_ns < next_ns)
		next_ns = p->waiting[0].at_ns;
	if (next_ns == UINT64_MAX)
		return 0;
	CHECK(next_ns > p->now_ns || ++*rounds < MOST_ROUNDS_OF_A_MOMENT);
	if (next_ns > p->now_ns) {
		p->now_ns = next_ns;
		*rounds = 0;
	}
	return 1;
}

void pair_run(struct pair *p, uint64_t until_ns)
{
	uint32_t rounds = 0;
	while (p->now_ns < until_ns && !is_settled(p)) {
		if (!step(p, &rounds))
			break;
	}
}

static int is_empty(const struct pair *p, int side)
{
	struct hs_quic_counters counters;
	hs_quic_counters(p->side[side].q, &counters);
	return counters.connections == 0;
}

void pair_end(struct pair *p, int from)
{
	uint32_t rounds = 0;
	struct side *s = &p->side[from];
	/* Nobody keeps the other alive for ever: it ends by a close, or by the idle timeout. */
	do {
		if (s->connection && !s->is_closed)
			hs_connection_close(s->connection, 7, (const uint8_t *)"done", 4);
	} while ((!is_empty(p, CLIENT) || !is_empty(p, SERVER)) && step(p, &rounds));
	for (int side = 0; side < SIDES; side++) {
		struct hs_quic_counters counters;
		CHECK(is_empty(p, side));
		CHECK(!p->side[side].connection && !p->side[side].flows);
		hs_quic_counters(p->side[side].q, &counters);
		CHECK(counters.half_open == 0);
		/* With early data they are told before they count. */
		CHECK(counters.accepted + counters.connected == counters.closed ||
		      p->shape.early_data ||
		      (side == CLIENT && !p->side[side].is_established));
	}
}

/* --- beginning and end -------------------------------------------------------------------------- */

static struct hs_tls *new_tls(int is_server)
{
	static struct hs_tls *kept[SIDES];
	const char *certificate, *key;
	char error[256];
	if (!kept[is_server]) {
		steady_certificate(&certificate, &key);
		kept[is_server] = hs_tls_new(is_server, is_server ? certificate : NULL,
					     is_server ? key : NULL, NULL, 0,
					     (const uint8_t *)"\2hs", 3, error, sizeof(error));
		CHECK(kept[is_server]);
		if (is_server) {
			struct hs_tls *tls = kept[is_server];
			CHECK(!hs_tls_add(tls, 1, certificate, key, error, sizeof(error)));
			CHECK(!hs_tls_add_name(tls, "*.test", 0));
			CHECK(!hs_tls_add_name(tls, "localhost", 1));
			CHECK(hs_tls_add_name(tls, "localhost", 1) == -1);
			CHECK(hs_tls_add_name(tls, "z", 2) == -1);
		}
	}
	return kept[is_server];
}

static void begin_side(struct pair *p, int side)
{
	static const uint8_t PREFIXES[SIDES][HS_CID_RANDOM_OFFSET] = { { 0x0b, 0, 2, 0 },
								       { 0x0b, 0, 1, 0 } };
	static const uint8_t SECRETS[SIDES][HS_QUIC_SECRET_BYTES] = { "the client's", "the server's" };
	struct side *s = &p->side[side];
	int is_server = side == SERVER;
	s->wire = kept_wire(side);
	s->pair = p;
	s->is_remote = p->shape.is_remote[side];
	s->plane = hs_plane_new((uint32_t)side, 7, pair_on_command, pair_make_blocks, s);
	s->wakes = hs_side_new();
	CHECK(s->plane && s->wakes);
	s->application = hs_application_new(s->plane, s->is_remote ? NULL : s->wakes, 1);
	CHECK(s->application);
	if (s->is_remote)
		remote_begin(&s->remote, side, s->application, s->wakes, RING_EVENTS);
	s->q = hs_quic_new(s->wire, PREFIXES[side], SECRETS[side],
			   (const void *)(uintptr_t)hs_plane_verbs(), pair_find_session, pair_make_datagram_fifos,
			   find_path, p);
	s->tls = new_tls(is_server);
	CHECK(s->q);
	for (int i = 0; i < PAIR_PATHS; i++) {
		uint8_t key[HS_PATH_KEY_BYTES] = { (uint8_t)i };
		const uint8_t *server_ip = SERVER_IPS[i / PAIR_PORTS];
		uint16_t client_port = (uint16_t)(CLIENT_PORT + i % PAIR_PORTS);
		struct hs_path_ends ends = {
			.ip_version = 4,
			.local_port = is_server ? SERVER_PORT : client_port,
			.remote_port = is_server ? client_port : SERVER_PORT,
		};
		memcpy(ends.local_ip, is_server ? server_ip : CLIENT_IP, 4);
		memcpy(ends.remote_ip, is_server ? CLIENT_IP : server_ip, 4);
		int64_t id = hs_wire_add_path(s->wire, &ends);
		CHECK(id == i);
		hs_wire_handed_set_size(s->wire, (uint32_t)id, DATAGRAM_BYTES);
		hs_paths_set_key(&s->wire->paths, hs_paths_by_id(&s->wire->paths, (uint32_t)id), key);
	}
}

void pair_begin(struct pair *p, const struct pair_shape *shape)
{
	struct hs_quic_config config = {
		.first_window_bytes = shape->fifo_bytes / 2,
		.connection_window_bytes = 4 * (uint64_t)shape->fifo_bytes,
		.max_streams_bidi = MOST_STREAMS / 2,
		.max_streams_uni = MOST_STREAMS / 2,
		.idle_timeout_ns = IDLE_NS,
		.handshake_timeout_ns = IDLE_NS,
		.keep_alive_ns = shape->keep_alive_ns,
		.packets_per_key = shape->packets_per_key,
		.max_connections = PAIR_CONNECTIONS,
		.congestion_control = shape->congestion_control,
		.probes_mtu = shape->probes_mtu,
		.retry_above = shape->wants_retry ? 0 : 1000,
		.half_open_per_source = 4,
		.datagram_fifo_bytes = shape->datagram_fifo_bytes,
		.early_data = shape->early_data,
		.follows_preferred = 1,
		.preferred_v4_port = shape->has_preferred ? SERVER_PORT : 0,
		.version = shape->is_v2 ? NGTCP2_PROTO_VER_V2 : NGTCP2_PROTO_VER_V1,
	};
	struct hs_quic_resume resume = { .keeps = 1 };
	if (shape->resume)
		resume = *shape->resume;
	memcpy(config.preferred_v4, SERVER_IPS[1], sizeof(config.preferred_v4));
	for (uint8_t i = 0; i < PAIR_PORTS; i++)
		p->behind_nat[i] = i;
	p->shape = *shape;
	p->now_ns = FIRST_NS;
	begin_side(p, CLIENT);
	begin_side(p, SERVER);
	struct side *client = &p->side[CLIENT], *server = &p->side[SERVER];
	struct hs_listener *listener = hs_quic_listen(server->q, 4, SERVER_IPS[0], SERVER_PORT,
						      server->tls, &config);
	CHECK(listener && !hs_quic_replace_tls(server->q, listener, server->tls));
	client->connection = hs_quic_connect(client->q, 0, client->tls, "localhost", &config,
					     &resume, p->now_ns);
	CHECK(client->connection);
}

static void free_side(struct side *s)
{
	hs_quic_free(s->q);
	hs_plane_collect(s->plane);
	pair_pump(s->pair, (int)(s - s->pair->side));
	CHECK(!hs_plane_streams(s->plane) && !hs_application_sessions(s->application));
	if (s->is_remote) {
		CHECK(!s->remote.blocks);
		hs_attached_free(s->remote.attached);
		remote_end(&s->remote);
	}
	hs_plane_release(s->plane);
	hs_application_release(s->application);
	hs_side_free(s->wakes);
}

void pair_free(struct pair *p)
{
	for (int side = 0; side < SIDES; side++)
		free_side(&p->side[side]);
	for (uint32_t i = 0; i < p->waiting_count; i++)
		free(p->waiting[i].data);
}
