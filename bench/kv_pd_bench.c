/* SPDX-License-Identifier: Apache-2.0 */
/* kv_pd_bench.c -- how fast do blocks of a fixed size get from prefill to decode ranks? */
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include "pd.h"
#include "progress.h"
#include "util.h"

static void show_progress(void *arg, uint64_t done, int last)
{
	const struct bench_options *opt = arg;

	progress_show("steps", done, (uint64_t)opt->rows * (opt->job.prefills + opt->job.decodes),
		      last);
}

static int output_ready(const void *arg)
{
	const struct bench_options *opt = arg;

	return job_output_ready(&opt->job);
}

static int report_fates(const struct rank_job *job, const struct bench_result *results,
			const struct rank_fate *fates, int lead)
{
	uint32_t i;
	int rc = 0;

	for (i = 0; i < job->size; i++) {
		rc |= !fates[i].present || results[i].failed || results[i].wrong;
		if (!fates[i].present && lead)
			fprintf(stderr, "rank %u died: %s %d\n", i,
				WIFSIGNALED(fates[i].status) ? "signal" : "exit code",
				WIFSIGNALED(fates[i].status) ? WTERMSIG(fates[i].status)
							     : WEXITSTATUS(fates[i].status));
	}
	return rc != 0;
}

int main(int argc, char **argv)
{
	struct bench_options opt;
	struct rank_job job = {
		.work = bench_rank_run, .ready = output_ready, .arg = &opt, .restart = -1
	};
	struct bench_result *results;
	struct rank_fate *fates;
	int lead = 0, rc = 3;

	bench_options_parse(&opt, argc, argv);
	job.size = opt.job.prefills + opt.job.decodes;
	job.local = opt.job.local;
	job.stall_ms = (uint64_t)opt.job.timeout_ms * 4;
	job.result_len = sizeof(*results);
	job.tick = opt.job.local && isatty(STDERR_FILENO) && !isatty(STDOUT_FILENO) ? show_progress
										    : NULL;
	results = need_calloc(job.size, sizeof(*results));
	fates = need_calloc(job.size, sizeof(*fates));
	if (rank_job_run(&job, results, fates, &lead) == 0)
		rc = report_fates(&job, results, fates, lead);
	rank_job_end(&job);
	if (lead && rc == 0)
		job_output_plot(&opt.job);
	job_options_free(&opt.job);
	free(results);
	free(fates);
	return rc;
}
