/* SPDX-License-Identifier: Apache-2.0 */
/* schedule.c -- who goes on, and what time it is */
#include "schedule.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "fake.h"
#include "fake_world.h"
#include "sim.h"
#include "wrap.h"

enum {
	THREADS = 512,
	STEP_NS = 250,	/* that a point takes */
	LOOK_NS = 5000, /* that looking at the clock takes: who spins does not spin long */
	STALL_NS = 3000000,
	RARER = 6,
	LEFT_S = 600,
};

enum state { READY = 0, WAITS, ENDED };

struct thread {
	int id;
	enum state state;
	bool woken, detached, joined;
	int64_t until_ns;      /* WAITS */
	int64_t not_before_ns; /* READY: it stands still */
	const void *key;
	struct pollfd *fds;
	nfds_t nfds;
	uint64_t looked; /* `moves` when its descriptors were looked at */
	atomic_uint baton;
	pthread_t pthread;
	pid_t tid;
	void *(*run)(void *arg);
	void *arg, *result;
	int host; /* fake_host of its maker */
};

static struct {
	struct sched_config config;
	struct sched_counts count;
	uint64_t random, moves;
	struct thread *thread[THREADS];
	int threads;
	pid_t leaving; /* a thread that has ended, and may not have left the process yet */
} s;
static _Thread_local struct thread *me;

bool sched_is_on(void)
{
	return me;
}

int64_t sched_now_ns(void)
{
	return s.count.now_ns;
}

void sched_counts(struct sched_counts *counts)
{
	*counts = s.count;
}

uint64_t sched_random(void)
{
	return sim_random(&s.random);
}

void sched_note(uint64_t what)
{
	s.count.hash = (s.count.hash ^ what) * UINT64_C(0x100000001b3) ^ s.count.hash >> 29;
}

const char *sched_state(void)
{
	static char text[4096];
	size_t at = 0;

	for (int i = 0; i < s.threads && at < sizeof(text) - 128; i++) {
		const struct thread *t = s.thread[i];

		if (t->state == ENDED)
			continue;
		at += (size_t)snprintf(text + at, sizeof(text) - at,
				       "  thread %d %s key %p, %d descriptors, until %.6f s%s\n",
				       t->id, t->state == READY ? "ready" : "waits", t->key,
				       (int)t->nfds,
				       t->until_ns == SCHED_NEVER ? 0 : (double)t->until_ns / 1e9,
				       t == me ? " (this one)" : "");
	}
	return text;
}

/* ---------------------------------------------------------------- the baton */

static void futex(atomic_uint *word, int op, unsigned int value)
{
	__real_syscall(SYS_futex, word, op, value, NULL, NULL, 0);
}

static void await_baton(struct thread *t)
{
	while (!atomic_exchange(&t->baton, 0))
		futex(&t->baton, FUTEX_WAIT_PRIVATE, 0);
	/* What a thread does when it leaves is over before another goes on. */
	while (s.leaving && !__real_syscall(SYS_tgkill, (long)getpid(), (long)s.leaving, 0L))
		__real_sched_yield();
	s.leaving = 0;
}

static void give_baton(struct thread *t)
{
	atomic_store(&t->baton, 1);
	futex(&t->baton, FUTEX_WAKE_PRIVATE, 1);
}

/* Makes threads ready whose time has come or whose descriptor is; true: t can go on. */
static bool can_go(struct thread *t)
{
	if (t->state == WAITS && t->nfds && t->looked != s.moves) {
		t->looked = s.moves;
		if (__real_poll(t->fds, t->nfds, 0) > 0) {
			t->state = READY;
			t->woken = true;
		}
	}
	if (t->state == WAITS && t->until_ns <= s.count.now_ns)
		t->state = READY;
	return t->state == READY && t->not_before_ns <= s.count.now_ns;
}

/* The nearest moment at which some thread can go on. */
static int64_t next_deadline(void)
{
	int64_t next = SCHED_NEVER;

	for (int i = 0; i < s.threads; i++) {
		const struct thread *t = s.thread[i];
		int64_t at = t->state == READY ? t->not_before_ns : t->until_ns;

		if (t->state != ENDED && at < next)
			next = at;
	}
	return next;
}

static struct thread *choose(const struct thread *not_this)
{
	struct thread *can[THREADS];

	for (;;) {
		int n = 0;
		int64_t next;

		for (int i = 0; i < s.threads; i++)
			if (can_go(s.thread[i]) && s.thread[i] != not_this)
				can[n++] = s.thread[i];
		if (n)
			return can[sched_random() % (uint64_t)n];
		if (not_this && not_this->state == READY &&
		    not_this->not_before_ns <= s.count.now_ns)
			return NULL;
		next = next_deadline();
		if (next == SCHED_NEVER)
			sim_fail("no thread can go on, and none waits for a time:\n%s",
				 sched_state());
		if (next > s.count.now_ns)
			s.count.now_ns = next;
		s.count.jumps++;
	}
}

/* This thread gives the baton away, and goes on when it gets it again. */
static void pass_on(struct thread *to)
{
	int error = errno;

	if (!to)
		return;
	sched_note((uint64_t)to->id * UINT64_C(0x9e3779b97f4a7c15) + (uint64_t)s.count.now_ns);
	if (to != me) {
		s.count.switches++;
		give_baton(to);
		await_baton(me);
	}
	errno = error;
}

