/* SPDX-License-Identifier: Apache-2.0 */
/* kv_op.c -- an operation's slot, its stages and its one end */
#include "kv_op.h"
#include "kv_probe.h"
#include "kv_range.h"

#include <stdio.h>

static const char *const stage_names[] = {
	"not begun", "waits for a lease", "begin",     "post", "commit",
	"prove",     "digests",		  "in flight", "stop", "ended"
};

const char *kv_op_stage_name(int stage)
{
	return stage_names[stage];
}

/* ---------------------------------------------------------------- slots */

static struct kv_slot *slot_at(struct kv_peer *peer, uint64_t id)
{
	unsigned int i = kv_id_place(id);
	struct kv_slot *slot = i < peer->link->slots ? &peer->link->slot[i] : NULL;

	return slot && slot->generation == kv_id_serial(id) ? slot : NULL;
}

unsigned int kv_op_slot(const struct kv_op *op)
{
	return kv_id_place(op->id);
}

static void free_slot(struct kv_peer *peer, struct kv_slot *slot)
{
	slot->state = KV_SLOT_FREE;
	slot->op = NULL;
	peer->link->slots_used--;
	kv_waiter_wake(&peer->waiter);
}

void kv_op_collect(struct kv_op *op)
{
	struct kv_op **first = &op->peer->link->collected;

	op->after = *first;
	op->at = first;
	if (op->after)
		op->after->at = &op->after;
	*first = op;
}

void kv_op_uncollect(struct kv_op *op)
{
	if (!op->at)
		return;
	*op->at = op->after;
	if (op->after)
		op->after->at = op->at;
	op->at = NULL;
}

bool kv_op_slot_free(const struct kv_peer *peer)
{
	return peer->link->slots_used < KV_OPS_MAX;
}

static void op_count(struct kv_op *op)
{
	struct kv_engine *engine = op->engine;

	atomic_fetch_add(&op->cache->users, 1);
	kv_count(engine, in_flight, 1);
	KV_PROBE_OP(begin, op, op->bytes);
	KV_RANGE_START(op);
	if (op->kind == KV_OP_WRITE)
		kv_count(engine, writes, 1);
	else if (op->kind == KV_OP_READ)
		kv_count(engine, reads, 1);
	else if (op->kind == KV_OP_SEND)
		kv_count(engine, sends, 1);
	else
		kv_count(engine, recvs, 1);
}

static int find_slot(const struct kv_op *op, unsigned int *i_p, struct kv_error *err)
{
	struct kv_link *link = op->peer->link;
	struct kv_slot *slot;
	unsigned int i;

	for (i = 0; i < link->slots && link->slot[i].state != KV_SLOT_FREE; i++)
		;
	if (i == KV_OPS_MAX)
		return kv_peer_fail(op->peer, err, KV_ERR_BUSY, kv_op_name(op),
				    "%d operations are unfinished towards %s", KV_OPS_MAX,
				    op->peer->name);
	slot = kv_table_grow(link->slot, &link->slots, i + 1, sizeof(*slot));
	if (!slot)
		return kv_fail(err, KV_ERR_NOMEM, kv_op_name(op),
			       "cannot allocate more than %u operations towards %s", i,
			       op->peer->name);
	link->slot = slot;
	*i_p = i;
	return 0;
}

int kv_op_activate(struct kv_op *op, struct kv_error *err)
{
	struct kv_link *link;
	unsigned int i;
	int ret = kv_op_admit(op, err);

	if (!ret)
		ret = find_slot(op, &i, err);
	if (ret)
		return ret;
	link = op->peer->link;
	kv_op_uncollect(op);
	link->slot[i].state = KV_SLOT_BUSY;
	link->slot[i].op = op;
	link->slots_used++;
	op->id = kv_id(++link->slot[i].generation, i);
	kv_bit_set(link->busy, i);
	kv_bit_set(link->posting, i);
	op->stage = op->kind == KV_OP_SEND || op->early ? KV_STAGE_WAIT_GRANT : KV_STAGE_BEGIN;
	op_count(op);
	kv_peer_due(op->peer, op->deadline_ns);
	return 0;
}

