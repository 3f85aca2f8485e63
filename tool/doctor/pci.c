/* SPDX-License-Identifier: Apache-2.0 */
/*
 * pci.c -- cards and GPUs: slots, relaxed ordering, bridges that redirect, which NIC is near a GPU
 */
#include "doctor.h"

#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/pci.h"

enum {
	CONFIG_ALL = 4096,  /* bytes of configuration space */
	CONFIG_PUBLIC = 64, /* of them those that everybody may read */
	CAPABILITIES = 0x34,
	CAPABILITY_PCIE = 0x10,
	DEVICE_CONTROL = 8,
	RELAXED = 1 << 4,
	EXTENDED = 0x100,
	EXTENDED_ACS = 0x0d,
	ACS_CONTROL = 6,
	ACS_REDIRECT = 1 << 2 | 1 << 3, /* of requests and of completions between its ports */
	HOPS_MAX = 48,
};

struct config {
	uint8_t byte[CONFIG_ALL];
	size_t len;
};

static bool config_read(const struct doctor *d, const char *address, struct config *config)
{
	char path[PATH_MAX];
	ssize_t len;
	int fd;

	snprintf(path, sizeof(path), "%s/sys/bus/pci/devices/%s/config", d->root, address);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	len = read(fd, config->byte, sizeof(config->byte));
	close(fd);
	config->len = len < 0 ? 0 : (size_t)len;
	return config->len > CONFIG_PUBLIC;
}

static uint32_t config_get(const struct config *config, size_t at, size_t bytes)
{
	uint32_t value = 0;

	for (size_t i = 0; i < bytes && at + bytes <= config->len; i++)
		value |= (uint32_t)config->byte[at + i] << 8 * i;
	return value;
}

/*
 * Where a capability begins; 0 = the device does not have it. The lists are the device's: never
 * more than HOPS_MAX steps.
 */
static size_t find_capability(const struct config *config, uint32_t id)
{
	size_t at = config_get(config, CAPABILITIES, 1) & 0xfc;

	for (int hop = 0; at && hop < HOPS_MAX; hop++) {
		if (config_get(config, at, 1) == id)
			return at;
		at = config_get(config, at + 1, 1) & 0xfc;
	}
	return 0;
}

static size_t find_extended(const struct config *config, uint32_t id)
{
	size_t at = EXTENDED;

	for (int hop = 0; at >= EXTENDED && hop < HOPS_MAX; hop++) {
		uint32_t head = config_get(config, at, 4);

		if ((head & 0xffff) == id)
			return at;
		at = head >> 20 & 0xffc;
	}
	return 0;
}

/* ---------------------------------------------------------------- cards */

void check_slot(struct doctor *d, const struct doctor_port *port)
{
	char speed[32], best[32], width[16], widest[16], node[16], base[128];
	bool known;

	snprintf(base, sizeof(base), "/sys/class/infiniband/%s/device", port->device);
	if (!*port->address) {
		doctor_note(d, CHECK_PCIE, DOCTOR_OK, port->device, "a software device");
		return;
	}
	known = doctor_read(d, speed, sizeof(speed), "%s/current_link_speed", base) &&
		strncmp(speed, "Unknown", 7);
	doctor_read(d, best, sizeof(best), "%s/max_link_speed", base);
	doctor_read(d, width, sizeof(width), "%s/current_link_width", base);
	doctor_read(d, widest, sizeof(widest), "%s/max_link_width", base);
	doctor_read(d, node, sizeof(node), "%s/numa_node", base);
	if (!known) {
		doctor_note(d, CHECK_PCIE, DOCTOR_OK, port->device,
			    "%s, a virtual function: its slot is the physical function's; NUMA "
			    "node %s",
			    port->address, node);
		return;
	}
	doctor_note(d, CHECK_PCIE,
		    strcmp(speed, best) || strcmp(width, widest) ? DOCTOR_WARN : DOCTOR_OK,
		    port->device, "%s, x%s at %s of x%s at %s; NUMA node %s", port->address, width,
		    speed, widest, best, node);
	doctor_fix(d,
		   "the slot or the BIOS gives the card less than it can do: reseat it, or use "
		   "another slot (lspci -s %s -vv | grep Lnk)",
		   port->address);
}

