/* SPDX-License-Identifier: Apache-2.0
 *
 * The four rings, in bursts. */
#include "internal.h"

#include <errno.h>
#include <sys/socket.h>

enum {
	CHUNK = 64,
	/* How often to retry a kick that sent nothing before the caller has to wait. */
	KICK_RETRIES = 4,
};

/* Accept a received frame only if it belongs to this queue and this worker does not hold it
 * already. Anything else is another worker's fault, and the frame is skipped, so that no frame
 * is used twice here. */
static int take_shared(struct pyxdp_socket *socket, uint64_t addr)
{
	struct pyxdp_umem *umem = socket->umem;
	uint8_t *owner = &umem->owner[addr >> umem->frame_shift];

	if (!pyxdp_is_among(umem, addr, pyxdp_first_rx(umem, socket->queue->id),
			    umem->shape.rx_frames) ||
	    *owner != PYXDP_FILL)
		return 0;
	*owner = PYXDP_RX;
	pyxdp_hold(umem, addr, 1);
	return 1;
}

int pyxdp_rx_burst(struct pyxdp_socket *socket, struct pyxdp_desc *out, int budget)
{
	struct pyxdp_umem *umem = socket->umem;
	struct pyxdp_queue *queue = socket->queue;
	uint32_t start, n;
	int taken = 0;
	int error;

	if (budget <= 0)
		return 0;
	n = xsk_ring_cons__peek(&socket->rx, (uint32_t)budget, &start);
	if (n == 0) {
		/* Replace the frames that were sent on instead of released. */
		if (pyxdp_fill_lacking(queue, queue->fill_target) > queue->fill_target / 2)
			pyxdp_fill_up(umem, queue);
		if (umem->ledger)
			pyxdp_fill_release(umem, queue, NULL, 0, 0);
		/* Where busy polling is on, this also makes the kernel poll the driver. */
		if (socket->busy_polls || xsk_ring_prod__needs_wakeup(&queue->fill))
			recvfrom(socket->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
		return 0;
	}
	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *desc = xsk_ring_cons__rx_desc(&socket->rx, start + i);
		uint64_t addr = __atomic_load_n(&desc->addr, __ATOMIC_RELAXED);
		uint32_t len = __atomic_load_n(&desc->len, __ATOMIC_RELAXED);

		if (addr >= umem->bytes || len > umem->frame_bytes - (addr & umem->frame_mask)) {
			socket->rx_bad_descs++;
			continue;
		}
		if (umem->ledger && !take_shared(socket, addr)) {
			socket->rx_bad_descs++;
			continue;
		}
		out[taken++] = (struct pyxdp_desc){.addr = addr, .len = len};
	}
	xsk_ring_cons__release(&socket->rx, n);
	queue->filled -= n;
	socket->rx_frames += (uint32_t)taken;
	if (umem->ledger)
		return taken;
	error = pyxdp_frames_move(umem, out, sizeof(*out), (uint32_t)taken, PYXDP_FILL, PYXDP_RX);
	return error ? error : taken;
}

/* Whether all descriptors lie inside the UMEM, each within one frame. */
static int are_inside(const struct pyxdp_umem *umem, const struct pyxdp_desc *descs, int n)
{
	for (int i = 0; i < n; i++) {
		if (descs[i].addr >= umem->bytes ||
		    descs[i].len > umem->frame_bytes - (descs[i].addr & umem->frame_mask))
			return 0;
	}
	return 1;
}

/* In a UMEM of several processes, received frames return to their queue, and sending frames
 * belong to one worker permanently. */
static int are_among(struct pyxdp_umem *umem, const struct pyxdp_desc *descs, int n, uint32_t first,
		     uint32_t count, uint32_t expected)
{
	for (int i = 0; i < n; i++) {
		if (!pyxdp_is_among(umem, descs[i].addr, first, count))
			return pyxdp_frames_violated(umem, descs[i].addr, PYXDP_FILL, expected);
	}
	return 0;
}

static int are_of_queue(struct pyxdp_umem *umem, const struct pyxdp_queue *queue,
			const struct pyxdp_desc *descs, int n)
{
	return are_among(umem, descs, n, pyxdp_first_rx(umem, queue->id), umem->shape.rx_frames,
			 PYXDP_RX);
}

static int are_own(struct pyxdp_umem *umem, const struct pyxdp_desc *descs, int n)
{
	return are_among(umem, descs, n, pyxdp_first_tx(umem, umem->worker), umem->shape.tx_frames,
			 PYXDP_RESERVED);
}

/* Whether a socket may send: only one process may read its COMPLETION ring. */
static int may_send(const struct pyxdp_socket *socket)
{
	return !socket->umem->is_shared ||
	       (socket->umem->ledger && socket->queue->id == socket->umem->worker);
}