/*
 * What becomes of the slot when its operation ends: an ACK may still come for it, or an ABORT must
 * be sent.
 */
static void leave_slot(struct kv_op *op, int code)
{
	struct kv_peer *peer = op->peer;
	struct kv_slot *slot = &peer->link->slot[kv_op_slot(op)];
	bool needs_abort = op->begun || (op->kind == KV_OP_SEND && op->grant);

	kv_bit_clear(peer->link->busy, kv_op_slot(op));
	kv_bit_clear(peer->link->posting, kv_op_slot(op));
	slot->op = NULL;
	slot->grant = op->grant;
	slot->layers = op->layers;
	slot->status = code;
	slot->send = op->kind == KV_OP_SEND;
	if (peer->state != KV_PEER_UP || op->acked || (op->kind == KV_OP_READ && !op->begun)) {
		free_slot(peer, slot);
	} else if (op->committed) {
		slot->state = KV_SLOT_UNACKED;
	} else if (needs_abort) {
		slot->state = KV_SLOT_ABORT;
		kv_bit_set(peer->link->aborts, kv_op_slot(op));
	} else {
		free_slot(peer, slot);
	}
}

bool kv_op_flush(struct kv_peer *peer)
{
	struct kv_link *link = peer->link;

	KV_EACH_BIT (link->aborts, i) {
		struct kv_slot *slot = &link->slot[i];
		struct kv_msg msg = { .type = KV_MSG_ABORT };

		msg.abort.op = kv_id(slot->generation, i);
		msg.abort.lease = slot->send ? slot->grant : 0;
		msg.abort.status = slot->status;
		if (kv_peer_send(peer, &msg))
			return false;
		kv_bit_clear(link->aborts, i);
		free_slot(peer, slot);
	}
	return true;
}

/* ---------------------------------------------------------------- the end */

static void count_times(const struct kv_op *op)
{
	struct kv_times *times = op->peer->timing->of[op->kind];
	int64_t now = kv_peer_now(op->peer);

	if (op->first_ns)
		kv_times_count(&times[KV_TIME_FIRST], op->first_ns - op->begun_ns);
	if (op->written_ns)
		kv_times_count(&times[KV_TIME_ACK], now - op->written_ns);
	kv_times_count(&times[KV_TIME_ALL], now - op->begun_ns);
}

static void count_end(struct kv_op *op, int code)
{
	struct kv_engine *engine = op->engine;

	atomic_fetch_sub(&op->cache->users, 1);
	kv_count(engine, in_flight, -1);
	kv_count_at(&engine->ended[op->kind][-code], 1);
	if (op->kind == KV_OP_READ && !code) {
		kv_count_at(&op->peer->traffic->blocks_read, op->n);
		kv_count_at(&op->peer->traffic->bytes_read, op->bytes);
	}
	KV_PROBE_OP(ended, op, code);
	KV_RANGE_STOP(op);
	if (kv_engine_times(engine) && !code)
		count_times(op);
}

/* Fills op->err from a cause, or from the code alone. */
static void op_set_error(struct kv_op *op, int code, const struct kv_error *cause)
{
	if (cause && cause->code) {
		kv_error_copy(&op->err, cause);
		if (cause->code !=
		    code) { /* the caller knows better what it means for this operation */
			op->err.code = code;
			op->err.scope = kv_error_scope(code);
		}
		snprintf(op->err.op, sizeof(op->err.op), "%s", kv_op_name(op));
		/* A failed system call does not know for which connection it was. */
		if (!op->err.peer[0])
			snprintf(op->err.peer, sizeof(op->err.peer), "%s", op->peer->address);
	} else {
		kv_peer_fail(op->peer, &op->err, code, kv_op_name(op), "%s", kv_error_text(code));
	}
	op->err.in_doubt = op->begun && op->kind != KV_OP_READ;
}

