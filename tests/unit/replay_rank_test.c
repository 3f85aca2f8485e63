/* SPDX-License-Identifier: Apache-2.0 */
/* replay_rank_test.c -- forked ranks: collectives, deaths, replacements */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "lib/test.h"
#include "rank.h"
#include "util.h"

enum { RANKS = 4 };

struct words {
	uint64_t sum, life, gathered;
};

static int run(struct rank_job *job, struct words *results, struct rank_fate *fates)
{
	int lead = 0;

	job->size = RANKS;
	job->local = 1;
	if (job->stall_ms == 0)
		job->stall_ms = 10000;
	job->result_len = sizeof(struct words);
	assert_int_equal(rank_job_run(job, results, fates, &lead), 0);
	assert_int_equal(lead, 1);
	return 0;
}

static int wait_all(struct rank *r)
{
	int rc;

	do
		rc = rank_arrived(r, 100);
	while (rc == 0);
	return rc;
}

static int work_gathers(struct rank *r, void *arg)
{
	uint32_t mine = 10 + r->rank, all[RANKS], i;
	struct words w = { 0 };

	if (rank_allgather(r, &mine, all, sizeof(mine)))
		return 1;
	for (i = 0; i < RANKS; i++)
		w.sum += all[i] == 10 + i;
	if (rank_arrive(r) || wait_all(r) != 1)
		return 1;
	return rank_result(r, &w, sizeof(w));
}

CASE(all_ranks_see_what_all_ranks_gave)
{
	struct rank_job job = { .work = work_gathers, .restart = -1 };
	struct words results[RANKS];
	struct rank_fate fates[RANKS];
	uint32_t i;

	run(&job, results, fates);
	for (i = 0; i < RANKS; i++) {
		assert_int_equal(results[i].sum, RANKS);
		assert_int_equal(fates[i].present, 1);
		assert_int_equal(fates[i].deaths, 0);
	}
}

static int work_dies_early(struct rank *r, void *arg)
{
	uint32_t mine = r->rank, all[RANKS];
	struct words w = { 0 };

	if (r->rank == 2)
		kill(getpid(), SIGKILL);
	w.gathered = rank_allgather(r, &mine, all, sizeof(mine)) == 0;
	return rank_result(r, &w, sizeof(w));
}

CASE(a_rank_that_dies_fails_the_gather_of_the_others)
{
	struct rank_job job = { .work = work_dies_early, .restart = -1 };
	struct words results[RANKS];
	struct rank_fate fates[RANKS];
	uint32_t i;

	run(&job, results, fates);
	for (i = 0; i < RANKS; i++) {
		assert_int_equal(fates[i].present, i != 2);
		assert_int_equal(fates[i].deaths, i == 2);
		assert_int_equal(results[i].gathered, 0);
	}
	assert_true(WIFSIGNALED(fates[2].status) && WTERMSIG(fates[2].status) == SIGKILL);
}

/*
 * Rank 1 arrives at the barrier, then dies in its work; its replacement arrives again and finds the
 * slot.
 */
static int work_dies_late(struct rank *r, void *arg)
{
	struct words w = { .life = r->life };

	if (rank_arrive(r))
		return 1;
	if (r->rank == 1 && r->life == 0) {
		atomic_store(&r->slot->resume, 42);
		atomic_store(&r->slot->killed_ns, now_ns());
		kill(getpid(), SIGKILL);
	}
	w.sum = atomic_load(&r->slot->resume);
	if (wait_all(r) != 1)
		return 1;
	return rank_result(r, &w, sizeof(w));
}

CASE(a_killed_rank_is_replaced_and_its_slot_survives)
{
	struct rank_job job = { .work = work_dies_late, .restart = 1 };
	struct words results[RANKS];
	struct rank_fate fates[RANKS];

	run(&job, results, fates);
	assert_int_equal(fates[1].present, 1);
	assert_int_equal(fates[1].deaths, 1);
	assert_true(fates[1].killed_ns > 0);
	assert_int_equal(results[1].life, 1);
	assert_int_equal(results[1].sum, 42);
	assert_int_equal(results[0].life, 0);
	assert_int_equal(fates[0].deaths, 0);
}

CASE(without_a_replacement_the_others_go_on)
{
	struct rank_job job = { .work = work_dies_late, .restart = -1 };
	struct words results[RANKS];
	struct rank_fate fates[RANKS];

	run(&job, results, fates);
	assert_int_equal(fates[1].present, 0);
	assert_int_equal(fates[0].present + fates[2].present + fates[3].present, 3);
}

static int work_hangs(struct rank *r, void *arg)
{
	struct words w = { 0 };

	if (r->rank == 3)
		for (;;)
			pause();
	return rank_result(r, &w, sizeof(w));
}

CASE(a_rank_that_does_not_move_is_killed)
{
	struct rank_job job = { .work = work_hangs, .restart = -1, .stall_ms = 2000 };
	struct words results[RANKS];
	struct rank_fate fates[RANKS];

	run(&job, results, fates);
	assert_int_equal(fates[3].present, 0);
	assert_int_equal(fates[3].deaths, 1);
	assert_int_equal(fates[0].present, 1);
}
