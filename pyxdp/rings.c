/* SPDX-License-Identifier: Apache-2.0
 *
 * The four rings, in bursts. */
#include "internal.h"

#include <errno.h>
#include <sys/socket.h>

enum {
	CHUNK = 64,
	/* How often a kick that gets nothing sent is tried again before the caller has to wait. */
	KICK_RETRIES = 4,
};

void pyxdp_fill_lock(struct pyxdp_umem *umem, struct pyxdp_queue *queue)
{
	struct xsk_ring_prod *ring = &queue->fill;

	if (pthread_mutex_lock(&queue->filling->lock) == EOWNERDEAD) {
		pyxdp_shared_repair(umem, queue);
		pthread_mutex_consistent(&queue->filling->lock);
	}
	if (umem->control) {
		/* Other processes have pushed since: what is remembered here is old. */
		ring->cached_prod = *ring->producer;
		ring->cached_cons = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE) + ring->size;
	}
}

void pyxdp_fill_unlock(struct pyxdp_queue *queue)
{
	pthread_mutex_unlock(&queue->filling->lock);
}

/* There is room for `n`: the ring has more slots than the UMEM has frames. */
void pyxdp_fill(struct pyxdp_umem *umem, struct pyxdp_queue *queue, const void *addrs,
		size_t stride, uint32_t n)
{
	const uint8_t *next = addrs;
	uint32_t start;

	if (n == 0 || xsk_ring_prod__reserve(&queue->fill, n, &start) != n)
		return;
	for (uint32_t i = 0; i < n; i++, next += stride)
		*xsk_ring_prod__fill_addr(&queue->fill, start + i) =
			pyxdp_frame_of(umem, *(const uint64_t *)(const void *)next);
	if (umem->control) {
		/* Killed before this line, all are still held by this worker; after it, they are in
		 * the ring as soon as somebody takes the lock. */
		__atomic_store_n(&queue->filling->to, start + n, __ATOMIC_RELEASE);
		atomic_signal_fence(memory_order_seq_cst);
		for (uint32_t i = 0; i < n; i++)
			pyxdp_hold(umem, *xsk_ring_prod__fill_addr(&queue->fill, start + i), 0);
	}
	xsk_ring_prod__submit(&queue->fill, n);
	queue->filled += n;
}

/* How many more frames the FILL ring should get, at most `n`. */
static uint32_t lacking(const struct pyxdp_queue *queue, uint32_t n)
{
	uint32_t filled = queue->filled;
	uint32_t lacks = filled < queue->fill_target ? queue->fill_target - filled : 0;

	return lacks < n ? lacks : n;
}

void pyxdp_fill_up(struct pyxdp_umem *umem, struct pyxdp_queue *queue)
{
	uint64_t frames[CHUNK];
	uint32_t n;

	pyxdp_fill_lock(umem, queue);
	while ((n = lacking(queue, CHUNK)) > 0) {
		n = pyxdp_frames_take(umem, frames, n, PYXDP_FILL);
		if (n == 0)
			break;
		pyxdp_fill(umem, queue, frames, sizeof(frames[0]), n);
	}
	pyxdp_fill_unlock(queue);
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
		/* Frames that were sent on instead of released are missing here. */
		if (lacking(queue, queue->fill_target) > queue->fill_target / 2)
			pyxdp_fill_up(umem, queue);
		/* This is also what has the kernel poll the driver, where that was asked for. */
		if (socket->busy_polls || xsk_ring_prod__needs_wakeup(&queue->fill))
			recvfrom(socket->fd, NULL, 0, MSG_DONTWAIT, NULL, NULL);
		return 0;
	}
	for (uint32_t i = 0; i < n; i++) {
		const struct xdp_desc *desc = xsk_ring_cons__rx_desc(&socket->rx, start + i);
		uint64_t addr = desc->addr;
		uint32_t len = desc->len;

		if (addr >= umem->bytes || len > umem->frame_bytes - (addr & umem->frame_mask)) {
			socket->rx_bad_descs++;
			continue;
		}
		out[taken++] = (struct pyxdp_desc){.addr = addr, .len = len};
		if (umem->control)
			pyxdp_hold(umem, addr, (uint8_t)(umem->worker + 1));
	}
	xsk_ring_cons__release(&socket->rx, n);
	queue->filled -= n;
	socket->rx_frames += (uint32_t)taken;
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

/* In a UMEM of several processes a frame that is not this worker's would be another's loss, so it
 * is looked at always: received frames on their way back to the queue that they came from. */
