/* SPDX-License-Identifier: Apache-2.0 */
/* names.c -- a resolver for tests */
#include "names.h"

#include <dlfcn.h>
#include <netdb.h>
#include <poll.h>
#include <stdatomic.h>
#include <string.h>

static atomic_bool answers;
static atomic_int asked;

void names_answer(bool answer)
{
	atomic_store(&answers, answer);
}

int names_asked(void)
{
	return atomic_load(&asked);
}

static int never(void)
{
	atomic_fetch_add(&asked, 1);
	while (!atomic_load(&answers))
		poll(NULL, 0, 5);
	atomic_fetch_sub(&asked, 1);
	return EAI_AGAIN;
}

__attribute__((visibility("default"))) int getaddrinfo(const char *host, const char *service,
						       const struct addrinfo *hints,
						       struct addrinfo **list)
{
	int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

	*(void **)&real = dlsym(RTLD_NEXT, "getaddrinfo");
	if (!host || (hints && hints->ai_flags & AI_NUMERICHOST))
		return real(host, service, hints, list);
	if (!strcmp(host, "never.test"))
		return never();
	if (!strcmp(host, "later.test"))
		return EAI_AGAIN;
	if (!strcmp(host, "nobody.test"))
		return EAI_NONAME;
	return real(strcmp(host, "here.test") ? host : "127.0.0.1", service, hints, list);
}
