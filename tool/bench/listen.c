/* SPDX-License-Identifier: Apache-2.0 */
/* listen.c -- kvrail bench --listen: the side that is written to, and checks every byte */
#include "bench.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"

enum event { EVENT_UP, EVENT_MESSAGE, EVENT_LOST, EVENT_SILENT, EVENT_FAILED };

enum { ANSWER_MS = 10000 }; /* for the plan, and at least to connect again */

static const int64_t in_id = 1;

/* What one run has moved. */
struct account {
	uint64_t bytes, wrong;
};

/*
 * What happens next on the connection that is served. Blocks that arrive are a sign of life: it is
 * silent after timeout_ms without them. Others that connect meanwhile are closed.
 */
static enum event next_event(struct bench_side *s, int64_t timeout_ms)
{
	struct pollfd fd = { .fd = kv_arrivals_fd(s->engine), .events = POLLIN };
	uint64_t heard = now_ns();

	while (!bench_interrupted) {
		struct kv_arrival a;
		int n = kv_poll_arrivals(s->engine, &a, 1, &s->err);

		if (n < 0)
			return EVENT_FAILED;
		if (!n) {
			if (now_ns() - heard > (uint64_t)timeout_ms * 1000000)
				return EVENT_SILENT;
			poll(&fd, 1, BENCH_SLICE_MS);
		} else if (a.kind == KV_ARRIVAL_PEER_UP && !s->peer) {
			s->peer = a.peer;
			return EVENT_UP;
		} else if (a.peer != s->peer) {
			kv_peer_close(a.peer, BENCH_CLOSE_MS, NULL);
		} else if (a.kind == KV_ARRIVAL_PEER_LOST) {
			return EVENT_LOST;
		} else if (a.kind == KV_ARRIVAL_BLOCKS) {
			heard = now_ns();
			if (a.cache == s->control)
				return EVENT_MESSAGE;
		}
	}
	return EVENT_FAILED;
}

static void part(struct bench_side *s)
{
	if (s->peer)
		kv_peer_close(s->peer, BENCH_CLOSE_MS, NULL);
	s->peer = NULL;
	s->inbox = NULL;
}

/* Opens the block that the next message comes in. */
static int open_inbox(struct bench_side *s)
{
	int ret = s->inbox ? kv_revoke(s->inbox, ANSWER_MS, &s->err) : 0;

	s->inbox = NULL;
	if (!ret)
		ret = kv_blocks_open(s->peer, s->control, &in_id, 1, 0, KV_TIMEOUT_MAX_MS,
				     &s->inbox, &s->err);
	return ret;
}

/* Says why the run cannot go on; 1, or the status of Ctrl-C. */
static int give_up(struct bench_side *s, enum event event, const char *awaited)
{
	if (event == EVENT_FAILED)
		return bench_complain(s, "the run cannot go on");
	fprintf(stderr, "kvrail bench: %s while %s was awaited\n",
		event == EVENT_SILENT ? "nothing came" : "the connecting side ended", awaited);
	return 1;
}

/* 0 with a message in *m, or the exit status. */
static int next_message(struct bench_side *s, struct bench_message *m, int64_t timeout_ms,
			const char *awaited)
{
	enum event event = EVENT_LOST;
	int ret = open_inbox(s);

	if (!ret)
		event = next_event(s, timeout_ms);
	else if (ret != KV_ERR_PEER_LOST)
		return bench_complain(s, "the connection failed");
	if (event != EVENT_MESSAGE)
		return give_up(s, event, awaited);
	memcpy(m, s->messages + BENCH_CONTROL_BYTES, sizeof(*m));
	return 0;
}

static bool plan_is_sound(const struct bench_plan *plan, char *text, size_t cap)
{
	const char *bad = NULL;

	if (memcmp(plan->magic, BENCH_MAGIC, sizeof(plan->magic)))
		bad = "it is another version of kvrail bench";
	else if (!plan->batch || plan->batch > KV_CALL_BLOCKS_MAX || !plan->rows ||
		 plan->rows > BENCH_ROWS_MAX || !plan->timeout_ms ||
		 plan->timeout_ms > KV_TIMEOUT_MAX_MS)
		bad = "its numbers are out of range";
	for (uint32_t row = 0; !bad && row < plan->rows; row++)
		if (!plan->row_bytes[row] || plan->row_bytes[row] > BENCH_POOL_MAX / plan->batch)
			bad = "a batch of the largest blocks is above 8 GiB: a smaller --batch or "
			      "--max-bytes";
	if (bad)
		snprintf(text, cap, "%s", bad);
	return !bad;
}

