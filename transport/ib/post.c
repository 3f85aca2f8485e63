/* SPDX-License-Identifier: Apache-2.0 */
/*
 * post.c -- blocks and spans to work requests: the write path
 *
 * They become entries of a chain of prebuilt work requests, of which only address, length, key and
 * wr_id are patched. What continues the entry before it on both ends lengthens it; what continues
 * it only in the peer becomes the second pointer of the same work request. A chain goes to one
 * lane (turn.c) with one doorbell when it has IB_CHAIN requests or its share of the bytes
 * (IB_CHUNK; over several paths what makes all of them carry alike); the next chain goes to the
 * next lane. Each chain's last request is signalled: room comes back while others are under way.
 *
 * Room is counted (ib_lane_room), never learned from a failing post. When there is none what is
 * left is not accepted; the one span that was begun is kept in the operation (ib_op.rest) and
 * continued by the next call.
 *
 * Line order: a cut inside a span is made at a remote address that is a multiple of IB_LINE. With
 * TR_LINE_ORDER spans are not joined, so that a local slice boundary always finds the second entry
 * free.
 */
#include "base/error.h"
#include "ib.h"

enum { FINE = 32 }; /* chains of one call's bytes, where paths are not equally fast */

/* What the spans of one call have in common. */
struct pair {
	const struct ib_mr *mr;
	const struct ib_rmr *rmr;
	uint64_t laddr, raddr; /* where the regions begin */
	uint64_t most;	       /* bytes of a request, before its end is moved to a line, */
	uint64_t whole;	       /* and of a span that surely fits one */
	uint64_t full;	       /* a chain with so many bytes is posted */
};

static struct pair pair_of(const struct ib_conn *c, const struct tr_op *op,
			   const struct tr_mem *lmem, const struct tr_rmem *rmem)
{
	uint32_t share = ib_op_of(op)->share;
	struct pair pair = {
		.mr = tr_mem_handle(lmem, &tr_ib_provider),
		.rmr = rmem->priv,
		.laddr = (uint64_t)(uintptr_t)lmem->addr,
		.most = c->message < share ? c->message : share,
		/* the first request of a chain may be shorter by a part of a line */
		.full = share - (c->paths > 1 ? IB_LINE - 1 : 0),
	};

	pair.raddr = pair.rmr->addr;
	pair.whole = pair.most - IB_LINE;
	return pair;
}

struct piece {
	uint64_t laddr, raddr;
	uint64_t len;
};

/* What a call adds: spans, or blocks, which are spans only here. */
struct source {
	const struct tr_span *spans; /* NULL: */
	struct tr_blocks blocks;
	size_t n;
};

static struct tr_span span_at(const struct source *from, size_t i)
{
	return from->spans ? from->spans[i] : tr_block_span(&from->blocks, i);
}

/*
 * From i on what is one span, with blocks that lie behind each other on both sides: how many. No
 * more of them than fit into a request.
 */
static size_t join_blocks(const struct source *from, const struct pair *pair, size_t i,
			  struct tr_span *span)
{
	const struct tr_blocks *b = &from->blocks;
	size_t run = 1;

	*span = span_at(from, i);
	if (from->spans || b->local_stride != b->len || b->remote_stride != b->len)
		return run;
	while (i + run < from->n && span->len + b->len <= pair->most &&
	       b->local[i + run] == b->local[i + run - 1] + 1 &&
	       b->remote[i + run] == b->remote[i + run - 1] + 1) {
		span->len += b->len;
		run++;
	}
	return run;
}

static struct piece piece_of(const struct pair *pair, const struct tr_span *span)
{
	return (struct piece){ pair->laddr + span->local, pair->raddr + span->remote, span->len };
}

/* Where a key is good; all of a region that is one slice. */
struct slice {
	uint64_t from, len;
	uint32_t key;
};

struct slices {
	struct slice local, remote;
};

static uint64_t slice_of(uint64_t at, uint64_t slice_bytes, unsigned int shift)
{
	return shift ? at >> shift : at / slice_bytes;
}

