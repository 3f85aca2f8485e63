/* SPDX-License-Identifier: Apache-2.0 */
/* kv_lease_test.c -- leases and two-sided operations: who may write what, and when that ends */
#include "kv_rig.h"

#include <pthread.h>
#include <stdlib.h>

enum { N = 5 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t source[N] = { 1, 2, 3, 50, 7 }, opened[N] = { 20, 21, 22, 90, 4 };

static struct pair p;

static int setup(void **state)
{
	struct shape shape = rig_shape;

	shape.flags = 0; /* closed: only leases open it */
	pair_open(&p, &shape, NULL);
	return 0;
}

static int teardown(void **state)
{
	pair_close(&p);
	return 0;
}

static struct kv_lease *open_lease(uint64_t tag, int64_t lifetime_ms)
{
	struct kv_lease *lease = NULL;

	ok(kv_blocks_open(p.b.peer, p.b.cache, opened, N, tag, lifetime_ms, &lease, &p.b.err),
	   &p.b.err);
	assert_int_not_equal(kv_lease_id(lease), 0);
	return lease;
}

static int write_under(uint64_t lease, const int64_t *to, size_t n, struct kv_error *err)
{
	struct kv_options opts = KV_INIT(kv_options);

	opts.lease = lease;
	return kv_write_blocks(p.a.peer, p.a.cache, all_layers, source, to, n, &opts, err);
}

static bool untouched(void)
{
	return memory_is(&p.b, all_layers, 1, NULL, NULL, 0, 0);
}

/* ---------------------------------------------------------------- leases */

CASE_WITH(a_write_under_a_lease_lands_and_names_it, setup, teardown)
{
	struct kv_lease *lease = open_lease(9, RIG_TIMEOUT_MS);
	struct kv_arrival arrival;
	struct kv_error err;

	ok(write_under(kv_lease_id(lease), opened, N, &err), &err);
	assert_true(memory_is(&p.b, all_layers, 1, source, opened, N, 0));
	assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
	assert_int_equal(arrival.lease, kv_lease_id(lease));
	/* A part of it may be written again while it is open. */
	ok(write_under(kv_lease_id(lease), opened + 1, 2, &err), &err);
	ok(kv_revoke(lease, RIG_TIMEOUT_MS, &err), &err);
}

CASE_WITH(a_block_that_the_lease_does_not_hold_is_refused, setup, teardown)
{
	static const int64_t stray[] = { 20, 21, 23 };
	struct kv_lease *lease = open_lease(9, RIG_TIMEOUT_MS);
	uint64_t id = kv_lease_id(lease);
	struct kv_error err;
	int ret;

	assert_int_equal(write_under(id, stray, 3, &err), KV_ERR_LEASE);
	assert_int_equal(err.block_index, 2);
	assert_int_equal(err.block_id, 23);
	assert_int_equal(write_under(0, opened, N, &err), KV_ERR_LEASE);
	assert_true(untouched());
	ok(kv_revoke(lease, RIG_TIMEOUT_MS, &err), &err);
	/* REVOKED: over the ring nobody waits for the writer, which may not have heard of it. */
	ret = write_under(id, opened, N, &err);
	assert_true(ret == KV_ERR_LEASE || ret == KV_ERR_REVOKED);
	assert_true(untouched());
}

CASE_WITH(blocks_are_opened_once, setup, teardown)
{
	static const int64_t twice[] = { 30, 31, 30 }, far[] = { 30, RIG_BLOCKS },
			     taken[] = { 30, 90 };
	struct kv_lease *first = open_lease(1, RIG_TIMEOUT_MS), *second;
	struct kv_error err;

	assert_int_equal(kv_blocks_open(p.b.peer, p.b.cache, twice, 3, 2, 1000, &second, &err),
			 KV_ERR_DUP_BLOCK);
	assert_int_equal(err.block_index, 2);
	assert_int_equal(kv_blocks_open(p.b.peer, p.b.cache, far, 2, 2, 1000, &second, &err),
			 KV_ERR_BLOCK_ID);
	assert_int_equal(kv_blocks_open(p.b.peer, p.b.cache, taken, 2, 2, 1000, &second, &err),
			 KV_ERR_LEASE);
	assert_int_equal(err.block_index, 1);
	assert_int_equal(err.block_id, 90);
	assert_int_equal(kv_blocks_open(p.b.peer, p.b.cache, taken, 0, 2, 1000, &second, &err),
			 KV_ERR_ARG);
	assert_int_equal(kv_blocks_open(p.b.peer, p.b.cache, taken, 1, 2, -1, &second, &err),
			 KV_ERR_ARG);
	/* A refused lease has taken nothing. */
	ok(kv_blocks_open(p.b.peer, p.b.cache, taken, 1, 2, 1000, &second, &err), &err);
	ok(kv_revoke(first, RIG_TIMEOUT_MS, &err), &err);
	ok(kv_revoke(second, RIG_TIMEOUT_MS, &err), &err);
	ok(kv_blocks_open(p.b.peer, p.b.cache, taken, 2, 2, 1000, &second, &err), &err);
	ok(kv_revoke(second, RIG_TIMEOUT_MS, &err), &err);
}

CASE_WITH(an_expired_lease_takes_no_commit_and_stays_closed_until_it_is_revoked, setup, teardown)
{
	struct kv_lease *lease = open_lease(3, slow_ms(50)), *other;
	struct kv_arrival arrival;
	struct kv_error err;
	int ret;

	assert_true(await_kind(&p.b, KV_ARRIVAL_EXPIRED, &arrival, RIG_TIMEOUT_MS));
	assert_int_equal(arrival.lease, kv_lease_id(lease));
	assert_int_equal(arrival.tag, 3);
	ret = write_under(kv_lease_id(lease), opened, N, &err);
	assert_true(ret == KV_ERR_REVOKED || ret == KV_ERR_LEASE);
	assert_int_equal(kv_blocks_open(p.b.peer, p.b.cache, opened, N, 4, 1000, &other, &err),
			 KV_ERR_LEASE);
	ok(kv_revoke(lease, RIG_TIMEOUT_MS, &err), &err);
	other = open_lease(4, RIG_TIMEOUT_MS);
	ok(kv_revoke(other, RIG_TIMEOUT_MS, &err), &err);
}

/*
 * Neither the call nor anybody after it waits: the service thread begins it when the lease is
 * there, and posts it.
 */
CASE_WITH(a_write_may_be_made_before_the_word_of_its_lease_comes, setup, teardown)
{
	static const int64_t later[N] = { 30, 31, 32, 33, 34 };
	struct kv_lease *first = open_lease(1, RIG_TIMEOUT_MS), *second;
	const uint64_t next = kv_lease_id(first) + (1 << 16) + 1; /* serial, place in the table */
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_arrival arrival;
	struct kv_error err;
	struct kv_op *op;

	opts.lease = next;
	opts.timeout_ms = RIG_TIMEOUT_MS;
	ok(kv_write_blocks_async(p.a.peer, p.a.cache, all_layers, source, later, N, &opts, &op,
				 &err),
	   &err);
	assert_int_equal(kv_test(op, &err), KV_NONE);
	ok(kv_blocks_open(p.b.peer, p.b.cache, later, N, 2, RIG_TIMEOUT_MS, &second, &err), &err);
	assert_int_equal(kv_lease_id(second), next);
	assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
	assert_int_equal(arrival.lease, next);
	assert_true(memory_is(&p.b, all_layers, 1, source, later, N, 0));
	ok(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
	ok(kv_op_free(op, &err), &err);
	ok(kv_revoke(first, RIG_TIMEOUT_MS, &err), &err);
	ok(kv_revoke(second, RIG_TIMEOUT_MS, &err), &err);
}

struct storm {
	uint64_t lease;
	unsigned int written, refused, other;
};

static void *write_until_refused(void *arg)
{
	struct storm *s = arg;
	struct kv_error err;

	for (;;) {
		int ret = write_under(s->lease, opened, N, &err);

		if (!ret) {
			s->written++;
		} else {
			s->refused += ret == KV_ERR_REVOKED || ret == KV_ERR_LEASE;
			s->other += ret != KV_ERR_REVOKED && ret != KV_ERR_LEASE;
			return NULL;
		}
	}
}

CASE_WITH(no_byte_lands_after_a_revoke_although_writers_go_on, setup, teardown)
{
	struct kv_stats stats = KV_INIT(kv_stats);
	unsigned int written = 0;
	struct kv_error err;

	for (int round = 0; round < 10; round++) {
		struct kv_lease *lease = open_lease(5, RIG_TIMEOUT_MS);
		struct storm storm = { .lease = kv_lease_id(lease) };
		struct kv_arrival arrival;
		pthread_t thread;

		assert_int_equal(pthread_create(&thread, NULL, write_until_refused, &storm), 0);
		for (int i = 0; i < 3; i++)
			assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
		ok(kv_revoke(lease, RIG_TIMEOUT_MS, &err), &err);
		fill_side(&p.b, 2, 0); /* the blocks are the receiver's again */
		pthread_join(thread, NULL);
		assert_true(untouched());
		assert_int_equal(storm.refused, 1);
		assert_int_equal(storm.other, 0);
		written += storm.written;
	}
	assert_true(written >= 30);
	ok(kv_stats(p.b.engine, &stats, &err), &err);
	assert_int_equal(stats.leases_revoked, 10);
	assert_int_equal(stats.leases_open, 0);
	assert_int_equal(stats.leases_fenced, 0);
}

static struct kv_op *begin_write(struct pair *q, const struct kv_lease *lease)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_error err;
	struct kv_op *op;

	opts.lease = kv_lease_id(lease);
	ok(kv_write_blocks_async(q->a.peer, q->a.cache, all_layers, source, opened, N, &opts, &op,
				 &err),
	   &err);
	return op;
}

/* Its end; the receiver's engine does nothing by itself. */
static int end_write(struct pair *q, struct kv_op *op)
{
	struct kv_error err;
	int ret;

	while ((ret = kv_test(op, &err)) >= 0 && ret < KV_ACKED)
		kv_progress(q->b.engine, 1, NULL);
	ok(kv_op_free(op, &err), &err);
	return ret;
}

/* Where this side places the bytes a revoke does not wait for the writer: they go nowhere. */
CASE(what_was_sent_before_a_revoke_and_comes_after_it_goes_nowhere)
{
	const char *path = getenv("KVCACHE_SHM_PATH"), *transport = getenv("KVCACHE_TRANSPORT");
	struct kv_engine_config caller = KV_INIT(kv_engine_config);
	struct shape shape = rig_shape;
	struct kv_lease *lease;
	struct kv_error err;
	struct kv_op *op;
	struct pair q;

	if ((!path || strcmp(path, "ring")) && (!transport || strcmp(transport, "tcp"))) {
		print_message("skipped: the writer's side places the bytes\n");
		skip();
	}
	caller.progress = KV_PROGRESS_CALLER; /* it takes nothing between two calls */
	shape.flags = 0;
	node_open(&q.a, 1, &shape, NULL);
	node_listen(&q.a);
	node_open(&q.b, 2, &shape, &caller);
	node_connect(&q.b, q.a.port);
	node_await_peer(&q.a);
	ok(kv_blocks_open(q.b.peer, q.b.cache, opened, N, 1, RIG_TIMEOUT_MS, &lease, &err), &err);
	assert_int_equal(end_write(&q, begin_write(&q, lease)), KV_ACKED); /* it knows the lease */
	fill_side(&q.b, 2, 0);
	op = begin_write(&q, lease);
	ok(kv_revoke(lease, RIG_TIMEOUT_MS, &err), &err);
	assert_int_equal(end_write(&q, op), KV_ERR_REVOKED);
	assert_true(memory_is(&q.b, all_layers, 1, NULL, NULL, 0, 0));
	pair_close(&q);
}

CASE(many_leases_are_open_at_once_and_one_more_is_busy)
{
	static struct kv_lease *lease[KV_LEASES_MAX];
	struct shape shape = rig_shape;
	struct kv_lease *more;
	struct kv_error err;
	struct pair q;
	int64_t id;

	shape.blocks = KV_LEASES_MAX + 8;
	shape.layers = 1;
	shape.flags = 0;
	pair_open(&q, &shape, NULL);
	for (id = 0; id < KV_LEASES_MAX; id++)
		ok(kv_blocks_open(q.b.peer, q.b.cache, &id, 1, 1, RIG_TIMEOUT_MS, &lease[id], &err),
		   &err);
	assert_int_equal(
		kv_blocks_open(q.b.peer, q.b.cache, &id, 1, 1, RIG_TIMEOUT_MS, &more, &err),
		KV_ERR_BUSY);
	for (id = 0; id < KV_LEASES_MAX; id += 100) {
		struct kv_options opts = KV_INIT(kv_options);

		opts.lease = kv_lease_id(lease[id]);
		ok(kv_write_blocks(q.a.peer, q.a.cache, all_layers, &id, &id, 1, &opts, &err),
		   &err);
	}
	for (id = 0; id < KV_LEASES_MAX; id++)
		ok(kv_revoke(lease[id], RIG_TIMEOUT_MS, &err), &err);
	pair_close(&q);
}

/* ---------------------------------------------------------------- two-sided */

static struct kv_op *receive(uint64_t tag, struct kv_layers layers, int64_t timeout_ms)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_op *op = NULL;

