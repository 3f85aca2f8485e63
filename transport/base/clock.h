/* SPDX-License-Identifier: Apache-2.0 */
/*
 * clock.h -- CLOCK_MONOTONIC in nanoseconds, and deadlines made of it; no other clock is used
 * anywhere
 */
#ifndef BASE_CLOCK_H
#define BASE_CLOCK_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

#define KV_NS_PER_MS INT64_C(1000000)
#define KV_NS_PER_US INT64_C(1000)

static inline int64_t kv_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

static inline int64_t kv_deadline_ns(int64_t timeout_ms)
{
	return kv_now_ns() + timeout_ms * KV_NS_PER_MS;
}

static inline int64_t kv_sooner(int64_t a_ns, int64_t b_ns)
{
	return a_ns < b_ns ? a_ns : b_ns;
}

static inline int64_t kv_later(int64_t a_ns, int64_t b_ns)
{
	return a_ns > b_ns ? a_ns : b_ns;
}

/* Milliseconds for poll(2) until a deadline, rounded up; 0 if it has passed, at most max_ms. */
static inline int kv_poll_ms(int64_t deadline_ns, int max_ms)
{
	int64_t left = deadline_ns - kv_now_ns();

	if (left <= 0)
		return 0;
	if (left >= max_ms * KV_NS_PER_MS)
		return max_ms;
	return (int)((left + KV_NS_PER_MS - 1) / KV_NS_PER_MS);
}

static inline void kv_cpu_relax(void)
{
#if defined(__x86_64__)
	__builtin_ia32_pause();
#elif defined(__aarch64__)
	__asm__ volatile("isb" ::: "memory");
#endif
}

#endif
