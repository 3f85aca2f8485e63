/* SPDX-License-Identifier: Apache-2.0 */
/*
 * silence.c -- a peer that has been silent for too long is lost
 *
 * A process that ends closes its socket, which the peer sees. A host that vanishes sends nothing,
 * so the kernel asks it over TCP (keepalive). The result is judged here and not by the kernel,
 * which would end the TCP connection for good (TCP_USER_TIMEOUT): the bytes of the connection go
 * another way, which may work while TCP packets are lost, and TCP may work again a moment later. A
 * peer is alive when it acknowledges something over TCP, or when anything is completed over its
 * provider. Once both have been silent for most of KVCACHE_PEER_TIMEOUT_MS the provider asks on its
 * own path, so that a peer that is merely idle answers; when all of that time has passed the peer
 * is lost. A provider whose own link shows the end (tr_conn_own_link) joins processes of one host,
 * where nothing vanishes without a word. The word may come late, though: the kernel closes the
 * sockets of a process that was killed after it has taken its memory away, which takes hundreds of
 * milliseconds for gigabytes. So the provider is asked whether the peer is ending, now and then.
 */
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/option.h"
#include "conn.h"

enum {
	LOOKS = 16,	    /* in the time that a peer may be silent */
	ASK_AFTER = 12,	    /* of them the provider asks */
	PROBE_SHARE = 2500, /* ms of that time for each second before the kernel's first question */
	LINK_LOOK_MS = 10,  /* between two looks of a caller at a peer with a link of its own */
};

static int64_t limit_ms(const struct tr_conn *conn)
{
	return kv_option_int(conn->tr->options, KV_OPT_PEER_TIMEOUT_MS);
}

/* From now on; INT_MAX: never. */
static void kernel_gives_up_after(const struct tr_conn *conn, int64_t ms)
{
	unsigned int timeout = (unsigned int)ms;

	setsockopt(conn->sock, IPPROTO_TCP, TCP_USER_TIMEOUT, &timeout, sizeof(timeout));
}

void silence_prepare(const struct tr_conn *conn)
{
	int on = 1, interval = 1, idle = (int)(limit_ms(conn) / PROBE_SHARE);

	if (idle < 1)
		idle = 1;
	if (idle > 60)
		idle = 60;
	setsockopt(conn->sock, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
	setsockopt(conn->sock, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof(idle));
	setsockopt(conn->sock, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof(interval));
	kernel_gives_up_after(conn, limit_ms(conn));
}

void silence_begin(struct tr_conn *conn)
{
	if (conn->own_link)
		return silence_look_again(conn);
	kernel_gives_up_after(conn, INT_MAX);
	conn->silence = (struct silence){ .heard_ns = kv_now_ns() };
}

void silence_look_again(struct tr_conn *conn)
{
	conn->silence.look_ns = kv_deadline_ns(LINK_LOOK_MS);
}

void silence_end(const struct tr_conn *conn)
{
	if (conn->sock >= 0)
		kernel_gives_up_after(conn, limit_ms(conn));
}

/* When the peer's host acknowledged something over TCP. */
static int64_t tcp_heard_ns(const struct tr_conn *conn, int64_t now)
{
	struct tcp_info info = { 0 };
	socklen_t len = sizeof(info);

	if (conn->silence.deaf || getsockopt(conn->sock, IPPROTO_TCP, TCP_INFO, &info, &len))
		return 0;
	return now - info.tcpi_last_ack_recv * KV_NS_PER_MS;
}

bool silence_is_due(const struct tr_conn *conn)
{
	return kv_now_ns() >= conn->silence.look_ns;
}

bool silence_is_loss(struct tr_conn *conn, struct kv_error *err)
{
	struct silence *s = &conn->silence;
	int64_t limit = limit_ms(conn) * KV_NS_PER_MS, now = kv_now_ns(), tcp;

	if (conn->own_link || now < s->look_ns)
		return false;
	s->look_ns = now + limit / LOOKS;
	tcp = tcp_heard_ns(conn, now);
	if (tcp > s->heard_ns)
		s->heard_ns = tcp;
	if (s->completions != conn->count.completions)
		s->heard_ns = now;
	s->completions = conn->count.completions;
	if (now - s->heard_ns < limit / LOOKS * ASK_AFTER) {
		s->asked_ns = 0;
		return false;
	}
	if (!s->asked_ns)
		s->asked_ns = now;
	if (conn->provider->ask(conn))
		s->heard_ns = now;
	/* Asked that long ago, too: this end may not have looked for a while. */
	if (now - s->heard_ns < limit ||
	    now - s->asked_ns < limit / LOOKS * (LOOKS - ASK_AFTER - 1))
		return false;
	kv_fail(err, KV_ERR_PEER_LOST, "poll",
		"nothing was heard from %s for %lld ms: no answer over TCP, none over %s",
		conn->address, (long long)((now - s->heard_ns) / KV_NS_PER_MS),
		conn->provider->name);
	kv_error_hint(err, "KVCACHE_PEER_TIMEOUT_MS is how long a silent peer is waited for");
	return true;
}
