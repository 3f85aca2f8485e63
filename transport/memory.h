/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.h -- the local memory of a context, as pool.c, pages.c, mem.c, range.c and hold.c share it
 *
 * The lock covers the lists and is never held over a provider's call, mmap or munmap: pinning
 * 64 GiB takes a second, and other peers' calls need the lock meanwhile. Whatever takes long is
 * done between two turns of it: reserve, work, publish.
 */
#ifndef TR_MEMORY_H
#define TR_MEMORY_H

#include <pthread.h>

#include "conn.h"

enum {
	MEM_CHUNK = 256,
	MEM_CHUNKS = TR_MEMS_MAX / MEM_CHUNK,
	MEM_BUCKETS = 4096, /* of the range cache; a power of two */
	MEM_CLASSES = 64,   /* of sizes, by their highest bit */
};

/* A memfd made by tr_alloc. */
struct tr_pool {
	uint8_t *addr;
	size_t len;
	int fd;
	uint64_t id;
	_Atomic uint32_t work; /* pages.c: enum pages_work */
	atomic_bool stop;      /* no more pages */
	bool huge;	       /* pages are tried so; its maker's until `work` says DONE */
	_Atomic size_t huge_bytes, small_bytes;
	struct tr_pool *next;
};

struct tr_memory {
	pthread_mutex_t lock;
	struct tr_pool *pools;
	struct tr_mem *mems;  /* registered, being registered or being deregistered */
	struct tr_mem *spare; /* records to use again; never freed before the context: tr_mem_get */
	unsigned int orphans; /* regions of `mems` without an owner that are still used */
	struct tr_left *left; /* connections that were closed while their device still held them */
	uint64_t next_pool_id;
	pthread_t pages_thread;
	bool pages_on, pages_started; /* it works; it was started and not joined */
	uint32_t next_id; /* low 16 bits: slot; high 16 bits: generation */
	struct tr_mem *range[MEM_BUCKETS];
	unsigned int class_used[MEM_CLASSES];
	/* id -> region, read without the lock; chunks are never freed before the context. */
	_Atomic(struct tr_mem *) *_Atomic chunk[MEM_CHUNKS];
};

/* pool.c, under the lock */
void memory_find_pool(const struct tr_memory *m, struct tr_mem *mem);
void memory_free_pools(struct tr_memory *m);

/* pages.c, not under the lock but for pages_begin */
enum pages_work { PAGES_NONE = 0, PAGES_WAITING, PAGES_BUSY, PAGES_DONE };
/* Whether there is memory for them: NOMEM, or they are left to the first writer. */
int pages_admit(struct tr *tr, struct tr_pool *pool, struct kv_error *err);
/* The first of them by the caller, but for "auto". UNSUPPORTED: the kernel makes no huge ones. */
int pages_try(struct tr *tr, struct tr_pool *pool, struct kv_error *err);
void pages_begin(struct tr *tr, struct tr_pool *pool); /* the others, in a thread */
void pages_end(struct tr_memory *m, struct tr_pool *pool); /* returns within one of them */
void pages_settle(struct tr_pool *pool); /* until they are made */
/* Until those of the pool in which the region lies are made. */
void pages_await(struct tr_memory *m, const struct tr_mem *mem);
void pages_close(struct tr_memory *m); /* every pool has ended */
enum tr_pages pages_of(const struct tr_pool *pool);

/* range.c, under the lock */
void range_add(struct tr_memory *m, struct tr_mem *mem);
void range_remove(struct tr_memory *m, struct tr_mem *mem); /* nothing if it is not there */
struct tr_mem *range_find(struct tr_memory *m, const struct tr_mem *wanted);

/* mem.c: frees orphans whose last use has ended; takes the lock */
void mem_reap(struct tr *tr);

/* hold.c, under the lock */
bool mem_is_used(const struct tr_mem *mem);
void left_reap(struct tr_memory *m);
void left_forget(struct tr_memory *m, struct tr_mem *mem); /* the region goes */
void left_free_all(struct tr_memory *m);

#endif
