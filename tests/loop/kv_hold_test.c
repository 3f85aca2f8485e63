/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_hold_test.c -- a peer is closed while operations, groups and revocations of it are held or
 * waited for: each ends with a code, and nothing reads freed memory (a sanitizer's build looks)
 */
#include "kv_rig.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>

enum { N = 3, OPS = 8, ROUNDS = 15 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[N] = { 5, 6, 7 };

/* A send for which nobody has opened blocks: it waits. */
static struct kv_op *send_in_vain(struct node *node, struct kv_group *group)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_op *op = NULL;
	struct kv_error err;

	opts.group = group;
	opts.timeout_ms = RIG_TIMEOUT_MS;
	ok(kv_send_blocks_async(node->peer, node->cache, all_layers, from, N, 99, &opts, &op, &err),
	   &err);
	return op;
}

/* A group reads the ids when it ends. */
static const int64_t into[OPS] = { 0, 1, 2, 3, 4, 5, 6, 7 };

static struct kv_op *receive_in_vain(struct node *node, struct kv_group *group, int block)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_op *op = NULL;
	struct kv_error err;

	opts.group = group;
	opts.timeout_ms = RIG_TIMEOUT_MS;
	ok(kv_recv_blocks_async(node->peer, node->cache, all_layers, into + block, 1, 98, &opts,
				&op, &err),
	   &err);
	return op;
}

static void close_peer(struct node *node)
{
	struct kv_error err;

	ok(kv_peer_close(node->peer, RIG_TIMEOUT_MS, &err), &err);
}

CASE(what_a_group_has_collected_ends_with_the_peer)
{
	struct kv_group *group;
	struct kv_op *send, *recv;
	struct kv_error err;
	size_t failed;
	struct pair p;

	pair_open(&p, NULL, NULL);
	ok(kv_group_start(p.a.engine, &group, &err), &err);
	send = send_in_vain(&p.a, group);
	recv = receive_in_vain(&p.a, group, 4);
	close_peer(&p.a);
	assert_int_equal(kv_test(send, &err), KV_ERR_CLOSED);
	assert_string_not_equal(err.peer, "");
	assert_int_equal(kv_wait(recv, KV_ACKED, 0, &err), KV_ERR_CLOSED);
	ok(kv_cancel(send, 0, &err), &err);
	assert_int_equal(kv_group_end(group, RIG_TIMEOUT_MS, &failed, &err), KV_ERR_CLOSED);
	assert_int_equal(failed, 2);
	ok(kv_op_free(send, &err), &err);
	ok(kv_op_free(recv, &err), &err);
	ok(kv_cache_unregister(p.a.cache, &err), &err);
	pair_close(&p);
}

/* One that has ended, cancelled or closed with its peer, is in the group's list all the same. */
CASE(an_operation_is_not_freed_before_its_group_has_ended)
{
	struct kv_group *group;
	struct kv_op *op[2];
	struct kv_error err;
	size_t failed;
	struct pair p;

	pair_open(&p, NULL, NULL);
	ok(kv_group_start(p.a.engine, &group, &err), &err);
	for (int i = 0; i < 2; i++)
		op[i] = send_in_vain(&p.a, group);
	ok(kv_cancel(op[0], RIG_TIMEOUT_MS, &err), &err);
	assert_int_equal(kv_op_free(op[0], &err), KV_ERR_BUSY);
	close_peer(&p.a);
	assert_int_equal(kv_op_free(op[1], &err), KV_ERR_BUSY);
	assert_int_equal(kv_group_end(group, RIG_TIMEOUT_MS, &failed, &err), KV_ERR_CANCELLED);
	assert_int_equal(failed, 2);
	for (int i = 0; i < 2; i++)
		ok(kv_op_free(op[i], &err), &err);
	pair_close(&p);
}

CASE(an_operation_that_is_never_freed_goes_with_its_engine)
{
	struct pair p;

	pair_open(&p, NULL, NULL);
	send_in_vain(&p.a, NULL);
	send_in_vain(&p.b, NULL);
	close_peer(&p.a);
	pair_close(&p);
}

/* ---------------------------------------------------------------- threads */

struct crew {
	struct pair p;
	struct kv_op *op[OPS];
	atomic_int inside; /* threads that have begun their work */
	atomic_int ended[OPS];
	int code[3];
};

static void *wait_each(void *arg)
{
	struct crew *c = arg;

	atomic_fetch_add(&c->inside, 1);
	for (int i = 0; i < OPS; i++)
		c->code[0] = kv_wait(c->op[i], KV_ACKED, RIG_TIMEOUT_MS, NULL);
	return NULL;
}

