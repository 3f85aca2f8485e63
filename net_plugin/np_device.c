/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_device.c -- the devices that NCCL sees: the RDMA ports of this host in PCI order, or shared
 * memory where there is none
 *
 * Shared memory is not a device beside a NIC: NCCL would take it for a way to other hosts. Between
 * ranks of one host every device uses it anyway, because the transport prefers it. Nor is it one
 * where the launcher says that the job has ranks on other hosts: without a device NCCL takes its
 * own network, with this one it would fail in connect.
 */
#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <kvrail/kv.h>

#include "base/text.h"
#include "np.h"

enum {
	/*
	 * One core copying. NCCL makes its channels by it, and all of them are copied by the one
	 * thread that it has for a communicator: two channels stay in its caches, the eight that it
	 * makes at 80000 do not.
	 */
	HOST_MBPS = 48000,
	COMMS_MAX = 65536,
	/*
	 * Where the speed of no port is known. NCCL counts by it what a
	 * channel can carry: a number that is too low costs half the bandwidth, one that is too
	 * high next to nothing.
	 */
	UNKNOWN_MBPS = 400000,
};

static struct {
	pthread_mutex_t lock;
	struct np_device dev[NP_DEVICES_MAX];
	int n; /* with virtual ones */
	int physical;
} table = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* ---------------------------------------------------------------- sysfs */

/* "9803:9b03:0012:3456" */
static uint64_t parse_guid(const char *text)
{
	uint64_t guid = 0;

	for (; *text; text++)
		if (isxdigit((unsigned char)*text))
			guid = guid << 4 | (uint64_t)strtol((char[]){ *text, 0 }, NULL, 16);
	return guid;
}

/* What the transport does not know, and the path of the PCI device as NCCL's topology has it. */
static void fill_from_sysfs(struct np_device *dev, const char *rdma, const char *pci)
{
	char path[160], line[64], real[PATH_MAX];

	if (kv_file_line(line, sizeof(line), "/sys/class/infiniband/%s/sys_image_guid", rdma))
		dev->guid = parse_guid(line);
	snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s", pci);
	if (*pci && realpath(path, real)) /* a software device has none */
		snprintf(dev->pci_path, sizeof(dev->pci_path), "%.255s", real);
}

/* ---------------------------------------------------------------- finding them */

/* A GPU's memory only where it was asked for: NCCL uses whatever is reported to it. */
static int ptr_support(const struct kv_device_info *info, const struct kv_option_set *set)
{
	int reach = kv_option_bool(set, KV_OPT_NET_GDR) ? info->gpu_reach : 0;

	return NCCL_PTR_HOST | (reach & KV_GPU_PEERMEM ? NCCL_PTR_CUDA : 0) |
	       (reach & KV_GPU_DMABUF ? NCCL_PTR_DMABUF : 0);
}

static void add_ib(const struct kv_device_info *info, const struct kv_option_set *set)
{
	const char *colon = strchr(info->name, ':');
	int port = colon ? (int)strtol(colon + 1, NULL, 10) : 1;
	char name[sizeof(info->name)];
	struct np_device *dev = &table.dev[table.n];

	snprintf(name, sizeof(name), "%.*s", (int)strcspn(info->name, ":"), info->name);
	if (!np_name_matches(np_env_text("NCCL_IB_HCA"), name, port)) {
		np_info("%s is left out by NCCL_IB_HCA", info->name);
		return;
	}
	if (table.n == NP_DEVICES_MAX / 2) /* the rest is for virtual ones */
		return;
	memset(dev, 0, sizeof(*dev));
	snprintf(dev->name, sizeof(dev->name), "%s", info->name);
	snprintf(dev->link, sizeof(dev->link), "%s", info->link);
	dev->port = port;
	dev->speed_mbps = (int)info->speed_mbps;
	dev->ptr_support = ptr_support(info, set);
	fill_from_sysfs(dev, name, info->pci);
	table.n++;
}

/*
 * A GPU's memory, where CUDA runs in this process, which NCCL has started by now: then the GPUs of
 * the two ranks copy (KVCACHE_NET_GDR).
 */
