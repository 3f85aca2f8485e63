/* SPDX-License-Identifier: Apache-2.0 */
/* gather.c -- slots going out (slot.h): writes, requests to read, answers to the peer's */
#include <string.h>

#include "base/error.h"
#include "slot.h"

/* The slot that takes more of this; NULL: none does now. */
static struct staged_slot *slot_for(struct ib_conn *c, enum staged_kind kind, uint16_t op,
				    uint64_t grant)
{
	struct ib_staged *s = c->staged;
	struct staged_slot *slot = &s->slot[(s->begun - 1) % STAGED_SLOTS];

	if (s->filling && slot->message.kind == kind && slot->op == op &&
	    slot->message.word == grant)
		return slot;
	s->filling = false;
	if (!s->open || s->begun - s->taken == STAGED_SLOTS ||
	    s->begun - s->posted == STAGED_SLOTS / 2)
		return NULL;
	s->filling = true;
	slot = &s->slot[s->begun++ % STAGED_SLOTS];
	*slot = (struct staged_slot){ .message = { .kind = (uint8_t)kind, .word = grant },
				      .op = op };
	return slot;
}

/* Nothing could be put into it. */
static void give_slot_back(struct ib_staged *s, const struct staged_slot *slot)
{
	if (slot->message.spans || slot->message.bytes)
		return;
	s->begun--;
	s->filling = false;
}

static void put_span(const struct ib_staged *s, struct staged_slot *slot, uint32_t mem,
		     uint64_t offset, uint32_t len)
{
	struct wire_writer w = wire_writer_of(
		staged_out(s, s->begun - 1) + slot->message.spans++ * STAGED_SPAN, STAGED_SPAN);

	wire_put_u32(&w, mem);
	wire_put_u32(&w, len);
	wire_put_u64(&w, offset);
}

/* The next n bytes of the slot. */
static int put_bytes(struct ib_conn *c, struct staged_slot *slot, struct tr_mem *mem, uint8_t *from,
		     uint32_t n, struct kv_error *err)
{
	struct ib_staged *s = c->staged;
	uint8_t *to =
		staged_out(s, s->begun - 1) + STAGED_SPANS * STAGED_SPAN + slot->message.bytes;
	int ret = 0;

	if (stage_region(mem))
		ret = stage_put(s->gather, mem, true, to, from, n, err);
	else
		memcpy(to, from, n);
	if (!ret)
		slot->message.bytes += n;
	else
		give_slot_back(s, slot);
	return ret;
}

/* ---------------------------------------------------------------- to the device */

static int post_slot(struct ib_conn *c)
{
	struct ib_staged *s = c->staged;
	const struct staged_message *message = &s->slot[s->posted % STAGED_SLOTS].message;
	uint8_t *slot = staged_out(s, s->posted);
	struct ibv_sge sge[IB_SGES];
	struct ibv_send_wr wr = {
		.sg_list = sge,
		.opcode = IBV_WR_RDMA_WRITE,
		.wr.rdma = { .remote_addr = s->peer + (uint64_t)(slot - s->bytes),
			     .rkey = s->rkey },
	};
	int ret;

	if (!ib_msg_room(c, 2))
		return TR_AGAIN;
	if (message->spans)
		sge[wr.num_sge++] = (struct ibv_sge){ .addr = (uint64_t)(uintptr_t)slot,
						      .length = message->spans * STAGED_SPAN,
						      .lkey = s->mr_out->lkey };
	if (message->bytes)
		sge[wr.num_sge++] = (struct ibv_sge){ .addr = (uint64_t)(uintptr_t)slot +
							      STAGED_SPANS * STAGED_SPAN,
						      .length = message->bytes,
						      .lkey = s->mr_out->lkey };
	ret = ib_post_one(&c->lane[0], &wr, IB_KIND_STAGED, 0, NULL);
	if (!ret)
		ret = ib_staged_say(c, message);
	if (!ret)
		s->posted++;
	return ret;
}

/* Slots that take no more and whose bytes are there. */
static int post_ready_slots(struct ib_conn *c)
{
	struct ib_staged *s = c->staged;
	uint32_t end = s->begun - s->filling;
	struct kv_error err;
	int n = 0, ret = stage_end(s->gather, c->conn, &err);

	if (ret < 0)
		ib_staged_break(c, &err);
	while (!ret && s->posted != end && !post_slot(c))
		n++;
	return n;
}

/* It goes as it is. */
static void close_slot(struct ib_conn *c)
{
	c->staged->filling = false;
	post_ready_slots(c);
}

static void close_full(struct ib_conn *c, const struct staged_slot *slot)
{
	if (slot->message.spans == STAGED_SPANS || slot->message.bytes == STAGED_BYTES)
		close_slot(c);
}

/* ---------------------------------------------------------------- operations */

/* Where the answer goes: once the request is in a slot. */
static void expect_read(struct ib_staged *s, struct tr_op *op, struct tr_mem *mem, uint8_t *dst,
			uint32_t n)
{
	s->read[s->read_tail++ % STAGED_READS] =
		(struct staged_read){ .dst = dst, .mem = mem, .left = n, .op = op->index };
	ib_op_of(op)->reads++;
}

