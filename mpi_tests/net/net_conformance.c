/* SPDX-License-Identifier: Apache-2.0 */
/*
 * net_conformance.c -- runs the numbered cases of NCCL's network plugin contract against any
 * plugin, without NCCL or a GPU
 *
 * Each case runs in processes of its own (two, or one for loopback) under a deadline; one line each
 * says how it went.
 */
#include <fnmatch.h>
#include <getopt.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda.h"
#include "net_side.h"

#define CASE_MS ((int)slow_ms(180000))

struct options {
	struct net_source source;
	const char *only;
	const char *without;
	bool quick, threads;
	int gpu[2]; /* of the receiver, and of the sender; -1: none */
};

struct result {
	int verdict;
	char reason[sizeof(((struct side *)0)->reason)];
};

static void usage(FILE *to)
{
	fputs("usage: net_conformance [options] PLUGIN.so\n"
	      "  -c, --case PATTERN   only cases whose number matches (24*, may be repeated with commas)\n"
	      "  -v, --api N          take interface version N (6 to 12) instead of the newest\n"
	      "  -s, --symbol NAME    a v12 table that is not exported, such as ncclNetIb of libnccl.so.2\n"
	      "  -w, --without N=V    environment that takes every device away (case 4)\n"
	      "  -t, --threads        both sides as threads of one process, for a network that lives in one\n"
	      "  -g, --gpu R,S        GPUs of the two sides (cases 19c to 19e)\n"
	      "      --long           also what takes long or much memory\n"
	      "  -l, --list           names the cases\n"
	      "NET_LOG=1 in the environment shows what the plugin logs.\n",
	      to);
}

/* ---------------------------------------------------------------- one process of a case */

struct run {
	const struct options *o;
	const struct net_case *c;
	int sock;
	bool sender;
	struct result result;
};

static void *run_side(void *arg)
{
	struct run *run = arg;
	const struct options *o = run->o;
	struct side s = { .source = o->source,
			  .sock = run->sock,
			  .sender = run->sender,
			  .without = o->without,
			  .quick = o->quick,
			  .gpu = o->gpu[run->sender] };

	if (s.gpu >= 0 && !cuda_start(s.gpu))
		fail("--gpu", "there is no such GPU");
	run->result.verdict = side_case(&s, run->c);
	memcpy(run->result.reason, s.reason, sizeof(run->result.reason));
	return NULL;
}

/* "the other process is gone" is the second thing that went wrong */
static struct result worse_of(struct result a, struct result b)
{
	bool worse = b.verdict == FAIL ? a.verdict != FAIL : b.verdict == SKIP && a.verdict == PASS;

	if (worse || (b.verdict == a.verdict && b.reason[0] &&
		      (!a.reason[0] || strstr(a.reason, "is gone"))))
		return b;
	return a;
}

/* Both sides in one process, over a plugin whose network is inside it. */
static struct result run_threads(const struct options *o, const struct net_case *c, int pair[2])
{
	struct run receiver = { .o = o, .c = c, .sock = pair[0] };
	struct run sender = { .o = o, .c = c, .sock = pair[1], .sender = true };
	pthread_t thread;

	if (c->dies)
		return (struct result){ .verdict = SKIP, .reason = "ends a process" };
	if (pthread_create(&thread, NULL, run_side, &sender))
		return (struct result){ .verdict = FAIL, .reason = "pthread_create failed" };
	run_side(&receiver);
	pthread_join(thread, NULL);
	return worse_of(receiver.result, sender.result);
}

struct process {
	pid_t pid;
	int report;
	struct result result;
};

/* which: 0 the receiver or the only one, 1 the sender */
static void child(const struct options *o, const struct net_case *c, int pair[2], int which,
		  int report)
{
	struct run run = { .o = o, .c = c, .sock = pair[which], .sender = which };

	signal(SIGPIPE, SIG_IGN);
	if (o->threads && pair[0] >= 0) {
		run.result = run_threads(o, c, pair);
	} else {
		if (pair[1 - which] >= 0)
			close(pair[1 - which]);
		run_side(&run);
	}
	if (run.result.verdict == PASS)
		net_unload(); /* what the library has to say against that is a failure */
	_exit(write(report, &run.result, sizeof(run.result)) == sizeof(run.result) ? 0 : 1);
}

static int start(const struct options *o, const struct net_case *c, int pair[2], int which,
		 struct process *p)
{
	int fd[2];

	if (pipe(fd))
		return -1;
	fflush(NULL);
	p->pid = fork();
	if (!p->pid) {
		close(fd[0]);
		child(o, c, pair, which, fd[1]);
	}
	close(fd[1]);
	p->report = fd[0];
	return p->pid < 0 ? -1 : 0;
}

/* Its verdict, or how it ended without one. */
static void finish(struct process *p, int64_t end)
{
	struct pollfd poll_for = { .fd = p->report, .events = POLLIN };
	int64_t left = end - side_ms();
	int status = 0;
	bool late = poll(&poll_for, 1, left > 0 ? (int)left : 0) == 0;

	if (late || read(p->report, &p->result, sizeof(p->result)) != sizeof(p->result)) {
		p->result.verdict = FAIL;
		p->result.reason[0] = 0;
	}
	if (late)
		kill(p->pid, SIGKILL);
	close(p->report);
	waitpid(p->pid, &status, 0);
	if (late)
		snprintf(p->result.reason, sizeof(p->result.reason), "hung for %d ms", CASE_MS);
	else if (WIFSIGNALED(status))
		snprintf(p->result.reason, sizeof(p->result.reason), "killed by signal %d",
			 WTERMSIG(status));
}

