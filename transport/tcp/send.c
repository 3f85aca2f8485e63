/* SPDX-License-Identifier: Apache-2.0 */
/*
 * send.c -- operations and messages going out, and when an operation is done
 *
 * A span is accepted when it is in the queue (queue.c); its source may be reused when the kernel
 * has it. It has landed when the peer reports a position behind it.
 */
#include "base/clock.h"
#include "base/error.h"
#include "tcp.h"

void tcp_op_begin(struct tr_op *op)
{
	struct tcp_conn *tc = tr_conn_priv(op->conn);

	tc->data->op[op->index] = (struct tcp_op){ .deadline_ns = INT64_MAX };
}

/* ---------------------------------------------------------------- spans to frames */

/* What one frame takes of a caller's spans, which are cut at STREAM_PAYLOAD_MAX. */
struct batch {
	struct stream_span span[STREAM_SPANS_MAX];
	struct iovec local[STREAM_SPANS_MAX];
	unsigned int n;
	uint64_t bytes;
	size_t whole;  /* spans of the caller that end in it */
	uint64_t part; /* bytes of the next one that are in it, or were before */
};

/* `part` bytes of the first span were taken before. */
static void fill_batch(struct batch *b, unsigned int room, uint64_t part, uint8_t *local,
		       const struct tr_span *spans, size_t n)
{
	b->n = 0;
	b->bytes = 0;
	b->whole = 0;
	while (b->n < room && b->whole < n && b->bytes < STREAM_PAYLOAD_MAX) {
		const struct tr_span *s = &spans[b->whole];
		uint64_t left = s->len - part, len = STREAM_PAYLOAD_MAX - b->bytes;

		/* A span is cut only where it does not fit into a frame of its own. */
		if (left > len && b->n && left <= STREAM_PAYLOAD_MAX)
			break;
		len = left < len ? left : len;
		b->span[b->n] = (struct stream_span){ s->remote + part, (uint32_t)len };
		b->local[b->n++] = (struct iovec){ local + s->local + part, len };
		b->bytes += len;
		part += len;
		if (part < s->len)
			continue;
		part = 0;
		b->whole++;
	}
	b->part = part;
}

static unsigned int reads_room(const struct tcp_data *d)
{
	return TCP_READS_MAX - (d->read_tail - d->read_head);
}

static void queue_write(struct tcp_conn *tc, struct tr_op *op, uint32_t region,
			const struct batch *b)
{
	struct stream_frame frame = { .type = STREAM_DATA,
				      .spans = (uint16_t)b->n,
				      .payload = (uint32_t)b->bytes,
				      .number = region,
				      .value = op->grant };

	queue_batch(tc, &frame, b->span, b->local);
	tc->data->op[op->index].at = tc->data->queue.queued;
	tr_conn_count(tc->conn)->work_requests++;
}

static void queue_read(struct tcp_conn *tc, struct tr_op *op, uint32_t region,
		       const struct batch *b)
{
	struct stream_frame frame = { .type = STREAM_READ,
				      .spans = (uint16_t)b->n,
				      .number = region };
	struct tcp_data *d = tc->data;

	queue_batch(tc, &frame, b->span, NULL);
	for (unsigned int i = 0; i < b->n; i++)
		d->read[d->read_tail++ % TCP_READS_MAX] = (struct tcp_read){
			.dst = b->local[i].iov_base, .left = b->span[i].len, .op = op->index
		};
	d->op[op->index].reads += b->n;
	d->read_left += b->bytes;
}

long tcp_op_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		const struct tr_span *spans, size_t n, struct kv_error *err)
{
	struct tcp_conn *tc = tr_conn_priv(op->conn);
	struct tcp_data *d = tc->data;
	struct tcp_op *to = &d->op[op->index];
	uint64_t bytes = 0;
	struct batch b;
	size_t done = 0;

	(void)err; /* a failure is reported by progress */
	while (done < n && bytes < TCP_ADD_BYTES) {
		unsigned int room = queue_batch_room(tc, STREAM_SPANS_MAX);

		d->blocked |= !room;
		if (room && op->kind == TR_READ_OP && room > reads_room(d)) {
			room = reads_room(d);
			d->short_of_reads |= !room;
		}
		if (!room)
			break;
		fill_batch(&b, room, to->part, lmem->addr, spans + done, n - done);
		if (op->kind == TR_WRITE)
			queue_write(tc, op, rmem->id, &b);
		else
			queue_read(tc, op, rmem->id, &b);
		done += b.whole;
		to->part = b.part;
		bytes += b.bytes;
		if (queue_pending(&d->queue) >= TCP_FLUSH)
			queue_flush(tc);
	}
	d->cut |= done < n && bytes >= TCP_ADD_BYTES;
	return (long)done;
}

/* ---------------------------------------------------------------- ends */

static void stand_in(struct tcp_line *line, struct tcp_data *d, const struct tr_op *op,
		     int end_kind)
{
	struct tcp_op *to = &d->op[op->index];

	to->waiting = true;
	to->end_kind = end_kind;
	line->op[line->tail++ % TR_OPS_MAX] = op->index;
}

