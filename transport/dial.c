/* SPDX-License-Identifier: Apache-2.0 */
/* dial.c -- tries the addresses of a name until one answers */
#include "dial.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/fds.h"
#include "base/option.h"
#include "conn.h"

enum { TURN_MS = 250 }; /* without an answer: the next address begins beside it */

struct dial {
	struct tr_conn *conn;
	struct resolver *resolver; /* while the name is being asked for */
	struct addresses list;
	int sock[ADDRESSES_MAX]; /* -1: not begun, or failed */
	unsigned int begun, open;
	int64_t turn_ns; /* when the next one begins at the latest */
	int error;	 /* errno of the last that failed */
	char why[200];	 /* of all that failed */
};

static void print(const struct dial *dial, unsigned int i, char text[ADDRESS_TEXT])
{
	address_print((const struct sockaddr *)&dial->list.at[i].sa, dial->list.at[i].len, text);
}

static void close_one(struct dial *dial, unsigned int i)
{
	if (dial->sock[i] < 0)
		return;
	tr_conn_unwatch(dial->conn, dial->sock[i]);
	kv_fd_close(dial->sock[i]);
	dial->sock[i] = -1;
	dial->open--;
}

static void failed(struct dial *dial, unsigned int i, int error)
{
	size_t len = strlen(dial->why);
	char text[ADDRESS_TEXT];

	print(dial, i, text);
	snprintf(dial->why + len, sizeof(dial->why) - len, "%s%s: %s", len ? "; " : "", text,
		 kv_errno_text(error));
	dial->error = error;
	close_one(dial, i);
}

/* Begins with the next address; only what concerns all of them is an error. */
static int begin_next(struct dial *dial, struct kv_error *err)
{
	unsigned int i = dial->begun++;
	const struct address *to = &dial->list.at[i];
	int fd, ret;

	dial->turn_ns = kv_deadline_ns(TURN_MS);
	fd = kv_fd_new(
		kv_fault(TR_CONN_SOCKET)
			? (errno = EMFILE, -1)
			: socket(to->sa.ss_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
	if (fd < 0 && errno != EAFNOSUPPORT)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "connect", "socket");
	if (fd < 0) {
		failed(dial, i, errno);
		return 0;
	}
	dial->sock[i] = fd;
	dial->open++;
	ret = control_bind_interface(dial->conn->tr, fd, err);
	if (ret)
		return ret;
	if (connect(fd, (const struct sockaddr *)&to->sa, to->len) && errno != EINPROGRESS) {
		failed(dial, i, errno);
		return 0;
	}
	ret = tr_conn_watch(dial->conn, fd, err);
	return ret ? ret : tr_conn_watch_for(dial->conn, fd, TR_WATCH_OUT, err);
}

static int nobody(const struct dial *dial, struct kv_error *err)
{
	const char *interface = kv_option_string(dial->conn->tr->options, KV_OPT_SOCKET_IFNAME);

	kv_fail(err, KV_ERR_PEER_LOST, "connect", "cannot connect to %s", dial->why);
	if (err) {
		err->sys_errno = dial->error;
		snprintf(err->peer, sizeof(err->peer), "%s", dial->conn->address);
	}
	if (dial->error == ECONNREFUSED)
		kv_error_hint(err, "nothing listens there: is the peer up, and is the port right?");
	else if (*interface)
		kv_error_hint(err,
			      "KVCACHE_SOCKET_IFNAME is %s: does the peer's address lie behind it?",
			      interface);
	return KV_ERR_PEER_LOST;
}

/* Begins with as many as it is time for. */
static int go_on(struct dial *dial, struct kv_error *err)
{
	int ret = 0;

	while (!ret && dial->begun < dial->list.n && (!dial->open || kv_now_ns() >= dial->turn_ns))
		ret = begin_next(dial, err);
	if (ret)
		return ret;
	return dial->open ? TR_AGAIN : nobody(dial, err);
}

int dial_start(struct tr_conn *conn, const char *host, uint32_t port, struct dial **dial_p,
	       struct kv_error *err)
{
	struct dial *dial;
	int ret;

	if (!port || port > 65535)
		return kv_fail(err, KV_ERR_ARG, "connect", "port %u is not in 1..65535", port);
	dial = kv_fault(TR_CONN_ALLOC) ? NULL : calloc(1, sizeof(*dial));
	if (!dial)
		return kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate a connection");
	dial->conn = conn;
	for (int i = 0; i < ADDRESSES_MAX; i++)
		dial->sock[i] = -1;
	ret = resolver_ask(host, port, "connect", &dial->list, &dial->resolver, err);
	if (ret == TR_AGAIN) {
		snprintf(conn->address, sizeof(conn->address), "%.50s:%u", host, port);
		ret = tr_conn_watch(conn, resolver_fd(dial->resolver), err);
	} else if (!ret) {
		print(dial, 0, conn->address);
		ret = go_on(dial, err);
	}
	if (ret < 0) {
		dial_free(dial);
		return ret;
	}
	*dial_p = dial;
	return 0;
}

/* The socket has an event: it stands, or failed. */
static bool stands(struct dial *dial, int fd)
{
	socklen_t len = sizeof(int);
	unsigned int i = 0;
	int error = 0;

	while (i < dial->begun && dial->sock[i] != fd)
		i++;
	if (i == dial->begun)
		return false;
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &len))
		error = errno;
	if (error) {
		failed(dial, i, error);
		return false;
	}
	control_name(dial->conn, &dial->list.at[i].sa, dial->list.at[i].len);
	dial->conn->sock = fd;
	dial->sock[i] = -1;
	dial->open--;
	return true;
}

