/* SPDX-License-Identifier: Apache-2.0 */
/*
 * softnic_test.c -- the rules of a device, between two processes: what arrives, what is refused,
 * what is flushed. The child is the peer: it has a region and a queue pair, and does what the test
 * asks it for.
 */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "link.h"

enum { LEN = 1 << 16, DEPTH = 8, SLICE = 512 };

struct end {
	struct ibv_context *context;
	struct ibv_pd *pd;
	struct ibv_cq *cq;
	struct ibv_comp_channel *channel;
	struct ibv_qp *qp;
	struct ibv_mr *mr;
	uint8_t *bytes;
	int peer; /* a socket */
	pid_t child;
};

static void open_end(struct end *e, int peer)
{
	struct ibv_device **list = ibv_get_device_list(NULL);
	struct ibv_qp_init_attr init = {
		.cap = { .max_send_wr = DEPTH,
			 .max_recv_wr = DEPTH,
			 .max_send_sge = 4,
			 .max_recv_sge = 2 },
		.qp_type = IBV_QPT_RC,
	};

	memset(e, 0, sizeof(*e));
	e->peer = peer;
	e->bytes = calloc(1, LEN);
	e->context = ibv_open_device(list[0]);
	ibv_free_device_list(list);
	e->pd = ibv_alloc_pd(e->context);
	e->channel = ibv_create_comp_channel(e->context);
	e->cq = ibv_create_cq(e->context, 4 * DEPTH, e, e->channel, 0);
	e->mr = ibv_reg_mr(e->pd, e->bytes, LEN,
			   IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_WRITE |
				   IBV_ACCESS_REMOTE_READ);
	init.send_cq = init.recv_cq = e->cq;
	e->qp = ibv_create_qp(e->pd, &init);
	assert_non_null(e->qp);
}

static void close_end(struct end *e)
{
	assert_int_equal(ibv_destroy_qp(e->qp), 0);
	if (e->mr)
		assert_int_equal(ibv_dereg_mr(e->mr), 0);
	assert_int_equal(ibv_destroy_cq(e->cq), 0);
	ibv_destroy_comp_channel(e->channel);
	ibv_dealloc_pd(e->pd);
	ibv_close_device(e->context);
	free(e->bytes);
	close(e->peer);
}

static void post_recv(struct end *e, uint64_t id, uint32_t at, uint32_t len)
{
	struct ibv_sge sge = { (uintptr_t)e->bytes + at, len, e->mr->lkey };
	struct ibv_recv_wr wr = { .wr_id = id, .sg_list = &sge, .num_sge = 1 }, *bad;

	assert_int_equal(ibv_post_recv(e->qp, &wr, &bad), 0);
}

/* Waits for word from the other side. */
static void hear(struct end *e, char what)
{
	char got;

	assert_int_equal(read(e->peer, &got, 1), 1);
	assert_int_equal(got, what);
}

static void say(struct end *e, char what)
{
	assert_int_equal(write(e->peer, &what, 1), 1);
}

/* The peer: answers one-letter commands until the other side is gone. */
static void be_peer(int fd)
{
	struct end e;
	struct card card;
	struct ibv_wc wc;
	char command;

	open_end(&e, fd);
	for (int i = 0; i < LEN; i++)
		e.bytes[i] = (uint8_t)(i * 7);
	link_qp(e.qp, e.mr, fd, &card);
	while (read(fd, &command, 1) == 1) {
		if (command == 'b') /* its bytes */
			assert_int_equal(write(fd, e.bytes, LEN), LEN);
		else if (command == 'p')
			post_recv(&e, 5, SLICE, SLICE);
		else if (command == 'd') { /* its region goes */
			assert_int_equal(ibv_dereg_mr(e.mr), 0);
			e.mr = NULL;
		} else if (command == 'w') { /* the completion that came */
			while (!ibv_poll_cq(e.cq, 1, &wc))
				;
			assert_int_equal(write(fd, &wc, sizeof(wc)), sizeof(wc));
		} else if (command == 'e') {
			assert_int_equal(
				ibv_modify_qp(e.qp,
					      &(struct ibv_qp_attr){ .qp_state = IBV_QPS_ERR },
					      IBV_QP_STATE),
				0);
		}
		say(&e, command);
	}
	close_end(&e);
	exit(0);
}

static struct end end;
static struct card peer;

static int setup(void **state)
{
	int fd[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fd))
		return -1;
	fflush(stdout);
	end.child = fork();
	if (!end.child) {
		close(fd[0]);
		be_peer(fd[1]);
	}
	close(fd[1]);
	pid_t child = end.child;
	open_end(&end, fd[0]);
	end.child = child;
	link_qp(end.qp, end.mr, end.peer, &peer);
	return 0;
}

static int teardown(void **state)
{
	int status;

	close_end(&end);
	return waitpid(end.child, &status, 0) != end.child ||
			       (WIFEXITED(status) && WEXITSTATUS(status))
		       ? -1
		       : 0;
}

static void ask(char command)
{
	say(&end, command);
	hear(&end, command);
}

