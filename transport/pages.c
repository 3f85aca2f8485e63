/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pages.c -- which pages a pool has: made by its owner at once, in a thread of the context
 *
 * A pool without pages gets each one from its first writer: a peer's first pass over it
 * then takes several times as long as the second, and the peer's cgroup pays. Huge pages need no
 * right and no setting of the machine: MADV_COLLAPSE (Linux 6.1) makes them one by one where the
 * pool is mapped at a multiple of their size. The thread holds no lock meanwhile. It asks for
 * memory before each PAGES_STEP and stops where the machine or a cgroup has no more: the pages
 * that are missing come as they do in a lazy pool, and nothing is killed for them.
 */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/memfd.h"
#include "base/option.h"
#include "base/room.h"
#include "base/text.h"
#include "base/thread.h"
#include "memory.h"

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

enum { PAGES_STEP = 64 << 20, HUGE_TRIES = 3, LOOK_MS = 1000 };

static bool mode_is(const struct tr *tr, const char *word)
{
	return kv_option_is(tr->options, KV_OPT_POOL_PAGES, word);
}

static bool pages_have_room(size_t len, struct kv_room *room)
{
	kv_room("", room);
	if (kv_fault(TR_POOL_ROOM))
		room->bytes = 0;
	return len <= room->bytes;
}

int pages_admit(struct tr *tr, struct tr_pool *pool, struct kv_error *err)
{
	struct kv_room room;

	if (mode_is(tr, "lazy"))
		return 0;
	pool->huge = !mode_is(tr, "populate");
	if (pool->len < KV_HUGE_PAGE || pages_have_room(pool->len, &room)) {
		pool->work = PAGES_WAITING;
		return 0;
	}
	if (mode_is(tr, "auto")) {
		kv_log_warn(tr->log,
			    "a pool of %zu bytes gets its pages when they are first written: %s "
			    "leaves %llu bytes",
			    pool->len, room.limit, (unsigned long long)room.bytes);
		return 0;
	}
	kv_fail(err, KV_ERR_NOMEM, "alloc", "a pool of %zu bytes: %s leaves %llu bytes for it",
		pool->len, room.limit, (unsigned long long)room.bytes);
	kv_error_hint(err, "a smaller pool, a higher limit, or KVCACHE_POOL_PAGES=lazy");
	return KV_ERR_NOMEM;
}

/* ---------------------------------------------------------------- pages */

/* 0 or errno. By the memfd, not by the mapping: userfaultfd on that holds up nothing. */
static int allocate(const struct tr_pool *pool, size_t at, size_t len)
{
	int ret;

	if (kv_fault(TR_POOL_POPULATE))
		return ENOSPC;
	do
		ret = fallocate(pool->fd, 0, (off_t)at, (off_t)len);
	while (ret && errno == EINTR);
	return ret ? errno : 0;
}

/* 0 or errno. A page table must be there, so one small page comes first. */
static int make_huge(const struct tr_pool *pool, size_t at)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	int error = kv_fault(TR_POOL_HUGE) ? EINVAL : allocate(pool, at, page);

	if (!error && madvise(pool->addr + at, page, MADV_POPULATE_WRITE))
		error = errno;
	for (int i = 0; !error && i < HUGE_TRIES; i++)
		if (!madvise(pool->addr + at, KV_HUGE_PAGE, MADV_COLLAPSE))
			return 0;
		else if (errno != EAGAIN) /* a page of it is in use at this moment */
			error = errno;
	return error ? error : EAGAIN;
}

/* The pages of KV_HUGE_PAGE bytes, or of what is left: 0 or errno. */
static int make_pages(struct tr_pool *pool, size_t at)
{
	size_t left = pool->len - at, n = left < KV_HUGE_PAGE ? left : KV_HUGE_PAGE;
	int error;

	if (pool->huge && n == KV_HUGE_PAGE) {
		error = make_huge(pool, at);
		if (!error) {
			atomic_fetch_add(&pool->huge_bytes, n);
			return 0;
		}
		if (!at)
			pool->huge = false; /* the kernel has none: it is not asked again */
	}
	error = allocate(pool, at, n);
	if (error)
		return error;
	atomic_fetch_add(&pool->small_bytes, n);
	madvise(pool->addr + at, n, MADV_POPULATE_WRITE); /* into this process's page table */
	return 0;
}

