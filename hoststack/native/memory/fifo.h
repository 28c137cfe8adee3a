/* SPDX-License-Identifier: Apache-2.0
 *
 * A byte FIFO with one producer and one consumer, which may be in two processes.
 *
 * Positions are the offsets of a stream (RFC 9000 section 2.2): they start at 0 and only grow, and
 * byte `o` lies at `(o - origin) & (size - 1)`, where the origin moves only while the FIFO is
 * empty. The consumer drops bytes when it is done with them, so a FIFO of bytes to send stores them
 * until they are acknowledged. The producer may store bytes out of order, as they arrive from the
 * network.
 *
 * The producer may use a part of the data as the ring, so that less memory is touched, and extend
 * it later: the size above is then the ring's.
 *
 * The shared block holds no pointer. Each side trusts only its private struct: it checks an index
 * that the other side wrote before it uses it, and reports an invalid one as HS_FIFO_CORRUPT.
 * Nothing outside the block is ever touched.
 */
#ifndef HS_FIFO_H
#define HS_FIFO_H

#include <stddef.h>
#include <stdint.h>

enum {
	HS_FIFO_HEADER_BYTES = 128, /* before the data, in the shared block */
	HS_FIFO_MAX_RANGES = 256, /* stored out of order, with gaps between them */
	/* Of what FIFOs of a connection hold, the least rank is sent first: urgency * 2 + incremental
	 * (RFC 9218 section 4). That of a FIFO without one is 3, incremental: they take turns. */
	HS_FIFO_RANKS = 16,
	HS_FIFO_RANK = 7,
	HS_FIFO_PREFIX_BYTES = 2, /* before each message: its length, in the machine's byte order */
	HS_FIFO_MAX_MESSAGE_BYTES = 65535,
};

/* Results in place of a count. */
enum hs_fifo_error {
	HS_FIFO_NO_RANGE = -1, /* too many gaps: the bytes were not stored */
	HS_FIFO_CORRUPT = -2, /* the other side wrote an impossible index */
	HS_FIFO_OUTSIDE = -3, /* the offset is outside what the FIFO holds or has room for */
};

struct hs_fifo_range {
	uint64_t start;
	uint64_t end;
};

struct hs_fifo_producer {
	struct hs_fifo_shared *shared;
	uint64_t size_bytes; /* of the data */
	uint64_t ring_bytes; /* of these: in use */
	uint64_t tail;
	uint64_t head_seen;
	uint64_t origin;
	struct hs_fifo_range *ranges; /* sorted, disjoint and not adjacent, all above tail */
	uint32_t range_count;
};

struct hs_fifo_consumer {
	struct hs_fifo_shared *shared;
	uint64_t size_bytes; /* of the data */
	uint64_t ring_bytes; /* as read together with the tail */
	uint64_t head;
	uint64_t tail_seen;
	uint64_t origin; /* as is the ring's size */
};

/* Open a side of a shared block of `block_bytes`, which starts as zeros: HS_FIFO_HEADER_BYTES
 * and a power of two of data. Returns 0, or -1 for any other size. */
int hs_fifo_producer_open(struct hs_fifo_producer *p, void *block, size_t block_bytes);
int hs_fifo_consumer_open(struct hs_fifo_consumer *c, void *block, size_t block_bytes);
void hs_fifo_producer_close(struct hs_fifo_producer *p);
/* Use a ring of at least `bytes`, as long as no byte was stored. */
void hs_fifo_begin_small(struct hs_fifo_producer *p, uint64_t bytes);
/* Use a ring of `bytes`, a power of two. Returns 1; 0 if it is not larger, or does not fit, or the
 * stored bytes wrap around the end of the ring now; or HS_FIFO_CORRUPT. */
int hs_fifo_grow(struct hs_fifo_producer *p, uint64_t bytes);

/* Free bytes, or HS_FIFO_CORRUPT. */
int64_t hs_fifo_writable(struct hs_fifo_producer *p);
/* The consumer's position, or HS_FIFO_CORRUPT. */
int64_t hs_fifo_head(struct hs_fifo_producer *p);
/* Append as much of `data` as fits; returns how much, or HS_FIFO_CORRUPT. */
int64_t hs_fifo_write(struct hs_fifo_producer *p, const uint8_t *data, size_t n);
/* Store `data` at an offset; returns by how much the tail advanced, or an error. */
int64_t hs_fifo_put(struct hs_fifo_producer *p, uint64_t offset, const uint8_t *data, size_t n);
/* Mark the tail as the end: no byte follows. */
void hs_fifo_set_eof(struct hs_fifo_producer *p);
/* Set the rank, below HS_FIFO_RANKS. Returns whether that changed it. */
int hs_fifo_set_rank(struct hs_fifo_producer *p, uint32_t rank);

/* The producer's position, or HS_FIFO_CORRUPT. */
int64_t hs_fifo_tail(struct hs_fifo_consumer *c);
/* Bytes from `offset` to the tail, or HS_FIFO_CORRUPT, or HS_FIFO_OUTSIDE below the head. */
int64_t hs_fifo_available(struct hs_fifo_consumer *c, uint64_t offset);
/* Where the bytes from `offset` to the tail lie: in one piece, or in two where they wrap around.
 * Returns how many bytes that is, at most `n`, or an error. The caller may read them until it
 * drops them; an honest producer does not overwrite them before. */
struct hs_fifo_span {
	uint8_t *base;
	size_t bytes;
};
int64_t hs_fifo_spans(struct hs_fifo_consumer *c, uint64_t offset, size_t n,
		      struct hs_fifo_span out[2]);
/* Copy and drop at most `n` bytes; returns how many, or HS_FIFO_CORRUPT. */
int64_t hs_fifo_read(struct hs_fifo_consumer *c, uint8_t *out, size_t n);
/* Drop the bytes below `offset`; returns 0, or an error if it is above the tail. */
int hs_fifo_drop_to(struct hs_fifo_consumer *c, uint64_t offset);
/* Whether the producer has set the end. Check this before reading the tail. */
int hs_fifo_eof(const struct hs_fifo_consumer *c);
/* The rank; HS_FIFO_RANK for an impossible one. */
uint32_t hs_fifo_rank(const struct hs_fifo_consumer *c);
/* The head and the tail as both sides wrote them, unchecked: for an observer that is neither
 * side. */
void hs_fifo_look(const struct hs_fifo_consumer *c, uint64_t positions[2]);

/* A FIFO may carry messages in place of a stream's bytes. A message is stored whole or not at
 * all. */

/* Append a message. Returns 1, or 0 if it does not fit now (or never), or HS_FIFO_CORRUPT. */
int hs_fifo_write_message(struct hs_fifo_producer *p, const uint8_t *data, size_t n);
/* Find the oldest message: where it lies (as in hs_fifo_spans), and its length. Returns the
 * offset behind it, for hs_fifo_drop_to; 0 if there is none, HS_FIFO_CORRUPT if the length is
 * invalid. */
int64_t hs_fifo_peek_message(struct hs_fifo_consumer *c, struct hs_fifo_span out[2],
			     size_t *bytes);

/* Before it sleeps, a side arms its flag and then checks the FIFO once more. The other side
 * clears the flag after it moved its index, and wakes the sleeper only if the flag was set. */
void hs_fifo_arm_read(struct hs_fifo_consumer *c);
int hs_fifo_take_read_armed(struct hs_fifo_producer *p);
void hs_fifo_arm_write(struct hs_fifo_producer *p);
int hs_fifo_take_write_armed(struct hs_fifo_consumer *c);

#endif