void check_ordering(struct doctor *d, const struct doctor_port *port)
{
	struct config config;
	uint32_t control;
	size_t at;

	if (!config_read(d, port->address, &config)) {
		d->config_unseen |= *port->address != 0; /* it is not for this user */
		return;
	}
	at = find_capability(&config, CAPABILITY_PCIE);
	if (!at)
		return;
	control = config_get(&config, at + DEVICE_CONTROL, 2);
	doctor_note(d, CHECK_ORDERING, control & RELAXED ? DOCTOR_OK : DOCTOR_WARN, port->device,
		    "%s: relaxed ordering %s, reads of up to %u bytes", port->address,
		    control & RELAXED ? "allowed"
				      : "not allowed, KVCACHE_RELAX_ORDERING has no "
					"effect",
		    128u << (control >> 12 & 7));
	doctor_fix(d, "setpci -s %s CAP_EXP+8.w=0010:0010 (for good: the BIOS)", port->address);
}

void check_ordering_unseen(struct doctor *d)
{
	if (!d->config_unseen)
		return;
	doctor_note(d, CHECK_ORDERING, DOCTOR_WARN, "",
		    "cannot be seen without root: may the cards order writes freely?");
	doctor_fix(d, "sudo kvrail doctor, or sudo lspci -vv | grep RlxdOrd: + is wanted");
}

/* ---------------------------------------------------------------- bridges */

struct bridges {
	char redirecting[256];
	size_t seen, unseen;
};

static void look_at_bridge(struct doctor *d, const char *path, void *arg)
{
	const char *address = strrchr(path, '/') + 1;
	struct bridges *bridges = arg;
	struct config config;
	char class[16];
	size_t at, used = strlen(bridges->redirecting);

	doctor_read(d, class, sizeof(class), "%s/class", path);
	if (strncmp(class, "0x0604", 6))
		return;
	if (!config_read(d, address, &config)) {
		bridges->unseen++;
		return;
	}
	bridges->seen++;
	at = find_extended(&config, EXTENDED_ACS);
	if (at && config_get(&config, at + ACS_CONTROL, 2) & ACS_REDIRECT)
		snprintf(bridges->redirecting + used, sizeof(bridges->redirecting) - used, " %s",
			 address);
}

void check_acs(struct doctor *d)
{
	struct bridges bridges = { 0 };
	char first[16];
	bool card = false;

	for (size_t i = 0; i < d->ports; i++)
		card |= *d->port[i].address != 0;
	if (!card || !pci_gpu_get(d->root, 0, first, sizeof(first), NULL, 0))
		return; /* nothing here sends to a card without passing the processor */
	doctor_each(d, "/sys/bus/pci/devices/*", look_at_bridge, &bridges);
	if (*bridges.redirecting) {
		snprintf(first, sizeof(first), "%.15s", bridges.redirecting + 1);
		doctor_note(
			d, CHECK_ACS, DOCTOR_WARN, "",
			"bridges that send what a NIC and a GPU exchange through the processor:%s",
			bridges.redirecting);
		doctor_fix(d,
			   "BIOS: ACS off (on bare metal); until the next boot, for each: setpci "
			   "-s %s ECAP_ACS+6.w=0000",
			   first);
	} else if (bridges.unseen) {
		doctor_note(d, CHECK_ACS, DOCTOR_WARN, "",
			    "cannot be seen without root: do bridges redirect what a NIC and a GPU "
			    "exchange?");
		doctor_fix(d, "sudo kvrail doctor, or sudo lspci -vvv | grep ACSCtl: ReqRedir- is "
			      "wanted");
	} else {
		doctor_note(d, CHECK_ACS, DOCTOR_OK, "", "no redirection on %zu bridges",
			    bridges.seen);
	}
}

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

void check_gpu(struct doctor *d)
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

void check_distance(struct doctor *d)
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
