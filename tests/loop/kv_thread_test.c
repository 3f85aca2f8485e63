/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_thread_test.c -- several threads in one engine: callers beside callers, and beside onlookers
 */
#include "kv_rig.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

static const struct kv_layers all_layers = { 0, 0 };

enum { THREADS = 4, ROUNDS = 100, VISITS = 20 };

struct worker {
	struct pair *pair;
	int64_t first;
	int failures;
};

/* Each thread writes its own quarter of the blocks, reversed, again and again. */
static void *write_quarter(void *arg)
{
	struct worker *w = arg;
	enum { QUARTER = RIG_BLOCKS / THREADS };
	int64_t src[QUARTER], dst[QUARTER];
	struct kv_error err;

	for (int64_t i = 0; i < QUARTER; i++) {
		src[i] = w->first + i;
		dst[i] = w->first + QUARTER - 1 - i;
	}
	for (int r = 0; r < ROUNDS; r++)
		if (kv_write_blocks(w->pair->a.peer, w->pair->a.cache, all_layers, src, dst,
				    QUARTER, NULL, &err)) {
			w->failures++;
			fprintf(stderr, "%s\n", err.message);
		}
	return NULL;
}

struct onlooker {
	struct kv_engine *engine;
	atomic_bool leave;
	pthread_t thread;
};

static void *look(void *arg)
{
	static char text[65536];
	struct onlooker *o = arg;
	struct kv_stats stats = KV_INIT(kv_stats);
	struct kv_error err;

	do {
		assert_true(kv_dump(o->engine, text, sizeof(text)) > 0);
		ok(kv_stats(o->engine, &stats, &err), &err);
	} while (!atomic_load(&o->leave));
	return NULL;
}

static void onlooker_start(struct onlooker *o, struct kv_engine *engine)
{
	o->engine = engine;
	atomic_init(&o->leave, false);
	assert_int_equal(pthread_create(&o->thread, NULL, look, o), 0);
}

static void onlooker_end(struct onlooker *o)
{
	atomic_store(&o->leave, true);
	pthread_join(o->thread, NULL);
}

CASE(threads_share_a_peer_while_others_look)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	int64_t src[RIG_BLOCKS], dst[RIG_BLOCKS];
	struct kv_stats stats = KV_INIT(kv_stats);
	struct worker worker[THREADS];
	pthread_t thread[THREADS];
	struct onlooker onlooker;
	struct pair p;

	config.arrivals_off = 1;
	node_open(&p.b, 2, NULL, &config);
	node_listen(&p.b);
	node_open(&p.a, 1, NULL, NULL);
	node_connect(&p.a, p.b.port);
	for (int i = 0; i < THREADS; i++) {
		worker[i] = (struct worker){ &p, i * RIG_BLOCKS / THREADS, 0 };
		assert_int_equal(pthread_create(&thread[i], NULL, write_quarter, &worker[i]), 0);
	}
	onlooker_start(&onlooker, p.a.engine);
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	onlooker_end(&onlooker);
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(worker[i].failures, 0);
	for (int64_t i = 0; i < RIG_BLOCKS; i++) {
		int64_t quarter = i / (RIG_BLOCKS / THREADS) * (RIG_BLOCKS / THREADS);

		src[i] = i;
		dst[i] = 2 * quarter + RIG_BLOCKS / THREADS - 1 - i;
	}
	assert_true(memory_is(&p.b, all_layers, 1, src, dst, RIG_BLOCKS, 0));
	ok(kv_stats(p.a.engine, &stats, &p.a.err), &p.a.err);
	assert_int_equal(stats.writes, THREADS * ROUNDS);
	assert_int_equal(stats.ok, THREADS * ROUNDS);
	assert_int_equal(stats.failed + stats.cancelled + stats.in_flight, 0);
	assert_int_equal(stats.unknown_messages, 0);
	ok(kv_stats(p.b.engine, &stats, &p.b.err), &p.b.err);
	assert_int_equal(stats.arrivals, THREADS * ROUNDS);
	pair_close(&p);
}

