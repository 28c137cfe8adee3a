/* SPDX-License-Identifier: Apache-2.0
 *
 * Two live engines with a hostile network between them (pair.h). The input says how the connection
 * is shaped, and then, for each datagram, what becomes of it: lost, doubled, late, changed, cut,
 * joined, replayed, from another address; and at times what an application does. When the input
 * is at its end the network is good again, and then everything arrives, or the connection ends
 * for a reason that such a network can give.
 */
#include "fuzz.h"
#include "pair.h"
#include "kept_wire.h"
#include "steady.h"

enum {
	MOST_HISTORY = 16,
	MOST_CHANGED_BYTES = 4096,
	CONSUMERS_INDEX = 64, /* where it lies in a FIFO's block */
};

#define PATIENCE_NS (60000 * MS_NS)

enum action {
	PASS,
	DROP,
	DUPLICATE,
	DELAY,
	FLIP,
	CUT,
	JOIN,
	GROW,
	REPLAY,
	REBIND,
	APPLICATION,
	INJECT,
	MARK,
	UNKNOWN,
	WAIT,
	ACTIONS,
};

/* What an application does. */
enum deed { RESET, STOP, UPDATE_KEY, CLOSE, PAUSE, SCRIBBLE, MIGRATE, STAY, DEEDS };

struct network {
	struct input in;
	uint32_t to_pass;
	uint8_t is_clean_until_open; /* the handshake goes untouched */
	uint8_t was_touched; /* before the handshake was complete */
	uint8_t has_moved; /* the client, or its address */
	uint8_t may_end; /* an application did what ends connections */
	/* An application wants no more of a stream, or resets one of one direction: where all of it came,
	 * but not in order, or only the reset did, ngtcp2 1.11 never knows that it is over, and the
	 * stream stays until the connection ends. */
	uint8_t may_linger;
	struct {
		uint8_t *data;
		uint32_t bytes;
		int to;
	} history[MOST_HISTORY];
	uint32_t seen;
	uint8_t *held; /* to be joined with the next one */
	uint32_t held_bytes;
};

static void remember(struct network *net, int to, const uint8_t *data, uint32_t bytes)
{
	uint32_t at = net->seen++ % MOST_HISTORY;
	free(net->history[at].data);
	net->history[at].data = copy_of(data, bytes);
	net->history[at].bytes = bytes;
	net->history[at].to = to;
}

/* Rubbish in the index that the application shares with the engine, for reading or for writing. */
static void scribble(struct network *net, struct flow *f, uint8_t how)
{
	uint64_t value = how & 1 ? take_64(&net->in) : take_8(&net->in);
	if (how & 2 && f->end->tx)
		memcpy(f->end->tx->shared, &value, sizeof(value));
	else if (!(how & 2) && f->end->rx)
		memcpy((uint8_t *)f->end->rx->shared + CONSUMERS_INDEX, &value, sizeof(value));
}

static void act(struct pair *p, struct network *net, uint8_t which)
{
	uint8_t how = take_8(&net->in);
	int side = how & 1;
	struct side *s = &p->side[side];
	struct flow *f = pair_flow(p, side, how >> 1 & 3);
	if (which == PAUSE) {
		s->is_not_reading = !s->is_not_reading;
	} else if (which == UPDATE_KEY && s->connection) {
		hs_connection_update_key(s->connection);
	} else if (which == MIGRATE && s->connection && s->is_established) {
		/* To another port of ours, at the address where the server is now. */
		uint32_t address = hs_connection_path(s->connection) / PAIR_PORTS;
		net->has_moved = 1;
		hs_connection_migrate(s->connection, address * PAIR_PORTS + (how >> 1 & 3));
	} else if (which == STAY && s->connection) {
		hs_connection_stay(s->connection);
	} else if (which == CLOSE && s->connection && s->is_established) {
		net->may_end = 1;
		hs_connection_close(s->connection, how, (const uint8_t *)"enough", 6);
	} else if (f && (which == RESET || which == STOP || which == SCRIBBLE)) {
		if (p->is_spoilt[f->id] == SCRIBBLED)
			return;
		p->is_spoilt[f->id] = which == SCRIBBLE ? SCRIBBLED : GIVEN_UP;
		if (which == RESET)
			pair_reset(p, f, how);
		else if (which == STOP)
			pair_stop(p, f, how);
		net->may_linger |= which == STOP || (which == RESET && f->id & 2);
		if (which != SCRIBBLE)
			return;
		net->may_end = 1;
		scribble(net, f, how >> 3);
		pair_poke(p, f);
	}
}

