/* SPDX-License-Identifier: Apache-2.0 */
/* mem.c -- local memory: memfd pools, registered regions, the range cache */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "conn.h"
#include "gpu/cuda_load.h"

enum { CHUNK = 256, CHUNKS = TR_MEMS_MAX / CHUNK };

/* A memfd made by tr_alloc. */
struct pool {
	uint8_t *addr;
	size_t len;
	int fd;
	uint64_t id;
	struct pool *next;
};

struct tr_memory {
	pthread_mutex_t lock;
	struct pool *pools;
	struct tr_mem *mems;
	uint64_t next_pool_id;
	uint32_t next_id; /* low 16 bits: slot; high 16 bits: generation */
	atomic_int pins;
	/*
	 * id -> region for the data path, read without the lock: chunks are never freed before the
	 * context.
	 */
	_Atomic(struct tr_mem *) *_Atomic chunk[CHUNKS];
};

int tr_memory_open(struct tr *tr, struct kv_error *err)
{
	struct tr_memory *m = kv_fault(TR_ALLOC) ? NULL : calloc(1, sizeof(*m));

	if (!m)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate the memory table");
	pthread_mutex_init(&m->lock, NULL);
	tr->memory = m;
	return 0;
}

/* Takes the region from the first n providers. */
static void take_from(const struct tr *tr, struct tr_mem *mem, int n)
{
	while (n--)
		if (tr->provider[n] != mem->left_out)
			tr->provider[n]->mem_dereg(tr->provider_ctx[n], mem->handle[n]);
	free(mem->why);
}

void tr_memory_close(struct tr *tr)
{
	struct tr_memory *m = tr->memory;

	while (m->mems) {
		struct tr_mem *mem = m->mems;

		take_from(tr, mem, tr->providers);
		m->mems = mem->next;
		free(mem);
	}
	while (m->pools) {
		struct pool *pool = m->pools;

		m->pools = pool->next;
		munmap(pool->addr, pool->len);
		close(pool->fd);
		free(pool);
	}
	for (int i = 0; i < CHUNKS; i++)
		free((void *)atomic_load(&m->chunk[i]));
	pthread_mutex_destroy(&m->lock);
	free(m);
	tr->memory = NULL;
}

void tr_memory_pin(struct tr *tr, int by)
{
	atomic_fetch_add(&tr->memory->pins, by);
}

/* ---------------------------------------------------------------- pools */

static int map_pool(struct pool *pool, struct kv_error *err)
{
	pool->fd = kv_fault(TR_POOL_MEMFD)
			   ? (errno = EMFILE, -1)
			   : memfd_create("kvrail-pool", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	if (pool->fd < 0)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "alloc", "memfd_create");
	if (kv_fault(TR_POOL_SIZE) ? (errno = ENOSPC, -1) : ftruncate(pool->fd, (off_t)pool->len)) {
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
					    : mmap(NULL, pool->len, PROT_READ | PROT_WRITE,
						   MAP_SHARED, pool->fd, 0);
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

int tr_alloc(struct tr *tr, size_t len, void **ptr_p, struct kv_error *err)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	struct kv_error cause;
	struct pool *pool;
	int ret;

	if (!len || len > (size_t)INT64_MAX - page)
		return kv_fail(err, KV_ERR_ARG, "alloc", "%zu bytes cannot be allocated", len);
	pool = kv_fault(TR_POOL_ALLOC) ? NULL : calloc(1, sizeof(*pool));
	if (!pool)
		return kv_fail(err, KV_ERR_NOMEM, "alloc", "cannot allocate a pool's record");
	pool->len = (len + page - 1) & ~(page - 1);
	ret = map_pool(pool, &cause);
	if (ret) {
		free(pool);
		return kv_error_copy(err, &cause);
	}
	pthread_mutex_lock(&tr->memory->lock);
	pool->id = ++tr->memory->next_pool_id;
	pool->next = tr->memory->pools;
	tr->memory->pools = pool;
	pthread_mutex_unlock(&tr->memory->lock);
	*ptr_p = pool->addr;
	return 0;
}

int tr_free(struct tr *tr, void *ptr, struct kv_error *err)
{
	struct tr_memory *m = tr->memory;
	struct pool *pool, **at;
	int ret = 0;

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
	munmap(pool->addr, pool->len);
	close(pool->fd);
	free(pool);
	return 0;
}

/* ---------------------------------------------------------------- regions */

/* Tells mapped memory from unmapped before a device or a peer meets the hole. */
static int check_mapped(uint8_t *addr, size_t len, struct kv_error *err)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	uintptr_t at = (uintptr_t)addr & ~(uintptr_t)(page - 1);
	uintptr_t end = (uintptr_t)addr + len;
	unsigned char resident[4096];

	while (at < end) {
		size_t step =
			end - at < sizeof(resident) * page ? end - at : sizeof(resident) * page;

		if (mincore((void *)at, step, resident))
			return kv_fail_errno(err, KV_ERR_SYSTEM, errno == ENOMEM ? EFAULT : errno,
					     "register", "%zu bytes at %p are not all mapped", len,
					     (void *)addr);
		at += step;
	}
	return 0;
}

