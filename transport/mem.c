/* SPDX-License-Identifier: Apache-2.0 */
/*
 * mem.c -- registered regions: made, shared, given back
 *
 * A later registration shares a region only while it has an owner, who promises that all of it is
 * mapped: an owner that was given 0 may map other memory at the same address in the next moment.
 */
#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/option.h"
#include "gpu/gpu.h"
#include "memory.h"

int tr_memory_open(struct tr *tr, struct kv_error *err)
{
	struct tr_memory *m = kv_fault(TR_ALLOC) ? NULL : calloc(1, sizeof(*m));

	if (!m)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate the memory table");
	pthread_mutex_init(&m->lock, NULL);
	tr->memory = m;
	return 0;
}

/* Takes the region from the first n providers; not under the lock. */
static void dereg_from(const struct tr *tr, struct tr_mem *mem, int n)
{
	while (n--)
		if (!mem->why[n])
			tr->provider[n]->mem_dereg(tr->provider_ctx[n], mem->handle[n]);
	for (int i = 0; i < TR_PROVIDERS; i++) {
		free(mem->why[i]);
		mem->why[i] = NULL;
	}
}

/*
 * Of contexts that are closed: regions that a call into a peer's memory, which has not returned,
 * still counts as in use. They and their pools stay for good.
 */
static pthread_mutex_t kept_lock = PTHREAD_MUTEX_INITIALIZER;
static struct tr_mem *kept;

static void free_records(struct tr_mem *mem)
{
	while (mem) {
		struct tr_mem *next = mem->next;

		if (atomic_load(&mem->in_flight)) {
			pthread_mutex_lock(&kept_lock);
			mem->next = kept;
			kept = mem;
			pthread_mutex_unlock(&kept_lock);
		} else {
			free(mem);
		}
		mem = next;
	}
}

void tr_memory_close(struct tr *tr)
{
	struct tr_memory *m = tr->memory;

	for (struct tr_mem *mem = m->mems; mem; mem = mem->next)
		dereg_from(tr, mem, tr->providers);
	memory_free_pools(m);
	free_records(m->mems);
	free_records(m->spare);
	left_free_all(m);
	for (int i = 0; i < MEM_CHUNKS; i++)
		free((void *)atomic_load(&m->chunk[i]));
	pthread_mutex_destroy(&m->lock);
	free(m);
	tr->memory = NULL;
}

/* ---------------------------------------------------------------- regions */

/*
 * Tells mapped memory from unmapped before a device or a peer meets the hole. MS_ASYNC writes
 * nothing; it looks at mappings, not at pages, so that a terabyte costs what a page does.
 */
static int check_mapped(uint8_t *addr, size_t len, struct kv_error *err)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);
	uintptr_t at = (uintptr_t)addr & ~(uintptr_t)(page - 1);

	if (msync((void *)at, (uintptr_t)addr + len - at, MS_ASYNC))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno == ENOMEM ? EFAULT : errno,
				     "register", "%zu bytes at %p are not all mapped", len,
				     (void *)addr);
	return 0;
}

/* Under the lock: shares a region that covers the range, or NULL. */
static struct tr_mem *share(struct tr_memory *m, const struct tr_mem *wanted)
{
	struct tr_mem *mem = range_find(m, wanted);

	if (!mem)
		return NULL;
	mem->refs++;
	mem->in_part |= wanted->len != mem->len;
	return mem;
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
		_Atomic(struct tr_mem *) *chunk = atomic_load(&m->chunk[slot / MEM_CHUNK]);

		if (!chunk) {
			chunk = kv_fault(TR_MEM_ALLOC) ? NULL : calloc(MEM_CHUNK, sizeof(*chunk));
			if (!chunk)
				return kv_fail(err, KV_ERR_NOMEM, "register",
					       "cannot grow the region table");
			atomic_store(&m->chunk[slot / MEM_CHUNK], chunk);
		}
		if (!atomic_load(&chunk[slot % MEM_CHUNK])) {
			mem->id = id;
			atomic_store(&chunk[slot % MEM_CHUNK], mem);
			return 0;
		}
	}
	return kv_fail(err, KV_ERR_BUSY, "register", "%d regions are registered already",
		       TR_MEMS_MAX);
}

