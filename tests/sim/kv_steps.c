/* SPDX-License-Identifier: Apache-2.0 */
/* kv_steps.c -- writes, groups, reads, leases, revokes, sends and receives, cancels, closes */
#include "kv_steps.h"

#include <string.h>

#include "kv_flight.h"
#include "schedule.h"

/* ---------------------------------------------------------------- steps that write */

static _Thread_local struct step step;

static void burst(struct sim_actor *actor, int most, uint32_t blocks)
{
	struct step *s = &step;
	struct link *link;

	if (!step_begin(s, actor))
		return;
	link = step_link(s);
	if (link) {
		for (int i = 1 + (int)step_draw(s, (uint32_t)most); i; i--) {
			size_t n = 1 + step_draw(s, blocks);
			struct flight *f = step_draw(s, 5) ? flight_write(s, link, n)
							   : flight_read(s, link, n);

			if (!f)
				break;
			flight_issue(s, f);
		}
		link_put(link);
	}
	step_pause(s);
	for (int i = 0; i < s->flights; i++)
		flight_await(s, &s->flight[i]);
	step_end(s);
}

static void play_burst(struct sim_actor *actor)
{
	burst(actor, 6, 60);
}

/* More than KV_OPS_MAX operations at once, with what the other actor has. */
static void play_flood(struct sim_actor *actor)
{
	burst(actor, FLIGHTS, 2);
}

static void play_large(struct sim_actor *actor)
{
	burst(actor, 1, OP_BLOCKS);
}

/* One after the other, as large as they can be, until one fails. */
static void play_stream(struct sim_actor *actor)
{
	struct step *s = &step;
	struct link *link;

	if (!step_begin(s, actor))
		return;
	link = step_link(s);
	for (int i = 1 + (int)step_draw(s, 12); i && link; i--) {
		struct flight *f = flight_write(s, link, OP_BLOCKS);

		if (!f)
			break;
		flight_issue(s, f);
		flight_await(s, f);
		if (f->ret)
			break;
		s->taken = 0;
	}
	if (link)
		link_put(link);
	step_end(s);
}

static void play_blocking(struct sim_actor *actor)
{
	struct step *s = &step;
	struct link *link;
	struct flight *f = NULL;
	struct kv_error err;

	if (!step_begin(s, actor))
		return;
	link = step_link(s);
	if (link)
		f = step_draw(s, 4) ? flight_write(s, link, 1 + step_draw(s, 100))
				    : flight_read(s, link, 1 + step_draw(s, 100));
	if (f && f->reads)
		f->ret = TIMED(kv_read_blocks, f->options.timeout_ms, link->peer,
			       s->engine->cache[f->cache], f->layers, f->dst, f->src, f->n,
			       &f->options, &err);
	else if (f)
		f->ret = TIMED(kv_write_blocks, f->options.timeout_ms, link->peer,
			       s->engine->cache[f->cache], f->layers, f->src, f->dst, f->n,
			       &f->options, &err);
	if (f) {
		f->left = f->ret && strstr(err.hint, "until kv_peer_close has returned 0");
		flight_free(s, f);
	}
	if (link)
		link_put(link);
	step_end(s);
}

