/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_wake_test.c -- how often a write wakes a thread, over shared memory: counted by the doorbells,
 * which are the only thing that wakes a service thread for a peer
 */
#include "kv_rig.h"

enum { WRITES = 300 };

static const int64_t from[] = { 5, 6, 9 }, to[] = { 10, 12, 3 };
static const struct kv_layers all_layers = { 0, 0 };

static void open_with(struct pair *p, const char *spin, const char *service)
{
	const char *options[] = { spin, service, NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);

	config.options = options;
	pair_open(p, &rig_shape, &config);
}

static void write_blocks(struct node *node, int writes)
{
	for (int i = 0; i < writes; i++)
		ok(kv_write_blocks(node->peer, node->cache, all_layers, from, to, 3, NULL,
				   &node->err),
		   &node->err);
}

static uint64_t doorbells(const struct node *node)
{
	struct kv_stats stats = KV_INIT(kv_stats);

	assert_int_equal(kv_stats(node->engine, &stats, NULL), 0);
	return stats.doorbells;
}

/* The writer sleeps at once, and so does the receiver: BEGIN and notify wake it together. */
CASE(a_write_rings_once_and_its_acknowledgement_once)
{
	struct pair p;

	open_with(&p, "KVCACHE_SPIN_US=0", "KVCACHE_SERVICE_SPIN_US=0");
	write_blocks(&p.a, WRITES);
	assert_in_range(doorbells(&p.a), 1, WRITES + 16); /* and the handshake's */
	assert_in_range(doorbells(&p.b), 0, WRITES + 16);
	assert_true(memory_is(&p.b, all_layers, 1, from, to, 3, 0));
	pair_close(&p);
}

/* A tenth: a busy machine may keep either from its processor for as long as the other polls. */
CASE(where_both_ends_poll_nobody_is_woken)
{
	uint64_t before;
	struct pair p;

	open_with(&p, "KVCACHE_SPIN_US=1000000", "KVCACHE_SERVICE_SPIN_US=1000000");
	write_blocks(&p.a, 1);
	before = doorbells(&p.a) + doorbells(&p.b);
	write_blocks(&p.a, WRITES);
	assert_in_range(doorbells(&p.a) + doorbells(&p.b) - before, 0, WRITES / 10);
	pair_close(&p);
}

/* For a second: connections are accepted, others are served, and a close does not wait for it. */
CASE(a_thread_that_polls_one_peer_serves_the_others)
{
	struct node other;
	struct pair p;

	open_with(&p, "KVCACHE_SPIN_US=20", "KVCACHE_SERVICE_SPIN_US=1000000");
	write_blocks(&p.a, 1);
	node_open(&other, 1, &rig_shape, NULL);
	node_connect(&other, p.b.port);
	for (int i = 0; i < 20; i++) {
		write_blocks(&p.a, 1);
		write_blocks(&other, 1);
	}
	write_blocks(&p.a, 1);
	node_close(&other);
	pair_close(&p);
}

/* As for everybody: 0 where a caller does not poll, either; else where processors are free. */
CASE(without_the_option_it_is_right_as_well)
{
	struct pair p;

	open_with(&p, "KVCACHE_SPIN_US=20", "KVCACHE_SERVICE_SPIN_US=-1");
	write_blocks(&p.a, WRITES);
	assert_true(memory_is(&p.b, all_layers, 1, from, to, 3, 0));
	pair_close(&p);
}

int main(void)
{
	rig_path("pool"); /* a ring's receiver is woken for the bytes, too: it copies them */
	return run_cases(NULL, NULL);
}
