/* SPDX-License-Identifier: Apache-2.0 */
/*
 * listener.c -- the listening sockets of a name, a lobby behind them, and a reserved descriptor for
 * the day when there are no more
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/fds.h"
#include "base/log.h"
#include "base/option.h"
#include "conn.h"
#include "lobby.h"
#include "resolve.h"

enum {
	BACKLOG = 4096,	  /* the kernel takes net.core.somaxconn if that is less */
	ACCEPTS_MAX = 64, /* of one look at a socket */
	EVENTS_MAX = 64,
	PORT_TRIES = 8, /* for a free port that every address of the name has */
};

struct tr_listener {
	struct tr *tr;
	int sock[ADDRESSES_MAX]; /* -1: no socket for that address */
	unsigned int socks;
	bool paused; /* nothing is accepted until a waiting connection may be sent away */
	int epfd;    /* of the sockets and of the waiting connections */
	/* given up for a moment to take and refuse a connection when descriptors run out */
	int reserve;
	uint32_t port;
	struct lobby lobby;
};

/* Others may have been quicker when it was given up: then it is tried again with each accept. */
static void keep_reserve(struct tr_listener *l)
{
	if (l->reserve < 0)
		l->reserve = open("/dev/null", O_RDONLY | O_CLOEXEC);
}

/* ---------------------------------------------------------------- listen */

static void set_port(struct address *to, uint32_t port)
{
	if (to->sa.ss_family == AF_INET6)
		((struct sockaddr_in6 *)&to->sa)->sin6_port = htons((uint16_t)port);
	else
		((struct sockaddr_in *)&to->sa)->sin_port = htons((uint16_t)port);
}

static int port_of(int fd, uint32_t *port_p)
{
	struct sockaddr_storage sa;
	socklen_t len = sizeof(sa);

	if (getsockname(fd, (struct sockaddr *)&sa, &len))
		return -1;
	*port_p = ntohs(sa.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&sa)->sin6_port
						 : ((struct sockaddr_in *)&sa)->sin_port);
	return 0;
}

static int listen_failed(const char *call, const struct address *to, struct kv_error *err)
{
	int sys_errno = errno;
	char where[ADDRESS_TEXT];

	address_print((const struct sockaddr *)&to->sa, to->len, where);
	return kv_fail_errno(err, sys_errno == EADDRINUSE ? KV_ERR_BUSY : KV_ERR_SYSTEM, sys_errno,
			     "listen", "cannot %s %s", call, where);
}

/* One address; the socket is closed again on failure. */
static int open_socket(struct tr_listener *l, const struct address *to, bool alone,
		       struct kv_error *err)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.u32 = l->socks };
	int fd, on = 1, ret = 0;

	fd = kv_fd_new(
		kv_fault(TR_LISTEN_SOCKET)
			? (errno = EMFILE, -1)
			: socket(to->sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
	if (fd < 0)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "listen", "socket");
	setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
	/* "::" takes IPv4 as well; a name that has both gets a socket for each. */
	if (to->sa.ss_family == AF_INET6 && !alone)
		setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on));
	ret = control_bind_interface(l->tr, fd, err);
	if (!ret &&
	    (kv_fault(TR_LISTEN_BIND) ? (errno = EACCES, -1)
				      : bind(fd, (const struct sockaddr *)&to->sa, to->len)))
		ret = listen_failed("bind to", to, err);
	if (!ret && (kv_fault(TR_LISTEN) ? (errno = EINVAL, -1) : listen(fd, BACKLOG)))
		ret = listen_failed("listen on", to, err);
	if (!ret && (port_of(fd, &l->port) || epoll_ctl(l->epfd, EPOLL_CTL_ADD, fd, &ev)))
		ret = kv_fail_errno(err, KV_ERR_SYSTEM, errno, "listen", "getsockname, epoll_ctl");
	if (ret) {
		kv_fd_close(fd);
		return ret;
	}
	l->sock[l->socks++] = fd;
	return 0;
}

static void close_sockets(struct tr_listener *l)
{
	while (l->socks)
		kv_fd_close(l->sock[--l->socks]);
}

/*
 * Every address of the name that this machine has: `localhost` is ::1 and 127.0.0.1, in either
 * order. One that cannot be had (no IPv6 here) is left out as long as there is another.
 */
static int open_sockets(struct tr_listener *l, struct addresses *list, uint32_t port,
			struct kv_error *err)
{
	struct kv_error why;
	int ret = 0;

	for (unsigned int i = 0; i < list->n; i++) {
		set_port(&list->at[i], l->socks ? l->port : port);
		ret = open_socket(l, &list->at[i], list->n == 1, &why);
		if (ret == KV_ERR_BUSY || ret == KV_ERR_NOFD || (ret && list->n == 1))
			break;
		if (ret)
			kv_log_info(l->tr->log, "%s; the other addresses are tried", why.message);
	}
	if (ret == KV_ERR_BUSY || ret == KV_ERR_NOFD || !l->socks)
		return kv_error_copy(err, &why);
	return 0;
}

