/* SPDX-License-Identifier: Apache-2.0 */
/*
 * peer_cost.c -- what a peer costs: memory, descriptors, and the time of a connect
 *
 * usage: peer_cost [PEERS...]
 *
 * An engine connects to another process that many times and writes a block to each peer. Memory
 * (anonymous and shared) and descriptors are what it has more of afterwards, for each peer. Over
 * verbs the shared part is the device's: tests/softnic has all of its queues there.
 */
#include <dirent.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include <kvrail/kv.h>

#include "cost.h"

enum { BLOCKS = 64, BLOCK = 4096, PEERS_MAX = 4096 };

static struct kv_error err;

static struct kv_engine *open_engine(struct kv_cache **cache_p)
{
	static const char *const options[] = { "KVCACHE_MAX_PEERS=4096",
					       "KVCACHE_MAX_PER_ADDRESS=4096", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_tensor tensor = { .name = "k", .block_bytes = BLOCK };
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_engine *engine;
	void *memory;

	config.options = options;
	config.arrivals_off = 1;
	COST_TRY(kv_engine_open(&config, &engine, &err));
	COST_TRY(kv_alloc(engine, BLOCKS * BLOCK, &memory, &err));
	tensor.base = memory;
	layout.layers = layout.tensors = 1;
	layout.tensor = &tensor;
	layout.blocks = BLOCKS;
	layout.flags = KV_CACHE_OPEN;
	COST_TRY(kv_cache_register(engine, &layout, cache_p, &err));
	return engine;
}

static void receive(const struct cost_child *child, const void *arg)
{
	struct kv_cache *cache;
	struct kv_engine *engine = open_engine(&cache);
	uint32_t port;

	COST_TRY(kv_listen(engine, "127.0.0.1", 0, &port, &err));
	cost_serve(child, port);
}

static long descriptors(void)
{
	DIR *dir = opendir("/proc/self/fd");
	long n = 0;

	COST_TRY(!dir);
	while (readdir(dir))
		n++;
	closedir(dir);
	return n;
}

struct memory {
	long anon_kb, shared_kb;
};

static struct memory memory(void)
{
	FILE *file = fopen("/proc/self/status", "re");
	struct memory m = { 0 };
	char line[128];

	COST_TRY(!file);
	while (fgets(line, sizeof(line), file)) {
		sscanf(line, "RssAnon: %ld kB", &m.anon_kb);
		sscanf(line, "RssShmem: %ld kB", &m.shared_kb);
	}
	fclose(file);
	return m;
}

static double now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec * 1e3 + (double)ts.tv_nsec / 1e6;
}

static void connect_all(uint32_t port, int peers)
{
	static struct kv_peer *peer[PEERS_MAX];
	struct kv_layers all = { 0, 0 };
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_cache *cache;
	struct kv_engine *engine = open_engine(&cache);
	struct memory before, after;
	int64_t id = 1;
	double ms, kb, device_kb;
	long fds;

	/* What the first connection makes for all is not counted. */
	COST_TRY(kv_connect(engine, "127.0.0.1", port, 20000, &peer[0], &err));
	COST_TRY(kv_write_blocks(peer[0], cache, all, &id, &id, 1, NULL, &err));
	COST_TRY(kv_peer_info(peer[0], &info, &err));
	before = memory();
	fds = descriptors();
	ms = now_ms();
	for (int i = 0; i < peers; i++)
		COST_TRY(kv_connect(engine, "127.0.0.1", port, 20000, &peer[i], &err));
	ms = now_ms() - ms;
	for (int i = 0; i < peers; i++)
		COST_TRY(kv_write_blocks(peer[i], cache, all, &id, &id, 1, NULL, &err));
	after = memory();
	kb = (double)(after.anon_kb - before.anon_kb) / peers;
	device_kb = (double)(after.shared_kb - before.shared_kb) / peers;
	if (strcmp(info.transport, "ib") != 0) {
		kb += device_kb;
		device_kb = 0;
	}
	printf("%6d peers over %s: %7.1f kB  %5.2f descriptors  %6.2f ms to connect, each", peers,
	       info.transport, kb, (double)(descriptors() - fds) / peers, ms / peers);
	printf(device_kb > 0 ? "; the device has %.1f kB\n" : "\n", device_kb);
	kv_engine_close(engine);
}

static void measure_peers(int peers)
{
	struct cost_child child = cost_fork(receive, NULL);

	connect_all(child.port, peers);
	cost_join(&child);
}

int main(int argc, char **argv)
{
	static const int most[] = { 1, 16, 256, 1024 };
	struct rlimit files;

	if (!getrlimit(RLIMIT_NOFILE, &files)) {
		files.rlim_cur = files.rlim_max;
		setrlimit(RLIMIT_NOFILE, &files);
	}
	for (size_t i = 0; argc < 2 && i < sizeof(most) / sizeof(most[0]); i++)
		measure_peers(most[i]);
	for (int i = 1; i < argc; i++) {
		long peers = strtol(argv[i], NULL, 10);

		COST_TRY(peers < 1 || peers > PEERS_MAX);
		measure_peers((int)peers);
	}
	return 0;
}
