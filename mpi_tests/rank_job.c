/* SPDX-License-Identifier: Apache-2.0 */
/* rank_job.c -- the parent's side: fork the ranks, join their collectives, see them die */
#include "rank.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "util.h"

enum { POLL_MS = 20, TICK_NS = 200 * 1000 * 1000 };

struct child {
	pid_t pid; /* 0: gone */
	int fd;
	uint32_t life;
	struct rank_head want; /* RANK_NONE: it has asked for nothing */
	char *data;	       /* of `want` */
	struct rank_slot *slot;
	uint64_t beat, beat_ns;
	struct rank_fate fate;
};

struct parent {
	const struct rank_job *job;
	uint32_t first, count; /* the ranks that are this process's children */
	struct rank_slot *slots;
	struct child *child;
	uint64_t ticked_ns;
	int closing;
};

/* What the parents tell each other before each round. */
struct round_head {
	struct rank_head want;
	struct rank_fate fate;
};

int rank_launched(void)
{
	return getenv("OMPI_COMM_WORLD_SIZE") || getenv("PMI_SIZE") || getenv("PMIX_RANK");
}

static void child_run(struct parent *p, uint32_t index, int fd, pid_t parent_pid)
{
	struct rank r = { .life = p->child[index].life, .fd = fd, .slot = p->child[index].slot };
	struct rank_head head;
	uint32_t i, place[2];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent_pid)
		_exit(3);
	for (i = 0; i < p->count; i++)
		if (p->child[i].fd >= 0)
			close(p->child[i].fd);
	if (rank_recv_full(fd, &head, sizeof(head)) || head.kind != RANK_HELLO ||
	    rank_recv_full(fd, place, sizeof(place)))
		_exit(3);
	r.rank = place[0];
	r.size = place[1];
	exit(p->job->work(&r, p->job->arg));
}

static int child_fork(struct parent *p, uint32_t index)
{
	struct child *c = &p->child[index];
	pid_t self = getpid();
	int fds[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds)) {
		perror("socketpair");
		return -1;
	}
	fflush(NULL);
	c->pid = fork();
	if (c->pid < 0) {
		perror("fork");
		c->pid = 0;
		close(fds[0]);
		close(fds[1]);
		return -1;
	}
	if (c->pid == 0) {
		close(fds[0]);
		child_run(p, index, fds[1], self);
	}
	close(fds[1]);
	c->fd = fds[0];
	return 0;
}

/* The rank begins to work, and its time to run: MPI_Init may have taken long since the fork. */
static int child_hello(const struct parent *p, uint32_t index)
{
	const struct rank_head head = { .kind = RANK_HELLO, .len = 2 * sizeof(uint32_t) };
	const uint32_t place[2] = { p->first + index, p->job->size };

	p->child[index].beat_ns = now_ns();
	return rank_send(p->child[index].fd, &head, place);
}

/* The child's end of the socket is closed: it has finished or died. */
static void child_gone(struct parent *p, uint32_t index)
{
	struct child *c = &p->child[index];
	int status = 0;

	while (waitpid(c->pid, &status, 0) < 0 && errno == EINTR)
		;
	close(c->fd);
	c->fd = -1;
	c->pid = 0;
	if (c->want.kind == RANK_RESULT || c->fate.present)
		return;
	c->want.kind = RANK_NONE;
	c->fate.deaths++;
	c->fate.status = status;
	c->fate.killed_ns = atomic_load(&c->slot->killed_ns);
	if (p->job->restart == (int64_t)(p->first + index) && c->life == 0 && !p->closing) {
		c->life++;
		if (child_fork(p, index) == 0)
			child_hello(p, index);
	}
}

static void child_read(struct parent *p, uint32_t index)
{
	struct child *c = &p->child[index];
	struct rank_head head;

	if (rank_recv_full(c->fd, &head, sizeof(head)) || head.len > RANK_MESSAGE_MAX ||
	    c->want.kind != RANK_NONE) {
		child_gone(p, index);
		return;
	}
	free(c->data);
	c->data = need_calloc(1, head.len);
	if (rank_recv_full(c->fd, c->data, head.len)) {
		child_gone(p, index);
		return;
	}
	c->want = head;
}

