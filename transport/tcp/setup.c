/* SPDX-License-Identifier: Apache-2.0 */
/*
 * setup.c -- the handshake: a second socket between the same two ends, for the data
 *
 *   accepting side                               connecting side
 *   offer: opens a door (door.c)
 *          version, its port, token  - TCP ->    start: connects to the address that it has
 *                                                reached, at that port
 *                                  <-- data ---  greeting: what only the peer can make of the token
 *   offered: the greeting is right;
 *          its own proof             - data ->   start: it is right: this socket leads to the peer
 *   setup_get: it has its socket   <--- TCP ---  (nothing)
 *
 * With a key both proofs need it and this handshake's nonces (auth.h); without one, reading the
 * handshake is enough to make them.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/random.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/fds.h"
#include "base/option.h"
#include "tcp.h"

static int new_tcp_conn(struct tcp_ctx *ctx, struct tr_conn *conn, struct tcp_conn **tc_p,
			struct kv_error *err)
{
	struct tcp_conn *tc;

	if (tr_conn_line_order(conn)) /* NCCL's: it has sockets of its own */
		return kv_fail(err, KV_ERR_UNSUPPORTED, "handshake",
			       "TCP does not keep the order within lines");
	tc = kv_fault(TCP_CONN) ? NULL : calloc(1, sizeof(*tc));
	if (!tc)
		return kv_fail(err, KV_ERR_NOMEM, "handshake", "cannot allocate a tcp connection");
	tc->ctx = ctx;
	tc->conn = conn;
	tc->sock = -1;
	tc->door = -1;
	for (unsigned int i = 0; i < TCP_STRANGERS; i++)
		tc->stranger[i].fd = -1;
	*tc_p = tc;
	return 0;
}

void tcp_stop(struct tr_conn *conn, void *priv)
{
	struct tcp_conn *tc = priv;

	(void)conn;
	door_close(tc);
	stop_close(tc);
	free(tc->data);
	free(tc);
}

/* ---------------------------------------------------------------- accepting side */

int tcp_offer(void *ctx, struct tr_conn *conn, void **priv_p, struct wire_writer *w,
	      struct kv_error *err)
{
	struct tcp_conn *tc;
	uint16_t port;
	int ret = new_tcp_conn(ctx, conn, &tc, err);

	if (ret)
		return ret;
	if (kv_fault(TCP_RANDOM) ? (errno = EIO, true)
				 : getrandom(tc->token, sizeof(tc->token), 0) < 0)
		ret = kv_fail_errno(err, KV_ERR_SYSTEM, errno, "handshake", "getrandom");
	if (!ret)
		ret = door_open(tc, &port, err);
	if (ret) {
		tcp_stop(conn, tc);
		return ret;
	}
	wire_put_u8(w, STREAM_VERSION);
	wire_put_u16(w, port);
	wire_put_bytes(w, tc->token, sizeof(tc->token));
	*priv_p = tc;
	return 0;
}

void tcp_offered(struct tr_conn *conn, void *priv)
{
	(void)conn;
	door_look(priv);
}

/* ---------------------------------------------------------------- connecting side */

/* Begins to connect to the peer's door. */
static int knock(struct tcp_conn *tc, uint16_t port, struct kv_error *err)
{
	struct sockaddr_storage sa;
	socklen_t len;
	int ret = tr_conn_socket(tc->conn, true, port, &sa, &len, &tc->sock, err);

	if (ret)
		return ret;
	snprintf(tc->address, sizeof(tc->address), "port %u of %.48s", port,
		 tr_conn_address(tc->conn));
	if ((kv_fault(TCP_CONNECT) ? (errno = ECONNREFUSED, -1)
				   : connect(tc->sock, (struct sockaddr *)&sa, len)) &&
	    errno != EINPROGRESS)
		return kv_fail_errno(err, KV_ERR_UNREACHABLE, errno, "handshake",
				     "cannot connect to %s for the data", tc->address);
	ret = tr_conn_watch(tc->conn, tc->sock, err);
	return ret ? ret : tr_conn_watch_for(tc->conn, tc->sock, TR_WATCH_OUT, err);
}

