/* SPDX-License-Identifier: Apache-2.0
 *
 * AF_XDP in bursts: a UMEM whose frames have one owner each, and sockets on it.
 *
 * C code in other modules may use these functions on the pointers that Python returns; Python's
 * methods are thin wrappers. The owners of a frame, one after the other:
 *
 *   FREE -> FILL -> RX -> FILL ...        received, read, released
 *   FREE -> RESERVED -> TX -> FREE        reserved, written, sent, completed
 *           RX -> TX -> FREE              received and sent on in place
 *
 * FILL means the FILL ring or the kernel's receiving side. TX means the TX ring, the kernel's
 * sending side or the COMPLETION ring: these are indistinguishable here.
 *
 * One thread at a time may receive on a socket, and one send. State that sockets share (FILL and
 * COMPLETION ring of a queue, the free frames of the UMEM) is locked internally.
 *
 * Functions return a count, or a negative errno: -EINVAL for a descriptor that lies outside the
 * UMEM or its frame, -EPROTO for a frame that the caller does not own (checked only in a worker, or
 * in a UMEM made with `debug`, which checks every step; see pyxdp_umem_violation). On an error
 * nothing was done.
 *
 * cffi reads this header too, without its preprocessor lines.
 */
#ifndef PYXDP_H
#define PYXDP_H

#include <stddef.h>
#include <stdint.h>

struct pyxdp_umem;
struct pyxdp_socket;

enum {
	PYXDP_MIN_FRAME_BYTES = 2048,
	PYXDP_MAX_FRAME_BYTES = 4096, /* one page: the kernel allows no larger chunk */
	PYXDP_MAX_FRAMES = 1 << 20,
	/* The kernel's headroom in front of a received packet: XDP_PACKET_HEADROOM */
	PYXDP_KERNEL_HEADROOM_BYTES = 256,
	/* What one sendto sends in copy mode where the kernel can be configured; else 32 */
	PYXDP_KICK_FRAMES = 64,
	/* Ethernet's header: nothing shorter is a frame */
	PYXDP_MIN_PACKET_BYTES = 14,
};

/* The owner of a frame. */
enum pyxdp_owner {
	PYXDP_FREE = 1,
	PYXDP_FILL = 2,
	PYXDP_RX = 4,
	PYXDP_RESERVED = 8,
	PYXDP_TX = 16,
};

/* A packet in the UMEM, laid out as struct xdp_desc: the offset of its first byte, and its
 * length. */
struct pyxdp_desc {
	uint64_t addr;
	uint32_t len;
	uint32_t options;
};

/* A step that was not allowed to the caller: the frame at `addr` had the owner `found`. */
struct pyxdp_violation {
	uint64_t addr;
	uint32_t found; /* enum pyxdp_owner */
	uint32_t expected; /* one enum pyxdp_owner, or the sum of two */
};

/* The kernel's counters of a socket (struct xdp_statistics) and our own. */
struct pyxdp_statistics {
	uint64_t rx_dropped; /* too large for a frame, or for another reason */
	uint64_t rx_invalid_descs; /* the FILL ring held an invalid address */
	uint64_t tx_invalid_descs;
	uint64_t rx_ring_full;
	uint64_t rx_fill_ring_empty_descs;
	uint64_t tx_ring_empty_descs;
	uint64_t rx_frames;
	uint64_t tx_frames;
	uint64_t rx_bad_descs; /* the RX ring held an address outside the UMEM */
	uint64_t kicks; /* sendto calls */
	uint64_t kicks_again; /* those after which the kernel had more to send */
};

/* Create a UMEM of `area`: page-aligned, `bytes` a multiple of `frame_bytes`, which is a power
 * of two. `bind_flags` (XDP_COPY, XDP_ZEROCOPY, XDP_USE_NEED_WAKEUP) apply to all its sockets:
 * the kernel requires the flags of the first one. */
int pyxdp_umem_create(void *area, size_t bytes, uint32_t frame_bytes, uint32_t headroom_bytes,
		      uint16_t bind_flags, int debug, struct pyxdp_umem **out);

/* -EBUSY while it has sockets. */
int pyxdp_umem_delete(struct pyxdp_umem *umem);

uint32_t pyxdp_umem_free_frames(struct pyxdp_umem *umem);

/* How many frames an owner has; -ENOTSUP without `debug`. */
int pyxdp_umem_owned(struct pyxdp_umem *umem, uint32_t owner);

/* Describe the last -EPROTO. */
void pyxdp_umem_violation(struct pyxdp_umem *umem, struct pyxdp_violation *out);

/* Bind a socket to a queue of an interface and move `fill_frames` more frames to the queue's
 * FILL ring. Sockets on one queue share its FILL and COMPLETION ring. Ring sizes are powers of
 * two. -EBUSY: the queue has a socket of another UMEM. -ESHUTDOWN: the last socket of this queue
 * on this UMEM was closed, so its frames are lost, and a new UMEM is needed. */
int pyxdp_socket_open(struct pyxdp_umem *umem, const char *interface, uint32_t queue,
		      uint32_t rx_size, uint32_t tx_size, uint32_t fill_frames,
		      struct pyxdp_socket **out);
void pyxdp_socket_close(struct pyxdp_socket *socket);

int pyxdp_socket_fd(const struct pyxdp_socket *socket);

/* 1 if the kernel and the socket share packets without a copy. */
int pyxdp_socket_is_zero_copy(const struct pyxdp_socket *socket);

int pyxdp_socket_statistics(const struct pyxdp_socket *socket, struct pyxdp_statistics *out);

