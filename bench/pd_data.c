/* SPDX-License-Identifier: Apache-2.0 */
/* pd_data.c -- test data of the pools, and what a decode pool must hold at the end */
#include <stdlib.h>

#include "pd.h"
#include "pattern.h"
#include "util.h"

unsigned char *bench_block(const struct bench_pool *p, uint32_t layer, uint32_t tensor, uint64_t id)
{
	uint64_t slab = (uint64_t)tensor * p->opt->layers + layer;

	return p->base + (slab * p->blocks + id) * p->block_bytes;
}

static uint64_t key_of(const struct bench_pool *p, uint64_t who, uint32_t layer, uint32_t tensor,
		       uint64_t id, uint64_t epoch)
{
	const struct pattern pat = {
		.seed = p->opt->job.seed + p->row,
		.request = who,
		.block = id,
		.epoch = epoch,
		.layer = layer,
		.tensor = tensor,
	};

	return pattern_key(&pat);
}

static void fill_block(const struct bench_pool *p, uint64_t who, uint64_t id, uint64_t epoch)
{
	uint32_t layer, t;

	for (t = 0; t < p->opt->tensors; t++)
		for (layer = 0; layer < p->opt->layers; layer++)
			pattern_fill(bench_block(p, layer, t, id), p->block_bytes,
				     key_of(p, who, layer, t, id, epoch));
}

void bench_fill_source(const struct bench_pool *p, uint32_t prefill)
{
	uint32_t i;

	for (i = 0; i < p->blocks; i++)
		fill_block(p, prefill, i, 0);
}

void bench_refill(const struct bench_pool *p, uint32_t prefill, const int64_t *ids, uint32_t n,
		  uint64_t epoch)
{
	uint32_t i;

	for (i = 0; i < n; i++)
		fill_block(p, prefill, (uint64_t)ids[i], epoch);
}

void bench_stamp(const struct bench_pool *p)
{
	uint32_t i;

	for (i = 0; i < p->blocks; i++)
		fill_block(p, PATTERN_FREE, i, 0);
}

uint64_t bench_check(const struct bench_pool *p, const struct bench_ids *ids, uint32_t prefill,
		     uint32_t iterations, char *note, size_t note_cap)
{
	/* For each block of the part: 0 = never written, else 1 + source block, and the epoch. */
	uint64_t *from = need_calloc(ids->part, sizeof(*from)), wrong = 0, id, key;
	uint8_t *epoch = need_calloc(ids->part, sizeof(*epoch));
	uint32_t it, i, layer, t;
	size_t at, first, n;

	it = iterations > ids->batches ? iterations - ids->batches : 0;
	for (; it < iterations; it++)
		for (i = 0; i < ids->batch; i++) {
			at = (size_t)(it % ids->batches) * ids->batch + i;
			from[ids->dest[at] - ids->part_first] = 1 + (uint64_t)ids->source[at];
			epoch[ids->dest[at] - ids->part_first] = it == iterations - 1;
		}
	for (t = 0; t < p->opt->tensors; t++)
		for (layer = 0; layer < p->opt->layers; layer++)
			for (i = 0; i < ids->part; i++) {
				id = ids->part_first + i;
				key = from[i] ? key_of(p, prefill, layer, t, from[i] - 1, epoch[i])
					      : key_of(p, PATTERN_FREE, layer, t, id, 0);
				n = pattern_check(bench_block(p, layer, t, id), p->block_bytes, key,
						  &first);
				if (n && wrong == 0)
					snprintf(note, note_cap,
						 "%zu wrong bytes in block %llu (%s), layer %u, "
						 "tensor %u, first at %zu",
						 n, (unsigned long long)id,
						 from[i] ? "written" : "never written", layer, t,
						 first);
				wrong += n;
			}
	free(from);
	free(epoch);
	return wrong;
}
