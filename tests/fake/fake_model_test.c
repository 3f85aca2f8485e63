/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_model_test.c -- the fake device behaves as a reliable queue pair: its own verbs, no kvrail
 * above
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "fake.h"
#include "lib/step.h"
#include "lib/test.h"

enum { SIZE = 1 << 16, DEPTH = 8 };

struct end {
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_cq *scq, *rcq;
	struct ibv_qp *qp;
	struct ibv_mr *mr;
	uint8_t *buf;
};

static const struct ib_verbs *v;
static struct end end[2];
static uint32_t spoilt; /* bits of the local key that are wrong */

static int to_init(struct ibv_qp *qp)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_INIT,
				    .port_num = 1,
				    .qp_access_flags =
					    IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ };

	return v->modify_qp(qp, &attr,
			    IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
}

static int to_rtr(struct ibv_qp *qp, int peer_host, uint32_t peer_qpn)
{
	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_RTR,
		.path_mtu = IBV_MTU_1024,
		.dest_qp_num = peer_qpn,
		.rq_psn = 5,
		.ah_attr = { .port_num = 1, .is_global = 1, .grh = { .sgid_index = 3 } }
	};
	uint8_t *gid = attr.ah_attr.grh.dgid.raw;

	gid[10] = gid[11] = 0xff;
	gid[12] = 10;
	gid[14] = (uint8_t)(peer_host + 1);
	gid[15] = 1;
	return v->modify_qp(qp, &attr,
			    IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
				    IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
				    IBV_QP_MIN_RNR_TIMER);
}

static int to_rts(struct ibv_qp *qp, uint32_t psn)
{
	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_RTS, .sq_psn = psn, .retry_cnt = 3, .rnr_retry = 3
	};

	return v->modify_qp(qp, &attr,
			    IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT | IBV_QP_RNR_RETRY |
				    IBV_QP_SQ_PSN | IBV_QP_MAX_QP_RD_ATOMIC);
}

static void make_end(int host)
{
	struct end *e = &end[host];
	struct ibv_qp_init_attr attr = { .qp_type = IBV_QPT_RC,
					 .cap = { .max_send_wr = DEPTH,
						  .max_recv_wr = DEPTH,
						  .max_send_sge = 2,
						  .max_recv_sge = 1,
						  .max_inline_data = 64 } };
	struct ibv_device **list;
	int n;

	fake_host(host);
	list = v->get_device_list(&n);
	assert_int_equal(n, 1);
	e->context = v->open_device(list[0]);
	v->free_device_list(list);
	e->pd = v->alloc_pd(e->context);
	attr.send_cq = e->scq = v->create_cq(e->context, 2 * DEPTH, NULL, NULL, 0);
	attr.recv_cq = e->rcq = v->create_cq(e->context, 2 * DEPTH, NULL, NULL, 0);
	e->qp = v->create_qp(e->pd, &attr);
	e->buf = aligned_alloc(4096, SIZE);
	memset(e->buf, 0xee, SIZE);
	e->mr = v->reg_mr(e->pd, e->buf, SIZE,
			  IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
				  IBV_ACCESS_REMOTE_READ);
	assert_non_null(e->mr);
}

static void begin(uint64_t seed)
{
	struct fake_config config = { .seed = seed };

	fake_begin(&config);
	v = ib_test_hook.verbs;
	make_end(0);
	make_end(1);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(to_init(end[i].qp), 0);
		assert_int_equal(to_rtr(end[i].qp, !i, end[!i].qp->qp_num), 0);
		assert_int_equal(to_rts(end[i].qp, 5), 0);
	}
}

static void finish(void)
{
	for (int i = 0; i < 2; i++) {
		struct end *e = &end[i];

		v->destroy_qp(e->qp);
		v->destroy_cq(e->scq);
		v->destroy_cq(e->rcq);
		v->dereg_mr(e->mr);
		v->dealloc_pd(e->pd);
		v->close_device(e->context);
		free(e->buf);
	}
	assert_true(fake_end());
}

static int post(int opcode, uint64_t id, uint64_t local, uint64_t remote, uint32_t len,
		unsigned int flags)
{
	struct ibv_sge sge = { (uint64_t)(uintptr_t)end[0].buf + local, len,
			       end[0].mr->lkey ^ spoilt };
	struct ibv_send_wr *bad, wr = { .wr_id = id,
					.sg_list = &sge,
					.num_sge = len ? 1 : 0,
					.opcode = (enum ibv_wr_opcode)opcode,
					.send_flags = flags | IBV_SEND_SIGNALED,
					.imm_data = (uint32_t)id };

	wr.wr.rdma.remote_addr = (uint64_t)(uintptr_t)end[1].buf + remote;
	wr.wr.rdma.rkey = end[1].mr->rkey;
	return v->post_send(end[0].qp, &wr, &bad);
}

