/* SPDX-License-Identifier: Apache-2.0
 *
 * A UMEM for several processes: made by one, adopted by others, and what a killed one had. */
#include "internal.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
	VERSION = 1,
	LINE_BYTES = 64,
	CHUNK = 64,
	/* A holder is a byte, and 0 is nobody. */
	MAX_WORKERS = 254,
};

/* Where in the shared memory what begins. */
struct layout {
	size_t fillings;
	size_t submitting_to;
	size_t holder;
	size_t owner;
	size_t bytes;
};

static uint64_t frames_in(const struct pyxdp_shape *shape)
{
	return (uint64_t)shape->queues * shape->rx_frames +
	       (uint64_t)shape->workers * shape->tx_frames;
}

static size_t after(size_t at, size_t bytes)
{
	return (at + bytes + LINE_BYTES - 1) / LINE_BYTES * LINE_BYTES;
}

static struct layout layout_of(const struct pyxdp_shape *shape)
{
	struct layout at;
	size_t frames = frames_in(shape);

	at.fillings = after(0, sizeof(struct pyxdp_control));
	at.submitting_to = after(at.fillings, shape->queues * sizeof(struct pyxdp_filling));
	at.holder = after(at.submitting_to, shape->workers * sizeof(uint32_t));
	at.owner = after(at.holder, frames);
	at.bytes = after(at.owner, frames);
	return at;
}

size_t pyxdp_shared_bytes(const struct pyxdp_shape *shape)
{
	return layout_of(shape).bytes;
}

static int is_possible(const struct pyxdp_shape *shape, uint64_t frames)
{
	return shape->workers > 0 && shape->workers <= shape->queues &&
	       shape->workers <= MAX_WORKERS && shape->rx_frames > 0 &&
	       frames_in(shape) == frames;
}

static void use(struct pyxdp_umem *umem, void *control, int debug)
{
	struct layout at;

	umem->control = control;
	at = layout_of(&umem->control->shape);
	umem->fillings = (void *)((uint8_t *)control + at.fillings);
	umem->submitting_to = (void *)((uint8_t *)control + at.submitting_to);
	umem->holder = (uint8_t *)control + at.holder;
	umem->owner = debug ? (uint8_t *)control + at.owner : NULL;
	umem->free_count = 0;
}

static int make_locks(struct pyxdp_filling *fillings, uint32_t n)
{
	pthread_mutexattr_t kind;
	int error = pthread_mutexattr_init(&kind);

	if (error)
		return -error;
	pthread_mutexattr_setpshared(&kind, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&kind, PTHREAD_MUTEX_ROBUST);
	for (uint32_t i = 0; i < n && !error; i++)
		error = pthread_mutex_init(&fillings[i].lock, &kind);
	pthread_mutexattr_destroy(&kind);
	return -error;
}

int pyxdp_umem_share(void *area, size_t bytes, uint32_t frame_bytes, uint32_t headroom_bytes,
		     uint16_t bind_flags, int debug, const struct pyxdp_shape *shape,
		     void *control, struct pyxdp_umem **out)
{
	struct pyxdp_control *head = control;
	struct pyxdp_umem *umem;
	int error;

	if (!frame_bytes || !is_possible(shape, bytes / frame_bytes))
		return -EINVAL;
	error = pyxdp_umem_create(area, bytes, frame_bytes, headroom_bytes, bind_flags, 0, &umem);
	if (error)
		return error;
	*head = (struct pyxdp_control){
		.version = VERSION,
		.frame_bytes = frame_bytes,
		.shape = *shape,
		.ring_size = umem->ring_size,
		.bind_flags = bind_flags,
		.debug = debug != 0,
	};
	use(umem, control, debug);
	if (debug)
		memset(umem->owner, PYXDP_FREE, umem->frame_count);
	umem->queues->filling = &umem->fillings[0];
	error = make_locks(umem->fillings, shape->queues);
	if (error) {
		pyxdp_umem_delete(umem);
		return error;
	}
	*out = umem;
	return 0;
}

