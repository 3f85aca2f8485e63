/* SPDX-License-Identifier: Apache-2.0 */
/* receive.c -- progress: the peer's frames, what they ask for, its end; and going to sleep */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/clock.h"
#include "base/error.h"
#include "tcp.h"

static int refuse_frame(const struct stream_frame *f, const char *what, struct kv_error *err)
{
	return kv_fail(err, KV_ERR_PROTOCOL, "tcp",
		       "the peer's frame (type %u, %u spans, %u bytes, number %u, value %llu) %s",
		       f->type, f->spans, f->payload, f->number, (unsigned long long)f->value,
		       what);
}

static int take_report(struct tcp_stream *st, struct kv_error *err)
{
	const struct stream_frame *f = &st->in.frame;

	if (f->value < st->landed || f->value > st->queue.sent ||
	    f->number - st->small_landed > st->small - st->small_landed)
		return refuse_frame(f, "reports what was not sent", err);
	st->landed = f->value;
	st->small_landed = f->number;
	return 0;
}

/* What follows waits for another stream: 0: that is as far already. */
static int wait_for_stream(struct tcp_stream *st, struct kv_error *err)
{
	const struct stream_frame *f = &st->in.frame;

	if (st->index || !f->number || f->number >= st->tc->streams)
		return refuse_frame(f, "waits for a stream that it may not", err);
	st->in.behind = st->tc->data->stream[f->number].in.taken < f->value;
	return st->in.behind ? TR_AGAIN : 0;
}

/*
 * One frame whose header is there, and the payload if it is a message: 0, TR_AGAIN if the event it
 * makes has no room or it waits for another stream, or the connection's failure.
 */
static int take_one_frame(struct tcp_stream *st, const uint8_t *payload, struct kv_error *err)
{
	const struct stream_frame *f = &st->in.frame;

	switch (f->type) {
	case STREAM_DATA:
		return place_check(st, err);
	case STREAM_ANSWER:
		return place_check_answer(st, err);
	case STREAM_READ:
		return answer_asked(st, err);
	case STREAM_REPORT:
		return take_report(st, err);
	case STREAM_AFTER:
		return wait_for_stream(st, err);
	case STREAM_TELL:
		st->in.told = true;
		return 0;
	default:
		break;
	}
	if (st->index)
		return refuse_frame(f, "does not belong on this stream", err);
	st->in.stalled = !tr_conn_room(st->tc->conn);
	if (st->in.stalled)
		return TR_AGAIN;
	st->in.small++;
	if (f->type == STREAM_MSG)
		tr_conn_message(st->tc->conn, payload, f->payload);
	else
		tr_conn_notified(st->tc->conn, f->value);
	return 0;
}

/* The next frame in the buffer: 1, 0: it has to wait, or the failure. */
static int next_frame(struct tcp_stream *st, struct kv_error *err)
{
	struct tcp_in *in = &st->in;
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
	ret = take_one_frame(st, at + len, err);
	if (ret)
		return ret == TR_AGAIN ? 0 : ret;
	in->from += whole;
	in->taken += whole;
	return 1;
}

/* What is in the buffer: the number of frames, or the failure. */
static int take_buffered(struct tcp_stream *st, struct kv_error *err)
{
	struct tcp_in *in = &st->in;
	int done = 0, ret = 1;

	in->stalled = in->behind = false;
	while (ret == 1) {
		if (in->left && in->from != in->to)
			ret = place_buffered(st, err);
		/* Bytes that are not placed are not followed by a notify. */
		if (ret < 0 || in->left || in->from == in->to)
			break;
		ret = next_frame(st, err);
		done += ret == 1;
	}
	if (ret < 0)
		return ret;
	memmove(in->bytes, in->bytes + in->from, in->to - in->from);
	in->to -= in->from;
	in->from = 0;
	return done;
}

/* What one look takes of a stream. */
struct turn {
	uint64_t end; /* position at which it is over */
	int done;     /* things */
	bool over, more;
};

static void begin_turn(struct tcp_stream *st, struct turn *turn)
{
	struct tcp_in *in = &st->in;

	turn->end = in->taken + TCP_TAKE_BYTES;
	turn->done = 0;
	turn->over = false;
	turn->more = !in->drained;
	in->unasked = in->drained;
	in->drained = false;
	in->asked = in->next; /* another turn: what is open may have changed */
	in->looked = false;
}

static bool others_are_over(const struct tcp_conn *tc, const struct turn *turns)
{
	for (unsigned int i = 1; i < tc->streams; i++)
		if (!turns[i].over)
			return false;
	return true;
}

