/* SPDX-License-Identifier: Apache-2.0 */
/*
 * cost.h -- processor time of a fixed piece of work in one thread, for compare.py
 *
 * Both sides are in this process, and each advances only when it is called, so the work is the same
 * in every run: its time does not depend on who else uses the machine as much as wall clock does,
 * and its instructions can be counted (valgrind --tool=callgrind '--toggle-collect=measured*').
 */
#ifndef COST_H
#define COST_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define COST_TRY(call)                                                      \
	do {                                                                \
		if (call) {                                                 \
			fprintf(stderr, "%s:%d: failed\n", __FILE__, __LINE__); \
			exit(1);                                            \
		}                                                           \
	} while (0)

/* The work: called once before the clock starts, then `rounds` times. */
void measured(void *arg, int rounds) __attribute__((noinline));

static clockid_t cost_clock = CLOCK_THREAD_CPUTIME_ID;

static inline int64_t cost_cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(cost_clock, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* A process beside this one: it says its port, and ends when this one lets it. */
struct cost_child {
	int from, to;
	pid_t pid;
	uint32_t port;
};

/* In the child: `port` is open. Does not return. */
static inline void cost_serve(const struct cost_child *child, uint32_t port)
{
	char end;

	COST_TRY(write(child->to, &port, sizeof(port)) != sizeof(port));
	COST_TRY(read(child->from, &end, 1) < 0);
	_exit(0);
}

/* `serve` ends with cost_serve. */
static inline struct cost_child cost_fork(void (*serve)(const struct cost_child *child,
							const void *arg),
					  const void *arg)
{
	int ready[2], done[2];
	struct cost_child child = { 0 };

	COST_TRY(pipe(ready) || pipe(done));
	fflush(stdout);
	child.pid = fork();
	COST_TRY(child.pid < 0);
	child.from = child.pid ? ready[0] : done[0];
	child.to = child.pid ? done[1] : ready[1];
	close(child.pid ? ready[1] : ready[0]);
	close(child.pid ? done[0] : done[1]);
	if (!child.pid)
		serve(&child, arg);
	COST_TRY(read(child.from, &child.port, sizeof(child.port)) != sizeof(child.port));
	return child;
}

static inline void cost_join(const struct cost_child *child)
{
	close(child->to);
	close(child->from);
	waitpid(child->pid, NULL, 0);
}

/* Of `things` that one call makes one costs so many ns: the least that was seen, 0 before. */
static inline void cost_least(void (*work)(void *arg, int rounds), void *arg, int rounds,
			      double things, double *least_p)
{
	int64_t start = cost_cpu_ns();
	double ns;

	work(arg, rounds);
	ns = (double)(cost_cpu_ns() - start) / things;
	if (*least_p <= 0 || ns < *least_p)
		*least_p = ns;
}

/* Prints the least time of several runs for one of `things`: what disturbs a run only adds. */
static inline void cost_report(void *arg, int rounds, int runs, double things)
{
	double least = 0;

	for (int i = 0; i < runs; i++)
		cost_least(measured, arg, rounds, things, &least);
	printf("%.2f\n", least);
}

#endif
