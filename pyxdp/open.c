/* SPDX-License-Identifier: Apache-2.0
 *
 * UMEMs and sockets: opening, querying and closing.
 */
#include "internal.h"

#include <errno.h>
#include <net/if.h>
#include <stdlib.h>
#include <sys/socket.h>

#ifndef XDP_MAX_TX_SKB_BUDGET
#define XDP_MAX_TX_SKB_BUDGET 9
#endif

/* Newer than the headers of some C libraries. */
#ifndef SO_PREFER_BUSY_POLL
#define SO_PREFER_BUSY_POLL 69
#endif
#ifndef SO_BUSY_POLL_BUDGET
#define SO_BUSY_POLL_BUDGET 70
#endif

struct pyxdp_queue *pyxdp_queue_new(void)
{
	struct pyxdp_queue *queue = calloc(1, sizeof(*queue));

	if (queue) {
		pthread_mutex_init(&queue->fill_lock, NULL);
		pthread_mutex_init(&queue->completion_lock, NULL);
	}
	return queue;
}

static void queue_free(struct pyxdp_queue *queue)
{
	pyxdp_unmap_queue(queue);
	pthread_mutex_destroy(&queue->fill_lock);
	pthread_mutex_destroy(&queue->completion_lock);
	free(queue->owed);
	free(queue);
}

uint32_t pyxdp_ring_size(uint32_t frame_count)
{
	uint32_t ring_size = 1;

	while (ring_size <= frame_count)
		ring_size *= 2;
	return ring_size;
}

int pyxdp_umem_create(void *area, size_t bytes, uint32_t frame_bytes, uint32_t headroom_bytes,
		      uint16_t bind_flags, int debug, struct pyxdp_umem **out)
{
	struct xsk_umem_config config = {.frame_size = frame_bytes,
					 .frame_headroom = headroom_bytes};
	struct pyxdp_umem *umem;
	int error;

	if (frame_bytes < PYXDP_MIN_FRAME_BYTES || frame_bytes > PYXDP_MAX_FRAME_BYTES ||
	    (frame_bytes & (frame_bytes - 1)) || bytes == 0 || bytes % frame_bytes ||
	    bytes / frame_bytes > PYXDP_MAX_FRAMES ||
	    headroom_bytes >= frame_bytes - PYXDP_KERNEL_HEADROOM_BYTES)
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
	umem->bind_flags = bind_flags;
	error = pyxdp_frames_init(umem, debug);
	if (error) {
		free(umem);
		return error;
	}
	umem->queues = pyxdp_queue_new();
	if (!umem->queues) {
		error = -ENOMEM;
		goto fail;
	}
	umem->ring_size = pyxdp_ring_size(umem->frame_count);
	umem->worker = PYXDP_NO_WORKER;
	config.fill_size = umem->ring_size;
	config.comp_size = umem->ring_size;
	error = xsk_umem__create(&umem->xsk, area, bytes, &umem->queues->fill,
				 &umem->queues->completion, &config);
	if (error)
		goto fail;
	*out = umem;
	return 0;

fail:
	if (umem->queues)
		queue_free(umem->queues);
	pyxdp_frames_destroy(umem);
	free(umem);
	return error;
}

int pyxdp_umem_delete(struct pyxdp_umem *umem)
{
	if (umem->sockets > 0)
		return -EBUSY;
	if (umem->xsk) {
		int error = xsk_umem__delete(umem->xsk);

		if (error)
			return error;
	}
	while (umem->queues) {
		struct pyxdp_queue *next = umem->queues->next;

		queue_free(umem->queues);
		umem->queues = next;
	}
	pyxdp_frames_destroy(umem);
	free(umem->ledgers);
	free(umem);
	return 0;
}

struct pyxdp_queue *pyxdp_queue_find(struct pyxdp_umem *umem, unsigned int ifindex, uint32_t id)
{
	struct pyxdp_queue *queue;

	for (queue = umem->queues; queue; queue = queue->next) {
		if (queue->was_opened && queue->ifindex == ifindex && queue->id == id)
			return queue;
	}
	for (queue = umem->queues; queue; queue = queue->next) {
		if (!queue->was_opened)
			break;
	}
	if (!queue) {
		queue = pyxdp_queue_new();
		if (!queue)
			return NULL;
		queue->next = umem->queues->next;
		umem->queues->next = queue;
	}
	queue->ifindex = ifindex;
	queue->id = id;
	if (umem->is_shared)
		queue->shared_lock = &umem->fill_words[id];
	return queue;
}

/* Let one sendto send a whole burst; kernels before 6.17 stay at 32 packets per call. */
static void raise_kick_budget(int fd, uint32_t tx_size)
{
	uint32_t budget = tx_size < PYXDP_KICK_FRAMES ? tx_size : PYXDP_KICK_FRAMES;

	setsockopt(fd, SOL_XDP, XDP_MAX_TX_SKB_BUDGET, &budget, sizeof(budget));
}

