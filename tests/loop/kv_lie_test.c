/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_lie_test.c -- a peer whose messages contradict each other, or say what cannot be: dropped with
 * PROTOCOL, and nothing of it reaches the application
 *
 * Node a's messages are written by hand, under its claim, so that its engine hears and says nothing
 * meanwhile; everything below is as it should be.
 */
#include "kv_rig.h"

#include <poll.h>

#include "base/clock.h"
#include "kv_api.h"

enum { N = 2 };
#define OP(slot, generation) ((uint64_t)(generation) << 16 | (slot))

static const int64_t opened[N] = { 20, 21 };

static struct pair p;
static struct kv_lease *lease; /* of b, for a */
static const struct kv_msg begin_ok = {
	.type = KV_MSG_BEGIN,
	.begin = { .op = OP(3, 1),
		   .cache = 0,
		   .count = RIG_LAYERS,
		   .blocks = N,
		   .bytes = (512 + 320) * N * RIG_LAYERS,
		   .tag = 5 },
};

static void hold(struct node *node)
{
	assert_true(kv_claim_until(&node->peer->claim, kv_deadline_ns(RIG_TIMEOUT_MS)));
}

static void open_pair(const char *arrivals, int writes)
{
	const char *options[] = { arrivals, NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_options opts = KV_INIT(kv_options);

	config.options = options;
	pair_open(&p, NULL, arrivals ? &config : NULL);
	ok(kv_blocks_open(p.b.peer, p.b.cache, opened, N, 1, RIG_TIMEOUT_MS, &lease, &p.b.err),
	   &p.b.err);
	/* a knows all of it, so that it may name it */
	opts.lease = kv_lease_id(lease);
	for (int i = 0; i < writes; i++)
		ok(kv_write_blocks(p.a.peer, p.a.cache, (struct kv_layers){ 0, 0 }, opened, opened,
				   N, &opts, &p.a.err),
		   &p.a.err);
	hold(&p.a);
}

static int setup(void **state)
{
	struct kv_arrival arrival;

	open_pair(NULL, 1);
	assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
	return 0;
}

static int teardown(void **state)
{
	kv_claim_release(&p.a.peer->claim);
	pair_close(&p);
	return 0;
}

static void say(struct kv_msg msg)
{
	assert_int_equal(kv_peer_send(p.a.peer, &msg), 0);
}

/* Commits an operation without any bytes. */
static void notify(uint64_t op_id)
{
	struct tr_op *op;

	assert_int_equal(tr_op_begin(p.a.peer->conn, TR_WRITE, 0xffff, &op, NULL), 0);
	assert_int_equal(tr_op_commit(op, TR_NOTIFY, op_id, NULL), 0);
}

static void say_begin(uint64_t op, uint64_t lease_id)
{
	struct kv_msg msg = begin_ok;

	msg.begin.op = op;
	msg.begin.lease = lease_id;
	say(msg);
}

static void say_abort(uint64_t op, uint64_t lease_id, int status)
{
	say((struct kv_msg){ .type = KV_MSG_ABORT, .abort = { op, lease_id, status } });
}

static void say_id(uint8_t type, uint64_t id)
{
	say((struct kv_msg){ .type = type, .id = { id } });
}

/* b drops a, with that cause, and no arrival was made of it. */
static void dropped(void)
{
	struct kv_arrival arrival;
	int code;

	assert_true(await_kind(&p.b, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
	hold(&p.b);
	code = p.b.peer->error.code;
	kv_peer_release(p.b.peer);
	assert_int_equal(code, KV_ERR_PROTOCOL);
	assert_false(next_arrival(&p.b, &arrival, 0));
}

/* ---------------------------------------------------------------- BEGIN */

CASE_WITH(a_begin_agrees_with_the_cache, setup, teardown)
{
	struct kv_msg bad[6];

	for (int i = 0; i < 6; i++)
		bad[i] = begin_ok;
	bad[0].begin.bytes--;
	bad[1].begin.bytes = 0;
	bad[2].begin.first = 1; /* one layer more than there are */
	bad[3].begin.cache = 7;
	bad[4].begin.blocks = RIG_BLOCKS + 1;
	bad[4].begin.bytes = (512 + 320) * (RIG_BLOCKS + 1) * RIG_LAYERS;
	bad[5].begin.op = OP(KV_OPS_MAX, 1);
	for (int i = 0; i < 6; i++) {
		say(bad[i]);
		dropped();
		if (i < 5) {
			teardown(NULL);
			setup(NULL);
		}
	}
}

CASE_WITH(a_begin_names_a_lease_that_allows_it, setup, teardown)
{
	struct kv_msg msg = begin_ok;

	msg.begin.lease = kv_lease_id(lease);
	msg.begin.blocks = N + 1;
	msg.begin.bytes = (512 + 320) * (N + 1) * RIG_LAYERS;
	say(msg);
	dropped();
}

CASE_WITH(a_begin_names_no_lease_that_was_never_given, setup, teardown)
{
	say_begin(OP(3, 1), kv_lease_id(lease) + (UINT64_C(1) << 40));
	dropped();
}

CASE_WITH(an_operation_begins_once, setup, teardown)
{
	say_begin(OP(3, 1), 0);
	say_begin(OP(3, 2), 0);
	dropped();
}

CASE_WITH(a_slot_does_not_go_back_to_an_older_operation, setup, teardown)
{
	say_begin(OP(3, 7), 0);
	say_abort(OP(3, 7), 0, KV_ERR_CANCELLED);
	say_begin(OP(3, 7), 0);
	dropped();
}

/* ---------------------------------------------------------------- commits */

CASE_WITH(a_commit_is_of_the_operation_that_began, setup, teardown)
{
	say_begin(OP(3, 2), 0);
	notify(OP(3, 1));
	dropped();
}

CASE_WITH(a_commit_of_no_slot, setup, teardown)
{
	notify(OP(KV_OPS_MAX, 1));
	dropped();
}

CASE_WITH(a_begin_that_follows_another_operations_commit, setup, teardown)
{
	notify(OP(3, 1));
	say_begin(OP(3, 2), 0);
	dropped();
}

/* The queue of arrivals is full: its acknowledgement is held back. */
CASE_WITH(a_commit_that_is_held_back_is_not_taken_back, NULL, teardown)
{
	struct kv_arrival arrival;
	int64_t deadline = kv_deadline_ns(RIG_TIMEOUT_MS);
	bool held = false;
	int code;

	open_pair("KVCACHE_ARRIVALS=64", 64);
	say_begin(OP(100, 1), 0);
	notify(OP(100, 1));
	while (!held && kv_now_ns() < deadline) {
		hold(&p.b);
		held = kv_bit(p.b.peer->link->withheld, 100);
		kv_peer_release(p.b.peer);
	}
	assert_true(held);
	say_abort(OP(100, 1), 0, KV_ERR_CANCELLED);
	say_begin(OP(100, 2), UINT64_C(1) << 16 | 9);
	do {
		hold(&p.b);
		code = p.b.peer->error.code;
		kv_peer_release(p.b.peer);
	} while (!code && kv_now_ns() < deadline);
	assert_int_equal(code, KV_ERR_PROTOCOL);
	while (next_arrival(&p.b, &arrival, 0))
		assert_true(!arrival.lease || arrival.lease == kv_lease_id(lease));
}

/* ---------------------------------------------------------------- ABORT */

CASE_WITH(an_abort_is_of_the_operation_that_began, setup, teardown)
{
	say_begin(OP(3, 2), 0);
	say_abort(OP(3, 1), 0, KV_ERR_CANCELLED);
	dropped();
}

CASE_WITH(an_abort_of_nothing, setup, teardown)
{
	say_abort(OP(3, 1), 0, KV_ERR_CANCELLED);
	dropped();
}

CASE_WITH(an_abort_has_a_cause, setup, teardown)
{
	say_begin(OP(3, 1), 0);
	say_abort(OP(3, 1), 0, 0);
	dropped();
}

CASE_WITH(an_abort_names_the_lease_of_its_begin, setup, teardown)
{
	say_begin(OP(3, 1), 0);
	say_abort(OP(3, 1), kv_lease_id(lease), KV_ERR_CANCELLED);
	dropped();
}

/* ---------------------------------------------------------------- ACK */

CASE_WITH(an_acknowledgement_of_what_was_not_committed, setup, teardown)
{
	say((struct kv_msg){ .type = KV_MSG_ACK, .ack = { 1, { { OP(9, 1), 0 } } } });
	dropped();
}

static bool second_write_is_committed(void)
{
	const struct kv_op *op;
	bool committed;

	hold(&p.b);
	op = p.b.peer->link->slot[0].op;
	committed = op && op->id == OP(0, 2) && op->committed;
	kv_peer_release(p.b.peer);
	return committed;
}

/* The slot is the same, the operation another one: it has not been acknowledged. */
CASE_WITH(an_acknowledgement_is_of_the_operation_that_has_the_slot_now, setup, teardown)
{
	const struct kv_layers all_layers = { 0, 0 };
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_lease *for_b;
	struct kv_op *op;

	kv_peer_release(p.a.peer);
	ok(kv_blocks_open(p.a.peer, p.a.cache, opened, N, 2, RIG_TIMEOUT_MS, &for_b, &p.a.err),
	   &p.a.err);
	opts.lease = kv_lease_id(for_b);
	opts.timeout_ms = RIG_TIMEOUT_MS;
	ok(kv_write_blocks(p.b.peer, p.b.cache, all_layers, opened, opened, N, &opts, &p.b.err),
	   &p.b.err);
	hold(&p.a);
	ok(kv_write_blocks_async(p.b.peer, p.b.cache, all_layers, opened, opened, N, &opts, &op,
				 &p.b.err),
	   &p.b.err);
	while (!second_write_is_committed())
		poll(NULL, 0, 1);
	say((struct kv_msg){ .type = KV_MSG_ACK, .ack = { 1, { { OP(0, 1), 0 } } } });
	dropped();
	assert_int_equal(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, NULL), KV_ERR_PEER_LOST);
	ok(kv_op_free(op, &p.b.err), &p.b.err);
}

/* ---------------------------------------------------------------- LEASE, IDS, REVOKE, REVOKED */

static void say_lease(uint64_t id, uint32_t blocks)
{
	say((struct kv_msg){ .type = KV_MSG_LEASE,
			     .lease = { .lease = id, .count = RIG_LAYERS, .blocks = blocks } });
}

static void say_ids(uint64_t id, uint32_t at, uint32_t first, uint16_t count)
{
	struct kv_msg msg = { .type = KV_MSG_IDS };

	msg.ids = (struct kv_msg_ids){ .lease = id, .at = at, .runs = 1 };
	msg.ids.run[0] = (struct kv_run){ first, count };
	say(msg);
}

#define LEASE_ID(serial, index) ((uint64_t)(serial) << 16 | (index))

CASE_WITH(leases_come_in_the_order_of_their_numbers, setup, teardown)
{
	say_lease(LEASE_ID(8, 0), 1);
	say_lease(LEASE_ID(7, 1), 1);
	dropped();
}

CASE_WITH(a_lease_of_more_blocks_than_there_are, setup, teardown)
{
	say_lease(LEASE_ID(8, 0), RIG_BLOCKS + 1);
	dropped();
}

CASE_WITH(a_lease_at_a_place_that_there_is_not, setup, teardown)
{
	say_lease(LEASE_ID(8, KV_LEASES_MAX), 1);
	dropped();
}

CASE_WITH(ids_come_once_and_within_the_cache, setup, teardown)
{
	say_lease(LEASE_ID(8, 0), 4);
	say_ids(LEASE_ID(8, 0), 0, 10, 2);
	say_ids(LEASE_ID(8, 0), 2, 11, 2); /* 11 is there already */
	dropped();
}

CASE_WITH(no_ids_follow_a_revoke, setup, teardown)
{
	say_lease(LEASE_ID(8, 0), 4);
	say_ids(LEASE_ID(8, 0), 0, 10, 2);
	say_id(KV_MSG_REVOKE, LEASE_ID(8, 0));
	say_ids(LEASE_ID(8, 0), 2, 12, 2);
	dropped();
}

CASE_WITH(a_lease_that_was_not_sent_is_not_revoked, setup, teardown)
{
	say_id(KV_MSG_REVOKE, LEASE_ID(8, 0));
	dropped();
}

CASE_WITH(a_lease_that_is_not_revoked_is_not_given_back, setup, teardown)
{
	say_id(KV_MSG_REVOKED, kv_lease_id(lease));
	dropped();
}

CASE_WITH(a_lease_is_not_given_back_while_an_operation_under_it_is_open, setup, teardown)
{
	hold(&p.b);
	kv_lease_stop(lease);
	kv_peer_progress(p.b.peer, true); /* sends REVOKE */
	kv_peer_release(p.b.peer);
	say_begin(OP(100, 1), kv_lease_id(lease));
	say_id(KV_MSG_REVOKED, kv_lease_id(lease));
	dropped();
}

/* ---------------------------------------------------------------- digests */

static void say_digests(uint64_t op, uint8_t count, uint32_t block)
{
	struct kv_msg msg = { .type = KV_MSG_DIGESTS, .digests = { .op = op, .count = count } };

	for (int i = 0; i < count; i++)
		msg.digests.block[i].block = block;
	say(msg);
}

CASE_WITH(digests_that_nobody_asked_for, setup, teardown)
{
	say_begin(OP(3, 1), 0);
	say_digests(OP(3, 1), 1, 0);
	dropped();
}

CASE_WITH(digests_of_no_commit, NULL, teardown)
{
	open_pair("KVCACHE_CHECKSUM=1", 0);
	say_begin(OP(3, 1), 0);
	say_digests(OP(3, 1), 1, 0); /* before the notify: the bytes may not be there */
	dropped();
}

CASE_WITH(a_digest_of_no_block, NULL, teardown)
{
	open_pair("KVCACHE_CHECKSUM=1", 0);
	say_begin(OP(3, 1), 0);
	notify(OP(3, 1));
	say_digests(OP(3, 1), 1, RIG_BLOCKS);
	dropped();
}

CASE_WITH(more_digests_than_blocks, NULL, teardown)
{
	open_pair("KVCACHE_CHECKSUM=1", 0);
	say_begin(OP(3, 1), 0);
	notify(OP(3, 1));
	say_digests(OP(3, 1), RIG_LAYERS * RIG_TENSORS * N + 1, 0);
	dropped();
}

CASE_WITH(a_proof_under_a_lease, NULL, teardown)
{
	struct kv_msg msg = begin_ok;

	open_pair("KVCACHE_CHECKSUM=1", 0);
	msg.type = KV_MSG_PROVE;
	msg.begin.lease = kv_lease_id(lease);
	say(msg);
	dropped();
}

CASE_WITH(a_wrong_block_of_what_was_not_written, setup, teardown)
{
	say((struct kv_msg){ .type = KV_MSG_WRONG, .wrong = { .op = OP(3, 1) } });
	dropped();
}

/* What a lost writer leaves undone is named before the loss is. */
CASE_WITH(a_begun_write_and_an_open_lease_are_named_at_the_loss, setup, teardown)
{
	struct kv_arrival arrival;

	say_begin(OP(3, 1), 0);
	tr_fence(p.a.peer->conn, KV_NO_DEADLINE, NULL);
	assert_true(await_kind(&p.b, KV_ARRIVAL_UNFINISHED, &arrival, RIG_TIMEOUT_MS));
	assert_int_equal(arrival.lease, kv_lease_id(lease));
	assert_int_equal(arrival.tag, 1);
	assert_int_equal(kv_poll_arrivals(p.b.engine, &arrival, 1, NULL), 1);
	assert_int_equal(arrival.kind, KV_ARRIVAL_UNFINISHED);
	assert_int_equal(arrival.lease, 0);
	assert_int_equal(arrival.tag, 5);
	assert_int_equal(arrival.blocks, N);
	assert_int_equal(arrival.layers.count, RIG_LAYERS);
	assert_true(await_kind(&p.b, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
	no_arrival(&p.b);
}

CASE_WITH(nothing_follows_a_goodbye, setup, teardown)
{
	say((struct kv_msg){ .type = KV_MSG_BYE });
	say_begin(OP(3, 1), 0);
	dropped();
}