static struct ibv_send_wr a_write(struct ibv_sge *sge, uint64_t id, uint32_t to)
{
	*sge = (struct ibv_sge){ (uintptr_t)end.bytes, SLICE, end.mr->lkey };
	return (struct ibv_send_wr){ .wr_id = id,
				     .sg_list = sge,
				     .num_sge = 1,
				     .opcode = IBV_WR_RDMA_WRITE,
				     .send_flags = IBV_SEND_SIGNALED,
				     .wr.rdma = { peer.addr + to, peer.rkey } };
}

static int post(struct ibv_send_wr *wr)
{
	struct ibv_send_wr *bad = NULL;
	int ret = ibv_post_send(end.qp, wr, &bad);

	if (ret)
		assert_non_null(bad);
	return ret;
}

static struct ibv_wc completion(void)
{
	struct ibv_wc wc = { 0 };

	while (!ibv_poll_cq(end.cq, 1, &wc))
		;
	return wc;
}

static enum ibv_wc_status end_of(struct ibv_send_wr *wr)
{
	struct ibv_wc wc;

	assert_int_equal(post(wr), 0);
	wc = completion();
	assert_int_equal(wc.wr_id, wr->wr_id);
	assert_int_equal(wc.qp_num, end.qp->qp_num);
	return wc.status;
}

static void peer_bytes(uint8_t bytes[LEN])
{
	say(&end, 'b');
	assert_int_equal(recv(end.peer, bytes, LEN, MSG_WAITALL), LEN);
	hear(&end, 'b');
}

static struct ibv_wc peer_completion(void)
{
	struct ibv_wc wc;

	say(&end, 'w');
	assert_int_equal(recv(end.peer, &wc, sizeof(wc), MSG_WAITALL), sizeof(wc));
	hear(&end, 'w');
	return wc;
}

CASE_WITH(a_write_of_several_pointers_changes_its_bytes_and_no_other, setup, teardown)
{
	struct ibv_sge sge[4];
	struct ibv_send_wr wr = a_write(sge, 1, 1000);
	static uint8_t bytes[LEN];

	for (int i = 0; i < 4; i++)
		sge[i] = (struct ibv_sge){ (uintptr_t)end.bytes + (unsigned int)i * 100, 50,
					   end.mr->lkey };
	for (int i = 0; i < LEN; i++)
		end.bytes[i] = (uint8_t)(i * 5 + 1);
	wr.num_sge = 4;
	assert_int_equal(end_of(&wr), IBV_WC_SUCCESS);
	peer_bytes(bytes);
	for (int i = 0; i < LEN; i++)
		if (i >= 1000 && i < 1200)
			assert_int_equal(bytes[i],
					 end.bytes[(i - 1000) / 50 * 100 + (i - 1000) % 50]);
		else
			assert_int_equal(bytes[i], (uint8_t)(i * 7));
}

CASE_WITH(a_read_brings_the_bytes, setup, teardown)
{
	struct ibv_sge sge;
	struct ibv_send_wr wr = a_write(&sge, 2, 300);

	wr.opcode = IBV_WR_RDMA_READ;
	assert_int_equal(end_of(&wr), IBV_WC_SUCCESS);
	for (int i = 0; i < SLICE; i++)
		assert_int_equal(end.bytes[i], (uint8_t)((300 + i) * 7));
}

CASE_WITH(a_send_waits_for_a_receive_request_and_wakes_a_sleeper, setup, teardown)
{
	struct ibv_sge sge;
	struct ibv_send_wr wr = a_write(&sge, 3, 0);
	static uint8_t bytes[LEN];
	struct ibv_cq *cq;
	struct ibv_wc wc;
	void *context;

	wr.opcode = IBV_WR_SEND_WITH_IMM;
	wr.imm_data = 0x1234;
	memset(end.bytes, 0x33, SLICE);
	assert_int_equal(ibv_req_notify_cq(end.cq, 0), 0);
	assert_int_equal(post(&wr), 0);
	assert_int_equal(ibv_poll_cq(end.cq, 1, &wc), 0);
	ask('p');
	assert_int_equal(ibv_get_cq_event(end.channel, &cq, &context), 0); /* nobody polls */
	assert_ptr_equal(cq, end.cq);
	assert_ptr_equal(context, &end);
	ibv_ack_cq_events(cq, 1);
	assert_int_equal(completion().status, IBV_WC_SUCCESS);
	wc = peer_completion();
	assert_int_equal(wc.wr_id, 5);
	assert_int_equal(wc.byte_len, SLICE);
	assert_int_equal(wc.imm_data, 0x1234);
	assert_int_equal(wc.opcode, IBV_WC_RECV);
	peer_bytes(bytes);
	assert_memory_equal(bytes + SLICE, end.bytes, SLICE);
}

