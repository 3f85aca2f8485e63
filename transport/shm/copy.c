/* SPDX-License-Identifier: Apache-2.0 */
/*
 * copy.c -- threads in which process_vm_* is called
 *
 * The kernel copies into pages of another process, and may have to wait for one: a page behind
 * userfaultfd, FUSE or a network file system comes when another process answers, perhaps never, and
 * until then no signal but SIGKILL ends the call. So no caller and no service thread makes it: a
 * thread of the context does, and the caller waits for it as long as it chooses (copy_wait). A call
 * that does not return keeps its thread, its local region and its connection's shared segment until
 * it does; the connection is given up long before.
 *
 * A job lies in its connection, so nothing is allocated. It is taken by one thread, or, if an
 * option asks for threads, in pieces by several. The first thread starts with a connection that
 * will move lists (TR_LISTS), others when a job finds none that is idle, or will be at once; they
 * end with the context.
 */
#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/thread.h"
#include "copy.h"

enum {
	PIECE = 128 << 10,
	/* until a thread that an option asked for sleeps: waking it costs as much as a piece */
	SPIN_NS = 200000,
};

int copy_open(int split, int64_t spin_ns, struct copy_pool **pool_p, struct kv_error *err)
{
	struct copy_pool *pool = kv_fault(SHM_COPY_POOL) ? NULL : calloc(1, sizeof(*pool));

	if (!pool)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate the copy threads");
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->more, NULL);
	pool->last = &pool->first;
	pool->split = split;
	pool->spin_ns = split ? SPIN_NS : spin_ns;
	pool->wanted = SHM_COPY_THREADS_MAX;
	*pool_p = pool;
	return 0;
}

/* ---------------------------------------------------------------- a thread */

/* Under the lock. */
static void job_remove(struct copy_pool *pool, struct copy_job **at)
{
	*at = (*at)->next;
	if (!*at)
		pool->last = at;
	pool->jobs--;
	atomic_store_explicit(&pool->work, pool->first != NULL, memory_order_relaxed);
}

/* Under the lock, after a change of any of the three. */
static void note_full(struct copy_pool *pool)
{
	atomic_store_explicit(&pool->full, !pool->idle && pool->started >= pool->wanted,
			      memory_order_relaxed);
}

static void wait_for_work(struct copy_pool *pool)
{
	int64_t end = kv_now_ns() + pool->spin_ns;

	pool->idle++;
	note_full(pool);
	pthread_mutex_unlock(&pool->lock);
	while (!atomic_load_explicit(&pool->work, memory_order_relaxed) && kv_now_ns() < end)
		kv_cpu_relax();
	pthread_mutex_lock(&pool->lock);
	pool->sleeping++;
	while (!pool->first && !pool->stopping)
		pthread_cond_wait(&pool->more, &pool->lock);
	pool->sleeping--;
	pool->idle--;
	note_full(pool);
}

void piece_next(const struct copy_job *job, uint64_t most, struct copy_piece *piece)
{
	uint64_t skip = job->at_byte;

	piece->n = 0;
	piece->len = 0;
	for (uint32_t i = job->at; i < job->spans && piece->len < most; i++, skip = 0) {
		const struct tr_span *s = &job->span[i];
		uint64_t len = s->len - skip;

		if (len > most - piece->len) {
			if (piece->n)
				return; /* a span is cut only where it has to be */
			len = most;
		}
		piece->span[piece->n++] =
			(struct tr_span){ s->local + skip, s->remote + skip, len };
		piece->len += len;
	}
}

void piece_take(struct copy_job *job, const struct copy_piece *piece)
{
	job->untaken -= piece->len;
	for (size_t i = 0; i < piece->n; i++) {
		job->at_byte += piece->span[i].len;
		if (job->at_byte < job->span[job->at].len)
			return;
		job->at_byte = 0;
		job->at++;
	}
}

static int piece_move(const struct copy_job *job, const struct copy_piece *piece, bool alive)
{
	return cma_move(job->sc, job->kind, alive, job->local, job->remote, piece->span, piece->n);
}

static void piece_end(struct copy_job *job, const struct copy_piece *piece, int error)
{
	struct shm_conn *sc = job->sc;
	struct tr_mem *mem = job->mem;
	uint32_t state;
	int bell;

	if (error)
		atomic_store_explicit(&job->error, error, memory_order_relaxed);
	/*
	 * acq_rel: the bytes and the error of every piece come before the end that the last one
	 * sets.
	 */
	if (atomic_fetch_sub_explicit(&job->left, piece->len, memory_order_acq_rel) != piece->len)
		return;
	atomic_fetch_sub_explicit(&mem->in_flight, 1, memory_order_release);
	/* After this the job may be another one; the connection stays while it counts a call. */
	state = atomic_exchange(&job->state, COPY_DONE);
	if (state == COPY_AWAITED)
		kv_futex_wake(&job->state, INT_MAX);
	if (state == COPY_LATE && (bell = atomic_load(&sc->bell)) >= 0)
		eventfd_write(bell, 1);
}

