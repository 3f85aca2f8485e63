/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_verify.c -- the receiver's side of digests: each message is compared as it comes
 *
 * All of them are, also after the first that is wrong: the writer sends them without an answer. The
 * last one makes the commit, or refuses it.
 */
#include "kv_lease.h"

static struct kv_verify *verify_of(struct kv_peer *peer, const struct kv_incoming *in)
{
	return &peer->link->checks->in[in - peer->link->in];
}

void kv_verify_begin(struct kv_peer *peer, const struct kv_incoming *in)
{
	*verify_of(peer, in) = (struct kv_verify){ .is_wrong = false };
}

/* Which of the cache's blocks it is is the writer's word, and the writer's risk. */
static void compare(struct kv_verify *v, const struct kv_msg_begin *begin, const struct kv_map *map,
		    const struct kv_block_digest *d)
{
	uint32_t layer = begin->first + v->next.layer, tensor = v->next.tensor;

	if (v->is_wrong || kv_check_block(map, layer, tensor, d->block) == d->digest)
		return;
	v->is_wrong = true;
	v->wrong = (struct kv_msg_wrong){ .op = begin->op,
					  .layer = (uint16_t)layer,
					  .tensor = (uint8_t)tensor,
					  .block = d->block,
					  .index = v->next.index };
}

bool kv_verify_take(struct kv_peer *peer, const struct kv_incoming *in,
		    const struct kv_msg_digests *digests, bool *last_p)
{
	const struct kv_map *map = peer->link->map[in->begin.cache];
	struct kv_verify *v = verify_of(peer, in);
	uint64_t bytes = 0;
	bool more = true;

	for (int i = 0; i < digests->count; i++) {
		const struct kv_part *part = &map->part[v->next.tensor];

		bytes += part->len * part->rows;
		if (!more || digests->block[i].block >= map->cache->geometry.blocks ||
		    (i && bytes > KV_DIGESTS_BYTES))
			return false;
		compare(v, &in->begin, map, &digests->block[i]);
		more = kv_check_next(map, in->begin.count, in->begin.blocks, &v->next);
	}
	*last_p = !more;
	return true;
}

int kv_verify_result(struct kv_peer *peer, const struct kv_incoming *in,
		     const struct kv_lease *lease)
{
	const struct kv_verify *v = verify_of(peer, in);
	struct kv_op *op = lease ? lease->op : NULL;
	struct kv_error err;

	if (!v->is_wrong)
		return 0;
	kv_check_fail(peer, peer->link->map[in->begin.cache], &v->wrong,
		      op ? kv_op_name(op) : "commit", &err);
	kv_log_error(peer->engine->log, "a %s %s: %s", in->proves ? "read by" : "write from",
		     peer->name, err.message);
	if (op)
		kv_recv_stop(op, err.code, kv_deadline_ns(KV_STOP_MS), &err);
	return err.code;
}

bool kv_verify_flush(struct kv_peer *peer)
{
	struct kv_link *link = peer->link;

	KV_EACH_BIT (link->ack, i) {
		struct kv_msg msg = { .type = KV_MSG_WRONG, .wrong = link->checks->in[i].wrong };

		if (link->in[i].status != KV_ERR_CHECKSUM)
			continue;
		if (kv_peer_send(peer, &msg))
			return false;
		link->in[i].begun = false;
		kv_bit_clear(link->ack, i);
	}
	return true;
}
