/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_staged_end_test.c -- memory of a GPU that the NIC does not reach: what ends with a connection,
 * a peer that lies, and each point failing once
 */
#include "base/fault.h"
#include "conn.h"
#include "staged_pair.h"
#include "sweep.h"

/* ---------------------------------------------------------------- ends */

/* At any time, of either end. */
CASE(a_connection_that_is_killed_leaves_nothing)
{
	for (int turns = 0; turns < 200; turns += 9)
		for (int side = 0; side < 2; side++) {
			struct pair p;
			struct tr_op *op;

			begin(&p, 3);
			fill(&p.end[0], 1);
			fake_cuda.slow = turns % 3;
			op = begin_op(&p, 0, turns % 2 ? TR_WRITE : TR_READ_OP, LEN);
			turn(&p, turns);
			tr_op_commit(op, 0, 0, NULL);
			fake_kill_host(side);
			tr_msg(p.rig.side[!side].conn, "hello", 5,
			       NULL); /* it asks for an answer */
			assert_non_null(rig_wait(&p.rig, !side, TR_PEER_LOST, BUDGET));
			rig_disconnect(&p.rig);
			fill(&p.end[0], 2);
			fill(&p.end[1], 2);
			fake_settle();
			for (size_t i = 0; i < LEN; i++)
				assert_true(p.end[0].seen[i] == rig_byte(2, i) &&
					    p.end[1].seen[i] == rig_byte(2, i));
			finish(&p);
		}
}

/* The last words of an end that leaves are heard after its bytes. */
CASE(a_writer_that_leaves_is_heard_to_the_end)
{
	struct pair p;

	begin(&p, 2);
	fill(&p.end[0], 1);
	fake_cuda.hold = true;
	commit(&p, begin_op(&p, 0, TR_WRITE, SMALL), TR_NOTIFY);
	turn(&p, TURNS);
	tr_conn_close(p.rig.side[0].conn);
	p.rig.side[0].conn = NULL;
	for (int i = 0; i < TURNS; i++)
		rig_pump_side(&p.rig, 1);
	assert_null(rig_find(&p.rig, 1, TR_NOTIFIED));
	fake_cuda.hold = false;
	for (int i = 0; i < TURNS && !rig_find(&p.rig, 1, TR_NOTIFIED); i++)
		rig_pump_side(&p.rig, 1);
	assert_memory_equal(p.end[1].seen, p.end[0].seen, SMALL);
	finish(&p);
}

/* Its owner learns of that before an operation names it: NCCL when it registers the memory. */
CASE(a_connection_that_keeps_lines_refuses_it)
{
	struct tr_span span = { 0, 0, SMALL };
	struct kv_error err;
	struct tr_op *op;
	struct pair p = { .end[1].gpu = true };

	fake_begin(NULL);
	assert_int_equal(rig_open(&p.rig, "ib", NULL, &err), 0);
	p.rig.flags = TR_LINE_ORDER;
	assert_int_equal(rig_connect(&p.rig, &err), 0);
	make_end(&p, 0, false, &p.end[0]);
	p.end[1].seen = fake_cuda_alloc(ALLOCATED, &p.end[1].addr);
	assert_int_equal(tr_mem_reg(p.rig.side[1].tr, p.end[1].addr, LEN, TR_MEM_CUDA, 0,
				    &p.end[1].mem, &err),
			 0);
	assert_int_equal(tr_mem_usable(p.rig.side[0].conn, p.end[0].mem, &err), 0);
	assert_int_equal(tr_mem_usable(p.rig.side[1].conn, p.end[1].mem, &err), KV_ERR_UNSUPPORTED);
	assert_non_null(strstr(err.message, "keeps the order of lines"));
	assert_int_equal(rig_try_op(&p.rig, 1, TR_WRITE, 1, p.end[1].mem, p.end[0].rmem, &span, 1,
				    0, 0, &op, &err),
			 KV_ERR_UNSUPPORTED);
	finish(&p);
}

/* ---------------------------------------------------------------- a peer that lies */

struct lie {
	struct staged_message message;
	struct {
		uint32_t mem, len; /* 0: the region's id */
		uint64_t offset;
	} span;
	const char *answer;
};

