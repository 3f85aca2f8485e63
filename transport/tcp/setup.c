/* SPDX-License-Identifier: Apache-2.0 */
/*
 * setup.c -- the handshake: more sockets between the same two ends, one for each stream of data
 *
 *   accepting side                               connecting side
 *   offer: opens a door (door.c)
 *     version, its port, token, streams - TCP -> start: connects to the address that it has
 *                                                reached, at that port, once for each stream that
 *                                                both ends want
 *                                  <-- data ---  greeting: what only the peer can make of the token
 *   offered: the greeting is right;
 *     its own proof                  - data ->   start: it is right: this socket leads to the peer
 *   setup_get: it has these sockets  <-- TCP --  setup_put: streams
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
#include <sys/mman.h>
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
	tc->streams = (unsigned int)kv_option_int(ctx->tr->options, KV_OPT_TCP_STREAMS);
	tc->door = -1;
	for (unsigned int i = 0; i < TCP_STRANGERS; i++)
		tc->stranger[i].fd = -1;
	for (unsigned int i = 0; i < TCP_STREAMS_MAX; i++)
		tc->proven[i] = tc->knock[i].fd = -1;
	*tc_p = tc;
	return 0;
}

static void drop_socket(struct tcp_conn *tc, int *fd)
{
	if (*fd < 0)
		return;
	tr_conn_unwatch(tc->conn, *fd);
	kv_fd_close(*fd);
	*fd = -1;
}

static size_t data_bytes(const struct tcp_conn *tc)
{
	return sizeof(*tc->data) + tc->streams * sizeof(*tc->data->stream);
}

void tcp_stop(struct tr_conn *conn, void *priv)
{
	struct tcp_conn *tc = priv;

	door_close(tc);
	stop_close(tc);
	for (unsigned int i = 0; i < TCP_STREAMS_MAX; i++) {
		drop_socket(tc, &tc->proven[i]);
		drop_socket(tc, &tc->knock[i].fd);
	}
	if (tc->data)
		munmap(tc->data, data_bytes(tc));
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
	wire_put_u8(w, (uint8_t)tc->streams);
	*priv_p = tc;
	return 0;
}

void tcp_offered(struct tr_conn *conn, void *priv)
{
	door_look(priv);
}

/* ---------------------------------------------------------------- connecting side */

/* Begins to connect to the peer's door. */
static int knock(struct tcp_conn *tc, struct tcp_knock *k, uint16_t port, struct kv_error *err)
{
	struct sockaddr_storage sa;
	socklen_t len;
	int ret = tr_conn_socket(tc->conn, true, port, &sa, &len, &k->fd, err);

	if (ret)
		return ret;
	if ((kv_fault(TCP_CONNECT) ? (errno = ECONNREFUSED, -1)
				   : connect(k->fd, (struct sockaddr *)&sa, len)) &&
	    errno != EINPROGRESS)
		return kv_fail_errno(err, KV_ERR_UNREACHABLE, errno, "handshake",
				     "cannot connect to %s for the data", tc->address);
	ret = tr_conn_watch(tc->conn, k->fd, err);
	return ret ? ret : tr_conn_watch_for(tc->conn, k->fd, TR_WATCH_OUT, err);
}

static int knock_for_all(struct tcp_conn *tc, uint16_t port, struct kv_error *err)
{
	int ret = 0;

	snprintf(tc->address, sizeof(tc->address), "port %u of %.48s", port,
		 tr_conn_address(tc->conn));
	for (unsigned int i = 0; !ret && i < tc->streams; i++)
		ret = knock(tc, &tc->knock[i], port, err);
	return ret;
}

