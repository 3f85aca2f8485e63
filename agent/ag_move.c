/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ag_move.c -- transfers of one peer, in order: the first is posted, span by span; then it is in
 * flight, and its notification follows when its bytes are visible
 *
 * The notification is not sent together with the bytes: a transfer that is cancelled has none, and
 * with a read it could not be.
 */
#include <stdlib.h>

#include "ag.h"

void ag_xfers_init(struct ag_xfers *xfers)
{
	*xfers = (struct ag_xfers){ .last = &xfers->first };
}

void ag_xfers_add(struct ag_xfers *xfers, struct ag_xfer *xfer)
{
	xfer->next = NULL;
	*xfers->last = xfer;
	xfers->last = &xfer->next;
}

bool ag_xfers_remove(struct ag_xfers *xfers, struct ag_xfer *xfer)
{
	struct ag_xfer **at = &xfers->first;

	while (*at && *at != xfer)
		at = &(*at)->next;
	if (!*at)
		return false;
	*at = xfer->next;
	if (!*at)
		xfers->last = at;
	return true;
}

/* ---------------------------------------------------------------- ends */

/* It stands in no list any more. After this its owner may free it. */
static void end_xfer(struct ag_peer *peer, struct ag_xfer *xfer)
{
	if (atomic_load(&xfer->cancel)) {
		atomic_fetch_sub(&peer->cancels, 1);
		if (!xfer->error.code)
			kv_fail(&xfer->error, KV_ERR_CANCELLED, "transfer", "it was released");
	}
	free(xfer->note);
	xfer->note = NULL;
	ag_metrics_ended(peer->agent, xfer);
	atomic_store(&xfer->stage, AG_DONE);
}

static void count_uses(const struct ag_xfer *xfer, bool begin)
{
	for (size_t i = 0; i < xfer->plan.runs; i++) {
		struct ag_run *run = &xfer->plan.run[i];

		run->rmem->uses += begin ? 1u : -1u;
		if (begin)
			atomic_fetch_add(&run->mem->uses, 1);
		else
			atomic_fetch_sub(&run->mem->uses, 1);
	}
}

/* The bytes are there, or never will be. */
static void bytes_ended(struct ag_peer *peer, struct ag_xfer *xfer)
{
	if (xfer->error.code || !xfer->note || atomic_load(&xfer->cancel)) {
		end_xfer(peer, xfer);
		return;
	}
	xfer->note->xfer = xfer;
	ag_records_add(&peer->out, xfer->note);
	xfer->note = NULL;
	atomic_store(&xfer->stage, AG_NOTING);
}

void ag_move_event(struct ag_peer *peer, const struct tr_event *event)
{
	struct ag_xfer *xfer = (struct ag_xfer *)(uintptr_t)event->user;

	if (!ag_xfers_remove(&peer->flight, xfer))
		ag_xfers_remove(&peer->queue, xfer); /* the connection ended in the middle */
	count_uses(xfer, false);
	xfer->op = NULL;
	xfer->in_doubt = event->kind == TR_IN_DOUBT;
	if (xfer->in_doubt)
		kv_error_copy(&xfer->error, event->cause);
	else if (event->kind == TR_CANCELLED && !xfer->error.code)
		kv_fail(&xfer->error, KV_ERR_CANCELLED, "transfer", "it was released");
	else if (event->kind != TR_CANCELLED && xfer->committed)
		xfer->error.code = 0; /* it was faster than what was to stop it */
	bytes_ended(peer, xfer);
}

void ag_move_sent(struct ag_peer *peer, struct ag_xfer *xfer)
{
	end_xfer(peer, xfer);
}

static void lose_xfers(struct ag_peer *peer, struct ag_xfers *xfers)
{
	struct ag_xfer *xfer = xfers->first, *next;

	for (; xfer; xfer = next) {
		next = xfer->next;
		if (xfer->op)
			continue; /* its event comes */
		ag_xfers_remove(xfers, xfer);
		xfer->error = peer->error;
		end_xfer(peer, xfer);
	}
}

void ag_move_lost(struct ag_peer *peer)
{
	struct ag_record *record;

	lose_xfers(peer, &peer->queue);
	lose_xfers(peer, &peer->flight);
	while ((record = peer->out.first)) {
		ag_records_remove(&peer->out, record);
		if (record->xfer) {
			record->xfer->error = peer->error;
			end_xfer(peer, record->xfer);
		}
		free(record);
	}
}

