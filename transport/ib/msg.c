/* SPDX-License-Identifier: Apache-2.0 */
/*
 * msg.c -- messages, and the credits that keep every receive request of the peer accounted for
 *
 * Messages are SENDs on the first lane. Header, little-endian:
 *   u32 sequence  as in a notify (a credit message has none: 0)
 *   u16 credits   of this lane, given back
 *   u16 length    of the text behind it
 *   u8 kind       1 message, 2 credits only, 3 of staged memory (slot.h)
 *   u8[7] 0
 *
 * Credits. Each lane of each end has IB_RECVS = D + 2 receive requests posted, D = IB_RECV_DATA. A
 * notify or a message uses one of D credits of its lane; a request that was used is posted again at
 * once, its credit is given back when the upper layer has taken the event: with the next notify or
 * message of that lane, or, when D / 2 are owed, with a credit message of its own. Credit messages
 * use no credit. On the first lane notifies leave IB_RECV_MSG credits to messages.
 *
 * No receive request is ever missing (no RNR): a request is short only if more than D + 2 arrivals
 * lie between two polls of the receiver. Notifies and messages are at most D, because their credits
 * come back only after the request was posted again. Credit messages are at most 2: this end sends
 * one only when D / 2 credits are owed, that is after the peer has sent D / 2 notifies and messages
 * more; for k of them that the peer has not polled it must have sent k * D / 2 with credits that it
 * had before, and it had at most D. So k <= 2.
 *
 * No deadlock: suppose this end wants to send a notify or message and never gets a credit. All
 * credits (but IB_RECV_MSG) of the lane are then used, so the peer's device has the arrivals, or
 * will get them without any software: they need posted requests only, and there are some. When the
 * peer polls it copies them out and posts the requests again whatever its upper layer does; what is
 * delivered is owed; delivery waits only for earlier numbers, which were posted earlier and arrive
 * for the same reason. If the peer's upper layer goes on taking events, at least D - IB_RECV_MSG >=
 * D / 2 are owed at some time and a credit message is sent, for which IB_SQ_CREDIT requests of the
 * send queue are kept free and the peer of the peer, this end, has the 2 requests. The send queue
 * itself drains without software. If the peer's upper layer never polls, only its own deadline
 * helps, and that is the upper layer's.
 */

#include "base/error.h"
#include "ib.h"

enum { MSG_TEXT = 1, MSG_CREDIT = 2, MSG_STAGED = 3 };

_Static_assert(IB_RECV_DATA - IB_RECV_MSG >= IB_RECV_DATA / 2, "the proof above");

/* `hold`: it goes with the next doorbell of the lane. */
static int post(struct ib_lane *lane, int kind, const void *text, uint16_t len, bool hold,
		struct kv_error *err)
{
	struct ib_conn *c = lane->c;
	uint8_t *source = ib_conn_source(c, lane, lane->ctl_posted);
	struct wire_writer w = wire_writer_of(source, ib_buffer_len(lane->index));
	struct ib_request now, *r = &now;
	int ret = 0;

	if (hold)
		r = &c->held;
	r->sge[0] = (struct ibv_sge){ .addr = (uint64_t)(uintptr_t)source,
				      .length = IB_MSG_HEADER + (uint32_t)len,
				      .lkey = lane->path->mr_private->lkey };
	r->wr = (struct ibv_send_wr){
		.wr_id = IB_WR_ID(IB_KIND_MSG, lane->index, c->generation, lane->posted),
		.sg_list = r->sge,
		.num_sge = 1,
		.opcode = IBV_WR_SEND,
		.send_flags = lane->inlines && r->sge[0].length <= IB_INLINE ? IBV_SEND_INLINE : 0,
	};

	wire_put_u32(&w, kind == MSG_CREDIT ? 0 : c->seq_out);
	wire_put_u16(&w, lane->owed);
	wire_put_u16(&w, len);
	wire_put_u8(&w, (uint8_t)kind);
	wire_put_uint(&w, 0, 7);
	wire_put_bytes(&w, text, len);
	if (hold)
		lane->held = true;
	else
		ret = ib_post_one(lane, &r->wr, kind == MSG_CREDIT ? IB_KIND_CREDIT : IB_KIND_MSG,
				  0, err);
	if (ret)
		return ret;
	lane->owed = 0;
	lane->ctl_posted++;
	return 0;
}

