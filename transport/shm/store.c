/* SPDX-License-Identifier: Apache-2.0 */
/* store.c -- non-temporal, plain and ordered copies */
#include "store.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif

void store_plain(uint8_t *dst, const uint8_t *src, size_t n, struct store_ahead ahead)
{
	memcpy(dst, src, n);
}

/*
 * memcpy promises no order (it may store the end first). Here each 8-byte word is stored once,
 * ascending; the fence keeps the last word of a line behind the rest of it on CPUs that reorder
 * stores; on x86 it only stops the compiler.
 */
void store_ordered(uint8_t *dst, const uint8_t *src, size_t n, struct store_ahead ahead)
{
	while (n && ((uintptr_t)dst & 7)) {
		__atomic_store_n(dst++, *src++, __ATOMIC_RELEASE);
		n--;
	}
	for (; n >= 8; n -= 8, dst += 8, src += 8) {
		uint64_t word;

		memcpy(&word, src, 8);
		if (((uintptr_t)dst & 127) == 120)
			atomic_thread_fence(memory_order_release);
		__atomic_store_n((uint64_t *)(void *)dst, word, __ATOMIC_RELAXED);
		/* and the next line behind the end of this one */
		if (((uintptr_t)dst & 127) == 120)
			atomic_thread_fence(memory_order_release);
	}
	while (n--)
		__atomic_store_n(dst++, *src++, __ATOMIC_RELEASE);
}

#if defined(__x86_64__)

/*
 * Bytes before the first whole cache line of the destination: non-temporal stores want whole lines.
 */
static inline size_t head_bytes(const uint8_t *dst, size_t n)
{
	size_t head = -(uintptr_t)dst & 63;

	return head < n ? head : n;
}

/*
 * Shuffled blocks miss the TLB and defeat the hardware prefetcher at each block's start. So while
 * one block is copied the lines of a later one's source are fetched, and one line of its
 * destination: not for its data (the stores go around the caches) but for the translation. What
 * that gains: docs/benchmarks.md.
 */
#define NT_COPY(name, isa, line)                                                           \
	__attribute__((target(isa))) void name(uint8_t *dst, const uint8_t *src, size_t n, \
					       struct store_ahead ahead)                   \
	{                                                                                  \
		size_t head = head_bytes(dst, n);                                          \
                                                                                           \
		memcpy(dst, src, head);                                                    \
		dst += head;                                                               \
		src += head;                                                               \
		n -= head;                                                                 \
		__builtin_prefetch(ahead.dst, 1);                                          \
		for (; n >= 64; n -= 64, dst += 64, src += 64, ahead.src += 64) {          \
			__builtin_prefetch(ahead.src);                                     \
			line;                                                              \
		}                                                                          \
		memcpy(dst, src, n);                                                       \
	}

/* clang-format off */
NT_COPY(store_nt_avx512, "avx512f",
	_mm512_stream_si512((void *)dst, _mm512_loadu_si512((const void *)src)))
NT_COPY(store_nt_avx2, "avx2",
	_mm256_stream_si256((void *)dst, _mm256_loadu_si256((const void *)src));
	_mm256_stream_si256((void *)(dst + 32), _mm256_loadu_si256((const void *)(src + 32))))
NT_COPY(store_nt_sse2, "sse2",
	_mm_stream_si128((void *)dst, _mm_loadu_si128((const void *)src));
	_mm_stream_si128((void *)(dst + 16), _mm_loadu_si128((const void *)(src + 16)));
	_mm_stream_si128((void *)(dst + 32), _mm_loadu_si128((const void *)(src + 32)));
	_mm_stream_si128((void *)(dst + 48), _mm_loadu_si128((const void *)(src + 48))))
/* clang-format on */

/*
 * Whether the processor has a feature of leaf 7 and the kernel saves the registers `state` that it
 * uses. Not __builtin_cpu_supports: not every compiler's runtime answers it.
 */
static bool cpu_has(unsigned int feature, unsigned int state)
{
	unsigned int a, b, c, d, saved, high;

	if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
		return false;
	__asm__("xgetbv" : "=a"(saved), "=d"(high) : "c"(0));
	return (saved & state) == state && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & feature);
}

store_fn *store_nt(const char **name_p)
{
	if (cpu_has(bit_AVX512F, 0xe6)) {
		*name_p = "avx512";
		return store_nt_avx512;
	}
	if (cpu_has(bit_AVX2, 0x06)) {
		*name_p = "avx2";
		return store_nt_avx2;
	}
	*name_p = "sse2";
	return store_nt_sse2;
}

void store_drain(void)
{
	_mm_sfence();
}

#else

store_fn *store_nt(const char **name_p)
{
	*name_p = "plain";
	return store_plain;
}

void store_drain(void)
{
}

#endif
