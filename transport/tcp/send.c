/* SPDX-License-Identifier: Apache-2.0 */
/*
 * send.c -- operations and messages going out, and when an operation is done
 *
 * A span is accepted when it is in a stream's queue (queue.c); its source may be reused when the
 * kernel has it. It has landed when the peer reports positions behind it.
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

static void queue_write(struct tcp_stream *st, struct tr_op *op, uint32_t region,
			const struct batch *b, struct tr_mem *mem)
{
	struct stream_frame frame = { .type = STREAM_DATA,
				      .spans = (uint16_t)b->n,
				      .payload = (uint32_t)b->bytes,
				      .number = region,
				      .value = op->grant };

	queue_batch(st, &frame, b->span, b->local, mem);
	st->tc->data->op[op->index].wrote = true;
	tr_conn_count(st->tc->conn)->work_requests++;
}

static void queue_read(struct tcp_stream *st, struct tr_op *op, uint32_t region,
		       const struct batch *b, struct tr_mem *mem)
{
	struct stream_frame frame = { .type = STREAM_READ,
				      .spans = (uint16_t)b->n,
				      .number = region };

	queue_batch(st, &frame, b->span, NULL, NULL);
	for (unsigned int i = 0; i < b->n; i++)
		st->read[st->read_tail++ % TCP_READS_MAX] = (struct tcp_read){
			.dst = b->local[i].iov_base,
			.of = mem,
			.left = b->span[i].len,
			.op = op->index,
		};
	st->tc->data->op[op->index].reads += b->n;
	st->read_left += b->bytes;
}

/* How many spans of that kind of operation it takes now. */
static unsigned int stream_room(const struct tcp_stream *st, int kind)
{
	unsigned int room = queue_batch_room(st, STREAM_SPANS_MAX);
	unsigned int reads = TCP_READS_MAX - (st->read_tail - st->read_head);

	return kind == TR_READ_OP && reads < room ? reads : room;
}

/* The stream that gets the next batch: that whose turn it is, the next one with room, or NULL. */
static struct tcp_stream *deal(struct tcp_conn *tc, int kind)
{
	struct tcp_data *d = tc->data;

	if (d->dealt >= TCP_STRIPE) {
		d->dealt = 0;
		d->turn = (d->turn + 1) % tc->streams;
	}
	for (unsigned int i = 0; i < tc->streams; i++) {
		struct tcp_stream *st = &d->stream[(d->turn + i) % tc->streams];

		if (stream_room(st, kind))
			return st;
	}
	return NULL;
}

/* 0: none is there, or every stream has what its bytes go through. */
static int open_stages(struct tcp_conn *tc, int kind, const struct tr_mem *gpu,
		       struct kv_error *err)
{
	int ret = 0;

	tcp_for_each (st, tc)
		if (gpu && !ret)
			ret = tcp_stage_open(st, kind == TR_WRITE ? &st->out_stage : &st->in_stage,
					     gpu, err);
	return ret;
}

/* To be sent before the commit: by every stream, so that all can be sent at the same time. */
static bool is_enough(struct tcp_conn *tc)
{
	tcp_for_each (st, tc)
		if (queue_pending(&st->queue) < TCP_FLUSH)
			return false;
	return true;
}

long tcp_op_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		const struct tr_span *spans, size_t n, struct kv_error *err)
{
	struct tcp_conn *tc = tr_conn_priv(op->conn);
	struct tcp_data *d = tc->data;
	struct tcp_op *to = &d->op[op->index];
	struct tr_mem *gpu = stage_region(lmem);
	uint64_t bytes = 0;
	struct batch b;
	size_t done = 0;
	int ret = open_stages(tc, op->kind, gpu, err);

	if (ret) /* any other failure is reported by progress */
		return ret;
	while (done < n && bytes < TCP_ADD_BYTES) {
		struct tcp_stream *st = deal(tc, op->kind);

		if (!st) {
			*(op->kind == TR_WRITE ? &d->blocked : &d->short_of_reads) = true;
			break;
		}
		fill_batch(&b, stream_room(st, op->kind), to->part, lmem->addr, spans + done,
			   n - done);
		if (op->kind == TR_WRITE)
			queue_write(st, op, rmem->id, &b, gpu);
		else
			queue_read(st, op, rmem->id, &b, gpu);
		done += b.whole;
		to->part = b.part;
		bytes += b.bytes;
		d->dealt += b.bytes;
		if (is_enough(tc))
			queue_flush_all(tc);
	}
	d->cut |= done < n && bytes >= TCP_ADD_BYTES;
	return (long)done;
}

/* ---------------------------------------------------------------- ends */

/* Behind all that is queued now, so that a line is in the order of its positions. */
static void stand_in(struct tcp_line *line, struct tcp_conn *tc, const struct tr_op *op,
		     int end_kind)
{
	struct tcp_op *to = &tc->data->op[op->index];

	tcp_for_each (st, tc) {
		to->at[st->index] = st->queue.queued;
		st->tell |= line == &tc->data->to_land && st->landed < st->queue.queued;
	}
	to->waiting = true;
	to->end_kind = end_kind;
	line->op[line->tail++ % TR_OPS_MAX] = op->index;
}

/* The first of a line is passed: what is sent, or has landed. */
static bool is_passed(struct tcp_conn *tc, const struct tcp_line *line, const struct tcp_op *op)
{
	bool land = line == &tc->data->to_land;

	tcp_for_each (st, tc)
		if (op->at[st->index] > (land ? st->landed : st->queue.sent))
			return false;
	return true;
}

