/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_split_test.c -- blocks between groups of different tensor-parallel sizes: every byte of every
 * receiving rank is of its own head and token, in both orders
 */
#include "kv_rig.h"

#include <stdio.h>
#include <string.h>

enum { LAYERS = 2, BLOCKS = 5, TOKENS = 4, DIM = 24, RANKS_MAX = 8, TENSORS = 2 };

struct group {
	uint32_t size, heads;
	enum kv_order order;
};

struct rank {
	const struct group *group;
	uint32_t rank;
	struct kv_engine *engine;
	struct kv_cache *cache;
	uint8_t *mem;
	size_t block_bytes;
	uint32_t port;
};

static uint32_t heads_of_rank(const struct group *g)
{
	return g->heads > g->size ? g->heads / g->size : 1;
}

/* What the model keeps at a byte of a block of this rank, laid out as its engine does. */
static uint8_t model(const struct rank *r, uint32_t layer, uint32_t tensor, uint32_t block,
		     uint32_t at)
{
	const struct group *g = r->group;
	uint32_t mine = heads_of_rank(g), x = at / DIM;
	uint32_t head = g->order == KV_ORDER_NHD ? x % mine : x / TOKENS;
	uint32_t token = g->order == KV_ORDER_NHD ? x / mine : x % TOKENS;

	head += g->heads > g->size ? r->rank * mine : r->rank / (g->size / g->heads);
	return pattern(head, layer, tensor, block, token * DIM + at % DIM, 1);
}

static uint8_t *at(const struct rank *r, uint32_t layer, uint32_t tensor, uint32_t block)
{
	return r->mem + ((layer * TENSORS + tensor) * BLOCKS + block) * r->block_bytes;
}

static void each_byte(struct rank *r, bool check)
{
	for (uint32_t i = 0; i < LAYERS * TENSORS * BLOCKS; i++) {
		uint32_t layer = i / TENSORS / BLOCKS, tensor = i / BLOCKS % TENSORS,
			 b = i % BLOCKS;
		uint8_t *p = at(r, layer, tensor, b);

		for (uint32_t o = 0; o < r->block_bytes; o++)
			if (!check)
				p[o] = model(r, layer, tensor, b, o);
			else if (p[o] != model(r, layer, tensor, b, o))
				fail_msg("rank %u of %u: byte %u of block %u of tensor %u of "
					 "layer %u is of another head or token",
					 r->rank, r->group->size, o, b, tensor, layer);
	}
}

static char refused[512]; /* what the accepting side logs */

static void keep_refusal(void *arg, int level, const char *line)
{
	if (strstr(line, "refused "))
		snprintf(refused, sizeof(refused), "%s", line);
}

static void open_rank(struct rank *r, const struct group *group, uint32_t rank)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_tensor tensor[TENSORS] = { { .name = "k" }, { .name = "v" } };
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_error err;
	void *mem;

	*r = (struct rank){ .group = group, .rank = rank };
	r->block_bytes = (size_t)heads_of_rank(group) * TOKENS * DIM;
	config.log = keep_refusal;
	ok(kv_engine_open(&config, &r->engine, &err), &err);
	ok(kv_alloc(r->engine, r->block_bytes * LAYERS * TENSORS * BLOCKS, &mem, &err), &err);
	r->mem = mem;
	for (uint32_t t = 0; t < TENSORS; t++) {
		tensor[t].block_bytes = r->block_bytes;
		tensor[t].order = group->order;
		tensor[t].base = at(r, 0, t, 0);
		tensor[t].layer_stride = r->block_bytes * BLOCKS * TENSORS;
	}
	layout.layers = LAYERS;
	layout.tensors = TENSORS;
	layout.blocks = BLOCKS;
	layout.tensor = tensor;
	layout.tp_size = group->size;
	layout.tp_rank = rank;
	layout.block_tokens = TOKENS;
	layout.kv_heads = group->heads;
	layout.flags = KV_CACHE_OPEN | KV_CACHE_READABLE;
	ok(kv_cache_register(r->engine, &layout, &r->cache, &err), &err);
}

/* false: these two ranks share no head. */
static bool move(struct rank *here, const struct rank *there, bool pull)
{
	static const int64_t ids[BLOCKS] = { 0, 1, 2, 3, 4 };
	const struct kv_layers all = { 0, 0 };
	struct kv_peer *peer;
	struct kv_error err;
	int ret;

	ok(kv_connect(here->engine, NULL, there->port, RIG_TIMEOUT_MS, &peer, &err), &err);
	ret = pull ? kv_read_blocks(peer, here->cache, all, ids, ids, BLOCKS, NULL, &err)
		   : kv_write_blocks(peer, here->cache, all, ids, ids, BLOCKS, NULL, &err);
	if (ret != KV_ERR_GEOMETRY)
		ok(ret, &err);
	else
		assert_non_null(strstr(err.message, "share no part of a block"));
	ok(kv_peer_close(peer, RIG_TIMEOUT_MS, &err), &err);
	return !ret;
}