int pyxdp_socket_open(struct pyxdp_umem *umem, const char *interface, uint32_t queue,
		      uint32_t rx_size, uint32_t tx_size, uint32_t fill_frames,
		      struct pyxdp_socket **out)
{
	struct xsk_socket_config config = {
		.rx_size = rx_size,
		.tx_size = tx_size,
		.libxdp_flags = XSK_LIBXDP_FLAGS__INHIBIT_PROG_LOAD,
		.bind_flags = umem->bind_flags,
	};
	unsigned int ifindex = if_nametoindex(interface);
	struct pyxdp_socket *socket;
	int error;

	if (ifindex == 0)
		return -ENODEV;
	if (!umem->xsk || (umem->is_shared && queue >= umem->shape.queues))
		return -EINVAL;
	socket = calloc(1, sizeof(*socket));
	if (!socket)
		return -ENOMEM;
	socket->umem = umem;
	socket->queue = pyxdp_queue_find(umem, ifindex, queue);
	if (!socket->queue) {
		free(socket);
		return -ENOMEM;
	}
	if (socket->queue->was_opened && socket->queue->sockets == 0) {
		free(socket);
		return -ESHUTDOWN;
	}
	if (umem->is_shared && socket->queue->sockets > 0) {
		error = pyxdp_socket_add(socket, rx_size, tx_size);
	} else {
		error = xsk_socket__create_shared(&socket->xsk, interface, queue, umem->xsk,
						  &socket->rx, &socket->tx, &socket->queue->fill,
						  &socket->queue->completion, &config);
		if (!error)
			socket->fd = socket->queue->first_fd = xsk_socket__fd(socket->xsk);
	}
	if (error) {
		free(socket);
		return error;
	}
	raise_kick_budget(socket->fd, tx_size);
	socket->queue->was_opened = 1;
	socket->queue->sockets++;
	socket->queue->fill_target += fill_frames;
	umem->sockets++;
	socket->next_of_queue = socket->queue->first_socket;
	socket->queue->first_socket = socket;
	if (umem->is_shared && socket->queue->sockets == 1)
		pyxdp_fill_first(umem, socket->queue);
	else
		pyxdp_fill_up(umem, socket->queue);
	*out = socket;
	return 0;
}

void pyxdp_socket_close(struct pyxdp_socket *socket)
{
	struct pyxdp_socket **at;

	if (socket->xsk)
		xsk_socket__delete(socket->xsk);
	else
		pyxdp_unmap_socket(socket);
	for (at = &socket->queue->first_socket; *at; at = &(*at)->next_of_queue) {
		if (*at == socket) {
			*at = socket->next_of_queue;
			break;
		}
	}
	socket->queue->sockets--;
	socket->umem->sockets--;
	free(socket);
}

int pyxdp_socket_busy_poll(struct pyxdp_socket *socket, uint32_t microseconds, uint32_t budget)
{
	const struct {
		int name;
		int value;
	} options[] = {
		{ SO_PREFER_BUSY_POLL, 1 },
		{ SO_BUSY_POLL, (int)microseconds },
		{ SO_BUSY_POLL_BUDGET, (int)budget },
	};

	for (size_t i = 0; i < sizeof(options) / sizeof(options[0]); i++) {
		if (setsockopt(socket->fd, SOL_SOCKET, options[i].name, &options[i].value,
			       sizeof(options[i].value)) < 0)
			return -errno;
	}
	socket->busy_polls = 1;
	return 0;
}

int pyxdp_socket_fd(const struct pyxdp_socket *socket)
{
	return socket->fd;
}

int pyxdp_socket_is_zero_copy(const struct pyxdp_socket *socket)
{
	struct xdp_options options = {0};
	socklen_t bytes = sizeof(options);

	if (getsockopt(socket->fd, SOL_XDP, XDP_OPTIONS, &options, &bytes) < 0)
		return -errno;
	return (options.flags & XDP_OPTIONS_ZEROCOPY) != 0;
}

int pyxdp_socket_statistics(const struct pyxdp_socket *socket, struct pyxdp_statistics *out)
{
	struct xdp_statistics kernel = {0};
	socklen_t bytes = sizeof(kernel);

	if (getsockopt(socket->fd, SOL_XDP, XDP_STATISTICS, &kernel, &bytes) < 0)
		return -errno;
	*out = (struct pyxdp_statistics){
		.rx_dropped = kernel.rx_dropped,
		.rx_invalid_descs = kernel.rx_invalid_descs,
		.tx_invalid_descs = kernel.tx_invalid_descs,
		.rx_ring_full = kernel.rx_ring_full,
		.rx_fill_ring_empty_descs = kernel.rx_fill_ring_empty_descs,
		.tx_ring_empty_descs = kernel.tx_ring_empty_descs,
		.rx_frames = socket->rx_frames,
		.tx_frames = socket->tx_frames,
		.rx_bad_descs = socket->rx_bad_descs,
		.kicks = socket->kicks,
		.kicks_again = socket->kicks_again,
	};
	return 0;
}
