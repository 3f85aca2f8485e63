/* SPDX-License-Identifier: Apache-2.0 */
/*
 * rq.c -- receive requests, of one queue pair or shared by several: posted, and what has arrived in
 * them made into completions
 *
 * One of several queue pairs is free again when it is a completion, not only when that is polled.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "softnic.h"

void sn_rq_init(struct sn_rq *rq, struct sn_shared_rq *shared, uint32_t max_wr, uint32_t max_sge)
{
	pthread_mutex_init(&rq->lock, NULL);
	rq->shared = shared;
	rq->max_wr = max_wr;
	rq->max_sge = max_sge;
	atomic_store(&shared->taking.owner, 0);
	shared->mask = sn_power_of_two(max_wr) - 1;
	sn_rq_reset(rq);
}

void sn_rq_reset(struct sn_rq *rq)
{
	pthread_mutex_lock(&rq->lock);
	rq->shared->tail = 0;
	rq->shared->head = 0;
	rq->seen = 0;
	rq->polled = 0;
	pthread_mutex_unlock(&rq->lock);
}

/* ---------------------------------------------------------------- shared ones */

static struct sn_shared_srq *take_srq(uint32_t *number_p)
{
	struct sn_shared_srq *all = sn.world->srq;

	return sn_take(&sn.world->next_srq, SN_SRQS, &all->host, sizeof(*all), number_p)
		       ? &all[*number_p]
		       : NULL;
}

struct ibv_srq *ibv_create_srq(struct ibv_pd *pd, struct ibv_srq_init_attr *init)
{
	struct sn_shared_srq *shared;
	struct sn_srq *srq;
	uint32_t number;

	errno = EINVAL;
	if (!init->attr.max_wr || init->attr.max_wr > MODEL_DEPTH ||
	    init->attr.max_sge > MODEL_SGES)
		return NULL;
	shared = take_srq(&number);
	srq = shared ? calloc(1, sizeof(*srq)) : NULL;
	if (!srq) {
		if (shared)
			atomic_store(&shared->host, 0);
		return NULL;
	}
	srq->number = number;
	srq->srq = (struct ibv_srq){ .context = pd->context,
				     .srq_context = init->srq_context,
				     .pd = pd };
	sn_rq_init(&srq->rq, &shared->rq, init->attr.max_wr, init->attr.max_sge);
	return &srq->srq;
}

int ibv_destroy_srq(struct ibv_srq *ibv_srq)
{
	struct sn_srq *srq = sn_srq_of(ibv_srq);

	if (atomic_load(&srq->users))
		return EBUSY;
	atomic_store(&sn.world->srq[srq->number].host, 0);
	free(srq);
	return 0;
}

/* ---------------------------------------------------------------- posting */

static int put(struct sn_rq *rq, const struct ibv_recv_wr *wr)
{
	struct sn_shared_rq *s = rq->shared;
	struct sn_shared_recv *to = &s->recv[s->tail & s->mask];

	if (wr->num_sge > (int)rq->max_sge)
		return EINVAL;
	if (s->tail - atomic_load(&rq->polled) >= rq->max_wr)
		return ENOMEM;
	to->wr_id = wr->wr_id;
	to->num_sge = (uint32_t)wr->num_sge;
	memcpy(to->sge, wr->sg_list, (size_t)wr->num_sge * sizeof(to->sge[0]));
	atomic_store_explicit(&s->tail, s->tail + 1, memory_order_release);
	return 0;
}

static int put_all(struct sn_rq *rq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	int ret = 0;

	pthread_mutex_lock(&rq->lock);
	while (wr && !ret) {
		ret = put(rq, wr);
		if (!ret)
			wr = wr->next;
	}
	if (bad)
		*bad = wr;
	pthread_mutex_unlock(&rq->lock);
	return ret;
}

int sn_post_recv(struct ibv_qp *ibv_qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	struct sn_qp *qp = sn_qp_of(ibv_qp);
	int ret;

	if (qp->shared->state == IBV_QPS_RESET || qp->rq != &qp->own) {
		if (bad)
			*bad = wr;
		return EINVAL;
	}
	ret = put_all(qp->rq, wr, bad);
	if (qp->shared->state == IBV_QPS_ERR) /* they are to be flushed */
		atomic_fetch_add(&sn.world->cq[qp->shared->recv_cq].arrivals, 1);
	return ret;
}

int sn_post_srq_recv(struct ibv_srq *srq, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	return put_all(&sn_srq_of(srq)->rq, wr, bad);
}

/* ---------------------------------------------------------------- what has arrived */

static void take(struct sn_rq *rq, struct sn_qp *qp, bool flushed)
{
	const struct sn_shared_recv *r = &rq->shared->recv[rq->seen & rq->shared->mask];
	struct sn_entry entry = { .qp = qp, .position = rq->seen++, .recv = true };

	if (!qp)
		return;
	entry.wc.wr_id = r->wr_id;
	entry.wc.qp_num = qp->ex.qp_base.qp_num;
	entry.wc.status = flushed ? IBV_WC_WR_FLUSH_ERR : (enum ibv_wc_status)r->status;
	entry.wc.opcode = r->written ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV;
	if (!flushed) {
		if (r->carried)
			memcpy((void *)(uintptr_t)r->to, r->bytes, r->carried);
		entry.due = r->due;
		entry.wc.byte_len = r->byte_len;
		entry.wc.src_qp = r->src_qp;
		entry.wc.imm_data = r->imm;
		entry.wc.wc_flags = r->has_imm ? IBV_WC_WITH_IMM : 0;
	}
	sn_push(sn_cq_of(qp->init.recv_cq), &entry);
}

static void take_used(struct sn_rq *rq, struct sn_qp *own)
{
	while (rq->seen != atomic_load_explicit(&rq->shared->head, memory_order_acquire)) {
		uint32_t qpn = rq->shared->recv[rq->seen & rq->shared->mask].qpn;
		struct sn_qp *qp = own ? own : sn.qp[qpn % SN_QPS];

		/* NULL: it was destroyed, and one with its place has another number. */
		take(rq, qp && qp->ex.qp_base.qp_num == qpn ? qp : NULL, false);
		if (!own)
			atomic_store(&rq->polled, rq->seen);
	}
}

void sn_collect(struct sn_qp *qp)
{
	struct sn_shared_qp *s = qp->shared;
	struct sn_rq *rq = qp->rq;
	bool own = rq == &qp->own;

	pthread_mutex_lock(&rq->lock);
	take_used(rq, own ? qp : NULL);
	if (own && s->state == IBV_QPS_ERR && rq->seen != rq->shared->tail) {
		sn_lock_take(&s->inbound); /* nobody uses one of them any more */
		take_used(rq, qp);
		sn_lock_give(&s->inbound);
		while (rq->seen != rq->shared->tail)
			take(rq, qp, true);
		rq->shared->head = rq->shared->tail;
	}
	pthread_mutex_unlock(&rq->lock);
}

void sn_collect_all(void)
{
	pthread_mutex_lock(&sn.lock);
	for (struct sn_cq *cq = sn.cqs; cq; cq = cq->next) {
		pthread_mutex_lock(&cq->scan);
		for (struct sn_qp *qp = cq->receivers; qp; qp = qp->next_receiver)
			sn_collect(qp);
		pthread_mutex_unlock(&cq->scan);
	}
	pthread_mutex_unlock(&sn.lock);
}
