/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 02-write-blocks.c -- one process writes blocks into another one's cache
 *
 *     cc 02-write-blocks.c -o 02-write-blocks $(pkg-config --cflags --libs kvrail)
 *
 * The child is the prefill side: it has computed blocks 3, 1 and 4 and knows that the decode side
 * wants them as its blocks 40, 7 and 23. When kv_write_blocks returns 0, the decode side's engine
 * has said that the bytes are there.
 */
#include "example.h"

static const int64_t local_ids[] = { 3, 1, 4 };
static const int64_t remote_ids[] = { 40, 7, 23 };
enum { N = 3, REQUEST = 1001 };

static void prefill(int fd)
{
	struct kv_options options = KV_INIT(kv_options);
	struct kv_layers all_layers = {};
	struct small_cache cache;
	struct kv_engine *engine;
	struct kv_peer *peer;
	struct kv_error err;
	uint32_t port;

	check(kv_engine_open(NULL, &engine, &err), &err);
	cache = open_cache(engine, 0, 1, 0);
	for (uint32_t layer = 0; layer < LAYERS; layer++)
		for (int i = 0; i < N; i++)
			fill_block(&cache, layer, local_ids[i], 0);

	receive_bytes(fd, &port, sizeof(port));
	check(kv_connect(engine, "127.0.0.1", port, WAIT_MS, &peer, &err), &err);
	options.tag = REQUEST;
	check(kv_write_blocks(peer, cache.handle, all_layers, local_ids, remote_ids, N, &options,
			      &err),
	      &err);
	printf("prefill: %d blocks of %d layers are visible at the decode side\n", N, LAYERS);
	check(kv_peer_close(peer, WAIT_MS, &err), &err);
	kv_engine_close(engine);
}

static void decode(int fd)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_arrival arrival;
	struct small_cache cache;
	struct kv_engine *engine;
	struct kv_peer *peer;
	struct kv_error err;
	uint32_t port;

	check(kv_engine_open(NULL, &engine, &err), &err);
	/*
	 * KV_CACHE_OPEN: a peer may write any block. Example 03 opens only the blocks of one
	 * request.
	 */
	cache = open_cache(engine, KV_CACHE_OPEN, 1, 0);
	check(kv_listen(engine, NULL, 0, &port, &err), &err);
	send_bytes(fd, &port, sizeof(port));

	arrival = next_arrival(engine);
	require(arrival.kind == KV_ARRIVAL_PEER_UP, "a peer first");
	peer = arrival.peer;
	check(kv_peer_info(peer, &info, &err), &err);
	printf("decode: %s is connected over %s: %s\n", info.name, info.transport, info.path);

	arrival = next_arrival(engine);
	require(arrival.kind == KV_ARRIVAL_BLOCKS && arrival.tag == REQUEST && arrival.blocks == N,
		"the blocks of the request");
	for (uint32_t layer = 0; layer < LAYERS; layer++)
		for (int i = 0; i < N; i++)
			expect_block(&cache, layer, remote_ids[i], local_ids[i], 0);
	expect_rest_untouched(&cache, remote_ids, N);
	printf("decode: request %llu: %llu blocks, %llu bytes, all as they were sent\n",
	       (unsigned long long)arrival.tag, (unsigned long long)arrival.blocks,
	       (unsigned long long)arrival.bytes);

	arrival = next_arrival(engine);
	require(arrival.kind == KV_ARRIVAL_PEER_LOST && arrival.peer == peer, "the goodbye");
	check(kv_peer_close(peer, WAIT_MS, &err), &err);
	kv_engine_close(engine);
}

int main(void)
{
	run_pair(prefill, decode);
	return 0;
}
