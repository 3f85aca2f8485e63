/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_staged_test.c -- memory of a GPU that the NIC does not reach, over the fake device, which
 * takes no DMA-BUF: through pinned memory, with kernels that end when the test says so
 */
#include "base/clock.h"
#include "lib/slow.h"
#include "staged_pair.h"

/* ---------------------------------------------------------------- bytes */

CASE(bytes_go_both_ways_and_nowhere_else)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=3", NULL };
	static const struct {
		size_t len, n;
	} sizes[] = { { 1, 1 },	       { 1000, 1300 },	    { 4096, 300 },
		      { LEN - 10, 1 }, { STAGED_BYTES, 2 }, { STAGED_BYTES / 2 + 77, 4 } };

	for (uint64_t seed = 1; seed <= 3; seed++)
		for (int gpus = 1; gpus < 4; gpus++) {
			struct pair p;

			begin_seed(&p, gpus, seed, options);
			fake_cuda.slow = (int)seed - 1;
			for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
				move(&p, TR_WRITE, sizes[i].len, sizes[i].n, 2 * i + 1);
				move(&p, TR_READ_OP, sizes[i].len, sizes[i].n, 2 * i + 2);
			}
			finish(&p);
		}
}

/* Both ends write and read at one time: each one's answers go through the slots of its writes. */
CASE(both_ends_move_at_one_time)
{
	struct tr_span half = { 0, 0, LEN / 2 }, other = { LEN / 2, LEN / 2, LEN / 2 };
	struct pair p;

	begin(&p, 3);
	for (int side = 0; side < 2; side++)
		for (size_t i = 0; i < LEN / 2; i++)
			p.end[side].seen[(size_t)side * (LEN / 2) + i] =
				rig_byte(1, (size_t)side * (LEN / 2) + i);
	for (int side = 0; side < 2; side++)
		rig_op(&p.rig, side, TR_WRITE, 1, p.end[side].mem, p.end[!side].rmem,
		       side ? &other : &half, 1, 0, 0);
	for (int side = 0; side < 2; side++)
		assert_non_null(rig_wait(&p.rig, side, TR_WRITTEN, BUDGET));
	for (int side = 0; side < 2; side++)
		for (size_t i = 0; i < LEN / 2 * 2; i++)
			assert_int_equal(p.end[side].seen[i], rig_byte(1, i));
	for (int side = 0; side < 2; side++) {
		memset(p.end[side].seen + (side ? LEN / 2 : 0), 0, LEN / 2);
		rig_op(&p.rig, side, TR_READ_OP, 2, p.end[side].mem, p.end[!side].rmem,
		       side ? &other : &half, 1, 0, 0);
	}
	finish(&p); /* in the middle of them */
}

/* Of one operation: what the NIC reaches goes directly, and one notify follows all of it. */
CASE(an_operation_has_bytes_of_both_ways)
{
	struct tr_span span = { 100, 200, 900 * 1000 };
	struct end host[2];
	struct pair p;

	begin(&p, 3);
	for (int i = 0; i < 2; i++)
		make_end(&p, i, false, &host[i]);
	for (uint64_t round = 1; round < 6; round++) {
		struct kv_error err;
		struct tr_op *op;
		long added;

		fill(&p.end[0], round);
		fill(&host[0], round + 100);
		fake_cuda.slow = (int)round;
		assert_int_equal(tr_op_begin(p.rig.side[0].conn, TR_WRITE, 7, &op, &err), 0);
		for (int i = 0; i < 4; i++) {
			bool direct = (round + (uint64_t)i) % 2;
			struct end *from = direct ? &host[0] : &p.end[0];
			struct end *to = direct ? &host[1] : &p.end[1];
			struct tr_span part = { span.local + (uint64_t)i / 2 * span.len,
						span.remote + (uint64_t)i / 2 * span.len,
						span.len };

			if (part.local + span.len > LEN - 200)
				part.len = 1000;
			while (!(added = tr_op_add(op, from->mem, to->rmem, &part, 1, &err)))
				rig_pump(&p.rig);
			assert_int_equal(added, 1);
		}
		commit(&p, op, TR_NOTIFY | TR_PROVEN);
		assert_non_null(rig_wait(&p.rig, 1, TR_NOTIFIED, BUDGET));
		for (size_t i = 0; i < span.len; i++) {
			assert_int_equal(p.end[1].seen[200 + i], rig_byte(round, 100 + i));
			assert_int_equal(host[1].seen[200 + i], rig_byte(round + 100, 100 + i));
		}
		assert_non_null(rig_wait(&p.rig, 0, TR_WRITTEN, BUDGET));
	}
	rig_disconnect(&p.rig);
	for (int i = 0; i < 2; i++)
		free_end(&host[i]);
	finish(&p);
}

