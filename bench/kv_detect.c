/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_detect.c -- how soon the loss of a peer of this host is known, and a new one is of use
 *
 * usage: kv_detect [-k KILLS] [-r RESTARTS] [-s STOPS] [-J FILE] [--bars]
 *
 * Each peer is a process of its own, killed at a random moment. What must come is checked each time
 * (the code, the lease that is named, that nothing is left in flight); how fast it must be only
 * with --bars: the figures of docs/benchmarks.md, on a machine that does nothing else.
 */
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <kvrail/kv.h>

#include "results.h"

enum { BLOCKS = 64, BYTES = 4096, N = 8, OPS = 8, LONG_MS = 20000, MOMENT_US = 2000 };

static const int64_t ids[N] = { 1, 2, 3, 40, 41, 50, 60, 0 };
static const struct kv_layers all = { 0, 0 };
static struct kv_error err;

#define MUST(what)                                                                            \
	do {                                                                                  \
		if (!(what)) {                                                                \
			fprintf(stderr, "kv_detect.c:%d: not so: %s (%s)\n", __LINE__, #what, \
				err.message);                                                 \
			exit(1);                                                              \
		}                                                                             \
	} while (0)

static int64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* ---------------------------------------------------------------- an engine with a cache */

struct node {
	struct kv_engine *engine;
	struct kv_cache *cache;
	struct kv_peer *peer;
};

static struct node node_open(uint32_t flags, const char *const *options)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_tensor tensor = { .name = "k", .block_bytes = BYTES };
	struct kv_layout layout = KV_INIT(kv_layout);
	struct node node = { 0 };

	config.options = options;
	MUST(!kv_engine_open(&config, &node.engine, &err));
	MUST(!kv_alloc(node.engine, BLOCKS * BYTES, &tensor.base, &err));
	layout.layers = layout.tensors = 1;
	layout.blocks = BLOCKS;
	layout.tensor = &tensor;
	layout.flags = flags;
	MUST(!kv_cache_register(node.engine, &layout, &node.cache, &err));
	return node;
}

/* Sleeps until an arrival of this kind comes. */
static struct kv_arrival await(struct node *node, int kind)
{
	struct pollfd fd = { .fd = kv_arrivals_fd(node->engine), .events = POLLIN };
	struct kv_arrival arrival;

	for (;;) {
		int n = kv_poll_arrivals(node->engine, &arrival, 1, &err);

		MUST(n >= 0);
		if (n && arrival.kind == kind)
			return arrival;
		if (!n)
			MUST(poll(&fd, 1, -1) == 1);
	}
}

static void lose(struct node *node)
{
	struct kv_stats stats = KV_INIT(kv_stats);

	MUST(!kv_peer_close(node->peer, LONG_MS, &err));
	MUST(!kv_stats(node->engine, &stats, &err));
	MUST(!stats.in_flight);
}

/* ---------------------------------------------------------------- peers: processes */

struct listening {
	int64_t at_ns; /* when it listened */
	uint32_t port;
};

/* Tells where it listens, and serves until it is killed. */
static int receiver(int fd)
{
	struct node node = node_open(KV_CACHE_OPEN, NULL);
	struct listening l = { 0 };

	MUST(recv(fd, &l.port, sizeof(l.port), 0) == sizeof(l.port));
	MUST(!kv_listen(node.engine, NULL, l.port, &l.port, &err));
	l.at_ns = now_ns();
	MUST(send(fd, &l, sizeof(l), MSG_NOSIGNAL) == sizeof(l));
	for (;;)
		await(&node, KV_ARRIVAL_BLOCKS);
}

/* Writes without end under the lease that it is given. */
static int writer(int fd)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct node node = node_open(0, NULL);
	uint32_t port;

	MUST(recv(fd, &port, sizeof(port), 0) == sizeof(port));
	MUST(!kv_connect(node.engine, NULL, port, LONG_MS, &node.peer, &err));
	MUST(recv(fd, &opts.lease, sizeof(opts.lease), 0) == sizeof(opts.lease));
	for (bool said = false;; said = true) {
		MUST(!kv_write_blocks(node.peer, node.cache, all, ids, ids, N, &opts, &err));
		if (!said)
			MUST(send(fd, "", 1, MSG_NOSIGNAL) == 1);
	}
}

struct peer {
	pid_t pid;
	int fd;
};

static struct peer start(const char *role)
{
	extern char **environ;
	int fds[2];
	char fd[16];
	char *argv[] = { "kv_detect", "--as", (char *)(uintptr_t)role, fd, NULL };
	struct peer peer;

	MUST(!socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
	snprintf(fd, sizeof(fd), "%d", fds[1]);
	MUST(!posix_spawn(&peer.pid, "/proc/self/exe", NULL, NULL, argv, environ));
	close(fds[1]);
	peer.fd = fds[0];
	return peer;
}

static struct listening start_receiver(struct peer *peer, uint32_t port)
{
	struct listening l;

