/* SPDX-License-Identifier: Apache-2.0 */
/* kv_metrics.c -- an engine's counters as metrics for Prometheus, which base/expose.c gives out */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/expose.h"
#include "kv_api.h"

enum family {
	BUILD,
	OPERATIONS,
	IN_FLIGHT,
	FIRST_SECONDS,
	ACK_SECONDS,
	ALL_SECONDS,
	PEER_FIRST_SECONDS,
	PEER_ACK_SECONDS,
	PEER_ALL_SECONDS,
	BLOCKS,
	BYTES,
	SPANS,
	ARRIVALS,
	ARRIVALS_WAITING,
	LEASES,
	LEASES_OPEN,
	PEERS,
	PEERS_NOW,
	PEERS_LOST,
	REJECTED,
	UNKNOWN,
	WORK_REQUESTS,
	DOORBELLS,
	COMPLETIONS,
	SYSCALLS,
	POOL,
	FAMILIES
};

#define COUNTER(id, name, help) [id] = { "kvrail_" name "_total", "counter", help }
#define GAUGE(id, name, help) [id] = { "kvrail_" name, "gauge", help }
#define TIME(id, name, help) [id] = { "kvrail_" name "_seconds", "histogram", help }
static const struct kv_family families[FAMILIES] = {
	GAUGE(BUILD, "build_info", "1; the version is a label"),
	COUNTER(OPERATIONS, "operations", "Operations that have ended, by their result."),
	GAUGE(IN_FLIGHT, "operations_in_flight", "Operations that have begun and not ended."),
	TIME(FIRST_SECONDS, "operation_first_byte",
	     "From the call until its first bytes were posted, of operations that succeeded."),
	TIME(ACK_SECONDS, "operation_ack",
	     "From the last byte away to the acknowledgement, of operations that succeeded."),
	TIME(ALL_SECONDS, "operation", "From the call to the end, of operations that succeeded."),
	TIME(PEER_FIRST_SECONDS, "peer_operation_first_byte",
	     "The same of each of the first peers (KVCACHE_METRICS_PEERS)."),
	TIME(PEER_ACK_SECONDS, "peer_operation_ack",
	     "The same of each of the first peers (KVCACHE_METRICS_PEERS)."),
	TIME(PEER_ALL_SECONDS, "peer_operation",
	     "The same of each of the first peers (KVCACHE_METRICS_PEERS)."),
	COUNTER(BLOCKS, "blocks",
		"Blocks, by direction (out and in: of writes and sends; read) and transport."),
	COUNTER(BYTES, "bytes",
		"Bytes, by direction (out and in: of writes and sends; read) and transport."),
	COUNTER(SPANS, "spans", "Pieces given to the transport after neighbours were merged."),
	COUNTER(ARRIVALS, "arrivals", "Arrivals queued for the application."),
	GAUGE(ARRIVALS_WAITING, "arrivals_waiting", "Arrivals that the application has not taken."),
	COUNTER(LEASES, "leases", "Leases, by what happened to them."),
	GAUGE(LEASES_OPEN, "leases_open", "Leases that writers may use now."),
	COUNTER(PEERS, "peers_up", "Peers that came up, by who connected."),
	GAUGE(PEERS_NOW, "peers", "Peers that are up."),
	COUNTER(PEERS_LOST, "peers_lost",
		"Peers that were lost without a goodbye of ours, by cause."),
	COUNTER(REJECTED, "rejected", "Connections that were turned away, by reason."),
	COUNTER(UNKNOWN, "unknown_messages", "Messages about what this end has forgotten."),
	COUNTER(WORK_REQUESTS, "work_requests", "Work requests posted to RDMA devices."),
	COUNTER(DOORBELLS, "doorbells", "Posts to RDMA devices."),
	COUNTER(COMPLETIONS, "completions", "Completions taken from RDMA devices."),
	COUNTER(SYSCALLS, "syscalls", "System calls that moved data."),
	GAUGE(POOL, "pool_bytes", "Bytes that kv_alloc has given out."),
};