static void children_watch(struct parent *p, uint64_t now)
{
	uint64_t done = 0, beat;
	uint32_t i;

	for (i = 0; i < p->count; i++) {
		struct child *c = &p->child[i];

		done += atomic_load(&c->slot->done);
		beat = atomic_load(&c->slot->beat);
		if (beat != c->beat || c->want.kind != RANK_NONE || c->pid == 0) {
			c->beat = beat;
			c->beat_ns = now;
		} else if (now - c->beat_ns > p->job->stall_ms * 1000000) {
			fprintf(stderr, "rank %u has not moved for %llu s and is killed\n",
				p->first + i, (unsigned long long)(p->job->stall_ms / 1000));
			kill(c->pid, SIGKILL);
			c->beat_ns = now;
		}
	}
	if (p->job->tick && now - p->ticked_ns > TICK_NS) {
		p->job->tick(p->job->arg, done, 0);
		p->ticked_ns = now;
	}
}

/* Reads what the children say, for up to timeout_ms. */
static void children_poll(struct parent *p, int timeout_ms)
{
	struct pollfd fds[RANK_MAX];
	uint32_t i;

	for (i = 0; i < p->count; i++)
		fds[i] = (struct pollfd){ .fd = p->child[i].fd, .events = POLLIN };
	if (poll(fds, p->count, timeout_ms) > 0)
		for (i = 0; i < p->count; i++)
			if (fds[i].revents)
				child_read(p, i);
	children_watch(p, now_ns());
}

static void children_tick(void *arg)
{
	children_poll(arg, 0);
}

static int children_settled(const struct parent *p)
{
	uint32_t i;

	for (i = 0; i < p->count; i++)
		if (p->child[i].pid != 0 && p->child[i].want.kind == RANK_NONE)
			return 0;
	return 1;
}

static int exchange(struct parent *p, const void *mine, void *all, size_t len)
{
#ifdef KVRAIL_HAVE_MPI
	const struct rank_tick tick = { children_tick, p };

	if (!p->job->local)
		return rank_mpi_exchange(mine, all, len, &tick);
#endif
	(void)children_tick;
	memcpy(all, mine, len * p->count);
	return 0;
}

/* The kind of the round: a rank that still gathers goes first, results come last. */
static uint32_t round_kind(const struct round_head *all, uint32_t n, uint32_t *len_p)
{
	static const uint32_t order[] = { RANK_GATHER, RANK_ARRIVE, RANK_RESULT };
	uint32_t i, k;

	for (k = 0; k < 3; k++)
		for (i = 0; i < n; i++)
			if (all[i].want.kind == order[k]) {
				*len_p = all[i].want.len;
				return order[k];
			}
	return RANK_NONE;
}

static void round_reply(struct parent *p, const struct round_head *all, uint32_t kind,
			const char *data, uint32_t len)
{
	struct rank_head head = { .kind = kind, .ok = 1 };
	uint32_t i;

	for (i = 0; i < p->job->size; i++)
		if (all[i].want.kind != kind || all[i].want.len != len)
			head.ok = 0;
	if (kind == RANK_GATHER && head.ok)
		head.len = len * p->job->size;
	for (i = 0; i < p->count; i++) {
		struct child *c = &p->child[i];

		/* It may have died, and even be replaced, while the parents talked. */
		if (c->want.kind != kind)
			continue;
		c->want.kind = RANK_NONE;
		c->fate.present = kind == RANK_RESULT;
		if (kind != RANK_RESULT && c->fd >= 0)
			(void)rank_send(c->fd, &head, data);
	}
}

