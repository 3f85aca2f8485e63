/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_slow_verbs_test.c -- a device that takes seconds to change or destroy a queue pair, or does
 * not return from posting: every call answers within its own bound all the same, and other peers
 * notice nothing
 */
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/fault.h"
#include "fake.h"
#include "kv_rig.h"
#include "lib/bar.h"

enum {
	N = 6,
	TEARDOWN_MS = 2500, /* of each verb */
	SOON_MS = 1000,	    /* a call without a deadline, or past its own */
	OP_MS = 300,
	ALL_MS = 20000,
	CLOSE_MS = 300,
	STOP_MS = 1000, /* KV_STOP_MS, KV_CLOSE_MS, IB_CLOSE_MS */
	PEERS = 6,
};

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[N] = { 5, 6, 7, 0, 95, 40 }, to[N] = { 10, 11, 12, 95, 0, 3 };
static const int64_t other[1] = { 50 };

/* Each on a host of its own: `a` writes to `b`, which is to vanish, and to `c`. */
struct three {
	struct node a, b, c;
	struct kv_peer *to_c;
};

static void three_open(struct three *t)
{
	static const struct fake_config config = { .hosts = 3, .threads = true };

	fake_begin(&config);
	fake_host(1);
	node_open(&t->b, 2, NULL, NULL);
	node_listen(&t->b);
	fake_host(2);
	node_open(&t->c, 3, NULL, NULL);
	node_listen(&t->c);
	fake_host(0);
	node_open(&t->a, 1, NULL, NULL);
	node_listen(&t->a);
	node_connect(&t->a, t->c.port);
	t->to_c = t->a.peer;
	node_connect(&t->a, t->b.port);
}

static void three_close(struct three *t)
{
	node_close(&t->a);
	node_close(&t->b);
	node_close(&t->c);
	assert_true(fake_end());
}

static struct bar began;

/* Since `began`. */
static void within(int64_t ms, const char *what)
{
	assert_true(bar_holds(began, ms, what));
}

/* Nothing that has to do with another peer waits for the one that is going. */
static void others_notice_nothing(struct three *t)
{
	struct kv_stats stats = KV_INIT(kv_stats);
	static char text[65536];
	struct kv_peer *again;
	struct kv_error err;

	began = bar_begin();
	ok(kv_write_blocks(t->to_c, t->a.cache, all_layers, from, to, N, NULL, &err), &err);
	within(SOON_MS, "a write to another peer");
	assert_true(memory_is(&t->c, all_layers, 1, from, to, N, 0));
	began = bar_begin();
	ok(kv_stats(t->a.engine, &stats, &err), &err);
	within(SOON_MS, "kv_stats");
	began = bar_begin();
	assert_true(kv_dump(t->a.engine, text, sizeof(text)) > 0);
	within(SOON_MS, "kv_dump");
	began = bar_begin();
	ok(kv_connect(t->a.engine, NULL, t->c.port, ALL_MS, &again, &err), &err);
	within(SOON_MS, "kv_connect");
	began = bar_begin();
	node_connect(&t->c, t->a.port);
	within(SOON_MS, "the listener");
	ok(kv_write_blocks(t->c.peer, t->c.cache, all_layers, other, other, 1, NULL, &err), &err);
	within(2 * SOON_MS, "an acknowledgement");
}

static struct kv_op *begin_write(struct three *t, int64_t timeout_ms)
{
	struct kv_options options = KV_INIT(kv_options);
	struct kv_error err;
	struct kv_op *op;

	options.timeout_ms = timeout_ms;
	ok(kv_write_blocks_async(t->a.peer, t->a.cache, all_layers, from, to, N, &options, &op,
				 &err),
	   &err);
	return op;
}

CASE(no_call_waits_for_a_queue_pair_that_goes_slowly)
{
	struct three t;
	struct kv_error err;
	struct kv_op *op;
	int ret;

	three_open(&t);
	fake_kill_host(1);
	fake_slow_teardown(0, TEARDOWN_MS);
	op = begin_write(&t, 10000);
	began = bar_begin();
	ret = kv_wait(op, KV_ACKED, OP_MS, &err);
	within(OP_MS + SOON_MS, "kv_wait");
	assert_int_equal(ret, KV_ERR_TIMEOUT); /* the device still has it */
	began = bar_begin();
	assert_int_equal(kv_op_free(op, &err), KV_ERR_BUSY);
	within(SOON_MS, "kv_op_free");
	others_notice_nothing(&t);
	/* The end comes with the device's answer, and the fence later: the next verb has begun. */
	ret = kv_wait(op, KV_ACKED, ALL_MS, &err);
	assert_int_equal(ret, KV_ERR_PEER_LOST);
	assert_true(err.in_doubt);
	began = bar_begin();
	ok(kv_op_free(op, &err), &err);
	within(SOON_MS, "kv_op_free");
	began = bar_begin();
	assert_int_equal(kv_peer_close(t.a.peer, OP_MS, &err), KV_ERR_BUSY);
	within(OP_MS + SOON_MS, "kv_peer_close");
	others_notice_nothing(&t);
	ok(kv_peer_close(t.a.peer, ALL_MS, &err), &err);
	fake_slow_teardown(0, 0);
	three_close(&t);
}

