/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stop.c -- stopping: one operation, or the whole connection
 *
 * A posted work request cannot be called back. A cancelled operation posts no more; a READ behind
 * its last WRITE on each lane (notify.c) shows when its bytes have landed, not only when the peer's
 * device has them: so after TR_CANCELLED nothing of it lands any more. If they are not at its
 * deadline, or if anything fails, the connection is broken: every queue pair goes to the error
 * state, its requests are flushed and counted off, and only then, or after IB_BREAK_MS with the
 * queue pairs reset, do the operations end: from then on no device reads their memory. A fence goes
 * one step further and destroys the queue pairs, so that nothing of the peer's can land either; in
 * a call of its own, so that the ends of the operations are reported before it: Soft-RoCE destroys
 * a queue pair only when its packets have left, up to 50 s on a wire that stands still. No call
 * waits for that: verbs that may take long have a thread of their own (slow_verbs.c). To reset all
 * queue pairs would do and be quicker; but where that was done Soft-RoCE's kernel once complained
 * of a reference too few (Linux 6.1.192, between two guests, at the end of a connection in use).
 */
#include <errno.h>

#include "base/clock.h"
#include "base/error.h"
#include "ib.h"

static void to_error(struct ib_conn *c)
{
	for (int i = 0; i < c->lanes; i++) {
		struct ibv_qp_attr attr = { .qp_state = IBV_QPS_ERR };
		struct ib_lane *lane = &c->lane[i];

		lane->refuses = lane->qp && c->v->modify_qp(lane->qp, &attr, IBV_QP_STATE);
	}
}

void ib_break(struct ib_conn *c, const struct kv_error *cause)
{
	if (c->state != IB_LIVE)
		return;
	c->cause = *cause;
	c->state = IB_BREAKING;
	atomic_store(&c->cut, true);
	ib_slow_run(c, to_error); /* where it is being cut the same is done already */
}

/*
 * Not under the owner's lock: the thread that has it is in ibv_post_send, which returns when the
 * queue pair fails.
 */
void ib_cut(struct tr_conn *conn)
{
	struct ib_conn *c = ib_conn_of(conn);

	if (!atomic_exchange(&c->cut, true))
		ib_slow_start(c, to_error);
}

/* Its owner, back from there. */
void ib_cut_step(struct ib_conn *c)
{
	struct kv_error cause;

	kv_fail(&cause, KV_ERR_TIMEOUT, "post",
		"%s had not taken work requests long after their operation's deadline",
		c->path[0].rail->name);
	cause.scope = KV_SCOPE_PEER;
	cause.in_doubt = 1;
	ib_name_peer(c, c->path[0].rail, &cause);
	ib_break(c, &cause);
}

/*
 * For queue pairs that do not flush their requests: reset, they have none any more. Destroying them
 * would do the same, but may take long.
 */
static void reset(struct ib_conn *c)
{
	for (int i = 0; i < c->lanes; i++) {
		struct ibv_qp_attr attr = { .qp_state = IBV_QPS_RESET };
		struct ib_lane *lane = &c->lane[i];

		if (!ib_lane_drained(lane) && c->v->modify_qp(lane->qp, &attr, IBV_QP_STATE))
			ib_lane_destroy(lane);
	}
	c->reset = true;
}

/* Whether requests of the lane are under way that may yet be flushed. */
static bool flushes(const struct ib_lane *lane)
{
	return !ib_lane_drained(lane) && !lane->refuses && !lane->path->deaf &&
	       !atomic_load(&lane->path->rail->dead);
}

/* One step from IB_BREAKING to IB_DOWN. */
void ib_break_step(struct ib_conn *c)
{
	bool flushing = false, drained = true;

	if (c->state != IB_BREAKING || ib_slow_busy(c))
		return;
	if (!c->break_deadline_ns)
		c->break_deadline_ns = kv_deadline_ns(IB_BREAK_MS);
	for (int i = 0; i < c->lanes; i++) {
		flushing |= flushes(&c->lane[i]);
		drained &= ib_lane_drained(&c->lane[i]);
	}
	if (!drained && !c->reset) {
		if (flushing && kv_now_ns() < c->break_deadline_ns)
			return;
		if (!ib_slow_run(c, reset))
			return;
	}
	c->state = IB_DOWN;
	tr_conn_lost(c->conn, &c->cause);
}

/* Posts the READs that TR_CANCELLED waits for, as soon as there is room for them. */
static void prove(struct ib_conn *c, uint16_t index)
{
	struct ib_op *state = &c->op[index];

	if (!state->proof_due || c->state != IB_LIVE || !ib_proof_room(c, state->lanes))
		return;
	if (ib_proof_post(c, tr_conn_op(c->conn, index), state->lanes, NULL))
		return; /* broke the connection, which ends the operation */
	state->proof_due = false;
}

void ib_op_cancel(struct tr_op *op, int64_t deadline_ns)
{
	struct ib_conn *c = ib_conn_of(op->conn);
	struct ib_op *state = &c->op[op->index];

	state->stopping = true;
	state->deadline_ns = deadline_ns;
	state->rest.len = 0;
	/* What is committed is all posted: its end is what it would have been. */
	state->proof_due = !state->committed && state->lanes && op->kind == TR_WRITE;
	c->stopping++;
	prove(c, op->index);
	ib_op_settle(c, op->index);
}

/*
 * Goes on with cancelled operations; breaks the connection when one has not drained at its
 * deadline.
 */
void ib_stop_step(struct ib_conn *c)
{
	int64_t now = kv_now_ns();
	struct kv_error cause;

	for (int i = 0; i < TR_OPS_MAX; i++) {
		const struct ib_op *state = &c->op[i];

		if (!state->busy || !state->stopping)
			continue;
		prove(c, (uint16_t)i);
		if (now < state->deadline_ns)
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

/*
 * What was sent last, acknowledgements and a goodbye, would be lost with the queue pair: true while
 * such requests are under way, for IB_LINGER_MS at most. A peer that is gone answers none of them.
 */
static bool lingers(struct ib_conn *c, int64_t until_ns)
{
	if (c->state != IB_LIVE)
		return false;
	if (!c->linger_deadline_ns)
		c->linger_deadline_ns = kv_deadline_ns(IB_LINGER_MS);
	if (until_ns < c->linger_deadline_ns)
		c->linger_deadline_ns = until_ns;
	ib_poll(c);
	for (int i = 0; i < c->lanes && c->state == IB_LIVE; i++)
		if (c->lane[i].ctl_posted != c->lane[i].ctl_retired)
			return kv_now_ns() < c->linger_deadline_ns;
	return false;
}

int ib_fence(struct tr_conn *conn, int64_t linger_ns, struct kv_error *err)
{
	struct ib_conn *c = ib_conn_of(conn);

	(void)err;
	if (lingers(c, linger_ns))
		return TR_AGAIN;
	tr_conn_goodbye(conn); /* it may overtake what is still under way */
	ib_break(c, tr_conn_error(conn));
	if (c->state == IB_BREAKING) {
		ib_progress(conn);
		return TR_AGAIN;
	}
	if (ib_slow_busy(c) || (ib_has_lanes(c) && !ib_slow_run(c, ib_lanes_destroy)))
		return TR_AGAIN;
	return ib_has_lanes(c) ? TR_AGAIN : 0; /* the device refused: try again */
}
