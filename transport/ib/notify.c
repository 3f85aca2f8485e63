/* SPDX-License-Identifier: Apache-2.0 */
/*
 * notify.c -- 64 bits that the peer gets after every byte of an operation is visible there
 *
 * Order holds inside a queue pair only. So each lane that the operation used carries, behind its
 * last write, one WRITE_WITH_IMM of a 32-byte record into the peer's next cell of that lane; the
 * immediate is (slot, generation) of the operation. The receiver reads a cell only after that
 * lane's receive completion, which orders every earlier write of the lane before it, and hands the
 * value on when all lanes that the record counts have come.
 *
 * Record, little-endian, written by the sender's device, read once by the receiver after the
 * completion:
 *   u32 sequence   notifies and messages of a direction are numbered together and delivered in this
 *                  order
 *   u32 immediate  the same as in the completion
 *   u16 lanes      how many carry this notify
 *   u16 credits    of this lane, given back
 *   u32 0
 *   u64 value
 *   u64 0
 * A cell is free again when its credit came back: a lane has IB_RECV_DATA cells and as many
 * credits.
 */
#include <endian.h>

#include "base/error.h"
#include "ib.h"

/* True if each of the lanes can take a notify and the READ of a proof behind it. */
bool ib_notify_room(const struct ib_conn *c, uint64_t lanes)
{
	for (int i = 0; i < c->lanes; i++) {
		const struct ib_lane *lane = &c->lane[i];
		uint16_t keep = i == 0 ? IB_RECV_MSG : 0;

		if (!(lanes >> i & 1))
			continue;
		if (lane->credits <= keep || ib_lane_room(lane, IB_SQ_MSG) < 2 ||
		    lane->ctl_posted - lane->ctl_retired >= IB_RECV_DATA - IB_SQ_MSG)
			return false;
	}
	return true;
}

static uint32_t immediate(const struct tr_op *op)
{
	return (uint32_t)op->index << 24 | (op->generation & 0xffffff);
}

static int post_record(struct ib_lane *lane, struct tr_op *op, uint64_t value, uint16_t lanes,
		       struct kv_error *err)
{
	struct ib_conn *c = lane->c;
	uint8_t *record = ib_conn_source(c, lane, lane->ctl_posted);
	struct wire_writer w = wire_writer_of(record, IB_CELL);
	struct ibv_sge sge = { .addr = (uint64_t)(uintptr_t)record,
			       .length = IB_CELL,
			       .lkey = lane->path->mr_private->lkey };
	struct ibv_send_wr wr = {
		.sg_list = &sge,
		.num_sge = 1,
		.opcode = IBV_WR_RDMA_WRITE_WITH_IMM,
		.send_flags = lane->inlines ? IBV_SEND_INLINE : 0,
		.imm_data = htobe32(immediate(op)),
		.wr.rdma = { .remote_addr = ib_peer_cell(lane, lane->cells_out),
			     .rkey = lane->path->peer.cells_rkey },
	};
	int ret;

	wire_put_u32(&w, c->seq_out);
	wire_put_u32(&w, immediate(op));
	wire_put_u16(&w, lanes);
	wire_put_u16(&w, lane->owed);
	wire_put_u32(&w, 0);
	wire_put_u64(&w, value);
	wire_put_u64(&w, 0);
	ret = ib_post_one(lane, &wr, IB_KIND_NOTIFY, op->index, err);
	if (ret)
		return ret;
	lane->owed = 0;
	lane->credits--;
	lane->cells_out++;
	lane->ctl_posted++;
	return 0;
}

int ib_notify_post(struct ib_conn *c, struct tr_op *op, uint64_t lanes, uint64_t value,
		   struct kv_error *err)
{
	uint16_t count = (uint16_t)__builtin_popcountll(lanes);

	for (int i = 0; i < c->lanes; i++) {
		int ret = lanes >> i & 1 ? post_record(&c->lane[i], op, value, count, err) : 0;

		if (ret)
			return ret;
	}
	c->seq_out++;
	return 0;
}

