/* SPDX-License-Identifier: Apache-2.0 */
/* pd_report.c -- the table of kv_pd_bench, and its JSON */
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

#include "pd.h"
#include "util.h"

struct bench_report {
	const struct bench_options *opt;
	json_t *json, *rows;
	uint64_t wrong;
	double bandwidth_sum;
	uint32_t printed;
};

/* One line of the table. */
struct line {
	uint64_t bytes;	 /* that one prefill rank moves in one iteration */
	double time_us;	 /* mean of an iteration */
	double gbps;	 /* mean of the prefill ranks */
	double gbps_all; /* all bytes / from the first begin to the last end */
	double mblocks; /* million blocks a second, each layer and tensor counted, a prefill rank */
	double p50_us, p99_us, p999_us;
	double memcpy_gbps, nt_gbps; /* 0 = not measured */
	uint64_t wrong;
};

struct bench_report *bench_report_begin(const struct bench_options *opt, const char *transport,
					const char *path, const char *spin_us)
{
	struct bench_report *r = need_calloc(1, sizeof(*r));
	char pool[32];

	r->opt = opt;
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
	printf("# waiting: spin %s us, then sleep; check: %s\n", spin_us,
	       opt->check ? "every byte of the decode pools" : "off");
	printf("# GB = 10^9 bytes. memcpy, nt: the same blocks copied by one thread inside one "
	       "process, with\n# memcpy, and with non-temporal stores while the next block is "
	       "prefetched; ratio: bytes / p50 / nt\n# (medians: a busy machine spoils means)\n#\n");
	printf("#%9s %8s %12s %11s %8s %8s %9s %10s %10s %10s %8s %8s %6s %8s\n", "blk_size",
	       "batch", "bytes", "time", "BW", "BW_agg", "MsgRate", "p50", "p99", "p99.9", "memcpy",
	       "nt", "ratio", "#wrong");
	printf("#%9s %8s %12s %11s %8s %8s %9s %10s %10s %10s %8s %8s %6s %8s\n", "(B)", "(blocks)",
	       "(B)", "(us)", "(GB/s)", "(GB/s)", "(M/s)", "(us)", "(us)", "(us)", "(GB/s)",
	       "(GB/s)", "", "");
	fflush(stdout);
	r->rows = json_array();
	r->json = json_pack(
		"{s:s,s:s,s:i,s:i,s:s,s:s,s:b,s:I,s:b,s:i,s:i,s:i,s:i,s:i,s:s,s:b,s:o}", "program",
		"kv_pd_bench", "version", kv_version(), "prefill", (int)opt->job.prefills, "decode",
		(int)opt->job.decodes, "transport", transport, "path", path, "hot", opt->hot,
		"pool_bytes", (json_int_t)opt->pool_bytes, "two_sided", opt->two_sided, "layers",
		(int)opt->layers, "tensors", (int)opt->tensors, "batch", (int)opt->batch,
		"iterations", (int)opt->iters, "warmup", (int)opt->warmup, "spin_us", spin_us,
		"check", opt->check, "rows", r->rows);
	return r;
}

static struct line make_line(const struct bench_options *opt, uint32_t row,
			     const struct bench_row *rows)
{
	struct hist *all = need_calloc(1, sizeof(*all));
	uint64_t begin = UINT64_MAX, end = 0, bytes = 0, blocks, batch_bytes;
	struct line l = { 0 };
	uint32_t i;

	for (i = 0; i < opt->job.prefills + opt->job.decodes; i++)
		l.wrong += rows[i].wrong;
	for (i = 0; i < opt->job.prefills; i++) {
		hist_merge(all, &rows[i].batch);
		begin = rows[i].begin_ns < begin ? rows[i].begin_ns : begin;
		end = rows[i].end_ns > end ? rows[i].end_ns : end;
		bytes += rows[i].bytes;
		if (rows[i].batch.sum_ns)
			l.gbps += (double)rows[i].bytes / (double)rows[i].batch.sum_ns /
				  opt->job.prefills;
	}
	blocks = (uint64_t)opt->batch * opt->job.decodes * opt->layers * opt->tensors;
	l.bytes = blocks * opt->row_bytes[row];
	batch_bytes = l.bytes / opt->job.decodes;
	l.time_us = all->samples ? (double)all->sum_ns / (double)all->samples / 1e3 : 0;
	l.gbps_all = end > begin ? (double)bytes / (double)(end - begin) : 0;
	l.mblocks = l.time_us > 0 ? (double)blocks / l.time_us : 0;
	l.p50_us = (double)hist_percentile(all, 5000) / 1e3;
	l.p99_us = (double)hist_percentile(all, 9900) / 1e3;
	l.p999_us = (double)hist_percentile(all, 9990) / 1e3;
	if (rows[0].memcpy_ns)
		l.memcpy_gbps = (double)batch_bytes / (double)rows[0].memcpy_ns;
	if (rows[0].nt_ns)
		l.nt_gbps = (double)batch_bytes / (double)rows[0].nt_ns;
	free(all);
	return l;
}

