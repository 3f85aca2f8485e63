/* SPDX-License-Identifier: Apache-2.0 */
/* kv_flight.c -- one operation of a step: what it moves, how it ends, what its end means */
#include "kv_flight.h"

#include <string.h>

#include "fake.h"
#include "faults.h"
#include "schedule.h"

uint32_t step_draw(struct step *s, uint32_t n)
{
	return sim_below(&s->actor->random, n);
}

void step_pause(struct step *s)
{
	static const uint32_t us[] = { 0, 0, 20, 300, 3000, 60000 };

	sched_sleep(1 + (int64_t)step_draw(s, 1 + 1000 * us[step_draw(s, 6)]));
}

int64_t step_timeout_ms(struct step *s)
{
	static const int64_t ms[] = { 20, 200, 3000, 5000 };

	return ms[step_draw(s, 4)];
}

/* The engine of an actor, while its memory stays. */
bool step_begin(struct step *s, struct sim_actor *actor)
{
	s->actor = actor;
	s->engine = &w.engine[actor->number / ACTORS_EACH];
	s->taken = s->flights = 0;
	for (int tries = 0; s->engine->frozen && tries < PATIENCE; tries++)
		sched_sleep(1000000);
	if (s->engine->frozen)
		return false;
	s->engine->users++;
	return true;
}

void step_end(struct step *s)
{
	for (int i = 0; i < w.engines; i++)
		model_check(i);
	s->engine->users--;
}

/* A connection to another engine, made if there is none. */
struct link *step_link(struct step *s)
{
	int remote =
		(s->engine->number + 1 + (int)step_draw(s, (uint32_t)w.engines - 1)) % w.engines;
	int here = s->engine->number;

	for (int tries = 0; tries < PATIENCE; tries++) {
		struct link *link = link_get(here, remote);

		if (link && link_is_up(link))
			return link;
		if (link)
			link_put(link);
		if (s->engine->frozen) /* it waits for this step to end */
			return NULL;
		if (!w.joining[here][remote] && !w.engine[remote].frozen)
			world_join(here, remote);
		else
			sched_sleep(1000000);
	}
	return NULL;
}

struct kv_layers step_layers(struct step *s)
{
	switch (step_draw(s, 3)) {
	case 0:
		return (struct kv_layers){ step_draw(s, LAYERS), 1 };
	case 1:
		return (struct kv_layers){ step_draw(s, LAYERS), 0 };
	default:
		return (struct kv_layers){ 0, 0 };
	}
}

/* ---------------------------------------------------------------- blocks */

bool step_sources(struct step *s, int cache, size_t n, int64_t *src)
{
	int first = SOURCE_FIRST + s->actor->number % ACTORS_EACH * SOURCES;
	size_t got = 0;

	for (; got < n && s->taken < SOURCES; s->taken++)
		if (!w.source[s->engine->number][cache][first + s->taken])
			src[got++] = first + s->taken;
	return got == n;
}

static bool in_slot(int engine, int cache, int64_t block)
{
	for (int i = 0; i < SLOTS; i++)
		for (size_t k = 0; w.slot[i].link && w.slot[i].to == engine &&
				   w.slot[i].cache == cache && k < w.slot[i].n;
		     k++)
			if (w.slot[i].block[k] == block)
				return true;
	return false;
}

/* Blocks of a range that nobody uses; fewer than n if there are. */
size_t step_blocks(struct step *s, int engine, int cache, int first, int end, size_t n,
		   int64_t *blocks)
{
	int at = first + (int)step_draw(s, (uint32_t)(end - first)), by = step_draw(s, 2) ? 1 : 5;
	size_t got = 0;

	for (int i = 0; i < end - first && got < n; i++) {
		int64_t block = first + (at - first + i * by) % (end - first);
		bool twice = false;

		for (size_t k = 0; k < got; k++)
			twice |= blocks[k] == block;
		if (!twice && !model_is_held(engine, cache, block) &&
		    !in_slot(engine, cache, block))
			blocks[got++] = block;
	}
	return got;
}

/* ---------------------------------------------------------------- one operation */

struct flight *flight_new(struct step *s, struct link *link, int cache)
{
	struct flight *f = &s->flight[s->flights];

	if (s->flights == FLIGHTS)
		return NULL;
	memset(f, 0, sizeof(*f));
	f->options.size = sizeof(f->options);
	f->link = link;
	f->cache = cache;
	f->layers = step_layers(s);
	f->options.timeout_ms = step_timeout_ms(s);
	s->flights++;
	return f;
}

void flight_drop(struct step *s)
{
	s->flights--;
}

/* From here on it may land. */
void flight_begin(struct step *s, struct flight *f)
{
	int here = s->engine->number, there = f->link->remote;

	f->op = model_op(f->reads ? there : here, f->reads ? here : there, f->cache, f->layers,
			 f->src, f->dst, f->n, f->reads);
	for (size_t i = 0; i < f->n && !f->reads; i++)
		w.source[here][f->cache][f->src[i]] = f->link;
	if (!f->options.tag)
		f->options.tag = f->op->stamp;
	f->deadline_ns = sched_now_ns() + (f->options.timeout_ms + DRAIN_MS) * 1000000;
}

/* A write into the open cache, or under a lease. */
struct flight *flight_write(struct step *s, struct link *link, size_t n)
{
	struct flight *f;
	struct slot *slot = NULL;
	int here = s->engine->number;
	bool leased = step_draw(s, 4);

