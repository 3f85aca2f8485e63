/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_stats_test.c -- counters that are read while operations, leases and peers come and go: they
 * never go back, they add up, and looking at them moves nothing
 */
#include "kv_rig.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ROUNDS = 60, OPS = 4, N = 3 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[] = { 5, 6, 9 }, to[] = { 10, 12, 3 }, leased[] = { 20, 22, 24 },
		     paired[] = { 30, 33, 31 };

/* ---------------------------------------------------------------- the onlooker */

#define COUNTER(name)                                  \
	{                                              \
#name, offsetof(struct kv_stats, name) \
	}
static const struct {
	const char *name;
	size_t at;
} never_less[] = {
	COUNTER(writes),	  COUNTER(reads),	     COUNTER(sends),
	COUNTER(recvs),		  COUNTER(ok),		     COUNTER(failed),
	COUNTER(cancelled),	  COUNTER(blocks_out),	     COUNTER(bytes_out),
	COUNTER(blocks_in),	  COUNTER(bytes_in),	     COUNTER(spans_out),
	COUNTER(arrivals),	  COUNTER(leases_opened),    COUNTER(leases_revoked),
	COUNTER(leases_expired),  COUNTER(leases_fenced),    COUNTER(peers_accepted),
	COUNTER(peers_connected), COUNTER(peers_lost),	     COUNTER(rejected_garbage),
	COUNTER(rejected_version), COUNTER(rejected_geometry), COUNTER(rejected_timeout),
	COUNTER(rejected_limit),  COUNTER(unknown_messages), COUNTER(work_requests),
	COUNTER(doorbells),	  COUNTER(completions),	     COUNTER(syscalls),
}, how_many_now[] = {
	COUNTER(in_flight), COUNTER(arrivals_waiting), COUNTER(leases_open), COUNTER(peers_now),
};
enum { COUNTERS = sizeof(never_less) / sizeof(never_less[0]), NOW = 4 };
_Static_assert(sizeof(struct kv_stats) == sizeof(size_t) + (COUNTERS + NOW) * sizeof(uint64_t),
	       "every counter is in one of the two lists");

static uint64_t value(const struct kv_stats *stats, size_t at)
{
	uint64_t v;

	memcpy(&v, (const char *)stats + at, sizeof(v));
	return v;
}

struct onlooker {
	struct kv_engine *engine;
	atomic_bool leave;
	pthread_t thread;
	atomic_uint looks;
	const char *wrong; /* the first counter that went back, or below zero */
	struct kv_stats last;
};

static void compare(struct onlooker *o, const struct kv_stats *now)
{
	for (size_t i = 0; i < COUNTERS && !o->wrong; i++)
		if (value(now, never_less[i].at) < value(&o->last, never_less[i].at))
			o->wrong = never_less[i].name;
	for (size_t i = 0; i < NOW && !o->wrong; i++)
		if (value(now, how_many_now[i].at) > UINT32_MAX)
			o->wrong = how_many_now[i].name;
	o->last = *now;
}

static void *look(void *arg)
{
	struct onlooker *o = arg;
	bool last;

	do {
		struct kv_stats now = KV_INIT(kv_stats);

		last = atomic_load(&o->leave);
		if (kv_stats(o->engine, &now, NULL))
			o->wrong = "kv_stats failed";
		else
			compare(o, &now);
		o->looks++;
	} while (!last);
	return NULL;
}

static void onlooker_start(struct onlooker *o, struct kv_engine *engine)
{
	*o = (struct onlooker){ .engine = engine, .last = KV_INIT(kv_stats) };
	assert_int_equal(pthread_create(&o->thread, NULL, look, o), 0);
	while (!atomic_load(&o->looks)) /* it looks before there is anything, and at the end */
		usleep(1000);
}

/* What it saw last, when all was done. */
static struct kv_stats onlooker_end(struct onlooker *o)
{
	atomic_store(&o->leave, true);
	pthread_join(o->thread, NULL);
	if (o->wrong)
		fail_msg("%s, seen at look %u", o->wrong, o->looks);
	return o->last;
}

/* ---------------------------------------------------------------- what it looks at */

static void write_and_cancel(struct pair *p, struct kv_error *err)
{
	struct kv_op *op[OPS];

	for (int i = 0; i < OPS; i++)
		ok(kv_write_blocks_async(p->a.peer, p->a.cache, all_layers, from, to, N, NULL,
					 &op[i], err),
		   err);
	ok(kv_cancel(op[0], RIG_TIMEOUT_MS, err), err);
	for (int i = 1; i < OPS; i++)
		ok(kv_wait(op[i], KV_ACKED, RIG_TIMEOUT_MS, err), err);
	for (int i = 0; i < OPS; i++)
		ok(kv_op_free(op[i], err), err);
}

static void write_under_a_lease(struct pair *p, struct kv_error *err)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_lease *lease;

	ok(kv_blocks_open(p->b.peer, p->b.cache, leased, N, 1, RIG_TIMEOUT_MS, &lease, err), err);
	opts.lease = kv_lease_id(lease);
	opts.timeout_ms = RIG_TIMEOUT_MS;
	ok(kv_write_blocks(p->a.peer, p->a.cache, all_layers, from, leased, N, &opts, err), err);
	ok(kv_revoke(lease, RIG_TIMEOUT_MS, err), err);
}

static void send_and_receive(struct pair *p, uint64_t tag, struct kv_error *err)
{
	struct kv_op *recv;

	ok(kv_recv_blocks_async(p->b.peer, p->b.cache, all_layers, paired, N, tag, NULL, &recv,
				err),
	   err);
	ok(kv_send_blocks(p->a.peer, p->a.cache, all_layers, from, N, tag, NULL, err), err);
	ok(kv_wait(recv, KV_ACKED, RIG_TIMEOUT_MS, err), err);
	ok(kv_op_free(recv, err), err);
}

