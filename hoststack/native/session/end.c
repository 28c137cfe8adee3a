/* SPDX-License-Identifier: Apache-2.0 */
#include "session/internal.h"

#include <stdlib.h>
#include <string.h>

#define BIT(wait) (1u << (wait))

static int64_t hint(uint32_t bits)
{
	return (int64_t)bits << HS_END_BYTES_BITS;
}

/* --- wake-ups --------------------------------------------------------------------------------- */

struct hs_side *hs_side_new(void)
{
	return calloc(1, sizeof(struct hs_side));
}

void hs_side_free(struct hs_side *side)
{
	free(side->wakes);
	free(side);
}

int hs_side_has(const struct hs_side *side)
{
	return side->first != side->end || side->has_lost;
}

uint32_t hs_side_take(struct hs_side *side, uint64_t *keys, uint32_t n)
{
	uint32_t waiting = side->end - side->first;
	if (!waiting && n && side->has_lost) {
		side->has_lost = 0;
		*keys = HS_WAKE_ALL;
		return 1;
	}
	if (n > waiting)
		n = waiting;
	if (!n)
		return 0;
	memcpy(keys, side->wakes + side->first, n * sizeof(*keys));
	side->first += n;
	if (side->first == side->end)
		side->first = side->end = 0;
	return n;
}

/* At most one for each wait of a task, so the number of tasks bounds them. */
static int wake(struct hs_side *side, uint64_t handle, enum hs_wait wait)
{
	if (side->end == side->room) {
		uint32_t room = side->room ? side->room * 2 : 256;
		uint64_t *grown = realloc(side->wakes, room * sizeof(*grown));
		if (!grown) {
			side->has_lost = 1;
			return HS_END_WAKES;
		}
		side->wakes = grown;
		side->room = room;
	}
	side->wakes[side->end++] = handle << 2 | wait;
	return HS_END_WAKES;
}

static uint32_t wake_end(struct hs_end *end, uint32_t bits)
{
	uint32_t hints = 0;
	bits &= end->waits;
	end->waits &= (uint8_t)~bits;
	for (int wait = HS_WAIT_READ; wait <= HS_WAIT_FINISHED; wait++) {
		if (bits & BIT(wait))
			hints |= (uint32_t)wake(end->connection->side, end->handle, wait);
	}
	return hints;
}

/* --- connections ------------------------------------------------------------------------------ */

void hs_end_connection_drop(struct hs_end_connection *c)
{
	c->verbs->connection_dropped(c);
}

void hs_end_append_untaken(struct hs_end *end)
{
	struct hs_end_connection *c = end->connection;
	if (end->is_untaken)
		return;
	end->is_untaken = 1;
	end->next_untaken = NULL;
	end->previous_untaken = c->last_untaken;
	if (c->last_untaken)
		c->last_untaken->next_untaken = end;
	else
		c->first_untaken = end;
	c->last_untaken = end;
	c->untaken_count++;
	if (c->waits_for_streams && c->side) {
		c->waits_for_streams = 0;
		wake(c->side, c->handle, HS_WAIT_STREAMS);
	}
}

void hs_end_remove_untaken(struct hs_end *end)
{
	struct hs_end_connection *c = end->connection;
	if (!end->is_untaken)
		return;
	end->is_untaken = 0;
	if (end->previous_untaken)
		end->previous_untaken->next_untaken = end->next_untaken;
	else
		c->first_untaken = end->next_untaken;
	if (end->next_untaken)
		end->next_untaken->previous_untaken = end->previous_untaken;
	else
		c->last_untaken = end->previous_untaken;
	c->untaken_count--;
}

int hs_end_accept(struct hs_end_connection *c, struct hs_accepted *out)
{
	struct hs_end *end = c->first_untaken;
	if (!end) {
		c->waits_for_streams = 1;
		return 0;
	}
	hs_end_remove_untaken(end);
	*out = (struct hs_accepted){ end, end->handle, end->id, 0, end->has_tx };
	out->hints = c->verbs->taken(end);
	return 1;
}

uint32_t hs_end_untaken(const struct hs_end_connection *c)
{
	return c->untaken_count;
}

uint32_t hs_end_unacknowledged(struct hs_end_connection *c, int waits)
{
	c->waits_for_finished = waits && c->unacknowledged;
	return c->unacknowledged;
}

uint32_t hs_end_cut_short(const struct hs_end_connection *c)
{
	return c->cut_short;
}

void hs_end_set_gone(struct hs_end_connection *c)
{
	c->is_gone = 1;
	for (struct hs_end *end = c->ends; end; end = end->next) {
		if (!end->rx_error)
			end->rx_error = HS_END_GONE;
		if (!end->tx_error)
			end->tx_error = HS_END_GONE;
	}
	c->unacknowledged = c->cut_short = 0;
}

