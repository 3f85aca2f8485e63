/* SPDX-License-Identifier: Apache-2.0 */
/* kv_count_test.c -- work requests of a write, counted, and what a registration finds of a pool */
#include <string.h>

#include "kv_loop.h"
#include "loop/kv_rig.h"

enum { LAYERS = 4, RUN = 64, RUNS = 4, N = RUN * RUNS, BLOCKS = 2 * N };

/* Blocks of both tensors touch. */
static void open_dense(struct pair *p, uint32_t layers)
{
	struct shape shape = rig_shape;

	shape.layers = layers;
	shape.blocks = BLOCKS;
	for (int t = 0; t < RIG_TENSORS; t++)
		shape.stride[t] = shape.block_bytes[t];
	pair_open(p, &shape, NULL);
}

/* Under its claim: kv_stats tells what it saw last of a peer that its service thread has. */
static struct tr_counters counters_of(const struct node *node)
{
	struct tr_counters counters;

	assert_true(kv_claim_until(&node->peer->claim, kv_deadline_ns(RIG_TIMEOUT_MS)));
	tr_conn_counters(node->peer->conn, &counters);
	kv_peer_release(node->peer);
	return counters;
}

/* What n blocks from `ids` to the same numbers cost the writer. */
static struct tr_counters cost_of(struct pair *p, const int64_t *ids, size_t n)
{
	struct tr_counters before = counters_of(&p->a), after;
	struct kv_layers all = { 0, 0 };
	struct kv_error err;

	ok(kv_write_blocks(p->a.peer, p->a.cache, all, ids, ids, n, NULL, &err), &err);
	after = counters_of(&p->a);
	after.work_requests -= before.work_requests;
	after.doorbells -= before.doorbells;
	return after;
}

static uint64_t requests_of(struct pair *p, const int64_t *ids)
{
	return cost_of(p, ids, N).work_requests;
}

/* Runs of `run` neighbours, each with a gap behind it. */
static void fill_ids(int64_t *ids, int run)
{
	for (int i = 0; i < N; i++)
		ids[i] = i + i / run;
}

/* BEGIN and the notify cost the same in both. */
CASE(sixty_four_neighbours_take_a_sixty_fourth_of_the_requests)
{
	uint64_t apart, together, fixed;
	int64_t ids[N];
	struct pair p;

	open_dense(&p, LAYERS);
	fill_ids(ids, 1);
	apart = requests_of(&p, ids);
	fill_ids(ids, RUN);
	together = requests_of(&p, ids);
	fixed = apart - (uint64_t)LAYERS * RIG_TENSORS * N;
	assert_in_range(fixed, 1, 8);
	assert_int_equal((together - fixed) * RUN, apart - fixed);
	pair_close(&p);
}

/* Both tensors of a block, BEGIN before and the notify behind them. */
CASE(a_block_with_what_belongs_to_it_leaves_by_one_doorbell)
{
	struct pair p;

	open_dense(&p, 1);
	for (int64_t id = 0; id < RUN; id += 2) { /* fewer than make a message of credits alone */
		struct tr_counters cost = cost_of(&p, &id, 1);

		assert_int_equal(cost.doorbells, 1);
		assert_int_equal(cost.work_requests, 1 + RIG_TENSORS + 1);
	}
	pair_close(&p);
}

CASE(layers_cost_requests_of_their_own_and_no_more)
{
	uint64_t one, many;
	int64_t ids[N];
	struct pair p;

	fill_ids(ids, 1);
	open_dense(&p, 1);
	one = requests_of(&p, ids);
	pair_close(&p);
	open_dense(&p, 16);
	many = requests_of(&p, ids);
	pair_close(&p);
	assert_int_equal(many - one, (uint64_t)15 * RIG_TENSORS * N);
}

/* A page that a device holds where it is does not become huge. */
CASE(a_registration_waits_for_the_pages_of_its_pool)
{
	struct shape shape = rig_shape;
	struct node node;
	char text[4096];

	shape.blocks = 2048;
	shape.block_bytes[0] = shape.stride[0] = 4096;
	node_open(&node, 0, &shape, NULL);
	assert_true(node.len > 16 << 20);
	assert_true(kv_dump(node.engine, text, sizeof(text)) > 0);
	assert_non_null(strstr(text, "memory pools: 1 of "));
	assert_non_null(strstr(text, ", 0 of them still get theirs"));
	node_close(&node);
}
