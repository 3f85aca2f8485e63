/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 06-two-hosts.c -- a prefill and a decode process, each started by hand, on two hosts or on one
 *
 *     cc 06-two-hosts.c -o 06-two-hosts $(pkg-config --cflags --libs kvrail)
 *     ./06-two-hosts --listen 10.0.0.2 [PORT]      # decode, on the host with that address
 *     ./06-two-hosts --connect 10.0.0.2 [PORT]     # prefill, on the other
 *
 * The decode side opens blocks 40, 7 and 23 for request 1001; the prefill side sends its blocks 3,
 * 1 and 4 into them, and names the request, not the blocks. The line with the transport says "ib"
 * between hosts, "shm" on one.
 */
#include "example.h"

enum { N = 3, REQUEST = 1001, PORT = 7473, PATIENCE_MS = 600000 };

static const int64_t prefill_ids[N] = { 3, 1, 4 }, decode_ids[N] = { 40, 7, 23 };
static const struct kv_layers all_layers = { 0, 0 };

static void say_path(struct kv_peer *peer)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_error err;

	check(kv_peer_info(peer, &info, &err), &err);
	printf("connected with %s over %s: %s\n", info.address, info.transport, info.path);
}

static struct kv_peer *decode(struct kv_engine *engine, struct small_cache *cache, const char *host,
			      uint32_t port)
{
	struct kv_arrival arrival;
	struct kv_error err;

	check(kv_listen(engine, host, port, &port, &err), &err);
	printf("listening on %s %u\n", host, port);
	fflush(stdout);
	arrival = next_arrival_within(engine, PATIENCE_MS);
	require(arrival.kind == KV_ARRIVAL_PEER_UP, "a peer first");
	say_path(arrival.peer);
	check(kv_recv_blocks(arrival.peer, cache->handle, all_layers, decode_ids, N, REQUEST, NULL,
			     &err),
	      &err);
	for (uint32_t layer = 0; layer < LAYERS; layer++)
		for (int i = 0; i < N; i++)
			expect_block(cache, layer, decode_ids[i], prefill_ids[i], 0);
	expect_rest_untouched(cache, decode_ids, N);
	printf("decode: request %d is here, every byte as it was sent\n", REQUEST);
	return arrival.peer;
}

static struct kv_peer *prefill(struct kv_engine *engine, struct small_cache *cache,
			       const char *host, uint32_t port)
{
	struct kv_peer *peer;
	struct kv_error err;

	for (uint32_t layer = 0; layer < LAYERS; layer++)
		for (int i = 0; i < N; i++)
			fill_block(cache, layer, prefill_ids[i], 0);
	check(kv_connect(engine, host, port, WAIT_MS, &peer, &err), &err);
	say_path(peer);
	check(kv_send_blocks(peer, cache->handle, all_layers, prefill_ids, N, REQUEST, NULL, &err),
	      &err);
	printf("prefill: request %d is visible at the decode side\n", REQUEST);
	return peer;
}

int main(int argc, char **argv)
{
	bool listens = argc > 2 && !strcmp(argv[1], "--listen");
	uint32_t port = argc > 3 ? (uint32_t)strtoul(argv[3], NULL, 10) : (uint32_t)PORT;
	struct small_cache cache;
	struct kv_engine *engine;
	struct kv_peer *peer;
	struct kv_error err;

	if (argc < 3 || argc > 4 || (!listens && strcmp(argv[1], "--connect"))) {
		fprintf(stderr, "usage: %s --listen ADDRESS [PORT] | --connect HOST [PORT]\n",
			argv[0]);
		return 2;
	}
	check(kv_engine_open(NULL, &engine, &err), &err);
	cache = open_cache(engine, 0, 1, 0);
	peer = (listens ? decode : prefill)(engine, &cache, argv[2], port);
	check(kv_peer_close(peer, WAIT_MS, &err), &err);
	kv_engine_close(engine);
	return 0;
}
