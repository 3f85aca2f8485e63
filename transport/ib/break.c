/* SPDX-License-Identifier: Apache-2.0 */
/*
 * break.c -- a connection that has failed, or is given up: nothing of it stays under way
 *
 * Every queue pair goes to the error state, its requests are flushed and counted off, and only
 * then, or after IB_BREAK_MS with the queue pairs reset, do the operations end: from then on no
 * device reads their memory.
 */
#include "base/clock.h"
#include "base/error.h"
#include "ib.h"

/* First the lane that its owner may be in a post of: each of them may take a device long. */
static void to_error(struct ib_conn *c)
{
	int first = atomic_load(&c->posting);

	for (int i = 0; i < c->lanes; i++) {
		struct ibv_qp_attr attr = { .qp_state = IBV_QPS_ERR };
		struct ib_lane *lane = &c->lane[(first + i) % c->lanes];

		lane->refuses = lane->qp && c->v->modify_qp(lane->qp, &attr, IBV_QP_STATE);
	}
}

void ib_break(struct ib_conn *c, const struct kv_error *cause)
{
	if (c->state != IB_LIVE)
		return;
	c->end.cause = *cause;
	c->state = IB_BREAKING;
	if (c->open)
		c->open->lane = NULL;
	c->open = NULL; /* of the rest nothing is posted any more */
	c->lane[0].held = false;
	atomic_store(&c->end.cut, true);
	ib_slow_run(c, to_error); /* where it is being cut the same is done already */
}

/*
 * Not under the owner's lock: the thread that has it is in ibv_post_send, which returns when the
 * queue pair fails.
 */
void ib_cut(struct tr_conn *conn)
{
	struct ib_conn *c = ib_conn_of(conn);

	if (!atomic_exchange(&c->end.cut, true) && !ib_slow_start(c, to_error))
		atomic_store(&c->end.cut, false); /* who asked for it will ask again */
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
	c->end.reset = true;
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
	if (!c->end.break_deadline_ns)
		c->end.break_deadline_ns = kv_deadline_ns(IB_BREAK_MS);
	for (int i = 0; i < c->lanes; i++) {
		flushing |= flushes(&c->lane[i]);
		drained &= ib_lane_drained(&c->lane[i]);
	}
	if (!drained && !c->end.reset) {
		if (flushing && kv_now_ns() < c->end.break_deadline_ns)
			return;
		if (!ib_slow_run(c, reset))
			return;
	}
	ib_staged_stop(c);
	c->state = IB_DOWN;
	tr_conn_lost(c->conn, &c->end.cause);
}
