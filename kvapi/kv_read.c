/* SPDX-License-Identifier: Apache-2.0 */
/* kv_read.c -- reading blocks out of a peer's cache */
#include "kv_internal.h"

int kv_read_blocks_async(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
			 const int64_t *local_ids, const int64_t *remote_ids, size_t n,
			 const struct kv_options *opts, struct kv_op **op_p, struct kv_error *err)
{
	const struct kv_ids blocks = { local_ids, remote_ids, n, 0 };

	return kv_request_run(KV_OP_READ, peer, cache, layers, &blocks, opts, op_p, err);
}

int kv_read_blocks(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		   const int64_t *local_ids, const int64_t *remote_ids, size_t n,
		   const struct kv_options *opts, struct kv_error *err)
{
	const struct kv_ids blocks = { local_ids, remote_ids, n, 0 };

	return kv_request_finish(KV_OP_READ, peer, cache, layers, &blocks, opts, err);
}