static struct slices slices_of(const struct ib_chain *chain, const struct pair *pair,
			       const struct piece *piece)
{
	const struct ib_mr *mr = pair->mr;
	const struct ib_rmr *rmr = pair->rmr;
	uint64_t l = slice_of(piece->laddr - mr->first, mr->slice_bytes, mr->shift);
	uint64_t r = slice_of(piece->raddr - rmr->first, rmr->slice_bytes, rmr->shift);

	return (struct slices){
		.local = { mr->first + l * mr->slice_bytes, mr->slice_bytes,
			   mr->mr[chain->lane->path->rail_index * mr->slices + l]->lkey },
		.remote = { rmr->first + r * rmr->slice_bytes, rmr->slice_bytes,
			    rmr->rkey[chain->path * rmr->slices + r] },
	};
}

/* Bytes that a request which begins there may have: it ends at a line. */
static uint64_t request_limit(const struct pair *pair, uint64_t raddr)
{
	return pair->most - (raddr + pair->most) % IB_LINE;
}

/*
 * Appends the piece's beginning to the chain's last request if it continues it in the peer; returns
 * the bytes that fitted.
 */
static uint64_t extend(struct ib_chain *chain, const struct pair *pair, const struct piece *piece,
		       const struct slices *slices, uint64_t len)
{
	struct ibv_send_wr *wr;
	struct ibv_sge *sge;
	uint64_t limit;

	if (!chain->n || chain->end != piece->raddr)
		return 0;
	wr = &chain->request[chain->n - 1].wr;
	limit = request_limit(pair, wr->wr.rdma.remote_addr) + wr->wr.rdma.remote_addr - chain->end;
	if (wr->wr.rdma.rkey != slices->remote.key || (int64_t)limit <= 0)
		return 0;
	sge = &wr->sg_list[wr->num_sge - 1];
	if (sge->addr + sge->length != piece->laddr || sge->lkey != slices->local.key) {
		if (wr->num_sge == IB_SGES)
			return 0;
		sge = &wr->sg_list[wr->num_sge++];
		sge->addr = piece->laddr;
		sge->lkey = slices->local.key;
		sge->length = 0;
	}
	if (len > limit)
		len = limit;
	sge->length += (uint32_t)len;
	return len;
}

/* A request with all of the piece. */
static void fill_request(struct ib_request *r, uint64_t id, const struct piece *piece,
			 uint32_t lkey, uint32_t rkey)
{
	r->wr.wr_id = id;
	r->wr.num_sge = 1;
	r->wr.wr.rdma.remote_addr = piece->raddr;
	r->wr.wr.rdma.rkey = rkey;
	r->sge[0].addr = piece->laddr;
	r->sge[0].length = (uint32_t)piece->len;
	r->sge[0].lkey = lkey;
}

/* The request was filled apart from the others of its chain. */
static void compare_alike(struct ib_chain *chain, uint32_t i)
{
	const struct ib_request *r = &chain->request[i];
	struct ib_alike *a = &chain->alike;

	if (i < a->to && (r->wr.num_sge != 1 || r->sge[0].length != a->len ||
			  r->sge[0].lkey != a->lkey || r->wr.wr.rdma.rkey != a->rkey))
		a->to = i;
}

/* The next n requests get what all of them have; most have it from the chain's last use. */
static void make_alike(struct ib_chain *chain, uint32_t n, uint32_t len, uint32_t lkey,
		       uint32_t rkey)
{
	struct ib_alike *a = &chain->alike;

	if (a->len != len || a->lkey != lkey || a->rkey != rkey || chain->n < a->from ||
	    chain->n > a->to)
		*a = (struct ib_alike){ chain->n, chain->n, len, lkey, rkey };
	for (; a->to < chain->n + n; a->to++) {
		struct ib_request *r = &chain->request[a->to];

		r->wr.num_sge = 1;
		r->wr.wr.rdma.rkey = rkey;
		r->sge[0].length = len;
		r->sge[0].lkey = lkey;
	}
}

/*
 * The usual spans, all in the two slices of the chain's last request: each begins a request, and
 * all of it fits. Returns how many were put; the next one has no room, may continue the one before
 * it, or must be cut. What the chain counts is in variables of its own, because the compiler must
 * take each store into the chain for one that changes them.
 */
