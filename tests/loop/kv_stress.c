/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_stress.c -- groups, bursts, sends and cancels against revokes, cancelled receives and closes
 * under load; after a call that gives blocks back has returned 0 not one byte of them changes
 *
 * usage: kv_stress OPERATIONS [pool|cma|ring|tcp]
 *
 * Each lane is a writer and a receiver with a connection of their own; all lanes work at once, the
 * last one with KV_PROGRESS_CALLER. A round: the receiver opens blocks and two threads of the
 * writer fill them, one by groups, one by more asynchronous writes than there are slots and a
 * blocking one that waits for a slot. Some time later the receiver takes the blocks back and fills
 * them with a mark, which must be there when the last operation of the round has ended.
 */
#include "kv_rig.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"

enum {
	LANES = 3,
	BLOCKS = 48,
	N_MAX = 8,   /* blocks of a round */
	BURST = 132, /* more than KV_OPS_MAX */
	GROUP = 6,
	CLOSE_EVERY = 40, /* rounds */
	MARK = 0xa5,
	OP_MS = 20000,
};

static const struct kv_layers all_layers = { 0, 0 };
static uint64_t wanted; /* operations of all lanes */

struct lane {
	unsigned int number;
	struct pair p;
	bool caller;
	/* Of a round; written by the receiver before it raises `round`. */
	int64_t ids[N_MAX], source[N_MAX];
	size_t n;
	uint64_t lease; /* 0: a receive under `tag` */
	uint64_t tag;
	atomic_uint round;
	atomic_bool stop; /* the receiver has taken the blocks back */
	atomic_uint busy; /* writers that are not done with the round */
	atomic_bool over; /* no more rounds */
	_Atomic uint64_t operations;
	uint64_t rounds, taken_back, closes, lost, late, ended[64];
	pthread_mutex_t count_lock;
};

/* ---------------------------------------------------------------- the writers */

static unsigned int next_random(uint64_t *state)
{
	*state = *state * UINT64_C(6364136223846793005) + 1442695040888963407u;
	return (unsigned int)(*state >> 33);
}

/* Whatever an operation may end with while its blocks are taken away; anything else is a fault. */
static bool count_end(struct lane *lane, int code)
{
	static const int may[] = { 0,
				   KV_ERR_REVOKED,
				   KV_ERR_LEASE,
				   KV_ERR_CANCELLED,
				   KV_ERR_CLOSED,
				   KV_ERR_PEER_LOST,
				   KV_ERR_IN_DOUBT,
				   KV_ERR_TIMEOUT,
				   KV_ERR_BUSY };
	size_t i;

	for (i = 0; i < sizeof(may) / sizeof(may[0]) && may[i] != code; i++)
		;
	if (i == sizeof(may) / sizeof(may[0]))
		fail_msg("an operation ended with %s", kv_error_name(code));
	pthread_mutex_lock(&lane->count_lock);
	lane->ended[-code]++;
	pthread_mutex_unlock(&lane->count_lock);
	return !code;
}

static struct kv_options options_of(const struct lane *lane, struct kv_group *group)
{
	struct kv_options opts = KV_INIT(kv_options);

	opts.timeout_ms = slow_ms(OP_MS);
	opts.lease = lane->lease;
	opts.group = group;
	return opts;
}

/* 0 and an operation, or why there is none. */
static int begin(struct lane *lane, struct kv_group *group, struct kv_op **op_p)
{
	struct kv_options opts = options_of(lane, group);
	struct node *a = &lane->p.a;

	atomic_fetch_add(&lane->operations, 1);
	if (lane->lease)
		return kv_write_blocks_async(a->peer, a->cache, all_layers, lane->source, lane->ids,
					     lane->n, &opts, op_p, NULL);
	opts.timeout_ms = slow_ms(20); /* the receive may have been cancelled: nobody answers */
	return kv_send_blocks_async(a->peer, a->cache, all_layers, lane->source, lane->n, lane->tag,
				    &opts, op_p, NULL);
}

