/* SPDX-License-Identifier: Apache-2.0 */
/* lobby.c -- connections wait here until their hello is complete, or make room */
#include "lobby.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/fds.h"
#include "base/option.h"
#include "conn.h"

enum { ROWS_MIN = 8 };

struct stranger {
	struct stranger *next, **at; /* at: what points to it */
	int64_t since_ns;
	int fd;
	uint16_t crowd;
	bool waits; /* is in lobby->waiting */
};

/* ---------------------------------------------------------------- the table */

static void list_init(struct stranger_list *list)
{
	list->first = NULL;
	list->last = &list->first;
}

static void stranger_append(struct stranger_list *list, struct stranger *s)
{
	s->next = NULL;
	s->at = list->last;
	*list->last = s;
	list->last = &s->next;
}

static void stranger_remove(struct stranger_list *list, struct stranger *s)
{
	*s->at = s->next;
	if (s->next)
		s->next->at = s->at;
	else
		list->last = s->at;
}

/* The rows that the options and the limit on descriptors allow. */
static unsigned int rows_of(const struct tr *tr)
{
	unsigned int rows = (unsigned int)kv_option_int(tr->options, KV_OPT_MAX_PENDING);
	struct rlimit limit;

	if (!getrlimit(RLIMIT_NOFILE, &limit) && limit.rlim_cur / LOBBY_FD_SHARE < rows)
		rows = (unsigned int)(limit.rlim_cur / LOBBY_FD_SHARE);
	return rows < ROWS_MIN ? ROWS_MIN : rows;
}

int lobby_open(struct lobby *lobby, struct tr *tr, int epfd, struct kv_error *err)
{
	memset(lobby, 0, sizeof(*lobby));
	lobby->tr = tr;
	lobby->epfd = epfd;
	lobby->max = rows_of(tr);
	lobby->hello_ms = kv_option_int(tr->options, KV_OPT_HANDSHAKE_MS);
	memcpy(&lobby->seed, tr->incarnation, sizeof(lobby->seed));
	list_init(&lobby->waiting);
	list_init(&lobby->ready);
	lobby->row = kv_fault(TR_LISTEN_ALLOC) ? NULL : calloc(lobby->max, sizeof(*lobby->row));
	if (!lobby->row)
		return kv_fail(err, KV_ERR_NOMEM, "listen", "cannot allocate %u rows of strangers",
			       lobby->max);
	for (unsigned int i = lobby->max; i--;) {
		lobby->row[i].next = lobby->unused;
		lobby->unused = &lobby->row[i];
	}
	return 0;
}

static void free_row(struct lobby *lobby, struct stranger *s)
{
	s->next = lobby->unused;
	lobby->unused = s;
	lobby->n--;
	lobby->retry_ns = 0;
}

static void leave_waiting(struct lobby *lobby, struct stranger *s)
{
	stranger_remove(&lobby->waiting, s);
	lobby->crowd[s->crowd]--;
	s->waits = false;
}

static int remove_waiting(struct lobby *lobby, struct stranger *s)
{
	int fd = s->fd;

	leave_waiting(lobby, s);
	free_row(lobby, s);
	return fd;
}

int lobby_leave(struct lobby *lobby)
{
	struct stranger *s = lobby->ready.first;

	if (!s)
		return -1;
	stranger_remove(&lobby->ready, s);
	free_row(lobby, s);
	return s->fd;
}

void lobby_close(struct lobby *lobby)
{
	if (!lobby->row)
		return;
	while (lobby->waiting.first)
		kv_fd_close(remove_waiting(lobby, lobby->waiting.first));
	while (lobby->ready.first)
		kv_fd_close(lobby_leave(lobby));
	free(lobby->row);
	lobby->row = NULL;
}

/* ---------------------------------------------------------------- sending away */

void lobby_refuse(struct lobby *lobby, int fd, const char *fmt, ...)
{
	char why[200];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(why, sizeof(why), fmt, ap);
	va_end(ap);
	control_warn(lobby->tr, why);
	lobby->refused.limit++;
	control_reject(fd, NULL, KV_ERR_BUSY, "it has no room for a connection now",
		       "connect again a little later");
	kv_fd_close(fd);
}

/* Of the address with the most strangers the one that has waited longest. */
static struct stranger *least_welcome(const struct lobby *lobby)
{
	struct stranger *worst = lobby->waiting.first;

	for (struct stranger *s = worst; s; s = s->next)
		if (lobby->crowd[s->crowd] > lobby->crowd[worst->crowd])
			worst = s;
	return worst;
}

bool lobby_make_room(struct lobby *lobby)
{
	struct stranger *s;
	int64_t now;

	if (lobby->n < lobby->max)
		return true;
	s = least_welcome(lobby);
	now = kv_now_ns();
	lobby->retry_ns = (s ? s->since_ns : now) + LOBBY_PATIENCE_MS * KV_NS_PER_MS;
	if (!s || now < lobby->retry_ns)
		return false;
	lobby_refuse(lobby, remove_waiting(lobby, s),
		     "%u connections wait here, and this one has not sent its hello", lobby->max);
	return true;
}