/* The first connection: what is asked for, and whether this side can. */
static int take_plan(struct bench_side *s, struct bench_plan *plan)
{
	struct bench_message m;
	int ret = next_message(s, &m, ANSWER_MS, "its plan");

	if (ret)
		return ret;
	*plan = m.plan;
	m = (struct bench_message){ .kind = BENCH_READY };
	if (!plan_is_sound(plan, m.text, sizeof(m.text))) {
		m.kind = BENCH_REFUSED;
	} else if (bench_side_take(s, plan)) {
		m.kind = BENCH_REFUSED;
		kv_error_format(&s->err, m.text, sizeof(m.text));
	}
	/* It leaves as soon as it has the answer, maybe before this side knows that. */
	if (bench_send(s, &m, ANSWER_MS) && s->err.code != KV_ERR_PEER_LOST)
		ret = bench_complain(s, "the answer could not be sent");
	part(s);
	if (!ret && m.kind == BENCH_REFUSED) {
		fprintf(stderr, "kvrail bench: a run was refused: %s\n", m.text);
		ret = 1;
	}
	return ret;
}

static int check_round(struct bench_side *s, const struct bench_options *opt,
		       const struct bench_plan *plan, struct bench_message *m, struct account *sum)
{
	struct bench_message verdict = { .kind = BENCH_VERDICT };
	int64_t *ids;

	if (m->row >= plan->rows || m->batches > bench_round_batches(plan, m->row)) {
		fprintf(stderr,
			"kvrail bench: the connecting side names a round that is not there\n");
		return 1;
	}
	ids = bench_ids(plan, m->row, true);
	if (!ids) {
		fprintf(stderr, "kvrail bench: out of memory\n");
		return 1;
	}
	if (opt->corrupt && !m->row && !m->round)
		s->pool[(uint64_t)ids[0] * plan->row_bytes[0]] ^= 1;
	verdict.wrong = bench_verify(plan, s->pool, m->row, m->round, m->batches, ids, verdict.text,
				     sizeof(verdict.text));
	free(ids);
	if (verdict.wrong && !sum->wrong)
		fprintf(stderr, "kvrail bench: %s\n", verdict.text);
	sum->wrong += verdict.wrong;
	sum->bytes += (uint64_t)m->batches * plan->batch * plan->row_bytes[m->row];
	if (bench_send(s, &verdict, ANSWER_MS))
		return bench_complain(s, "the answer could not be sent");
	return 0;
}

/* The second connection: rounds until it is done. */
static int serve_rounds(struct bench_side *s, const struct bench_options *opt,
			const struct bench_plan *plan)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	/* It takes memory before, as this side did, and may have been waited for as long. */
	enum event event =
		next_event(s, plan->timeout_ms > ANSWER_MS ? plan->timeout_ms : ANSWER_MS);
	struct account sum = { 0 };
	struct bench_message m;
	char moved[32];
	int ret = 0;

	if (event != EVENT_UP)
		return give_up(s, event, "its second connection");
	kv_peer_info(s->peer, &info, NULL);
	printf("%s is connected over %s: %s\n", info.address, info.transport, info.path);
	fflush(stdout);
	do {
		ret = next_message(s, &m, plan->timeout_ms, "its next message");
		if (!ret && m.kind == BENCH_CHECK)
			ret = check_round(s, opt, plan, &m, &sum);
	} while (!ret && m.kind == BENCH_CHECK);
	if (!ret)
		next_event(s, ANSWER_MS); /* its goodbye */
	printf("%s checked, %llu wrong bytes: %s\n", size_text(sum.bytes, moved, sizeof(moved)),
	       (unsigned long long)sum.wrong,
	       sum.wrong ? "FAILED"
	       : ret	 ? "not finished"
			 : "OK");
	fflush(stdout);
	return ret ? ret : sum.wrong != 0;
}

static int serve(struct bench_side *s, const struct bench_options *opt)
{
	enum event event = next_event(s, opt->keep ? INT64_MAX / 1000000 : opt->wait_s * 1000);
	struct bench_plan plan;
	int ret;

	if (event != EVENT_UP)
		return give_up(s, event, "a connection");
	ret = take_plan(s, &plan);
	if (!ret)
		ret = serve_rounds(s, opt, &plan);
	part(s);
	bench_side_drop(s);
	return ret;
}

int bench_listen(const struct bench_options *opt)
{
	bool v6 = strchr(opt->host, ':');
	struct bench_side s = { 0 };
	uint32_t port;
	int ret;

	if (bench_side_open(&s, "kvrail bench --listen"))
		return bench_complain(&s, "cannot begin");
	if (kv_listen(s.engine, opt->host, opt->port, &port, &s.err)) {
		ret = bench_complain(&s, "cannot listen");
		bench_side_close(&s);
		return ret;
	}
	printf("listening on %s port %u; there: kvrail bench %s%s%s:%u\n", opt->host, port,
	       v6 ? "[" : "", opt->host, v6 ? "]" : "", port);
	fflush(stdout);
	do {
		ret = serve(&s, opt);
	} while (opt->keep && !bench_interrupted);
	bench_side_close(&s);
	return opt->keep ? 128 + SIGINT : ret;
}
