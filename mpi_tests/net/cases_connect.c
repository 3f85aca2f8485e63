/* SPDX-License-Identifier: Apache-2.0 */
/* cases_connect.c -- cases 10 to 15: listen, connect, accept, and what strangers do */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "net_side.h"

#define NOT_BLOCKING_MS ((int)slow_ms(500)) /* one call sleeps less */

static int listen_handles(struct side *s)
{
	struct handle a, b;
	void *l, *m;

	side_handle_init(&a);
	side_handle_init(&b);
	l = m = NULL;
	OK(s, s->net->listen(s->ctx, s->dev, a.bytes, &l));
	OK(s, s->net->listen(s->ctx, s->dev, b.bytes, &m));
	REQUIRE(s, l && m, "listen gave no communicator");
	REQUIRE(s, side_handle_intact(&a) && side_handle_intact(&b),
		"a handle was written past its 128 bytes");
	REQUIRE(s, memcmp(a.bytes, b.bytes, NCCL_HANDLE_MAX), "two listeners have one handle");
	OK(s, s->net->closeListen(l));
	OK(s, s->net->closeListen(m));
	return PASS;
}

static int connect_alone(struct side *s)
{
	ncclNetDeviceHandle_v7_t *d = NULL;
	struct handle h;
	struct loop loop = { 0 };

	side_handle_init(&h);
	OK(s, s->net->listen(s->ctx, s->dev, h.bytes, &loop.listen));
	for (int i = 0; i < 200; i++) {
		int64_t before = side_slept_ms();

		OK(s, s->net->connect(s->ctx, s->dev, h.bytes, &loop.send, &d));
		REQUIRE(s, side_slept_ms() - before < NOT_BLOCKING_MS, "connect blocked %d ms",
			(int)(side_slept_ms() - before));
		REQUIRE(s, !loop.send, "connect succeeded although nobody accepts");
		usleep(500);
	}
	TRY(side_join(s, &loop, &h));
	return side_loop_close(s, &loop);
}

static int accept_alone(struct side *s)
{
	ncclNetDeviceHandle_v7_t *d = NULL;
	struct handle h;
	void *listen, *recv = NULL;

	side_handle_init(&h);
	OK(s, s->net->listen(s->ctx, s->dev, h.bytes, &listen));
	for (int i = 0; i < 200; i++) {
		int64_t before = side_slept_ms();

		OK(s, s->net->accept(listen, &recv, &d));
		REQUIRE(s, side_slept_ms() - before < NOT_BLOCKING_MS, "accept blocked %d ms",
			(int)(side_slept_ms() - before));
		REQUIRE(s, !recv, "accept succeeded although nobody connects");
	}
	OK(s, s->net->closeListen(listen));
	return PASS;
}

/* One process, both ends, one call of each in turn. */
static int loopback(struct side *s)
{
	REQUIRE(s, s->loop.send != s->loop.recv, "both ends are one object");
	return PASS;
}

static int two_processes(struct side *s)
{
	void *comm;

	for (int i = 0; i < 5; i++) {
		TRY(side_link(s, &comm));
		TRY(side_barrier(s));
		TRY(side_unlink(s, comm));
	}
	return PASS;
}

enum { SEVERAL = 8 };

/*
 * Which accepted end belongs to which connected one is open; each message must arrive at exactly
 * one.
 */
static int exchange_all(struct side *s, void **send, void **recv)
{
	struct buffer from[SEVERAL], to[SEVERAL];
	void *out[SEVERAL], *in[SEVERAL];
	unsigned int seen = 0;

	for (int i = 0; i < SEVERAL; i++) {
		TRY(side_buffer(s, send[i], 1, &from[i]));
		TRY(side_buffer(s, recv[i], 1, &to[i]));
		from[i].bytes[0] = (uint8_t)i;
		TRY(side_irecv1(s, recv[i], &to[i], 1, 0, &in[i]));
	}
	for (int i = 0; i < SEVERAL; i++)
		TRY(side_isend(s, send[i], from[i].bytes, 1, 0, from[i].mhandle, &out[i]));
	for (int i = 0; i < SEVERAL; i++) {
		TRY(side_wait(s, out[i], NULL));
		TRY(side_wait(s, in[i], NULL));
		seen |= 1u << to[i].bytes[0];
		TRY(side_buffer_free(s, send[i], &from[i]));
		TRY(side_buffer_free(s, recv[i], &to[i]));
	}
	REQUIRE(s, seen == (1u << SEVERAL) - 1, "messages of connections %#x arrived", seen);
	return PASS;
}