/* Of operations to any peers; between collecting and posting much may happen. */
static void play_group(struct sim_actor *actor)
{
	struct step *s = &step;
	struct kv_group *group;
	struct kv_error err;
	size_t failed = 0, seen = 0;
	int64_t began_ns, over_ns;
	bool late;
	int ret;

	if (!step_begin(s, actor))
		return;
	ret = TIMED(kv_group_start, 0, s->engine->kv, &group, &err);
	if (ret == KV_ERR_NOMEM) { /* its fault point */
		step_end(s);
		return;
	}
	if (ret)
		sim_fail("kv_group_start: %s", err.message);
	for (int i = 1 + (int)step_draw(s, 20); i; i--) {
		struct link *link = step_link(s);
		struct flight *f = link ? flight_write(s, link, 1 + step_draw(s, 16)) : NULL;

		if (f) {
			f->options.group = group;
			flight_issue(s, f);
		}
		if (link)
			link_put(link);
	}
	step_pause(s);
	began_ns = sched_now_ns();
	ret = TIMED(kv_group_end, GROUP_MS, group, GROUP_MS, &failed, &err);
	over_ns = sched_now_ns();
	late = over_ns >= began_ns + (GROUP_MS + 2000) * 1000000LL;
	for (int i = 0; i < s->flights; i++) {
		struct flight *f = &s->flight[i];
		int got = f->kv ? TIMED(kv_test, 0, f->kv, NULL) : 0;

		if (f->kv && got >= 0 && got != KV_ACKED) {
			/* A device that does not return is not waited for any longer. */
			if (!late)
				sim_fail("a group has ended, and its operation %u has not",
					 f->op->stamp);
			seen++;
			f->deadline_ns = over_ns + (GROUP_MS + DRAIN_MS) * 1000000LL;
			flight_await(s, f);
			continue;
		}
		f->ret = f->kv ? got < 0 ? got : 0 : f->ret;
		seen += f->kv && f->ret;
		flight_free(s, f);
	}
	/* What had not ended then may have by now. */
	if ((ret != 0) != (failed != 0) || seen > failed || (seen != failed && !late))
		sim_fail("a group ended with %s, %zu failed; %zu of its operations have",
			 kv_error_name(ret), failed, seen);
	step_end(s);
}

/* ---------------------------------------------------------------- leases */

static void publish(struct slot *slot, struct link *link, int cache, struct kv_layers layers)
{
	slot->link = link;
	slot->to = link->engine->number;
	slot->from = link->remote;
	slot->cache = cache;
	slot->layers = layers;
	slot->tag = ++w.tags << 32; /* no operation's stamp */
}

static void open_lease(struct step *s, struct link *link, struct slot *slot)
{
	static const int64_t lifetimes[] = { 100, 3000, 60000 };
	int64_t lifetime_ms = lifetimes[step_draw(s, 3)];
	uint32_t generation = slot->generation;
	struct kv_lease *lease;
	struct kv_error err;
	int ret;

	publish(slot, link, 0, (struct kv_layers){ 0, 0 });
	ret = TIMED(kv_blocks_open, 5000, link->peer, s->engine->cache[0], slot->block, slot->n,
		    slot->tag, lifetime_ms, &lease, &err);
	if (ret == KV_ERR_LEASE || ret == KV_ERR_ARG || ret == KV_ERR_DUP_BLOCK)
		sim_fail("kv_blocks_open: %s", err.message);
	if (ret) {
		slot_close(slot);
	} else if (slot->generation == generation) {
		slot->lease = link->closing ? NULL : lease;
		slot->id = kv_lease_id(lease);
	}
}

/* A new one with up to so many of this engine's blocks, or with none; NULL: all are in use. */
static struct slot *slot_draw(struct step *s, unsigned int most)
{
	struct slot *slot = slot_new();

	if (slot)
		slot->n = step_blocks(s, s->engine->number, 0, TARGET_FIRST, CONST_FIRST,
				      1 + step_draw(s, most), slot->block);
	return slot;
}

static void play_lease(struct sim_actor *actor)
{
	struct step *s = &step;
	struct link *link;
	struct slot *slot;

	if (!step_begin(s, actor))
		return;
	link = step_link(s);
	slot = link ? slot_draw(s, 80) : NULL;
	if (slot && slot->n)
		open_lease(s, link, slot);
	if (link)
		link_put(link);
	step_end(s);
}

static void play_revoke(struct sim_actor *actor)
{
	static const int64_t waits[] = { 0, 5, 100, 1000 };
	struct step *s = &step;
	struct slot *slot = NULL;
	struct kv_error err;
	int64_t ms;
	int ret;

	if (!step_begin(s, actor))
		return;
	for (int i = 0, at = (int)step_draw(s, SLOTS); i < SLOTS && !slot; i++) {
		struct slot *can = &w.slot[(at + i) % SLOTS];

		if (can->link && can->lease && !can->revoking && can->to == s->engine->number)
			slot = can;
	}
	if (slot) {
		uint32_t generation = slot->generation;
		struct link *link = slot->link;

		ms = waits[step_draw(s, 4)];
		slot->revoking = true;
		ret = TIMED(kv_revoke, ms, slot->lease, ms, &err);
		/* The peer may have been closed before this call got to it. */
		if (ret && ret != KV_ERR_BUSY &&
		    !(ret == KV_ERR_ARG && (link->closing || link->dead)))
			sim_fail("kv_revoke: %s", err.message);
		if (slot->generation == generation) {
			slot->revoking = false;
			if (!ret)
				slot_close(slot);
		}
	}
	step_end(s);
}