void hs_end_wake_all(struct hs_end_connection *c)
{
	for (struct hs_end *end = c->ends; end; end = end->next)
		wake_end(end, ~0u);
}

void hs_end_connection_gone(struct hs_end_connection *c)
{
	c->verbs->connection_gone(c);
}

/* --- streams ---------------------------------------------------------------------------------- */

void hs_end_init(struct hs_end *end, struct hs_end_connection *c, uint64_t handle, int64_t id)
{
	end->connection = c;
	end->handle = handle;
	end->id = id;
	end->next = c->ends;
	if (end->next)
		end->next->previous = end;
	c->ends = end;
}

void hs_end_unlink(struct hs_end *end)
{
	struct hs_end_connection *c = end->connection;
	if (end->previous)
		end->previous->next = end->next;
	else
		c->ends = end->next;
	if (end->next)
		end->next->previous = end->previous;
	hs_end_remove_untaken(end);
	hs_allowance_leave(end);
	if (c->is_gone)
		return; /* nothing is counted any more, and another thread may look */
	c->unacknowledged -= end->is_unacknowledged;
	c->cut_short -= end->is_cut_short;
}

int hs_end_drop(struct hs_end *end)
{
	return end->connection->verbs->dropped(end);
}

/* Those that have this allowance. */
static void wake_writers(const struct hs_end_connection *c, const struct hs_allowance *a)
{
	for (struct hs_end *end = c->ends; end; end = end->next) {
		if (end->allowance == a)
			wake_end(end, BIT(HS_WAIT_WRITE));
	}
}

void hs_end_extend_allowance(struct hs_end_connection *c, struct hs_allowance *a,
			     uint64_t most_bytes)
{
	if (most_bytes <= a->most_bytes)
		return;
	a->most_bytes = most_bytes;
	wake_writers(c, a);
}

/* Keep the connection's counts. */
static uint32_t count(struct hs_end *end)
{
	struct hs_end_connection *c = end->connection;
	int is_open = end->has_tx && !end->tx_error && !end->is_finished;
	unsigned int unacknowledged = is_open && end->is_ended;
	unsigned int cut = is_open && !end->is_ended && end->is_cut;
	if (c->is_gone)
		return 0;
	c->unacknowledged += unacknowledged;
	c->unacknowledged -= end->is_unacknowledged;
	c->cut_short += cut;
	c->cut_short -= end->is_cut_short;
	end->is_unacknowledged = unacknowledged & 1;
	end->is_cut_short = cut & 1;
	if (c->unacknowledged || !c->waits_for_finished)
		return 0;
	c->waits_for_finished = 0;
	return (uint32_t)wake(c->side, c->handle, HS_WAIT_FINISHED);
}

void hs_end_report(struct hs_end *end, uint32_t events, uint64_t reset_code, uint64_t stop_code,
		   uint64_t sent_bytes)
{
	uint32_t waits = 0;
	if (events & HS_STREAM_RESET && end->has_rx && !end->rx_error) {
		end->rx_error = HS_END_RESET;
		end->reset_code = reset_code;
	}
	if (events & HS_STREAM_STOPPED && end->has_tx && !end->tx_error && !end->is_finished) {
		end->tx_error = HS_END_STOPPED;
		end->stop_code = stop_code;
	}
	if (events & HS_STREAM_FINISHED && !end->tx_error)
		end->is_finished = 1;
	if (events & HS_STREAM_FINISHED) {
		end->is_sent = 1;
		if (hs_allowance_settle(end, sent_bytes))
			wake_writers(end->connection, end->allowance);
	}
	if (events & (HS_STREAM_READABLE | HS_STREAM_RESET))
		waits |= BIT(HS_WAIT_READ);
	if (events & (HS_STREAM_WRITABLE | HS_STREAM_STOPPED))
		waits |= BIT(HS_WAIT_WRITE);
	if (events & (HS_STREAM_FINISHED | HS_STREAM_STOPPED))
		waits |= BIT(HS_WAIT_FINISHED);
	wake_end(end, waits);
	if (events & (HS_STREAM_FINISHED | HS_STREAM_STOPPED))
		count(end);
}

/* Whether all that the peer sent has been read: there is nothing to stop then. */
static int has_all(const struct hs_end *end)
{
	return !end->rx || (hs_fifo_eof(end->rx) && hs_fifo_available(end->rx, end->rx->head) == 0);
}

