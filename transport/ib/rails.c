/* SPDX-License-Identifier: Apache-2.0 */
/* rails.c -- which ports of which devices become rails: those named, or those near the GPU */
#include <errno.h>
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
int ib_rails_near(struct ib_ctx *ctx, const char *word, struct kv_log *log, struct kv_error *err)
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

static enum pci_distance distance_of(const struct ib_ctx *ctx, const char *device)
{
	struct pci_place place;

	ib_rail_place(ctx, device, &place);
	return pci_between(&ctx->gpu, &place);
}

/* True if `nics` ("mlx5_0,mlx5_1:2", "" = all) names this port. */
static bool named(const char *nics, const char *device, unsigned int port)
{
	size_t len = strlen(device);

	if (!*nics)
		return true;
	for (const char *p = nics; *p;) {
		size_t item = strcspn(p, ",");

		if (item >= len && !memcmp(p, device, len)) {
			if (item == len)
				return true;
			if (p[len] == ':' && strtoul(p + len + 1, NULL, 10) == port)
				return true;
		}
		p += item;
		p += *p == ',';
	}
	return false;
}

/* Every item of `nics` must have become a rail: a misspelt name must not lead to another device. */
static int check_names(const struct ib_ctx *ctx, const char *nics, struct kv_error *err)
{
	for (const char *p = nics; *p;) {
		size_t item = strcspn(p, ",");
		size_t device = strcspn(p, ":,");
		bool found = !item;

		for (int i = 0; i < ctx->rails; i++) {
			const char *name = ctx->rail[i].name;
			size_t len = device == item ? strcspn(name, ":") : strlen(name);

			found |= len == item && !memcmp(name, p, item);
		}
		if (!found) {
			kv_fail(err, KV_ERR_DEVICE, "open",
				"KVCACHE_RDMA_NICS names \"%.*s\", which is not a device with an "
				"active port",
				(int)item, p);
			kv_error_hint(err, "ibv_devinfo lists the devices and the state of their "
					   "ports");
			return KV_ERR_DEVICE;
		}
		p += item;
		p += *p == ',';
	}
	return 0;
}

/*
 * The devices at this distance from the GPU, or all (PCI_DISTANCES). One that cannot be used is
 * left out with a line in the log, and its cause kept in *why; asked for by name it is an error.
 * Being out of memory or descriptors is not a fault of a device.
 */
static int scan(struct ib_ctx *ctx, struct ibv_device **list, int n, const char *nics,
		enum pci_distance distance, struct kv_log *log, struct kv_error *why)
{
	for (int i = 0; i < n; i++) {
		const char *name = ctx->v->get_device_name(list[i]);
		unsigned int ports = 2; /* until the device has been asked */

		if (distance != PCI_DISTANCES && distance_of(ctx, name) != distance)
			continue;
		for (unsigned int port = 1; port <= ports && ctx->rails < IB_PORTS_MAX; port++) {
			struct ib_rail *rail = &ctx->rail[ctx->rails];
			int ret;

			if (!named(nics, name, port))
				continue;
			ret = ib_rail_open(ctx, rail, list[i], (uint8_t)port, why);
			if (rail->attr.phys_port_cnt)
				ports = rail->attr.phys_port_cnt;
			if (!ret) {
				ctx->rails++;
			} else if (ret == KV_ERR_UNSUPPORTED || ret == KV_ERR_UNREACHABLE ||
				   (ret == KV_ERR_DEVICE && !*nics)) {
				kv_log_info(log, "ib: %s is not used: %s", rail->name,
					    why->message);
				ib_late_note(ctx, name, (uint8_t)port);
			} else if (ret != KV_ERR_ARG) {
				return ret;
			}
		}
	}
	return 0;
}

/*
 * All devices, or only the nearest of those that can be used: a farther one does not help where a
 * nearer one is its rail's equal.
 */
static int scan_nearest(struct ib_ctx *ctx, struct ibv_device **list, int n, const char *nics,
			struct kv_log *log, struct kv_error *why)
{
	int ret = 0;

	if (*nics || !*ctx->gpu.address) {
		ret = scan(ctx, list, n, nics, PCI_DISTANCES, log, why);
	} else {
		for (int d = PCI_PIX; d < PCI_DISTANCES && !ctx->rails && !ret; d++)
			ret = scan(ctx, list, n, nics, (enum pci_distance)d, log, why);
	}
	if (!ret)
		ib_speed_choose(ctx, *ctx->gpu.address && !*nics, *nics, log);
	for (int i = 0; i < ctx->rails && !ret; i++) {
		const struct ib_rail *rail = &ctx->rail[i];
		enum pci_distance d = pci_between(&ctx->gpu, &rail->place);

		kv_log_info(log, "ib: rail %d is %s%s%s%s%s: %s", i, rail->name,
			    *ctx->gpu.address ? ", " : "",
			    *ctx->gpu.address ? pci_distance_name(d) : "",
			    *ctx->gpu.address ? " from GPU " : "", ctx->gpu.address,
			    rail->address.reason);
	}
	return ret;
}

static int refuse_none(int n, const struct kv_error *why, struct kv_error *err)
{
	if (!n) {
		kv_fail(err, KV_ERR_UNSUPPORTED, "open", "this machine has no RDMA device");
		kv_error_hint(err, "a software one: rdma link add rxe0 type rxe netdev eth0");
	} else if (why->code == KV_ERR_DEVICE) {
		kv_fail(err, KV_ERR_UNSUPPORTED, "open",
			"none of %d RDMA devices can be used; the last: %.160s", n, why->message);
	} else {
		kv_fail(err, KV_ERR_UNSUPPORTED, "open",
			"none of %d RDMA devices has an active port", n);
		kv_error_hint(err, "bring the link up; ibv_devinfo shows the ports");
	}
	return KV_ERR_UNSUPPORTED;
}

int ib_rails_open(struct ib_ctx *ctx, const char *nics, struct kv_log *log, struct kv_error *err)
{
	struct ibv_device **list;
	struct kv_error why = { 0 };
	int n = 0, ret;

	list = ctx->v->get_device_list(&n);
	if (!list && errno != ENOSYS)
		return kv_fail_errno(err, *nics ? KV_ERR_DEVICE : KV_ERR_UNSUPPORTED, errno, "open",
				     "cannot list the RDMA devices");
	ret = scan_nearest(ctx, list, n, nics, log, &why);
	if (list)
		ctx->v->free_device_list(list);
	if (ret)
		kv_error_copy(err, &why);
	else
		ret = check_names(ctx, nics, err);
	if (!ret && !ctx->rails)
		ret = refuse_none(n, &why, err);
	if (ret)
		ib_rails_close(ctx);
	ctx->open = ctx->taking = (UINT32_C(1) << ctx->rails) - 1;
	return ret;
}

void ib_rails_close(struct ib_ctx *ctx)
{
	while (ctx->rails) {
		ctx->rails--;
		if (ctx->rail[ctx->rails].context)
			ib_rail_close(ctx, &ctx->rail[ctx->rails]);
	}
}