/* Into the next slot of side 1, which the writer has not filled. */
static void put_lie(struct pair *p, const struct lie *lie)
{
	struct ib_conn *c = ib_conn_of(p->rig.side[1].conn);
	struct wire_writer w = wire_writer_of(staged_in(c->staged, c->staged->placed), STAGED_SPAN);

	wire_put_u32(&w, lie->span.mem ? lie->span.mem : p->end[1].mem->id);
	wire_put_u32(&w, lie->span.len);
	wire_put_u64(&w, lie->span.offset);
}

static void tell_lie(const struct lie *lie, bool opened)
{
	const struct rig_event *lost;
	struct ib_conn *c;
	struct pair p;

	begin(&p, 2);
	c = ib_conn_of(p.rig.side[0].conn);
	if (opened) {
		move(&p, TR_WRITE, 100, 1, 1);
		memset(p.end[1].seen, BLANK, LEN);
		if (lie->message.spans == 1)
			put_lie(&p, lie);
	}
	assert_int_equal(ib_staged_say(c, &lie->message), 0);
	lost = rig_wait(&p.rig, 1, TR_PEER_LOST, BUDGET);
	assert_non_null(lost);
	assert_int_equal(lost->cause.code, KV_ERR_PROTOCOL);
	if (!strstr(lost->cause.message, lie->answer))
		fail_msg("not \"%s\": %s", lie->answer, lost->cause.message);
	for (size_t i = 0; opened && i < LEN; i++)
		assert_int_equal(p.end[1].seen[i], BLANK);
	finish(&p);
}

CASE(each_lie_ends_the_connection_and_places_nothing)
{
	static const struct lie lies[] = {
		{ { .kind = 0 }, .answer = "unknown kind" },
		{ { .kind = 77 }, .answer = "unknown kind" },
		{ { .kind = STAGED_OPEN }, .answer = "malformed" },
		{ { .kind = STAGED_TAKEN, .number = 1 }, .answer = "malformed" },
		{ { .kind = STAGED_TAKEN, .number = UINT32_MAX }, .answer = "malformed" },
		{ { .kind = STAGED_WRITE, .spans = STAGED_SPANS + 1 }, .answer = "larger" },
		{ { .kind = STAGED_WRITE, .bytes = STAGED_BYTES + 1 }, .answer = "larger" },
		{ { .kind = STAGED_WRITE, .bytes = 1 }, .answer = "more bytes than spans" },
		{ { .kind = STAGED_WRITE, .spans = 1, .bytes = 8 }, { 0, 9, 0 }, "fewer bytes" },
		{ { .kind = STAGED_WRITE, .spans = 1, .bytes = 8 }, { 0, 0, 0 }, "fewer bytes" },
		{ { .kind = STAGED_WRITE, .spans = 1, .bytes = 8 }, { 0, 8, LEN - 7 }, "outside" },
		{ { .kind = STAGED_WRITE, .spans = 1, .bytes = 8 },
		  { 0, 8, UINT64_MAX - 3 },
		  "outside" },
		{ { .kind = STAGED_WRITE, .spans = 1, .bytes = 8 }, { 4711, 8, 0 }, "outside" },
		{ { .kind = STAGED_ANSWER, .bytes = 8 }, .answer = "answers no read" },
		{ { .kind = STAGED_ANSWER, .spans = 2 }, .answer = "unknown kind" },
		{ { .kind = STAGED_READ, .bytes = 8 }, .answer = "unknown kind" },
		{ { .kind = STAGED_READ, .spans = 1 }, { 0, 8, LEN - 7 }, "reads outside" },
		{ { .kind = STAGED_READ, .spans = 1 }, { 0, 0, 0 }, "reads outside" },
		{ { .kind = STAGED_READ, .spans = 1 }, { 4711, 8, 0 }, "reads outside" },
	};
	static const struct lie early = { { .kind = STAGED_WRITE }, .answer = "malformed" };

	for (size_t i = 0; i < sizeof(lies) / sizeof(lies[0]); i++)
		tell_lie(&lies[i], true);
	tell_lie(&early, false);
}

/* ---------------------------------------------------------------- what is not open */

enum { GONE = 5, NEVER = 6 }; /* grants */

