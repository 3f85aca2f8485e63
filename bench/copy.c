/* SPDX-License-Identifier: Apache-2.0 */
/* copy.c -- the loops that the benchmarks compare with */
#include "copy.h"

#include <string.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

enum { LINE = 64 };

void copy_plain(uint8_t *to, const uint8_t *from, size_t len, const uint8_t *next_to,
		const uint8_t *next_from)
{
	memcpy(to, from, len);
}

#ifdef __x86_64__
static void copy_sse2(uint8_t *to, const uint8_t *from, size_t len, const uint8_t *next_to,
		      const uint8_t *next_from)
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

__attribute__((target("avx512f"))) static void copy_avx512(uint8_t *to, const uint8_t *from,
							   size_t len, const uint8_t *next_to,
							   const uint8_t *next_from)
{
	size_t at;

	_mm_prefetch((const char *)next_to, _MM_HINT_T0);
	for (at = 0; at < len; at += LINE) {
		_mm_prefetch((const char *)next_from + at, _MM_HINT_T0);
		_mm512_stream_si512((__m512i *)(void *)(to + at), _mm512_loadu_si512(from + at));
	}
}

copy_fn *copy_stream(size_t len, const char **name_p)
{
	int wide = __builtin_cpu_supports("avx512f");

	*name_p = len % LINE ? "none" : wide ? "avx512" : "sse2";
	if (len % LINE)
		return NULL;
	return wide ? copy_avx512 : copy_sse2;
}

void copy_fence(void)
{
	_mm_sfence();
}
#else
copy_fn *copy_stream(size_t len, const char **name_p)
{
	*name_p = "none";
	return NULL;
}

void copy_fence(void)
{
}
#endif

void copy_blocks(copy_fn *copy, uint8_t *to, const uint8_t *from, size_t len, const int64_t *to_ids,
		 const int64_t *from_ids, uint32_t n)
{
	for (uint32_t i = 0; i < n; i++) {
		uint32_t next = i + 1 < n ? i + 1 : i;

		copy(to + (size_t)to_ids[i] * len, from + (size_t)from_ids[i] * len, len,
		     to + (size_t)to_ids[next] * len, from + (size_t)from_ids[next] * len);
	}
	copy_fence();
}
