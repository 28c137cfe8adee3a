/* SPDX-License-Identifier: Apache-2.0
 *
 * Read a BPF ring buffer (BPF_MAP_TYPE_RINGBUF; kernel: Documentation/bpf/ringbuf.rst). cffi reads
 * this header too, without its preprocessor lines.
 */
#ifndef PYXDP_RING_H
#define PYXDP_RING_H

#include <stdint.h>

struct pyxdp_ring;

/* Map the ring buffer `map_fd` of `size_bytes`; the descriptor stays the caller's. Returns 0 or a
 * negative errno. */
int pyxdp_ring_open(int map_fd, uint32_t size_bytes, struct pyxdp_ring **out);

/* Copy whole records into `into`, and give their room back to the kernel. Each stands behind its
 * length (uint32_t), padded to 8 bytes in all. Returns how many bytes were written: 0 if there is
 * no record, -EMSGSIZE if the first one does not fit. */
int64_t pyxdp_ring_read(struct pyxdp_ring *ring, uint8_t *into, uint32_t room_bytes);

void pyxdp_ring_close(struct pyxdp_ring *ring);

#endif
