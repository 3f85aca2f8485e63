/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_fault_test.c -- each fault point of the KV API fails once: an error with its cause, nothing
 * leaked, nothing hangs, and a second attempt works
 */
#include "lib/process.h"
#include "kv_rig.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"

enum { N = 3 };

static const struct kv_layers all_layers = { 0, 0 };
/*
 * Long where nothing fails; short while a point is armed, which may keep what is waited for from
 * coming.
 */
static int64_t patience_ms;
static const int64_t ids[N] = { 1, 2, 3 }, leased[N] = { 10, 11, 12 };

static int gather_alone(void *arg, const void *mine, void *all, size_t len)
{
	(void)arg;
	memcpy(all, mine, len);
	return 0;
}

/* Opens an engine with a cache; what was made is closed again if a later step fails. */
static int open_side(struct node *node, unsigned int side, struct kv_error *err)
{
	struct kv_tensor tensor = { .name = "k", .block_bytes = 256 };
	struct kv_layout layout = KV_INIT(kv_layout);
	int ret;

	memset(node, 0, sizeof(*node));
	node->side = side;
	ret = kv_engine_open(NULL, &node->engine, err);
	if (!ret)
		ret = kv_alloc(node->engine, 1 << 16, (void **)&node->mem, err);
	tensor.base = node->mem;
	tensor.layer_stride = 1 << 14;
	layout.layers = 4;
	layout.tensors = 1;
	layout.blocks = 64;
	layout.tensor = &tensor;
	layout.flags = KV_CACHE_OPEN | KV_CACHE_READABLE;
	if (!ret)
		ret = kv_cache_register(node->engine, &layout, &node->cache, err);
	return ret;
}

static int await_up(struct node *node, struct kv_error *err)
{
	struct kv_arrival arrival;

	if (!await_kind(node, KV_ARRIVAL_PEER_UP, &arrival, patience_ms)) {
		err->code = KV_ERR_TIMEOUT;
		snprintf(err->message, sizeof(err->message), "no PEER_UP");
		return KV_ERR_TIMEOUT;
	}
	node->peer = arrival.peer;
	return 0;
}

static int use_group(struct node *a, struct kv_error *err)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_op *op = NULL;
	int ret = kv_group_start(a->engine, &opts.group, err);

	if (ret)
		return ret;
	ret = kv_write_blocks_async(a->peer, a->cache, all_layers, ids, ids, N, &opts, &op, err);
	if (!ret)
		ret = kv_group_end(opts.group, patience_ms, NULL, err);
	else
		kv_group_end(opts.group, 0, NULL, NULL);
	kv_op_free(op, NULL);
	return ret;
}

static int use_pair(struct node *a, struct node *b, struct kv_error *err)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_lease *lease;
	struct kv_op *op;
	int ret = kv_recv_blocks_async(b->peer, b->cache, all_layers, leased, N, 5, NULL, &op, err);

	if (ret)
		return ret;
	opts.timeout_ms = patience_ms;
	ret = kv_send_blocks(a->peer, a->cache, all_layers, ids, N, 5, &opts, err);
	if (!ret)
		ret = kv_wait(op, KV_ACKED, patience_ms, err);
	kv_cancel(op, slow_ms(1000), NULL);
	kv_op_free(op, NULL);
	if (!ret)
		ret = kv_blocks_open(b->peer, b->cache, leased, N, 6, RIG_TIMEOUT_MS, &lease, err);
	if (!ret)
		ret = kv_revoke(lease, patience_ms, err);
	return ret;
}

static int use_comm(struct node *a, struct kv_error *err)
{
	struct kv_comm_config config = KV_INIT(kv_comm_config);
	struct kv_comm *comm;
	int ret;

	config.nranks = 1;
	config.group = KV_COMM_ALL;
	config.allgather = gather_alone;
	ret = kv_comm_init(a->engine, &config, &comm, err);
	return ret ? ret : kv_comm_free(comm, patience_ms, err);
}

/* An operation that cannot be posted at once: its receiver has not opened anything yet. */
static int use_waiting_send(struct node *a, struct kv_error *err)
{
	struct kv_op *op;
	int ret = kv_send_blocks_async(a->peer, a->cache, all_layers, ids, N, 77, NULL, &op, err);

	if (ret)
		return ret;
	ret = kv_test(op, err);
	kv_cancel(op, slow_ms(1000), NULL);
	kv_op_free(op, NULL);
	return ret < 0 ? ret : 0;
}

