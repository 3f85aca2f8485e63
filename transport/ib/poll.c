/* SPDX-License-Identifier: Apache-2.0 */
/*
 * poll.c -- completions: every status is looked at, room and credits come back, operations end
 *
 * Queue pairs complete in order, so the completion of a signalled request says that all before it
 * on its lane succeeded too. The first error on a connection is its root cause; the flush errors
 * that follow are consequences and only counted off. A completion whose wr_id does not name a
 * request that is under way belongs to another life: it is counted and ignored.
 */

#include "base/error.h"
#include "ib.h"

enum { QUIET = 2 }; /* ib_path.quiet */

/* The requests before number `end` are finished: post by post, not one by one. */
static void retire(struct ib_lane *lane, uint32_t end, bool failed)
{
	struct ib_conn *c = lane->c;

	while (lane->retired != end) {
		struct ib_slot slot = lane->slot[lane->slots_out & (c->ctx->sq_depth - 1)];
		uint32_t n = slot.end - lane->retired;
		struct tr_op *op;

		if (n > end - lane->retired)
			n = end - lane->retired;
		else
			lane->slots_out++;
		lane->retired += n;
		if (slot.kind == IB_KIND_NOTIFY || slot.kind > IB_KIND_ASK)
			lane->ctl_retired += n;
		if (slot.kind == IB_KIND_ASK)
			c->asking = false;
		if (slot.kind > IB_KIND_PROOF)
			continue;
		op = tr_conn_op(c->conn, slot.op);
		ib_op_of(op)->failed |= failed;
		ib_op_of(op)->in_flight -= n;
		ib_op_settle(c, op);
	}
}

/* The kind of a request that is under way, 0 if none has this number. */
static uint8_t kind_at(const struct ib_lane *lane, uint32_t number)
{
	uint32_t ahead = number - lane->retired, mask = lane->c->ctx->sq_depth - 1;
	uint32_t i = lane->slots_out;

	if (ahead >= lane->posted - lane->retired)
		return 0;
	while (ahead >= lane->slot[i & mask].end - lane->retired)
		i++;
	return lane->slot[i & mask].kind;
}

/* The lane whose request the completion ends, or NULL if it is none of this connection's life. */
static struct ib_lane *lane_of(struct ib_conn *c, const struct ibv_wc *wc)
{
	uint32_t number = IB_WR_NUMBER(wc->wr_id);
	uint8_t kind = IB_WR_KIND(wc->wr_id);
	struct ib_lane *lane;

	if (IB_WR_GENERATION(wc->wr_id) != c->generation || IB_WR_LANE(wc->wr_id) >= c->lanes)
		return NULL;
	lane = &c->lane[IB_WR_LANE(wc->wr_id)];
	if (!lane->qp || lane->qpn != wc->qp_num)
		return NULL;
	if (kind == IB_KIND_RECV)
		return number < IB_RECVS ? lane : NULL;
	return kind && kind_at(lane, number) == kind ? lane : NULL;
}

/*
 * The send and the receive queue are polled one after the other, so a flush error may be seen
 * before the error that caused it: until the connection is down a better cause replaces it.
 */
static void lane_failed(struct ib_lane *lane, const struct ibv_wc *wc)
{
	struct ib_conn *c = lane->c;
	bool flushed = wc->status == IBV_WC_WR_FLUSH_ERR;
	struct kv_error cause;
	int async;

	lane->failed = true;
	if (c->state != IB_LIVE && (flushed || !c->end.cause_is_flush))
		return;
	ib_async_drain(c->ctx, c->rails); /* is the port down? did the device say why? */
	async = atomic_load(&lane->async);
	if (flushed && async)
		ib_async_cause(lane, async - 1, &cause);
	else
		ib_wc_cause(lane, wc, &cause);
	if (c->state == IB_LIVE)
		ib_break(c, &cause);
	else
		c->end.cause = cause;
	c->end.cause_is_flush = flushed && !async;
}

static void sent(struct ib_lane *lane, const struct ibv_wc *wc)
{
	uint32_t number = IB_WR_NUMBER(wc->wr_id);
	bool failed = wc->status != IBV_WC_SUCCESS;

	retire(lane, failed ? number : number + 1, false);
	if (!failed)
		return;
	lane_failed(lane, wc);
	retire(lane, number + 1, true);
}

static void received(struct ib_lane *lane, const struct ibv_wc *wc)
{
	struct ib_conn *c = lane->c;
	uint32_t buffer = IB_WR_NUMBER(wc->wr_id);
	struct kv_error cause;

	if (wc->status != IBV_WC_SUCCESS)
		return lane_failed(lane, wc);
	if (wc->opcode == IBV_WC_RECV_RDMA_WITH_IMM)
		ib_notify_arrived(lane, wc);
	else
		ib_msg_arrived(lane, wc, buffer);
	if (c->state == IB_LIVE && ib_lane_post_recv(lane, buffer, &cause))
		ib_break(c, &cause);
}

static void poll_failed(struct ib_conn *c, struct ib_path *path)
{
	struct kv_error cause;

	path->deaf = true;
	kv_fail(&cause, KV_ERR_DEVICE, "poll", "ibv_poll_cq failed on %s", path->rail->name);
	cause.in_doubt = 1;
	ib_name_peer(c, path->rail, &cause);
	ib_break(c, &cause);
}

static int poll_queue(struct ib_conn *c, struct ib_path *path, struct ibv_cq *cq,
		      enum ib_wakes *wakes)
{
	struct ibv_wc wc[IB_POLL];
	int n = c->v->poll_cq(cq, IB_POLL, wc);

