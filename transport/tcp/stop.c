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

static void close_data(struct tcp_conn *tc)
{
	tr_conn_unwatch(tc->conn, tc->sock);
	kv_fd_close(tc->sock);
	tc->sock = -1;
}

void tcp_lose(struct tcp_conn *tc, const struct kv_error *cause)
{
	struct linger at_once = { .l_onoff = 1 };

	/* What has not left does not leave, and the peer places nothing of what it has. */
	setsockopt(tc->sock, SOL_SOCKET, SO_LINGER, &at_once, sizeof(at_once));
	close_data(tc);
	tr_conn_lost(tc->conn, cause);
}

/* Bytes that came and were not read would make the kernel take back what was sent last. */
void stop_close(struct tcp_conn *tc)
{
	ssize_t n;

	if (tc->sock < 0)
		return;
	shutdown(tc->sock, SHUT_WR);
	do
		n = recv(tc->sock, NULL, TCP_TAKE_BYTES, MSG_TRUNC | MSG_DONTWAIT);
	while (n == TCP_TAKE_BYTES);
	close_data(tc);
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

int tcp_fence(struct tr_conn *conn, int64_t linger_ns, struct kv_error *err)
{
	struct tcp_conn *tc = tr_conn_priv(conn);
	int64_t now = kv_now_ns();
	int unsent = 0;

	(void)err;
	if (tc->sock >= 0 && !tc->fence_ns) {
		tc->fence_ns = now + TCP_FENCE_MS * KV_NS_PER_MS;
		cut_queue(&tc->data->queue);
	}
	if (tc->sock >= 0 && now < linger_ns && now < tc->fence_ns) {
		tc->data->queue.full = false;
		queue_flush(tc);
		if (!tc->data->failure.code && (queue_pending(&tc->data->queue) ||
						(!ioctl(tc->sock, SIOCOUTQNSD, &unsent) && unsent)))
			return TR_AGAIN;
	}
	tr_conn_goodbye(conn);
	stop_close(tc);
	return 0;
}
