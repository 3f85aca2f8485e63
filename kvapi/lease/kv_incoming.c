/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_incoming.c -- the receiver's side of an operation: BEGIN and notify make a commit, a commit
 * makes an arrival, and only then is it acknowledged
 *
 * A writer uses a slot again only after the acknowledgement of its last commit, or after ABORT: so
 * one record per slot holds everything that is under way, and nothing here grows.
 */
#include "kv_lease.h"

/* 0, NOMEM, or PROTOCOL: the peer has no such slot. */
static int incoming_at(struct kv_peer *peer, uint64_t op, struct kv_incoming **in_p)
{
	unsigned int i = kv_id_place(op);
	struct kv_link *link = peer->link;
	struct kv_incoming *in;

	if (i >= KV_OPS_MAX || op >> KV_ID_BITS)
		return KV_ERR_PROTOCOL;
	in = kv_table_grow(link->in, &link->ins, i + 1, sizeof(*in));
	if (!in)
		return KV_ERR_NOMEM;
	link->in = in;
	*in_p = &in[i];
	return 0;
}

static unsigned int incoming_index(const struct kv_peer *peer, const struct kv_incoming *in)
{
	return (unsigned int)(in - peer->link->in);
}

static bool push_arrival(struct kv_peer *peer, const struct kv_msg_begin *begin)
{
	struct kv_arrival arrival = {
		.kind = KV_ARRIVAL_BLOCKS,
		.peer = peer->owned ? peer : NULL,
		.cache = peer->link->map[begin->cache]->cache,
		.layers = { begin->first, begin->count },
		.tag = begin->tag,
		.lease = begin->lease,
		.blocks = begin->blocks,
		.bytes = begin->bytes,
		.user = atomic_load(&peer->user),
	};

	return kv_peer_tell_up(peer) && kv_arrivals_push(peer->engine, &arrival);
}

static void answer(struct kv_peer *peer, struct kv_incoming *in, int status)
{
	in->status = status;
	kv_bit_set(peer->link->ack, incoming_index(peer, in));
}

/* BEGIN and notify are both here, every byte is visible: take the commit or refuse it. */
static void incoming_commit(struct kv_peer *peer, struct kv_incoming *in)
{
	const struct kv_msg_begin *begin = &in->begin;
	struct kv_layers layers = { begin->first, begin->count };
	struct kv_lease *lease = NULL;
	int status = in->proves ? 0 : kv_lease_commit(peer, begin, &lease);

	in->notified = false;
	if (!status && peer->link->checks)
		status = kv_verify_result(peer, in, lease);
	if (status || in->proves) {
		answer(peer, in, status);
		return;
	}
	kv_count_at(&peer->traffic->blocks_in, begin->blocks);
	kv_count_at(&peer->traffic->bytes_in, begin->bytes);
	if (lease && lease->once) {
		kv_lease_committed(lease, layers); /* ends kv_recv_blocks; no arrival is queued */
		answer(peer, in, 0);
	} else if (push_arrival(peer, begin)) {
		answer(peer, in, 0);
	} else {
		kv_bit_set(peer->link->withheld, incoming_index(peer, in));
		answer(peer, in, KV_ACK_VISIBLE);
	}
}

/* Whether BEGIN agrees with the cache that both ends have. */
static bool is_sane(const struct kv_peer *peer, const struct kv_msg_begin *begin)
{
	const struct kv_map *map = peer->link->map[begin->cache];
	const struct kv_cache *cache = map->cache;

	return cache && map->meets &&
	       (uint32_t)begin->first + begin->count <= cache->geometry.layers &&
	       begin->blocks <= cache->geometry.blocks &&
	       begin->bytes == map->block_bytes * begin->blocks * begin->count;
}

/* A slot is used again under a later generation. */
static bool is_later(const struct kv_incoming *in, uint64_t op)
{
	return (int32_t)(kv_id_serial(op) - kv_id_serial(in->begin.op)) > 0;
}

int kv_incoming_begin(struct kv_peer *peer, const struct kv_msg_begin *begin)
{
	struct kv_incoming *in;
	int ret = incoming_at(peer, begin->op, &in);

	if (ret)
		return ret;
	if (in->begun || !is_later(in, begin->op) || !is_sane(peer, begin) ||
	    (in->notified && in->notified_op != begin->op) ||
	    (begin->lease && !kv_lease_allows(peer, begin)))
		return KV_ERR_PROTOCOL;
	in->begun = true;
	in->begin = *begin;
	in->proves = false;
	if (peer->link->checks)
		kv_verify_begin(peer, in);
	else if (in->notified)
		incoming_commit(peer, in);
	return 0;
}

/*
 * Its commit was taken and waits for its acknowledgement: any further message about it is an error.
 */
static bool is_committed(const struct kv_peer *peer, const struct kv_incoming *in)
{
	unsigned int i = incoming_index(peer, in);

	return kv_bit(peer->link->ack, i) || kv_bit(peer->link->withheld, i);
}

int kv_incoming_notified(struct kv_peer *peer, uint64_t value)
{
	struct kv_incoming *in;
	int ret = incoming_at(peer, value, &in);

	if (ret)
		return ret;
	if (in->notified || is_committed(peer, in) ||
	    (in->begun ? in->begin.op != value : !is_later(in, value)))
		return KV_ERR_PROTOCOL;
	in->notified = true; /* it may overtake its BEGIN */
	in->notified_op = value;
	if (in->begun && !peer->link->checks)
		incoming_commit(peer, in);
	return 0;
}

