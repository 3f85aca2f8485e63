/* SPDX-License-Identifier: Apache-2.0 */
/* fake_qp.c -- queue pairs: states, what may be posted when, and how much of it */
#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "fake_world.h"

static struct fake_qp *qp_of(struct ibv_qp *qp)
{
	return (struct fake_qp *)qp;
}

struct fake_qp *fake_find_qp(uint32_t qp_num)
{
	struct fake_qp *qp = world.qp[qp_num % QPS_MAX];

	return qp && qp->qp.qp_num == qp_num ? qp : NULL;
}

static struct fake_qp **place_of(uint32_t slot)
{
	struct fake_qp **at = &world.qps;

	while (*at && (*at)->qp.qp_num % QPS_MAX < slot)
		at = &(*at)->next;
	return at;
}

static void take_slot(struct fake_qp *qp)
{
	struct fake_qp **at = place_of(qp->qp.qp_num % QPS_MAX);

	world.qp[qp->qp.qp_num % QPS_MAX] = qp;
	qp->next = *at;
	*at = qp;
}

static void leave_slot(struct fake_qp *qp)
{
	world.qp[qp->qp.qp_num % QPS_MAX] = NULL;
	*place_of(qp->qp.qp_num % QPS_MAX) = qp->next;
}

struct fake_qp *fake_first_qp(uint32_t slot)
{
	return *place_of(slot);
}

static struct fake_qp *new_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
	uint32_t inline_max = world.config.max_inline < 0 ? 0
			      : world.config.max_inline	  ? (uint32_t)world.config.max_inline
							  : MODEL_INLINE;
	struct fake_qp *qp;

	if (!model_takes(attr, inline_max)) {
		errno = EINVAL;
		return NULL;
	}
	qp = calloc(1, sizeof(*qp));
	do
		qp->qp.qp_num = world.next_qp++ & 0xffffff;
	while (qp->qp.qp_num < 2 || world.qp[qp->qp.qp_num % QPS_MAX]);
	take_slot(qp);
	qp->device = fake_context_of(pd->context)->device;
	qp->qp.context = pd->context;
	qp->qp.qp_context = attr->qp_context;
	qp->qp.pd = pd;
	qp->qp.send_cq = attr->send_cq;
	qp->qp.recv_cq = attr->recv_cq;
	qp->qp.qp_type = attr->qp_type;
	attr->cap.max_inline_data = inline_max;
	qp->cap = attr->cap;
	qp->sq_sig_all = attr->sq_sig_all;
	qp->sq = calloc(qp->cap.max_send_wr, sizeof(*qp->sq));
	qp->rq = calloc(qp->cap.max_recv_wr, sizeof(*qp->rq));
	qp->place_last = &qp->place;
	((struct fake_pd *)pd)->users++;
	fake_cq_of(attr->send_cq)->users++;
	fake_cq_of(attr->recv_cq)->users++;
	world.counts.qps++;
	return qp;
}

struct ibv_qp *fake_create_qp(struct ibv_pd *pd, struct ibv_qp_init_attr *attr)
{
	struct fake_qp *qp;

	fake_lock();
	qp = fake_fails(fake_context_of(pd->context)->device, FAKE_create_qp) ? NULL
									      : new_qp(pd, attr);
	fake_unlock();
	return qp ? &qp->qp : NULL;
}

static void reset(struct fake_qp *qp)
{
	for (uint32_t i = qp->sq_done; i != qp->sq_tail; i++) {
		free(qp->sq[i % qp->cap.max_send_wr].data);
		qp->sq[i % qp->cap.max_send_wr].data = NULL;
	}
	qp->sq_tail = qp->sq_exec = qp->sq_done = qp->sq_polled = 0;
	qp->rq_tail = qp->rq_head = qp->rq_polled = 0;
	qp->forced = qp->flushing = false;
	memset(&qp->attr, 0, sizeof(qp->attr));
}

static int transition(struct fake_qp *qp, const struct ibv_qp_attr *attr, int mask)
{
	if (!(mask & IBV_QP_STATE))
		return EINVAL;
	if (attr->qp_state == IBV_QPS_ERR) {
		qp->forced |= qp->qp.state != IBV_QPS_ERR;
		fake_qp_error(qp);
		return 0;
	}
	if (attr->qp_state == IBV_QPS_RESET) {
		fake_place_all(qp);
		reset(qp);
		qp->qp.state = IBV_QPS_RESET;
		return 0;
	}
	return model_may_step(qp->qp.state, attr, mask) && fake_port_takes(qp->device, attr, mask)
		       ? -1
		       : EINVAL;
}