void kv_op_end(struct kv_op *op, int code, const struct kv_error *cause)
{
	struct kv_waiter *waiter = op->waiter;

	if (op->stage == KV_STAGE_ENDED)
		return;
	if (code) {
		op_set_error(op, code, cause);
		if (code != KV_ERR_CANCELLED)
			kv_engine_note(op->engine, &op->err);
	}
	if (op->id) {
		leave_slot(op, code);
		/* What is committed is settled by the receiver's acknowledgement. */
		if (op->grant && op->kind == KV_OP_SEND && !op->committed)
			kv_grant_settled(op->peer, op->grant, op->layers, code);
	}
	if (op->at)
		kv_waiter_wake(&op->peer->waiter); /* its caller may wait for a slot */
	kv_op_uncollect(op);
	if (op->stage != KV_STAGE_IDLE)
		count_end(op, code);
	op->stage = KV_STAGE_ENDED;
	op->result = code;
	kv_op_trim_ids(op);
	/* From here on the operation may be freed and used again. */
	if (atomic_exchange(&op->ended, KV_OP_ENDED) == KV_OP_LEFT)
		kv_op_give(op);
	else
		kv_waiter_wake(waiter);
}

void kv_op_receives(struct kv_op *op)
{
	kv_op_uncollect(op);
	op->stage = KV_STAGE_FLIGHT;
	op_count(op);
}

bool kv_op_leave(struct kv_op *op)
{
	int going = KV_OP_GOING;

	atomic_store(&op->ids_gone, true);
	return atomic_compare_exchange_strong(&op->ended, &going, KV_OP_LEFT);
}

static void finish_acked(struct kv_op *op)
{
	struct kv_error err;
	int status = op->ack_status;

	if (!status) {
		kv_op_end(op, 0, NULL);
		return;
	}
	/* A status that this version does not know is not a success. */
	if (status > 0 || !kv_error_is_known(status))
		status = KV_ERR_PROTOCOL;
	if (op->wrong) {
		kv_op_end(op, status, &op->err);
		return;
	}
	kv_peer_fail(op->peer, &err, status, kv_op_name(op), "the receiver refused the commit: %s",
		     kv_error_text(status));
	kv_op_end(op, status, &err);
}

/* The transport is done with a stopped operation: nothing of it can land any more. */
static void stopped(struct kv_op *op)
{
	if (op->acked)
		finish_acked(op);
	else
		kv_op_end(op, op->end_code, &op->err);
}

bool kv_op_begin_stop(struct kv_op *op, int code, const struct kv_error *cause)
{
	if (op->stage == KV_STAGE_ENDED || op->stage == KV_STAGE_STOP)
		return false;
	op_set_error(op, code, cause);
	op->end_code = code;
	op->stage = KV_STAGE_STOP;
	return true;
}

void kv_op_stop(struct kv_op *op, int code, int64_t stop_ns, const struct kv_error *cause)
{
	if (op->stage == KV_STAGE_IDLE) {
		kv_op_end(op, code, cause);
		return;
	}
	if (!kv_op_begin_stop(op, code, cause))
		return;
	kv_bit_clear(op->peer->link->posting, kv_op_slot(op));
	/* It fails only on a failing connection: then the transport ends the operation itself. */
	if (op->tr)
		tr_op_cancel(op->tr, stop_ns, NULL);
	else
		stopped(op);
}

