/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_lease_wire.c -- what the receiver sends a writer about its leases, and what the writer answers
 */
#include "kv_lease.h"

bool kv_recv_is_open(const struct kv_op *op)
{
	const struct kv_lease *lease = kv_lease_find(op->peer, op->grant);

	return lease && !lease->stopped;
}

/* ---------------------------------------------------------------- telling */

static bool announce_lease(struct kv_lease *lease)
{
	struct kv_msg msg = { .type = KV_MSG_LEASE,
			      .lease = {
				      .lease = lease->id,
				      .tag = lease->tag,
				      .cache = (uint8_t)lease->cache->geometry.cache_id,
				      .flags = lease->once ? KV_LEASE_ONCE : 0,
				      .first = (uint16_t)lease->layers.first,
				      .count = (uint16_t)lease->layers.count,
				      .blocks = lease->n,
			      } };

	lease->announced = !kv_peer_send(lease->peer, &msg);
	return lease->announced;
}

/* The next ids, consecutive ones as one run. */
static uint32_t collect_runs(const struct kv_lease *lease, struct kv_msg_ids *ids)
{
	uint32_t at = lease->sent;

	while (at < lease->n && ids->runs < KV_RUNS_MAX) {
		struct kv_run *run = &ids->run[ids->runs++];

		run->first = lease->ids[at++];
		run->count = 1;
		while (at < lease->n && run->count < UINT16_MAX &&
		       lease->ids[at] == lease->ids[at - 1] + 1) {
			run->count++;
			at++;
		}
	}
	return at;
}

static bool send_ids(struct kv_lease *lease)
{
	while (lease->sent < lease->n) {
		struct kv_msg msg = { .type = KV_MSG_IDS };
		uint32_t next;

		msg.ids.lease = lease->id;
		msg.ids.at = lease->sent;
		msg.ids.runs = 0;
		next = collect_runs(lease, &msg.ids);
		if (kv_peer_send(lease->peer, &msg))
			return false;
		lease->sent = next;
	}
	return true;
}

static bool send_revoke(struct kv_lease *lease)
{
	struct kv_msg msg = { .type = KV_MSG_REVOKE, .id.lease = lease->id };

	lease->revoke_sent = !kv_peer_send(lease->peer, &msg);
	return lease->revoke_sent;
}

bool kv_lease_flush(struct kv_peer *peer)
{
	struct kv_link *link = peer->link;

	if (!link->lease_work)
		return true;
	/* First: a block may be open under another lease already (kv_lease_close_here). */
	for (unsigned int i = 0; i < link->leases_end; i++) {
		struct kv_lease *lease = link->lease[i];

		if (lease && !lease->stopped && lease->revoke && !lease->revoke_sent &&
		    !send_revoke(lease))
			return false;
	}
	for (struct kv_lease *lease; (lease = link->announce); link->announce = lease->next)
		if ((!lease->announced && !announce_lease(lease)) || !send_ids(lease))
			return false;
	link->lease_work = false;
	return true;
}

/* ---------------------------------------------------------------- hearing */

/* The number of a lease that this engine has given out: it may be gone by now. */
static bool was_given(const struct kv_peer *peer, uint64_t id)
{
	uint32_t serial = kv_id_serial(id);

	return serial && !(id >> KV_ID_BITS) && kv_id_place(id) < KV_LEASES_MAX &&
	       (int32_t)(atomic_load(&peer->engine->lease_serial) - serial) >= 0;
}

int kv_lease_revoked(struct kv_peer *peer, uint64_t id)
{
	struct kv_lease *lease = kv_lease_find(peer, id);

	if (!lease || !lease->revoke_sent || lease->stopped || kv_incoming_uses(peer, id))
		return KV_ERR_PROTOCOL;
	kv_lease_stopped(lease);
	return 0;
}

bool kv_lease_allows(struct kv_peer *peer, const struct kv_msg_begin *begin)
{
	const struct kv_lease *lease = kv_lease_find(peer, begin->lease);

	if (!lease) /* released meanwhile, by the last commit of its layers perhaps */
		return was_given(peer, begin->lease);
	return lease->cache == peer->link->map[begin->cache]->cache && begin->blocks <= lease->n &&
	       lease->sent == lease->n && !lease->stopped;
}

static bool any_done(const struct kv_lease *lease, uint32_t first, uint32_t count)
{
	for (uint32_t l = first; l < first + count; l++)
		if (kv_bit(lease->done, l))
			return true;
	return false;
}

/*
 * The sender's layers or blocks are not those that this side receives: the receive cannot succeed
 * any more.
 */
static int disagree(struct kv_lease *lease, const struct kv_msg_begin *begin)
{
	struct kv_error err;

	if (lease->op) {
		kv_peer_fail(
			lease->peer, &err, KV_ERR_GEOMETRY, "recv_blocks",
			"the sender names layers %u + %u and %u blocks; layers %u + %u and %u blocks are open",
			begin->first, begin->count, begin->blocks, lease->layers.first,
			lease->layers.count, lease->n);
		kv_recv_stop(lease->op, KV_ERR_GEOMETRY, kv_deadline_ns(KV_STOP_MS), &err);
	}
	return KV_ERR_GEOMETRY;
}

int kv_lease_commit(struct kv_peer *peer, const struct kv_msg_begin *begin,
		    struct kv_lease **lease_p)
{
	struct kv_lease *lease = kv_lease_find(peer, begin->lease);
	const struct kv_cache *cache = peer->link->map[begin->cache]->cache;
	uint32_t end = (uint32_t)begin->first + begin->count;

	if (!begin->lease)
		return cache->geometry.flags & KV_CACHE_OPEN ? 0 : KV_ERR_LEASE;
	if (!lease || !lease->open || (!lease->once && kv_now_ns() >= lease->expires_ns))
		return KV_ERR_REVOKED;
	if (lease->cache != cache || begin->blocks > lease->n)
		return KV_ERR_LEASE;
	if (begin->first < lease->layers.first || end > lease->layers.first + lease->layers.count ||
	    (lease->once && begin->blocks != lease->n))
		return disagree(lease, begin);
	if (lease->once && any_done(lease, begin->first, begin->count))
		return KV_ERR_LEASE;
	*lease_p = lease;
	return 0;
}

void kv_lease_committed(struct kv_lease *lease, struct kv_layers layers)
{
	struct kv_op *op = lease->op;

	for (uint32_t l = layers.first; l < layers.first + layers.count; l++)
		kv_bit_set(lease->done, l);
	lease->layers_done += layers.count;
	if (lease->layers_done < lease->layers.count)
		return;
	lease->op = NULL;
	kv_lease_release(lease);
	if (op)
		kv_op_end(op, 0, NULL);
}

int kv_lease_aborted(struct kv_peer *peer, uint64_t id, int status)
{
	struct kv_lease *lease = kv_lease_find(peer, id);
	struct kv_error err;
	int code = status == KV_ERR_GEOMETRY ? KV_ERR_GEOMETRY : KV_ERR_REVOKED;

	if (lease ? lease->stopped || lease->sent < lease->n : !was_given(peer, id))
		return KV_ERR_PROTOCOL;
	if (!lease || !lease->op)
		return 0; /* it ended meanwhile, or was opened by kv_blocks_open and goes on */
	kv_peer_fail(peer, &err, code, "recv_blocks", "the sender gave up: %s",
		     kv_error_text(status));
	/* Other operations may still be writing: the lease is stopped like any other. */
	kv_recv_stop(lease->op, code, kv_deadline_ns(KV_STOP_MS), &err);
	return 0;
}
