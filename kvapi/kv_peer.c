/* SPDX-License-Identifier: Apache-2.0 */
/* kv_peer.c -- a peer's life: made, progressed, lost, closed */
#include "kv_internal.h"

#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

enum { ARM_ROUNDS = 16 };

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
	snprintf(err->peer, sizeof(err->peer), "%s", tr_conn_address(peer->conn));
	snprintf(err->device, sizeof(err->device), "%s", tr_conn_transport(peer->conn));
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
	peer->next_deadline_ns = KV_NO_DEADLINE;
	pthread_mutex_init(&peer->claim, NULL);
	pthread_mutex_lock(&peer->claim);
	pthread_mutex_lock(&engine->lock);
	for (i = 0; i < KV_PEERS_MAX && engine->peer[i]; i++)
		;
	if (i == KV_PEERS_MAX || engine->peers_pending >= engine->pending_max) {
		kv_fail(err, KV_ERR_BUSY, "connect",
			"%u handshakes are unfinished; the limit is %u", engine->peers_pending,
			engine->pending_max);
		pthread_mutex_unlock(&engine->lock);
		pthread_mutex_unlock(&peer->claim);
		pthread_mutex_destroy(&peer->claim);
		free(peer);
		return KV_ERR_BUSY;
	}
	peer->magic = KV_MAGIC_PEER;
	peer->index = i;
	engine->peer[i] = peer;
	atomic_store(&engine->wants[i], false);
	if (i >= engine->peers_end)
		engine->peers_end = i + 1;
	engine->peers_pending++;
	pthread_mutex_unlock(&engine->lock);
	*peer_p = peer;
	return 0;
}

void kv_peer_free(struct kv_peer *peer)
{
	struct kv_engine *engine = peer->engine;

	kv_arrivals_forget(engine, peer);
	if (peer->conn)
		kv_service_unwatch(peer);
	pthread_mutex_lock(&engine->lock);
	engine->peer[peer->index] = NULL;
	engine->peer_generation[peer->index]++;
	while (engine->peers_end && !engine->peer[engine->peers_end - 1])
		engine->peers_end--;
	if (peer->state == KV_PEER_HANDSHAKE)
		engine->peers_pending--;
	if (peer->counted)
		engine->peers_up--;
	pthread_mutex_unlock(&engine->lock);
	if (peer->conn)
		kv_stats_keep(peer);
	kv_hello_free(peer);
	if (peer->conn)
		tr_conn_close(peer->conn);
	pthread_mutex_unlock(&peer->claim);
	pthread_mutex_destroy(&peer->claim);
	peer->magic = KV_MAGIC_DEAD;
	free(peer);
}

/* ---------------------------------------------------------------- claim */

void kv_peer_claim(struct kv_peer *peer)
{
	if (!pthread_mutex_trylock(&peer->claim))
		return;
	atomic_fetch_add(&peer->wanting, 1);
	pthread_mutex_lock(&peer->claim);
	atomic_fetch_sub(&peer->wanting, 1);
}

/* Leaves the connection so that its next event reaches the service thread. */
void kv_peer_arm(struct kv_peer *peer, bool may_post, int *done_p)
{
	for (int i = 0; peer->state == KV_PEER_UP && tr_conn_arm(peer->conn); i++) {
		if (i == ARM_ROUNDS) {
			peer->restless = true; /* it never rests: others must have their turn */
			return;
		}
		*done_p += kv_peer_progress(peer, may_post);
	}
	peer->restless = false;
}

void kv_peer_release(struct kv_peer *peer)
{
	atomic_bool *wants = &peer->engine->wants[peer->index];
	bool restless;
	int done = 0;

	if (!peer->engine->caller_mode)
		kv_peer_arm(peer, true, &done);
	restless = peer->restless;
	pthread_mutex_unlock(&peer->claim);
	if (restless)
		kv_engine_wake(peer->engine);
	atomic_thread_fence(
		memory_order_seq_cst); /* the unlock comes before the look: see claim_at */
	if (atomic_load(wants) && atomic_exchange(wants, false))
		kv_service_rearm(peer);
}

/* ---------------------------------------------------------------- messages and events */

int kv_peer_send(struct kv_peer *peer, const struct kv_msg *msg)
{
	uint8_t buf[TR_MSG_MAX];
	size_t len = kv_wire_put(msg, buf, sizeof(buf));

	/*
	 * A negative code means that the connection is failing: TR_PEER_LOST says why. A BEGIN is of
	 * use only with its notify, or an ABORT, which wake the receiver anyway: once, not twice.
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
	tr_fence(peer->conn, NULL); /* tr_poll goes on with it and reports TR_PEER_LOST */
}