/* One of everything. Returns the first failure. */
static int scenario(struct kv_error *err)
{
	struct node a = { .engine = NULL }, b = { .engine = NULL };
	int ret = open_side(&b, 2, err);

	if (!ret)
		ret = open_side(&a, 1, err);
	if (!ret)
		ret = kv_listen(b.engine, NULL, 0, &b.port, err);
	if (!ret)
		ret = kv_connect(a.engine, NULL, b.port, patience_ms, &a.peer, err);
	if (!ret)
		ret = await_up(&b, err);
	if (!ret)
		ret = kv_write_blocks(a.peer, a.cache, all_layers, ids, ids, N, NULL, err);
	if (!ret)
		ret = kv_read_blocks(a.peer, a.cache, all_layers, ids, ids, N, NULL, err);
	if (!ret)
		ret = use_group(&a, err);
	if (!ret)
		ret = use_pair(&a, &b, err);
	if (!ret)
		ret = use_waiting_send(&a, err);
	if (!ret)
		ret = use_comm(&a, err);
	kv_engine_close(a.engine);
	kv_engine_close(b.engine);
	return ret;
}

static void every_point_fails_once_with_a_cause_and_the_next_attempt_works(void **state)
{
	struct kv_error err;
	int descriptors;

	(void)state;
	patience_ms = RIG_TIMEOUT_MS;
	ok(scenario(&err), &err); /* what is made once stays */
	descriptors = count_descriptors();
	for (int point = KV_FAULT_KV_ENGINE_ALLOC; point <= KV_FAULT_KV_COMM_BLOBS; point++) {
		uint64_t before = kv_fault_passes((enum kv_fault_point)point), passes;
		unsigned int failed = 0;

		ok(scenario(&err), &err);
		passes = kv_fault_passes((enum kv_fault_point)point) - before;
		if (!passes) {
			fprintf(stderr, "%s is never passed\n",
				kv_fault_name((enum kv_fault_point)point));
			assert_true(passes > 0);
		}
		for (uint64_t nth = 1; nth <= passes && nth <= 4; nth++) {
			int ret;

			memset(&err, 0, sizeof(err));
			kv_fault_arm((enum kv_fault_point)point, (uint32_t)nth);
			patience_ms = slow_ms(1000);
			ret = scenario(&err);
			patience_ms = RIG_TIMEOUT_MS;
			/*
			 * Some passes prepare what is then not needed, and the scenario goes on:
			 * but each point fails it at least once.
			 */
			if (kv_fault_fired((enum kv_fault_point)point) && ret) {
				failed++;
				assert_int_equal(err.code, ret);
				assert_true(err.message[0]);
			}
			kv_fault_arm((enum kv_fault_point)point, 0);
			assert_int_equal(count_descriptors(), descriptors);
		}
		if (!failed)
			fprintf(stderr, "%s changes nothing\n",
				kv_fault_name((enum kv_fault_point)point));
		assert_true(failed > 0);
	}
	ok(scenario(&err), &err);
}

static void a_failed_copy_into_the_peer_names_the_peer(void **state)
{
	struct node a = { .engine = NULL }, b = { .engine = NULL };
	struct kv_error err;

	(void)state;
	setenv("KVCACHE_TRANSPORT", "shm", 1); /* in a guest of tests/rxe it is ib */
	setenv("KVCACHE_SHM_PATH", "cma", 1);
	ok(open_side(&b, 2, &err), &err);
	ok(open_side(&a, 1, &err), &err);
	unsetenv("KVCACHE_SHM_PATH");
	ok(kv_listen(b.engine, NULL, 0, &b.port, &err), &err);
	ok(kv_connect(a.engine, NULL, b.port, RIG_TIMEOUT_MS, &a.peer, &err), &err);
	kv_fault_arm(KV_FAULT_SHM_PROCESS_VM, 1);
	assert_int_equal(kv_write_blocks(a.peer, a.cache, all_layers, ids, ids, N, NULL, &err),
			 KV_ERR_REMOTE_ACCESS);
	assert_true(kv_fault_fired(KV_FAULT_SHM_PROCESS_VM));
	assert_non_null(strstr(err.message, "process_vm_writev"));
	assert_non_null(strstr(err.peer, "127.0.0.1:"));
	kv_engine_close(a.engine);
	kv_engine_close(b.engine);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_point_fails_once_with_a_cause_and_the_next_attempt_works),
		cmocka_unit_test(
			a_failed_copy_into_the_peer_names_the_peer), /* changes the transport */
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
