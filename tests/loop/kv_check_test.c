/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_check_test.c -- KVCACHE_CHECKSUM: a byte that arrives wrong ends its operation, both ends name
 * the block, and nothing is published; without it nobody sees that byte
 *
 * The receiver's claim is held while an operation is posted and a byte of it changed: in the
 * receiver's memory where that is written directly, in the writer's where a small ring holds the
 * rest back, on its way in the fake device.
 */
#include "kv_rig.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "kv_api.h"

enum { N = 6, BAD = 3, LAYER = 0, TENSOR = 1 }; /* what is made wrong: block to[BAD] */

static const struct kv_layers all = { 0, 0 };
static const int64_t from[N] = { 5, 6, 7, 0, 95, 40 }, to[N] = { 10, 11, 12, 94, 0, 3 };

/* The fake device's, where there is one: the byte that is written there next arrives wrong. */
extern void fake_corrupt(uint8_t *at) __attribute__((weak));

static const char *path;
static struct pair p;
static char logged[1024]; /* the errors of the receiver */

static void keep(void *arg, int level, const char *line)
{
	if (level == KV_LOG_ERROR)
		snprintf(logged, sizeof(logged), "%s", line);
}

static void open_checked(const char *writer, const char *receiver)
{
	const char *options[] = { receiver, "KVCACHE_SHM_RING=65536", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct shape shape = rig_shape;

	shape.block_bytes[0] = shape.stride[0] = 8192; /* an operation is larger than the ring */
	shape.malloced = path && !strcmp(path, "cma");
	config.options = options;
	config.log = keep;
	logged[0] = 0;
	node_open(&p.b, 2, &shape, &config);
	node_listen(&p.b);
	options[0] = writer;
	config.log = NULL;
	node_open(&p.a, 1, &shape, &config);
	node_connect(&p.a, p.b.port);
	node_await_peer(&p.b);
}

static int setup(void **state)
{
	open_checked("KVCACHE_CHECKSUM=1", "KVCACHE_CHECKSUM=0");
	return 0;
}

static int teardown(void **state)
{
	pair_close(&p);
	return 0;
}

static void hold(struct node *node)
{
	assert_true(kv_claim_until(&node->peer->claim, kv_deadline_ns(RIG_TIMEOUT_MS)));
}

static uint8_t *bad_byte(struct node *node, int64_t block)
{
	return block_at(node, LAYER, TENSOR, block) + 17;
}

/* Posts an operation of which one byte arrives wrong. */
static struct kv_op *post_bad(struct kv_options *opts, bool send)
{
	struct kv_op *op;

	hold(&p.b);
	if (fake_corrupt)
		fake_corrupt(bad_byte(&p.b, to[BAD]));
	ok(send ? kv_send_blocks_async(p.a.peer, p.a.cache, all, from, N, 1, opts, &op, &p.a.err)
		: kv_write_blocks_async(p.a.peer, p.a.cache, all, from, to, N, opts, &op, &p.a.err),
	   &p.a.err);
	if (path && !strcmp(path, "ring")) {
		hold(&p.a);
		*bad_byte(&p.a, from[BAD]) ^= 1;
		kv_peer_release(p.a.peer);
	} else if (!fake_corrupt) {
		*bad_byte(&p.b, to[BAD]) ^= 1;
	}
	kv_peer_release(p.b.peer);
	return op;
}

static int end_of(struct kv_op *op)
{
	int ret = kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &p.a.err);

	ok(kv_op_free(op, NULL), NULL);
	return ret;
}

static void names_the_block(const struct kv_error *err, const char *op)
{
	assert_int_equal(err->code, KV_ERR_CHECKSUM);
	assert_int_equal(err->scope, KV_SCOPE_REQUEST);
	assert_int_equal(err->block_id, to[BAD]);
	assert_int_equal(err->block_index, BAD);
	assert_string_equal(err->op, op);
	assert_non_null(strstr(err->message, "layer 0, tensor 1 (v), block 94 arrived"));
}

/* What was made wrong in its place is right again, and goes through. */
static void the_next_one_succeeds(struct kv_options *opts)
{
	struct kv_arrival arrival;

	fill_side(&p.a, 1, 0);
	ok(kv_write_blocks(p.a.peer, p.a.cache, all, from, to, N, opts, &p.a.err), &p.a.err);
	assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
	assert_int_equal(arrival.blocks, N);
	assert_true(memory_is(&p.b, all, 1, from, to, N, 0));
	no_arrival(&p.b);
}

