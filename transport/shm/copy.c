/* SPDX-License-Identifier: Apache-2.0 */
/*
 * copy.c -- threads that copy large writes by process_vm_writev while the caller goes on; only if
 * an option asks for them
 *
 * A job is one contiguous range of one operation, cut into pieces that any thread takes. It lies in
 * its operation's slot, so nothing is allocated; the caller looks at it when it commits the
 * operation. The threads start with the first job of a context and end with the context.
 */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "shm.h"

enum {
	PIECE = 128 << 10,
	SPIN_NS =
		/* until a thread without work sleeps: waking it costs about as much as a piece */
	200000,
};

struct copy_pool {
	pthread_mutex_t lock;
	pthread_cond_t more;
	struct copy_job *first, **last;
	_Atomic bool work; /* there is a job */
	bool stopping;
	int wanted; /* threads; 0 after they could not be started */
	int started, sleeping;
	pthread_t thread[SHM_COPY_THREADS_MAX];
};

int copy_open(int threads, struct copy_pool **pool_p, struct kv_error *err)
{
	struct copy_pool *pool = kv_fault(SHM_COPY_POOL) ? NULL : calloc(1, sizeof(*pool));

	if (!pool)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate the copy threads");
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->more, NULL);
	pool->last = &pool->first;
	pool->wanted = threads;
	*pool_p = pool;
	return 0;
}

/* ---------------------------------------------------------------- a thread */

/* Under the lock. */
static void take_out(struct copy_pool *pool, struct copy_job **at)
{
	*at = (*at)->next;
	if (!*at)
		pool->last = at;
	atomic_store_explicit(&pool->work, pool->first != NULL, memory_order_relaxed);
}

static void wait_for_work(struct copy_pool *pool)
{
	int64_t end = kv_now_ns() + SPIN_NS;

	pthread_mutex_unlock(&pool->lock);
	while (!atomic_load_explicit(&pool->work, memory_order_relaxed) && kv_now_ns() < end)
		kv_cpu_relax();
	pthread_mutex_lock(&pool->lock);
	pool->sleeping++;
	while (!pool->first && !pool->stopping)
		pthread_cond_wait(&pool->more, &pool->lock);
	pool->sleeping--;
}

static void *copy_main(void *arg)
{
	struct copy_pool *pool = arg;

	pthread_mutex_lock(&pool->lock);
	while (!pool->stopping) {
		struct copy_job *job = pool->first;
		uint64_t at, n;
		int error;

		if (!job) {
			wait_for_work(pool);
			continue;
		}
		at = job->taken;
		n = job->len - at < PIECE ? job->len - at : PIECE;
		job->taken += n;
		if (job->taken == job->len)
			take_out(pool, &pool->first);
		pthread_mutex_unlock(&pool->lock);

		error = cma_copy(job->sc, job->from + at, job->to + at, n);
		if (error)
			atomic_store_explicit(&job->error, error, memory_order_relaxed);
		/*
		 * release: the bytes, and the error, before the count that says so. After it the
		 * job may be gone.
		 */
		atomic_fetch_sub_explicit(&job->left, n, memory_order_release);
		pthread_mutex_lock(&pool->lock);
	}
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

/* Under the lock; with fewer than wanted it goes on, with none the caller copies. */
static void start(struct copy_pool *pool, struct kv_log *log)
{
	sigset_t all, before;

	/* The threads inherit the mask: no signal of the application is ever handled in them. */
	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &before);
	while (pool->started < pool->wanted) {
		int ret = kv_fault(SHM_COPY_THREAD) ? EAGAIN
						    : pthread_create(&pool->thread[pool->started],
								     NULL, copy_main, pool);

		if (ret) {
			kv_log_warn(log, "%d of %d copy threads could not be started: %s",
				    pool->wanted - pool->started, pool->wanted, kv_errno_text(ret));
			pool->wanted = pool->started;
			break;
		}
		pthread_setname_np(pool->thread[pool->started++], "kvrail copy");
	}
	pthread_sigmask(SIG_SETMASK, &before, NULL);
}

void copy_close(struct copy_pool *pool)
{
	if (!pool)
		return;
	pthread_mutex_lock(&pool->lock);
	pool->stopping = true;
	pthread_cond_broadcast(&pool->more);
	pthread_mutex_unlock(&pool->lock);
	while (pool->started)
		pthread_join(pool->thread[--pool->started], NULL);
	pthread_cond_destroy(&pool->more);
	pthread_mutex_destroy(&pool->lock);
	free(pool);
}

/* ---------------------------------------------------------------- the caller */

bool copy_begin(struct copy_job *job, struct shm_conn *sc, const uint8_t *from, uint8_t *to,
		uint64_t len)
{
	struct copy_pool *pool = sc->ctx->copy;
	bool taken;

	pthread_mutex_lock(&pool->lock);
	if (pool->started < pool->wanted)
		start(pool, tr_conn_tr(sc->conn)->log);
	taken = pool->started > 0;
	if (taken) {
		*job = (struct copy_job){ .sc = sc, .from = from, .to = to, .len = len };
		atomic_init(&job->left, len);
		*pool->last = job;
		pool->last = &job->next;
		atomic_store_explicit(&pool->work, true, memory_order_relaxed);
		if (pool->sleeping && len > PIECE)
			pthread_cond_broadcast(&pool->more);
		else if (pool->sleeping)
			pthread_cond_signal(&pool->more);
	}
	pthread_mutex_unlock(&pool->lock);
	return taken;
}

int copy_end(struct copy_job *job)
{
	/*
	 * acquire: pairs with the release in copy_main; what we publish now comes after the bytes
	 */
	if (atomic_load_explicit(&job->left, memory_order_acquire))
		return TR_AGAIN;
	return -atomic_load_explicit(&job->error, memory_order_relaxed);
}

/*
 * Waits for the pieces that threads are at: as long as process_vm_writev takes for one, as it would
 * in the caller.
 */
void copy_stop(struct copy_job *job)
{
	struct copy_pool *pool = job->sc->ctx->copy;
	struct copy_job **at;

	pthread_mutex_lock(&pool->lock);
	for (at = &pool->first; *at && *at != job; at = &(*at)->next)
		;
	if (*at) {
		take_out(pool, at);
		atomic_fetch_sub_explicit(&job->left, job->len - job->taken, memory_order_relaxed);
	}
	pthread_mutex_unlock(&pool->lock);
	while (atomic_load_explicit(&job->left, memory_order_acquire))
		kv_cpu_relax();
}
