/* SPDX-License-Identifier: Apache-2.0 */
/* qp.c -- a lane's queue pair: made, connected, given receive requests, destroyed */
#include <errno.h>
#include <sys/random.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/option.h"
#include "ib.h"

static int make_qp(struct ib_lane *lane, uint32_t inline_bytes)
{
	struct ib_conn *c = lane->c;
	struct ibv_qp_init_attr attr = {
		.qp_context = lane,
		.send_cq = lane->path->scq,
		.recv_cq = lane->path->rcq,
		.cap = { .max_send_wr = c->ctx->sq_depth,
			 .max_recv_wr = IB_RECVS,
			 .max_send_sge = IB_SGES,
			 .max_recv_sge = 1,
			 .max_inline_data = inline_bytes },
		.qp_type = IBV_QPT_RC,
	};

	lane->qp = c->v->create_qp(lane->path->rail->pd, &attr);
	if (!lane->qp)
		return errno;
	lane->qpn = lane->qp->qp_num;
	lane->inlines = attr.cap.max_inline_data >= IB_INLINE;
	return 0;
}

static int to_init(struct ib_lane *lane)
{
	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_INIT,
		.port_num = lane->path->rail->port,
		.pkey_index = lane->path->pkey_index,
		/*
		 * Reads serve the probe and tr_read; what they may reach is each region's own
		 * right.
		 */
		.qp_access_flags = IBV_ACCESS_REMOTE_WRITE | IBV_ACCESS_REMOTE_READ,
	};

	return lane->c->v->modify_qp(lane->qp, &attr,
				     IBV_QP_STATE | IBV_QP_PKEY_INDEX | IBV_QP_PORT |
					     IBV_QP_ACCESS_FLAGS);
}

int ib_lane_make(struct ib_lane *lane, struct kv_error *err)
{
	const char *name = lane->path->rail->name;
	uint32_t psn = 0;
	int ret;

	ret = make_qp(lane, IB_INLINE);
	if (ret == EINVAL) /* a device without inline data */
		ret = make_qp(lane, 0);
	if (ret)
		return kv_fail_errno(err, KV_ERR_DEVICE, ret, "connect",
				     "cannot make a queue pair with %u requests on %s",
				     lane->c->ctx->sq_depth, name);
	ret = to_init(lane);
	if (ret)
		return kv_fail_errno(err, KV_ERR_DEVICE, ret, "connect",
				     "cannot bring qp 0x%x of %s to INIT", lane->qpn, name);
	/* Random, so that a packet of an earlier connection with the same number is recognised. */
	if (kv_fault(IB_PSN_RANDOM) ? (errno = ENOSYS, true)
				    : getrandom(&psn, sizeof(psn), 0) != sizeof(psn))
		return kv_fail_errno(err, KV_ERR_SYSTEM, errno, "connect",
				     "cannot get a random packet sequence number");
	lane->psn = psn & 0xffffff;
	for (uint32_t i = 0; i < IB_RECVS; i++) {
		ret = ib_lane_post_recv(lane, i, err);
		if (ret)
			return ret;
	}
	return 0;
}

static int to_rtr(struct ib_lane *lane)
{
	const struct ib_rail *rail = lane->path->rail;
	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_RTR,
		.path_mtu = ib_path_mtu(lane->path),
		.dest_qp_num = lane->peer_qpn,
		.rq_psn = lane->peer_psn,
		.max_dest_rd_atomic = IB_RD_ATOMIC,
		.min_rnr_timer = 12,
	};

	if (rail->attr.max_qp_rd_atom < IB_RD_ATOMIC)
		attr.max_dest_rd_atomic = (uint8_t)rail->attr.max_qp_rd_atom;
	ib_path_vector(lane->path, lane->c->ctx->tr->options, &attr.ah_attr);
	return lane->c->v->modify_qp(lane->qp, &attr,
				     IBV_QP_STATE | IBV_QP_AV | IBV_QP_PATH_MTU | IBV_QP_DEST_QPN |
					     IBV_QP_RQ_PSN | IBV_QP_MAX_DEST_RD_ATOMIC |
					     IBV_QP_MIN_RNR_TIMER);
}