/*
 * So many bytes get their pages inside the call, because it fails where the kernel has none. With
 * "auto" nothing fails for them, and the call does not wait: MADV_COLLAPSE takes seconds where many
 * processes want a processor, as the kernel first has a worker run on each.
 */
static size_t made_by_call(const struct tr *tr, const struct tr_pool *pool)
{
	return pool->len < KV_HUGE_PAGE || !mode_is(tr, "auto") ? KV_HUGE_PAGE : 0;
}

int pages_try(struct tr *tr, struct tr_pool *pool, struct kv_error *err)
{
	int error;

	if (pool->work != PAGES_WAITING || !made_by_call(tr, pool))
		return 0;
	error = make_pages(pool, 0);
	if (error || pool->len <= KV_HUGE_PAGE)
		pool->work = PAGES_DONE;
	if (error && !mode_is(tr, "auto"))
		return kv_fail_errno(err, KV_ERR_NOMEM, error, "alloc",
				     "cannot give a pool of %zu bytes its pages", pool->len);
	if (error)
		kv_log_warn(tr->log,
			    "a pool of %zu bytes gets its pages when they are first written: %s",
			    pool->len, kv_errno_text(error));
	if (pool->huge || !mode_is(tr, "huge"))
		return 0;
	kv_fail(err, KV_ERR_UNSUPPORTED, "alloc",
		"this kernel makes no huge pages of shared memory (MADV_COLLAPSE, Linux 6.1)");
	kv_error_hint(err, "KVCACHE_POOL_PAGES=auto takes pages of 4 KiB then");
	return KV_ERR_UNSUPPORTED;
}

static void make_others(struct tr *tr, struct tr_pool *pool)
{
	const size_t first = made_by_call(tr, pool);
	struct kv_room room;
	const char *why = NULL;

	for (size_t at = first; at < pool->len && !why; at += KV_HUGE_PAGE) {
		size_t left = pool->len - at;

		if (atomic_load(&pool->stop))
			return;
		if ((at == first || at % PAGES_STEP == 0) &&
		    !pages_have_room(left < PAGES_STEP ? left : PAGES_STEP, &room))
			why = room.limit;
		else if (make_pages(pool, at))
			why = "the kernel";
	}
	if (why)
		kv_log_warn(tr->log,
			    "%zu of the %zu bytes of a pool have pages; the others get theirs when "
			    "they are first written: %s leaves no more memory",
			    pool->huge_bytes + pool->small_bytes, pool->len, why);
	else
		kv_log_info(tr->log, "a pool of %zu bytes has %zu in huge pages, %zu in small ones",
			    pool->len, pool->huge_bytes, pool->small_bytes);
}

/* ---------------------------------------------------------------- the thread */

static struct tr_pool *next_pool(const struct tr_memory *m)
{
	struct tr_pool *pool = m->pools;

	while (pool && atomic_load(&pool->work) != PAGES_WAITING)
		pool = pool->next;
	return pool;
}

static void *pages_main(void *arg)
{
	struct tr *tr = arg;
	struct tr_memory *m = tr->memory;
	struct tr_pool *pool;

	pthread_mutex_lock(&m->lock);
	while ((pool = next_pool(m))) {
		atomic_store(&pool->work, PAGES_BUSY);
		pthread_mutex_unlock(&m->lock);
		make_others(tr, pool);
		pthread_mutex_lock(&m->lock);
		/* After the store only the address is used: the pool may be freed. */
		atomic_store(&pool->work, PAGES_DONE);
		kv_futex_wake(&pool->work, INT_MAX);
	}
	m->pages_on = false;
	pthread_mutex_unlock(&m->lock);
	return NULL;
}

void pages_begin(struct tr *tr, struct tr_pool *pool)
{
	struct tr_memory *m = tr->memory;

	if (atomic_load(&pool->work) != PAGES_WAITING || m->pages_on)
		return;
	pages_close(m);
	m->pages_on = m->pages_started =
		!kv_fault(TR_POOL_THREAD) &&
		!kv_thread_start(&m->pages_thread, "kvrail pages", pages_main, tr);
	if (m->pages_on)
		return;
	atomic_store(&pool->work, PAGES_DONE);
	kv_log_warn(tr->log,
		    "a pool of %zu bytes gets its pages when they are first written: a "
		    "thread that makes them could not be started",
		    pool->len);
}

