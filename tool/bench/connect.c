/* SPDX-License-Identifier: Apache-2.0 */
/* connect.c -- kvrail bench HOST: the side that writes and measures */
#include "bench.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "hist.h"
#include "util.h"

/* Of one block size. */
struct row_work {
	int64_t *from, *to;
	struct hist times;
	uint32_t done; /* batches, those of the warm-up too */
};

static int receive(struct bench_side *s, struct bench_message *m, int64_t timeout_ms)
{
	static const int64_t in = 1;
	struct kv_options options = KV_INIT(kv_options);
	const struct kv_layers all = { 0 };
	int ret;

	options.timeout_ms = timeout_ms;
	ret = kv_recv_blocks(s->peer, s->control, all, &in, 1, 0, &options, &s->err);
	memcpy(m, s->messages + BENCH_CONTROL_BYTES, sizeof(*m));
	m->text[sizeof(m->text) - 1] = 0;
	return ret;
}

static int ask(struct bench_side *s, struct bench_message *m, int64_t timeout_ms)
{
	int ret = bench_send(s, m, timeout_ms);

	return ret ? ret : receive(s, m, timeout_ms);
}

static void leave(struct bench_side *s)
{
	if (s->peer)
		kv_peer_close(s->peer, BENCH_CLOSE_MS, NULL);
	s->peer = NULL;
}

/* Says what failed, and what can be done about it where the other side is not there, or busy. */
static int complain_with_fix(struct bench_side *s, const struct bench_options *opt,
			     const char *what)
{
	int code = s->err.code, status = bench_complain(s, what);

	if (bench_interrupted)
		return status;
	if (code == KV_ERR_TIMEOUT || s->err.sys_errno == ECONNREFUSED)
		fprintf(stderr,
			"fix: there: kvrail bench --listen ADDRESS:%u, with an address of that host; "
			"a firewall must let TCP port %u in\n",
			opt->port, opt->port);
	else if (code == KV_ERR_PEER_LOST || code == KV_ERR_CLOSED)
		fprintf(stderr, "fix: it serves one run at a time: try again when it is free\n");
	return status;
}

static int reach(struct bench_side *s, const struct bench_options *opt)
{
	if (kv_connect(s->engine, opt->host, opt->port, opt->plan.timeout_ms, &s->peer, &s->err))
		return complain_with_fix(s, opt, "cannot connect");
	return 0;
}

/* The listening side makes its memory ready; then this one connects again, with all caches. */
static int prepare(struct bench_side *s, const struct bench_options *opt)
{
	struct bench_message m = { .kind = BENCH_PLAN, .plan = opt->plan };
	int ret = reach(s, opt);

	if (ret)
		return ret;
	if (ask(s, &m, opt->plan.timeout_ms))
		return complain_with_fix(s, opt, "the listening side did not answer");
	leave(s);
	if (m.kind != BENCH_READY) {
		snprintf(s->said, sizeof(s->said), "the listening side refused: %s", m.text);
		fprintf(stderr, "kvrail bench: %s\n", s->said);
		return 1;
	}
	if (bench_side_take(s, &opt->plan))
		return bench_complain(s, "cannot take the memory");
	return reach(s, opt);
}

static int write_batch(struct bench_side *s, const struct bench_options *opt, uint32_t row,
		       struct row_work *w, uint32_t batch)
{
	size_t at = (size_t)batch * opt->plan.batch;
	struct kv_options options = KV_INIT(kv_options);
	const struct kv_layers all = { 0 };
	uint64_t began = now_ns();
	int ret;

	options.timeout_ms = opt->plan.timeout_ms;
	ret = kv_write_blocks(s->peer, s->cache[row], all, w->from + at, w->to + at,
			      opt->plan.batch, &options, &s->err);
	if (!ret && w->done++ >= opt->warmup)
		hist_add(&w->times, now_ns() - began);
	return ret;
}

/* One round: 0, or the exit status. */
static int run_round(struct bench_side *s, const struct bench_options *opt, uint32_t row,
		     struct row_work *w, struct bench_message *m, struct bench_report *r)
{
	uint32_t of = opt->warmup + opt->iters, left = of - w->done;

	if (m->batches > left)
		m->batches = left;
	bench_fill(&opt->plan, s->pool, row, m->round, m->batches, w->from);
	for (uint32_t batch = 0; batch < m->batches; batch++) {
		if (bench_interrupted || write_batch(s, opt, row, w, batch))
			return bench_complain(s, "a write failed");
		bench_report_progress(r, row, w->done, of);
	}
	m->kind = BENCH_CHECK;
	m->row = row;
	if (ask(s, m, opt->plan.timeout_ms))
		return bench_complain(s, "the listening side did not check");
	return 0;
}

static int run_row(struct bench_side *s, const struct bench_options *opt, uint32_t row,
		   struct row_work *w, struct bench_report *r)
{
	struct bench_message m;
	struct bench_row line = { 0 };
	int ret = 0;

	for (uint32_t round = 0; w->done < opt->warmup + opt->iters && !ret; round++) {
		memset(&m, 0, sizeof(m));
		m.round = round;
		m.batches = bench_round_batches(&opt->plan, row);
		ret = run_round(s, opt, row, w, &m, r);
		if (!ret && m.wrong && !line.wrong)
			bench_report_note(r, m.text);
		line.wrong += ret ? 0 : m.wrong;
	}
	if (ret)
		return ret;
	line.floor_ns = bench_floor(&opt->plan, s->pool, row, w->from, w->to);
	line.samples = w->times.samples;
	line.sum_ns = w->times.sum_ns;
	line.p1_ns = hist_percentile(&w->times, 100);
	line.p50_ns = hist_percentile(&w->times, 5000);
	line.p99_ns = hist_percentile(&w->times, 9900);
	line.p999_ns = hist_percentile(&w->times, 9990);
	bench_report_row(r, row, &line);
	return 0;
}

static int run_rows(struct bench_side *s, const struct bench_options *opt, struct bench_report *r)
{
	struct row_work *w;
	int ret = 0;

	for (uint32_t row = 0; row < opt->plan.rows && !ret; row++) {
		w = calloc(1, sizeof(*w));
		if (w) {
			w->from = bench_ids(&opt->plan, row, false);
			w->to = bench_ids(&opt->plan, row, true);
		}
		if (w && w->from && w->to) {
			ret = run_row(s, opt, row, w, r);
		} else {
			fprintf(stderr, "kvrail bench: out of memory\n");
			ret = 1;
		}
		if (w) {
			free(w->from);
			free(w->to);
		}
		free(w);
	}
	return ret;
}

int bench_connect(const struct bench_options *opt)
{
	struct bench_message done = { .kind = BENCH_DONE };
	struct bench_side s = { 0 };
	struct bench_report *r;
	int ret;

	if (bench_report_open(&r, opt))
		return 1;
	if (bench_side_open(&s, "kvrail bench")) {
		ret = bench_complain(&s, "cannot begin");
		return bench_report_end(r, ret, s.said);
	}
	ret = prepare(&s, opt);
	if (!ret) {
		bench_report_begin(r, &s);
		ret = run_rows(&s, opt, r);
		if (!ret && bench_send(&s, &done, opt->plan.timeout_ms))
			ret = bench_complain(&s, "the listening side is gone");
	}
	leave(&s);
	bench_side_close(&s);
	return bench_report_end(r, ret, s.said);
}
