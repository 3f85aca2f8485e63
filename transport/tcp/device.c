/* SPDX-License-Identifier: Apache-2.0 */
/* device.c -- for `kvrail info`: the interfaces of this machine by which TCP reaches its peers */
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include <kvrail/kv.h>

#include "base/error.h"
#include "base/option.h"
#include "tcp.h"

static bool has_address(const struct ifaddrs *at)
{
	return at->ifa_flags & IFF_UP && at->ifa_addr &&
	       (at->ifa_addr->sa_family == AF_INET || at->ifa_addr->sa_family == AF_INET6);
}

/* A list of getifaddrs has each address of an interface by itself. */
static const struct ifaddrs *nth_interface(const struct ifaddrs *all, size_t index)
{
	for (const struct ifaddrs *at = all; at; at = at->ifa_next) {
		const struct ifaddrs *before = all;

		if (!has_address(at))
			continue;
		while (before != at &&
		       (!has_address(before) || strcmp(before->ifa_name, at->ifa_name)))
			before = before->ifa_next;
		if (before == at && !index--)
			return at;
	}
	return NULL;
}

static void list_addresses(const struct ifaddrs *at, struct kv_device_info *info)
{
	const char *name = at->ifa_name;
	size_t n = 0;

	for (; at; at = at->ifa_next) {
		char text[NI_MAXHOST];
		socklen_t len;

		if (!has_address(at) || strcmp(at->ifa_name, name))
			continue;
		len = at->ifa_addr->sa_family == AF_INET ? sizeof(struct sockaddr_in)
							 : sizeof(struct sockaddr_in6);
		if (getnameinfo(at->ifa_addr, len, text, sizeof(text), NULL, 0, NI_NUMERICHOST) ||
		    n + strlen(text) + 2 >= sizeof(info->detail))
			continue;
		n += (size_t)snprintf(info->detail + n, sizeof(info->detail) - n, "%s%s",
				      n ? ", " : "", text);
	}
}

static void describe_interface(const struct tcp_ctx *ctx, const struct ifaddrs *at,
			       struct kv_device_info *info)
{
	const char *only = kv_option_string(ctx->tr->options, KV_OPT_SOCKET_IFNAME);

	snprintf(info->name, sizeof(info->name), "%s", at->ifa_name);
	info->usable = !*only || !strcmp(only, at->ifa_name);
	if (info->usable)
		list_addresses(at, info);
	else
		snprintf(info->detail, sizeof(info->detail), "KVCACHE_SOCKET_IFNAME is %.64s",
			 only);
}

/* A row for each interface that is up, or one that says why there is none. */
int tcp_device_get(void *ctx, size_t index, struct kv_device_info *info)
{
	const char *why = "not allowed by KVCACHE_TRANSPORT";
	struct ifaddrs *all = NULL;
	const struct ifaddrs *at;

	snprintf(info->transport, sizeof(info->transport), "tcp");
	if (ctx)
		why = getifaddrs(&all) ? kv_errno_text(errno) : "no interface is up";
	at = nth_interface(all, index);
	if (at) {
		describe_interface(ctx, at, info);
	} else if (!index) {
		info->usable = 0;
		snprintf(info->name, sizeof(info->name), "sockets");
		snprintf(info->detail, sizeof(info->detail), "%s", why);
	}
	if (all)
		freeifaddrs(all);
	return at || !index ? 0 : KV_ERR_ARG;
}