static int host_ptr_support(const struct kv_option_set *set)
{
	struct kv_error err;

	if (!kv_option_bool(set, KV_OPT_NET_GDR))
		return NCCL_PTR_HOST;
	if (!strcmp(np_env_text("NCCL_CUMEM_ENABLE"), "0"))
		kv_fail(&err, KV_ERR_UNSUPPORTED, "init", "NCCL_CUMEM_ENABLE is 0");
	else if (!tr_runs_cuda(&err))
		return NCCL_PTR_HOST | NCCL_PTR_CUDA;
	np_info("shm: no GPU memory: %s", err.message);
	return NCCL_PTR_HOST;
}

static void add_host(const struct kv_option_set *set)
{
	struct np_device *dev = &table.dev[table.n++];
	char line[64];

	memset(dev, 0, sizeof(*dev));
	snprintf(dev->name, sizeof(dev->name), "shm");
	/* The same for all ranks that can reach each other, another one elsewhere. */
	if (kv_file_line(line, sizeof(line), "/proc/sys/kernel/random/boot_id"))
		dev->guid = parse_guid(line);
	dev->speed_mbps = HOST_MBPS;
	dev->port = 1;
	dev->is_host = true;
	dev->ptr_support = host_ptr_support(set);
}

/* One of unknown speed counts as the fastest. */
static void guess_speeds(void)
{
	int fastest = 0;

	for (int i = 0; i < table.n; i++)
		if (table.dev[i].speed_mbps > fastest)
			fastest = table.dev[i].speed_mbps;
	for (int i = 0; i < table.n; i++)
		if (!table.dev[i].speed_mbps)
			table.dev[i].speed_mbps = fastest ? fastest : UNKNOWN_MBPS;
}

static int by_pci_path(const void *a, const void *b)
{
	const struct np_device *x = a, *y = b;
	int by_path = strcmp(x->pci_path, y->pci_path);

	return by_path ? by_path : strcmp(x->name, y->name);
}

/* Under the lock. */
static int find(struct kv_error *err)
{
	struct np_options options;
	struct kv_option_set *set;
	struct kv_device_info info;
	struct tr *tr;
	bool host = false;
	char why[128];
	int ret;

	np_env_log_unused();
	np_env_options(&options);
	ret = kv_option_read(options.list, &set, err);
	if (ret)
		return ret;
	ret = tr_open(&(struct tr_config){ .options = set }, &tr, err);
	if (ret)
		goto free_set;
	for (size_t i = 0; !tr_device_get(tr, i, &info); i++) {
		if (!info.usable)
			np_info("%s %s is not used: %s", info.transport, info.name, info.detail);
		else if (!strcmp(info.transport, "shm"))
			host = true;
		else if (!strcmp(info.transport, "ib"))
			add_ib(&info, set);
	}
	tr_close(tr);
	guess_speeds();
	qsort(table.dev, (size_t)table.n, sizeof(table.dev[0]), by_pci_path);
	if (!table.n && host && !np_env_wants_host() &&
	    np_env_is_on_several_hosts(why, sizeof(why)))
		ret = kv_fail(
			err, KV_ERR_DEVICE, "init",
			"this host has no RDMA port, and the job has ranks on other hosts (%s): NCCL takes its own network",
			why);
	else if (!table.n && host)
		add_host(set);
	for (int i = 0; i < table.n; i++) {
		table.dev[i].ndevs = 1;
		table.dev[i].devs[0] = i;
		np_info("device %d is %s, %d Mbit/s, %s%s%s", i, table.dev[i].name,
			table.dev[i].speed_mbps,
			table.dev[i].is_host	   ? "ranks of this host only"
			: table.dev[i].pci_path[0] ? table.dev[i].pci_path
						   : "no PCI path",
			table.dev[i].ptr_support & NCCL_PTR_DMABUF ? ", GPU memory by DMA-BUF" : "",
			!(table.dev[i].ptr_support & NCCL_PTR_CUDA) ? ""
			: table.dev[i].is_host			    ? ", GPU memory by CUDA"
								    : ", by nvidia_peermem");
	}
	table.physical = table.n;
	if (!table.n && !ret)
		ret = kv_fail(err, KV_ERR_DEVICE, "init", "there is no usable device");

free_set:
	kv_option_free(set);
	return ret;
}

int np_devices_find(struct kv_error *err)
{
	int ret = 0;

	pthread_mutex_lock(&table.lock);
	if (!table.n)
		ret = find(err);
	pthread_mutex_unlock(&table.lock);
	return ret;
}