int kv_op_late(const struct kv_op *op, struct kv_error *err)
{
	int code = KV_ERR_TIMEOUT;
	const char *missing =
		op->stage == KV_STAGE_WAIT_GRANT ? "no lease with this tag was opened"
		: op->stage == KV_STAGE_POST && op->peer->awaits && op->gate.context
			? "the GPU was not done with the blocks"
		: op->visible ? "the blocks are there, and the peer's queue of arrivals stayed full"
		: op->stage == KV_STAGE_FLIGHT && op->kind == KV_OP_RECV ? "not every layer arrived"
		: op->stage == KV_STAGE_FLIGHT && op->written ? "the peer did not acknowledge"
		: op->stage == KV_STAGE_FLIGHT		      ? "the blocks were not delivered"
							      : "the blocks were not all posted";

	if (op->stage == KV_STAGE_WAIT_GRANT && op->kind == KV_OP_WRITE) {
		code = KV_ERR_LEASE;
		missing = "the receiver did not say what the lease holds";
	}
	kv_peer_fail(op->peer, err, code, kv_op_name(op), "%s within %lld ms", missing,
		     (long long)op->timeout_ms);
	kv_error_hint(err, op->stage == KV_STAGE_WAIT_GRANT
				   ? "do both ends name the same tag and cache, or lease?"
			   : op->visible ? "its application has to take them (kv_poll_arrivals); "
					   "KVCACHE_ARRIVALS says there how many may wait"
					 : "kv_dump of both engines says what waits; timeout_ms or "
					   "KVCACHE_OP_TIMEOUT_MS gives it more time");
	return code;
}

void kv_op_timeout(struct kv_op *op)
{
	struct kv_error err;
	int code = kv_op_late(op, &err);

	kv_op_stop(op, code, kv_deadline_ns(KV_STOP_MS), &err);
}

void kv_op_revoked(struct kv_peer *peer, uint64_t grant)
{
	bool known = kv_grant_find(peer, grant);

	/* Operations that have not begun end now; they would be refused when they get a slot. */
	for (struct kv_op *op = peer->link->collected, *after; op; op = after) {
		after = op->after;
		if (op->grant == grant)
			kv_op_stop(op, KV_ERR_REVOKED, 0, NULL);
	}
	KV_EACH_BIT (peer->link->busy, i) {
		struct kv_op *op = peer->link->slot[i].op;

		/* What is committed already is decided by the receiver's acknowledgement. */
		if (known && op->grant == grant && !op->committed)
			kv_op_stop(op, KV_ERR_REVOKED, kv_deadline_ns(KV_STOP_MS), NULL);
	}
}

void kv_op_lost(struct kv_op *op)
{
	bool stopping = op->stage == KV_STAGE_STOP;

	op->tr = NULL;
	kv_op_end(op, stopping ? op->end_code : KV_ERR_PEER_LOST,
		  stopping ? &op->err : &op->peer->error);
}

/* ---------------------------------------------------------------- events */

static void raise_grade(struct kv_op *op, int grade)
{
	atomic_store(&op->grade, grade);
	kv_waiter_wake(op->waiter);
}

void kv_op_sent(struct kv_op *op)
{
	raise_grade(op, op->visible ? KV_VISIBLE : KV_SENT);
}

static void written(struct kv_op *op)
{
	op->written = true;
	KV_PROBE_OP(written, op, 0);
	if (kv_engine_times(op->engine))
		op->written_ns = kv_peer_now(op->peer);
	if (op->acked)
		finish_acked(op);
	else if (kv_op_is_proven(op))
		kv_op_end(op, 0, NULL); /* its bytes are visible */
	else if (op->stage != KV_STAGE_DIGEST)
		kv_op_sent(op);
}

/* The bytes are here: it ends, or its owner is asked whether they are the right ones. */
static void op_read(struct kv_op *op)
{
	if (!op->peer->link->checks) {
		kv_op_end(op, 0, NULL);
		return;
	}
	op->committed = false;
	op->stage = KV_STAGE_PROVE;
	kv_bit_set(op->peer->link->posting, kv_op_slot(op));
}

static void in_doubt(struct kv_op *op, const struct tr_event *event)
{
	struct kv_peer *peer = op->peer;

	atomic_store(&peer->failing, true);
	/* Why this end gave the peer up says more than that it did. */
	kv_op_end(op, event->status ? event->status : KV_ERR_IN_DOUBT,
		  peer->error.code ? &peer->error : event->cause);
}