/* What is there already: 0, or the failure. */
static int take_what_is_there(struct tcp_stream *st, struct turn *turns, struct kv_error *err)
{
	struct turn *turn = &turns[st->index];
	struct tcp_in *in = &st->in;
	int taken = place_settle(st, err);

	if (taken == TR_AGAIN) { /* a kernel works */
		turn->done++;
		turn->over = true;
		return 0;
	}
	if (!taken)
		taken = take_buffered(st, err);
	if (taken < 0)
		return taken;
	turn->done += taken;
	/* It is looked at again once what it waits for may have come. */
	if (in->behind)
		turn->over = others_are_over(st->tc, turns);
	else
		turn->over = !turn->more || in->stalled || st->hung_up || in->taken >= turn->end;
	return 0;
}

/* After a call to the socket: 0, or the failure. */
static int note_received(struct tcp_stream *st, struct turn *turn, const struct kv_error *err)
{
	struct kv_error *failure = &st->tc->data->failure;
	ssize_t n = st->places.call.bytes;
	int error = st->places.call.error;

	turn->more = n > 0 && st->places.more;
	if (n == -2)
		return err->code;
	if (n > 0) {
		tr_conn_count(st->tc->conn)->completions++; /* a sign of life: silence.c */
		st->in.drained = !turn->more;
		turn->done++;
	} else if (!n) {
		st->hung_up = true;
	} else if (error != EAGAIN && error != EWOULDBLOCK) {
		st->hung_up = true;
		if (!failure->code)
			kv_fail_errno(failure, KV_ERR_PEER_LOST, error, "poll", "receiving from %s",
				      tr_conn_address(st->tc->conn));
	}
	return 0;
}

/*
 * What is there, and a call to the socket, unless it is for so many bytes that it is made together
 * with those of other streams: 1. Or the failure.
 */
static int take_some(struct tcp_stream *st, struct turn *turns, struct kv_error *err)
{
	int ret = take_what_is_there(st, turns, err);

	if (ret || turns[st->index].over || st->in.behind)
		return ret;
	if (place_receive_begin(st, &st->places, err)) {
		if (st->tc->streams > 1 && st->in.left >= TCP_SHARE)
			return 1;
		calls_make(st->tc, &st->places.call, 1);
		place_receive_end(st, &st->places);
	}
	return note_received(st, &turns[st->index], err);
}

/*
 * Each stream that has not had its turn; the first one last: its notifies wait for what the others
 * bring.
 */
static int take_round(struct tcp_conn *tc, struct turn *turns, struct kv_error *err)
{
	struct tcp_stream *of[TCP_STREAMS_MAX], *st = tc->data->stream + tc->streams;
	struct tcp_call call[TCP_STREAMS_MAX];
	unsigned int n = 0;
	int ret = 0;

	while (ret >= 0 && st-- != tc->data->stream) {
		ret = turns[st->index].over ? 0 : take_some(st, turns, err);
		if (ret == 1) {
			of[n] = st;
			call[n++] = st->places.call;
		}
	}
	if (n && ret >= 0)
		calls_make(tc, call, n);
	for (unsigned int i = 0; i < n; i++) {
		of[i]->places.call = call[i];
		place_receive_end(of[i], &of[i]->places);
		if (ret >= 0)
			ret = note_received(of[i], &turns[of[i]->index], err);
	}
	return ret < 0 ? ret : 0;
}

/* What has come by all streams: things done by each of them. 0, or the connection's failure. */
static int take_streams(struct tcp_conn *tc, struct turn *turns, struct kv_error *err)
{
	bool over;
	int ret;

	tcp_for_each (st, tc)
		begin_turn(st, &turns[st->index]);
	do {
		ret = take_round(tc, turns, err);
		over = true;
		tcp_for_each (st, tc)
			over &= turns[st->index].over;
	} while (!ret && !over);
	return ret;
}

/* 0, or the system refuses: then the owner does not sleep. */
static int watch(struct tcp_stream *st, unsigned int what)
{
	if (what != st->watched && tr_conn_watch_for(st->tc->conn, st->sock, what, NULL))
		return 1;
	st->watched = what;
	return 0;
}

/*
 * Looking is quicker where both ends have a processor. Where processors are busy the peer gets the
 * one of this thread once that sleeps.
 */
static void begin_wait(struct tcp_conn *tc)
{
	bool tries = !(++tc->waits % TCP_TRY_EVERY);

	tc->at_once = (tc->took_ns[true] < tc->took_ns[false]) != tries;
	tc->wait_ns = kv_now_ns();
}

static void end_wait(struct tcp_conn *tc)
{
	int64_t *average = &tc->took_ns[tc->at_once];
	int64_t took = kv_sooner(kv_now_ns() - tc->wait_ns, TCP_WAIT_NS);

	*average += (took - *average) / 8;
	tc->looks = 0;
}

static bool looks_on(struct tcp_conn *tc)
{
	if (!tc->looks++)
		begin_wait(tc);
	return tc->looks < TCP_LOOKS && !tc->at_once;
}

