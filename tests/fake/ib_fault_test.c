/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_fault_test.c -- the ib provider over the fake device when things go wrong: typed causes, one
 * end each, fences that hold
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/option.h"
#include "ib/ib.h"
#include "lib/test.h"
#include "setting.h"

enum { SIZE = 256 << 10, BLOCK = 4096 };

static const char *const four_lanes[] = { "KVCACHE_IB_LANES=4", NULL };

static struct tr_op *write_all(struct setting *s, uint64_t user, unsigned int flags)
{
	struct tr_span spans[SIZE / BLOCK];

	/* Every second block first, so that nothing merges. */
	for (size_t i = 0; i < SIZE / BLOCK; i++) {
		size_t at = (i * 2 % (SIZE / BLOCK) + (i * 2 >= SIZE / BLOCK)) * BLOCK;

		spans[i] = (struct tr_span){ at, at, BLOCK };
	}
	return rig_op(&s->rig, 0, TR_WRITE, user, s->mem[0], s->rmem[0], spans, SIZE / BLOCK, flags,
		      user);
}

static int count_kind(struct setting *s, int side, int kind)
{
	int n = 0;

	for (int i = 0; i < s->rig.side[side].events; i++)
		n += s->rig.side[side].event[i].kind == kind;
	return n;
}

/*
 * The operation ends in doubt with this code and a full cause; the connection is lost once, at both
 * ends.
 */
static struct kv_error expect_failure(struct setting *s, uint64_t user, int code)
{
	struct rig_event *event = rig_wait(&s->rig, 0, TR_IN_DOUBT, BUDGET);
	struct kv_error cause;

	assert_non_null(event);
	assert_int_equal(event->user, user);
	assert_int_equal(event->status, code);
	assert_true(event->cause.message[0]);
	assert_string_equal(event->cause.peer, tr_conn_address(s->rig.side[0].conn));
	cause = event->cause;
	event = rig_wait(&s->rig, 0, TR_PEER_LOST, BUDGET);
	assert_non_null(event);
	assert_int_equal(event->status, code);
	assert_non_null(rig_wait(&s->rig, 1, TR_PEER_LOST, BUDGET));
	for (int i = 0; i < 100; i++)
		rig_pump(&s->rig);
	assert_int_equal(count_kind(s, 0, TR_PEER_LOST), 1);
	assert_int_equal(count_kind(s, 1, TR_PEER_LOST), 1);
	assert_int_equal(count_kind(s, 0, TR_WRITTEN), 0);
	return cause;
}

