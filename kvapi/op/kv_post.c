/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_post.c -- the steps of an operation: its lease, BEGIN, the spans, the commit; on the data path
 */
#include "kv_op.h"
#include "kv_probe.h"

enum {
	LITTLE_SPANS = TR_SPANS_GOOD / 4,
	LITTLE_BYTES = KV_PIECE_BYTES / 16,
	BLOCKS_GOOD = 4 * TR_SPANS_GOOD, /* of a piece; none of them is a span in memory first, */
	BLOCK_BYTES = KV_PIECE_BYTES / BLOCKS_GOOD, /* nor does a processor move its bytes */
};

static enum kv_step step_failed(struct kv_op *op, const struct kv_error *err)
{
	if (tr_conn_error(op->peer->conn)->code)
		atomic_store(&op->peer->failing, true);
	kv_op_stop(op, err->code, kv_deadline_ns(KV_STOP_MS), err);
	return KV_STEP_OVER;
}

struct kv_msg_begin kv_op_begin_of(const struct kv_op *op)
{
	return (struct kv_msg_begin){
		.op = op->id,
		.cache = (uint8_t)op->cache->geometry.cache_id,
		.first = (uint16_t)op->layers.first,
		.count = (uint16_t)op->layers.count,
		.blocks = (uint32_t)op->n,
		.bytes = op->bytes,
		.lease = op->grant,
		.tag = op->tag,
	};
}

/* The transport's operation and, unless it is a read, the BEGIN message. */
static enum kv_step post_begin(struct kv_op *op)
{
	struct kv_error err;
	int ret;

	if (!op->tr) {
		ret = tr_op_begin(op->peer->conn, op->kind == KV_OP_READ ? TR_READ_OP : TR_WRITE,
				  op->id, &op->tr, &err);
		if (ret == TR_AGAIN)
			return KV_STEP_NONE;
		if (ret)
			return step_failed(op, &err);
		tr_op_grant(op->tr, op->grant);
	}
	if (op->kind != KV_OP_READ) {
		struct kv_msg msg = { .type = KV_MSG_BEGIN, .begin = kv_op_begin_of(op) };

		/* A failing connection ends the operation through its event. */
		if (kv_peer_send(op->peer, &msg))
			return KV_STEP_NONE;
		op->begun = true;
	}
	op->stage = KV_STAGE_POST;
	return KV_STEP_ON;
}

static struct kv_pitch pitch_of(const struct kv_op *op, size_t slab)
{
	const struct kv_map *map = op->map;
	const struct kv_part *part = &map->part[op->tensor];

	return (struct kv_pitch){
		.local_base = op->cache->slab[slab].offset + part->local_skip,
		.local_stride = op->cache->stride[op->tensor],
		.remote_base = map->slab[slab].offset + part->remote_skip,
		.remote_stride = map->stride[op->tensor],
		.len = part->len,
		.local_row = part->local_row,
		.remote_row = part->remote_row,
		.rows = part->rows,
		.most = KV_PIECE_BYTES,
	};
}

static void next_tensor(struct kv_op *op)
{
	op->place = (struct kv_place){ 0 };
	if (++op->tensor < op->cache->geometry.tensors)
		return;
	op->tensor = 0;
	if (++op->layer == op->layers.count)
		op->stage = KV_STAGE_COMMIT;
}

/* The transport's answer; what it has taken is behind op->place, and its bytes are counted. */
static long add_piece(struct kv_op *op, const struct kv_pitch *pitch, size_t slab,
		      struct kv_error *err)
{
	struct tr_mem *lmem = op->cache->slab[slab].mem;
	struct tr_rmem *rmem = op->map->slab[slab].rmem;
	struct tr_span spans[TR_SPANS_GOOD];
	struct tr_blocks blocks;
	size_t count = 0;
	uint64_t share;
	long taken;

