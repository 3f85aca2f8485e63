/* SPDX-License-Identifier: Apache-2.0 */
/*
 * place.c -- where the payload of a frame goes: blocks of this side, or nowhere
 *
 * A frame is checked as a whole before a byte of it is placed. A payload may take several turns to
 * come, and what was open may be closed meanwhile: so whether bytes may be placed is asked again in
 * each turn, and those of a grant that was revoked are received into nothing. A revoke does not
 * wait for the writer.
 */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

#include "base/error.h"
#include "base/fault.h"
#include "tcp.h"

/* 0, or the peer breaks the rules. */
static int ask_for_span(struct tcp_stream *st, const struct tr_mem *mem, unsigned int i)
{
	struct tcp_in *in = &st->in;
	int may = tr_conn_may(st->tc->conn, mem, in->span[i].offset, in->span[i].len,
			      TR_REMOTE_WRITE, in->frame.value);

	in->verdict[i] = may == TR_PLACE ? TR_PLACE : TR_DROP;
	return may < 0 ? may : 0;
}

static int refuse_write(const struct tcp_in *in, unsigned int i, struct kv_error *err)
{
	return kv_fail(err, KV_ERR_PROTOCOL, "tcp",
		       "the peer writes %u bytes into region %u at %llu, outside the memory that "
		       "was opened to it",
		       in->span[i].len, in->frame.number, (unsigned long long)in->span[i].offset);
}

int place_check(struct tcp_stream *st, struct kv_error *err)
{
	struct tcp_in *in = &st->in;
	struct tr_mem *mem = tr_conn_region(st->tc->conn, in->frame.number);
	unsigned int i;

	for (i = 0; mem && i < in->frame.spans; i++)
		if (!tr_mem_lets(mem, in->span[i].offset, in->span[i].len, TR_REMOTE_WRITE) ||
		    ask_for_span(st, mem, i))
			break;
	if (mem)
		tr_mem_put(mem);
	if (i < in->frame.spans)
		return refuse_write(in, i, err);
	in->asked = i;
	in->next = 0;
	in->done = 0;
	in->left = in->frame.payload;
	return 0;
}

int place_check_answer(struct tcp_stream *st, struct kv_error *err)
{
	struct tcp_in *in = &st->in;

	if (in->frame.payload > st->read_left)
		return kv_fail(err, KV_ERR_PROTOCOL, "tcp",
			       "the peer answers with %u bytes, of which %llu were asked for",
			       in->frame.payload, (unsigned long long)st->read_left);
	in->left = in->frame.payload;
	return 0;
}

/* ---------------------------------------------------------------- the next places */

static void add_place(struct tcp_places *p, uint8_t *at, size_t len, struct tr_mem *gpu)
{
	p->of[p->n] = gpu;
	p->iov[p->n++] = (struct iovec){ at, len };
	p->bytes += len;
}

static void drop_region(struct tcp_places *p)
{
	if (p->mem)
		tr_mem_put(p->mem);
	p->mem = NULL;
}

static bool is_gpus(const struct tcp_places *p)
{
	return p->n && p->of[0];
}

static int data_places(struct tcp_stream *st, struct tcp_places *p, struct kv_error *err)
{
	struct tcp_in *in = &st->in;
	uint32_t done = in->done;

	/* It may have gone since the header was checked. */
	p->mem = tr_conn_region(st->tc->conn, in->frame.number);
	for (unsigned int i = in->next; i < in->frame.spans; i++, done = 0) {
		bool nowhere;

		if (p->mem && i >= in->asked) {
			if (ask_for_span(st, p->mem, i))
				return refuse_write(in, i, err);
			in->asked = i + 1;
		}
		nowhere = !p->mem || in->verdict[i] == TR_DROP;
		if (p->n && nowhere != p->nowhere)
			break;
		p->nowhere = nowhere;
		add_place(p, nowhere ? NULL : p->mem->addr + in->span[i].offset + done,
			  in->span[i].len - done, nowhere ? NULL : stage_region(p->mem));
	}
	return 0;
}

