/* SPDX-License-Identifier: Apache-2.0 */
/* kv_close.c -- the end of a peer: its operations, the goodbye, the fence, its memory */
#include "kv_loop.h"

/* Those that have begun or wait for a slot. */
static void peer_end_ops(struct kv_peer *peer, int code, int64_t stop_ns)
{
	while (peer->link->collected)
		kv_op_stop(peer->link->collected, code, stop_ns, NULL);
	KV_EACH_BIT (peer->link->busy, i)
		kv_op_stop(peer->link->slot[i].op, code, stop_ns, NULL);
}

/* No event of the transport comes for them any more: ends them. */
static void end_the_rest(struct kv_peer *peer)
{
	peer_end_ops(peer, KV_ERR_CLOSED, 0);
	KV_EACH_BIT (peer->link->busy, i)
		kv_op_lost(peer->link->slot[i].op);
}

void kv_peer_free(struct kv_peer *peer)
{
	struct kv_engine *engine = peer->engine;

	if (peer->link)
		end_the_rest(peer);
	kv_arrivals_forget(engine, peer);
	if (peer->conn)
		tr_conn_leave_set(peer->conn);
	pthread_mutex_lock(&engine->lock);
	kv_stats_keep(peer);
	kv_times_keep(peer);
	engine->peer[peer->index] = NULL;
	atomic_store(&engine->awake[peer->index], 0);
	engine->peer_generation[peer->index]++;
	while (engine->peers_end && !engine->peer[engine->peers_end - 1])
		engine->peers_end--;
	if (peer->state == KV_PEER_HANDSHAKE)
		engine->peers_pending -= peer->incoming;
	pthread_mutex_unlock(&engine->lock);
	kv_hello_free(peer);
	if (peer->conn)
		tr_conn_close(peer->conn);
	peer->conn = NULL;
	peer->state = KV_PEER_CLOSED;
	peer->leaving = KV_CLOSING;
	peer->magic = KV_MAGIC_DEAD;
	kv_waiter_wake(&peer->waiter);
	kv_claim_release(&peer->claim);
	kv_peer_drop(peer);
}

static bool peer_is_idle(const struct kv_peer *peer)
{
	return !kv_bits_any(peer->link->busy);
}

static void peer_nap(const struct kv_peer *peer, int64_t deadline_ns)
{
	/* Short: a fence is not always announced on a descriptor. */
	tr_conn_wait(peer->conn, kv_poll_ms(deadline_ns, 2));
}

static void end_operations(struct kv_peer *peer, int64_t deadline_ns)
{
	peer_end_ops(peer, KV_ERR_CLOSED, deadline_ns);
	kv_lease_close_all(peer);
	while (peer->state == KV_PEER_UP && !peer_is_idle(peer) && kv_now_ns() < deadline_ns)
		if (!kv_peer_progress(peer, false))
			peer_nap(peer, deadline_ns);
}

static void say_goodbye(struct kv_peer *peer)
{
	static const struct kv_msg bye = { .type = KV_MSG_BYE };

	kv_peer_progress(peer, false); /* acknowledgements that the peer waits for go first */
	if (peer->state == KV_PEER_UP && peer->leaving != KV_BYE_SENT && !kv_peer_send(peer, &bye))
		peer->leaving = KV_BYE_SENT;
}

int kv_peer_shut(struct kv_peer *peer, int64_t deadline_ns, struct kv_error *err)
{
	struct kv_error cause;
	int64_t linger;
	int ret;

	if (!peer->leaving)
		peer->leaving = KV_CLOSING;
	if (!peer->conn)
		return 0;
	if (peer->link) {
		end_operations(peer, deadline_ns);
		say_goodbye(peer);
	}
	/* Half of the time is for the goodbye, the other half for the fence itself. */
	linger = kv_now_ns() + (deadline_ns - kv_now_ns()) / 2;
	while ((ret = tr_fence(peer->conn, linger, &cause)) && kv_now_ns() < deadline_ns)
		peer_nap(peer, deadline_ns);
	if (ret) {
		kv_peer_fail(peer, err, KV_ERR_BUSY, "peer_close",
			     "%s has not stopped writing and its process lives", peer->name);
		kv_error_hint(err, "close it again once that process has answered or ended");
		return KV_ERR_BUSY;
	}
	/* The transport's last events, the ends of operations above all. */
	while (kv_peer_take_events(peer) > 0)
		peer->now_ns = 0;
	if (peer->link)
		kv_lease_fenced(peer);
	return 0;
}

