/* SPDX-License-Identifier: Apache-2.0 */
/* ag_metrics.c -- an agent for base/expose.c: its counters as metrics, its state for kvrail dump */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "ag.h"
#include "base/expose.h"

enum { TRANSFERS, BYTES, SECONDS, PEERS, LOST, NOTES, FAMILIES };

#define COUNTER(id, name, help) [id] = { "kvrail_agent_" name "_total", "counter", help }
#define GAUGE(id, name, help) [id] = { "kvrail_agent_" name, "gauge", help }
static const struct kv_family families[FAMILIES] = {
	COUNTER(TRANSFERS, "transfers", "Transfers that have ended, by kind and result."),
	COUNTER(BYTES, "bytes", "Bytes of transfers that succeeded, by kind."),
	[SECONDS] = { "kvrail_agent_transfer_seconds", "histogram",
		      "From the post to the end, of one of 4 transfers that succeeded." },
	GAUGE(PEERS, "peers", "Peers with a connection, or one that is being made."),
	COUNTER(LOST, "peers_lost", "Peers that were lost, by cause."),
	GAUGE(NOTES, "notes_bytes", "Bytes of notifications that the engine has not taken."),
};

enum { TIMED_OF = 4 }; /* looking at the clock costs more than all that is counted */

static const char *const kinds[AG_KINDS] = { "write", "read" };

struct ag_metrics {
	struct kv_source source;
	struct ag_agent *agent;
	void (*report)(struct ag_agent *agent, struct kv_report *r); /* what is not counted */
	uint32_t peers;
	pthread_mutex_t lock; /* of the last error; short */
	struct kv_error last;
	int64_t last_ns;
	atomic_bool timed; /* transfers are: from the first who asks on */
	struct kv_times times[AG_KINDS];
	_Atomic uint64_t begun, ended[AG_KINDS][AG_CODES], bytes[AG_KINDS], lost[AG_CODES];
	/* of every sample: the agent's name and its process */
	char labels[2 * AG_NAME_MAX + 32 + KV_PROCESS_MAX];
};

static void note_error(struct ag_metrics *m, const struct ag_peer *peer, const struct kv_error *err)
{
	pthread_mutex_lock(&m->lock);
	m->last = *err;
	m->last_ns = kv_now_ns();
	snprintf(m->last.peer, sizeof(m->last.peer), "%s", peer->name ? peer->name : "");
	pthread_mutex_unlock(&m->lock);
}

void ag_metrics_begun(struct ag_agent *agent)
{
	if (agent->metrics)
		kv_counter_add(&agent->metrics->begun, 1);
}

void ag_metrics_ended(struct ag_agent *agent, const struct ag_xfer *xfer)
{
	struct ag_metrics *m = agent->metrics;
	uint64_t n;

	if (!m)
		return;
	n = kv_counter_add(&m->ended[xfer->kind][-xfer->error.code], 1);
	if (xfer->error.code) {
		note_error(m, xfer->peer, &xfer->error);
		return;
	}
	kv_counter_add(&m->bytes[xfer->kind], xfer->plan.bytes);
	if (!(n % TIMED_OF) && atomic_load_explicit(&m->timed, memory_order_relaxed))
		kv_times_count(&m->times[xfer->kind], kv_now_ns() - xfer->posted_ns);
}

void ag_metrics_lost(struct ag_agent *agent, const struct ag_peer *peer)
{
	if (!agent->metrics)
		return;
	kv_counter_add(&agent->metrics->lost[-peer->error.code], 1);
	note_error(agent->metrics, peer, &peer->error);
}

/* ---------------------------------------------------------------- samples */

