/* SPDX-License-Identifier: Apache-2.0
 *
 * A wire that hands its bursts to Python: for links that are written in Python. */
#ifndef HS_HANDED_H
#define HS_HANDED_H

#include <stdint.h>

struct hs_wire;

/* NULL without memory. */
struct hs_wire *hs_wire_handed_new(uint32_t max_paths);
/* The largest datagram on a path; the number of none is ignored. */
void hs_wire_handed_set_size(struct hs_wire *wire, uint32_t path_id, uint32_t max_datagram_bytes);
/* Add a received datagram. The caller's buffer must stay valid until the end of the turn. Returns
 * -1 when the burst is full. */
int hs_wire_handed_put(struct hs_wire *wire, const uint8_t *data, uint32_t bytes, uint8_t ecn,
		       uint32_t path_id);
/* The datagram number `index` that the turn sent; NULL after the last. */
const uint8_t *hs_wire_handed_take(struct hs_wire *wire, uint32_t index, uint32_t *bytes,
				   uint32_t *path_id);
/* The first `count` datagrams were sent; the rest stays queued, and the wire is blocked until it
 * is sent too. */
void hs_wire_handed_sent(struct hs_wire *wire, uint32_t count);

#endif
