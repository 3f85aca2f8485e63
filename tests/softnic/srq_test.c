/* SPDX-License-Identifier: Apache-2.0 */
/*
 * srq_test.c -- receive requests that two queue pairs share: what arrives in which, and what an
 * error or the end of one queue pair leaves to the other. The child sends what is asked of it.
 */
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/wait.h>

#include "link.h"

enum { QPS = 2, LEN = 8192, SLICE = 1024, DEPTH = 4, SMALL = 100, LARGE = 1000 };

static struct {
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_srq *srq; /* the parent's */
	struct ibv_qp *qp[QPS];
	struct ibv_mr *mr;
	uint8_t bytes[LEN];
	int peer; /* a socket */
	pid_t child;
} end;

struct order {
	uint32_t qp, len;
	uint8_t byte;
};

static void open_end(int socket, bool shares)
{
	struct ibv_device **list = ibv_get_device_list(NULL);
	struct ibv_srq_init_attr shared = { .attr = { .max_wr = DEPTH, .max_sge = 2 } };
	struct ibv_qp_init_attr init = { .cap = { .max_send_wr = DEPTH, .max_send_sge = 1 },
					 .qp_type = IBV_QPT_RC };
	struct card card;

	end.peer = socket;
	end.context = ibv_open_device(list[0]);
	ibv_free_device_list(list);
	end.pd = ibv_alloc_pd(end.context);
	end.cq = init.send_cq = init.recv_cq = ibv_create_cq(end.context, 4 * DEPTH, NULL, NULL, 0);
	end.mr = ibv_reg_mr(end.pd, end.bytes, LEN, IBV_ACCESS_LOCAL_WRITE);
	end.srq = init.srq = shares ? ibv_create_srq(end.pd, &shared) : NULL;
	assert_true(!shares || end.srq);
	for (int i = 0; i < QPS; i++) {
		end.qp[i] = ibv_create_qp(end.pd, &init);
		assert_non_null(end.qp[i]);
		link_qp(end.qp[i], end.mr, socket, &card);
	}
}

static void close_end(void)
{
	for (int i = 0; i < QPS; i++)
		if (end.qp[i])
			assert_int_equal(ibv_destroy_qp(end.qp[i]), 0);
	if (end.srq)
		assert_int_equal(ibv_destroy_srq(end.srq), 0);
	assert_int_equal(ibv_dereg_mr(end.mr), 0);
	assert_int_equal(ibv_destroy_cq(end.cq), 0);
	ibv_dealloc_pd(end.pd);
	ibv_close_device(end.context);
	close(end.peer);
}

static struct ibv_wc completion(void)
{
	struct ibv_wc wc;

	while (!ibv_poll_cq(end.cq, 1, &wc))
		;
	return wc;
}

/* The child: a byte when it has posted, one more with the completion's status. */
static void be_sender(int socket)
{
	struct order order;
	uint8_t status;

	open_end(socket, false);
	while (recv(socket, &order, sizeof(order), MSG_WAITALL) == sizeof(order)) {
		struct ibv_sge sge = { (uintptr_t)end.bytes, order.len, end.mr->lkey };
		struct ibv_send_wr *bad, wr = { .sg_list = &sge,
						.num_sge = 1,
						.opcode = IBV_WR_SEND,
						.send_flags = IBV_SEND_SIGNALED };

		memset(end.bytes, order.byte, order.len);
		assert_int_equal(ibv_post_send(end.qp[order.qp], &wr, &bad), 0);
		assert_int_equal(write(socket, "p", 1), 1);
		status = (uint8_t)completion().status;
		assert_int_equal(write(socket, &status, 1), 1);
	}
	close_end();
	exit(0);
}

static uint8_t hear(void)
{
	uint8_t byte;

	assert_int_equal(recv(end.peer, &byte, 1, MSG_WAITALL), 1);
	return byte;
}

static void tell(uint32_t qp, uint32_t len, uint8_t byte)
{
	struct order order = { qp, len, byte };

	assert_int_equal(write(end.peer, &order, sizeof(order)), sizeof(order));
	assert_int_equal(hear(), 'p');
}

static void send_from(uint32_t qp, uint32_t len, uint8_t byte)
{
	tell(qp, len, byte);
	assert_int_equal(hear(), IBV_WC_SUCCESS);
}

static int share_request(uint64_t id)
{
	struct ibv_sge sge = { (uintptr_t)end.bytes + id * SLICE, SLICE, end.mr->lkey };
	struct ibv_recv_wr wr = { .wr_id = id, .sg_list = &sge, .num_sge = 1 }, *bad = NULL;
	int ret = ibv_post_srq_recv(end.srq, &wr, &bad);

	if (ret)
		assert_ptr_equal(bad, &wr);
	return ret;
}

