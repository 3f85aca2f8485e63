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
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>

#include "base/clock.h"
#include "lib/bar.h"
#include "lib/process.h"
#include "lib/test.h"
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

static void await_stop(void)
{
	int64_t end = kv_deadline_ns(WAIT_MS);

	for (; !atomic_load(&gate->reached); poll(NULL, 0, 1))
		CHECK(kv_now_ns() < end);
}

/* The sender has both ends of as many. */
static void await_comms(int n)
{
	int64_t end = kv_deadline_ns(WAIT_MS);

	for (; atomic_load(&gate->comms) < n; poll(NULL, 0, 1))
		CHECK(kv_now_ns() < end);
}

/* ---------------------------------------------------------------- the sender's process */

struct sender {
	pid_t pid;
	int sock;
};

/* Connects `n` times, then sends on all of them for ever. */
static void send_for_ever(int sock, int n)
{
	struct side s = np_rig_init(-1, 0);
	void *comm[MANY], *request[MANY] = { 0 };
	struct buffer b[MANY];

	s.sender = true;
	s.sock = sock;
	for (int i = 0; i < n; i++) {
		PASSES(&s, side_link(&s, &comm[i]));
		PASSES(&s, side_buffer(&s, comm[i], LEN, &b[i]));
		memset(b[i].bytes, 0x5a, LEN);
		atomic_store(&gate->comms, i + 1);
	}
	for (;; poll(NULL, 0, 1))
		for (int i = 0; i < n; i++) {
			int done = 0;

			if (!request[i] && net->isend(comm[i], b[i].bytes, LEN, 0, b[i].mhandle,
						      NULL, &request[i]))
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
	struct side s;
	void *comm;
	struct buffer b;
	void *request;
};

static struct side receiving(const struct sender *from)
{
	struct side s = np_rig_init(-1, 0);

	s.sock = from->sock;
	/* An NCCL that marks the receives that a GPU watches: the others may be filled directly. */
	CHECK(!net->setNetAttr(s.ctx, &(ncclNetAttr_v11_t){ 0 }));
	return s;
}

static struct receiver start_receiver(const struct sender *from)
{
	struct receiver r = { .s = receiving(from) };

	PASSES(&r.s, side_link(&r.s, &r.comm));
	PASSES(&r.s, side_buffer(&r.s, r.comm, LEN, &r.b));
	await_comms(1);
	return r;
}

static void receive(struct receiver *r)
{
	PASSES(&r->s, side_irecv1(&r->s, r->comm, &r->b, LEN, 0, &r->request));
}

static void end_receiver(struct receiver *r)
{
	PASSES(&r->s, side_stop(&r->s));
}

static bool says(const char *text)
{
	return side_log_has(text);
}

/* The sender is in the middle of a copy into the receiver's memory. */
static struct receiver with_a_copy_under_way(struct sender *s)
{
	struct receiver r = start_receiver(s);

	atomic_store(&gate->closed, true);
	receive(&r);
	await_stop();
	return r;
}

/* Nothing lands any more, whatever the sender does. */
static void nothing_lands(struct sender *s, const struct receiver *r)
{
	uint8_t *before = malloc(LEN);

	CHECK(before);
	memcpy(before, r->b.bytes, LEN);
	poll(NULL, 0, 50);
	stop_sender(s);
	CHECK(!memcmp(before, r->b.bytes, LEN));
	free(before);
}

static bool call_within(ncclResult_t (*call)(void *), void *arg, int64_t ms)
{
	struct bar before = bar_begin();
	ncclResult_t result = call(arg);

	CHECK(bar_holds(before, ms, "the call"));
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
	CHECK(net->deregMr(r.comm, r.b.mhandle)); /* nor is it given back now */
	for (size_t i = 0; i < LEN; i++)
		CHECK(r.b.bytes[i] == 0xa5);
	atomic_store(&gate->closed, false);
	while (net->deregMr(r.comm, r.b.mhandle))
		poll(NULL, 0, 1);
	nothing_lands(&s, &r);
	CHECK(call_within(net->closeRecv, r.comm, 5000));
	end_receiver(&r);
}

/* As NCCL does it: memory is deregistered and freed, then the communicator is closed. */
static void deregistering(void)
{
	struct sender s = start_sender(1);
	struct receiver r = with_a_copy_under_way(&s);

	CHECK(net->deregMr(r.comm, r.b.mhandle));
	CHECK(!call_within(net->closeRecv, r.comm, 5000));
	atomic_store(&gate->closed, false);
	while (net->closeRecv(r.comm))
		poll(NULL, 0, 1);
	nothing_lands(&s, &r);
	end_receiver(&r);
}

/*
 * G5 of the faults: the memory of a send that waits for its receive is given back, and another
 * communicator registers what is there now.
 */
static void deregistering_a_send(void)
{
	struct side a = np_rig_join(-1, 0, LEN), other = np_rig_join(-1, 0, LEN);
	int64_t end = kv_deadline_ns(WAIT_MS);
	void *send, *receive = NULL, *again;
	ncclResult_t result;
	int done = 0;

	PASSES(&a, side_isend(&a, a.loop.send, a.from.bytes, LEN, 0, a.from.mhandle, &send));
	CHECK(!net->deregMr(a.loop.send, a.from.mhandle));
	side_fill(a.from.bytes, LEN, 1);
	CHECK(!net->regMr(other.loop.send, a.from.bytes, LEN, NCCL_PTR_HOST, &again));
	side_poison(&a.to);
	do {
		result = receive ? net->test(receive, &done, NULL)
				 : net->irecv(a.loop.recv, 1, (void *[]){ a.to.bytes },
					      (size_t[]){ LEN }, (int[]){ 0 }, &a.to.mhandle, NULL,
					      &receive);
		CHECK(kv_now_ns() < end);
	} while (!result && !done);
	CHECK(result && !done);
	PASSES(&a, side_check(&a, &a.to, 0, 1)); /* all poison */
	CHECK(!net->deregMr(other.loop.send, again));
	CHECK(!net->closeSend(a.loop.send) && !net->deregMr(a.loop.recv, a.to.mhandle));
	CHECK(!net->closeRecv(a.loop.recv) && !net->closeListen(a.loop.listen));
	CHECK(!net->finalize(a.ctx));
	np_rig_part(&other);
}

CASE(deregistering_under_a_send_ends_it)
{
	np_rig_process(NULL, deregistering_a_send);
}

static void *open_gate(void *arg)
{
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
	end_receiver(&r);
}

/* A communicator that could not be closed is given up with its context, once its sender is gone. */
static void finalizing(void)
{
	struct sender s = start_sender(1);
	struct receiver r = with_a_copy_under_way(&s);
	struct side next;

	CHECK(!call_within(net->closeRecv, r.comm, 5000));
	end_receiver(&r);
	CHECK(says("stay registered"));
	stop_sender(&s);
	next = np_rig_init(-1, 0); /* moves what has been left */
	CHECK(says("has ended"));
	PASSES(&next, side_stop(&next));
}

/* This end copies what comes by the ring, so nobody is waited for. */
static void by_ring(void)
{
	struct sender s = start_sender(1);
	struct receiver r = start_receiver(&s);

	CHECK(stop_process(s.pid));
	receive(&r);
	CHECK(!net->deregMr(r.comm, r.b.mhandle));
	CHECK(call_within(net->closeRecv, r.comm, 500));
	kill(s.pid, SIGCONT);
	nothing_lands(&s, &r);
	end_receiver(&r);
}

/* NCCL's abort closes one after the other; the senders of all of them are silent. */
static void many(void)
{
	struct sender from = start_sender(MANY);
	struct side s = receiving(&from);
	void *comm[MANY], *request;
	struct buffer b[MANY];
	struct bar before;
	int64_t end;
	int said = 0;

	for (int i = 0; i < MANY; i++) {
		PASSES(&s, side_link(&s, &comm[i]));
		PASSES(&s, side_buffer(&s, comm[i], LEN, &b[i]));
	}
	await_comms(MANY);
	CHECK(stop_process(from.pid));
	for (int i = 0; i < MANY; i++)
		PASSES(&s, side_irecv1(&s, comm[i], &b[i], LEN, 0, &request));
	before = bar_begin();
	for (int i = 0; i < MANY; i++)
		said += net->closeRecv(comm[i]) != 0;
	CHECK(bar_holds(before, 3000, "closing all of them"));
	CHECK(said == MANY);
	kill(from.pid, SIGCONT);
	end = kv_deadline_ns(WAIT_MS);
	for (int i = 0; i < MANY; i++)
		while (net->closeRecv(comm[i]))
			CHECK(kv_now_ns() < end);
	stop_sender(&from);
	PASSES(&s, side_stop(&s));
}

static void run(const char *path, void (*body)(void))
{
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
	np_rig_await(pid);
}

CASE(closing_says_that_a_sender_still_writes_and_holds_the_memory)
{
	run("auto", closing);
	run("auto", finalizing);
}

CASE(deregistering_under_a_receive_says_the_same)
{
	run("auto", deregistering);
}

CASE(closing_waits_for_a_sender_that_is_about_to_stop)
{
	run("auto", waiting);
}

CASE(what_comes_by_the_ring_waits_for_nobody)
{
	run("ring", by_ring);
}

CASE(many_silent_senders_are_waited_for_together)
{
	run("auto", many);
}

/* ---------------------------------------------------------------- over a NIC */

/* Starts a send that does not finish: nothing of what is posted is answered. */
static void start_stuck(struct side *s)
{
	void *in, *out;

	PASSES(s, side_irecv1(s, s->loop.recv, &s->to, LEN, 0, &in));
	PASSES(s, side_isend(s, s->loop.send, s->from.bytes, LEN, 0, s->from.mhandle, &out));
}

/* The device takes seconds for its queue pairs, and another communicator keeps the region. */
static void slow_device(void)
{
	struct side s, other;
	void *other_mh;
	uint8_t before[LEN];
	int64_t end;

	CHECK(fake_end());
	fake_begin(&(struct fake_config){ .hosts = 1, .threads = true });
	s = np_rig_join(-1, 0, LEN);
	other = np_rig_join(-1, 0, LEN);
	CHECK(!net->regMr(other.loop.recv, s.to.bytes, LEN, NCCL_PTR_HOST, &other_mh));
	start_stuck(&s);
	fake_slow_teardown(0, 8000);
	CHECK(!call_within(net->closeRecv, s.loop.recv, 6000));
	CHECK(says("can still write"));
	CHECK(!call_within(net->closeSend, s.loop.send, 1000));
	CHECK(says("can still read"));
	fake_slow_teardown(0, 0);
	end = kv_deadline_ns(WAIT_MS);
	while (net->deregMr(s.loop.recv, s.to.mhandle))
		CHECK(kv_now_ns() < end);
	memcpy(before, s.to.bytes, LEN);
	fake_settle();
	CHECK(!memcmp(before, s.to.bytes, LEN));
	while (net->closeSend(s.loop.send) || net->closeRecv(s.loop.recv))
		CHECK(kv_now_ns() < end);
	CHECK(!net->closeListen(s.loop.listen) && !net->finalize(s.ctx));
	CHECK(!net->deregMr(other.loop.recv, other_mh));
	np_rig_part(&other);
}

/* Peers that do not answer: nothing is waited for but this end's device. */
static void silent_peers(void)
{
	static struct side s[MANY];
	struct bar before;

	for (int i = 0; i < MANY; i++)
		s[i] = np_rig_join(-1, 0, LEN);
	fake_settle();
	fake_mute(0, true);
	for (int i = 0; i < MANY; i++)
		start_stuck(&s[i]);
	before = bar_begin();
	for (int i = 0; i < MANY; i++)
		CHECK(!net->closeSend(s[i].loop.send) && !net->closeRecv(s[i].loop.recv));
	CHECK(bar_holds(before, 4000, "closing all of them"));
	fake_mute(0, false);
	for (int i = 0; i < MANY; i++)
		CHECK(!net->closeListen(s[i].loop.listen) && !net->finalize(s[i].ctx));
}

CASE(a_device_that_does_not_come_to_an_end_is_reported)
{
	np_rig_process(NULL, slow_device);
}

CASE(many_silent_peers_of_a_device_cost_little)
{
	np_rig_process(NULL, silent_peers);
}
