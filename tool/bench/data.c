/* SPDX-License-Identifier: Apache-2.0 */
/* data.c -- the blocks of a round, which go where, and what must be in them */
#include "bench.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hist.h"
#include "pattern.h"
#include "util.h"

enum { FLOOR_COPIES = 32, LINE_BYTES = 64 };

uint32_t bench_round_batches(const struct bench_plan *plan, uint32_t row)
{
	uint64_t fit = BENCH_POOL_BYTES / (plan->batch * plan->row_bytes[row]);

	if (fit > BENCH_ROUND_MAX)
		return BENCH_ROUND_MAX;
	return fit ? (uint32_t)fit : 1;
}

uint64_t bench_pool_bytes(const struct bench_plan *plan)
{
	uint64_t most = 0;

	for (uint32_t row = 0; row < plan->rows; row++) {
		uint64_t bytes = (uint64_t)bench_round_batches(plan, row) * plan->batch *
				 plan->row_bytes[row];

		if (bytes > most)
			most = bytes;
	}
	return most;
}

int64_t *bench_ids(const struct bench_plan *plan, uint32_t row, bool destination)
{
	uint32_t n = bench_round_batches(plan, row) * plan->batch;
	uint64_t random = mix64(plan->seed + 2 * row + destination);
	int64_t *ids = malloc(n * sizeof(*ids));

	for (uint32_t i = 0; ids && i < n; i++) {
		uint32_t at = (uint32_t)random_below(&random, i + 1);

		ids[i] = ids[at];
		ids[at] = i;
	}
	return ids;
}

/* Of the `at`-th block of a round. */
static uint64_t key_of(const struct bench_plan *plan, uint32_t row, uint32_t round, uint32_t at)
{
	const struct pattern p = {
		.seed = plan->seed,
		.request = (uint64_t)row << 32 | at / plan->batch,
		.block = at % plan->batch,
		.epoch = round,
	};

	return pattern_key(&p);
}

void bench_fill(const struct bench_plan *plan, unsigned char *pool, uint32_t row, uint32_t round,
		uint32_t batches, const int64_t *ids)
{
	uint64_t len = plan->row_bytes[row];

	for (uint32_t at = 0; at < batches * plan->batch; at++)
		pattern_fill(pool + (uint64_t)ids[at] * len, len, key_of(plan, row, round, at));
}

uint64_t bench_verify(const struct bench_plan *plan, const unsigned char *pool, uint32_t row,
		      uint32_t round, uint32_t batches, const int64_t *ids, char *text, size_t cap)
{
	uint64_t len = plan->row_bytes[row], wrong = 0;
	size_t first;

	for (uint32_t at = 0; at < batches * plan->batch; at++) {
		size_t n = pattern_check(pool + (uint64_t)ids[at] * len, len,
					 key_of(plan, row, round, at), &first);

		if (n && !wrong)
			snprintf(text, cap,
				 "block %lld of %llu bytes: %zu wrong bytes, the first at %zu "
				 "(batch %u, round %u)",
				 (long long)ids[at], (unsigned long long)len, n, first,
				 at / plan->batch, round);
		wrong += n;
	}
	return wrong;
}

copy_fn *bench_copy(uint64_t bytes, const char **name_p)
{
	copy_fn *stream = copy_stream(bytes, name_p);

	if (!stream)
		*name_p = "memcpy";
	return stream ? stream : copy_plain;
}

uint64_t bench_floor(const struct bench_plan *plan, const unsigned char *pool, uint32_t row,
		     const int64_t *from, const int64_t *to)
{
	uint32_t batches = bench_round_batches(plan, row);
	uint64_t len = plan->row_bytes[row], bytes = (uint64_t)batches * plan->batch * len, median;
	struct hist *times = calloc(1, sizeof(*times));
	const char *name;
	copy_fn *copy = bench_copy(len, &name);
	void *memory;

	if (!times || posix_memalign(&memory, LINE_BYTES, bytes)) {
		free(times);
		return 0;
	}
	memset(memory, 1, bytes); /* so that its pages are there */
	for (uint32_t n = 0; n < FLOOR_COPIES; n++) {
		uint32_t at = n % batches * plan->batch;
		uint64_t began = now_ns();

		copy_blocks(copy, memory, pool, len, to + at, from + at, plan->batch);
		hist_add(times, now_ns() - began);
	}
	median = hist_percentile(times, 5000);
	free(times);
	free(memory);
	return median;
}
