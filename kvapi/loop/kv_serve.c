/* SPDX-License-Identifier: Apache-2.0 */
/* kv_serve.c -- what the service does for one peer, whatever its state */
#include "kv_loop.h"

/*
 * Operations that are not all posted: a thread that waits for one posts it, so wake it; one without
 * a waiting thread goes on in the service's next turn.
 */
static void wake_posters(struct kv_peer *peer, bool moved)
{
	KV_EACH_BIT (peer->link->posting, i) {
		const struct kv_op *op = peer->link->slot[i].op;

		if (op->blocking || atomic_load(&op->waiter->sleepers))
			kv_waiter_wake(op->waiter);
		else if (moved)
			peer->restless = true;
	}
}

static void tell_posters(struct kv_peer *peer, bool moved)
{
	if (!peer->engine->caller_mode && kv_bits_any(peer->link->posting))
		wake_posters(peer, moved);
}

void kv_peer_poll(struct kv_peer *peer, int *done_p)
{
	int done = kv_peer_progress(peer, false);

	*done_p += done;
	if (peer->state == KV_PEER_UP)
		tell_posters(peer, done);
}

bool kv_peer_service(struct kv_peer *peer, int *done_p)
{
	int done;

	if (atomic_load_explicit(&peer->orphan, memory_order_acquire) &&
	    !kv_peer_discard_orphan(peer))
		return false;
	if (peer->state == KV_PEER_HANDSHAKE) {
		if (!kv_peer_handshake(peer, done_p))
			return false;
		if (peer->state != KV_PEER_UP)
			return true;
	}
	if (peer->state >= KV_PEER_LOST)
		return kv_peer_finish_lost(peer);
	done = kv_peer_progress(peer, peer->engine->caller_mode);
	/* What had work is looked at in the caller's next turn, before that may sleep. */
	if (peer->engine->caller_mode && done)
		peer->restless = peer->awaits;
	else
		kv_peer_arm(peer, peer->engine->caller_mode, &done);
	*done_p += done;
	if (peer->state != KV_PEER_UP)
		return true;
	kv_peer_tell_up(peer);
	if (kv_peer_is_waif(peer) && kv_now_ns() >= peer->adopt_by_ns &&
	    !atomic_load(&peer->engine->joining))
		kv_peer_break(peer, KV_ERR_PEER_LOST,
			      "no kv_comm_init of this engine has taken it in within %d ms",
			      KV_COMM_MS);
	tell_posters(peer, done);
	return true;
}
