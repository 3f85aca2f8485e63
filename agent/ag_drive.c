/* SPDX-License-Identifier: Apache-2.0 */
/* ag_drive.c -- one turn of a peer: its handshake, its events and what waits, its end */
#include <stdlib.h>

#include "ag.h"

enum { EVENTS = 32, ROUNDS = 64, HEAR_ROUNDS = 2, SOON_MS = 100 };

/* ---------------------------------------------------------------- loss */

/* What failed is named; for the caller the peer is lost, whatever it was. */
static void name_loss(const struct ag_peer *peer, const struct kv_error *cause,
		      struct kv_error *err)
{
	bool connecting = atomic_load(&peer->state) == AG_CONNECTING;

	*err = *cause;
	if (kv_error_scope(cause->code) == KV_SCOPE_PEER)
		return;
	kv_fail(err, connecting ? KV_ERR_UNREACHABLE : KV_ERR_PEER_LOST, cause->op, "%s",
		cause->message);
	kv_error_hint(err, "%s", cause->hint);
}

static void lose(struct ag_peer *peer, const struct kv_error *cause)
{
	struct ag_rmem *loaded;

	name_loss(peer, cause, &peer->error);
	pthread_mutex_lock(&peer->inbox);
	atomic_store(&peer->state, AG_LOST); /* from now on nobody leaves anything there */
	while (peer->posted.first) {
		struct ag_xfer *xfer = peer->posted.first;

		ag_xfers_remove(&peer->posted, xfer);
		ag_xfers_add(&peer->queue, xfer);
	}
	ag_records_free(&peer->said);
	loaded = peer->loaded;
	peer->loaded = NULL;
	pthread_mutex_unlock(&peer->inbox);
	ag_rmem_take(peer, loaded);
	if (!peer->linger_ns)
		peer->linger_ns = kv_now_ns();
	ag_move_lost(peer);
	if (!atomic_load(&peer->dropped))
		ag_metrics_lost(peer->agent, peer);
	if (!atomic_load(&peer->dropped) && peer->name)
		kv_log_info(peer->agent->log, "agent %s is lost: %s", peer->name,
			    peer->error.message);
}

static enum ag_turn fail_turn(struct ag_peer *peer, const struct kv_error *cause)
{
	lose(peer, cause);
	return AG_TURN_SOON;
}

static enum ag_turn drop_turn(struct ag_peer *peer)
{
	struct kv_error cause;

	kv_fail(&cause, KV_ERR_PEER_LOST, "drop", "the peer was dropped");
	return fail_turn(peer, &cause);
}

/* Ends of operations are all that still comes. */
static void drain_events(struct ag_peer *peer)
{
	struct tr_event event[EVENTS];
	int n;

	while ((n = tr_poll(peer->conn, event, EVENTS)))
		for (int i = 0; i < n; i++)
			if (event[i].kind != TR_PEER_LOST && event[i].kind != TR_NOTIFIED &&
			    event[i].kind != TR_MSG)
				ag_move_event(peer, &event[i]);
}

static enum ag_turn drive_lost(struct ag_peer *peer)
{
	if (peer->conn) {
		drain_events(peer);
		if (tr_fence(peer->conn, peer->linger_ns, NULL))
			return kv_now_ns() < peer->linger_ns + SOON_MS * KV_NS_PER_MS
				       ? AG_TURN_SOON
				       : AG_TURN_FULL; /* at the next tick */
		drain_events(peer);
		tr_conn_close(peer->conn);
		peer->conn = NULL;
	}
	atomic_store(&peer->fenced, true);
	ag_mem_left_all(peer);
	ag_rmem_drop_all(peer);
	return peer->incoming || atomic_load(&peer->dropped) ? AG_TURN_GONE : AG_TURN_OVER;
}

/* ---------------------------------------------------------------- a peer that is up */

static void take_inbox(struct ag_peer *peer)
{
	struct ag_rmem *loaded;

	pthread_mutex_lock(&peer->inbox);
	while (peer->posted.first) {
		struct ag_xfer *xfer = peer->posted.first;

		ag_xfers_remove(&peer->posted, xfer);
		ag_xfers_add(&peer->queue, xfer);
	}
	ag_records_move(&peer->out, &peer->said);
	loaded = peer->loaded;
	peer->loaded = NULL;
	pthread_mutex_unlock(&peer->inbox);
	ag_rmem_take(peer, loaded);
}

