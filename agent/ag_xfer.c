/* SPDX-License-Identifier: Apache-2.0 */
/* ag_xfer.c -- what agent.h declares of transfers and of notifications that go out */
#include <sched.h>
#include <stdlib.h>

#include "ag.h"

/* ---------------------------------------------------------------- prepared and freed */

static void hold_regions(const struct ag_plan *plan)
{
	for (size_t i = 0; i < plan->runs; i++) {
		atomic_fetch_add(&plan->run[i].mem->refs, 1);
		atomic_fetch_add(&plan->run[i].rmem->refs, 1);
	}
}

static void free_xfer(struct ag_xfer *xfer)
{
	for (size_t i = 0; i < xfer->plan.runs; i++) {
		ag_mem_put(xfer->plan.run[i].mem);
		ag_rmem_put(xfer->plan.run[i].rmem);
	}
	ag_plan_free(&xfer->plan);
	ag_peer_put(xfer->peer);
	free(xfer);
}

static int check_regions(const struct ag_agent *agent, const struct ag_peer *peer,
			 const struct ag_pair *pairs, size_t n, struct kv_error *err)
{
	for (size_t i = 0; i < n; i++)
		if (!pairs[i].mem || !pairs[i].rmem || pairs[i].mem->agent != agent ||
		    pairs[i].rmem->peer != peer) {
			kv_fail(err, KV_ERR_ARG, "prepare",
				"pair %zu names a region of another agent, or of another life of %.200s",
				i, peer->name);
			if (err)
				err->block_index = (int64_t)i;
			return KV_ERR_ARG;
		}
	return 0;
}

int ag_xfer_prepare(struct ag_agent *agent, const char *name, int kind, const struct ag_pair *pairs,
		    size_t n, struct ag_xfer **xfer_p, struct kv_error *err)
{
	struct ag_xfer *xfer;
	struct ag_peer *peer;
	int ret;

	if (kind != AG_WRITE && kind != AG_READ)
		return kv_fail(err, KV_ERR_ARG, "prepare", "kind %d is not one of a transfer",
			       kind);
	peer = ag_peer_get(agent, name, "prepare", err);
	if (!peer)
		return KV_ERR_ARG;
	ret = check_regions(agent, peer, pairs, n, err);
	xfer = ret ? NULL : calloc(1, sizeof(*xfer));
	if (!ret && !xfer)
		ret = kv_fail(err, KV_ERR_NOMEM, "prepare", "cannot allocate a transfer");
	if (!ret)
		ret = ag_plan_make(&xfer->plan, pairs, n, err);
	if (ret) {
		free(xfer);
		ag_peer_put(peer);
		return ret;
	}
	xfer->peer = peer;
	xfer->kind = kind;
	hold_regions(&xfer->plan);
	*xfer_p = xfer;
	return 0;
}

static bool is_under_way(const struct ag_xfer *xfer)
{
	int stage = atomic_load(&xfer->stage);

	return stage != AG_IDLE && stage != AG_DONE;
}

int ag_xfer_release(struct ag_xfer *xfer)
{
	struct ag_peer *peer = xfer->peer;

	if (is_under_way(xfer)) {
		if (!atomic_exchange(&xfer->cancel, true)) {
			atomic_fetch_add(&peer->cancels, 1);
			ag_try_drive(peer, 0, true);
		} else {
			ag_try_drive(peer, 0, false);
		}
	}
	if (is_under_way(xfer) || (xfer->in_doubt && !atomic_load(&peer->fenced)))
		return AG_AGAIN;
	free_xfer(xfer);
	return 0;
}

/* ---------------------------------------------------------------- posted and watched */

/* What is large the service thread moves whole. */
static uint64_t callers_budget(const struct ag_xfer *xfer)
{
	return xfer->plan.bytes <= AG_CALLER_BYTES ? AG_CALLER_BYTES : 0;
}

/*
 * While the service thread moves it, a caller who asks moves a piece beside it, and does not take
 * the lock for which that thread comes at once. Where all depends on other threads, this agent's or
 * the peer's, the caller makes way for them: the scheduler would let one that has to have this
 * processor wait until its next tick, for milliseconds.
 */
static void help_on(struct ag_xfer *xfer)
{
	struct ag_peer *peer = xfer->peer;

	if (tr_help(peer->agent->tr, AG_CALLER_BYTES))
		return;
	if (atomic_load(&peer->served) || !ag_try_drive(peer, callers_budget(xfer), false) ||
	    atomic_load(&xfer->stage) == AG_WAITING)
		sched_yield();
}

