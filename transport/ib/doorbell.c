/* SPDX-License-Identifier: Apache-2.0 */
/*
 * doorbell.c -- lists of work requests go to the device, as few of them as there can be
 *
 * A write's last chain stays open until the call that follows: more spans fill it, the notify goes
 * behind it, and a message that need not be seen before (BEGIN) before it, all by one doorbell.
 * What else is posted on the lane, or the next look at completions (ib_flush), takes it along. At
 * most one chain of a connection is open, and a message is held on the first lane only.
 */

#include "base/error.h"
#include "ib.h"

static int post_failed(struct ib_lane *lane, int why, struct kv_error *err)
{
	struct kv_error cause;

	kv_fail_errno(&cause, KV_ERR_DEVICE, why, "post", "ibv_post_send on qp 0x%x of %s",
		      lane->qpn, lane->path->rail->name);
	cause.qp_num = lane->qpn;
	cause.in_doubt = 1;
	ib_name_peer(lane->c, lane->path->rail, &cause);
	ib_break(lane->c, &cause);
	return kv_error_copy(err, &cause);
}

/* The device has taken n requests of the lane. */
static void took(struct ib_lane *lane, uint32_t n, enum ib_kind kind, uint16_t op)
{
	struct ib_conn *c = lane->c;

	if (!n)
		return;
	lane->posted += n;
	lane->slot[lane->slots_in++ & (c->ctx->sq_depth - 1)] =
		(struct ib_slot){ .end = lane->posted, .op = op, .kind = (uint8_t)kind };
	if (kind <= IB_KIND_PROOF) {
		struct ib_op *state = ib_op_at(c, op);

		state->in_flight += n;
		state->lanes |= UINT64_C(1) << lane->index;
	}
	tr_conn_count(c->conn)->work_requests += n;
}

/*
 * A device may not return from it; then another thread breaks the connection, beginning with this
 * lane (break.c).
 */
static int post_list(struct ib_lane *lane, struct ibv_send_wr *wr, struct ibv_send_wr **bad_p)
{
	struct ibv_send_wr *held = lane->held ? &lane->c->held.wr : NULL;
	struct ib_conn *c = lane->c;
	int ret;

	tr_conn_count(c->conn)->doorbells++;
	atomic_store_explicit(&c->posting, lane->index, memory_order_relaxed);
	if (held)
		held->next = wr;
	ret = c->v->post_send(lane->qp, held ? held : wr, bad_p);
	lane->held = false;
	if (held && ret && (!*bad_p || *bad_p == held))
		*bad_p = NULL; /* nothing was taken */
	else if (held)
		took(lane, 1, IB_KIND_MSG, 0);
	return ret;
}

/* What the device has said; where it was got out of the call the next lane would hold it again. */
static int posted(struct ib_lane *lane, int ret, struct kv_error *err)
{
	struct ib_conn *c = lane->c;

	if (ret)
		return post_failed(lane, ret, err);
	if (!atomic_load_explicit(&c->end.cut, memory_order_relaxed))
		return 0;
	ib_cut_step(c);
	return kv_error_copy(err, &c->end.cause);
}

/* How many of its n requests a post took that ended at `bad`, perhaps behind them. */
static uint32_t taken_of(const struct ib_chain *chain, const struct ibv_send_wr *bad)
{
	for (uint32_t i = 0; bad && i < chain->n; i++)
		if (bad == &chain->request[i].wr)
			return i;
	return bad ? chain->n : 0;
}

void ib_chain_forget(struct ib_chain *chain)
{
	if (chain->lane)
		chain->lane->c->open = NULL;
	chain->lane = NULL;
}

int ib_chain_ring(struct ib_chain *chain, struct ibv_send_wr *more, enum ib_kind kind,
		  uint16_t more_op, struct kv_error *err)
{
	struct ib_lane *lane = chain->lane;
	struct ibv_send_wr *last, *bad = NULL;
	uint32_t n = chain->n;
	int ret;

	ib_chain_forget(chain);
	if (!n)
		return 0;
	lane->path->load += chain->bytes * IB_WEIGHT / lane->path->weight;
	last = &chain->request[n - 1].wr;
	last->next = more;
	if (!more)
		last->send_flags = IBV_SEND_SIGNALED;
	ret = post_list(lane, &chain->request[0].wr, &bad);
	last->next = n < IB_CHAIN ? &chain->request[n].wr : NULL;
	last->send_flags = 0;
	took(lane, ret ? taken_of(chain, bad) : n, ib_kind_of(chain->op), chain->op->index);
	took(lane, more && !ret, kind, more_op);
	return posted(lane, ret, err);
}

int ib_post_one(struct ib_lane *lane, struct ibv_send_wr *wr, enum ib_kind kind, uint16_t op,
		struct kv_error *err)
{
	struct ib_chain *open = lane->c->open;
	uint32_t before = lane->held;
	struct ibv_send_wr *bad = NULL;
	int ret;

	if (open && open->lane != lane)
		open = NULL;
	if (open)
		before += open->n;
	wr->wr_id = IB_WR_ID(kind, lane->index, lane->c->generation, lane->posted + before);
	wr->send_flags |= IBV_SEND_SIGNALED;
	if (open && open->n)
		return ib_chain_ring(open, wr, kind, op, err);
	ret = post_list(lane, wr, &bad);
	took(lane, !ret, kind, op);
	return posted(lane, ret, err);
}

int ib_flush(struct ib_conn *c, struct kv_error *err)
{
	struct ib_lane *first = &c->lane[0];
	struct ibv_send_wr *bad = NULL;
	int ret = 0;

	if (c->state != IB_LIVE)
		return 0;
	if (c->open)
		ret = ib_chain_ring(c->open, NULL, 0, 0, err);
	if (ret || !first->held)
		return ret;
	c->held.wr.send_flags |= IBV_SEND_SIGNALED;
	return posted(first, post_list(first, NULL, &bad), err);
}
