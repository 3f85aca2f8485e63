/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_group.c -- many operations to many peers: posted a piece of each in turn, waited for together
 */
#include "kv_api.h"

#include <stdlib.h>

/* A peer that another call holds is skipped, and tried again after this time. */
#define PATIENCE_NS (10 * KV_NS_PER_MS)

struct kv_group {
	struct kv_engine *engine;
	struct kv_op *first, **last;
	struct kv_waiter waiter;
	struct kv_group *next_left;
};

int kv_group_start(struct kv_engine *engine, struct kv_group **group_p, struct kv_error *err)
{
	struct kv_group *group;
	int ret = kv_engine_use(engine, "group_start", err);

	if (ret)
		return ret;
	if (!group_p)
		return kv_fail(err, KV_ERR_ARG, "group_start", "group_p is NULL");
	group = kv_fault(KV_GROUP_ALLOC) ? NULL : calloc(1, sizeof(*group));
	if (!group)
		return kv_fail(err, KV_ERR_NOMEM, "group_start", "cannot allocate a group");
	group->engine = engine;
	group->last = &group->first;
	*group_p = group;
	return 0;
}

int kv_group_add(struct kv_group *group, struct kv_op *op, struct kv_error *err)
{
	if (group->engine != op->engine)
		return kv_fail(err, KV_ERR_ARG, kv_op_name(op),
			       "group and peer belong to different engines");
	op->waiter = &group->waiter;
	*group->last = op;
	group->last = &op->next;
	atomic_store(&op->grouped, true);
	return 0;
}

/*
 * Claim held. Begins an operation that was only collected, if its checks still pass; without a free
 * slot it stays collected.
 */
static bool group_begin_op(struct kv_op *op, int64_t deadline_ns)
{
	struct kv_error err;
	int ret = kv_peer_usable(op->peer, kv_op_name(op), &err);

	if (kv_now_ns() >= deadline_ns)
		ret = kv_peer_fail(op->peer, &err, KV_ERR_TIMEOUT, kv_op_name(op),
				   "the group's deadline passed before a slot was free");
	if (!ret && op->kind != KV_OP_RECV && !kv_op_slot_free(op->peer))
		return false; /* its ids are not checked again each time */
	if (!ret) {
		op->begun_ns = kv_now_ns();
		op->deadline_ns = op->begun_ns + op->timeout_ms * KV_NS_PER_MS;
		if (op->deadline_ns > deadline_ns)
			op->deadline_ns = deadline_ns;
		ret = op->kind == KV_OP_RECV ? kv_recv_start(op, &err) : kv_op_activate(op, &err);
		if (ret == KV_ERR_BUSY)
			return false;
	}
	if (ret)
		kv_op_end(op, ret, &err);
	return true;
}

/*
 * One piece of every operation that is not done, until one was stuck in a device. Returns the
 * number of operations that are not done.
 */
static size_t round_of(struct kv_group *group, int64_t deadline_ns, int *moved_p,
		       int64_t *wake_ns_p)
{
	const struct kv_peer *busy = NULL;
	int64_t enough_ns = kv_deadline_ns(KV_STOP_MS);
	size_t unfinished = 0;

	for (struct kv_op *op = group->first; op; op = op->next) {
		if (atomic_load(&op->ended))
			continue;
		if (kv_now_ns() >= enough_ns) {
			unfinished++;
			continue;
		}
		if (op->peer == busy ||
		    !kv_claim_until(&op->peer->claim, kv_now_ns() + PATIENCE_NS)) {
			if (kv_now_ns() >= deadline_ns)
				kv_claim_hurry(&op->peer->claim, deadline_ns);
			busy = op->peer;
			unfinished++;
			continue;
		}
		if (op->stage == KV_STAGE_IDLE)
			*moved_p += group_begin_op(op, deadline_ns);
		if (op->stage != KV_STAGE_IDLE && op->stage != KV_STAGE_ENDED)
			*moved_p += kv_peer_round(op->peer, true);
		if (op->stage != KV_STAGE_IDLE && op->stage < KV_STAGE_STOP &&
		    op->deadline_ns < *wake_ns_p)
			*wake_ns_p = op->deadline_ns;
		kv_peer_release(op->peer);
		unfinished += !atomic_load(&op->ended);
	}
	return unfinished;
}

