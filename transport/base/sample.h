/* SPDX-License-Identifier: Apache-2.0 */
/* sample.h -- what the metrics of expose.h are made of: counters, and lines of the text format */
#ifndef BASE_SAMPLE_H
#define BASE_SAMPLE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "report.h"

/* Any thread counts; the order to anything else is not promised. Returns what it was before. */
static inline uint64_t kv_counter_add(_Atomic uint64_t *counter, uint64_t n)
{
	return atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline uint64_t kv_counter_get(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

/*
 * How long something took: up to 1024 ns, 2048 ns, 4096 ns, ... 17.2 s, and more. Any thread
 * counts, without a lock; zero it, and there is nothing to free.
 */
enum { KV_TIME_BUCKETS = 26 };
struct kv_times {
	_Atomic uint64_t bucket[KV_TIME_BUCKETS];
	_Atomic uint64_t sum_ns;
};
static inline void kv_times_count(struct kv_times *times, int64_t ns)
{
	uint64_t all = ns > 0 ? (uint64_t)ns : 1; /* a clock may be a round old: kv_peer_now */
	/* The bits of all - 1 above the lowest ten. */
	size_t i = 54 - (size_t)__builtin_clzll((all - 1) | 1023);

	kv_counter_add(&times->bucket[i < KV_TIME_BUCKETS ? i : KV_TIME_BUCKETS - 1], 1);
	kv_counter_add(&times->sum_ns, all);
}
/* Where bucket i ends; the last one does not. */
static inline uint64_t kv_times_end_ns(size_t i)
{
	return UINT64_C(1024) << i;
}
void kv_times_add(struct kv_times *to, const struct kv_times *from);
uint64_t kv_times_n(const struct kv_times *times);
/* 99 of 100 took no more than this, rounded up; 0: there are none. */
uint64_t kv_times_p99_us(const struct kv_times *times);
/* Fields operations_timed and p99_us; nothing, if there are none. */
void kv_times_report_p99(struct kv_report *r, const struct kv_times *times);
/* Field `times`: the buckets, for `kvrail top`, which asks again and takes the difference. */
void kv_times_report(struct kv_report *r, const struct kv_times *times);
/* The lines of a histogram, NAME_bucket{LABELS,LABEL="VALUE",le="..."} n and so on. */
void kv_sample_times(struct kv_text *text, const char *name, const char *labels, const char *label,
		     const char *value, const struct kv_times *times);

/*
 * A label's value: quotes and backslashes escaped, and a question mark for what is not UTF-8, which
 * Prometheus would not read, or a control character. `cap` of 8 at least.
 */
const char *kv_label(char *buf, size_t cap, const char *value);

/*
 * A line for each code that was counted, and for `always`: NAME{LABELS,LABEL="code's name"} n.
 * counter[-code], `codes` of them. kind: of LABELS a further one, kind="..."; NULL: none.
 */
void kv_sample_codes(struct kv_text *text, const char *name, const char *labels, const char *kind,
		     const char *label, const _Atomic uint64_t *counter, int codes, int always);

#endif
