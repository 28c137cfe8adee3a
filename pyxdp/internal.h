/* SPDX-License-Identifier: Apache-2.0
 *
 * What pyxdp's C files share. */
#ifndef PYXDP_INTERNAL_H
#define PYXDP_INTERNAL_H

#include "pyxdp.h"

#include <pthread.h>
#include <stdatomic.h>

#include <xdp/xsk.h>

/* The lock of one FILL ring of several processes, in memory that all of them can write. Its word
 * is 0, or the number of the acquisition (24 bits) and the holder (8 bits): worker + 1, or
 * PYXDP_MAKER. It holds no pointers. The worst a process can do by writing invalid data into it
 * is to let others in, or to keep them out until the maker breaks the lock. */
struct pyxdp_fill_word {
	uint32_t word;
	uint32_t pad[15];
};

enum {
	PYXDP_MAKER = 0xff,
	PYXDP_HOLDERS = 0x100,
};

/* What one worker holds, for the maker to read after that worker's process has ended. Only this
 * worker and the maker can write it, so no worker can change another one's. It is followed by
 * `filling_to` by queue, and a byte for each frame: for a receiving frame whether it is in hand,
 * for one of the worker's own sending frames whether it is submitted. */
struct pyxdp_ledger {
	uint32_t submitting_to; /* the TX ring's producer index after the submit in progress */
};

/* FILL and COMPLETION ring of one queue, shared by the UMEM's sockets there. */
struct pyxdp_queue {
	struct xsk_ring_prod fill;
	struct xsk_ring_cons completion;
	pthread_mutex_t fill_lock; /* between the threads of this process */
	struct pyxdp_fill_word *shared_lock; /* between processes; NULL with a single process */
	uint32_t acquired; /* the word with which this process acquired the shared lock */
	uint32_t acquisitions;
	uint32_t seen_word; /* the word that the maker saw there last */
	/* In a worker: released frames that the FILL ring had no room or no lock for. Used only
	 * by the receiving thread. */
	uint64_t *owed;
	uint32_t owed_count;
	struct pyxdp_socket *first_socket; /* of those bound to it; in the maker */
	pthread_mutex_t completion_lock;
	_Atomic uint32_t filled; /* frames with the kernel for receiving */
	uint32_t fill_target; /* how many there should be */
	unsigned int ifindex;
	uint32_t id;
	int first_fd; /* of the socket that made the rings, in a UMEM of several processes */
	void *adopted_fill; /* what an adopting process mapped, and its size */
	void *adopted_completion;
	size_t adopted_ring_bytes;
	int sockets;
	int was_opened;
	struct pyxdp_queue *next;
};

enum {
	PYXDP_NO_WORKER = UINT32_MAX,
	/* An owner beside those of pyxdp.h: a frame that the previous worker had sent. */
	PYXDP_INHERITED = 32,
};

struct pyxdp_umem {
	struct xsk_umem *xsk; /* NULL if another process made it */
	uint8_t *area;
	uint64_t bytes;
	uint64_t frame_mask; /* masks the offset inside a frame */
	uint32_t frame_bytes;
	uint32_t frame_count;
	uint32_t frame_shift;
	uint32_t ring_size; /* of FILL and COMPLETION rings */
	uint16_t bind_flags;
	int sockets;
	/* For a UMEM of several processes. Offsets in shared memory follow from `shape`, which
	 * is this process's own copy: nothing read from shared memory decides where to read or
	 * write. */
	int is_shared;
	struct pyxdp_shape shape;
	struct pyxdp_fill_word *fill_words; /* by queue */
	struct pyxdp_ledger **ledgers; /* in the maker: by worker */
	struct pyxdp_ledger *ledger; /* in a worker: its own */
	uint32_t inherited; /* sending frames that the previous worker had sent */
	uint64_t inherited_ns; /* since when */
	uint32_t worker; /* PYXDP_NO_WORKER in the maker */
	pthread_mutex_t lock; /* protects everything below */
	uint32_t free_count;
	uint64_t *free;
	uint8_t *owner; /* of each frame; NULL without debug, except in a worker */
	struct pyxdp_violation violation;
	struct pyxdp_queue *queues; /* the first one has the rings that the UMEM was made with */
};

