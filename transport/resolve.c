/* SPDX-License-Identifier: Apache-2.0 */
/* resolve.c -- host names to addresses */
#include "resolve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"

static int resolver_failed(int ret, int sys_errno, const char *host, const char *op,
			   struct kv_error *err)
{
	if (ret == EAI_SYSTEM)
		return kv_fail_errno(err, KV_ERR_SYSTEM, sys_errno, op, "%.64s does not resolve",
				     host);
	if (ret == EAI_MEMORY)
		return kv_fail(err, KV_ERR_NOMEM, op, "%.64s does not resolve: %s", host,
			       gai_strerror(ret));
	if (ret == EAI_AGAIN) {
		kv_fail(err, KV_ERR_UNREACHABLE, op, "%.64s does not resolve now: %s", host,
			gai_strerror(ret));
		kv_error_hint(err, "the name server did not answer: try again later");
		return KV_ERR_UNREACHABLE;
	}
	return kv_fail(err, KV_ERR_ARG, op, "%.64s does not resolve: %s", host, gai_strerror(ret));
}

int address_resolve(const char *host, uint32_t port, const char *op, struct addresses *out,
		    struct kv_error *err)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
				  .ai_flags = AI_PASSIVE | AI_NUMERICSERV },
			*list;
	char service[8];
	int ret;

	if (!host)
		host = "127.0.0.1";
	snprintf(service, sizeof(service), "%u", port);
	ret = getaddrinfo(host, service, &hints, &list);
	if (ret)
		return resolver_failed(ret, errno, host, op, err);
	out->n = 0;
	for (const struct addrinfo *ai = list; ai && out->n < ADDRESSES_MAX; ai = ai->ai_next) {
		struct address *to = &out->at[out->n++];

		memcpy(&to->sa, ai->ai_addr, ai->ai_addrlen);
		to->len = ai->ai_addrlen;
	}
	freeaddrinfo(list);
	return 0;
}

void address_print(const struct sockaddr *sa, socklen_t len, char buf[ADDRESS_TEXT])
{
	char host[INET6_ADDRSTRLEN + IF_NAMESIZE + 1], port[8];

	if (getnameinfo(sa, len, host, sizeof(host), port, sizeof(port),
			NI_NUMERICHOST | NI_NUMERICSERV))
		snprintf(buf, ADDRESS_TEXT, "?");
	else
		snprintf(buf, ADDRESS_TEXT, sa->sa_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host,
			 port);
}