/* 0: the socket stands and the greeting is sent. */
static int greet(struct tcp_conn *tc, struct kv_error *err)
{
	struct pollfd p = { .fd = tc->sock, .events = POLLOUT };
	uint8_t greeting[STREAM_GREETING], proof[STREAM_PROOF];
	socklen_t len = sizeof(int);
	int error = 0, on = 1;

	if (poll(&p, 1, 0) < 1)
		return TR_AGAIN;
	if (getsockopt(tc->sock, SOL_SOCKET, SO_ERROR, &error, &len))
		error = errno;
	tr_conn_prove(tc->conn, TCP_KNOCKS, tc->token, proof);
	stream_put_greeting(greeting, proof);
	if (!error && send(tc->sock, greeting, sizeof(greeting), MSG_NOSIGNAL | MSG_DONTWAIT) !=
			      sizeof(greeting))
		error = errno;
	if (error)
		return kv_fail_errno(err, KV_ERR_UNREACHABLE, error, "handshake",
				     "cannot connect to %s for the data", tc->address);
	setsockopt(tc->sock, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	tc->greeted = true;
	return tr_conn_watch_for(tc->conn, tc->sock, TR_WATCH_IN, err);
}

/* 0: the peer's proof is here. */
static int hear_answer(struct tcp_conn *tc, struct kv_error *err)
{
	ssize_t n;

	do
		n = recv(tc->sock, tc->greeting + tc->got, sizeof(tc->greeting) - tc->got,
			 MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return TR_AGAIN;
	if (n < 0)
		return kv_fail_errno(err, KV_ERR_UNREACHABLE, errno, "handshake",
				     "data socket to %s", tc->address);
	if (!n)
		return kv_fail(err, KV_ERR_UNREACHABLE, "handshake", "%s closed the data socket",
			       tc->address);
	tc->got += (uint8_t)n;
	if (!stream_is_greeting(tc->greeting, tc->got) ||
	    (tc->got == sizeof(tc->greeting) &&
	     !tr_conn_is_proof(tc->conn, TCP_OPENS, tc->token,
			       tc->greeting + sizeof(tc->greeting) - STREAM_PROOF)))
		return kv_fail(err, KV_ERR_UNREACHABLE, "handshake", "%s is not the peer",
			       tc->address);
	return tc->got < sizeof(tc->greeting) ? TR_AGAIN : 0;
}

static int go_on_knocking(struct tcp_conn *tc, struct kv_error *err)
{
	int ret = tc->greeted ? 0 : greet(tc, err);

	if (!ret)
		ret = hear_answer(tc, err);
	if (ret != TR_AGAIN || kv_now_ns() < tr_conn_deadline(tc->conn))
		return ret;
	return kv_fail(err, KV_ERR_UNREACHABLE, "handshake", "no answer from %s (a firewall?)",
		       tc->address);
}

int tcp_start(void *ctx, struct tr_conn *conn, void **priv_p, struct wire_reader *r,
	      struct kv_error *err)
{
	struct tcp_conn *tc = *priv_p;
	int ret = 0;

	if (!tc) {
		uint8_t version = wire_get_u8(r);
		uint16_t port = wire_get_u16(r);

		ret = new_tcp_conn(ctx, conn, &tc, err);
		if (ret)
			return ret;
		wire_get_bytes(r, tc->token, sizeof(tc->token));
		if (!r->bad && version != STREAM_VERSION)
			ret = kv_fail(err, KV_ERR_VERSION, "handshake",
				      "the peer's data socket has version %u, this one's %d",
				      version, STREAM_VERSION);
		else if (!wire_done(r) || !port)
			ret = kv_fail(err, KV_ERR_PROTOCOL, "handshake",
				      "the tcp offer is malformed");
		else
			ret = knock(tc, port, err);
		*priv_p = tc;
	}
	if (!ret)
		ret = go_on_knocking(tc, err);
	if (ret < 0) {
		tcp_stop(conn, tc);
		*priv_p = NULL;
	}
	return ret;
}

/* ---------------------------------------------------------------- both sides */

int tcp_setup_put(struct tr_conn *conn, struct wire_writer *w, struct kv_error *err)
{
	(void)conn;
	(void)w;
	(void)err;
	return 0;
}

static int make_tcp_data(struct tcp_conn *tc, struct kv_error *err)
{
	tc->data = kv_fault(TCP_DATA) ? NULL : calloc(1, sizeof(*tc->data));
	if (!tc->data)
		return kv_fail(err, KV_ERR_NOMEM, "handshake", "cannot allocate a tcp connection");
	return 0;
}

int tcp_setup_get(struct tr_conn *conn, struct wire_reader *r, struct kv_error *err)
{
	struct tcp_conn *tc = tr_conn_priv(conn);
	const char *why = "";

	(void)r;
	door_look(tc);
	door_close(tc);
	if (tc->sock < 0)
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake",
			       "the peer chose tcp but did not open a data socket");
	if (!kv_option_is(tr_conn_tr(conn)->options, KV_OPT_TRANSPORT, "tcp"))
		why = tr_conn_why_not(conn, "ib");
	tr_conn_set_path(conn, "TCP, one stream%s%s", *why ? "; ib: " : "", why);
	tc->watched = TR_WATCH_IN;
	return make_tcp_data(tc, err);
}