int ag_xfer_check(struct ag_xfer *xfer, struct kv_error *err)
{
	if (atomic_load(&xfer->stage) == AG_IDLE)
		return kv_fail(err, KV_ERR_ARG, "check", "the transfer was never posted");
	if (is_under_way(xfer))
		help_on(xfer);
	if (is_under_way(xfer))
		return AG_AGAIN;
	return xfer->error.code ? kv_error_copy(err, &xfer->error) : 0;
}

static int check_length(size_t len, struct kv_error *err)
{
	return len > AG_NOTIFY_MAX
		       ? kv_fail(err, KV_ERR_ARG, "notify",
				 "a notification of %zu bytes has more than %d", len, AG_NOTIFY_MAX)
		       : 0;
}

/* Not at a peer that is lost: nobody would take it. */
static int leave_xfer(struct ag_xfer *xfer, struct kv_error *err)
{
	struct ag_peer *peer = xfer->peer;
	int ret;

	pthread_mutex_lock(&peer->inbox);
	ret = ag_peer_gone(peer, err);
	if (!ret) {
		xfer->posted_ns = kv_now_ns();
		ag_metrics_begun(peer->agent);
		atomic_store(&xfer->stage, AG_WAITING);
		ag_xfers_add(&peer->posted, xfer);
	}
	pthread_mutex_unlock(&peer->inbox);
	return ret;
}

int ag_xfer_post(struct ag_xfer *xfer, const void *note, size_t note_len, struct kv_error *err)
{
	struct ag_peer *peer = xfer->peer;
	int ret = 0;

	if (is_under_way(xfer))
		return kv_fail(err, KV_ERR_BUSY, "post", "the transfer is under way");
	if (note)
		ret = check_length(note_len, err);
	if (ret)
		return ret;
	xfer->note = note ? ag_record_new(AG_NOTE, note, note_len, err) : NULL;
	if (note && !xfer->note)
		return KV_ERR_NOMEM;
	kv_error_clear(&xfer->error);
	xfer->op = NULL;
	xfer->stopping = xfer->committed = xfer->in_doubt = false;
	xfer->at_run = xfer->at_span = 0;
	xfer->at_byte = xfer->again = 0;
	ret = leave_xfer(xfer, err);
	if (ret) {
		free(xfer->note);
		xfer->note = NULL;
		return ret;
	}
	if (callers_budget(xfer) || atomic_load(&peer->state) == AG_CONNECTING) {
		ag_try_drive(peer, callers_budget(xfer), true);
	} else {
		atomic_store(&peer->served, true);
		ag_kick(peer);
	}
	if (is_under_way(xfer))
		return AG_AGAIN;
	return xfer->error.code ? kv_error_copy(err, &xfer->error) : 0;
}

/* ---------------------------------------------------------------- notifications */

int ag_notify(struct ag_agent *agent, const char *name, const void *note, size_t len,
	      struct kv_error *err)
{
	struct ag_record *record;
	struct ag_peer *peer;
	int ret = check_length(len, err);

	if (ret)
		return ret;
	peer = ag_peer_get(agent, name, "notify", err);
	if (!peer)
		return KV_ERR_ARG;
	record = ag_record_new(AG_NOTE, note, len, err);
	if (!record) {
		ag_peer_put(peer);
		return KV_ERR_NOMEM;
	}
	pthread_mutex_lock(&peer->inbox);
	ret = ag_peer_gone(peer, err);
	if (!ret && peer->said.bytes + len > AG_NOTIFY_QUEUE)
		ret = kv_fail(err, KV_ERR_BUSY, "notify",
			      "more than %d bytes of notifications wait for %.200s",
			      AG_NOTIFY_QUEUE, name);
	if (!ret)
		ag_records_add(&peer->said, record);
	pthread_mutex_unlock(&peer->inbox);
	if (ret)
		free(record);
	else
		ag_try_drive(peer, 0, true);
	ag_peer_put(peer);
	return ret;
}

size_t ag_notes(struct ag_agent *agent, ag_take_note take, void *arg)
{
	bool was_full = ag_note_full(agent);
	size_t n = ag_note_give(agent, take, arg);

	if (!n) {
		ag_try_hear(agent);
		n = ag_note_give(agent, take, arg);
	}
	if (was_full)
		ag_kick_all(agent, true);
	return n;
}
