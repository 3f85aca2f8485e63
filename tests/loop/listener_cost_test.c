/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener_cost_test.c -- what strangers can cost an engine, and that honest peers do not wait for
 * them: the figures of SECURITY.md, each tried beyond its limit
 *
 * The engine under test is a process of its own, so that its memory and descriptors are its own.
 * The strangers are another. `listener_cost_test long` has the full loads, for 10 s each.
 */
#include "lib/process.h"
#include "listener_rig.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "frame.h"
#include "lib/bar.h"

enum {
	IDLE = 1000,	      /* strangers that stay */
	GARBAGE_PER_S = 1000, /* connections that send what is not kvrail */
	RSS_MAX_KIB = 32 << 10,
	CONNECT_MAX_MS = 1000, /* p99 beside the strangers, while the machine gives time */
	HANDSHAKE_MS = 5000,   /* until a place is free again; an honest peer needs much less */
	PENDING = 256,	       /* KVCACHE_MAX_PENDING, as it is */
	SETUPS = 64, /* strangers that send all of a setup but its last byte, where there are */
	SETUPS_PENDING = 16, /* places */
};

static bool is_long; /* each load at full size, for 10 s */

/* ---------------------------------------------------------------- what it costs */

/* ---------------------------------------------------------------- strangers */

struct noise_config {
	uint32_t port;
	size_t bytes; /* of a hello that an idle one sends; 0: silent */
	bool garbage;
};

/* From 127.0.0.`host`. */
static int knock_from(uint32_t host, uint32_t port, const void *bytes, size_t len)
{
	struct sockaddr_in from = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl((127u << 24) + host) };
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_port = htons((uint16_t)port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

	bind(fd, (struct sockaddr *)&from, sizeof(from));
	connect(fd, (struct sockaddr *)&sa, sizeof(sa));
	if (len)
		send(fd, bytes, len, MSG_NOSIGNAL);
	return fd;
}

static int knock(uint32_t port, const void *bytes, size_t len)
{
	return knock_from(1, port, bytes, len);
}

static uint8_t hello[1024]; /* of an honest engine, as it went over the wire */
static size_t hello_len;

/* Listens in an engine's stead, once, and keeps what the one that connects sends. */
static int record_hello(void **state)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), got;
	socklen_t len = sizeof(sa);
	struct kv_peer *peer;
	struct tiny t;
	ssize_t n;

	assert_int_equal(bind(fd, (struct sockaddr *)&sa, len) || listen(fd, 1), 0);
	assert_int_equal(getsockname(fd, (struct sockaddr *)&sa, &len), 0);
	tiny_open(&t, NULL);
	assert_int_equal(kv_connect(t.engine, NULL, ntohs(sa.sin_port), slow_ms(1000), &peer, NULL),
			 KV_ERR_TIMEOUT);
	got = accept(fd, NULL, NULL);
	n = recv(got, hello, sizeof(hello), 0);
	assert_true(n > FRAME_HEADER);
	hello_len = (size_t)n;
	close(got);
	close(fd);
	kv_engine_close(t.engine);
	return 0;
}

/* The engine has closed it; what it said before is read away. */
static bool is_gone(int fd)
{
	char bytes[512];
	ssize_t n;

	do
		n = recv(fd, bytes, sizeof(bytes), MSG_DONTWAIT);
	while (n > 0);
	return !n || (errno != EAGAIN && errno != ENOTCONN);
}

/* Keeps IDLE strangers there: each that was sent away comes again, up to 1,000 in a second. */
static int noise(int fd, const void *arg)
{
	static const char http[] = "GET / HTTP/1.1\r\n\r\n";
	const struct noise_config *config = arg;
	static int idle[IDLE], last[256];
	struct pollfd parent = { .fd = fd, .events = POLLIN };
	uint64_t ticks = 0;
	int64_t begun;

	for (int i = 0; i < IDLE; i++)
		idle[i] = knock(config->port, hello, config->bytes);
	for (int i = 0; i < 256; i++)
		last[i] = -1;
	child_send(fd, "r", 1);
	begun = kv_now_ns();
	while (!poll(&parent, 1, 1)) {
		uint64_t due = (uint64_t)(kv_now_ns() - begun) * GARBAGE_PER_S / 1000000000;

		for (; ticks < due; ticks++) {
			int i = (int)(ticks % IDLE), g = (int)(ticks % 256);

			if (is_gone(idle[i])) {
				close(idle[i]);
				idle[i] = knock(config->port, hello, config->bytes);
			}
			if (!config->garbage)
				continue;
			close(last[g]);
			last[g] = knock(config->port, http, sizeof(http) - 1);
		}
	}
	return 0;
}

