/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr_tcp_streams.c -- one of several streams is late: the notify, the end of the operation and what
 * follows wait for its bytes; many bytes over all of them, by threads
 */
#include <stdlib.h>

#include "base/fault.h"
#include "lib/test.h"
#include "tcp/tcp.h"
#include "tr_pair.h"

enum { REGION = 1 << 16, LEN = 5000, SEED = 1, TARGET_SEED = 2, LOOKS = 50 };

/* The block goes by the second stream, whose socket takes nothing for now. */
static struct tr_op *write_late(struct pair_side *s, struct tcp_data *d, unsigned int flags)
{
	const struct tr_span span = { .local = 100, .remote = 200, .len = LEN };
	struct kv_error err;
	struct tr_op *op;

	d->turn = 1;
	d->dealt = 0;
	d->stream[1].queue.full = true;
	PAIR_CHECK(!tr_op_begin(s->conn, TR_WRITE, 7, &op, &err));
	PAIR_CHECK(tr_op_add(op, s->mem, s->rmem, &span, 1, &err) == 1);
	PAIR_CHECK(!tr_op_commit(op, flags, 4711, &err));
	PAIR_CHECK(queue_pending(&d->stream[1].queue) && !queue_pending(&d->stream[0].queue));
	PAIR_CHECK(d->op[op->index].waiting);
	return op;
}

static void writer(struct pair_side *s)
{
	struct tcp_conn *tc;

	pair_up(s);
	tc = tr_conn_priv(s->conn);
	pair_fill(s->base, SEED, 0, REGION);
	pair_meet(s);
	write_late(s, tc->data, TR_NOTIFY);
	pair_say(s, 1);
	PAIR_CHECK(pair_hear(s) == 2); /* nothing came of it there */
	pair_wait_ended(s, 1);	       /* progress tries the socket again */
	PAIR_CHECK(s->last_end == TR_WRITTEN);
	pair_meet(s);
	/* The same, to the end over there; then a cancelled one. */
	write_late(s, tc->data, TR_NOTIFY | TR_LANDED);
	pair_wait_ended(s, 2);
	PAIR_CHECK(s->last_end == TR_WRITTEN && tc->data->stream[1].landed);
	PAIR_CHECK(!tr_op_cancel(write_late(s, tc->data, TR_NOTIFY), INT64_MAX, &s->cause));
	pair_wait_ended(s, 3);
	pair_meet(s);
	pair_down(s);
}

static void reader(struct pair_side *s)
{
	pair_up(s);
	pair_fill(s->base, TARGET_SEED, 0, REGION);
	pair_meet(s);
	PAIR_CHECK(pair_hear(s) == 1); /* the notify is here, or on its way */
	for (int i = 0; i < LOOKS; i++)
		pair_poll(s, 1);
	PAIR_CHECK(!s->notifies && pair_differs(s->base, TARGET_SEED, 0, REGION) < 0);
	pair_say(s, 2);
	pair_wait_notifies(s, 1);
	PAIR_CHECK(s->notified[0] == 4711);
	PAIR_CHECK(pair_differs(s->base + 200, SEED, 100, LEN) < 0);
	PAIR_CHECK(pair_differs(s->base, TARGET_SEED, 0, 200) < 0);
	PAIR_CHECK(pair_differs(s->base + 200 + LEN, TARGET_SEED, 200 + LEN, REGION - 200 - LEN) <
		   0);
	pair_meet(s);
	pair_wait_notifies(s, 3);
	pair_meet(s);
	pair_down(s);
}

CASE(what_follows_waits_for_the_stream_that_is_late)
{
	struct pair_config config = { .parent_path = "tcp",
				      .child_path = "tcp",
				      .region = REGION,
				      .option = "KVCACHE_TCP_STREAMS=2" };

	assert_int_equal(pair_run(&config, writer, reader), 0);
}

enum { MUCH = 8 << 20, PIECE = 64 << 10, ROUNDS = 2 };

static struct tr_op *begin_much(struct pair_side *s, int kind, unsigned int round)
{
	struct tr_op *op = pair_begin(s, kind, round);

	/* In another order, each to where it lies here. */
	for (uint64_t i = 0; i < MUCH / PIECE; i++) {
		uint64_t at = (i * 77 + round) % (MUCH / PIECE) * PIECE;
		struct tr_span span = { at, at, PIECE };

		pair_add(s, op, &span, 1);
	}
	return op;
}

struct may_start {
	unsigned int threads;
	uint32_t fails; /* the first that does not start; 0: none */
};

static void move_much(struct pair_side *s)
{
	const struct may_start *may = s->config->arg;
	struct tcp_conn *tc;

	pair_up(s);
	tc = tr_conn_priv(s->conn);
#ifdef KVRAIL_FAULTS
	kv_fault_arm(KV_FAULT_TCP_THREAD, may->fails);
#endif
	for (unsigned int i = 0; i < ROUNDS; i++) {
		pair_fill(s->base, SEED + i, 0, MUCH);
		pair_commit(s, begin_much(s, TR_WRITE, i), TR_NOTIFY | TR_LANDED, i);
		pair_wait_ended(s, 2 * i + 1);
		PAIR_CHECK(s->last_end == TR_WRITTEN);
		pair_meet(s); /* it has looked at them, and has others now */
		pair_commit(s, begin_much(s, TR_READ_OP, i), 0, 0);
		pair_wait_ended(s, 2 * i + 2);
		PAIR_CHECK(s->last_end == TR_READ &&
			   pair_differs(s->base, TARGET_SEED + i, 0, MUCH) < 0);
		pair_meet(s);
	}
	PAIR_CHECK(tc->ctx->calls.started == may->threads);
	pair_down(s);
}

static void have_much(struct pair_side *s)
{
	pair_up(s);
	for (unsigned int i = 0; i < ROUNDS; i++) {
		pair_wait_notifies(s, i + 1);
		PAIR_CHECK(pair_differs(s->base, SEED + i, 0, MUCH) < 0);
		pair_fill(s->base, TARGET_SEED + i, 0, MUCH);
		pair_meet(s);
		pair_meet(s);
	}
	pair_down(s);
}

static void much_is_moved(struct may_start may)
{
	struct pair_config config = { .parent_path = "tcp",
				      .child_path = "tcp",
				      .region = MUCH,
				      .option = "KVCACHE_TCP_STREAMS=3",
				      .arg = &may };

	setenv("KVCACHE_TCP_THREADS", "2", 1);
	assert_int_equal(pair_run(&config, move_much, have_much), 0);
}

CASE(what_several_streams_carry_is_moved_by_threads_too)
{
	much_is_moved((struct may_start){ .threads = 2 });
}

#ifdef KVRAIL_FAULTS
CASE(without_threads_their_owner_moves_it_alone)
{
	much_is_moved((struct may_start){ .fails = 1 });
}
#endif
