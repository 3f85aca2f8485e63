/* SPDX-License-Identifier: Apache-2.0 */
/* kv_connect.c -- listening, accepting, connecting: a peer until its handshake is over */
#include "kv_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>

enum {
	ACCEPTS_MAX = 64, /* of one turn */
	FAIR_PART = 4,	  /* an unfinished handshake may give way after this part of its time */
};

/* ---------------------------------------------------------------- the end of a handshake */

void kv_peer_leave_pending(struct kv_peer *peer, enum kv_peer_state state)
{
	pthread_mutex_lock(&peer->engine->lock);
	peer->engine->peers_pending -= peer->incoming;
	peer->state = (uint8_t)state;
	pthread_mutex_unlock(&peer->engine->lock);
}

static void count_rejected(struct kv_engine *engine, int code)
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

/* true: PEER_UP is queued, or need not be. false: the queue is full, try again later. */
bool kv_peer_tell_up(struct kv_peer *peer)
{
	struct kv_arrival up = { .kind = KV_ARRIVAL_PEER_UP, .peer = peer };

	if (!peer->up_queued)
		peer->up_queued = !peer->owned || !peer->incoming || peer->comm ||
				  kv_arrivals_push(peer->engine, &up);
	return peer->up_queued;
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
		return kv_peer_service(peer, done_p);
	}
	if (peer->incoming) {
		count_rejected(peer->engine, ret);
		kv_log_info(peer->engine->log, "refused %s: KV_ERR_%s: %s",
			    tr_conn_address(peer->conn), kv_error_name(ret), err.message);
		return kv_peer_discard(peer);
	}
	if (!peer->error.code) /* else our hello failed and has set the error */
		peer->error = err;
	kv_service_unwatch(peer);
	kv_peer_leave_pending(peer, KV_PEER_LOST);
	peer->lost_queued = true;
	kv_waiter_wake(&peer->waiter);
	return true;
}

/* ---------------------------------------------------------------- accepting */

static void count_strangers(struct kv_engine *engine)
{
	struct tr_refused refused;

	tr_listener_refused(engine->listener, &refused);
	kv_count(engine, rejected_garbage, refused.garbage);
	kv_count(engine, rejected_timeout, refused.timeout);
	kv_count(engine, rejected_limit, refused.limit);
}

static bool is_full(struct kv_engine *engine)
{
	bool full;

	pthread_mutex_lock(&engine->lock);
	full = engine->peers_pending >= engine->pending_max;
	pthread_mutex_unlock(&engine->lock);
	return full;
}

/* The handshake that has lasted longest; engine->peers_end: there is none. */
static uint32_t slowest(struct kv_engine *engine, int64_t *begun_p)
{
	uint32_t found = engine->peers_end;

	pthread_mutex_lock(&engine->lock);
	for (uint32_t i = 0; i < engine->peers_end; i++) {
		const struct kv_peer *peer = engine->peer[i];

		if (peer && peer->incoming && peer->state == KV_PEER_HANDSHAKE &&
		    (found == engine->peers_end || peer->begun_ns < *begun_p)) {
			found = i;
			*begun_p = peer->begun_ns;
		}
	}
	pthread_mutex_unlock(&engine->lock);
	return found;
}

/*
 * A connection waits, and unfinished handshakes hold all places: drops the oldest of them if it has
 * had a fair part of its time. true: there is a place.
 */
static bool make_place(struct kv_engine *engine)
{
	int64_t begun, fair = engine->handshake_ms / FAIR_PART * KV_NS_PER_MS;
	uint32_t i = slowest(engine, &begun);
	struct kv_peer *peer;
	struct kv_error why;

	if (i == engine->peers_end || kv_now_ns() - begun < fair)
		return false;
	peer = kv_service_claim(engine, i, kv_now_ns());
	if (!peer)
		return false;
	if (!peer->incoming || peer->state != KV_PEER_HANDSHAKE || peer->begun_ns != begun) {
		kv_service_leave(peer);
		return false;
	}
	kv_fail(&why, KV_ERR_BUSY, "connect",
		"%u handshakes are unfinished, and others wait; this one took more than %lld ms",
		engine->pending_max, (long long)engine->handshake_ms / FAIR_PART);
	kv_error_hint(&why, "connect again, or raise KVCACHE_MAX_PENDING of that engine");
	tr_conn_refuse(peer->conn, &why);
	count_rejected(engine, KV_ERR_BUSY);
	kv_log_info(engine->log, "refused %s: %s", tr_conn_address(peer->conn), why.message);
	kv_peer_free(peer);
	return true;
}

