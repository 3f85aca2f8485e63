/* SPDX-License-Identifier: Apache-2.0 */
/*
 * stop.c -- fence and close: after a fence nothing lands through the connection any more
 *
 * A fence goes one step further than break.c and destroys the queue pairs, so that nothing of the
 * peer's can land either; in a call of its own, so that the ends of the operations are reported
 * before it: Soft-RoCE destroys a queue pair only when its packets have left, up to 50 s on a wire
 * that stands still. No call waits for that: verbs that may take long have a thread of their own
 * (slow_verbs.c). To reset all queue pairs would do and be quicker; but where that was done
 * Soft-RoCE's kernel once complained of a reference too few (Linux 6.1.192, between two guests, at
 * the end of a connection in use).
 *
 * A connection that is closed with such a verb under way is left to that thread, and ib_left_close
 * waits for those before the device is closed. Until the thread has destroyed the queue pairs,
 * regions that they may reach stay registered (c->end.left).
 */
#include <poll.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "ib.h"

/*
 * What was sent last, acknowledgements and a goodbye, would be lost with the queue pair: true while
 * such requests are under way, for IB_LINGER_MS at most. A peer that is gone answers none of them.
 */
static bool lingers(struct ib_conn *c, int64_t until_ns)
{
	if (c->state != IB_LIVE)
		return false;
	if (!c->end.linger_deadline_ns)
		c->end.linger_deadline_ns = kv_deadline_ns(IB_LINGER_MS);
	if (until_ns < c->end.linger_deadline_ns)
		c->end.linger_deadline_ns = until_ns;
	ib_poll(c);
	for (int i = 0; i < c->lanes && c->state == IB_LIVE; i++)
		if (c->lane[i].ctl_posted != c->lane[i].ctl_retired)
			return kv_now_ns() < c->end.linger_deadline_ns;
	return false;
}

int ib_fence(struct tr_conn *conn, int64_t linger_ns, struct kv_error *err)
{
	struct ib_conn *c = ib_conn_of(conn);

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
	if (ib_has_lanes(c))
		return TR_AGAIN; /* the device refused: try again */
	if (!ib_staged_quit(c))	 /* they have had their time before: break.c */
		return kv_fail(err, KV_ERR_BUSY, "fence",
			       "a GPU's copy of what came from %s, or goes to it, does not end",
			       tr_conn_address(conn));
	ib_gpus_flush(c, UINT64_MAX); /* what it has accepted */
	return 0;
}

/* ---------------------------------------------------------------- close */

/*
 * A device that refuses is asked again, until the context is closed: its queue pairs may reach
 * regions that are BUSY as long. A call that has no thread for it waits IB_CLOSE_MS.
 */
static void destroy_lanes(struct ib_conn *c)
{
	int64_t end = kv_deadline_ns(IB_CLOSE_MS);

	ib_lanes_destroy(c);
	for (int ms = 1; ib_has_lanes(c) && (ib_slow_aside(c) || kv_now_ns() < end);) {
		poll(NULL, 0, ms);
		ms = ms < IB_AGAIN_MS ? 2 * ms : IB_AGAIN_MS;
		ib_lanes_destroy(c);
	}
}

/*
 * false: the device keeps a queue pair. Then what that may reach stays registered, and the rails
 * open.
 */
static bool free_parts(struct ib_conn *c)
{
	bool destroyed = ib_conn_mem_free(c);

	if (destroyed)
		ib_rails_let_go(c->ctx, c->uses);
	return destroyed;
}

/* In the thread that the connection was left to. Frees everything but *c, which it still uses. */
static void free_left(struct ib_conn *c)
{
	struct tr_left *left = c->end.left;

	destroy_lanes(c);
	if (free_parts(c))
		tr_left_done(left);
}

/* Frees the records of those whose thread has ended. true: there are others. */
static bool reap_conns(struct ib_ctx *ctx)
{
	struct ib_conn **at = &ctx->left;

	while (*at) {
		struct ib_conn *c = *at;

		if (ib_slow_busy(c)) {
			at = &c->end.next_left;
		} else {
			*at = c->end.next_left;
			free(c);
		}
	}
	return ctx->left;
}

/*
 * Leaves the connection to the job that is under way: true. Where there is no memory to remember
 * what its queue pairs may reach, this waits for the device instead.
 */
static bool leave(struct ib_conn *c)
{
	struct ib_ctx *ctx = c->ctx;
	bool left;

	if (!c->end.left)
		c->end.left = tr_conn_leave(c->conn);
	while (!c->end.left && ib_slow_busy(c))
		poll(NULL, 0, 1);
	pthread_mutex_lock(&ctx->left_lock);
	reap_conns(ctx);
	left = c->end.left && ib_slow_leave(c, free_left);
	if (left) {
		c->end.next_left = ctx->left;
		ctx->left = c;
	}
	pthread_mutex_unlock(&ctx->left_lock);
	return left;
}

void ib_conn_close(struct ib_conn *c)
{
	ib_gpus_forget(c);
	ib_staged_close(c);
	if (ib_slow_busy(c) && leave(c))
		return;
	if (ib_has_lanes(c) && !ib_slow_run(c, destroy_lanes) && leave(c))
		return;
	ib_slow_busy(c); /* joins a thread that has just ended */
	if (!free_parts(c)) {
		if (!c->end.left)
			c->end.left = tr_conn_leave(c->conn);
	} else if (c->end.left) {
		tr_left_done(c->end.left);
	}
	free(c);
}

bool ib_left_close(struct ib_ctx *ctx)
{
	int64_t deadline = kv_deadline_ns(IB_CLOSE_MS);

	while (reap_conns(ctx) || ib_late_busy(ctx)) {
		if (kv_now_ns() >= deadline)
			return false;
		poll(NULL, 0, 1);
	}
	return true;
}
