/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_fence_test.c -- after a revoke or a close returned 0 no byte lands, whatever the operation was
 * waiting for when it came
 */
#include "kv_rig.h"

#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "lib/deaf.h"
#include "frame.h"

enum { N = 5 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t source[N] = { 1, 2, 3, 50, 7 }, opened[N] = { 20, 21, 22, 90, 4 };

static struct pair p;
static const char *path;
static bool caller_mode;
static pthread_t driver;
static atomic_bool driving;

/* With KV_PROGRESS_CALLER the two engines advance in a thread of the application's. */
static void *drive(void *arg)
{
	while (atomic_load(&driving)) {
		kv_progress(p.a.engine, 0, NULL);
		kv_progress(p.b.engine, 0, NULL);
		poll(NULL, 0, 1);
	}
	return NULL;
}

static void *connect_a(void *arg)
{
	node_connect(&p.a, p.b.port);
	return NULL;
}

static void open_pair(bool caller)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct shape shape = rig_shape;
	pthread_t thread;

	shape.flags = 0; /* closed: only leases open it */
	config.progress = caller ? KV_PROGRESS_CALLER : KV_PROGRESS_AUTO;
	caller_mode = caller;
	node_open(&p.b, 2, &shape, &config);
	node_listen(&p.b);
	node_open(&p.a, 1, &shape, &config);
	assert_int_equal(pthread_create(&thread, NULL, connect_a, NULL), 0);
	node_await_peer(&p.b);
	if (caller) {
		atomic_store(&driving, true);
		assert_int_equal(pthread_create(&driver, NULL, drive, NULL), 0);
	}
	assert_int_equal(pthread_join(thread, NULL), 0);
}

static int setup(void **state)
{
	open_pair(false);
	return 0;
}

static int setup_caller(void **state)
{
	open_pair(true);
	return 0;
}

static int teardown(void **state)
{
	if (caller_mode) {
		atomic_store(&driving, false);
		pthread_join(driver, NULL);
	}
	pair_close(&p);
	return 0;
}

#define CASE_IN_BOTH_MODES(name)                                                    \
	static void name(void **state);                                             \
	CASE_ENTRY(name##_caller, name, #name " (caller)", setup_caller, teardown); \
	CASE_WITH(name, setup, teardown)

static struct kv_lease *open_lease(int64_t lifetime_ms)
{
	struct kv_lease *lease = NULL;

	ok(kv_blocks_open(p.b.peer, p.b.cache, opened, N, 1, lifetime_ms, &lease, &p.b.err),
	   &p.b.err);
	return lease;
}

static void revoke(struct kv_lease *lease)
{
	struct kv_error err;

	ok(kv_revoke(lease, RIG_TIMEOUT_MS, &err), &err);
}

static struct kv_group *start_group(void)
{
	struct kv_group *group = NULL;
	struct kv_error err;

	ok(kv_group_start(p.a.engine, &group, &err), &err);
	return group;
}

static struct kv_op *collect_write(struct kv_group *group, const struct kv_lease *lease,
				   const int64_t *to)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_op *op = NULL;
	struct kv_error err;

	opts.group = group;
	opts.lease = kv_lease_id(lease);
	ok(kv_write_blocks_async(p.a.peer, p.a.cache, all_layers, source, to, N, &opts, &op, &err),
	   &err);
	return op;
}

static int end_group(struct kv_group *group, struct kv_op *op)
{
	struct kv_error err;
	int ret = kv_group_end(group, RIG_TIMEOUT_MS, NULL, &err);

	assert_int_equal(kv_test(op, NULL), ret ? ret : KV_ACKED);
	ok(kv_op_free(op, &err), &err);
	return ret;
}

/* What the other engine did is known once its message is here. */
static void await_end(struct kv_op *op, int want)
{
	int64_t deadline = kv_deadline_ns(RIG_TIMEOUT_MS);

	while (kv_test(op, NULL) == KV_NONE && kv_now_ns() < deadline)
		poll(NULL, 0, 1);
	assert_int_equal(kv_test(op, NULL), want);
}

static void nothing_landed(void)
{
	assert_true(memory_is(&p.b, all_layers, 1, NULL, NULL, 0, 0));
}

/* ---------------------------------------------------------------- collected by a group */