	opts.timeout_ms = timeout_ms;
	ok(kv_recv_blocks_async(p.b.peer, p.b.cache, layers, opened, N, tag, &opts, &op, &p.b.err),
	   &p.b.err);
	return op;
}

CASE_WITH(a_send_fills_the_blocks_of_its_tag, setup, teardown)
{
	struct kv_op *op = receive(42, all_layers, RIG_TIMEOUT_MS);
	struct kv_arrival arrival;
	struct kv_error err;

	ok(kv_send_blocks(p.a.peer, p.a.cache, all_layers, source, N, 42, NULL, &err), &err);
	ok(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
	assert_true(memory_is(&p.b, all_layers, 1, source, opened, N, 0));
	ok(kv_op_free(op, &err), &err);
	assert_int_equal(kv_poll_arrivals(p.b.engine, &arrival, 1, &err), 0);
	/* The lease closed itself: the same blocks can be opened again at once. */
	op = receive(43, all_layers, RIG_TIMEOUT_MS);
	ok(kv_send_blocks(p.a.peer, p.a.cache, all_layers, source, N, 43, NULL, &err), &err);
	ok(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
	ok(kv_op_free(op, &err), &err);
}

static void *receive_in_thread(void *arg)
{
	struct kv_error err;

	ok(kv_recv_blocks(p.b.peer, p.b.cache, all_layers, opened, N, 8, NULL, &err), &err);
	return NULL;
}

CASE_WITH(layers_may_come_one_by_one_and_in_any_order, setup, teardown)
{
	static const uint32_t order[RIG_LAYERS] = { 2, 0, 3, 1 };
	struct kv_error err;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, receive_in_thread, NULL), 0);
	for (int i = 0; i < RIG_LAYERS; i++)
		ok(kv_send_blocks(p.a.peer, p.a.cache, (struct kv_layers){ order[i], 1 }, source, N,
				  8, NULL, &err),
		   &err);
	pthread_join(thread, NULL);
	assert_true(memory_is(&p.b, all_layers, 1, source, opened, N, 0));
	/* Nothing is open under the tag any more. */
	{
		struct kv_options opts = KV_INIT(kv_options);

		opts.timeout_ms = slow_ms(30);
		assert_int_equal(
			kv_send_blocks(p.a.peer, p.a.cache, all_layers, source, N, 8, &opts, &err),
			KV_ERR_TIMEOUT);
	}
}