static void take_time(const struct fake_qp *qp)
{
	int ms = atomic_load(&world.slow_teardown_ms[qp->device->host]);

	if (ms)
		poll(NULL, 0, ms);
}

int fake_modify_qp(struct ibv_qp *ibv_qp, struct ibv_qp_attr *attr, int mask)
{
	struct fake_qp *qp = qp_of(ibv_qp);
	int ret;

	if (attr->qp_state == IBV_QPS_ERR || attr->qp_state == IBV_QPS_RESET)
		take_time(qp);
	fake_lock();
	if (fake_fault(FAKE_modify_qp)) {
		ret = errno;
	} else {
		ret = transition(qp, attr, mask);
		if (ret < 0) {
			qp->qp.state = attr->qp_state;
			model_take_attr(&qp->attr, attr, mask);
			ret = 0;
		}
	}
	fake_unlock();
	return ret;
}

/*
 * To the error state: nothing new is sent, everything posted will be flushed; accepted bytes still
 * land.
 */
void fake_qp_error(struct fake_qp *qp)
{
	if (qp->qp.state == IBV_QPS_ERR)
		return;
	fake_ghosts_of(qp);
	qp->qp.state = IBV_QPS_ERR;
}

void fake_forget_events(struct ibv_context *context, const void *element)
{
	struct fake_context *c = fake_context_of(context);

	for (unsigned int i = c->event_head; i != c->event_tail; i++)
		if (c->event[i % ASYNC_MAX].element.qp == element)
			c->event[i % ASYNC_MAX].element.qp = NULL;
	while (c->unacked) { /* as the real one: an event of it may be in somebody's hands */
		fake_unlock();
		sched_yield();
		fake_lock();
	}
}

/* Completions of a destroyed queue pair are gone from its queues. */
static void forget_completions(struct fake_cq *cq, uint32_t qp_num)
{
	uint32_t to = cq->head;

	for (uint32_t from = cq->head; from != cq->tail; from++)
		if (cq->wc[from % cq->size].wc.qp_num != qp_num)
			cq->wc[to++ % cq->size] = cq->wc[from % cq->size];
	cq->tail = to;
}

int fake_destroy_qp(struct ibv_qp *ibv_qp)
{
	struct fake_qp *qp = qp_of(ibv_qp);

	take_time(qp);
	if (atomic_load(&world.refuse_destroy[qp->device->host]) > 0) {
		atomic_fetch_sub(&world.refuse_destroy[qp->device->host], 1);
		return EBUSY;
	}
	fake_lock();
	fake_forget_events(ibv_qp->context, ibv_qp);
	fake_qp_error(qp);
	fake_place_all(qp);
	reset(qp);
	forget_completions(fake_cq_of(ibv_qp->send_cq), ibv_qp->qp_num);
	forget_completions(fake_cq_of(ibv_qp->recv_cq), ibv_qp->qp_num);
	leave_slot(qp_of(ibv_qp));
	((struct fake_pd *)ibv_qp->pd)->users--;
	fake_cq_of(ibv_qp->send_cq)->users--;
	fake_cq_of(ibv_qp->recv_cq)->users--;
	world.counts.qps--;
	free(qp->sq);
	free(qp->rq);
	free(qp);
	fake_unlock();
	return 0;
}

/* ---------------------------------------------------------------- posting */

static int check_send(const struct fake_qp *qp, const struct ibv_send_wr *wr, uint64_t len)
{
	bool is_read = wr->opcode == IBV_WR_RDMA_READ;

	if (qp->qp.state != IBV_QPS_RTS && qp->qp.state != IBV_QPS_ERR)
		return EINVAL;
	if (wr->num_sge > (int)qp->cap.max_send_sge || len > MODEL_MESSAGE ||
	    !model_knows(wr->opcode))
		return EINVAL;
	if ((wr->send_flags & IBV_SEND_INLINE) && (is_read || len > qp->cap.max_inline_data))
		return EINVAL;
	if (qp->sq_tail - qp->sq_polled >= qp->cap.max_send_wr) {
		world.stats.refused++;
		return ENOMEM;
	}
	return 0;
}

