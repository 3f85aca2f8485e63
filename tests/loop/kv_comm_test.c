/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_comm_test.c -- communicators: every rank has every other one, or each learns that one is
 * missing
 *
 * The ranks are threads with an engine each.
 */
#include "kv_rig.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "kv_api.h"

enum { RANKS = 3, HALF = 2, RANKS_MAX = 2 * HALF };

static struct {
	pthread_mutex_t lock;
	pthread_cond_t changed;
	uint8_t blob[RANKS_MAX][256];
	unsigned int in;
	bool shut; /* a rank with `waits` set stays in its allgather */
} table = { .lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER };

struct rank {
	struct node node;
	struct kv_comm *comm;
	uint32_t rank, nranks;
	int64_t timeout_ms;
	bool fails;  /* its allgather does, after it has sent to the others */
	bool waits;  /* in its allgather, until the table is not shut any more */
	bool halves; /* prefill and decode: ranks of one half are not connected */
	atomic_bool left;
	int ret;
	int64_t took_ms;
};

static int allgather(void *arg, const void *mine, void *all, size_t len)
{
	const struct rank *r = arg;

	pthread_mutex_lock(&table.lock);
	memcpy(table.blob[r->rank], mine, len);
	table.in++;
	pthread_cond_broadcast(&table.changed);
	while (table.in < r->nranks || (r->waits && table.shut))
		pthread_cond_wait(&table.changed, &table.lock);
	for (uint32_t i = 0; i < r->nranks; i++)
		memcpy((uint8_t *)all + i * len, table.blob[i], len);
	pthread_mutex_unlock(&table.lock);
	return r->fails;
}

static void *init_rank(void *arg)
{
	struct kv_comm_config config = KV_INIT(kv_comm_config);
	int64_t begun = kv_now_ns();
	struct rank *r = arg;

	config.rank = r->rank;
	config.nranks = r->nranks;
	config.group = r->halves ? (int32_t)(r->rank / HALF) : KV_COMM_ALL;
	config.allgather = allgather;
	config.arg = r;
	config.timeout_ms = r->timeout_ms;
	r->ret = kv_comm_init(r->node.engine, &config, &r->comm, &r->node.err);
	r->took_ms = (kv_now_ns() - begun) / KV_NS_PER_MS;
	return NULL;
}

static void open_ranks(struct rank *rank, uint32_t n, int progress)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);

	config.progress = progress;
	table.in = 0;
	table.shut = true;
	for (uint32_t i = 0; i < n; i++) {
		rank[i] = (struct rank){ .rank = i, .nranks = n, .timeout_ms = RIG_TIMEOUT_MS };
		node_open(&rank[i].node, i + 1, NULL, &config);
	}
}

/* Each closes when its peers have answered, which without a service thread they do in this call. */
static void *free_rank(void *arg)
{
	struct rank *r = arg;

	r->ret = kv_comm_free(r->comm, RIG_TIMEOUT_MS, &r->node.err);
	return NULL;
}

static void in_threads(struct rank *rank, uint32_t n, void *(*f)(void *rank))
{
	pthread_t thread[RANKS_MAX];

	for (uint32_t i = 0; i < n; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, f, &rank[i]), 0);
	for (uint32_t i = 0; i < n; i++)
		pthread_join(thread[i], NULL);
}

static void init_all(struct rank *rank, uint32_t n)
{
	in_threads(rank, n, init_rank);
}

/* Joins, and has nothing to do there. */
static void *init_and_leave(void *arg)
{
	struct rank *r = arg;

	init_rank(r);
	if (!r->ret)
		r->ret = kv_comm_free(r->comm, RIG_TIMEOUT_MS, &r->node.err);
	atomic_store(&r->left, true);
	return NULL;
}

static void open_table(void)
{
	pthread_mutex_lock(&table.lock);
	table.shut = false;
	pthread_cond_broadcast(&table.changed);
	pthread_mutex_unlock(&table.lock);
}