void piece_run(struct copy_job *job, const struct copy_piece *piece, bool alive)
{
	piece_end(job, piece, piece_move(job, piece, alive));
}

void copy_leave_call(struct shm_conn *sc)
{
	if (!--sc->calls && sc->quitting)
		segment_promise(&sc->seg);
}

static void *copy_main(void *arg)
{
	struct copy_pool *pool = arg;
	struct copy_piece piece;

	pthread_mutex_lock(&pool->lock);
	atomic_fetch_sub(&pool->coming, 1);
	while (!pool->stopping) {
		struct copy_job *job = pool->first;
		struct shm_conn *sc;
		int error;

		if (!job) {
			wait_for_work(pool);
			continue;
		}
		piece_next(job, job->split ? PIECE : UINT64_MAX, &piece);
		piece_take(job, &piece);
		if (!job->untaken)
			job_remove(pool, &pool->first);
		sc = job->sc;
		sc->calls++;
		pthread_mutex_unlock(&pool->lock);
		error = piece_move(job, &piece, false);
		atomic_fetch_add(&pool->coming, 1); /* before who waits for it hands on the next */
		piece_end(job, &piece, error);
		pthread_mutex_lock(&pool->lock);
		atomic_fetch_sub(&pool->coming, 1);
		copy_leave_call(sc);
	}
	for (int i = 0; i < pool->started; i++)
		if (pthread_equal(pool->thread[i], pthread_self()))
			pool->ended[i] = true;
	pthread_mutex_unlock(&pool->lock);
	return NULL;
}

/* Under the lock; true if there is a thread at all. */
static bool start_threads(struct copy_pool *pool, struct kv_log *log, int more)
{
	while (more-- > 0 && pool->started < pool->wanted) {
		int ret = kv_fault(SHM_COPY_THREAD)
				  ? EAGAIN
				  : kv_thread_start(&pool->thread[pool->started], "kvrail copy",
						    copy_main, pool);

		if (ret) {
			kv_log_warn(log, "a copy thread could not be started, beside %d: %s",
				    pool->started, kv_errno_text(ret));
			pool->wanted = pool->started;
			break;
		}
		pool->started++;
		atomic_fetch_add(&pool->coming, 1);
	}
	note_full(pool);
	return pool->started > 0;
}

/* ---------------------------------------------------------------- the caller */

/* Under the lock: the threads needed besides those that take a job next. */
static int missing(const struct copy_pool *pool, const struct copy_job *job)
{
	if (job->split && pool->started < pool->split)
		return pool->split - pool->started;
	return pool->jobs > pool->idle + atomic_load(&pool->coming) ? 1 : 0;
}

void copy_ready(struct shm_conn *sc)
{
	struct copy_pool *pool = sc->ctx->copy;

	pthread_mutex_lock(&pool->lock);
	if (!pool->started)
		start_threads(pool, tr_conn_tr(sc->conn)->log, 1);
	pthread_mutex_unlock(&pool->lock);
}

void copy_prepare(struct copy_job *job)
{
	job->at = 0;
	job->at_byte = 0;
	job->untaken = job->len;
	job->next = NULL;
	atomic_init(&job->left, job->len);
	atomic_init(&job->error, 0);
	atomic_init(&job->state, COPY_BEGUN);
	atomic_fetch_add_explicit(&job->mem->in_flight, 1, memory_order_relaxed);
}

bool copy_begin(struct copy_job *job)
{
	job->split &= job->sc->ctx->copy->split > 0;
	copy_prepare(job);
	if (copy_hand(job))
		return true;
	atomic_fetch_sub_explicit(&job->mem->in_flight, 1, memory_order_relaxed);
	return false;
}

bool copy_hand(struct copy_job *job)
{
	struct copy_pool *pool = job->sc->ctx->copy;
	bool taken;

	pthread_mutex_lock(&pool->lock);
	pool->jobs++;
	taken = start_threads(pool, tr_conn_tr(job->sc->conn)->log, missing(pool, job));
	if (taken) {
		job->next = NULL;
		*pool->last = job;
		pool->last = &job->next;
		atomic_store_explicit(&pool->work, true, memory_order_relaxed);
		if (pool->sleeping && job->split && job->len > PIECE)
			pthread_cond_broadcast(&pool->more);
		else if (pool->jobs > pool->idle - pool->sleeping && pool->sleeping)
			pthread_cond_signal(&pool->more);
	} else {
		pool->jobs--;
	}
	pthread_mutex_unlock(&pool->lock);
	return taken;
}

bool copy_is_full(struct shm_conn *sc)
{
	return atomic_load_explicit(&sc->ctx->copy->full, memory_order_relaxed);
}

int copy_end(struct copy_job *job)
{
	/* acquire at least: what we publish now comes after the bytes. seq_cst: hang_bell. */
	if (atomic_load(&job->state) != COPY_DONE)
		return TR_AGAIN;
	return -atomic_load_explicit(&job->error, memory_order_relaxed);
}

