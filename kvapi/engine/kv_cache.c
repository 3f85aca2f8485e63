/* SPDX-License-Identifier: Apache-2.0 */
/* kv_cache.c -- memory for caches, and making a cache known to the transports */
#include <stdio.h>

#include "kv_engine.h"
#include "kv_layout.h"

#include <stdlib.h>

enum { PAGE = 4096 };

/* What kv_alloc gave out. */
struct kv_pool_range {
	uint8_t *ptr;
	size_t len;
	struct kv_pool_range *next;
};

static void keep_range(struct kv_engine *engine, struct kv_pool_range *range)
{
	pthread_mutex_lock(&engine->lock);
	range->next = engine->ranges;
	engine->ranges = range;
	pthread_mutex_unlock(&engine->lock);
}

int kv_alloc(struct kv_engine *engine, size_t len, void **ptr_p, struct kv_error *err)
{
	struct kv_pool_range *range;
	void *ptr;
	int ret = kv_engine_use(engine, "alloc", err);

	if (ret)
		return ret;
	if (!len || !ptr_p)
		return kv_fail(err, KV_ERR_ARG, "alloc", "len is %zu, ptr_p %s", len,
			       ptr_p ? "set" : "NULL");
	range = kv_fault(KV_RANGE_ALLOC) ? NULL : calloc(1, sizeof(*range));
	if (!range)
		return kv_fail(err, KV_ERR_NOMEM, "alloc", "cannot allocate the record of a pool");
	ret = tr_alloc(engine->tr, len, &ptr, err);
	if (ret) {
		free(range);
		return ret;
	}
	range->ptr = ptr;
	range->len = len;
	keep_range(engine, range);
	*ptr_p = ptr;
	return 0;
}

int kv_free(struct kv_engine *engine, void *ptr, struct kv_error *err)
{
	struct kv_pool_range **at, *range;
	int ret = kv_engine_use(engine, "free", err);

	if (ret)
		return ret;
	pthread_mutex_lock(&engine->lock);
	for (at = &engine->ranges; *at && (*at)->ptr != ptr; at = &(*at)->next)
		;
	range = *at;
	if (range)
		*at = range->next;
	pthread_mutex_unlock(&engine->lock);
	if (!range)
		return kv_fail(err, KV_ERR_ARG, "free", "%p did not come from kv_alloc", ptr);
	/* Unmapping may take a second: not under a lock that is needed for other peers' events. */
	ret = tr_free(engine->tr, ptr, err);
	if (ret)
		keep_range(engine, range);
	else
		free(range);
	return ret;
}

uint64_t kv_ranges_bytes(const struct kv_engine *engine)
{
	uint64_t bytes = 0;

	for (const struct kv_pool_range *r = engine->ranges; r; r = r->next)
		bytes += r->len;
	return bytes;
}

void kv_ranges_free(struct kv_engine *engine)
{
	while (engine->ranges) {
		struct kv_pool_range *range = engine->ranges;

		engine->ranges = range->next;
		if (tr_free(engine->tr, range->ptr, NULL))
			kv_log_error(engine->log, "a pool is still registered at close");
		free(range);
	}
}

/* The number of the kv_alloc range that holds `addr`, 0 if none does. */
static uintptr_t range_of(struct kv_engine *engine, uintptr_t addr)
{
	uintptr_t found = 0;

	pthread_mutex_lock(&engine->lock);
	for (const struct kv_pool_range *r = engine->ranges; r && !found; r = r->next)
		if (addr - (uintptr_t)r->ptr < r->len)
			found = (uintptr_t)r->ptr;
	pthread_mutex_unlock(&engine->lock);
	return found;
}

/* ---------------------------------------------------------------- regions */

/*
 * Registers touching or overlapping extents of one pool as one region, and points their slabs into
 * it. Those of a GPU that only touch may be of two allocations, and then no DMA-BUF holds both;
 * those that overlap (all layers of a block side by side) are of one.
 * ASSUMPTION: they come in the order of their addresses.
 */
