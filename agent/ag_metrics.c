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

static void add_to(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

void ag_metrics_ended(struct ag_agent *agent, const struct ag_xfer *xfer)
{
	struct ag_metrics *m = agent->metrics;

	if (!m)
		return;
	add_to(&m->ended[xfer->kind][-xfer->error.code], 1);
	if (!xfer->error.code)
		add_to(&m->bytes[xfer->kind], xfer->plan.bytes);
}

void ag_metrics_lost(struct ag_agent *agent, int code)
{
	if (agent->metrics)
		add_to(&agent->metrics->lost[-code], 1);
}

/* ---------------------------------------------------------------- samples */

static uint64_t count_of(_Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

static void say_ended(struct kv_text *t, struct ag_metrics *m)
{
	for (int kind = 0; kind < AG_KINDS; kind++)
		for (int code = 0; code < AG_CODES; code++) {
			uint64_t n = count_of(&m->ended[kind][code]);

			if (n || !code)
				kv_text_add(t, "%s{%s,kind=\"%s\",result=\"%s\"} %" PRIu64 "\n",
					    families[TRANSFERS].name, m->labels, kinds[kind],
					    kv_error_name(-code), n);
		}
}

static void say_lost(struct kv_text *t, struct ag_metrics *m)
{
	for (int code = 0; code < AG_CODES; code++) {
		uint64_t n = count_of(&m->lost[code]);

		if (n || code == -KV_ERR_PEER_LOST)
			kv_text_add(t, "%s{%s,cause=\"%s\"} %" PRIu64 "\n", families[LOST].name,
				    m->labels, kv_error_name(-code), n);
	}
}

static void say_family(void *arg, size_t family, struct kv_text *t)
{
	struct ag_metrics *m = arg;

	if (family == TRANSFERS)
		say_ended(t, m);
	else if (family == LOST)
		say_lost(t, m);
	else if (family == PEERS)
		kv_text_add(t, "%s{%s} %u\n", families[family].name, m->labels, m->peers);
	else if (family == NOTES)
		kv_text_add(t, "%s{%s} %zu\n", families[family].name, m->labels,
			    atomic_load(&m->agent->notes_bytes));
	else
		for (int kind = 0; kind < AG_KINDS; kind++)
			kv_text_add(t, "%s{%s,kind=\"%s\"} %" PRIu64 "\n", families[family].name,
				    m->labels, kinds[kind], count_of(&m->bytes[kind]));
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
