/* SPDX-License-Identifier: Apache-2.0 */
/*
 * post.c -- spans to work requests: the write path
 *
 * Spans become entries of a chain of prebuilt work requests, of which only address, length, key and
 * wr_id are patched. A span that continues the one before it on both ends lengthens its entry; one
 * that continues it only in the peer becomes the second entry of the same work request. A chain
 * goes to one lane with one doorbell when it has IB_CHAIN requests or its share of the bytes
 * (IB_CHUNK; over several paths what makes all of them carry alike); the next chain goes to the
 * next lane that has room, on the next path. Every IB_SIGNAL_EVERY-th request and each chain's last
 * one is signalled, so room comes back continuously.
 *
 * Room is counted here (ib_lane_room), never learned from a failing post. When there is none the
 * spans are not accepted; the one span that was begun is kept in the operation (ib_op.rest) and
 * continued by the next call.
 *
 * Line order: a cut inside a span is made at a remote address that is a multiple of IB_LINE. With
 * TR_LINE_ORDER spans are not joined, so that a local slice boundary always finds the second entry
 * free.
 */
#include "base/error.h"
#include "ib.h"

/* The lanes by turns: each path's first, then each path's second. */
struct ib_lane *ib_next_lane(struct ib_conn *c)
{
	uint32_t turn = c->turn, paths = (uint32_t)c->paths;

	c->turn = (turn + 1) % (uint32_t)c->lanes;
	return &c->lane[turn % paths * (uint32_t)c->lanes_per_path + turn / paths];
}

static struct ib_lane *lane_with_room(struct ib_conn *c, uint32_t *room_p)
{
	for (int i = 0; i < c->lanes; i++) {
		struct ib_lane *lane = ib_next_lane(c);

		*room_p = ib_lane_room(lane, IB_SQ_NOTIFY);
		if (*room_p)
			return lane;
	}
	return NULL;
}

/* The next lane with room of this path; NULL if there is none. */
static struct ib_lane *lane_of_path(struct ib_conn *c, struct ib_path *path, uint32_t *room_p)
{
	struct ib_lane *first = &c->lane[(path - c->path) * c->lanes_per_path];

	for (int i = 0; i < c->lanes_per_path; i++) {
		struct ib_lane *lane = &first[(path->turn + i) % c->lanes_per_path];

		*room_p = ib_lane_room(lane, IB_SQ_NOTIFY);
		if (*room_p)
			return lane;
	}
	return NULL;
}

/* Where paths are not equally fast: the one that has carried least for its speed. */
static struct ib_lane *lane_by_weight(struct ib_conn *c, uint32_t *room_p)
{
	struct ib_lane *best = NULL;

	for (int p = 0; p < c->paths; p++) {
		struct ib_path *path = &c->path[p];
		struct ib_lane *lane;
		uint32_t room;

		if (best && path->load >= best->path->load)
			continue;
		lane = lane_of_path(c, path, &room);
		if (!lane)
			continue;
		best = lane;
		*room_p = room;
	}
	if (best)
		best->path->turn = (uint16_t)((best->path->turn + 1) % c->lanes_per_path);
	return best;
}

/* Begins a chain on the next lane that has room: of one path, the lane that holds a message. */
static bool begin_chain(struct ib_conn *c, struct ib_chain *chain, const struct tr_op *op)
{
	struct ib_lane *lane;

	if (c->paths == 1 && c->lane[0].held)
		c->turn = 0;
	lane = c->uneven ? lane_by_weight(c, &chain->room) : lane_with_room(c, &chain->room);
	if (!lane)
		return false;
	if (chain->room > IB_CHAIN)
		chain->room = IB_CHAIN;
	chain->lane = lane;
	chain->op = op;
	c->open = chain;
	chain->path = (uint32_t)(lane->path - c->path);
	chain->id = IB_WR_ID(ib_kind_of(op), lane->index, c->generation, 0);
	chain->number = lane->posted + lane->held;
	chain->n = 0;
	chain->bytes = chain->end = 0;
	return true;
}

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

/*
 * The usual spans, all in the two slices of the chain's last request: each begins a request, and
 * all of it fits. Returns how many were put; the next one has no room, may continue the one before
 * it, or must be cut. What the chain counts is in variables of its own, because the compiler must
 * take each store into the chain for one that changes them.
 */