static void receive(struct kv_peer *peer, const struct tr_event *event)
{
	struct kv_msg msg;
	int ret = 0;

	if (!kv_wire_get(event->msg, event->len, &msg)) {
		kv_peer_break(peer, KV_ERR_PROTOCOL, "a message of %zu bytes makes no sense",
			      event->len);
		return;
	}
	switch (msg.type) {
	case KV_MSG_BEGIN:
		ret = kv_incoming_begin(peer, &msg.begin);
		break;
	case KV_MSG_ACK:
		for (int i = 0; i < msg.ack.count; i++)
			kv_op_acked(peer, &msg.ack.ack[i]);
		break;
	case KV_MSG_ABORT:
		kv_incoming_abort(peer, &msg.abort);
		break;
	case KV_MSG_LEASE:
		ret = kv_grant_lease(peer, &msg.lease);
		break;
	case KV_MSG_IDS:
		ret = kv_grant_ids(peer, &msg.ids);
		break;
	case KV_MSG_REVOKE:
		kv_grant_revoke(peer, msg.id.lease);
		break;
	case KV_MSG_REVOKED:
		kv_lease_revoked(peer, msg.id.lease);
		break;
	case KV_MSG_BYE:
		peer->bye = true;
		break;
	default:
		break;
	}
	if (ret)
		kv_peer_break(peer, ret, "message %u contradicts what was sent before", msg.type);
}

/* Every operation and lease of the peer learns of its loss. */
static void lose(struct kv_peer *peer, const struct kv_error *cause)
{
	struct kv_engine *engine = peer->engine;

	if (!peer->error.code)
		peer->error = *cause;
	peer->state = KV_PEER_LOST;
	kv_service_unwatch(peer);
	if (!peer->closing)
		kv_count(engine, peers_lost, 1);
	kv_count(engine, peers_now, -1);
	for (unsigned int i = 0; i < KV_OPS_MAX; i++) {
		struct kv_slot *slot = &peer->link->slot[i];

		if (slot->state == KV_SLOT_BUSY)
			kv_op_lost(slot->op);
		slot->state = KV_SLOT_FREE;
	}
	memset(peer->link->aborts, 0, sizeof(peer->link->aborts));
	memset(peer->link->ack, 0, sizeof(peer->link->ack));
	peer->link->slots_used = 0;
	kv_waiter_wake(&peer->link->waiter);
	kv_lease_lost(peer);
	kv_engine_wake(engine); /* the service thread fences it and tells the application */
}

static void dispatch(struct kv_peer *peer, const struct tr_event *event)
{
	switch (event->kind) {
	case TR_NOTIFIED:
		kv_incoming_notified(peer, event->value);
		break;
	case TR_MSG:
		receive(peer, event);
		break;
	case TR_PEER_LOST:
		lose(peer, event->cause);
		break;
	default:
		kv_op_event(peer, event);
		break;
	}
}

static void flush(struct kv_peer *peer)
{
	/*
	 * In this order: an acknowledgement frees what the others may wait for. Each stops at the
	 * first message without credit.
	 */
	if (kv_incoming_flush(peer) && kv_op_flush(peer) && kv_grant_flush(peer))
		kv_lease_flush(peer);
}

/*
 * One round of posting: a piece of each operation that has one, beginning where the last round
 * ended.
 */
static int post_round(struct kv_peer *peer, bool may_post)
{
	struct kv_link *link = peer->link;
	int done = 0;

	if (!(link->posting[0] | link->posting[1]))
		return 0;
	for (unsigned int k = 0; k < KV_OPS_MAX; k++) {
		unsigned int i = (link->turn + k) % KV_OPS_MAX;

		if (kv_bit(link->posting, i))
			done += kv_op_step(link->slot[i].op, may_post);
	}
	link->turn = (link->turn + 1) % KV_OPS_MAX;
	return done;
}

static void check_deadlines(struct kv_peer *peer)
{
	int64_t now = kv_now_ns();

	if (now < peer->next_deadline_ns)
		return;
	peer->next_deadline_ns = KV_NO_DEADLINE;
	for (unsigned int i = 0; i < KV_OPS_MAX; i++) {
		struct kv_op *op = kv_bit(peer->link->busy, i) ? peer->link->slot[i].op : NULL;

		if (!op || op->stage == KV_STAGE_STOP)
			continue; /* the transport keeps the deadline of a stop */
		if (now < op->deadline_ns)
			kv_peer_due(peer, op->deadline_ns);
		else
			kv_op_timeout(op);
	}
	kv_lease_expire(peer, now);
}

int kv_peer_round(struct kv_peer *peer, bool may_post)
{
	struct tr_event events[KV_EVENTS];
	int done;

	if (peer->state != KV_PEER_UP)
		return 0;
	done = tr_poll(peer->conn, events, KV_EVENTS);
	for (int i = 0; i < done; i++)
		dispatch(peer, &events[i]);
	if (peer->state != KV_PEER_UP)
		return done;
	kv_incoming_retry(peer);
	flush(peer);
	done += post_round(peer, may_post);
	check_deadlines(peer);
	return done;
}

int kv_peer_progress(struct kv_peer *peer, bool may_post)
{
	int done = 0, moved;

	do {
		moved = kv_peer_round(peer, may_post);
		done += moved;
	} while (moved);
	return done;
}

