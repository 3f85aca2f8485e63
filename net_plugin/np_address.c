/* SPDX-License-Identifier: Apache-2.0 */
/* np_address.c -- which address of this host a listener binds to: one, never all of them */
#include <arpa/inet.h>
#include <errno.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#include "base/fault.h"
#include "np.h"

/* 0: cannot be used; else the more the better */
static int grade(const struct ifaddrs *ifa, const char *list, int family)
{
	const struct sockaddr *sa = ifa->ifa_addr;
	bool loopback = ifa->ifa_flags & IFF_LOOPBACK;
	bool container =
		!strncmp(ifa->ifa_name, "docker", 6) || !strncmp(ifa->ifa_name, "virbr", 5);

	if (!sa || !(ifa->ifa_flags & IFF_UP) ||
	    (sa->sa_family != AF_INET && sa->sa_family != AF_INET6) ||
	    (family && sa->sa_family != family) || !np_name_matches(list, ifa->ifa_name, 0))
		return 0;
	if (sa->sa_family == AF_INET6 &&
	    IN6_IS_ADDR_LINKLOCAL(&((const struct sockaddr_in6 *)sa)->sin6_addr))
		return 1;
	return (loopback ? 2 : container ? 4 : 6) + (sa->sa_family == AF_INET);
}

int np_address_choose(bool is_host, char *host, size_t cap, const char **why_p,
		      struct kv_error *err)
{
	const char *list = np_env_text("NCCL_SOCKET_IFNAME");
	const char *family_text = np_env_text("NCCL_SOCKET_FAMILY");
	int family = !strcmp(family_text, "AF_INET")	? AF_INET
		     : !strcmp(family_text, "AF_INET6") ? AF_INET6
							: 0;
	struct ifaddrs *all, *best = NULL;
	int best_grade = 0;

	if (is_host && !*list) {
		snprintf(host, cap, "127.0.0.1");
		*why_p = "only ranks of this host can be reached";
		return 0;
	}
	if (kv_fault(NP_IFADDRS) ? (errno = ENOMEM, -1) : getifaddrs(&all))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "listen", "getifaddrs");
	for (struct ifaddrs *ifa = all; ifa; ifa = ifa->ifa_next)
		if (grade(ifa, list, family) > best_grade) {
			best = ifa;
			best_grade = grade(ifa, list, family);
		}
	if (!best) {
		freeifaddrs(all);
		kv_fail(err, KV_ERR_ARG, "listen", "no interface that is up matches \"%.64s\"%s%s",
			list, family ? " and " : "", family ? family_text : "");
		kv_error_hint(err, "NCCL_SOCKET_IFNAME names interfaces of this host (ip link)");
		return KV_ERR_ARG;
	}
	if (getnameinfo(best->ifa_addr,
			best->ifa_addr->sa_family == AF_INET ? sizeof(struct sockaddr_in)
							     : sizeof(struct sockaddr_in6),
			host, (socklen_t)cap, NULL, 0, NI_NUMERICHOST))
		snprintf(host, cap, "127.0.0.1");
	freeifaddrs(all);
	*why_p = *list ? "NCCL_SOCKET_IFNAME" : "the first interface that is up";
	return 0;
}
