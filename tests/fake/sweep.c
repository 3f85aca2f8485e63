/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sweep.c -- the scene that uses everything of the ib provider, and the loops that fail each of its
 * points once
 */
#include "lib/process.h"
#include "sweep.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "gpu.h"
#include "lib/test.h"

enum {
	SIZE = 64 << 10,
	BLOCK = 4096,
	BLOCK_USED = 4000,
	BLOCKS = 16,
	LIMIT_MS = 30000,
	BLANK = 0xee
};

struct scene {
	struct rig rig;
	uint8_t *buf[2];
	struct tr_mem *mem[2];
	struct tr_rmem *rmem;
	struct gpu gpu;		/* of side 0, with the bytes of buf[0]; */
	struct tr_mem *mem_gpu; /* NULL where the device takes no DMA-BUF */
	bool lost[2];		/* TR_PEER_LOST */
};

/* Of two causes the one that a device gave, not "the peer closed the connection". */
static int lost(struct scene *s, struct kv_error *err)
{
	const struct kv_error *here = tr_conn_error(s->rig.side[0].conn);
	const struct kv_error *there = tr_conn_error(s->rig.side[1].conn);

	const struct kv_error *cause =
		!here->code || (there->wc_status && !here->wc_status) ? there : here;

	return cause->code ? kv_error_copy(err, cause) : 0;
}

/* An event of this kind, or the connection's error once both ends know of it. */
static int await(struct scene *s, int side, int kind, struct kv_error *err)
{
	int64_t end = kv_deadline_ns(LIMIT_MS);

	while (kv_now_ns() < end) {
		if (rig_find(&s->rig, side, kind))
			return 0;
		for (int i = 0; i < 2; i++)
			s->lost[i] |= rig_find(&s->rig, i, TR_PEER_LOST) != NULL;
		if (s->lost[0] && s->lost[1])
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
	int ret = tr_mem_reg_dmabuf(s->rig.side[0].tr, s->gpu.addr + BLOCK, SIZE - BLOCK, s->gpu.fd,
				    BLOCK, 0, &s->mem_gpu, err);

	if (ret == KV_ERR_UNSUPPORTED)
		ret = 0;
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
	int64_t end = kv_deadline_ns(LIMIT_MS);

	while (kv_now_ns() < end) {
		int ret = tr_msg(s->rig.side[side].conn, &what, sizeof(what), err);

		if (ret != TR_AGAIN)
			return ret ? ret : await(s, !side, TR_MSG, err);
		rig_pump(&s->rig);
	}
	fail_msg("a message is never taken");
	return 0;
}

/* Block i of side 0 goes to block BLOCKS - 1 - i of side 1. */
static struct tr_span span_of(size_t i)
{
	return (struct tr_span){ i * BLOCK, (BLOCKS - 1 - i) * BLOCK, BLOCK_USED };
}

/* Its block 0, which is the buffer's block 1. */
static int write_from_gpu(struct scene *s, struct kv_error *err)
{
	struct tr_span span = { 0, span_of(1).remote, BLOCK_USED };
	struct tr_op *op;
	int ret = rig_try_op(&s->rig, 0, TR_WRITE, 4, s->mem_gpu, s->rmem, &span, 1, TR_NOTIFY, 6,
			     &op, err);

	if (!ret)
		ret = await(s, 0, TR_WRITTEN, err);
	return ret ? ret : await(s, 1, TR_NOTIFIED, err);
}

static int move(struct scene *s, struct kv_error *err)
{
	struct tr_span spans[BLOCKS];
	struct tr_op *op;
	int ret;

	for (size_t i = 0; i < BLOCKS; i++)
		spans[i] = span_of(i);
	ret = s->mem_gpu ? write_from_gpu(s, err) : 0;
	if (ret)
		return ret;
	ret = rig_try_op(&s->rig, 0, TR_WRITE, 1, s->mem[0], s->rmem, spans, BLOCKS,
			 TR_NOTIFY | TR_PROVEN, 7, &op, err);
	if (!ret)
		ret = await(s, 0, TR_WRITTEN, err);
	if (!ret)
		ret = await(s, 1, TR_NOTIFIED, err);
	for (size_t i = 0; i < BLOCKS && !ret; i++)
		assert_memory_equal(s->buf[0] + spans[i].local, s->buf[1] + spans[i].remote,
				    BLOCK_USED);
	if (!ret)
		ret = rig_try_op(&s->rig, 0, TR_READ_OP, 2, s->mem[0], s->rmem, spans, BLOCKS, 0, 0,
				 &op, err);
	return ret ? ret : await(s, 0, TR_READ, err);
}

/*
 * Credits go back and forth, one operation is cancelled, the owner sleeps, the connection is
 * fenced.
 */
static int talk_and_stop(struct scene *s, struct kv_error *err)
{
	int64_t end;
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
	end = kv_deadline_ns(LIMIT_MS);
	while (kv_now_ns() < end) {
		ret = tr_fence(s->rig.side[1].conn, INT64_MAX, err);
		if (ret != TR_AGAIN)
			return ret;
	}
	fail_msg("the fence does not end");
	return 0;
}

static void check_bytes(const struct scene *s)
{
	for (size_t i = 0; i < SIZE; i++)
		assert_int_equal(s->buf[0][i], rig_byte(1, i));
	for (size_t i = 0; i < BLOCKS; i++) {
		const struct tr_span span = span_of(i);

		for (size_t b = 0; b < BLOCK; b++) {
			uint8_t got = s->buf[1][span.remote + b];

			if (got != BLANK && (b >= BLOCK_USED || got != rig_byte(1, span.local + b)))
				fail_msg("byte %zu of block %zu is neither the old nor the new one",
					 b, i);
		}
	}
}

int sweep_scene(const char *const *options, struct kv_error *err)
{
	struct scene s = { 0 };
	int ret;

	for (int i = 0; i < 2; i++)
		s.buf[i] = aligned_alloc(4096, SIZE);
	for (size_t i = 0; i < SIZE; i++)
		s.buf[0][i] = rig_byte(1, i);
	memset(s.buf[1], BLANK, SIZE);
	gpu_make(&s.gpu, SIZE);
	memcpy(s.gpu.bytes, s.buf[0], SIZE);
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
		if (s.mem_gpu)
			assert_int_equal(tr_mem_dereg(s.mem_gpu, NULL), 0);
		rig_close(&s.rig);
	}
	check_bytes(&s);
	for (int i = 0; i < 2; i++)
		free(s.buf[i]);
	gpu_free(&s.gpu);
	return ret;
}

