/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_address.c -- which address of this host a listener binds to: one, never all of them
 *
 * In NCCL's order: interfaces of InfiniBand, then all others but docker's, the loopback and
 * libvirt's, then those in this order. Behind them all an address that is good on its own link
 * only: NCCL does not distinguish it, but a USB network card of a server's management controller
 * has one, and no other host reaches it.
 */
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

static bool is_link_local(const struct sockaddr *sa)
{
	if (sa->sa_family == AF_INET6)
		return IN6_IS_ADDR_LINKLOCAL(&((const struct sockaddr_in6 *)sa)->sin6_addr);
	return ntohl(((const struct sockaddr_in *)sa)->sin_addr.s_addr) >> 16 == 0xa9fe;
}

static bool begins(const char *name, const char *prefix)
{
	return !strncmp(name, prefix, strlen(prefix));
}

enum { LINK_LOCAL = 1, LIBVIRT, LOOPBACK, DOCKER, OTHER, INFINIBAND };

/* 0: cannot be used; else the more the better, IPv4 before IPv6 */
static int grade(const struct ifaddrs *ifa, const char *list, int family)
{
	const unsigned int alive = IFF_UP | IFF_RUNNING;
	const struct sockaddr *sa = ifa->ifa_addr;
	const char *name = ifa->ifa_name;
	int kind;

	if (!sa || (ifa->ifa_flags & alive) != alive ||
	    (sa->sa_family != AF_INET && sa->sa_family != AF_INET6) ||
	    (family && sa->sa_family != family) || !np_name_matches(list, name, 0))
		return 0;
	kind = is_link_local(sa)	       ? LINK_LOCAL
	       : ifa->ifa_flags & IFF_LOOPBACK ? LOOPBACK
	       : begins(name, "virbr")	       ? LIBVIRT
	       : begins(name, "docker")	       ? DOCKER
	       : begins(name, "ib")	       ? INFINIBAND
					       : OTHER;
	return 2 * kind + (sa->sa_family == AF_INET);
}

const struct ifaddrs *np_address_best(const struct ifaddrs *all, const char *list, int family)
{
	const struct ifaddrs *best = NULL;
	int best_grade = 0;

	for (; all; all = all->ifa_next)
		if (grade(all, list, family) > best_grade) {
			best = all;
			best_grade = grade(all, list, family);
		}
	return best;
}

int np_address_choose(bool is_host, char *host, size_t cap, const char **why_p,
		      struct kv_error *err)
{
	const char *list = np_env_text("NCCL_SOCKET_IFNAME");
	const char *family_text = np_env_text("NCCL_SOCKET_FAMILY");
	int family = !strcmp(family_text, "AF_INET")	? AF_INET
		     : !strcmp(family_text, "AF_INET6") ? AF_INET6
							: 0;
	const struct ifaddrs *best;
	struct ifaddrs *all;

	if (is_host && !*list) {
		snprintf(host, cap, "127.0.0.1");
		*why_p = "only ranks of this host can be reached";
		return 0;
	}
	if (kv_fault(NP_IFADDRS) ? (errno = ENOMEM, -1) : getifaddrs(&all))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "listen", "getifaddrs");
	best = np_address_best(all, list, family);
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
