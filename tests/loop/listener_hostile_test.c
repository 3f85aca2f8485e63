/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener_hostile_test.c -- strangers at the listener of an engine: they cost a counter and
 * nothing else, and an honest peer is served while they are there
 */
#include <arpa/inet.h>
#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <kvrail/kv.h>

#include "lib/bar.h"
#include "lib/process.h"
#include "lib/reject.h"
#include "lib/slow.h"
#include "lib/test.h"

enum { BLOCKS = 8, BYTES = 4096, IDLE = 200, WAIT_MS = 10000 };

static struct kv_engine *decode;
static struct kv_cache *target;
static uint8_t *memory;
static uint32_t port;
static int quiet_fds; /* descriptors of this process while the engine has no peer */

static struct kv_cache *make_cache(struct kv_engine *engine, uint8_t **memory_p)
{
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_tensor tensor = { .name = "k", .block_bytes = BYTES };
	struct kv_cache *cache;

	assert_int_equal(kv_alloc(engine, BLOCKS * BYTES, (void **)memory_p, NULL), 0);
	tensor.base = *memory_p;
	layout.layers = layout.tensors = 1;
	layout.blocks = BLOCKS;
	layout.tensor = &tensor;
	layout.flags = KV_CACHE_OPEN;
	assert_int_equal(kv_cache_register(engine, &layout, &cache, NULL), 0);
	return cache;
}

static int close_decode(void **state)
{
	kv_engine_close(decode);
	return 0;
}

static struct kv_stats stats_now(void)
{
	struct kv_stats stats = KV_INIT(kv_stats);

	assert_int_equal(kv_stats(decode, &stats, NULL), 0);
	return stats;
}

static int64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

static void pause_ms(int ms)
{
	struct timespec ts = { .tv_nsec = ms * 1000000L };

	nanosleep(&ts, NULL);
}

