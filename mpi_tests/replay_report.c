/* SPDX-License-Identifier: Apache-2.0 */
/* replay_report.c -- one table for the whole job, its JSON, and the verdict */
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>

#include "replay.h"
#include "results.h"
#include "util.h"

enum { WHY_MAX = 256 };

/* All ranks together. */
struct total {
	struct replay_result sum; /* counters added; begin/end the extremes */
	uint64_t busiest_ns;	  /* transfer time of the prefill rank that had most */
	uint64_t noticed_ns;	  /* from the kill to the last survivor's first report */
	uint64_t deaths;
	int verdict; /* exit code */
	char why[WHY_MAX];
};

/* Of a rank's result: added for all ranks, and written by name. */
#define SENT(X) X(resent) X(streamed) X(prompt_blocks) X(hit_blocks) X(blocks) X(bytes)
#define CHECKED(X) X(evictions) X(checked_bytes) X(whole_checks) X(wrong_bytes) X(errors)
#define COUNTS(X) X(requests_failed) X(requests_before) SENT(X) CHECKED(X) X(false_success)

static uint32_t ranks_of(const struct replay_options *opt)
{
	return opt->job.prefills + opt->job.decodes;
}

static double gbps(uint64_t bytes, uint64_t ns)
{
	return ns ? (double)bytes / (double)ns : 0;
}

static void add(struct total *t, const struct replay_result *r, int is_decode)
{
	struct replay_result *s = &t->sum;

	s->requests += is_decode ? r->requests : 0;
	s->transfer_ns += r->transfer_ns;
	s->check_ns += r->check_ns;
	s->wrong_blocks += r->wrong_blocks;
	s->lost_ops += r->lost_ops;
	if (s->begin_ns == 0 || (r->begin_ns && r->begin_ns < s->begin_ns))
		s->begin_ns = r->begin_ns;
	if (r->end_ns > s->end_ns)
		s->end_ns = r->end_ns;
	if (r->transfer_ns > t->busiest_ns)
		t->busiest_ns = r->transfer_ns;
	hist_merge(&s->batch, &r->batch);
	timeline_merge(&s->timeline, &r->timeline);
#define ADD(name) s->name += r->name;
	COUNTS(ADD)
}

/*
 * Requests whose decode rank is not the killed one (all, where it is replaced or a prefill rank).
 */
static uint64_t requests_due(const struct replay_job *job)
{
	const struct replay_options *opt = &job->opt;
	uint64_t due = 0;
	uint32_t i;

	for (i = 0; i < job->schedule.requests; i++)
		due += opt->kill_rank < 0 || opt->restart ||
		       opt->kill_rank != (int64_t)(opt->job.prefills + job->schedule.decode[i]);
	return due;
}

static int fail(struct total *t, const char *why)
{
	if (t->verdict == 0)
		snprintf(t->why, sizeof(t->why), "%s", why);
	t->verdict = 1;
	return 1;
}

static void judge_kill(struct total *t, const struct replay_job *job,
		       const struct replay_result *results, const struct rank_fate *fates)
{
	const struct replay_options *opt = &job->opt;
	const struct rank_fate *killed = &fates[opt->kill_rank];
	uint64_t after;
	uint32_t i;

	if (killed->deaths != 1 || killed->killed_ns == 0 || !WIFSIGNALED(killed->status) ||
	    WTERMSIG(killed->status) != SIGKILL) {
		fail(t, "the rank that was to be killed did not die by its SIGKILL");
		return;
	}
	for (i = 0; i < ranks_of(opt); i++) {
		if (results[i].lost_ops == 0)
			continue;
		after = results[i].lost_ns - killed->killed_ns;
		if (after > t->noticed_ns)
			t->noticed_ns = after;
	}
	if (t->sum.lost_ops == 0)
		fail(t, "no survivor reported KV_ERR_PEER_LOST");
	if (t->noticed_ns > (uint64_t)opt->job.timeout_ms * 1000000)
		fail(t, "a survivor noticed the loss only after the deadline");
	if (opt->restart && t->sum.requests_failed)
		fail(t, "requests were given up though the rank was replaced");
}