static void send_changed(struct pair *p, struct network *net, int to, const uint8_t *data,
			 uint32_t bytes, uint8_t action, uint8_t amount)
{
	uint8_t changed[MOST_CHANGED_BYTES];
	size_t n = 0;
	if (bytes > sizeof(changed))
		bytes = sizeof(changed);
	memcpy(changed, data, bytes);
	if (action == FLIP) {
		for (int i = 0; i <= (amount & 3); i++) {
			uint16_t at = take_16(&net->in);
			uint8_t mask = take_8(&net->in);
			changed[at % bytes] ^= mask ? mask : 0x80;
		}
	} else if (action == CUT) {
		bytes = take_16(&net->in) % bytes;
	} else if (action == GROW) {
		size_t room = sizeof(changed) - bytes;
		const uint8_t *more = take_bytes(&net->in, amount < room ? amount : room, &n);
		memcpy(changed + bytes, more, n);
		bytes += (uint32_t)n;
	}
	pair_send(p, to, changed, bytes, 0, p->ecn);
}

static void join(struct pair *p, struct network *net, int to, const uint8_t *data, uint32_t bytes)
{
	if (!net->held) {
		net->held = copy_of(data, bytes);
		net->held_bytes = bytes;
		return;
	}
	uint32_t all = net->held_bytes + bytes;
	uint8_t *joined = take_memory(all);
	memcpy(joined, net->held, net->held_bytes);
	memcpy(joined + net->held_bytes, data, bytes);
	pair_send(p, to, joined, all, 0, p->ecn);
	free(joined);
	free(net->held);
	net->held = NULL;
}

static void inject(struct pair *p, struct network *net, int to, uint8_t amount)
{
	size_t n;
	uint8_t shape = take_8(&net->in);
	const uint8_t *bytes = take_bytes(&net->in, shape & 0x7f, &n);
	uint8_t *datagram = take_memory(1200);
	memcpy(datagram, bytes, n);
	pair_send(p, amount & 1 ? to : !to, datagram, shape & 0x80 ? 1200 : (uint32_t)n, 0, p->ecn);
	free(datagram);
}

static void replay(struct pair *p, struct network *net, uint8_t amount)
{
	uint32_t most = net->seen < MOST_HISTORY ? net->seen : MOST_HISTORY;
	uint32_t at = take_8(&net->in) % most;
	int to = net->history[at].to;
	/* Back to the sender, sometimes. */
	pair_send(p, amount & 1 ? !to : to, net->history[at].data, net->history[at].bytes,
		  (uint64_t)(amount >> 1) * MS_NS, p->ecn);
}

static void carry(struct pair *p, int from, const uint8_t *data, uint32_t bytes)
{
	struct network *net = p->target;
	int to = !from, is_open = p->side[CLIENT].is_established && p->side[SERVER].is_established;
	remember(net, to, data, bytes);
	if (net->to_pass || !net->in.left || (net->is_clean_until_open && !is_open)) {
		net->to_pass -= net->to_pass > 0;
		if (net->held)
			join(p, net, to, data, bytes);
		else
			pair_send(p, to, data, bytes, 0, p->ecn);
		return;
	}
	uint8_t code = take_8(&net->in), action = code & 15, amount = code >> 4;
	net->was_touched |= !is_open;
	switch (action) {
	case DROP:
		return;
	case DUPLICATE:
		for (int i = 0; i <= (amount & 3); i++)
			pair_send(p, to, data, bytes, (uint64_t)i * (amount >> 2) * MS_NS, p->ecn);
		return;
	case DELAY:
		pair_send(p, to, data, bytes, (uint64_t)(amount + 1) * MS_NS, p->ecn);
		return;
	case FLIP:
	case CUT:
	case GROW:
		send_changed(p, net, to, data, bytes, action, amount);
		return;
	case JOIN:
		join(p, net, to, data, bytes);
		return;
	case REPLAY:
		replay(p, net, amount);
		break;
	case REBIND:
		p->nat_shift = amount % PAIR_PORTS;
		net->has_moved = 1;
		break;
	case APPLICATION:
		act(p, net, amount % DEEDS);
		break;
	case INJECT:
		inject(p, net, to, amount);
		break;
	case MARK:
		p->ecn = amount & 3;
		break;
	case UNKNOWN:
		/* As from a new address; the answer to what path that is is the old one. */
		pair_send(p, to, data, bytes, 0, UNKNOWN_PATH | p->ecn);
		return;
	case WAIT:
		p->now_ns += (uint64_t)amount * amount * 4 * MS_NS;
		break;
	default:
		net->to_pass = amount;
	}
	pair_send(p, to, data, bytes, 0, p->ecn);
}