	if (tr_takes_blocks(lmem, rmem))
		count = kv_plan_blocks(pitch, op->local, op->remote, op->n, op->place, &blocks);
	if (count) {
		count = count < BLOCKS_GOOD ? count : BLOCKS_GOOD;
		taken = tr_op_add_blocks(op->tr, lmem, rmem, &blocks, count, err);
		op->place.index += taken < 0 ? 0 : (size_t)taken;
		share = pitch->len < BLOCK_BYTES ? pitch->len : BLOCK_BYTES;
		kv_peer_posted(op->peer, taken < 0 ? 0 : (size_t)taken * share);
		return taken;
	}
	count = kv_plan_next(pitch, op->local, op->remote, op->n, op->place, spans, TR_SPANS_GOOD);
	taken = tr_op_add(op->tr, lmem, rmem, spans, count, err);
	if (taken >= 0)
		kv_peer_posted(op->peer, kv_plan_take(pitch, spans, (size_t)taken, &op->place));
	return taken;
}

/*
 * At most TR_SPANS_GOOD spans and KV_PIECE_BYTES, or BLOCKS_GOOD blocks, of one tensor of one
 * layer: before the next piece deadlines, cancels and revocations are looked at, and others may
 * have the claim.
 */
static enum kv_step post_piece(struct kv_op *op)
{
	size_t slab =
		(size_t)(op->layers.first + op->layer) * op->cache->geometry.tensors + op->tensor;
	struct kv_pitch pitch = pitch_of(op, slab);
	struct kv_error err;
	long taken = add_piece(op, &pitch, slab, &err);

	if (taken < 0)
		return step_failed(op, &err);
	kv_count(op->engine, spans_out, taken);
	if (kv_engine_times(op->engine) && !op->first_ns && taken)
		op->first_ns = kv_peer_now(op->peer);
	if (op->place.index == op->n * pitch.rows)
		next_tensor(op);
	return taken ? KV_STEP_ON : KV_STEP_NONE;
}

/*
 * The next tensor's blocks are so few that they go in the same step: all of a small operation, from
 * BEGIN to its notify, may leave by one doorbell.
 */
static bool is_little(const struct kv_op *op)
{
	const struct kv_part *part = &op->map->part[op->tensor];

	return op->stage == KV_STAGE_POST && !op->place.index &&
	       op->n * part->rows <= LITTLE_SPANS &&
	       op->peer->turn_bytes + op->n * part->rows * part->len <= LITTLE_BYTES;
}

/* Whether the layer that is next may move. The service thread asks, too: it wakes who posts. */
static enum kv_step pass_gate(struct kv_op *op)
{
	struct kv_error err;
	int ret;

	if (!op->gate.context || op->layer < op->gated)
		return KV_STEP_ON;
	ret = op->events && !op->events[op->layer]
		      ? 0
		      : tr_gate_ask(&op->gate, op->events ? op->events[op->layer] : NULL, &err);
	if (ret == TR_AGAIN) {
		op->peer->awaits = true;
		return KV_STEP_NONE;
	}
	if (ret)
		return step_failed(op, &err);
	op->gated = op->events ? op->layer + 1 : op->layers.count;
	return KV_STEP_ON;
}

void kv_op_committed(struct kv_op *op)
{
	op->committed = true;
	KV_PROBE_OP(posted, op, op->bytes);
	op->stage = KV_STAGE_FLIGHT;
	kv_bit_clear(op->peer->link->posting, kv_op_slot(op));
	if (op->written)
		kv_op_sent(op);
	if (op->kind == KV_OP_READ)
		return;
	kv_count_at(&op->peer->traffic->blocks_out, op->n);
	kv_count_at(&op->peer->traffic->bytes_out, op->bytes);
}

static enum kv_step post_commit(struct kv_op *op)
{
	bool read = op->kind == KV_OP_READ;
	unsigned int flags = read ? 0 : TR_NOTIFY | TR_LANDED; /* a cancel relies on it */
	struct kv_error err;
	int ret;

	if (!read && kv_op_is_proven(op))
		flags |= TR_PROVEN;
	ret = tr_op_commit(op->tr, flags, op->id, &err);
	if (ret == TR_AGAIN)
		return KV_STEP_NONE;
	if (ret)
		return step_failed(op, &err);
	if (op->peer->link->checks && !read) {
		kv_digests_begin(op);
		return KV_STEP_ON;
	}
	kv_op_committed(op);
	return KV_STEP_ON;
}