static size_t put_usual_spans(struct ib_chain *chain, const struct pair *pair,
			      const struct slices *slices, const struct tr_span *spans, size_t max)
{
	const struct pair p = *pair;
	const struct slices s = *slices;
	/* how far into its slice such a span may begin */
	uint64_t lroom = s.local.len - p.whole, rroom = s.remote.len - p.whole;
	uint64_t end = chain->end, bytes = chain->bytes, id = chain->id;
	uint32_t number = chain->number + chain->n;
	struct ib_request *r = &chain->request[chain->n];
	size_t i;

	if (s.local.len < p.whole || s.remote.len < p.whole)
		return 0;
	if (max > chain->room - chain->n)
		max = chain->room - chain->n;
	for (i = 0; i < max && bytes < p.full; i++) {
		struct piece piece = piece_of(&p, &spans[i]);

		if (piece.raddr == end || piece.len > p.whole ||
		    piece.laddr - s.local.from > lroom || piece.raddr - s.remote.from > rroom)
			break;
		fill_request(r++, id | number++, &piece, s.local.key, s.remote.key);
		bytes += piece.len;
		end = piece.raddr + piece.len;
	}
	if (chain->alike.to > chain->n)
		chain->alike.to = chain->n;
	chain->n += (uint32_t)i;
	chain->bytes = bytes;
	chain->end = end;
	return i;
}

/* How many blocks are in both slices; all of them where a region is one, as op.c has looked. */
static size_t count_inside(const struct pair *pair, const struct slices *s,
			   const struct tr_blocks *b, size_t max)
{
	size_t n = 0;

	if (pair->mr->slices == 1 && pair->rmr->slices == 1)
		return max;
	for (; n < max; n++) {
		struct tr_span span = tr_block_span(b, n);
		struct piece piece = piece_of(pair, &span);

		if (piece.laddr - s->local.from > s->local.len - b->len ||
		    piece.raddr - s->remote.from > s->remote.len - b->len)
			break;
	}
	return n;
}

/* The same of blocks: of each request only what names it and its two addresses is set. */
static size_t put_usual_blocks(struct ib_chain *chain, const struct pair *pair,
			       const struct slices *slices, const struct tr_blocks *blocks,
			       size_t max)
{
	const struct tr_blocks b = *blocks;
	const uint64_t lbase = pair->laddr + b.local_base, rbase = pair->raddr + b.remote_base;
	uint64_t end = chain->end, id = chain->id;
	uint64_t full = (pair->full + b.len - 1 - chain->bytes) / b.len;
	uint32_t number = chain->number + chain->n;
	struct ib_request *r = &chain->request[chain->n];
	size_t i;

	if (b.len > pair->whole || chain->bytes >= pair->full)
		return 0;
	if (max > chain->room - chain->n)
		max = chain->room - chain->n;
	max = count_inside(pair, slices, &b, max < full ? max : full);
	make_alike(chain, (uint32_t)max, (uint32_t)b.len, slices->local.key, slices->remote.key);
	for (i = 0; i < max; i++, r++) {
		uint64_t raddr = rbase + (uint64_t)b.remote[i] * b.remote_stride;

		if (raddr == end)
			break;
		r->wr.wr_id = id | number++;
		r->wr.wr.rdma.remote_addr = raddr;
		r->sge[0].addr = lbase + (uint64_t)b.local[i] * b.local_stride;
		end = raddr + b.len;
	}
	chain->n += (uint32_t)i;
	chain->bytes += i * b.len;
	chain->end = end;
	return i;
}

/* From the i-th on. */
static size_t put_whole(struct ib_chain *chain, const struct pair *pair,
			const struct slices *slices, const struct source *from, size_t i)
{
	struct tr_blocks rest = from->blocks;

	if (from->spans)
		return put_usual_spans(chain, pair, slices, &from->spans[i], from->n - i);
	rest.local += i;
	rest.remote += i;
	return put_usual_blocks(chain, pair, slices, &rest, from->n - i);
}

/*
 * Puts as much of the piece as there is room for into chains; advances it. `joins`: its beginning
 * may continue the request before it. 0: all of it, *slices_p is where its end is. TR_AGAIN: no
 * lane has room.
 */
