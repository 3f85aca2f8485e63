/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_async_test.c -- operations that are under way: limits, deadlines, cancels, grades, and a
 * reader that takes no arrivals
 */
#include "kv_rig.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "lib/bar.h"
#include "lib/port.h"

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[] = { 5, 6, 7, 0, 95, 40 }, to[] = { 10, 11, 12, 95, 0, 3 };
enum { N = 6 };
static bool on_ring;
static bool places; /* the receiver's engine moves the bytes */

static void run_engine(struct node *node, int64_t ms)
{
	ok(kv_progress(node->engine, ms, &node->err), &node->err);
}

static void run_until_acked(struct node *node, struct kv_op *op)
{
	int64_t deadline = kv_deadline_ns(RIG_TIMEOUT_MS);

	while (kv_test(op, NULL) < KV_ACKED && kv_now_ns() < deadline)
		run_engine(node, 5);
}

static void *connect_a(void *arg)
{
	struct pair *p = arg;

	node_connect(&p->a, p->b.port);
	return NULL;
}

/* The receiver advances only when the test lets it. */
static void idle_pair_open(struct pair *p, const struct shape *shape, const char *const *options)
{
	struct kv_engine_config caller = KV_INIT(kv_engine_config);
	pthread_t thread;

	caller.progress = KV_PROGRESS_CALLER;
	caller.options = options;
	node_open(&p->b, 2, shape, &caller);
	node_listen(&p->b);
	node_open(&p->a, 1, shape, NULL);
	assert_int_equal(pthread_create(&thread, NULL, connect_a, p), 0);
	node_await_peer(&p->b);
	/* READY may still be on its way. */
	for (int i = 0; i < slow_ms(50); i++)
		run_engine(&p->b, 1);
	assert_int_equal(pthread_join(thread, NULL), 0);
}

CASE(one_more_operation_than_the_limit_is_busy)
{
	struct kv_op *op[KV_OPS_MAX], *more;
	struct kv_error err;
	struct pair p;

	idle_pair_open(&p, NULL, NULL);
	for (int64_t i = 0; i < KV_OPS_MAX; i++) {
		int64_t id = i % RIG_BLOCKS;

		ok(kv_write_blocks_async(p.a.peer, p.a.cache, all_layers, &id, &id, 1, NULL, &op[i],
					 &err),
		   &err);
	}
	assert_int_equal(kv_write_blocks_async(p.a.peer, p.a.cache, all_layers, from, to, N, NULL,
					       &more, &err),
			 KV_ERR_BUSY);
	assert_int_equal(kv_test(op[0], &err) < KV_ACKED, 1);
	assert_int_equal(kv_op_free(op[0], &err), KV_ERR_BUSY);
	/* They need not end in order. */
	for (int i = 0; i < KV_OPS_MAX; i++)
		run_until_acked(&p.b, op[i]);
	for (int i = 0; i < KV_OPS_MAX; i++) {
		ok(kv_wait(op[i], KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
		ok(kv_op_free(op[i], &err), &err);
	}
	{
		int64_t ids[RIG_BLOCKS];

		for (int64_t i = 0; i < RIG_BLOCKS; i++)
			ids[i] = i;
		assert_true(memory_is(&p.b, all_layers, 1, ids, ids, RIG_BLOCKS, 0));
	}
	pair_close(&p);
}

CASE(no_acknowledgement_is_a_timeout_and_the_commit_still_arrives_once)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_arrival arrival;
	int64_t begun = kv_now_ns();
	struct kv_error err;
	struct pair p;

	idle_pair_open(&p, NULL, NULL);
	opts.timeout_ms = slow_ms(1000); /* enough to be committed in */
	begun = kv_now_ns();
	assert_int_equal(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, &opts, &err),
			 KV_ERR_TIMEOUT);
	assert_in_range((kv_now_ns() - begun) / KV_NS_PER_MS, slow_ms(1000) - 1,
			RIG_TIMEOUT_MS / 2);
	assert_int_equal(err.in_doubt, 1);
	assert_string_equal(err.op, "write_blocks");
	assert_non_null(strstr(err.hint, "kv_dump"));
	/*
	 * What was committed arrives once, when the receiver looks. In a ring or a socket that
	 * nobody empties it is stopped instead, with the connection: it never arrives.
	 */
	assert_int_equal(next_arrival(&p.b, &arrival, places ? slow_ms(500) : RIG_TIMEOUT_MS),
			 !places);
	for (int i = 0; i < slow_ms(20); i++)
		run_engine(&p.b, 1);
	no_arrival(&p.b);
	pair_close(&p);
}