/* The device has what was posted, and takes seconds to give it back. */
CASE(a_blocking_call_leaves_what_the_device_does_not_give_back)
{
	struct kv_options options = KV_INIT(kv_options);
	struct kv_error err;
	struct kv_op *op;
	struct three t;
	size_t failed;

	three_open(&t);
	fake_mute(0, true);
	fake_slow_teardown(0, TEARDOWN_MS);
	options.timeout_ms = OP_MS;
	began = bar_begin();
	assert_int_equal(
		kv_write_blocks(t.a.peer, t.a.cache, all_layers, from, to, N, &options, &err),
		KV_ERR_TIMEOUT);
	within(OP_MS + 2 * STOP_MS + SOON_MS, "kv_write_blocks");
	assert_true(err.in_doubt);
	ok(kv_group_start(t.a.engine, &options.group, &err), &err);
	ok(kv_write_blocks_async(t.to_c, t.a.cache, all_layers, from, to, N, &options, &op, &err),
	   &err);
	began = bar_begin();
	assert_int_equal(kv_group_end(options.group, OP_MS, &failed, &err), KV_ERR_TIMEOUT);
	within(OP_MS + 2 * STOP_MS + SOON_MS, "kv_group_end");
	assert_int_equal(failed, 1);
	/* The operation is the caller's, and ends when the device has answered. */
	assert_int_not_equal(kv_wait(op, KV_ACKED, ALL_MS, &err), 0);
	ok(kv_op_free(op, &err), &err);
	ok(kv_peer_close(t.a.peer, ALL_MS, &err), &err);
	ok(kv_peer_close(t.to_c, ALL_MS, &err), &err);
	fake_slow_teardown(0, 0);
	fake_mute(0, false);
	three_close(&t);
}

/* In that time, unless the machine has not given it. */
static void closes_within(struct kv_peer *peer, int64_t ms)
{
	struct kv_error err;
	int ret;

	began = bar_begin();
	ret = kv_peer_close(peer, ms, &err);
	within(ms + SOON_MS, "kv_peer_close");
	if (ret == KV_ERR_BUSY && bar_ms(began) < ms * BAR_FACTOR)
		ret = kv_peer_close(peer, ALL_MS, &err);
	ok(ret, &err);
}

/* A writer that nobody hears any more, and less time than the last messages of a fence may have. */
CASE(blocks_of_a_silent_writer_come_back_at_once)
{
	static const int64_t ids[] = { 3, 4 };
	struct kv_lease *lease;
	struct kv_error err;
	struct three t;

	three_open(&t);
	ok(kv_blocks_open(t.a.peer, t.a.cache, ids, 2, 7, ALL_MS, &lease, &err), &err);
	ok(kv_blocks_open(t.to_c, t.a.cache, other, 1, 8, ALL_MS, &lease, &err), &err);
	fake_mute(0, true);
	began = bar_begin();
	ok(kv_revoke(lease, 20, &err), &err);
	within(20 + SOON_MS, "kv_revoke");
	closes_within(t.a.peer, CLOSE_MS / 2);
	closes_within(t.to_c, CLOSE_MS / 2);
	fake_mute(0, false);
	three_close(&t);
}

/* The threads that a close has left to their verbs have ended, too. */
static void await_queue_pairs(void)
{
	int64_t end = kv_deadline_ns(ALL_MS);
	struct fake_counts counts;

	for (fake_counts(&counts); counts.qps || counts.mrs; fake_counts(&counts)) {
		assert_true(kv_now_ns() < end);
		poll(NULL, 0, 1);
	}
}

CASE(an_engine_closes_without_waiting_for_each_queue_pair)
{
	struct three t;
	bool in_time;

	three_open(&t);
	for (int i = 0; i < PEERS; i++)
		node_connect(&t.a, t.b.port);
	fake_slow_teardown(0, CLOSE_MS);
	began = bar_begin();
	node_close(&t.a);
	within(2 * STOP_MS + SOON_MS, "kv_engine_close"); /* one after the other takes 5 s */
	in_time = kv_now_ns() / KV_NS_PER_MS - began.ms < STOP_MS;
	fake_slow_teardown(0, 0);
	node_close(&t.b);
	node_close(&t.c);
	await_queue_pairs();
	/* The context stays open if the device still had one of them when the close gave up. */
	assert_true(fake_end() || !in_time);
}