static void put_descs(struct pyxdp_umem *umem, const struct pyxdp_desc *descs, uint32_t n)
{
	uint64_t frames[CHUNK];

	while (n > 0) {
		uint32_t part = n < CHUNK ? n : CHUNK;

		for (uint32_t i = 0; i < part; i++)
			frames[i] = pyxdp_frame_of(umem, descs[i].addr);
		pyxdp_frames_put(umem, frames, part);
		descs += part;
		n -= part;
	}
}

static int release_shared(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n)
{
	struct pyxdp_umem *umem = socket->umem;
	int error = umem->ledger ? are_of_queue(umem, socket->queue, descs, n) : -EINVAL;

	/* Released, but not in the ring yet, counts as reserved. */
	if (!error)
		error = pyxdp_frames_move(umem, descs, sizeof(*descs), (uint32_t)n, PYXDP_RX,
					  PYXDP_RESERVED);
	if (error)
		return error;
	pyxdp_fill_release(umem, socket->queue, descs, sizeof(*descs), (uint32_t)n);
	return n;
}

static void fill_descs(struct pyxdp_umem *umem, struct pyxdp_queue *queue,
		       const struct pyxdp_desc *descs, uint32_t n)
{
	uint64_t frames[CHUNK];

	while (n > 0) {
		uint32_t part = n < CHUNK ? n : CHUNK;

		for (uint32_t i = 0; i < part; i++)
			frames[i] = pyxdp_frame_of(umem, descs[i].addr);
		pyxdp_fill(umem, queue, frames, part);
		descs += part;
		n -= part;
	}
}

int pyxdp_rx_release(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n)
{
	struct pyxdp_umem *umem = socket->umem;
	struct pyxdp_queue *queue = socket->queue;
	uint32_t back;
	int error;

	if (n < 0 || !are_inside(umem, descs, n))
		return -EINVAL;
	if (umem->is_shared)
		return release_shared(socket, descs, n);
	/* Mark them before the kernel can return them: another thread may receive one at once. */
	error = pyxdp_frames_move(umem, descs, sizeof(*descs), (uint32_t)n, PYXDP_RX, PYXDP_FILL);
	if (error)
		return error;
	pyxdp_fill_lock(umem, queue);
	back = pyxdp_fill_lacking(queue, (uint32_t)n);
	fill_descs(umem, queue, descs, back);
	pyxdp_fill_unlock(queue);
	put_descs(umem, descs + back, (uint32_t)n - back);
	if (pyxdp_fill_lacking(queue, 1))
		pyxdp_fill_up(umem, queue);
	return n;
}

/* Keep those completed frames that this worker has sent: another process that writes into the
 * ring can't make it reuse a frame twice. */
static uint32_t keep_own(struct pyxdp_umem *umem, uint64_t *frames, uint32_t n)
{
	uint32_t first = pyxdp_first_tx(umem, umem->worker), kept = 0;

	for (uint32_t i = 0; i < n; i++) {
		uint8_t *owner = &umem->owner[frames[i] >> umem->frame_shift];

		if (!pyxdp_is_among(umem, frames[i], first, umem->shape.tx_frames) ||
		    !(*owner & (PYXDP_TX | PYXDP_INHERITED)))
			continue;
		*owner = PYXDP_FREE;
		pyxdp_hold(umem, frames[i], 0);
		frames[kept++] = frames[i];
	}
	return kept;
}

int pyxdp_tx_reap(struct pyxdp_socket *socket)
{
	struct pyxdp_queue *queue = socket->queue;
	struct pyxdp_umem *umem = socket->umem;
	uint32_t left = umem->ring_size;
	uint64_t frames[CHUNK];
	int reaped = 0;
	int error = 0;

	if (!may_send(socket))
		return -EINVAL;
	pthread_mutex_lock(&queue->completion_lock);
	/* At most one ring: its own index says how much it holds. */
	while (!error && left > 0) {
		uint32_t start, n, good = 0;

		n = xsk_ring_cons__peek(&queue->completion, CHUNK, &start);
		if (n == 0)
			break;
		left -= n < left ? n : left;
		for (uint32_t i = 0; i < n; i++) {
			uint64_t addr = __atomic_load_n(
				xsk_ring_cons__comp_addr(&queue->completion, start + i),
				__ATOMIC_RELAXED);

			if (addr < umem->bytes)
				frames[good++] = pyxdp_frame_of(umem, addr);
		}
		xsk_ring_cons__release(&queue->completion, n);
		if (umem->is_shared)
			good = keep_own(umem, frames, good);
		else
			error = pyxdp_frames_move(umem, frames, sizeof(frames[0]), good, PYXDP_TX,
						  PYXDP_FREE);
		if (!error)
			pyxdp_frames_put(umem, frames, good);
		reaped += (int)good;
	}
	pthread_mutex_unlock(&queue->completion_lock);
	return error ? error : reaped;
}