static void free_op(struct kv_op *op)
{
	struct kv_error err;

	ok(kv_op_free(op, &err), &err);
}

static bool by_group(struct lane *lane, uint64_t *random)
{
	struct kv_op *op[GROUP];
	struct kv_group *group;
	struct kv_error err;
	unsigned int n = 0, many = lane->lease ? 1 + next_random(random) % GROUP : 1;
	bool good = true;

	ok(kv_group_start(lane->p.a.engine, &group, &err), &err);
	for (unsigned int i = 0; i < many; i++) {
		int ret = begin(lane, group, &op[n]);

		if (!ret)
			n++;
		else
			good &= count_end(lane, ret);
	}
	if (next_random(random) % 4 == 0) /* what is only collected can be taken back, too */
		poll(NULL, 0, (int)(next_random(random) % 2));
	if (n && next_random(random) % 8 == 0)
		kv_cancel(op[next_random(random) % n], RIG_TIMEOUT_MS, NULL);
	kv_group_end(group, slow_ms(OP_MS), NULL, NULL);
	for (unsigned int i = 0; i < n; i++) {
		int ret = kv_test(op[i], NULL);

		good &= count_end(lane, ret < 0 ? ret : 0);
		free_op(op[i]);
	}
	return good;
}

static bool by_burst(struct lane *lane, uint64_t *random)
{
	struct kv_options opts = options_of(lane, NULL);
	struct node *a = &lane->p.a;
	struct kv_op *op[BURST];
	unsigned int n = 0, many = next_random(random) % 3 ? 8 : BURST;
	bool good = true;

	if (!lane->lease)
		many = 1; /* one send fills a receive */
	for (unsigned int i = 0; i < many && good; i++) {
		int ret = begin(lane, NULL, &op[n]);

		if (!ret)
			n++;
		else
			good &= ret == KV_ERR_BUSY || count_end(lane, ret);
	}
	if (lane->lease && good) {
		atomic_fetch_add(&lane->operations, 1);
		good &= count_end(lane, kv_write_blocks(a->peer, a->cache, all_layers, lane->source,
							lane->ids, lane->n, &opts, NULL));
	}
	for (unsigned int i = 0; i < n; i++) {
		if (next_random(random) % 16 == 0)
			kv_cancel(op[i], RIG_TIMEOUT_MS, NULL);
		good &= count_end(lane, kv_wait(op[i], KV_ACKED, RIG_TIMEOUT_MS, NULL));
		free_op(op[i]);
	}
	return good;
}

struct writer {
	struct lane *lane;
	bool (*write)(struct lane *lane, uint64_t *random);
	uint64_t random;
};

static void *write_rounds(void *arg)
{
	struct writer *w = arg;
	struct lane *lane = w->lane;
	unsigned int round = 0;

	for (;;) {
		while (atomic_load(&lane->round) == round && !atomic_load(&lane->over))
			if (!lane->caller || !kv_progress(lane->p.a.engine, 0, NULL))
				poll(NULL, 0, 0);
		if (atomic_load(&lane->over))
			return NULL;
		round = atomic_load(&lane->round);
		while (w->write(lane, &w->random) && !atomic_load(&lane->stop))
			;
		atomic_fetch_sub(&lane->busy, 1);
	}
}

/* ---------------------------------------------------------------- the receiver */

static void drain(struct lane *lane)
{
	struct kv_arrival arrival[16];

	kv_progress(lane->p.b.engine, 0, NULL);
	while (kv_poll_arrivals(lane->p.b.engine, arrival, 16, NULL) > 0)
		;
}

static uint8_t *bytes_of(const struct lane *lane, unsigned int i, size_t *len_p)
{
	unsigned int t = i % RIG_TENSORS, l = i / RIG_TENSORS % lane->p.b.shape.layers;

	*len_p = lane->p.b.shape.block_bytes[t];
	return block_at(&lane->p.b, l, t, lane->ids[i / RIG_TENSORS / lane->p.b.shape.layers]);
}