static size_t put_whole(struct ib_chain *chain, const struct pair *pair,
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
	chain->n += (uint32_t)i;
	chain->bytes = bytes;
	chain->end = end;
	return i;
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

		if (!chain->lane && !begin_chain(c, chain, op))
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
		chain->bytes += done;
		chain->end += done;
		joins = true;
		piece->laddr += done;
		piece->raddr += done;
		piece->len -= done;
	}
	return 0;
}

static struct tr_span rest_of(const struct tr_span *span, const struct piece *piece)
{
	uint64_t done = span->len - piece->len;

	return (struct tr_span){ span->local + done, span->remote + done, piece->len };
}

/* Continues the span that was accepted in part. */
static int put_rest(struct ib_conn *c, struct ib_chain *chain, const struct tr_op *op,
		    struct kv_error *err)
{
	struct ib_op *state = ib_op_of(op);
	struct slices slices;
	struct piece piece;
	struct pair pair;
	int ret;

	if (!state->rest.len)
		return 0;
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

/*
 * Bytes of a chain: IB_CHUNK, or less, so that all paths carry alike. Of few bytes fewer paths
 * carry IB_SHARE each or more: a path more is a notify more.
 */
static uint32_t share_of(const struct ib_conn *c, const struct tr_rmem *rmem,
			 const struct tr_span *spans, size_t n)
{
	const struct ib_rmr *rmr = rmem->priv;
	uint64_t total, chains, share, paths = (uint64_t)c->paths, round = paths * c->chunk;

	if (paths == 1 || !n)
		return c->chunk;
	/*
	 * Cuts are made at the peer's lines: the first piece is shorter by what its line has before
	 * it.
	 */
	total = (rmr->addr + spans[0].remote) % IB_LINE;
	for (size_t i = 0; i < n; i++)
		total += spans[i].len;
	chains = total / IB_SHARE;
	if (c->uneven) /* small ones, or a slow path would carry as much of it as a fast one */
		chains = chains < FINE ? chains : FINE;
	else if (chains >= paths)
		chains = paths * ((total + round - 1) / round);
	share = chains ? (total + chains - 1) / chains : total;
	share = (share + IB_LINE - 1) / IB_LINE * IB_LINE;
	return share < c->chunk ? (uint32_t)share : c->chunk;
}

long ib_op_add(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem,
	       const struct tr_span *spans, size_t n, struct kv_error *err)
{
	struct ib_conn *c = ib_conn_of(op->conn);
	struct ib_op *state = ib_op_of(op);
	struct ib_chain *chain = c->chain[op->kind];
	const struct ib_mr *mr = tr_mem_handle(lmem, &tr_ib_provider);
	struct slices slices;
	struct pair pair;
	long accepted = 0;
	int ret = 0;

	if (c->state != IB_LIVE)
		return kv_error_copy(err, &c->end.cause);
	if (c->rails & ~atomic_load_explicit(&mr->have, memory_order_relaxed))
		return ib_mem_lacks(c, mr, err);
	if (c->open && c->open->op != op)
		ret = ib_chain_ring(c->open, NULL, 0, 0, err);
	if (!ret)
		ret = put_rest(c, chain, op, err);
	if (!ret)
		state->share = share_of(c, rmem, spans, n);
	pair = pair_of(c, op, lmem, rmem);
	while ((size_t)accepted < n && !ret) {
		const struct tr_span *span = &spans[accepted];
		struct piece piece = piece_of(&pair, span);

		ret = put_piece(c, chain, op, &pair, &piece, !c->line_order, &slices, err);
		if (ret < 0 || piece.len == span->len)
			break;
		accepted++;
		if (piece.len) {
			state->lmem = lmem;
			state->rmem = rmem;
			state->rest = rest_of(span, &piece);
		} else {
			accepted += (long)put_whole(chain, &pair, &slices, &spans[accepted],
						    n - (size_t)accepted);
		}
	}
	if (ret || op->kind != TR_WRITE || chain->n == chain->room || chain->bytes >= pair.full)
		ret = chain_finish(chain, ret, err);
	if (ret >= 0 && (size_t)accepted < n)
		ib_again(c);
	return ret < 0 ? ret : accepted;
}

int ib_post_rest(struct ib_conn *c, const struct tr_op *op, struct kv_error *err)
{
	struct ib_chain *chain = c->chain[op->kind];

	if (!ib_op_of(op)->rest.len)
		return 0;
	return chain_finish(chain, put_rest(c, chain, op, err), err);
}
