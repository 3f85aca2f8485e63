/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_heartbeat_test.c -- KVCACHE_HEARTBEAT_MS: a peer whose connection nobody serves is lost in
 * time; one whose application only waits, one that cannot answer and one that is let alone are not
 *
 * That nobody serves it: its claim is held, as by a device's call that does not return.
 */
#include "kv_rig.h"

#include <poll.h>
#include <pthread.h>

#include "base/clock.h"
#include "kv_api.h"
#include "lib/bar.h"

enum { BEAT_MS = 200, LOST_MS = 6 * BEAT_MS };

static char beat[64];
static const char *const with[] = { beat, NULL };
static struct pair p;

static void open_pair(const char *const *a, const char *const *b, int b_progress)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);

	slow_setting(beat, "KVCACHE_HEARTBEAT_MS", BEAT_MS);
	config.options = b;
	config.progress = b_progress;
	node_open(&p.b, 2, NULL, &config);
	node_listen(&p.b);
	config.options = a;
	config.progress = KV_PROGRESS_AUTO;
	node_open(&p.a, 1, NULL, &config);
}

static void connect_pair(void)
{
	node_connect(&p.a, p.b.port);
	node_await_peer(&p.b);
}

static void hold(struct node *node)
{
	assert_true(kv_claim_until(&node->peer->claim, kv_deadline_ns(RIG_TIMEOUT_MS)));
}

static bool is_connected(struct node *node)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);

	ok(kv_peer_info(node->peer, &info, &node->err), &node->err);
	return info.connected;
}

CASE(a_peer_that_nobody_serves_is_lost_in_time)
{
	struct kv_arrival arrival;
	struct bar bar;

	open_pair(with, NULL, KV_PROGRESS_AUTO);
	connect_pair();
	hold(&p.b);
	bar = bar_begin();
	assert_true(await_kind(&p.a, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
	assert_true(bar_holds(bar, LOST_MS, "the loss of a peer that nobody serves"));
	assert_int_equal(arrival.status, KV_ERR_PEER_LOST);
	kv_claim_release(&p.b.peer->claim);
	pair_close(&p);
}

/* Of the engine's thread: it grows when the thread runs. */
static int64_t thread_ns(const struct kv_engine *engine)
{
	struct timespec used;
	clockid_t clock;

	assert_int_equal(pthread_getcpuclockid(engine->thread, &clock), 0);
	assert_int_equal(clock_gettime(clock, &used), 0);
	return used.tv_sec * KV_NS_PER_MS * 1000 + used.tv_nsec;
}

/*
 * What another thread connects may need no event that wakes the engine's: that looks at deadlines
 * all the same.
 */
CASE(the_thread_looks_at_its_first_peer_though_nothing_comes_of_it)
{
	int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS), used;
	struct kv_peer *peer;

	node_open(&p.a, 1, NULL, NULL);
	do { /* until it sleeps, for ever: nothing is there to wait for */
		used = thread_ns(p.a.engine);
		poll(NULL, 0, 20);
	} while (thread_ns(p.a.engine) != used);
	ok(kv_peer_new(p.a.engine, false, &peer, &p.a.err), &p.a.err);
	for (int looks = 0; looks < 3; looks++) {
		used = thread_ns(p.a.engine);
		while (thread_ns(p.a.engine) == used) {
			assert_true(kv_now_ns() < end);
			poll(NULL, 0, 1);
		}
	}
	kv_peer_free(peer);
	node_close(&p.a);
}

/* The end that has the option asks, and the other one answers without it. */
CASE(a_peer_whose_application_waits_is_not_lost)
{
	int64_t heard_ns, end = kv_deadline_ns(RIG_TIMEOUT_MS);
	bool heard;

	open_pair(with, NULL, KV_PROGRESS_AUTO);
	connect_pair();
	hold(&p.a);
	heard_ns = p.a.peer->heard_ns;
	kv_peer_release(p.a.peer);
	poll(NULL, 0, (int)slow_ms(2 * LOST_MS)); /* so long nothing calls either engine */
	assert_true(is_connected(&p.a) && is_connected(&p.b));
	do { /* it was asked, and answered */
		hold(&p.a);
		heard = p.a.peer->heard_ns > heard_ns;
		kv_peer_release(p.a.peer);
		assert_true(kv_now_ns() < end);
	} while (!heard);
	pair_close(&p);
}

static void *progress(void *stop)
{
	while (!atomic_load((atomic_bool *)stop))
		kv_progress(p.b.engine, 10, NULL);
	return NULL;
}

/* As an older version does: it does not say that it answers. */
CASE(a_peer_that_cannot_answer_is_not_asked)
{
	atomic_bool stop = false;
	pthread_t thread;

	open_pair(with, NULL, KV_PROGRESS_CALLER);
	assert_int_equal(pthread_create(&thread, NULL, progress, &stop), 0);
	connect_pair();
	atomic_store(&stop, true);
	pthread_join(thread, NULL);
	poll(NULL, 0, (int)slow_ms(2 * LOST_MS));
	assert_true(is_connected(&p.a));
	hold(&p.a);
	assert_false(p.a.peer->heartbeat);
	kv_peer_release(p.a.peer);
	pair_close(&p);
}

CASE(without_the_option_nobody_asks)
{
	struct kv_stats before = KV_INIT(kv_stats), after = KV_INIT(kv_stats);

	open_pair(NULL, NULL, KV_PROGRESS_AUTO);
	connect_pair();
	hold(&p.b);
	ok(kv_stats(p.a.engine, &before, NULL), NULL);
	poll(NULL, 0, (int)slow_ms(LOST_MS));
	ok(kv_stats(p.a.engine, &after, NULL), NULL);
	kv_peer_release(p.b.peer);
	assert_int_equal(before.doorbells, after.doorbells);
	assert_true(is_connected(&p.a) && is_connected(&p.b));
	pair_close(&p);
}