static int to_rts(struct ib_lane *lane)
{
	const struct ib_rail *rail = lane->path->rail;
	const struct kv_option_set *options = lane->c->ctx->tr->options;
	struct ibv_qp_attr attr = {
		.qp_state = IBV_QPS_RTS,
		.timeout = (uint8_t)kv_option_int(options, KV_OPT_IB_TIMEOUT),
		.retry_cnt = (uint8_t)kv_option_int(options, KV_OPT_IB_RETRY),
		.rnr_retry = (uint8_t)kv_option_int(options, KV_OPT_IB_RNR_RETRY),
		.sq_psn = lane->psn,
		.max_rd_atomic = lane->path->peer.rd_atomic,
	};

	if (rail->attr.max_qp_init_rd_atom < attr.max_rd_atomic)
		attr.max_rd_atomic = (uint8_t)rail->attr.max_qp_init_rd_atom;
	return lane->c->v->modify_qp(lane->qp, &attr,
				     IBV_QP_STATE | IBV_QP_TIMEOUT | IBV_QP_RETRY_CNT |
					     IBV_QP_RNR_RETRY | IBV_QP_SQ_PSN |
					     IBV_QP_MAX_QP_RD_ATOMIC);
}

int ib_lane_connect(struct ib_lane *lane, struct kv_error *err)
{
	const char *step = "RTR";
	int ret = to_rtr(lane);

	if (!ret) {
		step = "RTS";
		ret = to_rts(lane);
	}
	if (!ret)
		return 0;
	kv_fail_errno(err, KV_ERR_UNREACHABLE, ret, "connect",
		      "cannot bring qp 0x%x of %s to %s towards qp 0x%x", lane->qpn,
		      lane->path->rail->name, step, lane->peer_qpn);
	ib_name_peer(lane->c, lane->path->rail, err);
	return ret == ENOMEM ? KV_ERR_NOMEM : KV_ERR_UNREACHABLE;
}

int ib_lane_post_recv(struct ib_lane *lane, uint32_t number, struct kv_error *err)
{
	struct ib_conn *c = lane->c;
	struct ibv_sge sge = {
		.addr = (uint64_t)(uintptr_t)ib_conn_buffer(c, lane, number),
		.length = (uint32_t)ib_buffer_len(lane->index),
		.lkey = lane->path->mr_private->lkey,
	};
	struct ibv_recv_wr wr = {
		.wr_id = IB_WR_ID(IB_KIND_RECV, lane->index, c->generation, number),
		.sg_list = &sge,
		.num_sge = 1,
	};
	struct ibv_recv_wr *bad;
	int ret = c->v->post_recv(lane->qp, &wr, &bad);

	if (!ret)
		return 0;
	ret = kv_fail_errno(err, KV_ERR_DEVICE, ret, "receive",
			    "cannot post receive request %u on qp 0x%x of %s", number, lane->qpn,
			    lane->path->rail->name);
	ib_name_peer(c, lane->path->rail, err);
	return ret;
}

/*
 * After it nothing can land through the lane and nothing is read for it; unless the device refuses:
 * then the queue pair is still there (ib_has_lanes) and this may be called again. A device that was
 * taken away (EIO, ENODEV) has none any more.
 */
void ib_lane_destroy(struct ib_lane *lane)
{
	int ret = lane->qp ? lane->c->v->destroy_qp(lane->qp) : 0;

	if (!ret || ret == EIO || ret == ENODEV)
		lane->qp = NULL;
}

void ib_lanes_destroy(struct ib_conn *c)
{
	for (int i = 0; c->lane && i < c->lanes; i++)
		ib_lane_destroy(&c->lane[i]);
}

bool ib_has_lanes(const struct ib_conn *c)
{
	for (int i = 0; c->lane && i < c->lanes; i++)
		if (c->lane[i].qp)
			return true;
	return false;
}
