/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flush_gpu.c -- before a notify: what a NIC has written into a GPU that does not order it (compute
 * capability below 9.0) becomes visible to kernels
 *
 * The completion says that the NIC has sent the bytes to the GPU, by PCIe; they may still be on
 * their way when a kernel starts. A read by the same NIC of the same GPU does not pass them. So a
 * queue pair that is connected to itself reads 8 bytes of memory of that GPU which is the
 * library's (gpu_scratch), and the notify is reported when they have come. One for each rail, made
 * when the first region of such a GPU is described to a peer, used under a lock of the context.
 */
#include <errno.h>
#include <stdlib.h>

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "ib.h"

/* Connected to itself. Returns what failed, with errno, or NULL. */
static const char *connect_loop(const struct ib_ctx *ctx, const struct ib_path *path,
				struct ibv_qp *qp)
{
	struct ib_path self = { .rail = path->rail, .address = path->address };
	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_INIT,
		.port_num = path->rail->port,
		.pkey_index = path->pkey_index,
		.qp_access_flags = IBV_ACCESS_REMOTE_READ,
	};

	errno = ctx->v->modify_qp(
		qp, &attr, IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT | IBV_QP_ACCESS_FLAGS);
	if (errno)
		return "INIT";
	self.peer.gid = path->address.gid;
	self.peer.lid = path->address.lid;
	attr = (struct ibv_qp_attr){
		.qp_state = IBV_QPS_RTR,
		.path_mtu = (enum ibv_mtu)path->address.mtu,
		.dest_qp_num = qp->qp_num,
		.max_dest_rd_atomic = 1,
		.min_rnr_timer = 12,
	};
	ib_path_vector(&self, ctx->tr->options, &attr.ah_attr);
	errno = ctx->v->modify_qp(qp, &attr,
				  IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
					  IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
					  IBV_QP_MIN_RNR_TIMER);
	if (errno)
		return "RTR";
	attr = (struct ibv_qp_attr){
		.qp_state = IBV_QPS_RTS,
		.timeout = 14,
		.retry_cnt = 7,
		.rnr_retry = 7,
		.max_rd_atomic = 1,
	};
	errno = ctx->v->modify_qp(qp, &attr,
				  IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
					  IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
					  IBV_QP_MAX_QP_RD_ATOMIC);
	return errno ? "RTS" : NULL;
}

/* Under the lock. */
static int make_loop(struct ib_ctx *ctx, const struct ib_path *path, struct kv_error *err)
{
	struct ib_rail *rail = path->rail;
	struct ib_loop *loop = kv_fault(GPU_LOOP_ALLOC) ? NULL : calloc(1, sizeof(*loop));
	struct ibv_qp_init_attr attr = {
		.cap = { .max_send_wr = 2, .max_recv_wr = 1, .max_send_sge = 1, .max_recv_sge = 1 },
		.qp_type = IBV_QPT_RC,
	};
	const char *failed = "be made";
	int ret;

	if (!loop)
		return kv_fail(err, KV_ERR_NOMEM, "open_memory", "cannot allocate a flush of %s",
			       rail->name);
	rail->loop = loop;
	loop->mr = ctx->v->reg_mr(rail->pd, &loop->landing, sizeof(loop->landing),
				  IBV_ACCESS_LOCAL_WRITE);
	if (loop->mr)
		loop->cq = ctx->v->create_cq(rail->context, 2, NULL, NULL, 0);
	attr.send_cq = attr.recv_cq = loop->cq;
	if (loop->cq)
		loop->qp = ctx->v->create_qp(rail->pd, &attr);
	if (loop->qp)
		failed = connect_loop(ctx, path, loop->qp);
	if (!failed)
		return 0;
	ret = kv_fail_errno(err, KV_ERR_DEVICE, errno, "pack",
			    "the queue pair of %s that flushes what it writes into a GPU cannot "
			    "%s%s",
			    rail->name, loop->qp ? "be brought to " : "", failed);
	ib_loop_close(ctx, rail);
	return ret;
}