/* Under the lock. */
static struct tr_mem *find_covering(struct tr_memory *m, const uint8_t *addr, size_t len, int kind,
				    unsigned int access)
{
	for (struct tr_mem *mem = m->mems; mem; mem = mem->next)
		if (mem->kind == kind && (mem->access & access) == access &&
		    (mem->access & TR_RELAXED) == (access & TR_RELAXED) && addr >= mem->addr &&
		    len <= mem->len && (size_t)(addr - mem->addr) <= mem->len - len)
			return mem;
	return NULL;
}

/*
 * A free id: the slot's next generation, so that an id comes back only after 2^32 registrations.
 * Under the lock.
 */
static int take_id(struct tr_memory *m, struct tr_mem *mem, struct kv_error *err)
{
	for (uint32_t tries = 0; tries < TR_MEMS_MAX; tries++) {
		uint32_t id = m->next_id++;
		uint32_t slot = id % TR_MEMS_MAX;
		_Atomic(struct tr_mem *) *chunk = atomic_load(&m->chunk[slot / CHUNK]);

		if (!chunk) {
			chunk = kv_fault(TR_MEM_ALLOC) ? NULL : calloc(CHUNK, sizeof(*chunk));
			if (!chunk)
				return kv_fail(err, KV_ERR_NOMEM, "register",
					       "cannot grow the region table");
			atomic_store(&m->chunk[slot / CHUNK], chunk);
		}
		if (!atomic_load(&chunk[slot % CHUNK])) {
			mem->id = id;
			atomic_store(&chunk[slot % CHUNK], mem);
			return 0;
		}
	}
	return kv_fail(err, KV_ERR_BUSY, "register", "%d regions are registered already",
		       TR_MEMS_MAX);
}

static void give_id(struct tr_memory *m, struct tr_mem *mem)
{
	uint32_t slot = mem->id % TR_MEMS_MAX;

	atomic_store(&atomic_load(&m->chunk[slot / CHUNK])[slot % CHUNK], NULL);
}

static void find_pool(struct tr_memory *m, struct tr_mem *mem)
{
	mem->pool_fd = -1;
	for (struct pool *pool = m->pools; pool; pool = pool->next)
		if (mem->addr >= pool->addr && mem->addr + mem->len <= pool->addr + pool->len) {
			mem->pool_fd = pool->fd;
			mem->pool_id = pool->id;
			mem->pool_off = (uint64_t)(mem->addr - pool->addr);
			mem->pool_len = pool->len;
		}
}

/*
 * Goes on without this provider if that is its device's trouble, or it copies what no CPU may
 * touch, and another one is there.
 */
