/* SPDX-License-Identifier: Apache-2.0 */
/*
 * prove.c -- the handshake: that both ends share a kernel is proven, never guessed from names
 *
 *   accepting side                               connecting side
 *   offer: listens on a random abstract name
 *          name, token               - TCP ->    start: connects to the name (another host or
 *                                                another network namespace has no such socket),
 *                                                makes the segment with a nonce in it
 *                                  <- AF_UNIX -  token, the segment's descriptor
 *   setup_get: the token is right, so both
 *          sockets have the same peer <- TCP -   flags
 *   setup_put: the nonce that it read
 *          in the segment            - TCP ->    setup_get: it is right: the memory is shared
 *
 * On the local socket each end also says which TCP connection it has, so that a relay is noticed,
 * and learns the other's user (trust.c). Whether process_vm_* works is tried without the peer
 * (cma.c).
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/fds.h"
#include "base/log.h"
#include "shm.h"

enum {
	NAME_BYTES = 16,
	BACKLOG = 4,
	ACCEPTS_MAX = 16, /* other connections that setup_get closes before it fails */
	SETUP_ALLOWS_POOL = 1 << 0,
	SETUP_ALLOWS_CMA = 1 << 1,
	SETUP_LINE_ORDER = 1 << 2,
	SETUP_PASSES_GPU = 1 << 3, /* TR_PASSES_GPU: the local socket stays open, on both sides */
	SETUP_OWN_LINK = 1 << 4,   /* does not need the control socket any more */
};

static socklen_t address_of(struct sockaddr_un *sa, const uint8_t name[NAME_BYTES])
{
	size_t len;

	*sa = (struct sockaddr_un){ .sun_family = AF_UNIX };
	len = (size_t)snprintf(sa->sun_path + 1, sizeof(sa->sun_path) - 1, "kvrail-");
	for (int i = 0; i < NAME_BYTES; i++)
		len += (size_t)snprintf(sa->sun_path + 1 + len, sizeof(sa->sun_path) - 1 - len,
					"%02x", name[i]);
	return (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + len);
}

/* What a thread in a call of this connection does not need. */
static void close_door(struct shm_conn *sc)
{
	kv_fd_close(sc->listen_fd);
	if (sc->sock >= 0) {
		tr_conn_unwatch(sc->conn, sc->sock);
		kv_fd_close(sc->sock);
	}
	if (sc->pidfd >= 0)
		tr_conn_unwatch(sc->conn, sc->pidfd);
	if (sc->bell >= 0)
		tr_conn_unwatch(sc->conn, sc->bell);
	link_close_fds(&sc->pieces.fds);
	if (cuda_close(sc))
		pool_close_all(sc);
}

static void free_conn(struct shm_conn *sc)
{
	close_door(sc);
	copy_leave(sc);
}

static int new_conn(struct shm_ctx *ctx, struct tr_conn *conn, int side, struct shm_conn **sc_p,
		    struct kv_error *err)
{
	struct shm_conn *sc = kv_fault(SHM_CONN) ? NULL : calloc(1, sizeof(*sc));

	if (!sc)
		return kv_fail(err, KV_ERR_NOMEM, "handshake",
			       "cannot allocate a shared-memory connection");
	sc->ctx = ctx;
	sc->conn = conn;
	sc->side = side;
	sc->listen_fd = -1;
	sc->sock = -1;
	sc->pidfd = -1;
	sc->bell = -1;
	sc->pagemap = -1;
	sc->wait_last = &sc->wait;
	if (kv_fault(SHM_RANDOM) ? (errno = EIO, true)
				 : getrandom(sc->token, sizeof(sc->token), 0) < 0 ||
					   getrandom(sc->nonce, sizeof(sc->nonce), 0) < 0) {
		free(sc);
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "handshake", "getrandom");
	}
	*sc_p = sc;
	return 0;
}