static int several_on_one_listener(struct side *s)
{
	void *listen, *send[SEVERAL] = { 0 }, *recv[SEVERAL] = { 0 };
	struct handle first, h[SEVERAL];
	int64_t end = side_ms() + SIDE_WAIT_MS;
	int accepted = 0, connected = 0;

	side_handle_init(&first);
	OK(s, s->net->listen(s->ctx, s->dev, first.bytes, &listen));
	for (int i = 0; i < SEVERAL; i++)
		h[i] = first;
	while (accepted < SEVERAL || connected < SEVERAL) {
		ncclNetDeviceHandle_v7_t *d = NULL;

		for (int i = 0; i < SEVERAL; i++)
			if (!send[i]) {
				OK(s, s->net->connect(s->ctx, s->dev, h[i].bytes, &send[i], &d));
				connected += send[i] != NULL;
			}
		if (accepted < SEVERAL) {
			OK(s, s->net->accept(listen, &recv[accepted], &d));
			accepted += recv[accepted] != NULL;
		}
		REQUIRE(s, side_ms() < end, "%d connected, %d accepted of %d", connected, accepted,
			SEVERAL);
	}
	OK(s, s->net->closeListen(listen)); /* what was accepted goes on */
	TRY(exchange_all(s, send, recv));
	for (int i = 0; i < SEVERAL; i++) {
		OK(s, s->net->closeSend(send[i]));
		OK(s, s->net->closeRecv(recv[i]));
	}
	return PASS;
}

/* Error or still nothing, in bounded time; never a crash, never a connection. */
static int must_not_connect(struct side *s, struct handle *h, const char *what, bool must_fail)
{
	int64_t end = side_ms() + (must_fail ? SIDE_WAIT_MS : 1000);
	ncclResult_t ret = ncclSuccess;
	void *send = NULL;

	while (!ret && side_ms() < end) {
		ncclNetDeviceHandle_v7_t *d = NULL;

		ret = s->net->connect(s->ctx, s->dev, h->bytes, &send, &d);
		REQUIRE(s, !send, "%s: connected", what);
		usleep(1000);
	}
	REQUIRE(s, ret || !must_fail, "%s: no error in %d ms", what, SIDE_WAIT_MS);
	return PASS;
}

static int bad_handles(struct side *s)
{
	struct handle good, bad;
	void *listen;

	side_handle_init(&good);
	OK(s, s->net->listen(s->ctx, s->dev, good.bytes, &listen));
	if (!s->source.symbol) { /* the oracle keeps a pointer in its handle: garbage crashes it */
		side_handle_init(&bad);
		side_fill(bad.bytes, NCCL_HANDLE_MAX, 7);
		TRY(must_not_connect(s, &bad, "garbage", true));
		side_handle_init(&bad);
		TRY(must_not_connect(s, &bad, "zeros", true));
		for (int i = 0; i < 24; i++) {
			bad = good;
			bad.bytes[i] ^= 0x10;
			TRY(must_not_connect(s, &bad, "one bit flipped", true));
		}
	}
	bad = good;
	OK(s, s->net->closeListen(listen));
	TRY(must_not_connect(s, &bad, "the listener is closed", !s->source.symbol));
	return PASS;
}

/* The TCP ports that this process listens on. */
static int listening_ports(uint16_t *port, struct sockaddr_in *address, int max)
{
	int n = 0;

	for (int fd = 3; fd < 256 && n < max; fd++) {
		socklen_t len = sizeof(int), alen = sizeof(*address);
		int on = 0;

		if (!getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &on, &len) && on &&
		    !getsockname(fd, (struct sockaddr *)&address[n], &alen) &&
		    address[n].sin_family == AF_INET) {
			port[n] = ntohs(address[n].sin_port);
			n++;
		}
	}
	return n;
}

static int stranger(const struct sockaddr_in *to, const char *bytes, size_t len)
{
	struct sockaddr_in address = *to;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	if (address.sin_addr.s_addr == htonl(INADDR_ANY))
		address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address))) {
		close(fd);
		return -1;
	}
	if (len && send(fd, bytes, len, MSG_NOSIGNAL) < 0)
		return fd;
	return fd;
}

static int strangers(struct side *s)
{
	static const char http[] = "GET / HTTP/1.0\r\n\r\n";
	struct sockaddr_in address[4];
	char garbage[4096];
	struct handle h;
	uint16_t port[4];
	struct loop loop = { 0 };
	int fd[12], n = 0, ports;

	side_handle_init(&h);
	OK(s, s->net->listen(s->ctx, s->dev, h.bytes, &loop.listen));
	ports = listening_ports(port, address, 4);
	REQUIRE(s, ports, "no TCP listener was found");
	side_fill((uint8_t *)garbage, sizeof(garbage), 3);
	for (int i = 0; i < 4; i++) {
		fd[n++] = stranger(&address[0], http, sizeof(http) - 1);
		fd[n++] = stranger(&address[0], garbage, sizeof(garbage));
		fd[n++] = stranger(&address[0], NULL, 0); /* says nothing */
	}
	close(fd[0]);
	TRY(side_join(s, &loop, &h));
	TRY(side_try(s, &loop, 5));
	TRY(side_loop_close(s, &loop));
	for (int i = 1; i < n; i++)
		close(fd[i]);
	return PASS;
}

