/* SPDX-License-Identifier: Apache-2.0 */
/*
 * queue.c -- frames going out, in one order: a buffer for headers and small frames, pointers to
 * block data
 *
 * Block data is not copied: its pieces are handed to sendmsg beside the headers. Its operation
 * holds the region until it has ended, and no operation ends before its pieces are with the kernel.
 */
#include <errno.h>
#include <sys/socket.h>

#include "base/error.h"
#include "tcp.h"

static bool has_room(const struct tcp_queue *q, size_t bytes, unsigned int pieces, size_t keep)
{
	return bytes + keep <= TCP_QUEUE_BYTES - q->used && pieces <= TCP_QUEUE_PIECES - q->tail;
}

static void append_piece(struct tcp_queue *q, void *at, size_t n, struct tr_mem *mem)
{
	q->of[q->tail] = mem;
	q->piece[q->tail++] = (struct iovec){ at, n };
}

/* What stands behind q->used becomes the queue's. */
static void append_bytes(struct tcp_queue *q, size_t n)
{
	uint8_t *at = q->bytes + q->used;
	struct iovec *last = q->tail > q->head ? &q->piece[q->tail - 1] : NULL;

	if (last && last->iov_base && (uint8_t *)last->iov_base + last->iov_len == at)
		last->iov_len += n;
	else
		append_piece(q, at, n, NULL);
	q->used += n;
	q->queued += n;
}

static void append_frame(struct tcp_queue *q, const struct stream_frame *frame,
			 const struct stream_span *spans, const void *payload)
{
	struct wire_writer w = wire_writer_of(q->bytes + q->used, TCP_QUEUE_BYTES - q->used);

	stream_put(&w, frame, spans);
	if (payload)
		wire_put_bytes(&w, payload, frame->payload);
	append_bytes(q, w.len);
}

unsigned int queue_batch_room(const struct tcp_stream *st, unsigned int want)
{
	const struct tcp_queue *q = &st->queue;
	unsigned int pieces = TCP_QUEUE_PIECES - q->tail;

	if (queue_pending(q) >= TCP_PENDING || pieces < TCP_KEEP_PIECES + TCP_BATCH_LEAST ||
	    !has_room(q, STREAM_HEADER_MAX, 0, TCP_KEEP_BYTES + TCP_KEEP_LAST))
		return 0;
	pieces -= TCP_KEEP_PIECES;
	if (want > STREAM_SPANS_MAX)
		want = STREAM_SPANS_MAX;
	return want < pieces ? want : pieces;
}

void queue_batch(struct tcp_stream *st, const struct stream_frame *frame,
		 const struct stream_span *spans, const struct iovec *payload, struct tr_mem *mem)
{
	struct tcp_queue *q = &st->queue;

	append_frame(q, frame, spans, NULL);
	for (unsigned int i = 0; payload && i < frame->spans; i++)
		append_piece(q, payload[i].iov_base, payload[i].iov_len, mem);
	if (frame->type == STREAM_ANSWER) {
		append_piece(q, NULL, frame->payload, NULL);
		q->answering = true;
	}
	q->queued += frame->payload;
}

bool queue_small(struct tcp_stream *st, const struct stream_frame *frame, const void *payload)
{
	struct tcp_queue *q = &st->queue;

	if (!has_room(q, STREAM_FIXED + frame->payload, 1 + 2, TCP_KEEP_LAST))
		return false;
	append_frame(q, frame, NULL, payload);
	return true;
}

bool queue_reports(const struct tcp_stream *st)
{
	return st->in.told || st->in.small - st->in.small_told >= TCP_SMALL_TOLD;
}

/* What the receiver and the sender have to say to each other, as far as there is room. */
void queue_due(struct tcp_stream *st)
{
	struct tcp_queue *q = &st->queue;
	struct tcp_in *in = &st->in;

	if (q->closed)
		return;
	if (st->tell && has_room(q, STREAM_FIXED, 1, STREAM_FIXED)) {
		append_frame(q, &(struct stream_frame){ .type = STREAM_TELL }, NULL, NULL);
		st->tell = false;
	}
	if (queue_reports(st) && has_room(q, STREAM_FIXED, 1, 0)) {
		append_frame(q,
			     &(struct stream_frame){ .type = STREAM_REPORT,
						     .number = in->small,
						     .value = in->taken },
			     NULL, NULL);
		in->told = false;
		in->small_told = in->small;
	}
}

/* ---------------------------------------------------------------- to the socket */

/* Up to 1024 pieces. */
static struct tcp_call send_call(const struct tcp_stream *st, const struct iovec *piece,
				 unsigned int n, bool more)
{
	return (struct tcp_call){
		.sock = st->sock,
		.sends = true,
		.flags = MSG_NOSIGNAL | MSG_DONTWAIT | (more ? MSG_MORE : 0),
		.msg = { .msg_iov = (struct iovec *)(uintptr_t)piece, .msg_iovlen = n },
	};
}

