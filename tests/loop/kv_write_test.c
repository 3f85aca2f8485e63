/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_write_test.c -- one-sided operations: bytes, neighbours, arrivals, and errors before any byte
 * moves
 */
#include "kv_rig.h"

enum { BLOCK_SUM = 512 + 320 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[] = { 5, 6, 7, 0, 95, 40 }, to[] = { 10, 11, 12, 95, 0, 3 };
enum { N = 6 };

CASE(a_write_lands_in_its_blocks_and_nowhere_else)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_arrival arrival;
	struct pair p;

	pair_open(&p, NULL, NULL);
	opts.tag = 77;
	ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, &opts, &p.a.err),
	   &p.a.err);
	assert_true(memory_is(&p.b, all_layers, 1, from, to, N, 0));
	assert_true(memory_is(&p.a, all_layers, 1, NULL, NULL, 0, 0));
	assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
	assert_int_equal(arrival.tag, 77);
	assert_int_equal(arrival.blocks, N);
	assert_int_equal(arrival.bytes, N * RIG_LAYERS * BLOCK_SUM);
	assert_ptr_equal(arrival.peer, p.b.peer);
	assert_ptr_equal(arrival.cache, p.b.cache);
	assert_int_equal(arrival.layers.count, RIG_LAYERS);
	no_arrival(&p.b);
	pair_close(&p);
}

CASE(a_write_of_some_layers_leaves_the_others_alone)
{
	const struct kv_layers two = { 1, 2 }, rest = { 3, 0 };
	struct pair p;

	pair_open(&p, NULL, NULL);
	ok(kv_write_blocks(p.a.peer, p.a.cache, two, from, to, N, NULL, &p.a.err), &p.a.err);
	assert_true(memory_is(&p.b, two, 1, from, to, N, 0));
	fill_side(&p.b, 2, 0);
	ok(kv_write_blocks(p.a.peer, p.a.cache, rest, from, to, N, NULL, &p.a.err), &p.a.err);
	assert_true(memory_is(&p.b, rest, 1, from, to, N, 0));
	pair_close(&p);
}

CASE(both_ends_can_write_and_read)
{
	struct pair p;

	pair_open(&p, NULL, NULL);
	ok(kv_write_blocks(p.b.peer, p.b.cache, all_layers, from, to, N, NULL, &p.b.err), &p.b.err);
	assert_true(memory_is(&p.a, all_layers, 2, from, to, N, 0));
	fill_side(&p.a, 1, 0);
	/* A read brings remote block from[i] to local block to[i] and tells nobody. */
	ok(kv_read_blocks(p.a.peer, p.a.cache, all_layers, to, from, N, NULL, &p.a.err), &p.a.err);
	assert_true(memory_is(&p.a, all_layers, 2, from, to, N, 0));
	assert_true(memory_is(&p.b, all_layers, 2, NULL, NULL, 0, 0));
	no_arrival(&p.b);
	pair_close(&p);
}

