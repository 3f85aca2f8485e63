/* SPDX-License-Identifier: Apache-2.0 */
/*
 * copy.h -- the floor of all benchmarks: how fast one thread of one process copies blocks
 *
 * No transport, no second process, no acknowledgement. Plain is memcpy, as a first program would
 * have it. Non-temporal is the best that one thread can do: stores as wide as the CPU has them,
 * while the next block is prefetched.
 */
#ifndef BENCH_COPY_H
#define BENCH_COPY_H

#include <stddef.h>
#include <stdint.h>

/* Copies one block; `next_to` and `next_from` are where the one after it will be. */
typedef void copy_fn(uint8_t *to, const uint8_t *from, size_t len, const uint8_t *next_to,
		     const uint8_t *next_from);

copy_fn copy_plain;

/*
 * NULL where this CPU has no such stores, or `len` is not a multiple of a cache line; `to` must
 * begin at one. *name_p says which stores they are, "none" without any.
 */
copy_fn *copy_stream(size_t len, const char **name_p);

/* After the last block of a batch: until the stores have left the core. */
void copy_fence(void);

/* A batch of n blocks of `len` bytes, the fence included. */
void copy_blocks(copy_fn *copy, uint8_t *to, const uint8_t *from, size_t len, const int64_t *to_ids,
		 const int64_t *from_ids, uint32_t n);

#endif