CASE(nothing_lands_after_a_cancel_although_the_receiver_sleeps)
{
	int64_t begun;
	struct kv_error err;
	struct kv_op *op;
	struct pair p;

	idle_pair_open(&p, NULL, NULL);
	ok(kv_write_blocks_async(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &op, &err),
	   &err);
	begun = kv_now_ns();
	ok(kv_cancel(op, slow_ms(100), &err), &err);
	assert_in_range((kv_now_ns() - begun) / KV_NS_PER_MS, 0, RIG_TIMEOUT_MS / 2);
	assert_int_equal(kv_test(op, &err), KV_ERR_CANCELLED);
	ok(kv_op_free(op, &err), &err);
	fill_side(&p.b, 2, 0); /* what landed before is undefined */
	for (int i = 0; i < slow_ms(20); i++)
		run_engine(&p.b, 1);
	assert_true(memory_is(&p.b, all_layers, 1, NULL, NULL, 0, 0));
	pair_close(&p);
}

CASE(a_cancel_that_meets_a_living_receiver_leaves_the_connection_whole)
{
	struct kv_error err;
	struct kv_op *op;
	struct pair p;

	pair_open(&p, NULL, NULL);
	for (int i = 0; i < 100; i++) {
		int ret;

		ok(kv_write_blocks_async(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &op,
					 &err),
		   &err);
		ok(kv_cancel(op, RIG_TIMEOUT_MS, &err), &err);
		ret = kv_test(op, &err);
		assert_true(ret == KV_ERR_CANCELLED || ret == KV_ACKED);
		ok(kv_op_free(op, &err), &err);
	}
	ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &err), &err);
	assert_true(memory_is(&p.b, all_layers, 1, from, to, N, 0));
	pair_close(&p);
}

CASE(grades_come_one_after_the_other)
{
	struct kv_error err;
	struct kv_op *op;
	struct pair p;

	idle_pair_open(&p, NULL, NULL);
	ok(kv_write_blocks_async(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &op, &err),
	   &err);
	assert_int_equal(kv_wait(op, KV_ACKED, slow_ms(20), &err), KV_ERR_TIMEOUT);
	assert_string_equal(err.op, "wait");
	run_until_acked(&p.b, op);
	assert_int_equal(kv_test(op, &err), KV_ACKED);
	ok(kv_wait(op, KV_SENT, 0, &err), &err);
	ok(kv_op_free(op, &err), &err);
	pair_close(&p);
}

/* ---------------------------------------------------------------- nobody polls the writer */

/*
 * A turn of the service thread has at most 65 rounds of a piece each, and every tensor of every
 * layer is one here. What it leaves for its tick, every 100 ms, takes TURNS ticks.
 */
enum { TURNS = 30, MANY_LAYERS = TURNS * 65 / RIG_TENSORS, FEW_BLOCKS = 5 };
enum { TICKS_MS = TURNS * 100 / 2 };
static const struct shape many_pieces = {
	.layers = MANY_LAYERS,
	.blocks = FEW_BLOCKS,
	.block_bytes = { 512, 320 },
	.stride = { 512, 384 },
	.tp_size = 1,
	.flags = KV_CACHE_READABLE,
};
static const int64_t few[FEW_BLOCKS] = { 0, 1, 2, 3, 4 };

static uint64_t blocks_out(struct node *node)
{
	struct kv_stats stats = KV_INIT(kv_stats);

	ok(kv_stats(node->engine, &stats, &node->err), &node->err);
	return stats.blocks_out;
}

/* The receiver's engine runs; of the writer's nothing but its service thread. */
static void await_blocks(struct pair *p, const int64_t *ids, size_t n, struct kv_op *op)
{
	struct bar began = bar_begin();
	struct kv_arrival arrival;
	struct kv_error err;

	assert_true(next_arrival(&p->b, &arrival, RIG_TIMEOUT_MS));
	assert_true(bar_holds(began, TICKS_MS, "what is not posted at the ticks"));
	assert_int_equal(arrival.blocks, n);
	assert_true(memory_is(&p->b, all_layers, 1, ids, ids, n, 0));
	run_until_acked(&p->b, op);
	ok(kv_wait(op, KV_ACKED, 0, &err), &err);
	ok(kv_op_free(op, &err), &err);
}