static void judge(struct total *t, const struct replay_job *job,
		  const struct replay_result *results, const struct rank_fate *fates)
{
	const struct replay_options *opt = &job->opt;
	uint32_t i;

	for (i = 0; i < ranks_of(opt); i++) {
		int is_killed = opt->kill_rank == (int64_t)i;

		if (fates[i].present)
			add(t, &results[i], i >= opt->job.prefills);
		t->deaths += fates[i].deaths;
		if (!fates[i].present && (!is_killed || opt->restart))
			fail(t, "a rank died without a result");
		else if (fates[i].deaths && !is_killed)
			fail(t, "a rank died");
	}
	if (t->sum.wrong_bytes)
		fail(t, "bytes are wrong");
	if (t->sum.false_success)
		fail(t, "an operation succeeded that cannot have");
	if (t->sum.errors)
		fail(t, "operations failed");
	if (opt->kill_rank >= 0)
		judge_kill(t, job, results, fates);
	else if (t->sum.lost_ops)
		fail(t, "peers were lost though nobody was killed");
	if (t->sum.requests + t->sum.requests_failed + t->sum.requests_before != requests_due(job))
		fail(t, "not all requests were served");
}

static void print_head(const struct replay_job *job, const struct replay_result *results, FILE *out)
{
	const struct replay_options *opt = &job->opt;
	const struct model *m = opt->model;
	char pool[32], source[32];

	fprintf(out, "# kv_pd_replay, kvrail %s\n", kv_version());
	fprintf(out, "# %u prefill and %u decode ranks, %s; trace %s, requests %u to %u\n",
		opt->job.prefills, opt->job.decodes,
		opt->job.local ? "forked (--local)" : "under MPI", opt->trace_path, opt->first,
		opt->first + job->trace.requests - 1);
	fprintf(out,
		"# model %s: %u of %u layers moved, %llu bytes a block and layer; input tokens / "
		"%u\n",
		m->name, opt->layers, m->layers, (unsigned long long)model_layer_bytes(m),
		opt->cut.scale);
	fprintf(out, "# pools: decode %s, prefill %s a rank%s; transport %s, path: %s\n",
		size_text(opt->pool_bytes, pool, sizeof(pool)),
		size_text(opt->source_bytes, source, sizeof(source)),
		opt->job.gpu < 0 ? "" : ", on a GPU", results[opt->job.prefills].transport,
		results[opt->job.prefills].path);
	fprintf(out,
		"# GB/s: bytes (1 GB = 10^9) / time that prefill ranks spent in transfers, "
		"waiting\n"
		"# for the acknowledgement included, computing and checking excluded; one "
		"operation\n"
		"# is one layer of a request or of a part of it; all: bytes of all / time of the\n"
		"# rank that had most; a prefill rank counts each part of a request that was "
		"streamed\n");
}

static void print_row(const char *who, const struct replay_result *r, uint64_t requests,
		      uint64_t time_ns, FILE *out)
{
	fprintf(out, "%-12s %9llu %10llu %15llu %9llu %10.3f %8.3f %9.1f %9.1f %9.1f\n", who,
		(unsigned long long)requests, (unsigned long long)r->blocks,
		(unsigned long long)r->bytes, (unsigned long long)r->batch.samples,
		(double)time_ns / 1e9, gbps(r->bytes, time_ns),
		(double)hist_percentile(&r->batch, 5000) / 1e3,
		(double)hist_percentile(&r->batch, 9900) / 1e3,
		(double)hist_percentile(&r->batch, 9990) / 1e3);
}

static void print_ranks(const struct replay_options *opt, const struct total *t,
			const struct replay_result *results, const struct rank_fate *fates,
			FILE *out)
{
	char who[32];
	uint32_t i;

	fprintf(out, "%-12s %9s %10s %15s %9s %10s %8s %9s %9s %9s\n", "#", "requests", "blocks",
		"bytes", "ops", "time(s)", "GB/s", "p50(us)", "p99(us)", "p99.9(us)");
	for (i = 0; i < opt->job.prefills; i++) {
		snprintf(who, sizeof(who), "prefill %u", i);
		if (fates[i].present)
			print_row(who, &results[i], results[i].requests, results[i].transfer_ns,
				  out);
		else
			fprintf(out, "%-12s died\n", who);
	}
	print_row("all", &t->sum, t->sum.requests + t->sum.requests_before, t->busiest_ns, out);
}

