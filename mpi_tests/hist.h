/* SPDX-License-Identifier: Apache-2.0 */
/*
 * hist.h -- a histogram of durations from which percentiles are read
 *
 * 128 buckets an octave: a percentile is at most 0.8 % above the true one, never below it.
 * Histograms of several ranks add up, and memory does not grow with the number of samples. Values
 * above 2^40 ns count as 2^40 ns.
 */
#ifndef MPI_TESTS_HIST_H
#define MPI_TESTS_HIST_H

#include <stdint.h>

enum {
	HIST_SUB_BITS = 7,
	HIST_TOP_BITS = 40,
	HIST_BUCKETS = (HIST_TOP_BITS - HIST_SUB_BITS + 2) << HIST_SUB_BITS,
};

struct hist {
	uint64_t samples;
	uint64_t sum_ns;
	uint64_t max_ns;
	uint32_t bucket[HIST_BUCKETS];
};

void hist_add(struct hist *h, uint64_t ns);
void hist_merge(struct hist *into, const struct hist *from);

/*
 * The value that `per_mille_10` / 10000 of the samples do not exceed (9990 = p99.9); 0 without
 * samples.
 */
uint64_t hist_percentile(const struct hist *h, uint32_t per_mille_10);

#endif
