/* SPDX-License-Identifier: Apache-2.0 */
/* qp.c -- queue pairs: made, moved through their states, and what may be posted to them */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "softnic.h"

uint32_t sn_power_of_two(uint32_t least)
{
	uint32_t n = 16;

	while (n < least)
		n *= 2;
	return n;
}

static struct sn_shared_qp *take_qp(uint32_t *qpn_p)
{
	for (int tries = 0; tries < SN_QPS; tries++) {
		uint32_t number = atomic_fetch_add(&sn.world->next_qp, 1), none = 0;
		struct sn_shared_qp *qp = &sn.world->qp[number % SN_QPS];

		*qpn_p = number & 0xffffff;
		if (*qpn_p > 1 && atomic_compare_exchange_strong(&qp->qpn, &none, *qpn_p))
			return qp;
	}
	errno = ENOMEM;
	return NULL;
}

static void free_qp(struct sn_qp *qp)
{
	sn_unmap(qp->record, (qp->sq_mask + 1) * SN_UNIT);
	sn_unmap(qp->more, (qp->sq_mask + 1) * sizeof(*qp->more));
	sn_unmap(qp->kept, (qp->sq_mask + 1) * sizeof(*qp->kept));
	free(qp);
}

static struct sn_qp *allocate(const struct ibv_qp_cap *cap)
{
	uint32_t n = sn_power_of_two(cap->max_send_wr);
	struct sn_qp *qp = calloc(1, sizeof(*qp));

	if (!qp)
		return NULL;
	qp->sq_mask = n - 1;
	qp->record = sn_map((size_t)n * SN_UNIT);
	qp->more = sn_map(n * sizeof(*qp->more));
	qp->kept = sn_map(n * sizeof(*qp->kept));
	if (qp->record && qp->more && qp->kept)
		return qp;
	free_qp(qp);
	return NULL;
}

static void share(struct sn_qp *qp, struct ibv_pd *pd)
{
	struct sn_shared_qp *s = qp->shared;
	const struct sn_context *context = sn_context_of(pd->context);

	atomic_store(&s->inbound.owner, 0);
	s->host = sn.host;
	s->device = context->device->index;
	s->pd = ((struct sn_pd *)pd)->number;
	s->async = context->async;
	s->send_cq = sn_cq_of(qp->init.send_cq)->number;
	s->recv_cq = sn_cq_of(qp->init.recv_cq)->number;
	s->srq = qp->init.srq ? sn_srq_of(qp->init.srq)->number + 1 : 0;
	sn_rq_init(&qp->own, &s->rq, qp->init.cap.max_recv_wr, qp->init.cap.max_recv_sge);
	qp->rq = &qp->own;
	if (qp->init.srq) {
		qp->rq = &sn_srq_of(qp->init.srq)->rq;
		atomic_fetch_add(&sn_srq_of(qp->init.srq)->users, 1);
	}
	s->state = IBV_QPS_RESET;
}

/* Its completion queues look after it. */
static void enlist(struct sn_qp *qp)
{
	struct sn_cq *send = sn_cq_of(qp->init.send_cq), *recv = sn_cq_of(qp->init.recv_cq);

	pthread_mutex_lock(&send->scan);
	qp->next_sender = send->senders;
	send->senders = qp;
	pthread_mutex_unlock(&send->scan);
	pthread_mutex_lock(&recv->scan);
	qp->next_receiver = recv->receivers;
	recv->receivers = qp;
	pthread_mutex_unlock(&recv->scan);
}

struct ibv_qp *ibv_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
	struct sn_qp *qp;
	uint32_t qpn;

	errno = EINVAL;
	if (!model_takes(attr, MODEL_INLINE) || (attr->srq && attr->srq->pd != pd))
		return NULL;
	qp = allocate(&attr->cap);
	if (!qp)
		return NULL;
	attr->cap.max_inline_data = MODEL_INLINE;
	qp->init = *attr;
	qp->shared = take_qp(&qpn);
	if (!qp->shared) {
		free_qp(qp);
		return NULL;
	}
	qp->device = sn_context_of(pd->context)->device;
	qp->ex.qp_base = (struct ibv_qp){ .context = pd->context,
					  .qp_context = attr->qp_context,
					  .pd = pd,
					  .send_cq = attr->send_cq,
					  .recv_cq = attr->recv_cq,
					  .srq = attr->srq,
					  .qp_num = qpn,
					  .qp_type = IBV_QPT_RC };
	pthread_mutex_init(&qp->lock, NULL);
	share(qp, pd);
	sn_wr_init(qp);
	sn.qp[qpn % SN_QPS] = qp;
	enlist(qp);
	return &qp->ex.qp_base;
}

