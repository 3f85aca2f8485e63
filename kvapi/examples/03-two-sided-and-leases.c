/* SPDX-License-Identifier: Apache-2.0 */
/*
 * 03-two-sided-and-leases.c -- the receiver decides which blocks may be written, and can take them
 * back
 *
 *     cc 03-two-sided-and-leases.c -o 03-two-sided-and-leases $(pkg-config --cflags --libs kvrail)
 *
 * First two-sided: the decode side receives request 7 into blocks of its choice, the prefill side
 * sends request 7 and never learns their ids. Then one-sided with a lease: blocks are opened for
 * one writer, written, and revoked.
 */
#include "example.h"

enum { N = 3, REQUEST = 7, LEASED = 8 };

static const int64_t source_ids[N] = { 0, 1, 2 };
static const int64_t received_ids[N] = { 60, 2, 31 };
static const int64_t leased_ids[N] = { 10, 11, 12 };
static const struct kv_layers all_layers = {};

static void prefill(int fd)
{
	struct kv_options options = KV_INIT(kv_options);
	struct small_cache cache;
	struct kv_engine *engine;
	struct kv_peer *peer;
	struct kv_error err;
	uint32_t port;
	char revoked;

	check(kv_engine_open(NULL, &engine, &err), &err);
	cache = open_cache(engine, 0, 1, 0);
	for (uint32_t layer = 0; layer < LAYERS; layer++)
		for (int i = 0; i < N; i++)
			fill_block(&cache, layer, source_ids[i], 0);
	receive_bytes(fd, &port, sizeof(port));
	check(kv_connect(engine, "127.0.0.1", port, WAIT_MS, &peer, &err), &err);

	/*
	 * Waits until the receiver has opened blocks for this request, then fills them in the order
	 * given there.
	 */
	check(kv_send_blocks(peer, cache.handle, all_layers, source_ids, N, REQUEST, NULL, &err),
	      &err);
	printf("prefill: sent request %d\n", REQUEST);

	/*
	 * The cache is not KV_CACHE_OPEN, so a write must name a lease; the application carries its
	 * number here.
	 */
	if (kv_write_blocks(peer, cache.handle, all_layers, source_ids, leased_ids, N, NULL,
			    &err) != KV_ERR_LEASE)
		require(false, "a write without a lease is refused");
	printf("prefill: without a lease: %s\n", err.message);
	receive_bytes(fd, &options.lease, sizeof(options.lease));
	check(kv_write_blocks(peer, cache.handle, all_layers, source_ids, leased_ids, N, &options,
			      &err),
	      &err);
	printf("prefill: wrote with the lease\n");

	receive_bytes(fd, &revoked, 1);
	require(kv_write_blocks(peer, cache.handle, all_layers, source_ids, leased_ids, N, &options,
				&err) < 0,
		"a write after kv_revoke is refused");
	printf("prefill: after kv_revoke: %s\n", err.message);
	check(kv_peer_close(peer, WAIT_MS, &err), &err);
	kv_engine_close(engine);
}

static void decode(int fd)
{
	struct kv_arrival arrival;
	struct small_cache cache;
	struct kv_engine *engine;
	struct kv_lease *lease;
	struct kv_peer *peer;
	struct kv_error err;
	int64_t all_ids[2 * N];
	uint64_t lease_id;
	uint32_t port;

	check(kv_engine_open(NULL, &engine, &err), &err);
	cache = open_cache(engine, 0, 1, 0);
	check(kv_listen(engine, NULL, 0, &port, &err), &err);
	send_bytes(fd, &port, sizeof(port));
	arrival = next_arrival(engine);
	require(arrival.kind == KV_ARRIVAL_PEER_UP, "a peer first");
	peer = arrival.peer;

	check(kv_recv_blocks(peer, cache.handle, all_layers, received_ids, N, REQUEST, NULL, &err),
	      &err);
	for (uint32_t layer = 0; layer < LAYERS; layer++)
		for (int i = 0; i < N; i++)
			expect_block(&cache, layer, received_ids[i], source_ids[i], 0);
	printf("decode: received request %d into blocks of its own choice\n", REQUEST);

	check(kv_blocks_open(peer, cache.handle, leased_ids, N, LEASED, WAIT_MS, &lease, &err),
	      &err);
	lease_id = kv_lease_id(lease);
	send_bytes(fd, &lease_id, sizeof(lease_id));
	do {
		arrival = next_arrival(engine);
	} while (arrival.kind != KV_ARRIVAL_BLOCKS || arrival.lease != lease_id);
	for (uint32_t layer = 0; layer < LAYERS; layer++)
		for (int i = 0; i < N; i++)
			expect_block(&cache, layer, leased_ids[i], source_ids[i], 0);

	/*
	 * After kv_revoke has returned 0 no byte can land in these blocks any more: they may go to
	 * another request.
	 */
	check(kv_revoke(lease, WAIT_MS, &err), &err);
	for (uint32_t layer = 0; layer < LAYERS; layer++)
		for (int i = 0; i < N; i++)
			fill_block(&cache, layer, leased_ids[i], 1);
	send_bytes(fd, "", 1);
	do {
		arrival = next_arrival(engine);
	} while (arrival.kind != KV_ARRIVAL_PEER_LOST);
	for (uint32_t layer = 0; layer < LAYERS; layer++)
		for (int i = 0; i < N; i++)
			expect_block(&cache, layer, leased_ids[i], leased_ids[i], 1);
	memcpy(all_ids, received_ids, sizeof(received_ids));
	memcpy(all_ids + N, leased_ids, sizeof(leased_ids));
	expect_rest_untouched(&cache, all_ids, 2 * N);
	printf("decode: the revoked blocks hold what was put there afterwards\n");
	check(kv_peer_close(peer, WAIT_MS, &err), &err);
	kv_engine_close(engine);
}

int main(void)
{
	run_pair(prefill, decode);
	return 0;
}
