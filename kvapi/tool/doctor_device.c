/* SPDX-License-Identifier: Apache-2.0 */
/* doctor_device.c -- the RDMA devices as sysfs shows them: ports, GID tables, MTU, PCIe, error counters */
#include "doctor.h"

#include <glob.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GIDS_MAX = 1024, JUMBO = 4200, DEVICE = 24 };

/* One port that is being looked at. */
struct port {
	char device[DEVICE];
	char name[32];	 /* "rxe0:1" */
	char path[128];	 /* its folder in sysfs */
	char netdev[64]; /* "" for InfiniBand */
	int ethernet;
};

static const char zero_gid[] = "0000:0000:0000:0000:0000:0000:0000:0000";

static void check_state(struct doctor *d, struct port *port)
{
	char state[64], link[64], rate[64];

	doctor_read(state, sizeof(state), "%s/state", port->path);
	doctor_read(link, sizeof(link), "%s/link_layer", port->path);
	doctor_read(rate, sizeof(rate), "%s/rate", port->path);
	port->ethernet = !strcmp(link, "Ethernet");
	if (strstr(state, "ACTIVE"))
		doctor_note(d, DOCTOR_OK, "port", port->name, "", "active, %s, %s", link, rate);
	else
		doctor_note(d, DOCTOR_FAIL, "port", port->name,
			    port->ethernet ? "ip link set DEV up; check cable and switch port"
					   : "check cable and subnet manager (sminfo, ibstat)",
			    "%s, %s: not usable", *state ? state : "unknown state", link);
}

static void check_mtu(struct doctor *d, const struct port *port)
{
	char text[32];
	int mtu;

	if (!port->ethernet ||
	    doctor_read(text, sizeof(text), "/sys/class/net/%s/mtu", port->netdev))
		return;
	mtu = (int)strtol(text, NULL, 10);
	doctor_note(d, mtu < JUMBO ? DOCTOR_WARN : DOCTOR_OK, "mtu", port->name,
		    "ip link set DEV mtu 4200 (or 9000) on both hosts and the switch",
		    "%s has mtu %d: %s", port->netdev, mtu,
		    mtu < JUMBO ? "RDMA packets carry 1024 or 2048 bytes, not 4096"
				: "room for RDMA packets of 4096 bytes");
}

static void check_gids(struct doctor *d, struct port *port)
{
	int rows = 0, v4 = 0, v6 = 0, v1 = 0, local = 0;
	char gid[64], type[32];

	for (int i = 0; i < GIDS_MAX; i++) {
		if (doctor_read(gid, sizeof(gid), "%s/gids/%d", port->path, i))
			break;
		if (!strcmp(gid, zero_gid))
			continue;
		rows++;
		doctor_read(type, sizeof(type), "%s/gid_attrs/types/%d", port->path, i);
		if (!*port->netdev)
			doctor_read(port->netdev, sizeof(port->netdev), "%s/gid_attrs/ndevs/%d",
				    port->path, i);
		if (!strncmp(gid, "fe80", 4))
			local++;
		else if (port->ethernet && !strstr(type, "v2"))
			v1++;
		else if (!strncmp(gid, "0000:0000:0000:0000:0000:ffff", 29))
			v4++;
		else
			v6++;
	}
	if (!port->ethernet)
		doctor_note(d, DOCTOR_OK, "gid", port->name, "",
			    "%d rows; InfiniBand is addressed by LID", rows);
	else
		doctor_note(
			d, v4 + v6 ? DOCTOR_OK : DOCTOR_FAIL, "gid", port->name,
			"give the interface an address that the peers can route to",
			"%d rows used: %d RoCE v2 with IPv4, %d with routable IPv6, %d link-local, %d "
			"RoCE v1 (netdev %s)",
			rows, v4, v6, local, v1, *port->netdev ? port->netdev : "unknown");
}

/* Counters that stay 0 on a fabric without losses. */
static void check_counters(struct doctor *d, const struct port *port)
{
	static const char *const names[] = { "packet_seq_err",	      "out_of_sequence",
					     "local_ack_timeout_err", "rnr_nak_retry_err",
					     "rx_icrc_encapsulated",  "retry_exceeded_err",
					     "rcvd_seq_err",	      "retry_rnr_exceeded_err" };
	char text[160] = "", value[32];
	size_t used = 0;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (doctor_read(value, sizeof(value), "%s/hw_counters/%s", port->path, names[i]) ||
		    !strcmp(value, "0") || used >= sizeof(text) - 1)
			continue;
		used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s %s",
					 used ? ", " : "", names[i], value);
	}
	doctor_note(
		d, *text ? DOCTOR_WARN : DOCTOR_OK, "counters", port->name,
		"if they grow: lossless priority (PFC) or ECN on the switch, cables, MTU on the way",
		"%s", *text ? text : "no retransmission or loss counted");
}

static void check_pcie(struct doctor *d, const struct port *port)
{
	char speed[32], best[32], width[16], widest[16], node[16];
	char base[128];

	snprintf(base, sizeof(base), "/sys/class/infiniband/%s/device", port->device);
	if (doctor_read(speed, sizeof(speed), "%s/current_link_speed", base)) {
		doctor_note(d, DOCTOR_OK, "pcie", port->name, "",
			    "not on PCIe (a software device)");
		return;
	}
	doctor_read(best, sizeof(best), "%s/max_link_speed", base);
	doctor_read(width, sizeof(width), "%s/current_link_width", base);
	doctor_read(widest, sizeof(widest), "%s/max_link_width", base);
	doctor_read(node, sizeof(node), "%s/numa_node", base);
	if (strcmp(speed, best) || strcmp(width, widest))
		doctor_note(d, DOCTOR_WARN, "pcie", port->name,
			    "reseat the card, or another slot; check the BIOS",
			    "x%s at %s, but the card can do x%s at %s; NUMA node %s", width, speed,
			    widest, best, node);
	else
		doctor_note(d, DOCTOR_OK, "pcie", port->name, "", "x%s at %s, NUMA node %s", width,
			    speed, node);
}

void doctor_devices(struct doctor *d)
{
	glob_t found = { 0 };

	glob("/sys/class/infiniband/*/ports/*", 0, NULL, &found);
	for (size_t i = 0; i < found.gl_pathc; i++) {
		struct port port = { 0 };
		const char *device = found.gl_pathv[i] + strlen("/sys/class/infiniband/");
		int len = (int)strcspn(device, "/");

		snprintf(port.path, sizeof(port.path), "%s", found.gl_pathv[i]);
		snprintf(port.device, sizeof(port.device), "%.*s", len, device);
		snprintf(port.name, sizeof(port.name), "%s:%s", port.device,
			 strrchr(found.gl_pathv[i], '/') + 1);
		check_state(d, &port);
		check_gids(d, &port);
		check_mtu(d, &port);
		check_pcie(d, &port);
		check_counters(d, &port);
	}
	globfree(&found);
}
