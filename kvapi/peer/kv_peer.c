/* SPDX-License-Identifier: Apache-2.0 */
/* kv_peer.c -- a peer's life: made, used, closed */
#include "kv_peer.h"

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
	if (peer->leaving)
		return kv_peer_fail(peer, err, KV_ERR_CLOSED, op, "the peer is being closed");
	if (peer->state == KV_PEER_UP)
		return 0;
	kv_peer_fail(peer, err, KV_ERR_PEER_LOST, op, "the connection was lost before: %.200s",
		     peer->error.message);
	kv_error_hint(err, "close the peer and connect again");
	return KV_ERR_PEER_LOST;
}

/* ---------------------------------------------------------------- under its claim */

int kv_peer_claim_for(struct kv_peer *peer, int64_t deadline_ns, int code, const char *op,
		      struct kv_error *err)
{
	if (kv_claim_until(&peer->claim, deadline_ns))
		return 0;
	return kv_peer_fail(peer, err, code, op,
			    "another call on %s had not returned at the deadline", peer->name);
}

int kv_peer_send(struct kv_peer *peer, const struct kv_msg *msg)
{
	uint8_t buf[TR_MSG_MAX];
	size_t len = kv_wire_put(msg, buf, sizeof(buf));

	/*
	 * A negative code means that the connection is failing: TR_PEER_LOST says why. A BEGIN is
	 * of use only with its notify, or an ABORT, which wake the receiver anyway: once, not
	 * twice.
	 */
	if (msg->type == KV_MSG_BEGIN)
		return tr_msg_lazy(peer->conn, buf, len, NULL);
	return tr_msg(peer->conn, buf, len, NULL);
}

void kv_peer_due(struct kv_peer *peer, int64_t deadline_ns)
{
	if (deadline_ns < peer->next_deadline_ns)
		peer->next_deadline_ns = deadline_ns;
}

void kv_peer_break(struct kv_peer *peer, int code, const char *fmt, ...)
{
	char text[sizeof(peer->error.message)];
	va_list ap;

	if (peer->error.code)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	kv_peer_fail(peer, &peer->error, code, "progress", "%s", text);
	kv_log_error(peer->engine->log, "closing the connection to %s (%s): %s", peer->name,
		     tr_conn_address(peer->conn), text);
	tr_fence(peer->conn, KV_NO_DEADLINE,
		 NULL); /* tr_poll goes on with it and reports TR_PEER_LOST */
}

/* ---------------------------------------------------------------- the table of peers */

int kv_peer_new(struct kv_engine *engine, bool incoming, struct kv_peer **peer_p,
		struct kv_error *err)
{
	struct kv_peer *peer = kv_fault(KV_PEER_ALLOC) ? NULL : calloc(1, sizeof(*peer));
	uint32_t i;
	bool first;

	if (!peer)
		return kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate a peer");
	peer->engine = engine;
	peer->incoming = incoming;
	peer->owned = !incoming;
	peer->traffic = &engine->traffic[0];
	peer->begun_ns = kv_now_ns();
	peer->next_deadline_ns = KV_NO_DEADLINE;
	atomic_init(&peer->posting_ns, KV_NO_DEADLINE);
	atomic_init(&peer->holders, 1);
	peer->claim.nudge_fd = engine->nudge_fd;
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
	kv_table_keep_awake(peer);
	first = !incoming && !engine->peers_end;
	if (i >= engine->peers_end)
		engine->peers_end = i + 1;
	engine->peers_pending += incoming;
	pthread_mutex_unlock(&engine->lock);
	/* A turn of another thread sleeps until an event: it has deadlines from now on. */
	if (first)
		kv_engine_wake(engine);
	*peer_p = peer;
	return 0;
}

void kv_peer_note(struct kv_peer *peer)
{
	uint64_t host = tr_conn_host(peer->conn);
	unsigned int i = 0;

	while (tr_transport_name(i) && strcmp(tr_transport_name(i), tr_conn_transport(peer->conn)))
		i++;
	peer->traffic = &peer->engine->traffic[i % KV_TRANSPORTS];
	snprintf(peer->address, sizeof(peer->address), "%s", tr_conn_address(peer->conn));
	snprintf(peer->transport, sizeof(peer->transport), "%s", tr_conn_transport(peer->conn));
	if (host) /* what it was charged stays with the address that it had */
		peer->host = host;
}

void kv_peer_hold(struct kv_peer *peer)
{
	atomic_fetch_add(&peer->holders, 1);
}

void kv_peer_drop(struct kv_peer *peer)
{
	if (atomic_fetch_sub(&peer->holders, 1) != 1)
		return;
	free(peer->timing);
	free(peer);
}

/* true: PEER_UP is queued, or need not be. false: the queue is full, try again later. */
bool kv_peer_tell_up(struct kv_peer *peer)
{
	struct kv_arrival up = { .kind = KV_ARRIVAL_PEER_UP, .peer = peer };

	if (!peer->announced &&
	    (!peer->owned || !peer->incoming || peer->comm || kv_arrivals_push(peer->engine, &up)))
		peer->announced = KV_UP_QUEUED;
	return peer->announced;
}
