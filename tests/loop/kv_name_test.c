/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_name_test.c -- host names: a resolver that does not answer keeps nobody beyond the deadline,
 * one that cannot answer now may be asked again, and a name that there is not is ARG
 */
#include "kv_rig.h"

#include <poll.h>
#include <stdatomic.h>
#include <string.h>

#include "base/clock.h"
#include "lib/bar.h"
#include "lib/names.h"

enum { SHORT_MS = 200, SLACK_MS = 800, RESOLVERS = 32 };

static struct bar began;

static void within(int64_t ms)
{
	assert_true(bar_holds(began, ms, "kv_connect"));
}

static atomic_int asked;

static int on_the_third(void *arg)
{
	return atomic_fetch_add(&asked, 1) >= 2;
}

static void await_resolvers(int n)
{
	for (int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS); names_asked() != n;) {
		assert_true(kv_now_ns() < end);
		poll(NULL, 0, 1);
	}
}

static void run_in(int progress)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct node a, b;
	struct kv_peer *peer;
	struct kv_error err;
	int64_t end = kv_deadline_ns(2 * RIG_TIMEOUT_MS);
	int held = 0;

	names_answer(false);
	config.progress = progress;
	node_open(&b, 2, NULL, NULL);
	ok(kv_listen(b.engine, "here.test", 0, &b.port, &err), &err);
	node_open(&a, 1, NULL, &config);
	began = bar_begin();
	assert_int_equal(kv_connect(a.engine, "never.test", 1, SHORT_MS, &peer, &err),
			 KV_ERR_TIMEOUT);
	within(SHORT_MS + SLACK_MS);
	assert_non_null(strstr(err.message, "resolving"));
	atomic_store(&asked, 0);
	kv_engine_set_interrupt(a.engine, on_the_third, NULL);
	began = bar_begin();
	assert_int_equal(kv_connect(a.engine, "never.test", 1, RIG_TIMEOUT_MS, &peer, &err),
			 KV_ERR_CANCELLED);
	within(SHORT_MS + SLACK_MS);
	kv_engine_set_interrupt(a.engine, NULL, NULL);
	assert_int_equal(kv_connect(a.engine, "later.test", 1, RIG_TIMEOUT_MS, &peer, &err),
			 KV_ERR_UNREACHABLE);
	assert_non_null(strstr(err.hint, "again"));
	assert_int_equal(kv_connect(a.engine, "nobody.test", 1, RIG_TIMEOUT_MS, &peer, &err),
			 KV_ERR_ARG);
	assert_int_equal(kv_listen(a.engine, "later.test", 0, NULL, &err), KV_ERR_UNREACHABLE);
	assert_int_equal(kv_listen(a.engine, "nobody.test", 0, NULL, &err), KV_ERR_ARG);
	/* Threads that were left behind are bounded; who names an address needs none. */
	for (int i = 0; i < RESOLVERS && !held; i++)
		held = kv_connect(a.engine, "never.test", 1, 1, &peer, &err) == KV_ERR_BUSY;
	assert_true(held);
	await_resolvers(RESOLVERS); /* neither fewer nor more */
	ok(kv_connect(a.engine, "127.0.0.1", b.port, RIG_TIMEOUT_MS, &peer, &err), &err);
	names_answer(true);
	await_resolvers(0);
	do { /* they are the library's a moment longer */
		held = kv_connect(a.engine, "here.test", b.port, RIG_TIMEOUT_MS, &peer, &err);
		poll(NULL, 0, 1);
	} while (held == KV_ERR_BUSY && kv_now_ns() < end);
	ok(held, &err);
	node_close(&a);
	node_close(&b);
}

CASE(with_a_service_thread)
{
	run_in(KV_PROGRESS_AUTO);
}

CASE(without_one)
{
	run_in(KV_PROGRESS_CALLER);
}
