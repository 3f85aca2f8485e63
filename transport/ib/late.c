/* SPDX-License-Identifier: Apache-2.0 */
/*
 * late.c -- ports that were down or failing when the context was opened, and those whose device has
 * failed since: they become rails once they work
 *
 * New connections ask for it (ib_late_look), at most every IB_LATE_MS. Opening a device and
 * registering all memory with it take long, so that is a job in a thread of its own: no call waits
 * for it. From ctx->taking on a new registration serves the new rail, too; the job registers the
 * older regions; when the rail has all of them it is published (ctx->rails), and connections made
 * from then on use it.
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

static struct ib_mr *without(const struct ib_ctx *ctx, int rail)
{
	struct ib_mr *mr = ctx->mrs;

	while (mr && mr->rails > rail)
		mr = mr->next;
	return mr;
}

/* Registers what is registered with the others; true: the rail is one of them now. */
static bool join_rail(struct ib_ctx *ctx, const struct ib_rail *fresh, struct kv_error *why)
{
	struct ib_mr *mr;
	int r, ret = 0;

	pthread_mutex_lock(&ctx->lock);
	r = ctx->rails;
	ctx->rail[r] = *fresh;
	ctx->taking = r + 1;
	while (!ret && (mr = without(ctx, r))) {
		mr->busy = true;
		pthread_mutex_unlock(&ctx->lock);
		ret = ib_mr_extend(ctx, mr, r, why);
		pthread_mutex_lock(&ctx->lock);
		mr->busy = false;
		pthread_cond_broadcast(&ctx->idle);
	}
	if (!ret) {
		atomic_store(&ctx->rails, r + 1);
	} else {
		ctx->taking = r;
		while (ctx->regs) /* that may have begun with the rail */
			pthread_cond_wait(&ctx->idle, &ctx->lock);
		for (mr = ctx->mrs; mr; mr = mr->next)
			ib_mr_shrink(ctx, mr, r);
	}
	pthread_mutex_unlock(&ctx->lock);
	return !ret;
}

/* True: the port needs not be looked at again. */
static bool try_port(struct ib_ctx *ctx, struct ibv_device *device, struct ib_absent *absent)
{
	struct ib_rail fresh;
	struct kv_error why;
	int ret = ib_rail_open(ctx, &fresh, device, absent->port, &why);

	if (ret)
		return ret == KV_ERR_ARG; /* there is no such port */
	if (ib_speed_is_far_slower(ctx, &fresh)) {
		ib_rail_close(ctx, &fresh);
		return true;
	}
	if (join_rail(ctx, &fresh, &why)) {
		kv_log_warn(ctx->tr->log, "ib: %s works now and is used: %s", fresh.name,
			    fresh.address.reason);
		return true;
	}
	if (!absent->told)
		kv_log_warn(ctx->tr->log, "ib: %s works now, but not for all registered memory: %s",
			    fresh.name, why.message);
	absent->told = true;
	ib_rail_close(ctx, &fresh);
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

		for (int d = 0; list && d < n && ctx->rails < IB_RAILS_MAX; d++)
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

/* The places of failed ports are not used again: connections may know them by their number. */
static void say_full(struct ib_ctx *ctx)
{
	if (ctx->full || !ctx->absents || ctx->rails < IB_RAILS_MAX)
		return;
	ctx->full = true;
	kv_log_warn(
		ctx->tr->log,
		"ib: %s has failed, and is not looked for again: this engine has opened %d ports, and "
		"opens no more; close the engine and open it again",
		ctx->absent[ctx->absents - 1].device, IB_RAILS_MAX);
}

/* A device that has failed may come back under its name; connections of its old life are gone. */
static void note_dead(struct ib_ctx *ctx)
{
	for (int i = 0; i < ctx->rails; i++) {
		struct ib_rail *rail = &ctx->rail[i];
		char device[sizeof(rail->name)];

		if ((!atomic_load(&rail->dead) && !atomic_load(&rail->lame)) || rail->noted)
			continue;
		rail->noted = true;
		snprintf(device, sizeof(device), "%.*s", (int)strcspn(rail->name, ":"), rail->name);
		ib_late_note(ctx, device, rail->port);
	}
}

void ib_late_look(struct ib_ctx *ctx)
{
	int64_t now = kv_now_ns();

	pthread_mutex_lock(&ctx->lock);
	if (ib_late_busy(ctx))
		goto unlock;
	note_dead(ctx);
	say_full(ctx);
	if (!ctx->absents || ctx->rails == IB_RAILS_MAX || now < ctx->late_next_ns)
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
