/* SPDX-License-Identifier: Apache-2.0 */
/*
 * late.c -- ports that were down or failing when the context was opened, and those whose device has
 * failed since: they become rails once they work
 *
 * New connections ask for it (ib_late_look), at most every IB_LATE_MS. Opening a device and
 * registering all memory with it take long, so that is a job in a thread of its own: no call waits
 * for it. Once it is in ctx->taking new registrations serve the new rail, too; the job registers
 * the older regions; when the rail has all of them it is published (ctx->open), and connections
 * made from then on use it.
 *
 * It gets the place of the port's failed rail, or another one, if need be that of another failed
 * rail. A failed rail has a place until then, so that it is listed as failed, and as long
 * as it has users: to one of these the number of a rail never means another rail.
 */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "base/log.h"
#include "base/thread.h"
#include "ib.h"

enum { LATE_FREE = 0, LATE_BUSY, LATE_DONE };

void ib_late_note(struct ib_ctx *ctx, const char *device, uint8_t port)
{
	struct ib_absent *absent = &ctx->absent[ctx->absents];

	if (ctx->absents == IB_PORTS_MAX)
		return;
	snprintf(absent->device, sizeof(absent->device), "%s", device);
	absent->port = port;
	ctx->absents++;
}

/* A region that the rail has, or has not. Under the lock. */
static struct ib_mr *find_mr(const struct ib_ctx *ctx, uint32_t rail, bool has)
{
	struct ib_mr *mr = ctx->mrs;

	while (mr && !(mr->have & rail) == has)
		mr = mr->next;
	return mr;
}

/* Under the lock; for verbs on the region it gives it up. */
static void begin_at(struct ib_ctx *ctx, struct ib_mr *mr)
{
	mr->busy = true;
	pthread_mutex_unlock(&ctx->lock);
}

static void end_at(struct ib_ctx *ctx, struct ib_mr *mr)
{
	pthread_mutex_lock(&ctx->lock);
	mr->busy = false;
	pthread_cond_broadcast(&ctx->idle);
}

/*
 * Closes the rail, which no connection uses: from here on it gets no users, and registrations that
 * have begun with it are waited for. Under the lock.
 */
static void empty_place(struct ib_ctx *ctx, int r)
{
	struct ib_rail *rail = &ctx->rail[r];
	struct ib_mr *mr;

	ctx->open &= ~(UINT32_C(1) << r);
	ctx->taking &= ~(UINT32_C(1) << r);
	while ((mr = find_mr(ctx, UINT32_C(1) << r, true)) || rail->users) {
		if (!mr) {
			pthread_cond_wait(&ctx->idle, &ctx->lock);
			continue;
		}
		begin_at(ctx, mr);
		ib_mr_drop(ctx, mr, UINT32_C(1) << r);
		end_at(ctx, mr);
	}
	pthread_mutex_unlock(&ctx->lock);
	ib_rail_close(ctx, rail);
	pthread_mutex_lock(&ctx->lock);
	memset(rail, 0, sizeof(*rail));
}

/* The place of a failed rail, of this name if one is given, that nobody uses any more; or -1. */
static int failed_place(const struct ib_ctx *ctx, const char *name)
{
	for (int r = 0; r < IB_RAILS_MAX; r++) {
		const struct ib_rail *rail = &ctx->rail[r];

		if (rail->context && ib_rail_failed(rail) && !rail->users &&
		    (!name || !strcmp(rail->name, name)))
			return r;
	}
	return -1;
}

static int empty_one(const struct ib_ctx *ctx)
{
	for (int r = 0; r < IB_RAILS_MAX; r++)
		if (!ctx->rail[r].context)
			return r;
	return -1;
}

/* The places that the port has had are emptied; another failed one's, if it takes that. -1: none */
static int take_place(struct ib_ctx *ctx, const char *name)
{
	int r;

	pthread_mutex_lock(&ctx->lock);
	while ((r = failed_place(ctx, name)) >= 0)
		empty_place(ctx, r);
	if (empty_one(ctx) < 0 && (r = failed_place(ctx, NULL)) >= 0)
		empty_place(ctx, r);
	r = empty_one(ctx);
	pthread_mutex_unlock(&ctx->lock);
	return r;
}

