/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_wake_test.c -- which completions wake a thread that sleeps: all that come from the peer, those
 * of what was sent only where somebody waits for them, and every error
 */
#include "ib/ib.h"
#include "lib/test.h"
#include "setting.h"

enum { SIZE = 65536 };

/* Until nothing is there for it. What was sent ends nothing: no answer comes. */
static void fall_asleep(struct setting *s, int side)
{
	struct tr_conn *conn = s->rig.side[side].conn;

	for (int i = 0; tr_conn_arm(conn); i++) {
		assert_true(i < 100);
		rig_pump_side(&s->rig, side);
	}
	assert_false(tr_conn_wait(conn, 0));
}

/* The answers come: does that wake it? */
static bool is_woken(struct setting *s, int side)
{
	fake_hold_answers(false);
	fake_settle();
	return tr_conn_wait(s->rig.side[side].conn, 0);
}

/* Both ends have taken everything that there was. */
static void begin_setting(struct setting *s, const char *const *options)
{
	setting_make(s, NULL, options, SIZE);
	setting_move(s);
	for (int round = 0; round < 2; round++)
		for (int side = 0; side < 2; side++)
			fall_asleep(s, side);
	fake_hold_answers(true);
}

static void end_setting(struct setting *s)
{
	setting_move(s);
	setting_end(s);
}

static void say(struct setting *s, int side)
{
	assert_int_equal(tr_msg(s->rig.side[side].conn, "x", 1, NULL), 0);
}

CASE(what_nobody_waits_for_wakes_nobody)
{
	struct setting s;

	begin_setting(&s, NULL);
	say(&s, 1);
	fall_asleep(&s, 1);
	assert_true(tr_conn_wait(s.rig.side[0].conn, 0));
	assert_false(is_woken(&s, 1));
	/* An operation's end does, although the thread was asleep before. */
	fake_hold_answers(true);
	rig_op(&s.rig, 1, TR_WRITE, 1, s.mem[1], s.rmem[1], NULL, 0, TR_NOTIFY, 1);
	fall_asleep(&s, 1);
	assert_true(is_woken(&s, 1));
	setting_expect_written(&s, 1, 1);
	setting_expect_notify(&s, 0, 1);
	end_setting(&s);
}

static void await_end(int kind, unsigned int flags, int event)
{
	struct tr_span span = { 0, 0, SIZE };
	struct setting s;

	begin_setting(&s, NULL);
	rig_op(&s.rig, 0, kind, 7, s.mem[0], s.rmem[0], &span, 1, flags, 7);
	fall_asleep(&s, 0);
	assert_true(is_woken(&s, 0));
	assert_non_null(rig_wait(&s.rig, 0, event, BUDGET));
	if (flags & TR_NOTIFY)
		setting_expect_notify(&s, 1, 7);
	end_setting(&s);
}

CASE(the_end_of_an_operation_wakes)
{
	await_end(TR_WRITE, 0, TR_WRITTEN);
	await_end(TR_WRITE, TR_NOTIFY, TR_WRITTEN);
	await_end(TR_WRITE, TR_PROVEN, TR_WRITTEN);
	await_end(TR_READ_OP, 0, TR_READ);
}

CASE(the_end_of_a_cancelled_operation_wakes)
{
	struct tr_span span = { 0, 0, SIZE };
	struct tr_op *op;
	struct setting s;

	begin_setting(&s, NULL);
	assert_int_equal(tr_op_begin(s.rig.side[0].conn, TR_WRITE, 7, &op, NULL), 0);
	assert_int_equal(tr_op_add(op, s.mem[0], s.rmem[0], &span, 1, NULL), 1);
	assert_int_equal(tr_op_cancel(op, INT64_MAX, NULL), 0);
	fall_asleep(&s, 0);
	assert_true(is_woken(&s, 0));
	assert_non_null(rig_wait(&s.rig, 0, TR_CANCELLED, BUDGET));
	end_setting(&s);
}

/* The peer takes nothing, so nothing but what was sent makes room. */
CASE(room_for_a_message_wakes)
{
	struct setting s;
	int sent = 0;

	begin_setting(&s, NULL);
	while (!tr_msg(s.rig.side[0].conn, "x", 1, NULL))
		sent++;
	fall_asleep(&s, 0);
	assert_true(is_woken(&s, 0));
	rig_pump_side(&s.rig, 0);
	assert_int_equal(tr_conn_arm(s.rig.side[0].conn), 1);
	say(&s, 0);
	assert_true(sent > 1);
	end_setting(&s);
}

