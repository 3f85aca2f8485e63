/* SPDX-License-Identifier: Apache-2.0 */
/* kv_grant.c -- the writer's side of a lease: what a peer has opened for us */
#include "kv_grant.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { OWNERS_PAGE = 4096, OWNERS_OF_PAGE = OWNERS_PAGE / sizeof(uint32_t) };

struct kv_grant *kv_grant_find(struct kv_peer *peer, uint64_t id)
{
	struct kv_grant *grant =
		kv_id_place(id) < peer->link->grants ? peer->link->grant[kv_id_place(id)] : NULL;

	return grant && grant->live && grant->id == id ? grant : NULL;
}

/* Its LEASE message has not come. */
static bool grant_is_new(const struct kv_peer *peer, uint64_t id)
{
	return (int32_t)(kv_id_serial(id) - peer->link->newest_serial) > 0;
}

bool kv_grant_under_way(struct kv_peer *peer, uint64_t id)
{
	const struct kv_grant *grant = kv_grant_find(peer, id);

	return grant ? grant->got < grant->n && !grant->revoked : grant_is_new(peer, id);
}

uint32_t kv_grant_owner(const struct kv_grant *grant)
{
	return kv_id_place(grant->id) + 1;
}

/* ---------------------------------------------------------------- learning of a lease */

static void drop_ids(struct kv_peer *peer, struct kv_grant *grant)
{
	free(grant->ids);
	kv_budget_give(peer, grant->ids_cap * sizeof(*grant->ids));
	grant->ids = NULL;
	grant->ids_cap = 0;
}

/* Frees ids that records keep for their next use: memory is short. */
static void trim(struct kv_peer *peer)
{
	for (unsigned int i = 0; i < peer->link->grants; i++)
		if (peer->link->grant[i] && !peer->link->grant[i]->live)
			drop_ids(peer, peer->link->grant[i]);
}

static int pay(struct kv_peer *peer, size_t bytes)
{
	int ret = kv_budget_take(peer, bytes);

	if (!ret)
		return 0;
	trim(peer);
	ret = kv_budget_take(peer, bytes);
	if (ret)
		kv_peer_break(peer, ret, "its leases name more blocks than %s",
			      ret == KV_ERR_PROTOCOL
				      ? "this engine keeps for one peer"
				      : "this engine keeps for all its peers, or those of "
					"one address");
	return ret;
}

static int make_record(struct kv_peer *peer, unsigned int i)
{
	struct kv_grant **at, **grown = kv_table_grow(peer->link->grant, &peer->link->grants, i + 1,
						      sizeof(*grown));
	int ret;

	if (!grown)
		return KV_ERR_NOMEM;
	peer->link->grant = grown;
	at = &grown[i];
	if (*at)
		return 0;
	ret = pay(peer, sizeof(**at));
	if (ret)
		return ret;
	*at = kv_fault(KV_GRANT_ALLOC) ? NULL : calloc(1, sizeof(**at));
	if (*at)
		return 0;
	kv_budget_give(peer, sizeof(**at));
	return KV_ERR_NOMEM;
}

/* Address space only: pages are touched, and charged to the peer, as ids come. */
static int map_owners(struct kv_map *map)
{
	size_t len = map->remote.blocks * sizeof(*map->owner);
	void *p;

	map->paid = kv_fault(KV_GRANT_OWNERS) ? NULL
					      : calloc(map->remote.blocks / OWNERS_OF_PAGE / 64 + 1,
						       sizeof(*map->paid));
	if (!map->paid)
		return KV_ERR_NOMEM;
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1,
		 0);
	if (p == MAP_FAILED) {
		free(map->paid);
		map->paid = NULL;
		return KV_ERR_NOMEM;
	}
	map->owner = p;
	return 0;
}

static void unmap_owners(struct kv_peer *peer, struct kv_map *map)
{
	unsigned int pages = (map->remote.blocks + OWNERS_OF_PAGE - 1) / OWNERS_OF_PAGE;

	if (!map->owner)
		return;
	for (unsigned int i = 0; i < pages; i++)
		if (kv_bit(map->paid, i))
			kv_budget_give(peer, OWNERS_PAGE);
	munmap(map->owner, map->remote.blocks * sizeof(*map->owner));
	free(map->paid);
}

/*
 * Room for the ids of a message and pages for their owners: for the ids that came, never for the
 * number announced.
 */
static int grant_make_room(struct kv_peer *peer, struct kv_map *map, struct kv_grant *grant,
			   const struct kv_run *run)
{
	size_t need = (size_t)grant->got + run->count, cap = grant->ids_cap;
	uint64_t last = (uint64_t)run->first + run->count - 1;
	int64_t *ids;
	int ret = 0;

	if (!run->count || need > grant->n || last >= map->remote.blocks)
		return KV_ERR_PROTOCOL;
	for (uint64_t page = run->first / OWNERS_OF_PAGE; page <= last / OWNERS_OF_PAGE; page++) {
		if (kv_bit(map->paid, (unsigned int)page))
			continue;
		ret = pay(peer, OWNERS_PAGE);
		if (ret)
			return ret;
		kv_bit_set(map->paid, (unsigned int)page);
	}
	if (need <= cap)
		return 0;
	cap = need > 2 * cap ? need : 2 * cap;
	cap = cap < grant->n ? cap : grant->n;
	ret = pay(peer, (cap - grant->ids_cap) * sizeof(*ids));
	if (ret)
		return ret;
	ids = kv_fault(KV_GRANT_IDS) ? NULL : realloc(grant->ids, cap * sizeof(*ids));
	if (!ids) {
		kv_budget_give(peer, (cap - grant->ids_cap) * sizeof(*ids));
		return KV_ERR_NOMEM;
	}
	grant->ids = ids;
	grant->ids_cap = cap;
	return 0;
}

