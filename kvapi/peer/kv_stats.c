/* SPDX-License-Identifier: Apache-2.0 */
/* kv_stats.c -- the engine's counters */
#include "kv_peer.h"

enum { PATIENCE_MS = 20 }; /* for peers in use: their counters are as they were last seen */

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

	if (!peer->conn)
		return;
	tr_conn_counters(peer->conn, &c);
	kv_count(peer->engine, work_requests, c.work_requests);
	kv_count(peer->engine, doorbells, c.doorbells);
	kv_count(peer->engine, completions, c.completions);
	kv_count(peer->engine, syscalls, c.syscalls);
}

static void add_ended(struct kv_stats *stats, struct kv_engine *engine)
{
	for (int kind = 0; kind < KV_KINDS; kind++)
		for (int code = 0; code < KV_CODES; code++) {
			uint64_t n = atomic_load_explicit(&engine->ended[kind][code],
							  memory_order_relaxed);

			if (!code)
				stats->ok += n;
			else if (code == -KV_ERR_CANCELLED)
				stats->cancelled += n;
			else
				stats->failed += n;
		}
}

static void add_traffic(struct kv_stats *stats, const struct kv_traffic *traffic)
{
	stats->blocks_out += atomic_load_explicit(&traffic->blocks_out, memory_order_relaxed);
	stats->bytes_out += atomic_load_explicit(&traffic->bytes_out, memory_order_relaxed);
	stats->blocks_in += atomic_load_explicit(&traffic->blocks_in, memory_order_relaxed);
	stats->bytes_in += atomic_load_explicit(&traffic->bytes_in, memory_order_relaxed);
}

static void look_at_peers(struct kv_engine *engine)
{
	int64_t deadline = kv_deadline_ns(PATIENCE_MS);

	for (uint32_t i = 0; i < engine->peers_end; i++) {
		struct kv_peer *peer = kv_table_claim(engine, i, deadline);

		if (!peer)
			continue;
		if (peer->conn && kv_engine_lock_until(engine, deadline)) {
			tr_conn_counters(peer->conn, &peer->count);
			pthread_mutex_unlock(&engine->lock);
		}
		kv_table_leave(peer);
	}
}

/* Under engine.lock, as kv_stats_keep: a peer that is closed meanwhile is counted once. */
static void add_counts(struct kv_engine *engine, struct kv_stats *stats)
{
#define COPY(name) stats->name = atomic_load_explicit(&engine->count.name, memory_order_relaxed);
	KV_COUNTERS(COPY)
#undef COPY
	add_ended(stats, engine);
	for (int i = 0; i < KV_TRANSPORTS; i++)
		add_traffic(stats, &engine->traffic[i]);
	for (uint32_t i = 0; i < engine->peers_end; i++)
		if (engine->peer[i])
			add_transport(stats, &engine->peer[i]->count);
}

bool kv_stats_look(struct kv_engine *engine, struct kv_stats *stats, uint64_t *pool_bytes_p)
{
	look_at_peers(engine);
	if (!kv_engine_lock_until(engine, kv_deadline_ns(PATIENCE_MS)))
		return false;
	*stats = (struct kv_stats){ .size = sizeof(*stats) };
	add_counts(engine, stats);
	*pool_bytes_p = kv_ranges_bytes(engine);
	pthread_mutex_unlock(&engine->lock);
	pthread_mutex_lock(&engine->arrivals.lock);
	stats->arrivals_waiting = engine->arrivals.count;
	pthread_mutex_unlock(&engine->arrivals.lock);
	return true;
}

int kv_stats(struct kv_engine *engine, struct kv_stats *stats, struct kv_error *err)
{
	uint64_t pool_bytes;
	int ret = kv_engine_use(engine, "stats", err);

	if (ret)
		return ret;
	if (!stats || stats->size != sizeof(*stats))
		return kv_fail(err, KV_ERR_ARG, "stats", "kv_stats is NULL or its size is not %zu",
			       sizeof(*stats));
	while (!kv_stats_look(engine, stats, &pool_bytes))
		;
	return 0;
}