/* ------------------------------------------------------------- honest peers, one after another */

struct load {
	const char *what;
	size_t bytes; /* of a hello, that each stranger sends */
	bool garbage; /* and others beside them */
	int connects; /* of honest peers, at least */
	int64_t p99_ms;
};

static int by_size(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

static void report(const char *what, const int64_t *ns, int n)
{
	printf("%s: %d connects, median %.1f ms, p99 %.1f ms, most %.1f ms\n", what, n,
	       (double)ns[n / 2] / 1e6, (double)ns[n * 99 / 100] / 1e6, (double)ns[n - 1] / 1e6);
}

static void connects_are_quick(const struct load *load, uint32_t port)
{
	enum { MOST = 5000 };
	static int64_t ns[MOST], bar[MOST];
	int64_t end = kv_deadline_ns(is_long ? 10000 : 500);
	struct tiny t;
	int n = 0;

	tiny_open(&t, NULL);
	for (; n < MOST && (n < load->connects || kv_now_ns() < end); n++) {
		int64_t begun = kv_now_ns();
		struct bar since = bar_begin();
		struct kv_peer *peer;
		struct kv_error err;

		ok(kv_connect(t.engine, NULL, port, RIG_TIMEOUT_MS, &peer, &err), &err);
		ns[n] = kv_now_ns() - begun;
		bar[n] = bar_ms(since);
		ok(kv_peer_close(peer, RIG_TIMEOUT_MS, &err), &err);
		poll(NULL, 0, 5);
	}
	kv_engine_close(t.engine);
	qsort(ns, (size_t)n, sizeof(ns[0]), by_size);
	qsort(bar, (size_t)n, sizeof(bar[0]), by_size);
	report(load->what, ns, n);
	assert_in_range(bar[n * 99 / 100], 0, slow_ms(load->p99_ms) * BAR_FACTOR);
}

static void beside_strangers(const struct load *load)
{
	char handshake[64];
	struct server_config config = { .options = { slow_setting(handshake, "KVCACHE_HANDSHAKE_MS",
								  HANDSHAKE_MS) } };
	struct noise_config strangers = { .bytes = load->bytes, .garbage = load->garbage };
	struct child engine, crowd, other;
	struct kv_stats stats;
	long before, grown;
	uint32_t port;
	char ready;
	int ret, fds;

	strangers.port = start_server(&engine, &config);
	port = start_server(&other, &config);
	before = resident_kib(engine.pid);
	fds = process_entries(engine.pid, "fd");
	child_start(&crowd, noise, &strangers);
	child_receive(crowd.fd, &ready, 1);
	connects_are_quick(load, strangers.port);
	/* What the engine connects to itself does not wait for its strangers. */
	child_send(engine.fd, "c", 1);
	child_send(engine.fd, &port, sizeof(port));
	child_receive(engine.fd, &ret, sizeof(ret));
	assert_int_equal(ret, 0);
	grown = resident_kib(engine.pid) - before;
	fds = process_entries(engine.pid, "fd") - fds;
	printf("%s: the engine's memory grew by %ld KiB, it has %d descriptors more\n", load->what,
	       grown, fds);
#ifndef __SANITIZE_ADDRESS__ /* which keeps what was freed */
	assert_true(grown < RSS_MAX_KIB);
#endif
	/* One for each that waits, and four for each whose handshake has begun. */
	assert_in_range(fds, 1, load->bytes == hello_len ? 5 * PENDING + 8 : PENDING + 8);
	stats = stats_of(&engine);
	assert_true(stats.rejected_limit); /* they were there */
	assert_true(!load->garbage || stats.rejected_garbage >= GARBAGE_PER_S / 2);
	child_send(crowd.fd, "q", 1);
	assert_int_equal(child_join(&crowd), 0);
	child_send(engine.fd, "q", 1);
	assert_int_equal(child_join(&engine), 0);
	child_send(other.fd, "q", 1);
	assert_int_equal(child_join(&other), 0);
}

CASE(beside_1000_idle_strangers_and_1000_garbage_connections_a_second)
{
	struct load load = { "1,000 idle + 1,000 garbage/s", 0, true, 100, CONNECT_MAX_MS };

	beside_strangers(&load);
}

CASE(beside_1000_strangers_that_stop_in_the_middle_of_their_hello)
{
	struct load load = { "1,000 half hellos", FRAME_HEADER + 9, false, 100, CONNECT_MAX_MS };

	beside_strangers(&load);
}

/*
 * They speak the protocol, so they are taken for peers until their time is over. There are places
 * for KVCACHE_MAX_PENDING of them, and each is given to the next one when it is not used.
 */
CASE(beside_1000_strangers_that_stop_after_their_hello)
{
	struct load load = { "1,000 hellos and then silence", hello_len, false, 4,
			     2 * HANDSHAKE_MS };

	beside_strangers(&load);
}

/* Those of one address do not push out another one's. */
CASE(of_unfinished_handshakes_the_busiest_address_loses_its_oldest)
{
	enum { PLACES = 4 };
	struct server_config config = { .options = { "KVCACHE_HANDSHAKE_MS=6000",
						     "KVCACHE_MAX_PENDING=4" } };
	int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS);
	int alone, crowd[PLACES];
	struct child engine;
	uint32_t port;
	char byte;

	port = start_server(&engine, &config);
	alone = knock_from(2, port, hello, hello_len);
	do /* until it has a place: then it is the oldest */
		assert_true(kv_now_ns() < end);
	while (recv(alone, &byte, 1, MSG_PEEK) != 1);
	for (int i = 0; i < PLACES; i++)
		crowd[i] = knock(port, hello, hello_len);
	while (!is_gone(crowd[0])) {
		assert_true(kv_now_ns() < end);
		poll(NULL, 0, 1);
	}
	assert_false(is_gone(alone));
	for (int i = 0; i < PLACES; i++)
		close(crowd[i]);
	close(alone);
	child_send(engine.fd, "q", 1);
	assert_int_equal(child_join(&engine), 0);
}

