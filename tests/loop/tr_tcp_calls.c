/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr_tcp_calls.c -- system calls that move the bytes of an operation over TCP, at each end: a block
 * and its notify leave by one and come by one, and each further stream costs one more; whom what
 * comes wakes, and how long its owner looks before it sleeps
 */

#include <unistd.h>

#include "base/clock.h"
#include "lib/test.h"
#include "tr_pair.h"

enum { BLOCK = 4096, BLOCKS = 200, REGION = 4 << 20, SEED = 1 };

struct cost {
	unsigned int blocks, streams;
	uint64_t out_most;  /* calls of the writer */
	bool comes_at_once; /* by one call of the receiver */
};

static const struct cost costs[] = {
	{ 1, 1, 1, true },
	{ BLOCKS, 1, 2, false }, /* 800 KiB: sent from 512 KiB on, and with the commit */
	{ BLOCKS, 3, 4, false },
};

static uint64_t calls(struct pair_side *s)
{
	struct tr_counters counters;

	tr_conn_counters(s->conn, &counters);
	return counters.syscalls;
}

static void write_blocks(struct pair_side *s)
{
	const struct cost *cost = s->config->arg;
	struct tr_span span[BLOCKS];
	struct kv_error err;
	struct tr_op *op;
	uint64_t before;

	pair_up(s);
	pair_fill(s->base, SEED, 0, REGION);
	for (uint64_t i = 0; i < cost->blocks; i++)
		span[i] = (struct tr_span){ i * 2 * BLOCK, i * 2 * BLOCK, BLOCK };
	pair_meet(s);
	before = calls(s);
	PAIR_CHECK(!tr_op_begin(s->conn, TR_WRITE, 1, &op, &err));
	PAIR_CHECK(tr_op_add(op, s->mem, s->rmem, span, cost->blocks, &err) == cost->blocks);
	PAIR_CHECK(!tr_op_commit(op, TR_NOTIFY, 1, &err));
	PAIR_CHECK(calls(s) - before <= cost->out_most);
	pair_wait_ended(s, 1);
	pair_say(s, 1);
	pair_meet(s);
	pair_down(s);
}

static void be_written(struct pair_side *s)
{
	const struct cost *cost = s->config->arg;
	uint64_t before;

	pair_up(s);
	pair_meet(s);
	PAIR_CHECK(pair_hear(s) == 1); /* all of it is here, or on its way */
	before = calls(s);
	if (cost->comes_at_once) {
		PAIR_CHECK(tr_conn_wait(s->conn, (int)PAIR_WAIT_MS));
		pair_poll(s, 0);
		PAIR_CHECK(s->notifies == 1 && calls(s) - before == 1);
	}
	pair_wait_notifies(s, 1);
	for (uint64_t i = 0; i < cost->blocks; i++)
		PAIR_CHECK(pair_differs(s->base + i * 2 * BLOCK, SEED, i * 2 * BLOCK, BLOCK) < 0);
	pair_meet(s);
	pair_down(s);
}

CASE(blocks_and_their_notify_cost_as_few_calls_as_they_can)
{
	for (size_t i = 0; i < sizeof(costs) / sizeof(costs[0]); i++) {
		char streams[64];
		struct pair_config config = { .parent_path = "tcp",
					      .child_path = "tcp",
					      .region = REGION,
					      .option = streams,
					      .arg = (void *)(uintptr_t)&costs[i] };

		snprintf(streams, sizeof(streams), "KVCACHE_TCP_STREAMS=%u", costs[i].streams);
		assert_int_equal(pair_run(&config, write_blocks, be_written), 0);
	}
}

static void notify_once(struct pair_side *s)
{
	pair_up(s);
	pair_meet(s);
	pair_commit(s, pair_begin(s, TR_WRITE, 1), TR_NOTIFY, 1);
	pair_say(s, 1);
	pair_meet(s);
	pair_down(s);
}

static int is_readable(const struct pair_side *s, int ms)
{
	return tr_conn_wait(s->conn, ms);
}

/* Its owner polls, and sleeps at the socket itself if it has to poll for long. */
static void poll_on(struct pair_side *s)
{
	int slept = 0;

	pair_up(s);
	tr_conn_poll_on(s->conn);
	for (int i = 0; i < 64; i++)
		slept += tr_conn_await(s->conn, 1000, 1000, -1);
	PAIR_CHECK(slept > 0 && slept < 64);
	pair_meet(s);
	PAIR_CHECK(pair_hear(s) == 1); /* it is here */
	PAIR_CHECK(is_readable(s, 0) == 0);
	tr_conn_arm(s->conn);
	PAIR_CHECK(is_readable(s, (int)PAIR_WAIT_MS) == 1);
	pair_wait_notifies(s, 1);
	pair_meet(s);
	pair_down(s);
}

CASE(what_comes_to_an_owner_who_polls_wakes_nobody_else)
{
	struct pair_config config = { .parent_path = "tcp", .child_path = "tcp", .region = REGION };

	assert_int_equal(pair_run(&config, poll_on, notify_once), 0);
}

/* One descriptor more ends the sleep: the test's own timeout tells that it does. */
static void be_woken(struct pair_side *s)
{
	int pipes[2];

	PAIR_CHECK(!pipe(pipes));
	PAIR_CHECK(write(pipes[1], "", 1) == 1);
	PAIR_CHECK(tr_conn_await(s->conn, 0, INT64_C(3600000) * KV_NS_PER_MS, pipes[0]));
	close(pipes[0]);
	close(pipes[1]);
}

/* It may try first whether looking is enough. */
static void look_in_vain(struct pair_side *s)
{
	unsigned int looks = 0;

	pair_up(s);
	tr_conn_poll_on(s->conn);
	while (!tr_conn_await(s->conn, KV_NS_PER_MS, 1, -1))
		looks++;
	PAIR_CHECK(looks < 64);
	be_woken(s);
	tr_conn_poll_on(s->conn);
	be_woken(s); /* who would not look at all does not */
	pair_meet(s);
	pair_down(s);
}

static void say_nothing(struct pair_side *s)
{
	pair_up(s);
	pair_meet(s);
	pair_down(s);
}

CASE(who_looks_in_vain_sleeps_and_another_descriptor_ends_that)
{
	struct pair_config config = { .parent_path = "tcp", .child_path = "tcp", .region = REGION };

	assert_int_equal(pair_run(&config, look_in_vain, say_nothing), 0);
}
