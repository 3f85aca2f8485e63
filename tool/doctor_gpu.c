/* SPDX-License-Identifier: Apache-2.0 */
/* doctor_gpu.c -- can a NIC reach the memory of a GPU, and which NIC is near which GPU */
#include "doctor.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/pci.h"

/*
 * CONFIG_NAME=y or =m of the running kernel; `known` false where its configuration is not on the
 * disk.
 */
static bool kernel_has(const struct doctor *d, const char *release, const char *name, bool *known)
{
	char path[160], key[64], value[8];

	snprintf(path, sizeof(path), "/boot/config-%s", release);
	snprintf(key, sizeof(key), "CONFIG_%s=", name);
	*known = doctor_exists(d, "%s", path);
	return doctor_field(d, path, key, value, sizeof(value)) && *value != 'n';
}

/* RDMA registers DMA-BUF memory since Linux 5.12; only NVIDIA's open modules export it. */
static bool dmabuf_works(const struct doctor *d, bool open, const char **why)
{
	unsigned int major = 0, minor = 0;
	char release[96];
	bool known, has;

	doctor_read(d, release, sizeof(release), "/proc/sys/kernel/osrelease");
	sscanf(release, "%u.%u", &major, &minor);
	has = kernel_has(d, release, "DMA_SHARED_BUFFER", &known);
	*why = !open ? "the driver's modules are not the open ones"
	       : major < 5 || (major == 5 && minor < 12) ? "the kernel is older than 5.12"
	       : known && !has ? "the kernel has no CONFIG_DMA_SHARED_BUFFER"
			       : "yes";
	return !strcmp(*why, "yes");
}

static void check_driver(struct doctor *d)
{
	char line[160], release[32];
	const char *why;
	bool open, peermem, dmabuf;

	if (!doctor_exists(d, "/sys/module/nvidia")) {
		doctor_note(d, CHECK_GPU, DOCTOR_OK, "",
			    "no NVIDIA driver is loaded: caches are in host memory");
		return;
	}
	doctor_read(d, line, sizeof(line), "/proc/driver/nvidia/version");
	doctor_read(d, release, sizeof(release), "/sys/module/nvidia/version");
	open = strstr(line, "Open Kernel Module");
	dmabuf = dmabuf_works(d, open, &why);
	peermem = doctor_exists(d, "/sys/module/nvidia_peermem") ||
		  doctor_exists(d, "/sys/module/nv_peer_mem");
	doctor_note(d, CHECK_GPU, peermem || dmabuf || !d->ports ? DOCTOR_OK : DOCTOR_WARN, "",
		    "NVIDIA %s (%s modules); DMA-BUF: %s; nvidia_peermem: %s",
		    *release ? release : "driver", open ? "open" : "proprietary", why,
		    peermem ? "loaded" : "not loaded");
	doctor_fix(d, "modprobe nvidia_peermem, or the open kernel modules (apt-get install "
		      "nvidia-open) for DMA-BUF");
}

/* Each class of distance has its ports: "PIX mlx5_0:1; SYS mlx5_1:1 mlx5_2:1". */
static enum pci_distance describe(const struct doctor *d, const struct pci_place *gpu, char *buf,
				  size_t cap)
{
	enum pci_distance nearest = PCI_DISTANCES;
	size_t used = 0;

	*buf = '\0';
	for (int class = PCI_PIX; class < PCI_DISTANCES; class ++) {
		bool named = false;

		for (size_t i = 0; i < d->ports; i++) {
			struct pci_place nic;
			char link[64];

			snprintf(link, sizeof(link), "class/infiniband/%s/device",
				 d->port[i].device);
			pci_place_find(d->root, link, &nic);
			if ((int)pci_between(gpu, &nic) != class || used >= cap)
				continue;
			used += (size_t)snprintf(
				buf + used, cap - used, "%s%s %s%s", named || !used ? "" : "; ",
				named ? "" : pci_distance_name((enum pci_distance) class),
				d->port[i].name, d->port[i].active ? "" : " (down)");
			named = true;
			if (nearest == PCI_DISTANCES && d->port[i].active)
				nearest = (enum pci_distance) class;
		}
	}
	return nearest;
}

static void check_distance(struct doctor *d)
{
	char address[16], name[32], list[320];

	for (size_t i = 0; pci_gpu_get(d->root, i, address, sizeof(address), NULL, 0); i++) {
		enum pci_distance nearest;
		struct pci_place gpu;

		if (!pci_gpu_find(d->root, address, &gpu))
			continue;
		snprintf(name, sizeof(name), "GPU %zu %s", i, address);
		nearest = describe(d, &gpu, list, sizeof(list));
		doctor_note(d, CHECK_DISTANCE, nearest >= PCI_SYS ? DOCTOR_WARN : DOCTOR_OK, name,
			    "%s", list);
		doctor_fix(d,
			   "no active port in this GPU's NUMA node: bring one up, or place the job "
			   "on a GPU that has one");
	}
}

void doctor_gpu(struct doctor *d)
{
	check_driver(d);
	if (d->ports)
		check_distance(d);
}