/* Registers what is registered with the others; true: the rail is one of them now. */
static bool join_rail(struct ib_ctx *ctx, int r, const struct ib_rail *fresh, struct kv_error *why)
{
	struct ib_mr *mr;
	int ret = 0;

	pthread_mutex_lock(&ctx->lock);
	ctx->rail[r] = *fresh;
	ctx->taking |= UINT32_C(1) << r;
	while (!ret && (mr = find_mr(ctx, UINT32_C(1) << r, false))) {
		begin_at(ctx, mr);
		ret = ib_mr_add(ctx, mr, r, why);
		end_at(ctx, mr);
	}
	if (ret) {
		empty_place(ctx, r);
	} else {
		ctx->open |= UINT32_C(1) << r;
		if (r >= ctx->rails)
			atomic_store(&ctx->rails, r + 1);
	}
	pthread_mutex_unlock(&ctx->lock);
	return !ret;
}

/* True: the port needs not be looked at again. */
static bool try_port(struct ib_ctx *ctx, struct ibv_device *device, struct ib_absent *absent)
{
	struct ib_rail fresh;
	struct kv_error why;
	int ret = ib_rail_open(ctx, &fresh, device, absent->port, &why), place;

	if (ret)
		return ret == KV_ERR_ARG; /* there is no such port */
	if (ib_speed_is_far_slower(ctx, &fresh)) {
		ib_rail_close(ctx, &fresh);
		return true;
	}
	place = take_place(ctx, fresh.name);
	if (place < 0) {
		ib_rail_close(ctx, &fresh);
		return false;
	}
	if (join_rail(ctx, place, &fresh, &why)) {
		kv_log_warn(ctx->tr->log, "ib: %s works now and is used: %s", fresh.name,
			    fresh.address.reason);
		return true;
	}
	if (!absent->told)
		kv_log_warn(ctx->tr->log, "ib: %s works now, but not for all registered memory: %s",
			    fresh.name, why.message);
	absent->told = true;
	return false; /* a device that is still in trouble, or a limit that may be raised */
}

static void look(struct ib_ctx *ctx)
{
	struct ibv_device **list;
	int n = 0, kept = 0;

	list = ctx->v->get_device_list(&n);
	for (int i = 0; i < ctx->absents; i++) {
		struct ib_absent absent = ctx->absent[i];
		bool done = false;

		for (int d = 0; list && d < n; d++)
			if (!strcmp(ctx->v->get_device_name(list[d]), absent.device))
				done = try_port(ctx, list[d], &absent);
		if (!done)
			ctx->absent[kept++] = absent;
	}
	ctx->absents = kept;
	if (list)
		ctx->v->free_device_list(list);
}

static void *late_main(void *arg)
{
	struct ib_ctx *ctx = arg;

	look(ctx);
	atomic_store(&ctx->late, LATE_DONE);
	return NULL;
}

/* A device that has failed may come back under its name; connections of its old life are gone. */
static void note_dead(struct ib_ctx *ctx)
{
	for (uint32_t left = ctx->open; left; left &= left - 1) {
		struct ib_rail *rail = &ctx->rail[__builtin_ctz(left)];
		char device[sizeof(rail->name)];

		if (!ib_rail_failed(rail) || rail->noted)
			continue;
		rail->noted = true;
		snprintf(device, sizeof(device), "%.*s", (int)strcspn(rail->name, ":"), rail->name);
		ib_late_note(ctx, device, rail->port);
	}
}

void ib_late_look(struct ib_ctx *ctx)
{
	uint32_t rails = ib_rails_use(ctx, false);
	int64_t now = kv_now_ns();

	ib_async_drain(ctx, rails);
	ib_rails_let_go(ctx, rails);
	pthread_mutex_lock(&ctx->lock);
	if (ib_late_busy(ctx))
		goto unlock;
	note_dead(ctx);
	if (!ctx->absents || now < ctx->late_next_ns ||
	    (empty_one(ctx) < 0 && failed_place(ctx, NULL) < 0))
		goto unlock;
	ctx->late_next_ns = now + IB_LATE_MS * KV_NS_PER_MS;
	atomic_store(&ctx->late, LATE_BUSY);
	if (!ctx->inline_jobs && kv_thread_start(&ctx->late_thread, NULL, late_main, ctx))
		atomic_store(&ctx->late, LATE_FREE); /* the next connection tries again */
unlock:
	pthread_mutex_unlock(&ctx->lock);
	if (ctx->inline_jobs && atomic_load(&ctx->late) == LATE_BUSY) {
		look(ctx);
		atomic_store(&ctx->late, LATE_FREE);
	}
}

bool ib_late_busy(struct ib_ctx *ctx)
{
	if (atomic_load(&ctx->late) == LATE_DONE) {
		pthread_join(ctx->late_thread, NULL);
		atomic_store(&ctx->late, LATE_FREE);
	}
	return atomic_load(&ctx->late) == LATE_BUSY;
}
