/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_end_test.c -- the NCCL plugin's end of a connection: its descriptors, its descriptions of
 * memory, and a fork beside it
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/clock.h"
#include "descriptors.h"
#include "np_rig.h"

static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

enum { LINE = 128 };

/* ---------------------------------------------------------------- descriptors */

static void join_one(void *ctx, void **send, void **recv)
{
	int64_t end = kv_deadline_ns(20000);
	uint8_t handle[NCCL_HANDLE_MAX];
	void *listen;

	CHECK(!net->listen(ctx, 0, handle, &listen));
	for (*send = *recv = NULL; !*send || !*recv;) {
		if (!*send)
			CHECK(!net->connect(ctx, 0, handle, send, NULL));
		if (!*recv)
			CHECK(!net->accept(listen, recv, NULL));
		CHECK(kv_now_ns() < end);
	}
	CHECK(!net->closeListen(listen));
}

static void count_ends(void)
{
	enum { PAIRS = 10 };
	void *ctx, *send[PAIRS], *recv[PAIRS];
	int before;

	CHECK(!net->init(&ctx, 1, NULL, np_rig_logger, NULL));
	join_one(ctx, &send[0], &recv[0]);
	before = count_descriptors();
	for (int i = 1; i < PAIRS; i++)
		join_one(ctx, &send[i], &recv[i]);
	CHECK(count_descriptors() - before <= 2 * 2 * (PAIRS - 1));
	for (int i = 0; i < PAIRS; i++)
		CHECK(!net->closeSend(send[i]) && !net->closeRecv(recv[i]));
	CHECK(!net->finalize(ctx));
}

/* Connects whose caller does not come back, to a listener that nobody accepts on. */
static void given_up(void)
{
	uint8_t handle[NCCL_HANDLE_MAX], copy[NCCL_HANDLE_MAX];
	void *ctx, *listen, *send;
	int before;

	CHECK(!net->init(&ctx, 1, NULL, np_rig_logger, NULL));
	CHECK(!net->listen(ctx, 0, handle, &listen));
	before = count_descriptors();
	for (int i = 0; i < 100; i++) {
		memcpy(copy, handle, sizeof(copy));
		CHECK(!net->connect(ctx, 0, copy, &send, NULL) && !send);
	}
	CHECK(count_descriptors() >= before + 100);
	CHECK(!np_connecting_end(ctx, kv_now_ns())); /* as some time later */
	CHECK(count_descriptors() == before);
	/* Whoever comes back all the same begins anew. */
	CHECK(!net->connect(ctx, 0, copy, &send, NULL) && !send);
	CHECK(count_descriptors() == before + 1);
	CHECK(!net->closeListen(listen) && !net->finalize(ctx));
}

static void at_the_limit(void)
{
	struct rlimit limit = { .rlim_cur = (rlim_t)count_descriptors() + 4, .rlim_max = 4096 };
	ncclResult_t result = ncclSuccess;
	uint8_t handle[NCCL_HANDLE_MAX];
	void *ctx, *listen[8];

	CHECK(!net->init(&ctx, 1, NULL, np_rig_logger, NULL));
	CHECK(!setrlimit(RLIMIT_NOFILE, &limit));
	for (int i = 0; i < 8 && !result; i++)
		result = net->listen(ctx, 0, handle, &listen[i]);
	CHECK(result);
	CHECK(strstr(np_rig_log, "raise the limit on open files (ulimit -n): it is "));
	_exit(0);
}

static void an_end_costs_two_descriptors_and_their_limit_is_named(void **state)
{
	static const char *const shm[] = { "KVCACHE_TRANSPORT=shm", NULL };

	(void)state;
	np_rig_process(NULL, count_ends);
	np_rig_process(shm, count_ends);
	np_rig_process(shm, at_the_limit);
	np_rig_process(shm, given_up);
}

/* ------------------------------------------------------- a description that is broken off */

