/* SPDX-License-Identifier: Apache-2.0 */
/* kv_service.c -- the loop that serves peers: a thread of its own, or the callers of kv_progress */
#include <errno.h>
#include <poll.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/thread.h"
#include "kv_loop.h"

enum { TURN_EVENTS = 64, RESTLESS_MS = 1, LOOK_US = 100 };

/* One peer, in whose device the thread may be stuck: kv_watch.c. False: it was freed. */
static bool serve_peer(struct kv_peer *peer, int *done_p)
{
	kv_claim_hurry(&peer->claim, peer->engine->turn_ns);
	return kv_peer_service(peer, done_p);
}

/* A caller that was stuck in a peer's device does not go on to others, where it may be again. */
static bool has_enough(const struct kv_engine *engine)
{
	return engine->enough_ns != KV_NO_DEADLINE && kv_now_ns() >= engine->enough_ns;
}

/* A peer was served; with nothing done, and nothing left, only its events bring it back. */
static void count_turn(struct kv_peer *peer, bool did)
{
	_Atomic uint8_t *awake = &peer->engine->awake[peer->index];

	if (did || peer->restless)
		kv_table_keep_awake(peer);
	else if (atomic_load(awake))
		atomic_fetch_sub(awake, 1);
}

/* Looks at every peer: deadlines; or, in caller mode, at those that are awake. */
static int sweep(struct kv_engine *engine, bool all, bool *restless_p)
{
	int done = 0;

	for (uint32_t i = 0; i < engine->peers_end; i++) {
		struct kv_peer *peer;
		int before = done;

		if ((!all && !atomic_load(&engine->awake[i])) || kv_linger_has(&engine->linger, i))
			continue;
		if (has_enough(engine))
			break;
		peer = kv_table_try(engine, i, NULL);
		if (!peer || !serve_peer(peer, &done))
			continue;
		*restless_p |= peer->restless;
		count_turn(peer, done != before);
		if (peer->state < KV_PEER_LOST && atomic_exchange(&engine->wants[i], false))
			tr_conn_rearm(peer->conn, TR_EVERY_SLOT);
		kv_claim_release(&peer->claim);
	}
	return done;
}

static int serve_event(struct kv_engine *engine, const struct epoll_event *event, bool *restless_p)
{
	uint32_t generation = (uint32_t)(event->data.u64 >> 32);
	uint32_t token = (uint32_t)tr_event_token(event->data.u64);
	struct kv_peer *peer;
	int done = 0;

	if (token == KV_TOKEN_LISTENER) {
		kv_peer_accept(engine);
		return 1;
	}
	if (has_enough(engine)) { /* a later sweep gives its descriptor back to epoll */
		atomic_store(&engine->wants[token - KV_TOKEN_PEERS], true);
		return 1;
	}
	peer = kv_table_try(engine, token - KV_TOKEN_PEERS, &generation);
	if (!peer || !serve_peer(peer, &done))
		return done;
	*restless_p |= peer->restless;
	count_turn(peer, done);
	if (peer->state < KV_PEER_LOST && !kv_linger_take(peer, done))
		tr_conn_rearm(peer->conn, tr_event_slot(event->data.u64));
	kv_claim_release(&peer->claim);
	return done;
}

/* A peer that is restless is not armed: no event will come for what it has left to do. */
static int turn_timeout_ms(const struct kv_engine *engine, int64_t wake_ns, bool restless)
{
	int64_t until = wake_ns;

	if (engine->restless && engine->moved)
		return 0;
	restless |= engine->restless;
	if ((engine->peers_end || engine->deaf) &&
	    engine->swept_ns + KV_TICK_MS * KV_NS_PER_MS < until)
		until = engine->swept_ns + KV_TICK_MS * KV_NS_PER_MS;
	if (!engine->deaf && engine->listener_ns < until)
		until = engine->listener_ns;
	if (until == KV_NO_DEADLINE)
		return -1;
	return kv_poll_ms(until, restless ? RESTLESS_MS : KV_TIMEOUT_MAX_MS);
}

static void drain_wake(struct kv_engine *engine)
{
	uint64_t count;

	while (read(engine->wake_fd, &count, sizeof(count)) < 0 && errno == EINTR)
		;
}

