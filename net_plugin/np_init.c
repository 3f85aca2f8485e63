/* SPDX-License-Identifier: Apache-2.0 */
/* np_init.c -- init, devices, finalize */
#include <stdlib.h>
#include <string.h>

#include "base/fault.h"
#include "np.h"

ncclResult_t np_init(int version, void **ctx_p, const ncclNetCommConfig_v10_t *config,
		     ncclDebugLogger_t logger)
{
	struct np_context *ctx;
	struct kv_error err;

	np_log_set(logger);
	np_info("network interface v%d", version);
	np_end_step();
	if (np_devices_find(&err))
		return np_fail(&err, "init");
	ctx = kv_fault(NP_CONTEXT) ? NULL : calloc(1, sizeof(*ctx));
	if (!ctx) {
		kv_fail(&err, KV_ERR_NOMEM, "init", "cannot allocate a context");
		return np_fail(&err, "init");
	}
	pthread_mutex_init(&ctx->lock, NULL);
	ctx->refs = 1;
	ctx->listens = ctx;
	ctx->shared = version < 11;
	ctx->connecting_report = np_connecting_report;
	ctx->hints_off = !strcmp(np_env_text("NCCL_NET_OPTIONAL_RECV_COMPLETION"), "0");
	ctx->traffic_class = config ? config->trafficClass : -1;
	*ctx_p = ctx;
	return ncclSuccess;
}

ncclResult_t np_devices(int *ndev)
{
	struct kv_error err;

	if (!ndev)
		return np_misuse("devices: a pointer is NULL");
	if (np_devices_find(&err))
		return np_fail(&err, "devices");
	*ndev = np_devices_count();
	return ncclSuccess;
}

/*
 * Connects that NCCL gave up end here; what else is still open keeps the context until it is
 * closed.
 */
ncclResult_t np_finalize(void *context)
{
	struct np_context *ctx = context;

	if (!ctx)
		return np_misuse("finalize: no context");
	np_connecting_end(ctx, INT64_MAX);
	np_end_all(ctx);
	atomic_store(&ctx->finalized, true);
	np_context_put(ctx);
	return ncclSuccess;
}

/*
 * The shapes of traffic that NCCL expects do not matter here. An NCCL that calls this also marks
 * each receive that a GPU watches line by line (np_recv.c).
 */
ncclResult_t np_set_attr(void *context, ncclNetAttr_v11_t *attr)
{
	struct np_context *ctx = context;

	if (ctx && !ctx->hints_off)
		atomic_store_explicit(&ctx->hints, true, memory_order_relaxed);
	return ncclSuccess;
}
