/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_progress.c -- one peer under its claim: what came in is dispatched, what waits is sent, and a
 * loss is followed to its end
 */
#include "kv_loop.h"
#include "kv_probe.h"

#include <string.h>

enum {
	ARM_ROUNDS = 4,
	/*
	 * A turn: the most that a peer which always has more events gets at a time. One more round
	 * may come on top: KV_EVENTS events and KV_PIECE_BYTES.
	 */
	TURN_ROUNDS = 64,
};
#define TURN_NS (KV_NS_PER_MS / 2)

/* ---------------------------------------------------------------- claim */

static int arm_peer(const struct kv_peer *peer, bool may_post)
{
	bool sleeps = !may_post || peer->engine->caller_mode; /* or hands over to who does */

	return sleeps ? tr_conn_arm(peer->conn) : tr_conn_hand_over(peer->conn);
}

/* Leaves the connection so that its next event reaches the service thread. */
void kv_peer_arm(struct kv_peer *peer, bool may_post, int *done_p)
{
	for (int i = 0; peer->state == KV_PEER_UP && arm_peer(peer, may_post); i++) {
		if (i == ARM_ROUNDS) {
			peer->restless = true; /* it always has more: others must have their turn */
			return;
		}
		*done_p += kv_peer_round(peer, may_post);
	}
	peer->restless = peer->awaits; /* no event of epoll says that a GPU is done */
}

/* Gives the descriptor back to epoll if the service thread has met a held claim: kv_table_try. */
static void release_claim(struct kv_peer *peer)
{
	atomic_bool *wants = &peer->engine->wants[peer->index];

	for (;;) {
		if (atomic_load(wants) && atomic_exchange(wants, false))
			tr_conn_rearm(peer->conn, TR_EVERY_SLOT);
		kv_claim_release(&peer->claim);
		/*
		 * It may have been set before the release. A thread that has the claim by now
		 * checks it itself.
		 */
		if (!atomic_load(wants) || !kv_claim_try(&peer->claim))
			return;
		if (peer->state == KV_PEER_CLOSED) {
			kv_claim_release(&peer->claim);
			return;
		}
	}
}

void kv_peer_release(struct kv_peer *peer)
{
	struct kv_engine *engine = peer->engine;
	bool restless;
	int done = 0;

	if (peer->state == KV_PEER_CLOSED) { /* its place in the table is another's by now */
		kv_claim_release(&peer->claim);
		return;
	}
	if (engine->caller_mode)
		kv_table_keep_awake(peer);
	else
		kv_peer_arm(peer, true, &done);
	restless = peer->restless;
	release_claim(peer);
	if (restless)
		kv_engine_wake(engine);
}

/* ---------------------------------------------------------------- messages and events */

static void receive_message(struct kv_peer *peer, const struct tr_event *event)
{
	static const char *const names[] = {
		[KV_MSG_BEGIN] = "BEGIN",     [KV_MSG_ACK] = "ACK",
		[KV_MSG_ABORT] = "ABORT",     [KV_MSG_LEASE] = "LEASE",
		[KV_MSG_IDS] = "IDS",	      [KV_MSG_REVOKE] = "REVOKE",
		[KV_MSG_REVOKED] = "REVOKED", [KV_MSG_BYE] = "BYE",
		[KV_MSG_ADOPTED] = "ADOPTED", [KV_MSG_DIGESTS] = "DIGESTS",
		[KV_MSG_WRONG] = "WRONG",     [KV_MSG_PROVE] = "PROVE",
	};
	struct kv_msg msg;
	int ret = 0;

	if (!kv_wire_get(event->msg, event->len, &msg)) {
		kv_peer_break(peer, KV_ERR_PROTOCOL, "a message of %zu bytes is malformed",
			      event->len);
		return;
	}
	switch (msg.type) {
	case KV_MSG_BEGIN:
		ret = kv_incoming_begin(peer, &msg.begin);
		break;
	case KV_MSG_ACK:
		for (int i = 0; !ret && i < msg.ack.count; i++)
			ret = kv_op_acked(peer, &msg.ack.ack[i]);
		break;
	case KV_MSG_ABORT:
		ret = kv_incoming_abort(peer, &msg.abort);
		break;
	case KV_MSG_LEASE:
		ret = kv_grant_lease(peer, &msg.lease);
		break;
	case KV_MSG_IDS:
		ret = kv_grant_ids(peer, &msg.ids);
		break;
	case KV_MSG_REVOKE:
		ret = kv_grant_revoke(peer, msg.id.lease);
		if (!ret)
			kv_op_revoked(peer, msg.id.lease);
		break;
	case KV_MSG_REVOKED:
		ret = kv_lease_revoked(peer, msg.id.lease);
		break;
	case KV_MSG_BYE:
		peer->bye = true;
		break;
	case KV_MSG_ADOPTED:
		if (peer->incoming || !peer->comm || atomic_exchange(&peer->adopted, true))
			ret = KV_ERR_PROTOCOL;
		kv_waiter_wake(&peer->engine->waiter);
		break;
	case KV_MSG_DIGESTS:
		ret = kv_incoming_digests(peer, &msg.digests);
		break;
	case KV_MSG_WRONG:
		ret = kv_op_wrong(peer, &msg.wrong);
		break;
	case KV_MSG_PROVE:
		ret = kv_incoming_prove(peer, &msg.begin);
		break;
	case KV_MSG_PING:
		peer->pong = true;
		break;
	default: /* a PONG: that it came is all */
		break;
	}
	if (ret == KV_ERR_PROTOCOL)
		kv_peer_break(peer, ret, "a %s message contradicts what was sent before",
			      names[msg.type]);
	else if (ret)
		kv_peer_break(peer, ret, "there is no memory for a %s message", names[msg.type]);
}

