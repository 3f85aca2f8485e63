/* SPDX-License-Identifier: Apache-2.0 */
/* cq.c -- completion queues and the channels that their users sleep on */
#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "softnic.h"

/* ---------------------------------------------------------------- channels */

struct ibv_comp_channel *ibv_create_comp_channel(struct ibv_context *context)
{
	struct sn_channel *channel = calloc(1, sizeof(*channel));

	if (!channel)
		return NULL;
	channel->channel.context = context;
	channel->channel.fd = sn_socket(&channel->name);
	return &channel->channel;
}

int ibv_destroy_comp_channel(struct ibv_comp_channel *channel)
{
	close(channel->fd);
	free(channel);
	return 0;
}

void sn_fire(struct sn_shared_cq *cq)
{
	if (!atomic_load(&cq->armed) || !atomic_exchange(&cq->armed, 0))
		return;
	atomic_fetch_add(&cq->events, 1);
	sn_tell(cq->channel, "e", 1);
}

/* A queue of the channel that has an event; *more_p: there is another one. */
static struct sn_cq *with_event(const struct ibv_comp_channel *channel, bool *more_p)
{
	struct sn_cq *found = NULL;

	*more_p = false;
	pthread_mutex_lock(&sn.lock);
	for (struct sn_cq *cq = ((const struct sn_channel *)channel)->cqs; cq; cq = cq->beside) {
		if (!atomic_load(&cq->shared->events))
			continue;
		if (!found)
			atomic_fetch_sub(&cq->shared->events, 1);
		*more_p = found || atomic_load(&cq->shared->events);
		found = found ? found : cq;
	}
	pthread_mutex_unlock(&sn.lock);
	return found;
}

int ibv_get_cq_event(struct ibv_comp_channel *channel, struct ibv_cq **cq_p, void **context_p)
{
	struct sn_cq *cq = NULL;
	bool more;
	char one;

	while (!cq) {
		if (recv(channel->fd, &one, 1, 0) != 1)
			return -1;
		cq = with_event(channel, &more);
	}
	/* Its socket was full when the other event came: its token comes now. */
	if (more && recv(channel->fd, &one, 1, MSG_PEEK | MSG_DONTWAIT) != 1)
		sn_tell(cq->shared->channel, "e", 1);
	*cq_p = &cq->cq;
	*context_p = cq->cq.cq_context;
	return 0;
}

void ibv_ack_cq_events(struct ibv_cq *cq, unsigned int n)
{
}

/* ---------------------------------------------------------------- queues */

static struct sn_shared_cq *take_cq(uint32_t *number_p)
{
	struct sn_shared_cq *all = sn.world->cq;

	return sn_take(&sn.world->next_cq, SN_CQS, &all->host, sizeof(*all), number_p)
		       ? &all[*number_p]
		       : NULL;
}

struct ibv_cq *ibv_create_cq(struct ibv_context *context, int cqe, void *cq_context,
			     struct ibv_comp_channel *channel, int comp_vector)
{
	struct sn_cq *cq = calloc(1, sizeof(*cq));

	if (cq)
		cq->shared = take_cq(&cq->number);
	if (!cq || !cq->shared || cqe < 1) {
		free(cq);
		return NULL;
	}
	cq->size = sn_power_of_two((uint32_t)cqe);
	cq->entry = sn_map(cq->size * sizeof(*cq->entry));
	if (!cq->entry) {
		atomic_store(&cq->shared->host, 0);
		free(cq);
		return NULL;
	}
	cq->cq.context = context;
	cq->cq.channel = channel;
	cq->cq.cq_context = cq_context;
	cq->cq.cqe = (int)cq->size;
	pthread_mutex_init(&cq->scan, NULL);
	pthread_mutex_init(&cq->lock, NULL);
	cq->shared->channel = channel ? ((struct sn_channel *)channel)->name : 0;
	cq->shared->armed = cq->shared->events = 0;
	pthread_mutex_lock(&sn.lock);
	cq->next = sn.cqs;
	sn.cqs = cq;
	if (channel) {
		cq->beside = ((struct sn_channel *)channel)->cqs;
		((struct sn_channel *)channel)->cqs = cq;
	}
	pthread_mutex_unlock(&sn.lock);
	return &cq->cq;
}

int ibv_destroy_cq(struct ibv_cq *ibv_cq)
{
	struct sn_cq *cq = sn_cq_of(ibv_cq), **at;

	if (cq->senders || cq->receivers)
		return EBUSY;
	pthread_mutex_lock(&sn.lock);
	for (at = &sn.cqs; *at != cq; at = &(*at)->next)
		;
	*at = cq->next;
	if (ibv_cq->channel) {
		for (at = &((struct sn_channel *)ibv_cq->channel)->cqs; *at != cq;
		     at = &(*at)->beside)
			;
		*at = cq->beside;
	}
	sn.counts.completions += cq->completions;
	sn.counts.polls += cq->polls;
	sn.counts.ns += cq->ns;
	pthread_mutex_unlock(&sn.lock);
	atomic_store(&cq->shared->host, 0);
	sn_unmap(cq->entry, cq->size * sizeof(*cq->entry));
	free(cq);
	return 0;
}

