/* SPDX-License-Identifier: Apache-2.0 */
/*
 * flush.c -- TR_PROVEN: the bytes of an operation are visible in the peer before its event is
 * reported
 *
 * The completion of a WRITE says only that the peer's device has it. A READ on the same queue pair
 * is executed after the WRITEs before it, and a PCIe read does not pass writes: when the 8 bytes of
 * the peer's probe are here, what was written before is in the peer's memory. One READ on each lane
 * that the operation used. It proves visibility to a CPU, or to a GPU whose memory is ordered
 * strictly; not that anything was reported. The same READ asks a peer whether it is there that was
 * silent for long; the wire's retries end it otherwise.
 */
#include "ib.h"

bool ib_proof_room(const struct ib_conn *c, uint64_t lanes)
{
	for (int i = 0; i < c->lanes; i++)
		if ((lanes >> i & 1) && !ib_lane_room(&c->lane[i], IB_SQ_MSG))
			return false;
	return true;
}

static int read_probe(struct ib_lane *lane, enum ib_kind kind, uint16_t op, struct kv_error *err)
{
	struct ibv_sge sge = {
		.addr = (uint64_t)(uintptr_t)ib_control_landing(lane->c, lane),
		.length = 8,
		.lkey = lane->path->mr_private->lkey,
	};
	struct ibv_send_wr wr = {
		.sg_list = &sge,
		.num_sge = 1,
		.opcode = IBV_WR_RDMA_READ,
		.wr.rdma = { .remote_addr = lane->path->peer.probe,
			     .rkey = lane->path->peer.probe_rkey },
	};

	return ib_post_one(lane, &wr, kind, op, err);
}

int ib_proof_post(struct ib_conn *c, struct tr_op *op, uint64_t lanes, struct kv_error *err)
{
	for (int i = 0; i < c->lanes; i++) {
		int ret =
			lanes >> i & 1 ? read_probe(&c->lane[i], IB_KIND_PROOF, op->index, err) : 0;

		if (ret)
			return ret;
	}
	return 0;
}

/* Without room for it there is work under way whose completion says as much. */
bool ib_ask(struct tr_conn *conn)
{
	struct ib_conn *c = ib_conn_of(conn);

	if (c->state == IB_LIVE && !c->asking && ib_lane_room(&c->lane[0], IB_SQ_MSG))
		c->asking = !read_probe(&c->lane[0], IB_KIND_ASK, 0, NULL);
	return false;
}