bool ib_msg_room(const struct ib_conn *c, uint32_t n)
{
	const struct ib_lane *lane = &c->lane[0];

	return lane->credits && ib_lane_room(lane, IB_SQ_CREDIT) >= n &&
	       lane->ctl_posted - lane->ctl_retired < IB_RECV_DATA - IB_SQ_CREDIT;
}

/* There is room. */
static int send_numbered(struct ib_conn *c, int kind, const void *text, size_t len, bool hold,
			 struct kv_error *err)
{
	struct ib_lane *lane = &c->lane[0];
	int ret = post(lane, kind, text, (uint16_t)len, hold, err);

	if (ret)
		return ret;
	lane->credits--;
	c->seq_out++;
	return 0;
}

/*
 * A completion always wakes a thread that sleeps for one: a message that need not wake one waits
 * for the doorbell of what follows.
 */
int ib_msg(struct tr_conn *conn, const void *buf, size_t len, bool wake, struct kv_error *err)
{
	struct ib_conn *c = ib_conn_of(conn);
	int ret;

	if (c->state != IB_LIVE)
		return kv_error_copy(err, &c->end.cause);
	if (!ib_msg_room(c, 1))
		return ib_again(c);
	if (!wake && ib_waits(c)) {
		ret = ib_flush(c, err);
		if (ret)
			return ret;
	}
	return send_numbered(c, MSG_TEXT, buf, len, !wake, err);
}

int ib_msg_staged(struct ib_conn *c, const void *text, size_t len)
{
	return ib_msg_room(c, 1) ? send_numbered(c, MSG_STAGED, text, len, false, NULL) : TR_AGAIN;
}

/* A failure to post breaks the connection, which progress then sees. */
void ib_credits_return(struct ib_conn *c)
{
	for (int i = 0; i < c->lanes && c->state == IB_LIVE; i++) {
		struct ib_lane *lane = &c->lane[i];

		if (lane->owed < IB_RECV_DATA / 2)
			continue;
		if (ib_lane_room(lane, 0) && lane->ctl_posted - lane->ctl_retired < IB_RECV_DATA)
			post(lane, MSG_CREDIT, NULL, 0, false, NULL);
		else
			ib_again(c); /* the next completion of what was sent makes room */
	}
}

bool ib_credits_take(struct ib_lane *lane, uint16_t credits)
{
	if (credits > IB_RECV_DATA - lane->credits)
		return false;
	lane->credits = (uint16_t)(lane->credits + credits);
	return true;
}

static void refuse_msg(struct ib_lane *lane, const struct ibv_wc *wc)
{
	struct kv_error cause;

	kv_fail(&cause, KV_ERR_PROTOCOL, "message",
		"a message of %u bytes on qp 0x%x of %s is malformed", wc->byte_len, wc->qp_num,
		lane->path->rail->name);
	cause.qp_num = wc->qp_num;
	ib_name_peer(lane->c, lane->path->rail, &cause);
	ib_break(lane->c, &cause);
}

void ib_msg_arrived(struct ib_lane *lane, const struct ibv_wc *wc, uint32_t buffer)
{
	struct ib_conn *c = lane->c;
	size_t most = ib_buffer_len(lane->index);
	size_t size = wc->byte_len < most ? wc->byte_len : most;
	struct wire_reader r = wire_reader_of(ib_conn_buffer(c, lane, buffer), size);
	uint32_t sequence = wire_get_u32(&r);
	uint16_t credits = wire_get_u16(&r);
	uint16_t len = wire_get_u16(&r);
	uint8_t kind = wire_get_u8(&r);
	struct ib_inbox *in = &c->inbox[sequence & c->inbox_mask];

	wire_get_uint(&r, 7);
	if (r.bad || len != wire_left(&r) || len > TR_MSG_MAX || !kind || kind > MSG_STAGED ||
	    !ib_credits_take(lane, credits))
		return refuse_msg(lane, wc);
	if (kind == MSG_CREDIT)
		return;
	if (lane->index || sequence - c->seq_in > c->inbox_mask || in->want)
		return refuse_msg(lane, wc);
	*in = (struct ib_inbox){ .lanes = 1,
				 .want = 1,
				 .len = len,
				 .is_msg = true,
				 .staged = kind == MSG_STAGED,
				 .msg = (uint8_t)(c->msgs_in % IB_RECV_DATA) };
	wire_get_bytes(&r, c->msgs[c->msgs_in++ % IB_RECV_DATA], len);
}