bool lobby_free_fd(struct lobby *lobby)
{
	struct stranger *s = least_welcome(lobby);

	if (s)
		lobby_refuse(lobby, remove_waiting(lobby, s),
			     "the process has no descriptor left, and this connection has not sent "
			     "its hello");
	return s;
}

/* A connection that has begun a frame gets the cause; one that has sent nothing gets no answer. */
static void time_out(struct lobby *lobby, int fd)
{
	char why[96];
	int there;

	lobby->refused.timeout++;
	snprintf(why, sizeof(why), "no complete hello within %lld ms", (long long)lobby->hello_ms);
	if (!ioctl(fd, FIONREAD, &there) && there)
		control_reject(fd, NULL, KV_ERR_TIMEOUT, why, "");
	kv_fd_close(fd);
}

void lobby_expire(struct lobby *lobby, int64_t now_ns)
{
	int64_t born_ns = now_ns - lobby->hello_ms * KV_NS_PER_MS;
	struct stranger *s;

	while ((s = lobby->waiting.first) && s->since_ns <= born_ns)
		time_out(lobby, remove_waiting(lobby, s));
	while ((s = lobby->ready.first) && s->since_ns <= born_ns)
		lobby_refuse(lobby, lobby_leave(lobby),
			     "too many handshakes are unfinished (KVCACHE_MAX_PENDING)");
}

int64_t lobby_deadline(const struct lobby *lobby)
{
	int64_t until = lobby->retry_ns ? lobby->retry_ns : INT64_MAX;
	const struct stranger *first[2] = { lobby->waiting.first, lobby->ready.first };

	for (int i = 0; i < 2; i++)
		if (first[i] && first[i]->since_ns + lobby->hello_ms * KV_NS_PER_MS < until)
			until = first[i]->since_ns + lobby->hello_ms * KV_NS_PER_MS;
	return until;
}

/* ---------------------------------------------------------------- coming in */

enum verdict { WAIT, READY, GARBAGE };

/* READY: the whole hello is there, or a frame that the handshake refuses with a sentence. */
static enum verdict look_at(int fd)
{
	uint8_t bytes[FRAME_HEADER];
	struct frame_header header;
	ssize_t n;
	int there;

	do
		n = recv(fd, bytes, sizeof(bytes), MSG_PEEK | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return WAIT;
	if (n <= 0 || frame_check_prefix(bytes, (size_t)n))
		return GARBAGE;
	if (n < FRAME_HEADER)
		return WAIT;
	if (frame_get_header(bytes, &header) || !frame_begins(&header))
		return READY;
	if (ioctl(fd, FIONREAD, &there))
		return GARBAGE;
	return (uint32_t)there >= FRAME_HEADER + header.len ? READY : WAIT;
}

static void turn_away(struct lobby *lobby, int fd)
{
	lobby->refused.garbage++;
	kv_fd_close(fd);
}

void lobby_enter(struct lobby *lobby, int fd, const struct sockaddr_storage *sa)
{
	struct stranger *s = lobby->unused;
	struct epoll_event ev = { .events = EPOLLIN | EPOLLRDHUP | EPOLLET };
	enum verdict verdict = look_at(fd);

	if (verdict == GARBAGE) {
		turn_away(lobby, fd);
		return;
	}
	ev.data.u32 = LOBBY_TOKEN + (uint32_t)(s - lobby->row);
	if (verdict == WAIT &&
	    (kv_fault(TR_CONN_EPOLL) ? (errno = ENOSPC, -1)
				     : epoll_ctl(lobby->epfd, EPOLL_CTL_ADD, fd, &ev))) {
		lobby_refuse(lobby, fd, "epoll_ctl: %s", kv_errno_text(errno));
		return;
	}
	lobby->unused = s->next;
	lobby->n++;
	s->fd = fd;
	s->since_ns = kv_now_ns();
	s->crowd = (uint16_t)((address_key(sa, lobby->seed) >> 32) % LOBBY_CROWDS);
	if (verdict == READY) {
		stranger_append(&lobby->ready, s);
		return;
	}
	s->waits = true;
	lobby->crowd[s->crowd]++;
	stranger_append(&lobby->waiting, s);
}

void lobby_look(struct lobby *lobby, uint32_t token, uint32_t events)
{
	struct stranger *s = &lobby->row[token - LOBBY_TOKEN];
	enum verdict verdict;

	/*
	 * The event may be of a connection that has just left its row, which may be in use again.
	 */
	if (!s->waits)
		return;
	verdict = look_at(s->fd);
	if (verdict == WAIT && !(events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)))
		return;
	if (verdict != READY) {
		turn_away(lobby, remove_waiting(lobby, s));
		return;
	}
	epoll_ctl(lobby->epfd, EPOLL_CTL_DEL, s->fd, NULL);
	leave_waiting(lobby, s);
	stranger_append(&lobby->ready, s);
}
