/* SPDX-License-Identifier: Apache-2.0 */
/*
 * port.c -- the ports of the RDMA devices: state, addresses, MTU, error counters, flow control
 */
#include "doctor.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/pci.h"

enum { GIDS_MAX = 1024, JUMBO = 4200 };

static void find_netdev(struct doctor *d, const char *path, void *arg)
{
	snprintf(arg, sizeof(((struct doctor_port *)0)->netdev), "%s", strrchr(path, '/') + 1);
}

static void add_port(struct doctor *d, const char *path, void *arg)
{
	const char *device = path + strlen("/sys/class/infiniband/");
	struct doctor_port *port = &d->port[d->ports];
	struct pci_place place;
	char text[64], pattern[128];

	if (d->ports == DEVICES_MAX)
		return;
	d->ports++;
	snprintf(port->path, sizeof(port->path), "%s", path);
	snprintf(port->device, sizeof(port->device), "%.*s", (int)strcspn(device, "/"), device);
	snprintf(port->name, sizeof(port->name), "%.*s:%.7s", (int)strcspn(device, "/"), device,
		 strrchr(path, '/') + 1);
	doctor_read(d, text, sizeof(text), "%s/state", path);
	port->active = strstr(text, "ACTIVE");
	doctor_read(d, text, sizeof(text), "%s/link_layer", path);
	port->ethernet = !strcmp(text, "Ethernet");
	snprintf(text, sizeof(text), "class/infiniband/%s/device", port->device);
	pci_place_find(d->root, text, &place);
	memcpy(port->address, place.address, sizeof(port->address));
	if (!port->ethernet)
		return;
	snprintf(pattern, sizeof(pattern), "/sys/class/infiniband/%s/device/net/*", port->device);
	if (!doctor_read(d, port->netdev, sizeof(port->netdev), "%s/gid_attrs/ndevs/0", path) &&
	    !doctor_read(d, port->netdev, sizeof(port->netdev), "/sys/class/infiniband/%s/parent",
			 port->device))
		doctor_each(d, pattern, find_netdev, port->netdev);
}

void doctor_find_ports(struct doctor *d)
{
	doctor_each(d, "/sys/class/infiniband/*/ports/*", add_port, NULL);
}

/* ---------------------------------------------------------------- state */

/* One unused port beside a used one is how many cards are cabled. */
static enum doctor_status if_down(const struct doctor *d)
{
	for (size_t i = 0; i < d->ports; i++)
		if (d->port[i].active)
			return DOCTOR_WARN;
	return DOCTOR_FAIL;
}

void check_port(struct doctor *d, const struct doctor_port *port)
{
	char state[32], physical[32], link[32], rate[48];

	doctor_read(d, state, sizeof(state), "%s/state", port->path);
	doctor_read(d, physical, sizeof(physical), "%s/phys_state", port->path);
	doctor_read(d, link, sizeof(link), "%s/link_layer", port->path);
	doctor_read(d, rate, sizeof(rate), "%s/rate", port->path);
	if (port->active) {
		doctor_note(d, CHECK_PORT, DOCTOR_OK, port->name, "active, %s, %s", link, rate);
		return;
	}
	doctor_note(d, CHECK_PORT, if_down(d), port->name, "%s (physical %s), %s: not usable",
		    *state ? state : "unknown state", *physical ? physical : "unknown", link);
	if (port->ethernet)
		doctor_fix(d, "ip link set %s up; then the cable and the switch's port",
			   *port->netdev ? port->netdev : "DEV");
	else if (strstr(state, "INIT"))
		doctor_fix(d,
			   "the link is there, no subnet manager has configured it: start opensm "
			   "or the switch's");
	else
		doctor_fix(d, "the cable and the switch's port (ibstat %s)", port->device);
}

void check_pkey(struct doctor *d, const struct doctor_port *port)
{
	char text[16], lid[16];
	unsigned long key;

	if (port->ethernet || !doctor_read(d, text, sizeof(text), "%s/pkeys/0", port->path))
		return;
	doctor_read(d, lid, sizeof(lid), "%s/lid", port->path);
	key = strtoul(text, NULL, 16);
	doctor_note(d, CHECK_PKEY, key & 0x8000 ? DOCTOR_OK : DOCTOR_WARN, port->name,
		    "partition key 0x%04lx, %s; lid %lu", key,
		    key & 0x8000 ? "full member"
				 : "limited member: limited members do not reach each other",
		    strtoul(lid, NULL, 16));
	doctor_fix(d, "make the port a full member in the subnet manager's partitions.conf");
}

