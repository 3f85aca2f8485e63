/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_sweep_test.c -- fail each point once
 *
 * One scenario uses everything of the ib provider. It is run with the first, second, ... pass of
 * each of its fault points and of each verb failing. Each run must end (a bounded number of polls),
 * with success or with an error that has a cause; leave nothing behind; and the scenario must work
 * right after it. Every point must have been hit.
 */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "ib/ib.h"
#include "rig.h"

enum { SIZE = 64 << 10, BUDGET = 100000 };

static const char *const options[] = { "KVCACHE_IB_LANES=2", NULL };

struct scene {
	struct rig rig;
	uint8_t *buf[2];
	struct tr_mem *mem[2];
	struct tr_rmem *rmem;
};

static int lost(struct scene *s, struct kv_error *err)
{
	for (int side = 0; side < 2; side++) {
		const struct kv_error *cause = tr_conn_error(s->rig.side[side].conn);

		if (cause->code)
			return kv_error_copy(err, cause);
	}
	return 0;
}

/* An event of this kind, or the connection's error. */
static int await(struct scene *s, int side, int kind, struct kv_error *err)
{
	for (int i = 0; i < BUDGET; i++) {
		if (rig_find(&s->rig, side, kind))
			return 0;
		if (lost(s, err) && rig_find(&s->rig, 0, TR_PEER_LOST) &&
		    rig_wait(&s->rig, 1, TR_PEER_LOST, BUDGET))
			return lost(s, err);
		rig_pump(&s->rig);
	}
	fail_msg("event %d does not come", kind);
	return 0;
}

static int open_memory(struct scene *s, struct kv_error *err)
{
	uint8_t pack[TR_MEM_PACK_MAX];
	size_t len;
	int ret = 0;

	for (int i = 0; i < 2 && !ret; i++)
		ret = tr_mem_reg(s->rig.side[i].tr, s->buf[i], SIZE, TR_MEM_HOST,
				 TR_REMOTE_WRITE | TR_REMOTE_READ, &s->mem[i], err);
	if (!ret)
		ret = tr_mem_pack(s->rig.side[1].conn, s->mem[1], pack, sizeof(pack), &len, err);
	if (!ret)
		ret = tr_mem_open(s->rig.side[0].conn, pack, len, &s->rmem, err);
	return ret;
}

static int say(struct scene *s, int side, uint32_t what, struct kv_error *err)
{
	int ret;

	for (int i = 0; i < BUDGET; i++) {
		ret = tr_msg(s->rig.side[side].conn, &what, sizeof(what), err);
		if (ret != TR_AGAIN)
			return ret ? ret : await(s, !side, TR_MSG, err);
		rig_pump(&s->rig);
	}
	fail_msg("a message is never taken");
	return 0;
}

static int move(struct scene *s, struct kv_error *err)
{
	struct tr_span spans[16];
	struct tr_op *op;
	int ret;

	for (size_t i = 0; i < 16; i++)
		spans[i] = (struct tr_span){ i * 4096, (15 - i) * 4096, 4000 };
	for (size_t i = 0; i < SIZE; i++)
		s->buf[0][i] = rig_byte(1, i);
	ret = rig_try_op(&s->rig, 0, TR_WRITE, 1, s->mem[0], s->rmem, spans, 16,
			 TR_NOTIFY | TR_PROVEN, 7, &op, err);
	if (!ret)
		ret = await(s, 0, TR_WRITTEN, err);
	if (!ret)
		ret = await(s, 1, TR_NOTIFIED, err);
	for (size_t i = 0; i < 16 && !ret; i++)
		assert_memory_equal(s->buf[0] + spans[i].local, s->buf[1] + spans[i].remote, 4000);
	if (!ret)
		ret = rig_try_op(&s->rig, 0, TR_READ_OP, 2, s->mem[0], s->rmem, spans, 16, 0, 0,
				 &op, err);
	return ret ? ret : await(s, 0, TR_READ, err);
}

/*
 * Credits go back and forth, one operation is cancelled, the owner sleeps, the connection is
 * fenced.
 */
static int talk_and_stop(struct scene *s, struct kv_error *err)
{
	struct tr_op *op;
	int ret = 0;

	for (uint32_t i = 0; i < 80 && !ret; i++)
		ret = say(s, i % 4 == 0, i, err);
	if (!ret)
		ret = tr_op_begin(s->rig.side[0].conn, TR_WRITE, 3, &op, err);
	if (!ret)
		ret = tr_op_cancel(op, kv_deadline_ns(1000), err);
	if (!ret)
		ret = await(s, 0, TR_CANCELLED, err);
	for (int i = 0; i < 10 && !ret; i++)
		if (tr_conn_arm(s->rig.side[0].conn))
			rig_pump(&s->rig);
	if (!ret)
		ret = lost(s, err);
	if (ret)
		return ret;
	for (int i = 0; i < BUDGET; i++) {
		ret = tr_fence(s->rig.side[1].conn, err);
		if (ret != TR_AGAIN)
			return ret;
	}
	fail_msg("the fence does not end");
	return 0;
}

