/* SPDX-License-Identifier: Apache-2.0 */
/* kv_transfer.c -- write, read, send and receive: every call that moves blocks is one request */
#include "kv_api.h"

int kv_write_blocks_async(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
			  const int64_t *local_ids, const int64_t *remote_ids, size_t n,
			  const struct kv_options *opts, struct kv_op **op_p, struct kv_error *err)
{
	const struct kv_ids blocks = { local_ids, remote_ids, n, 0 };

	return kv_request_run(KV_OP_WRITE, peer, cache, layers, &blocks, opts, op_p, err);
}

int kv_write_blocks(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		    const int64_t *local_ids, const int64_t *remote_ids, size_t n,
		    const struct kv_options *opts, struct kv_error *err)
{
	const struct kv_ids blocks = { local_ids, remote_ids, n, 0 };

	return kv_request_finish(KV_OP_WRITE, peer, cache, layers, &blocks, opts, err);
}

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

int kv_send_blocks_async(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
			 const int64_t *ids, size_t n, uint64_t tag, const struct kv_options *opts,
			 struct kv_op **op_p, struct kv_error *err)
{
	const struct kv_ids blocks = { ids, NULL, n, tag };

	return kv_request_run(KV_OP_SEND, peer, cache, layers, &blocks, opts, op_p, err);
}

int kv_send_blocks(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		   const int64_t *ids, size_t n, uint64_t tag, const struct kv_options *opts,
		   struct kv_error *err)
{
	const struct kv_ids blocks = { ids, NULL, n, tag };

	return kv_request_finish(KV_OP_SEND, peer, cache, layers, &blocks, opts, err);
}

int kv_recv_blocks_async(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
			 const int64_t *ids, size_t n, uint64_t tag, const struct kv_options *opts,
			 struct kv_op **op_p, struct kv_error *err)
{
	const struct kv_ids blocks = { ids, NULL, n, tag };

	return kv_request_run(KV_OP_RECV, peer, cache, layers, &blocks, opts, op_p, err);
}

int kv_recv_blocks(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		   const int64_t *ids, size_t n, uint64_t tag, const struct kv_options *opts,
		   struct kv_error *err)
{
	const struct kv_ids blocks = { ids, NULL, n, tag };

	return kv_request_finish(KV_OP_RECV, peer, cache, layers, &blocks, opts, err);
}