CASE_IN_BOTH_MODES(a_lease_revoked_before_the_group_ends_takes_nothing)
{
	struct kv_lease *lease = open_lease(RIG_TIMEOUT_MS);
	struct kv_group *group = start_group();
	struct kv_op *op = collect_write(group, lease, opened);

	revoke(lease);
	await_end(op, KV_ERR_REVOKED); /* known before its group ends */
	assert_int_equal(end_group(group, op), KV_ERR_REVOKED);
	nothing_landed();
}

/* As every other call of a group: the call itself says what is wrong. */
CASE_IN_BOTH_MODES(a_receive_of_wrong_blocks_is_not_collected)
{
	static const int64_t beyond[] = { 1, 2, 1 << 20 }, twice[] = { 1, 2, 1 };
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_error err;
	struct kv_op *op = NULL;
	size_t failed = 1;

	opts.group = start_group();
	assert_int_equal(kv_recv_blocks_async(p.a.peer, p.a.cache, all_layers, beyond, 3, 1, &opts,
					      &op, &err),
			 KV_ERR_BLOCK_ID);
	assert_int_equal(err.block_index, 2);
	assert_int_equal(err.block_id, 1 << 20);
	assert_int_equal(kv_recv_blocks_async(p.a.peer, p.a.cache, all_layers, twice, 3, 1, &opts,
					      &op, &err),
			 KV_ERR_DUP_BLOCK);
	assert_int_equal(err.block_index, 2);
	assert_null(op);
	ok(kv_group_end(opts.group, RIG_TIMEOUT_MS, &failed, &err), &err);
	assert_int_equal(failed, 0);
}

CASE_IN_BOTH_MODES(the_next_lease_of_the_same_blocks_does_not_let_it_in)
{
	struct kv_lease *lease = open_lease(RIG_TIMEOUT_MS);
	struct kv_group *group = start_group();
	struct kv_op *op = collect_write(group, lease, opened);

	revoke(lease);
	lease = open_lease(RIG_TIMEOUT_MS);
	assert_int_equal(end_group(group, op), KV_ERR_REVOKED);
	nothing_landed();
	revoke(lease);
}

CASE_IN_BOTH_MODES(a_lease_that_expired_and_was_revoked_takes_nothing)
{
	struct kv_lease *lease = open_lease(slow_ms(20));
	struct kv_group *group = start_group();
	struct kv_op *op = collect_write(group, lease, opened);
	struct kv_arrival arrival;

	assert_true(await_kind(&p.b, KV_ARRIVAL_EXPIRED, &arrival, RIG_TIMEOUT_MS));
	revoke(lease);
	assert_int_equal(end_group(group, op), KV_ERR_REVOKED);
	nothing_landed();
}

CASE_IN_BOTH_MODES(a_send_does_not_find_a_receive_that_was_cancelled)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_op *recv, *send;
	struct kv_group *group = start_group();
	struct kv_error err;

	ok(kv_recv_blocks_async(p.b.peer, p.b.cache, all_layers, opened, N, 8, NULL, &recv, &err),
	   &err);
	opts.group = group;
	opts.timeout_ms = slow_ms(50);
	ok(kv_send_blocks_async(p.a.peer, p.a.cache, all_layers, source, N, 8, &opts, &send, &err),
	   &err);
	ok(kv_cancel(recv, RIG_TIMEOUT_MS, &err), &err);
	assert_int_equal(end_group(group, send), KV_ERR_TIMEOUT);
	ok(kv_op_free(recv, &err), &err);
	nothing_landed();
}

CASE_IN_BOTH_MODES(ids_are_asked_again_when_they_are_posted)
{
	struct kv_lease *lease = open_lease(RIG_TIMEOUT_MS);
	struct kv_group *group = start_group();
	int64_t to[N];
	struct kv_op *op;

	memcpy(to, opened, sizeof(to));
	op = collect_write(group, lease, to);
	to[2] = 23; /* not of the lease */
	assert_int_equal(end_group(group, op), KV_ERR_LEASE);
	group = start_group();
	memcpy(to, opened, sizeof(to));
	op = collect_write(group, lease, to);
	to[2] = to[3];
	assert_int_equal(end_group(group, op), KV_ERR_DUP_BLOCK);
	nothing_landed();
	revoke(lease);
}

