/* SPDX-License-Identifier: Apache-2.0
 *
 * The memory of streams' FIFOs. Within this process it is the plane's pool. Of an application in
 * another process it is blocks of shared segments, which the owner makes; what a stream has given
 * back, the next stream of its connection takes.
 */
#include "session/internal.h"

#include <stdlib.h>
#include <string.h>

enum {
	MOST_SPARES = 256, /* of a connection, for each direction */
	/* What has carried more is given to the owner, who gives its pages to the kernel. */
	WARM_BYTES = 32 << 10,
};

static void give_to_owner(struct hs_application *a, const struct hs_block *block)
{
	struct hs_plane *plane = a->plane;
	if (plane->command)
		plane->command(plane->owner, a->key, HS_SESSION_FREE_BLOCK, block->place);
}

uint32_t hs_connection_session_drop_spares(struct hs_connection_session *c)
{
	uint32_t dropped = c->spare_count[0] + c->spare_count[1];
	for (int d = 0; d < 2; d++) {
		for (uint32_t i = 0; i < c->spare_count[d]; i++)
			give_to_owner(c->application, &c->spares[d][i]);
		free(c->spares[d]);
		c->spares[d] = NULL;
		c->spare_count[d] = c->spare_room[d] = 0;
	}
	return dropped;
}

static int keep(struct hs_connection_session *c, int d, const struct hs_block *block)
{
	if (c->is_closed || c->spare_count[d] == MOST_SPARES)
		return 0;
	if (c->spare_count[d] == c->spare_room[d]) {
		uint32_t room = c->spare_room[d] ? c->spare_room[d] * 2 : 16;
		struct hs_block *grown = realloc(c->spares[d], room * sizeof(*grown));
		if (!grown)
			return 0;
		c->spares[d] = grown;
		c->spare_room[d] = room;
	}
	c->spares[d][c->spare_count[d]++] = *block;
	return 1;
}

static void give_shared(struct hs_connection_session *c, int d, struct hs_block *block,
			uint64_t used_bytes)
{
	if (!block->memory)
		return;
	if (used_bytes > WARM_BYTES || !keep(c, d, block))
		give_to_owner(c->application, block);
	block->memory = NULL;
}

static int make(struct hs_connection_session *c, int is_peers, struct hs_made_block made[2])
{
	struct hs_plane *plane = c->application->plane;
	if (!plane->make_blocks)
		return -1;
	struct hs_made_block asked[2] = { made[0], made[1] };
	if (!plane->make_blocks(plane->owner, c->key, is_peers, made))
		return 0;
	/* What streams have given back may be enough. */
	uint32_t dropped = 0;
	for (struct hs_connection_session *each = c->application->connections; each;
	     each = each->next)
		dropped += hs_connection_session_drop_spares(each);
	memcpy(made, asked, sizeof(asked));
	return !dropped || plane->make_blocks(plane->owner, c->key, is_peers, made);
}

static int take_shared(struct hs_stream_session *s, int has_rx, int has_tx)
{
	struct hs_connection_session *c = s->connection;
	struct hs_block *blocks[2] = { &s->rx_block, &s->tx_block };
	const int wants[2] = { has_rx, has_tx };
	const uint64_t bytes[2] = { c->rx_bytes, c->tx_bytes };
	struct hs_made_block made[2] = { { 0, 0, 0 }, { 0, 0, 0 } };
	for (int d = 0; d < 2; d++) {
		if (wants[d] && c->spare_count[d])
			*blocks[d] = c->spares[d][--c->spare_count[d]];
		else if (wants[d])
			made[d].bytes = bytes[d];
	}
	if ((made[0].bytes || made[1].bytes) && make(c, s->is_peers, made)) {
		for (int d = 0; d < 2; d++)
			give_shared(c, d, blocks[d], 0);
		return -1;
	}
	for (int d = 0; d < 2; d++) {
		if (made[d].bytes)
			*blocks[d] = (struct hs_block){ (void *)(uintptr_t)made[d].address,
							made[d].bytes, made[d].place };
		if (wants[d])
			memset(blocks[d]->memory, 0, HS_FIFO_HEADER_BYTES);
	}
	return 0;
}

static int take_own(struct hs_stream_session *s, int has_rx, int has_tx)
{
	struct hs_connection_session *c = s->connection;
	struct hs_pool *pool = c->application->plane->pool;
	if (has_rx)
		s->rx_block.memory = hs_pool_take(pool, c->rx_bytes, &s->rx_block.bytes);
	if (has_tx)
		s->tx_block.memory = hs_pool_take(pool, c->tx_bytes, &s->tx_block.bytes);
	if ((!has_rx || s->rx_block.memory) && (!has_tx || s->tx_block.memory))
		return 0;
	if (s->rx_block.memory)
		hs_pool_give(pool, s->rx_block.memory, c->rx_bytes, 0);
	if (s->tx_block.memory)
		hs_pool_give(pool, s->tx_block.memory, c->tx_bytes, 0);
	s->rx_block.memory = s->tx_block.memory = NULL;
	return -1;
}

int hs_session_take_fifos(struct hs_stream_session *s, int has_rx, int has_tx)
{
	int is_own = s->connection->application->side != NULL;
	if (is_own ? take_own(s, has_rx, has_tx) : take_shared(s, has_rx, has_tx))
		return -1;
	const struct hs_block *rx = &s->rx_block, *tx = &s->tx_block;
	if (has_rx && !hs_fifo_producer_open(&s->rx_side, rx->memory, rx->bytes))
		s->rx = &s->rx_side;
	if (has_tx && !hs_fifo_consumer_open(&s->tx_side, tx->memory, tx->bytes))
		s->tx = &s->tx_side;
	if (is_own && has_rx) {
		hs_fifo_consumer_open(&s->application_rx, rx->memory, rx->bytes);
		s->end.rx = &s->application_rx;
	}
	if (is_own && has_tx) {
		hs_fifo_producer_open(&s->application_tx, tx->memory, tx->bytes);
		s->end.tx = &s->application_tx;
	}
	s->end.has_rx = has_rx != 0;
	s->end.has_tx = has_tx != 0;
	return 0;
}

void hs_session_give_fifos(struct hs_stream_session *s)
{
	struct hs_connection_session *c = s->connection;
	struct hs_pool *pool = c->application->plane->pool;
	if (s->is_outside)
		return;
	if (s->rx)
		hs_fifo_producer_close(s->rx);
	if (!c->application->side) {
		give_shared(c, 0, &s->rx_block, s->rx_side.tail);
		give_shared(c, 1, &s->tx_block, s->tx_side.tail_seen);
	}
	if (s->rx_block.memory)
		hs_pool_give(pool, s->rx_block.memory, s->rx_side.size_bytes, s->rx_side.tail);
	if (s->tx_block.memory)
		hs_pool_give(pool, s->tx_block.memory, s->tx_side.size_bytes,
			     s->application_tx.tail);
	s->rx_block.memory = s->tx_block.memory = NULL;
	s->rx = NULL;
	s->tx = NULL;
	s->end.rx = NULL;
	s->end.tx = NULL;
}