/* ---------------------------------------------------------------- sends and receives */

/* A receive has failed: its blocks are this side's when they can be opened again. */
static void reopen(struct step *s, struct slot *slot)
{
	struct slot *again = slot_new();
	struct link *link = slot->link;

	if (!again || link->closing || link->lost)
		return;
	again->n = slot->n;
	memcpy(again->block, slot->block, sizeof(slot->block));
	link->users++;
	publish(again, link, slot->cache, slot->layers);
	if (TIMED(kv_blocks_open, 5000, link->peer, s->engine->cache[slot->cache], again->block,
		  again->n, again->tag, 1000, &again->lease, NULL)) {
		again->link = NULL;
	} else {
		slot_close(slot);
	}
	link->users--;
}

static void play_recv(struct sim_actor *actor)
{
	struct step *s = &step;
	struct kv_options options = KV_INIT(kv_options);
	struct link *link;
	struct slot *slot;
	struct kv_error err;
	struct kv_op *op = NULL;
	uint32_t generation;
	int ret = KV_ERR_BUSY;

	if (!step_begin(s, actor))
		return;
	link = step_link(s);
	slot = link ? slot_draw(s, 60) : NULL;
	if (!slot || !slot->n) {
		if (link)
			link_put(link);
		step_end(s);
		return;
	}
	options.timeout_ms = step_timeout_ms(s);
	publish(slot, link, 0, step_layers(s));
	slot->receives = true;
	generation = slot->generation;
	ret = TIMED(kv_recv_blocks_async, options.timeout_ms, link->peer, s->engine->cache[0],
		    slot->layers, slot->block, slot->n, slot->tag, &options, &op, &err);
	link_put(link);
	if (ret == KV_ERR_LEASE)
		sim_fail("kv_recv_blocks: %s", err.message);
	if (ret && slot->generation == generation)
		slot_close(slot);
	while (!ret) {
		int64_t ms = 1 + (int64_t)step_draw(s, 1000);

		ret = TIMED(kv_wait, ms, op, KV_ACKED, ms, &err);
		if (ret != KV_ERR_TIMEOUT || strcmp(err.op, "wait"))
			break;
		ret = 0;
		if (step_draw(s, 4) == 0)
			TIMED(kv_cancel, ms, op, ms, NULL);
	}
	if (op && TIMED(kv_op_free, 0, op, &err))
		sim_fail("a receive that has ended is not freed: %s", err.message);
	if (slot->generation == generation && slot->link) {
		if (!ret && slot->op)
			model_good(slot->op);
		if (!ret)
			slot_close(slot);
		else
			reopen(s, slot);
	}
	if (ret != KV_ERR_BUSY && ret != KV_ERR_PEER_LOST)
		sim_say("receive: %s", kv_error_name(ret));
	step_end(s);
}

static void play_send(struct sim_actor *actor)
{
	struct step *s = &step;
	struct link *link;
	struct flight *f = NULL;
	struct slot *slot = NULL;

	if (!step_begin(s, actor))
		return;
	link = step_link(s);
	for (int i = 0; link && i < SLOTS && !slot; i++) {
		struct slot *can = &w.slot[i];

		if (can->link && can->receives && !can->taken && can->from == s->engine->number &&
		    can->to == link->remote)
			slot = can;
	}
	if (slot)
		f = flight_new(s, link, slot->cache);
	if (f) {
		f->n = slot->n;
		f->layers = slot->layers;
		f->options.tag = slot->tag;
		memcpy(f->dst, slot->block, sizeof(slot->block));
		if (step_sources(s, f->cache, f->n, f->src)) {
			slot->taken = true;
			flight_begin(s, f);
			slot->op = f->op;
			f->ret = TIMED(kv_send_blocks_async, f->options.timeout_ms, link->peer,
				       s->engine->cache[f->cache], f->layers, f->src, f->n,
				       slot->tag, &f->options, &f->kv, NULL);
			if (f->ret)
				f->kv = NULL;
		} else {
			flight_drop(s);
			f = NULL;
		}
	}
	if (link)
		link_put(link);
	if (f)
		flight_await(s, f);
	step_end(s);
}

