/* SPDX-License-Identifier: Apache-2.0 */
/*
 * fake_wire.c -- what happens between two queue pairs, one step at a time
 *
 * A step does one of four things, by chance: execute the next request of some queue pair at its
 * responder, write some accepted bytes to memory, report the next completion of some queue pair,
 * let a ghost arrive.
 *
 * Order: requests of a queue pair are executed and completed in order. Its bytes are written in
 * order too (in any order for relaxed regions), in pieces, each no later than the next receive
 * completion or READ of the same queue pair.
 */
#include <stdlib.h>
#include <string.h>

#include "fake_world.h"

/* ---------------------------------------------------------------- the responder */

/* Where bytes that a device writes into this region wait: of the queue pair, or of the device. */
static struct fake_qp *way_to(struct fake_qp *qp, const struct fake_mr *mr)
{
	struct fake_device *device = qp->device;

	if (!world.gpu_late || mr->bytes == mr->mr.addr || mr->pinned)
		return qp;
	if (!device->late) {
		device->late = calloc(1, sizeof(*device->late));
		device->late->place_last = &device->late->place;
	}
	return device->late;
}

static void tell_access_error(struct fake_qp *qp)
{
	struct ibv_async_event event = { .event_type = IBV_EVENT_QP_ACCESS_ERR,
					 .element.qp = &qp->qp };

	fake_qp_error(qp);
	fake_push_async(qp->qp.context, &event);
}

static bool may(struct fake_qp *qp, const struct fake_mr *mr, unsigned int access)
{
	return mr && (mr->access & access) && (qp->attr.qp_access_flags & access);
}

static void receive_done(struct fake_qp *qp, const struct fake_wr *wr, enum ibv_wc_status status)
{
	const struct fake_recv *recv = &qp->rq[qp->rq_head % qp->cap.max_recv_wr];
	bool imm = model_has_imm((enum ibv_wr_opcode)wr->opcode);
	struct fake_wc entry = { .recv = true, .position = qp->rq_head };

	fake_place_all(qp); /* a receive completion orders what came before it */
	qp->rq_head++;
	entry.wc.wr_id = recv->wr_id;
	entry.wc.status = status;
	entry.wc.opcode =
		wr->opcode == IBV_WR_RDMA_WRITE_WITH_IMM ? IBV_WC_RECV_RDMA_WITH_IMM : IBV_WC_RECV;
	entry.wc.byte_len = wr->len;
	entry.wc.qp_num = qp->qp.qp_num;
	entry.wc.src_qp = qp->attr.dest_qp_num;
	if (imm) {
		entry.wc.imm_data = wr->imm;
		entry.wc.wc_flags = IBV_WC_WITH_IMM;
	}
	fake_push_wc(fake_cq_of(qp->qp.recv_cq), &entry);
}

/* Scatters a SEND into the receive request at the head. */
static enum ibv_wc_status scatter(struct fake_qp *qp, const uint8_t *data, uint32_t len)
{
	const struct fake_recv *recv = &qp->rq[qp->rq_head % qp->cap.max_recv_wr];

	for (int i = 0; i < recv->num_sge && len; i++) {
		const struct ibv_sge *sge = &recv->sge[i];
		uint32_t n = sge->length < len ? sge->length : len;
		struct fake_mr *mr = fake_find_mr(sge->lkey, sge->addr, n, qp->qp.pd);

		if (!mr || !(mr->access & IBV_ACCESS_LOCAL_WRITE))
			return IBV_WC_LOC_PROT_ERR;
		fake_accept(qp, fake_at(mr, sge->addr), data, n, false, 0);
		data += n;
		len -= n;
	}
	return len ? IBV_WC_LOC_LEN_ERR : IBV_WC_SUCCESS;
}

static enum ibv_wc_status respond_send(struct fake_qp *to, const struct fake_wr *wr,
				       const uint8_t *data)
{
	enum ibv_wc_status status = scatter(to, data, wr->len);

	receive_done(to, wr, status);
	if (status == IBV_WC_SUCCESS)
		return status;
	fake_qp_error(to);
	return status == IBV_WC_LOC_LEN_ERR ? IBV_WC_REM_INV_REQ_ERR : IBV_WC_REM_OP_ERR;
}