int pyxdp_umem_adopt(void *area, size_t bytes, void *control, size_t control_bytes,
		     uint32_t worker, struct pyxdp_umem **out)
{
	const struct pyxdp_control *head = control;
	struct pyxdp_umem *umem;
	int error;

	if (control_bytes < sizeof(*head) || head->version != VERSION ||
	    head->frame_bytes < PYXDP_MIN_FRAME_BYTES ||
	    head->frame_bytes > PYXDP_MAX_FRAME_BYTES || bytes / head->frame_bytes > PYXDP_MAX_FRAMES ||
	    !is_possible(&head->shape, bytes / head->frame_bytes) ||
	    control_bytes < pyxdp_shared_bytes(&head->shape) || worker >= head->shape.workers)
		return -EINVAL;
	umem = calloc(1, sizeof(*umem));
	if (!umem)
		return -ENOMEM;
	umem->area = area;
	umem->bytes = bytes;
	umem->frame_bytes = head->frame_bytes;
	umem->frame_mask = head->frame_bytes - 1;
	umem->frame_count = (uint32_t)(bytes / head->frame_bytes);
	umem->frame_shift = (uint32_t)__builtin_ctz(head->frame_bytes);
	umem->ring_size = head->ring_size;
	umem->bind_flags = (uint16_t)head->bind_flags;
	umem->worker = worker;
	error = pyxdp_frames_init(umem, 0);
	if (error) {
		free(umem);
		return error;
	}
	use(umem, control, (int)head->debug);
	*out = umem;
	return 0;
}

/* --- rings of a socket that another process made --- */

static void *map_ring(int fd, uint64_t at, size_t bytes)
{
	void *ring = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd,
			  (off_t)at);

	return ring == MAP_FAILED ? NULL : ring;
}

static void unmap_ring(void *ring, size_t bytes)
{
	if (ring)
		munmap(ring, bytes);
}

/* A ring for which this process is the producer, as it is now. */
static void as_producer(struct xsk_ring_prod *ring, uint8_t *map,
			const struct xdp_ring_offset *offsets, uint32_t size)
{
	ring->mask = size - 1;
	ring->size = size;
	ring->producer = (void *)(map + offsets->producer);
	ring->consumer = (void *)(map + offsets->consumer);
	ring->flags = (void *)(map + offsets->flags);
	ring->ring = map + offsets->desc;
	ring->cached_prod = *ring->producer;
	ring->cached_cons = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE) + size;
}

/* And one for which it is the consumer. */
static void as_consumer(struct xsk_ring_cons *ring, uint8_t *map,
			const struct xdp_ring_offset *offsets, uint32_t size)
{
	ring->mask = size - 1;
	ring->size = size;
	ring->producer = (void *)(map + offsets->producer);
	ring->consumer = (void *)(map + offsets->consumer);
	ring->flags = (void *)(map + offsets->flags);
	ring->ring = map + offsets->desc;
	ring->cached_cons = *ring->consumer;
	ring->cached_prod = ring->cached_cons;
}

/* FILL and COMPLETION ring of a queue, through any socket that is bound to it. */
static int map_queue(struct pyxdp_queue *queue, int fd, const struct xdp_mmap_offsets *offsets,
		     uint32_t size)
{
	size_t desc = offsets->fr.desc > offsets->cr.desc ? offsets->fr.desc : offsets->cr.desc;

	if (queue->adopted_fill)
		return 0;
	queue->adopted_ring_bytes = desc + size * sizeof(uint64_t);
	queue->adopted_fill =
		map_ring(fd, XDP_UMEM_PGOFF_FILL_RING, queue->adopted_ring_bytes);
	queue->adopted_completion =
		map_ring(fd, XDP_UMEM_PGOFF_COMPLETION_RING, queue->adopted_ring_bytes);
	if (!queue->adopted_fill || !queue->adopted_completion)
		return -errno;
	as_producer(&queue->fill, queue->adopted_fill, &offsets->fr, size);
	as_consumer(&queue->completion, queue->adopted_completion, &offsets->cr, size);
	return 0;
}

void pyxdp_shared_unmap_queue(struct pyxdp_queue *queue)
{
	unmap_ring(queue->adopted_fill, queue->adopted_ring_bytes);
	unmap_ring(queue->adopted_completion, queue->adopted_ring_bytes);
	queue->adopted_fill = queue->adopted_completion = NULL;
}

void pyxdp_shared_unmap_socket(struct pyxdp_socket *socket)
{
	unmap_ring(socket->adopted_rx, socket->adopted_rx_bytes);
	unmap_ring(socket->adopted_tx, socket->adopted_tx_bytes);
	close(socket->fd);
}

static int is_ring_size(uint32_t size)
{
	return size > 0 && (size & (size - 1)) == 0 && size <= 1 << 16;
}

