/* SPDX-License-Identifier: Apache-2.0 */
/*
 * doctor_lossless.c -- a RoCE port's priority flow control and congestion notification
 *
 * The kernel reports the first by DCB netlink, which needs no privilege; the second only the
 * vendor's OFED reports, in sysfs. What the switch does is seen nowhere on a host.
 */
#include "doctor.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "doctor_dcb.h"

enum { PRIORITIES = 8 };

static void list_priorities(uint8_t mask, char *buf, size_t cap)
{
	size_t used = 0;

	for (int i = 0; i < PRIORITIES; i++)
		if (mask >> i & 1 && used < cap)
			used += (size_t)snprintf(buf + used, cap - used, "%s%d", used ? "," : "",
						 i);
}

static void check_pfc(struct doctor *d, const struct doctor_port *port)
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

static void check_ecn(struct doctor *d, const struct doctor_port *port)
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

void doctor_lossless(struct doctor *d)
{
	for (size_t i = 0; i < d->ports; i++) {
		const struct doctor_port *port = &d->port[i];

		/* A software device sends through its interface's own queues. */
		if (!port->ethernet || !port->active || !*port->address)
			continue;
		check_pfc(d, port);
		check_ecn(d, port);
	}
}