CASE_IN_BOTH_MODES(what_a_group_collected_can_be_cancelled)
{
	struct kv_lease *lease = open_lease(RIG_TIMEOUT_MS);
	struct kv_group *group = start_group();
	struct kv_op *op = collect_write(group, lease, opened);
	struct kv_error err;

	ok(kv_cancel(op, RIG_TIMEOUT_MS, &err), &err);
	assert_int_equal(end_group(group, op), KV_ERR_CANCELLED);
	nothing_landed();
	revoke(lease);
}

/* ---------------------------------------------------------------- waiting for a slot */

static void *write_blocking(void *arg)
{
	struct kv_options opts = KV_INIT(kv_options);
	static int ret;

	opts.lease = *(uint64_t *)arg;
	opts.timeout_ms = RIG_TIMEOUT_MS;
	ret = kv_write_blocks(p.a.peer, p.a.cache, all_layers, source, opened, N, &opts, NULL);
	return &ret;
}

static void await_waiting_op(void)
{
	int64_t deadline = kv_deadline_ns(RIG_TIMEOUT_MS);
	static char text[1 << 16];

	do {
		kv_dump(p.a.engine, text, sizeof(text));
		if (strstr(text, "operations_not_begun 1"))
			return;
		poll(NULL, 0, 1);
	} while (kv_now_ns() < deadline);
	fail_msg("no operation waits for a slot:\n%s", text);
}

static void fill_slots(struct kv_op *op[KV_OPS_MAX])
{
	struct kv_error err;

	for (int i = 0; i < KV_OPS_MAX; i++)
		ok(kv_send_blocks_async(p.a.peer, p.a.cache, all_layers, source, N, 99, NULL,
					&op[i], &err),
		   &err);
}

static void free_slots(struct kv_op *op[KV_OPS_MAX])
{
	struct kv_error err;

	for (int i = 0; i < KV_OPS_MAX; i++) {
		ok(kv_cancel(op[i], RIG_TIMEOUT_MS, &err), &err);
		ok(kv_op_free(op[i], &err), &err);
	}
}

CASE_IN_BOTH_MODES(a_write_that_waits_for_a_slot_learns_of_the_revoke)
{
	struct kv_lease *lease = open_lease(RIG_TIMEOUT_MS);
	uint64_t id = kv_lease_id(lease);
	struct kv_op *op[KV_OPS_MAX];
	pthread_t thread;
	void *ret;

	fill_slots(op);
	assert_int_equal(pthread_create(&thread, NULL, write_blocking, &id), 0);
	await_waiting_op();
	revoke(lease);
	pthread_join(thread, &ret); /* while every slot is taken still */
	assert_int_equal(*(int *)ret, KV_ERR_REVOKED);
	free_slots(op);
	nothing_landed();
}

CASE_IN_BOTH_MODES(it_gets_its_slot_when_one_is_free)
{
	struct kv_lease *lease = open_lease(RIG_TIMEOUT_MS);
	uint64_t id = kv_lease_id(lease);
	struct kv_op *op[KV_OPS_MAX];
	pthread_t thread;
	void *ret;

	fill_slots(op);
	assert_int_equal(pthread_create(&thread, NULL, write_blocking, &id), 0);
	await_waiting_op();
	free_slots(op);
	pthread_join(thread, &ret);
	assert_int_equal(*(int *)ret, 0);
	assert_true(memory_is(&p.b, all_layers, 1, source, opened, N, 0));
	revoke(lease);
}

/* ---------------------------------------------------------------- a handshake half over */

static atomic_bool connected, closed;
enum { MINE = 0xa5 };

/* Writes into every block as long as the connection lasts. */
static void *connect_and_write(void *arg)
{
	int64_t ids[RIG_BLOCKS];

	for (int64_t i = 0; i < RIG_BLOCKS; i++)
		ids[i] = i;
	node_connect(&p.a, p.b.port);
	atomic_store(&connected, true);
	while (!atomic_load(&closed)) {
		struct kv_op *op;

		if (kv_write_blocks_async(p.a.peer, p.a.cache, all_layers, ids, ids, RIG_BLOCKS,
					  NULL, &op, NULL))
			continue;
		kv_cancel(op, RIG_TIMEOUT_MS, NULL);
		kv_op_free(op, NULL);
	}
	return NULL;
}

