/* SPDX-License-Identifier: Apache-2.0
 *
 * The addresses of this machine, and the broadcast addresses of its networks: what a datagram may
 * be for, and what it can't be from (RFC 1122 section 3.2.1.3). Python reads them from the
 * kernel's routes; C compares.
 */
#ifndef HS_LOCAL_ADDRESSES_H
#define HS_LOCAL_ADDRESSES_H

#include <stdint.h>

#include "wire/wire.h"

struct hs_local_addresses {
	struct hs_prefix *prefixes;
	uint32_t count;
};

/* Copy `count` prefixes in place of the last ones. Returns 0, or -1 without memory. */
int hs_local_addresses_set(struct hs_local_addresses *all, const struct hs_prefix *prefixes,
			   uint32_t count);
void hs_local_addresses_free(struct hs_local_addresses *all);
/* Whether an address, 4 or 16 bytes, is this machine's own. */
int hs_is_local(const struct hs_local_addresses *all, uint8_t ip_version, const uint8_t *ip);
/* Whether it is this machine's, or a broadcast address: no other host sends from it. */
int hs_is_martian(const struct hs_local_addresses *all, uint8_t ip_version, const uint8_t *ip);

#endif
