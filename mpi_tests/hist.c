/* SPDX-License-Identifier: Apache-2.0 */
/* hist.c -- a histogram of durations from which percentiles are read */
#include "hist.h"

static uint32_t hist_index(uint64_t ns)
{
	const uint64_t top = UINT64_C(1) << HIST_TOP_BITS;
	uint32_t octave, sub;

	if (ns > top)
		ns = top;
	if (ns >> HIST_SUB_BITS == 0)
		return (uint32_t)ns;
	octave = 63u - (uint32_t)__builtin_clzll(ns) - HIST_SUB_BITS;
	sub = (uint32_t)(ns >> octave) & ((1u << HIST_SUB_BITS) - 1);
	return ((octave + 1) << HIST_SUB_BITS) + sub;
}

/* The largest value that falls into a bucket. */
static uint64_t hist_value(uint32_t index)
{
	uint32_t octave = index >> HIST_SUB_BITS;
	uint64_t sub = index & ((1u << HIST_SUB_BITS) - 1);

	if (octave == 0)
		return index;
	octave--;
	return ((((UINT64_C(1) << HIST_SUB_BITS) | sub) + 1) << octave) - 1;
}

void hist_add(struct hist *h, uint64_t ns)
{
	h->samples++;
	h->sum_ns += ns;
	if (ns > h->max_ns)
		h->max_ns = ns;
	h->bucket[hist_index(ns)]++;
}

void hist_merge(struct hist *into, const struct hist *from)
{
	uint32_t i;

	into->samples += from->samples;
	into->sum_ns += from->sum_ns;
	if (from->max_ns > into->max_ns)
		into->max_ns = from->max_ns;
	for (i = 0; i < HIST_BUCKETS; i++)
		into->bucket[i] += from->bucket[i];
}

uint64_t hist_percentile(const struct hist *h, uint32_t per_mille_10)
{
	uint64_t rank = (h->samples * per_mille_10 + 9999) / 10000;
	uint64_t seen = 0, value;
	uint32_t i;

	if (h->samples == 0)
		return 0;
	if (rank == 0)
		rank = 1;
	for (i = 0; i < HIST_BUCKETS; i++) {
		seen += h->bucket[i];
		if (seen >= rank)
			break;
	}
	value = hist_value(i);
	return value < h->max_ns ? value : h->max_ns;
}