int np_devices_count(void)
{
	int n;

	pthread_mutex_lock(&table.lock);
	n = table.n;
	pthread_mutex_unlock(&table.lock);
	return n;
}

/* An entry never changes once it is counted. */
const struct np_device *np_device_get(int dev)
{
	return dev >= 0 && dev < np_devices_count() ? &table.dev[dev] : NULL;
}

void np_device_nics(const struct np_device *device, char *buf, size_t cap)
{
	struct kv_text text = { buf, cap, 0 };

	buf[0] = 0;
	for (int i = 0; !device->is_host && i < device->ndevs; i++)
		kv_text_add(&text, "%s%s", i ? "," : "", table.dev[device->devs[i]].name);
}

/* ---------------------------------------------------------------- what NCCL gets */

ncclResult_t np_properties(int dev, ncclNetProperties_v12_t *props)
{
	const struct np_device *device = np_device_get(dev);

	if (!device || !props)
		return np_misuse("getProperties: device %d of %d", dev, np_devices_count());
	*props = (ncclNetProperties_v12_t){
		.name = (char *)device->name,
		.pciPath = device->pci_path[0] ? (char *)device->pci_path : NULL,
		.guid = device->guid,
		.ptrSupport = device->ptr_support,
		.speed = device->speed_mbps,
		.port = device->port,
		.maxComms = COMMS_MAX,
		.maxRecvs = NP_GROUP,
		.netDeviceType = NCCL_NET_DEVICE_HOST,
		.vProps.ndevs = device->ndevs,
		.maxP2pBytes = NP_SIZE_MAX,
		.maxCollBytes = NP_SIZE_MAX,
		.maxMultiRequestSize = 1,
		.railId = -1,
		.planeId = -1,
	};
	memcpy(props->vProps.devs, device->devs, sizeof(device->devs));
	return ncclSuccess;
}

/* Under the lock: may these be one? */
static ncclResult_t check_parts(const ncclNetVDeviceProps_v12_t *props)
{
	const struct np_device *first, *part;

	if (props->ndevs < 1 || props->ndevs > NCCL_DEVS_V12)
		return np_misuse("makeVDevice: %d devices; a virtual NIC has 1 to %d", props->ndevs,
				 NCCL_DEVS_V12);
	if (table.n == NP_DEVICES_MAX)
		return np_misuse("makeVDevice: there are %d devices already", table.n);
	for (int i = 0; i < props->ndevs; i++) {
		if (props->devs[i] < 0 || props->devs[i] >= table.physical)
			return np_misuse("makeVDevice: %d is not a physical device",
					 props->devs[i]);
		for (int j = 0; j < i; j++)
			if (props->devs[j] == props->devs[i])
				return np_misuse("makeVDevice: device %d twice", props->devs[i]);
		first = &table.dev[props->devs[0]];
		part = &table.dev[props->devs[i]];
		if (strcmp(first->link, part->link))
			return np_misuse("makeVDevice: %s is %s, %s is %s", first->name,
					 first->link, part->name, part->link);
	}
	return ncclSuccess;
}

ncclResult_t np_make_vdevice(int *dev, ncclNetVDeviceProps_v12_t *props)
{
	struct np_device *device;
	char name[sizeof(device->name)];
	struct kv_text text = { name, sizeof(name), 0 };
	ncclResult_t ret;

	if (!dev || !props)
		return np_misuse("makeVDevice: a pointer is NULL");
	pthread_mutex_lock(&table.lock);
	ret = check_parts(props);
	if (ret)
		goto unlock;
	device = &table.dev[table.n];
	*device = table.dev[props->devs[0]];
	device->speed_mbps = 0;
	device->ndevs = props->ndevs;
	for (int i = 0; i < props->ndevs; i++) {
		const struct np_device *part = &table.dev[props->devs[i]];

		device->devs[i] = props->devs[i];
		device->speed_mbps += part->speed_mbps;
		device->ptr_support &= part->ptr_support;
		kv_text_add(&text, "%s%s", i ? "+" : "", part->name);
	}
	memcpy(device->name, name, sizeof(name));
	*dev = table.n++;
	np_info("device %d is %s", *dev, device->name);

unlock:
	pthread_mutex_unlock(&table.lock);
	return ret;
}