static int cannot_accept(struct kv_engine *engine, const struct kv_error *err)
{
	kv_log_warn(engine->log, "accept: %s", err->message);
	return err->code;
}

static int accept_one(struct kv_engine *engine)
{
	struct tr_conn_config config = { .ops = &kv_upper_ops };
	struct kv_peer *peer;
	struct kv_error err;
	int done = 0, ret = kv_peer_new(engine, true, &peer, &err);

	if (ret)
		return cannot_accept(engine, &err); /* it is refused at its deadline */
	config.arg = peer;
	ret = tr_accept(engine->listener, &config, &peer->conn, &err);
	if (ret) {
		kv_peer_free(peer);
		return ret == TR_AGAIN ? ret : cannot_accept(engine, &err);
	}
	kv_peer_note(peer);
	ret = kv_service_watch(peer, &err);
	if (ret) {
		count_rejected(engine, ret);
		tr_conn_refuse(peer->conn, &err);
		kv_peer_free(peer);
		return cannot_accept(engine, &err);
	}
	if (kv_peer_handshake(peer, &done))
		kv_claim_release(&peer->claim);
	return 0;
}

/*
 * A connection that cannot be accepted, mostly because there are no descriptors, leaves the
 * listener readable: the listener is not looked at again before the next tick. A connection that
 * waits because all places are taken is accepted as soon as one is free.
 */
void kv_peer_accept(struct kv_engine *engine)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLONESHOT,
				     .data.u64 = KV_TOKEN_LISTENER };
	struct kv_error err;
	int ret = 0;

	for (int i = 0; i < ACCEPTS_MAX && !ret; i++)
		if (!is_full(engine) ||
		    (tr_listener_waiting(engine->listener) && make_place(engine)))
			ret = accept_one(engine);
		else
			break;
	if (!ret)
		ret = tr_listener_tend(engine->listener, &err);
	count_strangers(engine);
	engine->deaf = ret < 0;
	engine->knocked = tr_listener_waiting(engine->listener);
	engine->listener_ns = tr_listener_deadline(engine->listener);
	if (!engine->deaf)
		epoll_ctl(engine->epoll_fd, EPOLL_CTL_MOD, tr_listener_fd(engine->listener),
			  &event);
}

/* Whether the listener is to be looked at although nothing has come there. */
bool kv_peer_accept_due(struct kv_engine *engine)
{
	return !engine->deaf &&
	       ((engine->knocked && !is_full(engine)) || kv_now_ns() >= engine->listener_ns);
}

int kv_listen(struct kv_engine *engine, const char *host, uint32_t port, uint32_t *port_p,
	      struct kv_error *err)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLONESHOT,
				     .data.u64 = KV_TOKEN_LISTENER };
	struct tr_listener *listener;
	int ret = kv_engine_use(engine, "listen", err);

	if (ret)
		return ret;
	if (port > UINT16_MAX)
		return kv_fail(err, KV_ERR_ARG, "listen", "port is %u; it must be 0..65535", port);
	pthread_mutex_lock(&engine->lock);
	if (engine->listening)
		ret = kv_fail(err, KV_ERR_BUSY, "listen", "the engine listens already%s",
			      engine->listener ? "" : ", or another thread is about to");
	else
		engine->listening = true;
	pthread_mutex_unlock(&engine->lock);
	if (ret)
		return ret;
	ret = tr_listen(engine->tr, host, port, &listener, err); /* resolves the name: no lock */
	pthread_mutex_lock(&engine->lock);
	if (!ret && (kv_fault(KV_LISTEN_WATCH) ? (errno = ENOMEM, -1)
					       : epoll_ctl(engine->epoll_fd, EPOLL_CTL_ADD,
							   tr_listener_fd(listener), &event))) {
		ret = kv_fail_errno(err, KV_ERR_SYSTEM, errno, "listen", "epoll_ctl failed");
		tr_listener_close(listener);
	}
	engine->listening = !ret;
	if (!ret) {
		engine->listener = listener;
		if (port_p)
			*port_p = tr_listener_port(listener);
	}
	pthread_mutex_unlock(&engine->lock);
	return ret;
}

/* ---------------------------------------------------------------- connecting */

static int start_connect(struct kv_engine *engine, const char *host, uint32_t port,
			 struct kv_peer *peer, struct kv_error *err)
{
	struct tr_conn_config config = { .ops = &kv_upper_ops, .arg = peer };
	int done = 0;
	int ret = tr_connect(engine->tr, host, port, &config, &peer->conn, err);