static void print_total(const struct replay_job *job, const struct total *t, FILE *out)
{
	const struct replay_result *s = &t->sum;
	double wall = (double)(s->end_ns - s->begin_ns) / 1e9;

	fprintf(out, "requests          %llu of %u served\n",
		(unsigned long long)(s->requests + s->requests_before), job->trace.requests);
	fprintf(out, "prefix hits       %llu of %llu blocks (%.1f %%), not sent again\n",
		(unsigned long long)s->hit_blocks, (unsigned long long)s->prompt_blocks,
		s->prompt_blocks ? 100.0 * (double)s->hit_blocks / (double)s->prompt_blocks : 0);
	fprintf(out, "evictions         %llu blocks; %llu requests streamed in parts\n",
		(unsigned long long)s->evictions, (unsigned long long)s->streamed);
	fprintf(out, "checked           %llu bytes in %.3f s; whole pools %llu times\n",
		(unsigned long long)s->checked_bytes, (double)s->check_ns / 1e9,
		(unsigned long long)s->whole_checks);
	fprintf(out, "wall time         %.3f s\n", wall);
	fprintf(out, "errors            %llu\n", (unsigned long long)s->errors);
	fprintf(out, "wrong bytes       %llu", (unsigned long long)s->wrong_bytes);
	fprintf(out, s->wrong_bytes ? " in %llu places\n" : "\n",
		(unsigned long long)s->wrong_blocks);
}

static void print_kill(const struct replay_options *opt, const struct total *t, FILE *out)
{
	const struct replay_result *s = &t->sum;

	if (opt->kill_rank < 0)
		return;
	fprintf(out, "killed            rank %lld (%s %lld) at request %u or the next it had\n",
		(long long)opt->kill_rank,
		opt->kill_rank < opt->job.prefills ? "prefill" : "decode",
		(long long)(opt->kill_rank < opt->job.prefills
				    ? opt->kill_rank
				    : opt->kill_rank - opt->job.prefills),
		opt->kill_request);
	fprintf(out,
		"survivors         %llu operations ended with KV_ERR_PEER_LOST, the first at the "
		"slowest survivor after %.3f ms;\n"
		"                  %llu succeeded wrongly; %llu requests given up, %llu chunks "
		"sent again\n",
		(unsigned long long)s->lost_ops, (double)t->noticed_ns / 1e6,
		(unsigned long long)s->false_success, (unsigned long long)s->requests_failed,
		(unsigned long long)s->resent);
	if (opt->restart)
		fprintf(out,
			"replacement       served on; what the killed process had counted is lost, "
			"but for\n"
			"                  %llu finished requests\n",
			(unsigned long long)s->requests_before);
}

static void print_notes(const struct replay_options *opt, const struct replay_result *results,
			const struct rank_fate *fates, FILE *out)
{
	uint32_t i, n;

	for (i = 0; i < ranks_of(opt); i++) {
		if (fates[i].deaths && opt->kill_rank != (int64_t)i) {
			int s = fates[i].status;

			fprintf(out, "# rank %u died: %s %d\n", i,
				WIFSIGNALED(s) ? "signal" : "exit code",
				WIFSIGNALED(s) ? WTERMSIG(s) : WEXITSTATUS(s));
		}
		for (n = 0; fates[i].present && n < results[i].notes; n++)
			fprintf(out, "# rank %u: %s\n", i, results[i].note[n]);
	}
}

/* What a rank, or all of them, did: members of the object that is open. */
static void put_result(struct results *r, const struct replay_result *s, uint64_t time_ns)
{
	results_integer(r, "requests", s->requests);
#define PUT(name) results_integer(r, #name, s->name);
	COUNTS(PUT)
	results_integer(r, "operations", s->batch.samples);
	results_integer(r, "peer_lost_operations", s->lost_ops);
	results_number(r, "transfer_s", (double)time_ns / 1e9);
	results_number(r, "gb_per_s", gbps(s->bytes, time_ns));
	results_number(r, "p50_us", (double)hist_percentile(&s->batch, 5000) / 1e3);
	results_number(r, "p99_us", (double)hist_percentile(&s->batch, 9900) / 1e3);
	results_number(r, "p999_us", (double)hist_percentile(&s->batch, 9990) / 1e3);
}

