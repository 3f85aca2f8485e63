/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cases_failure.c -- cases 31, 33, 35 to 38: closing early, fork and signals, many threads and
 * communicators, idleness
 */
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "net_side.h"

enum { LEN = 1 << 20, FLIGHT = 8 };

/* Both close with requests under way; nobody waits for anybody. */
static int close_in_flight(struct side *s)
{
	for (int round = 0; round < 10; round++) {
		struct buffer b;
		void *comm, *request;
		int64_t before;

		TRY(side_link(s, &comm));
		TRY(side_buffer(s, comm, LEN, &b));
		TRY(side_barrier(s));
		for (int i = 0; i < FLIGHT; i++) {
			void *data = b.bytes, *phandle = NULL;
			size_t size = LEN;
			int tag = 0;

			request = NULL;
			/*
			 * The other end may have closed already: an error is in order, a crash is
			 * not.
			 */
			if (s->sender ? s->net->isend(comm, data, size, tag, b.mhandle, NULL,
						      &request)
				      : s->net->irecv(comm, 1, &data, &size, &tag, &b.mhandle,
						      &phandle, &request))
				break;
		}
		before = side_slept_ms();
		if (round % 2 == (int)s->sender)
			usleep(20000);
		OK(s, s->net->deregMr(comm, b.mhandle));
		TRY(side_unlink(s, comm));
		REQUIRE(s, side_slept_ms() - before < SIDE_CLOSE_MS, "close took %d ms",
			(int)(side_slept_ms() - before));
		free(b.base);
		TRY(side_barrier(s));
	}
	return PASS;
}

/* What was sent whole before the sender closed still arrives. */
static int close_after_send(struct side *s)
{
	for (uint64_t round = 0; round < 20; round++) {
		void *comm, *request[FLIGHT];
		struct buffer b;

		TRY(side_link(s, &comm));
		TRY(side_buffer(s, comm, FLIGHT * 5000, &b));
		for (size_t i = 0; i < FLIGHT; i++)
			TRY(side_post(s, comm, &b, i * 5000, 5000, round * 100 + i, &request[i]));
		if (!s->sender)
			TRY(side_barrier(s)); /* the sender has closed */
		for (size_t i = 0; i < FLIGHT; i++) {
			TRY(side_wait(s, request[i], NULL));
			TRY(side_check_at(s, b.bytes + i * 5000, 5000, round * 100 + i));
		}
		TRY(side_buffer_free(s, comm, &b));
		TRY(side_unlink(s, comm));
		if (s->sender)
			TRY(side_barrier(s));
	}
	return PASS;
}

static int close_nothing(struct side *s)
{
	OK(s, s->net->closeSend(NULL));
	OK(s, s->net->closeRecv(NULL));
	OK(s, s->net->closeListen(NULL));
	return PASS;
}

/*
 * The region goes while a receive into it waits: it arrives or both report an error, and the other
 * connection is not concerned.
 */
static int deregistered_early(struct side *s)
{
	int64_t end = side_ms() + SIDE_WAIT_MS;
	ncclResult_t ret = ncclSuccess;
	void *comm, *request;
	struct buffer b;
	int done = 0;

	TRY(side_link(s, &comm));
	TRY(side_buffer(s, comm, 5000, &b));
	if (s->sender) {
		TRY(side_barrier(s)); /* it is posted and deregistered */
		side_fill(b.bytes, 5000, 1);
		ret = s->net->isend(comm, b.bytes, 5000, 0, b.mhandle, NULL, &request);
	} else {
		TRY(side_irecv1(s, comm, &b, 5000, 0, &request));
		OK(s, s->net->deregMr(comm, b.mhandle));
		TRY(side_barrier(s));
	}
	while (!ret && !done) {
		ret = s->net->test(request, &done, NULL);
		REQUIRE(s, side_ms() < end, "neither bytes nor an error in %d ms", SIDE_WAIT_MS);
	}
	if (!s->sender && done)
		TRY(side_check(s, &b, 5000, 1));
	snprintf(s->reason, sizeof(s->reason), done ? "it arrives" : "error %d", (int)ret);
	TRY(side_barrier(s));
	TRY(side_unlink(s, comm));
	free(b.base);
	return side_message(s, s->comm, &s->b, 5000, 2);
}

/* ---------------------------------------------------------------- fork and signals */

static int some_messages(struct side *s, void *comm, int n)
{
	struct buffer b;

	TRY(side_buffer(s, comm, 5000, &b));
	for (int i = 0; i < n; i++)
		TRY(side_message(s, comm, &b, 5000, (uint64_t)i));
	return side_buffer_free(s, comm, &b);
}

/* The sender has a child that does nothing but hold what it has inherited. */
static int beside_a_child(struct side *s)
{
	struct buffer b;
	void *comm, *request;
	pid_t child = 0;

	TRY(side_link(s, &comm));
	if (s->sender) {
		child = fork();
		if (!child)
			for (;;)
				pause();
		REQUIRE(s, child > 0, "fork failed");
	}
	TRY(some_messages(s, comm, 20));
	if (s->sender) {
		TRY(side_barrier(s));
		TRY(side_unlink(s, comm));
	} else {
		int64_t end = side_ms() + SIDE_WAIT_MS;
		int done = 0;

		TRY(side_buffer(s, comm, 64, &b));
		TRY(side_irecv1(s, comm, &b, 64, 0, &request));
		TRY(side_barrier(s));
		while (!s->net->test(request, &done, NULL))
			REQUIRE(s, side_ms() < end && !done, "the close is not noticed");
		TRY(side_buffer_free(s, comm, &b));
		TRY(side_unlink(s, comm));
	}
	TRY(side_link(s, &comm));
	TRY(some_messages(s, comm, 20));
	TRY(side_barrier(s));
	TRY(side_unlink(s, comm));
	if (child) {
		kill(child, SIGKILL);
		waitpid(child, NULL, 0);
	}
	return PASS;
}