static int put_piece(struct ib_conn *c, struct ib_chain *chain, const struct tr_op *op,
		     const struct pair *pair, struct piece *piece, bool joins,
		     struct slices *slices_p, struct kv_error *err)
{
	while (piece->len) {
		uint64_t len = piece->len, done = 0, lrun, rrun;
		int ret;

		if (!chain->lane && !ib_chain_begin(c, chain, op))
			return TR_AGAIN;
		*slices_p = slices_of(chain, pair, piece);
		lrun = slices_p->local.from + slices_p->local.len - piece->laddr;
		rrun = slices_p->remote.from + slices_p->remote.len - piece->raddr;
		len = len < lrun ? len : lrun;
		len = len < rrun ? len : rrun;
		if (joins)
			done = extend(chain, pair, piece, slices_p, len);
		if (!done && (chain->n == chain->room || chain->bytes >= pair->full)) {
			ret = ib_chain_ring(chain, NULL, 0, 0, err);
			if (ret)
				return ret;
			continue;
		}
		if (!done) {
			struct piece all = *piece;

			done = request_limit(pair, piece->raddr);
			all.len = done = len < done ? len : done;
			fill_request(&chain->request[chain->n],
				     chain->id | (chain->number + chain->n), &all,
				     slices_p->local.key, slices_p->remote.key);
			chain->n++;
			chain->end = piece->raddr;
		}
		compare_alike(chain, chain->n - 1);
		chain->bytes += done;
		chain->end += done;
		joins = true;
		piece->laddr += done;
		piece->raddr += done;
		piece->len -= done;
	}
	return 0;
}

/* The NIC of an end does not reach its part. */
static bool is_staged(const struct tr_mem *lmem, const struct tr_rmem *rmem)
{
	const struct ib_mr *mr = tr_mem_handle(lmem, &tr_ib_provider);
	const struct ib_rmr *rmr = rmem->priv;

	return !mr->slices || !rmr->slices;
}

static struct tr_span rest_of(const struct tr_span *span, const struct piece *piece)
{
	uint64_t done = span->len - piece->len;

	return (struct tr_span){ span->local + done, span->remote + done, piece->len };
}

/* Continues the span that was accepted in part. */
static int put_rest(struct ib_conn *c, struct ib_chain *chain, struct tr_op *op,
		    struct kv_error *err)
{
	struct ib_op *state = ib_op_of(op);
	struct slices slices;
	struct piece piece;
	struct pair pair;
	int ret;

	if (!state->rest.len)
		return 0;
	if (is_staged(state->lmem, state->rmem))
		return ib_staged_put(op, state->lmem, state->rmem, &state->rest, err);
	pair = pair_of(c, op, state->lmem, state->rmem);
	piece = piece_of(&pair, &state->rest);
	ret = put_piece(c, chain, op, &pair, &piece, false, &slices, err);
	state->rest = rest_of(&state->rest, &piece);
	return ret;
}

/* Rings for what is in the chain; a failure to put more comes first. */
static int chain_finish(struct ib_chain *chain, int ret, struct kv_error *err)
{
	int rung = 0;

	if (ret >= 0 && chain->lane)
		rung = ib_chain_ring(chain, NULL, 0, 0, err);
	ib_chain_forget(chain);
	return ret < 0 ? ret : rung;
}

static uint64_t bytes_of(const struct source *from)
{
	uint64_t bytes = 0;

	if (!from->spans)
		return from->n * from->blocks.len;
	for (size_t i = 0; i < from->n; i++)
		bytes += from->spans[i].len;
	return bytes;
}

/*
 * Bytes of a chain: IB_CHUNK, or less, so that all paths carry alike. Of few bytes fewer paths
 * carry IB_SHARE each or more: a path more is a notify more.
 */
static uint32_t share_of(const struct ib_conn *c, const struct tr_rmem *rmem,
			 const struct source *from)
{
	const struct ib_rmr *rmr = rmem->priv;
	uint64_t total, chains, share, paths = (uint64_t)c->paths, round = paths * c->chunk;

	if (paths == 1 || !from->n)
		return c->chunk;
	/*
	 * Cuts are made at the peer's lines: the first piece is shorter by what its line has before
	 * it.
	 */
	total = (rmr->addr + span_at(from, 0).remote) % IB_LINE + bytes_of(from);
	chains = total / IB_SHARE;
	if (c->uneven) /* small ones, or a slow path would carry as much of it as a fast one */
		chains = chains < FINE ? chains : FINE;
	else if (chains >= paths)
		chains = paths * ((total + round - 1) / round);
	share = chains ? (total + chains - 1) / chains : total;
	share = (share + IB_LINE - 1) / IB_LINE * IB_LINE;
	return share < c->chunk ? (uint32_t)share : c->chunk;
}