struct ibv_qp *sn_create_qp_ex(struct ibv_context *context, struct ibv_qp_init_attr_ex *attr)
{
	errno = EOPNOTSUPP;
	if (attr->comp_mask & ~(uint32_t)(IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS))
		return NULL;
	return ibv_create_qp(attr->pd, (struct ibv_qp_init_attr *)attr);
}

static void reset(struct sn_qp *qp)
{
	pthread_mutex_lock(&qp->lock);
	qp->sq_tail = 0;
	qp->sq_done = 0;
	qp->sq_polled = 0;
	qp->retry_until = 0;
	qp->reached = false;
	if (qp->pending)
		atomic_fetch_sub(&sn_cq_of(qp->init.send_cq)->pending, 1);
	qp->pending = false;
	pthread_mutex_unlock(&qp->lock);
	sn_rq_reset(&qp->own);
	memset(&qp->attr, 0, sizeof(qp->attr));
}

/* Nothing arrives behind it. */
static void take_down(struct sn_qp *qp, enum ibv_qp_state state)
{
	sn_lock_take(&qp->shared->inbound);
	atomic_store(&qp->shared->state, state);
	sn_lock_give(&qp->shared->inbound);
}

int ibv_modify_qp(struct ibv_qp *ibv_qp, struct ibv_qp_attr *attr, int mask)
{
	struct sn_qp *qp = sn_qp_of(ibv_qp);
	struct sn_shared_qp *s = qp->shared;

	if (!(mask & IBV_QP_STATE))
		return EINVAL;
	if (attr->qp_state == IBV_QPS_ERR) {
		take_down(qp, IBV_QPS_RTR);
		sn_qp_error(s);
	} else if (attr->qp_state == IBV_QPS_RESET) {
		take_down(qp, IBV_QPS_RESET);
		reset(qp);
	} else if (model_may_step((enum ibv_qp_state)s->state, attr, mask)) {
		model_take_attr(&qp->attr, attr, mask);
		s->dest_qpn = qp->attr.dest_qp_num;
		s->sq_psn = qp->attr.sq_psn;
		s->rq_psn = qp->attr.rq_psn;
		s->mtu = qp->attr.path_mtu;
		s->access = (unsigned int)qp->attr.qp_access_flags;
		atomic_store(&s->state, attr->qp_state);
	} else {
		return EINVAL;
	}
	ibv_qp->state = attr->qp_state;
	return 0;
}

int ibv_query_qp(struct ibv_qp *ibv_qp, struct ibv_qp_attr *attr, int mask,
		 struct ibv_qp_init_attr *init)
{
	struct sn_qp *qp = sn_qp_of(ibv_qp);

	*attr = qp->attr;
	attr->qp_state = attr->cur_qp_state = (enum ibv_qp_state)qp->shared->state;
	attr->cap = qp->init.cap;
	*init = qp->init;
	return 0;
}

static void forget(struct sn_cq *cq, const struct sn_qp *qp)
{
	uint32_t to = cq->head;

	pthread_mutex_lock(&cq->scan);
	for (struct sn_qp **at = &cq->senders; *at; at = &(*at)->next_sender)
		if (*at == qp) {
			*at = qp->next_sender;
			break;
		}
	for (struct sn_qp **at = &cq->receivers; *at; at = &(*at)->next_receiver)
		if (*at == qp) {
			*at = qp->next_receiver;
			break;
		}
	pthread_mutex_lock(&cq->lock);
	to = cq->head;
	for (uint32_t from = cq->head; from != cq->tail; from++)
		if (cq->entry[from & (cq->size - 1)].qp != qp)
			cq->entry[to++ & (cq->size - 1)] = cq->entry[from & (cq->size - 1)];
	cq->tail = to;
	pthread_mutex_unlock(&cq->lock);
	pthread_mutex_unlock(&cq->scan);
}

int ibv_destroy_qp(struct ibv_qp *ibv_qp)
{
	struct sn_qp *qp = sn_qp_of(ibv_qp);

	take_down(qp, IBV_QPS_RESET);
	pthread_mutex_lock(&qp->rq->lock);
	sn.qp[ibv_qp->qp_num % SN_QPS] = NULL; /* what came to it is nobody's */
	pthread_mutex_unlock(&qp->rq->lock);
	forget(sn_cq_of(qp->init.send_cq), qp);
	forget(sn_cq_of(qp->init.recv_cq), qp);
	reset(qp);
	if (qp->init.srq)
		atomic_fetch_sub(&sn_srq_of(qp->init.srq)->users, 1);
	pthread_mutex_lock(&sn.lock);
	sn_count(&sn.counts, &qp->counts);
	pthread_mutex_unlock(&sn.lock);
	atomic_store(&qp->shared->qpn, 0);
	free_qp(qp);
	return 0;
}

/* ---------------------------------------------------------------- posting */