	if (n < 0) {
		poll_failed(c, path);
		return 0;
	}
	if (n)
		path->quiet = 0;
	if (n && *wakes == IB_WAKES_NEXT) {
		path->events++;
		*wakes = IB_WAKES_NOT;
	}
	for (int i = 0; i < n; i++) {
		struct ib_lane *lane = lane_of(c, &wc[i]);

		if (!lane)
			c->stale++;
		else if (IB_WR_KIND(wc[i].wr_id) == IB_KIND_RECV)
			received(lane, &wc[i]);
		else
			sent(lane, &wc[i]);
	}
	tr_conn_count(c->conn)->completions += (uint64_t)n;
	return n;
}

/* Takes what the queues hold, once around. */
int ib_poll(struct ib_conn *c)
{
	int did = 0;

	for (int p = 0; p < c->paths; p++) {
		struct ib_path *path = &c->path[p];

		/* Receives first: credits that they bring let the sends go on. */
		did += poll_queue(c, path, path->rcq, &path->wakes_r);
		did += poll_queue(c, path, path->scq, &path->wakes_s);
	}
	c->room |= did && c->refused;
	did += ib_inbox_deliver(c);
	if (c->staged_ends)
		ib_op_settle_staged(c);
	return did;
}

/*
 * Events of devices between completions: a dead device or queue pair may never complete anything.
 */
static void check_rails(struct ib_conn *c)
{
	struct kv_error cause;

	for (int i = 0; i < c->lanes && c->state == IB_LIVE; i++) {
		struct ib_lane *lane = &c->lane[i];
		int async = atomic_load(&lane->async);

		if (atomic_load_explicit(&lane->path->rail->dead, memory_order_relaxed))
			async = IBV_EVENT_DEVICE_FATAL + 1;
		else if (atomic_load_explicit(&c->cq_error, memory_order_relaxed))
			async = IBV_EVENT_CQ_ERR + 1;
		if (!async)
			continue;
		ib_async_cause(lane, async - 1, &cause);
		ib_break(c, &cause);
	}
}

int ib_progress(struct tr_conn *conn)
{
	struct ib_conn *c = ib_conn_of(conn);
	int did;

	if (c->state == IB_DOWN)
		return 0;
	if (c->state == IB_BREAKING && ib_slow_busy(c))
		return 1;
	if (atomic_load_explicit(&c->end.cut, memory_order_relaxed))
		ib_cut_step(c);
	if (ib_waits(c))
		ib_flush(c, NULL);
	did = ib_poll(c);
	if (c->staged)
		did += ib_staged_push(c) + ib_staged_runs(c);
	if (!did && ++c->idle % IB_ASYNC_EVERY == 0) {
		ib_async_drain(c->ctx, c->rails);
		check_rails(c);
	}
	if (c->state == IB_LIVE) {
		ib_credits_return(c);
		if (c->stopping)
			ib_op_stop_step(c);
	}
	if (c->state != IB_LIVE) {
		ib_break_step(c);
		return 1;
	}
	return did;
}

/*
 * Takes the events that must be there. One that comes later wakes a sleeper for nothing; who then
 * sleeps again and again, with nothing done between, looks whether there is any.
 */
static void take_cq_events(struct ib_conn *c, struct ib_path *path, bool sleeps)
{
	bool all = sleeps && path->quiet == QUIET;
	struct ibv_cq *cq;
	void *unused;

	if (sleeps && !all)
		path->quiet++;
	while (all || path->events) {
		tr_conn_count(c->conn)->syscalls++;
		if (c->v->get_cq_event(path->channel, &cq, &unused)) {
			if (sleeps)
				path->events = 0;
			return;
		}
		c->v->ack_cq_events(cq, 1);
		if (path->events)
			path->events--;
	}
}

/*
 * Somebody waits for what was sent: an operation, or who was refused because there was no room.
 * Else only an error of it wakes a sleeper: what acknowledges the peer's writes would wake a thread
 * each time for nothing. Where a device raises no event for that, as Soft-RoCE does not, the
 * receive requests, some of which are always there, are flushed after it, and wake.
 */
static bool awaits_sends(const struct ib_conn *c)
{
	return c->busy || c->refused || c->asking || c->staged;
}

static int ask_for_events(struct ib_conn *c, struct ib_path *path)
{
	bool next = awaits_sends(c) || path->wakes_s == IB_WAKES_NEXT;

	if (c->v->req_notify_cq(path->rcq, 0) || c->v->req_notify_cq(path->scq, !next))
		return -1;
	path->wakes_r = IB_WAKES_NEXT;
	path->wakes_s = next ? IB_WAKES_NEXT : IB_WAKES_ERROR;
	return 0;
}

/*
 * A completion between the last poll and the request for events would wake no thread: so ask first,
 * then poll once more. `sleeps`: the caller does. What devices report wakes it, too: ib_alarm.
 */
static int arm_queues(struct ib_conn *c, bool sleeps)
{
	if (c->state != IB_LIVE)
		return 1;
	if (ib_waits(c) || ib_staged_runs(c))
		return 1;
	if (c->room) {
		c->refused = c->room = false;
		return 1;
	}
	for (int p = 0; p < c->paths; p++) {
		struct ib_path *path = &c->path[p];

		take_cq_events(c, path, sleeps);
		if (ask_for_events(c, path))
			return 1;
	}
	check_rails(c);
	return ib_progress(c->conn) > 0;
}

int ib_arm(struct tr_conn *conn)
{
	return arm_queues(ib_conn_of(conn), true);
}

int ib_hand_over(struct tr_conn *conn)
{
	return arm_queues(ib_conn_of(conn), false);
}
