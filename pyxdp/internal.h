/* SPDX-License-Identifier: Apache-2.0
 *
 * What pyxdp's C files share. */
#ifndef PYXDP_INTERNAL_H
#define PYXDP_INTERNAL_H

#include "pyxdp.h"

#include <pthread.h>
#include <stdatomic.h>

#include <xdp/xsk.h>

/* What all who push into one FILL ring share: in the memory of several processes, or of this one. */
struct pyxdp_filling {
	pthread_mutex_t lock; /* robust where there are several processes */
	/* Where the producer is to be when the holder of the lock is done, several processes only:
	 * if that was killed meanwhile, the next one ends what it began. */
	uint32_t to;
};

/* FILL and COMPLETION ring of one queue, shared by the UMEM's sockets there. */
struct pyxdp_queue {
	struct xsk_ring_prod fill;
	struct xsk_ring_cons completion;
	struct pyxdp_filling *filling;
	struct pyxdp_filling own_filling; /* a UMEM of one process has it here */
	pthread_mutex_t completion_lock;
	_Atomic uint32_t filled; /* frames with the kernel for receiving */
	uint32_t fill_target; /* and how many there should be */
	unsigned int ifindex;
	uint32_t id;
	int first_fd; /* of the socket that made the rings, in a UMEM of several processes */
	void *adopted_fill; /* what an adopting process mapped, and how much */
	void *adopted_completion;
	size_t adopted_ring_bytes;
	int sockets;
	int was_opened;
	struct pyxdp_queue *next;
};

enum {
	PYXDP_NO_WORKER = UINT32_MAX,
};

/* What stands at the beginning of the memory behind a UMEM that several processes share. */
struct pyxdp_control {
	uint32_t version;
	uint32_t frame_bytes;
	struct pyxdp_shape shape;
	uint32_t ring_size;
	uint32_t bind_flags;
	uint32_t debug;
};

struct pyxdp_umem {
	struct xsk_umem *xsk; /* NULL where another process made it */
	uint8_t *area;
	uint64_t bytes;
	uint64_t frame_mask; /* of the offset inside a frame */
	uint32_t frame_bytes;
	uint32_t frame_count;
	uint32_t frame_shift;
	uint32_t ring_size; /* of FILL and COMPLETION rings */
	uint16_t bind_flags;
	int sockets;
	/* Of a UMEM of several processes; NULL for one. */
	struct pyxdp_control *control;
	struct pyxdp_filling *fillings; /* by queue */
	uint32_t *submitting_to; /* by worker: as pyxdp_filling's, for its TX ring */
	uint8_t *holder; /* of a receiving frame in hand: worker + 1; of a sending one on its way: 1 */
	uint32_t worker; /* PYXDP_NO_WORKER for who made it */
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
	struct xsk_socket *xsk; /* NULL where another process made it */
	struct pyxdp_umem *umem;
	struct pyxdp_queue *queue;
	void *adopted_rx; /* what an adopting process mapped, and how much */
	void *adopted_tx;
	size_t adopted_rx_bytes;
	size_t adopted_tx_bytes;
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

/* Note a step that was not the caller's to do; returns -EPROTO. */
int pyxdp_frames_violated(struct pyxdp_umem *umem, uint64_t addr, uint32_t found,
			  uint32_t expected);

/* open.c */
/* The queue's rings if it has any; the UMEM's own first rings if they are unused; or new ones. */
struct pyxdp_queue *pyxdp_queue_find(struct pyxdp_umem *umem, unsigned int ifindex, uint32_t id);
struct pyxdp_queue *pyxdp_queue_new(void);

/* shared.c */
/* A further socket on a queue that has one. */
int pyxdp_shared_open(struct pyxdp_socket *socket, uint32_t rx_size, uint32_t tx_size);
/* Give a queue that was opened first all of its frames. */
void pyxdp_shared_fill(struct pyxdp_umem *umem, struct pyxdp_queue *queue);
/* End what the FILL ring's last user had begun when it was killed; the lock is held. */
void pyxdp_shared_repair(struct pyxdp_umem *umem, struct pyxdp_queue *queue);
void pyxdp_shared_unmap_queue(struct pyxdp_queue *queue);
void pyxdp_shared_unmap_socket(struct pyxdp_socket *socket);

/* rings.c */
void pyxdp_fill_lock(struct pyxdp_umem *umem, struct pyxdp_queue *queue);
void pyxdp_fill_unlock(struct pyxdp_queue *queue);
/* Push `n` frames, whose addresses lie `stride` bytes apart; the lock is held. */
void pyxdp_fill(struct pyxdp_umem *umem, struct pyxdp_queue *queue, const void *addrs,
		size_t stride, uint32_t n);
/* Give the FILL ring the frames that it lacks, as far as there are free ones. */
void pyxdp_fill_up(struct pyxdp_umem *umem, struct pyxdp_queue *queue);

static inline uint64_t pyxdp_frame_of(const struct pyxdp_umem *umem, uint64_t addr)
{
	return addr & ~umem->frame_mask;
}

static inline uint8_t *pyxdp_holder_of(const struct pyxdp_umem *umem, uint64_t addr)
{
	return &umem->holder[addr >> umem->frame_shift];
}

/* A process may be killed anywhere, so these bytes are written where they stand in the code. */
static inline void pyxdp_hold(const struct pyxdp_umem *umem, uint64_t addr, uint8_t holder)
{
	__atomic_store_n(pyxdp_holder_of(umem, addr), holder, __ATOMIC_RELAXED);
}

#endif