static void assert_arrives(uint32_t qp, uint64_t id, uint32_t len, uint8_t byte)
{
	struct ibv_wc wc = completion();

	assert_int_equal(wc.status, IBV_WC_SUCCESS);
	assert_int_equal(wc.opcode, IBV_WC_RECV);
	assert_int_equal(wc.wr_id, id);
	assert_int_equal(wc.qp_num, end.qp[qp]->qp_num);
	assert_int_equal(wc.byte_len, len);
	for (uint32_t i = 0; i < SLICE; i++)
		assert_int_equal(end.bytes[id * SLICE + i], i < len ? byte : 0);
}

static int setup(void **state)
{
	int fd[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fd))
		return -1;
	fflush(stdout);
	memset(&end, 0, sizeof(end));
	pid_t child = fork();
	if (!child) {
		close(fd[0]);
		be_sender(fd[1]);
	}
	close(fd[1]);
	open_end(fd[0], true);
	end.child = child;
	return 0;
}

static int teardown(void **state)
{
	int status;

	close_end();
	return waitpid(end.child, &status, 0) != end.child || status ? -1 : 0;
}

CASE_WITH(messages_of_both_queue_pairs_use_the_requests_in_turn, setup, teardown)
{
	for (uint64_t id = 1; id <= 3; id++)
		assert_int_equal(share_request(id), 0);
	send_from(0, SMALL, 'a');
	send_from(1, LARGE, 'b');
	send_from(0, LARGE, 'c');
	assert_arrives(0, 1, SMALL, 'a');
	assert_arrives(1, 2, LARGE, 'b');
	assert_arrives(0, 3, LARGE, 'c');
}

CASE_WITH(a_message_waits_for_a_shared_request, setup, teardown)
{
	struct ibv_wc wc;

	tell(1, SMALL, 'd');
	assert_int_equal(ibv_poll_cq(end.cq, 1, &wc), 0);
	assert_int_equal(share_request(2), 0);
	assert_arrives(1, 2, SMALL, 'd');
	assert_int_equal(hear(), IBV_WC_SUCCESS);
}

CASE_WITH(an_error_of_one_leaves_the_requests_to_the_other, setup, teardown)
{
	struct ibv_qp_attr attr = { .qp_state = IBV_QPS_ERR };
	struct ibv_async_event event;
	struct ibv_wc wc;

	assert_int_equal(share_request(1), 0);
	assert_int_equal(ibv_modify_qp(end.qp[0], &attr, IBV_QP_STATE), 0);
	assert_int_equal(ibv_get_async_event(end.context, &event), 0);
	assert_int_equal(event.event_type, IBV_EVENT_QP_LAST_WQE_REACHED);
	assert_ptr_equal(event.element.qp, end.qp[0]);
	ibv_ack_async_event(&event);
	assert_int_equal(ibv_poll_cq(end.cq, 1, &wc), 0); /* none is flushed */
	send_from(1, LARGE, 'e');
	assert_arrives(1, 1, LARGE, 'e');
}

CASE_WITH(what_came_to_a_destroyed_queue_pair_is_nobodys, setup, teardown)
{
	for (uint64_t id = 1; id <= DEPTH; id++)
		assert_int_equal(share_request(id), 0);
	send_from(0, LARGE, 'f');
	assert_int_equal(ibv_destroy_qp(end.qp[0]), 0);
	end.qp[0] = NULL;
	send_from(1, SMALL, 'g');
	assert_arrives(1, 2, SMALL, 'g');
	assert_int_equal(share_request(5), 0); /* both places are free again */
	assert_int_equal(share_request(6), 0);
	assert_int_equal(share_request(7), ENOMEM);
}

CASE_WITH(a_shared_queue_has_bounds_and_an_owner, setup, teardown)
{
	struct ibv_sge sge[3] = { { (uintptr_t)end.bytes, 1, end.mr->lkey } };
	struct ibv_recv_wr *bad, wr = { .sg_list = sge, .num_sge = 1 };
	struct ibv_srq_init_attr none = { .attr = { .max_sge = 1 } };
	struct ibv_pd *other = ibv_alloc_pd(end.context);
	struct ibv_qp_init_attr init = {
		.send_cq = end.cq, .recv_cq = end.cq, .srq = end.srq, .qp_type = IBV_QPT_RC
	};

	assert_int_equal(ibv_post_recv(end.qp[0], &wr, &bad), EINVAL);
	assert_ptr_equal(bad, &wr);
	wr.num_sge = 3;
	assert_int_equal(ibv_post_srq_recv(end.srq, &wr, &bad), EINVAL);
	for (uint64_t id = 1; id <= DEPTH; id++)
		assert_int_equal(share_request(id), 0);
	assert_int_equal(share_request(5), ENOMEM);
	assert_int_equal(ibv_destroy_srq(end.srq), EBUSY);
	assert_null(ibv_create_srq(end.pd, &none));
	assert_null(ibv_create_qp(other, &init));
	ibv_dealloc_pd(other);
}

int main(void)
{
	char world[32];

	snprintf(world, sizeof(world), "srq%d", getpid());
	setenv("SOFTNIC_WORLD", world, 1);
	return run_cases(NULL, NULL);
}
