/* SPDX-License-Identifier: Apache-2.0 */
/* ib_sweep_test.c -- each point of the ib provider fails once, over the fake device (sweep.h) */
#include <string.h>

#include "base/fault.h"
#include "lib/test.h"
#include "sweep.h"

static int play(struct kv_error *err)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=2", NULL };
	struct fake_config config = { .seed = 7, .infiniband = sweep_infiniband, .dmabuf = true };
	int ret;

	fake_begin(&config);
	ret = sweep_scene(options, err);
	assert_true(fake_end());
	return ret;
}

/* Few of many: the first ones, then farther and farther apart. */
static uint32_t next(uint32_t nth)
{
	return nth < 20 ? nth + 1 : nth + nth / 4;
}

static const struct sweep over_the_fake = {
	.play = play,
	.next = next,
	.fail_verb = sweep_fail_verb,
	.verb_fired = fake_verb_fired,
	.fail_wr = fake_fail_wr_ahead,
};

CASE(every_fault_point_fails_once)
{
	sweep_fault_points(&over_the_fake);
}

CASE(every_verb_fails_once)
{
	sweep_verbs(&over_the_fake);
}

CASE(every_early_work_request_is_refused_once)
{
	sweep_work_requests(&over_the_fake);
}

CASE(a_machine_without_the_library_says_so)
{
	struct kv_error err;
	const struct ib_verbs *v;

	assert_null(ib_test_hook.verbs);
	kv_fault_arm(KV_FAULT_IB_DLOPEN, 1);
	assert_null(ib_verbs_load(&err));
	assert_true(kv_fault_fired(KV_FAULT_IB_DLOPEN));
	assert_int_equal(err.code, KV_ERR_UNSUPPORTED);
	assert_non_null(strstr(err.message, "no libibverbs on this machine"));
	assert_non_null(strstr(err.hint, "libibverbs1"));
	/* The second attempt finds what there is. */
	v = ib_verbs_load(&err);
	assert_true(v || err.code == KV_ERR_UNSUPPORTED);
}
