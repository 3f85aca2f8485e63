/* SPDX-License-Identifier: Apache-2.0 */
/* pool.c -- memory that peers of this host can map: sealed memfds */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/memfd.h"
#include "memory.h"

static int make_pool(struct tr_pool *pool, struct kv_error *err)
{
	pool->fd = kv_fault(TR_POOL_MEMFD)
			   ? (errno = EMFILE, -1)
			   : memfd_create("kvrail-pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (pool->fd < 0)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "alloc", "memfd_create");
	if (kv_fault(TR_POOL_SIZE) ? (errno = ENOSPC, -1) : kv_memfd_size(pool->fd, pool->len)) {
		kv_fail_errno(err, KV_ERR_NOMEM, errno, "alloc", "cannot give a memfd %zu bytes",
			      pool->len);
		goto close_fd;
	}
	/* A peer that maps it must not fear SIGBUS, so its size is final. */
	if (fcntl(pool->fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)) {
		kv_fail_errno(err, KV_ERR_SYSTEM, errno, "alloc", "cannot seal a memfd");
		goto close_fd;
	}
	pool->addr = kv_fault(TR_POOL_MMAP) ? (errno = ENOMEM, MAP_FAILED)
					    : kv_memfd_map(pool->fd, pool->len);
	if (pool->addr == MAP_FAILED) {
		kv_fail_errno(err, KV_ERR_NOMEM, errno, "alloc", "cannot map %zu bytes", pool->len);
		goto close_fd;
	}
	madvise(pool->addr, pool->len, MADV_DONTFORK);
	return 0;

close_fd:
	close(pool->fd);
	return err ? err->code : KV_ERR_NOMEM;
}

static void unmap(struct tr_pool *pool)
{
	munmap(pool->addr, pool->len);
	close(pool->fd);
	free(pool);
}

int tr_alloc(struct tr *tr, size_t len, void **ptr_p, struct kv_error *err)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct kv_error cause;
	struct tr_pool *pool;
	int ret;

	if (!len || len > (size_t)INT64_MAX - page)
		return kv_fail(err, KV_ERR_ARG, "alloc", "%zu bytes cannot be allocated", len);
	pool = kv_fault(TR_POOL_ALLOC) ? NULL : calloc(1, sizeof(*pool));
	if (!pool)
		return kv_fail(err, KV_ERR_NOMEM, "alloc", "cannot allocate a pool's record");
	pool->len = (len + page - 1) & ~(page - 1);
	ret = pages_admit(tr, pool, &cause);
	if (!ret)
		ret = make_pool(pool, &cause);
	if (ret) {
		free(pool);
		return kv_error_copy(err, &cause);
	}
	ret = pages_try(tr, pool, &cause);
	if (ret) {
		unmap(pool);
		return kv_error_copy(err, &cause);
	}
	pthread_mutex_lock(&tr->memory->lock);
	pool->id = ++tr->memory->next_pool_id;
	pool->next = tr->memory->pools;
	tr->memory->pools = pool;
	pages_begin(tr, pool);
	pthread_mutex_unlock(&tr->memory->lock);
	*ptr_p = pool->addr;
	return 0;
}

int tr_free(struct tr *tr, void *ptr, struct kv_error *err)
{
	struct tr_memory *m = tr->memory;
	struct tr_pool *pool, **at;
	int ret = 0;

	mem_reap(tr);
	pthread_mutex_lock(&m->lock);
	for (at = &m->pools; *at && (*at)->addr != ptr; at = &(*at)->next)
		;
	pool = *at;
	if (!pool)
		ret = kv_fail(err, KV_ERR_ARG, "free", "%p was not allocated here", ptr);
	for (struct tr_mem *mem = m->mems; pool && !ret && mem; mem = mem->next)
		if (mem->pool_id == pool->id)
			ret = kv_fail(err, KV_ERR_BUSY, "free",
				      "a registered region lies in the %zu bytes at %p", pool->len,
				      ptr);
	if (!ret)
		*at = pool->next;
	pthread_mutex_unlock(&m->lock);
	if (ret)
		return ret;
	pages_end(m, pool);
	unmap(pool);
	return 0;
}

enum tr_pages tr_pages_here(struct tr *tr)
{
	struct tr_memory *m = tr->memory;
	enum tr_pages pages;
	struct tr_pool *pool;
	void *sample;

	if (tr_alloc(tr, KV_HUGE_PAGE, &sample, NULL))
		return TR_PAGES_UNKNOWN;
	pthread_mutex_lock(&m->lock);
	for (pool = m->pools; pool->addr != sample;)
		pool = pool->next;
	pthread_mutex_unlock(&m->lock);
	pages_settle(pool);
	pages = pages_of(pool);
	tr_free(tr, sample, NULL);
	return pages;
}

void memory_find_pool(const struct tr_memory *m, struct tr_mem *mem)
{
	mem->pool_fd = -1;
	mem->pool_id = mem->pool_off = mem->pool_len = 0;
	for (const struct tr_pool *pool = m->pools; pool; pool = pool->next)
		if (mem->addr >= pool->addr && mem->addr + mem->len <= pool->addr + pool->len) {
			mem->pool_fd = pool->fd;
			mem->pool_id = pool->id;
			mem->pool_off = (uint64_t)(mem->addr - pool->addr);
			mem->pool_len = pool->len;
		}
}

static bool in_use(const struct tr_memory *m, const struct tr_pool *pool)
{
	for (const struct tr_mem *mem = m->mems; mem; mem = mem->next)
		if (mem->pool_id == pool->id && atomic_load(&mem->in_flight))
			return true;
	return false;
}

/* A pool into which a call that has not returned may still copy stays mapped for good. */
void memory_free_pools(struct tr_memory *m)
{
	for (struct tr_pool *pool = m->pools; pool; pool = pool->next)
		pages_end(m, pool);
	pages_close(m); /* its thread looks through the list */
	while (m->pools) {
		struct tr_pool *pool = m->pools;

		m->pools = pool->next;
		if (in_use(m, pool))
			free(pool);
		else
			unmap(pool);
	}
}