int kv_peer_close(struct kv_peer *peer, int64_t timeout_ms, struct kv_error *err)
{
	int64_t deadline;
	int ret = kv_peer_use(peer, "peer_close", err);

	if (!ret)
		ret = kv_engine_deadline(timeout_ms, "peer_close", &deadline, err);
	if (!ret)
		ret = kv_peer_claim_for(peer, deadline, KV_ERR_BUSY, "peer_close", err);
	if (ret)
		return ret;
	ret = kv_peer_shut(peer, deadline, err);
	if (ret) {
		kv_claim_release(&peer->claim);
		return ret;
	}
	if (peer->state == KV_PEER_UP)
		kv_count(peer->engine, peers_now, -1);
	kv_peer_free(peer);
	return 0;
}

/* ---------------------------------------------------------------- after a loss */

void kv_peer_fence(struct kv_peer *peer)
{
	if (peer->state != KV_PEER_LOST || tr_fence(peer->conn, 0, NULL))
		return;
	peer->state = KV_PEER_FENCED;
	if (peer->link)
		kv_lease_fenced(peer);
}

/*
 * Handles a lost peer: fences it, delivers its last arrivals, queues PEER_LOST, frees it if the
 * application has no handle. false: freed.
 */
bool kv_peer_finish_lost(struct kv_peer *peer)
{
	struct kv_arrival lost = {
		.kind = KV_ARRIVAL_PEER_LOST,
		.status = peer->bye ? KV_ERR_CLOSED : KV_ERR_PEER_LOST,
		.peer = peer,
		.user = atomic_load(&peer->user),
	};

	if (peer->leaving)
		return true; /* kv_peer_close does it */
	kv_peer_fence(peer);
	if (peer->link) /* a connect that failed before its hello has none */
		kv_incoming_retry(peer);
	if (peer->owned && peer->announced != KV_LOST_QUEUED && kv_peer_tell_up(peer) &&
	    (!peer->link || kv_incoming_tell_unfinished(peer, lost.status)) &&
	    kv_arrivals_push(peer->engine, &lost))
		peer->announced = KV_LOST_QUEUED;
	if (peer->owned || peer->state != KV_PEER_FENCED)
		return true;
	kv_peer_free(peer);
	return false;
}

/*
 * The other end of a handshake that failed here may be ready already, and write: its memory is
 * not free before it is fenced.
 */
bool kv_peer_discard(struct kv_peer *peer)
{
	peer->owned = false;
	peer->announced = KV_LOST_QUEUED;
	if (peer->state == KV_PEER_HANDSHAKE) {
		tr_conn_leave_set(peer->conn);
		kv_peer_leave_pending(peer, KV_PEER_LOST);
	}
	return kv_peer_finish_lost(peer);
}

void kv_peer_abandon(struct kv_peer *peer)
{
	struct kv_engine *engine = peer->engine;

	atomic_store(&peer->orphan, true); /* from here on it may be freed at any time */
	kv_engine_wake(engine);
}

bool kv_peer_discard_orphan(struct kv_peer *peer)
{
	peer->owned = false;
	peer->leaving = 0; /* a kv_peer_close that was BUSY does not come back */
	if (peer->state == KV_PEER_HANDSHAKE)
		return kv_peer_discard(peer);
	if (peer->state == KV_PEER_UP)
		kv_peer_break(peer, KV_ERR_TIMEOUT, "%s was connected or closed too late",
			      peer->name);
	return true;
}