static void give_id(struct tr_memory *m, struct tr_mem *mem)
{
	uint32_t slot = mem->id % TR_MEMS_MAX;

	atomic_store(&atomic_load(&m->chunk[slot / MEM_CHUNK])[slot % MEM_CHUNK], NULL);
}

/*
 * Goes on without this provider if that is its device's trouble, or it does not reach that GPU's
 * memory, and another one is there.
 */
static int leave_out_provider(struct tr_mem *mem, int i, const struct kv_error *why,
			      struct kv_error *err)
{
	bool device = why->code == KV_ERR_MEMLOCK || why->code == KV_ERR_DEVICE ||
		      (why->code == KV_ERR_UNSUPPORTED && mem->kind != TR_MEM_HOST);
	int others = 0;

	for (int k = 0; k < mem->tr->providers; k++)
		others += k != i && !mem->why[k];
	if (device && others)
		mem->why[i] = kv_fault(TR_MEM_WHY) ? NULL : malloc(sizeof(*why));
	if (!mem->why[i])
		return kv_error_copy(err, why);
	*mem->why[i] = *why;
	return 0;
}

static struct tr_mem *take_record(struct tr_memory *m)
{
	struct tr_mem *mem = m->spare;

	if (kv_fault(TR_MEM_ALLOC))
		return NULL;
	if (!mem)
		return calloc(1, sizeof(*mem));
	m->spare = mem->next;
	return mem;
}

/* A record for it, which no search finds before it is ready. */
static int reserve(struct tr *tr, const struct tr_mem *wanted, struct tr_mem **mem_p,
		   struct kv_error *err)
{
	struct tr_memory *m = tr->memory;
	struct tr_mem *mem;
	int ret;

	pthread_mutex_lock(&m->lock);
	mem = take_record(m);
	if (!mem) {
		ret = kv_fail(err, KV_ERR_NOMEM, "register", "cannot allocate a region's record");
		goto unlock;
	}
	mem->tr = tr;
	mem->addr = wanted->addr;
	mem->len = wanted->len;
	mem->kind = wanted->kind;
	mem->access = wanted->access;
	mem->dmabuf_fd = wanted->dmabuf_fd;
	mem->dmabuf_off = wanted->dmabuf_off;
	mem->no_dmabuf = wanted->no_dmabuf;
	mem->piece_first = wanted->piece_first;
	mem->piece_bytes = wanted->piece_bytes;
	mem->no_nic = wanted->no_nic;
	mem->flush = wanted->flush;
	if (mem->flush)
		mem->flush->refs++;
	mem->refs = 1;
	mem->in_part = false;
	memory_find_pool(m, mem);
	ret = take_id(m, mem, err);
	if (ret) {
		mem->next = m->spare;
		m->spare = mem;
		goto unlock;
	}
	mem->next = m->mems;
	mem->prev = &m->mems;
	if (mem->next)
		mem->next->prev = &mem->next;
	m->mems = mem;
	*mem_p = mem;

unlock:
	pthread_mutex_unlock(&m->lock);
	return ret;
}

/* No search finds it any more. Under the lock; what follows (withdraw) is not. */
static void hide(struct tr_memory *m, struct tr_mem *mem)
{
	range_remove(m, mem);
	left_forget(m, mem);
	atomic_store(&mem->ready, false);
	give_id(m, mem);
}

/*
 * Takes a hidden region from the first n providers and gives its record back. Until then a pool
 * that holds it cannot be freed. Not under the lock.
 */
