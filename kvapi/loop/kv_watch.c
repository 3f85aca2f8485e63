/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_watch.c -- a thread that ends a device's call that does not return
 *
 * A NIC takes a work request at once. Soft-RoCE posts in the caller's thread, for as long as the
 * wire does not take its packets, and that thread holds the peer's claim: neither its own deadline
 * nor that of a caller that waits for the claim could be kept. With KV_PROGRESS_CALLER, and where
 * the service thread itself is in that call, there may be no other thread that could notice. So an
 * engine that has a peer over a NIC gets this thread, in both modes. It moves no data: each
 * KV_TICK_MS it looks for claims that are held in the same round of progress as before. Where that
 * has lasted KV_STOP_MS and the holder's deadline has passed, it cuts the connection. It counts its
 * looks and not the time between them: the whole process may have been stopped meanwhile.
 */

#include "base/thread.h"
#include "kv_loop.h"

enum { STOP_LOOKS = KV_STOP_MS / KV_TICK_MS };

static bool has_passed(const struct kv_peer *peer, unsigned int patience)
{
	int64_t posting_ns = atomic_load(&peer->posting_ns);
	int64_t until_ns = atomic_load(&peer->claim.until_ns), now = kv_now_ns();

	/* A call without a deadline gets the default of operations. */
	if (until_ns == KV_NO_DEADLINE && peer->looks >= STOP_LOOKS + patience)
		return true;
	return now >= until_ns || now >= posting_ns;
}

/* Under engine.lock, so that the peer stays; another thread holds its claim. */
static void look_at_peer(struct kv_peer *peer)
{
	int64_t rounds = atomic_load(&peer->rounds);

	if (!rounds || !kv_claim_is_held(&peer->claim)) { /* it is not up yet, or free */
		peer->looks = 0;
	} else if (peer->seen_rounds != rounds) {
		peer->seen_rounds = rounds;
		peer->looks = 0;
	} else if (++peer->looks >= STOP_LOOKS &&
		   has_passed(peer, (unsigned int)(peer->engine->op_timeout_ms / KV_TICK_MS))) {
		tr_conn_cut(peer->conn);
	}
}

static void *watch_main(void *arg)
{
	struct kv_engine *engine = arg;

	for (;;) {
		uint32_t seq = kv_waiter_enter(&engine->watch_stop);

		if (!atomic_load(&engine->watch_ends))
			kv_waiter_sleep(&engine->watch_stop, seq, kv_deadline_ns(KV_TICK_MS));
		kv_waiter_leave(&engine->watch_stop);
		if (atomic_load(&engine->watch_ends))
			return NULL;
		pthread_mutex_lock(&engine->lock);
		for (uint32_t i = 0; i < engine->peers_end; i++)
			if (engine->peer[i])
				look_at_peer(engine->peer[i]);
		pthread_mutex_unlock(&engine->lock);
	}
}

void kv_watch_start(struct kv_engine *engine)
{
	int ret = 0;

	pthread_mutex_lock(&engine->lock);
	if (!engine->watch_on) {
		ret = kv_thread_start(&engine->watch, NULL, watch_main, engine);
		engine->watch_on = !ret;
	}
	pthread_mutex_unlock(&engine->lock);
	if (ret)
		kv_log_warn(engine->log,
			    "no thread could be started (%s): a call of a device that does not "
			    "return will not be ended",
			    kv_errno_text(ret));
}

void kv_watch_stop(struct kv_engine *engine)
{
	if (!engine->watch_on)
		return;
	atomic_store(&engine->watch_ends, true);
	kv_waiter_wake(&engine->watch_stop);
	pthread_join(engine->watch, NULL);
	engine->watch_on = false;
}
