/* SPDX-License-Identifier: Apache-2.0 */
/* kv_begin.c -- the first and the next step of an operation by the thread that waits for it */
#include "kv_api.h"

bool kv_op_post(struct kv_op *op)
{
	bool any = false, moved, posting;

	do {
		moved = kv_peer_progress(op->peer, true);
		any |= moved;
		posting = op->stage >= KV_STAGE_BEGIN && op->stage <= KV_STAGE_COMMIT;
		op->passed = moved && posting && atomic_load(&op->peer->claim.wanting);
	} while (moved && posting && !op->passed);
	return any;
}

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
	op->lease->op = op;
	kv_op_receives(op);
	kv_peer_progress(op->peer, true);
	return 0;
}