static void put_ranks(struct results *r, const struct replay_options *opt,
		      const struct replay_result *results, const struct rank_fate *fates)
{
	uint32_t i;

	results_open(r, "ranks", '[');
	for (i = 0; i < ranks_of(opt); i++) {
		results_open(r, NULL, '{');
		results_integer(r, "rank", i);
		results_text(r, "role", i < opt->job.prefills ? "prefill" : "decode");
		results_integer(r, "deaths", fates[i].deaths);
		if (fates[i].present)
			put_result(r, &results[i], results[i].transfer_ns);
		results_close(r);
	}
	results_close(r);
}

/* NAN where nothing was sent. */
static double interval_us(const struct timeline_interval *at, uint32_t per_mille_10)
{
	return at->bytes ? (double)hist_percentile(&at->took, per_mille_10) / 1e3 : NAN;
}

/* The rows: what was sent in each interval of time. */
static void put_timeline(struct results *r, const struct timeline *t)
{
	uint32_t i, n = 0;

	for (i = 0; i < TIMELINE_INTERVALS; i++)
		if (t->at[i].bytes)
			n = i + 1;
	results_open(r, "rows", '[');
	for (i = 0; i < n; i++) {
		const struct timeline_interval *at = &t->at[i];

		results_open(r, NULL, '{');
		results_number(r, "begin_s", (double)(i * t->width_ns) / 1e9);
		results_number(r, "length_s", (double)t->width_ns / 1e9);
		results_integer(r, "bytes", at->bytes);
		results_integer(r, "operations", at->took.samples);
		results_number(r, "p50_us", interval_us(at, 5000));
		results_number(r, "p99_us", interval_us(at, 9900));
		results_close(r);
	}
	results_close(r);
}

static int write_json(const struct replay_job *job, const struct total *t,
		      const struct replay_result *results, const struct rank_fate *fates)
{
	const struct replay_options *opt = &job->opt;
	const struct replay_result *seen = &results[opt->job.prefills];
	struct results *r =
		results_new(opt->job.program, opt->job.command, seen->transport, seen->path, NULL);

	results_open(r, "settings", '{');
	results_text(r, "model", opt->model->name);
	results_text(r, "trace", opt->trace_path);
	results_integer(r, "first", opt->first);
	results_integer(r, "trace_requests", job->trace.requests);
	results_integer(r, "prefill", opt->job.prefills);
	results_integer(r, "decode", opt->job.decodes);
	results_integer(r, "layers", opt->layers);
	results_text(r, "memory", opt->job.gpu < 0 ? "host" : "cuda");
	results_integer(r, "scale", opt->cut.scale);
	results_integer(r, "pool_bytes", opt->pool_bytes);
	results_integer(r, "source_bytes", opt->source_bytes);
	results_close(r);
	results_integer(r, "exit_code", (uint64_t)t->verdict);
	results_text(r, "why", t->why);
	results_number(r, "wall_s", (double)(t->sum.end_ns - t->sum.begin_ns) / 1e9);
	results_number(r, "peer_lost_noticed_ms", (double)t->noticed_ns / 1e6);
	results_open(r, "total", '{');
	put_result(r, &t->sum, t->busiest_ns);
	results_close(r);
	put_ranks(r, opt, results, fates);
	put_timeline(r, &t->sum.timeline);
	return results_end(r, opt->job.json_path);
}

int replay_report(const struct replay_job *job, const struct replay_result *results,
		  const struct rank_fate *fates, FILE *out)
{
	struct total *t = need_calloc(1, sizeof(*t));
	int verdict;

	judge(t, job, results, fates);
	if (out) {
		print_head(job, results, out);
		print_ranks(&job->opt, t, results, fates, out);
		print_total(job, t, out);
		print_kill(&job->opt, t, out);
		print_notes(&job->opt, results, fates, out);
		if (job->opt.job.json_path && write_json(job, t, results, fates))
			fail(t, "the JSON file could not be written");
		if (t->verdict)
			fprintf(out, "verdict           FAILED: %s\n", t->why);
		else
			fprintf(out, "verdict           OK\n");
	}
	verdict = t->verdict;
	free(t);
	return verdict;
}
