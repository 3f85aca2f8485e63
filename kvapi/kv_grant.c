/* SPDX-License-Identifier: Apache-2.0 */
/* kv_grant.c -- the writer's side of a lease: what a peer has opened for us */
#include "kv_internal.h"

#include <stdlib.h>
#include <string.h>

enum { ID_INDEX_BITS = 16 };

static unsigned int index_of(uint64_t id)
{
	return (unsigned int)(id & ((1u << ID_INDEX_BITS) - 1));
}

struct kv_grant *kv_grant_find(struct kv_peer *peer, uint64_t id)
{
	struct kv_grant *grant =
		index_of(id) < KV_LEASES_MAX ? peer->link->grant[index_of(id)] : NULL;

	return grant && grant->live && grant->id == id ? grant : NULL;
}

bool kv_grant_is_new(const struct kv_peer *peer, uint64_t id)
{
	return (int32_t)((uint32_t)(id >> ID_INDEX_BITS) - peer->link->newest_serial) > 0;
}

bool kv_grant_under_way(struct kv_peer *peer, uint64_t id)
{
	const struct kv_grant *grant = kv_grant_find(peer, id);

	return grant ? grant->got < grant->n && !grant->revoked : kv_grant_is_new(peer, id);
}

uint32_t kv_grant_owner(const struct kv_grant *grant)
{
	return index_of(grant->id) + 1;
}

/* ---------------------------------------------------------------- learning of a lease */

static int take_record(struct kv_peer *peer, unsigned int i, uint32_t blocks)
{
	struct kv_grant **at = &peer->link->grant[i];

	if (!*at)
		*at = kv_fault(KV_GRANT_ALLOC) ? NULL : calloc(1, sizeof(**at));
	if (!*at)
		return KV_ERR_NOMEM;
	if (blocks > (*at)->ids_cap) {
		int64_t *ids =
			kv_fault(KV_GRANT_IDS) ? NULL : realloc((*at)->ids, blocks * sizeof(*ids));

		if (!ids)
			return KV_ERR_NOMEM;
		(*at)->ids = ids;
		(*at)->ids_cap = blocks;
	}
	return 0;
}

static void append(struct kv_link *link, struct kv_grant *grant)
{
	grant->newer = NULL;
	grant->older = link->newest;
	if (link->newest)
		link->newest->newer = grant;
	else
		link->oldest = grant;
	link->newest = grant;
}

int kv_grant_lease(struct kv_peer *peer, const struct kv_msg_lease *msg)
{
	struct kv_map *map = &peer->link->map[msg->cache];
	unsigned int i = index_of(msg->lease);
	struct kv_grant *grant;
	int ret;

	if (i >= KV_LEASES_MAX || msg->lease >> (ID_INDEX_BITS + 32) || !map->cache ||
	    !map->meets || msg->blocks > map->remote.blocks ||
	    (uint32_t)msg->first + msg->count > map->remote.layers ||
	    !kv_grant_is_new(peer, msg->lease) || /* numbers come in their order */
	    (peer->link->grant[i] && peer->link->grant[i]->live))
		return KV_ERR_PROTOCOL;
	if (!map->owner)
		map->owner = kv_fault(KV_GRANT_OWNERS)
				     ? NULL
				     : calloc(map->remote.blocks, sizeof(*map->owner));
	ret = map->owner ? take_record(peer, i, msg->blocks) : KV_ERR_NOMEM;
	if (ret)
		return ret;
	grant = peer->link->grant[i];
	peer->link->newest_serial = (uint32_t)(msg->lease >> ID_INDEX_BITS);
	grant->id = msg->lease;
	grant->tag = msg->tag;
	grant->cache = msg->cache;
	grant->live = true;
	grant->once = msg->flags & KV_LEASE_ONCE;
	grant->revoked = grant->failed = false;
	grant->layers = (struct kv_layers){ msg->first, msg->count };
	grant->n = msg->blocks;
	grant->got = 0;
	memset(grant->sent, 0, sizeof(grant->sent));
	memset(grant->done, 0, sizeof(grant->done));
	append(peer->link, grant);
	return 0;
}

/*
 * A receiver that places every byte itself opens the blocks of a revoked lease again before it has
 * our answer.
 */
static bool is_free(const struct kv_peer *peer, uint32_t owner)
{
	return !owner || peer->link->grant[owner - 1]->revoked;
}

int kv_grant_ids(struct kv_peer *peer, const struct kv_msg_ids *msg)
{
	struct kv_grant *grant = kv_grant_find(peer, msg->lease);
	struct kv_map *map = grant ? &peer->link->map[grant->cache] : NULL;

	if (!grant || grant->revoked || msg->at != grant->got)
		return KV_ERR_PROTOCOL;
	for (int r = 0; r < msg->runs; r++)
		for (uint32_t k = 0; k < msg->run[r].count; k++) {
			uint64_t id = (uint64_t)msg->run[r].first + k;

			if (grant->got == grant->n || id >= map->remote.blocks ||
			    !is_free(peer, map->owner[id]))
				return KV_ERR_PROTOCOL;
			map->owner[id] = kv_grant_owner(grant);
			grant->ids[grant->got++] = (int64_t)id;
		}
	return 0;
}

