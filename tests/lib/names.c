/* SPDX-License-Identifier: Apache-2.0 */
/* names.c -- a resolver for tests */
#include "names.h"

#include <dlfcn.h>
#include <netdb.h>
#include <pthread.h>
#include <string.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static bool answers;
static int asked;

/* A names_answer(false) that follows must not keep a thread that has not seen this answer. */
void names_answer(bool answer)
{
	pthread_mutex_lock(&lock);
	answers = answer;
	pthread_cond_broadcast(&changed);
	while (answers && asked)
		pthread_cond_wait(&changed, &lock);
	pthread_mutex_unlock(&lock);
}

int names_asked(void)
{
	int n;

	pthread_mutex_lock(&lock);
	n = asked;
	pthread_mutex_unlock(&lock);
	return n;
}

static int never(void)
{
	pthread_mutex_lock(&lock);
	asked++;
	while (!answers)
		pthread_cond_wait(&changed, &lock);
	asked--;
	pthread_cond_broadcast(&changed);
	pthread_mutex_unlock(&lock);
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
