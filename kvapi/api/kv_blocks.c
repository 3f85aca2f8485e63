/* SPDX-License-Identifier: Apache-2.0 */
/* kv_blocks.c -- kv_blocks_open and kv_revoke */
#include "kv_api.h"

#include <poll.h>

static int check_open(const struct kv_peer *peer, const struct kv_cache *cache, const int64_t *ids,
		      size_t n, struct kv_lease **lease_p, struct kv_error *err)
{
	static const char name[] = "blocks_open";
	int ret = kv_peer_use(peer, name, err);

	if (!ret)
		ret = kv_cache_use(cache, peer->engine, name, err);
	if (ret)
		return ret;
	if (!n || n > KV_LEASE_BLOCKS_MAX)
		return kv_fail(err, KV_ERR_ARG, name, "n is %zu; it must be 1..%d", n,
			       KV_LEASE_BLOCKS_MAX);
	if (!ids || !lease_p)
		return kv_fail(err, KV_ERR_ARG, name, "%s is NULL", ids ? "lease_p" : "ids");
	return kv_request_map(peer, cache, name, err);
}

int kv_blocks_open(struct kv_peer *peer, struct kv_cache *cache, const int64_t *ids, size_t n,
		   uint64_t tag, int64_t lifetime_ms, struct kv_lease **lease_p,
		   struct kv_error *err)
{
	struct kv_lease_request req = {
		.name = "blocks_open", .peer = peer, .cache = cache, .ids = ids, .n = n, .tag = tag
	};
	int ret = check_open(peer, cache, ids, n, lease_p, err);

	if (!ret)
		ret = kv_engine_deadline(lifetime_ms, req.name, &req.expires_ns, err);
	if (ret)
		return ret;
	req.layers.count = cache->geometry.layers;
	ret = kv_peer_claim_for(peer, kv_deadline_ns(peer->engine->op_timeout_ms), KV_ERR_BUSY,
				req.name, err);
	if (ret)
		return ret;
	ret = kv_peer_usable(peer, req.name, err);
	if (!ret)
		ret = kv_lease_open(&req, lease_p, err);
	if (!ret)
		kv_peer_progress(peer, true);
	kv_peer_release(peer);
	return ret;
}

uint64_t kv_lease_id(const struct kv_lease *lease)
{
	return lease->id;
}

/* The peer was closed while its claim was free: nothing can land, the lease is freed. */
static bool gone(const struct kv_peer *peer)
{
	return peer->state == KV_PEER_CLOSED;
}

/*
 * Beyond the caller's deadline: for the fence itself, and for another thread's call that has the
 * peer just then.
 */
#define PATIENCE_NS (KV_TICK_MS * KV_NS_PER_MS)

/* Takes the claim again; false: another call still holds it. */
static bool reclaim(struct kv_peer *peer, int64_t deadline_ns)
{
	int64_t now = kv_now_ns();

	return kv_claim_until(&peer->claim, (now < deadline_ns ? deadline_ns : now) + PATIENCE_NS);
}

/*
 * Waits for the writer's answer, REVOKED. Claim held before, and after it unless it returns false.
 */
static bool wait_for_writer(struct kv_peer *peer, struct kv_lease *lease, int64_t deadline_ns)
{
	bool claimed = true;

	while (claimed && peer->state == KV_PEER_UP && !lease->stopped &&
	       kv_now_ns() < deadline_ns) {
		uint32_t seq = kv_waiter_enter(&peer->waiter);

		kv_peer_progress(peer, true);
		if (!lease->stopped && peer->state == KV_PEER_UP) {
			kv_peer_release(peer);
			kv_service_sleep(peer->engine, &peer->waiter, seq, deadline_ns,
					 deadline_ns);
			claimed = reclaim(peer, deadline_ns);
		}
		kv_waiter_leave(&peer->waiter);
	}
	return claimed;
}

/*
 * The writer did not answer, or is gone: nothing of the whole connection may land any more. Claim
 * held before, and after it unless *claimed_p is false.
 */
static int fence(struct kv_peer *peer, struct kv_lease *lease, int64_t deadline_ns, bool *claimed_p,
		 struct kv_error *err)
{
	int64_t patience = kv_now_ns() + PATIENCE_NS;
	int ret = 0;

	if (peer->state == KV_PEER_UP)
		kv_peer_break(peer, KV_ERR_PEER_LOST,
			      "%s did not answer the revocation of lease %llu", peer->name,
			      (unsigned long long)lease->id);
	if (patience < deadline_ns)
		patience = deadline_ns;
	/* A process that was alive a moment ago may still end before the deadline. */
	while (!gone(peer) && !lease->stopped && (ret = tr_fence(peer->conn, 0, NULL)) &&
	       kv_now_ns() < patience) {
		kv_peer_release(peer);
		poll(NULL, 0, 1);
		*claimed_p = reclaim(peer, patience);
		if (!*claimed_p)
			return KV_ERR_BUSY;
	}
	if (gone(peer) || lease->stopped) /* fenced by another thread meanwhile */
		return 0;
	kv_peer_progress(peer, false);
	if (!ret) {
		if (peer->state == KV_PEER_LOST)
			peer->state = KV_PEER_FENCED;
		kv_lease_fenced(peer);
		return 0;
	}
	kv_peer_fail(peer, err, KV_ERR_BUSY, "revoke",
		     "%s has not stopped writing and its process lives", peer->name);
	kv_error_hint(
		err,
		"the blocks stay closed; revoke again once that process has answered or ended");
	return KV_ERR_BUSY;
}

/* With the claim, which it releases. */
static int revoke(struct kv_peer *peer, struct kv_lease *lease, int64_t deadline_ns,
		  struct kv_error *err)
{
	bool claimed = true;
	int ret = 0;

	if (!gone(peer))
		kv_lease_stop(lease);
	if (!gone(peer) && peer->state == KV_PEER_UP && !lease->stopped &&
	    tr_conn_places(peer->conn)) {
		kv_lease_close_here(lease);
		kv_count(peer->engine, leases_revoked, 1);
		kv_peer_progress(peer, true); /* sends REVOKE */
		kv_peer_release(peer);
		return 0;
	}
	if (!gone(peer)) {
		claimed = wait_for_writer(peer, lease, deadline_ns);
	}
	if (claimed && !gone(peer) && !lease->stopped)
		ret = fence(peer, lease, deadline_ns, &claimed, err);
	if (!claimed)
		return kv_peer_fail(peer, err, KV_ERR_BUSY, "revoke",
				    "another call on %s had not returned at the deadline",
				    peer->name);
	if (!ret && !gone(peer)) {
		kv_count(peer->engine, leases_revoked, 1);
		kv_lease_release(lease);
	}
	kv_peer_release(peer);
	return ret;
}

int kv_revoke(struct kv_lease *lease, int64_t timeout_ms, struct kv_error *err)
{
	struct kv_peer *peer;
	int64_t deadline;
	int ret;

	if (!lease)
		return kv_fail(err, KV_ERR_ARG, "revoke", "lease is NULL");
	ret = kv_engine_use(lease->engine, "revoke", err);
	if (!ret)
		ret = kv_engine_deadline(timeout_ms, "revoke", &deadline, err);
	if (ret)
		return ret;
	peer = kv_lease_hold_peer(lease);
	if (!peer)
		return kv_fail(err, KV_ERR_ARG, "revoke",
			       "the lease was revoked, or closed with its peer");
	ret = kv_peer_claim_for(peer, deadline, KV_ERR_BUSY, "revoke", err);
	if (!ret)
		ret = revoke(peer, lease, deadline, err);
	kv_peer_drop(peer);
	return ret;
}
