/* SPDX-License-Identifier: Apache-2.0 */
/*
 * agent_look_test.c -- kvrail dump and kvrail top look into a process with an agent, as the NIXL
 * plugin has one: what each transfer waits for
 *
 *     agent_look_test KVRAIL PATH      the program; by which path bytes move
 */
#include "agent/agent_rig.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>

#include "ag.h"
#include "ask.h"
#include "lib/process.h"

enum { LEN = 1 << 20 };

/* Agent b in a process of its own, to be stopped and killed. */
struct card {
	size_t len, mem_len;
	uint8_t info[AG_INFO_MAX], mem[AG_MEM_INFO_MAX];
	uintptr_t addr;
};

struct far {
	pid_t pid;
	int fd;
	struct card card;
	struct rig_end a;
	struct ag_rmem *rmem;
};

static void serve_b(int fd)
{
	struct card c = { 0 };
	struct rig_end b;
	char byte;

	setenv("CMOCKA_TEST_ABORT", "1", 1);
	rig_open(&b, "b", LEN);
	memcpy(c.info, ag_info(b.agent, &c.len), sizeof(c.info));
	c.mem_len = ag_mem_info(b.mem, c.mem);
	c.addr = (uintptr_t)b.buf;
	if (send(fd, &c, sizeof(c), MSG_NOSIGNAL) != sizeof(c))
		_exit(1);
	while (recv(fd, &byte, 1, 0) > 0)
		;
	rig_close(&b);
	_exit(0);
}

static void load(struct far *f)
{
	struct kv_error err;

	assert_int_equal(ag_peer_load(f->a.agent, "b", f->card.info, f->card.len, &err), 0);
	assert_int_equal(
		ag_rmem_load(f->a.agent, "b", f->card.mem, f->card.mem_len, &f->rmem, &err), 0);
}

static void far_open(struct far *f)
{
	int fds[2];

	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	fflush(NULL);
	f->pid = fork();
	assert_true(f->pid >= 0);
	if (!f->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(fds[0]);
		serve_b(fds[1]);
	}
	close(fds[1]);
	f->fd = fds[0];
	assert_int_equal(recv(f->fd, &f->card, sizeof(f->card), MSG_WAITALL), sizeof(f->card));
	rig_open(&f->a, "prefill-0", LEN);
}

static void far_close(struct far *f)
{
	int status;

	ag_rmem_unload(f->rmem);
	rig_close(&f->a);
	close(f->fd);
	assert_int_equal(waitpid(f->pid, &status, 0), f->pid);
}

static struct ag_xfer *post(struct far *f, int kind)
{
	struct ag_pair pair = { f->a.mem, f->rmem, (uintptr_t)f->a.buf, f->card.addr, LEN };
	struct ag_xfer *xfer;
	struct kv_error err;

	assert_int_equal(ag_xfer_prepare(f->a.agent, "b", kind, &pair, 1, &xfer, &err), 0);
	assert_true(ag_xfer_post(xfer, NULL, 0, &err) >= 0);
	return xfer;
}

static void move_once(struct far *f)
{
	struct ag_xfer *xfer = post(f, AG_WRITE);
	struct kv_error err;

	assert_int_equal(rig_end_of(xfer, &err), 0);
	rig_release(xfer);
}

/* ---------------------------------------------------------------- the tests */

CASE(a_peer_that_is_stopped_is_named)
{
	struct ag_xfer *xfer;
	struct kv_error err;
	char words[64];
	struct far f;

	far_open(&f);
	load(&f);
	move_once(&f);
	assert_true(stop_process(f.pid));
	/* A region of which b has not said what it is: it never answers. */
	ag_rmem_unload(f.rmem);
	assert_int_equal(ag_rmem_load(f.a.agent, "b", f.card.mem, f.card.mem_len, &f.rmem, &err),
			 0);
	xfer = post(&f, AG_WRITE);
	dump_until("waits_for the peer's description of a region");
	says("operation write, age_ms ");
	says("agent prefill-0, operations_in_flight 1, bytes_out 1048576");
	says(" name b, state up, by agent, ");
	says("transport ");
	snprintf(words, sizeof(words), "peer process %d, which is stopped, ", (int)f.pid);
	if (strstr(text, "transport shm"))
		says(words);
	dump("--json");
	says("\"operations_in_flight\": 1");
	snprintf(words, sizeof(words), "top %d --once", (int)getpid());
	assert_int_equal(kvrail(words), 0);
	says("prefill-0");
	kill(f.pid, SIGCONT);
	assert_int_equal(rig_end_of(xfer, &err), 0);
	rig_release(xfer);
	far_close(&f);
}

struct mover {
	struct far *far;
	atomic_bool stops;
	pthread_t thread;
};

static void *move_on(void *arg)
{
	struct mover *m = arg;

	while (!atomic_load(&m->stops))
		move_once(m->far);
	return NULL;
}

CASE(top_says_how_long_transfers_take)
{
	struct far f;
	struct mover m = { .far = &f };
	char words[64];

	far_open(&f);
	load(&f);
	move_once(&f);
	dump("");
	assert_null(strstr(text, "p99_us")); /* nobody has asked for it */
	assert_int_equal(pthread_create(&m.thread, NULL, move_on, &m), 0);
	snprintf(words, sizeof(words), "top %d --once --json", (int)getpid());
	assert_int_equal(kvrail(words), 0);
	atomic_store(&m.stops, true);
	pthread_join(m.thread, NULL);
	says("\"engine\": \"prefill-0\", ");
	assert_true(number_after("\"p99_us\": ") > 0);
	dump("");
	assert_true(number_after("operations_timed ") > 0);
	assert_true(number_after("p99_us ") > 0);
	far_close(&f);
}

/* Nobody has the lock for long but a thread in a device's call: the test plays that. */
CASE(a_thread_that_is_in_a_call_hides_one_peer_only)
{
	struct ag_peer *peer;
	struct kv_error err;
	struct far f;

	far_open(&f);
	load(&f);
	move_once(&f);
	peer = ag_peer_get(f.a.agent, "b", "test", &err);
	assert_non_null(peer);
	pthread_mutex_lock(&peer->drive);
	dump("");
	pthread_mutex_unlock(&peer->drive);
	ag_peer_put(peer);
	says("agent prefill-0, ");
	says("name b, state up, by agent, busy another thread is in a call on it");
	far_close(&f);
}

CASE(a_handshake_that_waits_says_for_what)
{
	struct ag_xfer *xfer;
	struct far f;

	far_open(&f);
	assert_true(stop_process(f.pid)); /* its kernel accepts, and nobody answers */
	load(&f);
	xfer = post(&f, AG_READ);
	dump_until("handshake waiting for hello");
	says("state handshake, ");
	says("operation read, age_ms ");
	says("waits_for the handshake");
	kill(f.pid, SIGCONT);
	assert_int_equal(rig_end_of(xfer, NULL), 0);
	rig_release(xfer);
	far_close(&f);
}

CASE(a_peer_that_died_leaves_its_cause)
{
	struct far f;

	far_open(&f);
	load(&f);
	move_once(&f);
	kill(f.pid, SIGKILL);
	dump_until("name b, state lost, ");
	dump_until("last_error KV_ERR_PEER_LOST, ");
	says("error KV_ERR_PEER_LOST, cause ");
	far_close(&f);
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	ask_program = argv[1];
	rig_path(argv[2]);
	setenv("KVCACHE_VIEW", "1", 1);
	return run_cases(NULL, NULL);
}
