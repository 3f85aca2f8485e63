/* SPDX-License-Identifier: Apache-2.0 */
/*
 * late.c -- time: the NIC that is modelled, and what comes later than the call that asked for it
 *
 * The one thread of softnic begins when somebody sleeps on a completion queue while something of it
 * is not done: a completion that the modelled NIC has not made yet, a message whose receiver is not
 * ready, a peer that does not answer. What is polled needs no thread.
 */
#include <time.h>

#include "softnic.h"

static struct {
	pthread_mutex_t lock;
	pthread_cond_t more;
	int pid; /* whose thread it is: a forked child begins its own */
	bool asked;
} late = { .lock = PTHREAD_MUTEX_INITIALIZER, .more = PTHREAD_COND_INITIALIZER };

uint64_t sn_now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000000 + (uint64_t)t.tv_nsec;
}

/*
 * Two servers, each with its own queue: the port, which is busy for the bytes of a message or for
 * what a message costs at least, and the queue pair. It is sent when both are done with it. So
 * other queue pairs fill the port while one is held up by its own rate. With the clock's lock.
 */
uint64_t sn_clock_sends(struct sn_qp *qp, uint32_t n, uint64_t port_cost, uint64_t now)
{
	struct sn_clock *clock = &qp->device->clock;
	uint64_t sent;

	now <<= 10;
	qp->clock = (qp->clock > now ? qp->clock : now) + n * sn.qp_cost;
	clock->free = (clock->free > now ? clock->free : now) + port_cost;
	sent = clock->free;
	return (sent > qp->clock ? sent : qp->clock) >> 10;
}

/* When to look again; fires for what has become due meanwhile. */
static uint64_t look(uint64_t now)
{
	uint64_t next = now + UINT64_C(1000000000);

	pthread_mutex_lock(&sn.lock);
	for (struct sn_cq *cq = sn.cqs; cq; cq = cq->next) {
		uint64_t due;

		if (!atomic_load(&cq->shared->armed))
			continue;
		if (atomic_load(&cq->pending))
			sn_scan(cq);
		if (atomic_load(&cq->pending) && now + SN_RETRY_NS < next)
			next = now + SN_RETRY_NS;
		if (sn_wakes(cq, now, &due))
			sn_fire(cq->shared);
		else if (due && due < next)
			next = due;
	}
	pthread_mutex_unlock(&sn.lock);
	return next;
}

static void *watch(void *unused)
{
	for (;;) {
		uint64_t next = look(sn_now());
		struct timespec until = { .tv_sec = (time_t)(next / 1000000000),
					  .tv_nsec = (long)(next % 1000000000) };

		pthread_mutex_lock(&late.lock);
		if (!late.asked)
			pthread_cond_clockwait(&late.more, &late.lock, CLOCK_MONOTONIC, &until);
		late.asked = false;
		pthread_mutex_unlock(&late.lock);
	}
	return NULL;
}

void sn_late(void)
{
	pthread_t thread;

	pthread_mutex_lock(&late.lock);
	if (late.pid != sn.pid && !pthread_create(&thread, NULL, watch, NULL)) {
		pthread_detach(thread);
		late.pid = sn.pid;
	}
	late.asked = true;
	pthread_cond_signal(&late.more);
	pthread_mutex_unlock(&late.lock);
}