static int settle_line(struct tcp_conn *tc, struct tcp_line *line, uint64_t position)
{
	struct tcp_data *d = tc->data;
	int done = 0;

	while (line->head != line->tail) {
		uint16_t index = line->op[line->head % TR_OPS_MAX];
		struct tcp_op *to = &d->op[index];

		if (to->at > position)
			break;
		line->head++;
		to->waiting = false;
		d->stopping -= to->deadline_ns != INT64_MAX;
		tr_op_end(tr_conn_op(tc->conn, index), to->end_kind);
		done++;
	}
	return done;
}

/* An operation that is to be stopped, and whose bytes do not leave, or are not taken, in time. */
static int break_stopping(struct tcp_conn *tc, struct kv_error *err)
{
	int64_t now = kv_now_ns();

	for (unsigned int i = 0; i < TR_OPS_MAX; i++) {
		const struct tcp_op *to = &tc->data->op[i];

		if (to->waiting && now >= to->deadline_ns)
			return kv_fail(err, KV_ERR_TIMEOUT, "cancel",
				       "%s did not take what was written before a cancelled "
				       "operation's deadline",
				       tr_conn_address(tc->conn));
	}
	return 0;
}

int send_settle(struct tcp_conn *tc, struct kv_error *err)
{
	struct tcp_data *d = tc->data;
	int done = settle_line(tc, &d->to_send, d->queue.sent) +
		   settle_line(tc, &d->to_land, d->landed);
	int ret = d->stopping ? break_stopping(tc, err) : 0;

	return ret ? ret : done;
}

/* ---------------------------------------------------------------- the provider's other calls */

/* A notify or a message, if the peer has taken enough of those before. */
static bool put_small_frame(struct tcp_conn *tc, const struct stream_frame *frame,
			    const void *payload)
{
	struct tcp_data *d = tc->data;

	if (d->small - d->small_landed < TCP_SMALL_MAX && queue_small(tc, frame, payload)) {
		d->small++;
		return true;
	}
	queue_flush(tc); /* the caller waits for room */
	d->blocked = true;
	return false;
}

int tcp_op_commit(struct tr_op *op, unsigned int flags, uint64_t value, struct kv_error *err)
{
	struct tcp_conn *tc = tr_conn_priv(op->conn);
	struct tcp_data *d = tc->data;
	struct tcp_op *to = &d->op[op->index];
	struct stream_frame notify = { .type = STREAM_NOTIFY, .value = value };

	(void)err;
	if ((flags & TR_NOTIFY) && !put_small_frame(tc, &notify, NULL))
		return TR_AGAIN;
	to->committed = true;
	if (op->kind == TR_READ_OP) {
		if (!to->reads)
			tr_op_end(op, TR_READ);
	} else if (!to->at) {
		tr_op_end(op, TR_WRITTEN);
	} else if (flags & (TR_PROVEN | TR_LANDED)) {
		stand_in(&d->to_land, d, op, TR_WRITTEN);
		to->at = d->queue.queued; /* in the order of the line */
		d->tell = true;
	} else {
		stand_in(&d->to_send, d, op, TR_WRITTEN);
		to->at = d->queue.queued;
	}
	queue_flush(tc);
	settle_line(tc, &d->to_send, d->queue.sent);
	return 0;
}

int tcp_msg(struct tr_conn *conn, const void *buf, size_t len, bool wake, struct kv_error *err)
{
	struct tcp_conn *tc = tr_conn_priv(conn);
	struct stream_frame frame = { .type = STREAM_MSG, .payload = (uint32_t)len };

	(void)err;
	if (!put_small_frame(tc, &frame, buf))
		return TR_AGAIN;
	if (wake) /* else it leaves with what is sent next, or when the owner goes to sleep */
		queue_flush(tc);
	return 0;
}

/*
 * What is in the queue is sent: its headers have been, or are in the way of others. The operation
 * ends when the peer has taken it. Answers to reads are thrown away from now on.
 */
void tcp_op_cancel(struct tr_op *op, int64_t deadline_ns)
{
	struct tcp_conn *tc = tr_conn_priv(op->conn);
	struct tcp_data *d = tc->data;
	struct tcp_op *to = &d->op[op->index];

	for (unsigned int i = d->read_head; to->reads && i != d->read_tail; i++) {
		struct tcp_read *read = &d->read[i % TCP_READS_MAX];

		if (read->op == op->index && read->dst) {
			read->dst = NULL;
			to->reads--;
		}
	}
	if (!to->at) {
		tr_op_end(op, TR_CANCELLED);
		return;
	}
	if (!to->waiting) {
		stand_in(&d->to_land, d, op, TR_CANCELLED);
		to->at = d->queue.queued;
		d->tell = true;
	}
	d->stopping += to->deadline_ns == INT64_MAX && deadline_ns != INT64_MAX;
	to->deadline_ns = deadline_ns;
}

bool send_goes_on(struct tcp_conn *tc)
{
	struct tcp_data *d = tc->data;
	bool queue =
		d->blocked && queue_batch_room(tc, 1) && d->small - d->small_landed < TCP_SMALL_MAX;
	bool reads = d->short_of_reads && reads_room(d);
	bool on = d->cut || queue || reads;

	d->cut = false;
	if (queue)
		d->blocked = false;
	if (reads)
		d->short_of_reads = false;
	return on;
}
