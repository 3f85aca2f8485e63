/* SPDX-License-Identifier: Apache-2.0 */
/* ib.c -- the ib provider: opened once per context, and the table of what it does */
#include "ib.h"
#include "slot.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kvrail/kv.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/option.h"
#include "base/unload.h"

static void set_limits(struct ib_ctx *ctx)
{
	ctx->slice_bytes = IB_SLICE_BYTES;
	ctx->sysroot = "";
	ctx->sq_depth = IB_SQ_DEPTH;
#ifdef KVRAIL_FAULTS
	if (ib_test_hook.slice_bytes)
		ctx->slice_bytes = ib_test_hook.slice_bytes;
	if (ib_test_hook.sq_depth)
		ctx->sq_depth = ib_test_hook.sq_depth;
	ctx->inline_jobs = ib_test_hook.inline_jobs;
	if (ib_test_hook.sysroot)
		ctx->sysroot = ib_test_hook.sysroot;
#endif
}

static void free_ctx(struct ib_ctx *ctx)
{
	pthread_cond_destroy(&ctx->idle);
	pthread_mutex_destroy(&ctx->lock);
	pthread_mutex_destroy(&ctx->left_lock);
	pthread_mutex_destroy(&ctx->loop_lock);
	free(ctx);
}

static int open_with(const char *nics, const char *gpu, int gid_index, struct kv_log *log,
		     struct ib_ctx **ctx_p, struct kv_error *err)
{
	const struct ib_verbs *v = ib_verbs_load(err);
	struct ib_ctx *ctx;
	int ret;

	if (!v)
		return KV_ERR_UNSUPPORTED;
	/*
	 * As NCCL does it, before anything is registered: on kernels before 5.12 a child of fork
	 * would take registered pages with it, and the device would go on with pages that are the
	 * child's. Newer kernels copy such pages, and the call does nothing.
	 */
	ret = v->fork_init ? v->fork_init() : 0;
	if (ret)
		kv_log_info(log,
			    "ib: ibv_fork_init: %s; a child of fork may harm registered memory",
			    kv_errno_text(ret));
	ctx = kv_fault(IB_CTX_ALLOC) ? NULL : calloc(1, sizeof(*ctx));
	if (!ctx)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate the ib context");
	ctx->v = v;
	ctx->gid_option = gid_index;
	pthread_mutex_init(&ctx->left_lock, NULL);
	pthread_mutex_init(&ctx->loop_lock, NULL);
	pthread_mutex_init(&ctx->lock, NULL);
	pthread_cond_init(&ctx->idle, NULL);
	set_limits(ctx);
	ctx->late_next_ns = kv_deadline_ns(IB_LATE_MS);
	ret = ib_rails_near(ctx, gpu, log, err);
	if (!ret)
		ret = ib_rails_open(ctx, nics, log, err);
	if (ret) {
		free_ctx(ctx);
	} else {
		*ctx_p = ctx;
	}
	return ret;
}

static int ib_open(struct tr *tr, void **ctx_p, struct kv_error *err)
{
	struct ib_ctx *ctx;
	int ret = open_with(kv_option_string(tr->options, KV_OPT_RDMA_NICS),
			    kv_option_string(tr->options, KV_OPT_GPU),
			    (int)kv_option_int(tr->options, KV_OPT_RDMA_GID_INDEX), tr->log, &ctx,
			    err);

	if (ret)
		return ret;
	ctx->tr = tr;
	ctx->relaxed = kv_option_bool(tr->options, KV_OPT_RELAX_ORDERING);
	*ctx_p = ctx;
	return 0;
}

static void ib_close(void *arg)
{
	struct ib_ctx *ctx = arg;

	if (!ib_left_close(ctx)) {
		kv_stay_loaded();
		kv_log_warn(
			ctx->tr->log,
			"a device has not destroyed its queue pairs within %d ms; it stays open",
			IB_CLOSE_MS);
		return;
	}
	ib_rails_close(ctx);
	free_ctx(ctx);
}