/* 0: the socket stands and the greeting is sent. */
static int greet(struct tcp_conn *tc, struct tcp_knock *k, struct kv_error *err)
{
	unsigned int index = (unsigned int)(k - tc->knock);
	struct pollfd p = { .fd = k->fd, .events = POLLOUT };
	uint8_t greeting[STREAM_GREETING], proof[STREAM_PROOF];
	socklen_t len = sizeof(int);
	int error = 0, on = 1;

	if (poll(&p, 1, 0) < 1)
		return TR_AGAIN;
	if (getsockopt(k->fd, SOL_SOCKET, SO_ERROR, &error, &len))
		error = errno;
	door_prove(tc, TCP_KNOCKS, index, proof);
	stream_put_greeting(greeting, (uint8_t)index, proof);
	if (!error && send(k->fd, greeting, sizeof(greeting), MSG_NOSIGNAL | MSG_DONTWAIT) !=
			      sizeof(greeting))
		error = errno;
	if (error)
		return kv_fail_errno(err, KV_ERR_UNREACHABLE, error, "handshake",
				     "cannot connect to %s for the data", tc->address);
	setsockopt(k->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
	k->greeted = true;
	return tr_conn_watch_for(tc->conn, k->fd, TR_WATCH_IN, err);
}

/* 0: the peer's proof is here. */
static int hear_answer(struct tcp_conn *tc, struct tcp_knock *k, struct kv_error *err)
{
	unsigned int index = (unsigned int)(k - tc->knock);
	ssize_t n;

	do
		n = recv(k->fd, k->greeting + k->got, sizeof(k->greeting) - k->got, MSG_DONTWAIT);
	while (n < 0 && errno == EINTR);
	if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
		return TR_AGAIN;
	if (n < 0)
		return kv_fail_errno(err, KV_ERR_UNREACHABLE, errno, "handshake",
				     "data socket to %s", tc->address);
	if (!n)
		return kv_fail(err, KV_ERR_UNREACHABLE, "handshake", "%s closed the data socket",
			       tc->address);
	k->got += (uint8_t)n;
	if (!stream_is_greeting(k->greeting, k->got) ||
	    (k->got == sizeof(k->greeting) &&
	     (stream_of_greeting(k->greeting) != index ||
	      !door_is_proof(tc, TCP_OPENS, index, stream_proof_of_greeting(k->greeting)))))
		return kv_fail(err, KV_ERR_UNREACHABLE, "handshake", "%s is not the peer",
			       tc->address);
	return k->got < sizeof(k->greeting) ? TR_AGAIN : 0;
}

static int go_on_knocking(struct tcp_conn *tc, struct kv_error *err)
{
	int ret = 0;

	for (unsigned int i = 0; ret >= 0 && i < tc->streams; i++) {
		struct tcp_knock *k = &tc->knock[i];
		int step = k->fd < 0 || k->greeted ? 0 : greet(tc, k, err);

		if (!step && k->fd >= 0)
			step = hear_answer(tc, k, err);
		if (!step && k->fd >= 0) {
			tc->proven[i] = k->fd;
			k->fd = -1;
		}
		ret = step ? step : ret;
	}
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
		uint8_t streams;

		ret = new_tcp_conn(ctx, conn, &tc, err);
		if (ret)
			return ret;
		wire_get_bytes(r, tc->token, sizeof(tc->token));
		streams = wire_get_u8(r);
		if (streams < tc->streams)
			tc->streams = streams;
		if (!r->bad && version != STREAM_VERSION)
			ret = kv_fail(err, KV_ERR_VERSION, "handshake",
				      "the peer's data socket has version %u, this one's %d",
				      version, STREAM_VERSION);
		else if (!wire_done(r) || !port || !streams)
			ret = kv_fail(err, KV_ERR_PROTOCOL, "handshake",
				      "the tcp offer is malformed");
		else
			ret = knock_for_all(tc, port, err);
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
	const struct tcp_conn *tc = tr_conn_priv(conn);

	wire_put_u8(w, (uint8_t)tc->streams);
	return 0;
}

/* Pages of its own: those of tables and queues that are never used do not come into being. */
static int make_tcp_data(struct tcp_conn *tc, struct kv_error *err)
{
	struct tcp_data *d = kv_fault(TCP_DATA) ? MAP_FAILED
						: mmap(NULL, data_bytes(tc), PROT_READ | PROT_WRITE,
						       MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (d == MAP_FAILED)
		return kv_fail(err, KV_ERR_NOMEM, "handshake", "cannot allocate a tcp connection");
	madvise(d, data_bytes(tc), MADV_NOHUGEPAGE); /* one would be more than all of it */
	for (unsigned int i = 0; i < tc->streams; i++) {
		d->stream[i].tc = tc;
		d->stream[i].index = i;
		d->stream[i].sock = tc->proven[i];
		d->stream[i].watched = TR_WATCH_IN;
		tc->proven[i] = -1;
	}
	tc->data = d;
	return 0;
}

int tcp_setup_get(struct tr_conn *conn, struct wire_reader *r, struct kv_error *err)
{
	struct tcp_conn *tc = tr_conn_priv(conn);
	unsigned int streams = wire_get_u8(r);
	const char *why = "";

	door_look(tc);
	door_close(tc);
	if (!wire_done(r) || !streams || streams > tc->streams)
		return kv_fail(err, KV_ERR_PROTOCOL, "handshake", "the tcp setup is malformed");
	for (unsigned int i = 0; i < tc->streams; i++)
		if (tc->proven[i] >= 0 ? i >= streams : i < streams)
			return kv_fail(err, KV_ERR_PROTOCOL, "handshake",
				       "the peer chose tcp but did not open the %u data sockets of "
				       "which it speaks",
				       streams);
	tc->streams = streams;
	if (!kv_option_is(tr_conn_tr(conn)->options, KV_OPT_TRANSPORT, "tcp"))
		why = tr_conn_why_not(conn, "ib");
	tr_conn_set_path(conn, "TCP, %u stream%s%s%s", streams, streams > 1 ? "s" : "",
			 *why ? "; ib: " : "", why);
	return make_tcp_data(tc, err);
}