void check_mtu(struct doctor *d, const struct doctor_port *port)
{
	char text[16];
	long mtu;

	if (!port->ethernet ||
	    !doctor_read(d, text, sizeof(text), "/sys/class/net/%s/mtu", port->netdev))
		return;
	mtu = strtol(text, NULL, 10);
	doctor_note(d, CHECK_MTU, mtu < JUMBO ? DOCTOR_WARN : DOCTOR_OK, port->name,
		    "%s has mtu %ld: %s", port->netdev, mtu,
		    mtu < JUMBO ? "RDMA packets carry 1024 or 2048 bytes, not 4096"
				: "room for RDMA packets of 4096 bytes");
	doctor_fix(d, "ip link set %s mtu 4200 (or 9000), on both hosts and every switch between",
		   port->netdev);
}

/* ---------------------------------------------------------------- GID table */

enum kind { LINK_LOCAL, V1, IPV6, IPV4, KINDS }; /* as the library ranks them, worst first */

struct table {
	int rows, count[KINDS];
	int first[KINDS];
	char gid[KINDS][INET6_ADDRSTRLEN];
};

static void add_gid(struct table *table, int index, const char *text, const char *type)
{
	static const unsigned char none[16], mapped[12] = { [10] = 0xff, [11] = 0xff };
	unsigned char gid[16];
	enum kind kind;

	if (inet_pton(AF_INET6, text, gid) != 1 || !memcmp(gid, none, 16) ||
	    !memcmp(gid + 8, none, 8))
		return;
	kind = gid[0] == 0xfe && (gid[1] & 0xc0) == 0x80 ? LINK_LOCAL
	       : !strstr(type, "v2")			 ? V1
	       : memcmp(gid, mapped, sizeof(mapped))	 ? IPV6
							 : IPV4;
	table->rows++;
	if (table->count[kind]++)
		return;
	table->first[kind] = index;
	inet_ntop(AF_INET6, gid, table->gid[kind], sizeof(table->gid[kind]));
}

static void read_table(struct doctor *d, const struct doctor_port *port, struct table *table)
{
	char gid[64], type[32];

	memset(table, 0, sizeof(*table));
	for (int i = 0; i < GIDS_MAX; i++) {
		if (!doctor_read(d, gid, sizeof(gid), "%s/gids/%d", port->path, i))
			return;
		doctor_read(d, type, sizeof(type), "%s/gid_attrs/types/%d", port->path, i);
		add_gid(table, i, gid, type);
	}
}

/* What kvrail has chosen, else what it would choose from this table. */
static void describe_choice(const struct doctor *d, const struct doctor_port *port,
			    const struct table *table, char *buf, size_t cap)
{
	for (size_t i = 0; i < d->rails; i++)
		if (!strcmp(d->rail[i].name, port->name)) {
			snprintf(buf, cap, "kvrail uses index %d, %s", d->rail[i].gid_index,
				 d->rail[i].gid);
			return;
		}
	snprintf(buf, cap, "none");
	for (int kind = KINDS; kind--;)
		if (table->count[kind]) {
			snprintf(buf, cap, "best is index %d, %s", table->first[kind],
				 table->gid[kind]);
			return;
		}
}

void check_gids(struct doctor *d, const struct doctor_port *port)
{
	struct table table;
	char choice[96];
	bool routable;

	if (!port->ethernet)
		return;
	read_table(d, port, &table);
	routable = table.count[IPV4] + table.count[IPV6];
	describe_choice(d, port, &table, choice, sizeof(choice));
	doctor_note(d, CHECK_GID, routable ? DOCTOR_OK : DOCTOR_FAIL, port->name,
		    "%d rows: %d RoCE v2 with IPv4, %d with routable IPv6, %d RoCE v1, %d "
		    "link-local; %s",
		    table.rows, table.count[IPV4], table.count[IPV6], table.count[V1],
		    table.count[LINK_LOCAL], choice);
	if (!table.rows)
		doctor_fix(d,
			   "%s is in another network namespace (docker --network=host, Kubernetes "
			   "hostNetwork: true), or down: ip link set %s up",
			   *port->netdev ? port->netdev : "its interface",
			   *port->netdev ? port->netdev : "DEV");
	else
		doctor_fix(d,
			   "ip addr add ADDRESS/PREFIX dev %s: an address that the peers can "
			   "route to%s",
			   *port->netdev ? port->netdev : "DEV",
			   table.count[V1] ? "; RoCE v2 on (ConnectX-3: mlx4_core roce_mode=2)"
					   : "");
}

/* ---------------------------------------------------------------- counters */