/* A write that came before all of its lease: admitted when the lease is complete. */
static enum kv_step await_lease(struct kv_op *op)
{
	struct kv_error err;

	if (kv_grant_under_way(op->peer, op->grant))
		return KV_STEP_NONE;
	if (kv_op_admit(op, &err))
		return step_failed(op, &err);
	op->stage = KV_STAGE_BEGIN;
	return KV_STEP_ON;
}

/* No thread waits for it and could post it: the service thread does. */
static bool is_left_alone(const struct kv_op *op)
{
	return !op->blocking && !atomic_load_explicit(&op->waiter->sleepers, memory_order_relaxed);
}

static int match_error(struct kv_op *op, const struct kv_grant *grant, struct kv_error *err)
{
	uint32_t end = grant->layers.first + grant->layers.count;

	if (op->layers.first < grant->layers.first || op->layers.first + op->layers.count > end)
		return kv_peer_fail(op->peer, err, KV_ERR_GEOMETRY, kv_op_name(op),
				    "layers %u + %u are sent; the receiver has opened %u + %u",
				    op->layers.first, op->layers.count, grant->layers.first,
				    grant->layers.count);
	if (op->n != grant->n)
		return kv_peer_fail(op->peer, err, KV_ERR_ARG, kv_op_name(op),
				    "n is %zu; the receiver has opened %u blocks under this tag",
				    op->n, grant->n);
	return 0;
}

static enum kv_step send_match(struct kv_op *op)
{
	struct kv_grant *grant = kv_grant_match(op->peer, op->cache, op->tag, op->layers);
	struct kv_error err;
	int ret;

	if (!grant)
		return KV_STEP_NONE;
	op->grant = grant->id;
	ret = match_error(op, grant, &err);
	if (!ret && !kv_grant_claim(grant, op->layers))
		ret = kv_peer_fail(op->peer, &err, KV_ERR_LEASE, kv_op_name(op),
				   "some of layers %u + %u were sent under this tag before",
				   op->layers.first, op->layers.count);
	if (ret) {
		if (ret != KV_ERR_GEOMETRY)
			op->grant = 0; /* the receiver still waits: the call may be corrected */
		kv_op_stop(op, ret, 0, &err);
		return KV_STEP_OVER;
	}
	op->remote = grant->ids;
	op->stage = KV_STAGE_BEGIN;
	return KV_STEP_ON;
}

bool kv_op_step(struct kv_op *op, bool may_post)
{
	enum kv_step step = KV_STEP_ON;
	bool moved = false;

	if (atomic_load_explicit(&op->ids_gone, memory_order_relaxed)) {
		kv_op_stop(op, KV_ERR_TIMEOUT, kv_deadline_ns(KV_STOP_MS), NULL);
		return true;
	}
	if (op->stage == KV_STAGE_WAIT_GRANT)
		moved |= (step = op->kind == KV_OP_SEND ? send_match(op) : await_lease(op));
	if (step == KV_STEP_ON && op->stage == KV_STAGE_BEGIN)
		moved |= (step = post_begin(op));
	if (step == KV_STEP_ON && op->stage == KV_STAGE_POST)
		step = pass_gate(op);
	if (step == KV_STEP_ON && op->stage == KV_STAGE_POST)
		moved |= (step = may_post || is_left_alone(op) ? post_piece(op) : KV_STEP_NONE);
	while (step == KV_STEP_ON && is_little(op)) {
		step = pass_gate(op);
		if (step == KV_STEP_ON)
			step = post_piece(op);
	}
	if (step == KV_STEP_ON && op->stage == KV_STAGE_COMMIT)
		moved |= (step = post_commit(op));
	if (step == KV_STEP_ON && op->stage == KV_STAGE_PROVE)
		moved |= (step = kv_digests_prove(op) ? KV_STEP_ON : KV_STEP_NONE);
	if (step == KV_STEP_ON && op->stage == KV_STAGE_DIGEST && (may_post || is_left_alone(op)))
		moved |= kv_digests_step(op);
	return moved;
}
