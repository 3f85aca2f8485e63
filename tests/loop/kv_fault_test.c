/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_fault_test.c -- each fault point of the KV API fails once: an error with its cause, nothing
 * leaked, nothing hangs, and a second attempt works
 */
#include "lib/process.h"
#include "kv_scene.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"

enum { N = 3 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t ids[N] = { 1, 2, 3 };

CASE(every_point_fails_once_with_a_cause_and_the_next_attempt_works)
{
	struct kv_error err;
	int descriptors;

	scene_patience_ms = RIG_TIMEOUT_MS;
	ok(scene_play(&err), &err); /* what is made once stays */
	descriptors = count_descriptors();
	for (int point = KV_FAULT_KV_ENGINE_ALLOC; point <= KV_FAULT_KV_COMM_BLOBS; point++) {
		uint64_t before = kv_fault_passes((enum kv_fault_point)point), passes;
		unsigned int failed = 0;

		ok(scene_play(&err), &err);
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
			scene_patience_ms = slow_ms(1000);
			ret = scene_play(&err);
			scene_patience_ms = RIG_TIMEOUT_MS;
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
	ok(scene_play(&err), &err);
}

CASE(a_failed_copy_into_the_peer_names_the_peer)
{
	struct node a = { .engine = NULL }, b = { .engine = NULL };
	struct kv_error err;

	setenv("KVCACHE_TRANSPORT", "shm", 1); /* in a guest of tests/rxe it is ib */
	setenv("KVCACHE_SHM_PATH", "cma", 1);
	ok(scene_open_side(&b, 2, &err), &err);
	ok(scene_open_side(&a, 1, &err), &err);
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