CASE_WITH(a_write_is_refused_and_both_ends_name_the_block, setup, teardown)
{
	struct kv_stats stats = KV_INIT(kv_stats);

	assert_int_equal(end_of(post_bad(NULL, false)), KV_ERR_CHECKSUM);
	names_the_block(&p.a.err, "write_blocks");
	assert_int_equal(p.a.err.in_doubt, 1);
	no_arrival(&p.b);
	ok(kv_stats(p.b.engine, &stats, NULL), NULL); /* takes the locks under which it is logged */
	assert_non_null(strstr(logged, "layer 0, tensor 1 (v), block 94 arrived"));
	the_next_one_succeeds(NULL);
	ok(kv_stats(p.b.engine, &stats, NULL), NULL);
	assert_int_equal(stats.blocks_in, N);
}

CASE_WITH(a_lease_stays_open_for_another_try, setup, teardown)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_lease *lease;

	ok(kv_blocks_open(p.b.peer, p.b.cache, to, N, 1, RIG_TIMEOUT_MS, &lease, &p.b.err),
	   &p.b.err);
	opts.lease = kv_lease_id(lease);
	/* the writer must know of the lease: the receiver says nothing while it is held */
	ok(kv_write_blocks(p.a.peer, p.a.cache, all, from, to, N, &opts, &p.a.err), &p.a.err);
	assert_true(next_arrival(&p.b, &(struct kv_arrival){ 0 }, RIG_TIMEOUT_MS));
	assert_int_equal(end_of(post_bad(&opts, false)), KV_ERR_CHECKSUM);
	names_the_block(&p.a.err, "write_blocks");
	the_next_one_succeeds(&opts);
	ok(kv_revoke(lease, RIG_TIMEOUT_MS, &p.b.err), &p.b.err);
}

CASE_WITH(a_receive_ends_with_it_too, setup, teardown)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_op *op;

	opts.timeout_ms = RIG_TIMEOUT_MS;
	ok(kv_recv_blocks_async(p.b.peer, p.b.cache, all, to, N, 1, &opts, &op, &p.b.err),
	   &p.b.err);
	for (bool there = false; !there;) { /* the writer has heard of the lease */
		hold(&p.a);
		there = p.a.peer->link->oldest && p.a.peer->link->oldest->got == N;
		kv_peer_release(p.a.peer);
	}
	assert_int_equal(end_of(post_bad(NULL, true)), KV_ERR_CHECKSUM);
	names_the_block(&p.a.err, "send_blocks");
	assert_int_equal(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &p.b.err), KV_ERR_CHECKSUM);
	names_the_block(&p.b.err, "recv_blocks");
	ok(kv_op_free(op, &p.b.err), &p.b.err);
	the_next_one_succeeds(NULL);
}

CASE_WITH(a_group_ends_with_the_one_that_was_wrong, setup, teardown)
{
	static const int64_t elsewhere[N] = { 20, 21, 22, 23, 24, 25 };
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_op *good, *bad;
	size_t failed = 0;

	ok(kv_group_start(p.a.engine, &opts.group, &p.a.err), &p.a.err);
	ok(kv_write_blocks_async(p.a.peer, p.a.cache, all, from, elsewhere, N, &opts, &good,
				 &p.a.err),
	   &p.a.err);
	ok(kv_group_end(opts.group, RIG_TIMEOUT_MS, &failed, &p.a.err), &p.a.err);
	assert_int_equal(failed, 0);
	assert_int_equal(end_of(good), 0);
	bad = post_bad(NULL, false);
	assert_int_equal(end_of(bad), KV_ERR_CHECKSUM);
}

/* The bytes that a reader has are not those that the owner has a moment later. */
CASE_WITH(a_read_is_compared_with_its_owner, setup, teardown)
{
	struct kv_op *op;

	if (path && !strcmp(path, "ring")) {
		print_message(
			"skipped: the owner must be awake to answer, and is too early then\n");
		skip();
	}
	ok(kv_read_blocks(p.a.peer, p.a.cache, all, to, to, N, NULL, &p.a.err), &p.a.err);
	assert_true(memory_is(&p.a, all, 2, to, to, N, 0));
	hold(&p.b);
	ok(kv_read_blocks_async(p.a.peer, p.a.cache, all, to, to, N, NULL, &op, &p.a.err),
	   &p.a.err);
	assert_int_equal(kv_wait(op, KV_ACKED, slow_ms(300), &p.a.err), KV_ERR_TIMEOUT);
	*bad_byte(&p.b, to[BAD]) ^= 1;
	kv_peer_release(p.b.peer);
	assert_int_equal(end_of(op), KV_ERR_CHECKSUM);
	names_the_block(&p.a.err, "read_blocks");
	assert_int_equal(p.a.err.in_doubt, 0);
	no_arrival(&p.b);
}

