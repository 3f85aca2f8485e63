/* SPDX-License-Identifier: Apache-2.0 */
/* kv_stats.c -- the engine's counters */
#include "kv_internal.h"

static void add_transport(struct kv_stats *stats, const struct tr_counters *c)
{
	stats->work_requests += c->work_requests;
	stats->doorbells += c->doorbells;
	stats->completions += c->completions;
	stats->syscalls += c->syscalls;
}

void kv_stats_keep(struct kv_peer *peer)
{
	struct tr_counters c = { 0 };

	tr_conn_counters(peer->conn, &c);
	kv_count(peer->engine, work_requests, c.work_requests);
	kv_count(peer->engine, doorbells, c.doorbells);
	kv_count(peer->engine, completions, c.completions);
	kv_count(peer->engine, syscalls, c.syscalls);
}

int kv_stats(struct kv_engine *engine, struct kv_stats *stats, struct kv_error *err)
{
	int ret = kv_engine_use(engine, "stats", err);

	if (ret)
		return ret;
	if (!stats || stats->size != sizeof(*stats))
		return kv_fail(err, KV_ERR_ARG, "stats", "kv_stats is NULL or its size is not %zu",
			       sizeof(*stats));
#define COPY(name) stats->name = atomic_load_explicit(&engine->count.name, memory_order_relaxed);
	KV_COUNTERS(COPY)
#undef COPY
	pthread_mutex_lock(&engine->arrivals.lock);
	stats->arrivals_waiting = engine->arrivals.count;
	pthread_mutex_unlock(&engine->arrivals.lock);
	for (uint32_t i = 0; i < engine->peers_end; i++) {
		struct kv_peer *peer = kv_service_claim(engine, i);
		struct tr_counters c = { 0 };

		if (!peer)
			continue;
		if (peer->conn)
			tr_conn_counters(peer->conn, &c);
		add_transport(stats, &c);
		kv_service_leave(peer);
	}
	return 0;
}
