/* SPDX-License-Identifier: Apache-2.0 */
/*
 * aside.c -- verbs that a device may take long for, in a thread of their own
 *
 * Changing the state of a queue pair or destroying it is a matter of microseconds, until its device
 * or its wire is in trouble: then it may take most of a minute, and that is when a connection is
 * torn down. So such a verb is a job in a thread that lives as long as the job. Its owner waits for
 * it IB_ASIDE_MS and then comes back to look (ib_aside_busy); while a job that may destroy queue
 * pairs is under way it touches none of them. A connection that is closed with a job under way is
 * left to the job's thread, and ib_aside_close waits for those before the device is closed. Until
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

enum { ASIDE_FREE = 0, ASIDE_BUSY, ASIDE_DONE, ASIDE_LEFT };

/*
 * Called by the owner when it gives up the connection. Frees everything except *c, which the thread
 * still uses.
 */
static void free_left(struct ib_conn *c)
{
	struct tr_left *left = c->left;

	if (ib_control_free(c)) /* or what it may reach stays registered */
		tr_left_done(left);
	atomic_store(&c->aside, ASIDE_DONE);
}

static void *aside_main(void *arg)
{
	struct ib_conn *c = arg;
	int busy = ASIDE_BUSY;

	c->aside_thread = pthread_self();
	if (c->job)
		c->job(c);
	if (!atomic_compare_exchange_strong(&c->aside, &busy, ASIDE_DONE)) {
		free_left(c);
		return NULL;
	}
	syscall(SYS_futex, &c->aside, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
	return NULL;
}

/* 0, EBUSY, or why there is no thread. */
static int start_job(struct ib_conn *c, void (*job)(struct ib_conn *c), int state)
{
	int was = ASIDE_FREE, ret = EAGAIN;
	sigset_t all, before;
	pthread_t thread;

	if (!atomic_compare_exchange_strong(&c->aside, &was, state))
		return EBUSY;
	c->job = job;
	/* No signal of the application is ever handled in it. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	if (!kv_fault(IB_ASIDE) && !c->ctx->inline_jobs)
		ret = pthread_create(&thread, NULL, aside_main, c);
	pthread_sigmask(SIG_SETMASK, &before, NULL);
	if (ret)
		atomic_store(&c->aside, ASIDE_FREE);
	return ret;
}

void ib_aside_start(struct ib_conn *c, void (*job)(struct ib_conn *c))
{
	start_job(c, job, ASIDE_BUSY);
}

bool ib_aside_busy(struct ib_conn *c)
{
	if (atomic_load(&c->aside) == ASIDE_DONE) {
		pthread_join(c->aside_thread, NULL);
		atomic_store(&c->aside, ASIDE_FREE);
	}
	return atomic_load(&c->aside) != ASIDE_FREE;
}

bool ib_aside_run(struct ib_conn *c, void (*job)(struct ib_conn *c))
{
	int64_t until = kv_deadline_ns(IB_ASIDE_MS), left;
	int ret = ib_aside_busy(c) ? EBUSY : start_job(c, job, ASIDE_BUSY);

	if (ret == EBUSY)
		return false;
	if (ret)
		job(c); /* there are no more threads: the call waits for the device */
	while (atomic_load(&c->aside) == ASIDE_BUSY && (left = until - kv_now_ns()) > 0) {
		struct timespec ts = { .tv_nsec = left };

		syscall(SYS_futex, &c->aside, FUTEX_WAIT_PRIVATE, ASIDE_BUSY, &ts, NULL, 0);
	}
	return !ib_aside_busy(c);
}

/* ---------------------------------------------------------- connections that were left to a job */

/* Frees the records of those whose thread has ended. true: there are others. */
static bool reap_conns(struct ib_ctx *ctx)
{
	struct ib_conn **at = &ctx->left;

	while (*at) {
		struct ib_conn *c = *at;

		if (atomic_load(&c->aside) == ASIDE_DONE) {
			*at = c->next_left;
			pthread_join(c->aside_thread, NULL);
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
	int busy = ASIDE_BUSY;
	bool left;

	if (!c->left)
		c->left = tr_conn_leave(c->conn);
	while (!c->left && ib_aside_busy(c))
		poll(NULL, 0, 1);
	pthread_mutex_lock(&ctx->left_lock);
	reap_conns(ctx);
	left = c->left && atomic_compare_exchange_strong(&c->aside, &busy, ASIDE_LEFT);
	if (left) {
		c->next_left = ctx->left;
		ctx->left = c;
	}
	pthread_mutex_unlock(&ctx->left_lock);
	return left;
}

void ib_aside_leave(struct ib_conn *c)
{
	if (ib_aside_busy(c) && leave(c))
		return;
	if (ib_has_lanes(c) && !ib_aside_run(c, ib_lanes_destroy) && leave(c))
		return;
	ib_aside_busy(c); /* joins a thread that has just ended */
	if (!ib_control_free(c)) {
		if (!c->left)
			c->left = tr_conn_leave(c->conn);
	} else if (c->left) {
		tr_left_done(c->left);
	}
	free(c);
}

bool ib_aside_close(struct ib_ctx *ctx)
{
	int64_t deadline = kv_deadline_ns(IB_CLOSE_MS);

	while (reap_conns(ctx) || ib_late_busy(ctx)) {
		if (kv_now_ns() >= deadline)
			return false;
		poll(NULL, 0, 1);
	}
	return true;
}
