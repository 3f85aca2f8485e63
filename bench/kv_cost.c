/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_cost.c -- nanoseconds of processor time that a block costs: kv_write_blocks_async to KV_ACKED
 *
 * usage: kv_cost [BYTES [BLOCKS [ROUNDS [RUNS [LAYERS [TENSORS [PEERS [IDLE
 *                [POOL [THREADS [FLOOR]]]]]]]]]]]
 *
 * The bytes of a block; blocks, layers and tensors of a write; writes. PEERS are written to by
 * turns, IDLE more are connected, POOL is the blocks of each cache (0: twice BLOCKS). Without
 * THREADS one thread drives both engines. Else so many write with kv_write_blocks, each to peers of
 * its own, the engines have their service threads, and the time is that of the whole process.
 * With FLOOR 1 a second number follows: one thread that copies the same blocks between the same
 * memories, in turn with the writes, by the quicker of the loops of copy.c.
 *
 * Both engines are in this process. KVCACHE_SHM_PATH chooses the path of shm; linked with the fake
 * device (tests/fake/kv_world.c) it is the one of ib.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/resource.h>

#include <kvrail/kv.h>

#include "copy.h"
#include "cost.h"

struct cost {
	struct kv_engine *from, *to;
	struct kv_cache *source, *target;
	struct kv_peer **peer;
	uint8_t *from_memory[4], *to_memory[4];
	copy_fn *copy; /* of the floor */
	int64_t *local, *remote;
	size_t blocks, pool, bytes, layers, tensors, peers, threads;
	atomic_bool connected;
};

enum { THREADS_MAX = 64 };

static struct kv_error err;

static const char *const limits[] = { "KVCACHE_MAX_PEERS=4096", "KVCACHE_MAX_PER_ADDRESS=4096",
				      NULL };

static struct kv_cache *make_cache(const struct cost *c, struct kv_engine *engine,
				   uint8_t *memory_of[4])
{
	static const char *const names[] = { "k", "v", "k_scale", "v_scale" };
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_tensor tensor[4] = { 0 };
	struct kv_cache *cache;

	COST_TRY(c->tensors > 4);
	for (size_t t = 0; t < c->tensors; t++) {
		void *memory;

		COST_TRY(kv_alloc(engine, c->layers * c->pool * c->bytes, &memory, &err));
		memset(memory, 1, c->layers * c->pool * c->bytes);
		memory_of[t] = memory;
		tensor[t].name = names[t];
		tensor[t].block_bytes = c->bytes;
		tensor[t].base = memory;
		tensor[t].layer_stride = c->pool * c->bytes;
	}
	layout.layers = (uint32_t)c->layers;
	layout.tensors = (uint32_t)c->tensors;
	layout.tensor = tensor;
	layout.blocks = (uint32_t)c->pool;
	layout.flags = KV_CACHE_OPEN;
	COST_TRY(kv_cache_register(engine, &layout, &cache, &err));
	return cache;
}

static void *accept_all(void *arg)
{
	struct cost *c = arg;

	while (!c->threads && !atomic_load(&c->connected)) /* else its service thread accepts */
		COST_TRY(kv_progress(c->to, 1, NULL) < 0);
	return NULL;
}

static void connect_both(struct cost *c, size_t n)
{
	pthread_t thread;
	uint32_t port;

	COST_TRY(kv_listen(c->to, "127.0.0.1", 0, &port, &err));
	COST_TRY(pthread_create(&thread, NULL, accept_all, c));
	c->peer = calloc(n, sizeof(struct kv_peer *));
	for (size_t i = 0; i < n; i++)
		if (kv_connect(c->from, "127.0.0.1", port, 20000, &c->peer[i], &err)) {
			fprintf(stderr, "peer %zu: %s\n", i, err.message);
			exit(1);
		}
	atomic_store(&c->connected, true);
	pthread_join(thread, NULL);
}

/* A permutation of all ids, of which the first ones are used. */
static int64_t *shuffled(size_t n, uint64_t seed)
{
	int64_t *ids = calloc(n, sizeof(*ids));

	for (size_t i = 0; i < n; i++) {
		size_t other;

		seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		other = (seed >> 33) % (i + 1);
		ids[i] = ids[other];
		ids[other] = (int64_t)i;
	}
	return ids;
}

struct writer {
	struct cost *c;
	size_t number;
	int rounds;
	pthread_t thread;
};

static void *write_all(void *arg)
{
	struct kv_layers all = { 0, 0 };
	const struct writer *w = arg;
	const struct cost *c = w->c;

	for (size_t i = 0; i < (size_t)w->rounds; i++)
		COST_TRY(kv_write_blocks(c->peer[(w->number + i * c->threads) % c->peers],
					 c->source, all, c->local, c->remote, c->blocks, NULL,
					 NULL));
	return NULL;
}

