/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_context.c -- contexts: one for each communicator of NCCL, and in it one transport for each
 * device that is used
 */
#include <stdio.h>
#include <stdlib.h>

#include "np.h"

static void close_rail(struct np_rail *rail)
{
	np_metrics_stop(rail);
	tr_close(rail->tr);
	kv_log_close(rail->log);
	kv_option_free(rail->options);
	*rail = (struct np_rail){ 0 };
}

static int open_rail(struct np_context *ctx, const struct np_device *device, struct np_rail *rail,
		     struct kv_error *err)
{
	struct np_options options;
	struct tr_config config;
	char text[NP_OPTION_TEXT];
	int ret;

	np_env_options(&options);
	np_device_nics(device, text, sizeof(text));
	if (text[0])
		np_options_set(&options, "KVCACHE_RDMA_NICS", text);
	/* A region that NCCL gives as a DMA-BUF is a NIC's: ranks of one host take it, too. */
	rail->ptr_support = device->ptr_support;
	if (device->ptr_support != NCCL_PTR_HOST && !device->is_host)
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
	config = (struct tr_config){ .options = rail->options,
				     .log = rail->log,
				     .gpu_apart = device->is_host &&
						  device->ptr_support != NCCL_PTR_HOST };
	ret = tr_open(&config, &rail->tr, err);
	if (ret)
		close_rail(rail);
	else
		np_metrics_start(ctx, rail, device);
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