static bool wakes(const struct sn_cq *cq, const struct sn_entry *entry)
{
	int armed = atomic_load_explicit(&cq->shared->armed, memory_order_relaxed);

	return armed == SN_BY_ALL ||
	       (armed == SN_BY_SOLICITED && (entry->recv || entry->wc.status != IBV_WC_SUCCESS));
}

/* In the order in which they become due; those of one queue pair come in their order anyway. */
void sn_push(struct sn_cq *cq, const struct sn_entry *entry)
{
	uint32_t at;
	bool full;

	pthread_mutex_lock(&cq->lock);
	full = cq->tail - cq->head == cq->size;
	if (!full) {
		for (at = cq->tail++; at != cq->head; at--) {
			const struct sn_entry *before = &cq->entry[(at - 1) & (cq->size - 1)];

			if (before->due <= entry->due)
				break;
			cq->entry[at & (cq->size - 1)] = *before;
		}
		cq->entry[at & (cq->size - 1)] = *entry;
	}
	pthread_mutex_unlock(&cq->lock);
	if (full)
		sn_tell_async(entry->qp->shared, IBV_EVENT_CQ_ERR);
	else if (!wakes(cq, entry))
		return;
	else if (entry->due > sn_now())
		sn_late();
	else
		sn_fire(cq->shared);
}

bool sn_wakes(struct sn_cq *cq, uint64_t now, uint64_t *due_p)
{
	const struct sn_entry *first = NULL;
	uint64_t due = 0;

	pthread_mutex_lock(&cq->lock);
	for (uint32_t at = cq->head; at != cq->tail && !first; at++)
		if (wakes(cq, &cq->entry[at & (cq->size - 1)]))
			first = &cq->entry[at & (cq->size - 1)];
	if (first)
		due = first->due;
	pthread_mutex_unlock(&cq->lock);
	*due_p = due > now ? due : 0;
	return first && due <= now;
}

/* What has happened to its queue pairs becomes completions. */
void sn_scan(struct sn_cq *cq)
{
	pthread_mutex_lock(&cq->scan);
	cq->seen = atomic_load(&cq->shared->arrivals);
	for (struct sn_qp *qp = cq->receivers; qp; qp = qp->next_receiver)
		sn_collect(qp);
	for (struct sn_qp *qp = cq->senders; qp; qp = qp->next_sender) {
		pthread_mutex_lock(&qp->lock);
		sn_run(qp);
		pthread_mutex_unlock(&qp->lock);
	}
	pthread_mutex_unlock(&cq->scan);
}

static void give_room(const struct sn_entry *entry)
{
	atomic_store_explicit(entry->recv ? &entry->qp->own.polled : &entry->qp->sq_polled,
			      entry->position + 1, memory_order_release);
}

int sn_poll_cq(struct ibv_cq *ibv_cq, int n, struct ibv_wc *wc)
{
	struct sn_cq *cq = sn_cq_of(ibv_cq);
	uint64_t from = sn.timed ? sn_now() : 0, now = UINT64_MAX;
	int got = 0;

	cq->polls++;
	if (atomic_load_explicit(&cq->shared->arrivals, memory_order_acquire) != cq->seen ||
	    atomic_load_explicit(&cq->pending, memory_order_relaxed))
		sn_scan(cq);
	pthread_mutex_lock(&cq->lock);
	if (sn.mode == SN_MODEL && cq->head != cq->tail)
		now = sn_now();
	while (got < n && cq->head != cq->tail) {
		const struct sn_entry *entry = &cq->entry[cq->head & (cq->size - 1)];

		if (entry->due > now)
			break;
		give_room(entry);
		wc[got++] = entry->wc;
		cq->head++;
	}
	cq->completions += (uint64_t)got;
	if (from && got)
		cq->ns += sn_now() - from;
	pthread_mutex_unlock(&cq->lock);
	return got;
}

int sn_req_notify_cq(struct ibv_cq *ibv_cq, int solicited_only)
{
	struct sn_cq *cq = sn_cq_of(ibv_cq);
	int none = SN_BY_NOTHING;
	uint64_t due;

	if (solicited_only)
		atomic_compare_exchange_strong(&cq->shared->armed, &none, SN_BY_SOLICITED);
	else
		atomic_store(&cq->shared->armed, SN_BY_ALL);
	sn_wakes(cq, sn_now(), &due);
	if (atomic_load(&cq->pending) || due)
		sn_late();
	return 0;
}