/* After an untouched handshake nobody without keys can end a connection but by keeping everything
 * from it (RFC 9000 section 21.1). A client that moves again before its last move is done is an
 * exception: ngtcp2 1.11 may count the peer's connection IDs too high then. */
static int is_good_reason(const struct hs_quic_close_info *close, int has_moved)
{
	static const char IDLE[] = "Idle timeout";
	if (has_moved && close->code == NGTCP2_CONNECTION_ID_LIMIT_ERROR)
		return !close->is_application;
	return close->reason_bytes == sizeof(IDLE) - 1 && !memcmp(close->reason, IDLE, sizeof(IDLE) - 1);
}

static void check_reasons(const struct pair *p, int has_moved)
{
	for (int side = 0; side < SIDES; side++) {
		const struct side *s = &p->side[side], *other = &p->side[!side];
		CHECK(s->is_established);
		if (!s->is_closed)
			continue;
		if (s->close.by_peer)
			CHECK(other->is_closed);
		else
			CHECK(is_good_reason(&s->close, has_moved));
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	static const uint32_t SIZES[] = { 0, 1, 100, 1400, 4000, 8000, 16000, 40000 };
	static const uint32_t FIFOS[] = { 16384, 1024, 65536, 2048 };
	struct network net = { .in = { data, bytes } };
	struct pair p = { .carry = carry, .target = &net };
	uint8_t a = take_8(&net.in), b = take_8(&net.in), c = take_8(&net.in);
	struct pair_shape shape = {
		.congestion_control = (a & 3) % 3,
		.is_v2 = a >> 2 & 1,
		.wants_retry = a >> 3 & 1,
		.probes_mtu = a >> 4 & 1,
		.is_uni = a >> 5 & 1,
		.fifo_bytes = FIFOS[a >> 6],
		.streams = (b & 3) + 1,
		.stream_bytes = SIZES[b >> 2 & 7],
		/* Fewer, and two sides that both lose packets would be seconds with each update. */
		.packets_per_key = b & 0x20 ? 100 : 1 << 20,
		.keep_alive_ns = b & 0x40 ? 500 * MS_NS : 0,
		.datagram_fifo_bytes = c & 1 ? 2048 : 0,
		.has_preferred = c >> 1 & 1,
		.is_remote = { c >> 2 & 1, c >> 3 & 1 },
	};
	net.is_clean_until_open = b >> 7;
	steady_begin(1);
	pair_begin(&p, &shape);
	pair_run(&p, p.now_ns + PATIENCE_NS);
	int is_paused = p.side[CLIENT].is_not_reading || p.side[SERVER].is_not_reading;
	if (!net.may_end && !net.was_touched) {
		check_reasons(&p, net.has_moved || shape.has_preferred);
		CHECK(pair_is_complete(&p) || is_paused || net.may_linger ||
		      p.side[CLIENT].is_closed || p.side[SERVER].is_closed);
	}
	pair_end(&p, take_8(&net.in) & 1);
	pair_free(&p);
	for (int i = 0; i < MOST_HISTORY; i++)
		free(net.history[i].data);
	free(net.held);
	return 0;
}