/* ---------------------------------------------------------------- stopping */

static void stop_op(struct ag_peer *peer, struct ag_xfer *xfer)
{
	if (xfer->stopping)
		return;
	xfer->stopping = true;
	/* Where it fails, the connection does, and the event comes with that. */
	tr_op_cancel(xfer->op, kv_deadline_ns(peer->agent->op_ms), NULL);
	if (ag_xfers_remove(&peer->queue, xfer))
		ag_xfers_add(&peer->flight, xfer);
	atomic_store(&xfer->stage, AG_FLIGHT);
}

static int stop_note(struct ag_peer *peer, struct ag_record *record)
{
	struct ag_xfer *xfer = record->xfer;

	if (!xfer || !atomic_load(&xfer->cancel) || record->begun)
		return 0;
	ag_records_remove(&peer->out, record);
	free(record);
	end_xfer(peer, xfer);
	return 1;
}

static int stop_cancelled(struct ag_peer *peer)
{
	struct ag_xfer *xfer, *next;
	int n = 0;

	for (xfer = peer->queue.first; xfer; xfer = next) {
		next = xfer->next;
		if (!atomic_load(&xfer->cancel))
			continue;
		n++;
		if (xfer->op) {
			stop_op(peer, xfer);
			continue;
		}
		ag_xfers_remove(&peer->queue, xfer);
		end_xfer(peer, xfer);
	}
	for (xfer = peer->flight.first; xfer; xfer = xfer->next)
		if (atomic_load(&xfer->cancel) && !xfer->stopping) {
			stop_op(peer, xfer);
			n++;
		}
	for (struct ag_record *record = peer->out.first, *after; record; record = after) {
		after = record->next;
		n += stop_note(peer, record);
	}
	return n;
}

static int region_gone(struct kv_error *err)
{
	return kv_fail(err, KV_ERR_REVOKED, "transfer", "the peer has withdrawn the region");
}

static bool uses_gone(const struct ag_xfer *xfer)
{
	for (size_t i = 0; i < xfer->plan.runs; i++)
		if (xfer->plan.run[i].rmem->state == AG_RMEM_GONE)
			return true;
	return false;
}

void ag_move_revoke(struct ag_peer *peer)
{
	struct ag_xfer *xfer = peer->queue.first, *next;

	/* Of the queue the first alone may have an operation. */
	if (xfer && xfer->op && uses_gone(xfer)) {
		region_gone(&xfer->error);
		stop_op(peer, xfer);
	}
	for (xfer = peer->flight.first; xfer; xfer = next) {
		next = xfer->next;
		if (xfer->stopping || !uses_gone(xfer))
			continue;
		region_gone(&xfer->error);
		stop_op(peer, xfer);
	}
}

/* ---------------------------------------------------------------- posting */

enum step { STEP_ON, STEP_WAIT, STEP_STARVED };

/* Ends the first of the queue, which has no operation. */
static enum step refuse_first(struct ag_peer *peer, struct ag_xfer *xfer)
{
	ag_xfers_remove(&peer->queue, xfer);
	end_xfer(peer, xfer);
	return STEP_ON;
}

static int check_local(const struct ag_xfer *xfer, struct kv_error *err)
{
	for (size_t i = 0; i < xfer->plan.runs; i++)
		if (atomic_load(&xfer->plan.run[i].mem->withdrawn))
			return kv_fail(err, KV_ERR_CLOSED, "transfer",
				       "a local region was deregistered");
	return 0;
}

static enum step begin_xfer(struct ag_peer *peer, struct ag_xfer *xfer)
{
	for (size_t i = 0; i < xfer->plan.runs; i++) {
		int state = xfer->plan.run[i].rmem->state;

		if (state == AG_RMEM_GONE) {
			region_gone(&xfer->error);
			return refuse_first(peer, xfer);
		}
		if (state != AG_RMEM_KNOWN)
			return STEP_WAIT;
	}
	if (!xfer->plan.spans) {
		ag_xfers_remove(&peer->queue, xfer);
		bytes_ended(peer, xfer);
		return STEP_ON;
	}
	count_uses(xfer, true); /* before the look: ag_mem_dereg does the two the other way round */
	if (check_local(xfer, &xfer->error)) {
		count_uses(xfer, false);
		return refuse_first(peer, xfer);
	}
	if (tr_op_begin(peer->conn, xfer->kind == AG_READ ? TR_READ_OP : TR_WRITE, (uintptr_t)xfer,
			&xfer->op, NULL)) {
		count_uses(xfer, false); /* too many, or the connection fails, which is an event */
		return STEP_WAIT;
	}
	atomic_store(&xfer->stage, AG_POSTING);
	return STEP_ON;
}