static enum ibv_wc_status respond_write(struct fake_qp *to, const struct fake_wr *wr,
					const uint8_t *data, uint32_t position)
{
	struct fake_mr *mr = wr->len ? fake_find_mr(wr->rkey, wr->raddr, wr->len, to->qp.pd) : NULL;

	if (wr->len && (!may(to, mr, IBV_ACCESS_REMOTE_WRITE) || wr->rkey != mr->mr.rkey)) {
		tell_access_error(to);
		return IBV_WC_REM_ACCESS_ERR;
	}
	if (wr->len)
		fake_accept(way_to(to, mr), fake_at(mr, wr->raddr), data, wr->len,
			    mr->access & IBV_ACCESS_RELAXED_ORDERING, position);
	if (wr->opcode == IBV_WR_RDMA_WRITE_WITH_IMM)
		receive_done(to, wr, IBV_WC_SUCCESS);
	return IBV_WC_SUCCESS;
}

static enum ibv_wc_status respond_read(struct fake_qp *to, struct fake_wr *wr)
{
	struct fake_mr *mr = fake_find_mr(wr->rkey, wr->raddr, wr->len, to->qp.pd);

	if (!may(to, mr, IBV_ACCESS_REMOTE_READ) || wr->rkey != mr->mr.rkey) {
		tell_access_error(to);
		return IBV_WC_REM_ACCESS_ERR;
	}
	fake_place_all(to); /* a read does not pass the writes before it */
	if (way_to(to, mr) != to)
		fake_place_all(to->device->late);
	wr->data = malloc(wr->len);
	memcpy(wr->data, fake_at(mr, wr->raddr), wr->len);
	return IBV_WC_SUCCESS;
}

/* ---------------------------------------------------------------- the requester */

/* Where the bytes come from (or go to); false: the local keys do not allow it. */
static bool gather(struct fake_qp *qp, const struct fake_wr *wr, uint8_t *data)
{
	bool is_read = wr->opcode == IBV_WR_RDMA_READ;
	uint32_t at = 0;

	if (wr->flags & IBV_SEND_INLINE) {
		memcpy(data, wr->inlined, wr->len);
		return true;
	}
	for (int i = 0; i < wr->num_sge; i++) {
		const struct ibv_sge *sge = &wr->sge[i];
		struct fake_mr *mr = fake_find_mr(sge->lkey, sge->addr, sge->length, qp->qp.pd);

		if (!mr || sge->lkey != mr->mr.lkey ||
		    (is_read && !(mr->access & IBV_ACCESS_LOCAL_WRITE)))
			return false;
		if (!is_read)
			memcpy(data + at, fake_at(mr, sge->addr), sge->length);
		at += sge->length;
	}
	return true;
}

/* Its device does nothing for it any more, and never will. */
static bool is_lost(const struct fake_qp *qp)
{
	return qp->device->dead || fake_context_of(qp->qp.context)->gone;
}

/* The responder, if packets reach it and it would answer. */
static struct fake_qp *reach(struct fake_qp *qp)
{
	struct fake_device *device = fake_find_peer(qp);
	struct fake_qp *to = fake_find_qp(qp->attr.dest_qp_num);

	if (!device || !qp->device->up || !device->up)
		return NULL;
	if (!to || to->device != device || is_lost(to) || !fake_hears(to, qp) ||
	    to->attr.dest_qp_num != qp->qp.qp_num || to->attr.rq_psn != qp->attr.sq_psn)
		return NULL;
	return to->qp.state == IBV_QPS_RTR || to->qp.state == IBV_QPS_RTS ? to : NULL;
}

static void executed(struct fake_qp *qp, struct fake_wr *wr, enum ibv_wc_status status)
{
	if (world.fail_completion && !--world.fail_completion) {
		status = world.fail_status;
		wr->vendor_err = world.fail_vendor;
	}
	wr->executed = true;
	wr->status = status;
	qp->device->busy_until = world.clock + (uint64_t)qp->device->port.slow;
	qp->sq_exec++;
	if (status != IBV_WC_SUCCESS)
		fake_qp_error(qp);
}

/* A try that was not answered: false once all tries are used up. */
static bool try_again(struct fake_wr *wr, int *tries, int max, int steps)
{
	if (*tries >= max)
		return false;
	++*tries;
	wr->wait_until = world.clock + (uint64_t)steps;
	return true;
}

