/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_stuck_test.c -- a peer whose memory answers no page fault (userfaultfd): calls keep their
 * deadlines, other peers notice nothing, and the blocks stay in quarantine
 */
#include "kv_rig.h"

#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "lib/bar.h"
#include "lib/process.h"
#include "lib/stuck.h"

enum { N = 3, DEADLINE_MS = 1000 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[N] = { 5, 6, 0 }, to[N] = { 10, 11, 95 };
/* Of this side, for other peers: a call that is stuck may move bytes of `from` at any time. */
static const int64_t beside[N] = { 20, 22, 21 };

static uint32_t start(struct child *child)
{
	uint32_t port;

	child_start(child, rig_stuck_receiver, NULL);
	child_receive(child->fd, &port, sizeof(port));
	return port;
}

static void go(struct child *child, char word)
{
	child_send(child->fd, &word, 1);
	child_receive(child->fd, &word, 1);
}

static void open_writer(struct node *a, int progress)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct shape shape = rig_shape;

	config.progress = progress;
	shape.malloced = true;
	node_open(a, 1, &shape, &config);
}

CASE(a_call_into_stuck_memory_keeps_its_deadline)
{
	static const int modes[] = { KV_PROGRESS_AUTO, KV_PROGRESS_CALLER };

	for (int i = 0; i < 4; i++) {
		bool reads = i & 1, after_others = i == 1 || i == 2;
		struct kv_options opts = KV_INIT(kv_options);
		struct kv_peer_info info = KV_INIT(kv_peer_info);
		struct child stuck, sound;
		uint32_t port = start(&stuck), other_port = start(&sound);
		struct kv_peer *other;
		struct kv_error err;
		struct node a;
		struct bar begun;
		int64_t deadline;
		int ret;

		open_writer(&a, modes[i / 2]);
		node_connect(&a, port);
		ok(kv_connect(a.engine, NULL, other_port, RIG_TIMEOUT_MS, &other, &err), &err);
		if (after_others) /* the pages were reached before, and are gone now */
			for (int k = 0; k < 3; k++)
				ok(kv_write_blocks(a.peer, a.cache, all_layers, from, to, N, NULL,
						   &err),
				   &err);
		go(&stuck, 1);
		go(&sound, 0);
		opts.timeout_ms = DEADLINE_MS;
		begun = bar_begin();
		deadline = kv_deadline_ns(DEADLINE_MS - 100);
		ret = reads ? kv_read_blocks(a.peer, a.cache, all_layers, from, to, N, &opts, &err)
			    : kv_write_blocks(a.peer, a.cache, all_layers, from, to, N, &opts,
					      &err);
		assert_int_equal(ret, KV_ERR_TIMEOUT);
		assert_true(kv_now_ns() >= deadline);
		assert_true(bar_holds(begun, DEADLINE_MS + 800, "a call into stuck memory"));
		/* The other peer is served meanwhile and afterwards. */
		begun = bar_begin();
		ok(kv_write_blocks(other, a.cache, all_layers, beside, to, N, NULL, &err), &err);
		ok(kv_peer_info(a.peer, &info, &err), &err);
		assert_true(bar_holds(begun, 1000, "another peer"));
		/* Bytes may still move: the door does not close before the process is gone. */
		assert_int_equal(kv_peer_close(a.peer, 300, &err), KV_ERR_BUSY);
		child_kill(&stuck, SIGKILL);
		assert_int_equal(child_join(&stuck), 128 + SIGKILL);
		ok(kv_peer_close(a.peer, RIG_TIMEOUT_MS, &err), &err);
		child_kill(&sound, SIGKILL);
		child_join(&sound);
		node_close(&a);
	}
}

static void *kept; /* for good: the call that was left behind reads it until the child is gone */

