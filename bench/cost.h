/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cost.h -- processor time of a fixed piece of work in one thread, for compare.py
 *
 * Both sides are in this process, and each advances only when it is called, so the work is the same
 * in every run: its time does not depend on who else uses the machine as much as wall clock does,
 * and its instructions can be counted (valgrind --tool=callgrind --toggle-collect=measured).
 */
#ifndef COST_H
#define COST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define COST_TRY(call)                                                      \
	do {                                                                \
		if (call) {                                                 \
			fprintf(stderr, "%s:%d: failed\n", __FILE__, __LINE__); \
			exit(1);                                            \
		}                                                           \
	} while (0)

/* The work: called once before the clock starts, then `rounds` times. */
void measured(void *arg, int rounds) __attribute__((noinline));

static inline int64_t cost_cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* Prints the least time of several runs for one of `things`: what disturbs a run only adds. */
static inline void cost_report(void *arg, int rounds, int runs, double things)
{
	double least = 0;

	for (int i = 0; i < runs; i++) {
		int64_t start = cost_cpu_ns();
		double ns;

		measured(arg, rounds);
		ns = (double)(cost_cpu_ns() - start) / things;
		if (!i || ns < least)
			least = ns;
	}
	printf("%.2f\n", least);
}

#endif