void hs_end_state(const struct hs_end *end, struct hs_end_state *out)
{
	*out = (struct hs_end_state){
		.handle = end->handle,
		.stream_id = end->id,
		.reset_code = end->reset_code,
		.stop_code = end->stop_code,
		.rx = !end->has_rx	       ? 1 :
		      end->is_receiving_closed ? HS_END_CLOSED :
						 end->rx_error,
		.tx = !end->has_tx	     ? 1 :
		      end->is_sending_closed ? HS_END_CLOSED :
					       end->tx_error,
		.is_ended = end->is_ended,
		.is_finished = end->is_finished,
		.is_cut = end->is_cut,
		.has_all = (uint8_t)(end->rx_error || has_all(end)),
	};
}

int hs_end_is_closed(const struct hs_end *end)
{
	return (!end->has_rx || end->is_receiving_closed) &&
	       (!end->has_tx || end->is_sending_closed);
}

/* --- receiving -------------------------------------------------------------------------------- */

/* The windows may move by what was read. */
static int64_t tell_consumed(struct hs_end *end, int64_t bytes)
{
	end->unannounced += (uint64_t)bytes;
	int is_urgent = end->unannounced >= end->rx->ring_bytes / 4;
	return hint(end->connection->verbs->consumed(end, is_urgent));
}

int64_t hs_end_look(struct hs_end *end, size_t n, const uint8_t **out)
{
	struct hs_fifo_span spans[2];
	if (end->is_receiving_closed || !end->rx)
		return HS_END_CLOSED;
	int64_t got = hs_fifo_spans(end->rx, end->rx->head, n, spans);
	if (got < 0)
		return got;
	*out = spans[0].base;
	return (int64_t)spans[0].bytes;
}

int64_t hs_end_skip(struct hs_end *end, size_t n)
{
	if (end->is_receiving_closed || !end->rx)
		return HS_END_CLOSED;
	int error = hs_fifo_drop_to(end->rx, end->rx->head + n);
	return error ? error : tell_consumed(end, (int64_t)n);
}

int64_t hs_end_read(struct hs_end *end, uint8_t *out, size_t n, int wants_more)
{
	for (int is_armed = 0;; is_armed = 1) {
		if (end->is_receiving_closed || !end->rx)
			return HS_END_CLOSED;
		/* In this order: bytes that were stored before the end was set are seen. */
		int at_end = hs_fifo_eof(end->rx);
		if (wants_more && hs_fifo_available(end->rx, end->rx->head) > (int64_t)n)
			return HS_END_MUCH;
		int64_t got = hs_fifo_read(end->rx, out, n);
		if (got > 0)
			return got | tell_consumed(end, got);
		if (got < 0)
			return got;
		if (at_end) {
			end->waits &= (uint8_t)~BIT(HS_WAIT_READ);
			return 0;
		}
		if (end->rx_error)
			return end->rx_error;
		if (is_armed || !end->arms)
			break;
		hs_fifo_arm_read(end->rx);
	}
	end->waits |= BIT(HS_WAIT_READ);
	return HS_END_WAIT;
}

int64_t hs_end_readable(const struct hs_end *end)
{
	return end->rx ? hs_fifo_available(end->rx, end->rx->head) : 0;
}

int hs_end_has_eof(const struct hs_end *end)
{
	return end->rx && hs_fifo_eof(end->rx);
}

void hs_end_watch(struct hs_end *end, int reads, int writes)
{
	end->waits |= BIT(HS_WAIT_READ) | BIT(HS_WAIT_WRITE);
	if (reads && end->rx)
		hs_fifo_arm_read(end->rx);
	if (writes && end->tx)
		hs_fifo_arm_write(end->tx);
}

void hs_end_sizes(const struct hs_end *end, uint64_t rx_tx[2])
{
	rx_tx[0] = end->rx ? end->rx->size_bytes : 0;
	rx_tx[1] = end->tx ? end->tx->size_bytes : 0;
}

int64_t hs_end_stop(struct hs_end *end, uint64_t code)
{
	if (!end->has_rx || end->is_receiving_closed || end->rx_error || has_all(end))
		return 0;
	end->rx_error = HS_END_STOPPED;
	end->reset_code = code;
	int64_t hints = hint(wake_end(end, BIT(HS_WAIT_READ)));
	return hints | hint(end->connection->verbs->stop(end, code));
}

int64_t hs_end_close_receiving(struct hs_end *end, uint64_t code)
{
	int64_t hints = hs_end_stop(end, code);
	end->is_receiving_closed = 1;
	hints |= hint(wake_end(end, BIT(HS_WAIT_READ)));
	end->connection->verbs->closed(end);
	return hints;
}

/* --- sending ---------------------------------------------------------------------------------- */

static int64_t tell_sent(struct hs_end *end)
{
	return hint(end->connection->verbs->sent(end, 0));
}

