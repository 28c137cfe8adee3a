/* SPDX-License-Identifier: Apache-2.0
 *
 * AF_XDP in bursts: a UMEM whose frames have one owner each, and sockets on it.
 *
 * C code elsewhere may use these functions on the pointers that Python hands out; Python's verbs
 * are thin over them. A frame's way:
 *
 *   FREE -> FILL -> RX -> FILL ...        received, looked at, given back
 *   FREE -> RESERVED -> TX -> FREE        taken, written, sent, completed
 *           RX -> TX -> FREE              received and sent on in place
 *
 * FILL means the FILL ring or the kernel's receiving side, TX the TX ring, the kernel's sending
 * side or the COMPLETION ring: seen from here these are one.
 *
 * One thread at a time may receive on a socket, and one send. What sockets share (FILL and
 * COMPLETION ring of a queue, the free frames of the UMEM) is locked inside.
 *
 * Functions return a count, or a negative errno: -EINVAL for a descriptor that lies outside the
 * UMEM or its frame, -EPROTO for a frame that is not the caller's (only in a UMEM made with
 * `debug`, which checks every step, or in a worker's; pyxdp_umem_violation tells more). Then
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
	PYXDP_MAX_FRAME_BYTES = 4096, /* the page: the kernel takes no larger chunk */
	PYXDP_MAX_FRAMES = 1 << 20,
	/* What the kernel keeps free in front of a received packet: XDP_PACKET_HEADROOM */
	PYXDP_KERNEL_HEADROOM_BYTES = 256,
	/* What one sendto sends in copy mode, where the kernel can be told: else 32 */
	PYXDP_KICK_FRAMES = 64,
	/* Ethernet's header: less is no frame */
	PYXDP_MIN_PACKET_BYTES = 14,
};

/* Who has a frame. */
enum pyxdp_owner {
	PYXDP_FREE = 1,
	PYXDP_FILL = 2,
	PYXDP_RX = 4,
	PYXDP_RESERVED = 8,
	PYXDP_TX = 16,
};

/* A packet in the UMEM, struct xdp_desc's layout: the offset of its first byte, and its length. */
struct pyxdp_desc {
	uint64_t addr;
	uint32_t len;
	uint32_t options;
};

/* The step that was not the caller's to do: the frame at `addr` had the owner `found`. */
struct pyxdp_violation {
	uint64_t addr;
	uint32_t found; /* enum pyxdp_owner */
	uint32_t expected; /* one enum pyxdp_owner, or two added up */
};

/* The kernel's counters of a socket (struct xdp_statistics) and our own. */
struct pyxdp_statistics {
	uint64_t rx_dropped; /* larger than a frame, or another reason */
	uint64_t rx_invalid_descs; /* the FILL ring held a bad address */
	uint64_t tx_invalid_descs;
	uint64_t rx_ring_full;
	uint64_t rx_fill_ring_empty_descs;
	uint64_t tx_ring_empty_descs;
	uint64_t rx_frames;
	uint64_t tx_frames;
	uint64_t rx_bad_descs; /* the RX ring held an address outside the UMEM */
	uint64_t kicks; /* sendto calls */
	uint64_t kicks_again; /* of them, how many the kernel could not do at once */
};

/* Make a UMEM of `area`: page-aligned, `bytes` a multiple of `frame_bytes`, which is a power of
 * two. `bind_flags` (XDP_COPY, XDP_ZEROCOPY, XDP_USE_NEED_WAKEUP) hold for all its sockets: the
 * kernel wants them to be the first one's. */
int pyxdp_umem_create(void *area, size_t bytes, uint32_t frame_bytes, uint32_t headroom_bytes,
		      uint16_t bind_flags, int debug, struct pyxdp_umem **out);

/* -EBUSY while it has sockets. */
int pyxdp_umem_delete(struct pyxdp_umem *umem);

uint32_t pyxdp_umem_free_frames(struct pyxdp_umem *umem);

/* How many frames an owner has; -ENOTSUP without `debug`. */
int pyxdp_umem_owned(struct pyxdp_umem *umem, uint32_t owner);

/* What the last -EPROTO was about. */
void pyxdp_umem_violation(struct pyxdp_umem *umem, struct pyxdp_violation *out);

/* Bind a socket to a queue of an interface and give `fill_frames` more frames to the queue's FILL
 * ring. Sockets of one queue share its FILL and COMPLETION ring. Ring sizes are powers of two.
 * -EBUSY: the queue has a socket of another UMEM. -ESHUTDOWN: the last socket of this queue on
 * this UMEM was closed, its frames are gone, and a new UMEM is needed. */
int pyxdp_socket_open(struct pyxdp_umem *umem, const char *interface, uint32_t queue,
		      uint32_t rx_size, uint32_t tx_size, uint32_t fill_frames,
		      struct pyxdp_socket **out);
void pyxdp_socket_close(struct pyxdp_socket *socket);

int pyxdp_socket_fd(const struct pyxdp_socket *socket);

/* 1 if the kernel and the socket share packets without a copy. */
int pyxdp_socket_is_zero_copy(const struct pyxdp_socket *socket);

int pyxdp_socket_statistics(const struct pyxdp_socket *socket, struct pyxdp_statistics *out);

/* Have calls that find nothing to receive poll the driver themselves, in place of its interrupts:
 * SO_PREFER_BUSY_POLL, SO_BUSY_POLL and SO_BUSY_POLL_BUDGET (the kernel's
 * Documentation/networking/af_xdp.rst and napi.rst), `budget` packets at a time. For who receives
 * without end. -EPERM without CAP_NET_ADMIN, -ENOPROTOOPT where the kernel was built without. */