/* A number, or "-" where it was not measured. */
static const char *cell(double v, const char *format, char *buf, size_t cap)
{
	if (v > 0)
		snprintf(buf, cap, format, v);
	else
		snprintf(buf, cap, "-");
	return buf;
}

void bench_report_row(struct bench_report *r, uint32_t row, const struct bench_row *rows)
{
	const struct bench_options *opt = r->opt;
	struct line l = make_line(opt, row, rows);
	double median_gbps = l.p50_us > 0 ? (double)l.bytes / l.p50_us / 1e3 : 0;
	double ratio = l.nt_gbps > 0 ? median_gbps / l.nt_gbps : 0;
	char plain[16], nt[16], ratio_text[16], wrong[24];
	uint32_t i;
	int failed = 0;

	for (i = 0; i < opt->job.prefills + opt->job.decodes; i++)
		failed |= rows[i].failed != 0;
	snprintf(wrong, sizeof(wrong), opt->check ? "%llu" : "-", (unsigned long long)l.wrong);
	if (!failed)
		printf("%10llu %8u %12llu %11.1f %8.3f %8.3f %9.4f %10.1f %10.1f %10.1f %8s %8s "
		       "%6s %8s\n",
		       (unsigned long long)opt->row_bytes[row], opt->batch,
		       (unsigned long long)l.bytes, l.time_us, l.gbps, l.gbps_all, l.mblocks,
		       l.p50_us, l.p99_us, l.p999_us,
		       cell(l.memcpy_gbps, "%.3f", plain, sizeof(plain)),
		       cell(l.nt_gbps, "%.3f", nt, sizeof(nt)),
		       cell(ratio, "%.3f", ratio_text, sizeof(ratio_text)), wrong);
	for (i = 0; i < opt->job.prefills + opt->job.decodes; i++)
		if (rows[i].note[0])
			printf("# rank %u: %s\n", i, rows[i].note);
	fflush(stdout);
	if (failed)
		return;
	r->wrong += l.wrong;
	r->bandwidth_sum += l.gbps;
	r->printed++;
	json_array_append_new(r->rows,
			      json_pack("{s:I,s:i,s:I,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:f,s:I}",
					"blk_size", (json_int_t)opt->row_bytes[row], "batch",
					(int)opt->batch, "bytes", (json_int_t)l.bytes, "time_us",
					l.time_us, "gb_per_s", l.gbps, "gb_per_s_aggregate",
					l.gbps_all, "mblocks_per_s", l.mblocks, "p50_us", l.p50_us,
					"p99_us", l.p99_us, "p999_us", l.p999_us, "memcpy_gb_per_s",
					l.memcpy_gbps, "nt_gb_per_s", l.nt_gbps, "ratio_to_nt",
					ratio, "wrong", (json_int_t)l.wrong));
}

int bench_report_end(struct bench_report *r)
{
	int rc = 0;

	if (r->opt->check && r->printed)
		printf("# Out of bounds values : %llu %s\n", (unsigned long long)r->wrong,
		       r->wrong ? "FAILED" : "OK");
	printf("# Avg bandwidth        : %.3f GB/s\n",
	       r->printed ? r->bandwidth_sum / r->printed : 0);
	if (r->printed < r->opt->rows)
		printf("# %u of %u block sizes could not be measured\n", r->opt->rows - r->printed,
		       r->opt->rows);
	fflush(stdout);
	if (r->opt->job.json_path) {
		rc = json_dump_file(r->json, r->opt->job.json_path, JSON_INDENT(2));
		if (rc)
			fprintf(stderr, "%s could not be written\n", r->opt->job.json_path);
	}
	json_decref(r->json);
	free(r);
	return rc;
}
