/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pattern.h -- test data: f(seed, request, layer, tensor, block, epoch, offset)
 *
 * Word i of a block is key + i * C with an odd C and a key that hashes everything but the offset:
 * no two words of a block are equal, and blocks of different inputs agree nowhere (but for a chance
 * of 2^-64 a word). Filling and checking run at memory speed. A free block carries a stamp, which
 * is the pattern of the request PATTERN_FREE.
 */
#ifndef MPI_TESTS_PATTERN_H
#define MPI_TESTS_PATTERN_H

#include <stddef.h>
#include <stdint.h>

#define PATTERN_FREE UINT64_MAX
#define PATTERN_STEP UINT64_C(0x9e3779b97f4a7c15)

struct pattern {
	uint64_t seed;
	uint64_t request;
	uint64_t block; /* index inside the request; the block id for PATTERN_FREE */
	uint64_t epoch; /* how often this block of this request was sent before */
	uint32_t layer;
	uint32_t tensor;
};

uint64_t pattern_key(const struct pattern *p);

/* `len` need not be a multiple of 8, `dst` need not be aligned. */
void pattern_fill(void *dst, size_t len, uint64_t key);

/*
 * The key with which the part of a block that begins at `offset`, a multiple of 8, can be filled or
 * checked.
 */
static inline uint64_t pattern_key_at(uint64_t key, size_t offset)
{
	return key + offset / 8 * PATTERN_STEP;
}

/*
 * The number of bytes that are not what pattern_fill writes; *first_p (may be NULL) is the offset
 * of the first.
 */
size_t pattern_check(const void *src, size_t len, uint64_t key, size_t *first_p);

#endif