/* Half of it is sent, as where the credits for messages are out then. */
static void send_half(struct np_comm *comm, struct np_mr *mr)
{
	uint8_t bytes[TR_MEM_PACK_MAX], message[TR_MSG_MAX];
	struct np_mem_piece piece = { .slot = mr->slot, .bytes = bytes };
	struct kv_error err;
	size_t total;

	CHECK(!tr_mem_pack(comm->conn, mr->mem, bytes, sizeof(bytes), &total, &err));
	piece.total = (uint16_t)total;
	piece.len = total / 2;
	CHECK(!tr_msg(comm->conn, message, np_mem_piece_put(message, sizeof(message), &piece),
		      &err));
	mr->described_len = piece.len;
	comm->describing = mr->serial;
}

static void exchange(const struct np_loop *l, void *from, void *from_mh, void *to, void *to_mh)
{
	int64_t end = kv_deadline_ns(20000);
	void *in = NULL, *out = NULL;
	int tag = 0, done[2] = { 0 };
	size_t size = LINE;

	while (!in)
		CHECK(!net->irecv(l->recv, 1, &to, &size, &tag, &to_mh, NULL, &in));
	while (!out)
		CHECK(!net->isend(l->send, from, size, tag, from_mh, NULL, &out));
	while (!done[0] || !done[1]) {
		if (!done[0])
			CHECK(!net->test(out, &done[0], NULL));
		if (!done[1])
			CHECK(!net->test(in, &done[1], NULL));
		CHECK(kv_now_ns() < end);
	}
	CHECK(!memcmp(from, to, size));
}

static void descriptions(void)
{
	static uint8_t from[LINE], to[2][LINE];
	struct np_loop l = np_rig_join(-1, 0);
	void *from_mh, *to_mh[2];

	memset(from, 7, sizeof(from));
	CHECK(!net->regMr(l.send, from, LINE, NCCL_PTR_HOST, &from_mh));
	for (int i = 0; i < 2; i++)
		CHECK(!net->regMr(l.recv, to[i], LINE, NCCL_PTR_HOST, &to_mh[i]));
	send_half(l.recv, to_mh[0]);
	exchange(&l, from, from_mh, to[1], to_mh[1]);
	exchange(&l, from, from_mh, to[0], to_mh[0]);
	np_rig_part(&l);
}

static void a_description_that_was_broken_off_begins_again(void **state)
{
	(void)state;
	np_rig_process(NULL, descriptions);
}

/* ---------------------------------------------------------------- fork */

/* Runs after the plugin's own destructor: what it has left on the devices. */
static int tell_counts = -1;

static __attribute__((destructor(101))) void after_the_plugin(void)
{
	struct fake_counts counts;

	if (tell_counts < 0)
		return;
	fake_counts(&counts);
	_exit(write(tell_counts, &counts, sizeof(counts)) == sizeof(counts) ? 0 : 1);
}

static void child_exits(void)
{
	const ncclNet_v10_t *old = &ncclNetPlugin_v10;
	struct fake_counts before, after;
	uint8_t handle[NCCL_HANDLE_MAX];
	void *listen;
	int fd[2];
	pid_t pid;

	CHECK(!old->init(np_rig_logger, NULL));
	CHECK(!old->listen(0, handle, &listen)); /* opens the device, for good */
	CHECK(!old->closeListen(listen));
	fake_counts(&before);
	CHECK(before.pds);
	CHECK(!pipe(fd));
	pid = fork();
	CHECK(pid >= 0);
	if (!pid) {
		tell_counts = fd[1];
		exit(0);
	}
	CHECK(read(fd[0], &after, sizeof(after)) == sizeof(after));
	CHECK(waitpid(pid, NULL, 0) == pid);
	CHECK(after.pds == before.pds && after.contexts == before.contexts);
	exit(0);
}

static void a_forked_child_that_exits_frees_nothing_of_its_parents(void **state)
{
	(void)state;
	np_rig_process(NULL, child_exits);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_end_costs_two_descriptors_and_their_limit_is_named),
		cmocka_unit_test(a_description_that_was_broken_off_begins_again),
		cmocka_unit_test(a_forked_child_that_exits_frees_nothing_of_its_parents),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
