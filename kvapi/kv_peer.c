/* SPDX-License-Identifier: Apache-2.0 */
/* kv_peer.c -- a peer's life: made, used, closed */
#include "kv_internal.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int kv_peer_use(const struct kv_peer *peer, const char *op, struct kv_error *err)
{
	if (!peer)
		return kv_fail(err, KV_ERR_ARG, op, "peer is NULL");
	if (peer->magic != KV_MAGIC_PEER)
		return kv_fail(err, KV_ERR_CLOSED, op, "the peer was closed");
	return kv_engine_use(peer->engine, op, err);
}

int kv_peer_fail(const struct kv_peer *peer, struct kv_error *err, int code, const char *op,
		 const char *fmt, ...)
{
	char text[sizeof(err->message)];
	va_list ap;

	if (!err)
		return code;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	kv_fail(err, code, op, "%s", text);
	snprintf(err->peer, sizeof(err->peer), "%s", peer->address);
	snprintf(err->device, sizeof(err->device), "%s", peer->transport);
	return code;
}

int kv_peer_usable(const struct kv_peer *peer, const char *op, struct kv_error *err)
{
	if (peer->closing)
		return kv_peer_fail(peer, err, KV_ERR_CLOSED, op, "the peer is being closed");
	if (peer->state == KV_PEER_UP)
		return 0;
	kv_peer_fail(peer, err, KV_ERR_PEER_LOST, op, "the connection was lost before: %.200s",
		     peer->error.message);
	kv_error_hint(err, "close the peer and connect again");
	return KV_ERR_PEER_LOST;
}

/* ---------------------------------------------------------------- the table of peers */

int kv_peer_new(struct kv_engine *engine, bool incoming, struct kv_peer **peer_p,
		struct kv_error *err)
{
	struct kv_peer *peer = kv_fault(KV_PEER_ALLOC) ? NULL : calloc(1, sizeof(*peer));
	uint32_t i;

	if (!peer)
		return kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate a peer");
	peer->engine = engine;
	peer->incoming = incoming;
	peer->owned = !incoming;
	peer->begun_ns = kv_now_ns();
	peer->next_deadline_ns = KV_NO_DEADLINE;
	atomic_init(&peer->posting_ns, KV_NO_DEADLINE);
	atomic_init(&peer->holders, 1);
	kv_claim_try(&peer->claim); /* no other thread can reach it yet */
	pthread_mutex_lock(&engine->lock);
	for (i = 0; i < KV_ROWS_MAX && engine->peer[i]; i++)
		;
	if (i == KV_ROWS_MAX) {
		pthread_mutex_unlock(&engine->lock);
		kv_claim_release(&peer->claim);
		free(peer);
		return kv_fail(err, KV_ERR_BUSY, "connect",
			       "the engine has %d peers and connects already", KV_ROWS_MAX);
	}
	peer->magic = KV_MAGIC_PEER;
	peer->index = i;
	engine->peer[i] = peer;
	atomic_store(&engine->wants[i], false);
	if (i >= engine->peers_end)
		engine->peers_end = i + 1;
	engine->peers_pending += incoming;
	pthread_mutex_unlock(&engine->lock);
	*peer_p = peer;
	return 0;
}

void kv_peer_note(struct kv_peer *peer)
{
	snprintf(peer->address, sizeof(peer->address), "%s", tr_conn_address(peer->conn));
	snprintf(peer->transport, sizeof(peer->transport), "%s", tr_conn_transport(peer->conn));
}

void kv_peer_hold(struct kv_peer *peer)
{
	atomic_fetch_add(&peer->holders, 1);
}

void kv_peer_drop(struct kv_peer *peer)
{
	if (atomic_fetch_sub(&peer->holders, 1) == 1)
		free(peer);
}

