/* SPDX-License-Identifier: Apache-2.0 */
/* conn.c -- the life of a connection: made, looked at, closed */
#include "conn.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/fds.h"
#include "base/option.h"
#include "dial.h"

/* What a connection costs before its hello is accepted (invariant 6 of the design). */
_Static_assert(sizeof(struct tr_conn) + sizeof(struct conn_handshake) + TR_HELLO_MAX +
			       FRAME_HELLO_FIXED <=
		       4096,
	       "a connection costs more than 4 KiB before its hello is accepted");

int conn_new(struct tr *tr, const struct tr_conn_config *config, bool accepting,
	     struct tr_conn **conn_p, struct kv_error *err)
{
	struct tr_conn *conn = kv_fault(TR_CONN_ALLOC) ? NULL : calloc(1, sizeof(*conn));
	int ret;

	if (!conn)
		return kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate a connection");
	conn->tr = tr;
	conn->accepting = accepting;
	conn->sock = -1;
	conn->epfd = -1;
	conn->upper = config->ops;
	conn->upper_arg = config->arg;
	conn->flags = config->flags;
	conn->handshake_ms = config->handshake_ms ? config->handshake_ms
						  : kv_option_int(tr->options, KV_OPT_HANDSHAKE_MS);
	conn->deadline_ns = INT64_MAX;
	conn->hs = kv_fault(TR_CONN_ALLOC) ? NULL : calloc(1, sizeof(*conn->hs));
	if (!conn->hs) {
		ret = kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate a handshake");
		goto close_conn;
	}
	if (!tr_conn_polled(conn))
		conn->epfd = kv_fault(TR_CONN_EPOLL) ? (errno = EMFILE, -1)
						     : epoll_create1(EPOLL_CLOEXEC);
	if (conn->epfd < 0 && !tr_conn_polled(conn)) {
		ret = kv_fail_errno(err, KV_ERR_SYSTEM, errno, "connect", "epoll_create1");
		goto close_conn;
	}
	*conn_p = conn;
	return 0;

close_conn:
	tr_conn_close(conn);
	return ret;
}

int tr_connect(struct tr *tr, const char *host, uint32_t port, const struct tr_conn_config *config,
	       struct tr_conn **conn_p, struct kv_error *err)
{
	struct tr_conn *conn;
	int ret = conn_new(tr, config, false, &conn, err);

	if (ret)
		return ret;
	ret = dial_start(conn, host, port, &conn->hs->dial, err);
	if (ret) {
		tr_conn_close(conn);
		return ret;
	}
	*conn_p = conn;
	return 0;
}

void tr_conn_close(struct tr_conn *conn)
{
	if (!conn)
		return;
	control_goodbye(conn);
	if (conn->sock >= 0)
		silence_end(conn);
	/* Remote regions first: the provider that made them is still whole. */
	while (conn->rmems) {
		struct tr_rmem *rmem = conn->rmems;

		conn->rmems = rmem->next;
		conn->provider->mem_close(conn, rmem);
		free(rmem);
	}
	if (conn->provider)
		conn->provider->stop(conn, conn->priv);
	handshake_free(conn);
	op_drop_all(conn);
	free(conn->data);
	free(conn->exposed);
	kv_fd_close(conn->sock);
	if (conn->epfd >= 0)
		close(conn->epfd);
	free(conn);
}

int tr_conn_watch(struct tr_conn *conn, int fd, struct kv_error *err)
{
	struct epoll_event ev = { .events = EPOLLIN, .data.fd = fd };

	if (tr_conn_polled(conn))
		return 0;
	if (kv_fault(TR_CONN_EPOLL) ? (errno = ENOSPC, -1)
				    : epoll_ctl(conn->epfd, EPOLL_CTL_ADD, fd, &ev))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "connect", "epoll_ctl");
	return 0;
}

void tr_conn_unwatch(struct tr_conn *conn, int fd)
{
	if (!tr_conn_polled(conn))
		epoll_ctl(conn->epfd, EPOLL_CTL_DEL, fd, NULL);
}

bool tr_conn_places(const struct tr_conn *conn)
{
	return conn->provider && conn->provider->places && conn->provider->places(conn);
}

int tr_conn_may(struct tr_conn *conn, const struct tr_mem *mem, uint64_t offset, uint64_t len,
		unsigned int access, uint64_t grant)
{
	if (conn->upper->may)
		return conn->upper->may(conn->upper_arg, mem, offset, len, access, grant);
	return conn_exposes(conn, mem) ? TR_PLACE : KV_ERR_PROTOCOL;
}

int tr_conn_fd(const struct tr_conn *conn)
{
	return conn->epfd;
}

int64_t tr_conn_deadline(const struct tr_conn *conn)
{
	return conn->deadline_ns;
}

const char *tr_conn_address(const struct tr_conn *conn)
{
	return conn->address;
}

const char *tr_conn_transport(const struct tr_conn *conn)
{
	return conn->provider ? conn->provider->name : "";
}

const char *tr_conn_path(const struct tr_conn *conn)
{
	return conn->path;
}

void tr_conn_set_path(struct tr_conn *conn, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(conn->path, sizeof(conn->path), fmt, ap);
	va_end(ap);
}

const uint8_t *tr_conn_incarnation(const struct tr_conn *conn)
{
	return conn->incarnation;
}

const struct kv_error *tr_conn_error(const struct tr_conn *conn)
{
	return &conn->error;
}

void *tr_conn_priv(const struct tr_conn *conn)
{
	return conn->priv;
}

struct tr *tr_conn_tr(const struct tr_conn *conn)
{
	return conn->tr;
}

bool tr_conn_line_order(const struct tr_conn *conn)
{
	return conn->flags & TR_LINE_ORDER;
}

bool tr_conn_polled(const struct tr_conn *conn)
{
	return conn->flags & TR_POLLED;
}

struct tr_counters *tr_conn_count(struct tr_conn *conn)
{
	return &conn->count;
}

void tr_conn_counters(const struct tr_conn *conn, struct tr_counters *counters)
{
	*counters = conn->count;
}

const char *tr_conn_stage(const struct tr_conn *conn)
{
	static const char *const stages[] = {
		"connecting",	     "waiting for hello", "starting the transport",
		"waiting for setup", "waiting for ready", "ready",
		"refused",	     "breaking",	  "lost"
	};

	if (conn->hs && conn->hs->dial && dial_resolves(conn->hs->dial))
		return "resolving the name";
	return stages[conn->stage];
}

int tr_conn_dump(const struct tr_conn *conn, char *buf, size_t cap)
{
	unsigned int open = conn->data ? TR_OPS_MAX - conn->data->free_ops : 0;
	int len = snprintf(buf, cap, "%s %s %s, %u operations open, path: %s\n", conn->address,
			   tr_conn_transport(conn), tr_conn_stage(conn), open, conn->path);
	size_t used = (size_t)len < cap ? (size_t)len : cap;

	if (conn->stage == CONN_READY)
		len += conn->provider->dump(conn, buf + used, cap - used);
	return len;
}