CASE(every_completion_status_becomes_a_typed_error)
{
	static const struct {
		enum ibv_wc_status status;
		int code;
	} rows[] = {
		{ IBV_WC_LOC_LEN_ERR, KV_ERR_LOCAL_MR },
		{ IBV_WC_LOC_QP_OP_ERR, KV_ERR_LOCAL_MR },
		{ IBV_WC_LOC_EEC_OP_ERR, KV_ERR_LOCAL_MR },
		{ IBV_WC_LOC_PROT_ERR, KV_ERR_LOCAL_MR },
		{ IBV_WC_WR_FLUSH_ERR, KV_ERR_PEER_LOST },
		{ IBV_WC_MW_BIND_ERR, KV_ERR_LOCAL_MR },
		{ IBV_WC_BAD_RESP_ERR, KV_ERR_PEER_LOST },
		{ IBV_WC_LOC_ACCESS_ERR, KV_ERR_LOCAL_MR },
		{ IBV_WC_REM_INV_REQ_ERR, KV_ERR_REMOTE_ACCESS },
		{ IBV_WC_REM_ACCESS_ERR, KV_ERR_REMOTE_ACCESS },
		{ IBV_WC_REM_OP_ERR, KV_ERR_PEER_LOST },
		{ IBV_WC_RETRY_EXC_ERR, KV_ERR_PEER_LOST },
		{ IBV_WC_RNR_RETRY_EXC_ERR, KV_ERR_RNR },
		{ IBV_WC_LOC_RDD_VIOL_ERR, KV_ERR_LOCAL_MR },
		{ IBV_WC_REM_INV_RD_REQ_ERR, KV_ERR_REMOTE_ACCESS },
		{ IBV_WC_REM_ABORT_ERR, KV_ERR_PEER_LOST },
		{ IBV_WC_INV_EECN_ERR, KV_ERR_DEVICE },
		{ IBV_WC_INV_EEC_STATE_ERR, KV_ERR_DEVICE },
		{ IBV_WC_FATAL_ERR, KV_ERR_DEVICE },
		{ IBV_WC_RESP_TIMEOUT_ERR, KV_ERR_PEER_LOST },
		{ IBV_WC_GENERAL_ERR, KV_ERR_DEVICE },
		{ IBV_WC_TM_ERR, KV_ERR_DEVICE },
		{ IBV_WC_TM_RNDV_INCOMPLETE, KV_ERR_DEVICE },
	};

	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		struct fake_config config = { .seed = i + 1 };
		struct setting s;
		struct kv_error cause;

		setting_make(&s, &config, four_lanes, SIZE);
		fake_fail_completion(7, rows[i].status, 0x1234);
		write_all(&s, 9, TR_NOTIFY);
		cause = expect_failure(&s, 9, rows[i].code);
		assert_int_equal(cause.wc_status, rows[i].status);
		assert_int_equal(cause.vendor_err, 0x1234);
		assert_true(cause.qp_num);
		assert_true(cause.in_doubt);
		assert_string_equal(cause.device, "fake0:1");
		assert_non_null(
			strstr(cause.message, ib_test_hook.verbs->wc_status_str(rows[i].status)));
		setting_end(&s);
	}
}

CASE(a_dead_host_ends_every_operation_as_peer_lost)
{
	for (uint64_t seed = 1; seed <= 20; seed++) {
		struct fake_config config = { .seed = seed };
		struct setting s;
		struct rig_event *event;

		setting_make(&s, &config, four_lanes, SIZE);
		for (uint64_t user = 0; user < 5; user++)
			write_all(&s, user, TR_NOTIFY);
		fake_step((int)seed * 20);
		fake_kill_host(1);
		for (int i = 0; i < BUDGET && !count_kind(&s, 0, TR_PEER_LOST); i++)
			rig_pump_side(&s.rig, 0);
		event = rig_find(&s.rig, 0, TR_PEER_LOST);
		assert_non_null(event);
		assert_int_equal(event->status, KV_ERR_PEER_LOST);
		assert_int_equal(event->cause.wc_status, IBV_WC_RETRY_EXC_ERR);
		assert_true(event->cause.hint[0]);
		assert_int_equal(count_kind(&s, 0, TR_WRITTEN) + count_kind(&s, 0, TR_IN_DOUBT), 5);
		setting_end(&s);
	}
}

CASE(a_link_that_comes_back_in_time_is_no_failure)
{
	struct setting s;

	setting_make(&s, NULL, four_lanes, SIZE);
	setting_fill(&s, 0, 1);
	write_all(&s, 1, TR_NOTIFY);
	fake_link(1, 0, false);
	fake_step(6); /* fewer than the tries that it takes to give up */
	fake_link(1, 0, true);
	setting_expect_notify(&s, 1, 1);
	assert_memory_equal(setting_at(&s, 0, 0), setting_at(&s, 1, 0), SIZE);
	setting_expect_written(&s, 0, 1);
	setting_end(&s);
}

CASE(a_link_that_stays_down_here_is_a_link_error)
{
	struct setting s;

	setting_make(&s, NULL, four_lanes, SIZE);
	write_all(&s, 1, TR_NOTIFY);
	fake_link(0, 0, false);
	expect_failure(&s, 1, KV_ERR_LINK);
	setting_end(&s);
}

