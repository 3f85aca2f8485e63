/* SPDX-License-Identifier: Apache-2.0 */
/*
 * door.c -- the accepting side's end of a data socket: a door that is open during one handshake
 *
 * It listens at the address that the peer has used, at a port of its own. A connection has to begin
 * with the greeting that only the peer can make (tr_conn_prove): until then it costs a descriptor
 * and a greeting's bytes, and can name nothing. A few may wait; one more closes
 * the oldest of them. The first that proves itself closes the door.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/fds.h"
#include "tcp.h"

static void send_away(struct tcp_conn *tc, struct tcp_stranger *s)
{
	if (s->fd < 0)
		return;
	tr_conn_unwatch(tc->conn, s->fd);
	kv_fd_close(s->fd);
	s->fd = -1;
}

void door_close(struct tcp_conn *tc)
{
	for (unsigned int i = 0; i < TCP_STRANGERS; i++)
		send_away(tc, &tc->stranger[i]);
	if (tc->door < 0)
		return;
	tr_conn_unwatch(tc->conn, tc->door);
	kv_fd_close(tc->door);
	tc->door = -1;
}

static int bind_door(struct tcp_conn *tc, uint16_t port, struct kv_error *err)
{
	struct sockaddr_storage sa;
	socklen_t len;
	int on = 1, ret = tr_conn_socket(tc->conn, false, port, &sa, &len, &tc->door, err);

	if (ret)
		return ret;
	setsockopt(tc->door, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	if (!(kv_fault(TCP_LISTEN) ? (errno = EACCES, -1)
				   : bind(tc->door, (struct sockaddr *)&sa, len) ||
					     listen(tc->door, TCP_STRANGERS)))
		return 0;
	ret = kv_fail_errno(err, errno == EADDRINUSE ? KV_ERR_BUSY : KV_ERR_SYSTEM, errno,
			    "handshake", "cannot listen for a data socket");
	kv_fd_close(tc->door);
	tc->door = -1;
	return ret;
}

/* The next free port of the option's range; where one begins to look differs. */
static int bind_in_range(struct tcp_conn *tc, struct kv_error *err)
{
	const struct tcp_ctx *ctx = tc->ctx;
	unsigned int ports = ctx->last_port - ctx->first_port + 1u;
	unsigned int first = (tc->token[0] | (unsigned int)tc->token[1] << 8) % ports;
	int ret = KV_ERR_BUSY;

	if (!ctx->first_port)
		return bind_door(tc, 0, err);
	for (unsigned int i = 0; ret == KV_ERR_BUSY && i < ports; i++)
		ret = bind_door(tc, (uint16_t)(ctx->first_port + (first + i) % ports), err);
	if (ret == KV_ERR_BUSY)
		kv_error_hint(err,
			      "KVCACHE_TCP_PORTS is %u-%u: one port for each handshake that "
			      "is under way at a time",
			      ctx->first_port, ctx->last_port);
	return ret;
}

int door_open(struct tcp_conn *tc, uint16_t *port_p, struct kv_error *err)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	int ret = bind_in_range(tc, err);

	if (ret)
		return ret;
	if (getsockname(tc->door, (struct sockaddr *)&sa, &len))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "handshake", "getsockname");
	*port_p = ntohs(sa.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&sa)->sin6_port
						 : ((struct sockaddr_in *)&sa)->sin_port);
	return tr_conn_watch(tc->conn, tc->door, err);
}

/* Its greeting is there and right: the peer. It gets the answer, and the others are sent away. */
static void let_in(struct tcp_conn *tc, struct tcp_stranger *s)
{
	uint8_t answer[STREAM_GREETING], proof[STREAM_PROOF];
	int on = 1;

	tr_conn_prove(tc->conn, TCP_OPENS, tc->token, proof);
	stream_put_greeting(answer, proof);
	/* The first bytes of a socket are taken at once, unless it is gone. */
	if (send(s->fd, answer, sizeof(answer), MSG_NOSIGNAL | MSG_DONTWAIT) != sizeof(answer)) {
		send_away(tc, s);
		return;
	}
	setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	tc->sock = s->fd;
	s->fd = -1;
	door_close(tc);
}

/* What it has sent. */
static void hear(struct tcp_conn *tc, struct tcp_stranger *s)
{
	ssize_t n;

	if (s->fd < 0)
		return;
	do
		n = recv(s->fd, s->greeting + s->got, sizeof(s->greeting) - s->got, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return;
	if (n > 0)
		s->got += (uint8_t)n;
	if (n <= 0 || !stream_is_greeting(s->greeting, s->got))
		send_away(tc, s);
	else if (s->got < sizeof(s->greeting))
		return;
	else if (tr_conn_is_proof(tc->conn, TCP_KNOCKS, tc->token,
				  s->greeting + sizeof(s->greeting) - STREAM_PROOF))
		let_in(tc, s);
	else
		send_away(tc, s);
}

static void take_stranger(struct tcp_conn *tc, int fd)
{
	struct tcp_stranger *s = &tc->stranger[tc->next_stranger++ % TCP_STRANGERS];

	send_away(tc, s); /* the oldest: the peer sends its greeting at once */
	s->fd = fd;
	s->got = 0;
	if (tr_conn_watch(tc->conn, fd, NULL))
		send_away(tc, s);
	hear(tc, s);
}

void door_look(struct tcp_conn *tc)
{
	for (unsigned int i = 0; i < TCP_STRANGERS && tc->door >= 0; i++)
		hear(tc, &tc->stranger[i]);
	for (int i = 0; i < TCP_ACCEPTS && tc->door >= 0; i++) {
		int fd = kv_fd_new(kv_fault(TCP_ACCEPT) ? (errno = EMFILE, -1)
							: accept4(tc->door, NULL, NULL,
								  SOCK_NONBLOCK | SOCK_CLOEXEC));

		if (fd >= 0)
			take_stranger(tc, fd);
		else if (errno != EINTR && errno != ECONNABORTED)
			return;
	}
}
