/* SPDX-License-Identifier: Apache-2.0 */
/* replay_timeline_test.c -- bytes over time: intervals grow, ranks add up, nothing is lost */
#include "lib/test.h"
#include "timeline.h"

enum { MS = 1000 * 1000 };

static uint64_t bytes_between(const struct timeline *t, uint64_t begin_ns, uint64_t end_ns)
{
	uint64_t sum = 0;

	for (uint32_t i = 0; i < TIMELINE_INTERVALS; i++)
		if (i * t->width_ns >= begin_ns && i * t->width_ns < end_ns)
			sum += t->at[i].bytes;
	return sum;
}

CASE(the_intervals_grow_with_the_run)
{
	struct timeline *t = calloc(1, sizeof(*t));

	for (uint64_t ms = 0; ms < 10000; ms++)
		timeline_add(t, ms * MS, 100, ms < 5000 ? 10 * 1000 : 90 * 1000);
	assert_int_equal(bytes_between(t, 0, UINT64_MAX), 10000 * 100);
	assert_true(t->width_ns >= (uint64_t)10000 * MS / TIMELINE_INTERVALS);
	assert_true(t->width_ns < (uint64_t)20000 * MS / TIMELINE_INTERVALS);
	/* whole intervals of the first half, and of the second */
	assert_true(hist_percentile(&t->at[0].took, 9900) < 11 * 1000);
	assert_true(hist_percentile(&t->at[(uint64_t)9000 * MS / t->width_ns].took, 100) >= 90000);
	free(t);
}

CASE(ranks_of_different_lengths_add_up)
{
	struct timeline *all = calloc(1, sizeof(*all)), *quick = calloc(1, sizeof(*quick)),
			*slow = calloc(1, sizeof(*slow)), *none = calloc(1, sizeof(*none));

	timeline_add(quick, 3 * MS, 7, 1000);
	timeline_add(slow, (uint64_t)60000 * MS, 5, 1000);
	timeline_merge(all, quick);
	timeline_merge(all, slow);
	timeline_merge(all, quick);
	timeline_merge(all, none);
	assert_int_equal(all->at[0].bytes, 14);
	assert_int_equal(bytes_between(all, 1, UINT64_MAX), 5);
	assert_int_equal(all->width_ns, slow->width_ns);
	free(all);
	free(quick);
	free(slow);
	free(none);
}
