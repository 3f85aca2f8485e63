/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr_shm_link.c -- after the handshake the local socket stands in for the control socket: what that
 * was good for, the end of the peer above all, is seen without it
 */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "conn.h"
#include "lib/process.h"
#include "lib/test.h"
#include "tr_pair.h"

enum { OF_A_CONNECTION = 2, READY = 1, GO = 2 };

static void hold_few(struct pair_side *s)
{
	int before;

	pair_open(s);
	if (s->child)
		PAIR_CHECK(!tr_listen(s->tr, NULL, 0, &s->listener, &s->cause));
	before = count_descriptors();
	PAIR_CHECK(!pair_connect(s, &s->cause));
	PAIR_CHECK(!s->child || s->conn->sock < 0);
	pair_settle(s);
	PAIR_CHECK(count_descriptors() - before == OF_A_CONNECTION);
	PAIR_CHECK(*tr_conn_address(s->conn) && tr_conn_host(s->conn));
	pair_meet(s);
	/* What looks at the control socket elsewhere. */
	for (int i = 0; i < 1000; i++)
		PAIR_CHECK(!pair_poll(s, 0) && !tr_conn_arm(s->conn));
	PAIR_CHECK(!tr_conn_peer_left(s->conn));
	pair_meet(s);
	pair_down(s);
	PAIR_CHECK(count_descriptors() == before - (s->child ? 3 : 0)); /* the listener's */
}

CASE(a_connection_has_two_descriptors)
{
	struct pair_config config = { .parent_path = NULL };

	assert_int_equal(pair_run(&config, hold_few, hold_few), 0);
}

/* An end of before says nothing of it; nor does one that is polled. */
static void hold_control(struct pair_side *s)
{
	pair_up(s);
	PAIR_CHECK(s->conn->sock >= 0);
	pair_meet(s);
	if (!s->child)
		pair_wait_lost(s, PAIR_WAIT_MS);
	if (!s->child)
		PAIR_CHECK(s->cause.code == KV_ERR_PEER_LOST && tr_conn_peer_left(s->conn));
	pair_down(s);
}

CASE(an_end_that_does_not_say_so_keeps_the_control_socket_of_both)
{
	struct pair_config config = { .flags = TR_PASSES_GPU, .child_flags = TR_POLLED };

	assert_int_equal(pair_run(&config, hold_control, hold_control), 0);
}

/* ---------------------------------------------------------------- the end of the peer */

enum ending { KILLED, CLOSED, FENCED, KILLED_WITH_AN_HEIR };

/* A process that has its descriptors and knows nothing of the library. */
static void leave_an_heir(struct pair_side *s)
{
	struct pollfd test_ends = { .fd = s->from };

	if (_Fork())
		return;
	poll(&test_ends, 1, (int)PAIR_WAIT_MS);
	_exit(0);
}

static void end_it(struct pair_side *s)
{
	enum ending how = (enum ending)(uintptr_t)s->config->arg;
	struct kv_error err;
	int64_t deadline_ns = kv_deadline_ns(PAIR_WAIT_MS);

	pair_up(s);
	pair_meet(s);
	if (how == KILLED_WITH_AN_HEIR)
		leave_an_heir(s);
	pair_say(s, READY);
	PAIR_CHECK(pair_hear(s) == GO);
	if (how == FENCED)
		while (tr_fence(s->conn, 0, &err))
			PAIR_CHECK(kv_now_ns() < deadline_ns);
	if (how == KILLED || how == KILLED_WITH_AN_HEIR)
		kill(getpid(), SIGKILL);
	if (how == FENCED)
		pair_hear(s); /* the other has seen it while this end is still there */
	pair_down(s);
}

static void see_it(struct pair_side *s, bool sleeps)
{
	int64_t deadline_ns;

	pair_up(s);
	PAIR_CHECK(s->conn->sock < 0);
	pair_meet(s);
	PAIR_CHECK(pair_hear(s) == READY);
	pair_say(s, GO);
	deadline_ns = kv_deadline_ns(PAIR_SOON_MS);
	while (!s->lost) {
		PAIR_CHECK(kv_now_ns() < deadline_ns);
		pair_poll(s, sleeps ? (int)PAIR_WAIT_MS : 0);
	}
	PAIR_CHECK(s->cause.code == KV_ERR_PEER_LOST);
	if ((enum ending)(uintptr_t)s->config->arg == FENCED)
		pair_say(s, GO);
	pair_down(s);
}

static void see_it_asleep(struct pair_side *s)
{
	see_it(s, true);
}

static void see_it_polling(struct pair_side *s)
{
	see_it(s, false);
}

static void each_ending(pair_fn *see)
{
	for (uintptr_t how = KILLED; how <= KILLED_WITH_AN_HEIR; how++) {
		struct pair_config config = { .arg = (void *)how };
		int killed = how == KILLED || how == KILLED_WITH_AN_HEIR;

		assert_int_equal(pair_run(&config, see, end_it), killed ? -SIGKILL : 0);
	}
}