static void stop_all(struct kv_group *group)
{
	for (struct kv_op *op = group->first; op; op = op->next) {
		if (!kv_claim_until(&op->peer->claim, kv_now_ns() + PATIENCE_NS))
			continue; /* tried again in the next round */
		kv_stop(op, KV_ERR_CANCELLED, kv_deadline_ns(KV_STOP_MS), NULL);
		kv_peer_release(op->peer);
	}
}

static void group_run(struct kv_group *group, int64_t deadline_ns)
{
	int64_t spin_until = 0, ask_ns = kv_deadline_ns(KV_ASK_MS);

	for (;;) {
		uint32_t seq = kv_waiter_enter(&group->waiter);
		int64_t wake_ns = kv_deadline_ns(KV_TICK_MS), now;
		int moved = 0;
		size_t unfinished = round_of(group, deadline_ns, &moved, &wake_ns);

		now = kv_now_ns();
		if (moved)
			spin_until = now + group->engine->spin_ns;
		if (unfinished && !moved && now >= spin_until)
			kv_service_sleep(group->engine, &group->waiter, seq,
					 ask_ns < wake_ns ? ask_ns : wake_ns, deadline_ns);
		kv_waiter_leave(&group->waiter);
		if (!unfinished || kv_now_ns() >= deadline_ns + KV_SLACK_MS * KV_NS_PER_MS)
			return;
		if (kv_engine_given_up(group->engine, &ask_ns)) {
			stop_all(group);
			deadline_ns = kv_now_ns() < deadline_ns ? kv_now_ns() : deadline_ns;
		}
	}
}

/* Takes the operation out of the group; returns how it ended. */
static int group_take_op(struct kv_op *op, bool *held_p, struct kv_error *err)
{
	/* The thread that ended it held the claim while it used our waiter. */
	if (kv_claim_until(&op->peer->claim, kv_now_ns() + PATIENCE_NS)) {
		op->waiter = &op->own_waiter;
		kv_peer_release(op->peer);
	} else {
		*held_p = true;
	}
	op->next = NULL;
	atomic_store(&op->grouped, false);
	if (atomic_load(&op->ended))
		return kv_op_result(op, err);
	atomic_store(&op->ids_gone, true);
	return kv_peer_fail(op->peer, err, KV_ERR_TIMEOUT, "group_end",
			    "a call on %s, or its device, does not return long after the deadline",
			    op->peer->name);
}

/* A thread may still wake the group's waiter: the group is freed with the engine. */
static void group_leave(struct kv_group *group)
{
	struct kv_engine *engine = group->engine;

	pthread_mutex_lock(&engine->pool_lock);
	group->next_left = engine->left_groups;
	engine->left_groups = group;
	pthread_mutex_unlock(&engine->pool_lock);
}

void kv_group_free_left(struct kv_engine *engine)
{
	while (engine->left_groups) {
		struct kv_group *group = engine->left_groups;

		engine->left_groups = group->next_left;
		free(group);
	}
}

int kv_group_end(struct kv_group *group, int64_t timeout_ms, size_t *failed_p, struct kv_error *err)
{
	size_t failed = 0;
	bool held = false;
	int64_t deadline;
	int ret;

	if (!group)
		return kv_fail(err, KV_ERR_ARG, "group_end", "group is NULL");
	ret = kv_engine_use(group->engine, "group_end", err);
	if (!ret)
		ret = kv_engine_deadline(timeout_ms, "group_end", &deadline, err);
	if (ret)
		return ret;
	group_run(group, deadline);
	for (struct kv_op *op = group->first, *next; op; op = next) {
		int result;

		next = op->next;
		result = group_take_op(op, &held, failed ? NULL : err);
		if (result && !failed++)
			ret = result;
	}
	if (failed_p)
		*failed_p = failed;
	if (held)
		group_leave(group);
	else
		free(group);
	return ret;
}