static int post_one(struct fake_qp *qp, const struct ibv_send_wr *wr)
{
	struct fake_wr *to = &qp->sq[qp->sq_tail % qp->cap.max_send_wr];
	uint64_t len = 0;
	int ret;

	for (int i = 0; i < wr->num_sge; i++)
		len += wr->sg_list[i].length;
	ret = check_send(qp, wr, len);
	if (!ret && world.fail_wr && !--world.fail_wr)
		ret = ENOMEM;
	if (ret)
		return ret;
	*to = (struct fake_wr){
		.wr_id = wr->wr_id,
		.opcode = (int)wr->opcode,
		.flags = wr->send_flags | (qp->sq_sig_all ? (unsigned int)IBV_SEND_SIGNALED : 0),
		.imm = wr->imm_data,
		.raddr = wr->wr.rdma.remote_addr,
		.rkey = wr->wr.rdma.rkey,
		.num_sge = wr->num_sge,
		.len = (uint32_t)len,
	};
	memcpy(to->sge, wr->sg_list, (size_t)wr->num_sge * sizeof(to->sge[0]));
	if (wr->send_flags & IBV_SEND_INLINE) {
		uint32_t at = 0;

		for (int i = 0; i < wr->num_sge; i++) {
			memcpy(to->inlined + at, (void *)(uintptr_t)wr->sg_list[i].addr,
			       wr->sg_list[i].length);
			at += wr->sg_list[i].length;
		}
	}
	if (len && (wr->opcode == IBV_WR_RDMA_WRITE || wr->opcode == IBV_WR_RDMA_WRITE_WITH_IMM))
		world.write[world.writes++ % WRITES_KEPT] = (struct fake_write){
			.device = qp->device->index,
			.addr = wr->wr.rdma.remote_addr,
			.len = (uint32_t)len,
		};
	qp->sq_tail++;
	qp->device->carried += len;
	world.stats.work_requests++;
	return 0;
}

static bool is_stuck(struct fake_qp *qp)
{
	bool stuck;

	fake_lock();
	stuck = atomic_load(&world.stuck[qp->device->host]) && qp->qp.state != IBV_QPS_ERR;
	fake_unlock();
	return stuck;
}

int fake_post_send(struct ibv_qp *qp, struct ibv_send_wr *wr, struct ibv_send_wr **bad)
{
	int ret = 0;

	atomic_fetch_add(&world.sticking, 1);
	while (is_stuck(qp_of(qp)))
		poll(NULL, 0, 1);
	atomic_fetch_sub(&world.sticking, 1);
	fake_lock();
	world.stats.doorbells++;
	if (fake_fault(FAKE_post_send))
		ret = errno;
	for (; wr && !ret; wr = ret ? wr : wr->next)
		ret = post_one(qp_of(qp), wr);
	*bad = wr;
	fake_unlock();
	return ret;
}

static int post_recv_one(struct fake_qp *qp, const struct ibv_recv_wr *wr)
{
	struct fake_recv *to = &qp->rq[qp->rq_tail % qp->cap.max_recv_wr];

	if (qp->qp.state == IBV_QPS_RESET || wr->num_sge > (int)qp->cap.max_recv_sge)
		return EINVAL;
	if (qp->rq_tail - qp->rq_polled >= qp->cap.max_recv_wr) {
		world.stats.refused++;
		return ENOMEM;
	}
	to->wr_id = wr->wr_id;
	to->num_sge = wr->num_sge;
	memcpy(to->sge, wr->sg_list, (size_t)wr->num_sge * sizeof(to->sge[0]));
	qp->rq_tail++;
	return 0;
}

int fake_post_recv(struct ibv_qp *qp, struct ibv_recv_wr *wr, struct ibv_recv_wr **bad)
{
	int ret = 0;

	fake_lock();
	if (fake_fault(FAKE_post_recv))
		ret = errno;
	for (; wr && !ret; wr = ret ? wr : wr->next)
		ret = post_recv_one(qp_of(qp), wr);
	*bad = wr;
	fake_unlock();
	return ret;
}