/* The beginning of the span; advances it. */
static int put_part(struct ib_conn *c, struct tr_op *op, struct tr_mem *lmem,
		    const struct tr_rmem *rmem, struct tr_span *span, struct kv_error *err)
{
	struct ib_staged *s = c->staged;
	bool write = op->kind == TR_WRITE;
	uint8_t *local = lmem->addr + span->local;
	struct staged_slot *slot;
	uint64_t most;
	uint32_t n;
	int ret = 0;

	if (!write && s->read_tail - s->read_ended == STAGED_READS)
		return TR_AGAIN;
	slot = slot_for(c, write ? STAGED_WRITE : STAGED_READ, op->index, write ? op->grant : 0);
	if (!slot)
		return TR_AGAIN;
	most = write ? STAGED_BYTES - slot->message.bytes : STAGED_ASK;
	n = (uint32_t)(span->len < most ? span->len : most);
	if (write)
		ret = put_bytes(c, slot, lmem, local, n, err);
	if (ret)
		return ret;
	put_span(s, slot, rmem->id, span->remote, n);
	if (!write)
		expect_read(s, op, lmem, local, n);
	ib_op_of(op)->staged = true;
	ib_op_of(op)->staged_to = s->begun;
	*span = (struct tr_span){ span->local + n, span->remote + n, span->len - n };
	close_full(c, slot);
	return 0;
}

int ib_staged_put(struct tr_op *op, struct tr_mem *lmem, struct tr_rmem *rmem, struct tr_span *span,
		  struct kv_error *err)
{
	struct ib_conn *c = ib_conn_of(op->conn);
	struct kv_error why;
	int ret = ib_staged_make(c, err);

	if (!ret)
		ret = ib_staged_open(c, lmem, op->kind == TR_WRITE, err);
	if (ret)
		return ret;
	while (span->len && !ret && c->state == IB_LIVE)
		ret = put_part(c, op, lmem, rmem, span, &why);
	if (ret < 0)
		ib_staged_break(c, &why); /* some of it may be with the GPU */
	return c->state == IB_LIVE ? ret : kv_error_copy(err, &c->end.cause);
}

static bool is_filling(const struct ib_staged *s, const struct tr_op *op)
{
	return s->filling && s->slot[(s->begun - 1) % STAGED_SLOTS].op == op->index;
}

int ib_staged_flush(struct ib_conn *c, const struct tr_op *op, struct kv_error *err)
{
	const struct ib_op *state = ib_op_of(op);

	if (!state->staged)
		return 0;
	if (is_filling(c->staged, op))
		c->staged->filling = false;
	if ((int32_t)(state->staged_to - c->staged->posted) > 0)
		post_ready_slots(c);
	if (c->state != IB_LIVE)
		return kv_error_copy(err, &c->end.cause);
	return (int32_t)(state->staged_to - c->staged->posted) > 0 ? ib_again(c) : 0;
}

void ib_staged_cancel(struct ib_conn *c, struct tr_op *op)
{
	struct ib_op *state = ib_op_of(op);
	struct ib_staged *s = c->staged;

	if (!state->staged)
		return;
	if (is_filling(s, op))
		close_slot(c);
	for (uint32_t i = s->read_ended; state->reads && i != s->read_tail; i++) {
		struct staged_read *read = &s->read[i % STAGED_READS];

		if (read->op != op->index)
			continue;
		read->dst = NULL;
		read->op = STAGED_NO_OP;
		state->committed = false; /* it ends as cancelled */
	}
	state->reads = 0;
}

bool ib_staged_holds(const struct ib_conn *c, const struct tr_op *op)
{
	const struct ib_op *state = ib_op_of(op);

	if ((int32_t)(state->staged_to - c->staged->taken) > 0 || state->reads)
		return true;
	/* What has come of a read that was cancelled since may be on its way into the memory. */
	return op->kind == TR_READ_OP && state->stopping && stage_runs(c->staged->scatter);
}

bool ib_gather_taken(struct ib_conn *c, uint32_t taken)
{
	struct ib_staged *s = c->staged;

	if (taken - s->taken > s->posted - s->taken)
		return false;
	s->taken = taken;
	c->staged_ends = true;
	c->room |= c->refused;
	return true;
}

/* ---------------------------------------------------------------- answers */

static int put_answer(struct ib_conn *c, struct staged_answer *a, struct kv_error *err)
{
	struct tr_mem *mem = tr_conn_reach(c->conn, a->mem, a->offset, a->left, TR_REMOTE_READ);
	struct staged_slot *slot;
	uint32_t n = 0;
	int ret;

	if (!mem)
		return kv_fail(err, KV_ERR_PROTOCOL, "gpu",
			       "the peer reads a region that was deregistered");
	ret = ib_staged_open(c, mem, true, err);
	slot = ret ? NULL : slot_for(c, STAGED_ANSWER, STAGED_NO_OP, 0);
	if (!ret && !slot)
		ret = TR_AGAIN;
	if (!ret) {
		n = STAGED_BYTES - slot->message.bytes;
		n = a->left < n ? a->left : n;
		ret = put_bytes(c, slot, mem, mem->addr + a->offset, n, err);
	}
	tr_mem_put(mem);
	if (ret)
		return ret;
	a->offset += n;
	a->left -= n;
	close_full(c, slot);
	return 0;
}

int ib_gather_push(struct ib_conn *c)
{
	struct ib_staged *s = c->staged;
	uint32_t before = s->posted;
	struct kv_error err;
	int ret = 0;

	while (s->answer_head != s->answer_tail && !ret && c->state == IB_LIVE) {
		struct staged_answer *a = &s->answer[s->answer_head % STAGED_READS];

		ret = put_answer(c, a, &err);
		s->answer_head += !a->left;
	}
	if (ret < 0)
		ib_staged_break(c, &err);
	if (s->filling && s->slot[(s->begun - 1) % STAGED_SLOTS].message.kind == STAGED_ANSWER)
		s->filling = false;
	if (c->state == IB_LIVE)
		post_ready_slots(c);
	return (int)(s->posted - before);
}
