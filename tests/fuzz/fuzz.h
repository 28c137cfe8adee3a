/* SPDX-License-Identifier: Apache-2.0
 *
 * What all fuzz targets share: a check that ends the run, and an input that is read to its end and
 * gives zeros after it, so that every input means something.
 */
#ifndef HS_FUZZ_H
#define HS_FUZZ_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                                                   \
	do {                                                                               \
		if (!(condition)) {                                                        \
			fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__,       \
				#condition);                                               \
			abort();                                                           \
		}                                                                          \
	} while (0)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

struct input {
	const uint8_t *at;
	size_t left;
};

static inline uint8_t take_8(struct input *in)
{
	if (!in->left)
		return 0;
	in->left--;
	return *in->at++;
}

static inline uint16_t take_16(struct input *in)
{
	uint16_t high = take_8(in);
	return (uint16_t)(high << 8 | take_8(in));
}

static inline uint64_t take_64(struct input *in)
{
	uint64_t value = 0;
	for (int i = 0; i < 8; i++)
		value = value << 8 | take_8(in);
	return value;
}

/* At most `most` bytes of the input; *n is how many there are. */
static inline const uint8_t *take_bytes(struct input *in, size_t most, size_t *n)
{
	const uint8_t *at = in->at;
	*n = most < in->left ? most : in->left;
	if (*n)
		in->at += *n;
	in->left -= *n;
	return at;
}

/* Memory of that exact size, so that a byte too far is seen; zeros. */
static inline void *take_memory(size_t bytes)
{
	void *memory = calloc(1, bytes ? bytes : 1);
	CHECK(memory);
	return memory;
}

/* A copy of that exact size. */
static inline uint8_t *copy_of(const uint8_t *data, size_t bytes)
{
	uint8_t *copy = malloc(bytes ? bytes : 1);
	CHECK(copy);
	if (bytes)
		memcpy(copy, data, bytes);
	return copy;
}

#endif
