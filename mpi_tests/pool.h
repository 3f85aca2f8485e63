/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool.h -- the block allocator of a paged KV cache
 *
 * A block is FREE, OPEN (handed out, being written), or HELD (written). HELD blocks are reference-
 * counted; a block that nobody references goes back to the free list unless it was published under
 * a key: then it stays as a reusable prefix until it is evicted, least recently used first. Free
 * blocks are handed out in random order.
 */
#ifndef MPI_TESTS_POOL_H
#define MPI_TESTS_POOL_H

#include <stdint.h>

enum pool_state { POOL_FREE = 0, POOL_OPEN, POOL_HELD };

enum { POOL_BLOCKS_MAX = 1 << 28 };

#define POOL_NO_KEY UINT64_MAX
#define POOL_NO_BLOCK UINT32_MAX

struct pool_block {
	uint8_t state; /* enum pool_state */
	uint32_t refs;
	uint64_t key;	     /* POOL_NO_KEY: not published */
	uint32_t hash_next;  /* blocks whose keys share a bucket */
	uint32_t lru_before; /* only of published blocks without references */
	uint32_t lru_after;
	/* What was written, for the owner's checks. */
	uint64_t request, index, epoch;
};

struct pool {
	uint32_t blocks;
	uint32_t frees;	    /* length of `free` */
	uint32_t idle;	    /* length of the LRU list */
	uint32_t lru_first; /* the next to be evicted */
	uint32_t lru_last;
	uint64_t evictions;
	uint64_t random;
	uint32_t buckets; /* a power of two */
	uint32_t *bucket;
	uint32_t *free;
	struct pool_block *block;
	/* Called for each block that becomes free, an evicted one included. */
	void (*on_free)(void *arg, uint32_t id);
	void *on_free_arg;
};

void pool_create(struct pool *pool, uint32_t blocks, uint64_t seed,
		 void (*on_free)(void *arg, uint32_t id), void *on_free_arg);
void pool_destroy(struct pool *pool);

/* Blocks that pool_alloc can hand out now, evicting what is not referenced. */
uint32_t pool_available(const struct pool *pool);

/*
 * Takes `n` blocks as OPEN with one reference; 0, or -1 (nothing changed) where fewer are
 * available.
 */
int pool_alloc(struct pool *pool, uint32_t n, int64_t *ids);

/* OPEN to HELD: the block now holds block `index` of `request`. */
void pool_written(struct pool *pool, uint32_t id, uint64_t request, uint64_t index, uint64_t epoch);

/*
 * Makes a HELD block findable. Nothing happens if the key is taken: the block is then freed with
 * its last reference.
 */
void pool_publish(struct pool *pool, uint32_t id, uint64_t key);

/* The block published under `key`, with one more reference; POOL_NO_BLOCK where there is none. */
uint32_t pool_take(struct pool *pool, uint64_t key);

/* Is a block published under `key`? Changes nothing. */
uint32_t pool_lookup(const struct pool *pool, uint64_t key);

/* Gives one reference back. An OPEN block becomes FREE with its last reference. */
void pool_release(struct pool *pool, uint32_t id);

#endif
