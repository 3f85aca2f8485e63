/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_close_test.c -- after closeRecv, closeSend or deregMr returned success nothing lands in the
 * memory and nothing of it is read; if that cannot be reached in time the call says so and the
 * memory stays held
 *
 * The sender of the shared-memory cases is a process of its own. Its process_vm_writev is the one
 * below, so a copy can be stopped in the middle, as a page fault or a debugger would.
 */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include <cmocka.h>

#include "base/clock.h"
#include "loop/slow.h"
#include "np_rig.h"

enum { LEN = 256 << 10, MANY = 64, WAIT_MS = 20000 };

static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

/* ------------------------------------------------- a copy that stops until it is let go on */

static struct gate {
	atomic_bool closed, reached;
	atomic_int comms; /* that the sender has made */
} * gate;

ssize_t process_vm_writev(pid_t pid, const struct iovec *local, unsigned long locals,
			  const struct iovec *remote, unsigned long remotes, unsigned long flags)
{
	while (gate && atomic_load(&gate->closed)) {
		atomic_store(&gate->reached, true);
		poll(NULL, 0, 1);
	}
	return syscall(SYS_process_vm_writev, pid, local, locals, remote, remotes, flags);
}

static void await(const atomic_bool *what)
{
	int64_t end = kv_deadline_ns(WAIT_MS);

	while (!atomic_load(what)) {
		CHECK(kv_now_ns() < end);
		poll(NULL, 0, 1);
	}
}

/* ---------------------------------------------------------------- the sender's process */

struct sender {
	pid_t pid;
	int sock;
};

/* Connects `n` times, then sends on all of them for ever. */
static void send_for_ever(int sock, int n)
{
	static uint8_t bytes[LEN];
	void *ctx, *comm[MANY] = { 0 }, *mh[MANY], *request[MANY] = { 0 };
	uint8_t handle[NCCL_HANDLE_MAX];

	memset(bytes, 0x5a, LEN);
	CHECK(!net->init(&ctx, 1, NULL, np_rig_logger, NULL));
	for (int i = 0; i < n; i++) {
		CHECK(read(sock, handle, sizeof(handle)) == sizeof(handle));
		while (!comm[i])
			CHECK(!net->connect(ctx, 0, handle, &comm[i], NULL));
		CHECK(!net->regMr(comm[i], bytes, LEN, NCCL_PTR_HOST, &mh[i]));
		atomic_store(&gate->comms, i + 1);
	}
	for (;; poll(NULL, 0, 1))
		for (int i = 0; i < n; i++) {
			int done = 0;

			if (!request[i] &&
			    net->isend(comm[i], bytes, LEN, 0, mh[i], NULL, &request[i]))
				request[i] = NULL;
			if (request[i] && !net->test(request[i], &done, NULL) && done)
				request[i] = NULL;
		}
}

static struct sender start_sender(int n)
{
	struct sender s;
	int pair[2];

	CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
	gate = mmap(NULL, sizeof(*gate), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	CHECK(gate != MAP_FAILED);
	s.pid = fork();
	CHECK(s.pid >= 0);
	if (!s.pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		close(pair[0]);
		send_for_ever(pair[1], n);
	}
	close(pair[1]);
	s.sock = pair[0];
	return s;
}

static void stop_sender(struct sender *s)
{
	kill(s->pid, SIGKILL);
	CHECK(waitpid(s->pid, NULL, 0) == s->pid);
	close(s->sock);
}

/* ---------------------------------------------------------------- the receiver: this process */

struct receiver {
	void *ctx, *comm, *mh, *request;
	uint8_t *bytes;
};

static void *accept_one(void *ctx, struct sender *s)
{
	uint8_t handle[NCCL_HANDLE_MAX];
	void *listen, *comm = NULL;

	CHECK(!net->listen(ctx, 0, handle, &listen));
	CHECK(write(s->sock, handle, sizeof(handle)) == sizeof(handle));
	while (!comm) {
		CHECK(!net->accept(listen, &comm, NULL));
		poll(NULL, 0, 1);
	}
	CHECK(!net->closeListen(listen));
	return comm;
}

static void *receive(void *comm, uint8_t *bytes, void *mh)
{
	void *data = bytes, *request = NULL;
	size_t size = LEN;
	int64_t end = kv_deadline_ns(WAIT_MS);
	int tag = 0;

	while (!request) {
		CHECK(!net->irecv(comm, 1, &data, &size, &tag, &mh, NULL, &request));
		CHECK(kv_now_ns() < end);
	}
	return request;
}

static struct receiver start_receiver(struct sender *s)
{
	struct receiver r = { 0 };

