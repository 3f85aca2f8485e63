/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tcp_call.c -- what one block costs until its write is acknowledged, beside a bare echo of the
 * same bytes over a TCP socket, and how often a thread of either end slept for it
 *
 *   tcp_call [-t TRANSPORT] [-n CALLS] [-r ROUNDS] [BYTES]
 *
 * Two processes. A round is CALLS echoes and CALLS kv_write_blocks of one block, in turns; printed
 * is the median of a round's medians, and of their ratios. The echo's two ends sleep in recv; the
 * engine waits as KVCACHE_SPIN_US and KVCACHE_SERVICE_SPIN_US say. Sleeps are voluntary switches of
 * the calling thread and of the engines' own, while blocks are written.
 */
#include <dirent.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <signal.h>
#include <unistd.h>

#include <kvrail/kv.h>

#include "results.h"
#include "util.h"

enum { BLOCKS = 64, ROUNDS_MAX = 99, CALLS_MAX = 10000 };

static size_t bytes = 4096;
static pid_t other;
static long sleeps[3]; /* writer's thread, its service thread, the receiver's */
static int calls = 2000, rounds = 9;
static char transport[64] = "KVCACHE_TRANSPORT=tcp";

static void need(int ret, const struct kv_error *err)
{
	char line[768];

	if (!ret)
		return;
	kv_error_format(err, line, sizeof(line));
	fprintf(stderr, "tcp_call: %s\n", line);
	exit(1);
}

static void sure(int good, const char *what)
{
	if (good)
		return;
	perror(what);
	exit(1);
}

struct side {
	struct kv_engine *engine;
	struct kv_cache *cache;
	struct kv_error err;
};

static void open_side(struct side *s)
{
	const char *const options[] = { transport, NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_tensor tensor = { .name = "k", .block_bytes = bytes };
	struct kv_layout layout = KV_INIT(kv_layout);
	void *memory;

	config.options = options;
	need(kv_engine_open(&config, &s->engine, &s->err), &s->err);
	need(kv_alloc(s->engine, bytes * BLOCKS, &memory, &s->err), &s->err);
	memset(memory, 0, bytes * BLOCKS);
	tensor.base = memory;
	layout.layers = layout.tensors = 1;
	layout.blocks = BLOCKS;
	layout.tensor = &tensor;
	layout.flags = KV_CACHE_OPEN;
	need(kv_cache_register(s->engine, &layout, &s->cache, &s->err), &s->err);
}

static int move_exactly(int fd, uint8_t *buf, int out)
{
	for (size_t done = 0; done < bytes;) {
		ssize_t n = out ? send(fd, buf + done, bytes - done, MSG_NOSIGNAL)
				: recv(fd, buf + done, bytes - done, 0);

		if (n <= 0)
			return -1;
		done += (size_t)n;
	}
	return 0;
}

/* The other process: an engine that serves itself, and an echo. */
static void serve(int listener, int to)
{
	uint8_t *buf = malloc(bytes);
	struct side s;
	uint32_t port;
	int fd, on = 1;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	open_side(&s);
	need(kv_listen(s.engine, NULL, 0, &port, &s.err), &s.err);
	sure(write(to, &port, sizeof(port)) == sizeof(port), "write");
	fd = accept(listener, NULL, NULL);
	sure(buf && fd >= 0, "accept");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	while (!move_exactly(fd, buf, 0) && !move_exactly(fd, buf, 1)) {
		struct kv_arrival arrival[64];

		while (kv_poll_arrivals(s.engine, arrival, 64, NULL) > 0)
			; /* or the writer would wait for room once */
	}
	kv_engine_close(s.engine);
	free(buf);
	_exit(0);
}

static double now_us(void)
{
	return (double)now_ns() / 1e3;
}

static double echo(int fd, uint8_t *buf, double *us)
{
	for (int i = 0; i < calls; i++) {
		double t = now_us();

		sure(!move_exactly(fd, buf, 1) && !move_exactly(fd, buf, 0), "echo");
		us[i] = now_us() - t;
	}
	return results_median(us, (uint32_t)calls);
}

/* Of the service thread of a process. */
static long service_sleeps(pid_t pid)
{
	char path[300], line[128];
	struct dirent *entry;
	long sum = 0, n;
	DIR *tasks;

	snprintf(path, sizeof(path), "/proc/%d/task", (int)pid);
	tasks = opendir(path);
	sure(tasks != NULL, "the threads of a process");
	while ((entry = readdir(tasks))) {
		bool service = false;
		FILE *file;

		snprintf(path, sizeof(path), "/proc/%d/task/%s/status", (int)pid, entry->d_name);
		file = fopen(path, "re");
		while (file && fgets(line, sizeof(line), file))
			if (!strcmp(line, "Name:\tkvrail\n"))
				service = true;
			else if (service && sscanf(line, "voluntary_ctxt_switches: %ld", &n) == 1)
				sum += n;
		if (file)
			fclose(file);
	}
	closedir(tasks);
	return sum;
}

static void count_sleeps(int sign)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	sleeps[0] += sign * usage.ru_nvcsw;
	sleeps[1] += sign * service_sleeps(getpid());
	sleeps[2] += sign * service_sleeps(other);
}