static void mark_blocks(const struct lane *lane)
{
	size_t len;

	for (unsigned int i = 0; i < lane->n * lane->p.b.shape.layers * RIG_TENSORS; i++) {
		uint8_t *at = bytes_of(lane, i, &len);

		memset(at, MARK, len);
	}
}

static uint64_t changed_bytes(const struct lane *lane)
{
	uint64_t changed = 0;
	size_t len;

	for (unsigned int i = 0; i < lane->n * lane->p.b.shape.layers * RIG_TENSORS; i++) {
		const volatile uint8_t *at = bytes_of(lane, i, &len);

		for (size_t k = 0; k < len; k++)
			changed += at[k] != MARK;
	}
	return changed;
}

/* Different blocks, from anywhere; the mark is never a byte of the source. */
static void choose_blocks(struct lane *lane, uint64_t *random)
{
	unsigned int first = next_random(random) % BLOCKS, step = 1 + 2 * (next_random(random) % 5);

	lane->n = 1 + next_random(random) % N_MAX;
	if (step == 3 || step == 9)
		step = 5; /* 48 has a 3 in it */
	for (size_t i = 0; i < lane->n; i++) {
		lane->ids[i] = (int64_t)((first + i * step) % BLOCKS);
		lane->source[i] = (int64_t)((first + i) % BLOCKS);
	}
}

static void await_writers(struct lane *lane)
{
	int64_t deadline = kv_deadline_ns(2 * RIG_TIMEOUT_MS);

	while (atomic_load(&lane->busy)) {
		drain(lane);
		poll(NULL, 0, 0);
		if (kv_now_ns() >= deadline)
			fail_msg("a writer of lane %u does not come back", lane->number);
	}
}

static void *connect_lane(void *arg)
{
	struct lane *lane = arg;

	node_connect(&lane->p.a, lane->p.b.port);
	return NULL;
}

static void join_lane(struct lane *lane)
{
	struct kv_arrival arrival;
	pthread_t thread;

	assert_int_equal(pthread_create(&thread, NULL, connect_lane, lane), 0);
	do {
		kv_progress(lane->p.b.engine, 1, NULL);
		if (kv_poll_arrivals(lane->p.b.engine, &arrival, 1, NULL) < 1)
			arrival.kind = 0;
	} while (arrival.kind != KV_ARRIVAL_PEER_UP);
	lane->p.b.peer = arrival.peer;
	assert_int_equal(pthread_join(thread, NULL), 0);
}

/* Closes what the lease or receive belongs to; the writers get a new connection after the round. */
static int close_peer(struct lane *lane)
{
	int ret = kv_peer_close(lane->p.b.peer, RIG_TIMEOUT_MS, &lane->p.b.err);

	ok(ret, &lane->p.b.err);
	lane->closes++;
	return ret;
}

static void join_again(struct lane *lane)
{
	ok(kv_peer_close(lane->p.a.peer, RIG_TIMEOUT_MS, &lane->p.a.err), &lane->p.a.err);
	join_lane(lane);
}

/* The threads of a busy machine may stand still for so long that one end gives the other up. */
static bool is_lost(struct lane *lane, int ret)
{
	if (ret != KV_ERR_PEER_LOST)
		ok(ret, &lane->p.b.err);
	return ret == KV_ERR_PEER_LOST;
}

