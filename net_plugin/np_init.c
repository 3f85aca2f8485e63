/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_init.c -- contexts: one for each communicator of NCCL, and in it one transport for each device
 * that is used
 */
#include <stdio.h>
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

static void close_rail(struct np_rail *rail)
{
	tr_close(rail->tr);
	kv_log_close(rail->log);
	kv_option_free(rail->options);
	*rail = (struct np_rail){ 0 };
}

static int open_rail(const struct np_context *ctx, const struct np_device *device,
		     struct np_rail *rail, struct kv_error *err)
{
	struct np_options options;
	char text[NP_OPTION_TEXT];
	int ret;

	np_env_options(&options);
	np_device_nics(device, text, sizeof(text));
	if (text[0])
		np_options_set(&options, "KVCACHE_RDMA_NICS", text);
	/* Shared memory copies, so ranks of one host take the NIC, too. */
	rail->ptr_support = device->ptr_support;
	if (device->ptr_support != NCCL_PTR_HOST)
		np_options_set(&options, "KVCACHE_TRANSPORT", "ib");
	/*
	 * One number for both, as NCCL's own plugin takes it; NCCL_IB_TC and NCCL_IB_SL come first.
	 */
	snprintf(text, sizeof(text), "%d", ctx->traffic_class);
	if (ctx->traffic_class >= 0 && ctx->traffic_class <= 255)
		np_options_add(&options, "KVCACHE_IB_TRAFFIC_CLASS", text);
	if (ctx->traffic_class >= 0 && ctx->traffic_class <= 15)
		np_options_add(&options, "KVCACHE_IB_SERVICE_LEVEL", text);
	ret = kv_option_read(options.list, &rail->options, err);
	if (ret)
		return ret;
	rail->log = kv_log_open(rail->options, np_log_sink, NULL);
	ret = tr_open(&(struct tr_config){ .options = rail->options, .log = rail->log }, &rail->tr,
		      err);
	if (ret)
		close_rail(rail);
	return ret;
}

int np_rail_get(struct np_context *ctx, int dev, struct np_rail **rail_p, struct kv_error *err)
{
	const struct np_device *device = np_device_get(dev);
	int ret = 0;

	if (!device)
		return kv_fail(err, KV_ERR_ARG, "device", "there is no device %d", dev);
	pthread_mutex_lock(&ctx->lock);
	if (!ctx->rail[dev].tr)
		ret = open_rail(ctx, device, &ctx->rail[dev], err);
	if (!ret) {
		ctx->refs++;
		*rail_p = &ctx->rail[dev];
	}
	pthread_mutex_unlock(&ctx->lock);
	return ret;
}

void np_context_put(struct np_context *ctx)
{
	unsigned int left;

	pthread_mutex_lock(&ctx->lock);
	left = --ctx->refs;
	pthread_mutex_unlock(&ctx->lock);
	if (left)
		return;
	for (int i = 0; i < NP_DEVICES_MAX; i++)
		if (ctx->rail[i].tr)
			close_rail(&ctx->rail[i]);
	pthread_mutex_destroy(&ctx->lock);
	free(ctx);
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

	(void)attr;
	if (ctx && !ctx->hints_off)
		atomic_store_explicit(&ctx->hints, true, memory_order_relaxed);
	return ncclSuccess;
}