/* RX and TX ring of a socket; on failure nothing is left mapped. */
static int map_socket(struct pyxdp_socket *socket, const struct xdp_mmap_offsets *offsets,
		      uint32_t rx_size, uint32_t tx_size)
{
	socket->adopted_rx_bytes = offsets->rx.desc + rx_size * sizeof(struct xdp_desc);
	socket->adopted_tx_bytes = offsets->tx.desc + tx_size * sizeof(struct xdp_desc);
	socket->adopted_rx = map_ring(socket->fd, XDP_PGOFF_RX_RING, socket->adopted_rx_bytes);
	socket->adopted_tx = map_ring(socket->fd, XDP_PGOFF_TX_RING, socket->adopted_tx_bytes);
	if (!socket->adopted_rx || !socket->adopted_tx) {
		int error = -errno;

		unmap_ring(socket->adopted_rx, socket->adopted_rx_bytes);
		unmap_ring(socket->adopted_tx, socket->adopted_tx_bytes);
		return error;
	}
	as_consumer(&socket->rx, socket->adopted_rx, &offsets->rx, rx_size);
	as_producer(&socket->tx, socket->adopted_tx, &offsets->tx, tx_size);
	return 0;
}

static int get_offsets(int fd, struct xdp_mmap_offsets *out)
{
	socklen_t bytes = sizeof(*out);

	if (getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, out, &bytes) < 0)
		return -errno;
	return bytes == sizeof(*out) ? 0 : -EOPNOTSUPP; /* before Linux 5.4 */
}

/* libxdp can't: it always names the UMEM's first socket, and the kernel gives a socket the rings of
 * another one's queue only where that is bound to the same queue (xsk_bind in net/xdp/xsk.c). */
int pyxdp_shared_open(struct pyxdp_socket *made, uint32_t rx_size, uint32_t tx_size)
{
	struct sockaddr_xdp to = {
		.sxdp_family = AF_XDP,
		.sxdp_flags = XDP_SHARED_UMEM,
		.sxdp_ifindex = made->queue->ifindex,
		.sxdp_queue_id = made->queue->id,
		.sxdp_shared_umem_fd = (uint32_t)made->queue->first_fd,
	};
	struct xdp_mmap_offsets offsets;
	int error;

	if (!is_ring_size(rx_size) || !is_ring_size(tx_size))
		return -EINVAL;
	made->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (made->fd < 0)
		return -errno;
	if (setsockopt(made->fd, SOL_XDP, XDP_RX_RING, &rx_size, sizeof(rx_size)) < 0 ||
	    setsockopt(made->fd, SOL_XDP, XDP_TX_RING, &tx_size, sizeof(tx_size)) < 0)
		error = -errno;
	else
		error = get_offsets(made->fd, &offsets);
	if (!error)
		error = map_socket(made, &offsets, rx_size, tx_size);
	if (!error && bind(made->fd, (struct sockaddr *)&to, sizeof(to)) < 0) {
		error = -errno;
		unmap_ring(made->adopted_rx, made->adopted_rx_bytes);
		unmap_ring(made->adopted_tx, made->adopted_tx_bytes);
	}
	if (error)
		close(made->fd);
	return error;
}

static uint32_t first_tx_frame(const struct pyxdp_umem *umem)
{
	const struct pyxdp_shape *shape = &umem->control->shape;

	return shape->queues * shape->rx_frames + umem->worker * shape->tx_frames;
}