static bool is_loopback(const struct address *a)
{
	const struct sockaddr_in *ipv4 = (const struct sockaddr_in *)&a->sa;
	const struct sockaddr_in6 *ipv6 = (const struct sockaddr_in6 *)&a->sa;

	return a->sa.ss_family == AF_INET6 ? IN6_IS_ADDR_LOOPBACK(&ipv6->sin6_addr)
					   : ntohl(ipv4->sin_addr.s_addr) >> 24 == 127;
}

/* Once for a context: NCCL listens for every communicator. */
static void say_keyless(struct tr *tr, const struct addresses *list)
{
	enum { SAID = 1, WARNED } level = SAID;

	for (unsigned int i = 0; i < list->n; i++)
		if (!is_loopback(&list->at[i]))
			level = WARNED;
	if (tr->psk || atomic_load(&tr->keyless) >= level)
		return;
	atomic_store(&tr->keyless, (uint8_t)level);
	if (level == WARNED)
		kv_log_warn(tr->log, "no key is set: every process that reaches this port may "
				     "connect (KVCACHE_PSK_FILE)");
	else
		kv_log_info(tr->log, "no key is set: every process of this host may connect "
				     "(KVCACHE_PSK_FILE)");
}

int tr_listen(struct tr *tr, const char *host, uint32_t port, struct tr_listener **listener_p,
	      struct kv_error *err)
{
	struct addresses list;
	struct tr_listener *l;
	int ret;

	if (port > 65535)
		return kv_fail(err, KV_ERR_ARG, "listen", "port %u is above 65535", port);
	ret = address_resolve(host, port, "listen",
			      kv_deadline_ns(kv_option_int(tr->options, KV_OPT_HANDSHAKE_MS)),
			      &list, err);
	if (ret)
		return ret;
	l = kv_fault(TR_LISTEN_ALLOC) ? NULL : calloc(1, sizeof(*l));
	if (!l)
		return kv_fail(err, KV_ERR_NOMEM, "listen", "cannot allocate a listener");
	l->tr = tr;
	l->reserve = -1;
	keep_reserve(l);
	l->epfd = kv_fd_new(epoll_create1(EPOLL_CLOEXEC));
	if (l->epfd < 0)
		ret = kv_fail_errno(err, KV_ERR_SYSTEM, errno, "listen", "epoll_create1");
	if (!ret)
		ret = lobby_open(&l->lobby, tr, l->epfd, err);
	/* A port that is free at the first address may be taken at the next. */
	for (int i = 0; !ret && !l->socks; i++) {
		ret = open_sockets(l, &list, port, err);
		if (ret)
			close_sockets(l);
		if (ret == KV_ERR_BUSY && !port && list.n > 1 && i < PORT_TRIES)
			ret = 0;
	}
	if (ret) {
		tr_listener_close(l);
		return ret;
	}
	say_keyless(tr, &list);
	*listener_p = l;
	return 0;
}

uint32_t tr_listener_port(const struct tr_listener *listener)
{
	return listener->port;
}

int tr_listener_fd(const struct tr_listener *listener)
{
	return listener->epfd;
}

int64_t tr_listener_deadline(const struct tr_listener *listener)
{
	return lobby_deadline(&listener->lobby);
}

bool tr_listener_waiting(const struct tr_listener *listener)
{
	return listener->lobby.ready.first;
}

void tr_listener_refused(struct tr_listener *listener, struct tr_refused *refused)
{
	*refused = listener->lobby.refused;
	listener->lobby.refused = (struct tr_refused){ 0 };
}

void tr_listener_close(struct tr_listener *listener)
{
	if (!listener)
		return;
	close_sockets(listener);
	lobby_close(&listener->lobby);
	kv_fd_close(listener->epfd);
	if (listener->reserve >= 0)
		close(listener->reserve);
	free(listener);
}

/* ---------------------------------------------------------------- accept */

/* A socket from which nothing is accepted would keep the listener's descriptor readable. */
static void pause_sockets(struct tr_listener *l, bool paused)
{
	if (l->paused == paused)
		return;
	l->paused = paused;
	for (unsigned int i = 0; i < l->socks; i++) {
		struct epoll_event ev = { .events = paused ? 0 : (uint32_t)EPOLLIN, .data.u32 = i };

		epoll_ctl(l->epfd, EPOLL_CTL_MOD, l->sock[i], &ev);
	}
}

/* The last descriptors are for what this process itself has begun. */
static bool is_spare(int fd)
{
	struct rlimit limit;
	rlim_t spare = LOBBY_FD_SPARE;

	if (getrlimit(RLIMIT_NOFILE, &limit) || limit.rlim_cur == RLIM_INFINITY)
		return false;
	if (spare > limit.rlim_cur / 8)
		spare = limit.rlim_cur / 8;
	return (rlim_t)fd >= limit.rlim_cur - spare;
}