#define FITS(name, value, scope, text) \
	_Static_assert((value) < KV_CODES, "a count for each code, " #name);
KV_ERROR_LIST(FITS)
#undef FITS

static const char *const kinds[KV_KINDS] = { "write", "read", "send", "recv" };

struct kv_metrics {
	struct kv_source source;
	struct kv_engine *engine;
	struct kv_stats stats;
	uint64_t pool_bytes;
	struct kv_timing timing;
	struct kv_timed_peer *peer; /* `peers` of `peers_max` that have labels of their own */
	size_t peers, peers_max;
	/* of every sample: the engine's name, its number and its process */
	char labels[2 * KV_NAME_MAX + 48 + KV_PROCESS_MAX];
};

/* ---------------------------------------------------------------- samples */

static void add(struct kv_text *t, const struct kv_metrics *m, size_t family, const char *label,
		const char *value, uint64_t n)
{
	kv_text_add(t, *label ? "%s{%s,%s=\"%s\"} %" PRIu64 "\n" : "%s{%s%s%s} %" PRIu64 "\n",
		    families[family].name, m->labels, label, value, n);
}

static void add_times(struct kv_text *t, const struct kv_metrics *m, enum family family)
{
	enum kv_time time = (enum kv_time)(family - FIRST_SECONDS);

	for (int kind = 0; kind < KV_KINDS; kind++)
		if (kind != KV_OP_RECV || time == KV_TIME_ALL)
			kv_sample_times(t, families[family].name, m->labels, "kind", kinds[kind],
					&m->timing.of[kind][time]);
}

/* Of the kinds that the peer has had. Two peers may have one name. */
static void add_times_of_peers(struct kv_text *t, const struct kv_metrics *m, enum family family)
{
	enum kv_time time = (enum kv_time)(family - PEER_FIRST_SECONDS);
	char name[2 * KV_NAME_MAX], labels[sizeof(m->labels) + sizeof(name) + 32];

	for (size_t i = 0; i < m->peers; i++) {
		const struct kv_timed_peer *peer = &m->peer[i];

		snprintf(labels, sizeof(labels), "%s,peer=\"%s\",index=\"%" PRIu32 "\"", m->labels,
			 kv_label(name, sizeof(name), peer->name), peer->index);
		for (int kind = 0; kind < KV_KINDS; kind++)
			if (kv_times_n(&peer->timing.of[kind][time]))
				kv_sample_times(t, families[family].name, labels, "kind",
						kinds[kind], &peer->timing.of[kind][time]);
	}
}

static void add_traffic_of(struct kv_text *t, const struct kv_metrics *m, enum family family)
{
	for (unsigned int i = 0; tr_transport_name(i); i++) {
		struct kv_traffic *of = &m->engine->traffic[i];
		bool bytes = family == BYTES;
		const struct {
			const char *direction;
			_Atomic uint64_t *counter;
		} ways[] = { { "out", bytes ? &of->bytes_out : &of->blocks_out },
			     { "in", bytes ? &of->bytes_in : &of->blocks_in },
			     { "read", bytes ? &of->bytes_read : &of->blocks_read } };

		for (size_t way = 0; way < sizeof(ways) / sizeof(ways[0]); way++)
			kv_text_add(t, "%s{%s,direction=\"%s\",transport=\"%s\"} %" PRIu64 "\n",
				    families[family].name, m->labels, ways[way].direction,
				    tr_transport_name(i), kv_counter_get(ways[way].counter));
	}
}

#define ROW(family, label, value, field)                               \
	{                                                              \
		family, label, value, offsetof(struct kv_stats, field) \
	}
static const struct {
	size_t family;
	const char *label, *value;
	size_t at;
} rows[] = {
	ROW(IN_FLIGHT, "", "", in_flight),
	ROW(SPANS, "", "", spans_out),
	ROW(ARRIVALS, "", "", arrivals),
	ROW(ARRIVALS_WAITING, "", "", arrivals_waiting),
	ROW(LEASES, "event", "opened", leases_opened),
	ROW(LEASES, "event", "revoked", leases_revoked),
	ROW(LEASES, "event", "expired", leases_expired),
	ROW(LEASES, "event", "fenced", leases_fenced),
	ROW(LEASES_OPEN, "", "", leases_open),
	ROW(PEERS, "by", "peer", peers_accepted),
	ROW(PEERS, "by", "engine", peers_connected),
	ROW(PEERS_NOW, "", "", peers_now),
	ROW(REJECTED, "reason", "garbage", rejected_garbage),
	ROW(REJECTED, "reason", "version", rejected_version),
	ROW(REJECTED, "reason", "geometry", rejected_geometry),
	ROW(REJECTED, "reason", "timeout", rejected_timeout),
	ROW(REJECTED, "reason", "limit", rejected_limit),
	ROW(UNKNOWN, "", "", unknown_messages),
	ROW(WORK_REQUESTS, "", "", work_requests),
	ROW(DOORBELLS, "", "", doorbells),
	ROW(COMPLETIONS, "", "", completions),
	ROW(SYSCALLS, "", "", syscalls),
};
#undef ROW

/* What kv_stats says is said as it is. */
static void add_rows(struct kv_text *t, const struct kv_metrics *m, size_t family)
{
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
		uint64_t n;

		if (rows[i].family != family)
			continue;
		memcpy(&n, (const char *)&m->stats + rows[i].at, sizeof(n));
		add(t, m, family, rows[i].label, rows[i].value, n);
	}
}

