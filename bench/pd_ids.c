/* SPDX-License-Identifier: Apache-2.0 */
/* pd_ids.c -- shuffled block ids, the same on both ranks of a pair */
#include <stdlib.h>

#include "pd.h"
#include "util.h"

uint32_t bench_batches(const struct bench_options *opt)
{
	return opt->hot ? 1 : BENCH_BATCHES;
}

/* Twice the batch is the least: the ids of a batch are then still scattered. */
static uint32_t pool_blocks(const struct bench_options *opt, uint64_t block_bytes, uint32_t parts)
{
	uint64_t least = (uint64_t)opt->batch * 2;
	uint64_t blocks = opt->pool_bytes / (block_bytes * opt->layers * opt->tensors) / parts;

	if (opt->hot || blocks < least)
		blocks = least;
	if (blocks > KV_BLOCKS_MAX / parts)
		blocks = KV_BLOCKS_MAX / parts;
	return (uint32_t)blocks * parts;
}

uint32_t bench_source_blocks(const struct bench_options *opt, uint64_t block_bytes)
{
	return pool_blocks(opt, block_bytes, 1);
}

uint32_t bench_dest_blocks(const struct bench_options *opt, uint64_t block_bytes)
{
	return pool_blocks(opt, block_bytes, opt->job.prefills);
}

/*
 * `batches` times `n` different ids out of first .. first + count - 1. With `halves`, even batches
 * come from the lower half and odd ones from the upper: two batches in a row then share no block.
 */
static void draw(int64_t *out, uint32_t n, uint32_t batches, uint32_t first, uint32_t count,
		 int halves, uint64_t random)
{
	uint32_t *all = need_calloc(count, sizeof(*all));
	uint32_t b, i, at, from, room, x;

	for (i = 0; i < count; i++)
		all[i] = i;
	for (b = 0; b < batches; b++) {
		room = halves ? count / 2 : count;
		from = halves && b % 2 ? room : 0;
		for (i = 0; i < n; i++) {
			at = from + i + (uint32_t)random_below(&random, room - i);
			x = all[from + i];
			all[from + i] = all[at];
			all[at] = x;
			out[(size_t)b * n + i] = (int64_t)first + all[from + i];
		}
	}
	free(all);
}

void bench_ids_create(struct bench_ids *ids, const struct bench_options *opt, uint32_t row,
		      uint32_t prefill, uint32_t decode)
{
	uint64_t seed = mix64(opt->job.seed + ((uint64_t)row << 32 | prefill << 16 | decode));
	size_t n = (size_t)opt->batch * bench_batches(opt);
	int halves = opt->two_sided && !opt->hot;

	ids->batch = opt->batch;
	ids->batches = bench_batches(opt);
	ids->source_blocks = bench_source_blocks(opt, opt->row_bytes[row]);
	ids->part = bench_dest_blocks(opt, opt->row_bytes[row]) / opt->job.prefills;
	ids->part_first = prefill * ids->part;
	ids->source = need_calloc(n, sizeof(*ids->source));
	ids->dest = need_calloc(n, sizeof(*ids->dest));
	draw(ids->source, opt->batch, ids->batches, 0, ids->source_blocks, 0, seed);
	draw(ids->dest, opt->batch, ids->batches, ids->part_first, ids->part, halves, mix64(seed));
}

void bench_ids_destroy(struct bench_ids *ids)
{
	free(ids->source);
	free(ids->dest);
}
