/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_place.c -- what a peer may write and read where this side moves the bytes itself: open blocks
 *
 * Asked before a byte is placed, with the lease that the writer's operation names. So a lease that
 * is closed here is closed at once, whatever its writer has under way.
 */
#include "kv_lease.h"

/* A place in a cache: byte `in` of a block of a slab, which is a tensor of a layer. */
struct place {
	unsigned int slab, tensor;
	uint64_t block, in;
};

static bool is_in_slab(const struct kv_cache *cache, const struct tr_mem *mem, uint64_t offset,
		       struct place *place)
{
	const struct kv_slab *s = &cache->slab[place->slab];
	unsigned int t = place->slab % cache->geometry.tensors;

	if (s->mem != mem || offset < s->offset)
		return false;
	place->tensor = t;
	place->block = (offset - s->offset) / cache->stride[t];
	place->in = (offset - s->offset) - place->block * cache->stride[t];
	return place->block < cache->geometry.blocks &&
	       place->in < cache->geometry.tensor[t].block_bytes;
}

/* Where a byte lies; mostly in the slab of the last time, or the next. */
static bool find_place(struct kv_link *link, const struct kv_cache *cache, const struct tr_mem *mem,
		       uint64_t offset, struct place *place)
{
	unsigned int slabs = cache->geometry.layers * cache->geometry.tensors;

	place->slab = link->placed_slab < slabs ? link->placed_slab : 0;
	for (unsigned int i = 0; i < slabs; i++) {
		if (is_in_slab(cache, mem, offset, place)) {
			link->placed_slab = place->slab;
			return true;
		}
		if (++place->slab == slabs)
			place->slab = 0;
	}
	return false;
}

/* Whether all of the bytes lie in blocks of the cache; with a lease, in its blocks and layers. */
static bool blocks_cover(struct kv_link *link, const struct kv_cache *cache,
			 const struct tr_mem *mem, uint64_t offset, uint64_t len,
			 const struct kv_lease *lease)
{
	struct place at;

	while (len) {
		uint64_t n;

		if (!find_place(link, cache, mem, offset, &at) ||
		    (lease && at.slab / cache->geometry.tensors - lease->layers.first >=
				      lease->layers.count))
			return false;
		do {
			/* Those of this peer's leases change under its claim only. */
			if (lease && __atomic_load_n(&cache->owner[at.block], __ATOMIC_RELAXED) !=
					     lease->serial)
				return false;
			n = cache->geometry.tensor[at.tensor].block_bytes - at.in;
			n = n < len ? n : len;
			offset += n;
			len -= n;
			at.in = 0;
			at.block++;
		} while (len && at.block < cache->geometry.blocks &&
			 cache->stride[at.tensor] == cache->geometry.tensor[at.tensor].block_bytes);
	}
	return true;
}

static bool in_cache_with(struct kv_link *link, uint32_t flag, const struct tr_mem *mem,
			  uint64_t offset, uint64_t len)
{
	for (unsigned int i = 0; i < KV_CACHES_MAX; i++)
		if (link->known[i] && (link->known[i]->geometry.flags & flag) == flag &&
		    blocks_cover(link, link->known[i], mem, offset, len, NULL))
			return true;
	return false;
}

int kv_place_may(void *arg, const struct tr_mem *mem, uint64_t offset, uint64_t len,
		 unsigned int access, uint64_t grant)
{
	struct kv_peer *peer = arg;
	struct kv_link *link = peer->link;
	const struct kv_lease *lease = grant ? kv_lease_find(peer, grant) : NULL;

	if (access & TR_REMOTE_READ)
		return in_cache_with(link, KV_CACHE_READABLE, mem, offset, len) ? TR_PLACE
										: KV_ERR_PROTOCOL;
	/* Closed meanwhile: the commit will be refused, and these bytes go nowhere. */
	if (grant && (!lease || !lease->open))
		return TR_DROP;
	if (lease)
		return blocks_cover(link, lease->cache, mem, offset, len, lease) ? TR_PLACE
										 : KV_ERR_PROTOCOL;
	if (in_cache_with(link, KV_CACHE_OPEN, mem, offset, len))
		return TR_PLACE;
	return in_cache_with(link, 0, mem, offset, len) ? TR_DROP : KV_ERR_PROTOCOL;
}
