/* SPDX-License-Identifier: Apache-2.0 */
/* util.h -- clock, random numbers, sizes and memory of the two programs */
#ifndef MPI_TESTS_UTIL_H
#define MPI_TESTS_UTIL_H

#include <stddef.h>
#include <stdint.h>
#include <time.h>

static inline uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

/*
 * splitmix64: the next value of a sequence, and a mixer that changes half the bits for any change
 * of x.
 */
static inline uint64_t mix64(uint64_t x)
{
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static inline uint64_t random_next(uint64_t *state)
{
	*state += UINT64_C(0x9e3779b97f4a7c15);
	return mix64(*state);
}

/* A number below `n`, which must not be 0. */
static inline uint64_t random_below(uint64_t *state, uint64_t n)
{
	return (uint64_t)(((unsigned __int128)random_next(state) * n) >> 64);
}

/* Zeroed memory; ends the program with a sentence where there is none. */
void *need_calloc(size_t n, size_t size);

/* "64", "4K", "1G" (powers of two); 0 or -1 when the text is not such a number. */
int size_parse(const char *text, uint64_t *value_p);

/* "4 KiB", "1.50 GiB": into `buf`, which is returned. */
const char *size_text(uint64_t bytes, char *buf, size_t cap);

#endif