void kv_op_event(struct kv_peer *peer, const struct tr_event *event)
{
	struct kv_slot *slot = slot_at(peer, event->user);
	struct kv_op *op = slot && slot->state == KV_SLOT_BUSY ? slot->op : NULL;

	if (!op) {
		kv_count(peer->engine, unknown_messages, 1);
		return;
	}
	op->tr = NULL;
	if (op->stage == KV_STAGE_STOP)
		stopped(op);
	else if (event->kind == TR_WRITTEN)
		written(op);
	else if (event->kind == TR_READ)
		op_read(op);
	else
		in_doubt(op, event);
}

static void take_ack(struct kv_op *op, int status)
{
	if (status == KV_ACK_VISIBLE) {
		op->visible = true;
		KV_PROBE_OP(visible, op, 0);
		if (op->written)
			raise_grade(op, KV_VISIBLE);
		return;
	}
	op->acked = true;
	KV_PROBE_OP(acked, op, status);
	op->ack_status = status;
	/*
	 * Now, not when the transport is done too: the receiver may use the lease's number again at
	 * once.
	 */
	if (op->kind == KV_OP_SEND)
		kv_grant_settled(op->peer, op->grant, op->layers, status);
	if (!op->tr)
		finish_acked(op);
}

int kv_op_acked(struct kv_peer *peer, const struct kv_ack *ack)
{
	struct kv_slot *slot = slot_at(peer, ack->op);
	struct kv_op *op = slot ? slot->op : NULL;

	if (slot && slot->state == KV_SLOT_UNACKED && ack->status == KV_ACK_VISIBLE)
		return 0; /* the operation has ended; the slot waits on */
	if (slot && slot->state == KV_SLOT_UNACKED) {
		if (slot->send)
			kv_grant_settled(peer, slot->grant, slot->layers, ack->status);
		free_slot(peer, slot);
	} else if (op && slot->state == KV_SLOT_BUSY && op->committed && !op->acked) {
		take_ack(op, ack->status);
	} else {
		return KV_ERR_PROTOCOL;
	}
	return 0;
}

int kv_op_wrong(struct kv_peer *peer, const struct kv_msg_wrong *wrong)
{
	struct kv_slot *slot = slot_at(peer, wrong->op);
	struct kv_op *op = slot ? slot->op : NULL;

	if (op && op->committed && !op->acked) {
		if (wrong->layer >= op->cache->geometry.layers ||
		    wrong->tensor >= op->cache->geometry.tensors || wrong->index >= op->n)
			return KV_ERR_PROTOCOL;
		op->wrong = true;
		kv_check_fail(peer, op->map, wrong, kv_op_name(op), &op->err);
	}
	return kv_op_acked(peer, &(struct kv_ack){ wrong->op, KV_ERR_CHECKSUM });
}

/* ---------------------------------------------------------------- answers to revokes */

/* Whether no operation that writes to the lease is with the transport. */
static bool grant_is_idle(const struct kv_peer *peer, uint64_t id)
{
	KV_EACH_BIT (peer->link->busy, i) {
		const struct kv_op *op = peer->link->slot[i].op;

		if (op->grant == id && op->tr)
			return false;
	}
	return true;
}

bool kv_op_answer_revokes(struct kv_peer *peer)
{
	struct kv_link *link = peer->link;
	bool left = false;

	if (!link->grant_work)
		return true;
	for (unsigned int i = 0; i < link->grants; i++) {
		struct kv_grant *grant = link->grant[i];
		struct kv_msg msg = { .type = KV_MSG_REVOKED };

		if (!grant || !grant->answer)
			continue;
		if (!grant_is_idle(peer, grant->answer)) {
			left = true;
			continue;
		}
		msg.id.lease = grant->answer;
		if (kv_peer_send(peer, &msg))
			return false;
		if (grant->live && grant->id == grant->answer)
			kv_grant_forget(peer, grant);
		grant->answer = 0;
	}
	link->grant_work = left;
	return true;
}