static int unix_socket(int *fd_p, struct kv_error *err)
{
	*fd_p = kv_fd_new(
		kv_fault(SHM_SOCKET)
			? (errno = EMFILE, -1)
			: socket(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
	if (*fd_p < 0)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "handshake", "socket(AF_UNIX)");
	return 0;
}

int shm_offer(void *ctx, struct tr_conn *conn, void **priv_p, struct wire_writer *w,
	      struct kv_error *err)
{
	const struct shm_ctx *ctx_p = ctx;
	struct shm_conn *sc;
	struct sockaddr_un sa;
	socklen_t len;
	int ret = new_conn(ctx, conn, SEGMENT_ACCEPTING, &sc, err);

	if (ret)
		return ret;
	ret = unix_socket(&sc->listen_fd, err);
	if (ret)
		goto free_sc;
	len = address_of(&sa, sc->nonce);
	if (kv_fault(SHM_LISTEN) ? (errno = EADDRINUSE, -1)
				 : bind(sc->listen_fd, (struct sockaddr *)&sa, len) ||
					   listen(sc->listen_fd, BACKLOG)) {
		ret = kv_fail_errno(err, KV_ERR_SYSTEM, errno, "handshake",
				    "cannot listen on a local socket");
		goto free_sc;
	}
	wire_put_bytes(w, sc->nonce, NAME_BYTES);
	wire_put_bytes(w, sc->token, sizeof(sc->token));
	wire_put_u64(w, ctx_p->ring_bytes);
	*priv_p = sc;
	return 0;

free_sc:
	free_conn(sc);
	return ret;
}

static int connect_to(struct shm_conn *sc, const uint8_t name[NAME_BYTES], struct kv_error *err)
{
	struct sockaddr_un sa;
	socklen_t len = address_of(&sa, name);
	int ret = unix_socket(&sc->sock, err);

	if (ret)
		return ret;
	if (kv_fault(SHM_CONNECT) ? (errno = ECONNREFUSED, -1)
				  : connect(sc->sock, (struct sockaddr *)&sa, len)) {
		if (errno == ECONNREFUSED || errno == ENOENT)
			return kv_fail(err, KV_ERR_UNREACHABLE, "handshake",
				       "the peer is on another host or in another network "
				       "namespace");
		return kv_fail_errno(err, KV_ERR_UNREACHABLE, errno, "handshake",
				     "cannot connect to the peer's local socket");
	}
	return 0;
}

/*
 * Both descriptors in the connection's epoll: EOF of the socket, or death even if a forked child
 * keeps the socket open.
 */
static int watch_peer(struct shm_conn *sc, struct kv_error *err)
{
	int ret = tr_conn_watch(sc->conn, sc->sock, err);

	if (!ret && sc->pidfd >= 0)
		ret = tr_conn_watch(sc->conn, sc->pidfd, err);
	return ret;
}

static int pass_segment(struct shm_conn *sc, const uint8_t token[16], uint64_t ring_bytes,
			struct kv_error *err)
{
	struct link_message message = { .kind = LINK_SEGMENT };
	struct link_fds fds = { .n = 1 };
	int ret;

	if (ring_bytes > sc->ctx->ring_bytes)
		ring_bytes = sc->ctx->ring_bytes;
	ret = segment_create(&sc->seg, ring_bytes, sc->nonce, &fds.fd[0], err);
	if (ret)
		return ret;
	tr_conn_ends(sc->conn, &message.ends);
	memcpy(sc->token, token, sizeof(sc->token));
	tr_conn_prove(sc->conn, "segment.", token, message.token);
	ret = link_send(sc, &message, &fds, err);
	link_close_fds(&fds);
	if (ret == TR_AGAIN)
		return kv_fail(err, KV_ERR_UNREACHABLE, "handshake",
			       "the peer's local socket takes no message");
	return ret;
}

int shm_start(void *ctx, struct tr_conn *conn, void **priv_p, struct wire_reader *r,
	      struct kv_error *err)
{
	uint8_t name[NAME_BYTES], token[16];
	uint64_t ring_bytes;
	struct shm_conn *sc;
	int ret;

	wire_get_bytes(r, name, sizeof(name));
	wire_get_bytes(r, token, sizeof(token));
	ring_bytes = wire_get_u64(r);
	if (!wire_done(r) || ring_bytes < RING_BYTES_MIN || (ring_bytes & (ring_bytes - 1)))
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake", "the shm offer is malformed");
	ret = new_conn(ctx, conn, SEGMENT_CONNECTING, &sc, err);
	if (ret)
		return ret;
	ret = connect_to(sc, name, err);
	if (!ret)
		ret = link_identify(sc, err);
	if (!ret)
		ret = pass_segment(sc, token, ring_bytes, err);
	if (ret) {
		free_conn(sc);
		return ret;
	}
	*priv_p = sc;
	return 0;
}

void shm_stop(struct tr_conn *conn, void *priv)
{
	struct shm_conn *sc = priv;

	if (sc->seg.shared)
		stop_leave(sc);
	free_conn(sc);
}

/* Accepting side: the connection that knows the token; strangers are closed. */
static int accept_peer(struct shm_conn *sc, struct kv_error *err)
{
	struct link_message message;
	struct link_fds fds;
	uint8_t token[16];
	int ret;

	tr_conn_prove(sc->conn, "segment.", sc->token, token);
	for (int i = 0; i < ACCEPTS_MAX; i++) {
		int sock = kv_fd_new(kv_fault(SHM_ACCEPT) ? (errno = EMFILE, -1)
							  : accept4(sc->listen_fd, NULL, NULL,
								    SOCK_NONBLOCK | SOCK_CLOEXEC));

		if (sock < 0 && errno == EINTR)
			continue;
		if (sock < 0 && errno != EAGAIN && errno != EWOULDBLOCK)
			return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "handshake",
					     "accepting on the local socket");
		if (sock < 0)
			break;
		ret = link_receive(sc, sock, &message, 1, &fds, err);
		if (!ret && message.kind == LINK_SEGMENT && fds.n &&
		    !memcmp(message.token, token, sizeof(token))) {
			sc->sock = sock;
			kv_fd_close(sc->listen_fd);
			sc->listen_fd = -1;
			ret = segment_open(&sc->seg, fds.fd[0], sc->ctx->ring_bytes, err);
			link_close_fds(&fds);
			trust_compare_ends(sc, &message.ends);
			return ret;
		}
		link_close_fds(&fds);
		kv_fd_close(sock);
		if (ret < 0 && kv_error_scope(ret) == KV_SCOPE_DEVICE)
			return ret; /* ours, not the stranger's */
	}
	return kv_fail(err, KV_ERR_PROTOCOL, "handshake",
		       "the peer chose shared memory but did not connect to the local socket");
}