/* What the engine keeps of a communicator that did not come about: nothing, a moment later. */
static void nothing_is_left(struct rank *rank)
{
	int64_t deadline = kv_deadline_ns(RIG_TIMEOUT_MS);
	int ret;

	do {
		kv_progress(rank->node.engine, 1, NULL);
		ret = kv_cache_unregister(rank->node.cache, &rank->node.err);
	} while (ret == KV_ERR_BUSY && kv_now_ns() < deadline);
	ok(ret, &rank->node.err);
}

static void all_ranks_are_joined(struct rank *rank, int progress)
{
	static const int64_t ids[] = { 3, 4 };

	open_ranks(rank, RANKS, progress);
	init_all(rank, RANKS);
	for (uint32_t i = 0; i < RANKS; i++) {
		ok(rank[i].ret, &rank[i].node.err);
		for (uint32_t k = 0; k < RANKS; k++)
			assert_int_equal(!kv_comm_peer(rank[i].comm, k), i == k);
	}
	if (progress == KV_PROGRESS_AUTO)
		ok(kv_write_blocks(kv_comm_peer(rank[2].comm, 0), rank[2].node.cache,
				   (struct kv_layers){ 0, 0 }, ids, ids, 2, NULL,
				   &rank[2].node.err),
		   &rank[2].node.err);
	in_threads(rank, RANKS, free_rank);
	for (uint32_t i = 0; i < RANKS; i++)
		ok(rank[i].ret, &rank[i].node.err);
	for (uint32_t i = 0; i < RANKS; i++)
		node_close(&rank[i].node);
}

CASE(every_rank_has_every_other)
{
	struct rank rank[RANKS];

	all_ranks_are_joined(rank, KV_PROGRESS_AUTO);
	all_ranks_are_joined(rank, KV_PROGRESS_CALLER);
}

CASE(a_rank_that_nobody_takes_in_learns_of_it_and_leaves_nothing_behind)
{
	struct rank rank[2];

	open_ranks(rank, 2, KV_PROGRESS_AUTO);
	rank[0].timeout_ms = slow_ms(300);
	rank[1].fails = true;
	init_all(rank, 2);
	assert_int_equal(rank[1].ret, KV_ERR_SYSTEM);
	assert_int_equal(rank[0].ret, KV_ERR_TIMEOUT);
	assert_non_null(strstr(rank[0].node.err.message, "rank 1 has not accepted rank 0"));
	nothing_is_left(&rank[0]);
	nothing_is_left(&rank[1]);
	node_close(&rank[0].node);
	node_close(&rank[1].node);
}

/*
 * Rank 2 is there and fails; rank 1 has no patience; rank 0 has, and need not wait for it. Both are
 * connected with it when rank 1 begins.
 */
CASE(a_rank_that_gives_up_is_known_to_the_others)
{
	struct rank rank[RANKS];
	pthread_t thread[RANKS];

	open_ranks(rank, RANKS, KV_PROGRESS_AUTO);
	rank[0].timeout_ms = KV_TIMEOUT_MAX_MS;
	rank[1].timeout_ms = slow_ms(200);
	rank[1].waits = true;
	rank[2].fails = true;
	for (int i = 0; i < RANKS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, init_rank, &rank[i]), 0);
	await_stat(&rank[0].node, peers_connected, RANKS - 1);
	open_table();
	for (int i = 0; i < RANKS; i++)
		pthread_join(thread[i], NULL);
	assert_int_equal(rank[1].ret, KV_ERR_TIMEOUT);
	assert_int_equal(rank[0].ret, KV_ERR_PEER_LOST);
	assert_non_null(strstr(rank[0].node.err.message, "rank 1 has left"));
	assert_true(rank[0].took_ms < RIG_TIMEOUT_MS);
	for (int i = 0; i < RANKS; i++)
		nothing_is_left(&rank[i]);
	for (int i = 0; i < RANKS; i++)
		node_close(&rank[i].node);
}

static struct {
	struct rank *rank;
	atomic_bool stopped, go_on;
} halt;

/* Rank 1 stands still, as a stopped process does, from when rank 0 has connected to it. */
static int stand_still(void *arg)
{
	struct kv_stats stats = KV_INIT(kv_stats);

	ok(kv_stats(halt.rank[0].node.engine, &stats, NULL), NULL);
	if (!stats.peers_connected)
		return 0;
	atomic_store(&halt.stopped, true);
	while (!atomic_load(&halt.go_on))
		poll(NULL, 0, 1);
	return 1;
}