int pyxdp_tx_reserve(struct pyxdp_socket *socket, struct pyxdp_desc *out, int n)
{
	uint64_t frames[CHUNK];
	int reserved = 0;
	int error = pyxdp_tx_reap(socket);

	if (error < 0)
		return error;
	if (socket->umem->inherited)
		pyxdp_forget_inherited(socket->umem);
	while (reserved < n) {
		uint32_t want = n - reserved < CHUNK ? (uint32_t)(n - reserved) : CHUNK;
		uint32_t got = pyxdp_frames_take(socket->umem, frames, want, PYXDP_RESERVED);

		for (uint32_t i = 0; i < got; i++)
			out[reserved++] = (struct pyxdp_desc){
				.addr = frames[i], .len = socket->umem->frame_bytes};
		if (got < want)
			break;
	}
	return reserved;
}

int pyxdp_tx_release(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n)
{
	struct pyxdp_umem *umem = socket->umem;
	int error;

	if (n < 0 || !are_inside(umem, descs, n))
		return -EINVAL;
	if (umem->is_shared) {
		error = umem->ledger ? are_own(umem, descs, n) : -EINVAL;
		if (error)
			return error;
	}
	error = pyxdp_frames_move(umem, descs, sizeof(*descs), (uint32_t)n, PYXDP_RESERVED,
				  PYXDP_FREE);
	if (error)
		return error;
	put_descs(umem, descs, (uint32_t)n);
	return n;
}

int pyxdp_tx_submit(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n)
{
	struct pyxdp_umem *umem = socket->umem;
	uint32_t start, room;
	int error;

	if (n <= 0)
		return n < 0 ? -EINVAL : 0;
	/* The kernel skips an invalid descriptor, and its frame would be lost. */
	if (!are_inside(umem, descs, n) || !may_send(socket))
		return -EINVAL;
	if (umem->is_shared) {
		error = umem->ledger ? are_own(umem, descs, n) : -EINVAL;
		if (error)
			return error;
	}
	for (int i = 0; i < n; i++) {
		if (descs[i].len < PYXDP_MIN_PACKET_BYTES)
			return -EINVAL;
	}
	room = xsk_prod_nb_free(&socket->tx, (uint32_t)n);
	if (room < (uint32_t)n)
		n = (int)room;
	error = pyxdp_frames_move(umem, descs, sizeof(*descs), (uint32_t)n,
				  PYXDP_RX | PYXDP_RESERVED, PYXDP_TX);
	if (error)
		return error;
	if (n == 0 || xsk_ring_prod__reserve(&socket->tx, (uint32_t)n, &start) != (uint32_t)n)
		return 0;
	for (int i = 0; i < n; i++)
		*xsk_ring_prod__tx_desc(&socket->tx, start + (uint32_t)i) =
			(struct xdp_desc){.addr = descs[i].addr, .len = descs[i].len};
	if (umem->ledger) {
		/* If this worker is killed before the ring has them, its successor unmarks the
		 * frames recorded here. */
		__atomic_store_n(&umem->ledger->submitting_to, start + (uint32_t)n,
				 __ATOMIC_RELEASE);
		atomic_signal_fence(memory_order_seq_cst);
		for (int i = 0; i < n; i++)
			pyxdp_hold(umem, descs[i].addr, 1);
	}
	xsk_ring_prod__submit(&socket->tx, (uint32_t)n);
	socket->tx_frames += (uint32_t)n;
	return n;
}

static uint32_t tx_pending(const struct pyxdp_socket *socket)
{
	uint32_t pending =
		socket->tx.cached_prod - __atomic_load_n(socket->tx.consumer, __ATOMIC_ACQUIRE);

	return pending < socket->tx.size ? pending : socket->tx.size;
}

int pyxdp_kick(struct pyxdp_socket *socket)
{
	uint32_t pending = tx_pending(socket);
	int retries = KICK_RETRIES;

	while (pending > 0) {
		uint32_t before = pending;

		if ((socket->umem->bind_flags & XDP_USE_NEED_WAKEUP) &&
		    !xsk_ring_prod__needs_wakeup(&socket->tx))
			break;
		socket->kicks++;
		if (sendto(socket->fd, NULL, 0, MSG_DONTWAIT, NULL, 0) < 0) {
			/* EAGAIN: more than one kick can send, or the COMPLETION ring or the
			 * socket's buffer is full; ENOBUFS and EBUSY: the interface's queue is
			 * full. */
			if (errno != EAGAIN && errno != EBUSY && errno != ENOBUFS && errno != EINTR)
				return -errno;
			socket->kicks_again++;
		}
		pending = tx_pending(socket);
		if (pending == before && --retries == 0)
			break;
	}
	return (int)pending;
}

const struct pyxdp_verbs *pyxdp_get_verbs(void)
{
	static const struct pyxdp_verbs verbs = {
		.rx_burst = pyxdp_rx_burst,
		.rx_release = pyxdp_rx_release,
		.tx_reserve = pyxdp_tx_reserve,
		.tx_submit = pyxdp_tx_submit,
		.kick = pyxdp_kick,
	};

	return &verbs;
}