static int post_recv(uint64_t id, uint64_t at, uint32_t len)
{
	struct ibv_sge sge = { (uint64_t)(uintptr_t)end[1].buf + at, len, end[1].mr->lkey };
	struct ibv_recv_wr *bad, wr = { .wr_id = id, .sg_list = &sge, .num_sge = 1 };

	return v->post_recv(end[1].qp, &wr, &bad);
}

static struct ibv_wc next(struct ibv_cq *cq)
{
	struct ibv_wc wc;

	for (int i = 0; i < 10000; i++)
		if (v->poll_cq(cq, 1, &wc) == 1)
			return wc;
	fail_msg("no completion comes");
	return wc;
}

static void expect(struct ibv_cq *cq, uint64_t id, enum ibv_wc_status status)
{
	struct ibv_wc wc = next(cq);

	assert_int_equal(wc.wr_id, id);
	assert_int_equal(wc.status, status);
}

CASE(states_change_in_order_only)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_ERR };
	struct ibv_qp_attr reset = { .qp_state = IBV_QPS_RESET };
	struct ibv_qp *qp;

	begin(1);
	qp = end[0].qp;
	assert_int_equal(to_init(qp), EINVAL); /* it is in RTS */
	assert_int_equal(v->modify_qp(qp, &reset, IBV_QP_STATE), 0);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, 0, 0, 8, 0), EINVAL);
	assert_int_equal(to_rtr(qp, 1, 7), EINVAL);
	assert_int_equal(to_rts(qp, 5), EINVAL);
	assert_int_equal(to_init(qp), 0);
	assert_int_equal(
		v->modify_qp(qp, &(struct ibv_qp_attr){ .qp_state = IBV_QPS_RTR }, IBV_QP_STATE),
		EINVAL); /* without an address */
	assert_int_equal(v->modify_qp(qp, &attr, IBV_QP_STATE), 0);
	assert_int_equal(to_init(qp), EINVAL);
	finish();
}

CASE(requests_complete_in_order)
{
	for (uint64_t seed = 1; seed < 20; seed++) {
		begin(seed);
		for (uint64_t i = 0; i < DEPTH; i++)
			assert_int_equal(post(IBV_WR_RDMA_WRITE, i, 0, i * 4096, 4096, 0), 0);
		for (uint64_t i = 0; i < DEPTH; i++)
			expect(end[0].scq, i, IBV_WC_SUCCESS);
		fake_settle();
		assert_memory_equal(end[0].buf, end[1].buf + 7 * 4096, 4096);
		finish();
	}
}

CASE(bytes_may_follow_their_completion_but_not_a_read_or_a_receive_behind_them)
{
	int late = 0;

	for (uint64_t seed = 1; seed < 60; seed++) {
		begin(seed);
		memset(end[0].buf, 0x33, SIZE);
		assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, 0, 0, 8192, 0), 0);
		expect(end[0].scq, 1, IBV_WC_SUCCESS);
		late += end[1].buf[8191] != 0x33;
		if (seed % 2) {
			assert_int_equal(post(IBV_WR_RDMA_READ, 2, 20000, 30000, 8, 0), 0);
			expect(end[0].scq, 2, IBV_WC_SUCCESS);
			assert_int_equal(end[0].buf[20000], 0xee);
		} else {
			assert_int_equal(post_recv(9, 40000, 64), 0);
			assert_int_equal(post(IBV_WR_RDMA_WRITE_WITH_IMM, 2, 0, 0, 0, 0), 0);
			expect(end[1].rcq, 9, IBV_WC_SUCCESS);
		}
		for (size_t i = 0; i < 8192; i++)
			assert_int_equal(end[1].buf[i], 0x33);
		assert_int_equal(end[1].buf[8192], 0xee);
		finish();
	}
	assert_true(late > 0);
}

CASE(a_send_lands_in_the_receive_request_and_a_longer_one_is_an_error)
{
	struct ibv_wc wc;

	begin(2);
	memset(end[0].buf, 0x44, 100);
	post_recv(1, 0, 64);
	post_recv(2, 1000, 64);
	post(IBV_WR_SEND, 1, 0, 0, 40, IBV_SEND_INLINE);
	wc = next(end[1].rcq);
	assert_int_equal(wc.byte_len, 40);
	assert_int_equal(wc.opcode, IBV_WC_RECV);
	assert_int_equal(end[1].buf[39], 0x44);
	assert_int_equal(end[1].buf[40], 0xee);
	expect(end[0].scq, 1, IBV_WC_SUCCESS);
	post(IBV_WR_SEND, 2, 0, 0, 65, 0);
	expect(end[1].rcq, 2, IBV_WC_LOC_LEN_ERR);
	expect(end[0].scq, 2, IBV_WC_REM_INV_REQ_ERR);
	finish();
}