static int accept_fd(int sock, struct sockaddr_storage *sa)
{
	socklen_t len = sizeof(*sa);
	int fd;

	do
		fd = kv_fd_new(kv_fault(TR_ACCEPT) ? (errno = EMFILE, -1)
						   : accept4(sock, (struct sockaddr *)sa, &len,
							     SOCK_CLOEXEC | SOCK_NONBLOCK));
	while (fd < 0 && (errno == EINTR || errno == ECONNABORTED));
	return fd;
}

/*
 * Takes one waiting connection for no more than to refuse it, so that it does not wait in vain.
 * TR_AGAIN: none waits. NOFD: that cannot be done either.
 */
static int refuse_one(struct tr_listener *l, int sock, struct kv_error *err)
{
	struct sockaddr_storage sa;
	int fd, sys_errno;

	if (l->reserve >= 0)
		close(l->reserve);
	l->reserve = -1;
	fd = accept_fd(sock, &sa);
	sys_errno = errno;
	if (fd >= 0)
		lobby_refuse(&l->lobby, fd, "the process has no descriptor left (ulimit -n)");
	keep_reserve(l);
	if (fd >= 0)
		return 0;
	if (sys_errno == EAGAIN || sys_errno == EWOULDBLOCK)
		return TR_AGAIN;
	l->lobby.refused.limit++;
	return kv_fail_errno(err, KV_ERR_NOFD, sys_errno, "accept",
			     "a connection waits and cannot even be refused");
}

/* Takes what waits at one socket: 0, or the error. */
static int accept_from(struct tr_listener *l, int sock, struct kv_error *err)
{
	struct sockaddr_storage sa;

	for (int i = 0; i < ACCEPTS_MAX; i++) {
		int fd, sys_errno, ret = 0;

		if (!lobby_make_room(&l->lobby)) {
			pause_sockets(l, true);
			return 0;
		}
		fd = accept_fd(sock, &sa);
		sys_errno = errno;
		if (fd >= 0 && is_spare(fd) && !lobby_free_fd(&l->lobby))
			lobby_refuse(&l->lobby, fd,
				     "the process has few descriptors left, which "
				     "it keeps for itself (ulimit -n)");
		else if (fd >= 0)
			lobby_enter(&l->lobby, fd, &sa);
		if (fd >= 0)
			continue;
		if (sys_errno == EAGAIN || sys_errno == EWOULDBLOCK)
			return 0;
		if (sys_errno != EMFILE && sys_errno != ENFILE)
			return kv_fail_errno(err, KV_ERR_SYSTEM, sys_errno, "accept", "accept");
		if (!lobby_free_fd(&l->lobby))
			ret = refuse_one(l, sock, err);
		if (ret)
			return ret == TR_AGAIN ? 0 : ret;
	}
	return 0;
}

int tr_listener_tend(struct tr_listener *l, struct kv_error *err)
{
	struct epoll_event event[EVENTS_MAX];
	int n, ret = 0;

	keep_reserve(l);
	lobby_expire(&l->lobby, kv_now_ns());
	if (l->paused && lobby_make_room(&l->lobby))
		pause_sockets(l, false);
	n = epoll_wait(l->epfd, event, EVENTS_MAX, 0);
	/*
	 * Waiting connections first: one that has sent bytes meanwhile is not sent away for one
	 * that comes now.
	 */
	for (int i = 0; i < n; i++)
		if (event[i].data.u32 >= LOBBY_TOKEN)
			lobby_look(&l->lobby, event[i].data.u32, event[i].events);
	for (int i = 0; i < n && !ret; i++)
		if (event[i].data.u32 < LOBBY_TOKEN)
			ret = accept_from(l, l->sock[event[i].data.u32], err);
	return ret;
}

/* A connection of the descriptor, which it takes over. */
static int make_conn(struct tr_listener *l, int fd, const struct tr_conn_config *config,
		     struct tr_conn **conn_p, struct kv_error *err)
{
	struct tr_conn *conn;
	int ret = conn_new(l->tr, config, true, &conn, err);

	if (ret == KV_ERR_NOFD && lobby_free_fd(&l->lobby))
		ret = conn_new(l->tr, config, true, &conn, err);
	if (ret) {
		lobby_refuse(&l->lobby, fd, "%s", err->message);
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

int tr_accept(struct tr_listener *listener, const struct tr_conn_config *config,
	      struct tr_conn **conn_p, struct kv_error *err)
{
	struct kv_error cause;
	int fd, ret;

	if (config->handshake_ms)
		listener->lobby.hello_ms = config->handshake_ms;
	ret = tr_listener_tend(listener, &cause);
	fd = lobby_leave(&listener->lobby);
	if (fd >= 0)
		ret = make_conn(listener, fd, config, conn_p, &cause);
	else if (!ret)
		return TR_AGAIN;
	return ret ? kv_error_copy(err, &cause) : 0;
}