CASE(a_new_connection_uses_the_address_that_the_port_has_now)
{
	struct setting s;
	struct kv_error err;

	setting_make(&s, NULL, four_lanes, SIZE);
	for (uint64_t round = 1; round <= 2; round++) {
		setting_fill(&s, 0, round);
		write_all(&s, round, TR_NOTIFY);
		setting_expect_notify(&s, 1, round);
		assert_memory_equal(setting_at(&s, 0, 0), setting_at(&s, 1, 0), SIZE);
		setting_expect_written(&s, 0, round);
		if (round == 2)
			break;
		rig_disconnect(&s.rig);
		fake_address_moves(0, 0);
		fake_address_moves(1, 0);
		if (rig_connect(&s.rig, &err))
			fail_msg("connect: %s", err.message);
		for (int i = 0; i < 2; i++)
			s.rmem[i] = rig_see(&s.rig, i, s.mem[!i]);
	}
	setting_end(&s);
}

CASE(a_new_connection_uses_the_mtu_that_the_port_has_now)
{
	struct setting s;
	struct kv_error err;

	setting_make(&s, NULL, four_lanes, SIZE);
	assert_non_null(strstr(tr_conn_path(s.rig.side[0].conn), "mtu 1024"));
	rig_disconnect(&s.rig);
	fake_port(1, 0)->mtu = IBV_MTU_256;
	if (rig_connect(&s.rig, &err))
		fail_msg("connect: %s", err.message);
	for (int i = 0; i < 2; i++)
		assert_non_null(strstr(tr_conn_path(s.rig.side[i].conn), "mtu 256"));
	setting_end(&s);
}

CASE(soft_roce_without_a_way_out_is_a_link_error)
{
	static const struct fake_config soft = { .soft = true };
	struct setting s;

	setting_make(&s, &soft, four_lanes, SIZE);
	fake_fail_completion(7, IBV_WC_LOC_QP_OP_ERR, 0);
	write_all(&s, 1, TR_NOTIFY);
	expect_failure(&s, 1, KV_ERR_LINK);
	setting_end(&s);
}

CASE(a_dead_device_is_a_device_error)
{
	struct setting s;

	setting_make(&s, NULL, four_lanes, SIZE);
	write_all(&s, 1, TR_NOTIFY);
	fake_device_fatal(0, 0);
	expect_failure(&s, 1, KV_ERR_DEVICE);
	setting_end(&s);
}

/* Which cannot be (setting_end): here completions come that nobody asked for. */
CASE(a_queue_that_overran_is_a_device_error)
{
	struct ibv_wc wc = { .wr_id = UINT64_MAX };
	struct fake_stats stats;
	struct setting s;

	setting_make(&s, NULL, four_lanes, SIZE);
	write_all(&s, 1, TR_NOTIFY);
	do {
		assert_true(fake_spurious(0, false, &wc));
		fake_stats(&stats);
	} while (!stats.overruns);
	s.overruns = stats.overruns;
	expect_failure(&s, 1, KV_ERR_DEVICE);
	setting_end(&s);
}

CASE(memory_that_the_peer_took_back_is_a_remote_access_error)
{
	struct setting s;
	struct kv_error cause;

	setting_make(&s, NULL, NULL, SIZE);
	assert_int_equal(tr_mem_dereg(s.mem[1], NULL), 0);
	memset(setting_at(&s, 1, 0), 0x55, SIZE);
	write_all(&s, 4, TR_NOTIFY);
	cause = expect_failure(&s, 4, KV_ERR_REMOTE_ACCESS);
	assert_int_equal(cause.wc_status, IBV_WC_REM_ACCESS_ERR);
	for (size_t i = 0; i < SIZE; i++)
		assert_int_equal(*setting_at(&s, 1, i), 0x55);
	s.mem[1] = rig_reg(&s.rig, 1, setting_at(&s, 1, 0), SIZE, TR_REMOTE_WRITE);
	setting_end(&s);
}

