/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 04-async-layers-and-arrivals.c -- send each layer as soon as it is computed, and sleep on a
 * descriptor until it is there
 *
 *     cc 04-async-layers-and-arrivals.c -o 04-async-layers $(pkg-config --cflags --libs kvrail)
 *
 * The prefill side starts one operation per layer and goes on computing; the decode side sleeps in
 * poll(2), as an event loop would, and gets an arrival for each layer.
 */
#include "example.h"

enum { N = 8, REQUEST = 42 };

static const int64_t local_ids[N] = { 0, 1, 2, 3, 4, 5, 6, 7 };
static const int64_t remote_ids[N] = { 9, 33, 2, 57, 14, 20, 21, 63 };

static void prefill(int fd)
{
	struct kv_options options = KV_INIT(kv_options);
	struct kv_op *ops[LAYERS];
	struct small_cache cache;
	struct kv_engine *engine;
	struct kv_peer *peer;
	struct kv_error err;
	uint32_t port;

	check(kv_engine_open(NULL, &engine, &err), &err);
	cache = open_cache(engine, 0, 1, 0);
	receive_bytes(fd, &port, sizeof(port));
	check(kv_connect(engine, "127.0.0.1", port, WAIT_MS, &peer, &err), &err);

	options.tag = REQUEST;
	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		struct kv_layers this_layer = { layer, 1 };

		for (int i = 0; i < N; i++) /* the layer is "computed" */
			fill_block(&cache, layer, local_ids[i], REQUEST);
		check(kv_write_blocks_async(peer, cache.handle, this_layer, local_ids, remote_ids,
					    N, &options, &ops[layer], &err),
		      &err);
		printf("prefill: layer %u is on its way\n", layer);
	}

	/*
	 * KV_SENT would be enough to overwrite the source blocks; KV_ACKED means that the decode
	 * side has its arrival.
	 */
	for (uint32_t layer = 0; layer < LAYERS; layer++) {
		check(kv_wait(ops[layer], KV_ACKED, WAIT_MS, &err), &err);
		require(kv_test(ops[layer], &err) == KV_ACKED, "an acknowledged layer");
		check(kv_op_free(ops[layer], &err), &err);
	}
	printf("prefill: all layers are acknowledged\n");
	check(kv_peer_close(peer, WAIT_MS, &err), &err);
	kv_engine_close(engine);
}

/* Takes the engine's arrivals; returns false when the writer has gone. */
static bool handle_arrivals(struct kv_engine *engine, const struct small_cache *cache, bool *here)
{
	struct kv_arrival arrivals[16];
	struct kv_error err;
	bool go_on = true;
	int n = kv_poll_arrivals(engine, arrivals, 16, &err);

	check(n, &err);
	for (int a = 0; a < n; a++) {
		uint32_t layer = arrivals[a].layers.first;

		if (arrivals[a].kind == KV_ARRIVAL_PEER_LOST) {
			check(kv_peer_close(arrivals[a].peer, WAIT_MS, &err), &err);
			go_on = false;
		}
		if (arrivals[a].kind != KV_ARRIVAL_BLOCKS)
			continue;
		require(arrivals[a].tag == REQUEST && arrivals[a].layers.count == 1 &&
				layer < LAYERS && !here[layer],
			"each layer once");
		for (int i = 0; i < N; i++)
			expect_block(cache, layer, remote_ids[i], local_ids[i], REQUEST);
		here[layer] = true;
		printf("decode: layer %u of request %d is here\n", layer, REQUEST);
	}
	return go_on;
}

static void decode(int fd)
{
	bool here[LAYERS] = { false };
	struct small_cache cache;
	struct kv_engine *engine;
	struct pollfd arrivals;
	struct kv_error err;
	uint32_t port;

	check(kv_engine_open(NULL, &engine, &err), &err);
	cache = open_cache(engine, KV_CACHE_OPEN, 1, 0);
	check(kv_listen(engine, NULL, 0, &port, &err), &err);
	send_bytes(fd, &port, sizeof(port));

	/*
	 * One descriptor for all peers; it can stand in an epoll set beside the engine's other
	 * work.
	 */
	arrivals.fd = kv_arrivals_fd(engine);
	arrivals.events = POLLIN;
	do {
		require(poll(&arrivals, 1, WAIT_MS) == 1, "an arrival in time");
	} while (handle_arrivals(engine, &cache, here));
	for (uint32_t layer = 0; layer < LAYERS; layer++)
		require(here[layer], "every layer");
	expect_rest_untouched(&cache, remote_ids, N);
	kv_engine_close(engine);
}

int main(void)
{
	run_pair(prefill, decode);
	return 0;
}