static void describe(const struct ib_ctx *ctx, struct ib_rail *rail, struct kv_device_info *info)
{
	struct ib_address now;
	struct kv_error why;

	snprintf(info->name, sizeof(info->name), "%s", rail->name);
	snprintf(info->link, sizeof(info->link), "%s", rail->ethernet ? "RoCE" : "InfiniBand");
	info->usable = !atomic_load(&rail->dead) && !atomic_load(&rail->ill);
	info->speed_mbps = 1000 * rail->gigabits;
	info->mtu_bytes = 128u << rail->port_attr.active_mtu;
	info->lid = rail->address.lid;
	info->numa_node = rail->place.numa_node;
	info->gpu_reach = ib_gpu_reach(ctx, rail);
	memcpy(info->pci, rail->place.address, sizeof(info->pci));
	if (*ctx->gpu.address)
		snprintf(info->distance, sizeof(info->distance), "%s",
			 pci_distance_name(pci_between(&ctx->gpu, &rail->place)));
	snprintf(info->reason, sizeof(info->reason), "%s", rail->address.reason);
	if (!atomic_load(&rail->dead) && ib_rail_address(ctx, rail, NULL, &now, &why)) {
		info->usable = 0;
		snprintf(info->reason, sizeof(info->reason), "%.*s", (int)sizeof(info->reason) - 1,
			 why.message);
	} else if (rail->ethernet && info->usable) {
		info->usable = !ib_gid_is_zero(&now.gid);
		if (info->usable) {
			info->gid_index = now.gid_index;
			ib_gid_text(&now.gid, info->gid, sizeof(info->gid));
		} else {
			snprintf(info->reason, sizeof(info->reason), "%s has no usable GID",
				 rail->name);
		}
	}
	ib_rail_describe(rail, info->detail, sizeof(info->detail));
}

static int describe_nth(struct ib_ctx *ctx, size_t index, struct kv_device_info *info)
{
	uint32_t rails = ib_rails_use(ctx, true), left = rails;

	while (left && index--)
		left &= left - 1;
	if (left)
		describe(ctx, &ctx->rail[__builtin_ctz(left)], info);
	ib_rails_let_go(ctx, rails);
	return left ? 0 : KV_ERR_ARG;
}

/* One row that says why there is none, or a row for each rail. */
static int ib_device_get(void *arg, size_t index, struct kv_device_info *info)
{
	struct ib_ctx *ctx = arg;
	struct kv_error why = { 0 };

	snprintf(info->transport, sizeof(info->transport), "ib");
	if (ctx)
		return describe_nth(ctx, index, info);
	if (index)
		return KV_ERR_ARG;
	snprintf(info->name, sizeof(info->name), "RDMA device");
	info->usable = 0;
	if (!open_with("", "", -1, NULL, &ctx, &why)) {
		ib_close(ctx);
		snprintf(info->detail, sizeof(info->detail),
			 "there are devices, but the options exclude them");
	} else {
		snprintf(info->detail, sizeof(info->detail), "%.80s%s%.76s", why.message,
			 why.hint[0] ? "; " : "", why.hint);
	}
	return 0;
}

/* Connections see what devices have reported when they are armed, or after many idle polls. */
static void ib_alarm(void *provider_ctx)
{
	struct ib_ctx *ctx = provider_ctx;
	uint32_t rails = ib_rails_use(ctx, true);

	ib_async_drain(ctx, rails);
	ib_rails_let_go(ctx, rails);
}

const struct tr_provider tr_ib_provider = {
	.name = "ib",
	.id = TR_PROVIDER_IB,
	.open = ib_open,
	.close = ib_close,
	.device_get = ib_device_get,
	.pins = true,
	.mem_reg = ib_mem_reg,
	.mem_dereg = ib_mem_dereg,
	.mem_usable = ib_mem_usable,
	.offer = ib_offer,
	.start = ib_start,
	.setup_put = ib_setup_put,
	.setup_get = ib_setup_get,
	.stop = ib_stop,
	.mem_pack = ib_mem_pack,
	.mem_open = ib_mem_open,
	.mem_close = ib_mem_close,
	.op_bytes = sizeof(struct ib_op),
	.op_begin = ib_op_begin,
	.op_add = ib_op_add,
	.op_add_blocks = ib_op_add_blocks,
	.op_commit = ib_op_commit,
	.op_cancel = ib_op_cancel,
	.msg = ib_msg,
	.progress = ib_progress,
	.arm = ib_arm,
	.hand_over = ib_hand_over,
	.fence = ib_fence,
	.cut = ib_cut,
	.ask = ib_ask,
	.dump = ib_dump,
	.alarm = ib_alarm,
};
