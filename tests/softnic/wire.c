/* SPDX-License-Identifier: Apache-2.0 */
/*
 * wire.c -- what a work request does, in the call of the process that posted it
 *
 * Order: the requests of a queue pair are done and completed in order; one that cannot be done yet
 * (no receive request, no answer) holds up those behind it, and is tried again when somebody polls.
 */
#include <endian.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/uio.h>

#include "softnic.h"

enum { LATER = -1 }; /* instead of an enum ibv_wc_status */

struct request {
	struct sn_qp *qp;
	const struct sn_kept *kept;
	const struct sn_record *record;
	const union sn_more *more;
	struct sn_shared_qp *to;
	struct sn_shared_rq *rq;
	struct sn_shared_recv *recv; /* that it uses, or NULL */
	uint64_t arrives;
	struct iovec local[MODEL_SGES], remote[MODEL_SGES];
	unsigned long locals, remotes;
	struct sn_shared_mr *used[2 * MODEL_SGES];
	int uses;
};

void sn_qp_error(struct sn_shared_qp *qp)
{
	struct sn_shared_cq *send = &sn.world->cq[qp->send_cq], *recv = &sn.world->cq[qp->recv_cq];

	if (atomic_exchange(&qp->state, IBV_QPS_ERR) == IBV_QPS_ERR)
		return;
	atomic_fetch_add(&send->arrivals, 1);
	atomic_fetch_add(&recv->arrivals, 1);
	sn_fire(send);
	sn_fire(recv);
	if (qp->srq) /* nothing is flushed that says so */
		sn_tell_async(qp, IBV_EVENT_QP_LAST_WQE_REACHED);
}

/* ---------------------------------------------------------------- where it goes */

/* Does a packet with the queue pair's address come to the other one's port? */
static bool leads_to(const struct sn_qp *qp, const struct sn_shared_qp *to)
{
	const struct ibv_ah_attr *ah = &qp->attr.ah_attr;
	struct ibv_gid_entry gid[MODEL_GIDS];

	if (sn.infiniband && !ah->is_global)
		return ah->dlid == to->host * SN_DEVICES + to->device + 1;
	if (!ah->is_global)
		return false;
	model_gids(gid, sn.infiniband, to->host, to->device);
	for (int i = 0; i < MODEL_GIDS; i++)
		if (!model_gid_is_zero(&gid[i].gid) && !memcmp(&gid[i].gid, &ah->grh.dgid, 16))
			return true;
	return false;
}

/* The responder, if it would answer. */
static struct sn_shared_qp *reach(struct sn_qp *qp)
{
	struct sn_shared_qp *to = &sn.world->qp[qp->attr.dest_qp_num % SN_QPS];
	int state = atomic_load_explicit(&to->state, memory_order_acquire);

	if (atomic_load_explicit(&to->qpn, memory_order_relaxed) != qp->attr.dest_qp_num ||
	    (state != IBV_QPS_RTR && state != IBV_QPS_RTS))
		return NULL;
	if (qp->reached)
		return to;
	qp->reached = to->dest_qpn == qp->ex.qp_base.qp_num && to->rq_psn == qp->attr.sq_psn &&
		      to->mtu == qp->attr.path_mtu && leads_to(qp, to);
	return qp->reached ? to : NULL;
}

/* ---------------------------------------------------------------- bytes */

/* Adds what the key opens to the list; false: it does not open it. */
static bool add(struct request *r, bool at_peer, bool remote_key, uint32_t key, uint64_t addr,
		uint32_t len, unsigned int access)
{
	struct sn_shared_mr *mr = sn_mr_find(key, remote_key);
	struct iovec *to = at_peer ? &r->remote[r->remotes] : &r->local[r->locals];
	int host = at_peer ? r->to->host : sn.host;
	uint32_t pd = at_peer ? r->to->pd : r->qp->shared->pd;
	uint64_t at = mr ? sn_mr_at(mr, host, pd, addr, len, access) : 0;

	if (mr)
		r->used[r->uses++] = mr;
	*to = (struct iovec){ (void *)(uintptr_t)at, len };
	*(at_peer ? &r->remotes : &r->locals) += 1;
	return at;
}

