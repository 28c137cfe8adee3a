/* SPDX-License-Identifier: Apache-2.0
 *
 * A UMEM for several processes: creating and adopting it, and taking over from a killed worker.
 */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum {
	CHUNK = 64,
	/* A lock's holder is one byte; 0 means none, and the last value is the maker. */
	MAX_WORKERS = PYXDP_MAKER - 1,
	/* Far longer than a packet stays in the kernel. */
	INHERITED_NS = 1000000000,
	NS_PER_S = 1000000000,
};

static uint64_t frames_in(const struct pyxdp_shape *shape)
{
	return (uint64_t)shape->queues * shape->rx_frames +
	       (uint64_t)shape->workers * shape->tx_frames;
}

size_t pyxdp_shared_bytes(const struct pyxdp_shape *shape)
{
	return shape->queues * sizeof(struct pyxdp_fill_word);
}

size_t pyxdp_ledger_bytes(const struct pyxdp_shape *shape)
{
	return sizeof(struct pyxdp_ledger) + shape->queues * sizeof(uint32_t) + frames_in(shape);
}

static int is_possible(const struct pyxdp_shape *shape, uint64_t frames)
{
	return shape->workers > 0 && shape->workers <= shape->queues &&
	       shape->workers <= MAX_WORKERS && shape->rx_frames > 0 && shape->tx_frames > 0 &&
	       frames_in(shape) == frames;
}

static void share(struct pyxdp_umem *umem, const struct pyxdp_shape *shape, void *control)
{
	umem->is_shared = 1;
	umem->shape = *shape;
	umem->fill_words = control;
	umem->free_count = 0;
}

int pyxdp_umem_share(void *area, size_t bytes, uint32_t frame_bytes, uint32_t headroom_bytes,
		     uint16_t bind_flags, const struct pyxdp_shape *shape, void *control,
		     void *const *ledgers, struct pyxdp_umem **out)
{
	struct pyxdp_umem *umem;
	int error;

	if (!frame_bytes || !is_possible(shape, bytes / frame_bytes))
		return -EINVAL;
	error = pyxdp_umem_create(area, bytes, frame_bytes, headroom_bytes, bind_flags, 0, &umem);
	if (error)
		return error;
	share(umem, shape, control);
	umem->ledgers = calloc(shape->workers, sizeof(*umem->ledgers));
	if (!umem->ledgers) {
		pyxdp_umem_delete(umem);
		return -ENOMEM;
	}
	for (uint32_t worker = 0; worker < shape->workers; worker++)
		umem->ledgers[worker] = ledgers[worker];
	umem->queues->shared_lock = &umem->fill_words[0];
	*out = umem;
	return 0;
}

int pyxdp_umem_adopt(void *area, size_t bytes, uint32_t frame_bytes, uint16_t bind_flags,
		     const struct pyxdp_shape *shape, void *control, void *ledger, uint32_t worker,
		     struct pyxdp_umem **out)
{
	struct pyxdp_umem *umem;
	int error;

	if (frame_bytes < PYXDP_MIN_FRAME_BYTES || frame_bytes > PYXDP_MAX_FRAME_BYTES ||
	    (frame_bytes & (frame_bytes - 1)) || bytes % frame_bytes ||
	    bytes / frame_bytes > PYXDP_MAX_FRAMES || !is_possible(shape, bytes / frame_bytes) ||
	    worker >= shape->workers)
		return -EINVAL;
	umem = calloc(1, sizeof(*umem));
	if (!umem)
		return -ENOMEM;
	umem->area = area;
	umem->bytes = bytes;
	umem->frame_bytes = frame_bytes;
	umem->frame_mask = frame_bytes - 1;
	umem->frame_count = (uint32_t)(bytes / frame_bytes);
	umem->frame_shift = (uint32_t)__builtin_ctz(frame_bytes);
	umem->ring_size = pyxdp_ring_size(umem->frame_count);
	umem->bind_flags = bind_flags;
	umem->worker = worker;
	error = pyxdp_frames_init(umem, 1);
	if (error) {
		free(umem);
		return error;
	}
	/* From this process's view, frames that it does not own are the kernel's. */
	memset(umem->owner, PYXDP_FILL, umem->frame_count);
	share(umem, shape, control);
	umem->ledger = ledger;
	*out = umem;
	return 0;
}

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * NS_PER_S + (uint64_t)now.tv_nsec;
}

static void was_not_sent(struct pyxdp_umem *umem, uint64_t addr)
{
	if (pyxdp_is_among(umem, addr, pyxdp_first_tx(umem, umem->worker), umem->shape.tx_frames))
		pyxdp_hold(umem, addr, 0);
}