struct caller {
	struct three *t;
	struct kv_error err;
	int ret;
	bool in_time;
	pthread_t thread;
};

static void *call(void *arg)
{
	struct caller *c = arg;
	struct kv_options options = KV_INIT(kv_options);
	struct bar since = bar_begin();

	options.timeout_ms = OP_MS;
	c->ret = kv_write_blocks(c->t->a.peer, c->t->a.cache, all_layers, from, to, N, &options,
				 &c->err);
	c->in_time = bar_holds(since, OP_MS + STOP_MS + SOON_MS, "kv_write_blocks");
	return NULL;
}

CASE(who_is_stuck_in_posting_is_pulled_out)
{
	struct caller caller;
	struct three t;
	struct kv_error err;
	struct kv_op *op;

	three_open(&t);
	op = begin_write(&t, 10000);
	ok(kv_wait(op, KV_ACKED, ALL_MS, &err), &err);
	ok(kv_op_free(op, &err), &err);
	caller = (struct caller){ .t = &t };
	fake_stick(0, true);
	assert_int_equal(pthread_create(&caller.thread, NULL, call, &caller), 0);
	for (int64_t end = kv_deadline_ns(ALL_MS); !fake_sticking(); poll(NULL, 0, 1))
		assert_true(kv_now_ns() < end);
	began = bar_begin();
	assert_int_equal(kv_peer_close(t.a.peer, OP_MS, &err), KV_ERR_BUSY);
	within(OP_MS + SOON_MS, "kv_peer_close");
	pthread_join(caller.thread, NULL);
	fake_stick(0, false);
	assert_int_equal(caller.ret, KV_ERR_TIMEOUT);
	assert_true(caller.in_time);
	others_notice_nothing(&t);
	assert_int_equal(kv_write_blocks(t.a.peer, t.a.cache, all_layers, from, to, N, NULL, &err),
			 KV_ERR_PEER_LOST);
	assert_non_null(strstr(err.message, "had not taken work requests"));
	ok(kv_peer_close(t.a.peer, ALL_MS, &err), &err);
	three_close(&t);
}

/*
 * The device neither returns from posting nor breaks a queue pair quickly. It has four of them, and
 * each read goes to the next one; the one that the call is in is the first to be broken.
 */
CASE(who_is_stuck_waits_for_one_queue_pair_at_most)
{
	struct kv_options options = KV_INIT(kv_options);
	struct kv_error err;
	struct three t;
	uint64_t changed;

	setenv("KVCACHE_IB_LANES", "4", 1);
	three_open(&t);
	setenv("KVCACHE_IB_LANES", "1", 1);
	for (int i = 0; i < 3; i++)
		ok(kv_read_blocks(t.a.peer, t.a.cache, (struct kv_layers){ 0, 1 }, other, other, 1,
				  NULL, &err),
		   &err);
	options.timeout_ms = OP_MS;
	fake_slow_teardown(0, TEARDOWN_MS);
	fake_stick(0, true);
	changed = fake_verb_calls(FAKE_modify_qp);
	assert_int_equal(
		kv_read_blocks(t.a.peer, t.a.cache, all_layers, from, to, N, &options, &err),
		KV_ERR_TIMEOUT);
	assert_true(fake_verb_calls(FAKE_modify_qp) - changed <= 1);
	fake_slow_teardown(0, 0);
	fake_stick(0, false);
	ok(kv_peer_close(t.a.peer, ALL_MS, &err), &err);
	three_close(&t);
}

/* The thread that is to pull it out cannot be had at first. */
CASE(who_is_stuck_is_pulled_out_when_there_are_threads_again)
{
	struct kv_options options = KV_INIT(kv_options);
	struct kv_error err;
	struct three t;

	three_open(&t);
	options.timeout_ms = OP_MS;
	kv_fault_arm(KV_FAULT_IB_ASIDE, 1);
	fake_stick(0, true);
	began = bar_begin();
	assert_int_equal(
		kv_write_blocks(t.a.peer, t.a.cache, all_layers, from, to, N, &options, &err),
		KV_ERR_TIMEOUT);
	within(OP_MS + STOP_MS + SOON_MS, "kv_write_blocks");
	assert_true(kv_fault_fired(KV_FAULT_IB_ASIDE));
	fake_stick(0, false);
	ok(kv_peer_close(t.a.peer, ALL_MS, &err), &err);
	three_close(&t);
}

