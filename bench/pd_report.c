/* SPDX-License-Identifier: Apache-2.0 */
/* pd_report.c -- the table of kv_pd_bench, and its JSON */
#include <stdlib.h>

#include "pd.h"
#include "results.h"
#include "util.h"

struct bench_report {
	const struct bench_options *opt;
	struct results *results;
	uint64_t wrong;
	uint32_t printed;
};

static const struct results_column columns[] = {
	{ "blk_size", "(B)", "block_bytes", 10, 0 },
	{ "batch", "(blocks)", "batch_blocks", 8, 0 },
	{ "bytes", "(B)", "bytes", 12, 0 },
	{ "time", "(us)", "time_us", 11, 1 },
	{ "BW", "(GB/s)", "gb_per_s", 8, 3 },
	{ "BW_agg", "(GB/s)", "aggregate_gb_per_s", 8, 3 },
	{ "MsgRate", "(M/s)", "mblocks_per_s", 9, 4 },
	{ "p1", "(us)", "p1_us", 10, 1 },
	{ "p50", "(us)", "p50_us", 10, 1 },
	{ "p99", "(us)", "p99_us", 10, 1 },
	{ "p99.9", "(us)", "p999_us", 10, 1 },
	{ "memcpy", "(GB/s)", "memcpy_gb_per_s", 8, 3 },
	{ "nt", "(GB/s)", "floor_gb_per_s", 8, 3 },
	{ "ratio", "", "ratio", 6, 3 },
	{ "#wrong", "", "wrong", 8, 0 },
};

static void print_settings(const struct bench_options *opt, const char *transport, const char *path,
			   const char *wait)
{
	char pool[32];

	size_text(opt->pool_bytes, pool, sizeof(pool));
	printf("# kv_pd_bench, kvrail %s\n", kv_version());
	printf("# %u prefill x %u decode ranks, %s; transport %s, path: %s\n", opt->job.prefills,
	       opt->job.decodes, opt->job.local ? "forked (--local)" : "under MPI", transport,
	       path);
	if (opt->hot)
		printf("# pools: hot, one batch again and again\n");
	else
		printf("# pools: cold, %s a side (twice the batch if larger), %d batches in turn\n",
		       pool, BENCH_BATCHES);
	printf("# %s, %u layers x %u tensors an operation, ids shuffled on both sides; %u "
	       "iterations after %u\n",
	       opt->two_sided ? "two-sided" : "one-sided", opt->layers, opt->tensors, opt->iters,
	       opt->warmup);
	if (opt->in_flight > 1)
		printf("# %u operations in flight: a time is that from one end to the next\n",
		       opt->in_flight);
	printf("# waiting: %s; check: %s\n", wait,
	       opt->check ? "every byte of the decode pools" : "off");
	printf("# GB = 10^9 bytes. memcpy, nt: the same blocks copied by one thread inside one "
	       "process, with\n# memcpy, and with non-temporal stores while the next block is "
	       "prefetched; ratio: bytes / p50 / nt\n# (medians: a busy machine spoils means)\n#\n");
}

struct bench_report *bench_report_begin(const struct bench_options *opt, const char *transport,
					const char *path, const char *spin_us)
{
	struct bench_report *report = need_calloc(1, sizeof(*report));
	struct results *r;
	char wait[64];

	snprintf(wait, sizeof(wait), "spin %s us, then sleep", spin_us);
	print_settings(opt, transport, path, wait);
	r = results_new("kv_pd_bench", opt->job.command, transport, path, wait);
	results_open(r, "settings", '{');
	results_integer(r, "prefill", opt->job.prefills);
	results_integer(r, "decode", opt->job.decodes);
	results_integer(r, "layers", opt->layers);
	results_integer(r, "tensors", opt->tensors);
	results_integer(r, "pool_bytes", opt->hot ? 0 : opt->pool_bytes);
	results_text(r, "pools", opt->hot ? "hot" : "cold");
	results_text(r, "calls", opt->two_sided ? "two-sided" : "one-sided");
	results_integer(r, "in_flight", opt->in_flight);
	results_integer(r, "iterations", opt->iters);
	results_integer(r, "warmup", opt->warmup);
	results_close(r);
	results_table(r, columns, sizeof(columns) / sizeof(*columns));
	report->opt = opt;
	report->results = r;
	return report;
}

