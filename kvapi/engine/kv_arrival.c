/* SPDX-License-Identifier: Apache-2.0 */
/* kv_arrival.c -- the engine's bounded queue of arrivals */
#include "kv_engine.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

int kv_arrivals_open(struct kv_engine *engine, struct kv_error *err)
{
	struct kv_arrivals *a = &engine->arrivals;

	pthread_mutex_init(&a->lock, NULL);
	a->cap = (size_t)kv_option_int(engine->options, KV_OPT_ARRIVALS);
	a->ring = kv_fault(KV_ARRIVALS_ALLOC) ? NULL : calloc(a->cap, sizeof(*a->ring));
	if (!a->ring)
		return kv_fail(err, KV_ERR_NOMEM, "open", "cannot allocate %zu arrivals", a->cap);
	a->fd = kv_fault(KV_ARRIVALS_FD) ? (errno = EMFILE, -1)
					 : eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (a->fd < 0)
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "open", "eventfd failed");
	return 0;
}

void kv_arrivals_close(struct kv_engine *engine)
{
	struct kv_arrivals *a = &engine->arrivals;

	if (!a->cap)
		return; /* never opened */
	if (a->fd >= 0)
		close(a->fd);
	free(a->ring);
	pthread_mutex_destroy(&a->lock);
}

static void set_readable(struct kv_arrivals *a, bool readable)
{
	uint64_t v = 1;
	ssize_t n;

	if (!a->fd_asked)
		return;
	do
		n = readable ? write(a->fd, &v, sizeof(v)) : read(a->fd, &v, sizeof(v));
	while (n < 0 && errno == EINTR);
}

bool kv_arrivals_push(struct kv_engine *engine, const struct kv_arrival *arrival)
{
	struct kv_arrivals *a = &engine->arrivals;
	bool room;

	if (engine->arrivals_off) {
		kv_count(engine, arrivals, 1);
		return true;
	}
	pthread_mutex_lock(&a->lock);
	room = a->count < a->cap;
	if (room) {
		a->ring[(a->head + a->count++) % a->cap] = *arrival;
		if (a->count == 1)
			set_readable(a, true);
	} else {
		a->starved = true;
	}
	pthread_mutex_unlock(&a->lock);
	if (room)
		kv_count(engine, arrivals, 1);
	return room;
}

void kv_arrivals_forget(struct kv_engine *engine, const struct kv_peer *peer)
{
	struct kv_arrivals *a = &engine->arrivals;

	pthread_mutex_lock(&a->lock);
	for (size_t i = 0; i < a->count; i++) {
		struct kv_arrival *e = &a->ring[(a->head + i) % a->cap];

		if (e->peer != peer)
			continue;
		e->peer = NULL;
		if (e->kind != KV_ARRIVAL_BLOCKS)
			e->kind = 0; /* skipped: it was only about the handle */
	}
	pthread_mutex_unlock(&a->lock);
}

int kv_poll_arrivals(struct kv_engine *engine, struct kv_arrival *arrivals, size_t max,
		     struct kv_error *err)
{
	struct kv_arrivals *a;
	bool starved = false;
	size_t got = 0;
	int ret = kv_engine_use(engine, "poll_arrivals", err);

	if (ret)
		return ret;
	if (max > INT32_MAX || (max && !arrivals))
		return kv_fail(err, KV_ERR_ARG, "poll_arrivals",
			       "arrivals is NULL or max is above 2^31 - 1");
	a = &engine->arrivals;
	pthread_mutex_lock(&a->lock);
	if (a->count) {
		while (got < max && a->count) {
			const struct kv_arrival *e = &a->ring[a->head];

			if (e->kind)
				arrivals[got++] = *e;
			a->head = (a->head + 1) % a->cap;
			a->count--;
		}
		if (!a->count)
			set_readable(a, false);
		starved = a->starved && a->count <= a->cap / 2;
		if (starved)
			a->starved = false;
	}
	pthread_mutex_unlock(&a->lock);
	if (starved)
		kv_engine_wake(engine); /* what was withheld can be queued and acknowledged now */
	return (int)got;
}

int kv_arrivals_fd(struct kv_engine *engine)
{
	struct kv_arrivals *a;
	int ret = kv_engine_use(engine, "arrivals_fd", NULL);

	if (ret)
		return ret;
	a = &engine->arrivals;
	pthread_mutex_lock(&a->lock);
	if (!a->fd_asked) {
		a->fd_asked = true;
		if (a->count)
			set_readable(a, true);
	}
	pthread_mutex_unlock(&a->lock);
	return a->fd;
}