/* On every rail of the connection. */
static int open_loops(struct ib_conn *c, struct kv_error *err)
{
	int ret = 0;

	pthread_mutex_lock(&c->ctx->loop_lock);
	for (int p = 0; p < c->paths && !ret; p++)
		if (!c->path[p].rail->loop)
			ret = make_loop(c->ctx, &c->path[p], err);
	pthread_mutex_unlock(&c->ctx->loop_lock);
	return ret;
}

int ib_gpu_add(struct ib_conn *c, const struct tr_mem *flush, struct kv_error *err)
{
	int ret;

	for (unsigned int i = 0; i < c->scratches; i++)
		if (c->scratch[i]->kind == flush->kind && c->scratch[i]->gpu == flush->gpu)
			return 0;
	if (c->scratches == IB_FLUSH_GPUS)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "gpu",
			       "a connection flushes at most %d GPUs of one process",
			       IB_FLUSH_GPUS);
	ret = open_loops(c, err);
	if (!ret)
		ret = tr_mem_scratch(c->ctx->tr, flush->kind, flush->gpu, &c->scratch[c->scratches],
				     err);
	c->scratches += !ret;
	return ret;
}

void ib_gpus_forget(struct ib_conn *c)
{
	while (c->scratches)
		tr_mem_dereg(c->scratch[--c->scratches], NULL);
}

/* 0, or the status of a completion that is none, or an errno. */
static int read_once(const struct ib_verbs *v, struct ib_loop *loop, uint64_t addr, uint32_t rkey)
{
	int64_t end_ns = kv_deadline_ns(IB_LOOP_MS);
	struct ibv_sge sge = { .addr = (uint64_t)(uintptr_t)&loop->landing,
			       .length = sizeof(loop->landing),
			       .lkey = loop->mr->lkey };
	struct ibv_send_wr wr = { .sg_list = &sge,
				  .num_sge = 1,
				  .opcode = IBV_WR_RDMA_READ,
				  .send_flags = IBV_SEND_SIGNALED,
				  .wr.rdma = { .remote_addr = addr, .rkey = rkey } };
	struct ibv_send_wr *bad;
	struct ibv_wc wc;
	int n = 0, ret = v->post_send(loop->qp, &wr, &bad);

	while (!ret && !n) {
		n = v->poll_cq(loop->cq, 1, &wc);
		if (!n && kv_now_ns() >= end_ns)
			return ETIMEDOUT;
	}
	return ret ? ret : n < 0 || wc.status != IBV_WC_SUCCESS ? EIO : 0;
}

/* Each GPU, by the rail of a path. */
static int flush_path(struct ib_conn *c, const struct ib_path *path)
{
	struct ib_rail *rail = path->rail;
	int ret = 0;

	pthread_mutex_lock(&c->ctx->loop_lock);
	for (unsigned int i = 0; i < c->scratches && !ret; i++) {
		const struct ib_mr *mr = tr_mem_handle(c->scratch[i], &tr_ib_provider);

		ret = !rail->loop ? EIO
				  : read_once(c->v, rail->loop,
					      (uint64_t)(uintptr_t)c->scratch[i]->addr,
					      mr->mr[path->rail_index * mr->slices]->rkey);
	}
	if (ret) /* the next connection makes another one */
		ib_loop_close(c->ctx, rail);
	pthread_mutex_unlock(&c->ctx->loop_lock);
	return ret;
}

static void flush_failed(struct ib_conn *c, const struct ib_path *path, int error)
{
	struct kv_error cause;

	kv_fail_errno(&cause, KV_ERR_DEVICE, error, "poll",
		      "%s cannot flush what it has written into a GPU", path->rail->name);
	ib_name_peer(c, path->rail, &cause);
	cause.scope = KV_SCOPE_PEER;
	ib_break(c, &cause);
}

bool ib_gpus_flush(struct ib_conn *c, uint64_t lanes)
{
	for (int p = 0; p < c->paths && c->scratches; p++) {
		uint64_t of_path = 0;
		int error;

		for (int i = 0; i < c->lanes; i++)
			of_path |= c->lane[i].path == &c->path[p] ? UINT64_C(1) << i : 0;
		error = lanes & of_path ? flush_path(c, &c->path[p]) : 0;
		if (!error)
			continue;
		flush_failed(c, &c->path[p], error);
		return false;
	}
	return true;
}
