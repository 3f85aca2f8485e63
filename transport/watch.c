/* SPDX-License-Identifier: Apache-2.0 */
/*
 * watch.c -- the descriptors that a connection waits for, in the epoll set of its owner
 *
 * A connection has no epoll instance of its own, which would be one more descriptor for each peer.
 * Each of its descriptors has a slot; an event carries the owner's token and the slot, so that the
 * owner arms the one that has sent it (EPOLLONESHOT) and no other.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/epoll.h>

#include "base/error.h"
#include "base/fault.h"
#include "conn.h"

enum { SLOTS_LEAST = 4 };
_Static_assert(EPOLLIN == POLLIN && EPOLLOUT == POLLOUT, "a slot's events are poll's as well");

static bool is_shared(const struct conn_watch *w)
{
	return w->events & EPOLLET;
}

static int control(const struct tr_conn *conn, int op, unsigned int slot)
{
	const struct conn_watch *w = &conn->watch[slot];
	uint64_t token = conn->token | (uint64_t)slot << TR_SLOT_SHIFT;
	struct epoll_event ev = { .events = w->events,
				  .data.u64 = is_shared(w) ? TR_TOKEN_ALL : token };

	if (conn->epoll_fd < 0)
		return 0;
	if (!epoll_ctl(conn->epoll_fd, op, w->fd, &ev) || (is_shared(w) && errno == EEXIST))
		return 0;
	return -1;
}

static unsigned int slot_of(const struct tr_conn *conn, int fd)
{
	unsigned int slot = 0;

	while (slot < conn->watches && conn->watch[slot].fd != fd)
		slot++;
	return slot;
}

/* conn->watches: there is no memory, or no slot. */
static unsigned int vacant_slot(struct tr_conn *conn)
{
	unsigned int slot = slot_of(conn, -1);
	unsigned int slots = conn->watches ? 2 * conn->watches : SLOTS_LEAST;
	struct conn_watch *grown;

	if (slot < conn->watches || slots > TR_SLOTS_MAX)
		return slot;
	grown = realloc(conn->watch, slots * sizeof(*grown));
	if (!grown)
		return slot;
	conn->watch = grown;
	while (conn->watches < slots)
		conn->watch[conn->watches++].fd = -1;
	return slot;
}

static int fill_slot(struct tr_conn *conn, int fd, uint32_t events, struct kv_error *err)
{
	unsigned int slot;

	if (tr_conn_polled(conn))
		return 0;
	slot = vacant_slot(conn);
	if (kv_fault(TR_CONN_EPOLL) || slot == conn->watches)
		return kv_fail(err, KV_ERR_NOMEM, "connect",
			       "there is no memory for one more descriptor of a connection");
	conn->watch[slot] = (struct conn_watch){ fd, events };
	if (!control(conn, EPOLL_CTL_ADD, slot))
		return 0;
	conn->watch[slot].fd = -1;
	return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "connect", "epoll_ctl");
}

int tr_conn_watch(struct tr_conn *conn, int fd, struct kv_error *err)
{
	return fill_slot(conn, fd, EPOLLIN | EPOLLONESHOT, err);
}

int tr_conn_watch_shared(struct tr_conn *conn, int fd, struct kv_error *err)
{
	return fill_slot(conn, fd, EPOLLIN | EPOLLET, err);
}

int tr_conn_watch_for(struct tr_conn *conn, int fd, unsigned int what, struct kv_error *err)
{
	unsigned int slot = slot_of(conn, fd);

	if (tr_conn_polled(conn) || slot == conn->watches)
		return 0;
	conn->watch[slot].events = EPOLLONESHOT | (what & TR_WATCH_IN ? (uint32_t)EPOLLIN : 0) |
				   (what & TR_WATCH_OUT ? (uint32_t)EPOLLOUT : 0);
	if (control(conn, EPOLL_CTL_MOD, slot))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "connect", "epoll_ctl of a socket");
	return 0;
}

void tr_conn_unwatch(struct tr_conn *conn, int fd)
{
	unsigned int slot = slot_of(conn, fd);

	if (fd < 0 || slot == conn->watches)
		return;
	if (!is_shared(&conn->watch[slot]))
		control(conn, EPOLL_CTL_DEL, slot);
	conn->watch[slot].fd = -1;
}

void tr_conn_leave_set(struct tr_conn *conn)
{
	for (unsigned int i = 0; i < conn->watches; i++)
		if (conn->watch[i].fd >= 0 && !is_shared(&conn->watch[i]))
			control(conn, EPOLL_CTL_DEL, i);
	conn->epoll_fd = -1;
}

int tr_conn_enter_set(struct tr_conn *conn, int epoll_fd, uint64_t token, struct kv_error *err)
{
	conn->epoll_fd = epoll_fd;
	conn->token = token;
	for (unsigned int i = 0; i < conn->watches; i++) {
		int error;

		if (conn->watch[i].fd < 0 || !control(conn, EPOLL_CTL_ADD, i))
			continue;
		error = errno;
		tr_conn_leave_set(conn);
		return kv_fail_errno(err, KV_ERR_SYSTEM, error, "connect", "epoll_ctl");
	}
	return 0;
}

void tr_conn_rearm(const struct tr_conn *conn, unsigned int slot)
{
	unsigned int i = slot == TR_EVERY_SLOT ? 0 : slot;

	/* Cannot fail for a descriptor that stands in the set. */
	for (; i < conn->watches && (slot == TR_EVERY_SLOT || i == slot); i++)
		if (conn->watch[i].fd >= 0 && !is_shared(&conn->watch[i]))
			control(conn, EPOLL_CTL_MOD, i);
}

bool tr_conn_wait(const struct tr_conn *conn, int ms)
{
	struct pollfd p[TR_SLOTS_MAX];
	int n;

	/* poll(2) skips a slot without a descriptor. */
	for (unsigned int i = 0; i < conn->watches; i++)
		p[i] = (struct pollfd){ .fd = conn->watch[i].fd,
					.events = conn->watch[i].events & (EPOLLIN | EPOLLOUT) };
	n = poll(p, conn->watches, ms);
	for (unsigned int i = 0; n > 0 && i < conn->watches; i++)
		if (p[i].revents && is_shared(&conn->watch[i])) {
			tr_alarm(conn->tr);
			break;
		}
	return n > 0;
}