void pages_close(struct tr_memory *m)
{
	if (m->pages_started)
		pthread_join(m->pages_thread, NULL);
	m->pages_started = false;
}

void pages_end(struct tr_memory *m, struct tr_pool *pool)
{
	atomic_store(&pool->stop, true);
	pthread_mutex_lock(&m->lock);
	if (atomic_load(&pool->work) == PAGES_WAITING)
		atomic_store(&pool->work, PAGES_DONE);
	pthread_mutex_unlock(&m->lock);
	while (atomic_load(&pool->work) == PAGES_BUSY)
		kv_futex_wait(&pool->work, PAGES_BUSY, kv_deadline_ns(LOOK_MS));
}

static struct tr_pool *pool_with(const struct tr_memory *m, const struct tr_mem *mem)
{
	struct tr_pool *pool = mem->pool_id ? m->pools : NULL;

	while (pool && pool->id != mem->pool_id)
		pool = pool->next;
	return pool;
}

void pages_settle(struct tr_pool *pool)
{
	uint32_t work;

	while ((work = atomic_load(&pool->work)) != PAGES_NONE && work != PAGES_DONE)
		kv_futex_wait(&pool->work, work, kv_deadline_ns(LOOK_MS));
}

/* The region lies in the pool, so nobody frees it meanwhile. */
void pages_await(struct tr_memory *m, const struct tr_mem *mem)
{
	struct tr_pool *pool;

	pthread_mutex_lock(&m->lock);
	pool = pool_with(m, mem);
	pthread_mutex_unlock(&m->lock);
	if (pool)
		pages_settle(pool);
}

/* ---------------------------------------------------------------- what is said of them */

enum tr_pages pages_of(const struct tr_pool *pool)
{
	uint32_t work = atomic_load(&pool->work);

	if (pool->huge_bytes >= pool->len / 2)
		return TR_PAGES_HUGE;
	if (pool->huge_bytes + pool->small_bytes >= pool->len / 2)
		return TR_PAGES_SMALL;
	return work == PAGES_WAITING || work == PAGES_BUSY ? TR_PAGES_COMING : TR_PAGES_LAZY;
}

enum tr_pages tr_mem_pages(const struct tr_mem *mem)
{
	struct tr_memory *m = mem->tr->memory;
	enum tr_pages pages = TR_PAGES_UNKNOWN;
	const struct tr_pool *pool;

	pthread_mutex_lock(&m->lock);
	pool = pool_with(m, mem);
	if (pool)
		pages = pages_of(pool);
	pthread_mutex_unlock(&m->lock);
	return pages;
}

const char *tr_pages_text(enum tr_pages pages)
{
	static const char *const texts[] = {
		[TR_PAGES_LAZY] = ", pages made by the first write",
		[TR_PAGES_COMING] = ", pages being made",
		[TR_PAGES_SMALL] = ", 4 KiB pages",
		[TR_PAGES_HUGE] = ", huge pages",
	};

	return pages > TR_PAGES_UNKNOWN && pages <= TR_PAGES_HUGE ? texts[pages] : "";
}

size_t tr_pools_dump(struct tr *tr, char *buf, size_t cap)
{
	struct tr_memory *m = tr->memory;
	size_t pools = 0, len = 0, huge = 0, small = 0, coming = 0;
	struct kv_text text = { buf, cap, 0 };

	pthread_mutex_lock(&m->lock);
	for (const struct tr_pool *pool = m->pools; pool; pool = pool->next) {
		uint32_t work = atomic_load(&pool->work);

		pools++;
		len += pool->len;
		huge += atomic_load(&pool->huge_bytes);
		small += atomic_load(&pool->small_bytes);
		coming += work == PAGES_WAITING || work == PAGES_BUSY;
	}
	pthread_mutex_unlock(&m->lock);
	if (pools)
		kv_text_add(&text,
			    "pools: %zu of %zu bytes, %zu in huge pages, %zu in 4 KiB pages, %zu "
			    "of them still get theirs\n",
			    pools, len, huge, small, coming);
	return text.len;
}