	*peer = start("receiver");
	MUST(send(peer->fd, &port, sizeof(port), MSG_NOSIGNAL) == sizeof(port));
	MUST(recv(peer->fd, &l, sizeof(l), MSG_WAITALL) == sizeof(l));
	return l;
}

static void bury(struct peer *peer)
{
	kill(peer->pid, SIGKILL);
	waitpid(peer->pid, NULL, 0);
	close(peer->fd);
}

/* Kills it within the next moments. */
struct killer {
	pthread_t thread;
	pid_t pid;
	int64_t at_ns;
};

static void *kill_it(void *arg)
{
	struct killer *killer = arg;

	usleep((useconds_t)(rand() % MOMENT_US)); /* a moment nobody knows */
	killer->at_ns = now_ns();
	kill(killer->pid, SIGKILL);
	return NULL;
}

static void kill_soon(struct killer *killer, pid_t pid)
{
	killer->pid = pid;
	MUST(!pthread_create(&killer->thread, NULL, kill_it, killer));
}

static int64_t since_kill(struct killer *killer)
{
	int64_t now = now_ns();

	pthread_join(killer->thread, NULL);
	return now - killer->at_ns;
}

/* ---------------------------------------------------------------- scenes: nanoseconds each */

static void connect_to(struct node *node, uint32_t port)
{
	MUST(!kv_connect(node->engine, NULL, port, LONG_MS, &node->peer, &err));
}

static int64_t receiver_dies_in_flight(struct node *node)
{
	struct kv_op *op[OPS];
	struct killer killer;
	struct peer peer;
	int64_t took;

	connect_to(node, start_receiver(&peer, 0).port);
	kill(peer.pid, SIGSTOP); /* it acknowledges nothing any more */
	MUST(waitpid(peer.pid, NULL, WUNTRACED) == peer.pid);
	for (int i = 0; i < OPS; i++)
		MUST(!kv_write_blocks_async(node->peer, node->cache, all, ids, ids, N, NULL, &op[i],
					    &err));
	kill_soon(&killer, peer.pid);
	for (int i = 0; i < OPS; i++)
		MUST(kv_wait(op[i], KV_ACKED, LONG_MS, &err) == KV_ERR_PEER_LOST);
	took = since_kill(&killer);
	for (int i = 0; i < OPS; i++)
		MUST(!kv_op_free(op[i], &err));
	lose(node);
	bury(&peer);
	return took;
}

static int64_t receiver_dies_idle(struct node *node)
{
	struct killer killer;
	struct peer peer;
	int64_t took;

	connect_to(node, start_receiver(&peer, 0).port);
	kill_soon(&killer, peer.pid);
	await(node, KV_ARRIVAL_PEER_LOST);
	took = since_kill(&killer);
	MUST(kv_write_blocks(node->peer, node->cache, all, ids, ids, N, NULL, &err) ==
	     KV_ERR_PEER_LOST);
	lose(node);
	bury(&peer);
	return took;
}

static uint32_t our_port;

/* The receiver is this process: it gets to know the lease, and then the loss. */
static int64_t writer_dies(struct node *node)
{
	struct peer peer = start("writer");
	struct kv_arrival unfinished;
	struct kv_lease *lease;
	struct killer killer;
	int64_t took;
	uint64_t id;
	char byte;

	MUST(send(peer.fd, &our_port, sizeof(our_port), MSG_NOSIGNAL) == sizeof(our_port));
	node->peer = await(node, KV_ARRIVAL_PEER_UP).peer;
	MUST(!kv_blocks_open(node->peer, node->cache, ids, N, 7, LONG_MS, &lease, &err));
	id = kv_lease_id(lease);
	MUST(send(peer.fd, &id, sizeof(id), MSG_NOSIGNAL) == sizeof(id));
	MUST(recv(peer.fd, &byte, 1, 0) == 1);
	kill_soon(&killer, peer.pid);
	unfinished = await(node, KV_ARRIVAL_UNFINISHED);
	await(node, KV_ARRIVAL_PEER_LOST);
	took = since_kill(&killer);
	MUST(unfinished.lease == id && unfinished.tag == 7 && unfinished.blocks == N);
	MUST(!kv_revoke(lease, LONG_MS, &err));
	lose(node);
	bury(&peer);
	return took;
}

/* From the listening of the one that came back to the end of a write to it. */
static int64_t receiver_comes_back(struct node *node)
{
	struct listening first, again;
	struct peer peer;
	int64_t took;

	first = start_receiver(&peer, 0);
	connect_to(node, first.port);
	MUST(!kv_write_blocks(node->peer, node->cache, all, ids, ids, N, NULL, &err));
	bury(&peer);
	await(node, KV_ARRIVAL_PEER_LOST);
	lose(node);
	/* As an application that does not know when it is back: it asks each millisecond. */
	peer = start("receiver");
	MUST(send(peer.fd, &first.port, sizeof(first.port), MSG_NOSIGNAL) == sizeof(first.port));
	while (kv_connect(node->engine, NULL, first.port, LONG_MS, &node->peer, &err)) {
		MUST(err.code == KV_ERR_PEER_LOST);
		poll(NULL, 0, 1);
	}
	MUST(!kv_write_blocks(node->peer, node->cache, all, ids, ids, N, NULL, &err));
	took = now_ns();
	MUST(recv(peer.fd, &again, sizeof(again), MSG_WAITALL) == sizeof(again));
	bury(&peer);
	await(node, KV_ARRIVAL_PEER_LOST);
	lose(node);
	return took - again.at_ns;
}

static int64_t receiver_stops(struct node *node)
{
	struct peer peer;
	int64_t begun;

	connect_to(node, start_receiver(&peer, 0).port);
	usleep((useconds_t)(rand() % 200000)); /* anywhere between two heartbeats */
	begun = now_ns();
	kill(peer.pid, SIGSTOP);
	await(node, KV_ARRIVAL_PEER_LOST);
	begun = now_ns() - begun;
	bury(&peer);
	lose(node);
	return begun;
}

/* ---------------------------------------------------------------- the table */

static int by_size(const void *a, const void *b)
{
	int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;

	return (x > y) - (x < y);
}

static const struct scene {
	const char *name;
	int64_t (*play)(struct node *node);
	int kind;	       /* which number of times */
	double p50_ms, p99_ms; /* --bars */
} scenes[] = {
	{ "receiver killed, writes in flight", receiver_dies_in_flight, 'k', 1, 10 },
	{ "receiver killed, writer idle", receiver_dies_idle, 'k', 1, 10 },
	{ "writer killed under a lease", writer_dies, 'k', 1, 10 },
	{ "receiver back, to the first write", receiver_comes_back, 'r', 100, 100 },
	{ "receiver stopped, heartbeat of 200 ms", receiver_stops, 's', 1200, 1200 },
};

static const struct results_column columns[] = {
	{ "what happens", "", "what", -38, 0 }, { "times", "", "times", 6, 0 },
	{ "p50", "ms", "p50_ms", 10, 3 },	{ "p99", "ms", "p99_ms", 10, 3 },
	{ "most", "ms", "most_ms", 10, 3 },
};

/* false: over a bar. */
static bool play(const struct scene *scene, int times, struct results *r)
{
	static const char *const options[] = { "KVCACHE_HEARTBEAT_MS=200", NULL };
	struct node node = node_open(0, scene->kind == 's' ? options : NULL);
	int64_t *took = calloc((size_t)times, sizeof(*took));
	double p50, p99;

	MUST(took);
	MUST(!kv_listen(node.engine, NULL, 0, &our_port, &err));
	for (int i = 0; i < times; i++)
		took[i] = scene->play(&node);
	kv_engine_close(node.engine);
	qsort(took, (size_t)times, sizeof(*took), by_size);
	p50 = (double)took[times / 2] / 1e6;
	p99 = (double)took[(times * 99 - 1) / 100] / 1e6;
	results_cell_text(r, scene->name);
	results_cell(r, times);
	results_cell(r, p50);
	results_cell(r, p99);
	results_cell(r, (double)took[times - 1] / 1e6);
	free(took);
	return p50 <= scene->p50_ms && p99 <= scene->p99_ms;
}

int main(int argc, char **argv)
{
	static const struct option options[] = { { "kills", required_argument, NULL, 'k' },
						 { "restarts", required_argument, NULL, 'r' },
						 { "stops", required_argument, NULL, 's' },
						 { "json", required_argument, NULL, 'J' },
						 { "bars", no_argument, NULL, 'b' },
						 { NULL, 0, NULL, 0 } };
	int kills = 1000, restarts = 100, stops = 20, c;
	char *command = results_command(argc, argv);
	const char *json = NULL;
	bool bars = false, held = true;
	struct results *r;

	if (argc == 4 && !strcmp(argv[1], "--as"))
		return (*argv[2] == 'w' ? writer : receiver)((int)strtol(argv[3], NULL, 10));
	while ((c = getopt_long(argc, argv, "k:r:s:J:", options, NULL)) != -1) {
		int n = optarg ? (int)strtol(optarg, NULL, 10) : 0;

		if (c == 'J')
			json = optarg;
		else if (c == 'b')
			bars = true;
		else if (c != '?' && n >= 0)
			*(c == 'k' ? &kills : c == 'r' ? &restarts : &stops) = n;
		else
			return 2;
	}
	if (results_can_write("kv_detect", json))
		return 2;
	signal(SIGPIPE, SIG_IGN);
	r = results_new("kv_detect", command, "shm", NULL, "sleep");
	results_open(r, "settings", '{');
	results_integer(r, "kills", (uint64_t)kills);
	results_integer(r, "restarts", (uint64_t)restarts);
	results_integer(r, "stops", (uint64_t)stops);
	results_close(r);
	results_table(r, columns, sizeof(columns) / sizeof(*columns));
	for (size_t i = 0; i < sizeof(scenes) / sizeof(*scenes); i++) {
		int times = scenes[i].kind == 'k'   ? kills
			    : scenes[i].kind == 'r' ? restarts
						    : stops;

		if (times)
			held &= play(&scenes[i], times, r);
	}
	free(command);
	return results_end(r, json) || (bars && !held);
}
