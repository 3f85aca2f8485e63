/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_real_sweep.c -- each point of the ib provider fails once, over real verbs (sweep.h), and
 * completions with every status
 *
 * A call that many passes reach is failed at a few of them, chosen by KVRAIL_SEED (1); with
 * KVRAIL_LONG=1 at many.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "broken_verbs.h"
#include "ib/ib.h"
#include "lib/test.h"
#include "sweep.h"

static int plays;

static int play(struct kv_error *err)
{
	/* Both ends use both devices. */
	static const char *const options[] = { "KVCACHE_RDMA_NICS=rxe0,rxe1", "KVCACHE_IB_LANES=1",
					       NULL };
	int ret;

	plays++;
	broken_begin();
	ret = sweep_scene(options, err);
	assert_true(broken_end());
	return ret;
}

static uint32_t few(uint32_t nth)
{
	return nth < 2 ? nth + 1 : nth + 1 + (uint32_t)random() % (4 * nth);
}

static uint32_t many(uint32_t nth)
{
	return nth < 20 ? nth + 1 : nth + nth / 4;
}

static struct sweep over_real_verbs = {
	.play = play,
	.next = few,
	.fail_verb = broken_fail_verb,
	.verb_fired = broken_verb_fired,
	.fail_wr = broken_fail_wr,
	.roce_only = true,
	.spare = true,
};

/* The first time, with nothing armed: librdmacm keeps every device open from its first use on. */
CASE(the_scene_works)
{
	struct kv_error err;

	if (play(&err))
		fail_msg("%s", err.message);
}

CASE(every_fault_point_fails_once)
{
	sweep_fault_points(&over_real_verbs);
}

CASE(every_verb_fails_once)
{
	sweep_verbs(&over_real_verbs);
}

CASE(early_work_requests_are_refused_once)
{
	sweep_work_requests(&over_real_verbs);
}

/* Also those that Soft-RoCE itself never gives. */
CASE(every_completion_status_becomes_its_typed_error)
{
	for (int status = IBV_WC_LOC_LEN_ERR; status <= IBV_WC_TM_RNDV_INCOMPLETE; status++)
		for (uint32_t nth = 1 + (uint32_t)status % 4;;
		     nth = over_real_verbs.next(nth * 4)) {
			struct kv_error err = { 0 };
			int ret;

			broken_fail_completion((int)nth, (enum ibv_wc_status)status);
			ret = play(&err);
			if (!broken_completion_fired())
				break;
			if (!ret)
				fail_msg("status %d of completion %u was not noticed", status, nth);
			/* Soft-RoCE means by this one that no packet leaves any more (status.c). */
			if (ret !=
			    ib_wc_code((enum ibv_wc_status)status, status == IBV_WC_LOC_QP_OP_ERR))
				fail_msg("status %d of completion %u: %s", status, nth,
					 err.message);
			assert_int_equal(err.wc_status, status);
			assert_int_equal(err.vendor_err, 0x1234);
			assert_true(err.qp_num != 0);
			assert_non_null(strstr(err.device, "rxe"));
		}
}

int main(void)
{
	const char *seed = getenv("KVRAIL_SEED");
	int ret;

	if (access("/sys/class/infiniband/rxe1", F_OK)) {
		printf("skipped: there are no devices rxe0 and rxe1; tests/rxe/rxe makes a guest "
		       "with them\n");
		return 77;
	}
	if (getenv("KVRAIL_LONG"))
		over_real_verbs.next = many;
	srandom(seed ? (unsigned int)strtoul(seed, NULL, 10) : 1);
	ret = run_cases(NULL, NULL);
	printf("ib_real_sweep: %d plays\n", plays);
	return ret;
}
