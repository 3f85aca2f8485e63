/* SPDX-License-Identifier: Apache-2.0 */
/* kv_accept.c -- connections from the listener: places for them, and which one makes room */
#include <sys/epoll.h>

#include "kv_loop.h"

enum {
	ACCEPTS_MAX = 64, /* of one turn */
	FAIR_PART = 4,	  /* an unfinished handshake may give way after this part of its time */
};

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

static unsigned int peer_bucket(const struct kv_peer *peer)
{
	return (unsigned int)(peer->host >> 32) % KV_ADDRESSES;
}

static bool is_in_handshake(const struct kv_peer *peer)
{
	return peer && peer->incoming && peer->state == KV_PEER_HANDSHAKE;
}

/*
 * Of the address with the most unfinished handshakes the one that has lasted longest;
 * engine->peers_end: there is none.
 */
static uint32_t slowest(struct kv_engine *engine, int64_t *begun_p)
{
	uint32_t found = engine->peers_end, of_address[KV_ADDRESSES] = { 0 }, most = 0;

	pthread_mutex_lock(&engine->lock);
	for (uint32_t i = 0; i < engine->peers_end; i++)
		if (is_in_handshake(engine->peer[i]))
			of_address[peer_bucket(engine->peer[i])]++;
	for (uint32_t i = 0; i < engine->peers_end; i++) {
		const struct kv_peer *peer = engine->peer[i];
		uint32_t n = is_in_handshake(peer) ? of_address[peer_bucket(peer)] : 0;

		if (n > most || (n && n == most && peer->begun_ns < *begun_p)) {
			found = i;
			most = n;
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
	peer = kv_table_claim(engine, i, kv_now_ns());
	if (!peer)
		return false;
	if (!peer->incoming || peer->state != KV_PEER_HANDSHAKE || peer->begun_ns != begun) {
		kv_table_leave(peer);
		return false;
	}
	kv_fail(&why, KV_ERR_BUSY, "connect",
		"too many handshakes are unfinished; this one took more than %lld ms",
		(long long)engine->handshake_ms / FAIR_PART);
	kv_error_hint(&why, "connect again, or raise KVCACHE_MAX_PENDING of that engine");
	tr_conn_refuse(peer->conn, &why);
	kv_count_rejected(engine, KV_ERR_BUSY);
	kv_log_info(engine->log, "refused %s: %s", tr_conn_address(peer->conn), why.message);
	kv_peer_free(peer);
	return true;
}

static int cannot_accept(struct kv_engine *engine, const struct kv_error *err)
{
	kv_log_warn(engine->log, "accept: %s", err->message);
	return err->code;
}

static unsigned int peers_of(struct kv_engine *engine, uint64_t host)
{
	unsigned int n = 0;

	pthread_mutex_lock(&engine->lock);
	for (uint32_t i = 0; i < engine->peers_end; i++) {
		const struct kv_peer *peer = engine->peer[i];

		n += peer && peer->incoming && peer->host == host &&
		     (peer->state == KV_PEER_HANDSHAKE || peer->state == KV_PEER_UP);
	}
	pthread_mutex_unlock(&engine->lock);
	return n;
}

/* One address is not to take the places of all others. */
static int too_many(struct kv_error *err)
{
	kv_fail(err, KV_ERR_BUSY, "connect", "its limit of peers from one address is reached");
	kv_error_hint(err, "raise KVCACHE_MAX_PER_ADDRESS of that engine");
	return KV_ERR_BUSY;
}

static int accept_one(struct kv_engine *engine)
{
	struct tr_conn_config config = { .ops = &kv_upper_ops,
					 .features = kv_hello_features(engine) };
	struct kv_peer *peer;
	struct kv_error err;
	int done = 0, ret = kv_peer_new(engine, true, &peer, &err);
	bool full;

	if (ret)
		return cannot_accept(engine, &err); /* it is refused at its deadline */
	config.arg = peer;
	ret = tr_accept(engine->listener, &config, &peer->conn, &err);
	if (ret) {
		kv_peer_free(peer);
		return ret == TR_AGAIN ? ret : cannot_accept(engine, &err);
	}
	kv_peer_note(peer);
	full = peers_of(engine, peer->host) > engine->address_max;
	ret = full ? too_many(&err) : kv_table_watch(peer, &err);
	if (ret) {
		kv_count_rejected(engine, ret);
		tr_conn_refuse(peer->conn, &err);
		kv_peer_free(peer);
		return full ? 0 : cannot_accept(engine, &err);
	}
	if (kv_peer_service(peer, &done))
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
