/* SPDX-License-Identifier: Apache-2.0 */
/* kv_call.c -- what every public call asks of its engine before and while it waits */
#include <errno.h>
#include <poll.h>
#include <unistd.h>

#include "kv_engine.h"

enum { SPINS = 64 }; /* engine.lock is held for a few instructions */

static bool forked(const struct kv_engine *engine)
{
	return engine->wiped ? *engine->life != KV_ALIVE : getpid() != engine->pid;
}

int kv_not_in_callback(const char *op, struct kv_error *err)
{
	if (!kv_log_inside())
		return 0;
	kv_fail(err, KV_ERR_BUSY, op,
		"called from the log callback, which runs inside another call");
	kv_error_hint(err, "leave a note for another thread, and let that call");
	return KV_ERR_BUSY;
}

int kv_engine_use(const struct kv_engine *engine, const char *op, struct kv_error *err)
{
	if (!engine)
		return kv_fail(err, KV_ERR_ARG, op, "engine is NULL");
	if (engine->magic != KV_MAGIC_ENGINE)
		return kv_fail(err, KV_ERR_CLOSED, op, "the engine was closed");
	if (kv_not_in_callback(op, err))
		return KV_ERR_BUSY;
	if (forked(engine)) {
		kv_fail(err, KV_ERR_FORKED, op, "the engine was opened by process %d",
			(int)engine->pid);
		kv_error_hint(err, "open an engine after fork, or start workers with spawn");
		return KV_ERR_FORKED;
	}
	return 0;
}

int kv_engine_deadline(int64_t timeout_ms, const char *op, int64_t *deadline_p,
		       struct kv_error *err)
{
	if (timeout_ms < 0 || timeout_ms > KV_TIMEOUT_MAX_MS)
		return kv_fail(err, KV_ERR_ARG, op, "timeout_ms is %lld; it must be 0..%d",
			       (long long)timeout_ms, KV_TIMEOUT_MAX_MS);
	*deadline_p = kv_deadline_ns(timeout_ms);
	return 0;
}

bool kv_engine_given_up(struct kv_engine *engine, int64_t *ask_ns)
{
	if (kv_now_ns() < *ask_ns)
		return false;
	*ask_ns = kv_deadline_ns(KV_ASK_MS);
	return engine->interrupted && engine->interrupted(engine->interrupted_arg);
}

bool kv_engine_lock_until(struct kv_engine *engine, int64_t deadline_ns)
{
	for (;;) {
		for (int i = 0; i < SPINS; i++) {
			if (!pthread_mutex_trylock(&engine->lock))
				return true;
			kv_cpu_relax();
		}
		if (kv_now_ns() >= deadline_ns)
			return false;
		poll(NULL, 0, 1);
	}
}

void kv_engine_note(struct kv_engine *engine, const struct kv_error *err)
{
	int64_t now = kv_now_ns();

	pthread_mutex_lock(&engine->pool_lock);
	engine->last_error = *err;
	engine->last_error_ns = now;
	pthread_mutex_unlock(&engine->pool_lock);
}

void kv_engine_wake(struct kv_engine *engine)
{
	uint64_t one = 1;
	ssize_t n;

	do
		n = write(engine->wake_fd, &one, sizeof(one));
	while (n < 0 && errno == EINTR);
	/* EAGAIN: it is readable already. */
}