static void play(struct lane *lane, uint64_t *random)
{
	struct node *b = &lane->p.b;
	bool closes = next_random(random) % CLOSE_EVERY == 0, recv = next_random(random) % 3 == 0;
	struct kv_lease *lease = NULL;
	struct kv_op *op = NULL;
	int ret;

	choose_blocks(lane, random);
	lane->tag = ++lane->rounds;
	lane->lease = 0;
	if (recv)
		ret = kv_recv_blocks_async(b->peer, b->cache, all_layers, lane->ids, lane->n,
					   lane->tag, NULL, &op, &b->err);
	else
		ret = kv_blocks_open(b->peer, b->cache, lane->ids, lane->n, lane->tag,
				     RIG_TIMEOUT_MS, &lease, &b->err);
	if (is_lost(lane, ret)) {
		lane->lost++;
		close_peer(lane);
		join_again(lane);
		return;
	}
	if (lease)
		lane->lease = kv_lease_id(lease);
	atomic_store(&lane->stop, false);
	atomic_store(&lane->busy, 2);
	atomic_fetch_add(&lane->round, 1);
	for (unsigned int i = next_random(random) % 8; i; i--) {
		drain(lane);
		poll(NULL, 0, (int)(next_random(random) % 2));
	}
	if (closes)
		close_peer(lane);
	else if (lease)
		ok(kv_revoke(lease, RIG_TIMEOUT_MS, &b->err), &b->err);
	else
		ok(kv_cancel(op, RIG_TIMEOUT_MS, &b->err), &b->err);
	mark_blocks(lane);
	lane->taken_back++;
	atomic_store(&lane->stop, true);
	await_writers(lane);
	lane->late += changed_bytes(lane);
	if (op)
		free_op(op);
	if (!closes)
		return;
	join_again(lane);
}

static void open_lane(struct lane *lane)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct shape shape = rig_shape;

	lane->caller = lane->number == LANES - 1;
	config.progress = lane->caller ? KV_PROGRESS_CALLER : KV_PROGRESS_AUTO;
	shape.flags = 0;
	shape.layers = 2;
	shape.blocks = BLOCKS;
	shape.block_bytes[0] = shape.stride[0] = 16384;
	shape.block_bytes[1] = 6000;
	shape.stride[1] = 8192;
	node_open(&lane->p.b, 2, &shape, &config);
	node_listen(&lane->p.b);
	node_open(&lane->p.a, 1, &shape, &config);
	memset(lane->p.a.mem, 0x11, lane->p.a.len);
	join_lane(lane);
}

static void *run_lane(void *arg)
{
	struct lane *lane = arg;
	uint64_t random = 1000 + lane->number;
	struct writer writer[2] = { { lane, by_group, 1 + lane->number },
				    { lane, by_burst, 100 + lane->number } };
	pthread_t thread[2];

	for (int i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, write_rounds, &writer[i]), 0);
	while (atomic_load(&lane->operations) < wanted / LANES)
		play(lane, &random);
	atomic_store(&lane->over, true);
	for (int i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	return NULL;
}

CASE(no_byte_is_late)
{
	static struct lane lane[LANES];
	pthread_t thread[LANES];
	uint64_t operations = 0, late = 0, back = 0, closes = 0, lost = 0;

	for (unsigned int i = 0; i < LANES; i++) {
		lane[i].number = i;
		pthread_mutex_init(&lane[i].count_lock, NULL);
		open_lane(&lane[i]);
	}
	for (unsigned int i = 0; i < LANES; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, run_lane, &lane[i]), 0);
	for (unsigned int i = 0; i < LANES; i++) {
		pthread_join(thread[i], NULL);
		operations += lane[i].operations;
		late += lane[i].late;
		back += lane[i].taken_back;
		closes += lane[i].closes;
		lost += lane[i].lost;
	}
	printf("%llu operations, blocks taken back %llu times, %llu of them by a close, %llu losses: %llu bytes late; ended",
	       (unsigned long long)operations, (unsigned long long)back, (unsigned long long)closes,
	       (unsigned long long)lost, (unsigned long long)late);
	for (int code = 0; code < 64; code++) {
		uint64_t n = 0;

		for (unsigned int i = 0; i < LANES; i++)
			n += lane[i].ended[code];
		if (n)
			printf(" %s %llu", kv_error_name(-code), (unsigned long long)n);
	}
	printf("\n");
	for (unsigned int i = 0; i < LANES; i++)
		pair_close(&lane[i].p);
	assert_int_equal(late, 0);
	assert_true(lost <= back / 10); /* 2 % with six tests on two cores, under a sanitizer */
}

int main(int argc, char **argv)
{
	wanted = argc > 1 ? strtoull(argv[1], NULL, 10) : 10000;
	if (argc > 2)
		rig_path(argv[2]);
	return run_cases(NULL, NULL);
}