CASE(a_region_in_use_is_not_deregistered)
{
	struct setting s;
	struct kv_error err;

	setting_make(&s, NULL, NULL, SIZE);
	write_all(&s, 1, 0);
	assert_int_equal(tr_mem_dereg(s.mem[0], &err), KV_ERR_BUSY);
	setting_expect_written(&s, 0, 1);
	setting_end(&s);
}

CASE(a_cancelled_operation_ends_once_and_the_connection_lives)
{
	for (uint64_t seed = 1; seed <= 10; seed++) {
		struct fake_config config = { .seed = seed };
		struct setting s;
		struct tr_span span = { 0, 0, SIZE };
		struct rig_event *event;
		struct tr_op *op;

		setting_make(&s, &config, four_lanes, SIZE);
		assert_int_equal(tr_op_begin(s.rig.side[0].conn, TR_WRITE, 3, &op, NULL), 0);
		assert_int_equal(tr_op_add(op, s.mem[0], s.rmem[0], &span, 1, NULL), 1);
		fake_step((int)seed);
		assert_int_equal(tr_op_cancel(op, kv_deadline_ns(10000), NULL), 0);
		event = rig_wait(&s.rig, 0, TR_CANCELLED, BUDGET);
		assert_non_null(event);
		assert_int_equal(event->user, 3);
		write_all(&s, 4, TR_NOTIFY);
		setting_expect_notify(&s, 1, 4);
		setting_expect_written(&s, 0, 4);
		assert_int_equal(count_kind(&s, 0, TR_CANCELLED), 1);
		setting_end(&s);
	}
}

CASE(after_a_cancel_nothing_of_the_operation_lands)
{
	uint8_t *copy = malloc(SIZE);
	int torn = 0;

	for (uint64_t seed = 1; seed <= 40; seed++) {
		struct fake_config config = { .seed = seed };
		struct setting s;
		struct tr_span span = { 0, 0, SIZE };
		struct tr_op *op;

		setting_make(&s, &config, four_lanes, SIZE);
		ib_conn_of(s.rig.side[0].conn)->chunk = 4096;
		ib_conn_of(s.rig.side[0].conn)->message = 4096;
		setting_fill(&s, 0, seed);
		assert_int_equal(tr_op_begin(s.rig.side[0].conn, TR_WRITE, 3, &op, NULL), 0);
		assert_int_equal(tr_op_add(op, s.mem[0], s.rmem[0], &span, 1, NULL), 1);
		fake_step((int)seed);
		assert_int_equal(tr_op_cancel(op, kv_deadline_ns(10000), NULL), 0);
		while (!rig_find(&s.rig, 0, TR_CANCELLED))
			rig_pump_side(&s.rig, 0);
		memcpy(copy, setting_at(&s, 1, 0), SIZE);
		torn += copy[0] != 0xee;
		fake_settle();
		assert_memory_equal(copy, setting_at(&s, 1, 0), SIZE);
		setting_end(&s);
	}
	assert_true(torn > 0);
	free(copy);
}

CASE(a_cancel_that_does_not_drain_breaks_the_connection_at_its_deadline)
{
	struct setting s;
	struct tr_op *op;

	setting_make(&s, NULL, four_lanes, SIZE);
	write_all(&s, 1, TR_NOTIFY);
	op = write_all(&s, 2, TR_NOTIFY);
	fake_device_fatal(1, 0); /* the peer's device is silent; ours waits for its answer */
	assert_int_equal(tr_op_cancel(op, kv_now_ns() - 1, NULL), 0);
	rig_pump_side(&s.rig, 0);
	for (int i = 0; i < BUDGET && !count_kind(&s, 0, TR_PEER_LOST); i++)
		rig_pump_side(&s.rig, 0);
	assert_int_equal(rig_find(&s.rig, 0, TR_CANCELLED)->user, 2);
	assert_int_equal(rig_find(&s.rig, 0, TR_IN_DOUBT)->user, 1);
	assert_int_equal(rig_find(&s.rig, 0, TR_PEER_LOST)->status, KV_ERR_TIMEOUT);
	setting_end(&s);
}