CASE(without_a_receive_request_the_retries_run_out)
{
	struct fake_stats stats;

	begin(3);
	post(IBV_WR_SEND, 1, 0, 0, 8, 0);
	expect(end[0].scq, 1, IBV_WC_RNR_RETRY_EXC_ERR);
	fake_stats(&stats);
	assert_int_equal(stats.rnr, 4);
	finish();
	/* In time it is not an error. */
	begin(4);
	post(IBV_WR_SEND, 1, 0, 0, 8, 0);
	fake_step(3);
	post_recv(7, 0, 64);
	expect(end[0].scq, 1, IBV_WC_SUCCESS);
	expect(end[1].rcq, 7, IBV_WC_SUCCESS);
	finish();
}

CASE(one_error_is_followed_by_flushes_on_both_ends)
{
	struct ibv_async_event event;
	struct ibv_wc wc;

	begin(5);
	post_recv(1, 0, 64);
	post(IBV_WR_RDMA_WRITE, 1, 0, SIZE - 8, 9, 0); /* a byte too far */
	post(IBV_WR_RDMA_WRITE, 2, 0, 0, 8, 0);
	post(IBV_WR_RDMA_WRITE, 3, 0, 0, 8, 0);
	expect(end[0].scq, 1, IBV_WC_REM_ACCESS_ERR);
	expect(end[0].scq, 2, IBV_WC_WR_FLUSH_ERR);
	expect(end[0].scq, 3, IBV_WC_WR_FLUSH_ERR);
	expect(end[1].rcq, 1, IBV_WC_WR_FLUSH_ERR);
	assert_int_equal(v->get_async_event(end[1].context, &event), 0);
	assert_int_equal(event.event_type, IBV_EVENT_QP_ACCESS_ERR);
	v->ack_async_event(&event);
	/* Posting to a broken queue pair is legal; it is flushed. */
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 4, 0, 0, 8, 0), 0);
	expect(end[0].scq, 4, IBV_WC_WR_FLUSH_ERR);
	fake_settle();
	assert_int_equal(v->poll_cq(end[0].scq, 1, &wc), 0);
	for (size_t i = 0; i < SIZE; i++)
		assert_int_equal(end[1].buf[i], 0xee);
	finish();
}

CASE(keys_bounds_rights_and_domains_are_checked)
{
	static const unsigned int rights[] = { IBV_ACCESS_LOCAL_WRITE,
					       IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ };

	for (int i = 0; i < 5; i++) {
		struct ibv_mr *good = NULL, *other = NULL;
		struct ibv_pd *pd = NULL;
		enum ibv_wc_status status = IBV_WC_REM_ACCESS_ERR;
		int opcode = i == 1 ? IBV_WR_RDMA_WRITE : IBV_WR_RDMA_READ;

		begin(6);
		good = end[1].mr;
		if (i < 2) { /* a region without the right */
			end[1].mr = other = v->reg_mr(end[1].pd, end[1].buf, SIZE, rights[i]);
		} else if (i == 2) { /* a region of another domain */
			pd = v->alloc_pd(end[1].context);
			end[1].mr = other = v->reg_mr(pd, end[1].buf, SIZE, IBV_ACCESS_REMOTE_READ);
		} else if (i == 3) { /* a key that is none */
			other = v->reg_mr(end[1].pd, end[1].buf, SIZE, IBV_ACCESS_REMOTE_READ);
			other->rkey ^= 1 << 20;
			end[1].mr = other;
		} else { /* the local key does not open the source */
			spoilt = 1;
			status = IBV_WC_LOC_PROT_ERR;
		}
		post(opcode, 1, 0, 0, 64, 0);
		expect(end[0].scq, 1, status);
		if (i == 3)
			other->rkey ^= 1 << 20;
		spoilt = 0;
		end[1].mr = good;
		if (other)
			v->dereg_mr(other);
		if (pd)
			v->dealloc_pd(pd);
		finish();
	}
}