static bool add_local(struct request *r, unsigned int access)
{
	const struct sn_pointer *p = r->kept->sges > 2 ? r->more->pointer : r->record->pointer;

	if (r->kept->is_inline) {
		r->local[0] = (struct iovec){ (void *)(uintptr_t)r->more->inlined, r->kept->len };
		r->locals = 1;
		return true;
	}
	for (int i = 0; i < r->kept->sges; i++)
		if (!add(r, false, false, be32toh(p[i].lkey), be64toh(p[i].addr), be32toh(p[i].len),
			 access))
			return false;
	return true;
}

/* Both ends are this process: a device costs its processor nothing for the bytes. */
static void move_here(const struct request *r, bool from_peer)
{
	struct iovec to = r->remote[0], from;
	unsigned long remote = 0;

	for (unsigned long local = 0; local < r->locals; local++) {
		for (from = r->local[local]; from.iov_len;) {
			size_t n;

			while (!to.iov_len)
				to = r->remote[++remote];
			n = from.iov_len < to.iov_len ? from.iov_len : to.iov_len;
			if (from_peer)
				memmove(from.iov_base, to.iov_base, n);
			else
				memmove(to.iov_base, from.iov_base, n);
			from = (struct iovec){ (char *)from.iov_base + n, from.iov_len - n };
			to = (struct iovec){ (char *)to.iov_base + n, to.iov_len - n };
		}
	}
}

/* The sender's part of carrying a small payload; sn_collect has the receiver's. */
static bool carry(const struct request *r)
{
	uint8_t *to = r->recv ? r->recv->bytes : NULL;

	if (!to || sn.mode == SN_COPY || r->kept->len > sizeof(r->recv->bytes) || r->remotes != 1)
		return false;
	for (unsigned long i = 0; i < r->locals; i++) {
		memcpy(to, r->local[i].iov_base, r->local[i].iov_len);
		to += r->local[i].iov_len;
	}
	r->recv->to = (uintptr_t)r->remote[0].iov_base;
	r->recv->carried = r->kept->len;
	return true;
}

/* All of it, or an error of the peer's. */
static enum ibv_wc_status move(const struct request *r, bool from_peer)
{
	int pid = sn.world->host[r->to->host];
	ssize_t n;

	if (!r->kept->len)
		return IBV_WC_SUCCESS;
	if (sn.mode != SN_COPY && pid == sn.pid) {
		move_here(r, from_peer);
		return IBV_WC_SUCCESS;
	}
	if (carry(r))
		return IBV_WC_SUCCESS;
	n = (from_peer ? process_vm_readv : process_vm_writev)(pid, r->local, r->locals, r->remote,
							       r->remotes, 0);
	if (n == (ssize_t)r->kept->len)
		return IBV_WC_SUCCESS;
	if (n < 0 && errno == EPERM)
		fprintf(stderr, "softnic: process_vm_writev is not permitted here\n");
	return IBV_WC_REM_OP_ERR;
}

static enum ibv_wc_status denied(struct request *r)
{
	sn_qp_error(r->to);
	sn_tell_async(r->to, IBV_EVENT_QP_ACCESS_ERR);
	return IBV_WC_REM_ACCESS_ERR;
}

static enum ibv_wc_status one_sided(struct request *r)
{
	bool is_read = r->kept->opcode == IBV_WR_RDMA_READ;
	unsigned int access = is_read ? IBV_ACCESS_REMOTE_READ : IBV_ACCESS_REMOTE_WRITE;

	if (!add_local(r, is_read ? IBV_ACCESS_LOCAL_WRITE : 0))
		return IBV_WC_LOC_PROT_ERR;
	if (!r->kept->len)
		return IBV_WC_SUCCESS;
	if (!(r->to->access & access) || !add(r, true, true, be32toh(r->record->rkey),
					      be64toh(r->record->raddr), r->kept->len, access))
		return denied(r);
	return move(r, is_read);
}

/* A SEND into the receive request; what its user sees of it goes to *receiver_p. */
static enum ibv_wc_status two_sided(struct request *r, enum ibv_wc_status *receiver_p)
{
	const struct sn_shared_recv *recv = r->recv;
	uint32_t left = r->kept->len;
	enum ibv_wc_status status = IBV_WC_SUCCESS;

