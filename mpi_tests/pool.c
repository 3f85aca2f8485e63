/* SPDX-License-Identifier: Apache-2.0 */
/* pool.c -- the block allocator of a paged KV cache */
#include "pool.h"

#include <assert.h>
#include <stdlib.h>

#include "util.h"

void pool_create(struct pool *pool, uint32_t blocks, uint64_t seed,
		 void (*on_free)(void *arg, uint32_t id), void *on_free_arg)
{
	uint32_t i;

	assert(blocks > 0 && blocks <= POOL_BLOCKS_MAX);
	*pool = (struct pool){
		.blocks = blocks,
		.frees = blocks,
		.lru_first = POOL_NO_BLOCK,
		.lru_last = POOL_NO_BLOCK,
		.random = seed,
		.buckets = 1,
		.on_free = on_free,
		.on_free_arg = on_free_arg,
	};
	while (pool->buckets < blocks)
		pool->buckets *= 2;
	pool->bucket = need_calloc(pool->buckets, sizeof(*pool->bucket));
	for (i = 0; i < pool->buckets; i++)
		pool->bucket[i] = POOL_NO_BLOCK;
	pool->free = need_calloc(blocks, sizeof(*pool->free));
	pool->block = need_calloc(blocks, sizeof(*pool->block));
	for (i = 0; i < blocks; i++) {
		pool->free[i] = i;
		pool->block[i].key = POOL_NO_KEY;
	}
}

void pool_destroy(struct pool *pool)
{
	free(pool->bucket);
	free(pool->free);
	free(pool->block);
}

uint32_t pool_available(const struct pool *pool)
{
	return pool->frees + pool->idle;
}

static uint32_t *bucket_of(const struct pool *pool, uint64_t key)
{
	return &pool->bucket[mix64(key) & (pool->buckets - 1)];
}

uint32_t pool_lookup(const struct pool *pool, uint64_t key)
{
	uint32_t id = *bucket_of(pool, key);

	while (id != POOL_NO_BLOCK && pool->block[id].key != key)
		id = pool->block[id].hash_next;
	return id;
}

static void lru_append(struct pool *pool, uint32_t id)
{
	struct pool_block *b = &pool->block[id];

	b->lru_before = pool->lru_last;
	b->lru_after = POOL_NO_BLOCK;
	if (pool->lru_last == POOL_NO_BLOCK)
		pool->lru_first = id;
	else
		pool->block[pool->lru_last].lru_after = id;
	pool->lru_last = id;
	pool->idle++;
}

static void lru_remove(struct pool *pool, uint32_t id)
{
	const struct pool_block *b = &pool->block[id];

	if (b->lru_before == POOL_NO_BLOCK)
		pool->lru_first = b->lru_after;
	else
		pool->block[b->lru_before].lru_after = b->lru_after;
	if (b->lru_after == POOL_NO_BLOCK)
		pool->lru_last = b->lru_before;
	else
		pool->block[b->lru_after].lru_before = b->lru_before;
	pool->idle--;
}

static void make_free(struct pool *pool, uint32_t id)
{
	pool->block[id].state = POOL_FREE;
	pool->free[pool->frees++] = id;
	if (pool->on_free)
		pool->on_free(pool->on_free_arg, id);
}

static void evict_oldest(struct pool *pool)
{
	uint32_t id = pool->lru_first, *link;
	struct pool_block *b = &pool->block[id];

	lru_remove(pool, id);
	for (link = bucket_of(pool, b->key); *link != id; link = &pool->block[*link].hash_next)
		;
	*link = b->hash_next;
	b->key = POOL_NO_KEY;
	pool->evictions++;
	make_free(pool, id);
}

int pool_alloc(struct pool *pool, uint32_t n, int64_t *ids)
{
	uint32_t i, at, id;

	if (n > pool_available(pool))
		return -1;
	while (pool->frees < n)
		evict_oldest(pool);
	for (i = 0; i < n; i++) {
		at = (uint32_t)random_below(&pool->random, pool->frees);
		id = pool->free[at];
		pool->free[at] = pool->free[--pool->frees];
		pool->block[id].state = POOL_OPEN;
		pool->block[id].refs = 1;
		ids[i] = id;
	}
	return 0;
}

void pool_written(struct pool *pool, uint32_t id, uint64_t request, uint64_t index, uint64_t epoch)
{
	struct pool_block *b = &pool->block[id];

	assert(b->state == POOL_OPEN);
	b->state = POOL_HELD;
	b->request = request;
	b->index = index;
	b->epoch = epoch;
}

void pool_publish(struct pool *pool, uint32_t id, uint64_t key)
{
	struct pool_block *b = &pool->block[id];
	uint32_t *bucket = bucket_of(pool, key);

	assert(b->state == POOL_HELD && b->key == POOL_NO_KEY && key != POOL_NO_KEY);
	if (pool_lookup(pool, key) != POOL_NO_BLOCK)
		return;
	b->key = key;
	b->hash_next = *bucket;
	*bucket = id;
}

uint32_t pool_take(struct pool *pool, uint64_t key)
{
	uint32_t id = pool_lookup(pool, key);

	if (id != POOL_NO_BLOCK && pool->block[id].refs++ == 0)
		lru_remove(pool, id);
	return id;
}

void pool_release(struct pool *pool, uint32_t id)
{
	struct pool_block *b = &pool->block[id];

	assert(b->state != POOL_FREE && b->refs > 0);
	if (--b->refs > 0)
		return;
	if (b->key == POOL_NO_KEY)
		make_free(pool, id);
	else
		lru_append(pool, id);
}
