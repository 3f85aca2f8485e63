/* SPDX-License-Identifier: Apache-2.0 */
/* kv_check.c -- blocks whose digests both ends compare: their bytes, their order, their failure */
#include "kv_digest.h"
#include "kv_peer.h"

uint32_t kv_check_block(const struct kv_map *map, uint32_t layer, uint32_t tensor, uint32_t id)
{
	const struct kv_cache *cache = map->cache;
	const struct kv_slab *slab = &cache->slab[layer * cache->geometry.tensors + tensor];
	const struct kv_part *part = &map->part[tensor];
	const uint8_t *base = tr_mem_addr(slab->mem);

	return kv_digest(base + slab->offset + id * cache->stride[tensor] + part->local_skip,
			 part->len, part->local_row, part->rows);
}

bool kv_check_next(const struct kv_map *map, uint32_t layers, uint32_t ids, struct kv_walk *walk)
{
	if (++walk->index < ids)
		return true;
	walk->index = 0;
	if (++walk->tensor < map->cache->geometry.tensors)
		return true;
	walk->tensor = 0;
	return ++walk->layer < layers;
}

int kv_check_fail(const struct kv_peer *peer, const struct kv_map *map,
		  const struct kv_msg_wrong *wrong, const char *by, struct kv_error *err)
{
	kv_peer_fail(peer, err, KV_ERR_CHECKSUM, by,
		     "layer %u, tensor %u (%s), block %u arrived with other bytes than were sent",
		     wrong->layer, wrong->tensor, map->remote.tensor[wrong->tensor].name,
		     wrong->block);
	kv_error_hint(err, "was the source changed too early? If it repeats: which memory, "
			   "device or cable do the wrong ones share?");
	err->block_index = wrong->index;
	err->block_id = wrong->block;
	return KV_ERR_CHECKSUM;
}