static int leave_out(struct tr_mem *mem, const struct tr_provider *provider,
		     const struct kv_error *why, struct kv_error *err)
{
	bool device = why->code == KV_ERR_MEMLOCK || why->code == KV_ERR_DEVICE ||
		      (why->code == KV_ERR_UNSUPPORTED && mem->kind == TR_MEM_DEVICE);

	if (device && mem->tr->providers > 1 && !mem->left_out)
		mem->why = kv_fault(TR_MEM_WHY) ? NULL : malloc(sizeof(*why));
	if (!mem->why || mem->left_out)
		return kv_error_copy(err, why);
	*mem->why = *why;
	mem->left_out = provider;
	return 0;
}

/* Under the lock. */
static int register_new(struct tr *tr, struct tr_mem *mem, struct kv_error *err)
{
	struct kv_error why;
	int i, ret;

	mem->tr = tr;
	find_pool(tr->memory, mem);
	ret = take_id(tr->memory, mem, err);
	if (ret)
		return ret;
	for (i = 0; i < tr->providers; i++) {
		if (tr->provider[i]->mem_reg(tr->provider_ctx[i], mem, &mem->handle[i], &why))
			ret = leave_out(mem, tr->provider[i], &why, err);
		if (ret)
			goto undo;
	}
	mem->dmabuf_fd = -1; /* the caller may close it now */
	mem->no_dmabuf = NULL;
	mem->next = tr->memory->mems;
	tr->memory->mems = mem;
	return 0;

undo:
	take_from(tr, mem, i);
	give_id(tr->memory, mem);
	return ret;
}

/* Of `wanted` the address, length, kind, access and DMA-BUF count. */
static int reg(struct tr *tr, const struct tr_mem *wanted, struct tr_mem **mem_p,
	       struct kv_error *err)
{
	struct tr_mem *mem, *fresh;
	int ret = 0;

	if (!wanted->addr || !wanted->len ||
	    (uintptr_t)wanted->addr + wanted->len < (uintptr_t)wanted->addr)
		return kv_fail(err, KV_ERR_ARG, "register", "%zu bytes at %p are no memory range",
			       wanted->len, (void *)wanted->addr);
	if (wanted->kind == TR_MEM_HOST)
		ret = check_mapped(wanted->addr, wanted->len, err);
	if (ret)
		return ret;
	fresh = kv_fault(TR_MEM_ALLOC) ? NULL : calloc(1, sizeof(*fresh));
	if (!fresh)
		return kv_fail(err, KV_ERR_NOMEM, "register", "cannot allocate a region's record");
	pthread_mutex_lock(&tr->memory->lock);
	mem = find_covering(tr->memory, wanted->addr, wanted->len, wanted->kind, wanted->access);
	if (!mem) {
		*fresh = *wanted;
		ret = register_new(tr, fresh, err);
		if (!ret) {
			mem = fresh;
			fresh = NULL;
		}
	}
	if (mem)
		mem->refs++;
	pthread_mutex_unlock(&tr->memory->lock);
	if (!fresh && mem->left_out && mem->kind == TR_MEM_HOST)
		kv_log_warn(tr->log, "%s does not get %zu bytes at %p: %s; %s", mem->left_out->name,
			    mem->len, (void *)mem->addr, mem->why->message, mem->why->hint);
	free(fresh);
	if (mem)
		*mem_p = mem;
	return ret;
}

/* As the DMA-BUF that CUDA exports, or without one: then a device needs nvidia_peermem. */
static int reg_device(struct tr *tr, void *addr, size_t len, unsigned int access,
		      struct tr_mem **mem_p, struct kv_error *err)
{
	struct tr_mem wanted = {
		.addr = addr, .len = len, .kind = TR_MEM_DEVICE, .dmabuf_fd = -1, .access = access
	};
	struct kv_error why;
	int ret = gpu_dmabuf(addr, len, access & TR_REMOTE_WRITE, &wanted.dmabuf_fd,
			     &wanted.dmabuf_off, &why);