	for (int i = 0, at = (int)step_draw(s, SLOTS); i < SLOTS && leased && !slot; i++) {
		struct slot *can = &w.slot[(at + i) % SLOTS];

		if (can->link && can->id && can->from == here && can->to == link->remote)
			slot = can;
	}
	f = flight_new(s, link, slot ? slot->cache : 1);
	if (!f)
		return NULL;
	if (slot) {
		f->options.lease = slot->id;
		for (size_t i = 0; i < slot->n && f->n < n; i++)
			if (!model_is_held(slot->to, slot->cache, slot->block[i]))
				f->dst[f->n++] = slot->block[i];
	} else {
		f->n = step_blocks(s, link->remote, 1, TARGET_FIRST, CONST_FIRST, n, f->dst);
	}
	if (!f->n || !step_sources(s, f->cache, f->n, f->src)) {
		flight_drop(s);
		return NULL;
	}
	flight_begin(s, f);
	return f;
}

struct flight *flight_read(struct step *s, struct link *link, size_t n)
{
	struct flight *f = flight_new(s, link, 1);

	if (!f)
		return NULL;
	f->reads = true;
	f->n = step_blocks(s, s->engine->number, 1, LAND_FIRST, BLOCKS, n, f->dst);
	for (size_t i = 0; i < f->n; i++)
		f->src[i] = CONST_FIRST + step_draw(s, LAND_FIRST - CONST_FIRST);
	if (!f->n) {
		flight_drop(s);
		return NULL;
	}
	flight_begin(s, f);
	return f;
}

void flight_issue(struct step *s, struct flight *f)
{
	struct kv_cache *cache = s->engine->cache[f->cache];
	struct kv_error err;

	if (f->reads)
		f->ret = TIMED(kv_read_blocks_async, f->options.timeout_ms, f->link->peer, cache,
			       f->layers, f->dst, f->src, f->n, &f->options, &f->kv, &err);
	else
		f->ret = TIMED(kv_write_blocks_async, f->options.timeout_ms, f->link->peer, cache,
			       f->layers, f->src, f->dst, f->n, &f->options, &f->kv, &err);
	if (f->ret)
		f->kv = NULL;
}

/* A call that was right does not get a code that says it was not. */
static void judge(const struct flight *f)
{
	switch (f->ret) {
	case KV_ERR_ARG:
	case KV_ERR_BLOCK_ID:
	case KV_ERR_DUP_BLOCK:
	case KV_ERR_INTERNAL:
	case KV_ERR_PROTOCOL:
	case KV_ERR_FORKED:
		sim_fail("operation %u ended with %s", f->op->stamp, kv_error_name(f->ret));
	default:
		break;
	}
	if (f->ret == KV_ERR_GEOMETRY && !f->options.tag)
		sim_fail("operation %u ended with %s", f->op->stamp, kv_error_name(f->ret));
}

static bool is_up(struct link *link)
{
	bool up;

	if (link->closing || link->dead)
		return false;
	link->users++;
	up = link_is_up(link);
	link->users--;
	return up;
}

/* It has ended with f->ret. */
static void settle(struct step *s, struct flight *f)
{
	bool up = f->ret && !f->left && is_up(f->link);

	judge(f);
	if (f->ret)
		sim_say("operation %u: %s", f->op->stamp, kv_error_name(f->ret));
	if (!f->ret) {
		model_good(f->op);
		model_over(f->op);
	} else if (up) {
		fake_land();
		model_over(f->op);
	} else {
		model_doubt(f->op);
	}
	if (f->op->state == MODEL_OVER || f->link->dead)
		for (size_t i = 0; i < f->n && !f->reads; i++)
			w.source[s->engine->number][f->cache][f->src[i]] = NULL;
}

void flight_free(struct step *s, struct flight *f)
{
	struct kv_error err;
	int ret = f->kv ? TIMED(kv_op_free, 0, f->kv, &err) : 0;

	if (ret)
		sim_fail("an operation that has ended is not freed: %s", err.message);
	f->kv = NULL;
	settle(s, f);
}

/* Until it has ended: it does so in time, and only once. */
void flight_await(struct step *s, struct flight *f)
{
	struct sched_counts before, now;

	sched_counts(&before);
	while (f->kv) {
		struct kv_error err = { 0 };
		int64_t ms = 1 + (int64_t)step_draw(s, 400);
		int ret;

		if (step_draw(s, 8) == 0) {
			ret = TIMED(kv_cancel, ms, f->kv, ms, &err);
			if (ret && ret != KV_ERR_BUSY)
				sim_fail("kv_cancel: %s", err.message);
		}
		sched_counts(&now);
		ret = TIMED(kv_wait, ms, f->kv, KV_ACKED, ms, &err);
		if (ret == KV_ERR_TIMEOUT && !strcmp(err.op, "wait")) {
			/*
			 * As it was before the call, which has a slack of its own. What is with a
			 * device that does not give up its queue pairs goes on until it does.
			 */
			if (!faults_device_is_slow(s->engine->number) &&
			    now.now_ns - (now.stalled_ns - before.stalled_ns) > f->deadline_ns)
				sim_fail("operation %u has not ended %lld ms after its deadline",
					 f->op->stamp,
					 (long long)((now.now_ns - f->deadline_ns) / 1000000) +
						 DRAIN_MS);
			continue;
		}
		f->ret = ret;
		if (TIMED(kv_test, 0, f->kv, NULL) != (ret ? ret : KV_ACKED))
			sim_fail("operation %u ended twice: %s, then %d", f->op->stamp,
				 kv_error_name(ret), kv_test(f->kv, NULL));
		break;
	}
	flight_free(s, f);
}