static void say_family(void *arg, size_t family, struct kv_text *t)
{
	struct ag_metrics *m = arg;

	const char *name = families[family].name;

	if (family == LOST)
		kv_sample_codes(t, name, m->labels, NULL, "cause", m->lost, AG_CODES,
				KV_ERR_PEER_LOST);
	else if (family == PEERS)
		kv_text_add(t, "%s{%s} %u\n", name, m->labels, m->peers);
	else if (family == NOTES)
		kv_text_add(t, "%s{%s} %zu\n", name, m->labels,
			    atomic_load(&m->agent->notes_bytes));
	for (int kind = 0; kind < AG_KINDS; kind++) {
		if (family == TRANSFERS)
			kv_sample_codes(t, name, m->labels, kinds[kind], "result", m->ended[kind],
					AG_CODES, 0);
		else if (family == BYTES)
			kv_text_add(t, "%s{%s,kind=\"%s\"} %" PRIu64 "\n", name, m->labels,
				    kinds[kind], kv_counter_get(&m->bytes[kind]));
		else if (family == SECONDS)
			kv_sample_times(t, name, m->labels, "kind", kinds[kind], &m->times[kind]);
	}
}

static void see_agent(void *arg)
{
	struct ag_metrics *m = arg;

	pthread_mutex_lock(&m->agent->lock);
	m->peers = m->agent->peers;
	pthread_mutex_unlock(&m->agent->lock);
}

static void report_counted(void *arg, struct kv_report *r)
{
	struct ag_metrics *m = arg;
	struct kv_times times = { .sum_ns = 0 };
	uint64_t ended = 0, begun;
	struct kv_error last;
	int64_t last_ns;

	for (int kind = 0; kind < AG_KINDS; kind++)
		for (int code = 0; code < AG_CODES; code++)
			ended += kv_counter_get(&m->ended[kind][code]);
	begun = kv_counter_get(&m->begun); /* after `ended`: no fewer */
	kv_report_item(r, "agent");
	kv_report_text(r, "name", "%s", m->agent->name);
	kv_report_int(r, "operations_in_flight", (int64_t)(begun - ended));
	kv_report_int(r, "bytes_out", (int64_t)kv_counter_get(&m->bytes[AG_WRITE]));
	kv_report_int(r, "bytes_read", (int64_t)kv_counter_get(&m->bytes[AG_READ]));
	pthread_mutex_lock(&m->lock);
	last = m->last;
	last_ns = m->last_ns;
	pthread_mutex_unlock(&m->lock);
	kv_report_last_error(r, &last, last_ns);
	for (int kind = 0; kind < AG_KINDS; kind++)
		kv_times_add(&times, &m->times[kind]);
	if (r->brief) {
		atomic_store(&m->timed, true);
		kv_times_report(r, &times);
	} else {
		kv_times_report_p99(r, &times);
	}
	m->report(m->agent, r);
	kv_report_end_item(r);
}

/* ---------------------------------------------------------------- with the agent */

void ag_metrics_start(struct ag_agent *agent,
		      void (*report)(struct ag_agent *agent, struct kv_report *r))
{
	char name[2 * AG_NAME_MAX], process[KV_PROCESS_MAX];
	struct ag_metrics *m;

	if (!kv_expose_is_wanted(agent->options))
		return;
	m = calloc(1, sizeof(*m));
	if (!m) {
		kv_log_warn(agent->log, "metrics: there is no memory for them");
		return;
	}
	m->agent = agent;
	m->report = report;
	m->timed = kv_expose_measures(agent->options);
	pthread_mutex_init(&m->lock, NULL);
	m->source = (struct kv_source){ .file = "kvrail-agent",
					.families = families,
					.n = FAMILIES,
					.look = see_agent,
					.sample = say_family,
					.report = report_counted,
					.arg = m,
					.log = agent->log };
	snprintf(m->labels, sizeof(m->labels), "agent=\"%s\",process=\"%s\"",
		 kv_label(name, sizeof(name), agent->name), kv_expose_process(process));
	agent->metrics = m;
	kv_expose_add(agent->options, &m->source);
}

void ag_metrics_stop(struct ag_agent *agent)
{
	if (!agent->metrics)
		return;
	kv_expose_remove(&agent->metrics->source);
	pthread_mutex_destroy(&agent->metrics->lock);
	free(agent->metrics);
	agent->metrics = NULL;
}
