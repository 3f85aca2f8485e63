/* SPDX-License-Identifier: Apache-2.0 */
/*
 * op.c -- an operation: begun, committed, cancelled, and the one place where it ends well
 *
 * A posted work request cannot be called back. A cancelled operation posts no more; a READ behind
 * its last WRITE on each lane (notify.c) shows when its bytes have landed, not only when the peer's
 * device has them: so after TR_CANCELLED nothing of it lands any more. If they are not at its
 * deadline, or if anything fails, the connection is broken (break.c).
 */
#include "base/clock.h"
#include "base/error.h"
#include "ib.h"

void ib_op_begin(struct tr_op *op)
{
	*ib_op_of(op) = (struct ib_op){ .busy = true, .began_ns = kv_now_ns() };
	ib_conn_of(op->conn)->busy++;
}

/*
 * What a failure or a broken connection leaves open is ended by tr_conn_lost, once the cause is
 * known.
 */
void ib_op_settle(struct ib_conn *c, struct tr_op *op)
{
	struct ib_op *state = ib_op_of(op);
	int done = op->kind == TR_WRITE ? TR_WRITTEN : TR_READ;

	if (!state->busy || state->in_flight || state->proof_due || state->failed)
		return;
	if (!state->committed && !(state->stopping && c->state == IB_LIVE))
		return;
	if (state->staged && ib_staged_holds(c, op))
		return;
	if (state->flushes && !ib_gpus_flush(c, state->lanes)) {
		state->failed = true;
		return;
	}
	state->busy = false;
	c->busy--;
	if (state->stopping)
		c->stopping--;
	/* Cancelled too late: everything was posted already and has succeeded. */
	tr_op_end(op, state->committed ? done : TR_CANCELLED);
}

/* The lanes of a notify: those that carried bytes, or one if there were none. */
static uint64_t notify_lanes(struct ib_conn *c, uint64_t lanes)
{
	if (lanes)
		return lanes;
	return c->lane[0].held ? 1 : UINT64_C(1) << ib_next_lane(c)->index;
}

int ib_op_commit(struct tr_op *op, unsigned int flags, uint64_t value, struct kv_error *err)
{
	struct ib_conn *c = ib_conn_of(op->conn);
	struct ib_op *state = ib_op_of(op);
	uint64_t lanes;
	int ret;

	if (c->state != IB_LIVE)
		return kv_error_copy(err, &c->end.cause);
	if (op->to_device && flags & TR_PROVEN)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "commit",
			       "a READ of the peer's memory proves nothing about a GPU's");
	ret = ib_post_rest(c, op, err);
	if (!ret && state->rest.len)
		return ib_again(c);
	if (!ret)
		ret = ib_staged_flush(c, op, err);
	if (ret)
		return ret;
	lanes = state->lanes;
	if (c->open && c->open->op == op && c->open->n)
		lanes |= UINT64_C(1) << c->open->lane->index;
	if (flags & TR_NOTIFY)
		lanes = notify_lanes(c, lanes);
	if (flags & (TR_NOTIFY | TR_PROVEN)) {
		if (!ib_notify_room(c, lanes))
			return ib_again(c);
		if (flags & TR_NOTIFY)
			ret = ib_notify_post(c, op, lanes, value, err);
		if (!ret && (flags & TR_PROVEN))
			ret = ib_proof_post(c, op, lanes, err);
		if (ret)
			return ret;
	}
	ret = ib_flush(c, err); /* what went with none of these */
	if (ret)
		return ret;
	state->committed = true;
	ib_op_settle(c, op); /* nothing was posted, or all of it is done */
	return 0;
}

/* Posts the READs that TR_CANCELLED waits for, as soon as there is room for them. */
static void prove(struct ib_conn *c, struct tr_op *op)
{
	struct ib_op *state = ib_op_of(op);

	if (!state->proof_due || c->state != IB_LIVE || !ib_proof_room(c, state->lanes))
		return;
	if (ib_proof_post(c, op, state->lanes, NULL))
		return; /* broke the connection, which ends the operation */
	state->proof_due = false;
}

void ib_op_cancel(struct tr_op *op, int64_t deadline_ns)
{
	struct ib_conn *c = ib_conn_of(op->conn);
	struct ib_op *state = ib_op_of(op);

	ib_flush(c, NULL); /* where it fails the connection breaks, and that ends the operation */
	state->stopping = true;
	state->deadline_ns = deadline_ns;
	state->rest.len = 0;
	/* What is committed is all posted: its end is what it would have been. */
	state->proof_due = !state->committed && state->lanes && op->kind == TR_WRITE;
	ib_staged_cancel(c, op);
	c->stopping++;
	prove(c, op);
	ib_op_settle(c, op);
}

/* Those that the peer has taken slots of, or answered reads of. */
void ib_op_settle_staged(struct ib_conn *c)
{
	c->staged_ends = false;
	for (unsigned int i = 0; i < tr_conn_ops(c->conn); i++)
		if (ib_op_at(c, i)->staged)
			ib_op_settle(c, tr_conn_op(c->conn, i));
}

/*
 * Goes on with cancelled operations; breaks the connection when one has not drained at its
 * deadline.
 */
void ib_op_stop_step(struct ib_conn *c)
{
	int64_t now = kv_now_ns();
	struct kv_error cause;

	for (unsigned int i = 0; i < tr_conn_ops(c->conn); i++) {
		const struct ib_op *state = ib_op_at(c, i);

		if (!state->busy || !state->stopping)
			continue;
		prove(c, tr_conn_op(c->conn, i));
		ib_op_settle(c, tr_conn_op(c->conn, i));
		if (!state->busy || now < state->deadline_ns)
			continue;
		kv_fail(&cause, KV_ERR_TIMEOUT, "cancel",
			"%u work requests of a cancelled operation were under way at its deadline",
			state->in_flight);
		cause.scope = KV_SCOPE_PEER;
		cause.in_doubt = 1;
		ib_name_peer(c, NULL, &cause);
		ib_break(c, &cause);
		return;
	}
}