CASE(an_engine_is_closed_while_a_call_is_stuck)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_op *op;
	struct child stuck;
	struct kv_error err;
	struct node a;
	struct bar begun;
	uint32_t port = start(&stuck);

	open_writer(&a, KV_PROGRESS_AUTO);
	kept = a.mem;
	a.shape.malloced = false;
	node_connect(&a, port);
	go(&stuck, 1);
	opts.timeout_ms = 60000;
	ok(kv_write_blocks_async(a.peer, a.cache, all_layers, from, to, N, &opts, &op, &err), &err);
	begun = bar_begin();
	node_close(&a);
	assert_true(bar_holds(begun, 5000, "kv_engine_close"));
	child_kill(&stuck, SIGKILL);
	child_join(&stuck);
}

/* ------------------------------------------------------- more calls than there are threads */

enum { CROWD = 70, THREADS_MAX = 64, FDS_OF_A_PEER = 6, CROWD_MS = 1500 };

/* Nearly all blocks of a peer that answers, and few, there and back. */
static void is_served(struct node *a, struct kv_peer *peer)
{
	struct bar begun = bar_begin();
	int64_t many[RIG_BLOCKS];
	struct kv_error err;
	size_t n = 0;

	for (int i = 0; i < RIG_BLOCKS; i++)
		if (i != from[0] && i != from[1] && i != from[2])
			many[n++] = i;
	ok(kv_write_blocks(peer, a->cache, all_layers, many, many, n, NULL, &err), &err);
	ok(kv_write_blocks(peer, a->cache, all_layers, beside, to, N, NULL, &err), &err);
	ok(kv_read_blocks(peer, a->cache, all_layers, many, many, n, NULL, &err), &err);
	assert_true(bar_holds(begun, 1000, "another peer"));
}

/* One process connects as often as it likes, and no call into it returns. */
static void crowd_in(int progress)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_peer *peer[CROWD], *other;
	struct child stuck, sound;
	struct kv_op *op[CROWD];
	uint32_t port = start(&stuck), other_port = start(&sound);
	struct kv_error err;
	struct node a;
	struct bar begun;
	int64_t end;
	int before;

	open_writer(&a, progress);
	before = count_descriptors();
	ok(kv_connect(a.engine, NULL, other_port, RIG_TIMEOUT_MS, &other, &err), &err);
	for (int i = 0; i < CROWD; i++)
		ok(kv_connect(a.engine, NULL, port, RIG_TIMEOUT_MS, &peer[i], &err), &err);
	is_served(&a, other);
	go(&stuck, 1);
	go(&sound, 0);
	opts.timeout_ms = slow_ms(CROWD_MS);
	begun = bar_begin();
	end = kv_deadline_ns(opts.timeout_ms);
	for (int i = 0; i < CROWD; i++)
		ok(kv_write_blocks_async(peer[i], a.cache, all_layers, from, to, N, &opts, &op[i],
					 &err),
		   &err);
	while (threads_named("kvrail copy") < THREADS_MAX) {
		assert_true(kv_now_ns() < end);
		assert_true(kv_progress(a.engine, 1, &err) >= 0);
	}
	for (int i = 0; i < 10; i++)
		is_served(&a, other);
	for (int i = 0; i < CROWD; i++)
		assert_int_equal(kv_wait(op[i], KV_ACKED, RIG_TIMEOUT_MS, &err), KV_ERR_TIMEOUT);
	assert_true(bar_holds(begun, CROWD_MS + 2000, "every call of the crowd"));
	assert_int_equal(threads_named("kvrail copy"), THREADS_MAX);
	assert_in_range(count_descriptors() - before, CROWD, (CROWD + 1) * FDS_OF_A_PEER);
	is_served(&a, other);
	for (int i = 0; i < CROWD; i++)
		ok(kv_op_free(op[i], &err), &err);
	child_kill(&stuck, SIGKILL);
	child_join(&stuck);
	is_served(&a, other);
	node_close(&a);
	child_kill(&sound, SIGKILL);
	child_join(&sound);
}

CASE(more_calls_are_stuck_than_there_are_threads)
{
	crowd_in(KV_PROGRESS_AUTO);
}

CASE(more_calls_are_stuck_and_no_service_thread_is_there)
{
	crowd_in(KV_PROGRESS_CALLER);
}

int main(int argc, char **argv)
{
	if (!stuck_can())
		return 77;
	setenv("KVCACHE_SHM_PATH", "cma", 1);
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	return run_cases(NULL, NULL);
}
