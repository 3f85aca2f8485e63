/* SPDX-License-Identifier: Apache-2.0 */
/* wr.c -- posting by calls (ibv_wr_start .. ibv_wr_complete), which perftest and others use */
#include <errno.h>
#include <string.h>

#include "softnic.h"

static struct sn_qp *qp_of(struct ibv_qp_ex *ex)
{
	return (struct sn_qp *)ex;
}

/* What was set is complete when the next request begins, or the list ends. */
static void put_built(struct sn_qp *qp)
{
	if (qp->build.built && !qp->build.error)
		qp->build.error = sn_record_put(qp, &qp->build.wr);
	qp->build.built = false;
}

static void begin(struct ibv_qp_ex *ex, enum ibv_wr_opcode opcode, uint32_t rkey, uint64_t raddr,
		  __be32 imm)
{
	struct sn_qp *qp = qp_of(ex);

	put_built(qp);
	qp->build.built = true;
	qp->build.wr = (struct ibv_send_wr){ .wr_id = ex->wr_id,
					     .sg_list = qp->build.sge,
					     .opcode = opcode,
					     .send_flags = ex->wr_flags,
					     .imm_data = imm,
					     .wr.rdma = { raddr, rkey } };
}

static void wr_rdma_write(struct ibv_qp_ex *ex, uint32_t rkey, uint64_t raddr)
{
	begin(ex, IBV_WR_RDMA_WRITE, rkey, raddr, 0);
}

static void wr_rdma_write_imm(struct ibv_qp_ex *ex, uint32_t rkey, uint64_t raddr, __be32 imm)
{
	begin(ex, IBV_WR_RDMA_WRITE_WITH_IMM, rkey, raddr, imm);
}

static void wr_rdma_read(struct ibv_qp_ex *ex, uint32_t rkey, uint64_t raddr)
{
	begin(ex, IBV_WR_RDMA_READ, rkey, raddr, 0);
}

static void wr_send(struct ibv_qp_ex *ex)
{
	begin(ex, IBV_WR_SEND, 0, 0, 0);
}

static void wr_send_imm(struct ibv_qp_ex *ex, __be32 imm)
{
	begin(ex, IBV_WR_SEND_WITH_IMM, 0, 0, imm);
}

static void wr_set_sge_list(struct ibv_qp_ex *ex, size_t n, const struct ibv_sge *list)
{
	struct sn_qp *qp = qp_of(ex);

	qp->build.wr.num_sge = (int)n;
	if (n > MODEL_SGES)
		qp->build.error = EINVAL;
	else
		memcpy(qp->build.sge, list, n * sizeof(*list));
}

static void wr_set_sge(struct ibv_qp_ex *ex, uint32_t lkey, uint64_t addr, uint32_t len)
{
	wr_set_sge_list(ex, 1, &(struct ibv_sge){ .addr = addr, .length = len, .lkey = lkey });
}

static void wr_set_inline_data_list(struct ibv_qp_ex *ex, size_t n, const struct ibv_data_buf *list)
{
	struct sn_qp *qp = qp_of(ex);

	qp->build.wr.send_flags |= IBV_SEND_INLINE;
	qp->build.wr.num_sge = (int)n;
	if (n > MODEL_SGES)
		qp->build.error = EINVAL;
	for (size_t i = 0; i < n && n <= MODEL_SGES; i++)
		qp->build.sge[i] = (struct ibv_sge){ .addr = (uintptr_t)list[i].addr,
						     .length = (uint32_t)list[i].length };
}

static void wr_set_inline_data(struct ibv_qp_ex *ex, void *addr, size_t len)
{
	wr_set_inline_data_list(ex, 1, &(struct ibv_data_buf){ addr, len });
}

static void wr_start(struct ibv_qp_ex *ex)
{
	struct sn_qp *qp = qp_of(ex);

	pthread_mutex_lock(&qp->lock);
	qp->build.from = qp->sq_tail;
	qp->build.error = 0;
	qp->build.built = false;
}

static int wr_complete(struct ibv_qp_ex *ex)
{
	struct sn_qp *qp = qp_of(ex);
	int ret;

	put_built(qp);
	ret = qp->build.error;
	qp->counts.posts++;
	if (ret) { /* all of the list, or nothing */
		qp->sq_tail = qp->build.from;
	} else {
		sn_doorbell(qp);
		sn_run(qp);
	}
	pthread_mutex_unlock(&qp->lock);
	return ret;
}

static void wr_abort(struct ibv_qp_ex *ex)
{
	struct sn_qp *qp = qp_of(ex);

	qp->sq_tail = qp->build.from;
	pthread_mutex_unlock(&qp->lock);
}

void sn_wr_init(struct sn_qp *qp)
{
	struct ibv_qp_ex *ex = &qp->ex;

	ex->wr_rdma_write = wr_rdma_write;
	ex->wr_rdma_write_imm = wr_rdma_write_imm;
	ex->wr_rdma_read = wr_rdma_read;
	ex->wr_send = wr_send;
	ex->wr_send_imm = wr_send_imm;
	ex->wr_set_sge = wr_set_sge;
	ex->wr_set_sge_list = wr_set_sge_list;
	ex->wr_set_inline_data = wr_set_inline_data;
	ex->wr_set_inline_data_list = wr_set_inline_data_list;
	ex->wr_start = wr_start;
	ex->wr_complete = wr_complete;
	ex->wr_abort = wr_abort;
}

struct ibv_qp_ex *ibv_qp_to_qp_ex(struct ibv_qp *qp)
{
	return (struct ibv_qp_ex *)qp;
}