struct pyxdp_socket {
	struct xsk_ring_cons rx;
	struct xsk_ring_prod tx;
	struct xsk_socket *xsk; /* NULL if another process made it */
	struct pyxdp_umem *umem;
	struct pyxdp_queue *queue;
	struct pyxdp_socket *next_of_queue;
	void *adopted_rx; /* what an adopting process mapped, and its size */
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
/* Move frames from one of the owners in `from` to `to`. Returns -EPROTO, and moves nothing, if
 * one of them has another owner. Does nothing without debug. Addresses lie `stride` bytes apart. */
int pyxdp_frames_move(struct pyxdp_umem *umem, const void *addrs, size_t stride, uint32_t n,
		      uint8_t from, uint8_t to);

/* Record a step that was not allowed to the caller; returns -EPROTO. */
int pyxdp_frames_violated(struct pyxdp_umem *umem, uint64_t addr, uint32_t found,
			  uint32_t expected);

/* open.c */
/* The size of FILL and COMPLETION rings: more slots than frames, so there is always room. */
uint32_t pyxdp_ring_size(uint32_t frame_count);
/* The queue's rings if it has any; else the UMEM's own first rings if they are unused; else new
 * ones. */
struct pyxdp_queue *pyxdp_queue_find(struct pyxdp_umem *umem, unsigned int ifindex, uint32_t id);
struct pyxdp_queue *pyxdp_queue_new(void);

/* shared.c */
/* Free the frames that the previous worker had sent and that were not completed within a second:
 * a worker may claim anything about its own frames. */
void pyxdp_forget_inherited(struct pyxdp_umem *umem);

/* map.c: returns 0, or -errno */
/* Open a further socket on a queue that has one. */
int pyxdp_socket_add(struct pyxdp_socket *socket, uint32_t rx_size, uint32_t tx_size);
int pyxdp_is_ring_size(uint32_t size);
int pyxdp_get_offsets(int fd, struct xdp_mmap_offsets *out);
/* Map the FILL and COMPLETION ring of a queue, through any socket that is bound to it. */
int pyxdp_map_queue(struct pyxdp_queue *queue, int fd, const struct xdp_mmap_offsets *offsets,
		    uint32_t size);
/* Map the RX and TX ring of a socket; on failure nothing is left mapped. */
int pyxdp_map_socket(struct pyxdp_socket *socket, const struct xdp_mmap_offsets *offsets,
		     uint32_t rx_size, uint32_t tx_size);
void pyxdp_unmap_queue(struct pyxdp_queue *queue);
void pyxdp_unmap_socket(struct pyxdp_socket *socket);
/* Restart a ring that a predecessor left with invalid indices: more entries than slots. */
void pyxdp_settle_received(struct xsk_ring_cons *ring);

/* fill.c */
/* Returns 1 with the lock, or 0 if another process holds it for longer than some microseconds:
 * then the caller continues without it and tries again later. In a UMEM of one process this
 * always succeeds. */
int pyxdp_fill_lock(struct pyxdp_umem *umem, struct pyxdp_queue *queue);
void pyxdp_fill_unlock(struct pyxdp_queue *queue);
/* Push `n` frames; the caller holds the lock. Returns how many fitted into the ring. */
uint32_t pyxdp_fill(struct pyxdp_umem *umem, struct pyxdp_queue *queue, const uint64_t *frames,
		    uint32_t n);
/* How many more frames the FILL ring should get, at most `n`. */
uint32_t pyxdp_fill_lacking(const struct pyxdp_queue *queue, uint32_t n);
/* Push the frames that the FILL ring lacks, as far as there are free ones. */
void pyxdp_fill_up(struct pyxdp_umem *umem, struct pyxdp_queue *queue);
/* In a worker: release frames, whose addresses lie `stride` bytes apart; with none, only push
 * the frames owed from earlier calls. */
void pyxdp_fill_release(struct pyxdp_umem *umem, struct pyxdp_queue *queue, const void *addrs,
			size_t stride, uint32_t n);

/* Fill the rings of a newly opened queue with all of its frames, in a UMEM of several processes. */
void pyxdp_fill_first(struct pyxdp_umem *umem, struct pyxdp_queue *queue);

static inline uint64_t pyxdp_frame_of(const struct pyxdp_umem *umem, uint64_t addr)
{
	return addr & ~umem->frame_mask;
}

/* --- parts of a ledger --- */

static inline uint32_t *pyxdp_filling_to(struct pyxdp_ledger *ledger, uint32_t queue)
{
	return (uint32_t *)(void *)(ledger + 1) + queue;
}

/* A byte for each frame of the UMEM, indexed by frame number. */
static inline uint8_t *pyxdp_holds(const struct pyxdp_umem *umem, struct pyxdp_ledger *ledger)
{
	return (uint8_t *)pyxdp_filling_to(ledger, umem->shape.queues);
}

/* A process may be killed anywhere, so these bytes are written in program order. */
static inline void pyxdp_hold(const struct pyxdp_umem *umem, uint64_t addr, uint8_t holds)
{
	__atomic_store_n(&pyxdp_holds(umem, umem->ledger)[addr >> umem->frame_shift], holds,
			 __ATOMIC_RELAXED);
}

/* The first of a queue's receiving frames, and of a worker's sending frames. */
static inline uint32_t pyxdp_first_rx(const struct pyxdp_umem *umem, uint32_t queue)
{
	return queue * umem->shape.rx_frames;
}

static inline uint32_t pyxdp_first_tx(const struct pyxdp_umem *umem, uint32_t worker)
{
	return umem->shape.queues * umem->shape.rx_frames + worker * umem->shape.tx_frames;
}

/* Whether an address lies within this range of frames. The bounds are the caller's private ones. */
static inline int pyxdp_is_among(const struct pyxdp_umem *umem, uint64_t addr, uint32_t first,
				 uint32_t n)
{
	return addr < umem->bytes && (addr >> umem->frame_shift) - first < n;
}

#endif
