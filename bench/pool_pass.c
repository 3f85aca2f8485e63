/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pool_pass.c -- a peer's first pass over a pool beside its second, nanoseconds of the
 * writer's processor a block, as others may keep the machine busy
 *
 * usage: pool_pass [MIB [BYTES...]]
 *
 * A receiver allocates the pool (KVCACHE_POOL_PAGES says with which pages) and waits until they are
 * made, as the writer does for its own. Another process of the host, the writer, writes each block
 * once, in a random order, 1538 blocks a write, and then all of them again. A new pool and
 * connection for each size of blocks.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <kvrail/kv.h>

#include "cost.h"

enum { BATCH = 1538 };

static struct kv_error err;

static struct kv_cache *make_cache(struct kv_engine *engine, size_t blocks, size_t bytes)
{
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_tensor tensor = { .name = "k", .block_bytes = bytes };
	struct kv_cache *cache;
	char text[4096];
	void *memory;

	COST_TRY(kv_alloc(engine, blocks * bytes, &memory, &err));
	tensor.base = memory;
	layout.layers = layout.tensors = 1;
	layout.tensor = &tensor;
	layout.blocks = (uint32_t)blocks;
	layout.flags = KV_CACHE_OPEN;
	COST_TRY(kv_cache_register(engine, &layout, &cache, &err));
	do
		kv_dump(engine, text, sizeof(text));
	while (!strstr(text, " 0 of them still"));
	return cache;
}

struct shape {
	size_t blocks, bytes;
};

static void receive(const struct cost_child *child, const void *arg)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	const struct shape *shape = arg;
	struct kv_engine *engine;
	uint32_t port;

	config.arrivals_off = 1;
	COST_TRY(kv_engine_open(&config, &engine, &err));
	make_cache(engine, shape->blocks, shape->bytes);
	COST_TRY(kv_listen(engine, "127.0.0.1", 0, &port, &err));
	cost_serve(child, port);
}

static double pass(struct kv_peer *peer, struct kv_cache *source, const int64_t *local,
		   const int64_t *remote, size_t blocks)
{
	struct kv_layers all = { 0, 0 };
	struct timespec from, to;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &from);
	for (size_t i = 0; i < blocks; i += BATCH) {
		size_t n = blocks - i < BATCH ? blocks - i : BATCH;

		COST_TRY(kv_write_blocks(peer, source, all, local, remote + i, n, NULL, &err));
	}
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &to);
	return ((double)(to.tv_sec - from.tv_sec) * 1e9 + (double)(to.tv_nsec - from.tv_nsec)) /
	       (double)blocks;
}

static void send_twice(uint32_t port, size_t blocks, size_t bytes)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	int64_t *local = calloc(BATCH, sizeof(*local)), *remote = calloc(blocks, sizeof(*remote));
	struct kv_engine *engine;
	struct kv_cache *source;
	struct kv_peer *peer;
	double first, second;
	uint64_t seed = 1;

	COST_TRY(!local || !remote);
	for (size_t i = 0; i < blocks; i++) {
		size_t other;

		seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		other = (seed >> 33) % (i + 1);
		remote[i] = remote[other];
		remote[other] = (int64_t)i;
		if (i < BATCH)
			local[i] = (int64_t)i;
	}
	COST_TRY(kv_engine_open(NULL, &engine, &err));
	source = make_cache(engine, BATCH, bytes);
	COST_TRY(kv_connect(engine, "127.0.0.1", port, 20000, &peer, &err));
	COST_TRY(kv_peer_info(peer, &info, &err));
	first = pass(peer, source, local, remote, blocks);
	second = pass(peer, source, local, remote, blocks);
	printf("%6zu B  first %8.1f ns  second %8.1f ns  ratio %5.2f  %s\n", bytes, first, second,
	       first / second, info.path);
	kv_engine_close(engine);
	free(local);
	free(remote);
}

static void measure_size(size_t pool, size_t bytes)
{
	struct shape shape = { pool / bytes, bytes };
	struct cost_child child = cost_fork(receive, &shape);

	send_twice(child.port, shape.blocks, bytes);
	cost_join(&child);
}

int main(int argc, char **argv)
{
	static const size_t sizes[] = { 1 << 10, 4 << 10, 16 << 10, 64 << 10 };
	size_t pool = (argc > 1 ? strtoul(argv[1], NULL, 10) : 1024) << 20;

	for (size_t i = 0; argc < 3 && i < sizeof(sizes) / sizeof(sizes[0]); i++)
		measure_size(pool, sizes[i]);
	for (int i = 2; i < argc; i++)
		measure_size(pool, strtoul(argv[i], NULL, 10));
	return 0;
}