/*
 * The point of a fence: the peer goes on sending, ghosts are on the wire, accepted bytes are late,
 * and nothing lands.
 */
CASE(after_a_fence_nothing_changes)
{
	uint8_t *copy = malloc(SIZE);
	uint64_t ghosts = 0;
	int torn = 0;

	for (uint64_t seed = 1; seed <= 60; seed++) {
		struct fake_config config = { .seed = seed };
		struct fake_stats stats;
		struct setting s;
		struct kv_error err;
		int ret;

		setting_make(&s, &config, four_lanes, SIZE);
		setting_fill(&s, 0, seed);
		write_all(&s, 1, TR_NOTIFY);
		fake_step((int)seed * 4);
		while ((ret = tr_fence(s.rig.side[1].conn, INT64_MAX, &err)) == TR_AGAIN)
			rig_pump_side(&s.rig, 1);
		assert_int_equal(ret, 0);
		memcpy(copy, setting_at(&s, 1, 0), SIZE);
		torn += memcmp(copy, setting_at(&s, 0, 0), SIZE) && copy[0] != 0xee;
		for (int i = 0; i < 200; i++)
			rig_pump(&s.rig);
		fake_settle();
		assert_memory_equal(copy, setting_at(&s, 1, 0), SIZE);
		assert_non_null(rig_wait(&s.rig, 0, TR_PEER_LOST, BUDGET));
		assert_int_equal(count_kind(&s, 0, TR_IN_DOUBT) + count_kind(&s, 0, TR_WRITTEN), 1);
		fake_stats(&stats);
		ghosts += stats.ghosts;
		setting_end(&s);
	}
	assert_true(torn > 0); /* the fence did come in the middle */
	(void)ghosts;
	free(copy);
}

/*
 * The sender's fence: its source may change at once, and what arrives later carries what was there
 * before.
 */
CASE(after_the_senders_fence_its_memory_is_not_read_any_more)
{
	for (uint64_t seed = 1; seed <= 30; seed++) {
		struct fake_config config = { .seed = seed };
		struct setting s;
		int ret;

		setting_make(&s, &config, four_lanes, SIZE);
		setting_fill(&s, 0, seed);
		write_all(&s, 1, TR_NOTIFY);
		fake_step((int)seed * 4);
		while ((ret = tr_fence(s.rig.side[0].conn, INT64_MAX, NULL)) == TR_AGAIN)
			;
		assert_int_equal(ret, 0);
		memset(setting_at(&s, 0, 0), 0x11, SIZE);
		fake_settle();
		for (size_t i = 0; i < SIZE; i++) {
			uint8_t byte = *setting_at(&s, 1, i);

			assert_true(byte == 0xee || byte == rig_byte(seed, i));
		}
		setting_end(&s);
	}
}

CASE(a_peer_that_goes_ends_the_operations_here)
{
	struct setting s;

	setting_make(&s, NULL, four_lanes, SIZE);
	write_all(&s, 1, TR_NOTIFY);
	tr_conn_close(s.rig.side[1].conn);
	s.rig.side[1].conn = NULL;
	for (int i = 0; i < BUDGET && !count_kind(&s, 0, TR_PEER_LOST); i++)
		rig_pump_side(&s.rig, 0);
	assert_int_equal(count_kind(&s, 0, TR_IN_DOUBT), 1);
	assert_int_equal(rig_find(&s.rig, 0, TR_PEER_LOST)->status, KV_ERR_PEER_LOST);
	setting_end(&s);
}

