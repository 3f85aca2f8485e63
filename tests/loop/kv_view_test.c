/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_view_test.c -- two caches over the same memory, with blocks of two sizes: both are taken, and
 * each has leases of its own, as kv.h says
 */
#include "kv_rig.h"

enum { FINE = 256 }; /* bytes of a block of the second cache; K of the first has twice as many */

static const struct kv_layers all_layers = { 0, 0 };

static struct kv_cache *view_of(struct node *node)
{
	struct kv_tensor tensor = { .name = "fine", .block_bytes = FINE, .base = node->mem };
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_cache *cache;
	struct kv_error err;

	layout.cache_id = 1;
	layout.layers = layout.tensors = 1;
	layout.blocks = (uint32_t)(node->len / FINE);
	layout.tensor = &tensor;
	ok(kv_cache_register(node->engine, &layout, &cache, &err), &err);
	return cache;
}

static int write_under(struct node *a, struct kv_cache *cache, const struct kv_lease *lease,
		       int64_t from, int64_t to)
{
	struct kv_options opts = KV_INIT(kv_options);

	opts.lease = kv_lease_id(lease);
	return kv_write_blocks(a->peer, cache, all_layers, &from, &to, 1, &opts, &a->err);
}

CASE(caches_over_the_same_memory_have_leases_of_their_own)
{
	static const int64_t block = 10;
	struct kv_cache *fine_a, *fine_b;
	struct kv_lease *lease, *fine;
	struct shape shape = rig_shape;
	struct kv_error err;
	struct node a, b;
	int64_t inside;

	shape.flags = 0; /* only leases open them */
	node_open(&a, 1, &shape, NULL);
	node_open(&b, 2, &shape, NULL);
	fine_a = view_of(&a);
	fine_b = view_of(&b);
	node_listen(&b);
	node_connect(&a, b.port);
	node_await_peer(&b);
	inside = (block_at(&b, 0, 0, block) - b.mem) / FINE;
	ok(kv_blocks_open(b.peer, b.cache, &block, 1, 1, RIG_TIMEOUT_MS, &lease, &err), &err);
	ok(kv_blocks_open(b.peer, fine_b, &inside, 1, 2, RIG_TIMEOUT_MS, &fine, &err), &err);
	/* In one cache a block is open once. */
	assert_int_equal(kv_blocks_open(b.peer, fine_b, &inside, 1, 3, RIG_TIMEOUT_MS,
					&(struct kv_lease *){ NULL }, &err),
			 KV_ERR_LEASE);
	ok(write_under(&a, a.cache, lease, 3, block), &a.err);
	assert_memory_equal(block_at(&b, 0, 0, block), block_at(&a, 0, 0, 3), 512);
	/* A revoke closes the block of its own cache; what comes by the other still lands. */
	ok(kv_revoke(lease, RIG_TIMEOUT_MS, &err), &err);
	assert_int_equal(write_under(&a, fine_a, fine, 1, inside), 0);
	assert_memory_equal(b.mem + inside * FINE, a.mem + FINE, FINE);
	ok(kv_revoke(fine, RIG_TIMEOUT_MS, &err), &err);
	node_close(&a);
	node_close(&b);
}