/* The same, and it goes on then. */
static int stand_still_for_a_while(void *arg)
{
	stand_still(arg);
	return 0;
}

CASE(a_peer_that_cannot_be_closed_yet_is_freed_once_it_can)
{
	int64_t deadline = kv_deadline_ns(RIG_TIMEOUT_MS);
	pthread_t thread[2];
	struct rank rank[RANKS];

	open_ranks(rank, RANKS, KV_PROGRESS_CALLER);
	halt.rank = rank;
	kv_engine_set_interrupt(rank[1].node.engine, stand_still, NULL);
	rank[2].fails = true; /* it accepts nobody */
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, init_rank, &rank[i]), 0);
	init_rank(&rank[2]);
	while (!atomic_load(&halt.stopped) && kv_now_ns() < deadline)
		poll(NULL, 0, 1);
	node_close(&rank[2].node);
	pthread_join(thread[0], NULL);
	assert_true(rank[0].ret < 0);
	atomic_store(&halt.go_on, true);
	pthread_join(thread[1], NULL);
	for (int i = 0; i < 2; i++) {
		nothing_is_left(&rank[i]);
		node_close(&rank[i].node);
	}
}

/* ---------------------------------------------------------- who is done leaves */

static void all_have_left(struct rank *rank, uint32_t n, const pthread_t *thread)
{
	for (uint32_t i = 0; i < n; i++) {
		pthread_join(thread[i], NULL);
		ok(rank[i].ret, &rank[i].node.err);
	}
	for (uint32_t i = 0; i < n; i++)
		node_close(&rank[i].node);
}

static void await_leaving(struct rank *r)
{
	for (int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS); !atomic_load(&r->left);) {
		assert_true(kv_now_ns() < end);
		poll(NULL, 0, 1);
	}
}

/* Whether that rank's kv_comm_init has made `lower` part of the communicator. */
static bool has_taken_in(struct rank *r, uint32_t lower)
{
	struct kv_engine *engine = r->node.engine;
	bool has = false;

	for (uint32_t i = 0; i < engine->peers_end && !has; i++) {
		struct kv_peer *peer = kv_table_claim(engine, i, kv_deadline_ns(RIG_TIMEOUT_MS));

		has = peer && peer->incoming && peer->owned && peer->comm_rank == lower;
		if (peer)
			kv_table_leave(peer);
	}
	return has;
}

/*
 * Both decode ranks have the first prefill rank and wait for the second one: what that rank writes
 * would be acknowledged, and they would see it leave.
 */
CASE(no_rank_is_done_before_those_that_it_is_connected_to)
{
	int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS);
	struct rank rank[RANKS_MAX];
	pthread_t thread[RANKS_MAX];

	open_ranks(rank, RANKS_MAX, KV_PROGRESS_AUTO);
	rank[1].waits = true;
	for (uint32_t i = 0; i < RANKS_MAX; i++) {
		rank[i].halves = true;
		assert_int_equal(pthread_create(&thread[i], NULL, init_and_leave, &rank[i]), 0);
	}
	while (!has_taken_in(&rank[HALF], 0) || !has_taken_in(&rank[HALF + 1], 0)) {
		assert_true(kv_now_ns() < end);
		poll(NULL, 0, 1);
	}
	for (int i = 0; i < 50 && !atomic_load(&rank[0].left); i++)
		poll(NULL, 0, 1);
	assert_false(atomic_load(&rank[0].left));
	open_table();
	all_have_left(rank, RANKS_MAX, thread);
}