/* ---------------------------------------------------------------- ends */

static void play_close(struct sim_actor *actor)
{
	struct step *s = &step;
	struct link *link;

	if (!step_begin(s, actor))
		return;
	link = link_get(s->engine->number,
			(s->engine->number + 1 + (int)step_draw(s, (uint32_t)w.engines - 1)) %
				w.engines);
	if (link) {
		link_put(link);
		link_close(link);
	}
	step_end(s);
}

static void play_recycle(struct sim_actor *actor)
{
	world_recycle(actor->number / ACTORS_EACH, sim_below(&actor->random, 2));
}

static void play_reopen(struct sim_actor *actor)
{
	world_reopen(actor->number / ACTORS_EACH);
}

static void play_look(struct sim_actor *actor)
{
	struct kv_stats stats = KV_INIT(kv_stats);
	struct step *s = &step;
	static char text[1 << 16];

	if (!step_begin(s, actor))
		return;
	TIMED(kv_dump, 0, s->engine->kv, text, sizeof(text));
	TIMED(kv_stats, 0, s->engine->kv, &stats, NULL);
	if (stats.writes + stats.reads + stats.sends + stats.recvs !=
	    stats.ok + stats.failed + stats.cancelled + stats.in_flight)
		sim_fail("%llu operations began; %llu, %llu, %llu and %llu do not add up",
			 (unsigned long long)(stats.writes + stats.reads + stats.sends +
					      stats.recvs),
			 (unsigned long long)stats.ok, (unsigned long long)stats.failed,
			 (unsigned long long)stats.cancelled, (unsigned long long)stats.in_flight);
	step_end(s);
}

int kv_step_try(int from, int to)
{
	struct sim_actor actor = { .number = from * ACTORS_EACH, .random = 1 };
	struct step *s = &step;
	struct link *link;
	struct flight *f;
	int ret;

	step_begin(s, &actor);
	link = link_get(from, to);
	f = link ? flight_write(s, link, 8) : NULL;
	if (!f)
		sim_fail("engine %d has no connection to %d, or no room", from, to);
	f->options.timeout_ms = 5000;
	ret = f->ret = TIMED(kv_write_blocks, 5000, link->peer, s->engine->cache[f->cache],
			     f->layers, f->src, f->dst, f->n, &f->options, NULL);
	flight_free(s, f);
	link_put(link);
	step_end(s);
	return ret;
}

const struct sim_kind kv_steps[] = {
	{ "burst", 14, play_burst },	{ "large", 6, play_large },
	{ "flood", 2, play_flood },	{ "blocking", 6, play_blocking },
	{ "group", 12, play_group },	{ "lease", 16, play_lease },
	{ "revoke", 12, play_revoke },	{ "recv", 8, play_recv },
	{ "send", 10, play_send },	{ "close", 3, play_close },
	{ "recycle", 6, play_recycle }, { "reopen", 1, play_reopen },
	{ "look", 1, play_look },	{ 0 },
};

const struct sim_kind kv_storm_steps[] = {
	{ "burst", 10, play_burst },
	{ "stream", 40, play_stream },
	{ "flood", 2, play_flood },
	{ "blocking", 10, play_blocking },
	{ "group", 10, play_group },
	{ "lease", 8, play_lease },
	{ "revoke", 6, play_revoke },
	{ "recv", 6, play_recv },
	{ "send", 6, play_send },
	{ "close", 1, play_close },
	{ "recycle", 1, play_recycle },
	{ "look", 1, play_look },
	{ 0 },
};
