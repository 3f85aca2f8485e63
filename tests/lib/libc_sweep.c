/* SPDX-License-Identifier: Apache-2.0 */
/* libc_sweep.c -- each call of the C library that a scene makes fails once */
#include "libc_sweep.h"

#include "test.h"

#include <stdio.h>
#include <stdlib.h>

#include "libc.h"
#include "process.h"

static int (*play)(bool patient, struct kv_error *err);

static int play_once(bool patient, struct kv_error *err)
{
	setenv("KVCACHE_HANDSHAKE_MS", patient ? "20000" : "600", 1);
	return play(patient, err);
}

/* Whether the call was made so often; counts the errors of the scene. */
static bool fail_once(enum libc_call call, uint32_t nth, unsigned int *errors_p)
{
	int descriptors = count_descriptors(), threads = count_threads(), ret;
	struct kv_error err = { 0 };

	libc_arm(call, nth);
	ret = play_once(false, &err);
	if (ret && !libc_fired()) { /* a busy machine, or the end of the calls: that is looked at */
		libc_arm(call, nth);
		ret = play_once(true, &err);
	}
	libc_arm(call, 0);
	if (ret && (err.code != ret || !err.message[0] || !err.op[0]))
		fail_msg("%s, call %u: %d without its cause", libc_name(call), nth, ret);
	if (count_descriptors() != descriptors || !threads_have_gone(threads))
		fail_msg("%s, call %u: %d descriptors and %d threads, %d and %d before",
			 libc_name(call), nth, count_descriptors(), count_threads(), descriptors,
			 threads);
	*errors_p += ret != 0;
	return libc_fired();
}

static void play_well(void)
{
	struct kv_error err = { 0 };
	int ret = play_once(true, &err);

	if (ret)
		fail_msg("%d: %s", ret, err.message);
}

void libc_sweep(int (*scene)(bool patient, struct kv_error *err))
{
	unsigned int calls = 0;

	play = scene;
	play_well(); /* what is made once stays */
	for (enum libc_call call = 0; call < LIBC_COUNT; call++) {
		unsigned int errors = 0, failed = 0;

		for (uint32_t nth = 1; fail_once(call, nth, &errors); nth = libc_next(nth))
			failed++;
		play_well();
		printf("%s: %u failed, %u times the scene did\n", libc_name(call), failed, errors);
		calls += failed > 0;
	}
	assert_true(calls > LIBC_COUNT / 2);
}