/* Find out which frames for sending are free, whatever a worker before did with them. */
static void take_over_sending(struct pyxdp_umem *umem, struct pyxdp_socket *socket)
{
	struct xsk_ring_prod *tx = &socket->tx;
	uint32_t unsent = umem->submitting_to[umem->worker] - tx->cached_prod;
	uint32_t first = first_tx_frame(umem), start, n;

	/* Marked as sent, but the ring never had them. */
	for (uint32_t i = 0; unsent <= tx->size && i < unsent; i++) {
		uint64_t addr = xsk_ring_prod__tx_desc(tx, tx->cached_prod + i)->addr;

		if (addr < umem->bytes)
			pyxdp_hold(umem, addr, 0);
	}
	/* What was completed, all of it before any frame is used again: an entry that was read but
	 * not taken from the ring would free a frame that is on its way by then. */
	while ((n = xsk_ring_cons__peek(&socket->queue->completion, CHUNK, &start)) > 0) {
		for (uint32_t i = 0; i < n; i++) {
			uint64_t addr =
				*xsk_ring_cons__comp_addr(&socket->queue->completion, start + i);

			if (addr < umem->bytes)
				pyxdp_hold(umem, addr, 0);
		}
		xsk_ring_cons__release(&socket->queue->completion, n);
	}
	for (uint32_t i = umem->control->shape.tx_frames; i-- > 0;) {
		uint64_t frame = (uint64_t)(first + i) << umem->frame_shift;

		if (!__atomic_load_n(&umem->holder[first + i], __ATOMIC_RELAXED))
			pyxdp_frames_put(umem, &frame, 1);
		else if (umem->owner)
			umem->owner[first + i] = PYXDP_TX;
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

	if (umem->xsk || !umem->control || queue >= umem->control->shape.queues ||
	    !is_ring_size(rx_size) || !is_ring_size(tx_size))
		return -EINVAL;
	error = get_offsets(fd, &offsets);
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
	socket->queue->was_opened = 1;
	socket->fd = fd;
	error = map_queue(socket->queue, fd, &offsets, umem->ring_size);
	if (!error)
		error = map_socket(socket, &offsets, rx_size, tx_size);
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

/* --- frames for receiving --- */

void pyxdp_shared_fill(struct pyxdp_umem *umem, struct pyxdp_queue *queue)
{
	uint32_t rx_frames = umem->control->shape.rx_frames;
	uint64_t frame = (uint64_t)queue->id * rx_frames;

	pyxdp_fill_lock(umem, queue);
	for (uint32_t i = 0; i < rx_frames; i++, frame++) {
		uint64_t addr = frame << umem->frame_shift;

		if (umem->owner)
			umem->owner[frame] = PYXDP_FILL;
		pyxdp_fill(umem, queue, &addr, sizeof(addr), 1);
	}
	pyxdp_fill_unlock(queue);
}

void pyxdp_shared_repair(struct pyxdp_umem *umem, struct pyxdp_queue *queue)
{
	struct xsk_ring_prod *fill = &queue->fill;
	uint32_t start = *fill->producer;
	uint32_t n = queue->filling->to - start;

	if (n == 0 || n > fill->size)
		return;
	for (uint32_t i = 0; i < n; i++) {
		uint64_t addr = *xsk_ring_prod__fill_addr(fill, start + i);

		if (addr < umem->bytes)
			pyxdp_hold(umem, addr, 0);
	}
	__atomic_store_n(fill->producer, start + n, __ATOMIC_RELEASE);
}

/* What a worker had noted as its own but not taken from the ring stays in the ring. */
static void let_wait(struct pyxdp_umem *umem, struct pyxdp_socket *socket, uint8_t holder)
{
	uint32_t end = __atomic_load_n(socket->rx.producer, __ATOMIC_ACQUIRE);

	for (uint32_t at = *socket->rx.consumer; at != end; at++) {
		uint64_t addr = xsk_ring_cons__rx_desc(&socket->rx, at)->addr;

		if (addr < umem->bytes && *pyxdp_holder_of(umem, addr) == holder)
			pyxdp_hold(umem, addr, 0);
	}
}

static int give_back(struct pyxdp_umem *umem, struct pyxdp_queue *queue, uint8_t holder)
{
	uint32_t rx_frames = umem->control->shape.rx_frames;
	uint32_t first = queue->id * rx_frames;
	int given = 0;

	for (uint32_t frame = first; frame < first + rx_frames; frame++) {
		uint64_t addr = (uint64_t)frame << umem->frame_shift;

		if (__atomic_load_n(&umem->holder[frame], __ATOMIC_RELAXED) != holder)
			continue;
		if (umem->owner)
			umem->owner[frame] = PYXDP_FILL;
		pyxdp_fill(umem, queue, &addr, sizeof(addr), 1);
		given++;
	}
	return given;
}

int pyxdp_reclaim(struct pyxdp_umem *umem, uint32_t worker, struct pyxdp_socket *const *sockets,
		  int n)
{
	uint8_t holder = (uint8_t)(worker + 1);
	int given = 0;

	if (!umem->control || worker >= umem->control->shape.workers)
		return -EINVAL;
	for (int i = 0; i < n; i++) {
		/* With the lock it is certain that nothing half done is left. */
		pyxdp_fill_lock(umem, sockets[i]->queue);
		let_wait(umem, sockets[i], holder);
		given += give_back(umem, sockets[i]->queue, holder);
		pyxdp_fill_unlock(sockets[i]->queue);
	}
	return given;
}

int pyxdp_fill_level(struct pyxdp_socket *socket)
{
	const struct xsk_ring_prod *fill = &socket->queue->fill;

	return (int)(__atomic_load_n(fill->producer, __ATOMIC_ACQUIRE) -
		     __atomic_load_n(fill->consumer, __ATOMIC_ACQUIRE));
}