/* What came before is taken first: it may have a say in what the owner is about to send. */
void tcp_polled(struct tr_conn *conn)
{
	struct tcp_conn *tc = tr_conn_priv(conn);

	tc->looks = 0;
	tcp_for_each (st, tc) {
		watch(st, 0);
		st->in.drained = false;
	}
}

static bool copies(const struct tcp_stream *st)
{
	return stage_runs(st->in_stage.stage) || stage_runs(st->out_stage.stage);
}

/* What its owner sleeps for. */
static unsigned int wanted(const struct tcp_stream *st)
{
	return (st->in.behind ? 0 : (unsigned int)TR_WATCH_IN) |
	       (queue_pending(&st->queue) ? (unsigned int)TR_WATCH_OUT : 0);
}

/* A thread that polls for long may have the processor that the peer needs. */
bool tcp_await(struct tr_conn *conn, int64_t looks_ns, int64_t most_ns, int fd)
{
	struct tcp_conn *tc = tr_conn_priv(conn);
	struct pollfd p[TCP_STREAMS_MAX + 1];
	struct timespec limit;

	if (looks_on(tc) && looks_ns > 0)
		return false;
	tcp_for_each (st, tc) {
		p[st->index] = (struct pollfd){ .fd = st->sock };
		if (wanted(st) & TR_WATCH_IN)
			p[st->index].events |= POLLIN;
		if (wanted(st) & TR_WATCH_OUT)
			p[st->index].events |= POLLOUT;
		if (copies(st))
			most_ns = kv_sooner(most_ns, TCP_COPY_NS);
	}
	p[tc->streams] = (struct pollfd){ .fd = fd, .events = POLLIN };
	most_ns = most_ns > 0 ? most_ns : 0;
	limit.tv_sec = most_ns / INT64_C(1000000000);
	limit.tv_nsec = most_ns % INT64_C(1000000000);
	tr_conn_count(conn)->syscalls++;
	ppoll(p, tc->streams + 1, &limit, NULL);
	return true;
}

/* What has come, then what is to go: the number of things done, or the connection's failure. */
static int move_streams(struct tcp_conn *tc, struct kv_error *err)
{
	struct turn turn[TCP_STREAMS_MAX];
	bool reports[TCP_STREAMS_MAX];
	int done = 0, ret;

	tcp_for_each (st, tc)
		reports[st->index] = queue_reports(st);
	ret = take_streams(tc, turn, err);
	if (ret)
		return ret;
	tcp_for_each (st, tc) {
		int moved = turn[st->index].done + answer_queue(st);

		st->queue.full = false;
		/*
		 * A report that has just become due waits for what the owner makes of the same
		 * frames, an acknowledgement: one packet for both.
		 */
		if (reports[st->index] || !moved)
			queue_due(st);
		done += moved;
	}
	queue_push_all(tc);
	return done;
}

/* The peer's end, or a failure to send: once nothing more comes. */
static int find_end(struct tcp_conn *tc, struct kv_error *err)
{
	const struct kv_error *failure = &tc->data->failure;
	bool hung_up = false;

	tcp_for_each (st, tc) {
		if (st->in.stalled || st->in.unasked)
			return 0;
		hung_up |= st->hung_up;
	}
	if (failure->code)
		return kv_error_copy(err, failure);
	return !hung_up ? 0
			: kv_fail(err, KV_ERR_PEER_LOST, "poll", "%s closed the connection",
				  tr_conn_address(tc->conn));
}

int tcp_progress(struct tr_conn *conn)
{
	struct tcp_conn *tc = tr_conn_priv(conn);
	struct kv_error cause;
	int done, ended;

	done = move_streams(tc, &cause);
	if (done >= 0) {
		ended = send_settle(tc, &cause);
		done = ended < 0 ? ended : done + ended;
	}
	/* Last: what the peer sent before it went still counts, an acknowledgement among it. */
	if (!done)
		done = find_end(tc, &cause);
	if (done && tc->looks)
		end_wait(tc);
	if (done < 0) {
		tcp_lose(tc, &cause);
		return 1;
	}
	return done;
}

/* 0: it may sleep until the socket wakes it. */
static int arm_stream(struct tcp_stream *st)
{
	st->in.drained = false;
	queue_flush(st);
	if (st->hung_up || st->in.stalled || copies(st) || answer_queue(st))
		return 1;
	return watch(st, wanted(st));
}

int tcp_arm(struct tr_conn *conn)
{
	struct tcp_conn *tc = tr_conn_priv(conn);
	struct kv_error cause;
	int awake = 0;

	tcp_for_each (st, tc)
		awake |= arm_stream(st);
	return awake || tc->data->failure.code || send_settle(tc, &cause) || send_goes_on(tc);
}