bool sweep_infiniband;

void sweep_fail_verb(enum fake_verb verb, int nth, int error)
{
	sweep_infiniband = verb == FAKE_query_pkey;
	fake_fail_verb_ahead(verb, nth, error);
}

static int runs, noticed;

/* What a play that was to fail has returned; `what` and `nth` are for the message. */
static void check(const struct sweep *s, const char *what, uint32_t nth, int ret,
		  const struct kv_error *err, bool may_succeed)
{
	int descriptors = count_descriptors();
	struct kv_error second;

	runs++;
	noticed += ret != 0;
	if (!ret && !may_succeed)
		fail_msg("%s, pass %u: failed and was not noticed", what, nth);
	if (ret && (!err->message[0] || err->code != ret || !err->op[0]))
		fail_msg("%s, pass %u: no cause", what, nth);
	if (s->play(&second))
		fail_msg("after %s, pass %u: %s", what, nth, second.message);
	if (count_descriptors() != descriptors)
		fail_msg("%s, pass %u: descriptors before and after: %d, %d", what, nth,
			 descriptors, count_descriptors());
}

static void tell(const char *what)
{
	print_message("%s: %d runs with a failure, %d reported it\n", what, runs, noticed);
	runs = noticed = 0;
}

void sweep_point(const struct sweep *s, enum kv_fault_point point)
{
	const char *name = kv_fault_name(point);

	for (uint32_t nth = 1;; nth = s->next(nth)) {
		struct kv_error err = { 0 };
		bool fired;
		int ret;

		kv_fault_arm(point, nth);
		ret = s->play(&err);
		fired = kv_fault_fired(point);
		kv_fault_arm(point, 0);
		if (!fired)
			break;
		/* Without librdmacm the GID tables choose, without a thread the call waits. */
		check(s, name, nth, ret, &err,
		      point == KV_FAULT_IB_CM_DLOPEN || point == KV_FAULT_IB_ASIDE ||
			      !strncmp(name, "IB_ROUTE_", 9));
	}
	if (!runs)
		fail_msg("the scene does not pass %s", name);
	tell(name);
}

void sweep_fault_points(const struct sweep *s)
{
	for (int point = 0; point < KV_FAULT_POINTS; point++)
		if (!strncmp(kv_fault_name((enum kv_fault_point)point), "IB_", 3) &&
		    point != KV_FAULT_IB_DLOPEN)
			sweep_point(s, (enum kv_fault_point)point);
}

/* What a connection or a region asks of each device, and goes without one for. */
static bool is_of_one_device(enum fake_verb verb)
{
	return verb == FAKE_reg_mr || verb == FAKE_reg_dmabuf_mr ||
	       verb == FAKE_create_comp_channel || verb == FAKE_create_cq ||
	       verb == FAKE_create_qp || verb == FAKE_post_recv;
}

static void sweep_verb(const struct sweep *s, enum fake_verb verb)
{
	static const int errors[] = { ENOMEM, EIO };
	const char *name = fake_verb_name(verb);

	for (uint32_t nth = 1;; nth = s->next(nth)) {
		struct kv_error err = { 0 };
		int ret;

		s->fail_verb(verb, (int)nth, errors[nth % 2]);
		ret = s->play(&err);
		if (!s->verb_fired(verb))
			break;
		/*
		 * The owner polls again instead of sleeping; a queue pair that cannot be broken is
		 * destroyed; without librdmacm the GID tables choose; a partition that could not be
		 * read is read again in the second round of the pairing.
		 */
		check(s, name, nth, ret, &err,
		      verb == FAKE_req_notify_cq || verb == FAKE_modify_qp ||
			      verb == FAKE_query_pkey || (s->spare && is_of_one_device(verb)) ||
			      verb >= FAKE_cm_create_event_channel);
	}
	if (!runs)
		fail_msg("the scene does not call %s", name);
	tell(name);
}

void sweep_verbs(const struct sweep *s)
{
	for (int verb = 0; verb < FAKE_VERB_COUNT; verb++)
		if (verb != FAKE_query_pkey || !s->roce_only)
			sweep_verb(s, (enum fake_verb)verb);
}

void sweep_work_requests(const struct sweep *s)
{
	for (uint32_t nth = 1; nth < 100; nth = s->next(nth)) {
		struct kv_error err = { 0 };
		int ret;

		s->fail_wr((int)nth);
		ret = s->play(&err);
		if (!ret)
			break;
		assert_int_equal(err.code, KV_ERR_NOMEM);
		assert_non_null(strstr(err.message, "ibv_post_send"));
		check(s, "work request", nth, ret, &err, false);
	}
	if (!runs)
		fail_msg("the scene posts no work request");
	tell("work requests");
}
