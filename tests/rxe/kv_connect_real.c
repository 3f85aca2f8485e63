/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_connect_real.c -- hundreds of connections over real verbs, good and failed in every way: after
 * each hundred the device's objects (`rdma resource show`) and this process's descriptors are those
 * of before
 */
#include "lib/port.h"
#include "lib/process.h"
#include "kv_rig.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/fault.h"
#include "broken_verbs.h"

enum { TIMES = 100, SLOW_TIMES = 50, SETTLE_MS = 20000 };

static struct node a, b, full, other; /* b and full listen; other has another geometry */
static char devices[4096];
static int descriptors;

static void read_devices(char *text, size_t cap)
{
	FILE *pipe = popen("rdma resource show", "r");
	size_t len;

	assert_non_null(pipe);
	len = fread(text, 1, cap - 1, pipe);
	text[len] = 0;
	assert_int_equal(pclose(pipe), 0);
	assert_non_null(strstr(text, "rxe1"));
}

/* Closes the peers that have come to the node; their number. */
static int close_peers(struct node *node)
{
	struct kv_arrival arrival;
	int n = 0;

	while (kv_poll_arrivals(node->engine, &arrival, 1, NULL) == 1)
		if (arrival.kind == KV_ARRIVAL_PEER_UP) {
			ok(kv_peer_close(arrival.peer, RIG_TIMEOUT_MS, &node->err), &node->err);
			n++;
		}
	return n;
}

/* What dead processes and half-made connections held goes a moment after them. */
static void expect_nothing_left(const char *what)
{
	int64_t end = kv_deadline_ns(slow_ms(SETTLE_MS));
	char now[sizeof(devices)];

	do {
		close_peers(&b);
		kv_progress(b.engine, 20, NULL);
		read_devices(now, sizeof(now));
		if (!strcmp(now, devices) && count_descriptors() == descriptors)
			return;
	} while (kv_now_ns() < end);
	fail_msg("after %s: descriptors %d, before %d; the devices have\n%s, before\n%s", what,
		 count_descriptors(), descriptors, now, devices);
}

static void expect_refusals(const char *what, struct node *from, uint32_t port, int64_t timeout_ms,
			    int code)
{
	for (int i = 0; i < TIMES; i++) {
		struct kv_peer *peer;
		int ret = kv_connect(from->engine, NULL, port, timeout_ms, &peer, &from->err);

		if (ret != code)
			fail_msg("%s, connection %d: %d %s", what, i, ret,
				 ret ? from->err.message : "");
		assert_true(from->err.message[0]);
	}
	expect_nothing_left(what);
}

CASE(good_connections_leave_nothing)
{
	for (int i = 0; i < SLOW_TIMES; i++) {
		node_connect(&a, b.port);
		ok(kv_peer_close(a.peer, RIG_TIMEOUT_MS, &a.err), &a.err);
		node_await_peer(&b);
		ok(kv_peer_close(b.peer, RIG_TIMEOUT_MS, &b.err), &b.err);
	}
	expect_nothing_left("good connections");
}

CASE(wrong_geometry_leaves_nothing)
{
	expect_refusals("wrong geometry", &other, b.port, RIG_TIMEOUT_MS, KV_ERR_GEOMETRY);
}

CASE(a_peer_at_its_limit_leaves_nothing)
{
	expect_refusals("a peer at its limit", &a, full.port, RIG_TIMEOUT_MS, KV_ERR_BUSY);
}

CASE(nobody_there_leaves_nothing)
{
	uint32_t port;
	int fd = port_hold(&port);

	descriptors++;
	expect_refusals("nobody listens", &a, port, RIG_TIMEOUT_MS, KV_ERR_PEER_LOST);
	descriptors--;
	close(fd);
}

CASE(a_silent_peer_leaves_nothing)
{
	uint32_t port;
	int fd = port_hold(&port);

	assert_int_equal(listen(fd, 2 * TIMES), 0);
	descriptors++;
	expect_refusals("a silent peer", &a, port, 20, KV_ERR_TIMEOUT);
	descriptors--;
	close(fd);
}