CASE(a_write_that_waited_for_its_lease_is_posted_over_several_turns)
{
	const int64_t *rest = few + 1;
	const size_t n = FEW_BLOCKS - 1;
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_lease *first, *second;
	struct kv_error err;
	struct kv_op *op;
	struct pair p;

	idle_pair_open(&p, &many_pieces, NULL);
	ok(kv_blocks_open(p.b.peer, p.b.cache, few, 1, 1, RIG_TIMEOUT_MS, &first, &err), &err);
	opts.lease = kv_lease_id(first) + (1 << 16) + 1; /* serial, place in the table */
	opts.timeout_ms = RIG_TIMEOUT_MS;
	ok(kv_write_blocks_async(p.a.peer, p.a.cache, all_layers, rest, rest, n, &opts, &op, &err),
	   &err);
	assert_int_equal(blocks_out(&p.a), 0);
	ok(kv_blocks_open(p.b.peer, p.b.cache, rest, n, 2, RIG_TIMEOUT_MS, &second, &err), &err);
	assert_int_equal(kv_lease_id(second), opts.lease);
	await_blocks(&p, rest, n, op);
	pair_close(&p);
}

CASE(what_a_call_could_not_post_is_posted_without_it)
{
	static const char *const small_ring[] = { "KVCACHE_SHM_RING=65536", NULL };
	struct kv_options opts = KV_INIT(kv_options);
	struct shape open = many_pieces;
	struct kv_error err;
	struct kv_op *op;
	struct pair p;

	open.flags |= KV_CACHE_OPEN;
	idle_pair_open(&p, &open, small_ring);
	opts.timeout_ms = RIG_TIMEOUT_MS;
	ok(kv_write_blocks_async(p.a.peer, p.a.cache, all_layers, few, few, FEW_BLOCKS, &opts, &op,
				 &err),
	   &err);
	if (on_ring) /* it holds a small part of it, and nobody empties it */
		assert_int_equal(blocks_out(&p.a), 0);
	await_blocks(&p, few, FEW_BLOCKS, op);
	pair_close(&p);
}

/* ---------------------------------------------------------------- arrivals */

static unsigned int acked_of(struct kv_op **op, int n)
{
	unsigned int acked = 0;

	for (int i = 0; i < n; i++)
		acked += kv_test(op[i], NULL) == KV_ACKED;
	return acked;
}