/* A NIC at one end takes DMA-BUFs: what it reaches there is gathered all the same. */
CASE(one_end_is_reached_and_the_other_is_not)
{
	struct pair p = { 0 };
	struct fake_config config = { .dmabuf = true };

	for (int reached = 0; reached < 2; reached++) {
		fake_begin(&config);
		rig_make(&p.rig, "ib", NULL);
		for (int i = 0; i < 2; i++) {
			fake_cuda.export_says = i == reached ? 0 : 801;
			make_end(&p, i, true, &p.end[i]);
		}
		move(&p, TR_WRITE, 70000, 8, 1);
		move(&p, TR_READ_OP, 70000, 8, 2);
		finish(&p);
	}
}

/* ---------------------------------------------------------------- what waits for a kernel */

CASE(what_is_gathered_waits_for_the_kernel)
{
	struct pair p;
	struct tr_op *op;

	begin(&p, 1);
	fill(&p.end[0], 1);
	fake_cuda.hold = true;
	op = begin_op(&p, 0, TR_WRITE, SMALL);
	for (int i = 0; i < TURNS; i++) {
		rig_pump(&p.rig);
		assert_int_equal(tr_op_commit(op, TR_NOTIFY, 9, NULL), TR_AGAIN);
		assert_int_equal(tr_conn_arm(p.rig.side[0].conn), 1); /* nothing would wake it */
	}
	assert_int_equal(fake_cuda.launched, 1);
	assert_int_equal(p.end[1].seen[0], BLANK);
	/* Others need not wait. */
	assert_int_equal(tr_msg(p.rig.side[0].conn, "before", 6, NULL), 0);
	assert_non_null(rig_wait(&p.rig, 1, TR_MSG, BUDGET));
	fake_cuda.hold = false;
	commit(&p, op, TR_NOTIFY);
	assert_non_null(rig_wait(&p.rig, 1, TR_NOTIFIED, BUDGET));
	assert_memory_equal(p.end[1].seen, p.end[0].seen, SMALL);
	finish(&p);
}

/* The writer waits for the message that its slot was taken, and there is no place for it. */
CASE(room_for_what_is_due_wakes_a_sleeper)
{
	struct ib_lane *lane;
	struct tr_conn *conn;
	struct pair p;

	begin(&p, 2);
	move(&p, TR_WRITE, SMALL, 1, 1);
	turn(&p, 20);
	conn = p.rig.side[1].conn;
	lane = &ib_conn_of(conn)->lane[0];
	fake_hold_answers(true);
	assert_int_equal(tr_msg(conn, "x", 1, NULL), 0);
	lane->ctl_posted += IB_RECV_DATA - 1; /* as if so many more were under way */
	commit(&p, begin_op(&p, 0, TR_WRITE, SMALL), 0);
	fake_settle();
	for (int i = 0; tr_conn_arm(conn); i++) {
		assert_true(i < TURNS);
		rig_pump_side(&p.rig, 1);
	}
	assert_false(tr_conn_wait(conn, 0));
	assert_int_not_equal(ib_conn_of(conn)->staged->placed,
			     ib_conn_of(conn)->staged->placed_sent);
	fake_hold_answers(false);
	fake_settle();
	assert_true(tr_conn_wait(conn, 0));
	lane->ctl_posted -= IB_RECV_DATA - 1;
	assert_non_null(rig_wait(&p.rig, 0, TR_WRITTEN, BUDGET));
	finish(&p);
}