	if (!add_local(r, 0))
		return IBV_WC_LOC_PROT_ERR;
	for (uint32_t i = 0; i < recv->num_sge && left; i++) {
		uint32_t n = recv->sge[i].length < left ? recv->sge[i].length : left;

		if (!add(r, true, false, recv->sge[i].lkey, recv->sge[i].addr, n,
			 IBV_ACCESS_LOCAL_WRITE)) {
			*receiver_p = IBV_WC_LOC_PROT_ERR;
			status = IBV_WC_REM_OP_ERR;
		}
		left -= n;
	}
	if (left) {
		*receiver_p = IBV_WC_LOC_LEN_ERR;
		status = IBV_WC_REM_INV_REQ_ERR;
	}
	return status == IBV_WC_SUCCESS ? move(r, false) : status;
}

/* ---------------------------------------------------------------- one request */

/* Nobody has answered: later, until all tries are used up. */
static int unanswered(struct sn_qp *qp, uint64_t ns, int otherwise)
{
	uint64_t now = sn_now();

	if (!qp->retry_until)
		qp->retry_until = now + ns;
	if (now < qp->retry_until)
		return LATER;
	qp->retry_until = 0;
	return otherwise;
}

static int not_there(struct sn_qp *qp)
{
	uint64_t ns = (uint64_t)(qp->attr.retry_cnt + 1) * (UINT64_C(4096) << qp->attr.timeout);

	return unanswered(qp, qp->attr.timeout ? ns : UINT64_MAX / 2, IBV_WC_RETRY_EXC_ERR);
}

static int not_ready(struct sn_qp *qp)
{
	uint64_t ns = (uint64_t)qp->attr.rnr_retry * 1000000;

	return unanswered(qp, qp->attr.rnr_retry == 7 ? UINT64_MAX / 2 : ns,
			  IBV_WC_RNR_RETRY_EXC_ERR);
}

static void received(const struct request *r, enum ibv_wc_status status)
{
	struct sn_shared_qp *to = r->to;
	struct sn_shared_recv *recv = r->recv;
	struct sn_shared_cq *cq = &sn.world->cq[to->recv_cq];

	recv->status = (uint16_t)status;
	recv->byte_len = r->kept->len;
	recv->imm = r->record->imm;
	recv->has_imm = model_has_imm((enum ibv_wr_opcode)r->kept->opcode);
	recv->written = r->kept->opcode == IBV_WR_RDMA_WRITE_WITH_IMM;
	recv->src_qp = r->qp->ex.qp_base.qp_num;
	recv->qpn = to->qpn;
	recv->due = r->arrives;
	/* Its bytes, and those of all before it, are there when its user sees it. */
	atomic_store_explicit(&r->rq->head, r->rq->head + 1, memory_order_release);
	atomic_fetch_add(&cq->arrivals, 1);
	sn_fire(cq);
}

/* With the responder's lock, and that of the receive requests if it shares them. */
static int respond(struct request *r)
{
	enum ibv_wr_opcode opcode = (enum ibv_wr_opcode)r->kept->opcode;
	struct sn_shared_qp *to = r->to;
	enum ibv_wc_status status, receiver = IBV_WC_SUCCESS;

	if (model_needs_receive(opcode)) {
		if (r->rq->head == atomic_load(&r->rq->tail))
			return not_ready(r->qp);
		r->recv = &r->rq->recv[r->rq->head & r->rq->mask];
		r->recv->carried = 0;
	}
	if (opcode == IBV_WR_SEND || opcode == IBV_WR_SEND_WITH_IMM)
		status = two_sided(r, &receiver);
	else
		status = one_sided(r);
	if (r->recv && (status == IBV_WC_SUCCESS || receiver != IBV_WC_SUCCESS))
		received(r, receiver);
	if (receiver != IBV_WC_SUCCESS)
		sn_qp_error(to);
	return (int)status;
}

static int respond_from(struct request *r)
{
	struct sn_shared_qp *to = r->to;
	int status;

	r->rq = to->srq ? &sn.world->srq[to->srq - 1].rq : &to->rq;
	if (to->srq)
		sn_lock_take(&r->rq->taking);
	status = respond(r);
	if (to->srq)
		sn_lock_give(&r->rq->taking);
	return status;
}

