/* SPDX-License-Identifier: Apache-2.0
 *
 * Rings that libxdp does not map: those of another process's sockets, and of further sockets on a
 * queue.
 */
#include "internal.h"

#include <errno.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

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

/* Initialise the producer side of a ring with its current indices. */
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

/* Initialise the consumer side of a ring. */
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

/* Two indices say how much a ring holds. A worker inherits its predecessor's rings, and restarts
 * a ring whose indices are invalid: more entries than slots. */
void pyxdp_settle_received(struct xsk_ring_cons *ring)
{
	uint32_t producer = __atomic_load_n(ring->producer, __ATOMIC_ACQUIRE);

	if (producer - ring->cached_cons > ring->size) {
		ring->cached_cons = ring->cached_prod = producer;
		__atomic_store_n(ring->consumer, producer, __ATOMIC_RELEASE);
	}
}

static void settle_sent(struct xsk_ring_prod *ring)
{
	uint32_t consumer = __atomic_load_n(ring->consumer, __ATOMIC_ACQUIRE);

	if (ring->cached_prod - consumer > ring->size) {
		ring->cached_prod = consumer;
		ring->cached_cons = consumer + ring->size;
		__atomic_store_n(ring->producer, consumer, __ATOMIC_RELEASE);
	}
}

int pyxdp_map_queue(struct pyxdp_queue *queue, int fd, const struct xdp_mmap_offsets *offsets,
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

void pyxdp_unmap_queue(struct pyxdp_queue *queue)
{
	unmap_ring(queue->adopted_fill, queue->adopted_ring_bytes);
	unmap_ring(queue->adopted_completion, queue->adopted_ring_bytes);
	queue->adopted_fill = queue->adopted_completion = NULL;
}

void pyxdp_unmap_socket(struct pyxdp_socket *socket)
{
	unmap_ring(socket->adopted_rx, socket->adopted_rx_bytes);
	unmap_ring(socket->adopted_tx, socket->adopted_tx_bytes);
	close(socket->fd);
}

int pyxdp_is_ring_size(uint32_t size)
{
	return size > 0 && (size & (size - 1)) == 0 && size <= 1 << 16;
}

int pyxdp_map_socket(struct pyxdp_socket *socket, const struct xdp_mmap_offsets *offsets,
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
	pyxdp_settle_received(&socket->rx);
	settle_sent(&socket->tx);
	return 0;
}

int pyxdp_get_offsets(int fd, struct xdp_mmap_offsets *out)
{
	socklen_t bytes = sizeof(*out);

	if (getsockopt(fd, SOL_XDP, XDP_MMAP_OFFSETS, out, &bytes) < 0)
		return -errno;
	return bytes == sizeof(*out) ? 0 : -EOPNOTSUPP; /* before Linux 5.4 */
}

/* libxdp can't do this: it always passes the UMEM's first socket, and the kernel lets a socket
 * use the rings of another one's queue only if that one is bound to the same queue (xsk_bind in
 * net/xdp/xsk.c). */
int pyxdp_socket_add(struct pyxdp_socket *made, uint32_t rx_size, uint32_t tx_size)
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

	if (!pyxdp_is_ring_size(rx_size) || !pyxdp_is_ring_size(tx_size))
		return -EINVAL;
	made->fd = socket(AF_XDP, SOCK_RAW | SOCK_CLOEXEC, 0);
	if (made->fd < 0)
		return -errno;
	if (setsockopt(made->fd, SOL_XDP, XDP_RX_RING, &rx_size, sizeof(rx_size)) < 0 ||
	    setsockopt(made->fd, SOL_XDP, XDP_TX_RING, &tx_size, sizeof(tx_size)) < 0)
		error = -errno;
	else
		error = pyxdp_get_offsets(made->fd, &offsets);
	if (!error)
		error = pyxdp_map_socket(made, &offsets, rx_size, tx_size);
	if (!error && bind(made->fd, (struct sockaddr *)&to, sizeof(to)) < 0) {
		error = -errno;
		unmap_ring(made->adopted_rx, made->adopted_rx_bytes);
		unmap_ring(made->adopted_tx, made->adopted_tx_bytes);
	}
	if (error)
		close(made->fd);
	return error;
}
