/* SPDX-License-Identifier: Apache-2.0 */
/* agent_first_test.c -- the first transfer, by a caller that polls and will not be kept waiting */
#include "agent_rig.h"

#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

enum { LEN = 1 << 20, BYTES = 50000 };

/* The agent's own thread stands still in the log's callback while it is held. */
struct hold {
	pthread_t caller;
	atomic_bool on, stands;
};

static void stand(void *arg, int level, const char *line)
{
	struct hold *hold = arg;

	while (atomic_load(&hold->on) && !pthread_equal(pthread_self(), hold->caller)) {
		atomic_store(&hold->stands, true);
		poll(NULL, 0, 1);
	}
}

/* A stranger that comes gives the thread a line to say. */
static void hold_thread(struct hold *hold, const struct rig_end *end, struct rig_end *stranger)
{
	int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);

	atomic_store(&hold->on, true);
	rig_load(stranger, end);
	while (!atomic_load(&hold->stands)) {
		assert_true(kv_now_ns() < deadline);
		poll(NULL, 0, 1);
	}
}

/* From the peer's address to its bytes: no thread of this agent has to be woken for it. */
CASE(a_caller_alone_connects_and_moves)
{
	struct hold hold = { .caller = pthread_self() };
	struct ag_rmem *rmem;
	struct rig_end a, b, c;
	struct ag_pair p;
	char came[8];

	rig_open_logging(&a, "a", LEN, stand, &hold);
	rig_open(&b, "b", LEN);
	rig_open(&c, "c", LEN);
	hold_thread(&hold, &a, &c);
	rig_load(&a, &b);
	rmem = rig_see(&a, &b, b.mem);
	rig_fill(a.buf, 1, LEN);
	p = (struct ag_pair){ a.mem, rmem, (uintptr_t)a.buf, (uintptr_t)b.buf, BYTES };
	rig_move(&a, "b", AG_WRITE, &p, 1, "first", 5);
	assert_int_equal(rig_note(&b, NULL, came, sizeof(came)), 5);
	assert_true(rig_is(b.buf, 1, BYTES));
	assert_true(atomic_load(&hold.on) && atomic_load(&hold.stands));
	atomic_store(&hold.on, false);
	ag_rmem_unload(rmem);
	rig_close(&c);
	rig_close(&a);
	rig_close(&b);
}

/*
 * On one processor a caller that only asks again would ask until the scheduler's next tick each
 * time that another thread has to run: ten thousands of times.
 */
CASE(a_caller_that_polls_makes_way)
{
	enum { BLOCKS = 256, BLOCK = LEN / BLOCKS, ASKS = 3000 };
	int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);
	struct ag_pair p[BLOCKS];
	struct ag_xfer *xfer;
	struct kv_error err;
	cpu_set_t all, one;
	unsigned int asks = 0;
	struct rig_two t;
	int ret;

	sched_getaffinity(0, sizeof(all), &all);
	CPU_ZERO(&one);
	CPU_SET((unsigned int)sched_getcpu(), &one);
	assert_int_equal(sched_setaffinity(0, sizeof(one), &one),
			 0); /* and of every thread to come */
	rig_up(&t, LEN);
	rig_fill(t.a.buf, 2, LEN);
	for (size_t i = 0; i < BLOCKS; i++)
		p[i] = (struct ag_pair){ t.a.mem, t.rmem, (uintptr_t)t.a.buf + i * BLOCK,
					 (uintptr_t)t.b.buf + (BLOCKS - 1 - i) * BLOCK, BLOCK };
	assert_int_equal(ag_xfer_prepare(t.a.agent, "b", AG_WRITE, p, BLOCKS, &xfer, &err), 0);
	ret = ag_xfer_post(xfer, NULL, 0, &err);
	for (; ret == AG_AGAIN; asks++) {
		assert_true(kv_now_ns() < deadline);
		ret = ag_xfer_check(xfer, &err);
	}
	assert_int_equal(ret, 0);
	for (size_t i = 0; i < BLOCKS; i++)
		assert_memory_equal((void *)p[i].remote, (void *)p[i].local, BLOCK);
	assert_true(asks < ASKS);
	rig_release(xfer);
	rig_down(&t);
	sched_setaffinity(0, sizeof(all), &all);
}

int main(int argc, char **argv)
{
	if (argc < 2 || strcmp(argv[1], "cma")) /* else the peer or a device moves the bytes */
		cmocka_set_skip_filter("a_caller_that_polls_makes_way");
	rig_path(argc > 1 ? argv[1] : NULL);
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	return run_cases(NULL, NULL);
}