static int may(void *arg, const struct tr_mem *mem, uint64_t offset, uint64_t len,
	       unsigned int access, uint64_t grant)
{
	return grant == NEVER ? KV_ERR_PROTOCOL : grant == GONE ? TR_DROP : TR_PLACE;
}

static void write_under(struct pair *p, uint64_t grant)
{
	struct tr_span spans[] = { { 0, 0, SMALL }, { SMALL, 2 * SMALL, SMALL } };
	struct kv_error err;
	struct tr_op *op;
	long added;

	assert_int_equal(tr_op_begin(p->rig.side[0].conn, TR_WRITE, 7, &op, &err), 0);
	tr_op_grant(op, grant);
	while (!(added = tr_op_add(op, p->end[0].mem, p->end[1].rmem, spans, 2, &err)))
		rig_pump(&p->rig);
	assert_int_equal(added, 2);
	commit(p, op, TR_NOTIFY);
}

/* The receiver is asked for each span, under the grant of its operation. */
CASE(bytes_of_a_grant_that_is_gone_go_nowhere)
{
	for (int gpus = 1; gpus < 4; gpus++) {
		struct tr_upper_ops ops;
		struct pair p;

		begin(&p, gpus);
		ops = *p.rig.side[1].conn->upper;
		ops.may = may;
		p.rig.side[1].conn->upper = &ops;
		fill(&p.end[0], 1);
		write_under(&p, GONE);
		assert_non_null(rig_wait(&p.rig, 1, TR_NOTIFIED, BUDGET));
		assert_non_null(rig_wait(&p.rig, 0, TR_WRITTEN, BUDGET));
		for (size_t i = 0; i < LEN; i++)
			assert_int_equal(p.end[1].seen[i], BLANK);
		write_under(&p, GONE + 10);
		assert_non_null(rig_wait(&p.rig, 1, TR_NOTIFIED, BUDGET));
		assert_memory_equal(p.end[1].seen + 2 * SMALL, p.end[0].seen + SMALL, SMALL);
		memset(p.end[1].seen, BLANK, LEN);
		write_under(&p, NEVER);
		assert_int_equal(rig_wait(&p.rig, 1, TR_PEER_LOST, BUDGET)->status,
				 KV_ERR_PROTOCOL);
		for (size_t i = 0; i < LEN; i++)
			assert_int_equal(p.end[1].seen[i], BLANK);
		finish(&p);
	}
}

/* ---------------------------------------------------------------- each point fails once */

/* Of two causes the one that is not about the other end. */
static int cause(const struct pair *p, struct kv_error *err)
{
	const struct kv_error *of[2] = { tr_conn_error(p->rig.side[0].conn),
					 tr_conn_error(p->rig.side[1].conn) };
	bool first = of[0]->code && (!of[1]->code || strstr(of[0]->message, "ibv_"));

	*err = *of[!first];
	return err->code;
}

/* An event of this kind at that side, or the error once both ends know of it. */
static int await(struct pair *p, int side, int kind, struct kv_error *err)
{
	bool lost[2] = { false, false };

	for (int n = 0; n < BUDGET; n++) {
		if (rig_find(&p->rig, side, kind))
			return 0;
		for (int i = 0; i < 2; i++)
			lost[i] |= rig_find(&p->rig, i, TR_PEER_LOST) != NULL;
		if (lost[0] && lost[1])
			return cause(p, err);
		rig_pump(&p->rig);
	}
	fail_msg("event %d does not come", kind);
	return 0;
}

enum { SPANS = 30 };