static void answer_places(const struct tcp_stream *st, struct tcp_places *p)
{
	for (unsigned int i = st->read_head; p->n < STREAM_SPANS_MAX && p->bytes < st->in.left;
	     i++) {
		const struct tcp_read *read = &st->read[i % TCP_READS_MAX];
		size_t left = st->in.left - p->bytes;

		struct tr_mem *gpu = read->dst ? read->of : NULL;

		if (p->n && (!read->dst != p->nowhere || !gpu != !p->of[0]))
			break;
		p->nowhere = !read->dst;
		add_place(p, read->dst, read->left < left ? read->left : left, gpu);
	}
}

/* The peer has broken the connection on purpose, or died: nothing of it is placed any more. */
static bool has_broken(struct tcp_stream *st)
{
	struct tcp_in *in = &st->in;
	struct pollfd p = { .fd = st->sock };

	if (!in->looked && poll(&p, 1, 0) == 1)
		st->hung_up = true;
	in->looked = true;
	return st->hung_up;
}

/* 0, TR_AGAIN: no more is placed, or the connection's failure. */
static int find_places(struct tcp_stream *st, struct tcp_places *p, struct kv_error *err)
{
	const struct tcp_in *in = &st->in;

	p->n = 0;
	p->bytes = 0;
	p->mem = NULL;
	if (has_broken(st))
		return TR_AGAIN;
	if (in->frame.type == STREAM_DATA)
		return data_places(st, p, err);
	answer_places(st, p);
	return 0;
}

/* ---------------------------------------------------------------- bytes that have come */

static void advance_data(struct tcp_in *in, size_t n)
{
	while (n) {
		uint32_t left = in->span[in->next].len - in->done;

		if (n < left) {
			in->done += (uint32_t)n;
			return;
		}
		n -= left;
		in->next++;
		in->done = 0;
	}
}

static void advance_answer(struct tcp_stream *st, size_t n)
{
	struct tcp_conn *tc = st->tc;

	st->read_left -= n;
	while (n) {
		struct tcp_read *read = &st->read[st->read_head % TCP_READS_MAX];
		struct tcp_op *to = &tc->data->op[read->op];
		uint32_t part = n < read->left ? (uint32_t)n : read->left;

		read->left -= part;
		n -= part;
		if (read->dst)
			read->dst += part;
		if (read->left)
			return;
		st->read_head++;
		/* A cancelled operation has ended, and its slot may serve another one. */
		if (read->dst && !--to->reads && to->committed)
			tr_op_end(tr_conn_op(tc->conn, read->op), TR_READ);
	}
}

static void placed(struct tcp_stream *st, size_t n)
{
	struct tcp_in *in = &st->in;

	in->left -= (uint32_t)n;
	in->taken += n;
	if (in->frame.type == STREAM_DATA)
		advance_data(in, n);
	else
		advance_answer(st, n);
}

static int settle(struct tcp_stream *st, int64_t deadline_ns, struct kv_error *err)
{
	int ret = deadline_ns ? stage_wait(st->in_stage.stage, st->tc->conn, deadline_ns, err)
			      : stage_end(st->in_stage.stage, st->tc->conn, err);
	size_t n = ret ? 0 : tcp_stage_scattered(&st->in_stage);

	if (n)
		placed(st, n);
	return ret;
}

int place_settle(struct tcp_stream *st, struct kv_error *err)
{
	return settle(st, 0, err);
}

int place_wait(struct tcp_stream *st, int64_t deadline_ns)
{
	struct kv_error *failure = &st->tc->data->failure, err;
	int ret = settle(st, deadline_ns > 0 ? deadline_ns : 1, &err);

	if (ret < 0 && !failure->code)
		*failure = err;
	return ret;
}

/* Bytes that came with a header: to a GPU. */
static int scatter_buffered(struct tcp_stream *st, const struct tcp_places *p, struct kv_error *err)
{
	struct tcp_in *in = &st->in;
	int ret = tcp_stage_open(st, &st->in_stage, p->of[0], err);
	size_t n = in->to - in->from, fits = tcp_stage_reach(p->iov, p->of, p->n);

	if (ret)
		return ret;
	n = n < fits ? n : fits;
	memcpy(st->in_stage.bytes, in->bytes + in->from, n);
	in->from += n;
	ret = tcp_stage_scatter(st, p->iov, p->of, n, err);
	return ret ? ret : place_settle(st, err);
}

