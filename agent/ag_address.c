/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ag_address.c -- numeric addresses of this host that others may reach, the best first
 *
 * The side that connects tries them in this order. The loopback is named only where there is
 * nothing else: on another host another process listens there.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "ag.h"

enum { GRADES = 4 };

/* 0: of no use to another host; the more the better */
static int address_grade(const struct ifaddrs *ifa)
{
	const unsigned int alive = IFF_UP | IFF_RUNNING;
	const struct sockaddr_in *in = (const struct sockaddr_in *)ifa->ifa_addr;
	const char *name = ifa->ifa_name;

	if (!in || in->sin_family != AF_INET || (ifa->ifa_flags & alive) != alive ||
	    ifa->ifa_flags & IFF_LOOPBACK || ntohl(in->sin_addr.s_addr) >> 16 == 0xa9fe)
		return 0;
	if (!strncmp(name, "docker", 6) || !strncmp(name, "virbr", 5) || !strncmp(name, "br-", 3))
		return 1;
	return strncmp(name, "ib", 2) ? 2 : 3;
}

int ag_address_list(const char *option, struct ag_place *place, struct kv_error *err)
{
	struct ifaddrs *all;

	place->hosts = 0;
	if (*option) {
		if (strlen(option) >= AG_HOST_TEXT)
			return kv_fail(err, KV_ERR_ARG, "open",
				       "KVCACHE_AGENT_ADDRESS has more than %d characters",
				       AG_HOST_TEXT - 1);
		snprintf(place->host[place->hosts++], AG_HOST_TEXT, "%s", option);
		return 0;
	}
	if (getifaddrs(&all))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "open", "getifaddrs");
	for (int grade = GRADES - 1; grade > 0; grade--)
		for (const struct ifaddrs *ifa = all; ifa && place->hosts < AG_ADDRESSES;
		     ifa = ifa->ifa_next)
			if (address_grade(ifa) == grade)
				inet_ntop(AF_INET,
					  &((const struct sockaddr_in *)ifa->ifa_addr)->sin_addr,
					  place->host[place->hosts++], AG_HOST_TEXT);
	freeifaddrs(all);
	if (!place->hosts)
		snprintf(place->host[place->hosts++], AG_HOST_TEXT, "127.0.0.1");
	return 0;
}
