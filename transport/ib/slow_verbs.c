/* SPDX-License-Identifier: Apache-2.0 */
/*
 * slow_verbs.c -- verbs that a device may take long for, in a thread of their own
 *
 * Changing the state of a queue pair or destroying it is a matter of microseconds, until its device
 * or its wire is in trouble: then it may take most of a minute, and that is when a connection is
 * torn down. So such a verb is a job in a thread that lives as long as the job. Its owner waits for
 * it IB_SLOW_MS and then comes back to look (ib_slow_busy); while a job that may destroy queue
 * pairs is under way it touches none of them. A connection that is closed with a job under way is
 * left to the job's thread, and ib_slow_close waits for those before the device is closed. Until
 * the thread has destroyed the queue pairs, regions that they may reach stay registered (c->left).
 */
#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault.h"
#include "base/log.h"
#include "ib.h"

enum { SLOW_FREE = 0, SLOW_BUSY, SLOW_DONE, SLOW_LEFT };

/*
 * Called by the owner when it gives up the connection. Frees everything except *c, which the thread
 * still uses.
 */
static void free_left(struct ib_conn *c)
{
	struct tr_left *left = c->left;

	if (ib_conn_mem_free(c)) /* or what it may reach stays registered */
		tr_left_done(left);
	atomic_store(&c->slow, SLOW_DONE);
}

static void *slow_main(void *arg)
{
	struct ib_conn *c = arg;
	int busy = SLOW_BUSY;

	c->slow_thread = pthread_self();
	if (c->job)
		c->job(c);
	if (!atomic_compare_exchange_strong(&c->slow, &busy, SLOW_DONE)) {
		free_left(c);
		return NULL;
	}
	syscall(SYS_futex, &c->slow, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	return NULL;
}

/* 0, EBUSY, or why there is no thread. */
static int start_job(struct ib_conn *c, void (*job)(struct ib_conn *c), int state)
{
	int was = SLOW_FREE, ret = EAGAIN;
	sigset_t all, before;
	pthread_t thread;

	if (!atomic_compare_exchange_strong(&c->slow, &was, state))
		return EBUSY;
	c->job = job;
	/* No signal of the application is ever handled in it. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (!kv_fault(IB_ASIDE) && !c->ctx->inline_jobs)
		ret = pthread_create(&thread, NULL, slow_main, c);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (ret)
		atomic_store(&c->slow, SLOW_FREE);
	return ret;
}

void ib_slow_start(struct ib_conn *c, void (*job)(struct ib_conn *c))
{
	start_job(c, job, SLOW_BUSY);
}

bool ib_slow_busy(struct ib_conn *c)
{
	if (atomic_load(&c->slow) == SLOW_DONE) {
		pthread_join(c->slow_thread, NULL);
		atomic_store(&c->slow, SLOW_FREE);
	}
	return atomic_load(&c->slow) != SLOW_FREE;
}

bool ib_slow_run(struct ib_conn *c, void (*job)(struct ib_conn *c))
{
	int64_t until = kv_deadline_ns(IB_SLOW_MS), left;
	int ret = ib_slow_busy(c) ? EBUSY : start_job(c, job, SLOW_BUSY);

	if (ret == EBUSY)
		return false;
	if (ret)
		job(c); /* there are no more threads: the call waits for the device */
	while (atomic_load(&c->slow) == SLOW_BUSY && (left = until - kv_now_ns()) > 0) {
		struct timespec ts = { .tv_nsec = left };

		syscall(SYS_futex, &c->slow, FUTEX_WAIT_PRIVATE, SLOW_BUSY, &ts, NULL, 0);
	}
	return !ib_slow_busy(c);
}

/* ---------------------------------------------------------- connections that were left to a job */

/* Frees the records of those whose thread has ended. true: there are others. */
static bool reap_conns(struct ib_ctx *ctx)
{
	struct ib_conn **at = &ctx->left;

	while (*at) {
		struct ib_conn *c = *at;

		if (atomic_load(&c->slow) == SLOW_DONE) {
			*at = c->next_left;
			pthread_join(c->slow_thread, NULL);
			free(c);
		} else {
			at = &c->next_left;
		}
	}
	return ctx->left;
}

/*
 * Leaves the connection to the job that is under way: true. Where there is no memory to remember
 * what its queue pairs may reach, this waits for the device instead.
 */
static bool leave(struct ib_conn *c)
{
	struct ib_ctx *ctx = c->ctx;
	int busy = SLOW_BUSY;
	bool left;

	if (!c->left)
		c->left = tr_conn_leave(c->conn);
	while (!c->left && ib_slow_busy(c))
		poll(NULL, 0, 1);
	pthread_mutex_lock(&ctx->left_lock);
	reap_conns(ctx);
	left = c->left && atomic_compare_exchange_strong(&c->slow, &busy, SLOW_LEFT);
	if (left) {
		c->next_left = ctx->left;
		ctx->left = c;
	}
	pthread_mutex_unlock(&ctx->left_lock);
	return left;
}

void ib_slow_leave(struct ib_conn *c)
{
	if (ib_slow_busy(c) && leave(c))
		return;
	if (ib_has_lanes(c) && !ib_slow_run(c, ib_lanes_destroy) && leave(c))
		return;
	ib_slow_busy(c); /* joins a thread that has just ended */
	if (!ib_conn_mem_free(c)) {
		if (!c->left)
			c->left = tr_conn_leave(c->conn);
	} else if (c->left) {
		tr_left_done(c->left);
	}
	free(c);
}

bool ib_slow_close(struct ib_ctx *ctx)
{
	int64_t deadline = kv_deadline_ns(IB_CLOSE_MS);

	while (reap_conns(ctx) || ib_late_busy(ctx)) {
		if (kv_now_ns() >= deadline)
			return false;
		poll(NULL, 0, 1);
	}
	return true;
}
