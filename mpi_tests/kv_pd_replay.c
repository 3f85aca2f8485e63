/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_pd_replay.c -- replay a request trace between prefill and decode ranks, and check every byte
 */
#include <stdlib.h>
#include <unistd.h>

#include "progress.h"
#include "replay.h"
#include "util.h"

static void show_progress(void *arg, uint64_t done, int last)
{
	const struct replay_job *job = arg;

	progress_show("requests", done, job->trace.requests, last);
}

static int output_ready(const void *arg)
{
	const struct replay_job *job = arg;

	return job_output_ready(&job->opt.job);
}

int main(int argc, char **argv)
{
	static struct replay_job job;
	struct replay_result *results;
	struct rank_job ranks = { .work = replay_rank_run, .ready = output_ready, .arg = &job };
	struct rank_fate *fates;
	char why[512];
	int lead = 0, rc = 3;

	replay_options_parse(&job.opt, argc, argv);
	if (trace_load(&job.trace, job.opt.trace_path, job.opt.first, job.opt.requests, why,
		       sizeof(why))) {
		fprintf(stderr, "%s\n", why);
		return 2;
	}
	schedule_make(&job.schedule, &job.trace, &job.opt.cut, job.opt.job.prefills,
		      job.opt.job.decodes);
	ranks.size = job.opt.job.prefills + job.opt.job.decodes;
	ranks.local = job.opt.job.local;
	ranks.restart = job.opt.restart ? job.opt.kill_rank : -1;
	ranks.stall_ms = (uint64_t)job.opt.job.timeout_ms * 4;
	ranks.result_len = sizeof(*results);
	ranks.tick = job.opt.job.local && isatty(STDERR_FILENO) ? show_progress : NULL;
	results = need_calloc(ranks.size, sizeof(*results));
	fates = need_calloc(ranks.size, sizeof(*fates));
	if (rank_job_run(&ranks, results, fates, &lead) == 0) {
		rc = replay_report(&job, results, fates, lead ? stdout : NULL);
		fflush(stdout);
	}
	rank_job_end(&ranks);
	if (lead && rc == 0)
		job_output_plot(&job.opt.job);
	job_options_free(&job.opt.job);
	schedule_free(&job.schedule);
	trace_free(&job.trace);
	free(results);
	free(fates);
	return rc;
}
