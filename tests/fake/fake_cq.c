/* SPDX-License-Identifier: Apache-2.0 */
/* fake_cq.c -- completion queues, their channels, and asynchronous events */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "fake_world.h"

enum { STEPS_OF_A_CALL = 1 << 13 };

struct fake_cq *fake_cq_of(struct ibv_cq *cq)
{
	return (struct fake_cq *)cq;
}

static struct fake_channel *channel_of(struct ibv_comp_channel *channel)
{
	return (struct fake_channel *)channel;
}

static void signal_fd(int fd)
{
	uint64_t one = 1;

	if (write(fd, &one, sizeof(one)) != sizeof(one))
		fake_misuse("an event descriptor was closed");
}

/* As a verbs library does: one event is read from the descriptor, which may block or not. */
static int take_signal(int fd)
{
	uint64_t one;

	return read(fd, &one, sizeof(one)) == sizeof(one) ? 0 : -1;
}

struct ibv_comp_channel *fake_create_comp_channel(struct ibv_context *context)
{
	struct fake_channel *channel = NULL;

	fake_lock();
	if (!fake_fails(fake_context_of(context)->device, FAKE_create_comp_channel)) {
		channel = calloc(1, sizeof(*channel));
		channel->channel.context = context;
		channel->channel.fd = eventfd(0, EFD_SEMAPHORE | EFD_CLOEXEC);
		fake_context_of(context)->users++;
		world.counts.channels++;
	}
	fake_unlock();
	return channel ? &channel->channel : NULL;
}

int fake_destroy_comp_channel(struct ibv_comp_channel *ibv_channel)
{
	struct fake_channel *channel = channel_of(ibv_channel);
	int ret = 0;

	fake_lock();
	if (channel->users) {
		ret = fake_misuse("destroy_comp_channel while queues use it");
	} else {
		fake_context_of(ibv_channel->context)->users--;
		world.counts.channels--;
		close(ibv_channel->fd);
		free(channel);
	}
	fake_unlock();
	return ret;
}

struct ibv_cq *fake_create_cq(struct ibv_context *context, int cqe, void *cq_context,
			      struct ibv_comp_channel *channel, int comp_vector)
{
	struct fake_cq *cq = NULL;

	fake_lock();
	if (!fake_fails(fake_context_of(context)->device, FAKE_create_cq)) {
		cq = calloc(1, sizeof(*cq));
		cq->size = (uint32_t)cqe;
		cq->wc = calloc(cq->size, sizeof(*cq->wc));
		cq->cq.context = context;
		cq->cq.channel = channel;
		cq->cq.cq_context = cq_context;
		cq->cq.cqe = cqe;
		fake_context_of(context)->users++;
		if (channel)
			channel_of(channel)->users++;
		world.counts.cqs++;
	}
	fake_unlock();
	return cq ? &cq->cq : NULL;
}

int fake_destroy_cq(struct ibv_cq *ibv_cq)
{
	struct fake_cq *cq = fake_cq_of(ibv_cq);
	struct fake_channel *channel = ibv_cq->channel ? channel_of(ibv_cq->channel) : NULL;
	int ret = 0;

	fake_lock();
	if (cq->users) {
		ret = fake_misuse("destroy_cq while queue pairs use it");
	} else if (cq->unacked) {
		ret = fake_misuse("destroy_cq with events that were not acknowledged");
	} else {
		/* Events that nobody has read go with the queue. */
		fake_forget_events(ibv_cq->context, ibv_cq);
		for (unsigned int i = channel ? channel->event_head : 0;
		     channel && i != channel->event_tail; i++)
			if (channel->event[i % ASYNC_MAX] == cq)
				channel->event[i % ASYNC_MAX] = NULL;
		if (channel)
			channel->users--;
		fake_context_of(ibv_cq->context)->users--;
		world.counts.cqs--;
		free(cq->wc);
		free(cq);
	}
	fake_unlock();
	return ret;
}

static void overrun(struct fake_cq *cq)
{
	struct ibv_async_event event = { .event_type = IBV_EVENT_CQ_ERR, .element.cq = &cq->cq };

	cq->overrun = true;
	world.stats.overruns++;
	fake_push_async(cq->cq.context, &event);
}

static void fire(struct fake_cq *cq)
{
	struct fake_channel *channel;

	if (!cq->armed || !cq->cq.channel)
		return;
	cq->armed = false;
	channel = channel_of(cq->cq.channel);
	channel->event[channel->event_tail++ % ASYNC_MAX] = cq;
	signal_fd(channel->channel.fd);
}