CASE(each_end_of_the_peer_wakes_a_thread_that_sleeps)
{
	each_ending(see_it_asleep);
}

CASE(each_end_of_the_peer_is_seen_by_a_thread_that_only_polls)
{
	each_ending(see_it_polling);
}

/* ---------------------------------------------------------------- a peer that takes long to end */

struct slow_end {
	int sleep_ms; /* of who looks, between two looks */
	int error;    /* why no thread could be traced, 0 */
};

static void *wait_for_the_end(void *arg)
{
	struct pair_side *s = arg;

	pair_say(s, (uint64_t)syscall(SYS_gettid));
	for (;;)
		pause();
	return NULL;
}

static void end_slowly(struct pair_side *s)
{
	pthread_t thread;

	pair_up(s);
	pair_meet(s);
	leave_an_heir(s); /* its sockets stay open */
	PAIR_CHECK(!pthread_create(&thread, NULL, wait_for_the_end, s));
	pair_hear(s);
	kill(getpid(), SIGKILL);
}

static bool has_ended(struct pair_side *s)
{
	int fd = (int)syscall(SYS_pidfd_open, s->other, 0);
	struct pollfd p = { .fd = fd, .events = POLLIN };
	bool ended = poll(&p, 1, 0);

	PAIR_CHECK(fd >= 0);
	close(fd);
	return ended;
}

/*
 * As a process of gigabytes is while the kernel frees them: all its threads have died, and neither
 * its sockets nor its pidfd say so. A thread that is traced stays until it is waited for.
 */
static void see_a_slow_end(struct pair_side *s)
{
	struct slow_end *slow = s->config->arg;
	int64_t deadline_ns;
	pid_t thread;

	pair_up(s);
	pair_meet(s);
	thread = (pid_t)pair_hear(s);
	slow->error = ptrace(PTRACE_SEIZE, thread, NULL, NULL) ? errno : 0;
	pair_say(s, GO);
	deadline_ns = kv_deadline_ns(PAIR_SOON_MS);
	while (!s->lost) {
		PAIR_CHECK(kv_now_ns() < deadline_ns);
		pair_poll(s, slow->sleep_ms);
	}
	PAIR_CHECK(s->cause.code == KV_ERR_PEER_LOST);
	if (!slow->error) {
		PAIR_CHECK(!has_ended(s));
		/* What a GPU does for it is not over. */
		PAIR_CHECK(tr_fence(s->conn, 0, NULL));
		PAIR_CHECK(waitpid(thread, NULL, __WALL) == thread);
	}
	pair_down(s);
}

static void each_slow_end(int sleep_ms)
{
	struct slow_end slow = { .sleep_ms = sleep_ms };
	struct pair_config config = { .arg = &slow };

	assert_int_equal(pair_run(&config, see_a_slow_end, end_slowly), -SIGKILL);
	if (!slow.error)
		return;
	print_message("skipped: no thread can be traced here: %s\n", strerror(slow.error));
	skip();
}

CASE(a_peer_that_takes_long_to_end_is_lost_before_for_who_polls)
{
	each_slow_end(0);
}

CASE(a_peer_that_takes_long_to_end_is_lost_before_for_who_sleeps_between)
{
	each_slow_end(1);
}

/* Its other threads go on, and so does the connection. */
static void *answer(void *arg)
{
	struct pair_side *s = arg;

	pair_say(s, READY);
	pair_hear(s);
	pair_meet(s);
	_exit(0);
}

static void end_the_first_thread(struct pair_side *s)
{
	pthread_t thread;

	pair_up(s);
	pair_meet(s);
	PAIR_CHECK(!pthread_create(&thread, NULL, answer, s));
	pthread_exit(NULL);
}

static void see_no_end(struct pair_side *s)
{
	char path[64], state = 0;
	FILE *stat;

	pair_up(s);
	pair_meet(s);
	PAIR_CHECK(pair_hear(s) == READY);
	snprintf(path, sizeof(path), "/proc/%d/stat", (int)s->other);
	for (int64_t end_ns = kv_deadline_ns(PAIR_WAIT_MS); state != 'Z';) {
		PAIR_CHECK(kv_now_ns() < end_ns && (stat = fopen(path, "r")));
		PAIR_CHECK(fscanf(stat, "%*d (%*[^)]) %c", &state) == 1);
		fclose(stat);
	}
	for (int i = 0; i < 1000; i++)
		PAIR_CHECK(!pair_poll(s, 0) && !tr_conn_arm(s->conn));
	poll(NULL, 0, 20); /* two looks of the clock's */
	PAIR_CHECK(!pair_poll(s, 0) && !tr_conn_arm(s->conn) && !s->lost);
	pair_say(s, GO);
	pair_meet(s);
	pair_wait_lost(s, PAIR_WAIT_MS);
	pair_down(s);
}

CASE(a_peer_whose_first_thread_ends_alone_is_not_lost)
{
	struct pair_config config = { .parent_path = NULL };

	assert_int_equal(pair_run(&config, see_no_end, end_the_first_thread), 0);
}