/* They stay 0 on a fabric without losses. */
void check_counters(struct doctor *d, const struct doctor_port *port)
{
	static const char *const names[] = {
		"hw_counters/packet_seq_err",
		"hw_counters/out_of_sequence",
		"hw_counters/local_ack_timeout_err",
		"hw_counters/rnr_nak_retry_err",
		"hw_counters/rx_icrc_encapsulated",
		"hw_counters/retry_exceeded_err",
		"hw_counters/rcvd_seq_err",
		"hw_counters/out_of_seq_request",
		"hw_counters/retry_rnr_exceeded_err",
		"counters/symbol_error",
		"counters/link_downed",
		"counters/port_rcv_errors",
	};
	char text[240] = "", value[32];
	size_t used = 0;

	for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		if (!doctor_read(d, value, sizeof(value), "%s/%s", port->path, names[i]) ||
		    !strtoull(value, NULL, 10) || used >= sizeof(text) - 1)
			continue;
		used += (size_t)snprintf(text + used, sizeof(text) - used, "%s%s %s",
					 used ? ", " : "", strchr(names[i], '/') + 1, value);
	}
	doctor_note(d, CHECK_COUNTERS, *text ? DOCTOR_WARN : DOCTOR_OK, port->name, "%s",
		    *text ? text : "no loss, retry or link error counted");
	doctor_fix(d,
		   "they count since boot: look again under load (grep . %s/*counters/*). If they "
		   "grow: cable, MTU on the way, PFC or ECN on the switch",
		   port->path);
}

/* ---------------------------------------------------------------- flow control */

/*
 * The kernel reports priority flow control by DCB netlink, which needs no privilege; congestion
 * notification only the vendor's OFED reports, in sysfs. What the switch does is seen nowhere here.
 */
enum { PRIORITIES = 8 };

static void list_priorities(uint8_t mask, char *buf, size_t cap)
{
	size_t used = 0;

	for (int i = 0; i < PRIORITIES; i++)
		if (mask >> i & 1 && used < cap)
			used += (size_t)snprintf(buf + used, cap - used, "%s%d", used ? "," : "",
						 i);
}

void check_pfc(struct doctor *d, const struct doctor_port *port)
{
	char list[32] = "";
	uint8_t mask = 0;
	int error = d->copy ? ENODATA : doctor_dcb_ask(port->netdev, &mask);

	list_priorities(mask, list, sizeof(list));
	if (!error && mask)
		doctor_note(d, CHECK_PFC, DOCTOR_OK, port->name, "%s: on for priority %s",
			    port->netdev, list);
	else if (!error)
		doctor_note(d, CHECK_PFC, DOCTOR_WARN, port->name, "%s: off for every priority",
			    port->netdev);
	else
		doctor_note(d, CHECK_PFC, DOCTOR_WARN, port->name, "%s: cannot be seen here (%s)",
			    port->netdev, d->copy ? "a copy" : strerror(error));
	if (!error)
		doctor_fix(
			d,
			"one priority, here and on the switch: dcb pfc set dev %s prio-pfc all:off "
			"3:on, or mlnx_qos -i %s --pfc 0,0,0,1,0,0,0,0",
			port->netdev, port->netdev);
	else
		doctor_fix(d, "there: dcb pfc show dev %s, or mlnx_qos -i %s", port->netdev,
			   port->netdev);
}

static uint8_t ecn_mask(const struct doctor *d, const char *netdev, const char *role, bool *known)
{
	uint8_t mask = 0;
	char text[8];

	for (int i = 0; i < PRIORITIES; i++)
		if (doctor_read(d, text, sizeof(text), "/sys/class/net/%s/ecn/%s/enable/%d", netdev,
				role, i)) {
			*known = true;
			mask = (uint8_t)(mask | (*text == '1') << i);
		}
	return mask;
}

void check_ecn(struct doctor *d, const struct doctor_port *port)
{
	char list[32] = "";
	bool known = false;
	uint8_t both = ecn_mask(d, port->netdev, "roce_np", &known) &
		       ecn_mask(d, port->netdev, "roce_rp", &known);

	list_priorities(both, list, sizeof(list));
	if (known && both)
		doctor_note(d, CHECK_ECN, DOCTOR_OK, port->name, "%s: on for priority %s",
			    port->netdev, list);
	else if (known)
		doctor_note(d, CHECK_ECN, DOCTOR_WARN, port->name,
			    "%s: no priority both notices congestion and reacts to it",
			    port->netdev);
	else
		doctor_note(d, CHECK_ECN, DOCTOR_WARN, port->name,
			    "%s: cannot be seen here (only the vendor's OFED shows it)",
			    port->netdev);
	if (known)
		doctor_fix(d,
			   "for r in roce_np roce_rp; do echo 1 > "
			   "/sys/class/net/%s/ecn/$r/enable/3; done",
			   port->netdev);
	else
		doctor_fix(d, "mlxconfig -d %s query | grep ROCE_CC_PRIO_MASK", port->address);
}
