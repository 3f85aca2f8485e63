/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slow_verbs.c -- verbs that a device may take long for, in a thread of their own
 *
 * Changing the state of a queue pair or destroying it is a matter of microseconds, until its device
 * or its wire is in trouble: then it may take most of a minute, and that is when a connection is
 * torn down. So such a verb is a job in a thread that lives as long as the job. Its owner waits for
 * it IB_SLOW_MS and then comes back to look (ib_slow_busy); while a job that may destroy queue
 * pairs is under way it touches none of them.
 */
#include <errno.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/thread.h"
#include "ib.h"

enum { SLOW_FREE = 0, SLOW_BUSY, SLOW_DONE, SLOW_LEFT };

static void *slow_main(void *arg)
{
	struct ib_conn *c = arg;
	int busy = SLOW_BUSY;

	c->end.slow_thread = pthread_self();
	c->end.job(c);
	if (!atomic_compare_exchange_strong(&c->end.slow, &busy, SLOW_DONE)) {
		c->end.left_job(c);
		atomic_store(&c->end.slow, SLOW_DONE);
		return NULL;
	}
	kv_futex_wake(&c->end.slow, 1);
	return NULL;
}

/* 0, EBUSY, or why there is no thread. */
static int start_job(struct ib_conn *c, void (*job)(struct ib_conn *c))
{
	int was = SLOW_FREE, ret = EAGAIN;
	pthread_t thread;

	if (!atomic_compare_exchange_strong(&c->end.slow, &was, SLOW_BUSY))
		return EBUSY;
	c->end.job = job;
	if (!kv_fault(IB_ASIDE) && !c->ctx->inline_jobs)
		ret = kv_thread_start(&thread, NULL, slow_main, c);
	if (ret)
		atomic_store(&c->end.slow, SLOW_FREE);
	return ret;
}

bool ib_slow_start(struct ib_conn *c, void (*job)(struct ib_conn *c))
{
	return !start_job(c, job);
}

bool ib_slow_busy(struct ib_conn *c)
{
	if (atomic_load(&c->end.slow) == SLOW_DONE) {
		pthread_join(c->end.slow_thread, NULL);
		atomic_store(&c->end.slow, SLOW_FREE);
	}
	return atomic_load(&c->end.slow) != SLOW_FREE;
}

bool ib_slow_aside(const struct ib_conn *c)
{
	return atomic_load(&c->end.slow) != SLOW_FREE;
}

bool ib_slow_run(struct ib_conn *c, void (*job)(struct ib_conn *c))
{
	int64_t until = kv_deadline_ns(IB_SLOW_MS);
	int ret = ib_slow_busy(c) ? EBUSY : start_job(c, job);

	if (ret == EBUSY)
		return false;
	if (ret)
		job(c); /* there are no more threads: the call waits for the device */
	while (atomic_load(&c->end.slow) == SLOW_BUSY && kv_now_ns() < until)
		kv_futex_wait(&c->end.slow, SLOW_BUSY, until);
	return !ib_slow_busy(c);
}

bool ib_slow_leave(struct ib_conn *c, void (*then)(struct ib_conn *c))
{
	int busy = SLOW_BUSY;

	c->end.left_job = then;
	return atomic_compare_exchange_strong(&c->end.slow, &busy, SLOW_LEFT);
}