static int move_some(struct pair *p, struct kv_error *err)
{
	struct tr_span spans[SPANS];
	struct kv_error why;
	struct tr_op *op;
	int ret;

	for (size_t i = 0; i < SPANS; i++)
		spans[i] = (struct tr_span){ i * 40000, (SPANS - 1 - i) * 40000,
					     i < 8 ? 40000 : 1000 };
	fill(&p->end[0], 1);
	ret = rig_try_op(&p->rig, 0, TR_WRITE, 1, p->end[0].mem, p->end[1].rmem, spans, SPANS,
			 TR_NOTIFY, 2, &op, err);
	ret = ret ? ret : await(p, 1, TR_NOTIFIED, err);
	ret = ret ? ret : await(p, 0, TR_WRITTEN, err);
	for (size_t i = 0; i < SPANS && !ret; i++)
		assert_memory_equal(p->end[1].seen + spans[i].remote,
				    p->end[0].seen + spans[i].local, spans[i].len);
	if (!ret)
		ret = rig_try_op(&p->rig, 0, TR_READ_OP, 1, p->end[0].mem, p->end[1].rmem, spans,
				 SPANS, 0, 0, &op, err);
	ret = ret ? ret : await(p, 0, TR_READ, err);
	for (size_t i = 0; i < SPANS; i++)
		for (size_t b = 0; b < 40000; b++) {
			uint8_t got = p->end[1].seen[spans[i].remote + b];

			assert_true(got == BLANK ||
				    (b < spans[i].len && got == rig_byte(1, spans[i].local + b)));
		}
	for (int i = 0; i < 10 && !ret; i++)
		if (tr_conn_arm(p->rig.side[0].conn))
			rig_pump(&p->rig);
	turn(p, TURNS); /* until both ends know */
	return cause(p, &why) ? cause(p, err) : ret;
}

static int see(struct pair *p, int side, struct kv_error *err)
{
	uint8_t pack[TR_MEM_PACK_MAX];
	size_t len;
	int ret = tr_mem_pack(p->rig.side[side].conn, p->end[side].mem, pack, sizeof(pack), &len,
			      err);

	return ret ? ret : tr_mem_open(p->rig.side[!side].conn, pack, len, &p->end[side].rmem, err);
}

static int play(struct kv_error *err)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=2", NULL };
	struct fake_config config = { .seed = 7, .infiniband = sweep_infiniband };
	struct pair p = { 0 };
	int ret, i;

	fake_begin(&config);
	ret = rig_open(&p.rig, "ib", options, err);
	if (ret) {
		assert_true(fake_end());
		return ret;
	}
	for (i = 0; i < 2; i++) {
		p.end[i].gpu = i;
		p.end[i].seen = i ? fake_cuda_alloc(ALLOCATED, &p.end[i].addr) : malloc(LEN);
		p.end[i].addr = i ? p.end[i].addr : p.end[i].seen;
		memset(p.end[i].seen, BLANK, LEN);
	}
	ret = rig_connect(&p.rig, err);
	for (i = 0; i < 2 && !ret; i++)
		ret = tr_mem_reg(p.rig.side[i].tr, p.end[i].addr, LEN,
				 i ? TR_MEM_CUDA : TR_MEM_HOST, TR_REMOTE_WRITE | TR_REMOTE_READ,
				 &p.end[i].mem, err);
	for (i = 0; i < 2 && !ret; i++)
		ret = see(&p, i, err);
	ret = ret ? ret : move_some(&p, err);
	rig_disconnect(&p.rig);
	for (i = 0; i < 2; i++)
		if (p.end[i].mem)
			assert_int_equal(tr_mem_dereg(p.end[i].mem, NULL), 0);
	rig_close(&p.rig);
	free(p.end[0].seen);
	assert_true(fake_end());
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
	return ret;
}

static uint32_t next(uint32_t nth)
{
	return nth < 12 ? nth + 1 : nth + nth / 3;
}

static const struct sweep sweep = {
	.play = play,
	.next = next,
	.fail_verb = sweep_fail_verb,
	.verb_fired = fake_verb_fired,
	.fail_wr = fake_fail_wr_ahead,
};

CASE(every_verb_fails_once)
{
	sweep_verbs(&sweep);
}

CASE(every_early_work_request_is_refused_once)
{
	sweep_work_requests(&sweep);
}

CASE(every_allocation_fails_once)
{
	static const enum kv_fault_point points[] = { KV_FAULT_GPU_SLOTS, KV_FAULT_GPU_STAGE,
						      KV_FAULT_GPU_ALLOC, KV_FAULT_GPU_PIN,
						      KV_FAULT_GPU_LAUNCH };

	for (size_t i = 0; i < sizeof(points) / sizeof(points[0]); i++)
		sweep_point(&sweep, points[i]);
}

int main(int argc, char **argv)
{
	if (argc > 1)
		cmocka_set_test_filter(argv[1]);
	ib_test_hook.sysroot = "/nowhere"; /* a machine without nvidia_peermem */
	return run_cases(NULL, NULL);
}