/* Each step that a connection takes on either side fails, one after the other. */
CASE(a_fault_at_each_step_leaves_nothing)
{
	static const enum fake_verb verbs[] = {
		FAKE_query_gid_table, FAKE_reg_mr,    FAKE_create_comp_channel,
		FAKE_create_cq,	      FAKE_create_qp, FAKE_modify_qp,
		FAKE_post_recv
	};
	enum { VERBS = sizeof(verbs) / sizeof(verbs[0]) };
	static const enum kv_fault_point points[] = {
		KV_FAULT_TR_CONN_DATA,
		KV_FAULT_TR_CONN_ALLOC,
		KV_FAULT_TR_CONN_EPOLL,
		KV_FAULT_TR_CONN_SOCKET,
		KV_FAULT_TR_CONN_SETUP_ALLOC,
		KV_FAULT_TR_CONN_SEND,
		KV_FAULT_TR_CONN_RECV,
		KV_FAULT_TR_RMEM_ALLOC,
		KV_FAULT_IB_GID_TABLE,
		KV_FAULT_IB_RMEM_ALLOC,
		KV_FAULT_IB_CONN_ALLOC,
		KV_FAULT_IB_CONN_RANDOM,
		KV_FAULT_IB_CONTROL_MMAP,
		KV_FAULT_IB_CONTROL_MADVISE,
		KV_FAULT_IB_LANES_ALLOC,
		KV_FAULT_IB_TABLES_MMAP,
		KV_FAULT_IB_CHANNEL_FCNTL,
		KV_FAULT_IB_PSN_RANDOM,
		KV_FAULT_KV_PEER_ALLOC,
		KV_FAULT_KV_WATCH,
		KV_FAULT_KV_LINK_ALLOC,
		KV_FAULT_KV_RSLABS,
		KV_FAULT_KV_MARKS,
	};
	enum { POINTS = sizeof(points) / sizeof(points[0]) };
	int failed = 0;

	for (int i = 0; i < TIMES; i++) {
		int step = i % (VERBS + POINTS), nth = 1 + i / (VERBS + POINTS);
		const char *what = step < VERBS ? fake_verb_name(verbs[step])
						: kv_fault_name(points[step - VERBS]);
		struct kv_peer *peer;
		int ret;

		if (step < VERBS)
			broken_fail_verb(verbs[step], nth, ENOMEM);
		else
			kv_fault_arm(points[step - VERBS], (uint32_t)nth);
		memset(&a.err, 0, sizeof(a.err));
		ret = kv_connect(a.engine, NULL, b.port, 1000, &peer, &a.err);
		if (step < VERBS)
			broken_fail_verb(verbs[step], 0, 0);
		else
			kv_fault_arm(points[step - VERBS], 0);
		failed += ret != 0;
		if (ret && (a.err.code != ret || !a.err.message[0]))
			fail_msg("%s, pass %d: no cause", what, nth);
		if (!ret)
			ok(kv_peer_close(peer, RIG_TIMEOUT_MS, &a.err), &a.err);
		close_peers(&b);
	}
	printf("%d of %d connections failed\n", failed, TIMES);
	assert_true(failed > TIMES / 2);
	expect_nothing_left("faults");
}

static int connect_for_ever(int fd, uint32_t port)
{
	struct node node;

	node_open(&node, 3, NULL, NULL);
	child_send(fd, "", 1);
	for (;;) {
		struct kv_peer *peer;

		if (!kv_connect(node.engine, NULL, port, RIG_TIMEOUT_MS, &peer, &node.err))
			kv_peer_close(peer, 0, NULL);
	}
	return 0;
}

/*
 * A program of its own: the threads of b are in the middle of ending connections, so that a child
 * without exec may find a lock of libibverbs or librdmacm taken by a thread that it does not have.
 */
static int exec_self(int fd, const void *arg)
{
	char fd_text[12], port_text[12];

	snprintf(fd_text, sizeof(fd_text), "%d", dup(fd)); /* without FD_CLOEXEC */
	snprintf(port_text, sizeof(port_text), "%u", *(const uint32_t *)arg);
	execl("/proc/self/exe", "kv_connect_real", fd_text, port_text, NULL);
	return 127;
}

CASE(peers_killed_while_they_connect_leave_nothing)
{
	for (int i = 0; i < SLOW_TIMES; i++) {
		int64_t until;
		struct child child;
		char started;

		child_start(&child, exec_self, &b.port);
		child_receive(child.fd, &started, 1);
		until = kv_now_ns() + random() % 30000000;
		while (kv_now_ns() < until)
			close_peers(&b);
		child_kill(&child, SIGKILL);
		waitpid(child.pid, NULL, 0);
		close(child.fd);
	}
	expect_nothing_left("killed peers");
}

static int set_up(void **state)
{
	static const char *const one_peer[] = { "KVCACHE_MAX_PEERS=1", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct shape shape = rig_shape;

	broken_begin();
	node_open(&b, 2, NULL, NULL);
	node_listen(&b);
	node_open(&a, 1, NULL, NULL);
	config.options = one_peer;
	node_open(&full, 4, NULL, &config);
	node_listen(&full);
	node_connect(&a, full.port);
	node_await_peer(&full);
	shape.block_bytes[0] *= 2;
	shape.stride[0] *= 2;
	node_open(&other, 5, &shape, NULL);
	node_connect(&a, b.port); /* what is made once stays */
	ok(kv_peer_close(a.peer, RIG_TIMEOUT_MS, &a.err), &a.err);
	node_await_peer(&b);
	ok(kv_peer_close(b.peer, RIG_TIMEOUT_MS, &b.err), &b.err);
	read_devices(devices, sizeof(devices));
	descriptors = count_descriptors();
	printf("before: %d descriptors, the devices have\n%s", descriptors, devices);
	return 0;
}

static int tear_down(void **state)
{
	node_close(&other);
	node_close(&a);
	node_close(&full);
	node_close(&b);
	assert_true(broken_end());
	return 0;
}

int main(int argc, char **argv)
{
	if (access("/sys/class/infiniband/rxe1", F_OK)) {
		printf("skipped: there are no devices rxe0 and rxe1; tests/rxe/rxe makes a guest "
		       "with them\n");
		return 77;
	}
	setenv("KVCACHE_TRANSPORT", "ib", 1);
	if (argc == 3)
		return connect_for_ever((int)strtoul(argv[1], NULL, 10),
					(uint32_t)strtoul(argv[2], NULL, 10));
	return run_cases(set_up, tear_down);
}