/* The notify, the message behind it, and the writer's proof. */
CASE(what_follows_the_bytes_waits_for_the_kernel)
{
	struct pair p;

	begin(&p, 2);
	fill(&p.end[0], 1);
	fake_cuda.hold = true;
	commit(&p, begin_op(&p, 0, TR_WRITE, SMALL), TR_NOTIFY | TR_PROVEN);
	while (tr_msg(p.rig.side[0].conn, "after", 5, NULL))
		rig_pump(&p.rig);
	for (int i = 0; i < TURNS; i++) {
		rig_pump(&p.rig);
		assert_null(rig_find(&p.rig, 1, TR_NOTIFIED));
		assert_null(rig_find(&p.rig, 1, TR_MSG));
		assert_null(rig_find(&p.rig, 0, TR_WRITTEN));
	}
	assert_int_equal(fake_cuda.launched, 1);
	assert_int_equal(tr_conn_arm(p.rig.side[1].conn), 1);
	assert_int_equal(tr_mem_dereg(p.end[1].mem, NULL), KV_ERR_BUSY);
	fake_cuda.hold = false;
	assert_non_null(rig_wait(&p.rig, 1, TR_NOTIFIED, BUDGET));
	assert_memory_equal(p.end[1].seen, p.end[0].seen, SMALL);
	assert_non_null(rig_wait(&p.rig, 1, TR_MSG, BUDGET));
	assert_non_null(rig_wait(&p.rig, 0, TR_WRITTEN, BUDGET));
	finish(&p);
}

/* When the kernel has ended, or never well: then the connection is lost and the memory stays. */
static void cancelled(int kind, int side, bool committed, bool ends_in_time)
{
	int64_t deadline_ns = kv_deadline_ns(ends_in_time ? slow_ms(60000) : 0);
	const struct rig_event *lost;
	struct pair p;
	struct tr_op *op;

	begin(&p, 1 << side);
	fill(&p.end[kind == TR_READ_OP], 1);
	fake_cuda.hold = true;
	op = begin_op(&p, 0, kind, SMALL);
	if (committed)
		commit(&p, op, 0);
	else
		assert_int_equal(tr_op_commit(op, 0, 0, NULL), TR_AGAIN);
	turn(&p, TURNS);
	assert_int_equal(fake_cuda.launched, 1);
	assert_int_equal(tr_op_cancel(op, deadline_ns, NULL), 0);
	if (!ends_in_time) {
		lost = rig_wait(&p.rig, 0, TR_PEER_LOST, BUDGET);
		assert_non_null(lost);
		assert_int_equal(lost->cause.code, KV_ERR_TIMEOUT);
		/* What the peer's kernel does is the peer's; of its own this end says so. */
		assert_non_null(
			rig_find(&p.rig, 0, kind == TR_READ_OP ? TR_IN_DOUBT : TR_CANCELLED));
		if (side == 0)
			assert_int_equal(tr_mem_dereg(p.end[0].mem, NULL), KV_ERR_BUSY);
	} else {
		turn(&p, TURNS);
		assert_null(rig_find(&p.rig, 0, TR_CANCELLED));
		assert_null(rig_find(&p.rig, 0, kind == TR_WRITE ? TR_WRITTEN : TR_READ));
	}
	fake_cuda.hold = false;
	if (ends_in_time) {
		while (!rig_find(&p.rig, 0, TR_CANCELLED) && !rig_find(&p.rig, 0, TR_WRITTEN))
			rig_pump(&p.rig);
		fill(&p.end[0], 2);
		fill(&p.end[1], 2);
		turn(&p, TURNS);
		for (size_t i = 0; i < LEN; i++) /* nothing more of it lands */
			assert_true(p.end[0].seen[i] == rig_byte(2, i) &&
				    p.end[1].seen[i] == rig_byte(2, i));
		move(&p, TR_WRITE, 70000, 8, 3);
		move(&p, TR_READ_OP, 70000, 8, 4);
	}
	finish(&p);
}

