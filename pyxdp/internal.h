/* SPDX-License-Identifier: Apache-2.0
 *
 * What pyxdp's C files share. */
#ifndef PYXDP_INTERNAL_H
#define PYXDP_INTERNAL_H

#include "pyxdp.h"

#include <pthread.h>
#include <stdatomic.h>

#include <xdp/xsk.h>

/* FILL and COMPLETION ring of one queue, shared by the UMEM's sockets there. */
struct pyxdp_queue {
	struct xsk_ring_prod fill;
	struct xsk_ring_cons completion;
	pthread_mutex_t fill_lock;
	pthread_mutex_t completion_lock;
	_Atomic uint32_t filled; /* frames with the kernel for receiving */
	uint32_t fill_target; /* and how many there should be */
	unsigned int ifindex;
	uint32_t id;
	int sockets;
	int was_opened;
	struct pyxdp_queue *next;
};

struct pyxdp_umem {
	struct xsk_umem *xsk;
	uint8_t *area;
	uint64_t bytes;
	uint64_t frame_mask; /* of the offset inside a frame */
	uint32_t frame_bytes;
	uint32_t frame_count;
	uint32_t frame_shift;
	uint16_t bind_flags;
	int sockets;
	pthread_mutex_t lock; /* for all below */
	uint32_t free_count;
	uint64_t *free;
	uint8_t *owner; /* of each frame; NULL without debug */
	struct pyxdp_violation violation;
	struct pyxdp_queue *queues; /* the first is the one whose rings the UMEM was made with */
};

struct pyxdp_socket {
	struct xsk_ring_cons rx;
	struct xsk_ring_prod tx;
	struct xsk_socket *xsk;
	struct pyxdp_umem *umem;
	struct pyxdp_queue *queue;
	int fd;
	int busy_polls;
	uint64_t rx_frames;
	uint64_t tx_frames;
	uint64_t rx_bad_descs;
	uint64_t kicks;
	uint64_t kicks_again;
};

/* frames.c */
int pyxdp_frames_init(struct pyxdp_umem *umem, int debug);
void pyxdp_frames_destroy(struct pyxdp_umem *umem);
uint32_t pyxdp_frames_take(struct pyxdp_umem *umem, uint64_t *frames, uint32_t n, uint8_t owner);
void pyxdp_frames_put(struct pyxdp_umem *umem, const uint64_t *frames, uint32_t n);
/* Move frames from one of the owners in `from` to `to`; -EPROTO, and nothing is moved, where one
 * of them is somebody else's. Does nothing without debug. Addresses lie `stride` bytes apart. */
int pyxdp_frames_move(struct pyxdp_umem *umem, const void *addrs, size_t stride, uint32_t n,
		      uint8_t from, uint8_t to);

/* rings.c */
/* Give the FILL ring the frames that it lacks, as far as there are free ones. */
void pyxdp_fill_up(struct pyxdp_umem *umem, struct pyxdp_queue *queue);

#endif
