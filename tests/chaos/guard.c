/* SPDX-License-Identifier: Apache-2.0 */
/* guard.c -- every call ends within its deadline and says why it failed */
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "peer.h"

enum { TICK_MS = 10, WATCHED = 16, HANG_MS = 20000, DUMP = 1 << 16, TOLD = 200 };

_Thread_local struct kv_error error;
static _Atomic int64_t ticks;
static struct watched {
	_Atomic(const char *) name; /* NULL: in no call */
	_Atomic int64_t began_ms, timeout_ms;
} watched[WATCHED];
static _Atomic unsigned int threads;
static _Thread_local struct watched *mine;

/* What an operation on a peer may end with while processes come and go and memory runs out. */
#define SHORTAGES KV_ERR_NOMEM, KV_ERR_NOFD, KV_ERR_SYSTEM
const int may_end[] = { KV_ERR_REVOKED,	   KV_ERR_LEASE,
			KV_ERR_CANCELLED,  KV_ERR_CLOSED,
			KV_ERR_PEER_LOST,  KV_ERR_IN_DOUBT,
			KV_ERR_TIMEOUT,	   KV_ERR_BUSY,
			KV_ERR_STALE_PEER, KV_ERR_LINK,
			KV_ERR_RNR,	   KV_ERR_DEVICE,
			SHORTAGES,	   0 };
const int may_open[] = { KV_ERR_PEER_LOST, KV_ERR_BUSY, KV_ERR_CLOSED, SHORTAGES, 0 };
const int may_connect[] = {
	KV_ERR_PEER_LOST, KV_ERR_TIMEOUT, KV_ERR_BUSY,	      KV_ERR_GEOMETRY, KV_ERR_LINK,
	KV_ERR_MEMLOCK,	  KV_ERR_DEVICE,  KV_ERR_UNREACHABLE, SHORTAGES,       0
};
const int may_close[] = { KV_ERR_BUSY, 0 };
const int may_never[] = { 0 };

void tell(const char *format, ...)
{
	static _Atomic unsigned int told;
	char line[1024];
	va_list args;
	int n;

	if (atomic_fetch_add(&told, 1) >= TOLD && strncmp(format, "WRONG", 5))
		return;
	n = snprintf(line, sizeof(line), "%" PRId64 " ", lived_ms());
	va_start(args, format);
	n += vsnprintf(line + n, sizeof(line) - (size_t)n - 1, format, args);
	va_end(args);
	if (n > (int)sizeof(line) - 2)
		n = (int)sizeof(line) - 2;
	line[n] = '\n';
	if (write(STDERR_FILENO, line, (size_t)n + 1) < 0)
		abort();
}

int64_t lived_ms(void)
{
	return atomic_load(&ticks) * TICK_MS;
}

static void look(struct watched *w)
{
	const char *name = atomic_load(&w->name);
	static char dump[DUMP];

	if (!name || lived_ms() < w->began_ms + w->timeout_ms + HANG_MS)
		return;
	tell("WRONG: hangs for %" PRId64 " ms: %s", lived_ms() - w->began_ms, name);
	status->overdue++;
	if (kv_dump(engine, dump, sizeof(dump)) > 0 && write(STDERR_FILENO, dump, strlen(dump)) < 0)
		abort();
	abort();
}

static void *count_time(void *arg)
{
	const struct timespec tick = { .tv_nsec = TICK_MS * 1000 * 1000 };

	for (;;) {
		nanosleep(&tick, NULL);
		atomic_fetch_add(&ticks, 1);
		for (unsigned int i = 0; i < WATCHED; i++)
			look(&watched[i]);
	}
	return arg;
}

void guard_begin(void)
{
	thread_start(count_time, NULL);
}

/* However long there is no memory for it. */
pthread_t thread_start(void *(*run)(void *arg), void *arg)
{
	const struct timespec pause = { .tv_nsec = 10 * 1000 * 1000 };
	pthread_t thread;

	while (pthread_create(&thread, NULL, run, arg))
		nanosleep(&pause, NULL);
	return thread;
}

void call_begin(const char *name, int64_t timeout_ms)
{
	if (!mine)
		mine = &watched[atomic_fetch_add(&threads, 1) % WATCHED];
	memset(&error, 0, sizeof(error));
	mine->began_ms = lived_ms();
	mine->timeout_ms = timeout_ms;
	atomic_store(&mine->name, name);
}

/* A code that this call has, with cause, scope (more may be lost than the code says) and peer. */
static bool is_typed(int ret, const struct kv_error *err, const int *may)
{
	while (*may && *may != ret)
		may++;
	return *may && err->code == ret && err->message[0] && err->op[0] &&
	       err->scope >= kv_error_scope(ret) && (err->scope != KV_SCOPE_PEER || err->peer[0]);
}

int call_end(int ret, const struct kv_error *err, const int *may)
{
	int64_t took = lived_ms() - mine->began_ms;
	static _Thread_local const char *last;
	static _Thread_local int last_ret;
	char line[768];

	if (took > mine->timeout_ms + SLACK_MS) {
		tell("WRONG: %" PRId64 " ms, not %" PRId64 ": %s", took, mine->timeout_ms,
		     mine->name);
		status->overdue++;
	}
	if (ret < 0) {
		__atomic_fetch_add(&status->codes[-ret % CODES], 1, __ATOMIC_RELAXED);
		kv_error_format(err, line, sizeof(line));
		if (!is_typed(ret, err, may)) {
			status->untyped++;
			tell("WRONG: %d without its cause: %s: %s", ret, mine->name, line);
		} else if (ret != KV_ERR_BUSY && (ret != last_ret || mine->name != last)) {
			tell("%.24s: %s", mine->name, line);
		}
		last = mine->name;
		last_ret = ret;
	}
	atomic_store(&mine->name, NULL);
	return ret;
}
