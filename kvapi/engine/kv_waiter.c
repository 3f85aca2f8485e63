/* SPDX-License-Identifier: Apache-2.0 */
/* kv_waiter.c -- sleeping until another thread signals a change; a futex */
#include <limits.h>

#include "base/thread.h"
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
	kv_futex_wait(&waiter->seq, seq, deadline_ns);
}

void kv_waiter_wake(struct kv_waiter *waiter)
{
	atomic_fetch_add(&waiter->seq, 1);
	if (atomic_load(&waiter->sleepers))
		kv_futex_wake(&waiter->seq, INT_MAX);
}