/*
 * The descriptors that have something, or none where a caller's turn has moved something already:
 * then other peers are looked at each LOOK_US.
 */
static int await_events(struct kv_engine *engine, struct epoll_event *events, int timeout_ms,
			bool moved)
{
	int64_t now = kv_now_ns();
	int n;

	if (moved && engine->caller_mode && now < engine->look_ns)
		return 0;
	engine->look_ns = now + LOOK_US * KV_NS_PER_US;
	atomic_store(&engine->idle, true);
	n = epoll_wait(engine->epoll_fd, events, TURN_EVENTS, timeout_ms);
	atomic_store(&engine->idle, false);
	return n;
}

/*
 * One round of epoll, until `wake_ns` at the latest, for a call with that deadline; returns the
 * number of things done, or -1 if another thread runs it.
 */
static int service_turn(struct kv_engine *engine, int64_t wake_ns, int64_t deadline_ns)
{
	struct epoll_event events[TURN_EVENTS];
	bool restless = false, woken = false, alarm = false, all;
	int done = 0, n;

	if (pthread_mutex_trylock(&engine->turn))
		return -1;
	engine->turn_ns = deadline_ns;
	engine->enough_ns = engine->caller_mode ? kv_deadline_ns(KV_STOP_MS) : KV_NO_DEADLINE;
	if (engine->caller_mode)
		done = sweep(engine, false, &restless);
	else
		done = kv_linger_turn(engine, &restless);
	if (kv_peer_accept_due(engine)) {
		kv_peer_accept(engine);
		done++;
	}
	n = await_events(engine, events,
			 done || engine->linger.n ? 0 : turn_timeout_ms(engine, wake_ns, restless),
			 done);
	for (int i = 0; i < n; i++)
		if (events[i].data.u64 == TR_TOKEN_ALL)
			alarm = true;
		else if (events[i].data.u64 == KV_TOKEN_WAKE)
			woken = true;
		else
			done += serve_event(engine, &events[i], &restless);
	if (woken)
		drain_wake(engine);
	if (alarm)
		tr_alarm(engine->tr);
	all = woken || alarm || kv_now_ns() - engine->swept_ns >= KV_TICK_MS * KV_NS_PER_MS;
	if (all || engine->restless) {
		restless = false;
		done += sweep(engine, all || !engine->caller_mode, &restless);
		if (engine->deaf || engine->knocked)
			kv_peer_accept(engine);
		if (all || !engine->caller_mode)
			engine->swept_ns = kv_now_ns();
	}
	engine->restless = restless;
	engine->moved = done;
	atomic_store(&engine->idle, true);
	pthread_mutex_unlock(&engine->turn);
	return done;
}

void kv_service_sleep(struct kv_engine *engine, struct kv_waiter *waiter, uint32_t seq,
		      int64_t wake_ns, int64_t deadline_ns)
{
	int64_t soon;

	if (!engine->caller_mode) {
		kv_waiter_sleep(waiter, seq, wake_ns);
		return;
	}
	/* Past its deadline a call drains its own work, and risks no other peer's device. */
	if (kv_now_ns() < deadline_ns + KV_STOP_MS * KV_NS_PER_MS &&
	    service_turn(engine, wake_ns, deadline_ns) >= 0)
		return;
	/* Another thread runs the loop and may return at any time: look again soon. */
	soon = kv_deadline_ns(1);
	kv_waiter_sleep(waiter, seq, kv_sooner(soon, wake_ns));
}

static void *service_main(void *arg)
{
	struct kv_engine *engine = arg;

	while (!atomic_load(&engine->stopping))
		service_turn(engine, KV_NO_DEADLINE, KV_NO_DEADLINE);
	atomic_store(&engine->stopped, true);
	kv_waiter_wake(&engine->waiter);
	return NULL;
}

int kv_service_start(struct kv_engine *engine, struct kv_error *err)
{
	int ret;

	engine->idle = true;
	ret = kv_fault(KV_THREAD)
		      ? EAGAIN
		      : kv_thread_start(&engine->thread, "kvrail", service_main, engine);

	if (ret)
		return kv_fail_errno(err, KV_ERR_SYSTEM, ret, "open",
				     "the service thread could not be started");
	engine->thread_on = true;
	return 0;
}