/* Find out which sending frames are free, whatever the previous worker did with them. */
static void take_over_sending(struct pyxdp_umem *umem, struct pyxdp_socket *socket)
{
	struct xsk_ring_cons *completion = &socket->queue->completion;
	struct xsk_ring_prod *tx = &socket->tx;
	uint32_t unsent = __atomic_load_n(&umem->ledger->submitting_to, __ATOMIC_ACQUIRE) -
			  tx->cached_prod;
	uint32_t first = pyxdp_first_tx(umem, umem->worker), left = umem->ring_size, start, n;

	/* Marked as sent, but never put on the ring. */
	for (uint32_t i = 0; unsent <= tx->size && i < unsent; i++)
		was_not_sent(umem, __atomic_load_n(
					   &xsk_ring_prod__tx_desc(tx, tx->cached_prod + i)->addr,
					   __ATOMIC_RELAXED));
	/* Consume all completions before any frame is used again: an entry left in the ring
	 * would later free a frame that is being sent by then. */
	pyxdp_settle_received(completion);
	while (left > 0 && (n = xsk_ring_cons__peek(completion, CHUNK, &start)) > 0) {
		for (uint32_t i = 0; i < n; i++)
			was_not_sent(umem, __atomic_load_n(
						   xsk_ring_cons__comp_addr(completion, start + i),
						   __ATOMIC_RELAXED));
		xsk_ring_cons__release(completion, n);
		left -= n < left ? n : left;
	}
	for (uint32_t i = umem->shape.tx_frames; i-- > 0;) {
		uint64_t frame = (uint64_t)(first + i) << umem->frame_shift;

		if (!__atomic_load_n(&pyxdp_holds(umem, umem->ledger)[first + i],
				     __ATOMIC_RELAXED)) {
			pyxdp_frames_put(umem, &frame, 1);
		} else {
			umem->owner[first + i] = PYXDP_INHERITED;
			umem->inherited++;
		}
	}
	umem->inherited_ns = now_ns();
}

void pyxdp_forget_inherited(struct pyxdp_umem *umem)
{
	uint32_t first = pyxdp_first_tx(umem, umem->worker);

	if (now_ns() - umem->inherited_ns < INHERITED_NS)
		return;
	umem->inherited = 0;
	for (uint32_t i = first; i < first + umem->shape.tx_frames; i++) {
		uint64_t frame = (uint64_t)i << umem->frame_shift;

		if (umem->owner[i] != PYXDP_INHERITED)
			continue;
		pyxdp_hold(umem, frame, 0);
		pyxdp_frames_put(umem, &frame, 1);
	}
}

int pyxdp_socket_adopt(struct pyxdp_umem *umem, int fd, uint32_t queue, uint32_t rx_size,
		       uint32_t tx_size, struct pyxdp_socket **out)
{
	struct xdp_mmap_offsets offsets;
	socklen_t bytes = sizeof(int);
	struct pyxdp_socket *socket;
	int busy_poll_us = 0;
	int error;

	if (!umem->ledger || queue >= umem->shape.queues ||
	    !pyxdp_is_ring_size(rx_size) || !pyxdp_is_ring_size(tx_size))
		return -EINVAL;
	error = pyxdp_get_offsets(fd, &offsets);
	if (error)
		return error;
	socket = calloc(1, sizeof(*socket));
	if (!socket)
		return -ENOMEM;
	socket->umem = umem;
	if (!umem->queues)
		umem->queues = pyxdp_queue_new();
	socket->queue = umem->queues ? pyxdp_queue_find(umem, 0, queue) : NULL;
	if (!socket->queue) {
		free(socket);
		return -ENOMEM;
	}
	if (!socket->queue->owed)
		socket->queue->owed = calloc(umem->shape.rx_frames, sizeof(uint64_t));
	if (!socket->queue->owed) {
		free(socket);
		return -ENOMEM;
	}
	socket->queue->was_opened = 1;
	socket->fd = fd;
	error = pyxdp_map_queue(socket->queue, fd, &offsets, umem->ring_size);
	if (!error)
		error = pyxdp_map_socket(socket, &offsets, rx_size, tx_size);
	if (error) {
		free(socket);
		return error;
	}
	getsockopt(fd, SOL_SOCKET, SO_BUSY_POLL, &busy_poll_us, &bytes);
	socket->busy_polls = busy_poll_us > 0;
	socket->queue->sockets++;
	umem->sockets++;
	if (queue == umem->worker)
		take_over_sending(umem, socket);
	*out = socket;
	return 0;
}
