/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr_end.c -- how connections end: killed, stopped and fenced peers; what stays behind. "tr_end ib"
 * is the same over verbs, where there are devices (tests/rxe).
 */
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

#include "base/fault.h"
#include "lib/process.h"
#include "lib/test.h"
#include "tr_pair.h"

enum { REGION = 1 << 20, SOURCE_SEED = 1, TARGET_SEED = 2 };

static const struct pair_config by_path[] = {
	{ .parent_pool = true, .child_pool = true, .region = REGION },
	{ .region = REGION },
	{ .parent_path = "ring", .child_path = "ring", .region = REGION, .ring = 65536 },
	{ .parent_path = "tcp", .child_path = "tcp", .region = REGION },
	{ .parent_path = "tcp",
	  .child_path = "tcp",
	  .region = REGION,
	  .option = "KVCACHE_TCP_STREAMS=3" },
	{ .parent_path = "ib", .child_path = "ib", .region = REGION },
};

enum { BY_POOL, BY_CMA, BY_RING, BY_TCP, BY_STREAMS, BY_IB };

struct test {
	const struct pair_config *config;
	pair_fn *parent, *child;
	int exit;   /* of the child; -signal */
	bool fence; /* goodbye: before the close */
};
static const struct test *test;

static void run(void **state)
{
	test = *state;
	assert_int_equal(pair_run(test->config, test->parent, test->child), test->exit);
}

/* Connected, and each side's memory is its own. */
static void begin(struct pair_side *s)
{
	pair_up(s);
	pair_fill(s->base, s->child ? TARGET_SEED : SOURCE_SEED, 0, REGION);
	pair_meet(s);
}

/* ---------------------------------------------------------------- killed */

/* A process that dies takes a moment: its memory goes first, then its pidfd tells. */
static int fence_to_the_end(struct pair_side *s, int64_t within_ms, struct kv_error *err)
{
	int64_t deadline_ns = kv_deadline_ns(within_ms);
	int ret;

	while ((ret = tr_fence(s->conn, INT64_MAX, err)) == TR_AGAIN) {
		PAIR_CHECK(kv_now_ns() < deadline_ns);
		poll(NULL, 0, 1);
	}
	return ret;
}

/* On a busy machine a peer that is alive and well may take longer than the fence's patience. */
static void fence_patiently(struct pair_side *s)
{
	int64_t deadline_ns = kv_deadline_ns(PAIR_WAIT_MS);
	struct kv_error err;
	int ret;

	while ((ret = tr_fence(s->conn, INT64_MAX, &err))) {
		PAIR_CHECK(ret == TR_AGAIN || ret == KV_ERR_BUSY);
		PAIR_CHECK(kv_now_ns() < deadline_ns);
		poll(NULL, 0, 1);
	}
}

/* Writes until something says no; returns that. */
static int write_until_refused(struct pair_side *s, unsigned int *begun_p, struct kv_error *err)
{
	static const struct tr_span span = { .len = 50000 };
	int64_t deadline_ns = kv_deadline_ns(PAIR_WAIT_MS);

	for (;;) {
		struct tr_op *op;
		int ret = tr_op_begin(s->conn, TR_WRITE, 0, &op, err);
		long done = 0;

		PAIR_CHECK(kv_now_ns() < deadline_ns);
		if (ret < 0)
			return ret;
		if (ret == TR_AGAIN) {
			pair_poll(s, 10);
			continue;
		}
		if (++*begun_p == 50)
			PAIR_CHECK(!kill(s->other, SIGKILL));
		while (!ret && !done) {
			PAIR_CHECK(kv_now_ns() < deadline_ns);
			done = tr_op_add(op, s->mem, s->rmem, &span, 1, err);
			if (!done)
				pair_poll(s, 10);
		}
		while (done > 0 && (ret = tr_op_commit(op, TR_NOTIFY, 1, err)) == TR_AGAIN) {
			PAIR_CHECK(kv_now_ns() < deadline_ns);
			pair_poll(s, 10);
		}
		if (done < 0 || ret < 0)
			return done < 0 ? (int)done : ret;
		pair_poll(s, 0);
	}
}