CASE(room_for_blocks_wakes)
{
	static struct tr_span spans[1024];
	struct tr_op *op;
	struct setting s;
	size_t n = sizeof(spans) / sizeof(spans[0]), done;

	for (size_t i = 0; i < n; i++)
		spans[i] = (struct tr_span){ (n - 1 - i) * 16, i * 32, 16 };
	ib_test_hook.sq_depth = 64;
	begin_setting(&s, NULL);
	ib_test_hook.sq_depth = 0;
	assert_int_equal(tr_op_begin(s.rig.side[0].conn, TR_WRITE, 7, &op, NULL), 0);
	done = (size_t)tr_op_add(op, s.mem[0], s.rmem[0], spans, n, NULL);
	assert_true(done < n);
	fall_asleep(&s, 0);
	assert_true(is_woken(&s, 0));
	while (done < n) {
		rig_pump(&s.rig);
		done += (size_t)tr_op_add(op, s.mem[0], s.rmem[0], spans + done, n - done, NULL);
	}
	while (tr_op_commit(op, TR_NOTIFY, 7, NULL))
		rig_pump(&s.rig);
	setting_expect_written(&s, 0, 7);
	setting_expect_notify(&s, 1, 7);
	end_setting(&s);
}

/*
 * Credits that the peer is owed, and no place for the message that gives them back: the peer may
 * send nothing more before it has them.
 */
CASE(room_for_credits_wakes)
{
	const struct ib_lane *from;
	struct ib_lane *lane;
	struct setting s;

	begin_setting(&s, NULL);
	lane = &ib_conn_of(s.rig.side[1].conn)->lane[0];
	from = &ib_conn_of(s.rig.side[0].conn)->lane[0];
	fake_hold_answers(false);
	fake_mute(1, true);
	say(&s, 1);
	lane->ctl_posted += IB_RECV_DATA - 1; /* as if so many more were under way */
	for (int i = 0; i < IB_RECV_DATA / 2; i++)
		say(&s, 0);
	fake_settle();
	fall_asleep(&s, 1);
	assert_int_equal(lane->owed, IB_RECV_DATA / 2);
	fake_mute(1, false);
	assert_true(is_woken(&s, 1));
	lane->ctl_posted -= IB_RECV_DATA - 1;
	rig_pump(&s.rig);
	assert_int_equal(lane->owed, 0);
	fake_settle();
	rig_pump(&s.rig);
	assert_int_equal(from->credits, IB_RECV_DATA);
	end_setting(&s);
}

CASE(the_answer_of_a_silent_peer_wakes)
{
	struct tr_conn *conn;
	struct setting s;

	begin_setting(&s, NULL);
	conn = s.rig.side[0].conn;
	assert_false(tr_ib_provider.ask(conn));
	fall_asleep(&s, 0);
	assert_true(is_woken(&s, 0));
	end_setting(&s);
}

CASE(an_error_wakes_although_nobody_waits)
{
	struct setting s;

	begin_setting(&s, NULL);
	fake_mute(0, true);
	say(&s, 0);
	fall_asleep(&s, 0);
	fake_fail_completion(1, IBV_WC_RETRY_EXC_ERR, 0);
	fake_mute(0, false);
	assert_true(is_woken(&s, 0));
	assert_non_null(rig_wait(&s.rig, 0, TR_PEER_LOST, BUDGET));
	setting_end(&s);
}

static uint64_t asked(void)
{
	struct fake_stats stats;

	fake_stats(&stats);
	return stats.async_asked;
}

/* Each question is a system call, and who sleeps between messages would put one each time. */
CASE(a_device_is_asked_for_its_events_where_it_has_reported_one)
{
	struct tr_conn *conn;
	struct setting s;
	uint64_t before;

	begin_setting(&s, NULL);
	conn = s.rig.side[1].conn;
	before = asked();
	for (int i = 0; i < 10; i++) {
		say(&s, 0);
		fake_settle();
		rig_pump_side(&s.rig, 1);
		fall_asleep(&s, 1);
	}
	assert_int_equal(asked(), before);
	fake_link(1, 0, false);
	assert_true(tr_conn_wait(conn, 0));
	assert_true(asked() > before);
	assert_true(atomic_load(&ib_conn_of(conn)->path[0].rail->down));
	fall_asleep(&s, 1); /* it does not wake for ever */
	setting_end(&s);
}

/* Its completion was taken before it came, so nobody has counted it. */
CASE(an_event_that_comes_late_does_not_wake_for_ever)
{
	struct ib_path *path;
	struct tr_conn *conn;
	struct setting s;
	int wakes = 0;

	begin_setting(&s, NULL);
	conn = s.rig.side[1].conn;
	path = &ib_conn_of(conn)->path[0];
	say(&s, 0);
	fake_settle();
	rig_pump_side(&s.rig, 1);
	path->events = 0;
	assert_int_equal(tr_conn_arm(conn), 0);
	for (; tr_conn_wait(conn, 0); wakes++) {
		assert_true(wakes < 4);
		assert_int_equal(tr_conn_arm(conn), 0);
	}
	assert_true(wakes > 0);
	assert_int_equal(is_woken(&s, 1), 0);
	say(&s, 0);
	fake_settle();
	assert_true(tr_conn_wait(conn, 0)); /* nor is what comes next lost */
	end_setting(&s);
}