static void metrics_sample(void *arg, size_t family, struct kv_text *t)
{
	const struct kv_metrics *m = arg;

	switch (family) {
	case BUILD:
		add(t, m, BUILD, "version", kv_version(), 1);
		break;
	case OPERATIONS:
		for (int kind = 0; kind < KV_KINDS; kind++)
			kv_sample_codes(t, families[family].name, m->labels, kinds[kind], "result",
					m->engine->ended[kind], KV_CODES, 0);
		break;
	case FIRST_SECONDS:
	case ACK_SECONDS:
	case ALL_SECONDS:
		add_times(t, m, (enum family)family);
		break;
	case PEER_FIRST_SECONDS:
	case PEER_ACK_SECONDS:
	case PEER_ALL_SECONDS:
		add_times_of_peers(t, m, (enum family)family);
		break;
	case BLOCKS:
	case BYTES:
		add_traffic_of(t, m, (enum family)family);
		break;
	case PEERS_LOST:
		kv_sample_codes(t, families[family].name, m->labels, NULL, "cause", m->engine->lost,
				KV_CODES, KV_ERR_PEER_LOST);
		break;
	case POOL:
		add(t, m, POOL, "", "", m->pool_bytes);
		break;
	default:
		add_rows(t, m, family);
		break;
	}
}

static void metrics_look(void *arg)
{
	struct kv_metrics *m = arg;

	/* Else as it was seen last. */
	kv_stats_look(m->engine, &m->stats, &m->pool_bytes);
	kv_times_look(m->engine, &m->timing, m->peer, m->peers_max, &m->peers);
}

static void metrics_report(void *arg, struct kv_report *r)
{
	kv_report_engine(((struct kv_metrics *)arg)->engine, r);
}

/* ---------------------------------------------------------------- with the engine */

void kv_metrics_start(struct kv_engine *engine)
{
	static atomic_uint engines;
	char name[2 * KV_NAME_MAX], process[KV_PROCESS_MAX];
	struct kv_metrics *m;
	size_t peers;

	if (!kv_expose_is_wanted(engine->options))
		return;
	peers = kv_expose_measures(engine->options)
			? (size_t)kv_option_int(engine->options, KV_OPT_METRICS_PEERS)
			: 0;
	m = calloc(1, sizeof(*m));
	if (m)
		m->peer = calloc(peers + 1, sizeof(*m->peer));
	if (!m || !m->peer) {
		free(m);
		kv_log_warn(engine->log, "metrics: there is no memory for them");
		return;
	}
	m->peers_max = peers;
	m->engine = engine;
	m->source = (struct kv_source){ .file = "kvrail",
					.families = families,
					.n = FAMILIES,
					.look = metrics_look,
					.sample = metrics_sample,
					.report = metrics_report,
					.arg = m,
					.log = engine->log };
	snprintf(m->labels, sizeof(m->labels), "engine=\"%s\",id=\"%u\",process=\"%s\"",
		 kv_label(name, sizeof(name), engine->name), atomic_fetch_add(&engines, 1),
		 kv_expose_process(process));
	engine->metrics = m;
	kv_expose_add(engine->options, &m->source);
}

void kv_metrics_stop(struct kv_engine *engine)
{
	if (!engine->metrics)
		return;
	kv_expose_remove(&engine->metrics->source);
	free(engine->metrics->peer);
	free(engine->metrics);
	engine->metrics = NULL;
}
