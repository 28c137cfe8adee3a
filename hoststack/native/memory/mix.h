/* SPDX-License-Identifier: Apache-2.0 */
#ifndef HS_MIX_H
#define HS_MIX_H

#include <stdint.h>

/* Mix two words into one, for keyed hash tables: without the seed, an attacker can't choose a
 * bucket. */
static inline uint64_t hs_mix(uint64_t a, uint64_t b)
{
	unsigned __int128 product = (unsigned __int128)a * b;
	return (uint64_t)product ^ (uint64_t)(product >> 64);
}

#endif