_Static_assert((int)KV_MEM_CUDA == (int)TR_MEM_CUDA, "the numbers of kinds are one");
static int register_extents(struct kv_cache *cache, int kind, const struct kv_extent *extents,
			    size_t n, struct kv_error *err)
{
	unsigned int access = TR_REMOTE_WRITE;

	if (cache->geometry.flags & KV_CACHE_READABLE)
		access |= TR_REMOTE_READ;
	if (kv_option_bool(cache->engine->options, KV_OPT_RELAX_ORDERING))
		access |= TR_RELAXED;
	for (size_t i = 0, next; i < n; i = next) {
		uintptr_t begin = extents[i].addr, end = begin + extents[i].len;
		uintptr_t range = range_of(cache->engine, begin);
		struct tr_mem *mem;
		/* Of a pool, all of it is ours. */
		size_t gap = kind != TR_MEM_HOST ? 0 : range ? PAGE + 1 : 1;
		int ret;

		for (next = i + 1; next < n && extents[next].addr < end + gap &&
				   range_of(cache->engine, extents[next].addr) == range;
		     next++)
			if (extents[next].addr + extents[next].len > end)
				end = extents[next].addr + extents[next].len;
		ret = tr_mem_reg(cache->engine->tr, (void *)begin, end - begin, kind, access, &mem,
				 err);
		if (ret)
			return ret;
		cache->region[cache->regions++] = mem;
		for (size_t k = i; k < next; k++)
			cache->slab[extents[k].slab] = (struct kv_slab){
				.mem = mem,
				.offset = extents[k].addr - (uintptr_t)tr_mem_addr(mem),
			};
	}
	return 0;
}

static int make_regions(const struct kv_layout *layout, struct kv_cache *cache,
			struct kv_error *err)
{
	size_t n = (size_t)cache->geometry.layers * cache->geometry.tensors;
	struct kv_extent *extents;
	int ret;

	cache->device = layout->mem_kind != KV_MEM_HOST;
	if (kv_fault(KV_CACHE_SLABS))
		return kv_fail(err, KV_ERR_NOMEM, "register", "cannot allocate %zu slabs", n);
	cache->slab = calloc(n, sizeof(*cache->slab));
	cache->region = calloc(n, sizeof(struct tr_mem *));
	extents = calloc(n, sizeof(*extents));
	if (!cache->slab || !cache->region || !extents)
		ret = kv_fail(err, KV_ERR_NOMEM, "register", "cannot allocate %zu slabs", n);
	else
		ret = kv_layout_place(layout, &cache->geometry, cache->stride, extents, err);
	if (!ret)
		ret = register_extents(cache, layout->mem_kind, extents, n, err);
	free(extents);
	return ret;
}

void kv_cache_free(struct kv_cache *cache)
{
	for (size_t i = 0; i < cache->regions; i++)
		tr_mem_abandon(cache->region[i]);
	pthread_mutex_destroy(&cache->lock);
	free(cache->owner);
	free(cache->region);
	free(cache->slab);
	cache->magic = KV_MAGIC_DEAD;
	free(cache);
}

void kv_cache_hello(struct kv_hello *hello, const char *name, struct kv_cache *const *caches)
{
	snprintf(hello->name, sizeof(hello->name), "%s", name);
	for (unsigned int i = 0; i < KV_CACHES_MAX; i++)
		if (caches[i])
			hello->cache[hello->caches++] = caches[i]->geometry;
}

/* ARG if the hello of all caches, and one more, would be too long. engine.lock held. */
static int cache_fits(struct kv_engine *engine, const struct kv_geometry *more,
		      struct kv_error *err)
{
	struct kv_hello hello = { .caches = 0 };
	uint8_t buf[TR_HELLO_MAX];

	kv_cache_hello(&hello, engine->name, engine->cache);
	for (unsigned int i = 0; i < KV_CACHES_MAX; i++)
		if (engine->making[i])
			hello.cache[hello.caches++] = engine->making[i]->geometry;
	if (hello.caches < KV_CACHES_MAX)
		hello.cache[hello.caches++] = *more;
	if (kv_wire_put_hello(&hello, buf, sizeof(buf)))
		return 0;
	return kv_fail(err, KV_ERR_ARG, "register",
		       "the shapes of %u caches do not fit into a hello of %d bytes", hello.caches,
		       TR_HELLO_MAX);
}

/*
 * Registering pins memory and may take seconds; engine.lock is needed for every event of every
 * peer. So the id is reserved first, and peers see the cache when it is ready.
 */