/* ---------------------------------------------------------------- a case */

/* A case whose peer kills itself ends well if the survivor says so. */
static bool dies_as_planned(const struct net_case *c, const struct process *p)
{
	return c->dies && !strcmp(p->result.reason, "killed by signal 9");
}

static struct result run_case(const struct options *o, const struct net_case *c)
{
	int pair[2] = { -1, -1 }, processes = o->threads ? 1 : c->processes;
	struct process p[2] = { 0 };
	struct result worst = { .verdict = PASS };
	int64_t end = side_ms() + CASE_MS;

	if (c->processes == 2 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
		return (struct result){ .verdict = FAIL, .reason = "socketpair failed" };
	for (int i = 0; i < processes; i++)
		if (start(o, c, pair, i, &p[i]))
			return (struct result){ .verdict = FAIL, .reason = "fork failed" };
	for (int i = 0; i < 2; i++)
		if (pair[i] >= 0)
			close(pair[i]);
	for (int i = 0; i < processes; i++)
		finish(&p[i], end);
	for (int i = 0; i < processes; i++)
		if (!dies_as_planned(c, &p[i]))
			worst = worse_of(worst, p[i].result);
	return worst;
}

/* ---------------------------------------------------------------- all of them */

static const struct net_case *const suites[] = { load_cases,	connect_cases, memory_cases,
						 gpu_cases,	data_cases,    group_cases,
						 failure_cases, killed_cases,  usage_cases };

static bool wanted(const struct options *o, const char *id)
{
	char pattern[64];
	const char *p = o->only;

	if (!p)
		return true;
	while (*p) {
		size_t len = strcspn(p, ",");

		snprintf(pattern, sizeof(pattern), "%.*s", (int)len, p);
		if (!fnmatch(pattern, id, 0))
			return true;
		p += len + (p[len] == ',');
	}
	return false;
}

static int run_all(const struct options *o)
{
	int count[3] = { 0 };

	for (size_t i = 0; i < sizeof(suites) / sizeof(*suites); i++)
		for (const struct net_case *c = suites[i]; c->id; c++) {
			struct result r;

			if (!wanted(o, c->id))
				continue;
			r = run_case(o, c);
			count[r.verdict == PASS ? 0 : r.verdict == SKIP ? 1 : 2]++;
			printf("%-5s %-4s  %s%s%s\n", c->id,
			       r.verdict == PASS   ? "pass"
			       : r.verdict == SKIP ? "skip"
						   : "FAIL",
			       c->what, r.reason[0] ? ": " : "", r.reason);
			fflush(stdout);
		}
	printf("%d passed, %d skipped, %d failed\n", count[0], count[1], count[2]);
	if (!count[2] && !count[0] && count[1])
		printf("skipped: every case was\n");
	return count[2] ? 1 : count[0] ? 0 : SKIP;
}

static void list(void)
{
	for (size_t i = 0; i < sizeof(suites) / sizeof(*suites); i++)
		for (const struct net_case *c = suites[i]; c->id; c++)
			printf("%-5s %d process%s  %s\n", c->id, c->processes,
			       c->processes == 1 ? "  " : "es", c->what);
}

int main(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "case", required_argument, NULL, 'c' },
		{ "api", required_argument, NULL, 'v' },
		{ "symbol", required_argument, NULL, 's' },
		{ "without", required_argument, NULL, 'w' },
		{ "threads", no_argument, NULL, 't' },
		{ "gpu", required_argument, NULL, 'g' },
		{ "long", no_argument, NULL, 'L' },
		{ "list", no_argument, NULL, 'l' },
		{ "help", no_argument, NULL, 'h' },
		{ 0 },
	};
	struct options o = { .quick = true, .gpu = { -1, -1 } };
	int opt;

	while ((opt = getopt_long(argc, argv, "c:v:s:w:tg:lh", longs, NULL)) != -1)
		switch (opt) {
		case 'c':
			o.only = optarg;
			break;
		case 'v':
			o.source.version = (int)strtol(optarg, NULL, 10);
			break;
		case 's':
			o.source.symbol = optarg;
			break;
		case 'w':
			o.without = optarg;
			break;
		case 't':
			o.threads = true;
			break;
		case 'g':
			if (sscanf(optarg, "%d,%d", &o.gpu[0], &o.gpu[1]) != 2) {
				usage(stderr);
				return 2;
			}
			break;
		case 'L':
			o.quick = false;
			break;
		case 'l':
			list();
			return 0;
		case 'h':
			usage(stdout);
			return 0;
		default:
			usage(stderr);
			return 2;
		}
	if (optind != argc - 1 ||
	    (o.source.version && (o.source.version < 6 || o.source.version > 12))) {
		usage(stderr);
		return 2;
	}
	o.source.path = argv[optind];
	return run_all(&o);
}