/* Returns how many, or why the peer is lost. */
static int hear_events(struct ag_peer *peer, struct kv_error *err)
{
	struct tr_event event[EVENTS];
	int n = tr_poll(peer->conn, event, EVENTS), ret = 0;

	for (int i = 0; i < n; i++)
		switch (event[i].kind) {
		case TR_MSG:
			if (!ret)
				ret = ag_talk(peer, event[i].msg, event[i].len, err);
			break;
		case TR_NOTIFIED: /* no agent sends one */
			ret = kv_fail(err, KV_ERR_PROTOCOL, "hear", "a notify that means nothing");
			break;
		case TR_PEER_LOST:
			ret = kv_error_copy(err, event[i].cause);
			break;
		default:
			ag_move_event(peer, &event[i]);
		}
	return ret ? ret : n;
}

/* Sends what waits. Returns how many messages. */
static int say_records(struct ag_peer *peer)
{
	uint8_t msg[TR_MSG_MAX];
	int n = 0;

	while (peer->out.first) {
		size_t len = ag_records_say(&peer->out, msg, sizeof(msg));
		struct ag_record *said;

		if (tr_msg(peer->conn, msg, len, NULL))
			break; /* no room, or the connection fails, which is an event */
		n++;
		said = ag_records_said(&peer->out, len);
		if (said && said->xfer)
			ag_move_sent(peer, said->xfer);
		free(said);
	}
	return n;
}

/* One dropped stays as long as what was said to it is not sent. */
static bool still_says(struct ag_peer *peer)
{
	if (!peer->linger_ns)
		peer->linger_ns = kv_deadline_ns(AG_LINGER_MS);
	return peer->out.first && kv_now_ns() < peer->linger_ns;
}

static bool is_polled(const struct ag_agent *agent)
{
	return atomic_load(&agent->asked) >= AG_ASKED &&
	       kv_now_ns() - atomic_load(&agent->asked_ns) < AG_ASKED_NS;
}

/*
 * A caller that polls for notifications sees them sooner than the service thread wakes, and a
 * sender that need not wake it is faster, too. So while there is one the thread does not wait to
 * be woken but looks every millisecond, for what else comes and for when the caller stops.
 */
static bool may_sleep(struct ag_peer *peer, bool service)
{
	if (service && peer->incoming && peer->attended < AG_ATTENDED && is_polled(peer->agent))
		peer->attended++;
	else if (service)
		peer->attended = 0;
	return peer->attended || !tr_conn_arm(peer->conn);
}

static enum ag_turn drive_up(struct ag_peer *peer, uint64_t budget, int rounds, bool service)
{
	bool starved = false;
	struct kv_error why;

	for (int i = 0; i < rounds; i++) {
		bool full = peer->incoming && ag_note_full(peer->agent);
		int done, n;

		take_inbox(peer);
		done = full ? 0 : hear_events(peer, &why);
		if (done < 0)
			return fail_turn(peer, &why);
		n = peer->told ? ag_mem_withdraw(peer, &why) : 0;
		if (n < 0)
			return fail_turn(peer, &why);
		done += n + ag_rmem_want(peer);
		done += ag_move(peer, &budget, &starved);
		done += ag_rmem_leave(peer) + say_records(peer);
		if (atomic_load(&peer->dropped) && !still_says(peer))
			return drop_turn(peer);
		if (starved)
			return AG_TURN_MORE;
		if (full)
			return AG_TURN_FULL;
		if (!done && may_sleep(peer, service))
			return service && peer->attended ? AG_TURN_SOON : AG_TURN_OVER;
	}
	return AG_TURN_MORE;
}

/* ---------------------------------------------------------------- a peer in its handshake */

/* Under the inbox. */
static bool is_asked_for(const struct ag_peer *peer)
{
	return peer->posted.first || peer->said.first;
}

/* The other end has answered, and will say the same again. */
static bool is_final(int code)
{
	return code == KV_ERR_AUTH || code == KV_ERR_VERSION || code == KV_ERR_PROTOCOL ||
	       code == KV_ERR_STALE_PEER;
}

/*
 * No address is left. What failed before anybody wanted something of the peer is not held against
 * who does: each request gets an attempt that began after it.
 */
static enum ag_turn dial_failed(struct ag_peer *peer, const struct kv_error *cause)
{
	bool asked;

	if (peer->for_request || is_final(cause->code))
		return fail_turn(peer, cause);
	kv_log_info(peer->agent->log, "agent %s is not reached: %s", peer->name, cause->message);
	peer->next_host = 0;
	pthread_mutex_lock(&peer->inbox);
	name_loss(peer, cause, &peer->reason);
	peer->unreached = true;
	asked = is_asked_for(peer);
	pthread_mutex_unlock(&peer->inbox);
	return asked ? AG_TURN_MORE : AG_TURN_OVER;
}

static enum ag_turn dial_next(struct ag_peer *peer, const struct kv_error *why)
{
	struct kv_error err;
	bool first = !peer->next_host;

	if (!ag_dial(peer, &err))
		return AG_TURN_MORE;
	/* What the last one said tells more than that there is no other. */
	return dial_failed(peer, first ? &err : why);
}