static int reserve_id(struct kv_cache *cache, struct kv_error *err)
{
	struct kv_engine *engine = cache->engine;
	uint32_t id = cache->geometry.cache_id;
	int ret;

	pthread_mutex_lock(&engine->lock);
	if (engine->cache[id] || engine->making[id])
		ret = kv_fail(err, KV_ERR_BUSY, "register", "cache id %u is taken", id);
	else
		ret = cache_fits(engine, &cache->geometry, err);
	if (!ret)
		engine->making[id] = cache;
	pthread_mutex_unlock(&engine->lock);
	return ret;
}

static void publish(struct kv_cache *cache, bool ready)
{
	struct kv_engine *engine = cache->engine;
	uint32_t id = cache->geometry.cache_id;

	pthread_mutex_lock(&engine->lock);
	engine->making[id] = NULL;
	if (ready) {
		cache->magic = KV_MAGIC_CACHE;
		engine->cache[id] = cache;
	}
	pthread_mutex_unlock(&engine->lock);
}

int kv_cache_register(struct kv_engine *engine, const struct kv_layout *layout,
		      struct kv_cache **cache_p, struct kv_error *err)
{
	struct kv_cache *cache;
	int ret = kv_engine_use(engine, "register", err);

	if (ret)
		return ret;
	if (!cache_p)
		return kv_fail(err, KV_ERR_ARG, "register", "cache_p is NULL");
	cache = kv_fault(KV_CACHE_ALLOC) ? NULL : calloc(1, sizeof(*cache));
	if (!cache)
		return kv_fail(err, KV_ERR_NOMEM, "register", "cannot allocate a cache");
	cache->engine = engine;
	pthread_mutex_init(&cache->lock, NULL);
	ret = kv_layout_take(layout, &cache->geometry, cache->stride, err);
	if (!ret)
		ret = reserve_id(cache, err);
	if (!ret) {
		ret = make_regions(layout, cache, err);
		publish(cache, !ret);
	}
	if (ret)
		kv_cache_free(cache);
	else
		*cache_p = cache;
	return ret;
}

int kv_cache_unregister(struct kv_cache *cache, struct kv_error *err)
{
	struct kv_engine *engine;
	struct tr_mem *gone;
	int ret;

	if (!cache || cache->magic != KV_MAGIC_CACHE)
		return kv_fail(err, KV_ERR_ARG, "unregister", "cache is NULL or was unregistered");
	engine = cache->engine;
	ret = kv_engine_use(engine, "unregister", err);
	if (ret)
		return ret;
	pthread_mutex_lock(&engine->lock);
	if (cache->peers)
		ret = kv_fail(err, KV_ERR_BUSY, "unregister",
			      "%u peers know cache %u: close them first", cache->peers,
			      cache->geometry.cache_id);
	else if (atomic_load(&cache->users))
		ret = kv_fail(err, KV_ERR_BUSY, "unregister",
			      "%u operations or leases use cache %u", atomic_load(&cache->users),
			      cache->geometry.cache_id);
	else
		ret = tr_mem_dereg_begin(engine->tr, cache->region, cache->regions, &gone, err);
	if (!ret) {
		engine->cache[cache->geometry.cache_id] = NULL;
		cache->regions = 0;
	}
	pthread_mutex_unlock(&engine->lock);
	if (!ret) {
		tr_mem_dereg_end(engine->tr, gone);
		kv_cache_free(cache);
	}
	return ret;
}

int kv_cache_use(const struct kv_cache *cache, const struct kv_engine *engine, const char *op,
		 struct kv_error *err)
{
	if (!cache || cache->magic != KV_MAGIC_CACHE)
		return kv_fail(err, KV_ERR_ARG, op, "cache is NULL or was unregistered");
	if (cache->engine != engine)
		return kv_fail(err, KV_ERR_ARG, op, "cache and peer belong to different engines");
	return 0;
}

int kv_cache_layers(const struct kv_cache *cache, struct kv_layers *layers, const char *op,
		    struct kv_error *err)
{
	uint32_t all = cache->geometry.layers;

	if (layers->first >= all || layers->count > all - layers->first)
		return kv_fail(err, KV_ERR_ARG, op, "layers %u + %u lie outside the cache's %u",
			       layers->first, layers->count, all);
	if (!layers->count)
		layers->count = all - layers->first;
	return 0;
}