/*
 * The next spans of the run that is posted: no more than `budget` bytes, the last one cut. The
 * first is what was offered last and not accepted: a part of that may be under way.
 */
static size_t next_spans(const struct ag_xfer *xfer, struct tr_span *span, uint64_t budget)
{
	const struct ag_run *run = &xfer->plan.run[xfer->at_run];
	uint64_t skip = xfer->at_byte, base = run->rmem->base;
	size_t n = 0;

	if (xfer->again > budget)
		return 0;
	for (size_t i = xfer->at_span; i < run->n && n < TR_SPANS_MOST && budget; i++) {
		const struct tr_span *s = &xfer->plan.span[run->first + i];
		uint64_t len = s->len - skip < budget ? s->len - skip : budget;

		if (!n && xfer->again)
			len = xfer->again;
		span[n++] = (struct tr_span){ s->local + skip, s->remote + skip - base, len };
		budget -= len;
		if (skip + len < s->len)
			break; /* cut: what follows is its rest */
		skip = 0;
	}
	return n;
}

/* `done` of those were accepted. Returns their bytes. */
static uint64_t advance_spans(struct ag_xfer *xfer, const struct tr_span *span, size_t done)
{
	const struct ag_run *run = &xfer->plan.run[xfer->at_run];
	uint64_t bytes = 0;

	for (size_t i = 0; i < done; i++) {
		bytes += span[i].len;
		xfer->at_byte += span[i].len;
		if (xfer->at_byte < xfer->plan.span[run->first + xfer->at_span].len)
			continue; /* the last one was cut */
		xfer->at_byte = 0;
		xfer->at_span++;
	}
	if (xfer->at_span == run->n) {
		xfer->at_span = 0;
		xfer->at_run++;
	}
	return bytes;
}

static enum step add_spans(struct ag_peer *peer, struct ag_xfer *xfer, uint64_t *budget)
{
	const struct ag_run *run = &xfer->plan.run[xfer->at_run];
	struct tr_span span[TR_SPANS_MOST];
	size_t n = next_spans(xfer, span, *budget);
	struct kv_error why;
	long done;

	if (!n)
		return STEP_STARVED;
	done = tr_op_add(xfer->op, run->mem->mem, run->rmem->rmem, span, n, &why);
	if (done < 0) {
		xfer->error = why;
		stop_op(peer, xfer);
		return STEP_ON;
	}
	*budget -= advance_spans(xfer, span, (size_t)done);
	xfer->again = (size_t)done < n ? span[done].len : 0;
	return done ? STEP_ON : STEP_WAIT;
}

static enum step commit_xfer(struct ag_peer *peer, struct ag_xfer *xfer)
{
	struct kv_error why;
	int ret = tr_op_commit(xfer->op, xfer->kind == AG_WRITE ? TR_PROVEN : 0, 0, &why);

	if (ret == TR_AGAIN)
		return STEP_WAIT;
	if (ret) {
		xfer->error = why;
		stop_op(peer, xfer);
		return STEP_ON;
	}
	xfer->committed = true;
	ag_xfers_remove(&peer->queue, xfer);
	ag_xfers_add(&peer->flight, xfer);
	atomic_store(&xfer->stage, AG_FLIGHT);
	return STEP_ON;
}

int ag_move(struct ag_peer *peer, uint64_t *budget, bool *starved_p)
{
	enum step step = STEP_ON;
	struct ag_xfer *xfer;
	int n = atomic_load(&peer->cancels) ? stop_cancelled(peer) : 0;

	while (step == STEP_ON && (xfer = peer->queue.first)) {
		if (!xfer->op)
			step = begin_xfer(peer, xfer);
		else if (xfer->at_run < xfer->plan.runs)
			step = add_spans(peer, xfer, budget);
		else
			step = commit_xfer(peer, xfer);
		n += step == STEP_ON;
	}
	*starved_p = step == STEP_STARVED;
	return n;
}