/* Make calls that find nothing to receive poll the driver themselves, in place of its
 * interrupts: SO_PREFER_BUSY_POLL, SO_BUSY_POLL and SO_BUSY_POLL_BUDGET (the kernel's
 * Documentation/networking/af_xdp.rst and napi.rst), `budget` packets at a time. Meant for
 * programs that receive continuously. -EPERM without CAP_NET_ADMIN, -ENOPROTOOPT if the kernel
 * was built without it. */
int pyxdp_socket_busy_poll(struct pyxdp_socket *socket, uint32_t microseconds, uint32_t budget);

/* A UMEM for several processes, the workers: receiving frames belong to a queue, sending frames
 * to a worker. Each worker has a socket on every queue, and worker w sends only on queue w. One
 * process, the maker, creates all sockets and keeps them open; the workers adopt them.
 *
 * Beside the frames there is memory for the locks of the FILL rings, which all processes share,
 * and one ledger per worker, shared by it and the maker. It records what the worker holds, so
 * that nothing is lost when the worker is killed, at whatever point.
 *
 * No process trusts what another one can write. Offsets follow from the shape, of which each
 * process has its own copy; a value in shared memory is read once, and checked. A worker that
 * writes invalid data can spoil packets, and keep frames from the others on its queues. It can't
 * make the maker or another worker access memory elsewhere, or block. */
struct pyxdp_shape {
	uint32_t queues;
	uint32_t workers; /* at most as many as queues */
	uint32_t rx_frames; /* of each queue */
	uint32_t tx_frames; /* of each worker */
};

/* How much memory the processes share beside the frames, and each worker with the maker. */
size_t pyxdp_shared_bytes(const struct pyxdp_shape *shape);
size_t pyxdp_ledger_bytes(const struct pyxdp_shape *shape);

/* As pyxdp_umem_create, for several processes. `control` and the `ledgers`, one for each worker,
 * are zeroed, aligned to 64 bytes, and shared like `area`. */
int pyxdp_umem_share(void *area, size_t bytes, uint32_t frame_bytes, uint32_t headroom_bytes,
		     uint16_t bind_flags, const struct pyxdp_shape *shape, void *control,
		     void *const *ledgers, struct pyxdp_umem **out);

/* In a worker: adopt the memory of a UMEM that another process made, with the same arguments.
 * Needs no privilege. */
int pyxdp_umem_adopt(void *area, size_t bytes, uint32_t frame_bytes, uint16_t bind_flags,
		     const struct pyxdp_shape *shape, void *control, void *ledger, uint32_t worker,
		     struct pyxdp_umem **out);

/* In a worker: adopt its socket on a queue, with the sizes it was opened with. The socket owns
 * the descriptor from then on. Frames that a killed worker had sent on queue `worker` return
 * here. */
int pyxdp_socket_adopt(struct pyxdp_umem *umem, int fd, uint32_t queue, uint32_t rx_size,
		       uint32_t tx_size, struct pyxdp_socket **out);

/* After a worker's process has ended: release the received frames that it had in hand. `sockets`
 * are that worker's, as the process that made them has them. Packets in their RX rings stay
 * there for the next worker that adopts the sockets. A frame that is found elsewhere (in a ring,
 * or with another worker) is not released a second time, whatever the worker recorded.
 *
 * Returns how many frames were released. `*left` is the number of queues that could not be
 * examined because another process holds their lock: call it again. Never blocks. */
int pyxdp_reclaim(struct pyxdp_umem *umem, uint32_t worker, struct pyxdp_socket *const *sockets,
		  int n, int *left);

/* Break FILL ring locks that the same process has held since the last call; returns how many.
 * Call it about once a second: an honest process holds a lock for a microsecond, and one that
 * was stopped meanwhile finds out that it lost the lock. */
int pyxdp_break_locks(struct pyxdp_umem *umem);

/* How many frames the queue's FILL ring holds. */
int pyxdp_fill_level(struct pyxdp_socket *socket);

/* Receive up to `budget` packets. The caller owns them until it releases or submits them. */
int pyxdp_rx_burst(struct pyxdp_socket *socket, struct pyxdp_desc *out, int budget);

/* Release received frames, with the descriptors as received: the kernel's headroom is masked
 * away. The queue's FILL ring gets as many frames as it lacks, including replacements for those
 * that were sent on; the rest become free. */
int pyxdp_rx_release(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n);

/* Reserve up to `n` free frames to write into, after reaping; `len` is the room in each. */
int pyxdp_tx_reserve(struct pyxdp_socket *socket, struct pyxdp_desc *out, int n);

/* Release reserved frames that are not to be sent. */
int pyxdp_tx_release(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n);

/* Put reserved or received frames on the TX ring, from the first on. Returns how many fitted;
 * the caller still owns the others. Nothing is sent before pyxdp_kick. */
int pyxdp_tx_submit(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n);

/* Collect sent frames from the COMPLETION ring. Returns how many became free. */
int pyxdp_tx_reap(struct pyxdp_socket *socket);

/* Have the kernel send the frames on the TX ring, where it needs a wake-up for that. Returns how
 * many frames it left there: if any, wait until the socket polls writable and kick again.
 * -ENETDOWN and the like if the interface can't send. */
int pyxdp_kick(struct pyxdp_socket *socket);

/* The functions above for C code in another module, which can't link with this one. */
struct pyxdp_verbs {
	int (*rx_burst)(struct pyxdp_socket *socket, struct pyxdp_desc *out, int budget);
	int (*rx_release)(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n);
	int (*tx_reserve)(struct pyxdp_socket *socket, struct pyxdp_desc *out, int n);
	int (*tx_submit)(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n);
	int (*kick)(struct pyxdp_socket *socket);
};
const struct pyxdp_verbs *pyxdp_get_verbs(void);

#endif
