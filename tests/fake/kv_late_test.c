/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_late_test.c -- the receiver's word is there before the device's: a lost acknowledgement packet
 * keeps a work request open while everything that followed it has arrived
 */
#include <string.h>

#include "fake.h"
#include "loop/kv_rig.h"

static const struct kv_layers all_layers = { 0, 0 };
/* Two writes of these are fewer requests than the fake lets a queue pair have unanswered. */
static const struct kv_layers two_layers = { 0, 2 };

static void next_receive(struct pair *p, int64_t block, struct kv_op **op_p)
{
	struct kv_error err;

	ok(kv_recv_blocks_async(p->b.peer, p->b.cache, two_layers, &block, 1, 7, NULL, op_p, &err),
	   &err);
}

static void next_send(struct pair *p, int64_t block, struct kv_op **op_p)
{
	struct kv_error err;

	ok(kv_send_blocks_async(p->a.peer, p->a.cache, two_layers, &block, 1, 7, NULL, op_p, &err),
	   &err);
}

static void end(struct kv_op *op)
{
	struct kv_error err;

	ok(kv_wait(op, KV_ACKED, slow_ms(RIG_TIMEOUT_MS), &err), &err);
	ok(kv_op_free(op, &err), &err);
}

/*
 * The second lease has the number of the first, which the sender's operation has not let go of by
 * itself.
 */
CASE(a_receive_may_follow_before_the_send_of_the_last_one_has_ended)
{
	const int64_t from[] = { 10, 11 }, to[] = { 3, 4 };
	struct kv_op *send[2], *recv;
	struct pair p;

	pair_open(&p, &rig_shape, NULL);
	next_receive(&p, to[0], &recv);
	fake_hold_answers(true);
	next_send(&p, from[0], &send[0]);
	end(recv);
	assert_in_range(kv_test(send[0], NULL), KV_NONE, KV_ACKED - 1);
	next_receive(&p, to[1], &recv);
	next_send(&p, from[1], &send[1]);
	end(recv);
	fake_hold_answers(false);
	end(send[0]);
	end(send[1]);
	assert_true(memory_is(&p.b, two_layers, 1, from, to, 2, 0));
	pair_close(&p);
}

enum { SCATTERED = 12, BLOCK = 4096, BLOCKS = 8 };

/* A cache each of whose layers is memory, and a region, of its own. */
static struct kv_cache *scattered(struct node *node, uint32_t id, uint32_t layers,
				  void *layer[SCATTERED])
{
	struct kv_tensor tensor = { .name = "k",
				    .block_bytes = BLOCK,
				    .layer_base = (void *const *)layer };
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_cache *cache;
	struct kv_error err;

	for (uint32_t i = 0; i < layers; i++)
		ok(kv_alloc(node->engine, BLOCKS * BLOCK, &layer[i], &err), &err);
	layout.cache_id = id;
	layout.layers = layers;
	layout.tensors = 1;
	layout.tensor = &tensor;
	layout.blocks = BLOCKS;
	layout.flags = KV_CACHE_OPEN;
	ok(kv_cache_register(node->engine, &layout, &cache, &err), &err);
	return cache;
}

/* An operation of many regions holds these, and a cache that it does not use can go. */
CASE(an_operation_of_many_regions_keeps_no_other_cache)
{
	const int64_t from[] = { 1 }, to[] = { 2 };
	void *layer[3][SCATTERED];
	struct kv_cache *cache, *other;
	struct pair p;
	struct kv_error err;
	struct kv_op *op;

	node_open(&p.b, 2, &rig_shape, NULL);
	node_open(&p.a, 1, &rig_shape, NULL);
	cache = scattered(&p.a, 5, SCATTERED, layer[0]);
	scattered(&p.b, 5, SCATTERED, layer[1]);
	node_listen(&p.b);
	node_connect(&p.a, p.b.port);
	node_await_peer(&p.b);
	assert_int_equal(kv_cache_unregister(cache, &err), KV_ERR_BUSY); /* the peer knows it */
	for (int i = 0; i < SCATTERED; i++)
		memset((uint8_t *)layer[0][i] + BLOCK, 0x40 + i, BLOCK);
	fake_hold_answers(true);
	ok(kv_write_blocks_async(p.a.peer, cache, all_layers, from, to, 1, NULL, &op, &err), &err);
	other = scattered(&p.a, 6, 1, layer[2]);
	ok(kv_cache_unregister(other, &err), &err);
	ok(kv_free(p.a.engine, layer[2][0], &err), &err);
	fake_hold_answers(false);
	end(op);
	for (int i = 0; i < SCATTERED; i++)
		assert_memory_equal((uint8_t *)layer[1][i] + 2 * BLOCK,
				    (uint8_t *)layer[0][i] + BLOCK, BLOCK);
	pair_close(&p);
}
