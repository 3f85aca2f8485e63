/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_cost.c -- nanoseconds of processor time that a block costs: kv_write_blocks_async to KV_ACKED
 *
 * usage: kv_cost [BYTES [BLOCKS [ROUNDS [RUNS [LAYERS]]]]]
 *
 * The bytes of a block, blocks and layers of a write, writes.
 *
 * Both engines are in this process. KVCACHE_SHM_PATH chooses the path of shm; linked with the fake
 * device (tests/fake/kv_world.c) it is the one of ib.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>

#include <kvrail/kv.h>

#include "cost.h"

struct cost {
	struct kv_engine *from, *to;
	struct kv_cache *source, *target;
	struct kv_peer *peer;
	int64_t *local, *remote;
	size_t blocks;
	atomic_bool connected;
};

static struct kv_error err;

/* Twice as many blocks as a write has, so that ids are shuffled among strangers. */
static struct kv_cache *make_cache(struct kv_engine *engine, size_t blocks, size_t bytes,
				   size_t layers)
{
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_tensor tensor = { .name = "k", .block_bytes = bytes };
	struct kv_cache *cache;
	void *memory;

	COST_TRY(kv_alloc(engine, layers * blocks * bytes, &memory, &err));
	memset(memory, 1, layers * blocks * bytes);
	tensor.base = memory;
	tensor.layer_stride = blocks * bytes;
	layout.layers = (uint32_t)layers;
	layout.tensors = 1;
	layout.tensor = &tensor;
	layout.blocks = (uint32_t)blocks;
	layout.flags = KV_CACHE_OPEN;
	COST_TRY(kv_cache_register(engine, &layout, &cache, &err));
	return cache;
}

static void *accept_one(void *arg)
{
	struct cost *c = arg;

	while (!atomic_load(&c->connected))
		COST_TRY(kv_progress(c->to, 1, NULL) < 0);
	return NULL;
}

static void connect_both(struct cost *c)
{
	pthread_t thread;
	uint32_t port;

	COST_TRY(kv_listen(c->to, "127.0.0.1", 0, &port, &err));
	COST_TRY(pthread_create(&thread, NULL, accept_one, c));
	COST_TRY(kv_connect(c->from, "127.0.0.1", port, 20000, &c->peer, &err));
	atomic_store(&c->connected, true);
	pthread_join(thread, NULL);
}

/* A permutation of twice as many ids, of which the first half is used. */
static int64_t *shuffled(size_t n, uint64_t seed)
{
	int64_t *ids = calloc(2 * n, sizeof(*ids));

	for (size_t i = 0; i < 2 * n; i++) {
		size_t other;

		seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		other = (seed >> 33) % (i + 1);
		ids[i] = ids[other];
		ids[other] = (int64_t)i;
	}
	return ids;
}

void measured(void *arg, int rounds)
{
	struct kv_layers all = { 0, 0 };
	struct kv_arrival arrival;
	struct cost *c = arg;

	for (int i = 0; i < rounds; i++) {
		struct kv_op *op;
		int grade = 0;

		COST_TRY(kv_write_blocks_async(c->peer, c->source, all, c->local, c->remote,
					       c->blocks, NULL, &op, &err));
		while (grade >= 0 && grade < KV_ACKED) {
			kv_progress(c->to, 0, NULL);
			while (kv_poll_arrivals(c->to, &arrival, 1, NULL) > 0)
				;
			grade = kv_test(op, &err);
		}
		COST_TRY(grade < 0);
		COST_TRY(kv_op_free(op, &err));
	}
}

int main(int argc, char **argv)
{
	size_t bytes = argc > 1 ? strtoul(argv[1], NULL, 10) : 1024;
	size_t blocks = argc > 2 ? strtoul(argv[2], NULL, 10) : 1024;
	int rounds = argc > 3 ? (int)strtol(argv[3], NULL, 10) : 20;
	int runs = argc > 4 ? (int)strtol(argv[4], NULL, 10) : 10;
	size_t layers = argc > 5 ? strtoul(argv[5], NULL, 10) : 1;
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct cost c = { .blocks = blocks };

	config.progress = KV_PROGRESS_CALLER;
	COST_TRY(kv_engine_open(&config, &c.from, &err));
	COST_TRY(kv_engine_open(&config, &c.to, &err));
	c.source = make_cache(c.from, 2 * blocks, bytes, layers);
	c.target = make_cache(c.to, 2 * blocks, bytes, layers);
	c.local = shuffled(blocks, 1);
	c.remote = shuffled(blocks, 2);
	connect_both(&c);
	cost_report(&c, rounds, runs, (double)(blocks * layers) * rounds);
	return 0; /* the process's end is quicker than a good-bye to oneself */
}