	if (ret && ret != KV_ERR_UNSUPPORTED)
		return kv_error_copy(err, &why);
	if (ret)
		wanted.no_dmabuf = why.message;
	ret = reg(tr, &wanted, mem_p, err);
	if (wanted.dmabuf_fd >= 0)
		close(wanted.dmabuf_fd);
	return ret;
}

int tr_mem_reg(struct tr *tr, void *addr, size_t len, int kind, unsigned int access,
	       struct tr_mem **mem_p, struct kv_error *err)
{
	if (kind == TR_MEM_DEVICE)
		return reg_device(tr, addr, len, access, mem_p, err);
	if (kind != TR_MEM_HOST)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "register",
			       "memory kind %d is not supported", kind);
	return reg(
		tr,
		&(struct tr_mem){
			.addr = addr, .len = len, .kind = kind, .dmabuf_fd = -1, .access = access },
		mem_p, err);
}

int tr_mem_reg_dmabuf(struct tr *tr, void *addr, size_t len, int fd, uint64_t offset,
		      unsigned int access, struct tr_mem **mem_p, struct kv_error *err)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	if (fd < 0 || offset > UINT64_MAX - len || (offset ^ (uintptr_t)addr) & (page - 1))
		return kv_fail(err, KV_ERR_ARG, "register",
			       "descriptor %d, offset %llu is no DMA-BUF of the %zu bytes at %p",
			       fd, (unsigned long long)offset, len, addr);
	return reg(tr,
		   &(struct tr_mem){ .addr = addr,
				     .len = len,
				     .kind = TR_MEM_DEVICE,
				     .dmabuf_fd = fd,
				     .dmabuf_off = offset,
				     .access = access },
		   mem_p, err);
}

int tr_mem_dereg(struct tr_mem *mem, struct kv_error *err)
{
	struct tr *tr = mem->tr;
	struct tr_memory *m = tr->memory;
	struct tr_mem **at;

	pthread_mutex_lock(&m->lock);
	if (mem->refs > 1) {
		mem->refs--;
		pthread_mutex_unlock(&m->lock);
		return 0;
	}
	if (atomic_load(&mem->in_flight) || atomic_load(&m->pins)) {
		pthread_mutex_unlock(&m->lock);
		return kv_fail(err, KV_ERR_BUSY, "deregister", "operations use the %zu bytes at %p",
			       mem->len, (void *)mem->addr);
	}
	for (at = &m->mems; *at != mem; at = &(*at)->next)
		;
	*at = mem->next;
	give_id(m, mem);
	take_from(tr, mem, tr->providers);
	pthread_mutex_unlock(&m->lock);
	free(mem);
	return 0;
}

void *tr_mem_addr(const struct tr_mem *mem)
{
	return mem->addr;
}

size_t tr_mem_len(const struct tr_mem *mem)
{
	return mem->len;
}

int tr_mem_usable(const struct tr_conn *conn, const struct tr_mem *mem, struct kv_error *err)
{
	return mem->left_out && mem->left_out == conn->provider ? kv_error_copy(err, mem->why) : 0;
}

void *tr_mem_handle(const struct tr_mem *mem, const struct tr_provider *provider)
{
	for (int i = 0; i < mem->tr->providers; i++)
		if (mem->tr->provider[i] == provider)
			return mem->handle[i];
	return NULL;
}

struct tr_mem *tr_mem_by_id(struct tr *tr, uint32_t id)
{
	uint32_t slot = id % TR_MEMS_MAX;
	_Atomic(struct tr_mem *) *chunk = atomic_load(&tr->memory->chunk[slot / CHUNK]);
	struct tr_mem *mem = chunk ? atomic_load(&chunk[slot % CHUNK]) : NULL;

	return mem && mem->id == id && mem->kind == TR_MEM_HOST ? mem : NULL;
}
