/* SPDX-License-Identifier: Apache-2.0 */
/*
 * help.c -- pieces of a job that are moved by those who would only wait for it: the owner of its
 * connection, and callers who ask whether a transfer is done
 *
 * Neither may be held up by a page that does not come, so each looks at the pages of its piece
 * first (present.c). Who finds one that is not there leaves the rest of the job to a thread
 * (copy.c). A look is made without the lock; it has a number, and the owner takes the place of a
 * helper that is slow with it, whose look then counts for nothing. A piece that a helper has taken
 * is waited for as one that a thread has.
 */
#include "base/clock.h"
#include "copy.h"

enum {
	/*
	 * Of one piece of the owner: a quarter of what is left within these, so that the helpers
	 * have something to do while it moves its last one.
	 */
	OWN_LEAST = 64 << 10,
	OWN_MOST = 512 << 10,
	LOCK_TRIES = 200,
};

/* It is held for a few instructions: to sleep and be woken takes longer. */
static void lock(struct copy_pool *pool)
{
	for (int i = 0; i < LOCK_TRIES; i++, kv_cpu_relax())
		if (!pthread_mutex_trylock(&pool->lock))
			return;
	pthread_mutex_lock(&pool->lock);
}

/* Under the lock. */
static void job_withdraw(struct copy_pool *pool, struct copy_job *job)
{
	struct copy_job **at = &pool->offered;

	while (*at && *at != job)
		at = &(*at)->next;
	if (*at)
		*at = job->next;
	atomic_store_explicit(&pool->offers, pool->offered != NULL, memory_order_relaxed);
}

static void job_take(struct copy_pool *pool, struct copy_job *job, const struct copy_piece *piece)
{
	piece_take(job, piece);
	if (!job->untaken)
		job_withdraw(pool, job);
}

static void job_offer(struct copy_pool *pool, struct copy_job *job)
{
	copy_prepare(job);
	lock(pool);
	job->sc->look = 0;
	job->next = pool->offered;
	pool->offered = job;
	atomic_store_explicit(&pool->offers, true, memory_order_relaxed);
	pthread_mutex_unlock(&pool->lock);
}

static uint64_t owners_share(const struct copy_job *job)
{
	uint64_t share = job->untaken / 4;

	return share < OWN_LEAST ? OWN_LEAST : share < OWN_MOST ? share : OWN_MOST;
}

void help_share(struct copy_job *job)
{
	struct shm_conn *sc = job->sc;
	struct copy_pool *pool = sc->ctx->copy;
	struct copy_piece piece;
	bool there = true;

	job_offer(pool, job);
	lock(pool);
	while (job->untaken) {
		piece_next(job, owners_share(job), &piece);
		sc->look = ++pool->looks;
		pthread_mutex_unlock(&pool->lock);
		there = present_now(sc, job->remote, piece.span, piece.n);
		lock(pool);
		sc->look = 0;
		if (!there)
			break;
		job_take(pool, job, &piece);
		pthread_mutex_unlock(&pool->lock);
		piece_run(job, &piece, true);
		lock(pool);
	}
	job_withdraw(pool, job);
	pthread_mutex_unlock(&pool->lock);
	if (there || copy_hand(job))
		return;
	/* A process that can start no thread makes the call here, whatever it may take. */
	piece_next(job, UINT64_MAX, &piece);
	piece_take(job, &piece);
	piece_run(job, &piece, false);
}

/* Under the lock: the first that nobody looks at. */
static struct copy_job *first_free_job(const struct copy_pool *pool)
{
	struct copy_job *job = pool->offered;

	while (job && job->sc->look)
		job = job->next;
	return job;
}

uint64_t shm_help(void *priv, uint64_t most)
{
	struct shm_ctx *ctx = priv;
	struct copy_pool *pool = ctx->copy;
	struct copy_piece piece;
	struct copy_job *job;
	struct shm_conn *sc;
	uint8_t *remote;
	uint64_t look;
	bool there, mine;

	if (!atomic_load_explicit(&ctx->helped, memory_order_relaxed))
		atomic_store_explicit(&ctx->helped, true, memory_order_relaxed);
	if (!atomic_load_explicit(&pool->offers, memory_order_relaxed))
		return 0;
	lock(pool);
	job = first_free_job(pool);
	if (!job) {
		pthread_mutex_unlock(&pool->lock);
		return 0;
	}
	piece_next(job, most, &piece);
	remote = job->remote;
	sc = job->sc;
	sc->calls++; /* keeps it, and with it the job's place */
	look = sc->look = ++pool->looks;
	pthread_mutex_unlock(&pool->lock);

	there = present_now(sc, remote, piece.span, piece.n);

	lock(pool);
	mine = sc->look == look; /* else the job may be another one by now */
	if (mine && there) {
		sc->look = 0;
		job_take(pool, job, &piece);
		pthread_mutex_unlock(&pool->lock);
		piece_run(job, &piece, true);
		lock(pool);
	}
	/* Of a page that is not there the number stays: nobody but the owner looks again. */
	copy_leave_call(sc);
	pthread_mutex_unlock(&pool->lock);
	return mine && there ? piece.len : 0;
}
