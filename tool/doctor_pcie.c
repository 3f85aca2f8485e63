/* SPDX-License-Identifier: Apache-2.0 */
/*
 * doctor_pcie.c -- the cards' slots, relaxed ordering, and bridges that redirect what cards send to
 * each other
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

static void check_slot(struct doctor *d, const struct doctor_port *port)
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

/* False: the configuration space is not for this user. */
static bool check_ordering(struct doctor *d, const struct doctor_port *port)
{
	struct config config;
	uint32_t control;
	size_t at;

	if (!config_read(d, port->address, &config))
		return false;
	at = find_capability(&config, CAPABILITY_PCIE);
	if (!at)
		return true;
	control = config_get(&config, at + DEVICE_CONTROL, 2);
	doctor_note(d, CHECK_ORDERING, control & RELAXED ? DOCTOR_OK : DOCTOR_WARN, port->device,
		    "%s: relaxed ordering %s, reads of up to %u bytes", port->address,
		    control & RELAXED ? "allowed"
				      : "not allowed, KVCACHE_RELAX_ORDERING has no "
					"effect",
		    128u << (control >> 12 & 7));
	doctor_fix(d, "setpci -s %s CAP_EXP+8.w=0010:0010 (for good: the BIOS)", port->address);
	return true;
}

static bool is_first_port(const struct doctor *d, size_t i)
{
	for (size_t j = 0; j < i; j++)
		if (!strcmp(d->port[j].device, d->port[i].device))
			return false;
	return true;
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

static void check_acs(struct doctor *d)
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

void doctor_pcie(struct doctor *d)
{
	bool unseen = false;

	for (size_t i = 0; i < d->ports; i++)
		if (is_first_port(d, i)) {
			check_slot(d, &d->port[i]);
			if (*d->port[i].address)
				unseen |= !check_ordering(d, &d->port[i]);
		}
	if (unseen) {
		doctor_note(d, CHECK_ORDERING, DOCTOR_WARN, "",
			    "cannot be seen without root: may the cards order writes freely?");
		doctor_fix(d, "sudo kvrail doctor, or sudo lspci -vv | grep RlxdOrd: + is wanted");
	}
	check_acs(d);
}
