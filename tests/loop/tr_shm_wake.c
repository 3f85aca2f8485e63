/* SPDX-License-Identifier: Apache-2.0 */
/* tr_shm_wake.c -- a wake-up that the kernel has no memory for is rung again */

#include "base/fault.h"
#include "lib/test.h"
#include "tr_pair.h"

#ifdef KVRAIL_FAULTS
/* Asleep, and nothing else will wake it. */
static void sleeper(struct pair_side *s)
{
	struct tr_event events[16];

	pair_up(s);
	pair_meet(s);
	/* What the meeting left is taken until the connection agrees to sleep. */
	do
		while (tr_poll(s->conn, events, 16))
			;
	while (tr_conn_arm(s->conn));
	pair_say(s, 1);
	PAIR_CHECK(tr_conn_wait(s->conn, (int)PAIR_WAIT_MS));
	pair_wait_msgs(s, 1);
	pair_say(s, 2);
	PAIR_CHECK(pair_hear(s) == 3);
	pair_down(s);
}

static void waker(struct pair_side *s)
{
	pair_up(s);
	pair_meet(s);
	PAIR_CHECK(pair_hear(s) == 1);
	kv_fault_arm(KV_FAULT_SHM_SEND, 1);
	pair_send(s, "wake", 4);
	PAIR_CHECK(kv_fault_fired(KV_FAULT_SHM_SEND));
	/* As a thread that leaves a connection: it does not sleep before the bell was rung. */
	PAIR_CHECK(tr_conn_arm(s->conn));
	pair_poll(s, 1);
	PAIR_CHECK(!tr_conn_arm(s->conn));
	PAIR_CHECK(pair_hear(s) == 2);
	pair_say(s, 3);
	pair_down(s);
}
#endif

CASE(a_wake_up_without_memory_for_it_is_rung_again)
{
#ifdef KVRAIL_FAULTS
	struct pair_config config = { .parent_path = "ring", .child_path = "ring" };

	assert_int_equal(pair_run(&config, waker, sleeper), 0);
#else
	printf("skipped: this build has no fault points\n");
	skip();
#endif
}