/* What a connection has counted goes on to count when it is closed. */
static void come_and_go(struct pair *p, struct kv_error *err)
{
	struct kv_peer *second;

	ok(kv_connect(p->a.engine, NULL, p->b.port, RIG_TIMEOUT_MS, &second, err), err);
	ok(kv_write_blocks(second, p->a.cache, all_layers, from, to, N, NULL, err), err);
	ok(kv_peer_close(second, RIG_TIMEOUT_MS, err), err);
}

static void take_arrivals(struct node *node)
{
	struct kv_arrival arrival[32];
	int n;

	while ((n = kv_poll_arrivals(node->engine, arrival, 32, &node->err)) > 0)
		for (int i = 0; i < n; i++)
			if (arrival[i].kind == KV_ARRIVAL_PEER_LOST)
				ok(kv_peer_close(arrival[i].peer, RIG_TIMEOUT_MS, &node->err),
				   &node->err);
	ok(n, &node->err);
}

static void adds_up(const struct kv_stats *s)
{
	assert_int_equal(s->in_flight, 0);
	assert_int_equal(s->leases_open, 0);
	assert_int_equal(s->writes + s->reads + s->sends + s->recvs,
			 s->ok + s->failed + s->cancelled);
}

CASE(no_counter_goes_back_while_all_goes_on)
{
	static struct onlooker at_a, at_b; /* they outlive a failure */
	struct kv_stats a, b;
	struct kv_error err;
	struct pair p;

	pair_open(&p, NULL, NULL);
	onlooker_start(&at_a, p.a.engine);
	onlooker_start(&at_b, p.b.engine);
	for (uint64_t r = 0; r < ROUNDS; r++) {
		write_and_cancel(&p, &err);
		ok(kv_read_blocks(p.a.peer, p.a.cache, all_layers, to, from, N, NULL, &err), &err);
		write_under_a_lease(&p, &err);
		send_and_receive(&p, r, &err);
		if (r % 8 == 0)
			come_and_go(&p, &err);
		take_arrivals(&p.b);
	}
	/* A receive is acknowledged before its sender's part is counted, and so on. */
	await_stat(&p.a, in_flight, 0);
	await_stat(&p.b, in_flight, 0);
	await_stat(&p.b, leases_open, 0);
	a = onlooker_end(&at_a);
	b = onlooker_end(&at_b);
	adds_up(&a);
	adds_up(&b);
	assert_int_equal(a.writes, ROUNDS * (OPS + 1) + (ROUNDS + 7) / 8);
	assert_int_equal(a.reads, ROUNDS);
	assert_int_equal(a.sends, ROUNDS);
	assert_int_equal(b.recvs, ROUNDS);
	assert_int_equal(b.leases_opened, 2 * ROUNDS);
	assert_true(at_a.looks > 1 && at_b.looks > 1);
	pair_close(&p);
}

/* ---------------------------------------------------------------- looking moves nothing */

static void *connect_a(void *arg)
{
	struct pair *p = arg;

	node_connect(&p->a, p->b.port);
	return NULL;
}

/*
 * The writer has no service thread, and something that it could post: a write whose lease comes
 * after it.
 */
CASE(looking_posts_no_block_data)
{
	struct kv_engine_config caller = KV_INIT(kv_engine_config);
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_stats stats = KV_INIT(kv_stats);
	struct shape closed = rig_shape;
	struct kv_lease *first, *second;
	struct kv_arrival arrival;
	struct kv_error err;
	static char text[65536];
	struct kv_op *op;
	pthread_t thread;
	struct pair p;

	closed.flags = 0;
	caller.progress = KV_PROGRESS_CALLER;
	node_open(&p.b, 2, &closed, NULL);
	node_listen(&p.b);
	node_open(&p.a, 1, &closed, &caller);
	assert_int_equal(pthread_create(&thread, NULL, connect_a, &p), 0);
	node_await_peer(&p.b);
	assert_int_equal(pthread_join(thread, NULL), 0);

	ok(kv_blocks_open(p.b.peer, p.b.cache, to, N, 1, RIG_TIMEOUT_MS, &first, &err), &err);
	opts.lease = kv_lease_id(first) + (1 << 16) + 1; /* serial, place in the table */
	opts.timeout_ms = RIG_TIMEOUT_MS;
	ok(kv_write_blocks_async(p.a.peer, p.a.cache, all_layers, from, leased, N, &opts, &op,
				 &err),
	   &err);
	ok(kv_blocks_open(p.b.peer, p.b.cache, leased, N, 1, RIG_TIMEOUT_MS, &second, &err), &err);
	assert_int_equal(kv_lease_id(second), opts.lease);
	for (int i = 0; i < 100; i++) {
		ok(kv_stats(p.a.engine, &stats, &err), &err);
		assert_true(kv_dump(p.a.engine, text, sizeof(text)) > 0);
		assert_true(kv_dump(p.a.engine, NULL, 0) > 0);
		assert_int_equal(kv_dump(p.a.engine, NULL, 1), KV_ERR_ARG);
		assert_int_equal(stats.spans_out, 0);
		assert_int_equal(stats.in_flight, 1);
		poll(NULL, 0, 1);
	}
	assert_true(memory_is(&p.b, all_layers, 1, from, leased, 0, 0));
	ok(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
	assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
	assert_true(memory_is(&p.b, all_layers, 1, from, leased, N, 0));
	ok(kv_op_free(op, &err), &err);
	pair_close(&p);
}
