/* SPDX-License-Identifier: Apache-2.0 */
/* receive.c -- progress: the peer's frames, what they ask for, its end; and going to sleep */
#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "tcp.h"

static int refuse_frame(const struct stream_frame *f, const char *what, struct kv_error *err)
{
	return kv_fail(err, KV_ERR_PROTOCOL, "tcp",
		       "the peer's frame (type %u, %u spans, %u bytes, number %u, value %llu) %s",
		       f->type, f->spans, f->payload, f->number, (unsigned long long)f->value,
		       what);
}

static int take_report(struct tcp_data *d, const struct stream_frame *f, struct kv_error *err)
{
	if (f->value < d->landed || f->value > d->queue.sent ||
	    f->number - d->small_landed > d->small - d->small_landed)
		return refuse_frame(f, "reports what was not sent", err);
	d->landed = f->value;
	d->small_landed = f->number;
	return 0;
}

/*
 * One frame whose header is there, and the payload if it is a message: 0, TR_AGAIN if the event it
 * makes has no room, or the connection's failure.
 */
static int take_one_frame(struct tcp_conn *tc, const uint8_t *payload, struct kv_error *err)
{
	struct tcp_data *d = tc->data;
	const struct stream_frame *f = &d->in.frame;

	switch (f->type) {
	case STREAM_DATA:
		return place_check(tc, err);
	case STREAM_ANSWER:
		return place_check_answer(tc, err);
	case STREAM_READ:
		return answer_asked(tc, err);
	case STREAM_REPORT:
		return take_report(d, f, err);
	case STREAM_TELL:
		d->in.told = true;
		return 0;
	default:
		break;
	}
	if (!tr_conn_room(tc->conn))
		return TR_AGAIN;
	d->in.small++;
	if (f->type == STREAM_MSG)
		tr_conn_message(tc->conn, payload, f->payload);
	else
		tr_conn_notified(tc->conn, f->value);
	return 0;
}

enum { STALLED = TR_AGAIN + 1 };

/* The next frame in the buffer: 1, 0: more bytes are needed, STALLED, or the failure. */
static int next_frame(struct tcp_conn *tc, struct kv_error *err)
{
	struct tcp_in *in = &tc->data->in;
	const uint8_t *at = in->bytes + in->from;
	size_t have = in->to - in->from;
	int len = stream_get(at, have, &in->frame, in->span), ret;
	size_t whole = (size_t)len;

	if (len < 0)
		return refuse_frame(&in->frame, "is malformed", err);
	if (len && in->frame.type == STREAM_MSG)
		whole += in->frame.payload;
	if (!len || have < whole)
		return 0;
	ret = take_one_frame(tc, at + len, err);
	if (ret)
		return ret == TR_AGAIN ? STALLED : ret;
	in->from += whole;
	in->taken += whole;
	return 1;
}

/* What is in the buffer: the number of frames, or the failure. */
static int take_buffered(struct tcp_conn *tc, struct kv_error *err)
{
	struct tcp_in *in = &tc->data->in;
	int done = 0, ret = 1;

	while (ret == 1) {
		if (in->left && in->from != in->to)
			ret = place_buffered(tc, err);
		/* Bytes that are not placed are not followed by a notify. */
		if (ret < 0 || in->left || in->from == in->to)
			break;
		ret = next_frame(tc, err);
		done += ret == 1;
	}
	if (ret < 0)
		return ret;
	in->stalled = ret == STALLED;
	memmove(in->bytes, in->bytes + in->from, in->to - in->from);
	in->to -= in->from;
	in->from = 0;
	return done;
}

/* Number of things done, or the connection's failure. */
static int take_stream(struct tcp_conn *tc, struct kv_error *err)
{
	struct tcp_in *in = &tc->data->in;
	uint64_t end = in->taken + TCP_TAKE_BYTES;
	int done = 0, taken;
	bool more = true;
	ssize_t n = 1;

	in->asked = in->next; /* another turn: what is open may have changed */
	in->looked = false;
	for (;;) {
		taken = take_buffered(tc, err);
		if (taken < 0)
			return taken;
		done += taken;
		if (n <= 0 || !more || in->stalled || tc->hung_up || in->taken >= end)
			return done;
		n = place_receive(tc, &more, err);
		if (n == -2)
			return err->code;
		if (n > 0) {
			tr_conn_count(tc->conn)->completions++; /* a sign of life: silence.c */
			done++;
		} else if (!n) {
			tc->hung_up = true;
		} else if (errno != EAGAIN && errno != EWOULDBLOCK) {
			tc->hung_up = true;
			if (!tc->data->failure.code)
				kv_fail_errno(&tc->data->failure, KV_ERR_PEER_LOST, errno, "poll",
					      "receiving from %s", tr_conn_address(tc->conn));
		}
	}
}

/* 0, or the system refuses: then the owner does not sleep. */
static int watch(struct tcp_conn *tc, unsigned int what)
{
	if (what != tc->watched && tr_conn_watch_for(tc->conn, tc->sock, what, NULL))
		return 1;
	tc->watched = what;
	return 0;
}

int tcp_progress(struct tr_conn *conn)
{
	struct tcp_conn *tc = tr_conn_priv(conn);
	bool reports = queue_reports(tc->data);
	struct kv_error cause;
	int done, ended;

	if (++tc->polls == TCP_BUSY_POLLS)
		watch(tc, 0);
	done = take_stream(tc, &cause);

	if (done >= 0) {
		done += answer_queue(tc);
		tc->data->queue.full = false;
		/*
		 * A report that has just become due waits for what the owner makes of the same
		 * frames, an acknowledgement: one packet for both.
		 */
		if (reports || !done)
			queue_flush(tc);
		else
			queue_push(tc);
		ended = send_settle(tc, &cause);
		done = ended < 0 ? ended : done + ended;
	}
	/* Last: what the peer sent before it went still counts, an acknowledgement among it. */
	if (done >= 0 && !tc->data->in.stalled &&
	    (tc->hung_up || (tc->data->failure.code && !done)))
		done = tc->data->failure.code
			       ? kv_error_copy(&cause, &tc->data->failure)
			       : kv_fail(&cause, KV_ERR_PEER_LOST, "poll",
					 "%s closed the connection", tr_conn_address(conn));
	if (done < 0) {
		tcp_lose(tc, &cause);
		return 1;
	}
	return done;
}

int tcp_arm(struct tr_conn *conn)
{
	struct tcp_conn *tc = tr_conn_priv(conn);
	struct kv_error cause;

	tc->polls = 0;
	queue_flush(tc);
	if (tc->data->failure.code || tc->hung_up || tc->data->in.stalled || answer_queue(tc) ||
	    send_settle(tc, &cause) || send_goes_on(tc))
		return 1;
	return watch(tc, TR_WATCH_IN | (queue_pending(&tc->data->queue) ? (unsigned int)TR_WATCH_OUT
									: 0));
}
