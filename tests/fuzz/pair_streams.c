/* SPDX-License-Identifier: Apache-2.0
 *
 * The streams of the pair, their FIFOs and their sessions.
 */
#include "pair_parts.h"

#include "fuzz.h"

static void open_fifo(uint8_t **block, struct hs_fifo_producer *in, struct hs_fifo_consumer *out,
		      uint32_t bytes)
{
	size_t block_bytes = HS_FIFO_HEADER_BYTES + bytes;
	*block = take_memory(block_bytes);
	CHECK(!hs_fifo_producer_open(in, *block, block_bytes));
	CHECK(!hs_fifo_consumer_open(out, *block, block_bytes));
}

int pair_make_blocks(void *owner, uint64_t key, int is_peers, struct hs_made_block out[2])
{
	struct side *s = owner;
	(void)key, (void)is_peers;
	CHECK(s->is_remote && (out[0].bytes || out[1].bytes));
	for (int d = 0; d < 2; d++) {
		if (out[d].bytes)
			remote_make_block(&s->remote, &out[d]);
	}
	return 0;
}

void pair_on_command(void *owner, uint64_t handle, uint32_t command, uint64_t code)
{
	struct side *s = owner;
	(void)handle;
	CHECK(command == HS_SESSION_FREE_BLOCK && s->is_remote);
	remote_free_block(&s->remote, code);
}

struct flow *pair_new_flow(struct pair *p, int side, uint32_t connection, int64_t id)
{
	struct flow *f = take_memory(sizeof(*f));
	int is_uni = id >= 0 && id & 2, is_own = (id & 1) == (side == SERVER);
	CHECK(id >= PAIR_DATAGRAMS && id < MOST_STREAM_NUMBERS);
	f->side = side;
	f->connection = connection;
	f->id = id;
	f->has_rx = !is_uni || !is_own;
	f->has_tx = !is_uni || is_own;
	f->may_read = f->may_write = 1;
	f->next = p->side[side].flows;
	p->side[side].flows = f;
	return f;
}

static void free_flow(struct flow *f)
{
	if (f->end)
		hs_end_drop(f->end);
	hs_fifo_producer_close(&f->rx_in);
	hs_fifo_producer_close(&f->tx_in);
	free(f->rx_block);
	free(f->tx_block);
	free(f);
}

void pair_remove_flow(struct pair *p, struct flow *f)
{
	struct flow **at = &p->side[f->side].flows;
	while (*at != f)
		at = &(*at)->next;
	*at = f->next;
	free_flow(f);
}

struct flow *pair_find_flow(struct pair *p, int side, uint32_t connection, int64_t id)
{
	for (struct flow *f = p->side[side].flows; f; f = f->next) {
		if (f->connection == connection && f->id == id)
			return f;
	}
	return NULL;
}

struct flow *pair_flow(struct pair *p, int side, unsigned int which)
{
	struct flow *f = p->side[side].flows;
	while (f && (!f->end || f->is_lost || which--))
		f = f->next;
	return f;
}

int pair_make_datagram_fifos(void *owner, uint32_t connection, struct hs_fifo_producer **rx,
			     struct hs_fifo_consumer **tx)
{
	struct pair *p = owner;
	uint32_t bytes = p->shape.datagram_fifo_bytes;
	CHECK(rx && tx && !pair_find_flow(p, p->turning, connection, PAIR_DATAGRAMS));
	struct flow *f = pair_new_flow(p, p->turning, connection, PAIR_DATAGRAMS);
	open_fifo(&f->rx_block, &f->rx_in, &f->rx_out, bytes);
	open_fifo(&f->tx_block, &f->tx_in, &f->tx_out, bytes);
	*rx = &f->rx_in;
	*tx = &f->tx_out;
	return 0;
}

struct link *pair_link_of(struct pair *p, int side, uint32_t connection)
{
	CHECK(connection < PAIR_NUMBERS);
	return &p->side[side].links[connection];
}

/* The connection's session, a new one if it has none. */
struct hs_connection_session *pair_session_of(struct pair *p, int side, uint32_t connection)
{
	struct link *link = pair_link_of(p, side, connection);
	struct hs_connection *c = hs_quic_connection(p->side[side].q, connection);
	if (link->session)
		return link->session;
	CHECK(c && !link->held);
	link->session = hs_connection_session_new(p->side[side].application, connection,
						  hs_quic_transport_verbs(), c,
						  p->shape.fifo_bytes, p->shape.fifo_bytes);
	CHECK(link->session);
	hs_connection_set_session(c, link->session);
	return link->session;
}

void *pair_find_session(void *owner, uint32_t connection)
{
	struct pair *p = owner;
	return pair_session_of(p, p->turning, connection);
}