/*
 * The ring is full of digests, so the last operations have not sent all of theirs when they are
 * stopped: the receiver takes nothing of them, and their slots become free.
 */
CASE_WITH(a_write_is_cancelled_before_its_digests, setup, teardown)
{
	bool ring = path && !strcmp(path, "ring"); /* it must be drained for a cancel */
	struct kv_stats stats = KV_INIT(kv_stats);
	struct kv_op *op[KV_OPS_MAX];

	hold(&p.b);
	for (int i = 0; i < KV_OPS_MAX; i++)
		ok(kv_write_blocks_async(p.a.peer, p.a.cache, all, from, to, N, NULL, &op[i],
					 &p.a.err),
		   &p.a.err);
	if (ring)
		kv_peer_release(p.b.peer);
	for (int i = KV_OPS_MAX; i-- > 0;)
		ok(kv_cancel(op[i], RIG_TIMEOUT_MS, &p.a.err), &p.a.err);
	if (!ring)
		kv_peer_release(p.b.peer);
	for (int i = 0; i < KV_OPS_MAX; i++) {
		int ret = end_of(op[i]);

		assert_true(!ret || ret == KV_ERR_CANCELLED);
	}
	ok(kv_stats(p.a.engine, &stats, NULL), NULL);
	assert_true(stats.cancelled > 0);
	for (int i = 0; i < KV_OPS_MAX; i++) /* waits for a slot, if it must */
		ok(kv_write_blocks(p.a.peer, p.a.cache, all, from, to, N, NULL, &p.a.err),
		   &p.a.err);
	assert_true(memory_is(&p.b, all, 1, from, to, N, 0));
}

CASE(either_end_may_ask_for_it)
{
	open_checked("KVCACHE_CHECKSUM=0", "KVCACHE_CHECKSUM=1");
	assert_int_equal(end_of(post_bad(NULL, false)), KV_ERR_CHECKSUM);
	pair_close(&p);
}

/* As on any transport without it: what the option is for. */
CASE(without_it_nobody_sees_the_byte)
{
	struct kv_arrival arrival;

	open_checked("KVCACHE_CHECKSUM=0", "KVCACHE_CHECKSUM=0");
	ok(end_of(post_bad(NULL, false)), &p.a.err);
	assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
	if (!path || strcmp(path, "ring")) /* there the source was changed, after it was read */
		assert_false(memory_is(&p.b, all, 1, from, to, N, 0));
	pair_close(&p);
}

static int hello_put(void *arg, struct tr_conn *conn, void *buf, size_t cap)
{
	static const struct kv_hello hello = { .name = "older" };

	return (int)kv_wire_put_hello(&hello, buf, cap);
}

CASE(a_peer_that_makes_no_digests_is_refused_by_name)
{
	static const struct tr_upper_ops ops = { .id = TR_UPPER_KV,
						 .version = KV_WIRE_VERSION,
						 .hello_put = hello_put };
	struct tr_conn_config config = { .ops = &ops };
	int64_t deadline = kv_deadline_ns(RIG_TIMEOUT_MS);
	struct tr_conn *conn;
	int ret;

	open_checked("KVCACHE_CHECKSUM=1", "KVCACHE_CHECKSUM=1");
	ok(tr_connect(p.a.engine->tr, NULL, p.b.port, &config, &conn, &p.a.err), &p.a.err);
	while ((ret = tr_conn_step(conn, &p.a.err)) == TR_AGAIN && kv_now_ns() < deadline)
		sched_yield();
	assert_int_equal(ret, KV_ERR_VERSION);
	assert_non_null(strstr(p.a.err.message, "and older cannot make digests"));
	tr_conn_close(conn);
	pair_close(&p);
}

int main(int argc, char **argv)
{
	path = argc > 1 ? argv[1] : NULL;
	if (path)
		setenv("KVCACHE_SHM_PATH", path, 1);
	return run_cases(NULL, NULL);
}
