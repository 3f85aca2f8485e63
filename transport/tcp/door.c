/* SPDX-License-Identifier: Apache-2.0 */
/*
 * door.c -- the accepting side's end of the data sockets: a door that is open during one handshake
 *
 * It listens at the address that the peer has used, at a port of its own. A connection has to begin
 * with the greeting that only the peer can make (tr_conn_prove), for a stream that is not there
 * yet: until then it costs a descriptor and a greeting's bytes, and can name nothing. A few may
 * wait; one more closes the oldest of them. When all streams are there the door is closed.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/socket.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/fds.h"
#include "tcp.h"

/* The text that is proven ends with the number of the stream. */
static void label_of(const char whose[7], unsigned int index, char label[8])
{
	memcpy(label, whose, 7);
	label[7] = (char)('0' + index);
}

void door_prove(const struct tcp_conn *tc, const char whose[7], unsigned int index,
		uint8_t proof[STREAM_PROOF])
{
	char label[8];

	label_of(whose, index, label);
	tr_conn_prove(tc->conn, label, tc->token, proof);
}

bool door_is_proof(const struct tcp_conn *tc, const char whose[7], unsigned int index,
		   const uint8_t proof[STREAM_PROOF])
{
	char label[8];

	label_of(whose, index, label);
	return tr_conn_is_proof(tc->conn, label, tc->token, proof);
}

static void send_away(struct tcp_conn *tc, struct tcp_knock *s)
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

static bool all_are_in(const struct tcp_conn *tc)
{
	for (unsigned int i = 0; i < tc->streams; i++)
		if (tc->proven[i] < 0)
			return false;
	return true;
}

/* Its greeting is there and right: the peer. It gets the answer. */
static void let_in(struct tcp_conn *tc, struct tcp_knock *s, uint8_t index)
{
	uint8_t answer[STREAM_GREETING], proof[STREAM_PROOF];
	int on = 1;

	door_prove(tc, TCP_OPENS, index, proof);
	stream_put_greeting(answer, index, proof);
	/* The first bytes of a socket are taken at once, unless it is gone. */
	if (send(s->fd, answer, sizeof(answer), MSG_NOSIGNAL | MSG_DONTWAIT) != sizeof(answer)) {
		send_away(tc, s);
		return;
	}
	setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	tc->proven[index] = s->fd;
	s->fd = -1;
	if (all_are_in(tc))
		door_close(tc);
}

static bool is_wanted(const struct tcp_conn *tc, const uint8_t *greeting)
{
	uint8_t index = stream_of_greeting(greeting);

	return index < tc->streams && tc->proven[index] < 0 &&
	       door_is_proof(tc, TCP_KNOCKS, index, stream_proof_of_greeting(greeting));
}

/* What it has sent. */
static void hear(struct tcp_conn *tc, struct tcp_knock *s)
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
	else if (is_wanted(tc, s->greeting))
		let_in(tc, s, stream_of_greeting(s->greeting));
	else
		send_away(tc, s);
}

static void take_stranger(struct tcp_conn *tc, int fd)
{
	struct tcp_knock *s = &tc->stranger[tc->next_stranger++ % TCP_STRANGERS];

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