static void killed_parent(struct pair_side *s)
{
	unsigned int begun = 0;
	struct kv_error err;

	begin(s);
	PAIR_CHECK(write_until_refused(s, &begun, &err) == KV_ERR_PEER_LOST);
	PAIR_CHECK(err.code == KV_ERR_PEER_LOST && err.message[0]);
	pair_wait_lost(s, PAIR_SOON_MS);
	PAIR_CHECK(s->cause.code == KV_ERR_PEER_LOST);
	PAIR_CHECK(s->ended == begun); /* each exactly once, and before the loss */
	fence_patiently(s);
	pair_down(s);
}

static void killed_child(struct pair_side *s)
{
	begin(s);
	for (;;)
		pair_poll(s, 100);
}

static void sleeper_parent(struct pair_side *s)
{
	int64_t t;

	begin(s);
	t = kv_now_ns();
	pair_wait_lost(s, PAIR_SOON_MS); /* one long sleep */
	PAIR_CHECK(kv_now_ns() - t < PAIR_SOON_MS * KV_NS_PER_MS);
	PAIR_CHECK(s->cause.code == KV_ERR_PEER_LOST);
	pair_down(s);
}

static void sleeper_child(struct pair_side *s)
{
	begin(s);
	poll(NULL, 0, 50);
	kill(getpid(), SIGKILL);
}

/* ---------------------------------------------------------------- closed */

enum { LAST_WORDS = 20, LAST_LEN = 15000 };

static void goodbye_parent(struct pair_side *s)
{
	struct tr_span span = { .local = 3, .remote = 77, .len = LAST_LEN };
	struct kv_error err;

	begin(s);
	for (uint64_t i = 0; i < LAST_WORDS; i++)
		pair_send(s, &i, sizeof(i));
	for (uint64_t i = 0; i < 2; i++) {
		struct tr_op *op = pair_begin(s, TR_WRITE, i);

		pair_add(s, op, &span, 1);
		pair_commit(s, op, TR_NOTIFY, i);
	}
	/* At once; with a fence before it as a KV engine does it, which nobody answers here. */
	if (test->fence)
		fence_to_the_end(s, PAIR_SOON_MS, &err);
	pair_down(s);
	pair_say(s, 1);
}

static void goodbye_child(struct pair_side *s)
{
	bool ring = test->config == &by_path[BY_RING], ib = test->config == &by_path[BY_IB];

	begin(s);
	PAIR_CHECK(pair_hear(s) == 1); /* the parent's end is closed and unmapped */
	pair_wait_lost(s, PAIR_SOON_MS);
	PAIR_CHECK(s->cause.code == KV_ERR_PEER_LOST);
	PAIR_CHECK(s->msgs == LAST_WORDS);
	for (uint64_t i = 0; i < LAST_WORDS; i++)
		PAIR_CHECK(!memcmp(s->msg[i], &i, sizeof(i)));
	if (test->fence && ring) { /* after a fence no byte of the parent leaves the ring */
		PAIR_CHECK(!s->notifies);
		PAIR_CHECK(pair_differs(s->base, TARGET_SEED, 0, REGION) < 0);
	} else if (!test->fence || !ib ||
		   s->notifies == 2) { /* ib: what left before the fence arrives */
		PAIR_CHECK(s->notifies == 2);
		PAIR_CHECK(pair_differs(s->base + 77, SOURCE_SEED, 3, LAST_LEN) < 0);
	}
	pair_down(s);
}

/* ---------------------------------------------------------------- fenced */