static void *test_each(void *arg)
{
	struct crew *c = arg;

	atomic_fetch_add(&c->inside, 1);
	for (int i = 0; i < OPS;) {
		int ret = kv_test(c->op[i], NULL);

		if (ret >= 0 && ret < KV_ACKED)
			ret = kv_wait(c->op[i], KV_ACKED, i & 1, NULL);
		if (ret < 0 && ret != KV_ERR_TIMEOUT)
			i++;
		c->code[1] = ret;
	}
	return NULL;
}

static void *end_group(void *arg)
{
	struct crew *c = arg;
	struct kv_op *op[OPS];
	struct kv_group *group;
	struct kv_error err;

	ok(kv_group_start(c->p.a.engine, &group, &err), &err);
	for (int i = 0; i < OPS; i++)
		op[i] = i & 1 ? send_in_vain(&c->p.a, group) : receive_in_vain(&c->p.a, group, i);
	atomic_fetch_add(&c->inside, 1);
	c->code[2] = kv_group_end(group, RIG_TIMEOUT_MS, NULL, NULL);
	for (int i = 0; i < OPS; i++) {
		kv_cancel(op[i], 0, NULL);
		ok(kv_op_free(op[i], &err), &err);
	}
	return NULL;
}

CASE(whoever_waits_learns_that_the_peer_was_closed)
{
	void *(*const work[3])(void *) = { wait_each, test_each, end_group };
	struct crew c;

	node_open(&c.p.b, 2, NULL, NULL);
	node_listen(&c.p.b);
	node_open(&c.p.a, 1, NULL, NULL);
	for (int round = 0; round < ROUNDS; round++) {
		pthread_t thread[3];

		node_connect(&c.p.a, c.p.b.port);
		for (int i = 0; i < OPS; i++)
			c.op[i] = send_in_vain(&c.p.a, NULL);
		atomic_init(&c.inside, 0);
		for (int i = 0; i < 3; i++)
			assert_int_equal(pthread_create(&thread[i], NULL, work[i], &c), 0);
		while (atomic_load(&c.inside) < 3)
			poll(NULL, 0, 0);
		poll(NULL, 0, round % 3);
		close_peer(&c.p.a);
		for (int i = 0; i < 3; i++)
			pthread_join(thread[i], NULL);
		for (int i = 0; i < 3; i++)
			assert_int_equal(c.code[i], KV_ERR_CLOSED);
		for (int i = 0; i < OPS; i++)
			ok(kv_op_free(c.op[i], NULL), NULL);
	}
	pair_close(&c.p);
}

/* ---------------------------------------------------------------- a revocation that waits */

static atomic_bool driving;

static void *drive(void *arg)
{
	while (atomic_load(&driving)) {
		kv_progress(arg, 0, NULL);
		poll(NULL, 0, 1);
	}
	return NULL;
}

static void *connect_b(void *arg)
{
	struct pair *p = arg;

	node_connect(&p->b, p->a.port);
	return NULL;
}

static void *revoke(void *arg)
{
	static int ret;

	ret = kv_revoke(arg, RIG_TIMEOUT_MS, NULL);
	return &ret;
}

CASE(a_revocation_ends_when_the_peer_is_closed)
{
	struct kv_engine_config caller = KV_INIT(kv_engine_config);
	const int64_t block = 3;
	pthread_t thread, driver;
	struct kv_lease *lease;
	struct kv_error err;
	struct pair p;
	void *ret;

	caller.progress = KV_PROGRESS_CALLER;
	node_open(&p.a, 1, NULL, &caller);
	node_listen(&p.a);
	node_open(&p.b, 2, NULL, NULL);
	assert_int_equal(pthread_create(&thread, NULL, connect_b, &p), 0);
	node_await_peer(&p.a);
	atomic_store(&driving, true);
	assert_int_equal(pthread_create(&driver, NULL, drive, p.a.engine), 0);
	pthread_join(thread, NULL);
	ok(kv_blocks_open(p.b.peer, p.b.cache, &block, 1, 1, RIG_TIMEOUT_MS, &lease, &err), &err);
	atomic_store(&driving, false); /* the writer answers nothing */
	pthread_join(driver, NULL);
	assert_int_equal(pthread_create(&thread, NULL, revoke, lease), 0);
	if (kv_peer_close(p.b.peer, slow_ms(100), &err)) { /* the ring's receiver needs nobody */
		atomic_store(&driving, true);
		assert_int_equal(pthread_create(&driver, NULL, drive, p.a.engine), 0);
		close_peer(&p.b);
		atomic_store(&driving, false);
		pthread_join(driver, NULL);
	}
	pthread_join(thread, &ret);
	/* ARG: it came after the close, when the handle was none any more. */
	assert_true(*(int *)ret == 0 || *(int *)ret == KV_ERR_ARG);
	pair_close(&p);
}