static void write_by_threads(struct cost *c, int rounds)
{
	struct writer writer[THREADS_MAX];

	for (size_t t = 0; t < c->threads; t++) {
		writer[t] = (struct writer){ .c = c, .number = t, .rounds = rounds };
		COST_TRY(pthread_create(&writer[t].thread, NULL, write_all, &writer[t]));
	}
	for (size_t t = 0; t < c->threads; t++)
		pthread_join(writer[t].thread, NULL);
}

void measured(void *arg, int rounds)
{
	struct kv_layers all = { 0, 0 };
	struct kv_arrival arrival;
	struct cost *c = arg;

	if (c->threads) {
		write_by_threads(c, rounds);
		return;
	}
	for (int i = 0; i < rounds; i++) {
		struct kv_peer *peer = c->peer[(size_t)i % c->peers];
		struct kv_op *op;
		int grade = 0;

		COST_TRY(kv_write_blocks_async(peer, c->source, all, c->local, c->remote, c->blocks,
					       NULL, &op, &err));
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

static void copy_all(void *arg, int rounds)
{
	const struct cost *c = arg;

	for (int i = 0; i < rounds; i++)
		for (size_t l = 0; l < c->layers; l++)
			for (size_t t = 0; t < c->tensors; t++) {
				size_t at = l * c->pool * c->bytes;

				copy_blocks(c->copy, c->to_memory[t] + at, c->from_memory[t] + at,
					    c->bytes, c->remote, c->local, (uint32_t)c->blocks);
			}
}

/* NULL: this processor has no such loop. */
static void least_copy(struct cost *c, copy_fn *copy, int rounds, double blocks, double *least_p)
{
	c->copy = copy;
	if (copy)
		cost_least(copy_all, c, rounds, blocks, least_p);
}

static void report(struct cost *c, int rounds, int runs, bool with_floor)
{
	double blocks = (double)(c->blocks * c->layers * c->tensors) * rounds;
	double least = 0, floor = 0;
	const char *stores;
	copy_fn *stream = copy_stream(c->bytes, &stores);

	for (int i = 0; i < runs; i++) {
		cost_clock = c->threads ? CLOCK_PROCESS_CPUTIME_ID : CLOCK_THREAD_CPUTIME_ID;
		cost_least(measured, c, rounds, blocks * (double)(c->threads ? c->threads : 1),
			   &least);
		cost_clock = CLOCK_THREAD_CPUTIME_ID;
		if (with_floor) {
			least_copy(c, copy_plain, rounds, blocks, &floor);
			least_copy(c, stream, rounds, blocks, &floor);
		}
	}
	printf(with_floor ? "%.2f %.2f\n" : "%.2f\n", least, floor);
}

int main(int argc, char **argv)
{
	/* BYTES .. FLOOR */
	size_t n[] = { 1024, 1024, 20, 10, 1, 1, 1, 0, 0, 0, 0 };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	static struct cost c; /* reached to the end: nothing of it is freed */
	struct rlimit files;

	for (size_t i = 0; i < sizeof(n) / sizeof(n[0]) && (int)i + 1 < argc; i++)
		n[i] = strtoul(argv[i + 1], NULL, 10);
	c.bytes = n[0];
	c.blocks = n[1];
	c.layers = n[4];
	c.tensors = n[5];
	c.peers = n[6];
	c.pool = n[8] ? n[8] : 2 * c.blocks;
	c.threads = n[9];
	COST_TRY(c.threads > THREADS_MAX || c.pool < c.blocks || !c.peers);
	if (c.peers < c.threads)
		c.peers = c.threads;
	if (!getrlimit(RLIMIT_NOFILE, &files)) { /* both ends of each peer are here */
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	config.progress = c.threads ? KV_PROGRESS_AUTO : KV_PROGRESS_CALLER;
	config.arrivals_off = c.threads > 0;
	config.options = limits;
	COST_TRY(kv_engine_open(&config, &c.from, &err));
	COST_TRY(kv_engine_open(&config, &c.to, &err));
	c.source = make_cache(&c, c.from, c.from_memory);
	c.target = make_cache(&c, c.to, c.to_memory);
	c.local = shuffled(c.pool, 1);
	c.remote = shuffled(c.pool, 2);
	connect_both(&c, c.peers + n[7]);
	report(&c, (int)n[2], (int)n[3], n[10] > 0);
	return 0; /* the process's end is quicker than a good-bye to oneself */
}