CASE(nothing_moves_when_an_argument_is_wrong)
{
	static const int64_t far[] = { 1, 2, RIG_BLOCKS }, negative[] = { 1, -1, 2 },
			     twice[] = { 4, 9, 4 }, good[] = { 1, 2, 3 };
	static const struct {
		const int64_t *local, *remote;
		size_t n;
		struct kv_layers layers;
		int code;
		int64_t index, id;
	} cases[] = {
		{ far, good, 3, { 0, 0 }, KV_ERR_BLOCK_ID, 2, RIG_BLOCKS },
		{ good, far, 3, { 0, 0 }, KV_ERR_BLOCK_ID, 2, RIG_BLOCKS },
		{ negative, good, 3, { 0, 0 }, KV_ERR_BLOCK_ID, 1, -1 },
		{ good, negative, 3, { 0, 0 }, KV_ERR_BLOCK_ID, 1, -1 },
		{ good, twice, 3, { 0, 0 }, KV_ERR_DUP_BLOCK, 2, 4 },
		{ good, NULL, 3, { 0, 0 }, KV_ERR_ARG, -1, -1 },
		{ NULL, good, 3, { 0, 0 }, KV_ERR_ARG, -1, -1 },
		{ good, good, KV_CALL_BLOCKS_MAX + 1, { 0, 0 }, KV_ERR_ARG, -1, -1 },
		{ good, good, 3, { RIG_LAYERS, 0 }, KV_ERR_ARG, -1, -1 },
		{ good, good, 3, { 1, RIG_LAYERS }, KV_ERR_ARG, -1, -1 },
		{ good, good, 3, { 1, UINT32_MAX }, KV_ERR_ARG, -1, -1 },
	};
	struct kv_error err;
	struct pair p;

	pair_open(&p, NULL, NULL);
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int ret = kv_write_blocks(p.a.peer, p.a.cache, cases[i].layers, cases[i].local,
					  cases[i].remote, cases[i].n, NULL, &err);

		assert_int_equal(ret, cases[i].code);
		assert_int_equal(err.code, cases[i].code);
		assert_int_equal(err.scope, KV_SCOPE_CALL);
		assert_int_equal(err.block_index, cases[i].index);
		assert_int_equal(err.block_id, cases[i].id);
		assert_int_equal(err.in_doubt, 0);
	}
	/* The local ids of a read are its destination. */
	assert_int_equal(
		kv_read_blocks(p.a.peer, p.a.cache, all_layers, twice, good, 3, NULL, &err),
		KV_ERR_DUP_BLOCK);
	ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, NULL, NULL, 0, NULL, &err), &err);
	assert_true(memory_is(&p.b, all_layers, 1, NULL, NULL, 0, 0));
	assert_true(memory_is(&p.a, all_layers, 1, NULL, NULL, 0, 0));
	no_arrival(&p.b);
	pair_close(&p);
}

CASE(options_of_another_size_or_time_are_refused)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_error err;
	struct pair p;

	pair_open(&p, NULL, NULL);
	opts.size--;
	assert_int_equal(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, &opts, &err),
			 KV_ERR_ARG);
	opts.size = sizeof(opts);
	opts.timeout_ms = -1;
	assert_int_equal(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, &opts, &err),
			 KV_ERR_ARG);
	opts.timeout_ms = (int64_t)KV_TIMEOUT_MAX_MS + 1;
	assert_int_equal(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, &opts, &err),
			 KV_ERR_ARG);
	assert_int_equal(kv_write_blocks(p.a.peer, p.b.cache, all_layers, from, to, N, NULL, &err),
			 KV_ERR_ARG); /* another engine's cache */
	assert_true(memory_is(&p.b, all_layers, 1, NULL, NULL, 0, 0));
	pair_close(&p);
}

CASE(a_closed_cache_needs_a_lease_and_an_unreadable_one_is_not_read)
{
	struct shape shape = rig_shape;
	struct kv_error err;
	struct pair p;

	shape.flags = 0;
	pair_open(&p, &shape, NULL);
	assert_int_equal(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &err),
			 KV_ERR_LEASE);
	assert_int_equal(kv_read_blocks(p.a.peer, p.a.cache, all_layers, to, from, N, NULL, &err),
			 KV_ERR_LEASE);
	assert_true(memory_is(&p.b, all_layers, 1, NULL, NULL, 0, 0));
	pair_close(&p);
}

/* ---------------------------------------------------------------- ack by reading back */

CASE(a_write_can_be_proven_by_a_read_instead_of_an_acknowledgement)
{
	static const char *const ack_read[] = { "KVCACHE_ACK=read", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_arrival arrival;
	struct kv_error err;
	struct pair p;

	config.options = ack_read;
	pair_open(&p, NULL, &config);
	for (int i = 0; i < 3 * KV_OPS_MAX; i++)
		ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &err), &err);
	assert_true(memory_is(&p.b, all_layers, 1, from, to, N, 0));
	for (int i = 0; i < 3 * KV_OPS_MAX; i++)
		assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
	no_arrival(&p.b);
	pair_close(&p);
}