static void withdraw(struct tr *tr, struct tr_mem *mem, int n)
{
	struct tr_memory *m = tr->memory;
	struct tr_mem *flush;

	while (atomic_load(&mem->readers)) /* of one record of a ring */
		sched_yield();
	dereg_from(tr, mem, n);
	pthread_mutex_lock(&m->lock);
	*mem->prev = mem->next;
	if (mem->next)
		mem->next->prev = mem->prev;
	flush = mem->flush;
	mem->flush = NULL;
	mem->next = m->spare;
	m->spare = mem;
	pthread_mutex_unlock(&m->lock);
	if (flush)
		tr_mem_dereg(flush, NULL);
}

static int register_new(struct tr *tr, const struct tr_mem *wanted, struct tr_mem **mem_p,
			struct kv_error *err)
{
	struct tr_memory *m = tr->memory;
	struct tr_mem *mem;
	struct kv_error why;
	int i, ret = reserve(tr, wanted, &mem, err);

	if (ret)
		return ret;
	for (i = 0; i < tr->providers && !ret; i++) {
		if (tr->provider[i]->pins)
			pages_await(m, mem);
		if (tr->provider[i]->mem_reg(tr->provider_ctx[i], mem, &mem->handle[i], &why))
			ret = leave_out_provider(mem, i, &why, err);
	}
	mem->dmabuf_fd = -1; /* the caller may close it now */
	mem->no_dmabuf = NULL;
	mem->no_nic = NULL;
	pthread_mutex_lock(&m->lock);
	if (ret) {
		hide(m, mem);
	} else {
		range_add(m, mem);
		atomic_store(&mem->ready, true);
	}
	pthread_mutex_unlock(&m->lock);
	if (ret)
		withdraw(tr, mem, i - 1); /* the last one did not take it */
	else
		*mem_p = mem;
	return ret;
}

/* Of `wanted` the address, length, kind, access and DMA-BUF count. */
static int reg(struct tr *tr, const struct tr_mem *wanted, struct tr_mem **mem_p,
	       struct kv_error *err)
{
	struct tr_mem *mem;
	int ret = 0;

	if (!wanted->addr || !wanted->len ||
	    (uintptr_t)wanted->addr + wanted->len < (uintptr_t)wanted->addr)
		return kv_fail(err, KV_ERR_ARG, "register",
			       "%zu bytes at %p are not a memory range", wanted->len,
			       (void *)wanted->addr);
	if (wanted->kind == TR_MEM_HOST)
		ret = check_mapped(wanted->addr, wanted->len, err);
	if (ret)
		return ret;
	mem_reap(tr);
	pthread_mutex_lock(&tr->memory->lock);
	mem = share(tr->memory, wanted);
	pthread_mutex_unlock(&tr->memory->lock);
	if (!mem)
		ret = register_new(tr, wanted, &mem, err);
	if (ret)
		return ret;
	for (int i = 0; mem->kind == TR_MEM_HOST && i < tr->providers; i++)
		if (mem->why[i])
			kv_log_warn(tr->log, "%s does not get %zu bytes at %p: %s; %s",
				    tr->provider[i]->name, mem->len, (void *)mem->addr,
				    mem->why[i]->message, mem->why[i]->hint);
	*mem_p = mem;
	return 0;
}

/*
 * As the DMA-BUF that its driver exports, or without one: then a NIC needs a module of the kernel.
 * flushed: a kernel might read what was there before, although the notify has come, unless NICs
 * flush it.
 */
static int reg_device(struct tr *tr, struct tr_mem *wanted, bool flushed, struct tr_mem **mem_p,
		      struct kv_error *err)
{
	bool always = kv_option_bool(tr->options, KV_OPT_GDRCOPY_FLUSH);
	struct kv_error why, no_flush;
	const struct gpu_kind *kind = tr_kinds[wanted->kind];
	int ret = kind->dmabuf(wanted->addr, wanted->len, &wanted->dmabuf_fd, &wanted->dmabuf_off,
			       &why);
	int gpu = flushed ? kind->needs_flush(wanted->addr, always) : -1;

