/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_admit.c -- the decode rank's scheduler: which blocks a request gets, and when they come
 * back
 */
#include "replay_admit.h"

#include <stdlib.h>

#include "util.h"

static void release_all(struct admit *a, struct admitted *x)
{
	uint32_t i;

	for (i = 0; i < x->held; i++)
		pool_release(a->pool, (uint32_t)x->ids[i]);
	free(x->ids);
	x->ids = NULL;
	x->held = 0;
}

static void release_until(struct admit *a, uint64_t clock_ms)
{
	uint32_t i = 0;

	while (i < a->runs) {
		if (a->running[i].end_ms > clock_ms) {
			i++;
			continue;
		}
		release_all(a, &a->running[i]);
		a->running[i] = a->running[--a->runs];
	}
}

/* The longest run of prefix blocks that is held, each with a reference. */
static void take_prefix(struct admit *a, const struct trace_request *r, struct admitted *got)
{
	uint32_t id;
	uint64_t key;

	while (got->hits < got->blocks) {
		key = schedule_key(a->cut, r, got->hits);
		id = key == POOL_NO_KEY ? POOL_NO_BLOCK : pool_take(a->pool, key);
		if (id == POOL_NO_BLOCK)
			break;
		got->ids[got->hits++] = id;
	}
}

static enum admit_status try_admit(struct admit *a, const struct trace_request *r,
				   struct admitted *got)
{
	uint32_t half = a->pool->blocks / 2, need, n;

	got->ids = need_calloc(got->blocks, sizeof(*got->ids));
	take_prefix(a, r, got);
	while (got->blocks > half && got->hits > half)
		pool_release(a->pool, (uint32_t)got->ids[--got->hits]);
	got->held = got->hits;
	need = got->blocks - got->hits;
	if (got->blocks <= half || need == 0) {
		if (pool_alloc(a->pool, need, got->ids + got->hits))
			goto wait;
		got->held += need;
		return ADMIT_OK;
	}
	n = pool_available(a->pool);
	if (n > half)
		n = half;
	if (n > need)
		n = need;
	if (n == 0 || (n < need && n < a->pool->blocks / 8))
		goto wait;
	if (pool_alloc(a->pool, n, got->ids + got->hits))
		goto wait;
	got->held += n;
	got->window = n;
	return ADMIT_OK;

wait:
	release_all(a, got);
	got->hits = 0;
	return ADMIT_WAIT;
}

enum admit_status admit_request(struct admit *a, const struct trace_request *r, uint32_t number,
				struct admitted *got)
{
	uint64_t next_ms;
	uint32_t i;

	if (a->clock_ms < r->timestamp_ms)
		a->clock_ms = r->timestamp_ms;
	release_until(a, a->clock_ms);
	*got = (struct admitted){ .request = number, .blocks = schedule_blocks(a->cut, r) };
	while (try_admit(a, r, got) == ADMIT_WAIT) {
		if (a->runs == 0)
			return ADMIT_WAIT;
		next_ms = UINT64_MAX;
		for (i = 0; i < a->runs; i++)
			if (a->running[i].end_ms < next_ms)
				next_ms = a->running[i].end_ms;
		a->clock_ms = next_ms;
		release_until(a, a->clock_ms);
	}
	got->end_ms = a->clock_ms + (uint64_t)r->output_tokens * a->step_ms;
	return ADMIT_OK;
}

void admit_finished(struct admit *a, struct admitted *done)
{
	struct admitted *grown;

	if (a->runs == a->room) {
		grown = need_calloc((size_t)a->room * 2 + 16, sizeof(*grown));
		for (a->room = 0; a->room < a->runs; a->room++)
			grown[a->room] = a->running[a->room];
		a->room = a->runs * 2 + 16;
		free(a->running);
		a->running = grown;
	}
	a->running[a->runs++] = *done;
	done->ids = NULL;
	done->held = 0;
}

void admit_dropped(struct admit *a, struct admitted *lost)
{
	release_all(a, lost);
}

void admit_free(struct admit *a)
{
	release_until(a, UINT64_MAX);
	free(a->running);
}