/* Ends every operation and lease of the lost peer. */
static void lose_peer(struct kv_peer *peer, const struct kv_error *cause)
{
	struct kv_engine *engine = peer->engine;

	if (!peer->error.code)
		peer->error = *cause;
	peer->state = KV_PEER_LOST;
	tr_conn_leave_set(peer->conn);
	if (!peer->leaving) {
		kv_engine_note(engine, &peer->error);
		kv_count(engine, peers_lost, 1);
		KV_PROBE_PEER(lost, peer, peer->error.code);
		kv_count_at(&engine->lost[-(peer->bye ? KV_ERR_CLOSED : peer->error.code)], 1);
	}
	kv_count(engine, peers_now, -1);
	for (unsigned int i = 0; i < peer->link->slots; i++) {
		struct kv_slot *slot = &peer->link->slot[i];

		if (slot->state == KV_SLOT_BUSY)
			kv_op_lost(slot->op);
		slot->state = KV_SLOT_FREE;
	}
	memset(peer->link->aborts, 0, sizeof(peer->link->aborts));
	KV_EACH_BIT (peer->link->ack, i)
		peer->link->in[i].begun = false; /* it is committed, or refused */
	memset(peer->link->ack, 0, sizeof(peer->link->ack));
	peer->link->slots_used = 0;
	while (peer->link->collected)
		kv_op_lost(peer->link->collected);
	kv_waiter_wake(&peer->waiter);
	kv_lease_lost(peer);
	kv_engine_wake(engine); /* the service thread fences it and queues PEER_LOST */
}

static void dispatch_event(struct kv_peer *peer, const struct tr_event *event)
{
	bool says = event->kind == TR_NOTIFIED || event->kind == TR_MSG;
	int ret;

	if (says)
		peer->heard = true;
	/* A peer that is being dropped: its messages are ignored. After a BYE none may come. */
	if (says && peer->error.code)
		return;
	if (says && peer->bye) {
		kv_peer_break(peer, KV_ERR_PROTOCOL, "something follows a goodbye");
		return;
	}
	switch (event->kind) {
	case TR_NOTIFIED:
		ret = kv_incoming_notified(peer, event->value);
		if (ret)
			kv_peer_break(peer, ret,
				      ret == KV_ERR_NOMEM
					      ? "there is no memory for a commit"
					      : "a commit contradicts what was sent before");
		break;
	case TR_MSG:
		receive_message(peer, event);
		break;
	case TR_PEER_LOST:
		lose_peer(peer, event->cause);
		break;
	default:
		kv_op_event(peer, event);
		break;
	}
}

