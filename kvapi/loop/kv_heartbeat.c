/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_heartbeat.c -- KVCACHE_HEARTBEAT_MS: a process that is there and does not run
 *
 * One that ends is seen by its sockets, a host that vanishes by transport/silence.c. What neither
 * sees is a process that was stopped, or whose service thread does not come back from a device. So
 * the engine asks a peer of which nothing has come for the option's time, once more after each
 * further one, and gives it up after the fifth. Any message is a sign of life.
 *
 * The answer comes from the peer's service thread, so that what its application does, or which lock
 * it waits for, does not matter. An engine without such a thread, or of an older version, does not
 * say in its hello that it answers, and is not asked.
 */
#include "kv_loop.h"

enum { BEATS = 5 };

void kv_heartbeat_begin(struct kv_peer *peer)
{
	struct kv_engine *engine = peer->engine;

	kv_heartbeat_heard(peer, kv_now_ns());
	if (!engine->heartbeat_ns)
		return;
	peer->heartbeat = tr_conn_features(peer->conn) & KV_SENDS_PONG;
	if (!peer->heartbeat)
		kv_log_info(
			engine->log,
			"%s answers no heartbeat: it has no service thread, or an older version",
			peer->name);
	kv_peer_due(peer, peer->heard_ns + engine->heartbeat_ns);
}

void kv_heartbeat_heard(struct kv_peer *peer, int64_t now)
{
	peer->heard = false;
	peer->heard_ns = now;
	peer->pings = 0;
}

void kv_heartbeat(struct kv_peer *peer, int64_t now)
{
	static const struct kv_msg ping = { .type = KV_MSG_PING };
	int64_t beat = peer->engine->heartbeat_ns, due = peer->heard_ns + (peer->pings + 1) * beat;

	if (peer->leaving)
		return; /* nothing follows a BYE, and kv_peer_close has a deadline */
	if (now >= due && peer->pings == BEATS - 1) {
		kv_peer_break(peer, KV_ERR_PEER_LOST,
			      "nothing was heard from %s for %lld ms, though its process is there",
			      peer->name, (long long)((now - peer->heard_ns) / KV_NS_PER_MS));
		return;
	}
	if (now >= due) {
		kv_peer_send(peer,
			     &ping); /* without a credit something is under way to it anyway */
		peer->pings++;
		due += beat;
	}
	/* This process may have stood still: the peer has time to answer each question. */
	kv_peer_due(peer, due > now + beat / 2 ? due : now + beat / 2);
}