ssize_t queue_send(struct tcp_stream *st, const struct iovec *piece, unsigned int n, bool more)
{
	struct tcp_call call = send_call(st, piece, n, more);

	calls_make(st->tc, &call, 1);
	errno = call.error;
	return call.bytes;
}

ssize_t queue_send_gathered(struct tcp_stream *st, const struct iovec *piece,
			    struct tr_mem *const *mem, unsigned int n)
{
	struct kv_error *failure = &st->tc->data->failure;
	struct iovec ready;
	int ret = tcp_stage_gather(st, piece, mem, n, &ready, failure);
	ssize_t sent = ret == TR_AGAIN ? QUEUE_AGAIN : -2;

	if (!ret)
		sent = queue_send(st, &ready, 1, false);
	if (sent > 0)
		st->out_stage.sent += (size_t)sent;
	return sent;
}

/* The first pieces that are in memory of this host: how many. */
static unsigned int plain_pieces(const struct tcp_queue *q)
{
	unsigned int end = q->head;

	while (end != q->tail && q->piece[end].iov_base && !q->of[end])
		end++;
	return end - q->head;
}

static ssize_t send_front(struct tcp_stream *st)
{
	struct tcp_queue *q = &st->queue;
	unsigned int n = plain_pieces(q);

	if (n)
		return queue_send(st, &q->piece[q->head], n, q->head + n != q->tail);
	if (q->of[q->head])
		return queue_send_gathered(st, &q->piece[q->head], &q->of[q->head],
					   q->tail - q->head);
	return answer_send(st, q->piece[q->head].iov_len);
}

static void drop_front(struct tcp_queue *q, size_t n)
{
	q->sent += n;
	while (n) {
		struct iovec *p = &q->piece[q->head];

		if (n < p->iov_len) {
			p->iov_len -= n;
			if (p->iov_base)
				p->iov_base = (uint8_t *)p->iov_base + n;
			return;
		}
		n -= p->iov_len;
		if (!p->iov_base)
			q->answering = false;
		q->head++;
	}
}

/* Something waits that the socket may take. */
static bool can_send(const struct tcp_stream *st)
{
	const struct tcp_queue *q = &st->queue;

	return q->head != q->tail && !q->full && !st->tc->data->failure.code;
}

/* n: bytes, or as queue_send_gathered, and errno. True: there is more that can be sent. */
static bool note_sent(struct tcp_stream *st, ssize_t n)
{
	struct kv_error *failure = &st->tc->data->failure;
	struct tcp_queue *q = &st->queue;

	if (n >= 0) {
		drop_front(q, (size_t)n);
		return can_send(st);
	}
	q->full = n == -1 && (errno == EAGAIN || errno == EWOULDBLOCK);
	if (n == -1 && !q->full && !failure->code)
		kv_fail_errno(failure, KV_ERR_PEER_LOST, errno, "tcp", "sending to %s",
			      tr_conn_address(st->tc->conn));
	return false; /* QUEUE_AGAIN: progress comes again */
}

static void push_stream(struct tcp_stream *st)
{
	struct tcp_queue *q = &st->queue;
	bool more = can_send(st);

	while (more)
		more = note_sent(st, send_front(st));
	if (q->head != q->tail)
		return;
	q->head = q->tail = 0;
	q->used = 0;
}

void queue_flush(struct tcp_stream *st)
{
	queue_due(st);
	push_stream(st);
}

/* What several streams have to send is sent at the same time: true if there were several. */
static bool push_together(struct tcp_conn *tc)
{
	struct tcp_call call[TCP_STREAMS_MAX];
	struct tcp_stream *of[TCP_STREAMS_MAX];
	unsigned int n = 0, plain;

	tcp_for_each (st, tc) {
		struct tcp_queue *q = &st->queue;

		plain = can_send(st) && queue_pending(q) >= TCP_SHARE ? plain_pieces(q) : 0;
		if (!plain)
			continue;
		of[n] = st;
		call[n++] = send_call(st, &q->piece[q->head], plain, q->head + plain != q->tail);
	}
	if (n < 2)
		return false;
	calls_make(tc, call, n);
	for (unsigned int i = 0; i < n; i++) {
		errno = call[i].error;
		note_sent(of[i], call[i].bytes);
	}
	return true;
}

void queue_push_all(struct tcp_conn *tc)
{
	while (tc->streams > 1 && push_together(tc))
		;
	tcp_for_each (st, tc)
		push_stream(st);
}

void queue_flush_all(struct tcp_conn *tc)
{
	tcp_for_each (st, tc)
		queue_due(st);
	queue_push_all(tc);
}