/* This end is through; the other one gave it up while the last frame was on its way. */
CASE(a_peer_that_gave_the_handshake_up_is_lost_with_its_refusal)
{
	static const struct kv_error late = { .code = KV_ERR_TIMEOUT, .message = "it took long" };
	struct rig rig;
	struct kv_error err;
	struct rig_event *lost;

	fake_begin(NULL);
	assert_int_equal(rig_open(&rig, "ib", four_lanes, &err), 0);
	rig.half = true;
	assert_int_equal(rig_connect(&rig, &err), 0);
	assert_int_equal(tr_msg(rig.side[0].conn, "x", 1, &err), 0);
	tr_conn_refuse(rig.side[1].conn, &late);
	tr_conn_close(rig.side[1].conn);
	rig.side[1].conn = NULL;
	lost = rig_wait(&rig, 0, TR_PEER_LOST, BUDGET);
	assert_non_null(lost);
	assert_int_equal(lost->status, KV_ERR_PEER_LOST);
	assert_non_null(strstr(lost->cause.message, "refused: KV_ERR_TIMEOUT: it took long"));
	rig_close(&rig);
	assert_true(fake_end());
}

CASE(completions_of_another_life_are_counted_and_ignored)
{
	struct setting s;
	struct ib_conn *c;
	struct ibv_wc wc = { .status = IBV_WC_SUCCESS };
	char text[2048];

	setting_make(&s, NULL, four_lanes, SIZE);
	c = ib_conn_of(s.rig.side[0].conn);
	setting_fill(&s, 0, 1);
	write_all(&s, 1, TR_NOTIFY);
	/* Another generation; a lane that is none; a number that is not under way; another kind. */
	wc.wr_id = IB_WR_ID(IB_KIND_WRITE, 0, c->generation + 1, 0);
	assert_true(fake_spurious(0, false, &wc));
	wc.wr_id = IB_WR_ID(IB_KIND_WRITE, 63, c->generation, 0);
	assert_true(fake_spurious(0, false, &wc));
	wc.wr_id = IB_WR_ID(IB_KIND_WRITE, 0, c->generation, 100000);
	assert_true(fake_spurious(0, false, &wc));
	wc.wr_id = IB_WR_ID(IB_KIND_READ, 0, c->generation, 0);
	wc.status = IBV_WC_REM_ACCESS_ERR;
	assert_true(fake_spurious(0, false, &wc));
	wc.wr_id = IB_WR_ID(IB_KIND_RECV, 0, c->generation, IB_RECVS);
	assert_true(fake_spurious(0, true, &wc));
	setting_expect_notify(&s, 1, 1);
	assert_memory_equal(setting_at(&s, 0, 0), setting_at(&s, 1, 0), SIZE);
	setting_expect_written(&s, 0, 1);
	assert_int_equal(c->stale, 5);
	tr_conn_dump(s.rig.side[0].conn, text, sizeof(text));
	assert_non_null(strstr(text, "stale completions 5"));
	assert_non_null(strstr(text, "lane 3 fake0:1 qp 0x"));
	setting_end(&s);
}

/* A peer that sends an immediate without its record is not kvrail's. */
CASE(an_immediate_without_its_record_ends_the_connection)
{
	struct setting s;
	struct ib_conn *c;
	struct ibv_wc wc = { .status = IBV_WC_SUCCESS,
			     .opcode = IBV_WC_RECV_RDMA_WITH_IMM,
			     .imm_data = 77 };
	struct rig_event *event;

	setting_make(&s, NULL, NULL, SIZE);
	c = ib_conn_of(s.rig.side[1].conn);
	wc.wr_id = IB_WR_ID(IB_KIND_RECV, 0, c->generation, 0);
	wc.qp_num = c->lane[0].qp->qp_num;
	assert_true(fake_spurious(1, true, &wc));
	event = rig_wait(&s.rig, 1, TR_PEER_LOST, BUDGET);
	assert_non_null(event);
	assert_int_equal(event->status, KV_ERR_PROTOCOL);
	setting_end(&s);
}