int pyxdp_socket_busy_poll(struct pyxdp_socket *socket, uint32_t microseconds, uint32_t budget);

/* A UMEM for several processes, the workers: frames for receiving belong to a queue, frames for
 * sending to a worker. Each worker has a socket on every queue, and worker w sends on queue w
 * alone. One process makes all sockets and keeps them open; the workers adopt them.
 *
 * Beside the frames there is memory for the locks of the FILL rings, which all share, and a ledger for
 * each worker, shared by it and the maker, that tells what it has, so that nothing is lost when it is
 * killed, wherever that happens.
 *
 * No process believes what another one can write. Where things are follows from the shape, which each
 * knows for itself; what is read from shared memory is read once, and checked. A worker that writes
 * rubbish can spoil packets and keep frames from the others of its queues. It can't make the maker or
 * another worker read or write anywhere else, or wait. */
struct pyxdp_shape {
	uint32_t queues;
	uint32_t workers; /* at most as many as queues */
	uint32_t rx_frames; /* of each queue */
	uint32_t tx_frames; /* of each worker */
};

/* How much memory the processes share beside the frames, and each worker with the maker. */
size_t pyxdp_shared_bytes(const struct pyxdp_shape *shape);
size_t pyxdp_ledger_bytes(const struct pyxdp_shape *shape);

/* As pyxdp_umem_create, for several processes; `control` and the `ledgers`, one for each worker, are
 * zeroed, aligned to 64 bytes, and shared as `area` is. */
int pyxdp_umem_share(void *area, size_t bytes, uint32_t frame_bytes, uint32_t headroom_bytes,
		     uint16_t bind_flags, const struct pyxdp_shape *shape, void *control,
		     void *const *ledgers, struct pyxdp_umem **out);

/* In a worker: the memory that another process made a UMEM of, with what that made it with. It needs
 * no privilege. */
int pyxdp_umem_adopt(void *area, size_t bytes, uint32_t frame_bytes, uint16_t bind_flags,
		     const struct pyxdp_shape *shape, void *control, void *ledger, uint32_t worker,
		     struct pyxdp_umem **out);

/* In a worker: its socket on a queue, with the sizes that it was opened with. The descriptor is
 * the socket's from then on. What a killed worker had sent on queue `worker` comes back here. */
int pyxdp_socket_adopt(struct pyxdp_umem *umem, int fd, uint32_t queue, uint32_t rx_size,
		       uint32_t tx_size, struct pyxdp_socket **out);

/* A worker's process is no more: give back the received frames that it had in hand. `sockets` are
 * its own, as the process that made them has them. What waits in their RX rings waits for the
 * next one to adopt them. A frame that is found elsewhere (in a ring, or with another worker) is not
 * given a second time, whatever the worker noted.
 *
 * Returns how many frames came back. `*left` is how many queues could not be looked at, for another
 * process has their lock: call it again. It never waits. */
int pyxdp_reclaim(struct pyxdp_umem *umem, uint32_t worker, struct pyxdp_socket *const *sockets,
		  int n, int *left);

/* Break locks of FILL rings that the same process has held since the last call; returns how many.
 * To be called every second or so: an honest process holds one for a microsecond, and one that was
 * stopped meanwhile sees that its lock is gone. */
int pyxdp_break_locks(struct pyxdp_umem *umem);

/* How many frames the queue's FILL ring holds. */
int pyxdp_fill_level(struct pyxdp_socket *socket);

/* Take up to `budget` received packets. They are the caller's until released or submitted. */
int pyxdp_rx_burst(struct pyxdp_socket *socket, struct pyxdp_desc *out, int budget);

/* Give received frames back, as they came: the kernel's headroom is masked away. The queue's FILL
 * ring gets back as many as it lacks, also of those that were sent on, the rest are free. */
int pyxdp_rx_release(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n);

/* Take up to `n` free frames to write into, after reaping; `len` is the room in each. */
int pyxdp_tx_reserve(struct pyxdp_socket *socket, struct pyxdp_desc *out, int n);

/* Give back reserved frames that are not sent. */
int pyxdp_tx_release(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n);

/* Put reserved or received frames on the TX ring, from the first on. Returns how many there was
 * room for; the others stay the caller's. Nothing is sent before pyxdp_kick. */
int pyxdp_tx_submit(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n);

/* Take frames that were sent from the COMPLETION ring. Returns how many became free. */
int pyxdp_tx_reap(struct pyxdp_socket *socket);

/* Have the kernel send what is on the TX ring, if it needs to be told. Returns how many frames it
 * left there: if any, wait until the socket polls writable and kick again. -ENETDOWN and the like
 * where the interface cannot send. */
int pyxdp_kick(struct pyxdp_socket *socket);

/* The verbs above for C code in another module, which can't link with this one. */
struct pyxdp_verbs {
	int (*rx_burst)(struct pyxdp_socket *socket, struct pyxdp_desc *out, int budget);
	int (*rx_release)(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n);
	int (*tx_reserve)(struct pyxdp_socket *socket, struct pyxdp_desc *out, int n);
	int (*tx_submit)(struct pyxdp_socket *socket, const struct pyxdp_desc *descs, int n);
	int (*kick)(struct pyxdp_socket *socket);
};
const struct pyxdp_verbs *pyxdp_get_verbs(void);

#endif