static void execute(struct fake_qp *qp)
{
	uint32_t position = qp->sq_exec;
	struct fake_wr *wr = &qp->sq[position % qp->cap.max_send_wr];
	struct fake_qp *to = reach(qp);
	enum ibv_wc_status status;
	uint8_t *data;

	if (!to) {
		if (!try_again(wr, &wr->tries, qp->attr.retry_cnt, TIMEOUT_STEPS))
			executed(qp, wr, IBV_WC_RETRY_EXC_ERR);
		return;
	}
	if (model_needs_receive((enum ibv_wr_opcode)wr->opcode) && to->rq_head == to->rq_tail) {
		world.stats.rnr++;
		if (qp->attr.rnr_retry == 7)
			wr->rnr_tries = 0;
		if (!try_again(wr, &wr->rnr_tries, qp->attr.rnr_retry, RNR_STEPS))
			executed(qp, wr, IBV_WC_RNR_RETRY_EXC_ERR);
		return;
	}
	data = calloc(1, wr->len + 1u);
	if (!gather(qp, wr, data))
		status = IBV_WC_LOC_PROT_ERR;
	else if (wr->opcode == IBV_WR_RDMA_READ)
		status = respond_read(to, wr);
	else if (wr->opcode == IBV_WR_SEND || wr->opcode == IBV_WR_SEND_WITH_IMM)
		status = respond_send(to, wr, data);
	else
		status = respond_write(to, wr, data, position);
	free(data);
	executed(qp, wr, status);
}

static void land(struct fake_qp *qp, struct fake_wr *wr)
{
	uint32_t at = 0;

	for (int i = 0; wr->data && wr->status == IBV_WC_SUCCESS && i < wr->num_sge; i++) {
		const struct ibv_sge *sge = &wr->sge[i];
		struct fake_mr *mr = fake_find_mr(sge->lkey, sge->addr, sge->length, qp->qp.pd);

		if (mr && way_to(qp, mr) != qp)
			fake_accept(way_to(qp, mr), fake_at(mr, sge->addr), wr->data + at,
				    sge->length, false, 0);
		else if (mr)
			memcpy(fake_at(mr, sge->addr), wr->data + at, sge->length);
		at += sge->length;
	}
	world.stats.bytes += at;
	free(wr->data);
	wr->data = NULL;
}

static void acknowledge(struct fake_qp *qp, uint32_t position)
{
	struct fake_qp *to = fake_find_qp(qp->attr.dest_qp_num);

	for (struct fake_place *p = to ? to->place : NULL; p; p = p->next)
		p->acked |= p->requester_position == position;
	if (world.config.prompt && to)
		fake_place_all(to);
}

static void complete_send(struct fake_qp *qp)
{
	uint32_t position = qp->sq_done++;
	struct fake_wr *wr = &qp->sq[position % qp->cap.max_send_wr];
	struct fake_wc entry = { .position = position };

	if (!wr->executed) {
		wr->status = IBV_WC_WR_FLUSH_ERR;
		qp->sq_exec = qp->sq_done;
	} else if (qp->forced && !fake_random(4)) {
		wr->status = IBV_WC_WR_FLUSH_ERR; /* its bytes arrived, the answer did not */
	}
	if (wr->status == IBV_WC_WR_FLUSH_ERR && qp->forced)
		qp->flushing = true;
	if (qp->flushing)
		wr->status = IBV_WC_WR_FLUSH_ERR;
	acknowledge(qp, position);
	land(qp, wr);
	if (!(wr->flags & IBV_SEND_SIGNALED) && wr->status == IBV_WC_SUCCESS)
		return;
	entry.wc.wr_id = wr->wr_id;
	entry.wc.status = wr->status;
	entry.wc.vendor_err = wr->vendor_err;
	/* On an error only wr_id, status, qp_num and vendor_err are valid. */
	entry.wc.opcode = wr->status == IBV_WC_SUCCESS ? model_done((enum ibv_wr_opcode)wr->opcode)
						       : (enum ibv_wc_opcode)0x7f;
	entry.wc.qp_num = qp->qp.qp_num;
	fake_push_wc(fake_cq_of(qp->qp.send_cq), &entry);
}

static void flush_recv(struct fake_qp *qp)
{
	const struct fake_recv *recv = &qp->rq[qp->rq_head % qp->cap.max_recv_wr];
	struct fake_wc entry = { .recv = true, .position = qp->rq_head++ };

	entry.wc.wr_id = recv->wr_id;
	entry.wc.status = IBV_WC_WR_FLUSH_ERR;
	entry.wc.opcode = (enum ibv_wc_opcode)0x7f;
	entry.wc.qp_num = qp->qp.qp_num;
	fake_push_wc(fake_cq_of(qp->qp.recv_cq), &entry);
}

/* ---------------------------------------------------------------- ghosts */

/*
 * Requests that were on the wire when their queue pair ended: half of the time their bytes arrive
 * all the same.
 */