static void stopped_parent(struct pair_side *s)
{
	int64_t deadline_ns;
	struct kv_error err;
	int ret;

	begin(s);
	PAIR_CHECK(stop_process(s->other));
	ret = fence_to_the_end(s, PAIR_WAIT_MS, &err);
	if (s->config->parent_path) {
		PAIR_CHECK(!ret); /* this side copies, or has destroyed its queue pairs */
	} else {
		PAIR_CHECK(ret == KV_ERR_BUSY && err.code == KV_ERR_BUSY);
		PAIR_CHECK(strstr(err.message, "does not answer"));
		PAIR_CHECK(tr_fence(s->conn, INT64_MAX, &err) == KV_ERR_BUSY);
	}
	PAIR_CHECK(!kill(s->other, SIGKILL));
	deadline_ns = kv_deadline_ns(PAIR_SOON_MS);
	while ((ret = tr_fence(s->conn, INT64_MAX, &err)))
		PAIR_CHECK(kv_now_ns() < deadline_ns && (ret == KV_ERR_BUSY || ret == TR_AGAIN));
	pair_wait_lost(s, PAIR_SOON_MS);
	pair_down(s);
}

static void fence_parent(struct pair_side *s)
{
	uint8_t *copy = malloc(REGION);

	PAIR_CHECK(copy);
	begin(s);
	pair_wait_notifies(s, 200);
	fence_patiently(s);
	memcpy(copy, s->base, REGION);
	pair_wait_lost(s, PAIR_SOON_MS);
	poll(NULL, 0, 30);
	PAIR_CHECK(!memcmp(copy, s->base, REGION));
	PAIR_CHECK(pair_hear(s) == 1); /* the child has noticed */
	PAIR_CHECK(!memcmp(copy, s->base, REGION));
	pair_say(s, 2);
	free(copy);
	pair_down(s);
}

/* Writes as fast as it can, something else each time. */
static void fence_child(struct pair_side *s)
{
	struct tr_span span = { .len = 20000 };
	struct kv_error err;
	uint64_t i = 0;
	int ret = 0;

	begin(s);
	while (!s->lost && ret >= 0) {
		struct tr_op *op;
		long done = 0;

		ret = tr_op_begin(s->conn, TR_WRITE, i, &op, &err);
		while (!ret && !s->lost && !done) {
			memset(s->base, (int)++i, 8);
			span.remote = i * 977 % (REGION - 20000);
			done = tr_op_add(op, s->mem, s->rmem, &span, 1, &err);
			pair_poll(s, done ? 0 : 1);
		}
		while (done > 0 && !s->lost && tr_op_commit(op, TR_NOTIFY, i, &err) == TR_AGAIN)
			pair_poll(s, 1);
		pair_poll(s, 0);
	}
	pair_wait_lost(s, PAIR_SOON_MS);
	PAIR_CHECK(s->cause.code == KV_ERR_PEER_LOST);
	pair_say(s, 1);
	PAIR_CHECK(pair_hear(s) == 2); /* the parent has looked */
	pair_down(s);
}

/* ---------------------------------------------------------------- what stays behind */

static unsigned int count_shared_mappings(void)
{
	FILE *f = fopen("/proc/self/maps", "re");
	char line[512];
	unsigned int n = 0;

	PAIR_CHECK(f);
	while (fgets(line, sizeof(line), f))
		n += strstr(line, "kvrail-") != NULL;
	fclose(f);
	return n;
}

static void forget(struct pair_side *s)
{
	tr_conn_close(s->conn);
	s->conn = NULL;
	s->rmem = NULL;
	s->notifies = s->msgs = s->ended = 0;
	s->lost = false;
}

