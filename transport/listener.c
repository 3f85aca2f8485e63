/* SPDX-License-Identifier: Apache-2.0 */
/* listener.c -- the TCP listener, and a reserved descriptor for the day when there are no more */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/option.h"
#include "conn.h"
#include "resolve.h"

struct tr_listener {
	struct tr *tr;
	int fd;
	/* given up for a moment to take and refuse a connection when descriptors run out */
	int reserve;
	uint32_t port;
};

/* Others may have been quicker when it was given up: then it is tried again with each accept. */
static void keep_reserve(struct tr_listener *l)
{
	if (l->reserve < 0)
		l->reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

static int open_socket(struct tr_listener *l, const struct address *to, const char *where,
		       struct kv_error *err)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);
	int on = 1, ret;

	l->fd = kv_fault(TR_LISTEN_SOCKET)
			? (errno = EMFILE, -1)
			: socket(to->sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (l->fd < 0)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "listen", "socket");
	setsockopt(l->fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	ret = control_bind_interface(l->tr, l->fd, err);
	if (ret)
		return ret;
	if (kv_fault(TR_LISTEN_BIND) ? (errno = EACCES, -1)
				     : bind(l->fd, (const struct sockaddr *)&to->sa, to->len))
		return kv_fail_errno(err, errno == EADDRINUSE ? KV_ERR_BUSY : KV_ERR_SYSTEM, errno,
				     "listen", "cannot bind to %s", where);
	if (kv_fault(TR_LISTEN) ? (errno = EINVAL, -1) : listen(l->fd, 1024))
		return kv_fail_errno(err, errno == EADDRINUSE ? KV_ERR_BUSY : KV_ERR_SYSTEM, errno,
				     "listen", "cannot listen on %s", where);
	if (getsockname(l->fd, (struct sockaddr *)&sa, &len))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "listen", "getsockname");
	l->port = ntohs(sa.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&sa)->sin6_port
						 : ((struct sockaddr_in *)&sa)->sin_port);
	return 0;
}

int tr_listen(struct tr *tr, const char *host, uint32_t port, struct tr_listener **listener_p,
	      struct kv_error *err)
{
	struct addresses list;
	struct tr_listener *l;
	char where[80];
	int ret;

	if (port > 65535)
		return kv_fail(err, KV_ERR_ARG, "listen", "port %u is above 65535", port);
	if (!host)
		host = "127.0.0.1";
	snprintf(where, sizeof(where), "%.64s port %u", host, port);
	ret = address_resolve(host, port, "listen", &list, err);
	if (ret)
		return ret;
	l = kv_fault(TR_LISTEN_ALLOC) ? NULL : calloc(1, sizeof(*l));
	if (!l)
		return kv_fail(err, KV_ERR_NOMEM, "listen", "cannot allocate a listener");
	l->tr = tr;
	l->fd = l->reserve = -1;
	keep_reserve(l);
	ret = open_socket(l, &list.at[0], where, err);
	if (ret) {
		tr_listener_close(l);
		return ret;
	}
	*listener_p = l;
	return 0;
}

uint32_t tr_listener_port(const struct tr_listener *listener)
{
	return listener->port;
}

int tr_listener_fd(const struct tr_listener *listener)
{
	return listener->fd;
}

void tr_listener_close(struct tr_listener *listener)
{
	if (!listener)
		return;
	if (listener->fd >= 0)
		close(listener->fd);
	if (listener->reserve >= 0)
		close(listener->reserve);
	free(listener);
}

/* Refuses one waiting connection, so that the listener does not stay readable for ever. */
static int refuse_one(struct tr_listener *l, int sys_errno, struct kv_error *err)
{
	int fd;

	if (l->reserve >= 0)
		close(l->reserve);
	l->reserve = -1;
	fd = accept4(l->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	if (fd >= 0)
		close(fd);
	keep_reserve(l);
	return kv_fail_errno(err, KV_ERR_NOFD, sys_errno, "accept", "a connection was refused");
}

int tr_accept(struct tr_listener *listener, const struct tr_conn_config *config,
	      struct tr_conn **conn_p, struct kv_error *err)
{
	struct tr_conn *conn;
	int fd, ret;

	keep_reserve(listener);
	do
		fd = kv_fault(TR_ACCEPT)
			     ? (errno = EMFILE, -1)
			     : accept4(listener->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
	while (fd < 0 && (errno == EINTR || errno == ECONNABORTED));
	if (fd < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return TR_AGAIN;
	if (fd < 0 && (errno == EMFILE || errno == ENFILE))
		return refuse_one(listener, errno, err);
	if (fd < 0)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "accept", "accept");
	ret = conn_new(listener->tr, config, true, &conn, err);
	if (ret) {
		close(fd);
		return ret;
	}
	conn->sock = fd;
	conn->stage = CONN_WAIT_HELLO;
	conn->deadline_ns = kv_deadline_ns(conn->handshake_ms);
	ret = control_prepare(conn, err);
	if (ret) {
		tr_conn_close(conn);
		return ret;
	}
	*conn_p = conn;
	return 0;
}
