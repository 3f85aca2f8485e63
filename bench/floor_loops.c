/* SPDX-License-Identifier: Apache-2.0 */
/* floor_loops.c -- which blocks go where, and the barest loops that move them */
#include "floor.h"

#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { IOVECS = 256 };

/* ---------------------------------------------------------------- plan and bytes */

void plan_make(struct plan *p, size_t size)
{
	uint64_t random = 0x9e3779b97f4a7c15u;

	free(p->from);
	free(p->to);
	p->size = size;
	p->blocks = (uint32_t)(cfg.pool / size);
	p->from = malloc(p->blocks * sizeof(uint32_t));
	p->to = malloc(p->blocks * sizeof(uint32_t));
	PAIR_CHECK(p->from && p->to && p->blocks >= cfg.batch);
	for (uint32_t i = 0; i < p->blocks; i++)
		p->from[i] = p->to[i] = i;
	for (uint32_t i = p->blocks - 1; i; i--) {
		uint32_t a = (uint32_t)(pair_random(&random) % (i + 1));
		uint32_t b = (uint32_t)(pair_random(&random) % (i + 1));
		uint32_t t = p->from[i];

		p->from[i] = p->from[a];
		p->from[a] = t;
		t = p->to[i];
		p->to[i] = p->to[b];
		p->to[b] = t;
	}
}

void fill_words(uint8_t *p, size_t len)
{
	for (size_t at = 0; at < len; at += 8) {
		uint64_t w = word_at(at);

		memcpy(p + at, &w, 8);
	}
}

/* ---------------------------------------------------------------- the floor's loops */

#if defined(__x86_64__)
__attribute__((target("avx512f"))) static void nt512(uint8_t *dst, const uint8_t *src, size_t n)
{
	for (; n; n -= 64, dst += 64, src += 64)
		_mm512_stream_si512((void *)dst, _mm512_loadu_si512((const void *)src));
}

__attribute__((target("avx2"))) static void nt256(uint8_t *dst, const uint8_t *src, size_t n)
{
	for (; n; n -= 32, dst += 32, src += 32)
		_mm256_stream_si256((void *)dst, _mm256_loadu_si256((const void *)src));
}

static void nt128(uint8_t *dst, const uint8_t *src, size_t n)
{
	for (; n; n -= 16, dst += 16, src += 16)
		_mm_stream_si128((void *)dst, _mm_loadu_si128((const void *)src));
}

static void drain(void)
{
	_mm_sfence();
}
#else
static void drain(void)
{
}
#endif

static void plain(uint8_t *dst, const uint8_t *src, size_t n)
{
	memcpy(dst, src, n);
}

typedef void copy_fn(uint8_t *dst, const uint8_t *src, size_t n);

static copy_fn *nt_loop(const char **name_p)
{
#if defined(__x86_64__)
	*name_p = "avx512";
	if (__builtin_cpu_supports("avx512f"))
		return nt512;
	*name_p = "avx2";
	if (__builtin_cpu_supports("avx2"))
		return nt256;
	*name_p = "sse2";
	return nt128;
#else
	*name_p = "plain";
	return plain;
#endif
}

static void floor_copy(struct bench *b, copy_fn *copy)
{
	const struct plan *p = &b->plan;

	for (uint32_t i = 0; i < cfg.batch; i++) {
		uint32_t k = plan_slot(p, b->next, i);

		copy(b->floor_dst + (size_t)p->to[k] * p->size,
		     b->s->base + (size_t)p->from[k] * p->size, p->size);
	}
	drain();
}

static void floor_cma(struct bench *b)
{
	const struct plan *p = &b->plan;
	struct iovec ours[IOVECS], theirs[IOVECS];

	for (uint32_t i = 0; i < cfg.batch;) {
		uint32_t n = cfg.batch - i < IOVECS ? cfg.batch - i : IOVECS;

		for (uint32_t j = 0; j < n; j++, i++) {
			uint32_t k = plan_slot(p, b->next, i);

			ours[j] = (struct iovec){ b->s->base + (size_t)p->from[k] * p->size,
						  p->size };
			theirs[j] = (struct iovec){
				(void *)(uintptr_t)(b->peer_base + (uint64_t)p->to[k] * p->size),
				p->size
			};
		}
		PAIR_CHECK(process_vm_writev(b->s->other, ours, n, theirs, n, 0) ==
			   (ssize_t)(n * p->size));
	}
}

const char *floor_nt_name(void)
{
	const char *name;

	nt_loop(&name);
	return name;
}

void floor_batch(struct bench *b, enum way way)
{
	const char *name;

	if (way == FLOOR_CMA)
		floor_cma(b);
	else
		floor_copy(b, way == FLOOR_NT ? nt_loop(&name) : plain);
}
