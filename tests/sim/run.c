/* SPDX-License-Identifier: Apache-2.0 */
/*
 * run.c -- a plan in a process of its own: what it counted, how it ended; and making a plan that
 * fails smaller
 */
#include "run.h"

#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/slow.h"
#include "schedule.h"

enum {
	ENDS_IN_MS = 120000, /* of this machine's time; a run takes a part of a second */
	SCHEDULES = 4,	     /* of a smaller plan that are tried */
	FAILED = 99,
};

struct sim_result *sim_result;
bool sim_talks;

void run_prepare(char **argv)
{
	int now = personality(0xffffffff);

	sim_result = mmap(NULL, sizeof(*sim_result), PROT_READ | PROT_WRITE,
			  MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	signal(SIGPIPE, SIG_IGN);
	if (getenv("SIM_PREPARED"))
		return;
	setenv("SIM_PREPARED", "1", 1);
	/* Freed memory is overwritten, so that using it shows. */
	setenv("GLIBC_TUNABLES",
	       "glibc.malloc.arena_max=1:glibc.malloc.tcache_count=0:glibc.malloc.perturb=165", 1);
	personality((unsigned long)now | ADDR_NO_RANDOMIZE);
	execv("/proc/self/exe", argv);
}

static uint64_t hash_of(const char *text)
{
	uint64_t hash = UINT64_C(0xcbf29ce484222325);

	for (; *text; text++)
		hash = (hash ^ (uint8_t)*text) * UINT64_C(0x100000001b3);
	return hash;
}

void sim_fail(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(sim_result->why, sizeof(sim_result->why), fmt, ap);
	va_end(ap);
	sim_result->kind = hash_of(fmt);
	sim_result->failed_ns = sched_now_ns();
	sim_say("FAILED: %s", sim_result->why);
	_exit(FAILED);
}

void sim_say(const char *fmt, ...)
{
	va_list ap;

	if (!sim_talks)
		return;
	fprintf(stderr, "%12.6f ", (double)sched_now_ns() / 1e9);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

static void play(const struct sim *sim, const struct sim_plan *plan)
{
	struct sched_counts counts;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	sim->run(plan);
	sched_counts(&counts);
	sim_result->switches = counts.switches;
	sim_result->points = counts.points;
	sim_result->virtual_ns = (uint64_t)counts.now_ns;
	sim_result->hash = counts.hash;
	_exit(0);
}

bool run_plan(const struct sim *sim, const struct sim_plan *plan)
{
	struct pollfd p = { .events = POLLIN };
	int status;
	pid_t pid;

	memset(sim_result, 0, sizeof(*sim_result));
	fflush(NULL);
	pid = fork();
	if (pid < 0) {
		perror("fork");
		exit(2);
	}
	if (!pid)
		play(sim, plan);
	p.fd = (int)syscall(SYS_pidfd_open, pid, 0);
	if (poll(&p, 1, (int)slow_ms(ENDS_IN_MS)) == 0) {
		kill(pid, SIGKILL);
		sim_result->kind = 1;
		snprintf(sim_result->why, sizeof(sim_result->why),
			 "it did not come to an end in %d s", ENDS_IN_MS / 1000);
	}
	close(p.fd);
	waitpid(pid, &status, 0);
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return true;
	if (!sim_result->kind) {
		sim_result->kind = 2;
		snprintf(sim_result->why, sizeof(sim_result->why), "it crashed: %s %d",
			 WIFSIGNALED(status) ? "signal" : "exit status",
			 WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
	}
	return false;
}

/* ---------------------------------------------------------------- a smaller plan */

/* Some interleaving of it fails as the whole plan did: it is left in the plan. */
static bool still_fails(const struct sim *sim, struct sim_plan *plan, uint64_t kind)
{
	uint64_t first = plan->schedule;

	for (uint64_t i = 0; i < SCHEDULES; i++) {
		plan->schedule = i ? i : first;
		if (!run_plan(sim, plan) && sim_result->kind == kind)
			return true;
	}
	plan->schedule = first;
	return false;
}

int shrink_plan(const struct sim *sim, struct sim_plan *plan)
{
	uint64_t kind = sim_result->kind;
	int left = plan->steps;

	for (int part = left / 2; part; part /= 2) {
		for (int at = 0; at < plan->steps; at += part) {
			struct sim_plan smaller = *plan;
			int out = 0;

			for (int i = at; i < at + part && i < plan->steps; i++) {
				out += !smaller.left_out[i];
				smaller.left_out[i] = true;
			}
			if (!out || !still_fails(sim, &smaller, kind))
				continue;
			*plan = smaller;
			left -= out;
			fprintf(stderr, "%s: %d steps still fail\n", sim->name, left);
		}
	}
	run_plan(sim, plan);
	return left;
}
