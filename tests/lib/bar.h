/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bar.h -- upper bounds of what a test measures, on a machine that others load, too
 *
 * While something that could run waits for a processor, a bound says nothing about what is
 * measured: Linux counts that time (/proc/pressure/cpu), and it is taken off, up to a limit. A
 * sanitizer gets a multiple of the bound. What hangs until a deadline of its own is still found.
 */
#ifndef BAR_H
#define BAR_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include "slow.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { BAR_FACTOR = 3 };
#else
enum { BAR_FACTOR = 1 };
#endif
enum { BAR_STARVED_MS = 10000 };

struct bar {
	int64_t ms, starved_ms;
};

static inline struct bar bar_begin(void)
{
	unsigned long long starved_us = 0;
	FILE *f = fopen("/proc/pressure/cpu", "re");
	struct timespec now;

	if (f && fscanf(f, "some avg10=%*f avg60=%*f avg300=%*f total=%llu", &starved_us) != 1)
		starved_us = 0;
	if (f)
		fclose(f);
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (struct bar){ (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000,
			     (int64_t)(starved_us / 1000) };
}

/* What has passed since then, less what the machine has not given. */
static inline int64_t bar_ms(struct bar since)
{
	struct bar now = bar_begin();
	int64_t took = now.ms - since.ms, starved = now.starved_ms - since.starved_ms;

	starved = starved < BAR_STARVED_MS ? starved : BAR_STARVED_MS;
	return took > starved ? took - starved : 0;
}

/* Whether no more than so much has passed; else it prints what took how long. */
static inline bool bar_holds(struct bar since, int64_t ms, const char *what)
{
	int64_t took = bar_ms(since), bound = slow_ms(ms) * BAR_FACTOR;

	if (took > bound)
		fprintf(stderr, "%s took %lld ms, not %lld\n", what, (long long)took,
			(long long)bound);
	return took <= bound;
}

#endif