/* One that was not reached rests until it is asked for. */
static enum ag_turn dial_first(struct ag_peer *peer)
{
	bool rests;

	pthread_mutex_lock(&peer->inbox);
	peer->for_request = is_asked_for(peer);
	if (peer->for_request)
		peer->unreached = false;
	rests = peer->unreached;
	pthread_mutex_unlock(&peer->inbox);
	return rests ? AG_TURN_OVER : dial_next(peer, NULL);
}

static enum ag_turn drive_handshake(struct ag_peer *peer, uint64_t budget, bool service)
{
	struct kv_error err;
	int ret;

	if (atomic_load(&peer->dropped))
		return drop_turn(peer);
	if (!peer->conn)
		return dial_first(peer);
	ret = tr_conn_step(peer->conn, &err);
	if (!ret) {
		atomic_store(&peer->state, AG_UP);
		kv_log_info(peer->agent->log, "agent %s %s by %s (%s)", peer->name,
			    peer->incoming ? "came" : "is connected", tr_conn_transport(peer->conn),
			    tr_conn_path(peer->conn));
		return drive_up(peer, budget, ROUNDS, service);
	}
	if (ret == TR_AGAIN && (peer->incoming || kv_now_ns() < peer->dial_ns))
		return AG_TURN_OVER;
	if (ret == TR_AGAIN) {
		kv_fail(&err, KV_ERR_UNREACHABLE, "connect", "%s: the deadline passed while %s",
			tr_conn_address(peer->conn), tr_conn_stage(peer->conn));
		tr_conn_refuse(peer->conn, &err);
	}
	/* Nothing of this agent was described to the other end yet. */
	tr_conn_close(peer->conn);
	peer->conn = NULL;
	if (!peer->incoming)
		return dial_next(peer, &err);
	kv_log_info(peer->agent->log, "a connection was refused: %s", err.message);
	return fail_turn(peer, &err);
}

enum ag_turn ag_drive(struct ag_peer *peer, uint64_t budget)
{
	switch (atomic_load(&peer->state)) {
	case AG_CONNECTING:
		return drive_handshake(peer, budget, true);
	case AG_UP:
		return drive_up(peer, budget, ROUNDS, true);
	default:
		return drive_lost(peer);
	}
}

/*
 * What a stranger costs before it is known, and what is lost, is the service thread's. A connection
 * that this agent has begun goes on in who waits for it: that thread may have to wait until the
 * scheduler takes the processor away from a caller that polls.
 */
static bool is_for_callers(const struct ag_peer *peer)
{
	int state = atomic_load(&peer->state);

	return state == AG_UP || (state == AG_CONNECTING && !peer->incoming);
}

static enum ag_turn drive_by_caller(struct ag_peer *peer, uint64_t budget, int rounds)
{
	enum ag_turn turn = AG_TURN_OVER;
	bool dials = !peer->conn;

	if (!is_for_callers(peer))
		return turn;
	if (atomic_load(&peer->state) == AG_UP)
		return drive_up(peer, budget, rounds, false);
	turn = drive_handshake(peer, budget, false);
	/* One that is dialled on this host stands at once: the hello goes out, too. */
	return dials && peer->conn ? drive_handshake(peer, budget, false) : turn;
}

static bool try_drive(struct ag_peer *peer, uint64_t budget, int rounds, bool must)
{
	enum ag_turn turn;

	if (!is_for_callers(peer) || pthread_mutex_trylock(&peer->drive)) {
		if (must)
			ag_kick(peer);
		return false;
	}
	turn = drive_by_caller(peer, budget, rounds);
	pthread_mutex_unlock(&peer->drive);
	if (turn == AG_TURN_MORE)
		atomic_store(&peer->served, true); /* until it has come */
	if (turn != AG_TURN_OVER)
		ag_kick(peer);
	return turn != AG_TURN_MORE;
}

bool ag_try_drive(struct ag_peer *peer, uint64_t budget, bool must)
{
	return try_drive(peer, budget, ROUNDS, must);
}

void ag_try_hear(struct ag_agent *agent)
{
	int64_t now = kv_now_ns(), before = atomic_exchange(&agent->asked_ns, now);
	uint32_t end;

	if (now - before < AG_ASKED_NS)
		atomic_fetch_add(&agent->asked, 1);
	else
		atomic_store(&agent->asked, 0);
	pthread_mutex_lock(&agent->lock);
	end = agent->peers_end;
	pthread_mutex_unlock(&agent->lock);
	for (uint32_t i = 0; i < end && i < AG_HEARD; i++) {
		struct ag_peer *peer =
			ag_peer_at(agent, atomic_fetch_add(&agent->next_heard, 1) % end);

		if (peer && peer->incoming)
			try_drive(peer, 0, HEAR_ROUNDS, false);
		if (peer)
			ag_peer_put(peer);
	}
}