static void grant_append(struct kv_link *link, struct kv_grant *grant)
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
	struct kv_map *map = peer->link->map[msg->cache];
	unsigned int i = kv_id_place(msg->lease);
	struct kv_grant *grant;
	int ret = 0;

	if (i >= KV_LEASES_MAX || msg->lease >> KV_ID_BITS || !map->cache || !map->meets ||
	    msg->blocks > map->remote.blocks || msg->blocks > KV_LEASE_BLOCKS_MAX ||
	    (uint32_t)msg->first + msg->count > map->remote.layers ||
	    !grant_is_new(peer, msg->lease) || /* numbers come in their order */
	    (i < peer->link->grants && peer->link->grant[i] && peer->link->grant[i]->live))
		return KV_ERR_PROTOCOL;
	if (!map->owner)
		ret = map_owners(map);
	if (!ret)
		ret = make_record(peer, i);
	if (ret)
		return ret;
	grant = peer->link->grant[i];
	peer->link->newest_serial = kv_id_serial(msg->lease);
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
	grant_append(peer->link, grant);
	return 0;
}

/*
 * A receiver that places every byte itself opens the blocks of a revoked lease again before it has
 * our answer.
 */
static bool owner_is_free(const struct kv_peer *peer, uint32_t owner)
{
	return !owner || peer->link->grant[owner - 1]->revoked;
}

int kv_grant_ids(struct kv_peer *peer, const struct kv_msg_ids *msg)
{
	struct kv_grant *grant = kv_grant_find(peer, msg->lease);
	struct kv_map *map = grant ? peer->link->map[grant->cache] : NULL;

	if (!grant || grant->revoked || msg->at != grant->got)
		return KV_ERR_PROTOCOL;
	for (int r = 0; r < msg->runs; r++) {
		int ret = grant_make_room(peer, map, grant, &msg->run[r]);

		if (ret)
			return ret;
		for (uint32_t k = 0; k < msg->run[r].count; k++) {
			uint32_t id = msg->run[r].first + k;

			if (!owner_is_free(peer, map->owner[id]))
				return KV_ERR_PROTOCOL;
			map->owner[id] = kv_grant_owner(grant);
			grant->ids[grant->got++] = (int64_t)id;
		}
	}
	return 0;
}

void kv_grant_forget(struct kv_peer *peer, struct kv_grant *grant)
{
	struct kv_link *link = peer->link;
	uint32_t *owner = link->map[grant->cache]->owner;

	for (uint32_t i = 0; i < grant->got; i++)
		if (owner[grant->ids[i]] == kv_grant_owner(grant))
			owner[grant->ids[i]] = 0;
	*(grant->older ? &grant->older->newer : &link->oldest) = grant->newer;
	*(grant->newer ? &grant->newer->older : &link->newest) = grant->older;
	grant->live = false;
	if (grant->ids_cap * sizeof(*grant->ids) > KV_IDS_KEEP_BYTES)
		drop_ids(peer, grant);
}

void kv_grant_free_all(struct kv_peer *peer)
{
	for (unsigned int i = 0; i < peer->link->grants; i++) {
		struct kv_grant *grant = peer->link->grant[i];

		if (!grant)
			continue;
		kv_budget_give(peer, sizeof(*grant) + grant->ids_cap * sizeof(*grant->ids));
		free(grant->ids);
		free(grant);
	}
	for (unsigned int i = 0; i < KV_CACHES_MAX; i++)
		unmap_owners(peer, peer->link->map[i]);
}

/* ---------------------------------------------------------------- using it */

static bool lacks(const struct kv_grant *grant, struct kv_layers layers)
{
	for (uint32_t l = layers.first; l < layers.first + layers.count; l++)
		if (!kv_bit(grant->sent, l))
			return true;
	return false;
}

struct kv_grant *kv_grant_match(struct kv_peer *peer, const struct kv_cache *cache, uint64_t tag,
				struct kv_layers layers)
{
	struct kv_grant *grant = peer->link->oldest;

	while (grant &&
	       (grant->tag != tag || grant->cache != cache->geometry.cache_id ||
		grant->got < grant->n || grant->revoked || grant->failed || !lacks(grant, layers)))
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
		 * kv_blocks_open: the layers may be sent again. kv_recv_blocks: the receiver ends
		 * it and revokes.
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
		kv_grant_forget(peer, grant); /* the receiver has closed it with the last commit */
}

/* ---------------------------------------------------------------- revocation */

int kv_grant_revoke(struct kv_peer *peer, uint64_t id)
{
	unsigned int i = kv_id_place(id);
	struct kv_grant *grant;
	int ret;

	if (i >= KV_LEASES_MAX || !id || id >> KV_ID_BITS || grant_is_new(peer, id))
		return KV_ERR_PROTOCOL;
	ret = make_record(peer, i); /* it is answered also where we have forgotten the lease */
	if (ret)
		return ret;
	grant = peer->link->grant[i];
	if (grant->answer)
		return KV_ERR_PROTOCOL;
	grant->answer = id;
	peer->link->grant_work = true;
	if (grant->live && grant->id == id)
		grant->revoked = true;
	else
		kv_count(peer->engine, unknown_messages, 1);
	return 0;
}
