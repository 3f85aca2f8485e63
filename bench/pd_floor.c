/* SPDX-License-Identifier: Apache-2.0 */
/* pd_floor.c -- the floor of kv_pd_bench: the same blocks copied inside one process (copy.h) */
#include <stdlib.h>

#include "copy.h"
#include "pd.h"
#include "util.h"

/* One layer of one tensor of one batch. */
static void copy_batch(copy_fn *copy, const struct bench_pool *from, const struct bench_pool *to,
		       const struct bench_ids *ids, size_t at, uint32_t layer, uint32_t tensor)
{
	const int64_t *source = ids->source + at, *dest = ids->dest + at;
	const uint8_t *next_from = bench_block(from, layer, tensor, (uint64_t)source[0]);
	uint8_t *next_to = bench_block(to, layer, tensor, (uint64_t)dest[0]);
	uint32_t i, next;

	for (i = 0; i < ids->batch; i++) {
		const uint8_t *this_from = next_from;
		uint8_t *this_to = next_to;

		next = i + 1 < ids->batch ? i + 1 : i;
		next_from = bench_block(from, layer, tensor, (uint64_t)source[next]);
		next_to = bench_block(to, layer, tensor, (uint64_t)dest[next]);
		copy(this_to, this_from, from->block_bytes, next_to, next_from);
	}
}

static uint64_t time_floor(copy_fn *copy, const struct bench_pool *from,
			   const struct bench_pool *to, const struct bench_ids *ids)
{
	const struct bench_options *opt = from->opt;
	struct hist *times = need_calloc(1, sizeof(*times));
	uint32_t it, layer, t;
	uint64_t begin, median;
	size_t at;

	for (it = 0; it < opt->warmup + opt->iters; it++) {
		begin = now_ns();
		at = (size_t)(it % ids->batches) * ids->batch;
		for (layer = 0; layer < opt->layers; layer++)
			for (t = 0; t < opt->tensors; t++)
				copy_batch(copy, from, to, ids, at, layer, t);
		copy_fence();
		if (it >= opt->warmup)
			hist_add(times, now_ns() - begin);
	}
	median = hist_percentile(times, 5000);
	free(times);
	return median;
}

void bench_floor(const struct bench_pool *source, unsigned char *dest, uint32_t dest_blocks,
		 const struct bench_ids *ids, uint64_t *memcpy_ns_p, uint64_t *nt_ns_p)
{
	const char *name;
	copy_fn *stream = copy_stream(source->block_bytes, &name);
	struct bench_pool to = *source;

	to.base = dest;
	to.blocks = dest_blocks;
	*memcpy_ns_p = time_floor(copy_plain, source, &to, ids);
	*nt_ns_p = stream ? time_floor(stream, source, &to, ids) : 0;
}