/* The next one in turn: what was touched just now is used again soon. */
static union sn_more *take_more(struct sn_qp *qp)
{
	return &qp->more[qp->mores++ & qp->sq_mask];
}

static void put_pointers(struct sn_qp *qp, struct sn_record *record, const struct ibv_send_wr *wr)
{
	struct sn_pointer *to = wr->num_sge > 2 ? take_more(qp)->pointer : record->pointer;

	for (int i = 0; i < wr->num_sge; i++)
		to[i] = (struct sn_pointer){ .len = htobe32(wr->sg_list[i].length),
					     .lkey = htobe32(wr->sg_list[i].lkey),
					     .addr = htobe64(wr->sg_list[i].addr) };
}

static void put_inline(struct sn_qp *qp, const struct ibv_send_wr *wr)
{
	uint8_t *to = take_more(qp)->inlined;

	for (int i = 0; i < wr->num_sge; i++) {
		memcpy(to, (void *)(uintptr_t)wr->sg_list[i].addr, wr->sg_list[i].length);
		to += wr->sg_list[i].length;
	}
}

/* As a driver puts one work request: the checks that it can make, the record, what it keeps. */
int sn_record_put(struct sn_qp *qp, const struct ibv_send_wr *wr)
{
	uint32_t slot = qp->sq_tail & qp->sq_mask;
	struct sn_record *record = &qp->record[slot];
	bool is_inline = wr->send_flags & IBV_SEND_INLINE;
	uint64_t len = 0;

	if (qp->sq_tail - atomic_load_explicit(&qp->sq_polled, memory_order_acquire) >=
	    qp->init.cap.max_send_wr)
		return ENOMEM;
	for (int i = 0; i < wr->num_sge; i++)
		len += wr->sg_list[i].length;
	if (wr->num_sge > (int)qp->init.cap.max_send_sge || len > MODEL_MESSAGE ||
	    !model_knows(wr->opcode) ||
	    (is_inline && (len > MODEL_INLINE || wr->opcode == IBV_WR_RDMA_READ)))
		return EINVAL;
	record->opcode_index = htobe32(qp->sq_tail << 8 | (uint32_t)wr->opcode);
	record->qpn_ds = htobe32(qp->ex.qp_base.qp_num << 8 | (uint32_t)(wr->num_sge + 2));
	record->flags = wr->send_flags;
	record->imm = wr->imm_data;
	record->raddr = htobe64(wr->wr.rdma.remote_addr);
	record->rkey = htobe32(wr->wr.rdma.rkey);
	record->reserved = 0;
	if (is_inline)
		put_inline(qp, wr);
	else
		put_pointers(qp, record, wr);
	qp->kept[slot] = (struct sn_kept){
		.wr_id = wr->wr_id,
		.len = (uint32_t)len,
		.more = qp->mores - 1,
		.opcode = (uint8_t)wr->opcode,
		.sges = (uint8_t)wr->num_sge,
		.signalled = (wr->send_flags & IBV_SEND_SIGNALED) || qp->init.sq_sig_all,
		.is_inline = is_inline,
		.dropped = sn.mode != SN_COPY && wr->opcode == IBV_WR_RDMA_WRITE && !is_inline,
	};
	qp->sq_tail++;
	qp->counts.work_requests++;
	qp->counts.bytes += len;
	return 0;
}

/* The device reads the queue up to here: the record of that, then the register. */
void sn_doorbell(struct sn_qp *qp)
{
	uint64_t until = sn.doorbell_ns ? sn_now() + sn.doorbell_ns : 0;

	atomic_thread_fence(memory_order_release);
	qp->doorbell_record = htobe32(qp->sq_tail);
	atomic_thread_fence(memory_order_seq_cst);
	qp->device->doorbell = (uint64_t)qp->ex.qp_base.qp_num << 32 | qp->sq_tail;
	qp->counts.doorbells++;
	while (until && sn_now() < until)
		;
}

int sn_post_send(struct ibv_qp *ibv_qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	struct sn_qp *qp = sn_qp_of(ibv_qp);
	uint64_t from = sn.timed ? sn_now() : 0;
	int state = atomic_load_explicit(&qp->shared->state, memory_order_relaxed), ret = 0;
	uint32_t tail;

	pthread_mutex_lock(&qp->lock);
	tail = qp->sq_tail;
	if (state != IBV_QPS_RTS && state != IBV_QPS_ERR)
		ret = EINVAL;
	while (wr && !ret) {
		ret = sn_record_put(qp, wr);
		if (!ret)
			wr = wr->next;
	}
	if (bad)
		*bad = wr;
	qp->counts.posts++;
	if (qp->sq_tail != tail) {
		sn_doorbell(qp);
		sn_run(qp);
	}
	if (from)
		qp->counts.ns += sn_now() - from;
	pthread_mutex_unlock(&qp->lock);
	return ret;
}