/* Lets b go on with its handshake as far as a is up, and b has not heard of it. */
static bool half_way(void)
{
	static char text[1 << 14];

	for (int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS); kv_now_ns() < end;) {
		ok(kv_progress(p.b.engine, 0, &p.b.err), &p.b.err);
		for (int i = 0; i < 50 && !atomic_load(&connected); i++)
			poll(NULL, 0, 1);
		if (!atomic_load(&connected))
			continue;
		kv_dump(p.b.engine, text, sizeof(text));
		return strstr(text, "waiting for ready");
	}
	return false;
}

/* The memory is the application's again, and the other end goes on writing for a while. */
static void nothing_lands(pthread_t writer)
{
	memset(p.b.mem, MINE, p.b.len);
	poll(NULL, 0, (int)slow_ms(30));
	atomic_store(&closed, true);
	pthread_join(writer, NULL);
	for (size_t i = 0; i < p.b.len; i++)
		if (p.b.mem[i] != MINE)
			fail_msg("byte %zu of %zu changed after the end", i, p.b.len);
}

static bool close_half_way(void)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct shape shape = rig_shape;
	pthread_t thread;
	bool half;

	shape.malloced = true;		      /* it is still there when the engine is closed */
	for (int t = 0; t < RIG_TENSORS; t++) /* 128 operations last for a while */
		shape.block_bytes[t] = shape.stride[t] = 32 << 10;
	config.progress = KV_PROGRESS_CALLER;
	atomic_store(&connected, false);
	atomic_store(&closed, false);
	node_open(&p.b, 2, &shape, &config);
	node_listen(&p.b);
	node_open(&p.a, 1, &shape, NULL);
	assert_int_equal(pthread_create(&thread, NULL, connect_and_write, NULL), 0);
	half = half_way();
	kv_engine_close(p.b.engine);
	nothing_lands(thread);
	node_close(&p.a);
	free(p.b.mem);
	return half;
}

CASE(an_engine_that_closes_in_the_middle_of_a_handshake_is_fenced)
{
	bool half = false;

	for (int i = 0; i < 20 && !half; i++)
		half = close_half_way();
	assert_true(half);
}

/*
 * The same, and the last frame of the other end never comes: it is up and writes, and this end has
 * given the handshake up.
 */
CASE(a_handshake_that_is_given_up_while_the_other_end_is_up_is_fenced)
{
	char deadline[64];
	const char *const options[] = { slow_setting(deadline, "KVCACHE_HANDSHAKE_MS", 2000),
					NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	static char text[1 << 14];
	struct shape shape = rig_shape;
	pthread_t thread;
	int64_t end;
	int ret;

	shape.malloced = true;
	for (int t = 0; t < RIG_TENSORS; t++)
		shape.block_bytes[t] = shape.stride[t] = 32 << 10;
	config.progress = KV_PROGRESS_CALLER;
	config.options = options;
	atomic_store(&connected, false);
	atomic_store(&closed, false);
	node_open(&p.b, 2, &shape, &config);
	node_listen(&p.b);
	assert_int_equal(deaf_to_size(p.b.port, FRAME_HEADER), 1); /* READY is no more than that */
	node_open(&p.a, 1, &shape, NULL);
	assert_int_equal(pthread_create(&thread, NULL, connect_and_write, NULL), 0);
	assert_true(half_way());
	end = kv_deadline_ns(RIG_TIMEOUT_MS);
	do {
		assert_true(kv_now_ns() < end);
		ok(kv_progress(p.b.engine, 10, &p.b.err), &p.b.err);
		kv_dump(p.b.engine, text, sizeof(text));
		assert_null(strstr(text, "state up"));
	} while (strstr(text, "waiting for ready"));
	while ((ret = kv_cache_unregister(p.b.cache, &p.b.err)) == KV_ERR_BUSY) {
		assert_true(kv_now_ns() < end);
		ok(kv_progress(p.b.engine, 1, &p.b.err), &p.b.err);
	}
	ok(ret, &p.b.err);
	p.b.cache = NULL;
	nothing_lands(thread);
	node_close(&p.a);
	kv_engine_close(p.b.engine);
	free(p.b.mem);
}

int main(int argc, char **argv)
{
	path = argc > 1 ? argv[1] : "";
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	if (argc > 1)
		rig_path(argv[1]);
	if (!strcmp(path, "pool")) /* whose memory goes with the engine */
		cmocka_set_skip_filter("*_handshake_*");
	return run_cases(NULL, NULL);
}