int copy_wait(struct copy_job *job, int64_t deadline_ns)
{
	int64_t spin_end = kv_now_ns() + job->sc->ctx->spin_ns;
	uint32_t state = COPY_BEGUN;
	int ret;

	while ((ret = copy_end(job)) == TR_AGAIN && kv_now_ns() < spin_end)
		kv_cpu_relax();
	if (ret != TR_AGAIN)
		return ret;
	atomic_compare_exchange_strong(&job->state, &state, COPY_AWAITED);
	while ((ret = copy_end(job)) == TR_AGAIN && kv_now_ns() < deadline_ns)
		kv_futex_wait(&job->state, COPY_AWAITED, deadline_ns);
	state = COPY_AWAITED;
	if (ret == TR_AGAIN && !atomic_compare_exchange_strong(&job->state, &state, COPY_LATE))
		ret = copy_end(job);
	return ret;
}

void copy_stop(struct copy_job *job)
{
	struct copy_pool *pool = job->sc->ctx->copy;
	struct copy_job **at;

	pthread_mutex_lock(&pool->lock);
	for (at = &pool->first; *at && *at != job; at = &(*at)->next)
		;
	if (*at) {
		uint64_t rest = job->untaken;

		job_remove(pool, at);
		/* What no thread has taken; what one has is counted off by it. */
		if (atomic_fetch_sub(&job->left, rest) == rest) {
			atomic_fetch_sub(&job->mem->in_flight, 1);
			atomic_store(&job->state, COPY_DONE);
		}
	}
	pthread_mutex_unlock(&pool->lock);
}

/* Until no thread is in a call for the connection, for a limited time. */
static bool is_quiet(struct copy_pool *pool, struct shm_conn *sc)
{
	int64_t deadline_ns = kv_deadline_ns(SHM_COPY_PATIENCE_MS);
	unsigned int calls;

	for (;;) {
		pthread_mutex_lock(&pool->lock);
		calls = sc->calls;
		sc->quitting = calls; /* then its thread says that it has stopped */
		pthread_mutex_unlock(&pool->lock);
		if (!calls || kv_now_ns() >= deadline_ns)
			return !calls;
		poll(NULL, 0, 1);
	}
}

bool copy_quit(struct shm_conn *sc)
{
	/* Nothing of the kind was ever begun: neither lock nor pool is needed. */
	return !sc->ctx->copy || is_quiet(sc->ctx->copy, sc);
}

bool copy_is_quiet(struct shm_conn *sc)
{
	struct copy_pool *pool = sc->ctx->copy;
	bool quiet;

	if (!pool)
		return true;
	pthread_mutex_lock(&pool->lock);
	quiet = !sc->calls;
	pthread_mutex_unlock(&pool->lock);
	return quiet;
}

/* ------------------------------------------------------- connections that were left to a call */

static void free_record(struct shm_conn *sc)
{
	if (sc->pidfd >= 0)
		close(sc->pidfd);
	if (sc->bell >= 0)
		close(sc->bell);
	if (sc->pagemap >= 0)
		close(sc->pagemap);
	segment_close(&sc->seg);
	free(sc->call_span);
	free(sc);
}

/* Frees those whose call has returned. Under the lock; true: there are others. */
static bool reap_left(struct copy_pool *pool)
{
	struct shm_conn **at = &pool->left;

	while (*at) {
		struct shm_conn *sc = *at;

		if (sc->calls) {
			at = &sc->next_left;
			continue;
		}
		*at = sc->next_left;
		free_record(sc);
	}
	return pool->left;
}

void copy_leave(struct shm_conn *sc)
{
	struct copy_pool *pool = sc->ctx->copy;
	bool left;

	if (!pool)
		return free_record(sc);
	pthread_mutex_lock(&pool->lock);
	reap_left(pool);
	left = sc->calls;
	if (left) {
		sc->next_left = pool->left;
		pool->left = sc;
	}
	pthread_mutex_unlock(&pool->lock);
	if (!left)
		free_record(sc);
}

bool copy_close(struct copy_pool *pool)
{
	int64_t deadline_ns = kv_deadline_ns(SHM_COPY_CLOSE_MS);
	bool stuck;

	if (!pool)
		return true;
	pthread_mutex_lock(&pool->lock);
	pool->stopping = true;
	pthread_cond_broadcast(&pool->more);
	while ((stuck = reap_left(pool)) && kv_now_ns() < deadline_ns) {
		pthread_mutex_unlock(&pool->lock);
		poll(NULL, 0, 1);
		pthread_mutex_lock(&pool->lock);
	}
	/* A thread in a call that does not return goes on with what is left here, and ends then. */
	for (int i = 0; stuck && i < pool->started; i++)
		if (!pool->ended[i])
			pthread_detach(pool->thread[i]);
	pthread_mutex_unlock(&pool->lock);
	for (int i = 0; i < pool->started; i++)
		if (!stuck || pool->ended[i])
			pthread_join(pool->thread[i], NULL);
	if (stuck)
		return false;
	pthread_cond_destroy(&pool->more);
	pthread_mutex_destroy(&pool->lock);
	free(pool);
	return true;
}
