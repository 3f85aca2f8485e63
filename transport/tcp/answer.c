/* SPDX-License-Identifier: Apache-2.0 */
/*
 * answer.c -- the peer's reads: what it asks for is checked, queued, and sent from where it lies
 *
 * A frame of answers names no region: it holds the next bytes of the oldest spans. A region is
 * looked up again for each system call, and not held between two: a slow reader must not keep its
 * owner from giving it back.
 */
#include <errno.h>

#include "base/error.h"
#include "tcp.h"

int answer_asked(struct tcp_stream *st, struct kv_error *err)
{
	const struct stream_frame *f = &st->in.frame;
	struct tcp_conn *tc = st->tc;

	for (unsigned int i = 0; i < f->spans; i++) {
		const struct stream_span *s = &st->in.span[i];
		struct tr_mem *mem =
			tr_conn_reach(tc->conn, f->number, s->offset, s->len, TR_REMOTE_READ);
		bool may = mem && tr_conn_may(tc->conn, mem, s->offset, s->len, TR_REMOTE_READ,
					      0) == TR_PLACE;

		if (mem)
			tr_mem_put(mem);
		if (!may || st->answer_tail - st->answer_head == TCP_READS_MAX)
			return kv_fail(err, KV_ERR_PROTOCOL, "tcp",
				       "the peer reads %u bytes of region %u at %llu, which %s",
				       s->len, f->number, (unsigned long long)s->offset,
				       may ? "is one read too many" : "were not opened to it");
		st->answer[st->answer_tail++ % TCP_READS_MAX] = (struct tcp_answer){
			.mem = f->number, .left = s->len, .offset = s->offset
		};
	}
	return 0;
}

int answer_queue(struct tcp_stream *st)
{
	struct stream_frame frame = { .type = STREAM_ANSWER };

	if (st->answer_head == st->answer_tail || st->queue.answering ||
	    !queue_batch_room(st, STREAM_SPANS_MAX))
		return 0;
	for (unsigned int i = st->answer_head; i != st->answer_tail; i++) {
		uint32_t len = st->answer[i % TCP_READS_MAX].left;

		if (frame.payload + len > STREAM_PAYLOAD_MAX)
			break;
		frame.payload += len;
	}
	queue_batch(st, &frame, NULL, NULL, NULL);
	return 1;
}

/* Takes bytes that were sent off the oldest spans. */
static void answer_advance(struct tcp_stream *st, size_t n)
{
	while (n) {
		struct tcp_answer *a = &st->answer[st->answer_head % TCP_READS_MAX];
		uint32_t part = n < a->left ? (uint32_t)n : a->left;

		a->offset += part;
		a->left -= part;
		n -= part;
		if (!a->left)
			st->answer_head++;
	}
}

static ssize_t send_of_gpu(struct tcp_stream *st, const struct iovec *iov, struct tr_mem *const *of,
			   unsigned int n)
{
	if (tcp_stage_open(st, &st->out_stage, of[0], &st->tc->data->failure))
		return -2;
	return queue_send_gathered(st, iov, of, n);
}

ssize_t answer_send(struct tcp_stream *st, size_t len)
{
	struct tcp_conn *tc = st->tc;
	struct iovec iov[STREAM_SPANS_MAX];
	struct tr_mem *held[STREAM_SPANS_MAX], *of[STREAM_SPANS_MAX];
	unsigned int n = 0;
	size_t sum = 0;
	ssize_t sent;
	int error;

	while (n < STREAM_SPANS_MAX && sum < len) {
		const struct tcp_answer *a = &st->answer[(st->answer_head + n) % TCP_READS_MAX];

		held[n] = tr_conn_reach(tc->conn, a->mem, a->offset, a->left, TR_REMOTE_READ);
		if (!held[n])
			break;
		of[n] = stage_region(held[n]);
		if (!of[n] != !of[0]) {
			tr_mem_put(held[n]);
			break;
		}
		iov[n] = (struct iovec){ held[n]->addr + a->offset, a->left };
		sum += a->left;
		n++;
	}
	sent = !n ? -2 : of[0] ? send_of_gpu(st, iov, of, n) : queue_send(st, iov, n, sum < len);
	error = errno;
	for (unsigned int i = 0; i < n; i++)
		tr_mem_put(held[i]);
	errno = error;
	if (sent == -2 && !tc->data->failure.code) /* its bytes were announced */
		kv_fail(&tc->data->failure, KV_ERR_PROTOCOL, "tcp",
			"%s reads region %u, which was deregistered", tr_conn_address(tc->conn),
			st->answer[st->answer_head % TCP_READS_MAX].mem);
	if (sent > 0)
		answer_advance(st, (size_t)sent);
	return sent;
}
