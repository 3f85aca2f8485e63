/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_linger.c -- peers that the service thread polls for a while after they had work
 *
 * A sleeping thread costs its peer a system call for each wake-up and itself several, which is most
 * of what a small write takes until its acknowledgement. So a peer that had work is not given back
 * to epoll at once: it stays unarmed, and its next write finds the thread awake. That needs a
 * processor which nobody else wants: one for the application and one for each thread that lingers.
 * A thread that the kernel took off its processor meanwhile sleeps at once for the next
 * LINGER_OFF_MS.
 */
#include <sched.h>
#include <sys/resource.h>

#include "kv_loop.h"

enum {
	LINGER_SLICE_NS = 10000, /* of polling, until others are looked at */
	LINGER_OFF_MS = 1,
	/* KVCACHE_SERVICE_SPIN_US is -1; and while the notify of an operation is to come */
	LINGER_US = 50,
	LINGER_OPEN_US = 500,
};

static atomic_int lingering; /* threads of this process */

static int count_processors(void)
{
	cpu_set_t set;

	return sched_getaffinity(0, sizeof(set), &set) ? 1 : CPU_COUNT(&set);
}

void kv_linger_open(struct kv_engine *engine)
{
	int64_t us = kv_option_int(engine->options, KV_OPT_SERVICE_SPIN_US);

	engine->linger.asked = us >= 0;
	engine->linger.ns = (us >= 0 ? us : engine->spin_ns ? LINGER_US : 0) * KV_NS_PER_US;
	engine->linger.open_ns = engine->linger.ns;
	if (us < 0 && engine->linger.ns)
		engine->linger.open_ns = LINGER_OPEN_US * KV_NS_PER_US;
	engine->linger.processors = count_processors();
}

/* Whether the kernel took this thread off its processor since it was asked last. */
static bool was_preempted(struct kv_linger *linger)
{
	struct rusage usage;
	bool more;

	if (linger->asked || getrusage(RUSAGE_THREAD, &usage))
		return false;
	more = usage.ru_nivcsw != linger->preempted;
	linger->preempted = usage.ru_nivcsw;
	return more;
}

static bool may_linger(struct kv_linger *linger)
{
	if (linger->n)
		return true;
	if (!linger->asked && kv_now_ns() < linger->off_ns)
		return false;
	if (atomic_fetch_add(&lingering, 1) + 2 <= linger->processors || linger->asked)
		return true;
	atomic_fetch_sub(&lingering, 1);
	return false;
}

bool kv_linger_has(const struct kv_linger *linger, uint32_t index)
{
	unsigned int i = 0;

	while (i < linger->n && linger->peer[i].index != index)
		i++;
	return i < linger->n;
}

/* From work that it had just now on. */
static int64_t linger_ns(const struct kv_linger *linger, const struct kv_peer *peer)
{
	return kv_incoming_open(peer) ? linger->open_ns : linger->ns;
}

bool kv_linger_take(struct kv_peer *peer, int done)
{
	struct kv_engine *engine = peer->engine;
	struct kv_linger *linger = &engine->linger;

	if (!done || !linger->ns || engine->caller_mode || peer->state != KV_PEER_UP ||
	    !may_linger(linger))
		return false;
	if (kv_linger_has(linger, peer->index))
		return true; /* a caller had given it back to epoll */
	if (linger->n == KV_LINGER_PEERS)
		return false;
	linger->peer[linger->n].index = peer->index;
	linger->peer[linger->n].completions = tr_conn_completions(peer->conn);
	linger->peer[linger->n++].generation = engine->peer_generation[peer->index];
	linger->until_ns = kv_now_ns() + linger_ns(linger, peer);
	return true;
}

/* It has work that has not ended: its device completes a part of it now and then. */
static bool moves(struct kv_linger *linger, unsigned int i, const struct kv_peer *peer)
{
	uint64_t before = linger->peer[i].completions;

	linger->peer[i].completions = tr_conn_completions(peer->conn);
	return linger->peer[i].completions != before;
}

/* *ns_p: for how long it goes on, by those that had work. */
static int poll_lingering(struct kv_engine *engine, int64_t *ns_p)
{
	int done = 0;

	for (unsigned int i = 0; i < engine->linger.n; i++) {
		struct kv_peer *peer = kv_table_glance(engine, engine->linger.peer[i].index);
		int before = done;

		if (!peer)
			continue;
		if (peer->state == KV_PEER_UP) {
			kv_peer_poll(peer, &done);
			done += moves(&engine->linger, i, peer);
		}
		if (peer->state != KV_PEER_UP)
			engine->linger.until_ns = 0; /* a sweep follows it to its end */
		else if (done > before && linger_ns(&engine->linger, peer) > *ns_p)
			*ns_p = linger_ns(&engine->linger, peer);
		kv_claim_release(&peer->claim);
	}
	return done;
}

/* Gives them back to epoll; a thread that holds one by now does that for it. */
static int end_linger(struct kv_engine *engine, bool *restless_p)
{
	struct kv_linger *linger = &engine->linger;
	int done = 0;

	for (unsigned int i = 0; i < linger->n; i++) {
		struct kv_peer *peer =
			kv_table_try(engine, linger->peer[i].index, &linger->peer[i].generation);

		if (!peer || !kv_peer_service(peer, &done))
			continue;
		*restless_p |= peer->restless;
		if (peer->state < KV_PEER_LOST)
			tr_conn_rearm(peer->conn, TR_EVERY_SLOT);
		kv_claim_release(&peer->claim);
	}
	linger->n = 0;
	atomic_fetch_sub(&lingering, 1);
	return done;
}

int kv_linger_turn(struct kv_engine *engine, bool *restless_p)
{
	struct kv_linger *linger = &engine->linger;
	int64_t now, slice = 0;
	int done = 0, moved;

	if (!linger->n)
		return 0;
	atomic_store(&engine->idle, false);
	do {
		int64_t ns = linger->ns;

		moved = poll_lingering(engine, &ns);
		done += moved;
		now = kv_now_ns();
		if (!slice)
			slice = now + LINGER_SLICE_NS;
		if (moved && linger->until_ns)
			linger->until_ns = now + ns;
		else
			kv_cpu_relax();
	} while (now < slice && now < linger->until_ns && !atomic_load(&engine->stopping));
	if (now < linger->until_ns && !atomic_load(&engine->stopping))
		return done;
	if (was_preempted(linger))
		linger->off_ns = now + LINGER_OFF_MS * KV_NS_PER_MS;
	return done + end_linger(engine, restless_p);
}