	CHECK(!net->init(&r.ctx, 1, NULL, np_rig_logger, NULL));
	/* An NCCL that marks the receives that a GPU watches: the others may be filled directly. */
	CHECK(!net->setNetAttr(r.ctx, &(ncclNetAttr_v11_t){ 0 }));
	r.comm = accept_one(r.ctx, s);
	r.bytes = aligned_alloc(4096, LEN);
	CHECK(r.bytes);
	memset(r.bytes, 0xa5, LEN);
	CHECK(!net->regMr(r.comm, r.bytes, LEN, NCCL_PTR_HOST, &r.mh));
	while (!atomic_load(&gate->comms))
		poll(NULL, 0, 1);
	return r;
}

static bool says(const char *text)
{
	return strstr(np_rig_log, text) != NULL;
}

/* The sender is in the middle of a copy into the receiver's memory. */
static struct receiver with_a_copy_under_way(struct sender *s)
{
	struct receiver r = start_receiver(s);

	atomic_store(&gate->closed, true);
	r.request = receive(r.comm, r.bytes, r.mh);
	await(&gate->reached);
	return r;
}

/* Nothing lands any more, whatever the sender does. */
static void nothing_lands(struct sender *s, const struct receiver *r)
{
	uint8_t *before = malloc(LEN);

	CHECK(before);
	memcpy(before, r->bytes, LEN);
	poll(NULL, 0, 50);
	stop_sender(s);
	CHECK(!memcmp(before, r->bytes, LEN));
	free(before);
}

static bool call_within(ncclResult_t (*call)(void *), void *arg, int64_t ms)
{
	int64_t before = kv_now_ns();
	ncclResult_t result = call(arg);

	CHECK(kv_now_ns() - before < slow_ms(ms) * KV_NS_PER_MS);
	return !result;
}

static void closing(void)
{
	struct sender s = start_sender(1);
	struct receiver r = with_a_copy_under_way(&s);
	struct rusage before, after;

	getrusage(RUSAGE_SELF, &before);
	CHECK(!call_within(net->closeRecv, r.comm, 5000));
	getrusage(RUSAGE_SELF, &after);
	CHECK(says("can still write"));
	/* It slept meanwhile. */
	CHECK(after.ru_utime.tv_sec - before.ru_utime.tv_sec < 2 &&
	      (after.ru_utime.tv_sec - before.ru_utime.tv_sec) * 1000000 + after.ru_utime.tv_usec -
			      before.ru_utime.tv_usec <
		      300000);
	CHECK(net->deregMr(r.comm, r.mh)); /* nor is it given back now */
	for (size_t i = 0; i < LEN; i++)
		CHECK(r.bytes[i] == 0xa5);
	atomic_store(&gate->closed, false);
	while (net->deregMr(r.comm, r.mh))
		poll(NULL, 0, 1);
	nothing_lands(&s, &r);
	CHECK(call_within(net->closeRecv, r.comm, 5000));
	CHECK(!net->finalize(r.ctx));
}

/* As NCCL does it: memory is deregistered and freed, then the communicator is closed. */
static void deregistering(void)
{
	struct sender s = start_sender(1);
	struct receiver r = with_a_copy_under_way(&s);

	CHECK(net->deregMr(r.comm, r.mh));
	CHECK(!call_within(net->closeRecv, r.comm, 5000));
	atomic_store(&gate->closed, false);
	while (net->closeRecv(r.comm))
		poll(NULL, 0, 1);
	nothing_lands(&s, &r);
	CHECK(!net->finalize(r.ctx));
}

static void *open_gate(void *arg)
{
	(void)arg;
	poll(NULL, 0, 100);
	atomic_store(&gate->closed, false);
	return NULL;
}

static void waiting(void)
{
	struct sender s = start_sender(1);
	struct receiver r = with_a_copy_under_way(&s);
	pthread_t thread;

	CHECK(!pthread_create(&thread, NULL, open_gate, NULL));
	CHECK(call_within(net->closeRecv, r.comm, 5000));
	nothing_lands(&s, &r);
	pthread_join(thread, NULL);
	CHECK(!net->finalize(r.ctx));
}

/* A communicator that could not be closed is given up with its context, once its sender is gone. */
static void finalizing(void)
{
	struct sender s = start_sender(1);
	struct receiver r = with_a_copy_under_way(&s);
	void *ctx;

	CHECK(!call_within(net->closeRecv, r.comm, 5000));
	CHECK(!net->finalize(r.ctx));
	CHECK(says("stay registered"));
	stop_sender(&s);
	CHECK(!net->init(&ctx, 1, NULL, np_rig_logger, NULL)); /* moves what has been left */
	CHECK(says("has ended"));
	CHECK(!net->finalize(ctx));
}

/* This end copies what comes by the ring, so nobody is waited for. */
static void by_ring(void)
{
	struct sender s = start_sender(1);
	struct receiver r = start_receiver(&s);

	kill(s.pid, SIGSTOP);
	CHECK(waitpid(s.pid, NULL, WUNTRACED) == s.pid);
	r.request = receive(r.comm, r.bytes, r.mh);
	CHECK(!net->deregMr(r.comm, r.mh));
	CHECK(call_within(net->closeRecv, r.comm, 500));
	kill(s.pid, SIGCONT);
	nothing_lands(&s, &r);
	CHECK(!net->finalize(r.ctx));
}

/* NCCL's abort closes one after the other; the senders of all of them are silent. */
static void many(void)
{
	struct sender s = start_sender(MANY);
	static uint8_t bytes[LEN];
	void *ctx, *comm[MANY], *mh[MANY];
	int64_t before, end;
	int said = 0;

	CHECK(!net->init(&ctx, 1, NULL, np_rig_logger, NULL));
	CHECK(!net->setNetAttr(ctx, &(ncclNetAttr_v11_t){ 0 }));
	for (int i = 0; i < MANY; i++) {
		comm[i] = accept_one(ctx, &s);
		CHECK(!net->regMr(comm[i], bytes, LEN, NCCL_PTR_HOST, &mh[i]));
	}
	end = kv_deadline_ns(WAIT_MS);
	while (atomic_load(&gate->comms) < MANY)
		CHECK(kv_now_ns() < end);
	kill(s.pid, SIGSTOP);
	CHECK(waitpid(s.pid, NULL, WUNTRACED) == s.pid);
	for (int i = 0; i < MANY; i++)
		receive(comm[i], bytes, mh[i]);
	before = kv_now_ns();
	for (int i = 0; i < MANY; i++)
		said += net->closeRecv(comm[i]) != 0;
	CHECK(kv_now_ns() - before < slow_ms(3000) * KV_NS_PER_MS);
	CHECK(said == MANY);
	kill(s.pid, SIGCONT);
	end = kv_deadline_ns(WAIT_MS);
	for (int i = 0; i < MANY; i++)
		while (net->closeRecv(comm[i]))
			CHECK(kv_now_ns() < end);
	stop_sender(&s);
	CHECK(!net->finalize(ctx));
}

static void run(const char *path, void (*body)(void))
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (!pid) {
		setenv("KVCACHE_TRANSPORT", "shm", 1);
		setenv("KVCACHE_SHM_PATH", path, 1);
		body();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_int_equal(status, 0);
}

static void closing_says_that_a_sender_still_writes_and_holds_the_memory(void **state)
{
	(void)state;
	run("auto", closing);
	run("auto", finalizing);
}

static void deregistering_under_a_receive_says_the_same(void **state)
{
	(void)state;
	run("auto", deregistering);
}

static void closing_waits_for_a_sender_that_is_about_to_stop(void **state)
{
	(void)state;
	run("auto", waiting);
}

static void what_comes_by_the_ring_waits_for_nobody(void **state)
{
	(void)state;
	run("ring", by_ring);
}

static void many_silent_senders_are_waited_for_together(void **state)
{
	(void)state;
	run("auto", many);
}

/* ---------------------------------------------------------------- over a NIC */

/* Starts a send that does not finish: nothing of what is posted is answered. */
static void start_stuck(struct np_loop *l, uint8_t *from, uint8_t *to, void **from_mh, void **to_mh)
{
	void *out = NULL;

	CHECK(!net->regMr(l->send, from, LEN, NCCL_PTR_HOST, from_mh));
	CHECK(!net->regMr(l->recv, to, LEN, NCCL_PTR_HOST, to_mh));
	CHECK(receive(l->recv, to, *to_mh));
	while (!out)
		CHECK(!net->isend(l->send, from, LEN, 0, *from_mh, NULL, &out));
}

static uint8_t from[LEN], to[LEN];

/* The device takes seconds for its queue pairs, and another communicator keeps the region. */
static void slow_device(void)
{
	struct np_loop l, other;
	void *from_mh, *to_mh, *other_mh;
	uint8_t before[LEN];
	int64_t end;

	CHECK(fake_end());
	fake_begin(&(struct fake_config){ .hosts = 1, .threads = true });
	l = np_rig_join(-1, 0);
	other = np_rig_join(-1, 0);
	other.ctx = other.ctx;
	CHECK(!net->regMr(other.recv, to, LEN, NCCL_PTR_HOST, &other_mh));
	start_stuck(&l, from, to, &from_mh, &to_mh);
	fake_slow_teardown(0, 8000);
	CHECK(!call_within(net->closeRecv, l.recv, 6000));
	CHECK(says("can still write"));
	CHECK(!call_within(net->closeSend, l.send, 1000));
	CHECK(says("can still read"));
	fake_slow_teardown(0, 0);
	end = kv_deadline_ns(WAIT_MS);
	while (net->deregMr(l.recv, to_mh))
		CHECK(kv_now_ns() < end);
	memcpy(before, to, LEN);
	fake_settle();
	CHECK(!memcmp(before, to, LEN));
	while (net->closeSend(l.send) || net->closeRecv(l.recv))
		CHECK(kv_now_ns() < end);
	CHECK(!net->closeListen(l.listen) && !net->finalize(l.ctx));
	CHECK(!net->deregMr(other.recv, other_mh));
	np_rig_part(&other);
}

/* Peers that do not answer: nothing is waited for but this end's device. */
static void silent_peers(void)
{
	static struct np_loop l[MANY];
	void *from_mh, *to_mh;
	int64_t before;

	for (int i = 0; i < MANY; i++)
		l[i] = np_rig_join(-1, 0);
	fake_settle();
	fake_mute(0, true);
	for (int i = 0; i < MANY; i++)
		start_stuck(&l[i], from, to, &from_mh, &to_mh);
	before = kv_now_ns();
	for (int i = 0; i < MANY; i++)
		CHECK(!net->closeSend(l[i].send) && !net->closeRecv(l[i].recv));
	CHECK(kv_now_ns() - before < slow_ms(4000) * KV_NS_PER_MS);
	fake_mute(0, false);
	for (int i = 0; i < MANY; i++)
		CHECK(!net->closeListen(l[i].listen) && !net->finalize(l[i].ctx));
}

static void a_device_that_does_not_come_to_an_end_is_told(void **state)
{
	(void)state;
	np_rig_process(NULL, slow_device);
}

static void many_silent_peers_of_a_device_cost_little(void **state)
{
	(void)state;
	np_rig_process(NULL, silent_peers);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(closing_says_that_a_sender_still_writes_and_holds_the_memory),
		cmocka_unit_test(deregistering_under_a_receive_says_the_same),
		cmocka_unit_test(closing_waits_for_a_sender_that_is_about_to_stop),
		cmocka_unit_test(what_comes_by_the_ring_waits_for_nobody),
		cmocka_unit_test(many_silent_senders_are_waited_for_together),
		cmocka_unit_test(a_device_that_does_not_come_to_an_end_is_told),
		cmocka_unit_test(many_silent_peers_of_a_device_cost_little),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