CASE(a_cancelled_operation_waits_for_the_kernel)
{
	for (int i = 0; i < 2; i++) {
		cancelled(TR_WRITE, 1, true, i); /* the receiver's */
		cancelled(TR_WRITE, 0, false, i);
		cancelled(TR_READ_OP, 0, true, i); /* the reader's */
	}
}

/* Bytes of a read that was cancelled go nowhere, and those of the next one where they belong. */
CASE(answers_to_a_cancelled_read_go_nowhere)
{
	struct pair p;

	for (int gpus = 1; gpus < 4; gpus++)
		for (int turns = 0; turns < 60; turns += 6) {
			struct tr_op *op;

			begin(&p, gpus);
			fill(&p.end[1], 1);
			op = begin_op(&p, 0, TR_READ_OP, LEN);
			commit(&p, op, 0);
			turn(&p, turns);
			assert_int_equal(tr_op_cancel(op, kv_deadline_ns(slow_ms(60000)), NULL), 0);
			while (!rig_find(&p.rig, 0, TR_CANCELLED) && !rig_find(&p.rig, 0, TR_READ))
				rig_pump(&p.rig);
			move(&p, TR_READ_OP, 1000, 700, 2);
			finish(&p);
		}
}

/* A fence is done when no kernel can write any more. */
CASE(a_fence_waits_for_the_kernel)
{
	struct kv_error err;
	struct pair p;
	int ret;

	begin(&p, 2);
	fill(&p.end[0], 1);
	fake_cuda.hold = true;
	commit(&p, begin_op(&p, 0, TR_WRITE, SMALL), TR_NOTIFY);
	turn(&p, TURNS);
	assert_int_equal(fake_cuda.launched, 1);
	while ((ret = tr_fence(p.rig.side[1].conn, INT64_MAX, &err)) == TR_AGAIN)
		;
	assert_int_equal(ret, KV_ERR_BUSY);
	assert_non_null(strstr(err.message, "a GPU's copy of what came from"));
	fake_cuda.hold = false;
	while ((ret = tr_fence(p.rig.side[1].conn, INT64_MAX, &err)) == TR_AGAIN)
		;
	assert_int_equal(ret, 0);
	memset(p.end[1].seen, BLANK, LEN);
	turn(&p, TURNS);
	for (size_t i = 0; i < LEN; i++)
		assert_int_equal(p.end[1].seen[i], BLANK);
	finish(&p);
}

/* The peer has taken none, and kernels gather the next ones. */
CASE(slots_are_gathered_while_others_are_on_their_way)
{
	struct tr_span span = { 0, 0, LEN };
	const struct ib_staged *s;
	struct kv_error err;
	struct tr_op *op;
	struct pair p;

	begin(&p, 1);
	move(&p, TR_WRITE, 100, 1, 1); /* now each knows the other's slots */
	turn(&p, TURNS);
	s = ib_conn_of(p.rig.side[0].conn)->staged;
	assert_int_equal(s->begun, s->taken);
	fill(&p.end[0], 2);
	fake_cuda.launched = 0;
	assert_int_equal(tr_op_begin(p.rig.side[0].conn, TR_WRITE, 7, &op, &err), 0);
	assert_int_equal(tr_op_add(op, p.end[0].mem, p.end[1].rmem, &span, 1, &err), 1);
	while (tr_op_commit(op, TR_NOTIFY, 9, NULL) == TR_AGAIN)
		rig_pump_side(&p.rig, 0);
	assert_int_equal(s->posted - s->taken, 3);
	assert_true(fake_cuda.launched >= 2);
	assert_non_null(rig_wait(&p.rig, 1, TR_NOTIFIED, BUDGET));
	assert_memory_equal(p.end[1].seen, p.end[0].seen, LEN);
	finish(&p);
}

int main(int argc, char **argv)
{
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	ib_test_hook.sysroot = "/nowhere"; /* a machine without nvidia_peermem */
	return run_cases(NULL, NULL);
}