static int are_held(struct pyxdp_umem *umem, const struct pyxdp_queue *queue,
		    const struct pyxdp_desc *descs, int n)
{
	uint32_t rx_frames = umem->control->shape.rx_frames;

	for (int i = 0; i < n; i++) {
		uint8_t holder = __atomic_load_n(pyxdp_holder_of(umem, descs[i].addr),
						 __ATOMIC_RELAXED);

		if ((descs[i].addr >> umem->frame_shift) / rx_frames != queue->id ||
		    holder != (uint8_t)(umem->worker + 1))
			return pyxdp_frames_violated(umem, descs[i].addr, PYXDP_FILL, PYXDP_RX);
	}
	return 0;
}

/* The same of frames to send, which belong to a worker for good. */
static int are_own(struct pyxdp_umem *umem, const struct pyxdp_desc *descs, int n)
{
	const struct pyxdp_shape *shape = &umem->control->shape;
	uint64_t first = (uint64_t)shape->queues * shape->rx_frames +
			 (uint64_t)umem->worker * shape->tx_frames;

	for (int i = 0; i < n; i++) {
		uint64_t frame = descs[i].addr >> umem->frame_shift;

		if (frame < first || frame - first >= shape->tx_frames ||
		    __atomic_load_n(&umem->holder[frame], __ATOMIC_RELAXED))
			return pyxdp_frames_violated(umem, descs[i].addr, PYXDP_TX,
						     PYXDP_RESERVED);
	}
	return 0;
}

/* Whether a socket may send: its COMPLETION ring has one process that reads it. */
static int may_send(const struct pyxdp_socket *socket)
{
	return !socket->umem->control || socket->queue->id == socket->umem->worker;
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

int pyxdp_rx_release(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n)
{
	struct pyxdp_umem *umem = socket->umem;
	struct pyxdp_queue *queue = socket->queue;
	uint32_t back;
	int error;

	if (n < 0 || !are_inside(umem, descs, n))
		return -EINVAL;
	if (umem->control) {
		error = are_held(umem, queue, descs, n);
		if (error)
			return error;
	}
	/* Marked before the kernel can have them: it may hand one to another thread at once. */
	error = pyxdp_frames_move(umem, descs, sizeof(*descs), (uint32_t)n, PYXDP_RX, PYXDP_FILL);
	if (error)
		return error;
	pyxdp_fill_lock(umem, queue);
	back = umem->control ? (uint32_t)n : lacking(queue, (uint32_t)n);
	pyxdp_fill(umem, queue, descs, sizeof(*descs), back);
	pyxdp_fill_unlock(queue);
	put_descs(umem, descs + back, (uint32_t)n - back);
	if (lacking(queue, 1))
		pyxdp_fill_up(umem, queue);
	return n;
}

int pyxdp_tx_reap(struct pyxdp_socket *socket)
{
	struct pyxdp_queue *queue = socket->queue;
	struct pyxdp_umem *umem = socket->umem;
	uint64_t frames[CHUNK];
	int reaped = 0;
	int error = 0;

	if (!may_send(socket))
		return -EINVAL;
	pthread_mutex_lock(&queue->completion_lock);
	while (!error) {
		uint32_t start, n, good = 0;

		n = xsk_ring_cons__peek(&queue->completion, CHUNK, &start);
		if (n == 0)
			break;
		for (uint32_t i = 0; i < n; i++) {
			uint64_t addr = *xsk_ring_cons__comp_addr(&queue->completion, start + i);

			if (addr < umem->bytes)
				frames[good++] = pyxdp_frame_of(umem, addr);
			if (umem->control && addr < umem->bytes)
				pyxdp_hold(umem, addr, 0);
		}
		xsk_ring_cons__release(&queue->completion, n);
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
	if (umem->control) {
		error = are_own(umem, descs, n);
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
	/* The kernel skips a bad descriptor, and its frame would never come back. */
	if (!are_inside(umem, descs, n) || !may_send(socket))
		return -EINVAL;
	if (umem->control) {
		error = are_own(umem, descs, n);
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
	if (umem->control) {
		/* Killed before the ring has them, the next one unmarks what is noted here. */
		__atomic_store_n(&umem->submitting_to[umem->worker], start + (uint32_t)n,
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
	return socket->tx.cached_prod - __atomic_load_n(socket->tx.consumer, __ATOMIC_ACQUIRE);
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
			/* EAGAIN: more than one kick's worth, or the COMPLETION ring or the socket's
			 * buffer is full; ENOBUFS and EBUSY: the interface's queue is. */
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
