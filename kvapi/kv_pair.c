/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_pair.c -- two-sided operations: kv_recv_blocks opens blocks under a tag, kv_send_blocks fills
 * them
 */
#include "kv_internal.h"

/* ---------------------------------------------------------------- sending */

static int match_error(struct kv_op *op, const struct kv_grant *grant, struct kv_error *err)
{
	uint32_t end = grant->layers.first + grant->layers.count;

	if (op->layers.first < grant->layers.first || op->layers.first + op->layers.count > end)
		return kv_peer_fail(op->peer, err, KV_ERR_GEOMETRY, kv_op_name(op),
				    "layers %u + %u are sent; the receiver has opened %u + %u",
				    op->layers.first, op->layers.count, grant->layers.first,
				    grant->layers.count);
	if (op->n != grant->n)
		return kv_peer_fail(op->peer, err, KV_ERR_ARG, kv_op_name(op),
				    "n is %zu; the receiver has opened %u blocks under this tag",
				    op->n, grant->n);
	return 0;
}

enum kv_step kv_send_match(struct kv_op *op)
{
	struct kv_grant *grant = kv_grant_match(op->peer, op);
	struct kv_error err;
	int ret;

	if (!grant)
		return KV_STEP_NONE;
	op->grant = grant->id;
	ret = match_error(op, grant, &err);
	if (!ret && !kv_grant_claim(grant, op->layers))
		ret = kv_peer_fail(op->peer, &err, KV_ERR_LEASE, kv_op_name(op),
				   "some of layers %u + %u were sent under this tag before",
				   op->layers.first, op->layers.count);
	if (ret) {
		if (ret != KV_ERR_GEOMETRY)
			op->grant = 0; /* the receiver still waits: the call may be corrected */
		kv_op_stop(op, ret, 0, &err);
		return KV_STEP_OVER;
	}
	op->remote = grant->ids;
	op->stage = KV_STAGE_BEGIN;
	return KV_STEP_ON;
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

/* ---------------------------------------------------------------- receiving */

/* Opens the blocks of a receive; its end comes with the last layer. Claim held. */
int kv_recv_start(struct kv_op *op, struct kv_error *err)
{
	struct kv_lease_request req = { .name = kv_op_name(op),
					.peer = op->peer,
					.cache = op->cache,
					.layers = op->layers,
					.ids = op->local,
					.n = op->n,
					.tag = op->tag,
					.expires_ns = op->deadline_ns,
					.once = true };
	int ret = kv_lease_open(&req, &op->lease, err);

	if (ret)
		return ret;
	kv_op_uncollect(op);
	op->lease->op = op;
	op->stage = KV_STAGE_FLIGHT;
	kv_op_count(op);
	kv_peer_progress(op->peer, true);
	return 0;
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