static int scenario(struct kv_error *err)
{
	struct fake_config config = { .seed = 7 };
	struct scene s = { 0 };
	int ret;

	fake_begin(&config);
	for (int i = 0; i < 2; i++)
		s.buf[i] = aligned_alloc(4096, SIZE);
	ret = rig_open(&s.rig, "ib", options, err);
	if (!ret) {
		ret = rig_connect(&s.rig, err);
		if (!ret)
			ret = open_memory(&s, err);
		if (!ret)
			ret = move(&s, err);
		if (!ret)
			ret = talk_and_stop(&s, err);
		rig_disconnect(&s.rig);
		for (int i = 0; i < 2; i++)
			if (s.mem[i])
				assert_int_equal(tr_mem_dereg(s.mem[i], NULL), 0);
		rig_close(&s.rig);
	}
	for (int i = 0; i < 2; i++)
		free(s.buf[i]);
	assert_true(fake_end());
	return ret;
}

/* Few of many: the first ones, then farther and farther apart. */
static uint32_t next(uint32_t nth)
{
	return nth < 20 ? nth + 1 : nth + nth / 4;
}

static int runs, noticed;

static void check(const char *name, uint32_t nth, int ret, const struct kv_error *err,
		  bool may_succeed)
{
	struct kv_error second;

	runs++;
	noticed += ret != 0;
	if (!ret && !may_succeed)
		fail_msg("%s, pass %u: failed and was not noticed", name, nth);
	if (ret && (!err->message[0] || err->code != ret || !err->op[0]))
		fail_msg("%s, pass %u: no cause", name, nth);
	if (scenario(&second))
		fail_msg("after %s, pass %u: %s", name, nth, second.message);
}

static void every_fault_point_fails_once(void **state)
{
	(void)state;
	for (int point = 0; point < KV_FAULT_POINTS; point++) {
		const char *name = kv_fault_name((enum kv_fault_point)point);
		bool hit = false;

		if (strncmp(name, "IB_", 3) || point == KV_FAULT_IB_DLOPEN)
			continue;
		for (uint32_t nth = 1;; nth = next(nth)) {
			struct kv_error err = { 0 };
			bool fired;
			int ret;

			kv_fault_arm((enum kv_fault_point)point, nth);
			ret = scenario(&err);
			fired = kv_fault_fired((enum kv_fault_point)point);
			kv_fault_arm((enum kv_fault_point)point, 0);
			if (!fired)
				break;
			hit = true;
			check(name, nth, ret, &err, false);
		}
		if (!hit)
			fail_msg("the scenario does not pass %s", name);
		print_message("%s: %d runs with a failure, %d reported it\n", name, runs, noticed);
		runs = noticed = 0;
	}
}

static void every_verb_fails_once(void **state)
{
	static const int errors[] = { ENOMEM, EIO };

	(void)state;
	for (int verb = 0; verb < FAKE_VERB_COUNT; verb++) {
		bool hit = false;

		for (uint32_t nth = 1;; nth = next(nth)) {
			struct kv_error err = { 0 };
			int ret;

			fake_fail_verb_ahead((enum fake_verb)verb, (int)nth, errors[nth % 2]);
			ret = scenario(&err);
			if (!fake_verb_fired((enum fake_verb)verb))
				break;
			hit = true;
			/*
			 * The owner polls again instead of sleeping; a queue pair that cannot be
			 * broken is destroyed.
			 */
			check(fake_verb_name((enum fake_verb)verb), nth, ret, &err,
			      verb == FAKE_req_notify_cq || verb == FAKE_modify_qp);
		}
		if (!hit)
			fail_msg("the scenario does not call %s",
				 fake_verb_name((enum fake_verb)verb));
		print_message("%s: %d runs with a failure, %d reported it\n",
			      fake_verb_name((enum fake_verb)verb), runs, noticed);
		runs = noticed = 0;
	}
}

static void every_early_work_request_is_refused_once(void **state)
{
	(void)state;
	for (int nth = 1; nth < 100; nth += nth < 40 ? 1 : 9) {
		struct kv_error err = { 0 };
		int ret;

		fake_fail_wr_ahead(nth);
		ret = scenario(&err);
		if (!ret)
			break;
		assert_int_equal(err.code, KV_ERR_NOMEM);
		assert_non_null(strstr(err.message, "ibv_post_send"));
		check("work request", (uint32_t)nth, ret, &err, false);
	}
}

static void a_machine_without_the_library_says_so(void **state)
{
	struct kv_error err;
	const struct ib_verbs *v;

	(void)state;
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

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_machine_without_the_library_says_so),
		cmocka_unit_test(every_fault_point_fails_once),
		cmocka_unit_test(every_verb_fails_once),
		cmocka_unit_test(every_early_work_request_is_refused_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
