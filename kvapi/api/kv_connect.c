/* SPDX-License-Identifier: Apache-2.0 */
/* kv_connect.c -- listening and connecting, as an application asks for it */
#include "kv_api.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>

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
	struct tr_conn_config config = { .ops = &kv_upper_ops,
					 .arg = peer,
					 .features = kv_hello_features(engine) };
	int done = 0;
	int ret = tr_connect(engine->tr, host, port, &config, &peer->conn, err);

	if (ret)
		return ret;
	kv_peer_note(peer);
	ret = kv_table_watch(peer, err);
	if (!ret)
		kv_peer_service(peer, &done);
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
		kv_peer_release(peer);
		kv_service_sleep(peer->engine, &peer->waiter, seq, until_ns, deadline_ns);
		kv_waiter_leave(&peer->waiter);
	}
}

/* In the place of one that another thread has, and may just be writing the address of. */
static const struct kv_peer unclaimed;

static int out_of_time(const struct kv_peer *peer, bool claimed, const char *host, uint32_t port,
		       struct kv_error *err)
{
	const char *interface = kv_option_string(peer->engine->options, KV_OPT_SOCKET_IFNAME);
	const char *stage =
		claimed ? tr_conn_stage(peer->conn) : "another thread was doing the handshake";
	bool bound = *interface && !strcmp(stage, "connecting");

	kv_peer_fail(claimed ? peer : &unclaimed, err, KV_ERR_TIMEOUT, "connect",
		     "the deadline passed while %s%s%s: %s:%u", stage, bound ? " through " : "",
		     bound ? interface : "", host ? host : "127.0.0.1", port);
	if (bound)
		kv_error_hint(err,
			      "KVCACHE_SOCKET_IFNAME is %s: does the peer's address lie behind it?",
			      interface);
	else
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
	/* A rank that has adopted this one may have left before this thread looked. */
	if (claimed && (peer->state == KV_PEER_UP || atomic_load(&peer->adopted))) {
		kv_peer_release(peer);
		*peer_p = peer;
		return 0;
	}
	if (claimed)
		kv_peer_note(peer);
	if (claimed && peer->state >= KV_PEER_LOST)
		ret = kv_error_copy(err, &peer->error);
	else if (given_up)
		ret = kv_peer_fail(claimed ? peer : &unclaimed, err, KV_ERR_CANCELLED, "connect",
				   "the application gave up");
	else
		ret = out_of_time(peer, claimed, host, port, err);
	if (!claimed)
		kv_peer_abandon(peer);
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
