/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ag_dial.c -- connections begun and accepted; what the two ends say in the handshake
 *
 * The side that connects shows the secret of the agent it wants, and its own name. A wrong secret
 * is refused before anything is spent on the connection, and a peer that answers with another
 * incarnation than the one that was loaded is another process.
 */
#include <string.h>
#include <sys/epoll.h>

#include "ag.h"
#include "base/wire.h"

enum { AG_WIRE_VERSION = 1, ACCEPTS = 64 /* of one turn */ };

static int put_name(void *arg, struct tr_conn *conn, void *buf, size_t cap)
{
	const struct ag_peer *peer = arg;
	struct wire_writer w = wire_writer_of(buf, cap);

	if (peer->incoming)
		return 0;
	wire_put_bytes(&w, peer->place.secret, AG_SECRET);
	wire_put_bytes(&w, peer->agent->name, strlen(peer->agent->name));
	return w.bad ? KV_ERR_INTERNAL : (int)w.len;
}

static bool same_secret(const uint8_t *a, const uint8_t *b)
{
	unsigned int differs = 0;

	for (int i = 0; i < AG_SECRET; i++)
		differs |= a[i] ^ b[i]; /* takes as long wherever they differ */
	return !differs;
}

static int hear_stranger(struct ag_peer *peer, const uint8_t *buf, size_t len, struct kv_error *err)
{
	size_t name_len = len - AG_SECRET;

	if (len <= AG_SECRET || name_len > AG_NAME_MAX || memchr(buf + AG_SECRET, 0, name_len))
		return kv_fail(err, KV_ERR_PROTOCOL, "connect",
			       "%zu bytes are not the hello of an agent", len);
	if (!same_secret(buf, peer->agent->place.secret)) {
		kv_fail(err, KV_ERR_AUTH, "connect", "the secret is not that of this agent");
		kv_error_hint(err, "load the metadata that the agent gives out now");
		return KV_ERR_AUTH;
	}
	peer->name = strndup((const char *)buf + AG_SECRET, name_len);
	if (!peer->name)
		return kv_fail(err, KV_ERR_NOMEM, "connect", "cannot keep a name");
	return 0;
}

static int get_name(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		    struct kv_error *err)
{
	struct ag_peer *peer = arg;

	if (peer->incoming)
		return hear_stranger(peer, buf, len, err);
	if (len)
		return kv_fail(err, KV_ERR_PROTOCOL, "connect", "%zu bytes where none belong", len);
	if (memcmp(tr_conn_incarnation(conn), peer->place.incarnation, AG_INCARNATION))
		return kv_fail(err, KV_ERR_STALE_PEER, "connect", "another process answers at %s",
			       tr_conn_address(conn));
	return 0;
}

/* Regions are described when they are asked for: no setup. */
static const struct tr_upper_ops agent_ops = {
	.id = TR_UPPER_AGENT,
	.version = AG_WIRE_VERSION,
	.hello_put = put_name,
	.hello_get = get_name,
};

int ag_watch(struct ag_peer *peer, struct kv_error *err)
{
	return tr_conn_enter_set(peer->conn, peer->agent->epoll_fd,
				 (uint64_t)peer->generation << 32 | (AG_TOKEN_PEERS + peer->index),
				 err);
}

int ag_dial(struct ag_peer *peer, struct kv_error *err)
{
	struct tr_conn_config config = { .ops = &agent_ops, .arg = peer, .flags = TR_LISTS };
	int ret = kv_fail(err, KV_ERR_UNREACHABLE, "connect", "no address of %.200s is left",
			  peer->name);

	while (ret && peer->next_host < peer->place.hosts) {
		ret = tr_connect(peer->agent->tr, peer->place.host[peer->next_host++],
				 peer->place.port, &config, &peer->conn, err);
		if (!ret && (ret = ag_watch(peer, err))) {
			tr_conn_close(peer->conn);
			peer->conn = NULL;
		}
	}
	peer->dial_ns = kv_deadline_ns(peer->agent->handshake_ms);
	return ret;
}

/* ---------------------------------------------------------------- accepting */

static int enter_stranger(struct ag_peer *peer, struct kv_error *err)
{
	int ret;

	pthread_mutex_lock(&peer->agent->lock);
	ret = ag_peer_enter(peer, err);
	pthread_mutex_unlock(&peer->agent->lock);
	if (ret)
		return ret;
	ret = ag_watch(peer, err);
	if (ret)
		ag_peer_leave(peer);
	return ret;
}

static int accept_stranger(struct ag_agent *agent, struct kv_error *err)
{
	struct tr_conn_config config = { .ops = &agent_ops };
	struct ag_peer *peer;
	int ret = ag_peer_new(agent, true, &peer, err);

	if (ret)
		return ret;
	config.arg = peer;
	ret = tr_accept(agent->listener, &config, &peer->conn, err);
	if (!ret) {
		ret = enter_stranger(peer, err);
		if (ret) {
			tr_conn_refuse(peer->conn, err);
			tr_conn_close(peer->conn);
			peer->conn = NULL;
		} else {
			atomic_store(&peer->kicked, true);
		}
	}
	ag_peer_put(peer);
	return ret;
}

/*
 * A connection that cannot be accepted, mostly because there are no descriptors, leaves the
 * listener readable: it is not looked at again before the next tick.
 */
bool ag_accept(struct ag_agent *agent)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLONESHOT,
				     .data.u64 = AG_TOKEN_LISTENER };
	struct kv_error err;
	int ret = 0;

	for (int i = 0; i < ACCEPTS && !ret; i++)
		ret = accept_stranger(agent, &err);
	if (ret < 0)
		kv_log_warn(agent->log, "accept: %s", err.message);
	return ret >= 0 &&
	       !epoll_ctl(agent->epoll_fd, EPOLL_CTL_MOD, tr_listener_fd(agent->listener), &event);
}
