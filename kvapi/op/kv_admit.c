/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_admit.c -- whether an operation may begin: its peer, its lease and every block id
 *
 * Asked when the call is made, and again when the operation gets its slot: a group or a full table
 * may lie between the two, and meanwhile the lease may have been revoked.
 */
#include "kv_op.h"

#include <stdio.h>

static int admit_write(struct kv_op *op, struct kv_plan_check *check, struct kv_error *err)
{
	struct kv_peer *peer = op->peer;
	const struct kv_grant *grant;

	if (!op->grant && op->map->remote.flags & KV_CACHE_OPEN)
		return 0;
	if (!op->grant) {
		kv_peer_fail(peer, err, KV_ERR_LEASE, kv_op_name(op),
			     "cache %u of %s is not open and the call names no lease",
			     op->cache->geometry.cache_id, peer->name);
		kv_error_hint(
			err,
			"name a lease that the receiver opened, or register its cache KV_CACHE_OPEN");
		return KV_ERR_LEASE;
	}
	grant = kv_grant_find(peer, op->grant);
	op->early = kv_grant_under_way(peer, op->grant);
	if (op->early)
		return 0; /* kv_op_admit runs again when its last ids have come */
	if (grant ? grant->revoked : op->admitted)
		return kv_peer_fail(peer, err, KV_ERR_REVOKED, kv_op_name(op),
				    "%s has revoked lease %llu", peer->name,
				    (unsigned long long)op->grant);
	if (!grant || grant->cache != op->cache->geometry.cache_id || grant->got < grant->n)
		return kv_peer_fail(peer, err, KV_ERR_LEASE, kv_op_name(op),
				    "%s has no open lease %llu of cache %u for this engine",
				    peer->name, (unsigned long long)op->grant,
				    op->cache->geometry.cache_id);
	check->owner_of = op->map->owner;
	check->owner = kv_grant_owner(grant);
	return 0;
}

int kv_op_admit(struct kv_op *op, struct kv_error *err)
{
	/* A receive has no remote ids, and here none of its blocks is the lease's yet. */
	bool pull = op->kind == KV_OP_READ || op->kind == KV_OP_RECV;
	uint32_t here = op->cache->geometry.blocks, there = op->map->remote.blocks;
	struct kv_plan_check check = { .op = kv_op_name(op),
				       .source = pull ? op->remote : op->local,
				       .destination = pull ? op->local : op->remote,
				       .n = op->n,
				       .source_blocks = pull ? there : here,
				       .destination_blocks = pull ? here : there,
				       .pull = pull };
	int ret = kv_peer_usable(op->peer, kv_op_name(op), err);

	if (ret)
		return ret;
	check.marks = pull ? &op->map->local_marks : &op->map->remote_marks;
	if (op->kind == KV_OP_READ && !(op->map->remote.flags & KV_CACHE_READABLE))
		ret = kv_peer_fail(op->peer, err, KV_ERR_LEASE, kv_op_name(op),
				   "cache %u of %s is not KV_CACHE_READABLE",
				   op->cache->geometry.cache_id, op->peer->name);
	if (!ret && op->kind == KV_OP_WRITE)
		ret = admit_write(op, &check, err);
	if (!ret && op->kind != KV_OP_SEND)
		ret = kv_marks_make(check.marks, check.destination_blocks, err);
	if (!ret)
		ret = kv_plan_check(&check, err);
	if (ret && err && !err->peer[0])
		snprintf(err->peer, sizeof(err->peer), "%s", op->peer->address);
	op->admitted = !ret;
	return ret;
}