static void flush_messages(struct kv_peer *peer)
{
	static const struct kv_msg adopted = { .type = KV_MSG_ADOPTED };
	static const struct kv_msg pong = { .type = KV_MSG_PONG };

	if (peer->incoming && atomic_load(&peer->adopted) && !peer->adopted_sent)
		peer->adopted_sent = !kv_peer_send(peer, &adopted);
	if (peer->pong && !peer->leaving) /* nothing follows a BYE */
		peer->pong = kv_peer_send(peer, &pong);
	/*
	 * In this order: an acknowledgement frees what the others may wait for. Each stops at the
	 * first message without credit.
	 */
	if (kv_incoming_flush(peer) && kv_op_flush(peer) && kv_op_answer_revokes(peer))
		kv_lease_flush(peer);
}

/* For the watcher, which looks without the claim (kv_watch.c). */
static void show(_Atomic int64_t *to, int64_t value)
{
	atomic_store_explicit(to, value, memory_order_release);
}

/* A piece of each operation from slot `i` on and below `end`; returns where the round is full. */
static unsigned int post_slots(struct kv_peer *peer, unsigned int i, unsigned int end,
			       bool may_post, int *done_p)
{
	struct kv_link *link = peer->link;

	for (i = kv_bit_next(link->posting, i); i < end && peer->turn_bytes < KV_PIECE_BYTES;
	     i = kv_bit_next(link->posting, i + 1)) {
		show(&peer->posting_ns, link->slot[i].op->deadline_ns);
		*done_p += kv_op_step(link->slot[i].op, may_post);
	}
	return i;
}

/*
 * One round of posting: a piece of each operation that has one, beginning where the last round
 * was full, or one further.
 */
static int post_round(struct kv_peer *peer, bool may_post)
{
	unsigned int first = peer->link->turn, i;
	int done = 0;

	peer->awaits = false;
	if (!kv_bits_any(peer->link->posting))
		return 0;
	peer->turn_bytes = 0;
	i = post_slots(peer, first, KV_OPS_MAX, may_post, &done);
	if (i == KV_OPS_MAX) {
		i = post_slots(peer, 0, first, may_post, &done);
		if (i >= first)
			i = first + 1;
	}
	show(&peer->posting_ns, KV_NO_DEADLINE);
	peer->link->turn = i % KV_OPS_MAX;
	return done;
}

static void check_deadlines(struct kv_peer *peer)
{
	int64_t now = peer->now_ns;

	if (now)
		peer->now_ns = 0; /* the next round reads it anew */
	else
		now = kv_now_ns();
	peer->round_ns = now;
	if (peer->heard)
		kv_heartbeat_heard(peer, now);
	if (now < peer->next_deadline_ns)
		return;
	peer->next_deadline_ns = KV_NO_DEADLINE;
	KV_EACH_BIT (peer->link->busy, i) {
		struct kv_op *op = peer->link->slot[i].op;

		if (op->stage == KV_STAGE_STOP)
			continue; /* the transport keeps the deadline of a stop */
		if (now < op->deadline_ns)
			kv_peer_due(peer, op->deadline_ns);
		else
			kv_op_timeout(op);
	}
	kv_lease_expire(peer, now);
	if (peer->heartbeat)
		kv_heartbeat(peer, now);
}

int kv_peer_take_events(struct kv_peer *peer)
{
	struct tr_event events[KV_EVENTS];
	int n;

	if (peer->state != KV_PEER_UP)
		return 0;
	n = tr_poll(peer->conn, events, KV_EVENTS);
	for (int i = 0; i < n; i++)
		dispatch_event(peer, &events[i]);
	return n;
}

int kv_peer_round(struct kv_peer *peer, bool may_post)
{
	int done = kv_peer_take_events(peer);

	if (peer->state != KV_PEER_UP)
		return done;
	show(&peer->rounds, peer->rounds + 1);
	kv_incoming_retry(peer);
	flush_messages(peer);
	done += post_round(peer, may_post);
	check_deadlines(peer);
	return done;
}

int kv_peer_progress(struct kv_peer *peer, bool may_post)
{
	int done = 0, moved, rounds = 0;
	int64_t end_ns = KV_NO_DEADLINE;

	do {
		moved = kv_peer_round(peer, may_post);
		done += moved;
		if (!rounds)
			end_ns = peer->round_ns + TURN_NS;
	} while (moved && ++rounds < TURN_ROUNDS && peer->round_ns < end_ns &&
		 !atomic_load_explicit(&peer->claim.wanting, memory_order_relaxed));
	return done;
}
