/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_late_test.c -- the receiver's word is there before the device's: a lost acknowledgement packet
 * keeps a work request open while everything that followed it has arrived
 */
#include "fake.h"
#include "loop/kv_rig.h"

static const struct kv_layers all_layers = { 0, 0 };

static void next_receive(struct pair *p, int64_t block, struct kv_op **op_p)
{
	struct kv_error err;

	ok(kv_recv_blocks_async(p->b.peer, p->b.cache, all_layers, &block, 1, 7, NULL, op_p, &err),
	   &err);
}

static void next_send(struct pair *p, int64_t block, struct kv_op **op_p)
{
	struct kv_error err;

	ok(kv_send_blocks_async(p->a.peer, p->a.cache, all_layers, &block, 1, 7, NULL, op_p, &err),
	   &err);
}

static void end(struct kv_op *op)
{
	struct kv_error err;

	ok(kv_wait(op, KV_ACKED, slow_ms(RIG_TIMEOUT_MS), &err), &err);
	ok(kv_op_free(op, &err), &err);
}

/*
 * The second lease has the number of the first, which the sender's operation has not let go of by
 * itself.
 */
static void a_receive_may_follow_before_the_send_of_the_last_one_has_ended(void **state)
{
	const int64_t from[] = { 10, 11 }, to[] = { 3, 4 };
	struct kv_op *send[2], *recv;
	struct pair p;

	(void)state;
	pair_open(&p, &rig_shape, NULL);
	next_receive(&p, to[0], &recv);
	fake_hold_answers(true);
	next_send(&p, from[0], &send[0]);
	end(recv);
	assert_in_range(kv_test(send[0], NULL), KV_NONE, KV_ACKED - 1);
	next_receive(&p, to[1], &recv);
	next_send(&p, from[1], &send[1]);
	end(recv);
	fake_hold_answers(false);
	end(send[0]);
	end(send[1]);
	assert_true(memory_is(&p.b, all_layers, 1, from, to, 2, 0));
	pair_close(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_receive_may_follow_before_the_send_of_the_last_one_has_ended),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
