/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pd_floor.c -- what one thread of one process can do with the same blocks: no transport, no
 * second process, no acknowledgement
 *
 * Two floors: memcpy block by block, as a first program would have it; and the best that one thread
 * can do, non-temporal stores as wide as the CPU has them while the next block is prefetched.
 */
#include <stdlib.h>
#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "pd.h"
#include "util.h"

/* Copies one block; `next_to` and `next_from` are where the one after it will be. */
typedef void copy_fn(unsigned char *to, const unsigned char *from, size_t len,
		     const unsigned char *next_to, const unsigned char *next_from);

static void copy_plain(unsigned char *to, const unsigned char *from, size_t len,
		       const unsigned char *next_to, const unsigned char *next_from)
{
	(void)next_to;
	(void)next_from;
	memcpy(to, from, len);
}

enum { LINE = 64 };

#ifdef __x86_64__
/* `to` is aligned to a line and `len` a multiple of it: see stream_fn. */
static void copy_sse2(unsigned char *to, const unsigned char *from, size_t len,
		      const unsigned char *next_to, const unsigned char *next_from)
{
	size_t at, part;

	_mm_prefetch((const char *)next_to, _MM_HINT_T0);
	for (at = 0; at < len; at += LINE) {
		_mm_prefetch((const char *)next_from + at, _MM_HINT_T0);
		for (part = at; part < at + LINE; part += 16)
			_mm_stream_si128(
				(__m128i *)(void *)(to + part),
				_mm_loadu_si128((const __m128i *)(const void *)(from + part)));
	}
}

__attribute__((target("avx512f"))) static void copy_avx512(unsigned char *to,
							   const unsigned char *from, size_t len,
							   const unsigned char *next_to,
							   const unsigned char *next_from)
{
	size_t at;

	_mm_prefetch((const char *)next_to, _MM_HINT_T0);
	for (at = 0; at < len; at += LINE) {
		_mm_prefetch((const char *)next_from + at, _MM_HINT_T0);
		_mm512_stream_si512((__m512i *)(void *)(to + at), _mm512_loadu_si512(from + at));
	}
}

static copy_fn *stream_fn(uint64_t block_bytes)
{
	if (block_bytes % LINE)
		return NULL;
	return __builtin_cpu_supports("avx512f") ? copy_avx512 : copy_sse2;
}

static void fence(void)
{
	_mm_sfence();
}
#else
static copy_fn *stream_fn(uint64_t block_bytes)
{
	(void)block_bytes;
	return NULL;
}

static void fence(void)
{
}
#endif

/* One layer of one tensor of one batch. */
static void copy_batch(copy_fn *copy, const struct bench_pool *from, const struct bench_pool *to,
		       const struct bench_ids *ids, size_t at, uint32_t layer, uint32_t tensor)
{
	const int64_t *source = ids->source + at, *dest = ids->dest + at;
	const unsigned char *next_from = bench_block(from, layer, tensor, (uint64_t)source[0]);
	unsigned char *next_to = bench_block(to, layer, tensor, (uint64_t)dest[0]);
	uint32_t i, next;

	for (i = 0; i < ids->batch; i++) {
		const unsigned char *this_from = next_from;
		unsigned char *this_to = next_to;

		next = i + 1 < ids->batch ? i + 1 : i;
		next_from = bench_block(from, layer, tensor, (uint64_t)source[next]);
		next_to = bench_block(to, layer, tensor, (uint64_t)dest[next]);
		copy(this_to, this_from, from->block_bytes, next_to, next_from);
	}
}

static uint64_t run(copy_fn *copy, const struct bench_pool *from, const struct bench_pool *to,
		    const struct bench_ids *ids)
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
		fence();
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
	copy_fn *stream = stream_fn(source->block_bytes);
	struct bench_pool to = *source;

	to.base = dest;
	to.blocks = dest_blocks;
	*memcpy_ns_p = run(copy_plain, source, &to, ids);
	*nt_ns_p = stream ? run(stream, source, &to, ids) : 0;
}
