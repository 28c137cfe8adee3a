/* SPDX-License-Identifier: Apache-2.0
 *
 * Variable-length integers (RFC 9000 section 16), read within bounds.
 */
#ifndef HS_VARINT_H
#define HS_VARINT_H

#include <stddef.h>
#include <stdint.h>

/* The unread bytes. */
struct hs_cursor {
	const uint8_t *at;
	const uint8_t *end;
};

/* Returns 0 if the bytes end within the integer. */
static inline int hs_take_varint(struct hs_cursor *c, uint64_t *out)
{
	if (c->at == c->end)
		return 0;
	size_t bytes = (size_t)1 << (*c->at >> 6);
	if ((size_t)(c->end - c->at) < bytes)
		return 0;
	uint64_t value = *c->at & 0x3f;
	for (size_t i = 1; i < bytes; i++)
		value = value << 8 | c->at[i];
	c->at += bytes;
	*out = value;
	return 1;
}

#endif
