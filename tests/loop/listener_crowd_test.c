/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener_crowd_test.c -- honest peers that come all at once are connected, or learn that the
 * engine is busy
 *
 * `listener_crowd_test long` has all 1,000.
 */
#include "listener_rig.h"

#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "lib/bar.h"

enum {
	CROWD = 1000, /* honest peers at once */
	CROWD_PROCESSES = 20,
	CROWD_MAX_MS = 3000,
};

static bool is_long; /* all of them */

struct crowd_config {
	uint32_t port;
	int peers;
};

struct guest {
	struct tiny t;
	uint32_t port;
	int ret;
	int64_t ns, bar_ms; /* all that passed; what the machine gave */
	struct kv_error err;
	struct kv_peer *peer;
	pthread_t thread;
};

static void *come(void *arg)
{
	struct guest *g = arg;
	int64_t begun = kv_now_ns();
	struct bar bar = bar_begin();

	g->ret = kv_connect(g->t.engine, NULL, g->port, RIG_TIMEOUT_MS, &g->peer, &g->err);
	g->ns = kv_now_ns() - begun;
	g->bar_ms = bar_ms(bar);
	return NULL;
}

struct outcome {
	int connected, busy, other;
	int64_t most_ns, most_bar_ms;
	char message[256];
};

/* A thousand engines take a busy machine a while. */
static void hear(int fd, void *p, size_t n)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	assert_int_equal(poll(&pfd, 1, (int)(10 * RIG_TIMEOUT_MS)), 1);
	child_receive(fd, p, n);
}

/* Opens its engines, waits for the word, connects them all at once, and waits for a byte. */
static int guests(int fd, const void *arg)
{
	const struct crowd_config *config = arg;
	struct guest *g = calloc((size_t)config->peers, sizeof(*g));
	struct outcome out = { 0 };
	char go;

	for (int i = 0; i < config->peers; i++) {
		tiny_open(&g[i].t, NULL);
		g[i].port = config->port;
	}
	child_send(fd, "r", 1);
	hear(fd, &go, 1);
	for (int i = 0; i < config->peers; i++)
		assert_int_equal(pthread_create(&g[i].thread, NULL, come, &g[i]), 0);
	for (int i = 0; i < config->peers; i++) {
		pthread_join(g[i].thread, NULL);
		out.connected += !g[i].ret;
		out.busy += g[i].ret == KV_ERR_BUSY;
		out.other += g[i].ret && g[i].ret != KV_ERR_BUSY;
		if (g[i].ns > out.most_ns)
			out.most_ns = g[i].ns;
		if (g[i].bar_ms > out.most_bar_ms)
			out.most_bar_ms = g[i].bar_ms;
		if (g[i].ret && (!out.message[0] || g[i].ret != KV_ERR_BUSY))
			snprintf(out.message, sizeof(out.message), "%.20s: %.200s",
				 kv_error_name(g[i].ret), g[i].err.message);
	}
	child_send(fd, &out, sizeof(out));
	hear(fd, &go, 1);
	for (int i = 0; i < config->peers; i++)
		kv_engine_close(g[i].t.engine);
	free(g);
	return 0;
}

static struct outcome come_all(uint32_t port, int peers, int processes)
{
	struct crowd_config config = { .port = port, .peers = peers / processes };
	struct outcome sum = { 0 };
	struct child child[CROWD_PROCESSES];
	char ready;

	for (int i = 0; i < processes; i++)
		child_start(&child[i], guests, &config);
	for (int i = 0; i < processes; i++)
		hear(child[i].fd, &ready, 1);
	for (int i = 0; i < processes; i++)
		child_send(child[i].fd, "g", 1);
	for (int i = 0; i < processes; i++) {
		struct outcome out;

		hear(child[i].fd, &out, sizeof(out));
		sum.connected += out.connected;
		sum.busy += out.busy;
		sum.other += out.other;
		if (out.most_ns > sum.most_ns)
			sum.most_ns = out.most_ns;
		if (out.most_bar_ms > sum.most_bar_ms)
			sum.most_bar_ms = out.most_bar_ms;
		if (out.message[0])
			memcpy(sum.message, out.message, sizeof(sum.message));
	}
	for (int i = 0; i < processes; i++)
		child_send(child[i].fd, "q", 1);
	for (int i = 0; i < processes; i++)
		assert_int_equal(child_join(&child[i]), 0);
	return sum;
}

CASE(a_thousand_honest_peers_at_once_are_all_connected)
{
	struct server_config config = { .options = { "KVCACHE_MAX_PEERS=4096" } };
	int peers = is_long ? CROWD : CROWD / 5;
	struct rlimit limit;
	struct child engine;
	struct outcome out;
	uint32_t port;

	getrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_cur < (rlim_t)peers * 6 + 200)
		peers = (int)(limit.rlim_cur - 200) / 6 / CROWD_PROCESSES * CROWD_PROCESSES;
	port = start_server(&engine, &config);
	out = come_all(port, peers, CROWD_PROCESSES);
	printf("%d peers at once: %d connected, %d busy, %d other, all after %.0f ms %s\n", peers,
	       out.connected, out.busy, out.other, (double)out.most_ns / 1e6, out.message);
	assert_int_equal(out.connected, peers);
	assert_in_range(out.most_bar_ms, 0, slow_ms(CROWD_MAX_MS) * BAR_FACTOR);
	child_send(engine.fd, "q", 1);
	assert_int_equal(child_join(&engine), 0);
}

CASE(without_descriptors_each_is_connected_or_learns_that_it_is_busy)
{
	struct server_config config = { .descriptors = 256 };
	struct child engine;
	struct outcome out;
	uint32_t port;

	port = start_server(&engine, &config);
	out = come_all(port, 200, 10);
	printf("256 descriptors, 200 peers: %d connected, %d busy, %d other (%s)\n", out.connected,
	       out.busy, out.other, out.message);
	assert_in_range(out.connected, 20, 200);
	assert_int_equal(out.other, 0);
	child_send(engine.fd, "q", 1);
	assert_int_equal(child_join(&engine), 0);
}

int main(int argc, char **argv)
{
	is_long = argc > 1 && !strcmp(argv[1], "long");
	setvbuf(stdout, NULL, _IOLBF, 0);
	return run_cases(NULL, NULL);
}