/* Nobody else is there to notice: no service thread, no other call. */
CASE(a_caller_alone_is_pulled_out_too)
{
	static const struct fake_config config = { .hosts = 2, .threads = true };
	struct kv_engine_config caller_mode = KV_INIT(kv_engine_config);
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_options options = KV_INIT(kv_options);
	struct node a, b;
	struct kv_error err;

	caller_mode.progress = KV_PROGRESS_CALLER;
	options.timeout_ms = OP_MS;
	fake_begin(&config);
	fake_host(1);
	node_open(&b, 2, NULL, NULL);
	node_listen(&b);
	fake_host(0);
	node_open(&a, 1, NULL, &caller_mode);
	node_connect(&a, b.port);
	ok(kv_write_blocks(a.peer, a.cache, all_layers, from, to, N, NULL, &err), &err);
	fake_stick(0, true);
	began = bar_begin();
	assert_int_equal(kv_write_blocks(a.peer, a.cache, all_layers, from, to, N, &options, &err),
			 KV_ERR_TIMEOUT);
	within(OP_MS + STOP_MS + SOON_MS, "kv_write_blocks");
	began = bar_begin();
	ok(kv_peer_info(a.peer, &info, &err), &err);
	within(SOON_MS, "kv_peer_info");
	ok(kv_peer_close(a.peer, ALL_MS, &err), &err);
	/* A message of its own, the goodbye, is not an operation and has the call's deadline. */
	fake_stick(0, false);
	node_connect(&a, b.port);
	fake_stick(0, true);
	began = bar_begin();
	kv_peer_close(a.peer, OP_MS, &err);
	within(OP_MS + STOP_MS + SOON_MS, "kv_peer_close");
	began = bar_begin();
	node_close(&a);
	within(2 * STOP_MS + SOON_MS, "kv_engine_close");
	fake_stick(0, false);
	node_close(&b);
	assert_true(fake_end());
}

static int is_connected(struct kv_peer *peer)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_error err;

	ok(kv_peer_info(peer, &info, &err), &err);
	return info.connected;
}

/*
 * With nobody else to serve them a caller serves all peers while it waits for one, and is stuck
 * with the acknowledgements of others. Its deadline counts there, not the engine's for calls that
 * have none, which is far away here; and it counts once, not for each of them.
 */
CASE(a_caller_that_serves_others_is_pulled_out_at_its_own_deadline)
{
	enum { OTHERS = 2, ALL };
	static const struct fake_config config = { .hosts = ALL + 1, .threads = true };
	static const char *const list[] = { "KVCACHE_OP_TIMEOUT_MS=3600000", NULL };
	struct kv_engine_config caller_mode = KV_INIT(kv_engine_config);
	struct kv_options options = KV_INIT(kv_options);
	struct kv_op *op, *in;
	struct node a, b[ALL];
	struct kv_peer *peer[ALL];
	struct kv_error err;
	int64_t deadline_ns;

	caller_mode.progress = KV_PROGRESS_CALLER;
	caller_mode.options = list;
	options.timeout_ms = ALL_MS;
	fake_begin(&config);
	node_open(&a, 1, NULL, &caller_mode);
	for (int i = 0; i < ALL; i++) {
		fake_host(i + 1);
		node_open(&b[i], (unsigned int)i + 2, NULL, NULL);
		node_listen(&b[i]);
		fake_host(0);
		node_connect(&a, b[i].port);
		peer[i] = a.peer;
		node_await_peer(&b[i]);
	}
	fake_mute(ALL, true); /* it does not acknowledge; the others wait for this end to do so */
	ok(kv_write_blocks_async(a.peer, a.cache, all_layers, from, to, N, &options, &op, &err),
	   &err);
	for (int i = 0; i < OTHERS; i++) {
		ok(kv_write_blocks_async(b[i].peer, b[i].cache, all_layers, from, to, N, &options,
					 &in, &err),
		   &err);
		ok(kv_wait(in, KV_SENT, ALL_MS, &err), &err);
	}
	fake_settle();
	fake_stick(0, true);
	assert_int_equal(kv_wait(op, KV_ACKED, OP_MS, &err), KV_ERR_TIMEOUT);
	deadline_ns = kv_deadline_ns(ALL_MS);
	fake_stick(0, false);
	/* The one whose call was ended is lost as soon as its next turn has seen that. */
	while (is_connected(peer[0]) + is_connected(peer[1]) == OTHERS && kv_now_ns() < deadline_ns)
		kv_progress(a.engine, 1, NULL);
	assert_int_equal(is_connected(peer[0]) + is_connected(peer[1]), 1);
	fake_mute(ALL, false);
	node_close(&a);
	for (int i = 0; i < ALL; i++)
		node_close(&b[i]);
	assert_true(fake_end());
}

int main(int argc, char **argv)
{
	setenv("KVCACHE_TRANSPORT", "ib", 1);
	setenv("KVCACHE_IB_LANES", "1", 1);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return run_cases(NULL, NULL);
}
