/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_digests.c -- the digests that follow a commit, where the two ends have agreed on them
 *
 * One for each block of each tensor and layer, because the receiver must name the first wrong one,
 * and after KV_SENT this side could not look for it: its blocks may hold something else. They come
 * after the commit, so that the receiver compares each message as it comes and keeps nothing.
 */
#include "kv_op.h"

void kv_digests_begin(struct kv_op *op)
{
	op->stage = KV_STAGE_DIGEST;
	op->walk = (struct kv_walk){ 0 };
	kv_bit_set(op->peer->link->posting, kv_op_slot(op));
}

/* As many as a message holds; the bytes of their blocks. */
static uint64_t fill(const struct kv_op *op, struct kv_unsent *to)
{
	struct kv_msg_digests *msg = &to->msg.digests;
	struct kv_walk *at = &to->next;
	uint64_t bytes = 0;

	to->msg = (struct kv_msg){ .type = KV_MSG_DIGESTS, .digests.op = op->id };
	*at = op->walk;
	do {
		const struct kv_part *part = &op->map->part[at->tensor];

		if (msg->count && bytes + part->len * part->rows > KV_DIGESTS_BYTES)
			break;
		bytes += part->len * part->rows;
		msg->block[msg->count++] = (struct kv_block_digest){
			.block = (uint32_t)op->remote[at->index],
			.digest = kv_check_block(op->map, op->layers.first + at->layer, at->tensor,
						 (uint32_t)op->local[at->index]),
		};
		to->more = kv_check_next(op->map, op->layers.count, (uint32_t)op->n, at);
	} while (to->more && msg->count < KV_DIGESTS_MAX);
	return bytes;
}

bool kv_digests_step(struct kv_op *op)
{
	struct kv_peer *peer = op->peer;
	struct kv_unsent *unsent = &peer->link->checks->unsent;
	bool moved = false;

	do {
		if (unsent->msg.digests.op != op->id) /* else it found no credit before */
			kv_peer_posted(peer, fill(op, unsent));
		if (kv_peer_send(peer, &unsent->msg))
			return moved;
		moved = true;
		unsent->msg.digests.op = 0;
		op->walk = unsent->next;
	} while (unsent->more && peer->turn_bytes < KV_PIECE_BYTES);
	if (!unsent->more)
		kv_op_committed(op);
	return true;
}

bool kv_digests_prove(struct kv_op *op)
{
	struct kv_msg msg = { .type = KV_MSG_PROVE, .begin = kv_op_begin_of(op) };

	if (kv_peer_send(op->peer, &msg))
		return false;
	op->begun = true;
	kv_digests_begin(op);
	return true;
}