static int settle_line(struct tcp_conn *tc, struct tcp_line *line)
{
	struct tcp_data *d = tc->data;
	int done = 0;

	while (line->head != line->tail) {
		uint16_t index = line->op[line->head % TR_OPS_MAX];
		struct tcp_op *to = &d->op[index];

		if (!is_passed(tc, line, to))
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
	int done = settle_line(tc, &d->to_send) + settle_line(tc, &d->to_land);
	int ret = d->stopping ? break_stopping(tc, err) : 0;

	return ret ? ret : done;
}

/* ---------------------------------------------------------------- the provider's other calls */

static bool has_small_credit(const struct tcp_stream *first)
{
	return first->small - first->small_landed < TCP_SMALL_MAX;
}

/* A notify or a message, if the peer has taken enough of those before. */
static bool put_small_frame(struct tcp_conn *tc, const struct stream_frame *frame,
			    const void *payload)
{
	struct tcp_stream *first = tc->data->stream;

	if (has_small_credit(first) && queue_small(first, frame, payload)) {
		first->small++;
		return true;
	}
	queue_flush_all(tc); /* the caller waits for room */
	tc->data->blocked = true;
	return false;
}

/* What follows on the first stream waits for the bytes that the others carry. */
static bool put_after_the_others(struct tcp_conn *tc)
{
	tcp_for_each (st, tc) {
		struct stream_frame after = { .type = STREAM_AFTER,
					      .number = st->index,
					      .value = st->queue.queued };

		if (!st->index || st->after == st->queue.queued)
			continue;
		if (!queue_small(tc->data->stream, &after, NULL)) {
			tc->data->blocked = true;
			return false;
		}
		st->after = st->queue.queued;
	}
	return true;
}

int tcp_op_commit(struct tr_op *op, unsigned int flags, uint64_t value, struct kv_error *err)
{
	struct tcp_conn *tc = tr_conn_priv(op->conn);
	struct tcp_data *d = tc->data;
	struct tcp_op *to = &d->op[op->index];
	struct stream_frame notify = { .type = STREAM_NOTIFY, .value = value };

	if ((flags & TR_NOTIFY) &&
	    (!put_after_the_others(tc) || !put_small_frame(tc, &notify, NULL)))
		return TR_AGAIN;
	to->committed = true;
	if (op->kind == TR_READ_OP) {
		if (!to->reads)
			tr_op_end(op, TR_READ);
	} else if (!to->wrote) {
		tr_op_end(op, TR_WRITTEN);
	} else {
		stand_in(flags & (TR_PROVEN | TR_LANDED) ? &d->to_land : &d->to_send, tc, op,
			 TR_WRITTEN);
	}
	queue_flush_all(tc);
	settle_line(tc, &d->to_send);
	return 0;
}

int tcp_msg(struct tr_conn *conn, const void *buf, size_t len, bool wake, struct kv_error *err)
{
	struct tcp_conn *tc = tr_conn_priv(conn);
	struct stream_frame frame = { .type = STREAM_MSG, .payload = (uint32_t)len };

	if (!put_small_frame(tc, &frame, buf))
		return TR_AGAIN;
	if (wake) /* else it leaves with what is sent next, or when the owner goes to sleep */
		queue_flush(tc->data->stream);
	return 0;
}

/* The answers to what the operation has asked for are thrown away. */
static void forget_reads(struct tcp_stream *st, uint16_t index, struct tcp_op *to)
{
	for (unsigned int i = st->read_head; to->reads && i != st->read_tail; i++) {
		struct tcp_read *read = &st->read[i % TCP_READS_MAX];

		if (read->op == index && read->dst) {
			read->dst = NULL;
			to->reads--;
		}
	}
}

/* Its bytes may still come: the connection ends it, in doubt. */
static void give_up_read(struct tcp_conn *tc, struct tr_op *op)
{
	struct kv_error *failure = &tc->data->failure;

	op->state = TR_OP_COMMITTED;
	kv_fail(failure, KV_ERR_TIMEOUT, "cancel",
		"a GPU's copy of what was read from %s has not ended before the deadline of a "
		"cancelled operation",
		tr_conn_address(tc->conn));
	kv_error_hint(failure, "other kernels hold the GPU, or it hangs (nvidia-smi)");
}

/*
 * What is in a queue is sent: its headers have been, or are in the way of others. The operation
 * ends when the peer has taken it. Answers to reads are thrown away from now on.
 */
void tcp_op_cancel(struct tr_op *op, int64_t deadline_ns)
{
	struct tcp_conn *tc = tr_conn_priv(op->conn);
	struct tcp_data *d = tc->data;
	struct tcp_op *to = &d->op[op->index];
	bool copies = false;

	tcp_for_each (st, tc)
		copies |= op->kind == TR_READ_OP && place_wait(st, deadline_ns) == TR_AGAIN;
	if (copies) {
		give_up_read(tc, op);
		return;
	}
	if (op->state == TR_OP_ENDED)
		return;
	tcp_for_each (st, tc)
		forget_reads(st, op->index, to);
	if (!to->wrote) {
		tr_op_end(op, TR_CANCELLED);
		return;
	}
	if (!to->waiting)
		stand_in(&d->to_land, tc, op, TR_CANCELLED);
	d->stopping += to->deadline_ns == INT64_MAX && deadline_ns != INT64_MAX;
	to->deadline_ns = deadline_ns;
}

bool send_goes_on(struct tcp_conn *tc)
{
	struct tcp_data *d = tc->data;
	bool writes = false, reads = false, on;

	tcp_for_each (st, tc) {
		writes |= d->blocked && stream_room(st, TR_WRITE);
		reads |= d->short_of_reads && stream_room(st, TR_READ_OP);
	}
	writes &= has_small_credit(d->stream);
	on = d->cut || writes || reads;
	d->cut = false;
	if (writes)
		d->blocked = false;
	if (reads)
		d->short_of_reads = false;
	return on;
}
