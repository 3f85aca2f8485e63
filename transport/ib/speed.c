/* SPDX-License-Identifier: Apache-2.0 */
/*
 * speed.c -- how fast the ports are, which of them are used for it, and how they share the bytes
 *
 * The verb's field is a code that newer speeds do not fit (XDR is reported as NDR, or not at all),
 * so the rate in sysfs counts where it is higher. A port of unknown speed is never taken for a slow
 * one.
 */
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "base/text.h"
#include "ib.h"

enum { FAR_SLOWER = 4 }; /* times: it would not help, and its pages would be pinned as well */

static unsigned int tenths_by_verbs(const struct ibv_port_attr *attr)
{
	/* SDR, DDR, QDR, FDR10, FDR, EDR, HDR, NDR */
	static const unsigned int per_lane[] = { 25, 50, 100, 100, 140, 250, 500, 1000 };
	static const unsigned int lanes[] = { 1, 4, 8, 12, 2 };
	unsigned int tenths = 0, width = 0;

	for (unsigned int i = 0; i < sizeof(per_lane) / sizeof(per_lane[0]); i++)
		if (attr->active_speed == 1u << i)
			tenths = per_lane[i];
	for (unsigned int i = 0; i < sizeof(lanes) / sizeof(lanes[0]); i++)
		if (attr->active_width == 1u << i)
			width = lanes[i];
	return tenths * width;
}

/* "800 Gb/sec (4X XDR)" */
static unsigned int tenths_by_sysfs(const struct ib_ctx *ctx, const struct ib_rail *rail)
{
	char line[64];
	double rate;

	kv_file_line(line, sizeof(line), "%s/sys/class/infiniband/%.*s/ports/%u/rate", ctx->sysroot,
		     (int)strcspn(rail->name, ":"), rail->name, rail->port);
	rate = strtod(line, NULL);
	return strstr(line, "Gb/sec") && rate > 0 && rate < 100000 ? (unsigned int)(rate * 10) : 0;
}

void ib_speed_find(const struct ib_ctx *ctx, struct ib_rail *rail)
{
	unsigned int verbs = tenths_by_verbs(&rail->port_attr), sysfs = tenths_by_sysfs(ctx, rail);

	rail->gigabits = (verbs > sysfs ? verbs : sysfs) / 10;
}

/* ---------------------------------------------------------------- which are used */

static bool comes_first(const struct ib_rail *x, const struct ib_rail *y, bool by_name)
{
	unsigned int fast = x->gigabits ? x->gigabits : UINT32_MAX;
	unsigned int other = y->gigabits ? y->gigabits : UINT32_MAX;

	return fast != other ? fast > other : by_name && strverscmp(x->name, y->name) < 0;
}

static void leave_out_last(struct ib_ctx *ctx, struct kv_log *log, const char *why)
{
	struct ib_rail *rail = &ctx->rail[ctx->rails - 1];

	ctx->rails--;
	kv_log_info(log, "ib: %s (%u Gb/s) is not used: %s %s (%u Gb/s)", rail->name,
		    rail->gigabits, why, ctx->rail[0].name, ctx->rail[0].gigabits);
	ib_rail_close(ctx, rail);
}

static unsigned int fastest_of(const struct ib_ctx *ctx)
{
	unsigned int fastest = 0;

	for (int i = 0; i < ctx->rails; i++)
		if (ctx->rail[i].gigabits > fastest)
			fastest = ctx->rail[i].gigabits;
	return fastest;
}

bool ib_speed_is_far_slower(const struct ib_ctx *ctx, const struct ib_rail *rail)
{
	return rail->gigabits && rail->gigabits * FAR_SLOWER < fastest_of(ctx);
}

/*
 * The fastest first, equally fast ones in their order (`by_name`: of their names). Then those go
 * that are far slower, unless an option names them, and those past IB_RAILS_MAX.
 */
void ib_speed_choose(struct ib_ctx *ctx, bool by_name, bool named, struct kv_log *log)
{
	for (int i = 1; i < ctx->rails; i++)
		for (int k = i; k && comes_first(&ctx->rail[k], &ctx->rail[k - 1], by_name); k--) {
			struct ib_rail rail = ctx->rail[k];

			ctx->rail[k] = ctx->rail[k - 1];
			ctx->rail[k - 1] = rail;
		}
	while (ctx->rails > IB_RAILS_MAX)
		leave_out_last(ctx, log, "there are enough as fast as");
	while (!named && ctx->rails > 1 && ib_speed_is_far_slower(ctx, &ctx->rail[ctx->rails - 1]))
		leave_out_last(ctx, log, "it is far slower than");
}

/* ---------------------------------------------------------------- how they share */

/* A path is as fast as the slower of its two ports. */
static unsigned int path_gigabits(const struct ib_path *path)
{
	unsigned int own = path->rail->gigabits, peer = path->peer.gigabits;

	return own && peer ? (own < peer ? own : peer) : own + peer;
}

void ib_speed_weigh(struct ib_conn *c)
{
	unsigned int fastest = 0;

	c->uneven = false;
	for (int p = 0; p < c->paths; p++)
		if (path_gigabits(&c->path[p]) > fastest)
			fastest = path_gigabits(&c->path[p]);
	for (int p = 0; p < c->paths; p++) {
		struct ib_path *path = &c->path[p];
		unsigned int gigabits = path_gigabits(path);

		path->weight =
			gigabits && gigabits < fastest ? gigabits * IB_WEIGHT / fastest : IB_WEIGHT;
		path->weight += !path->weight;
		c->uneven |= path->weight != IB_WEIGHT;
	}
}
