/* SPDX-License-Identifier: Apache-2.0 */
/* ag_metrics.c -- an agent's counters as metrics for Prometheus, which base/expose.c gives out */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "ag.h"
#include "base/expose.h"

enum { TRANSFERS, BYTES, PEERS, LOST, NOTES, FAMILIES };

#define COUNTER(id, name, help) [id] = { "kvrail_agent_" name "_total", "counter", help }
#define GAUGE(id, name, help) [id] = { "kvrail_agent_" name, "gauge", help }
static const struct kv_family families[FAMILIES] = {
	COUNTER(TRANSFERS, "transfers", "Transfers that have ended, by kind and result."),
	COUNTER(BYTES, "bytes", "Bytes of transfers that succeeded, by kind."),
	GAUGE(PEERS, "peers", "Peers with a connection, or one that is being made."),
	COUNTER(LOST, "peers_lost", "Peers that were lost, by cause."),
	GAUGE(NOTES, "notes_bytes", "Bytes of notifications that the engine has not taken."),
};

static const char *const kinds[AG_KINDS] = { "write", "read" };

struct ag_metrics {
	struct kv_source source;
	struct ag_agent *agent;
	uint32_t peers;
	_Atomic uint64_t ended[AG_KINDS][AG_CODES], bytes[AG_KINDS], lost[AG_CODES];
	char labels[2 * AG_NAME_MAX + 16]; /* of every sample: the agent's name */
};

void ag_metrics_ended(struct ag_agent *agent, const struct ag_xfer *xfer)
{
	struct ag_metrics *m = agent->metrics;

	if (!m)
		return;
	kv_counter_add(&m->ended[xfer->kind][-xfer->error.code], 1);
	if (!xfer->error.code)
		kv_counter_add(&m->bytes[xfer->kind], xfer->plan.bytes);
}

void ag_metrics_lost(struct ag_agent *agent, int code)
{
	if (agent->metrics)
		kv_counter_add(&agent->metrics->lost[-code], 1);
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
	}
}

static void see_agent(void *arg)
{
	struct ag_metrics *m = arg;

	pthread_mutex_lock(&m->agent->lock);
	m->peers = m->agent->peers;
	pthread_mutex_unlock(&m->agent->lock);
}

/* ---------------------------------------------------------------- with the agent */

void ag_metrics_start(struct ag_agent *agent)
{
	char name[2 * AG_NAME_MAX];
	struct ag_metrics *m;

	if (!kv_expose_measures(agent->options))
		return;
	m = calloc(1, sizeof(*m));
	if (!m) {
		kv_log_warn(agent->log, "metrics: there is no memory for them");
		return;
	}
	m->agent = agent;
	m->source = (struct kv_source){ .file = "kvrail-agent",
					.families = families,
					.n = FAMILIES,
					.look = see_agent,
					.sample = say_family,
					.arg = m,
					.log = agent->log };
	snprintf(m->labels, sizeof(m->labels), "agent=\"%s\"",
		 kv_label(name, sizeof(name), agent->name));
	agent->metrics = m;
	kv_expose_add(agent->options, &m->source);
}

void ag_metrics_stop(struct ag_agent *agent)
{
	if (!agent->metrics)
		return;
	kv_expose_remove(&agent->metrics->source);
	free(agent->metrics);
	agent->metrics = NULL;
}
