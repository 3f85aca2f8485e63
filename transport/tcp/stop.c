/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stop.c -- the end of a connection
 *
 * Every byte of the peer is placed by this side, so it is enough to stop reading: a fence waits for
 * nobody. It only gives what was sent last, an acknowledgement perhaps, a moment to leave.
 */
#include <linux/sockios.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fds.h"
#include "tcp.h"

static void close_stream(struct tcp_stream *st)
{
	tr_conn_unwatch(st->tc->conn, st->sock);
	kv_fd_close(st->sock);
	st->sock = -1;
}

/* Copies on GPUs, too: false if one runs on. */
static bool quit_stages(struct tcp_conn *tc)
{
	bool quiet = true;

	tcp_for_each (st, tc) {
		quiet &= stage_quit(st->out_stage.stage);
		quiet &= stage_quit(st->in_stage.stage);
	}
	return quiet;
}

void tcp_lose(struct tcp_conn *tc, const struct kv_error *cause)
{
	struct linger at_once = { .l_onoff = 1 };

	/* What has not left does not leave, and the peer places nothing of what it has. */
	tcp_for_each (st, tc)
		setsockopt(st->sock, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	tcp_for_each (st, tc)
		close_stream(st);
	quit_stages(tc);
	tr_conn_lost(tc->conn, cause);
}

/* Bytes that came and were not read would make the kernel take back what was sent last. */
static void close_in_order(struct tcp_stream *st)
{
	ssize_t n;

	if (st->sock < 0)
		return;
	shutdown(st->sock, SHUT_WR);
	do
		n = place_nowhere(st, TCP_TAKE_BYTES);
	while (n == TCP_TAKE_BYTES);
	close_stream(st);
}

void stop_close(struct tcp_conn *tc)
{
	if (!tc->data)
		return;
	tcp_for_each (st, tc) {
		close_in_order(st);
		tcp_stage_close(&st->out_stage);
		tcp_stage_close(&st->in_stage);
	}
}

/* Block data of operations does not leave any more, and nothing can follow a part of a frame. */
static void cut_queue(struct tcp_queue *q)
{
	unsigned int i = q->head;

	while (i != q->tail && (uint8_t *)q->piece[i].iov_base >= q->bytes &&
	       (uint8_t *)q->piece[i].iov_base < q->bytes + sizeof(q->bytes))
		i++;
	for (; q->tail != i; q->tail--)
		q->queued -= q->piece[q->tail - 1].iov_len;
	q->closed = true;
}

static bool has_unsent(struct tcp_stream *st)
{
	int unsent = 0;

	st->queue.full = false;
	queue_flush(st);
	return queue_pending(&st->queue) || (!ioctl(st->sock, SIOCOUTQNSD, &unsent) && unsent);
}

int tcp_fence(struct tr_conn *conn, int64_t linger_ns, struct kv_error *err)
{
	struct tcp_conn *tc = tr_conn_priv(conn);
	bool is_up = tc->data && tc->data->stream[0].sock >= 0, unsent = false;
	int64_t now = kv_now_ns();

	if (tc->data && !tc->fence_ns) {
		tc->fence_ns = now + TCP_FENCE_MS * KV_NS_PER_MS;
		tcp_for_each (st, tc)
			cut_queue(&st->queue);
	}
	if (is_up && now < linger_ns && now < tc->fence_ns) {
		tcp_for_each (st, tc)
			unsent |= has_unsent(st);
		if (!tc->data->failure.code && unsent)
			return TR_AGAIN;
	}
	tr_conn_goodbye(conn);
	if (tc->data && !quit_stages(tc))
		return now < tc->fence_ns
			       ? TR_AGAIN
			       : kv_fail(err, KV_ERR_BUSY, "fence",
					 "a GPU's copy of what came from %s, or goes to it, does "
					 "not end",
					 tr_conn_address(conn));
	stop_close(tc);
	return 0;
}