CASE(a_full_queue_refuses_and_names_the_request)
{
	struct ibv_sge sge = { 0 };
	struct ibv_send_wr wr[DEPTH + 3], *bad = NULL;

	begin(7);
	memset(wr, 0, sizeof(wr));
	sge = (struct ibv_sge){ (uint64_t)(uintptr_t)end[0].buf, 8, end[0].mr->lkey };
	for (int i = 0; i < DEPTH + 3; i++) {
		wr[i].sg_list = &sge;
		wr[i].num_sge = 1;
		wr[i].opcode = IBV_WR_RDMA_WRITE;
		wr[i].send_flags = i == DEPTH - 1 ? IBV_SEND_SIGNALED : 0;
		wr[i].wr.rdma.remote_addr = (uint64_t)(uintptr_t)end[1].buf;
		wr[i].wr.rdma.rkey = end[1].mr->rkey;
		wr[i].next = i < DEPTH + 2 ? &wr[i + 1] : NULL;
	}
	assert_int_equal(v->post_send(end[0].qp, wr, &bad), ENOMEM);
	assert_ptr_equal(bad, &wr[DEPTH]);
	fake_settle(); /* they are done, but room comes back only when the completion is taken */
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, 0, 0, 8, 0), ENOMEM);
	expect(end[0].scq, 0, IBV_WC_SUCCESS);
	assert_int_equal(post(IBV_WR_RDMA_WRITE, 1, 0, 0, 8, 0), 0);
	expect(end[0].scq, 1, IBV_WC_SUCCESS);
	for (int i = 0; i < DEPTH; i++)
		assert_int_equal(post_recv((uint64_t)i, 0, 8), 0);
	assert_int_equal(post_recv(99, 0, 8), ENOMEM);
	finish();
}

CASE(a_queue_that_nobody_polls_overruns)
{
	struct ibv_async_event event;
	struct ibv_cq *good, *small;
	struct ibv_wc wc;

	begin(8);
	good = end[0].scq;
	small = v->create_cq(end[0].context, 2, NULL, NULL, 0);
	end[0].qp->send_cq = small;
	for (uint64_t i = 0; i < 3; i++)
		post(IBV_WR_RDMA_WRITE, i, 0, 0, 8, 0);
	fake_settle();
	assert_int_equal(v->get_async_event(end[0].context, &event), 0);
	assert_int_equal(event.event_type, IBV_EVENT_CQ_ERR);
	v->ack_async_event(&event);
	assert_int_equal(v->poll_cq(small, 1, &wc), -1);
	end[0].qp->send_cq = good;
	v->destroy_cq(small);
	finish();
}

CASE(a_silent_peer_runs_out_of_retries)
{
	for (int i = 0; i < 4; i++) {
		struct ibv_qp_attr reset = { .qp_state = IBV_QPS_RESET };

		begin(9);
		if (i == 0) { /* packets with another sequence number are not answered */
			v->modify_qp(end[0].qp, &reset, IBV_QP_STATE);
			to_init(end[0].qp);
			to_rtr(end[0].qp, 1, end[1].qp->qp_num);
			to_rts(end[0].qp, 6);
		} else if (i == 1) {
			fake_kill_host(1);
		} else if (i == 2) {
			fake_link(1, 0, false);
		} else {
			v->modify_qp(end[1].qp, &reset, IBV_QP_STATE);
		}
		post(IBV_WR_RDMA_WRITE, 1, 0, 0, 8, 0);
		post(IBV_WR_RDMA_WRITE, 2, 0, 0, 8, 0);
		expect(end[0].scq, 1, IBV_WC_RETRY_EXC_ERR);
		expect(end[0].scq, 2, IBV_WC_WR_FLUSH_ERR);
		finish();
	}
}

CASE(a_dead_queue_pairs_packets_may_arrive_until_the_other_end_is_destroyed)
{
	struct ibv_qp_attr broken = { .qp_state = IBV_QPS_ERR };
	int arrived = 0;

	for (uint64_t seed = 1; seed < 40; seed++) {
		begin(seed);
		memset(end[0].buf, 0x55, 4096);
		post(IBV_WR_RDMA_WRITE, 1, 0, 0, 4096, 0);
		v->modify_qp(end[0].qp, &broken, IBV_QP_STATE);
		memset(end[0].buf, 0x66, 4096); /* the packet carries what was there */
		fake_settle();
		assert_true(end[1].buf[0] == 0xee || end[1].buf[0] == 0x55);
		arrived += end[1].buf[0] == 0x55;
		finish();
	}
	assert_true(arrived > 0 && arrived < 39);
}

CASE(bytes_are_stored_in_the_order_of_their_addresses)
{
	static const size_t lengths[] = { 8, 128, 136, 256, 384, 512, 1024, STEP_MAX };

	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		for (size_t at = 0; at < STEP_LINE; at += 56) {
			int word = step_lines(fake_store, at, lengths[i]);

			if (word == STEP_REFUSED) {
				print_message("skipped: ptrace is not allowed here\n");
				skip();
			}
			assert_int_equal(word, STEP_ORDERED);
		}
	}
}
