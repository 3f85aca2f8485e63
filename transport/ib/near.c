/* SPDX-License-Identifier: Apache-2.0 */
/* near.c -- which devices are near the GPU that the cache belongs to */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/log.h"
#include "ib.h"

/*
 * A GPU that is named by its address must be there. A number or UUID means something only to a
 * driver that may not be here (another vendor's, or none in a container), and then every device is
 * as near as any other.
 */
int ib_near_gpu(struct ib_ctx *ctx, const char *word, struct kv_log *log, struct kv_error *err)
{
	char address[sizeof(ctx->gpu.address)];

	if (!*word || pci_gpu_find(ctx->sysroot, word, &ctx->gpu))
		return 0;
	if (pci_address_parse(word, address, sizeof(address))) {
		kv_fail(err, KV_ERR_DEVICE, "open",
			"KVCACHE_GPU names %s, which is not a PCI device", address);
		kv_error_hint(err, "nvidia-smi --query-gpu=pci.bus_id --format=csv lists them");
		return KV_ERR_DEVICE;
	}
	kv_log_info(log,
		    "ib: KVCACHE_GPU is %s, which no driver here knows: no device is preferred",
		    word);
	return 0;
}

void ib_near_place(const struct ib_ctx *ctx, const char *device, struct pci_place *place)
{
	char link[128];

	snprintf(link, sizeof(link), "class/infiniband/%s/device", device);
	pci_place_find(ctx->sysroot, link, place);
}

enum pci_distance ib_near_distance(const struct ib_ctx *ctx, const char *device)
{
	struct pci_place place;

	ib_near_place(ctx, device, &place);
	return pci_between(&ctx->gpu, &place);
}