/* One collective of all parents. Returns 1 when it was the last, 0, or -1. */
static int round_run(struct parent *p, void *results, struct rank_fate *fates)
{
	struct round_head mine[RANK_MAX] = { 0 }, all[RANK_MAX];
	uint32_t i, kind, len = 0;
	char *in, *out;
	int rc = -1;

	for (i = 0; i < p->count; i++) {
		mine[i].want = p->child[i].want;
		mine[i].fate = p->child[i].fate;
	}
	if (exchange(p, mine, all, sizeof(mine[0])))
		return -1;
	kind = round_kind(all, p->job->size, &len);
	if (kind == RANK_RESULT)
		len = (uint32_t)p->job->result_len;
	in = need_calloc(p->count, len);
	out = need_calloc(p->job->size, len);
	for (i = 0; i < p->count; i++)
		if (mine[i].want.kind == kind && mine[i].want.len == len && p->child[i].data)
			memcpy(in + (size_t)i * len, p->child[i].data, len);
	if (len && exchange(p, in, out, len))
		goto free_buffers;
	round_reply(p, all, kind, out, len);
	rc = kind == RANK_RESULT || kind == RANK_NONE;
	if (rc) {
		memcpy(results, out, (size_t)len * p->job->size);
		for (i = 0; i < p->job->size; i++) {
			fates[i] = all[i].fate;
			fates[i].present = all[i].want.kind == RANK_RESULT;
		}
	}

free_buffers:
	free(in);
	free(out);
	return rc;
}

static void parent_close(struct parent *p)
{
	uint32_t i;

	p->closing = 1;
	for (i = 0; i < p->count; i++) {
		struct child *c = &p->child[i];

		if (c->pid != 0) {
			/* After its result a rank only has to exit; anything else is killed. */
			if (!c->fate.present)
				kill(c->pid, SIGKILL);
			child_gone(p, i);
		}
		free(c->data);
	}
	if (p->job->tick)
		p->job->tick(p->job->arg, 0, 1);
	munmap(p->slots, p->count * sizeof(*p->slots));
	free(p->child);
}

static int first_is_ready(struct parent *p)
{
	int mine[RANK_MAX] = { 0 }, all[RANK_MAX] = { 0 };
	uint32_t i;

	for (i = 0; i < p->count; i++)
		p->child[i].beat_ns = now_ns();
	if (p->first == 0 && p->job->ready)
		mine[0] = p->job->ready(p->job->arg);
	return exchange(p, mine, all, sizeof(mine[0])) == 0 && all[0] == 0;
}

static int parent_open(struct parent *p)
{
	uint32_t i, size = p->job->size;

	p->child = need_calloc(p->count, sizeof(*p->child));
	p->slots = mmap(NULL, p->count * sizeof(*p->slots), PROT_READ | PROT_WRITE,
			MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (p->slots == MAP_FAILED) {
		perror("mmap");
		free(p->child);
		return -1;
	}
	for (i = 0; i < p->count; i++) {
		p->child[i].fd = -1;
		p->child[i].slot = &p->slots[i];
	}
	for (i = 0; i < p->count; i++)
		if (child_fork(p, i))
			goto close_children;
#ifdef KVRAIL_HAVE_MPI
	if (!p->job->local && rank_mpi_begin(&p->first, &size))
		goto close_children;
#endif
	if (size != p->job->size) {
		if (p->first == 0)
			fprintf(stderr, "%u ranks were asked for, but %u were started\n",
				p->job->size, size);
		goto close_children;
	}
	if (!first_is_ready(p))
		goto close_children;
	for (i = 0; i < p->count; i++)
		child_hello(p, i);
	return 0;

close_children:
	parent_close(p);
	return -1;
}

int rank_job_run(const struct rank_job *job, void *results, struct rank_fate *fates, int *lead_p)
{
	struct parent p = { .job = job, .count = job->local ? job->size : 1 };
	int rc = 0;

#ifndef KVRAIL_HAVE_MPI
	if (!job->local) {
		fprintf(stderr, "this build has no MPI: run it without mpirun, as --local P+D\n");
		return -1;
	}
#endif
	if (parent_open(&p))
		return -1;
	while (rc == 0) {
		while (!children_settled(&p))
			children_poll(&p, POLL_MS);
		rc = round_run(&p, results, fates);
	}
	if (rc < 0)
		fprintf(stderr, "the ranks' parents cannot reach each other\n");
	*lead_p = p.first == 0;
	parent_close(&p);
	return rc < 0 ? -1 : 0;
}

void rank_job_end(const struct rank_job *job)
{
#ifdef KVRAIL_HAVE_MPI
	if (!job->local)
		rank_mpi_end();
#endif
}