static void refuse_notify(struct ib_lane *lane, const struct ibv_wc *wc, const char *what)
{
	struct kv_error cause;

	kv_fail(&cause, KV_ERR_PROTOCOL, "notify", "a notify on qp 0x%x of %s %s", wc->qp_num,
		lane->path->rail->name, what);
	cause.qp_num = wc->qp_num;
	ib_name_peer(lane->c, lane->path->rail, &cause);
	ib_break(lane->c, &cause);
}

void ib_notify_arrived(struct ib_lane *lane, const struct ibv_wc *wc)
{
	struct ib_conn *c = lane->c;
	struct wire_reader r = wire_reader_of(ib_conn_cell(c, lane, lane->cells_in++), IB_CELL);
	uint32_t sequence = wire_get_u32(&r);
	uint32_t imm = wire_get_u32(&r);
	uint16_t lanes = wire_get_u16(&r);
	uint16_t credits = wire_get_u16(&r);
	uint32_t zero = wire_get_u32(&r);
	uint64_t value = wire_get_u64(&r);
	struct ib_inbox *in = &c->inbox[sequence & c->inbox_mask];

	if (imm != be32toh(wc->imm_data) || zero)
		return refuse_notify(lane, wc,
				     "carries an immediate that its record does not have");
	if (sequence - c->seq_in > c->inbox_mask || !lanes || lanes > c->lanes ||
	    (in->want && (in->is_msg || in->want != lanes || in->imm != imm || in->value != value ||
			  (in->lanes >> lane->index & 1))))
		return refuse_notify(lane, wc, "does not agree with those of the other lanes");
	if (!ib_credits_take(lane, credits))
		return refuse_notify(lane, wc, "gives back more credits than were used");
	in->want = lanes;
	in->imm = imm;
	in->value = value;
	in->lanes |= UINT64_C(1) << lane->index;
}

/* false: it waits, or the connection breaks. */
static bool deliver(struct ib_conn *c, const struct ib_inbox *in)
{
	if (in->staged)
		return ib_staged_take(c, c->msgs[in->msg], in->len);
	if (!ib_gpus_flush(c, in->lanes))
		return false;
	if (in->is_msg)
		tr_conn_message(c->conn, c->msgs[in->msg], in->len);
	else
		tr_conn_notified(c->conn, in->value);
	return true;
}

/*
 * Hands on what is complete, in order, as far as the core has room; what is handed on is owed to
 * the peer as credits.
 */
int ib_inbox_deliver(struct ib_conn *c)
{
	int delivered = 0;

	while (tr_conn_room(c->conn) > 0) {
		struct ib_inbox *in = &c->inbox[c->seq_in & c->inbox_mask];

		if (!in->want || __builtin_popcountll(in->lanes) < in->want)
			break;
		if (!deliver(c, in))
			break;
		for (int i = 0; i < c->lanes; i++)
			c->lane[i].owed = (uint16_t)(c->lane[i].owed + (in->lanes >> i & 1));
		*in = (struct ib_inbox){ 0 };
		c->seq_in++;
		delivered++;
	}
	return delivered;
}

/* ---------------------------------------------------------------- TR_PROVEN */

/*
 * The bytes of an operation are visible in the peer before its event is reported. The completion of
 * a WRITE says only that the peer's device has it. A READ on the same queue pair is executed after
 * the WRITEs before it, and a PCIe read does not pass writes: when the 8 bytes of the peer's probe
 * are here, what was written before is in the peer's memory. One READ on each lane that the
 * operation used. It proves visibility to a CPU, or to a GPU whose memory is ordered strictly; not
 * that anything was reported. The same READ asks a peer whether it is there that was silent for
 * long; the wire's retries end it otherwise.
 */
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
		.addr = (uint64_t)(uintptr_t)ib_conn_landing(lane->c, lane),
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