CASE(a_slow_reader_slows_the_writer_and_loses_nothing)
{
	static const char *const small_queue[] = { "KVCACHE_ARRIVALS=64", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_op *op[100];
	struct kv_arrival arrival;
	int64_t deadline = kv_deadline_ns(RIG_TIMEOUT_MS);
	unsigned int seen[100] = { 0 };
	struct kv_error err;
	struct pair p;

	config.options = small_queue;
	pair_open(&p, NULL, &config);
	for (int64_t i = 0; i < 100; i++) {
		struct kv_options opts = KV_INIT(kv_options);
		int64_t id = i % RIG_BLOCKS;

		opts.tag = (uint64_t)i;
		ok(kv_write_blocks_async(p.a.peer, p.a.cache, (struct kv_layers){ 0, 1 }, &id, &id,
					 1, &opts, &op[i], &err),
		   &err);
	}
	while (acked_of(op, 100) < 64 && kv_now_ns() < deadline)
		run_engine(&p.a, 20);
	for (deadline = kv_deadline_ns(slow_ms(100)); kv_now_ns() < deadline;)
		run_engine(&p.a, 20);
	assert_int_equal(acked_of(op, 100), 64); /* and no more */
	for (int i = 0; i < 100; i++) {
		assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
		assert_true(arrival.tag < 100);
		seen[arrival.tag]++;
	}
	for (int i = 0; i < 100; i++) {
		assert_int_equal(seen[i], 1);
		ok(kv_wait(op[i], KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
		ok(kv_op_free(op[i], &err), &err);
	}
	no_arrival(&p.b);
	pair_close(&p);
}

/* How long it has to wait until the peer has said so is the machine's affair. */
CASE(a_writer_whose_peer_takes_no_arrivals_is_told_of_that)
{
	static const char *const small_queue[] = { "KVCACHE_ARRIVALS=64", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_options opts = KV_INIT(kv_options);
	const struct kv_layers one = { 0, 1 };
	const int64_t id = 3;
	struct kv_error err;
	struct pair p;
	int ret;

	config.options = small_queue;
	pair_open(&p, NULL, &config);
	for (int i = 0; i < 64; i++)
		ok(kv_write_blocks(p.a.peer, p.a.cache, one, &id, &id, 1, NULL, &err), &err);
	opts.timeout_ms = slow_ms(100);
	do {
		ret = kv_write_blocks(p.a.peer, p.a.cache, one, &id, &id, 1, &opts, &err);
		assert_int_equal(ret, KV_ERR_TIMEOUT);
		opts.timeout_ms *= 2;
	} while (!strstr(err.message, "queue of arrivals") && opts.timeout_ms < RIG_TIMEOUT_MS);
	assert_non_null(strstr(err.message, "queue of arrivals stayed full"));
	assert_non_null(strstr(err.hint, "KVCACHE_ARRIVALS"));
	pair_close(&p);
}

static int give_up(void *arg)
{
	++*(int *)arg;
	return 1;
}

/* A send whose lease does not come, a receive that nobody answers, a write that gets no slot. */
static void give_up_blocking_calls(struct node *n, int *asked)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_op *op[KV_OPS_MAX];
	int before = *asked;

	opts.timeout_ms = slow_ms(10000);
	assert_int_equal(kv_send_blocks(n->peer, n->cache, all_layers, from, N, 8, &opts, &n->err),
			 KV_ERR_CANCELLED);
	assert_int_equal(kv_recv_blocks(n->peer, n->cache, all_layers, from, N, 8, &opts, &n->err),
			 KV_ERR_CANCELLED);
	for (int i = 0; i < KV_OPS_MAX; i++)
		ok(kv_send_blocks_async(n->peer, n->cache, all_layers, from, N, 9, &opts, &op[i],
					&n->err),
		   &n->err);
	assert_int_equal(
		kv_write_blocks(n->peer, n->cache, all_layers, from, to, N, &opts, &n->err),
		KV_ERR_CANCELLED);
	for (int i = 0; i < KV_OPS_MAX; i++) {
		ok(kv_cancel(op[i], slow_ms(1000), &n->err), &n->err);
		ok(kv_op_free(op[i], &n->err), &n->err);
	}
	assert_true(*asked >= before + 3);
}

CASE(an_application_that_gives_up_ends_a_connect_and_a_group)
{
	struct kv_options opts = KV_INIT(kv_options);
	int64_t start = kv_now_ns();
	struct kv_peer *peer = NULL;
	size_t failed = 0;
	struct kv_op *op;
	struct pair p;
	uint32_t port;
	int fd = port_hold(&port), asked = 0;

	assert_int_equal(listen(fd, 4), 0); /* the kernel accepts, nobody reads */
	pair_open(&p, NULL, NULL);
	kv_engine_set_interrupt(p.a.engine, give_up, &asked);
	assert_int_equal(kv_connect(p.a.engine, "127.0.0.1", port, slow_ms(10000), &peer, &p.a.err),
			 KV_ERR_CANCELLED);
	assert_int_equal(asked, 1);
	assert_null(peer);

	ok(kv_group_start(p.a.engine, &opts.group, &p.a.err), &p.a.err);
	opts.timeout_ms = slow_ms(10000);
	ok(kv_send_blocks_async(p.a.peer, p.a.cache, all_layers, from, N, 7, &opts, &op, &p.a.err),
	   &p.a.err); /* nobody opens blocks under this tag */
	assert_int_equal(kv_group_end(opts.group, slow_ms(10000), &failed, &p.a.err),
			 KV_ERR_CANCELLED);
	assert_int_equal(failed, 1);
	assert_int_equal(kv_test(op, NULL), KV_ERR_CANCELLED);
	ok(kv_op_free(op, &p.a.err), &p.a.err);
	assert_true(asked >= 2);
	give_up_blocking_calls(&p.a, &asked);
	assert_true(kv_now_ns() - start < slow_ms(8000) * KV_NS_PER_MS); /* not by a deadline */

	/* The engine and the connection are as good as before. */
	kv_engine_set_interrupt(p.a.engine, NULL, NULL);
	ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &p.a.err), &p.a.err);
	assert_true(memory_is(&p.b, all_layers, 1, from, to, N, 0));
	pair_close(&p);
	close(fd);
}

int main(int argc, char **argv)
{
	if (argc > 1)
		rig_path(argv[1]);
	on_ring = argc > 1 && !strcmp(argv[1], "ring");
	places = on_ring || (argc > 1 && !strcmp(argv[1], "tcp"));
	return run_cases(NULL, NULL);
}
