/* SPDX-License-Identifier: Apache-2.0 */
/* report.c -- the table of kvrail bench, its progress and its JSON */
#include "bench.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "results.h"
#include "util.h"

enum { PROGRESS_TTY_MS = 200, PROGRESS_MS = 10000 };

static const struct results_column columns[] = {
	{ "block", "(B)", "block_bytes", 9, 0 }, { "operation", "(B)", "bytes", 11, 0 },
	{ "p1", "(us)", "p1_us", 9, 1 },	 { "p50", "(us)", "p50_us", 9, 1 },
	{ "p99", "(us)", "p99_us", 9, 1 },	 { "p99.9", "(us)", "p999_us", 9, 1 },
	{ "speed", "(GB/s)", "gb_per_s", 8, 3 }, { "floor", "(GB/s)", "floor_gb_per_s", 8, 3 },
	{ "ratio", "", "ratio", 6, 3 },		 { "wrong", "(B)", "wrong", 8, 0 },
};

struct bench_report {
	const struct bench_options *opt;
	FILE *table;
	struct results *results; /* NULL: nothing was measured */
	uint64_t wrong, told_ns;
	uint32_t rows;
	bool tty, dirty; /* dirty: a progress line stands on the terminal */
};

static bool to_stdout(const struct bench_options *opt)
{
	return opt->json_path && !strcmp(opt->json_path, "-");
}

int bench_report_open(struct bench_report **r_p, const struct bench_options *opt)
{
	struct bench_report *r;

	if (!to_stdout(opt) && results_can_write("kvrail bench", opt->json_path))
		return -1;
	r = calloc(1, sizeof(*r));
	if (!r) {
		fprintf(stderr, "kvrail bench: out of memory\n");
		return -1;
	}
	r->opt = opt;
	r->table = to_stdout(opt) ? stderr : stdout;
	r->tty = isatty(STDERR_FILENO);
	*r_p = r;
	return 0;
}

static struct results *begin_results(const struct bench_options *opt, const char *transport,
				     const char *path, const char *wait)
{
	struct results *r = results_new("kvrail bench", opt->command, transport, path, wait);

	if (to_stdout(opt))
		results_on_stdout(r);
	results_open(r, "settings", '{');
	results_text(r, "version", kv_version());
	results_integer(r, "seed", opt->plan.seed);
	results_integer(r, "batch_blocks", opt->plan.batch);
	results_integer(r, "iterations", opt->iters);
	results_integer(r, "warmup", opt->warmup);
	results_close(r);
	return r;
}

static void option_value(struct kv_engine *engine, const char *name, char *buf, size_t cap)
{
	struct kv_option_info option = KV_INIT(kv_option_info);

	snprintf(buf, cap, "?");
	for (size_t i = 0; !kv_option_get(engine, i, &option, NULL); i++)
		if (!strcmp(option.name, name))
			snprintf(buf, cap, "%s", option.value);
}

void bench_report_begin(struct bench_report *r, struct bench_side *s)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	const struct bench_options *opt = r->opt;
	char spin[16], wait[64];
	const char *stores;

	kv_peer_info(s->peer, &info, NULL);
	option_value(s->engine, "KVCACHE_SPIN_US", spin, sizeof(spin));
	snprintf(wait, sizeof(wait), "spin %s us, then sleep", spin);
	bench_copy(opt->plan.row_bytes[0], &stores);
	fprintf(r->table,
		"# kvrail bench, kvrail %s, to %s\n"
		"# transport %s, path: %s\n"
		"# waiting: %s\n"
		"# %u blocks an operation, ids shuffled on both sides; %u operations after %u\n"
		"# every byte is checked at the receiver after each round; GB = 10^9 bytes\n"
		"# floor: one thread of this process copies the same blocks (%s);\n"
		"# ratio: operation / p50 / floor\n#\n",
		kv_version(), info.address, info.transport, info.path, wait, opt->plan.batch,
		opt->iters, opt->warmup, stores);
	r->results = begin_results(opt, info.transport, info.path, wait);
	results_table(r->results, columns, sizeof(columns) / sizeof(*columns));
}

static void wipe(struct bench_report *r)
{
	if (r->dirty)
		fputs("\r\033[K", stderr);
	r->dirty = false;
}

void bench_report_progress(struct bench_report *r, uint32_t row, uint32_t done, uint32_t of)
{
	uint64_t now = now_ns(),
		 every = (r->tty ? PROGRESS_TTY_MS : PROGRESS_MS) * UINT64_C(1000000);
	char size[32];

	if (!r->told_ns)
		r->told_ns = now;
	if (now - r->told_ns < every)
		return;
	r->told_ns = now;
	fprintf(stderr, "%sblocks of %s (%u of %u sizes): %u of %u operations%s",
		r->tty ? "\r" : "", size_text(r->opt->plan.row_bytes[row], size, sizeof(size)),
		row + 1, r->opt->plan.rows, done, of, r->tty ? "\033[K" : "\n");
	r->dirty = r->tty;
}

void bench_report_note(struct bench_report *r, const char *text)
{
	wipe(r);
	fprintf(r->table, "# %s\n", text);
}

static double us(uint64_t ns)
{
	return (double)ns / 1e3;
}

void bench_report_row(struct bench_report *r, uint32_t row, const struct bench_row *line)
{
	const struct bench_plan *plan = &r->opt->plan;
	double bytes = (double)plan->batch * (double)plan->row_bytes[row];
	double floor = line->floor_ns ? bytes / (double)line->floor_ns : NAN;

	wipe(r);
	results_cell(r->results, (double)plan->row_bytes[row]);
	results_cell(r->results, bytes);
	results_cell(r->results, us(line->p1_ns));
	results_cell(r->results, us(line->p50_ns));
	results_cell(r->results, us(line->p99_ns));
	results_cell(r->results, us(line->p999_ns));
	results_cell(r->results, bytes * (double)line->samples / (double)line->sum_ns);
	results_cell(r->results, floor);
	results_cell(r->results, bytes / (double)line->p50_ns / floor);
	results_cell(r->results, (double)line->wrong);
	r->wrong += line->wrong;
	r->rows++;
}

int bench_report_end(struct bench_report *r, int status, const char *error)
{
	struct results *results = r->results;
	const char *json = r->opt->json_path;

	wipe(r);
	if (r->wrong && !status)
		status = 1;
	if (r->rows)
		fprintf(r->table, "# wrong bytes: %llu %s\n", (unsigned long long)r->wrong,
			r->wrong ? "FAILED"
			: status ? "so far"
				 : "OK");
	fflush(r->table);
	if (!results) {
		results = begin_results(r->opt, NULL, NULL, NULL);
		results_open(results, "rows", '[');
	}
	results_close(results);
	results_integer(results, "exit_code", (uint64_t)status);
	results_text(results, "why", error);
	if (results_end(results, json) && !status)
		status = 1;
	free(r);
	return status;
}