/* It may be in a device's call: kv_watch.c ends that, as its deadline is now. */
static void hurry(struct kv_engine *engine)
{
	int64_t now = kv_now_ns();

	pthread_mutex_lock(&engine->lock);
	for (uint32_t i = 0; i < engine->peers_end; i++)
		if (engine->peer[i])
			kv_claim_hurry(&engine->peer[i]->claim, now);
	pthread_mutex_unlock(&engine->lock);
}

/* A thread of the application may be in a turn, against the rules. After this no turn begins. */
static bool end_turns(struct kv_engine *engine, int64_t deadline_ns)
{
	kv_engine_wake(engine);
	while (pthread_mutex_trylock(&engine->turn)) {
		if (kv_now_ns() >= deadline_ns)
			return false;
		poll(NULL, 0, 1);
	}
	return true;
}

/*
 * A thread that has nothing to do comes as soon as it is given a processor, which may take seconds
 * where many want one; one that serves a peer may be in a call that does not return. Looks are
 * counted, too, not time alone: this thread may get no processor, either.
 */
static bool await_stop(struct kv_engine *engine)
{
	int64_t deadline = kv_deadline_ns(KV_STOP_MS + KV_CLOSE_MS);
	int looks = 0;

	while (!atomic_load(&engine->stopped)) {
		uint32_t seq = kv_waiter_enter(&engine->waiter);

		if (!atomic_load(&engine->stopped))
			kv_waiter_sleep(&engine->waiter, seq, kv_deadline_ns(KV_TICK_MS));
		kv_waiter_leave(&engine->waiter);
		looks++;
		if (atomic_load(&engine->idle)) {
			deadline = kv_deadline_ns(KV_STOP_MS + KV_CLOSE_MS);
			looks = 0;
		}
		if (looks > (KV_STOP_MS + KV_CLOSE_MS) / KV_TICK_MS && kv_now_ns() >= deadline)
			return atomic_load(&engine->stopped);
	}
	return true;
}

bool kv_service_stop(struct kv_engine *engine)
{
	if (!engine->thread_on)
		return end_turns(engine, kv_deadline_ns(KV_STOP_MS + KV_CLOSE_MS));
	atomic_store(&engine->stopping, true);
	kv_engine_wake(engine);
	hurry(engine);
	if (!await_stop(engine))
		return false;
	pthread_join(engine->thread, NULL);
	engine->thread_on = false;
	return end_turns(engine, kv_deadline_ns(KV_STOP_MS));
}

/* Posts what asynchronous operations have left, at every peer. */
static int post_all(struct kv_engine *engine)
{
	int64_t enough_ns = kv_deadline_ns(KV_STOP_MS);
	int done = 0;

	for (uint32_t i = 0; i < engine->peers_end && kv_now_ns() < enough_ns; i++) {
		struct kv_peer *peer = kv_table_try(engine, i, NULL);

		if (!peer)
			continue;
		done += kv_peer_progress(peer, true);
		kv_peer_arm(peer, true, &done);
		kv_table_leave(peer);
	}
	return done;
}

int kv_progress(struct kv_engine *engine, int64_t timeout_ms, struct kv_error *err)
{
	int64_t deadline;
	int done, ret = kv_engine_use(engine, "progress", err);

	if (!ret)
		ret = kv_engine_deadline(timeout_ms, "progress", &deadline, err);
	if (ret)
		return ret;
	for (;;) {
		uint32_t seq = kv_waiter_enter(&engine->waiter);

		done = engine->caller_mode ? service_turn(engine, deadline, KV_NO_DEADLINE)
					   : post_all(engine);
		if (done <= 0 && kv_now_ns() < deadline) {
			int64_t soon = kv_deadline_ns(1);

			if (!engine->caller_mode || done < 0)
				kv_waiter_sleep(&engine->waiter, seq, kv_sooner(soon, deadline));
		}
		kv_waiter_leave(&engine->waiter);
		if (done > 0 || kv_now_ns() >= deadline)
			return done > 0 ? done : 0;
	}
}