/*
 * Of an operation that was begun and not committed, or of a kv_send_blocks that ended before its
 * BEGIN and names the lease that it will not fill.
 */
int kv_incoming_abort(struct kv_peer *peer, const struct kv_msg_abort *abort)
{
	struct kv_incoming *in;
	int ret = incoming_at(peer, abort->op, &in);

	if (ret)
		return ret;
	if ((in->notified && !(in->begun && peer->link->checks)) || is_committed(peer, in) ||
	    abort->status >= 0)
		return KV_ERR_PROTOCOL;
	if (in->begun
		    ? in->begin.op != abort->op || (abort->lease && abort->lease != in->begin.lease)
		    : !abort->lease || !is_later(in, abort->op))
		return KV_ERR_PROTOCOL;
	in->begun = in->notified = false;
	in->begin.op = abort->op;
	if (!abort->lease)
		return 0;
	return kv_lease_aborted(peer, abort->lease, abort->status);
}

/* In the place of BEGIN and notify: what a peer has read has left long ago. */
int kv_incoming_prove(struct kv_peer *peer, const struct kv_msg_begin *begin)
{
	struct kv_incoming *in;
	int ret = incoming_at(peer, begin->op, &in);

	if (ret)
		return ret;
	if (!peer->link->checks || in->notified || begin->lease || kv_incoming_begin(peer, begin) ||
	    !(peer->link->map[begin->cache]->cache->geometry.flags & KV_CACHE_READABLE))
		return KV_ERR_PROTOCOL;
	in->proves = in->notified = true;
	in->notified_op = begin->op;
	return 0;
}

int kv_incoming_digests(struct kv_peer *peer, const struct kv_msg_digests *digests)
{
	struct kv_incoming *in;
	int ret = incoming_at(peer, digests->op, &in);
	bool last;

	if (ret)
		return ret;
	if (!peer->link->checks || !in->begun || !in->notified || in->begin.op != digests->op ||
	    !kv_verify_take(peer, in, digests, &last))
		return KV_ERR_PROTOCOL;
	if (last)
		incoming_commit(peer, in);
	return 0;
}

bool kv_incoming_uses(const struct kv_peer *peer, uint64_t lease)
{
	for (unsigned int i = 0; i < peer->link->ins; i++) {
		const struct kv_incoming *in = &peer->link->in[i];

		if (in->begun && in->begin.lease == lease && !is_committed(peer, in))
			return true;
	}
	return false;
}

bool kv_incoming_open(const struct kv_peer *peer)
{
	const struct kv_link *link = peer->link;

	for (unsigned int i = 0; i < link->ins; i++)
		if (link->in[i].begun && !is_committed(peer, &link->in[i]))
			return true;
	return false;
}

void kv_incoming_retry(struct kv_peer *peer)
{
	uint64_t *withheld = peer->link->withheld;

	KV_EACH_BIT (withheld, i) {
		if (!push_arrival(peer, &peer->link->in[i].begin))
			return;
		kv_bit_clear(withheld, i);
		answer(peer, &peer->link->in[i], 0);
	}
}

static bool push_unfinished(struct kv_peer *peer, int status, struct kv_arrival arrival)
{
	arrival.kind = KV_ARRIVAL_UNFINISHED;
	arrival.status = status;
	arrival.peer = peer;
	arrival.user = atomic_load(&peer->user);
	return kv_arrivals_push(peer->engine, &arrival);
}

bool kv_incoming_tell_unfinished(struct kv_peer *peer, int status)
{
	struct kv_link *link = peer->link;

	for (unsigned int i = 0; i < link->leases_end; i++) {
		struct kv_lease *l = link->lease[i];

		if (l && l->unfinished &&
		    !push_unfinished(peer, status,
				     (struct kv_arrival){ .cache = l->cache,
							  .layers = l->layers,
							  .tag = l->tag,
							  .lease = l->id,
							  .blocks = l->n }))
			return false;
		if (l)
			l->unfinished = false;
	}
	for (unsigned int i = 0; i < link->ins; i++) {
		const struct kv_msg_begin *b = &link->in[i].begin;

		if (link->in[i].begun && !link->in[i].proves && !b->lease &&
		    !is_committed(peer, &link->in[i]) &&
		    !push_unfinished(peer, status,
				     (struct kv_arrival){ .cache = link->map[b->cache]->cache,
							  .layers = { b->first, b->count },
							  .tag = b->tag,
							  .blocks = b->blocks,
							  .bytes = b->bytes }))
			return false;
		link->in[i].begun = false;
	}
	return true;
}

/* As many acknowledgements as fit into one message. */
static void collect_acks(const struct kv_link *link, struct kv_msg_ack *ack)
{
	KV_EACH_BIT (link->ack, i) {
		if (ack->count == KV_ACKS_MAX)
			return;
		ack->ack[ack->count++] =
			(struct kv_ack){ link->in[i].begin.op, link->in[i].status };
	}
}

bool kv_incoming_flush(struct kv_peer *peer)
{
	struct kv_link *link = peer->link;

	if (link->checks && !kv_verify_flush(peer))
		return false;
	while (kv_bits_any(link->ack)) {
		struct kv_msg msg = { .type = KV_MSG_ACK, .ack.count = 0 };

		collect_acks(link, &msg.ack);
		if (kv_peer_send(peer, &msg))
			return false;
		for (int i = 0; i < msg.ack.count; i++) {
			unsigned int at = kv_id_place(msg.ack.ack[i].op);

			link->in[at].begun = msg.ack.ack[i].status == KV_ACK_VISIBLE;
			kv_bit_clear(link->ack, at);
		}
	}
	return true;
}