/* From 127.0.0.`host`. */
static int stranger_from(uint32_t host, uint32_t to)
{
	struct sockaddr_in from = { .sin_family = AF_INET,
				    .sin_addr.s_addr = htonl((127u << 24) + host) };
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_port = htons((uint16_t)to),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct timeval limit = { .tv_sec = slow_ms(WAIT_MS) / 1000 };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	assert_int_equal(bind(fd, (struct sockaddr *)&from, sizeof(from)), 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	return fd;
}

static int stranger(void)
{
	return stranger_from(1, port);
}

/* Returns when the engine has closed the connection; no byte came back. */
static void await_close(int fd)
{
	uint8_t byte;

	assert_true(recv(fd, &byte, 1, 0) <= 0);
	close(fd);
}

/* A peer with a cache of its own connects, writes one block, and leaves. */
static void an_honest_write(uint8_t value)
{
	struct kv_engine *prefill;
	struct kv_cache *source;
	struct kv_peer *peer;
	struct kv_error err;
	uint8_t *from;
	struct bar begun = bar_begin();

	assert_int_equal(kv_engine_open(NULL, &prefill, NULL), 0);
	source = make_cache(prefill, &from);
	memset(from + 2 * BYTES, value, BYTES);
	assert_int_equal(kv_connect(prefill, NULL, port, slow_ms(WAIT_MS), &peer, &err), 0);
	assert_int_equal(kv_write_blocks(peer, source, (struct kv_layers){ 0, 0 }, (int64_t[]){ 2 },
					 (int64_t[]){ 5 }, 1, NULL, &err),
			 0);
	for (int i = 0; i < BYTES; i++)
		assert_int_equal(memory[5 * BYTES + i], value);
	for (int i = 0; i < BYTES; i++)
		assert_int_equal(memory[4 * BYTES + i] | memory[6 * BYTES + i], 0);
	/* Below one handshake's deadline: nobody waits behind a stranger, let alone behind 200. */
	assert_true(bar_holds(begun, 2500, "an honest write"));
	kv_engine_close(prefill);
}

static int open_decode(void **state)
{
	char handshake[64];
	const char *const options[] = { handshake, NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);

	slow_setting(handshake, "KVCACHE_HANDSHAKE_MS", 3000);
	config.options = options;
	config.arrivals_off = 1; /* so that peers which have left are the engine's to free */
	assert_int_equal(kv_engine_open(&config, &decode, NULL), 0);
	target = make_cache(decode, &memory);
	assert_int_equal(kv_listen(decode, NULL, 0, &port, NULL), 0);
	an_honest_write(0x01); /* librdmacm keeps the devices open from its first use on */
	/* Its connection is closed a moment after it has gone. */
	for (int same = 0; same < 50; same = count_descriptors() == quiet_fds ? same + 1 : 0) {
		quiet_fds = count_descriptors();
		pause_ms(20);
	}
	return 0;
}

static void settle(void)
{
	for (int64_t end = now_ms() + slow_ms(WAIT_MS);
	     count_descriptors() != quiet_fds && now_ms() < end;)
		pause_ms(5);
	assert_int_equal(count_descriptors(), quiet_fds);
}

CASE(garbage_is_counted_and_forgotten)
{
	static const char http[] = "GET / HTTP/1.1\r\nHost: decode\r\n\r\n";
	uint8_t *noise = malloc(100 * 1024);
	uint64_t before = stats_now().rejected_garbage;
	int fd;

	for (uint32_t i = 0; i < 100 * 1024; i++)
		noise[i] = (uint8_t)(i * 2654435761u >> 11);
	for (int round = 0; round < 20; round++) {
		fd = stranger();
		send(fd, noise, 100 * 1024, MSG_NOSIGNAL | MSG_DONTWAIT);
		await_close(fd);
		fd = stranger();
		send(fd, http, sizeof(http) - 1, MSG_NOSIGNAL);
		await_close(fd);
	}
	free(noise);
	settle();
	assert_int_equal(stats_now().rejected_garbage - before, 40);
	assert_int_equal(stats_now().peers_now, 0);
	an_honest_write(0x11);
	settle();
}

CASE(idle_sockets_delay_nobody_and_end_at_the_deadline)
{
	int fd[IDLE];
	long before_kib, grown_kib;
	struct kv_stats before = stats_now();

	before_kib = resident_kib(getpid());
	for (int i = 0; i < IDLE; i++)
		fd[i] = stranger();
	an_honest_write(0x22); /* while they all wait */
	grown_kib = resident_kib(getpid()) - before_kib;
	/* 4 KiB each before a hello, and what the honest peer needs for a moment. */
	assert_true(grown_kib < 16 * 1024);
	for (int i = 0; i < IDLE; i++)
		await_close(fd[i]);
	settle();
	assert_int_equal(stats_now().rejected_timeout - before.rejected_timeout, IDLE);
	assert_int_equal(stats_now().peers_now, 0);
	an_honest_write(0x33);
	settle();
}

/*
 * Not even the reserved one can be had again: the listener stays readable and nobody can be taken
 * off it.
 */
CASE(without_a_descriptor_the_engine_rests_and_serves_who_waited)
{
	enum { REST_MS = 500 };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_port = htons((uint16_t)port),
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	struct kv_stats before = stats_now(), after;
	int64_t begun = now_ms();
	struct rlimit old, none;

	getrlimit(RLIMIT_NOFILE, &old);
	none = old;
	none.rlim_cur = 3;
	setrlimit(RLIMIT_NOFILE, &none);
	assert_int_equal(connect(fd, (struct sockaddr *)&sa, sizeof(sa)), 0);
	pause_ms(REST_MS);
	for (int64_t end = begun + slow_ms(WAIT_MS); now_ms() < end; pause_ms(1)) {
		after = stats_now();
		if (after.rejected_limit > before.rejected_limit)
			break;
	}
	setrlimit(RLIMIT_NOFILE, &old);
	assert_in_range(after.rejected_limit - before.rejected_limit, 1, (now_ms() - begun) / 50);
	send(fd, "GET", 3, MSG_NOSIGNAL);
	await_close(fd);
	assert_int_equal(stats_now().rejected_garbage - before.rejected_garbage, 1);
	an_honest_write(0x44);
	settle();
}

/* ---------------------------------------------------------------- more than may wait */

/* One place is always made free for the next. */
enum { PLACES = 16, CROWD = 40, GONE = CROWD + 1 - (PLACES - 1), DESCRIPTORS = 4 * PLACES };

static void still_waits(int fd)
{
	uint8_t byte;

	assert_int_equal(recv(fd, &byte, 1, MSG_DONTWAIT), -1);
	assert_int_equal(errno, EAGAIN);
	close(fd);
}

/* An engine with PLACES for strangers: by the option, or as a quarter of its descriptors. */
static struct kv_engine *open_small(bool by_option, uint32_t *port_p)
{
	const char *const options[] = { "KVCACHE_HANDSHAKE_MS=60000",
					by_option ? "KVCACHE_MAX_PENDING=16" : NULL, NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_engine *engine;
	struct rlimit old, low;

	config.options = options;
	assert_int_equal(kv_engine_open(&config, &engine, NULL), 0);
	getrlimit(RLIMIT_NOFILE, &old);
	low = old;
	low.rlim_cur = DESCRIPTORS;
	if (!by_option)
		setrlimit(RLIMIT_NOFILE, &low);
	assert_int_equal(kv_listen(engine, NULL, 0, port_p, NULL), 0);
	setrlimit(RLIMIT_NOFILE, &old);
	return engine;
}

CASE(of_too_many_the_busiest_address_loses_its_oldest)
{
	for (int by_option = 0; by_option < 2; by_option++) {
		struct kv_stats stats = KV_INIT(kv_stats);
		int64_t end = now_ms() + slow_ms(WAIT_MS);
		struct kv_engine *engine;
		int fd[CROWD], alone, before;
		uint32_t to;

		engine = open_small(by_option, &to);
		before = count_descriptors();
		alone = stranger_from(2, to); /* the oldest of all, and not sent away */
		for (int i = 0; i < CROWD; i++)
			fd[i] = stranger_from(1, to);
		while (stats.rejected_limit < GONE) {
			assert_true(now_ms() < end);
			pause_ms(1);
			assert_int_equal(kv_stats(engine, &stats, NULL), 0);
		}
		assert_int_equal(stats.rejected_limit, GONE);
		assert_in_range(count_descriptors() - before - CROWD - 1, 0, PLACES);
		for (int i = 0; i < GONE; i++) {
			assert_int_equal(code_of_reject(fd[i]), KV_ERR_BUSY);
			close(fd[i]);
		}
		for (int i = GONE; i < CROWD; i++)
			still_waits(fd[i]);
		still_waits(alone);
		kv_engine_close(engine);
	}
}

int main(void)
{
	return run_cases(open_decode, close_decode);
}