	if (ret && ret != KV_ERR_UNSUPPORTED)
		return kv_error_copy(err, &why);
	if (ret)
		wanted->no_dmabuf = why.message;
	if (ret && kind->grid &&
	    !kind->grid(wanted->addr, wanted->len, &wanted->piece_first, &wanted->piece_bytes))
		wanted->piece_bytes = 0;
	if (gpu >= 0 && tr_mem_scratch(tr, wanted->kind, gpu, &wanted->flush, &no_flush))
		wanted->no_nic = &no_flush;
	ret = reg(tr, wanted, mem_p, err);
	wanted->no_dmabuf = NULL;
	wanted->no_nic = NULL;
	if (wanted->flush)
		tr_mem_dereg(wanted->flush, NULL); /* the region has its own hold of it */
	if (wanted->dmabuf_fd >= 0)
		close(wanted->dmabuf_fd);
	return ret;
}

int tr_mem_scratch(struct tr *tr, int kind, int gpu, struct tr_mem **mem_p, struct kv_error *err)
{
	struct tr_mem wanted = { .kind = kind, .dmabuf_fd = -1, .access = TR_REMOTE_READ };
	int ret = tr_kinds[kind]->scratch(tr->gpu[kind], gpu, (void **)&wanted.addr, &wanted.len,
					  err);

	ret = ret ? ret : reg_device(tr, &wanted, false, mem_p, err);
	if (!ret)
		(*mem_p)->gpu = gpu;
	return ret;
}

int tr_mem_reg(struct tr *tr, void *addr, size_t len, int kind, unsigned int access,
	       struct tr_mem **mem_p, struct kv_error *err)
{
	struct tr_mem wanted = {
		.addr = addr, .len = len, .kind = kind, .dmabuf_fd = -1, .access = access
	};

	if (kind == TR_MEM_HOST)
		return reg(tr, &wanted, mem_p, err);
	if (kind < 0 || kind >= TR_MEM_KINDS || !tr_kinds[kind])
		return kv_fail(err, KV_ERR_ARG, "register",
			       "there is no kind of memory with number %d", kind);
	return reg_device(tr, &wanted, true, mem_p, err);
}

int tr_mem_reg_dmabuf(struct tr *tr, void *addr, size_t len, int fd, uint64_t offset,
		      unsigned int access, struct tr_mem **mem_p, struct kv_error *err)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

	if (fd < 0 || offset > UINT64_MAX - len || (offset ^ (uintptr_t)addr) & (page - 1))
		return kv_fail(err, KV_ERR_ARG, "register",
			       "descriptor %d, offset %llu is not a DMA-BUF of the %zu bytes at %p",
			       fd, (unsigned long long)offset, len, addr);
	return reg(tr,
		   &(struct tr_mem){ .addr = addr,
				     .len = len,
				     .kind = TR_MEM_CUDA,
				     .dmabuf_fd = fd,
				     .dmabuf_off = offset,
				     .access = access },
		   mem_p, err);
}

/* ---------------------------------------------------------------- giving back */

/*
 * Gives one registration of each back: those that are to go are hidden and begin a list (`gone`).
 * What is left of a shared region may be an owner of a part of it: the rest is not promised to be
 * mapped any more, so no other registration shares it.
 */
static struct tr_mem *give_back(struct tr_memory *m, struct tr_mem *const *mems, size_t n)
{
	struct tr_mem *gone = NULL;

	for (size_t i = 0; i < n; i++) {
		struct tr_mem *mem = mems[i];

		if (mem->refs) {
			if (mem->in_part)
				range_remove(m, mem);
			continue;
		}
		if (!atomic_load(&mem->ready)) /* twice in the list */
			continue;
		hide(m, mem);
		mem->gone = gone;
		gone = mem;
	}
	return gone;
}