void fake_ghosts_of(struct fake_qp *qp)
{
	struct fake_ghost **last = &world.ghosts;

	if (qp->qp.state != IBV_QPS_RTS || !reach(qp) || is_lost(qp))
		return;
	while (*last)
		last = &(*last)->next;
	for (uint32_t i = qp->sq_exec; i != qp->sq_tail && fake_random(2); i++) {
		const struct fake_wr *wr = &qp->sq[i % qp->cap.max_send_wr];
		struct fake_ghost *ghost;

		if (wr->opcode != IBV_WR_RDMA_WRITE)
			return;
		ghost = calloc(1, sizeof(*ghost) + wr->len + 1u);
		*ghost = (struct fake_ghost){ .to_qp = qp->attr.dest_qp_num,
					      .from_qp = qp->qp.qp_num,
					      .psn = qp->attr.sq_psn,
					      .opcode = wr->opcode,
					      .raddr = wr->raddr,
					      .rkey = wr->rkey,
					      .len = wr->len };
		if (!gather(qp, wr, ghost->data)) {
			free(ghost);
			return;
		}
		*last = ghost;
		last = &ghost->next;
	}
}

static void ghost_arrives(void)
{
	struct fake_ghost *ghost = world.ghosts;
	struct fake_qp *to = fake_find_qp(ghost->to_qp);
	struct fake_wr wr = { .opcode = ghost->opcode,
			      .raddr = ghost->raddr,
			      .rkey = ghost->rkey,
			      .len = ghost->len };

	world.ghosts = ghost->next;
	if (to && to->attr.dest_qp_num == ghost->from_qp && to->attr.rq_psn == ghost->psn &&
	    (to->qp.state == IBV_QPS_RTR || to->qp.state == IBV_QPS_RTS)) {
		respond_write(to, &wr, ghost->data, UINT32_MAX);
		world.stats.ghosts++;
	}
	free(ghost);
}

/* ---------------------------------------------------------------- one step */

/* When its next request may be executed: a retry waits, and so does a slow device. */
static uint64_t due(const struct fake_qp *qp)
{
	uint64_t until = qp->sq[qp->sq_exec % qp->cap.max_send_wr].wait_until;

	return until > qp->device->busy_until ? until : qp->device->busy_until;
}

static bool can_execute(const struct fake_qp *qp)
{
	return qp->qp.state == IBV_QPS_RTS && qp->sq_exec != qp->sq_tail &&
	       qp->sq_exec - qp->sq_done < WINDOW && !atomic_load(&world.mute[qp->device->host]);
}

static bool can_complete(const struct fake_qp *qp)
{
	return (qp->sq_done != qp->sq_exec && !world.hold_answers) ||
	       (qp->qp.state == IBV_QPS_ERR && qp->sq_done != qp->sq_tail);
}

/* Something of this queue pair happens, chosen by chance among what can. */
static bool step_qp(struct fake_qp *qp)
{
	unsigned int first = fake_random(4);

	if (is_lost(qp)) {
		if (!qp->place)
			return false;
		fake_place_some(qp);
		return true;
	}
	for (unsigned int i = 0; i < 4; i++) {
		switch ((first + i) % 4) {
		case 0:
			if (!can_execute(qp) || due(qp) > world.clock)
				break;
			execute(qp);
			return true;
		case 1:
			if (!qp->place)
				break;
			fake_place_some(qp);
			return true;
		case 2:
			if (!can_complete(qp))
				break;
			complete_send(qp);
			return true;
		default:
			if (qp->qp.state != IBV_QPS_ERR || qp->rq_head == qp->rq_tail)
				break;
			flush_recv(qp);
			return true;
		}
	}
	return false;
}

/* Everybody waits for a retry: time jumps to the first of them. */
static bool skip_time(void)
{
	uint64_t next = UINT64_MAX;

	for (const struct fake_qp *qp = world.qps; qp; qp = qp->next) {
		uint64_t until;

		if (is_lost(qp) || !can_execute(qp))
			continue;
		until = due(qp);
		next = until < next ? until : next;
	}
	if (next == UINT64_MAX)
		return false;
	world.clock = next > world.clock ? next : world.clock;
	return true;
}

/* One of the queue pairs in these slots does something; false: none can. */
static bool step_one(uint32_t first, uint32_t end)
{
	struct fake_qp *qp = fake_first_qp(first);

	for (; qp && qp->qp.qp_num % QPS_MAX < end; qp = qp->next)
		if (step_qp(qp))
			return true;
	return false;
}

bool fake_wire_step(void)
{
	uint32_t start = fake_random(QPS_MAX);

	world.clock++;
	world.stats.steps++;
	if (world.ghosts && !fake_random(4)) {
		ghost_arrives();
		return true;
	}
	if (step_one(start, QPS_MAX) || step_one(0, start))
		return true;
	if (world.ghosts) {
		ghost_arrives();
		return true;
	}
	return skip_time();
}