static int execute(struct sn_qp *qp, uint32_t slot, uint64_t arrives)
{
	struct request r = { .qp = qp,
			     .kept = &qp->kept[slot],
			     .record = &qp->record[slot],
			     .more = &qp->more[qp->kept[slot].more & qp->sq_mask],
			     .arrives = arrives };
	int status;

	r.to = reach(qp);
	if (!r.to)
		return not_there(qp);
	sn_lock_take(&r.to->inbound);
	r.to = reach(qp); /* it may have been taken down meanwhile */
	status = r.to ? respond_from(&r) : not_there(qp);
	sn_lock_give(&sn.world->qp[qp->attr.dest_qp_num % SN_QPS].inbound);
	while (r.uses)
		atomic_fetch_sub(&r.used[--r.uses]->users, 1);
	if (status != LATER)
		qp->retry_until = 0;
	return status;
}

static void complete(struct sn_qp *qp, const struct sn_kept *kept, int status, uint64_t due)
{
	struct sn_entry entry = { .qp = qp, .position = qp->sq_done, .due = due };

	if (status != IBV_WC_SUCCESS)
		sn_qp_error(qp->shared);
	else if (!kept->signalled)
		return;
	entry.wc.wr_id = kept->wr_id;
	entry.wc.status = (enum ibv_wc_status)status;
	entry.wc.opcode = model_done((enum ibv_wr_opcode)kept->opcode);
	entry.wc.byte_len = kept->len;
	entry.wc.qp_num = qp->ex.qp_base.qp_num;
	qp->counts.signalled++;
	sn_push(sn_cq_of(qp->init.send_cq), &entry);
}

static void set_pending(struct sn_qp *qp, bool pending)
{
	struct sn_cq *cq = sn_cq_of(qp->init.send_cq);

	if (qp->pending == pending)
		return;
	qp->pending = pending;
	atomic_fetch_add(&cq->pending, pending ? 1 : -1);
	if (pending && atomic_load(&cq->shared->armed))
		sn_late();
}

/* The clock is locked once for many requests: a lock each would cost as much as the request. */
static void lock_clock(struct sn_qp *qp, bool lock, bool *locked)
{
	if (lock && !*locked)
		pthread_mutex_lock(&qp->device->clock.lock);
	else if (!lock && *locked)
		pthread_mutex_unlock(&qp->device->clock.lock);
	*locked = lock;
}

/* Passes over what is dropped and has no completion, as nearly all of a list is. */
static void pass_plain(struct sn_qp *qp, uint64_t now)
{
	uint32_t from = qp->sq_done;
	uint64_t port_cost = 0;

	for (; qp->sq_done != qp->sq_tail; qp->sq_done++) {
		const struct sn_kept *kept = &qp->kept[qp->sq_done & qp->sq_mask];

		if (!kept->dropped || kept->signalled)
			break;
		port_cost += sn_port_cost(kept->len);
	}
	if (now && qp->sq_done != from)
		sn_clock_sends(qp, qp->sq_done - from, port_cost, now);
}

void sn_run(struct sn_qp *qp)
{
	uint64_t now = sn.mode == SN_MODEL && qp->sq_done != qp->sq_tail ? sn_now() : 0;
	bool there = sn.mode != SN_COPY && reach(qp), locked = false;
	int status = IBV_WC_SUCCESS;

	for (; qp->sq_done != qp->sq_tail; qp->sq_done++) {
		bool up = atomic_load_explicit(&qp->shared->state, memory_order_relaxed) !=
			  IBV_QPS_ERR;
		const struct sn_kept *kept;
		uint64_t sent = 0;
		uint32_t slot;

		if (now && up)
			lock_clock(qp, true, &locked);
		if (up && there)
			pass_plain(qp, now);
		if (qp->sq_done == qp->sq_tail)
			break;
		slot = qp->sq_done & qp->sq_mask;
		kept = &qp->kept[slot];
		if (now && up)
			sent = sn_clock_sends(qp, 1, sn_port_cost(kept->len), now);
		if (!up) {
			status = IBV_WC_WR_FLUSH_ERR;
		} else if (!there || !kept->dropped) {
			lock_clock(qp, false, &locked);
			status = execute(qp, slot, sent ? sent + sn.latency_ns / 2 : 0);
		}
		if (status == LATER)
			break;
		complete(qp, kept, status, sent ? sent + sn.latency_ns : 0);
	}
	lock_clock(qp, false, &locked);
	set_pending(qp, status == LATER);
}
