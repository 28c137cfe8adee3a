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

struct shared *pair_new_shared(struct side *s, uint32_t connection, int has_rx, int has_tx)
{
	struct shared *made = take_memory(sizeof(*made));
	uint32_t bytes = s->pair->shape.fifo_bytes;
	if (has_rx)
		open_fifo(&made->rx_block, &made->rx_in, &made->rx_out, bytes);
	if (has_tx)
		open_fifo(&made->tx_block, &made->tx_in, &made->tx_out, bytes);
	made->connection = connection;
	made->next = s->shared;
	s->shared = made;
	return made;
}

struct shared *pair_find_shared(struct side *s, uint64_t handle)
{
	struct shared *shared = s->shared;
	while (shared && shared->handle != handle)
		shared = shared->next;
	CHECK(shared);
	return shared;
}

void pair_free_unused(struct side *s)
{
	for (struct shared **at = &s->shared; *at;) {
		struct shared *shared = *at;
		if (shared->end || !shared->is_over) {
			at = &shared->next;
			continue;
		}
		*at = shared->next;
		hs_fifo_producer_close(&shared->rx_in);
		hs_fifo_producer_close(&shared->tx_in);
		free(shared->rx_block);
		free(shared->tx_block);
		free(shared);
	}
}

/* For the plane: of a stream that the peer opened. */
int pair_make_stream_fifos(void *owner, uint64_t key, uint64_t handle,
			   struct hs_fifo_producer **rx, struct hs_fifo_consumer **tx)
{
	struct side *s = owner;
	struct shared *made = pair_new_shared(s, (uint32_t)key, 1, tx != NULL);
	CHECK(s->is_remote);
	made->handle = handle;
	*rx = &made->rx_in;
	if (tx)
		*tx = &made->tx_out;
	return 0;
}

void pair_on_command(void *owner, uint64_t handle, uint32_t command, uint64_t code)
{
	struct shared *shared = pair_find_shared(owner, handle);
	(void)code;
	CHECK(command == HS_SESSION_FREED && !shared->is_over);
	shared->is_over = 1;
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
	if (f->shared)
		f->shared->end = NULL;
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