/* GB/s of one batch to one decode rank; NAN where it was not measured. */
static double floor_gbps(uint64_t bytes, uint64_t ns)
{
	return ns ? (double)bytes / (double)ns : NAN;
}

static void print_line(struct bench_report *report, uint32_t row, const struct bench_row *rows,
		       uint64_t wrong)
{
	const struct bench_options *opt = report->opt;
	uint64_t blocks = (uint64_t)opt->batch * opt->job.decodes * opt->layers * opt->tensors;
	uint64_t bytes = blocks * opt->row_bytes[row], batch_bytes = bytes / opt->job.decodes;
	uint64_t begin = UINT64_MAX, end = 0, moved = 0;
	static const uint32_t percentiles[] = { 100, 5000, 9900, 9990 };
	struct hist *all = need_calloc(1, sizeof(*all));
	double nt = floor_gbps(batch_bytes, rows[0].nt_ns), gbps = 0, time_us;
	struct results *r = report->results;
	uint32_t i;

	for (i = 0; i < opt->job.prefills; i++) {
		hist_merge(all, &rows[i].batch);
		begin = rows[i].begin_ns < begin ? rows[i].begin_ns : begin;
		end = rows[i].end_ns > end ? rows[i].end_ns : end;
		moved += rows[i].bytes;
		gbps += (double)rows[i].bytes / (double)rows[i].batch.sum_ns / opt->job.prefills;
	}
	time_us = (double)all->sum_ns / (double)all->samples / 1e3;
	results_cell(r, (double)opt->row_bytes[row]);
	results_cell(r, opt->batch);
	results_cell(r, (double)bytes);
	results_cell(r, time_us);
	results_cell(r, gbps);
	results_cell(r, (double)moved / (double)(end - begin));
	results_cell(r, (double)blocks / time_us);
	for (i = 0; i < sizeof(percentiles) / sizeof(*percentiles); i++)
		results_cell(r, (double)hist_percentile(all, percentiles[i]) / 1e3);
	results_cell(r, floor_gbps(batch_bytes, rows[0].memcpy_ns));
	results_cell(r, nt);
	results_cell(r, (double)bytes / (double)hist_percentile(all, 5000) / nt);
	results_cell(r, opt->check ? (double)wrong : NAN);
	free(all);
}

void bench_report_row(struct bench_report *report, uint32_t row, const struct bench_row *rows)
{
	const struct bench_options *opt = report->opt;
	uint32_t i, ranks = opt->job.prefills + opt->job.decodes;
	uint64_t wrong = 0;
	int failed = 0;

	for (i = 0; i < ranks; i++) {
		failed |= rows[i].failed != 0;
		wrong += rows[i].wrong;
	}
	if (!failed)
		print_line(report, row, rows, wrong);
	for (i = 0; i < ranks; i++)
		if (rows[i].note[0])
			printf("# rank %u: %s\n", i, rows[i].note);
	fflush(stdout);
	report->wrong += failed ? 0 : wrong;
	report->printed += !failed;
}

int bench_report_end(struct bench_report *report)
{
	const struct bench_options *opt = report->opt;
	int rc;

	if (opt->check && report->printed)
		printf("# Out of bounds values : %llu %s\n", (unsigned long long)report->wrong,
		       report->wrong ? "FAILED" : "OK");
	if (report->printed < opt->rows)
		printf("# %u of %u block sizes could not be measured\n",
		       opt->rows - report->printed, opt->rows);
	fflush(stdout);
	rc = results_end(report->results, opt->job.json_path);
	free(report);
	return rc;
}