CASE_WITH(of_two_leases_of_one_tag_the_older_is_filled_first, setup, teardown)
{
	static const int64_t second[N] = { 60, 61, 62, 63, 64 };
	struct kv_op *one = receive(5, all_layers, RIG_TIMEOUT_MS), *two = NULL;
	struct kv_error err;

	ok(kv_recv_blocks_async(p.b.peer, p.b.cache, all_layers, second, N, 5, NULL, &two, &err),
	   &err);
	ok(kv_send_blocks(p.a.peer, p.a.cache, all_layers, source, N, 5, NULL, &err), &err);
	ok(kv_wait(one, KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
	assert_true(memory_is(&p.b, all_layers, 1, source, opened, N, 0));
	assert_true(kv_test(two, &err) < KV_ACKED);
	ok(kv_send_blocks(p.a.peer, p.a.cache, all_layers, source, N, 5, NULL, &err), &err);
	ok(kv_wait(two, KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
	ok(kv_op_free(one, &err), &err);
	ok(kv_op_free(two, &err), &err);
}

CASE_WITH(another_number_of_blocks_is_refused_and_the_receiver_waits_on, setup, teardown)
{
	struct kv_op *op = receive(6, all_layers, RIG_TIMEOUT_MS);
	struct kv_error err;

	assert_int_equal(
		kv_send_blocks(p.a.peer, p.a.cache, all_layers, source, N - 1, 6, NULL, &err),
		KV_ERR_ARG);
	assert_true(untouched());
	ok(kv_send_blocks(p.a.peer, p.a.cache, all_layers, source, N, 6, NULL, &err), &err);
	ok(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
	ok(kv_op_free(op, &err), &err);
}

CASE_WITH(other_layers_than_the_receiver_names_end_both_sides, setup, teardown)
{
	struct kv_op *op = receive(6, (struct kv_layers){ 1, 2 }, RIG_TIMEOUT_MS);
	struct kv_error err;

	assert_int_equal(kv_send_blocks(p.a.peer, p.a.cache, all_layers, source, N, 6, NULL, &err),
			 KV_ERR_GEOMETRY);
	assert_int_equal(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &err), KV_ERR_GEOMETRY);
	assert_true(untouched());
	ok(kv_op_free(op, &err), &err);
}

CASE_WITH(a_layer_is_not_sent_twice, setup, teardown)
{
	struct kv_op *op = receive(6, all_layers, RIG_TIMEOUT_MS);
	const struct kv_layers first = { 0, 1 };
	struct kv_error err;

	ok(kv_send_blocks(p.a.peer, p.a.cache, first, source, N, 6, NULL, &err), &err);
	assert_int_equal(kv_send_blocks(p.a.peer, p.a.cache, all_layers, source, N, 6, NULL, &err),
			 KV_ERR_LEASE);
	ok(kv_send_blocks(p.a.peer, p.a.cache, (struct kv_layers){ 1, 0 }, source, N, 6, NULL,
			  &err),
	   &err);
	ok(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
	ok(kv_op_free(op, &err), &err);
}

CASE_WITH(a_receive_that_times_out_or_is_cancelled_gives_its_blocks_back, setup, teardown)
{
	struct kv_op *op = receive(11, all_layers, slow_ms(40));
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_error err;

	assert_int_equal(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &err), KV_ERR_TIMEOUT);
	assert_string_equal(err.op, "recv_blocks");
	ok(kv_op_free(op, &err), &err);
	op = receive(12, all_layers, RIG_TIMEOUT_MS);
	ok(kv_cancel(op, RIG_TIMEOUT_MS, &err), &err);
	assert_int_equal(kv_test(op, &err), KV_ERR_CANCELLED);
	ok(kv_op_free(op, &err), &err);
	opts.timeout_ms = slow_ms(30);
	assert_int_equal(
		kv_send_blocks(p.a.peer, p.a.cache, all_layers, source, N, 12, &opts, &err),
		KV_ERR_TIMEOUT);
	assert_true(untouched());
	op = receive(13, all_layers, RIG_TIMEOUT_MS);
	ok(kv_send_blocks(p.a.peer, p.a.cache, all_layers, source, N, 13, NULL, &err), &err);
	ok(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
	ok(kv_op_free(op, &err), &err);
}

CASE_WITH(a_send_may_wait_for_its_receiver, setup, teardown)
{
	struct kv_op *send, *recv;
	struct kv_error err;

	ok(kv_send_blocks_async(p.a.peer, p.a.cache, all_layers, source, N, 21, NULL, &send, &err),
	   &err);
	assert_int_equal(kv_wait(send, KV_SENT, slow_ms(20), &err), KV_ERR_TIMEOUT);
	recv = receive(21, all_layers, RIG_TIMEOUT_MS);
	ok(kv_wait(send, KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
	ok(kv_wait(recv, KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
	assert_true(memory_is(&p.b, all_layers, 1, source, opened, N, 0));
	ok(kv_op_free(send, &err), &err);
	ok(kv_op_free(recv, &err), &err);
}

CASE_WITH(kv_blocks_open_is_found_by_its_tag_too, setup, teardown)
{
	struct kv_lease *lease = open_lease(31, RIG_TIMEOUT_MS);
	struct kv_arrival arrival;
	struct kv_error err;

	ok(kv_send_blocks(p.a.peer, p.a.cache, all_layers, source, N, 31, NULL, &err), &err);
	assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
	assert_int_equal(arrival.lease, kv_lease_id(lease));
	assert_int_equal(arrival.tag, 31);
	ok(kv_revoke(lease, RIG_TIMEOUT_MS, &err), &err);
}
