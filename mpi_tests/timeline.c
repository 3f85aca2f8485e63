/* SPDX-License-Identifier: Apache-2.0 */
/* timeline.c -- bytes and durations over time */
#include "timeline.h"

#include <string.h>

static void add_interval(struct timeline *t, uint32_t index, const struct timeline_interval *from)
{
	t->at[index].bytes += from->bytes;
	hist_merge(&t->at[index].took, &from->took);
}

/* Until an interval is at least so wide. */
static void widen(struct timeline *t, uint64_t width_ns)
{
	uint32_t i;

	if (t->width_ns == 0)
		t->width_ns = TIMELINE_FIRST_NS;
	for (; t->width_ns < width_ns; t->width_ns *= 2)
		for (i = 1; i < TIMELINE_INTERVALS; i++) {
			add_interval(t, i / 2, &t->at[i]);
			memset(&t->at[i], 0, sizeof(t->at[i]));
		}
}

void timeline_add(struct timeline *t, uint64_t since_ns, uint64_t bytes, uint64_t took_ns)
{
	struct timeline_interval *at;

	widen(t, since_ns / TIMELINE_INTERVALS + 1);
	at = &t->at[since_ns / t->width_ns];
	at->bytes += bytes;
	hist_add(&at->took, took_ns);
}

void timeline_merge(struct timeline *into, const struct timeline *from)
{
	uint32_t i;

	if (from->width_ns == 0)
		return;
	widen(into, from->width_ns);
	for (i = 0; i < TIMELINE_INTERVALS; i++)
		add_interval(into, (uint32_t)(i * from->width_ns / into->width_ns), &from->at[i]);
}