CASE(peers_come_and_go_while_others_look)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct onlooker onlooker;
	struct pair p;

	config.arrivals_off = 1;
	node_open(&p.b, 2, NULL, &config);
	node_listen(&p.b);
	node_open(&p.a, 1, NULL, NULL);
	onlooker_start(&onlooker, p.b.engine);
	for (int i = 0; i < VISITS; i++) {
		node_connect(&p.a, p.b.port);
		ok(kv_peer_close(p.a.peer, RIG_TIMEOUT_MS, &p.a.err), &p.a.err);
	}
	onlooker_end(&onlooker);
	/*
	 * The last visitor may have left before b's thread has read the last frame of its
	 * handshake.
	 */
	await_stat(&p.b, peers_accepted, VISITS);
	await_stat(&p.b, peers_now, 0);
	pair_close(&p);
}

struct visitor {
	struct node *node;
	uint32_t port;
	int connected, closed; /* what the calls have returned */
	atomic_int done;       /* how many have */
	pthread_t thread;
};

static void *visit(void *arg)
{
	struct visitor *v = arg;
	struct node *node = v->node;

	v->connected =
		kv_connect(node->engine, NULL, v->port, RIG_TIMEOUT_MS, &node->peer, &node->err);
	atomic_store(&v->done, 1);
	v->closed = v->connected ? 0 : kv_peer_close(node->peer, RIG_TIMEOUT_MS, &node->err);
	atomic_store(&v->done, 2);
	return NULL;
}

/*
 * Until `n` calls of the visitor have returned; false after `ms`. Its host does nothing meanwhile.
 */
static bool visitor_did(struct visitor *v, int n, int64_t ms)
{
	int64_t deadline = kv_deadline_ns(slow_ms(ms));

	while (atomic_load(&v->done) < n && kv_now_ns() < deadline)
		poll(NULL, 0, 1);
	return atomic_load(&v->done) >= n;
}

/*
 * Turns the engine until it waits for nothing but the visitor's last frame, or even that has come.
 */
static void turn_until_ready_is_due(struct node *node, struct visitor *v)
{
	int64_t deadline = kv_deadline_ns(RIG_TIMEOUT_MS);
	static char text[65536];

	do {
		assert_true(kv_now_ns() < deadline);
		kv_progress(node->engine, 0, NULL);
		assert_true(kv_dump(node->engine, text, sizeof(text)) > 0);
	} while (!strstr(text, "waiting for ready") && !atomic_load(&v->done));
}

CASE(one_that_left_before_its_last_frame_was_read_was_there_and_said_goodbye)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_stats stats = KV_INIT(kv_stats);
	struct kv_arrival arrival;
	struct visitor v = { 0 };
	struct pair p;

	config.progress = KV_PROGRESS_CALLER;
	node_open(&p.b, 2, NULL, &config);
	node_listen(&p.b);
	node_open(&p.a, 1, NULL, NULL);
	v.node = &p.a;
	v.port = p.b.port;
	assert_int_equal(pthread_create(&v.thread, NULL, visit, &v), 0);
	turn_until_ready_is_due(&p.b, &v);
	assert_true(visitor_did(&v, 1, RIG_TIMEOUT_MS));
	visitor_did(&v, 2, 50); /* where b could be stored into, its close waits for b */
	assert_true(await_kind(&p.b, KV_ARRIVAL_PEER_UP, &arrival, RIG_TIMEOUT_MS));
	assert_true(await_kind(&p.b, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
	assert_int_equal(arrival.status, KV_ERR_CLOSED);
	pthread_join(v.thread, NULL);
	ok(v.connected, &p.a.err);
	ok(v.closed, &p.a.err);
	ok(kv_stats(p.b.engine, &stats, &p.b.err), &p.b.err);
	assert_int_equal(stats.peers_accepted, 1);
	assert_int_equal(stats.rejected_garbage, 0);
	pair_close(&p);
}
