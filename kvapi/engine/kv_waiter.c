/* SPDX-License-Identifier: Apache-2.0 */
/* kv_waiter.c -- sleeping until another thread signals a change; a futex */
#include <limits.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kv_engine.h"

uint32_t kv_waiter_enter(struct kv_waiter *waiter)
{
	atomic_fetch_add(&waiter->sleepers, 1);
	return atomic_load(&waiter->seq);
}

void kv_waiter_leave(struct kv_waiter *waiter)
{
	atomic_fetch_sub(&waiter->sleepers, 1);
}

void kv_waiter_sleep(struct kv_waiter *waiter, uint32_t seq, int64_t deadline_ns)
{
	struct timespec ts = { .tv_sec = deadline_ns / INT64_C(1000000000),
			       .tv_nsec = deadline_ns % INT64_C(1000000000) };

	/*
	 * Any return is a reason to look again: woken, timed out, interrupted, or the sequence had
	 * moved.
	 */
	syscall(SYS_futex, &waiter->seq, FUTEX_WAIT_BITSET_PRIVATE, seq, &ts, NULL,
		FUTEX_BITSET_MATCH_ANY);
}

void kv_waiter_wake(struct kv_waiter *waiter)
{
	atomic_fetch_add(&waiter->seq, 1);
	if (atomic_load(&waiter->sleepers))
		syscall(SYS_futex, &waiter->seq, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}
