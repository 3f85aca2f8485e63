/* SPDX-License-Identifier: Apache-2.0 */
/*
 * calls.c -- system calls of several streams, made at the same time
 *
 * The kernel copies the bytes of a socket in the thread that calls it, so one thread moves no more
 * over several streams than over one. What they have to send, or to receive, is a job: its owner
 * and threads of the context take its calls, one after another, and the owner goes on when all have
 * returned. None of them waits (MSG_DONTWAIT), so neither does it; and whatever is true while it
 * makes a call itself is true for the others: a revoke waits for them as it waits for it.
 *
 * Threads start when there is a job that could use one more, and end with the context. Without any
 * the owner makes all calls.
 */
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/thread.h"
#include "tcp.h"

enum {
	/* Until a thread sleeps for which there is no job: waking it costs as much as a call. */
	CALLS_SPIN_NS = 200000,
};

/* Lies on its owner's stack. */
struct calls_job {
	struct tcp_call *call;
	unsigned int n, next; /* which nobody has taken */
	atomic_uint left;     /* that have not returned */
	struct calls_job *other;
};

/* Of those that this process may use: the application has a use for them, too. */
static unsigned int quarter_of_processors(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) ? 0 : (unsigned int)CPU_COUNT(&set) / 4;
}

void calls_open(struct tcp_calls *calls, long long threads)
{
	unsigned int most = threads < 0 ? quarter_of_processors() : (unsigned int)threads;

	pthread_mutex_init(&calls->lock, NULL);
	pthread_cond_init(&calls->more, NULL);
	pthread_cond_init(&calls->done, NULL);
	calls->most = most < TCP_STREAMS_MAX - 1 ? most : TCP_STREAMS_MAX - 1;
}

static void make_call(struct tcp_call *call)
{
	do
		if (call->sends ? kv_fault(TCP_SEND) : kv_fault(TCP_RECEIVE))
			call->bytes = (errno = ECONNRESET, -1);
		else
			call->bytes = call->sends ? sendmsg(call->sock, &call->msg, call->flags)
						  : recvmsg(call->sock, &call->msg, call->flags);
	while (call->bytes < 0 && errno == EINTR);
	call->error = errno;
}

/* Under the lock: the next call of the first job is taken, made without it, and has returned. */
static void make_next(struct tcp_calls *calls, struct calls_job **at)
{
	struct calls_job *job = *at;
	struct tcp_call *call = &job->call[job->next++];

	if (job->next == job->n) {
		*at = job->other;
		atomic_store_explicit(&calls->work, calls->first != NULL, memory_order_relaxed);
	}
	pthread_mutex_unlock(&calls->lock);
	make_call(call);
	pthread_mutex_lock(&calls->lock);
	/* release: what the call did comes before. The job may be gone after the last one. */
	if (atomic_fetch_sub_explicit(&job->left, 1, memory_order_release) == 1)
		pthread_cond_broadcast(&calls->done);
}

static void wait_for_job(struct tcp_calls *calls)
{
	int64_t end = kv_now_ns() + CALLS_SPIN_NS;

	pthread_mutex_unlock(&calls->lock);
	while (!atomic_load_explicit(&calls->work, memory_order_relaxed) && kv_now_ns() < end)
		kv_cpu_relax();
	pthread_mutex_lock(&calls->lock);
	calls->sleeping++;
	while (!calls->first && !calls->stopping)
		pthread_cond_wait(&calls->more, &calls->lock);
	calls->sleeping--;
}

static void *calls_main(void *arg)
{
	struct tcp_calls *calls = arg;

	pthread_mutex_lock(&calls->lock);
	while (!calls->stopping)
		if (calls->first)
			make_next(calls, &calls->first);
		else
			wait_for_job(calls);
	pthread_mutex_unlock(&calls->lock);
	return NULL;
}

/* Under the lock. */
static void start_callers(struct tcp_calls *calls, struct kv_log *log, unsigned int wanted)
{
	while (calls->started < wanted && calls->started < calls->most) {
		int ret = kv_fault(TCP_THREAD) ? EAGAIN
					       : kv_thread_start(&calls->thread[calls->started],
								 "kvrail tcp", calls_main, calls);

		if (ret) {
			kv_log_warn(log, "a thread for streams could not be started, beside %u: %s",
				    calls->started, kv_errno_text(ret));
			calls->most = calls->started;
			return;
		}
		calls->started++;
	}
}

/* Under the lock: those of it that no thread has taken, then until the others have returned. */
static void finish(struct tcp_calls *calls, struct calls_job *job)
{
	struct calls_job **at = &calls->first;
	int64_t end;

	while (job->next < job->n) {
		for (at = &calls->first; *at != job; at = &(*at)->other)
			;
		make_next(calls, at);
	}
	pthread_mutex_unlock(&calls->lock);
	end = kv_now_ns() + CALLS_SPIN_NS;
	/* acquire: what the calls did. */
	while (atomic_load_explicit(&job->left, memory_order_acquire) && kv_now_ns() < end)
		kv_cpu_relax();
	pthread_mutex_lock(&calls->lock);
	while (atomic_load_explicit(&job->left, memory_order_acquire))
		pthread_cond_wait(&calls->done, &calls->lock);
}

void calls_make(struct tcp_conn *tc, struct tcp_call *call, unsigned int n)
{
	struct tcp_calls *calls = &tc->ctx->calls;
	struct calls_job job = { .call = call, .n = n }, **last = &calls->first;

	tr_conn_count(tc->conn)->syscalls += n;
	if (n == 1) {
		make_call(call);
		return;
	}
	atomic_init(&job.left, n);
	pthread_mutex_lock(&calls->lock);
	start_callers(calls, tc->ctx->tr->log, n - 1);
	while (*last)
		last = &(*last)->other;
	*last = &job;
	atomic_store_explicit(&calls->work, true, memory_order_relaxed);
	if (calls->sleeping)
		pthread_cond_broadcast(&calls->more);
	finish(calls, &job);
	pthread_mutex_unlock(&calls->lock);
}

void calls_close(struct tcp_calls *calls)
{
	pthread_mutex_lock(&calls->lock);
	calls->stopping = true;
	pthread_cond_broadcast(&calls->more);
	pthread_mutex_unlock(&calls->lock);
	for (unsigned int i = 0; i < calls->started; i++)
		pthread_join(calls->thread[i], NULL);
	pthread_cond_destroy(&calls->done);
	pthread_cond_destroy(&calls->more);
	pthread_mutex_destroy(&calls->lock);
}