void fake_push_wc(struct fake_cq *cq, const struct fake_wc *wc)
{
	if (cq->tail - cq->head == cq->size) {
		overrun(cq);
		return;
	}
	cq->wc[cq->tail++ % cq->size] = *wc;
	world.stats.completions++;
	if (!cq->for_errors || wc->wc.status != IBV_WC_SUCCESS)
		fire(cq);
}

/* The room of a queue comes back when a completion is taken, not when it is made. */
static void give_room(const struct fake_wc *entry)
{
	struct fake_qp *qp = entry->spurious ? NULL : fake_find_qp(entry->wc.qp_num);

	if (!qp)
		return;
	if (entry->recv)
		qp->rq_polled = entry->position + 1;
	else
		qp->sq_polled = entry->position + 1;
}

int fake_poll_cq(struct ibv_cq *ibv_cq, int n, struct ibv_wc *wc)
{
	struct fake_cq *cq = fake_cq_of(ibv_cq);
	int got = 0;

	fake_lock();
	if (fake_fault(FAKE_poll_cq) || cq->overrun) {
		fake_unlock();
		return -1;
	}
	for (int i = (int)fake_random((uint32_t)world.config.steps_per_poll + 1); i > 0; i--)
		if (!fake_wire_step())
			break;
	while (got < n && cq->head != cq->tail) {
		const struct fake_wc *entry = &cq->wc[cq->head++ % cq->size];

		give_room(entry);
		wc[got++] = entry->wc;
	}
	fake_unlock();
	return got;
}

/*
 * The caller is about to sleep: time passes until nothing is left to do. A queue pair that tries
 * again and again may keep the wire going as long as its peer's thread has no processor, so after
 * some steps the caller gets an event for nothing, and another thread the wire.
 */
int fake_req_notify_cq(struct ibv_cq *ibv_cq, int solicited_only)
{
	struct fake_cq *cq = fake_cq_of(ibv_cq);
	int ret = 0;

	fake_lock();
	if (fake_fault(FAKE_req_notify_cq)) {
		ret = errno;
	} else {
		/* Who is woken by every completion stays so until then. */
		cq->for_errors = solicited_only && (!cq->armed || cq->for_errors);
		cq->armed = true;
		for (int i = 0; fake_wire_step(); i++)
			if (i == STEPS_OF_A_CALL) {
				fire(cq);
				break;
			}
	}
	fake_unlock();
	return ret;
}

int fake_get_cq_event(struct ibv_comp_channel *ibv_channel, struct ibv_cq **cq, void **cq_context)
{
	struct fake_channel *channel = channel_of(ibv_channel);
	struct fake_cq *from = NULL;

	while (!from) {
		if (take_signal(ibv_channel->fd))
			return -1;
		fake_lock();
		from = channel->event[channel->event_head++ % ASYNC_MAX];
		if (from)
			from->unacked++;
		fake_unlock();
	}
	*cq = &from->cq;
	*cq_context = from->cq.cq_context;
	return 0;
}

void fake_ack_cq_events(struct ibv_cq *cq, unsigned int n)
{
	fake_lock();
	fake_cq_of(cq)->unacked -= (int)n;
	fake_unlock();
}

/* ---------------------------------------------------------------- asynchronous events */

void fake_push_async(struct ibv_context *context, const struct ibv_async_event *event)
{
	struct fake_context *c = fake_context_of(context);

	if (c->event_tail - c->event_head == ASYNC_MAX)
		return;
	c->event[c->event_tail++ % ASYNC_MAX] = *event;
	signal_fd(context->async_fd);
}

int fake_get_async_event(struct ibv_context *context, struct ibv_async_event *event)
{
	struct fake_context *c = fake_context_of(context);
	bool found = false;

	fake_lock();
	world.stats.async_asked++;
	fake_unlock();
	while (!found) {
		if (take_signal(context->async_fd))
			return -1;
		fake_lock();
		*event = c->event[c->event_head++ % ASYNC_MAX];
		found = event->element.qp != NULL; /* not of what was destroyed */
		c->unacked += found;
		fake_unlock();
	}
	return 0;
}

void fake_ack_async_event(struct ibv_async_event *event)
{
	fake_lock();
	for (struct fake_context *c = world.contexts; c; c = c->next)
		c->unacked = 0;
	fake_unlock();
}