int tr_mem_dereg_begin(struct tr *tr, struct tr_mem *const *mems, size_t n, struct tr_mem **gone_p,
		       struct kv_error *err)
{
	struct tr_memory *m = tr->memory;
	const struct tr_mem *busy = NULL;
	int ret = 0;

	pthread_mutex_lock(&m->lock);
	left_reap(m);
	for (size_t i = 0; i < n; i++)
		mems[i]->refs--;
	for (size_t i = 0; i < n && !busy; i++)
		if (mem_is_used(mems[i]))
			busy = mems[i];
	if (!busy)
		*gone_p = give_back(m, mems, n);
	for (size_t i = 0; i < n && busy; i++)
		mems[i]->refs++;
	if (busy)
		ret = kv_fail(err, KV_ERR_BUSY, "deregister", "operations use the %zu bytes at %p",
			      busy->len, (void *)busy->addr);
	pthread_mutex_unlock(&m->lock);
	return ret;
}

static void withdraw_all(struct tr *tr, struct tr_mem *gone)
{
	while (gone) {
		struct tr_mem *next = gone->gone;

		withdraw(tr, gone, tr->providers);
		gone = next;
	}
}

void tr_mem_dereg_end(struct tr *tr, struct tr_mem *gone)
{
	withdraw_all(tr, gone);
	mem_reap(tr);
}

int tr_mem_dereg(struct tr_mem *mem, struct kv_error *err)
{
	struct tr *tr = mem->tr;
	struct tr_mem *gone;
	int ret = tr_mem_dereg_begin(tr, &mem, 1, &gone, err);

	if (!ret)
		tr_mem_dereg_end(tr, gone);
	return ret;
}

void tr_mem_abandon(struct tr_mem *mem)
{
	struct tr *tr = mem->tr;
	struct tr_memory *m = tr->memory;

	pthread_mutex_lock(&m->lock);
	range_remove(m, mem);
	m->orphans += !--mem->refs;
	pthread_mutex_unlock(&m->lock);
	mem_reap(tr);
}

void mem_reap(struct tr *tr)
{
	struct tr_memory *m = tr->memory;
	struct tr_mem *gone = NULL;

	pthread_mutex_lock(&m->lock);
	left_reap(m);
	for (struct tr_mem *mem = m->orphans ? m->mems : NULL; mem; mem = mem->next) {
		if (mem->refs || !atomic_load(&mem->ready) || mem_is_used(mem))
			continue;
		hide(m, mem);
		mem->gone = gone;
		gone = mem;
		m->orphans--;
	}
	pthread_mutex_unlock(&m->lock);
	withdraw_all(tr, gone);
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
	const struct tr_provider *provider = conn->provider;
	const struct kv_error *why = provider ? mem->why[conn->provider_index] : NULL;

	if (why)
		return kv_error_copy(err, why);
	return mem->kind != TR_MEM_HOST && provider && provider->mem_usable
		       ? provider->mem_usable(conn, mem, err)
		       : 0;
}

bool mem_misses(struct tr *tr, int provider, struct kv_error *why)
{
	bool misses = false;

	pthread_mutex_lock(&tr->memory->lock);
	for (const struct tr_mem *mem = tr->memory->mems; mem && !misses; mem = mem->next) {
		misses = mem->kind != TR_MEM_HOST && atomic_load(&mem->ready) && mem->why[provider];
		if (misses)
			kv_error_copy(why, mem->why[provider]);
	}
	pthread_mutex_unlock(&tr->memory->lock);
	return misses;
}

const struct kv_error *tr_mem_why(const struct tr_mem *mem, const struct tr_provider *provider)
{
	int i = tr_provider_at(mem->tr, provider);

	return i < 0 ? NULL : mem->why[i];
}

void *tr_mem_handle(const struct tr_mem *mem, const struct tr_provider *provider)
{
	int i = tr_provider_at(mem->tr, provider);

	return i < 0 ? NULL : mem->handle[i];
}