static void forget(struct kv_peer *peer, struct kv_grant *grant)
{
	struct kv_link *link = peer->link;
	uint32_t *owner = link->map[grant->cache].owner;

	for (uint32_t i = 0; i < grant->got; i++)
		if (owner[grant->ids[i]] == kv_grant_owner(grant))
			owner[grant->ids[i]] = 0;
	*(grant->older ? &grant->older->newer : &link->oldest) = grant->newer;
	*(grant->newer ? &grant->newer->older : &link->newest) = grant->older;
	grant->live = false;
}

void kv_grant_free_all(struct kv_peer *peer)
{
	for (unsigned int i = 0; i < KV_LEASES_MAX; i++)
		if (peer->link->grant[i]) {
			free(peer->link->grant[i]->ids);
			free(peer->link->grant[i]);
		}
}

/* ---------------------------------------------------------------- using it */

static bool lacks(const struct kv_grant *grant, struct kv_layers layers)
{
	for (uint32_t l = layers.first; l < layers.first + layers.count; l++)
		if (!kv_bit(grant->sent, l))
			return true;
	return false;
}

struct kv_grant *kv_grant_match(struct kv_peer *peer, const struct kv_op *op)
{
	struct kv_grant *grant = peer->link->oldest;

	while (grant && (grant->tag != op->tag || grant->cache != op->cache->geometry.cache_id ||
			 grant->got < grant->n || grant->revoked || grant->failed ||
			 !lacks(grant, op->layers)))
		grant = grant->newer;
	return grant;
}

bool kv_grant_claim(struct kv_grant *grant, struct kv_layers layers)
{
	for (uint32_t l = layers.first; l < layers.first + layers.count; l++)
		if (kv_bit(grant->sent, l))
			return false;
	for (uint32_t l = layers.first; l < layers.first + layers.count; l++)
		kv_bit_set(grant->sent, l);
	return true;
}

void kv_grant_settled(struct kv_peer *peer, uint64_t id, struct kv_layers layers, int status)
{
	struct kv_grant *grant = kv_grant_find(peer, id);
	bool complete = true;

	if (!grant)
		return;
	if (status) {
		/*
		 * kv_blocks_open: the layers may be sent again. kv_recv_blocks: the receiver gives
		 * up and revokes.
		 */
		for (uint32_t l = layers.first; l < layers.first + layers.count; l++)
			kv_bit_clear(grant->sent, l);
		grant->failed = grant->once;
		return;
	}
	for (uint32_t l = layers.first; l < layers.first + layers.count; l++)
		kv_bit_set(grant->done, l);
	for (uint32_t l = grant->layers.first; l < grant->layers.first + grant->layers.count; l++)
		complete &= kv_bit(grant->done, l);
	if (complete && grant->once)
		forget(peer, grant); /* the receiver has closed it with the last commit */
}

/* ---------------------------------------------------------------- revocation */

int kv_grant_revoke(struct kv_peer *peer, uint64_t id)
{
	struct kv_grant *grant = kv_grant_find(peer, id);

	if (index_of(id) >= KV_LEASES_MAX || !id || id >> (ID_INDEX_BITS + 32) ||
	    kv_grant_is_new(peer, id) || peer->link->answer[index_of(id)])
		return KV_ERR_PROTOCOL;
	if (!grant)
		kv_count(peer->engine, unknown_messages, 1);
	peer->link->answer[index_of(id)] = id; /* also for a lease that we have forgotten */
	peer->link->grant_work = true;
	if (grant)
		grant->revoked = true;
	/* What has not begun ends now; it would be refused when it gets its slot, too. */
	for (struct kv_op *op = peer->link->collected, *after; op; op = after) {
		after = op->after;
		if (op->grant == id)
			kv_op_stop(op, KV_ERR_REVOKED, 0, NULL);
	}
	if (!grant)
		return 0;
	for (unsigned int i = 0; i < KV_OPS_MAX; i++) {
		struct kv_op *op = kv_bit(peer->link->busy, i) ? peer->link->slot[i].op : NULL;

		/* What is committed already is decided by the receiver's acknowledgement. */
		if (op && op->grant == id && !op->committed)
			kv_op_stop(op, KV_ERR_REVOKED, kv_deadline_ns(KV_STOP_MS), NULL);
	}
	return 0;
}

/* Nothing of ours that writes to the lease is with the transport. */
static bool quiet(const struct kv_peer *peer, uint64_t id)
{
	for (unsigned int i = 0; i < KV_OPS_MAX; i++) {
		const struct kv_op *op =
			kv_bit(peer->link->busy, i) ? peer->link->slot[i].op : NULL;

		if (op && op->grant == id && op->tr)
			return false;
	}
	return true;
}

bool kv_grant_flush(struct kv_peer *peer)
{
	struct kv_link *link = peer->link;
	bool left = false;

	if (!link->grant_work)
		return true;
	for (unsigned int i = 0; i < KV_LEASES_MAX; i++) {
		struct kv_msg msg = { .type = KV_MSG_REVOKED, .id.lease = link->answer[i] };
		struct kv_grant *grant = kv_grant_find(peer, link->answer[i]);

		if (!link->answer[i])
			continue;
		if (!quiet(peer, link->answer[i])) {
			left = true;
			continue;
		}
		if (kv_peer_send(peer, &msg))
			return false;
		link->answer[i] = 0;
		if (grant)
			forget(peer, grant);
	}
	link->grant_work = left;
	return true;
}