/* Hellos, and then of the largest setup all but one byte, as often as it is let in. */
static int setups(int fd, const void *arg)
{
	static uint8_t bytes[FRAME_HEADER + FRAME_SETUP_MAX];
	const struct noise_config *config = arg;
	struct pollfd parent = { .fd = fd, .events = POLLIN };
	size_t sent[SETUPS];
	int at[SETUPS];

	frame_put_header(bytes, FRAME_SETUP, FRAME_SETUP_MAX);
	for (int i = 0; i < SETUPS; i++)
		at[i] = -1;
	while (!poll(&parent, 1, 1))
		for (int i = 0; i < SETUPS; i++) {
			ssize_t n;

			if (at[i] < 0 || is_gone(at[i])) {
				close(at[i]);
				at[i] = knock(config->port, hello, hello_len);
				sent[i] = 0;
			}
			n = send(at[i], bytes + sent[i], sizeof(bytes) - 1 - sent[i],
				 MSG_NOSIGNAL | MSG_DONTWAIT);
			sent[i] += n > 0 ? (size_t)n : 0;
		}
	return 0;
}

CASE(strangers_that_keep_back_the_end_of_their_setup_cost_one_setup_each)
{
	struct server_config config = { .options = { "KVCACHE_HANDSHAKE_MS=2000",
						     "KVCACHE_MAX_PENDING=16" } };
	const long each_kib = (FRAME_SETUP_MAX >> 10) + 128;
	struct noise_config strangers = { 0 };
	int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS), until = 0;
	struct child engine, crowd;
	long before, most = 0;

#ifdef __SANITIZE_ADDRESS__
	print_message("skipped: a sanitizer keeps what was freed\n");
	skip();
#endif
	strangers.port = start_server(&engine, &config);
	before = resident_kib(engine.pid);
	child_start(&crowd, setups, &strangers);
	/* Until it is seen that they cost something, and as long again as one of them may stay. */
	while (!until || kv_now_ns() < until) {
		long grown = resident_kib(engine.pid) - before;

		most = grown > most ? grown : most;
		if (!until && most > SETUPS_PENDING * each_kib / 2)
			until = kv_deadline_ns(500);
		assert_true(until || kv_now_ns() < end);
		poll(NULL, 0, 5);
	}
	printf("%d places, setups without an end: the engine's memory grew by %ld KiB\n",
	       SETUPS_PENDING, most);
	assert_in_range(most, 0, SETUPS_PENDING * each_kib + 4096);
	child_send(crowd.fd, "q", 1);
	assert_int_equal(child_join(&crowd), 0);
	child_send(engine.fd, "q", 1);
	assert_int_equal(child_join(&engine), 0);
}

int main(int argc, char **argv)
{
	is_long = argc > 1 && !strcmp(argv[1], "long");
	setvbuf(stdout, NULL, _IOLBF, 0);
	return run_cases(record_hello, NULL);
}
