/* SPDX-License-Identifier: Apache-2.0 */
/* pd_floor.c -- the floor of kv_pd_bench: the same blocks copied inside one process (copy.h) */
#include <stdlib.h>

#include "copy.h"
#include "pd.h"
#include "util.h"

static uint64_t time_floor(copy_fn *copy, const struct bench_pool *from,
			   const struct bench_pool *to, const struct bench_ids *ids,
			   _Atomic uint64_t *beat)
{
	const struct bench_options *opt = from->opt;
	struct hist *times = need_calloc(1, sizeof(*times));
	uint32_t it, layer, t;
	uint64_t begin, median;
	size_t at;

	for (it = 0; it < opt->warmup + opt->iters; it++) {
		atomic_fetch_add(beat, 1);
		begin = now_ns();
		at = (size_t)(it % ids->batches) * ids->batch;
		for (layer = 0; layer < opt->layers; layer++)
			for (t = 0; t < opt->tensors; t++)
				copy_blocks(copy, bench_block(to, layer, t, 0),
					    bench_block(from, layer, t, 0), from->block_bytes,
					    ids->dest + at, ids->source + at, ids->batch);
		if (it >= opt->warmup)
			hist_add(times, now_ns() - begin);
	}
	median = hist_percentile(times, 5000);
	free(times);
	return median;
}

void bench_floor(const struct bench_pool *source, unsigned char *dest, uint32_t dest_blocks,
		 const struct bench_ids *ids, _Atomic uint64_t *beat, uint64_t *memcpy_ns_p,
		 uint64_t *nt_ns_p)
{
	const char *name;
	copy_fn *stream = copy_stream(source->block_bytes, &name);
	struct bench_pool to = *source;

	to.base = dest;
	to.blocks = dest_blocks;
	*memcpy_ns_p = time_floor(copy_plain, source, &to, ids, beat);
	*nt_ns_p = stream ? time_floor(stream, source, &to, ids, beat) : 0;
}
