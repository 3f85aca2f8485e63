/* SPDX-License-Identifier: Apache-2.0 */
/*
 * link.c -- the AF_UNIX socket between the two ends: descriptors, doorbell, identity, death
 *
 * The doorbell is a byte on this socket and not an eventfd: it costs no descriptor, MSG_DONTWAIT
 * holds whatever the peer does to the open file, and a full queue means that the peer has a wake-up
 * waiting already.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fault.h"
#include "shm.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77 /* Linux 6.5 */
#endif

union control {
	struct cmsghdr align;
	char buf[CMSG_SPACE(SHM_PIECES * sizeof(int))];
};

int link_send(struct shm_conn *sc, const struct link_message *message, const struct link_fds *fds,
	      struct kv_error *err)
{
	union control control = { 0 };
	struct iovec iov = { (void *)(uintptr_t)message, sizeof(*message) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	ssize_t n;

	if (fds && fds->n) {
		struct cmsghdr *c;

		msg.msg_control = control.buf;
		msg.msg_controllen = CMSG_SPACE(fds->n * sizeof(int));
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(fds->n * sizeof(int));
		memcpy(CMSG_DATA(c), fds->fd, fds->n * sizeof(int));
	}
	tr_conn_count(sc->conn)->syscalls++;
	do
		n = kv_fault(SHM_SEND) ? (errno = ENOBUFS, -1)
				       : sendmsg(sc->sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	/* ETOOMANYREFS: of this user so many descriptors are on their way as a process may have. */
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == ETOOMANYREFS))
		return TR_AGAIN;
	if (n < 0)
		return kv_fail_errno(err,
				     errno == EPIPE || errno == ECONNRESET ? KV_ERR_PEER_LOST
									   : KV_ERR_SYSTEM,
				     errno, "shm", "cannot pass a descriptor to the peer");
	return 0;
}

void link_close_fds(struct link_fds *fds)
{
	while (fds->n)
		close(fds->fd[--fds->n]);
}

