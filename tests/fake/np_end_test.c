/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_end_test.c -- the NCCL plugin's end of a connection: its descriptors, its descriptions of
 * memory, and a fork beside it
 */
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "lib/port.h"
#include "lib/process.h"
#include "lib/scrape.h"
#include "lib/test.h"
#include "np_rig.h"

static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

enum { LINE = 128 };

/* ---------------------------------------------------------------- descriptors */

static void count_ends(void)
{
	enum { PAIRS = 10 };
	struct side s = np_rig_init(-1, 0);
	struct loop loop[PAIRS];
	int before;

	PASSES(&s, side_loop(&s, &loop[0]));
	before = count_descriptors();
	for (int i = 1; i < PAIRS; i++) {
		PASSES(&s, side_loop(&s, &loop[i]));
		CHECK(!net->closeListen(loop[i].listen));
		loop[i].listen = NULL;
	}
	CHECK(count_descriptors() - before <= 2 * 2 * (PAIRS - 1));
	for (int i = 0; i < PAIRS; i++)
		PASSES(&s, side_loop_close(&s, &loop[i]));
	PASSES(&s, side_stop(&s));
}

/* Connects whose caller does not come back, to a listener that nobody accepts on. */
static void given_up(void)
{
	uint8_t handle[NCCL_HANDLE_MAX], copy[NCCL_HANDLE_MAX];
	void *ctx, *listen, *send;
	int before;

	CHECK(!net->init(&ctx, 1, NULL, side_logger, NULL));
	CHECK(!net->listen(ctx, 0, handle, &listen));
	before = count_descriptors();
	for (int i = 0; i < 100; i++) {
		memcpy(copy, handle, sizeof(copy));
		CHECK(!net->connect(ctx, 0, copy, &send, NULL) && !send);
	}
	CHECK(count_descriptors() >= before + 100);
	CHECK(!np_connecting_end(ctx, kv_now_ns())); /* as some time later */
	CHECK(count_descriptors() == before);
	/* A caller that comes back all the same begins anew. */
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

	CHECK(!net->init(&ctx, 1, NULL, side_logger, NULL));
	CHECK(!setrlimit(RLIMIT_NOFILE, &limit));
	for (int i = 0; i < 8 && !result; i++)
		result = net->listen(ctx, 0, handle, &listen[i]);
	CHECK(result);
	CHECK(side_log_has("raise the limit on open files (ulimit -n): it is "));
	_exit(0);
}

CASE(an_end_costs_two_descriptors_and_their_limit_is_named)
{
	static const char *const shm[] = { "KVCACHE_TRANSPORT=shm", NULL };

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

static void descriptions(void)
{
	struct side s = np_rig_join(-1, 0, LINE);
	struct buffer other;

	PASSES(&s, side_buffer(&s, s.loop.recv, LINE, &other));
	send_half(s.loop.recv, s.to.mhandle);
	PASSES(&s, side_exchange(&s, &s.loop, &s.from, &other, LINE, 1));
	PASSES(&s, side_exchange(&s, &s.loop, &s.from, &s.to, LINE, 2));
	PASSES(&s, side_buffer_free(&s, s.loop.recv, &other));
	np_rig_part(&s);
}

CASE(a_description_that_was_broken_off_begins_again)
{
	np_rig_process(NULL, descriptions);
}

/* ---------------------------------------------------------------- metrics */

static char metrics_option[40];

static double moved(const char *name, const char *direction)
{
	static char text[1 << 16];

	scrape_metrics((uint32_t)strtoul(strchr(metrics_option, '=') + 1, NULL, 10), text,
		       sizeof(text));
	return scrape_sum(text, name, direction, "device=");
}

static void measured(void)
{
	enum { EXCHANGES = 3 };
	struct side s = np_rig_join(-1, 0, LINE);
	double out = moved("kvrail_nccl_bytes_total", "\"out\""),
	       in = moved("kvrail_nccl_bytes_total", "\"in\"");

	for (unsigned int i = 0; i < EXCHANGES; i++)
		PASSES(&s, side_exchange(&s, &s.loop, &s.from, &s.to, LINE, i));
	CHECK(moved("kvrail_nccl_bytes_total", "\"out\"") - out == EXCHANGES * LINE);
	CHECK(moved("kvrail_nccl_bytes_total", "\"in\"") - in == EXCHANGES * LINE);
	CHECK(moved("kvrail_nccl_requests_total", "\"in\"") >= EXCHANGES);
	CHECK(moved("kvrail_nccl_communicators", "") == 2);
	CHECK(moved("kvrail_nccl_failed_total", "") == 0);
	np_rig_part(&s);
	CHECK(threads_have_gone(THREADS_LAST));
}

CASE(what_nccl_moves_is_in_the_metrics)
{
	static const char *const variables[] = { metrics_option, NULL };
	uint32_t port;
	int holder = port_hold(&port);

	snprintf(metrics_option, sizeof(metrics_option), "KVCACHE_METRICS_PORT=%u", port);
	np_rig_process(variables, measured);
	close(holder);
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

	CHECK(!old->init(side_logger, NULL));
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

CASE(a_forked_child_that_exits_frees_nothing_of_its_parents)
{
	np_rig_process(NULL, child_exits);
}