/* No event of the transport comes for them any more: ends them. */
static void end_the_rest(struct kv_peer *peer)
{
	kv_peer_end_ops(peer, KV_ERR_CLOSED, 0);
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
		kv_service_unwatch(peer);
	pthread_mutex_lock(&engine->lock);
	kv_stats_keep(peer);
	engine->peer[peer->index] = NULL;
	engine->peer_generation[peer->index]++;
	while (engine->peers_end && !engine->peer[engine->peers_end - 1])
		engine->peers_end--;
	if (peer->state == KV_PEER_HANDSHAKE)
		engine->peers_pending -= peer->incoming;
	if (peer->counted)
		engine->peers_up--;
	pthread_mutex_unlock(&engine->lock);
	kv_hello_free(peer);
	if (peer->conn)
		tr_conn_close(peer->conn);
	peer->conn = NULL;
	peer->state = KV_PEER_CLOSED;
	peer->closing = true;
	peer->magic = KV_MAGIC_DEAD;
	kv_waiter_wake(&peer->waiter);
	kv_claim_release(&peer->claim);
	kv_peer_drop(peer);
}

/* ---------------------------------------------------------------- closing */

static bool peer_is_idle(const struct kv_peer *peer)
{
	return !(peer->link->busy[0] | peer->link->busy[1]);
}

static void peer_nap(const struct kv_peer *peer, int64_t deadline_ns)
{
	struct pollfd fd = { .fd = tr_conn_fd(peer->conn), .events = POLLIN };

	/* Short: a fence is not always announced on the descriptor. */
	poll(&fd, 1, kv_poll_ms(deadline_ns, 2));
}

void kv_peer_end_ops(struct kv_peer *peer, int code, int64_t stop_ns)
{
	while (peer->link->collected)
		kv_op_stop(peer->link->collected, code, stop_ns, NULL);
	KV_EACH_BIT (peer->link->busy, i)
		kv_op_stop(peer->link->slot[i].op, code, stop_ns, NULL);
}

static void end_operations(struct kv_peer *peer, int64_t deadline_ns)
{
	kv_peer_end_ops(peer, KV_ERR_CLOSED, deadline_ns);
	kv_lease_close_all(peer);
	while (peer->state == KV_PEER_UP && !peer_is_idle(peer) && kv_now_ns() < deadline_ns)
		if (!kv_peer_progress(peer, false))
			peer_nap(peer, deadline_ns);
}

static void say_goodbye(struct kv_peer *peer)
{
	static const struct kv_msg bye = { .type = KV_MSG_BYE };

	kv_peer_progress(peer, false); /* acknowledgements that the peer waits for go first */
	if (peer->state == KV_PEER_UP && !peer->bye_sent)
		peer->bye_sent = !kv_peer_send(peer, &bye);
}

int kv_peer_shut(struct kv_peer *peer, int64_t deadline_ns, struct kv_error *err)
{
	struct kv_error cause;
	int64_t linger;
	int ret;

	peer->closing = true;
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
		;
	peer->fenced = true;
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

int kv_peer_info(struct kv_peer *peer, struct kv_peer_info *info, struct kv_error *err)
{
	int ret = kv_peer_use(peer, "peer_info", err);

	if (ret)
		return ret;
	if (!info || info->size != sizeof(*info))
		return kv_fail(err, KV_ERR_ARG, "peer_info",
			       "kv_peer_info is NULL or its size is not %zu", sizeof(*info));
	/* No claim, which another call may hold: all of it is final since the handshake. */
	*info = (struct kv_peer_info){
		.size = sizeof(*info),
		.connected = peer->state == KV_PEER_UP,
		.incoming = peer->incoming,
		.user = atomic_load(&peer->user),
	};
	snprintf(info->name, sizeof(info->name), "%s", peer->name);
	snprintf(info->address, sizeof(info->address), "%s", tr_conn_address(peer->conn));
	snprintf(info->transport, sizeof(info->transport), "%s", tr_conn_transport(peer->conn));
	snprintf(info->path, sizeof(info->path), "%s", tr_conn_path(peer->conn));
	memcpy(info->incarnation, tr_conn_incarnation(peer->conn), sizeof(info->incarnation));
	return 0;
}

void kv_peer_set_user(struct kv_peer *peer, uint64_t user)
{
	if (peer && peer->magic == KV_MAGIC_PEER)
		atomic_store(&peer->user, user);
}
