/* SPDX-License-Identifier: Apache-2.0 */
/*
 * timeline.h -- bytes and durations over time, in a fixed number of intervals
 *
 * The intervals grow with the run: when one is added behind the last, each two become one. So a run
 * of seconds and one of hours take the same memory, and the timelines of several ranks add up.
 */
#ifndef MPI_TESTS_TIMELINE_H
#define MPI_TESTS_TIMELINE_H

#include "hist.h"

enum { TIMELINE_INTERVALS = 40, TIMELINE_FIRST_NS = 1 << 20 };

struct timeline {
	uint64_t width_ns; /* of an interval: TIMELINE_FIRST_NS times a power of two; 0 = empty */
	struct timeline_interval {
		uint64_t bytes;
		struct hist took;
	} at[TIMELINE_INTERVALS];
};

/* Something of `bytes` ended `since_ns` after the beginning and took `took_ns`. */
void timeline_add(struct timeline *t, uint64_t since_ns, uint64_t bytes, uint64_t took_ns);
void timeline_merge(struct timeline *into, const struct timeline *from);

#endif