static void ignore(int signal)
{
}

/* Without SA_RESTART every system call may be interrupted. */
static int signal_storm(struct side *s)
{
	struct itimerval often = { { 0, 300 }, { 0, 300 } }, never = { 0 };
	struct sigaction action = { .sa_handler = ignore };
	void *comm;

	sigaction(SIGALRM, &action, NULL);
	for (int i = 0; i < 10; i++) {
		setitimer(ITIMER_REAL, &often, NULL);
		TRY(side_link(s, &comm));
		TRY(some_messages(s, comm, 10));
		setitimer(ITIMER_REAL, &never, NULL);
		TRY(side_barrier(s));
		TRY(side_unlink(s, comm));
	}
	return PASS;
}

/* ---------------------------------------------------------------- many */

struct worker {
	struct side side;
	pthread_t thread;
	int verdict;
};

static int own_loop(struct side *s)
{
	struct buffer from, to;
	struct loop loop;

	TRY(side_loop(s, &loop));
	TRY(side_buffer(s, loop.send, 9000, &from));
	TRY(side_buffer(s, loop.recv, 9000, &to));
	for (uint64_t i = 0; i < 300; i++)
		TRY(side_exchange(s, &loop, &from, &to, 9000, i));
	TRY(side_buffer_free(s, loop.send, &from));
	TRY(side_buffer_free(s, loop.recv, &to));
	return side_loop_close(s, &loop);
}

static void *worker_main(void *arg)
{
	struct worker *w = arg;

	w->verdict = own_loop(&w->side);
	return NULL;
}

static int many_threads(struct side *s)
{
	enum { THREADS = 8 };
	struct worker worker[THREADS];

	for (int i = 0; i < THREADS; i++) {
		worker[i].side = *s;
		worker[i].side.sock = -1;
		pthread_create(&worker[i].thread, NULL, worker_main, &worker[i]);
	}
	for (int i = 0; i < THREADS; i++)
		pthread_join(worker[i].thread, NULL);
	for (int i = 0; i < THREADS; i++)
		REQUIRE(s, !worker[i].verdict, "thread %d: %s", i, worker[i].side.reason);
	return PASS;
}

static long resident_kb(void)
{
	long pages = 0, total = 0;
	FILE *f = fopen("/proc/self/statm", "re");

	if (f && fscanf(f, "%ld %ld", &total, &pages) != 2)
		pages = 0;
	if (f)
		fclose(f);
	return pages * 4;
}

static int64_t cpu_ms(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000 +
	       (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1000;
}

static int many_and_idle(struct side *s)
{
	int n = s->quick ? 50 : 1000;
	struct rlimit limit;
	struct loop *loop = calloc((size_t)n, sizeof(*loop));
	int64_t cpu;
	long before;

	REQUIRE(s, loop, "out of memory");
	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	TRY(side_loop(s, &loop[0]));
	before = resident_kb();
	for (int i = 1; i < n; i++)
		TRY(side_loop(s, &loop[i]));
	before = resident_kb() - before;
	cpu = cpu_ms();
	usleep(500000);
	cpu = cpu_ms() - cpu;
	REQUIRE(s, cpu < 50, "%d ms of CPU in half a second of idleness", (int)cpu);
	for (int i = 0; i < n; i++)
		TRY(side_loop_close(s, &loop[i]));
	free(loop);
	snprintf(s->reason, sizeof(s->reason), "%d pairs, %ld KB resident each, %d threads", n,
		 before / (n - 1), side_count_threads());
	return PASS;
}

static int bad_values(struct side *s)
{
	static const char *const bad[] = { "NCCL_IB_TIMEOUT=banana", "NCCL_IB_RETRY_CNT=-7",
					   "NCCL_IB_TC=1000", "NCCL_IB_QPS_PER_CONNECTION=" };

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++)
		putenv((char *)bad[i]);
	TRY(side_start(s));
	TRY(own_loop(s));
	return side_stop(s);
}

const struct net_case failure_cases[] = {
	{ "31", "close with requests under way, ten times", 2, 0, close_in_flight, WITH_INIT },
	{ "31b", "what was sent before closing arrives", 2, 0, close_after_send, WITH_INIT },
	{ "31c", "close of nothing", 1, 0, close_nothing, WITH_INIT },
	{ "33", "a region deregistered under a posted receive", 2, 0, deregistered_early,
	  WITH_LINK(5000) },
	{ "35", "the sender has a child that holds its descriptors", 2, 0, beside_a_child,
	  WITH_INIT },
	{ "35b", "interrupted by a signal every 300 us", 2, 0, signal_storm, WITH_INIT },
	{ "36", "eight threads, each its own communicators", 1, 0, many_threads, WITH_INIT },
	{ "37", "many communicators; no CPU when idle", 1, 0, many_and_idle, WITH_INIT },
	{ "38", "bad values in NCCL's variables", 1, 0, bad_values, ALONE },
	{ 0 },
};
