/* SPDX-License-Identifier: Apache-2.0 */
/* report.c -- the table of kvrail bench, its progress and its JSON */
#include "bench.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jansson.h>

#include "util.h"

enum { PROGRESS_TTY_MS = 200, PROGRESS_MS = 10000 };

struct bench_report {
	const struct bench_options *opt;
	FILE *table;
	int json_fd; /* -1: none */
	json_t *json, *rows;
	uint64_t wrong, told_ns;
	bool tty, dirty; /* dirty: a progress line stands on the terminal */
};

int bench_report_open(struct bench_report **r_p, const struct bench_options *opt)
{
	struct bench_report *r = calloc(1, sizeof(*r));
	int fd = -1;

	if (opt->json_path && !strcmp(opt->json_path, "-"))
		fd = dup(STDOUT_FILENO);
	else if (opt->json_path)
		fd = open(opt->json_path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
	if (!r || (opt->json_path && fd < 0)) {
		fprintf(stderr, "kvrail bench: %s cannot be written: %s\n",
			r ? opt->json_path : "a report", strerror(errno));
		free(r);
		return -1;
	}
	r->opt = opt;
	r->json_fd = fd;
	r->table = opt->json_path && !strcmp(opt->json_path, "-") ? stderr : stdout;
	r->tty = isatty(STDERR_FILENO);
	r->rows = json_array();
	r->json = json_pack("{ss ss sI si si si ss sO}", "program", "kvrail bench", "version",
			    kv_version(), "seed", (json_int_t)opt->plan.seed, "batch",
			    (int)opt->plan.batch, "iterations", (int)opt->iters, "warmup",
			    (int)opt->warmup, "check", "every byte", "rows", r->rows);
	*r_p = r;
	return 0;
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
	char spin[16];

	kv_peer_info(s->peer, &info, NULL);
	option_value(s->engine, "KVCACHE_SPIN_US", spin, sizeof(spin));
	fprintf(r->table,
		"# kvrail bench, kvrail %s, to %s\n"
		"# transport %s, path: %s\n"
		"# waiting: spin %s us, then sleep\n"
		"# %u blocks an operation, ids shuffled on both sides; %u operations after %u\n"
		"# every byte is checked at the receiver after each round; GB = 10^9 bytes\n"
		"# memcpy: the same blocks copied inside this process by one thread\n#\n"
		"#%9s %12s %10s %10s %10s %8s %8s %8s\n",
		kv_version(), info.address, info.transport, info.path, spin, opt->plan.batch,
		opt->iters, opt->warmup, "block", "operation", "p50", "p99", "p99.9", "speed",
		"memcpy", "wrong");
	fprintf(r->table, "#%9s %12s %10s %10s %10s %8s %8s %8s\n", "(B)", "(B)", "(us)", "(us)",
		"(us)", "(GB/s)", "(GB/s)", "(B)");
	fflush(r->table);
	json_object_update_new(r->json,
			       json_pack("{ss ss ss ss}", "peer", info.address, "transport",
					 info.transport, "path", info.path, "spin_us", spin));
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
	uint64_t bytes = plan->batch * plan->row_bytes[row];
	double total = (double)bytes * (double)line->samples;
	double speed = line->sum_ns ? total / (double)line->sum_ns : 0;
	double floor = line->floor_ns ? (double)bytes / (double)line->floor_ns : 0;

	wipe(r);
	fprintf(r->table, "%10llu %12llu %10.1f %10.1f %10.1f %8.3f %8.3f %8llu\n",
		(unsigned long long)plan->row_bytes[row], (unsigned long long)bytes,
		us(line->p50_ns), us(line->p99_ns), us(line->p999_ns), speed, floor,
		(unsigned long long)line->wrong);
	fflush(r->table);
	r->wrong += line->wrong;
	json_array_append_new(
		r->rows, json_pack("{sI si sI sf sf sf sf sf sf sI}", "blk_size",
				   (json_int_t)plan->row_bytes[row], "batch", (int)plan->batch,
				   "bytes", (json_int_t)bytes, "time_us",
				   line->samples ? us(line->sum_ns) / (double)line->samples : 0,
				   "gb_per_s", speed, "p50_us", us(line->p50_ns), "p99_us",
				   us(line->p99_ns), "p999_us", us(line->p999_ns),
				   "memcpy_gb_per_s", floor, "wrong", (json_int_t)line->wrong));
}

/* The file was opened before the measurement; what it held goes now. */
static int write_json(struct bench_report *r)
{
	FILE *out;
	int ret;

	if (r->json_fd < 0)
		return 0;
	ret = ftruncate(r->json_fd, 0) && errno != EINVAL; /* EINVAL: a pipe or a terminal */
	out = fdopen(r->json_fd, "w");
	ret |= !out || json_dumpf(r->json, out, JSON_INDENT(2)) || fputc('\n', out) == EOF;
	ret |= out && fclose(out);
	if (ret)
		fprintf(stderr, "kvrail bench: %s cannot be written: %s\n", r->opt->json_path,
			strerror(errno));
	return ret;
}

int bench_report_end(struct bench_report *r, int status, const char *error)
{
	wipe(r);
	if (r->wrong && !status)
		status = 1;
	if (json_array_size(r->rows))
		fprintf(r->table, "# wrong bytes: %llu %s\n", (unsigned long long)r->wrong,
			r->wrong ? "FAILED"
			: status ? "so far"
				 : "OK");
	fflush(r->table);
	json_object_set_new(r->json, "ok", json_boolean(!status));
	if (*error)
		json_object_set_new(r->json, "error", json_string(error));
	if (write_json(r) && !status)
		status = 1;
	json_decref(r->rows);
	json_decref(r->json);
	free(r);
	return status;
}