static double block(struct side *s, struct kv_peer *peer, double *us)
{
	const struct kv_layers first = { 0, 1 };

	count_sleeps(-1);
	for (int i = 0; i < calls; i++) {
		int64_t id = i % BLOCKS;
		double t = now_us();

		need(kv_write_blocks(peer, s->cache, first, &id, &id, 1, NULL, &s->err), &s->err);
		us[i] = now_us() - t;
	}
	count_sleeps(1);
	return results_median(us, (uint32_t)calls);
}

static double per_call(int which)
{
	return (double)sleeps[which] / calls / rounds;
}

static void measure(int fd, struct side *s, struct kv_peer *peer)
{
	static double us[CALLS_MAX];
	double echoes[ROUNDS_MAX] = { 0 }, blocks[ROUNDS_MAX] = { 0 }, ratio[ROUNDS_MAX] = { 0 };
	uint8_t *buf = calloc(1, bytes);

	sure(buf != NULL, "calloc");
	echo(fd, buf, us); /* the first warms up */
	block(s, peer, us);
	memset(sleeps, 0, sizeof(sleeps));
	for (int r = 0; r < rounds; r++) {
		if (r % 2)
			blocks[r] = block(s, peer, us);
		echoes[r] = echo(fd, buf, us);
		if (!(r % 2))
			blocks[r] = block(s, peer, us);
		ratio[r] = blocks[r] / echoes[r];
	}
	printf("# %d rounds of %d calls; medians, microseconds\n"
	       "#                               sleeps a call: writer's, its service's, receiver's\n"
	       "#  bytes     echo    acked  ratio   caller service service\n"
	       "%8zu %8.2f %8.2f %6.2f   %6.2f %7.2f %7.2f\n",
	       rounds, calls, bytes, results_median(echoes, (uint32_t)rounds),
	       results_median(blocks, (uint32_t)rounds), results_median(ratio, (uint32_t)rounds),
	       per_call(0), per_call(1), per_call(2));
	free(buf);
}

int main(int argc, char **argv)
{
	struct sockaddr_in sa = { .sin_family = AF_INET,
				  .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof(sa);
	int listener, fd, pipes[2], c, on = 1;
	struct kv_peer *peer;
	struct side s;
	uint32_t port;
	pid_t pid;

	while ((c = getopt(argc, argv, "n:r:t:")) != -1)
		if (c == 'n')
			calls = (int)strtol(optarg, NULL, 10);
		else if (c == 'r')
			rounds = (int)strtol(optarg, NULL, 10);
		else if (c == 't')
			snprintf(transport, sizeof(transport), "KVCACHE_TRANSPORT=%s", optarg);
		else
			return 2;
	if (optind < argc)
		bytes = strtoul(argv[optind], NULL, 10);
	if (calls < 1 || calls > CALLS_MAX || rounds < 1 || rounds > ROUNDS_MAX || !bytes) {
		fprintf(stderr, "usage: tcp_call [-t TRANSPORT] [-n CALLS] [-r ROUNDS] [BYTES]\n");
		return 2;
	}
	listener = socket(AF_INET, SOCK_STREAM, 0);
	sure(listener >= 0 && !bind(listener, (struct sockaddr *)&sa, len) &&
		     !listen(listener, 1) && !getsockname(listener, (struct sockaddr *)&sa, &len) &&
		     !pipe(pipes),
	     "listen");
	pid = other = fork();
	if (!pid)
		serve(listener, pipes[1]);
	open_side(&s);
	sure(read(pipes[0], &port, sizeof(port)) == sizeof(port), "the other process");
	need(kv_connect(s.engine, NULL, port, 10000, &peer, &s.err), &s.err);
	fd = socket(AF_INET, SOCK_STREAM, 0);
	sure(fd >= 0 && !connect(fd, (struct sockaddr *)&sa, len), "connect");
	setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	measure(fd, &s, peer);
	close(fd);
	need(kv_peer_close(peer, 5000, &s.err), &s.err);
	kv_engine_close(s.engine);
	waitpid(pid, NULL, 0);
	return 0;
}