static void point(uint32_t rate, int64_t takes_ns)
{
	if (!me)
		return;
	s.count.now_ns += takes_ns;
	s.count.points++;
	if (s.config.stall && sched_random() % s.config.stall == 0) {
		int64_t ns = 1 + (int64_t)(sched_random() % STALL_NS);

		me->not_before_ns = s.count.now_ns + ns;
		s.count.stalls++;
		s.count.stalled_ns += ns;
		pass_on(choose(NULL));
	} else if (sched_random() % rate == 0) {
		pass_on(choose(NULL));
	}
}

void sched_point(void)
{
	point(s.config.rate, STEP_NS);
}

void sched_rare_point(void)
{
	point(s.config.rate * RARER, LOOK_NS);
}

void sched_yield_point(void)
{
	if (!me)
		return;
	s.count.now_ns += STEP_NS;
	s.count.points++;
	pass_on(choose(me));
}

bool sched_wait(const void *key, struct pollfd *fds, nfds_t n, int64_t until_ns)
{
	me->key = key;
	me->fds = fds;
	me->nfds = n;
	me->looked = s.moves - 1;
	me->until_ns = until_ns;
	me->woken = false;
	me->state = WAITS;
	pass_on(choose(NULL));
	me->key = NULL;
	me->nfds = 0;
	return me->woken;
}

void sched_sleep(int64_t ns)
{
	sched_wait(NULL, NULL, 0, s.count.now_ns + ns);
}

void sched_wake(const void *key, int threads)
{
	int first = s.threads ? (int)(sched_random() % (uint64_t)s.threads) : 0;

	for (int i = 0; i < s.threads && threads; i++) {
		struct thread *t = s.thread[(first + i) % s.threads];

		if (t->state != WAITS || t->key != key)
			continue;
		t->state = READY;
		t->woken = true;
		threads--;
	}
}

void sched_moved(void)
{
	s.moves++;
}

/* ---------------------------------------------------------------- threads */

static struct thread *add_thread(void)
{
	struct thread *t = calloc(1, sizeof(*t));

	for (int i = 0; i < s.threads; i++)
		if (s.thread[i]->state == ENDED && (s.thread[i]->joined || s.thread[i]->detached)) {
			free(s.thread[i]);
			s.thread[i] = s.thread[--s.threads];
			break;
		}
	if (s.threads == THREADS)
		sim_fail("more than %d threads", THREADS);
	t->id = (int)++s.count.points;
	s.thread[s.threads++] = t;
	return t;
}

void sched_begin(const struct sched_config *config)
{
	memset(&s, 0, sizeof(s));
	s.config = *config;
	s.random = config->seed;
	me = add_thread();
	me->pthread = pthread_self();
}

static bool alone(void)
{
	for (int i = 0; i < s.threads; i++)
		if (s.thread[i] != me && s.thread[i]->state != ENDED)
			return false;
	return true;
}

void sched_end(void)
{
	/* A device that was left at a queue pair comes to its end. */
	for (int i = 0; i < LEFT_S && !alone(); i++)
		sched_sleep(INT64_C(1000000000));
	if (!alone())
		sim_fail("a thread was left behind:\n%s", sched_state());
	me = NULL;
}

static void *begin_thread(void *arg)
{
	struct thread *t = arg;

	t->tid = (pid_t)__real_syscall(SYS_gettid);
	await_baton(t);
	me = t;
	fake_host(t->host);
	t->result = t->run(t->arg);
	t->state = ENDED;
	sched_wake(t, INT_MAX);
	me = NULL;
	s.leaving = t->tid;
	give_baton(choose(NULL));
	return NULL;
}

int __wrap_pthread_create(pthread_t *pthread, const pthread_attr_t *attr, void *(*run)(void *),
			  void *arg)
{
	struct thread *t;
	int ret;

	if (!me)
		return __real_pthread_create(pthread, attr, run, arg);
	t = add_thread();
	t->run = run;
	t->arg = arg;
	t->host = fake_current_host();
	ret = __real_pthread_create(&t->pthread, attr, begin_thread, t);
	if (ret)
		sim_fail("pthread_create: %s", strerror(ret));
	*pthread = t->pthread;
	sched_point();
	return 0;
}

static struct thread *find(pthread_t pthread)
{
	for (int i = 0; i < s.threads; i++)
		if (pthread_equal(s.thread[i]->pthread, pthread) && !s.thread[i]->joined &&
		    !s.thread[i]->detached)
			return s.thread[i];
	sim_fail("a thread is joined that there is not");
}

int __wrap_pthread_join(pthread_t pthread, void **result_p)
{
	struct thread *t;

	if (!me)
		return __real_pthread_join(pthread, result_p);
	t = find(pthread);
	while (t->state != ENDED)
		sched_wait(t, NULL, 0, SCHED_NEVER);
	__real_pthread_join(pthread, NULL);
	t->joined = true;
	if (result_p)
		*result_p = t->result;
	return 0;
}

int __wrap_pthread_detach(pthread_t pthread)
{
	if (me)
		find(pthread)->detached = true;
	return __real_pthread_detach(pthread);
}