/*
 * Whether the end of the peer shows here without the control socket: on the local socket, and on
 * the pidfd where a forked child has inherited that. TR_POLLED: the owner looks at none of them,
 * and asks for a goodbye, which comes by the control socket.
 */
static bool has_own_link(const struct shm_conn *sc)
{
	return !tr_conn_polled(sc->conn) && sc->pidfd >= 0;
}

int shm_setup_put(struct tr_conn *conn, struct wire_writer *w, struct kv_error *err)
{
	struct shm_conn *sc = tr_conn_priv(conn);
	enum shm_path forced = sc->ctx->forced;
	uint8_t nonce[16] = { 0 };
	uint32_t flags = (tr_conn_line_order(conn) ? SETUP_LINE_ORDER : 0u) |
			 (tr_conn_passes_gpu(conn) ? SETUP_PASSES_GPU : 0u) |
			 (has_own_link(sc) ? SETUP_OWN_LINK : 0u);

	/*
	 * A writer with direct access must be of a user that may have it, and one whose death we
	 * can see (invariant 4 of the design).
	 */
	if (trust_user(sc) && sc->pidfd >= 0 && (forced == SHM_AUTO || forced == SHM_POOL))
		flags |= SETUP_ALLOWS_POOL;
	if (trust_user(sc) && sc->pidfd >= 0 && (forced == SHM_AUTO || forced == SHM_CMA))
		flags |= SETUP_ALLOWS_CMA;
	sc->we_allow_direct = flags & (SETUP_ALLOWS_POOL | SETUP_ALLOWS_CMA);
	if (sc->side == SEGMENT_ACCEPTING)
		memcpy(nonce, sc->seg.shared->nonce, sizeof(nonce));
	wire_put_u32(w, flags);
	wire_put_bytes(w, nonce, sizeof(nonce));
	return 0;
}

static int tell_ends(struct shm_conn *sc, struct kv_error *err)
{
	struct link_message message = { .kind = LINK_ENDS };
	int ret;

	tr_conn_prove(sc->conn, "ends....", sc->token, message.token);
	tr_conn_ends(sc->conn, &message.ends);
	ret = link_send(sc, &message, NULL, err);
	/* The peer takes no messages from its socket: it would not see a doorbell either. */
	return ret == TR_AGAIN ? kv_fail(err, KV_ERR_PEER_LOST, "handshake",
					 "the peer's local socket takes no message")
			       : ret;
}

int shm_setup_get(struct tr_conn *conn, struct wire_reader *r, struct kv_error *err)
{
	struct shm_conn *sc = tr_conn_priv(conn);
	uint32_t flags = wire_get_u32(r);
	uint8_t nonce[16];
	int ret = 0;

	wire_get_bytes(r, nonce, sizeof(nonce));
	if (r->bad)
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake", "the shm setup is malformed");
	if (sc->side == SEGMENT_ACCEPTING) {
		ret = accept_peer(sc, err);
		if (!ret)
			ret = link_identify(sc, err);
		if (!ret)
			ret = watch_peer(sc, err);
		if (!ret)
			ret = tell_ends(sc, err);
		if (ret)
			return ret;
	} else if (memcmp(nonce, sc->nonce, sizeof(nonce))) {
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake",
			       "the peer does not see the memory that was passed to it");
	} else {
		ret = link_drain(sc, err); /* its ends of the control connection */
		/* Not before: what waits there would be an event again and again. */
		if (!ret)
			ret = watch_peer(sc, err);
		if (ret)
			return ret;
	}
	sc->peer_allows_pool = flags & SETUP_ALLOWS_POOL;
	sc->peer_allows_cma = flags & SETUP_ALLOWS_CMA;
	sc->line_order = tr_conn_line_order(conn) || (flags & SETUP_LINE_ORDER);
	segment_rings(&sc->seg, sc->side, &sc->out, &sc->in);
	cma_probe(sc);
	if (sc->cma_works && sc->peer_allows_cma && tr_conn_moves_lists(conn))
		copy_ready(sc);
	if (has_own_link(sc) && (flags & SETUP_OWN_LINK))
		tr_conn_own_link(conn);
	if (tr_conn_polled(conn) && !tr_conn_passes_gpu(conn) && !(flags & SETUP_PASSES_GPU)) {
		/*
		 * TR_POLLED: neither side sleeps. A death shows on the pidfd and on the control
		 * socket.
		 */
		close(sc->sock);
		sc->sock = -1;
		sc->hung_up = false; /* the peer may have closed its end before us */
	}
	tr_conn_set_path(conn, "same host, no region opened yet");
	if (!sc->cma_works)
		kv_log_info(tr_conn_tr(conn)->log, "process_vm_writev is not used: %s", sc->no_cma);
	return 0;
}
