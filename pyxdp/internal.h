/* SPDX-License-Identifier: Apache-2.0
 *
 * What pyxdp's C files share. */
#ifndef PYXDP_INTERNAL_H
#define PYXDP_INTERNAL_H

#include "pyxdp.h"

#include <pthread.h>
#include <stdatomic.h>

#include <xdp/xsk.h>

/* The lock of one FILL ring of several processes, in memory that all of them can write. Its word is
 * 0, or the number of the acquisition (24 bits) and who holds it (8): worker + 1, or PYXDP_MAKER.
 * It has no pointers, so a process that writes rubbish into it can let others in, or keep them out
 * until the maker breaks it, and nothing else. */
struct pyxdp_fill_word {
	uint32_t word;
	uint32_t pad[15];
};

enum {
	PYXDP_MAKER = 0xff,
	PYXDP_HOLDERS = 0x100,
};

/* What one worker has, for the maker to read when that worker's process is no more. Only this worker
 * and its maker can write it: no worker can speak for another one. Behind it are `filling_to` by
 * queue, and a byte for each frame: of a receiving frame whether it is in hand, of one of the
 * worker's own for sending whether it is on its way. */
struct pyxdp_ledger {
	uint32_t submitting_to; /* where the TX ring's producer is to be after what goes on now */
};

/* FILL and COMPLETION ring of one queue, shared by the UMEM's sockets there. */
struct pyxdp_queue {
	struct xsk_ring_prod fill;
	struct xsk_ring_cons completion;
	pthread_mutex_t fill_lock; /* of the threads of this process */
	struct pyxdp_fill_word *shared_lock; /* of the processes; NULL for one */
	uint32_t acquired; /* the word with which this process has the shared lock */
	uint32_t acquisitions;
	uint32_t seen_word; /* what the maker saw there last */
	/* In a worker: released frames that the FILL ring could not have yet. Receiver's own. */
	uint64_t *owed;
	uint32_t owed_count;
	struct pyxdp_socket *first_socket; /* those bound to it, in the process that made them */
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
	/* An owner beside those of pyxdp.h: a frame that the worker before this one had sent. */
	PYXDP_INHERITED = 32,
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
	/* Of a UMEM of several processes. Where things are in shared memory follows from `shape`, which
	 * is this process's own copy: nothing that is read there says where to read or write. */
	int is_shared;
	struct pyxdp_shape shape;
	struct pyxdp_fill_word *fill_words; /* by queue */
	struct pyxdp_ledger **ledgers; /* in the process that made it: by worker */
	struct pyxdp_ledger *ledger; /* in a worker: its own */
	uint32_t inherited; /* frames for sending that the worker before this one had sent */
	uint64_t inherited_ns; /* since when */
	uint32_t worker; /* PYXDP_NO_WORKER for who made it */
	pthread_mutex_t lock; /* for all below */
	uint32_t free_count;
	uint64_t *free;
	uint8_t *owner; /* of each frame; NULL without debug, but a worker always knows what it has */
	struct pyxdp_violation violation;
	struct pyxdp_queue *queues; /* the first is the one whose rings the UMEM was made with */
};

struct pyxdp_socket {
	struct xsk_ring_cons rx;
	struct xsk_ring_prod tx;
	struct xsk_socket *xsk; /* NULL where another process made it */
	struct pyxdp_umem *umem;
	struct pyxdp_queue *queue;
	struct pyxdp_socket *next_of_queue;
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
/* Of FILL and COMPLETION rings: more slots than frames, so there is room for whatever is given. */
uint32_t pyxdp_ring_size(uint32_t frame_count);
/* The queue's rings if it has any; the UMEM's own first rings if they are unused; or new ones. */
struct pyxdp_queue *pyxdp_queue_find(struct pyxdp_umem *umem, unsigned int ifindex, uint32_t id);
struct pyxdp_queue *pyxdp_queue_new(void);

/* shared.c */
/* A further socket on a queue that has one. */
int pyxdp_shared_open(struct pyxdp_socket *socket, uint32_t rx_size, uint32_t tx_size);
/* Give a queue that was opened first all of its frames. */
void pyxdp_shared_fill(struct pyxdp_umem *umem, struct pyxdp_queue *queue);
void pyxdp_shared_destroy(struct pyxdp_umem *umem);
/* Frames that the worker before this one had sent, and that nothing has completed for a second, are
 * free: a worker may say what it likes about its own. */
void pyxdp_forget_inherited(struct pyxdp_umem *umem);
void pyxdp_shared_unmap_queue(struct pyxdp_queue *queue);
void pyxdp_shared_unmap_socket(struct pyxdp_socket *socket);

/* fill.c */
/* 1 with the lock. 0 where another process has it for longer than some microseconds: then the
 * caller does something else, and tries again later. A UMEM of one process always gives it. */
int pyxdp_fill_lock(struct pyxdp_umem *umem, struct pyxdp_queue *queue);
void pyxdp_fill_unlock(struct pyxdp_queue *queue);
/* Push `n` frames; the lock is held. Returns how many the ring took. */
uint32_t pyxdp_fill(struct pyxdp_umem *umem, struct pyxdp_queue *queue, const uint64_t *frames,
		    uint32_t n);
/* How many more frames the FILL ring should get, at most `n`. */
uint32_t pyxdp_fill_lacking(const struct pyxdp_queue *queue, uint32_t n);
/* Give the FILL ring the frames that it lacks, as far as there are free ones. */
void pyxdp_fill_up(struct pyxdp_umem *umem, struct pyxdp_queue *queue);
/* In a worker: release frames, whose addresses lie `stride` bytes apart; none for those of before. */
void pyxdp_fill_release(struct pyxdp_umem *umem, struct pyxdp_queue *queue, const void *addrs,
			size_t stride, uint32_t n);

static inline uint64_t pyxdp_frame_of(const struct pyxdp_umem *umem, uint64_t addr)
{
	return addr & ~umem->frame_mask;
}

/* --- a ledger's parts --- */

static inline uint32_t *pyxdp_filling_to(struct pyxdp_ledger *ledger, uint32_t queue)
{
	return (uint32_t *)(void *)(ledger + 1) + queue;
}

/* A byte for each frame of the UMEM, so that it has a frame's number. */
static inline uint8_t *pyxdp_holds(const struct pyxdp_umem *umem, struct pyxdp_ledger *ledger)
{
	return (uint8_t *)pyxdp_filling_to(ledger, umem->shape.queues);
}

/* A process may be killed anywhere, so these bytes are written where they stand in the code. */
static inline void pyxdp_hold(const struct pyxdp_umem *umem, uint64_t addr, uint8_t holds)
{
	__atomic_store_n(&pyxdp_holds(umem, umem->ledger)[addr >> umem->frame_shift], holds,
			 __ATOMIC_RELAXED);
}

/* The first of a queue's frames to receive into, and of a worker's to send from. */
static inline uint32_t pyxdp_first_rx(const struct pyxdp_umem *umem, uint32_t queue)
{
	return queue * umem->shape.rx_frames;
}

static inline uint32_t pyxdp_first_tx(const struct pyxdp_umem *umem, uint32_t worker)
{
	return umem->shape.queues * umem->shape.rx_frames + worker * umem->shape.tx_frames;
}

/* Whether an address is in a frame of these; bounds are the caller's private ones. */
static inline int pyxdp_is_among(const struct pyxdp_umem *umem, uint64_t addr, uint32_t first,
				 uint32_t n)
{
	return addr < umem->bytes && (addr >> umem->frame_shift) - first < n;
}

#endif
