/* SPDX-License-Identifier: Apache-2.0 */
/* kv_budget.c -- memory that peers make this engine spend by what they say */
#include "kv_peer.h"

/* What the limits grow with: an engine with a larger pool has more to do with larger peers. */
static uint64_t engine_blocks(struct kv_engine *engine)
{
	uint64_t blocks = 0;

	pthread_mutex_lock(&engine->lock);
	for (unsigned int i = 0; i < KV_CACHES_MAX; i++)
		if (engine->cache[i])
			blocks += engine->cache[i]->geometry.blocks;
	pthread_mutex_unlock(&engine->lock);
	return blocks;
}

static _Atomic uint64_t *charged_of(struct kv_peer *peer)
{
	return &peer->engine->charged_of[(peer->host >> 32) % KV_ADDRESSES];
}

static bool charge(_Atomic uint64_t *charged, size_t bytes, uint64_t most)
{
	if (atomic_fetch_add(charged, bytes) + bytes <= most)
		return true;
	atomic_fetch_sub(charged, bytes);
	return false;
}

int kv_budget_take(struct kv_peer *peer, size_t bytes)
{
	struct kv_engine *engine = peer->engine;
	uint64_t most = KV_CHARGE_PEER + engine_blocks(engine) * KV_CHARGE_BLOCK;

	if (peer->link->charged + bytes > most)
		return KV_ERR_PROTOCOL;
	if (!charge(charged_of(peer), bytes, KV_CHARGE_ADDRESS * most))
		return KV_ERR_NOMEM;
	if (!charge(&engine->charged, bytes, KV_CHARGE_PEERS * most)) {
		atomic_fetch_sub(charged_of(peer), bytes);
		return KV_ERR_NOMEM;
	}
	peer->link->charged += bytes;
	return 0;
}

void kv_budget_give(struct kv_peer *peer, size_t bytes)
{
	peer->link->charged -= bytes;
	atomic_fetch_sub(charged_of(peer), bytes);
	atomic_fetch_sub(&peer->engine->charged, bytes);
}