/* One side listens, the other writes to it or reads from it. */
static void move_all(const struct group *here, const struct group *there, bool pull)
{
	struct rank a[RANKS_MAX], b[RANKS_MAX];
	struct kv_error err;

	for (uint32_t i = 0; i < there->size; i++) {
		open_rank(&b[i], there, i);
		ok(kv_listen(b[i].engine, NULL, 0, &b[i].port, &err), &err);
		if (pull)
			each_byte(&b[i], false);
	}
	for (uint32_t i = 0; i < here->size; i++) {
		unsigned int met = 0;

		open_rank(&a[i], here, i);
		if (!pull)
			each_byte(&a[i], false);
		for (uint32_t k = 0; k < there->size; k++)
			met += move(&a[i], &b[k], pull);
		assert_true(met);
		if (pull)
			each_byte(&a[i], true);
		kv_engine_close(a[i].engine);
	}
	for (uint32_t i = 0; i < there->size; i++) {
		struct kv_arrival arrival;

		/* Its service thread has placed the bytes: that is before what it tells of them. */
		while (kv_poll_arrivals(b[i].engine, &arrival, 1, NULL) > 0)
			;
		if (!pull)
			each_byte(&b[i], true);
		kv_engine_close(b[i].engine);
	}
}

static void sizes(uint32_t p, uint32_t d, uint32_t heads)
{
	for (int i = 0; i < 4; i++) {
		enum kv_order order = i % 2 ? KV_ORDER_NHD : KV_ORDER_HND;
		struct group here = { p, heads, order }, there = { d, heads, order };

		move_all(&here, &there, i >= 2);
	}
}

CASE(one_rank_to_two_and_two_to_one)
{
	sizes(1, 2, 8);
	sizes(2, 1, 8);
}

CASE(four_heads_on_four_ranks_and_on_eight)
{
	sizes(4, 8, 4);
	sizes(8, 4, 4);
}

CASE(two_ranks_to_eight_with_four_heads)
{
	sizes(2, 8, 4);
}

/* MLA: every rank has the one head. */
CASE(one_head_on_one_rank_and_on_four)
{
	sizes(1, 4, 1);
	sizes(4, 2, 1);
}

CASE(orders_that_differ_are_refused_at_connect)
{
	static const struct {
		struct group here, there;
		const char *why, *there_why; /* as each side has to read it */
	} rows[] = {
		{ { 1, 8, KV_ORDER_HND },
		  { 1, 8, KV_ORDER_NHD },
		  "order here HND, peer NHD",
		  "order here NHD, peer HND" },
		{ { 2, 8, KV_ORDER_UNKNOWN },
		  { 1, 8, KV_ORDER_UNKNOWN },
		  "order here not given",
		  "peer not given" },
		{ { 2, 8, KV_ORDER_NHD },
		  { 1, 8, KV_ORDER_UNKNOWN },
		  "order here NHD, peer not given",
		  "order here not given, peer NHD" },
		{ { 1, 8, KV_ORDER_HND },
		  { 1, 4, KV_ORDER_HND },
		  "kv_heads here 8, peer 4",
		  "kv_heads here 4, peer 8" },
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct rank a, b;
		struct kv_peer *peer;
		struct kv_error err;

		open_rank(&a, &rows[i].here, 0);
		open_rank(&b, &rows[i].there, 0);
		ok(kv_listen(b.engine, NULL, 0, &b.port, &err), &err);
		assert_int_equal(kv_connect(a.engine, NULL, b.port, RIG_TIMEOUT_MS, &peer, &err),
				 KV_ERR_GEOMETRY);
		if (!strstr(err.message, rows[i].why))
			fail_msg("\"%s\" does not say \"%s\"", err.message, rows[i].why);
		kv_engine_close(a.engine);
		kv_engine_close(b.engine);
		if (!strstr(refused, rows[i].there_why))
			fail_msg("\"%s\" does not say \"%s\"", refused, rows[i].there_why);
	}
}

/* A program that was compiled before kv_heads was there. */
CASE(the_shorter_layout_of_before_is_taken)
{
	static uint8_t mem[64];
	struct kv_tensor tensor = { .name = "k", .block_bytes = sizeof(mem), .base = mem };
	struct kv_layout layout = { .size = offsetof(struct kv_layout, kv_heads) };
	struct kv_engine *engine;
	struct kv_cache *cache;
	struct kv_error err;

	layout.layers = layout.tensors = layout.blocks = 1;
	layout.tensor = &tensor;
	layout.kv_heads = 77; /* is not looked at */
	layout.tp_size = 2;
	ok(kv_engine_open(NULL, &engine, &err), &err);
	ok(kv_cache_register(engine, &layout, &cache, &err), &err);
	layout.size += 4;
	layout.cache_id = 1;
	assert_int_equal(kv_cache_register(engine, &layout, &cache, &err), KV_ERR_ARG);
	kv_engine_close(engine);
}
