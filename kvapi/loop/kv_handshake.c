/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_handshake.c -- a peer until it is up, or refused; ranks that no kv_comm_init has taken in yet
 */
#include "kv_loop.h"

void kv_count_rejected(struct kv_engine *engine, int code)
{
	switch (code) {
	case KV_ERR_VERSION:
		kv_count(engine, rejected_version, 1);
		break;
	case KV_ERR_GEOMETRY:
		kv_count(engine, rejected_geometry, 1);
		break;
	case KV_ERR_TIMEOUT:
		kv_count(engine, rejected_timeout, 1);
		break;
	case KV_ERR_BUSY:
	case KV_ERR_NOFD:
	case KV_ERR_NOMEM:
		kv_count(engine, rejected_limit, 1);
		break;
	default: /* no handshake of ours, or it broke off */
		kv_count(engine, rejected_garbage, 1);
		break;
	}
}

bool kv_peer_is_waif(const struct kv_peer *peer)
{
	return peer->incoming && peer->comm && !peer->owned && peer->state == KV_PEER_UP;
}

void kv_peer_adopt(struct kv_peer *peer)
{
	peer->owned = true;
	atomic_store(&peer->adopted, true);
	kv_peer_progress(peer, true); /* sends the reason to the other end */
}

static void rise(struct kv_peer *peer)
{
	struct kv_engine *engine = peer->engine;

	kv_peer_leave_pending(peer, KV_PEER_UP);
	kv_peer_note(peer);
	peer->owned = !peer->incoming || (!peer->comm && !engine->arrivals_off);
	peer->adopt_by_ns = kv_deadline_ns(KV_COMM_MS);
	kv_heartbeat_begin(peer);
	kv_count(engine, peers_now, 1);
	if (peer->incoming)
		kv_count(engine, peers_accepted, 1);
	else
		kv_count(engine, peers_connected, 1);
	kv_log_info(engine->log, "%s %s (%s) over %s: %s",
		    peer->incoming ? "accepted" : "connected to", peer->name,
		    tr_conn_address(peer->conn), tr_conn_transport(peer->conn),
		    tr_conn_path(peer->conn));
	if (tr_conn_can_cut(peer->conn))
		kv_watch_start(engine);
	kv_peer_tell_up(peer);
	kv_waiter_wake(&peer->waiter);
	kv_waiter_wake(&engine->waiter); /* kv_comm_init */
}

bool kv_peer_handshake(struct kv_peer *peer, int *done_p)
{
	struct kv_error err;
	int ret = tr_conn_step(peer->conn, &err);

	if (ret == TR_AGAIN)
		return true;
	++*done_p;
	if (!ret) {
		rise(peer);
		return true;
	}
	if (peer->incoming) {
		kv_count_rejected(peer->engine, ret);
		kv_log_info(peer->engine->log, "refused %s: KV_ERR_%s: %s",
			    tr_conn_address(peer->conn), kv_error_name(ret), err.message);
		return kv_peer_discard(peer);
	}
	if (!peer->error.code) /* else our hello failed and has set the error */
		peer->error = err;
	tr_conn_leave_set(peer->conn);
	kv_peer_leave_pending(peer, KV_PEER_LOST);
	peer->announced = KV_LOST_QUEUED;
	kv_waiter_wake(&peer->waiter);
	return true;
}
