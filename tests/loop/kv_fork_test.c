/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_fork_test.c -- a process with an engine forks a child that stays, and is killed: the child
 * keeps neither its port nor its connections
 */
#include "kv_rig.h"

#include <dirent.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>

#include "lib/bar.h"
#include "lib/port.h"

enum { LOST_MS = 1000 };

struct left {
	pid_t pid;
	int sockets; /* that the child has, beside the test's own */
};

static int count_sockets(void)
{
	DIR *dir = opendir("/proc/self/fd");
	struct dirent *e;
	int n = 0;

	while ((e = readdir(dir))) {
		char link[64] = "";
		ssize_t len = readlinkat(dirfd(dir), e->d_name, link, sizeof(link) - 1);

		n += len > 0 && !strncmp(link, "socket:", 7);
	}
	closedir(dir);
	return n;
}

/* Listens on the port of `arg`, waits for a peer, forks, and waits for the end. */
static int parent(int fd, const void *arg)
{
	int before = count_sockets();
	struct kv_arrival arrival;
	struct left left = { 0 };
	struct node node;
	char go;

	node_open(&node, 2, NULL, NULL);
	ok(kv_listen(node.engine, NULL, *(const uint32_t *)arg, &node.port, &node.err), &node.err);
	child_send(fd, &node.port, sizeof(node.port));
	await_kind(&node, KV_ARRIVAL_PEER_UP, &arrival, RIG_TIMEOUT_MS);
	left.pid = fork();
	if (!left.pid) {
		left.pid = getpid();
		left.sockets = count_sockets() - before;
		kv_engine_close(node.engine); /* of a forked engine: touches nothing */
		left.sockets += count_sockets() - before;
		child_send(fd, &left, sizeof(left));
		alarm((unsigned int)slow_ms(60)); /* if the test fails */
		for (;;)
			pause();
	}
	child_receive(fd, &go, 1);
	return 0;
}

CASE(a_child_that_stays_keeps_neither_port_nor_connection)
{
	struct kv_arrival arrival;
	struct child child;
	struct left left;
	struct node a, again;
	uint32_t port;
	struct bar begun;
	int holder = port_hold(&port); /* no other process gets it between the two engines */

	child_start(&child, parent, &port);
	child_receive(child.fd, &port, sizeof(port));
	node_open(&a, 1, NULL, NULL);
	node_connect(&a, port);
	child_receive(child.fd, &left, sizeof(left));
	assert_int_equal(left.sockets, 0);
	child_kill(&child, SIGKILL);
	begun = bar_begin();
	assert_true(await_kind(&a, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
	assert_true(bar_holds(begun, LOST_MS, "the loss of a killed peer"));
	/* Its connection may be closed before its listener: all are when it has ended. */
	assert_int_equal(child_join(&child), 128 + SIGKILL);
	/* The parent is started again, its child is still there. */
	node_open(&again, 2, NULL, NULL);
	ok(kv_listen(again.engine, NULL, port, NULL, &a.err), &a.err);
	ok(kv_peer_close(a.peer, RIG_TIMEOUT_MS, &a.err), &a.err);
	node_connect(&a, port);
	assert_int_equal(kill(left.pid, SIGKILL), 0);
	node_close(&a);
	node_close(&again);
	close(holder);
}