/* Rank 2 has all, and leaves; rank 1 stands still meanwhile, rank 0 is still to come there. */
CASE(a_rank_that_leaves_when_it_is_done_fails_nobody)
{
	struct rank rank[RANKS];
	pthread_t thread[RANKS];

	open_ranks(rank, RANKS, KV_PROGRESS_AUTO);
	rank[0].waits = true;
	halt.rank = &rank[1];
	atomic_store(&halt.stopped, false);
	atomic_store(&halt.go_on, false);
	kv_engine_set_interrupt(rank[1].node.engine, stand_still_for_a_while, NULL);
	for (uint32_t i = 0; i < RANKS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, init_and_leave, &rank[i]), 0);
	while (!atomic_load(&halt.stopped))
		poll(NULL, 0, 1);
	open_table();
	await_leaving(&rank[2]);
	atomic_store(&halt.go_on, true);
	all_have_left(rank, RANKS, thread);
}

/* ---------------------------------------------------------- how long a rank is nobody's */

/* The peer that came for a communicator, and that no kv_comm_init has taken; its claim is held. */
static struct kv_peer *claim_waif(struct kv_engine *engine)
{
	int64_t deadline = kv_deadline_ns(RIG_TIMEOUT_MS);

	while (kv_now_ns() < deadline) {
		for (uint32_t i = 0; i < engine->peers_end; i++) {
			struct kv_peer *peer = kv_table_claim(engine, i, deadline);

			if (peer && kv_peer_is_waif(peer))
				return peer;
			if (peer)
				kv_table_leave(peer);
		}
		poll(NULL, 0, 1);
	}
	fail_msg("nobody has come");
	return NULL;
}

/* As if its time had passed. */
static void let_time_pass(struct kv_peer *waif)
{
	int64_t left_ms = (waif->adopt_by_ns - kv_now_ns()) / KV_NS_PER_MS;

	assert_true(left_ms <= KV_COMM_MS && left_ms > KV_COMM_MS - RIG_TIMEOUT_MS);
	waif->adopt_by_ns = kv_now_ns();
}

CASE(a_rank_that_is_never_taken_in_is_dropped_at_its_deadline)
{
	pthread_t patient;
	struct rank rank[2];
	struct kv_peer *waif;

	open_ranks(rank, 2, KV_PROGRESS_AUTO);
	rank[0].timeout_ms = KV_TIMEOUT_MAX_MS;
	rank[1].fails = true;
	assert_int_equal(pthread_create(&patient, NULL, init_rank, &rank[0]), 0);
	init_rank(&rank[1]);
	assert_int_equal(rank[1].ret, KV_ERR_SYSTEM);
	waif = claim_waif(rank[1].node.engine);
	assert_int_equal(kv_cache_unregister(rank[1].node.cache, NULL), KV_ERR_BUSY);
	let_time_pass(waif);
	kv_table_leave(waif);
	pthread_join(patient, NULL);
	assert_int_equal(rank[0].ret, KV_ERR_PEER_LOST);
	assert_non_null(strstr(rank[0].node.err.message, "rank 1 has left"));
	assert_true(rank[0].took_ms < RIG_TIMEOUT_MS);
	nothing_is_left(&rank[0]);
	nothing_is_left(&rank[1]);
	node_close(&rank[0].node);
	node_close(&rank[1].node);
}

/* As where this rank has to wait for a third one first: both have the time that they were given. */
CASE(it_is_not_dropped_while_it_may_still_be_taken_in)
{
	pthread_t thread[2];
	struct rank rank[2];
	struct kv_peer *waif;
	int64_t rounds;

	open_ranks(rank, 2, KV_PROGRESS_AUTO);
	rank[1].waits = true;
	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, init_rank, &rank[i]), 0);
	waif = claim_waif(rank[1].node.engine);
	let_time_pass(waif);
	rounds = atomic_load(&waif->rounds);
	kv_peer_hold(waif);
	kv_table_leave(waif);
	while (waif->state == KV_PEER_UP && atomic_load(&waif->rounds) < rounds + 2)
		poll(NULL, 0, 1); /* the service looks at it at least each 100 ms */
	assert_int_equal(waif->state, KV_PEER_UP);
	kv_peer_drop(waif);
	open_table();
	for (int i = 0; i < 2; i++) {
		pthread_join(thread[i], NULL);
		ok(rank[i].ret, &rank[i].node.err);
	}
	in_threads(rank, 2, free_rank);
	for (int i = 0; i < 2; i++)
		node_close(&rank[i].node);
}
