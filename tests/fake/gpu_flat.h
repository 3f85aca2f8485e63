/* SPDX-License-Identifier: Apache-2.0 */
/* gpu_flat.h -- two engines, each with a cache of one layer and one tensor in a GPU's memory */
#ifndef GPU_FLAT_H
#define GPU_FLAT_H

#include "loop/kv_rig.h"

struct flat_pair {
	struct kv_engine *engine[2];
	struct kv_cache *cache[2];
	struct kv_peer *peer; /* of the second, at the first */
};

static inline struct kv_layout flat_layout(const struct kv_tensor *tensor, uint32_t blocks,
					   uint32_t flags)
{
	struct kv_layout layout = KV_INIT(kv_layout);

	layout.layers = layout.tensors = 1;
	layout.blocks = blocks;
	layout.tensor = tensor;
	layout.mem_kind = KV_MEM_CUDA;
	layout.flags = flags;
	return layout;
}

/* at: where the cache of each begins. */
static inline void flat_open(struct flat_pair *p, const struct kv_engine_config *config,
			     struct kv_tensor tensor, uint32_t blocks, uint32_t flags,
			     uint8_t *const at[2])
{
	struct kv_layout layout = flat_layout(&tensor, blocks, flags);
	struct kv_error err;
	uint32_t port;

	for (size_t i = 0; i < 2; i++) {
		tensor.base = at[i];
		ok(kv_engine_open(config, &p->engine[i], &err), &err);
		ok(kv_cache_register(p->engine[i], &layout, &p->cache[i], &err), &err);
	}
	ok(kv_listen(p->engine[1], NULL, 0, &port, &err), &err);
	ok(kv_connect(p->engine[0], NULL, port, RIG_TIMEOUT_MS, &p->peer, &err), &err);
}

#endif