/* One write with a notify each way; 0, or what refused it. */
static int try_exchange(struct pair_side *s, struct kv_error *err)
{
	struct tr_span span = { .local = 5, .remote = 6, .len = 4097 };
	int64_t deadline_ns = kv_deadline_ns(PAIR_WAIT_MS);
	struct tr_op *op;
	long done;
	int ret;

	if (tr_op_begin(s->conn, TR_WRITE, 1, &op, err))
		return err->code;
	done = tr_op_add(op, s->mem, s->rmem, &span, 1, err);
	if (done < 0)
		return (int)done;
	/* A copy by process_vm that another thread makes may take longer on a busy machine. */
	while ((ret = tr_op_commit(op, TR_NOTIFY, 1, err)) == TR_AGAIN) {
		PAIR_CHECK(kv_now_ns() < deadline_ns);
		pair_poll(s, 20);
	}
	if (ret)
		return ret;
	while (!s->lost && (s->notifies < 1 || s->ended < 1)) {
		PAIR_CHECK(kv_now_ns() < deadline_ns);
		pair_poll(s, 20);
	}
	*err = s->cause;
	return s->lost ? s->cause.code : 0;
}

enum { CYCLES = 50 };

/* What is to be the same before and after. */
struct holding {
	int fds;
	unsigned int maps;
};

static struct holding hold(void)
{
	return (struct holding){ count_descriptors(), count_shared_mappings() };
}

/* A queue pair is destroyed, and its channel closed, by a thread that outlives tr_conn_close. */
static bool back_to(struct holding before)
{
	int64_t deadline_ns = kv_deadline_ns(PAIR_WAIT_MS);

	for (;;) {
		struct holding now = hold();

		if (now.fds <= before.fds && now.maps <= before.maps)
			return true;
		if (kv_now_ns() >= deadline_ns)
			return false;
		poll(NULL, 0, 5);
	}
}

static struct holding settled(void)
{
	struct holding was = hold();

	for (int same = 0; same < 10; same++) {
		struct holding now;

		poll(NULL, 0, 5);
		now = hold();
		if (now.fds != was.fds || now.maps != was.maps) {
			was = now;
			same = 0;
		}
	}
	return was;
}

static void cycles(struct pair_side *s)
{
	struct holding before = { 0 };
	struct kv_error err;

	pair_open(s);
	for (int i = 0; i < CYCLES; i++) {
		PAIR_CHECK(!pair_connect(s, &err));
		PAIR_CHECK(!try_exchange(s, &err));
		pair_meet(s);
		forget(s);
		if (!i) /* the first may warm something up */
			before = settled();
	}
	PAIR_CHECK(back_to(before));
	pair_down(s);
}

/* ---------------------------------------------------------------- each fault point once */

#ifdef KVRAIL_FAULTS

/*
 * Both sides do the same: with `point` armed on one of them a connection is made and used; whatever
 * happened, the next one works. Returns whether the point was passed here.
 */
static bool fault_once(struct pair_side *s, enum kv_fault_point point, bool mine)
{
	struct kv_error err;
	bool fired;
	int ret;

	if (mine)
		kv_fault_arm(point, 1);
	ret = pair_connect(s, &err);
	if (!ret)
		ret = try_exchange(s, &err);
	fired = mine && kv_fault_fired(point);
	if (mine)
		kv_fault_arm(point, 0);
	if (ret) {
		char line[1024];

		PAIR_CHECK(err.code == ret && err.message[0]);
		kv_error_format(&err, line, sizeof(line));
		PAIR_CHECK(strlen(line) > 20);
	}
	/* Meet without the connection: it may be gone on one side only. */
	if (!ret && !s->lost)
		pair_poll(s, 0);
	pair_say(s, 7);
	PAIR_CHECK(pair_hear(s) == 7);
	forget(s);
	ret = pair_connect(s, &err);
	if (ret)
		fprintf(stderr, "after %s: %s\n", kv_fault_name(point), err.message);
	PAIR_CHECK(!ret);
	PAIR_CHECK(!try_exchange(s, &err));
	pair_meet(s);
	forget(s);
	return fired;
}

