/* SPDX-License-Identifier: Apache-2.0 */
/* resolve.c -- host names to addresses */
#include "resolve.h"

#include <arpa/inet.h>
#include <errno.h>
#include <net/if.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/thread.h"
#include "base/unload.h"
#include "tr.h"

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

static void fill_addresses(struct addresses *out, const struct addrinfo *list)
{
	out->n = 0;
	for (const struct addrinfo *ai = list; ai && out->n < ADDRESSES_MAX; ai = ai->ai_next) {
		struct address *to = &out->at[out->n++];

		memcpy(&to->sa, ai->ai_addr, ai->ai_addrlen);
		to->len = ai->ai_addrlen;
	}
}

static int resolve_name(const char *host, const char *service, int flags, struct addresses *out)
{
	struct addrinfo hints = { .ai_socktype = SOCK_STREAM,
				  .ai_flags = AI_PASSIVE | AI_NUMERICSERV | flags },
			*list;
	int ret = getaddrinfo(host, service, &hints, &list);

	if (ret)
		return ret;
	fill_addresses(out, list);
	freeaddrinfo(list);
	return 0;
}

/* ---------------------------------------------------------------- a thread that asks */

struct resolver {
	char host[256], service[8], op[16];
	int fd; /* eventfd */
	pthread_t thread;
	atomic_int users; /* the thread and the caller */
	atomic_bool done;
	int ret, sys_errno; /* of getaddrinfo */
	struct addresses out;
};

static atomic_int resolvers;

static void drop(struct resolver *r)
{
	if (atomic_fetch_sub(&r->users, 1) > 1)
		return;
	if (r->fd >= 0)
		close(r->fd);
	free(r);
}

static void *resolver_main(void *arg)
{
	struct resolver *r = arg;
	uint64_t one = 1;
	ssize_t n;

	r->ret = resolve_name(r->host, r->service, 0, &r->out);
	r->sys_errno = errno;
	atomic_store(&r->done, true);
	do
		n = write(r->fd, &one, sizeof(one));
	while (n < 0 && errno == EINTR);
	drop(r);
	atomic_fetch_sub(&resolvers, 1);
	return NULL;
}

static int resolver_begin(struct resolver *r, struct kv_error *err)
{
	int ret;

	if (atomic_fetch_add(&resolvers, 1) >= RESOLVERS_MAX) {
		kv_fail(err, KV_ERR_BUSY, r->op, "%d names are being resolved already",
			RESOLVERS_MAX);
		kv_error_hint(err, "the name server does not answer: name peers by address, or try "
				   "again later");
		ret = KV_ERR_BUSY;
	} else {
		ret = kv_fault(TR_RESOLVER) ? EAGAIN
					    : kv_thread_start(&r->thread, NULL, resolver_main, r);
		if (!ret)
			return 0;
		ret = kv_fail_errno(err, KV_ERR_SYSTEM, ret, r->op,
				    "cannot start a thread that resolves %.64s", r->host);
	}
	atomic_fetch_sub(&resolvers, 1);
	return ret;
}

int resolver_ask(const char *host, uint32_t port, const char *op, struct addresses *out,
		 struct resolver **resolver_p, struct kv_error *err)
{
	struct resolver *r;
	char service[8];
	int ret;

	if (!host)
		host = "127.0.0.1";
	snprintf(service, sizeof(service), "%u", port);
	ret = resolve_name(host, service, AI_NUMERICHOST, out);
	if (!ret)
		return 0;
	if (ret != EAI_NONAME || strlen(host) >= sizeof(r->host))
		return resolver_failed(ret, errno, host, op, err);
	r = calloc(1, sizeof(*r));
	if (!r)
		return kv_fail(err, KV_ERR_NOMEM, op, "cannot allocate a resolver");
	snprintf(r->host, sizeof(r->host), "%s", host);
	snprintf(r->service, sizeof(r->service), "%s", service);
	snprintf(r->op, sizeof(r->op), "%s", op);
	atomic_init(&r->users, 2);
	r->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (r->fd < 0)
		ret = kv_fail_errno(err, KV_ERR_SYSTEM, errno, op, "eventfd");
	else
		ret = resolver_begin(r, err);
	if (ret) {
		atomic_store(&r->users, 1);
		drop(r);
		return ret;
	}
	*resolver_p = r;
	return TR_AGAIN;
}

int resolver_fd(const struct resolver *resolver)
{
	return resolver->fd;
}

int resolver_end(struct resolver *r, struct addresses *out, struct kv_error *err)
{
	int ret = 0;

	if (!atomic_load(&r->done))
		return TR_AGAIN;
	pthread_join(r->thread, NULL); /* it does nothing more that lasts */
	if (r->ret)
		ret = resolver_failed(r->ret, r->sys_errno, r->host, r->op, err);
	else
		*out = r->out;
	drop(r);
	return ret;
}

void resolver_leave(struct resolver *resolver)
{
	if (!resolver)
		return;
	pthread_detach(resolver->thread);
	kv_stay_loaded(); /* the thread comes back to this code with the answer */
	drop(resolver);
}

int address_resolve(const char *host, uint32_t port, const char *op, int64_t deadline_ns,
		    struct addresses *out, struct kv_error *err)
{
	struct resolver *r;
	struct pollfd p = { .events = POLLIN };
	int ret = resolver_ask(host, port, op, out, &r, err);

	while (ret == TR_AGAIN && kv_now_ns() < deadline_ns) {
		p.fd = resolver_fd(r);
		poll(&p, 1, kv_poll_ms(deadline_ns, 1000));
		ret = resolver_end(r, out, err);
	}
	if (ret != TR_AGAIN)
		return ret;
	resolver_leave(r);
	return resolver_failed(EAI_AGAIN, 0, host, op, err);
}

uint64_t address_key(const struct sockaddr_storage *sa, uint64_t seed)
{
	const struct sockaddr_in *ipv4 = (const struct sockaddr_in *)sa;
	const struct sockaddr_in6 *ipv6 = (const struct sockaddr_in6 *)sa;
	uint64_t key = 0;

	if (sa->ss_family == AF_INET6 && !IN6_IS_ADDR_V4MAPPED(&ipv6->sin6_addr))
		memcpy(&key, &ipv6->sin6_addr, sizeof(key));
	else if (sa->ss_family == AF_INET6)
		memcpy(&key, ipv6->sin6_addr.s6_addr + 12, 4);
	else
		key = ipv4->sin_addr.s_addr;
	return (key ^ seed) * UINT64_C(0x9e3779b97f4a7c15);
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