	if (ret)
		return ret;
	kv_peer_note(peer);
	ret = kv_service_watch(peer, err);
	if (!ret)
		kv_peer_handshake(peer, &done);
	return ret;
}

/*
 * true: the handshake or the call has ended, and this thread holds the claim. false: the call has
 * ended, and another thread in the middle of the handshake still holds the peer.
 */
static bool wait_for_end(struct kv_peer *peer, int64_t deadline_ns, bool *given_up_p)
{
	int64_t ask_ns = kv_deadline_ns(KV_ASK_MS), until_ns;

	for (;;) {
		uint32_t seq = kv_waiter_enter(&peer->waiter);
		bool over;

		*given_up_p = kv_engine_given_up(peer->engine, &ask_ns);
		over = *given_up_p || kv_now_ns() >= deadline_ns;
		until_ns = ask_ns < deadline_ns ? ask_ns : deadline_ns;
		if (over)
			until_ns = kv_deadline_ns(KV_TICK_MS);
		if (!kv_claim_until(&peer->claim, until_ns)) {
			kv_waiter_leave(&peer->waiter);
			if (over)
				return false;
			continue;
		}
		if (over || peer->state != KV_PEER_HANDSHAKE) {
			kv_waiter_leave(&peer->waiter);
			return true;
		}
		kv_claim_release(&peer->claim);
		if (atomic_exchange(&peer->engine->wants[peer->index], false))
			kv_service_rearm(peer);
		kv_service_sleep(peer->engine, &peer->waiter, seq, until_ns);
		kv_waiter_leave(&peer->waiter);
	}
}

/* The peer may be gone once it is an orphan: kv_peer_service frees it. */
static void abandon(struct kv_peer *peer)
{
	struct kv_engine *engine = peer->engine;

	atomic_store(&peer->orphan, true);
	kv_engine_wake(engine);
}

static int out_of_time(const struct kv_peer *peer, bool claimed, const char *host, uint32_t port,
		       struct kv_error *err)
{
	kv_peer_fail(peer, err, KV_ERR_TIMEOUT, "connect", "the deadline passed while %s: %s:%u",
		     claimed ? tr_conn_stage(peer->conn) : "another thread was at the handshake",
		     host ? host : "127.0.0.1", port);
	kv_error_hint(err, "is that an engine of kvrail, and does it make progress? With "
			   "KV_PROGRESS_CALLER it accepts inside kv_progress only");
	return KV_ERR_TIMEOUT;
}

int kv_peer_connect(struct kv_engine *engine, const char *host, uint32_t port, int64_t deadline_ns,
		    uint64_t comm, uint32_t comm_rank, struct kv_peer **peer_p,
		    struct kv_error *err)
{
	struct kv_peer *peer;
	bool given_up, claimed;
	int ret = kv_peer_new(engine, false, &peer, err);

	if (ret)
		return ret;
	peer->comm = comm;
	peer->comm_rank = comm_rank;
	ret = start_connect(engine, host, port, peer, err);
	if (ret) {
		kv_peer_free(peer);
		return ret;
	}
	kv_claim_release(&peer->claim);
	claimed = wait_for_end(peer, deadline_ns, &given_up);
	if (claimed && peer->state == KV_PEER_UP) {
		kv_peer_release(peer);
		*peer_p = peer;
		return 0;
	}
	if (claimed)
		kv_peer_note(peer);
	if (claimed && peer->state == KV_PEER_LOST)
		ret = kv_error_copy(err, &peer->error);
	else if (given_up)
		ret = kv_peer_fail(peer, err, KV_ERR_CANCELLED, "connect",
				   "the application gave up");
	else
		ret = out_of_time(peer, claimed, host, port, err);
	if (!claimed)
		abandon(peer);
	else if (kv_peer_discard(peer))
		kv_claim_release(&peer->claim);
	return ret;
}

int kv_connect(struct kv_engine *engine, const char *host, uint32_t port, int64_t timeout_ms,
	       struct kv_peer **peer_p, struct kv_error *err)
{
	int64_t deadline;
	int ret = kv_engine_use(engine, "connect", err);

	if (!ret)
		ret = kv_engine_deadline(timeout_ms, "connect", &deadline, err);
	if (ret)
		return ret;
	if (!port || port > UINT16_MAX)
		return kv_fail(err, KV_ERR_ARG, "connect", "port is %u; it must be 1..65535", port);
	if (!peer_p)
		return kv_fail(err, KV_ERR_ARG, "connect", "peer_p is NULL");
	return kv_peer_connect(engine, host, port, deadline, 0, 0, peer_p, err);
}