static void sweep(struct pair_side *s)
{
	struct holding before;
	unsigned int bad = 0;
	bool tcp = s->config == &by_path[BY_STREAMS], cma = !s->config->parent_pool;
	int first = tcp ? KV_FAULT_TCP_CONN : KV_FAULT_SHM_CONN;
	int last = tcp ? KV_FAULT_TCP_RECEIVE : KV_FAULT_SHM_RMEM;
	struct kv_error err;

	pair_open(s);
	PAIR_CHECK(!pair_connect(s, &err));
	PAIR_CHECK(!try_exchange(s, &err));
	pair_meet(s);
	forget(s);
	before = settled();
	for (int p = first; p <= last; p++) {
		bool here = fault_once(s, (enum kv_fault_point)p, !s->child);
		bool there = fault_once(s, (enum kv_fault_point)p, s->child);
		bool by_pool = p == KV_FAULT_SHM_POOL_MMAP,
		     by_cma = p == KV_FAULT_SHM_PROCESS_VM || p == KV_FAULT_SHM_CALL;

		pair_say(s, here || there);
		if (!pair_hear(s) && !here && !there && !(by_pool && cma) && !(by_cma && !cma)) {
			fprintf(stderr, "%s is never passed\n",
				kv_fault_name((enum kv_fault_point)p));
			bad++;
		}
		PAIR_CHECK(back_to(before));
	}
	PAIR_CHECK(!bad);
	pair_down(s);
}

static void a_context_that_cannot_be_allocated_is_an_error(void **state)
{
	static const enum kv_fault_point points[] = { KV_FAULT_SHM_CTX, KV_FAULT_TCP_CTX };
	struct kv_option_set *options;
	struct kv_error err;
	struct tr *tr;

	assert_int_equal(kv_option_read(NULL, &options, &err), 0);
	for (int i = 0; i < 2; i++) {
		kv_fault_arm(points[i], 1);
		assert_int_equal(tr_open(&(struct tr_config){ .options = options }, &tr, &err),
				 KV_ERR_NOMEM);
		assert_int_equal(err.code, KV_ERR_NOMEM);
	}
	assert_int_equal(tr_open(&(struct tr_config){ .options = options }, &tr, &err), 0);
	tr_close(tr);
	kv_option_free(options);
}

#endif

/* clang-format off */
#define TEST(sentence, path, ...) \
	{ #sentence " (" #path ")", run, NULL, NULL, &(struct test){ &by_path[path], __VA_ARGS__ } }
#define ON(path) \
	TEST(a_killed_peer_ends_every_operation_soon, path, \
	     killed_parent, killed_child, -SIGKILL, false), \
	TEST(a_sleeping_process_is_woken_by_its_peers_death, path, \
	     sleeper_parent, sleeper_child, -SIGKILL, false), \
	TEST(messages_and_bytes_arrive_before_the_loss, path, \
	     goodbye_parent, goodbye_child, 0, false), \
	TEST(messages_arrive_before_a_fence_and_the_loss, path, \
	     goodbye_parent, goodbye_child, 0, true), \
	TEST(a_fence_is_busy_while_a_stopped_writer_lives_and_done_when_it_is_gone, path, \
	     stopped_parent, killed_child, -SIGKILL, false), \
	TEST(after_a_fence_no_byte_of_a_busy_writer_lands, path, \
	     fence_parent, fence_child, 0, false), \
	TEST(fifty_connections_leave_no_descriptor_and_no_mapping, path, cycles, cycles, 0, false)
#define SWEEP(path) \
	TEST(each_fault_fails_once_and_the_next_connection_works, path, sweep, sweep, 0, false)
/* clang-format on */

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		ON(BY_POOL),	   ON(BY_CMA),
		ON(BY_RING),	   ON(BY_TCP),
		ON(BY_STREAMS),
#ifdef KVRAIL_FAULTS
		SWEEP(BY_POOL),	   SWEEP(BY_CMA),
		SWEEP(BY_STREAMS), cmocka_unit_test(a_context_that_cannot_be_allocated_is_an_error),
#endif
	};
	const struct CMUnitTest over_ib[] = { ON(BY_IB) };

	if (argc > 1 && !strcmp(argv[1], "ib"))
		return cmocka_run_group_tests(over_ib, NULL, NULL);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