static void take_fds(struct msghdr *msg, struct link_fds *fds)
{
	for (struct cmsghdr *c = CMSG_FIRSTHDR(msg); c; c = CMSG_NXTHDR(msg, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS &&
		    c->cmsg_len >= CMSG_LEN(sizeof(int))) {
			fds->n = (unsigned int)((c->cmsg_len - CMSG_LEN(0)) / sizeof(int));
			memcpy(fds->fd, CMSG_DATA(c), fds->n * sizeof(int));
		}
}

int link_receive(struct shm_conn *sc, int sock, struct link_message *message, unsigned int most,
		 struct link_fds *fds, struct kv_error *err)
{
	union control control;
	struct iovec iov = { message, sizeof(*message) };
	/* Not CMSG_SPACE: its padding has room for one more, which nobody would close. */
	struct msghdr msg = { .msg_iov = &iov,
			      .msg_iovlen = 1,
			      .msg_control = control.buf,
			      .msg_controllen = CMSG_LEN(most * sizeof(int)) };
	ssize_t n;

	fds->n = 0;
	tr_conn_count(sc->conn)->syscalls++;
	do
		n = kv_fault(SHM_RECEIVE) ? (errno = ENOMEM, -1)
					  : recvmsg(sock, &msg, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return TR_AGAIN;
	if (n < 0)
		return kv_fail_errno(err, errno == ECONNRESET ? KV_ERR_PEER_LOST : KV_ERR_SYSTEM,
				     errno, "shm", "receiving from the peer's local socket");
	take_fds(&msg, fds);
	if (!n && !fds->n) /* else it is a message without a byte */
		return kv_fail(err, KV_ERR_PEER_LOST, "shm", "the peer closed its local socket");
	if (n == sizeof(*message) && !(msg.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
		return 0;
	if (fds->n < most && (msg.msg_flags & MSG_CTRUNC)) {
		link_close_fds(fds);
		return kv_fail_errno(err, KV_ERR_NOFD, EMFILE, "shm",
				     "cannot take a descriptor from the peer");
	}
	link_close_fds(fds);
	return kv_fail(err, KV_ERR_PROTOCOL, "shm",
		       "a message of %zd bytes on the peer's local socket is malformed", n);
}

/* For cuda_range.c, which has asked for them. */
static void keep_pieces(struct shm_conn *sc, const struct link_message *message,
			struct link_fds *fds)
{
	sc->pieces.came = true;
	sc->pieces.fds = *fds;
	sc->pieces.len = fds->n ? message->len : 0;
	sc->pieces.error = fds->n ? 0 : message->len;
}

/* One message after the handshake; takes over the descriptor. */
static int handle(struct shm_conn *sc, const struct link_message *message, struct link_fds *fds,
		  struct kv_error *err)
{
	unsigned int n = fds->n;

	if (message->kind == LINK_POOL && n == 1)
		return pool_received(sc, message, fds->fd[0], err);
	if (message->kind == LINK_PIECES && sc->pieces.asked && !sc->pieces.came &&
	    message->id == sc->pieces.mem) {
		keep_pieces(sc, message, fds);
		return 0;
	}
	link_close_fds(fds);
	if (message->kind == LINK_DOORBELL && !n)
		return 0;
	if (message->kind == LINK_ENDS && !n && sc->side == SEGMENT_CONNECTING) {
		uint8_t token[16];

		tr_conn_prove(sc->conn, "ends....", sc->token, token);
		if (memcmp(message->token, token, sizeof(token)))
			return kv_fail(err, KV_ERR_AUTH, "shm",
				       "the peer's local socket is not the peer's");
		trust_compare_ends(sc, &message->ends);
		return 0;
	}
	return kv_fail(err, KV_ERR_PROTOCOL, "shm",
		       "message kind %u on the peer's local socket does not belong there",
		       message->kind);
}

int link_drain(struct shm_conn *sc, struct kv_error *err)
{
	struct link_message message;
	struct kv_error cause;
	struct link_fds fds;
	int ret = 0;

	if (sc->sock < 0)
		return 0;
	/* Bounded: a peer that rings without end must not keep the thread that serves others. */
	for (int i = 0; i < SHM_LINK_MESSAGES && !ret && !sc->hung_up; i++) {
		/* As many as were asked for: an honest peer sends them with no other message. */
		ret = link_receive(sc, sc->sock, &message, sc->pieces.asked ? SHM_PIECES : 1, &fds,
				   &cause);
		if (!ret)
			ret = handle(sc, &message, &fds, &cause);
		else if (ret == KV_ERR_PEER_LOST) {
			/* What the ring still holds is taken first; receive.c reports the loss. */
			sc->hung_up = true;
			ret = 0;
		}
	}
	return ret < 0 ? kv_error_copy(err, &cause) : 0;
}

void link_wake(struct shm_conn *sc, uint32_t why)
{
	static const struct link_message doorbell = { .kind = LINK_DOORBELL };
	_Atomic uint32_t *asleep = &sc->seg.theirs->asleep;
	uint32_t reasons;

	/*
	 * seq_cst fence: our store (a tail, a head, a stop) before our load of `asleep`; the
	 * sleeper stores `asleep`, fences, and looks at those words again (shm_arm). At least one
	 * of the two sees the other's store, so no wake-up is lost.
	 */
	atomic_thread_fence(memory_order_seq_cst);
	if (!(atomic_load_explicit(asleep, memory_order_relaxed) & why) || sc->sock < 0)
		return;
	/* exchange: of several wakers and reasons one rings */
	reasons = atomic_exchange_explicit(asleep, 0, memory_order_relaxed);
	if (!reasons)
		return;
	tr_conn_count(sc->conn)->doorbells++;
	/* A dead peer is noticed elsewhere, and with a full queue a wake-up waits already. */
	if (link_send(sc, &doorbell, NULL, NULL) != KV_ERR_SYSTEM)
		return;
	/* No memory for it: the peer still sleeps, and only this side knows that it must not. */
	atomic_fetch_or_explicit(asleep, reasons, memory_order_relaxed);
	sc->unrung = true;
}

void link_wake_again(struct shm_conn *sc)
{
	if (!sc->unrung)
		return;
	sc->unrung = false;
	link_wake(sc, WAKE_DATA | WAKE_ROOM);
}

int link_identify(struct shm_conn *sc, struct kv_error *err)
{
	struct ucred cred;
	socklen_t len = sizeof(cred);

	if (kv_fault(SHM_PEERCRED) ? (errno = ENOBUFS, -1)
				   : getsockopt(sc->sock, SOL_SOCKET, SO_PEERCRED, &cred, &len))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "handshake",
				     "cannot find out which process the peer is");
	sc->pid = cred.pid;
	sc->uid = cred.uid;

	len = sizeof(sc->pidfd);
	if (kv_fault(SHM_PIDFD)
		    ? (errno = EMFILE, -1)
		    : getsockopt(sc->sock, SOL_SOCKET, SO_PEERPIDFD, &sc->pidfd, &len)) {
		sc->pidfd = -1;
		/*
		 * Before Linux 6.5: by number. A socket outlives the process that made it where it
		 * was passed on or inherited; then the number may be another process's by now. An
		 * engine does neither with its socket, and what a peer that does so reaches is a
		 * process that this one may write to and that its user could have named itself.
		 */
		if (errno == ENOPROTOOPT && sc->pid > 0)
			sc->pidfd = (int)syscall(SYS_pidfd_open, sc->pid, 0);
		if (sc->pidfd < 0)
			snprintf(sc->no_pidfd, sizeof(sc->no_pidfd), "no pidfd: %s",
				 kv_errno_text(errno));
	}
	return 0;
}

bool link_peer_is_dead(const struct shm_conn *sc)
{
	struct pollfd p = { .fd = sc->pidfd, .events = POLLIN };

	return sc->pidfd >= 0 && poll(&p, 1, 0) == 1;
}
