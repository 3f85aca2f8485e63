/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_wake_test.c -- how often a write wakes a thread, over shared memory: counted by the doorbells,
 * which are the only thing that wakes a service thread for a peer
 */
#include <pthread.h>
#include <stdatomic.h>

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

static uint64_t calls_of(const struct node *node)
{
	struct kv_stats stats = KV_INIT(kv_stats);

	assert_int_equal(kv_stats(node->engine, &stats, NULL), 0);
	return stats.syscalls;
}

/* a, in caller mode, has n connections over TCP to b. */
static void open_caller(struct node *a, struct node *b, struct kv_peer **peer, int n)
{
	const char *options[] = { "KVCACHE_TRANSPORT=tcp", NULL };
	struct kv_engine_config auto_mode = KV_INIT(kv_engine_config), caller_mode = auto_mode;

	auto_mode.options = caller_mode.options = options;
	caller_mode.progress = KV_PROGRESS_CALLER;
	node_open(b, 2, &rig_shape, &auto_mode);
	node_listen(b);
	node_open(a, 1, &rig_shape, &caller_mode);
	for (int i = 0; i < n; i++)
		ok(kv_connect(a->engine, "127.0.0.1", b->port, RIG_TIMEOUT_MS, &peer[i], &a->err),
		   &a->err);
}

/* A look at a peer over TCP is a system call; but for one in 100 ms an idle one gets none. */
CASE(a_caller_of_progress_looks_at_peers_that_have_work)
{
	enum { PEERS = 6, CALLS = 2000 };
	struct kv_peer *peer[PEERS];
	struct node a, b;
	uint64_t before;

	open_caller(&a, &b, peer, PEERS);
	for (int i = 0; i < CALLS; i++)
		assert_true(kv_progress(a.engine, 0, NULL) >= 0);
	before = calls_of(&a);
	for (int i = 0; i < CALLS; i++)
		assert_true(kv_progress(a.engine, 0, NULL) >= 0);
	assert_in_range(calls_of(&a) - before, 0, CALLS);
	for (int i = 0; i < PEERS; i++)
		ok(kv_write_blocks(peer[i], a.cache, all_layers, from, to, 3, NULL, &a.err),
		   &a.err);
	node_close(&a);
	node_close(&b);
}

struct accepting {
	struct kv_engine *engine;
	atomic_bool done;
};

static void *accept_peer(void *arg)
{
	struct accepting *a = arg;

	while (!atomic_load(&a->done))
		assert_true(kv_progress(a->engine, 1, NULL) >= 0);
	return NULL;
}

static void await_acked(struct kv_op *op, struct node *a, const struct node *b)
{
	int grade = kv_test(op, &a->err);

	for (; grade >= 0 && grade < KV_ACKED; grade = kv_test(op, &a->err))
		assert_true(kv_progress(b->engine, 0, NULL) >= 0);
	assert_int_equal(grade, KV_ACKED);
	assert_int_equal(kv_op_free(op, NULL), 0);
}

/* One thread drives both engines: what is looked at in the next turn anyway needs no bell. */
CASE(a_caller_that_finds_work_in_each_turn_is_not_rung)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct accepting accepting = { .done = false };
	struct node a, b;
	pthread_t thread;
	uint64_t before;

	config.progress = KV_PROGRESS_CALLER;
	node_open(&b, 2, &rig_shape, &config);
	node_listen(&b);
	accepting.engine = b.engine;
	assert_int_equal(pthread_create(&thread, NULL, accept_peer, &accepting), 0);
	node_open(&a, 1, &rig_shape, &config);
	node_connect(&a, b.port);
	atomic_store(&accepting.done, true);
	pthread_join(thread, NULL);
	before = doorbells(&a) + doorbells(&b);
	for (int i = 0; i < WRITES; i++) {
		struct kv_op *op;

		ok(kv_write_blocks_async(a.peer, a.cache, all_layers, from, to, 3, NULL, &op,
					 &a.err),
		   &a.err);
		await_acked(op, &a, &b);
	}
	/* A tenth: now and then all peers are looked at, idle ones, too. */
	assert_in_range(doorbells(&a) + doorbells(&b) - before, 0, WRITES / 10);
	assert_true(memory_is(&b, all_layers, 1, from, to, 3, 0));
	node_close(&a);
	node_close(&b);
}

/* Of many peers in turn those that had work before are not looked at, and armed, for long. */
CASE(a_caller_of_progress_leaves_a_peer_soon)
{
	enum { PEERS = 6, CALLS = 16, TRIES = 50 };
	uint64_t least = UINT64_MAX;
	struct kv_peer *peer[PEERS];
	struct node a, b;

	open_caller(&a, &b, peer, PEERS);
	for (int try = 0; try < TRIES; try++) { /* another sweep may come in between */
		uint64_t before;

		for (int i = 0; i < PEERS; i++)
			ok(kv_write_blocks(peer[i], a.cache, all_layers, from, to, 3, NULL, &a.err),
			   &a.err);
		before = calls_of(&a);
		for (int i = 0; i < CALLS; i++)
			assert_true(kv_progress(a.engine, 0, NULL) >= 0);
		if (calls_of(&a) - before < least)
			least = calls_of(&a) - before;
	}
	assert_in_range(least, 0, PEERS * CALLS / 2);
	node_close(&a);
	node_close(&b);
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
