/* SPDX-License-Identifier: Apache-2.0 */
/* users.c -- connections and registrations use rails, which are not closed under them */
#include "ib.h"

uint32_t ib_rails_working(const struct ib_ctx *ctx, uint32_t rails)
{
	uint32_t failed = 0;

	for (uint32_t left = rails; left; left &= left - 1)
		if (ib_rail_failed(&ctx->rail[__builtin_ctz(left)]))
			failed |= left & -left;
	return rails & ~failed;
}

void ib_rails_hold(struct ib_ctx *ctx, uint32_t rails)
{
	for (; rails; rails &= rails - 1)
		ctx->rail[__builtin_ctz(rails)].users++;
}

uint32_t ib_rails_use(struct ib_ctx *ctx, bool failed)
{
	uint32_t rails;

	pthread_mutex_lock(&ctx->lock);
	rails = failed ? ctx->open : ib_rails_working(ctx, ctx->open);
	ib_rails_hold(ctx, rails);
	pthread_mutex_unlock(&ctx->lock);
	return rails;
}

void ib_rails_let_go(struct ib_ctx *ctx, uint32_t rails)
{
	pthread_mutex_lock(&ctx->lock);
	for (; rails; rails &= rails - 1)
		ctx->rail[__builtin_ctz(rails)].users--;
	pthread_cond_broadcast(&ctx->idle);
	pthread_mutex_unlock(&ctx->lock);
}
