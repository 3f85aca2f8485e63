/* SPDX-License-Identifier: Apache-2.0 */
/* kv_read.c -- reading blocks out of a peer's cache */
#include "kv_internal.h"

int kv_read_blocks_async(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
			 const int64_t *local_ids, const int64_t *remote_ids, size_t n,
			 const struct kv_options *opts, struct kv_op **op_p, struct kv_error *err)
{
	struct kv_request req = { .kind = KV_OP_READ,
				  .peer = peer,
				  .cache = cache,
				  .layers = layers,
				  .local = local_ids,
				  .remote = remote_ids,
				  .n = n,
				  .opts = opts };

	return kv_request_run(&req, op_p, err);
}

int kv_read_blocks(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		   const int64_t *local_ids, const int64_t *remote_ids, size_t n,
		   const struct kv_options *opts, struct kv_error *err)
{
	struct kv_request req = { .kind = KV_OP_READ,
				  .peer = peer,
				  .cache = cache,
				  .layers = layers,
				  .local = local_ids,
				  .remote = remote_ids,
				  .n = n,
				  .opts = opts };

	return kv_request_finish(&req, err);
}