int place_buffered(struct tcp_stream *st, struct kv_error *err)
{
	struct tcp_in *in = &st->in;
	struct tcp_places p;

	while (in->left && in->from != in->to) {
		size_t n, have = in->to - in->from;
		int ret = find_places(st, &p, err);

		if (!ret && is_gpus(&p)) {
			ret = scatter_buffered(st, &p, err);
			p.n = 0;
		}
		for (unsigned int i = 0; !ret && i < p.n && have; i++, have -= n) {
			n = p.iov[i].iov_len < have ? p.iov[i].iov_len : have;
			if (!p.nowhere)
				memcpy(p.iov[i].iov_base, in->bytes + in->from, n);
			in->from += n;
			placed(st, n);
		}
		drop_region(&p);
		if (ret)
			return ret;
	}
	return 0;
}

/* Apart from the others: a race detector takes it for a write to address 0 (tsan.supp). */
ssize_t place_nowhere(const struct tcp_stream *st, size_t bytes)
{
	return recv(st->sock, NULL, bytes, MSG_TRUNC | MSG_DONTWAIT);
}

static struct tcp_call receive_call(const struct tcp_stream *st, struct iovec *iov, unsigned int n)
{
	return (struct tcp_call){ .sock = st->sock,
				  .flags = MSG_DONTWAIT,
				  .msg = { .msg_iov = iov, .msg_iovlen = n } };
}

/* What follows the payload stays in the socket. */
static int receive_for_gpu(struct tcp_stream *st, struct tcp_places *p, struct kv_error *err)
{
	int ret = tcp_stage_open(st, &st->in_stage, p->of[0], err);
	struct iovec iov;

	if (ret)
		return ret;
	iov = (struct iovec){ st->in_stage.bytes, tcp_stage_reach(p->iov, p->of, p->n) };
	p->call = receive_call(st, &iov, 1);
	calls_make(st->tc, &p->call, 1);
	p->more = p->call.bytes == (ssize_t)iov.iov_len;
	return p->call.bytes <= 0
		       ? 0
		       : tcp_stage_scatter(st, p->iov, p->of, (size_t)p->call.bytes, err);
}

static void receive_nowhere(struct tcp_stream *st, struct tcp_places *p)
{
	tr_conn_count(st->tc->conn)->syscalls++;
	do
		p->call.bytes = kv_fault(TCP_RECEIVE) ? (errno = ECONNRESET, -1)
						      : place_nowhere(st, p->bytes);
	while (p->call.bytes < 0 && errno == EINTR);
	p->call.error = errno;
}

bool place_receive_begin(struct tcp_stream *st, struct tcp_places *p, struct kv_error *err)
{
	struct tcp_in *in = &st->in;
	int ret = 0;

	p->n = 0;
	p->bytes = 0;
	p->nowhere = p->more = false;
	p->mem = NULL;
	p->call.bytes = -1; /* none, so far */
	p->call.error = EAGAIN;
	if (stage_runs(st->in_stage.stage))
		return false;
	if (in->left)
		ret = find_places(st, p, err);
	if (!ret && is_gpus(p))
		ret = receive_for_gpu(st, p, err);
	if (ret < 0)
		p->call.bytes = -2;
	if (ret || is_gpus(p)) {
		drop_region(p);
		return false;
	}
	p->payload = p->bytes;
	if (p->nowhere) {
		receive_nowhere(st, p);
		place_receive_end(st, p);
		return false;
	}
	if (p->payload == in->left)
		add_place(p, in->bytes + in->to, sizeof(in->bytes) - in->to, NULL);
	p->call = receive_call(st, p->iov, p->n);
	return true;
}

void place_receive_end(struct tcp_stream *st, struct tcp_places *p)
{
	size_t payload = p->payload, n = p->call.bytes > 0 ? (size_t)p->call.bytes : 0;

	drop_region(p);
	p->more = n == p->bytes;
	if (payload > n)
		payload = n;
	st->in.to += n - payload;
	placed(st, payload);
}