static long add_staged(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		       const struct source *from, struct kv_error *err)
{
	struct ib_conn *c = ib_conn_of(op->conn);
	struct ib_op *state = ib_op_of(op);
	int ret = ib_post_rest(c, op, err);
	size_t i = 0;

	if (!ret && state->rest.len)
		ret = TR_AGAIN;
	while (i < from->n && !ret) {
		struct tr_span span = span_at(from, i);
		uint64_t len = span.len;

		ret = ib_staged_put(op, lmem, rmem, &span, err);
		if (ret < 0 || span.len == len)
			break;
		i++;
		state->lmem = lmem;
		state->rmem = rmem;
		state->rest = span;
	}
	if (ret >= 0 && i < from->n)
		ib_again(c);
	return ret < 0 ? ret : (long)i;
}

static long add_source(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		       const struct source *from, struct kv_error *err)
{
	struct ib_conn *c = ib_conn_of(op->conn);
	struct ib_op *state = ib_op_of(op);
	struct ib_chain *chain = c->chain[op->kind];
	const struct ib_mr *mr = tr_mem_handle(lmem, &tr_ib_provider);
	struct slices slices;
	struct pair pair;
	size_t accepted = 0;
	int ret = 0;

	if (c->state != IB_LIVE)
		return kv_error_copy(err, &c->end.cause);
	if (is_staged(lmem, rmem))
		return add_staged(op, lmem, rmem, from, err);
	if (c->rails & ~atomic_load_explicit(&mr->have, memory_order_relaxed))
		return ib_mem_lacks(c, mr, err);
	if (lmem->flush && op->kind == TR_READ_OP) {
		ret = ib_gpu_add(c, lmem->flush, err);
		if (ret)
			return ret;
		state->flushes = true;
	}
	if (c->open && c->open->op != op)
		ret = ib_chain_ring(c->open, NULL, 0, 0, err);
	if (!ret)
		ret = put_rest(c, chain, op, err);
	if (!ret)
		state->share = share_of(c, rmem, from);
	pair = pair_of(c, op, lmem, rmem);
	while (accepted < from->n && !ret) {
		struct tr_span span;
		size_t run = join_blocks(from, &pair, accepted, &span);
		struct piece piece = piece_of(&pair, &span);

		ret = put_piece(c, chain, op, &pair, &piece, !c->line_order, &slices, err);
		if (ret < 0 || piece.len == span.len)
			break;
		accepted += run;
		if (piece.len) {
			state->lmem = lmem;
			state->rmem = rmem;
			state->rest = rest_of(&span, &piece);
		} else {
			accepted += put_whole(chain, &pair, &slices, from, accepted);
		}
	}
	if (ret || op->kind != TR_WRITE || chain->n == chain->room || chain->bytes >= pair.full)
		ret = chain_finish(chain, ret, err);
	if (ret >= 0 && accepted < from->n)
		ib_again(c);
	return ret < 0 ? ret : (long)accepted;
}

long ib_op_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
	       const struct tr_span *spans, size_t n, struct kv_error *err)
{
	struct source from = { .spans = spans, .n = n };

	return add_source(op, lmem, rmem, &from, err);
}

long ib_op_add_blocks(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
		      const struct tr_blocks *blocks, size_t n, struct kv_error *err)
{
	struct source from = { .blocks = *blocks, .n = n };

	return add_source(op, lmem, rmem, &from, err);
}

int ib_post_rest(struct ib_conn *c, struct tr_op *op, struct kv_error *err)
{
	struct ib_chain *chain = c->chain[op->kind];

	if (!ib_op_of(op)->rest.len)
		return 0;
	return chain_finish(chain, put_rest(c, chain, op, err), err);
}