/* 0: the list is there. */
static int dial_resolved(struct dial *dial, struct kv_error *err)
{
	int fd = resolver_fd(dial->resolver), ret;

	tr_conn_unwatch(dial->conn, fd);
	ret = resolver_end(dial->resolver, &dial->list, err);
	if (ret == TR_AGAIN)
		return tr_conn_watch(dial->conn, fd, err) ? KV_ERR_SYSTEM : TR_AGAIN;
	dial->resolver = NULL;
	if (!ret)
		print(dial, 0, dial->conn->address);
	return ret;
}

static int dial_step(struct dial *dial, struct kv_error *err)
{
	struct pollfd p[ADDRESSES_MAX];
	int ret = dial->resolver ? dial_resolved(dial, err) : 0;

	if (ret)
		return ret;
	for (unsigned int i = 0; i < dial->begun; i++)
		p[i] = (struct pollfd){ .fd = dial->sock[i], .events = POLLOUT };
	if (poll(p, dial->begun, 0) <= 0)
		return go_on(dial, err);
	for (unsigned int i = 0, n = dial->begun; i < n; i++)
		if (p[i].revents && stands(dial, p[i].fd)) {
			for (unsigned int k = 0; k < dial->begun; k++)
				close_one(dial, k);
			return 0;
		}
	return go_on(dial, err);
}

bool dial_resolves(const struct dial *dial)
{
	return dial->resolver;
}

void dial_free(struct dial *dial)
{
	if (!dial)
		return;
	if (dial->resolver) {
		tr_conn_unwatch(dial->conn, resolver_fd(dial->resolver));
		resolver_leave(dial->resolver);
	}
	for (unsigned int i = 0; i < dial->begun; i++)
		close_one(dial, i);
	free(dial);
}

int dial_finish(struct tr_conn *conn, struct kv_error *err)
{
	int ret = dial_step(conn->hs->dial, err);

	if (ret)
		return ret;
	dial_free(conn->hs->dial);
	conn->hs->dial = NULL;
	control_set_options(conn);
	return tr_conn_watch_for(conn, conn->sock, TR_WATCH_IN, err);
}