/* SOFTNIC_MODE=null: it lies in the receive request until then. */
CASE_WITH(a_small_send_is_in_memory_when_it_is_polled_or_its_region_is_gone, setup, teardown)
{
	struct ibv_sge sge;
	struct ibv_send_wr wr = a_write(&sge, 3, 0);
	static uint8_t bytes[LEN];

	wr.opcode = IBV_WR_SEND;
	sge.length = 100;
	for (int gone = 0; gone < 2; gone++) {
		ask('p');
		memset(end.bytes, 0x33 + gone, SLICE);
		assert_int_equal(end_of(&wr), IBV_WC_SUCCESS);
		if (gone)
			ask('d');
		else
			assert_int_equal(peer_completion().byte_len, 100);
		peer_bytes(bytes);
		assert_memory_equal(bytes + SLICE, end.bytes, 100);
		assert_int_equal(bytes[SLICE + 100], (uint8_t)((SLICE + 100) * 7));
	}
	assert_int_equal(peer_completion().byte_len, 100);
}

CASE_WITH(a_wrong_key_or_bound_breaks_both_ends, setup, teardown)
{
	struct ibv_sge sge;
	struct ibv_send_wr wr = a_write(&sge, 4, LEN - SLICE + 1);
	static uint8_t bytes[LEN];

	ask('p');
	assert_int_equal(end_of(&wr), IBV_WC_REM_ACCESS_ERR);
	assert_int_equal(peer_completion().status, IBV_WC_WR_FLUSH_ERR); /* its receive request */
	assert_int_equal(end_of(&wr), IBV_WC_WR_FLUSH_ERR);
	peer_bytes(bytes);
	for (int i = 0; i < LEN; i++)
		assert_int_equal(bytes[i], (uint8_t)(i * 7));
}

CASE_WITH(a_local_key_does_not_open_anything_remote, setup, teardown)
{
	struct ibv_sge sge;
	struct ibv_send_wr wr = a_write(&sge, 4, 0);

	wr.wr.rdma.rkey ^= 0x80;
	assert_int_equal(end_of(&wr), IBV_WC_REM_ACCESS_ERR);
}

CASE_WITH(a_foreign_local_key_is_a_protection_error, setup, teardown)
{
	struct ibv_sge sge;
	struct ibv_send_wr wr = a_write(&sge, 4, 0);

	sge.lkey = peer.rkey;
	assert_int_equal(end_of(&wr), IBV_WC_LOC_PROT_ERR);
}

CASE_WITH(a_peer_in_the_error_state_does_not_answer, setup, teardown)
{
	struct ibv_sge sge;
	struct ibv_send_wr wr = a_write(&sge, 6, 0);

	ask('e');
	assert_int_equal(end_of(&wr), IBV_WC_RETRY_EXC_ERR);
}

CASE_WITH(a_killed_peer_does_not_answer, setup, teardown)
{
	struct ibv_sge sge;
	struct ibv_send_wr wr = a_write(&sge, 6, 0);

	kill(end.child, SIGKILL);
	while (recv(end.peer, &wr.wr_id, 1, MSG_PEEK) > 0)
		;
	assert_int_not_equal(end_of(&wr), IBV_WC_SUCCESS);
}

CASE_WITH(room_comes_back_when_a_completion_is_taken, setup, teardown)
{
	struct ibv_sge sge;
	struct ibv_send_wr wr[DEPTH + 1], *bad;

	for (int i = 0; i <= DEPTH; i++) {
		wr[i] = a_write(&sge, (uint64_t)i, 0);
		wr[i].next = i < DEPTH ? &wr[i + 1] : NULL;
		wr[i].send_flags = i == DEPTH - 1 ? IBV_SEND_SIGNALED : 0;
	}
	assert_int_equal(ibv_post_send(end.qp, wr, &bad), ENOMEM);
	assert_ptr_equal(bad, &wr[DEPTH]);
	assert_int_equal(ibv_post_send(end.qp, &wr[DEPTH], &bad), ENOMEM);
	assert_int_equal(completion().wr_id, DEPTH - 1);
	assert_int_equal(ibv_post_send(end.qp, &wr[DEPTH], &bad), 0);
}

/* The modelled NIC: 1 us a message, so DEPTH of them take at least 8 us, however late one looks. */
CASE_WITH(a_modelled_nic_is_never_too_fast, setup, teardown)
{
	struct ibv_sge sge;
	struct ibv_send_wr wr = a_write(&sge, 1, 0);
	struct timespec from, to;

	clock_gettime(CLOCK_MONOTONIC, &from);
	for (int i = 0; i < DEPTH; i++)
		assert_int_equal(post(&wr), 0);
	for (int i = 0; i < DEPTH; i++)
		assert_int_equal(completion().status, IBV_WC_SUCCESS);
	clock_gettime(CLOCK_MONOTONIC, &to);
	assert_true((to.tv_sec - from.tv_sec) * 1000000000 + to.tv_nsec - from.tv_nsec >=
		    (DEPTH - 1) * 1000 + 5000);
}

int main(void)
{
	char world[32];

	snprintf(world, sizeof(world), "test%d", getpid());
	setenv("SOFTNIC_WORLD", world, 1);
	if (getenv("SOFTNIC_MODE") && !strcmp(getenv("SOFTNIC_MODE"), "model"))
		cmocka_set_test_filter("a_modelled_nic_*");
	else if (getenv("SOFTNIC_MODE"))
		cmocka_set_test_filter("a_small_*");
	else
		cmocka_set_skip_filter("a_modelled_nic_*");
	return run_cases(NULL, NULL);
}