/* Operations that only a caller may post: their waiters have to be awake for it. */
static void wake_posters(struct kv_peer *peer)
{
	for (unsigned int i = 0; i < KV_OPS_MAX; i++)
		if (kv_bit(peer->link->posting, i))
			kv_waiter_wake(peer->link->slot[i].op->waiter);
}

/*
 * ---------------------------------------------------------------- what the service does with a
 * peer
 */

/* After a loss: close the door, hand over what is left, and free what nobody owns. false: freed. */
static bool bury(struct kv_peer *peer)
{
	struct kv_arrival lost = {
		.kind = KV_ARRIVAL_PEER_LOST,
		.status = peer->bye ? KV_ERR_CLOSED : KV_ERR_PEER_LOST,
		.peer = peer,
		.user = atomic_load(&peer->user),
	};

	if (peer->closing)
		return true; /* kv_peer_close is at it */
	if (!peer->fenced && !tr_fence(peer->conn, NULL)) {
		peer->fenced = true;
		kv_lease_fenced(peer);
	}
	if (peer->link) /* a connect that failed before its hello has none */
		kv_incoming_retry(peer);
	if (peer->owned && !peer->lost_told)
		peer->lost_told = kv_peer_tell_up(peer) && kv_arrivals_push(peer->engine, &lost);
	if (peer->owned || !peer->fenced)
		return true;
	kv_peer_free(peer);
	return false;
}

bool kv_peer_service(struct kv_peer *peer, int *done_p)
{
	if (peer->state == KV_PEER_HANDSHAKE)
		return kv_peer_handshake(peer, done_p);
	if (peer->state == KV_PEER_LOST)
		return bury(peer);
	*done_p += kv_peer_progress(peer, peer->engine->caller_mode);
	kv_peer_arm(peer, peer->engine->caller_mode, done_p);
	if (peer->state != KV_PEER_UP)
		return true;
	kv_peer_tell_up(peer);
	if (!peer->engine->caller_mode && peer->link->posting[0] | peer->link->posting[1])
		wake_posters(peer);
	return true;
}

/* ---------------------------------------------------------------- closing */

static bool quiet(const struct kv_peer *peer)
{
	return !(peer->link->busy[0] | peer->link->busy[1]);
}

static void nap(const struct kv_peer *peer, int64_t deadline_ns)
{
	struct pollfd fd = { .fd = tr_conn_fd(peer->conn), .events = POLLIN };

	/* Short: a fence is not always announced on the descriptor. */
	poll(&fd, 1, kv_poll_ms(deadline_ns, 2));
}

static void end_operations(struct kv_peer *peer, int64_t deadline_ns)
{
	for (unsigned int i = 0; i < KV_OPS_MAX; i++)
		if (kv_bit(peer->link->busy, i))
			kv_op_stop(peer->link->slot[i].op, KV_ERR_CLOSED, deadline_ns, NULL);
	kv_lease_close_all(peer);
	while (peer->state == KV_PEER_UP && !quiet(peer) && kv_now_ns() < deadline_ns)
		if (!kv_peer_progress(peer, false))
			nap(peer, deadline_ns);
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
	int ret;

	peer->closing = true;
	if (peer->state == KV_PEER_HANDSHAKE || !peer->link)
		return 0;
	end_operations(peer, deadline_ns);
	say_goodbye(peer);
	while ((ret = tr_fence(peer->conn, &cause)) && kv_now_ns() < deadline_ns)
		nap(peer, deadline_ns);
	if (ret) {
		kv_peer_fail(peer, err, KV_ERR_BUSY, "peer_close",
			     "%s has not stopped writing and its process lives", peer->name);
		kv_error_hint(err, "close it again once that process has answered or ended");
		return KV_ERR_BUSY;
	}
	if (peer->state == KV_PEER_UP) {
		struct tr_event events[KV_EVENTS];
		int n;

		/* What the transport still had to say, the ends of operations above all. */
		while (peer->state == KV_PEER_UP &&
		       (n = tr_poll(peer->conn, events, KV_EVENTS)) > 0)
			for (int i = 0; i < n; i++)
				dispatch(peer, &events[i]);
	}
	peer->fenced = true;
	kv_lease_fenced(peer);
	return 0;
}

int kv_peer_close(struct kv_peer *peer, int64_t timeout_ms, struct kv_error *err)
{
	int64_t deadline;
	int ret = kv_peer_use(peer, "peer_close", err);

	if (!ret)
		ret = kv_engine_deadline(timeout_ms, "peer_close", &deadline, err);
	if (ret)
		return ret;
	kv_peer_claim(peer);
	ret = kv_peer_shut(peer, deadline, err);
	if (ret) {
		pthread_mutex_unlock(&peer->claim);
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
	kv_peer_claim(peer);
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
	kv_peer_release(peer);
	return 0;
}

void kv_peer_set_user(struct kv_peer *peer, uint64_t user)
{
	if (peer && peer->magic == KV_MAGIC_PEER)
		atomic_store(&peer->user, user);
}