/* The other process ends in the middle of the handshake. */
static int dies_in_handshake(struct side *s)
{
	char connected = 0;
	struct handle h;
	int64_t end;
	void *listen, *comm = NULL;

	side_handle_init(&h);
	if (s->sender) {
		ncclNetDeviceHandle_v7_t *d = NULL;

		TRY(side_get(s, h.bytes, sizeof(h.bytes)));
		for (int i = 0; i < 2 && !comm; i++) {
			OK(s, s->net->connect(s->ctx, s->dev, h.bytes, &comm, &d));
			usleep(10000);
		}
		/* Two calls may be enough when the other side answers within the second. */
		connected = comm != NULL;
		return side_put(s, &connected, 1); /* the process ends here */
	}
	OK(s, s->net->listen(s->ctx, s->dev, h.bytes, &listen));
	TRY(side_put(s, h.bytes, sizeof(h.bytes)));
	end = side_ms() + 1000;
	while (side_ms() < end) {
		ncclNetDeviceHandle_v7_t *d = NULL;
		int64_t before = side_slept_ms();

		if (s->net->accept(listen, &comm, &d))
			break;
		if (comm)
			TRY(side_get(s, &connected, 1));
		REQUIRE(s, !comm || connected, "accepted a process that had not connected");
		if (comm) {
			OK(s, s->net->closeRecv(comm));
			break;
		}
		REQUIRE(s, side_slept_ms() - before < NOT_BLOCKING_MS, "accept blocked");
		usleep(1000);
	}
	OK(s, s->net->closeListen(listen));
	return side_stop(s);
}

/* One side after the other: they may be one process. */
static int count(struct side *s, int *fds, int *threads)
{
	for (int turn = 0; turn < 2; turn++) {
		TRY(side_barrier(s));
		if (turn != (int)s->sender)
			continue;
		*fds = side_count_fds();
		*threads = side_count_threads();
	}
	return side_barrier(s);
}

static int cycles(struct side *s)
{
	int first_fds, first_threads, fds, threads;
	void *comm;

	for (int i = 0; i < 100; i++) {
		TRY(side_link(s, &comm));
		TRY(side_unlink(s, comm));
		if (!i)
			TRY(count(s, &first_fds, &first_threads));
	}
	TRY(count(s, &fds, &threads));
	REQUIRE(s, fds == first_fds, "%d descriptors after 100 cycles, %d after one", fds,
		first_fds);
	REQUIRE(s, threads == first_threads, "%d threads after 100 cycles, %d after one", threads,
		first_threads);
	return PASS;
}

static int exhaustion(struct side *s)
{
	struct rlimit limit = { 64, 64 }, before;
	struct loop loop[64];
	ncclResult_t failed = ncclSuccess;
	int n = 0;

	getrlimit(RLIMIT_NOFILE, &before);
	limit.rlim_max = before.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit);
	while (n < 64 && !side_loop(s, &loop[n]))
		n++;
	failed = n < 64 ? ncclSystemError : ncclSuccess;
	REQUIRE(s, failed, "64 connections with 64 descriptors");
	setrlimit(RLIMIT_NOFILE, &before);
	for (int i = 0; i <= n; i++) /* what there is of the one that failed, too */
		TRY(side_loop_close(s, &loop[i]));
	s->reason[0] = 0;
	TRY(side_loop(s, &loop[0]));
	TRY(side_try(s, &loop[0], 1));
	TRY(side_loop_close(s, &loop[0]));
	snprintf(s->reason, sizeof(s->reason), "descriptors ran out after %d, fine again later", n);
	return PASS;
}

const struct net_case connect_cases[] = {
	{ "10", "listen: handles of 128 bytes, each its own", 1, 0, listen_handles, WITH_INIT },
	{ "11", "connect before accept does not block", 1, 0, connect_alone, WITH_INIT },
	{ "11b", "accept before connect does not block", 1, 0, accept_alone, WITH_INIT },
	{ "11c", "both ends in one thread", 1, 0, loopback, WITH_LOOP(0) },
	{ "11d", "two processes", 2, 0, two_processes, WITH_INIT },
	{ "12", "several connections on one listener", 1, 0, several_on_one_listener, WITH_INIT },
	{ "13", "garbage, damaged and stale handles", 1, 0, bad_handles, WITH_INIT },
	{ "13b", "strangers at the listener", 1, 0, strangers, WITH_INIT,
	  .not_hidden = "serves one connection at a time" },
	{ "13c", "the peer ends during the handshake", 2, 0, dies_in_handshake, WITH_INIT,
	  .dies = true },
	{ "14", "100 connections leave nothing behind", 2, 0, cycles, WITH_INIT },
	{ "15", "descriptors run out, and come back", 1, 0, exhaustion, WITH_INIT,
	  .not_hidden = "leaks what a failed connect has made" },
	{ 0 },
};