static int64_t why_not_write(const struct hs_end *end)
{
	if (end->is_sending_closed || end->is_ended)
		return HS_END_CLOSED;
	if (end->tx_error)
		return end->tx_error;
	return end->tx ? 0 : HS_END_CLOSED;
}

int64_t hs_end_write(struct hs_end *end, const uint8_t *data, size_t n)
{
	int64_t done = 0, hints = 0, error = why_not_write(end);
	if (error)
		return error;
	if (end->allowance && n > hs_allowance_left(end->allowance)) {
		n = hs_allowance_left(end->allowance);
		end->waits |= BIT(HS_WAIT_WRITE);
	}
	for (int is_armed = 0; n; is_armed = 1) {
		int64_t taken = hs_fifo_write(end->tx, data, n);
		if (taken < 0)
			return taken;
		if (taken)
			hints |= tell_sent(end);
		hs_allowance_use(end, (uint64_t)taken);
		done += taken;
		data += taken;
		n -= (size_t)taken;
		if (!n)
			break;
		end->waits |= BIT(HS_WAIT_WRITE);
		if (is_armed || !end->arms)
			break;
		hs_fifo_arm_write(end->tx);
	}
	return done | hints;
}

int64_t hs_end_writable(struct hs_end *end)
{
	int64_t error = why_not_write(end);
	if (error)
		return error;
	int64_t room = hs_fifo_writable(end->tx);
	if (room == 0 && end->arms) {
		hs_fifo_arm_write(end->tx);
		room = hs_fifo_writable(end->tx);
	}
	if (room > 0 && end->allowance && (uint64_t)room > hs_allowance_left(end->allowance))
		room = (int64_t)hs_allowance_left(end->allowance);
	if (room == 0)
		end->waits |= BIT(HS_WAIT_WRITE);
	return room;
}

int64_t hs_end_finish(struct hs_end *end)
{
	if (end->is_sending_closed)
		return HS_END_CLOSED;
	if (end->is_ended)
		return 0;
	if (end->tx_error || !end->tx)
		return end->tx_error ? end->tx_error : HS_END_CLOSED;
	if (end->is_cut)
		return HS_END_CUT;
	end->is_ended = 1;
	hs_fifo_set_eof(end->tx);
	return hint(end->connection->verbs->sent(end, 1) | count(end));
}

int64_t hs_end_prioritize(struct hs_end *end, uint32_t urgency, int is_incremental)
{
	uint32_t rank = (urgency << 1 | (is_incremental != 0)) & (HS_FIFO_RANKS - 1);
	if (end->is_sending_closed || end->tx_error || !end->tx)
		return end->tx_error ? end->tx_error : HS_END_CLOSED;
	/* Where it stands now may be far behind its new place. */
	return hs_fifo_set_rank(end->tx, rank) ? tell_sent(end) : 0;
}

void hs_end_set_cut(struct hs_end *end, int is_cut)
{
	end->is_cut = is_cut != 0;
	count(end);
}

int64_t hs_end_wait_finished(struct hs_end *end)
{
	if (end->is_finished)
		return 1;
	if (end->tx_error)
		return end->tx_error;
	end->waits |= BIT(HS_WAIT_FINISHED);
	return 0;
}

int64_t hs_end_reset(struct hs_end *end, uint64_t code)
{
	int64_t hints = 0;
	if (!end->has_tx)
		return 0;
	if (!end->is_finished)
		hints = hint(end->connection->verbs->reset(end, code));
	if (!end->tx_error) {
		end->tx_error = HS_END_RESET;
		end->stop_code = code;
	}
	hints |= hint(wake_end(end, BIT(HS_WAIT_WRITE) | BIT(HS_WAIT_FINISHED)));
	return hints | hint(count(end));
}

static int64_t close_sending(struct hs_end *end, int aborts, uint64_t code)
{
	int64_t hints = 0;
	if (!end->has_tx || end->is_sending_closed)
		return 0;
	if (!end->tx_error && !end->is_ended && (aborts || end->is_cut))
		hints = hs_end_reset(end, code);
	else if (!end->tx_error)
		hints = hs_end_finish(end);
	end->is_sending_closed = 1;
	return (hints > 0 ? hints : 0) | hint(wake_end(end, BIT(HS_WAIT_WRITE)));
}

int64_t hs_end_close(struct hs_end *end, int aborts, uint64_t code)
{
	int64_t hints = close_sending(end, aborts, code);
	if (end->has_rx && !end->is_receiving_closed)
		hints |= hs_end_close_receiving(end, aborts ? code : 0);
	end->connection->verbs->closed(end);
	return hints;
}
