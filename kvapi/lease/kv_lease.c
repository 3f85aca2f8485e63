/* SPDX-License-Identifier: Apache-2.0 */
/* kv_lease.c -- the receiver's side of a lease: blocks opened for one writer, and closed again */
#include "kv_lease.h"

#include <stdlib.h>
#include <string.h>

/* ---------------------------------------------------------------- objects */

static struct kv_lease *take_lease(struct kv_engine *engine)
{
	struct kv_lease *lease;

	pthread_mutex_lock(&engine->pool_lock);
	lease = engine->free_leases;
	if (lease)
		engine->free_leases = lease->next;
	pthread_mutex_unlock(&engine->pool_lock);
	if (!lease)
		lease = kv_fault(KV_LEASE_ALLOC) ? NULL : calloc(1, sizeof(*lease));
	if (lease) {
		lease->engine = engine;
		lease->next = NULL;
	}
	return lease;
}

static void give_lease(struct kv_lease *lease)
{
	struct kv_engine *engine = lease->engine;
	uint32_t *ids = lease->ids;
	size_t cap = lease->ids_cap;

	if (cap * sizeof(*ids) > KV_IDS_KEEP_BYTES) {
		free(ids);
		ids = NULL;
		cap = 0;
	}
	pthread_mutex_lock(&engine->pool_lock); /* kv_lease_hold_peer may be reading it */
	memset(&lease->magic, 0, sizeof(*lease) - offsetof(struct kv_lease, magic));
	lease->ids = ids;
	lease->ids_cap = cap;
	lease->next = engine->free_leases;
	engine->free_leases = lease;
	pthread_mutex_unlock(&engine->pool_lock);
}

struct kv_peer *kv_lease_hold_peer(struct kv_lease *lease)
{
	struct kv_peer *peer = NULL;

	pthread_mutex_lock(&lease->engine->pool_lock);
	if (lease->magic == KV_MAGIC_LEASE) {
		peer = lease->peer;
		kv_peer_hold(peer);
	}
	pthread_mutex_unlock(&lease->engine->pool_lock);
	return peer;
}

void kv_lease_pool_free(struct kv_engine *engine)
{
	while (engine->free_leases) {
		struct kv_lease *lease = engine->free_leases;

		engine->free_leases = lease->next;
		free(lease->ids);
		free(lease);
	}
}

struct kv_lease *kv_lease_find(struct kv_peer *peer, uint64_t id)
{
	unsigned int i = kv_id_place(id);
	struct kv_lease *lease = i < peer->link->leases_cap ? peer->link->lease[i] : NULL;

	return lease && lease->id == id ? lease : NULL;
}

/* ---------------------------------------------------------------- owners of blocks */

static int refuse_block(const struct kv_lease_request *req, size_t i, int code,
			struct kv_error *err)
{
	uint32_t blocks = req->cache->geometry.blocks;
	long long id = req->ids[i];

	if (code == KV_ERR_BLOCK_ID)
		kv_peer_fail(req->peer, err, code, req->name,
			     "ids[%zu] is %lld; the cache has blocks 0..%u", i, id, blocks - 1);
	else if (code == KV_ERR_DUP_BLOCK)
		kv_peer_fail(req->peer, err, code, req->name,
			     "ids[%zu] is block %lld, which an earlier index names", i, id);
	else
		kv_peer_fail(req->peer, err, code, req->name,
			     "ids[%zu] is block %lld, which another lease holds", i, id);
	if (err) {
		err->block_index = (int64_t)i;
		err->block_id = id;
	}
	return code;
}

/* Marks every block as the lease's, or none. */
static int own_blocks(struct kv_lease *lease, const struct kv_lease_request *req,
		      struct kv_error *err)
{
	struct kv_cache *cache = req->cache;
	int code = 0;
	size_t i;

	pthread_mutex_lock(&cache->lock);
	if (!cache->owner)
		cache->owner = kv_fault(KV_OWNERS)
				       ? NULL
				       : calloc(cache->geometry.blocks, sizeof(*cache->owner));
	if (!cache->owner) {
		pthread_mutex_unlock(&cache->lock);
		return kv_fail(err, KV_ERR_NOMEM, req->name,
			       "cannot allocate the owners of %u blocks", cache->geometry.blocks);
	}
	for (i = 0; i < req->n; i++) {
		uint64_t id = (uint64_t)req->ids[i];

		if (id >= cache->geometry.blocks)
			code = KV_ERR_BLOCK_ID;
		else if (cache->owner[id] == lease->serial)
			code = KV_ERR_DUP_BLOCK;
		else if (cache->owner[id])
			code = KV_ERR_LEASE;
		if (code)
			break;
		__atomic_store_n(&cache->owner[id], lease->serial, __ATOMIC_RELAXED);
		lease->ids[i] = (uint32_t)id;
	}
	for (size_t k = 0; code && k < i; k++)
		cache->owner[lease->ids[k]] = 0;
	pthread_mutex_unlock(&cache->lock);
	return code ? refuse_block(req, i, code, err) : 0;
}

static void disown_blocks(struct kv_lease *lease)
{
	pthread_mutex_lock(&lease->cache->lock);
	for (uint32_t i = 0; i < lease->n; i++) {
		uint32_t *owner = &lease->cache->owner[lease->ids[i]];

		if (*owner == lease->serial) /* not another lease's since */
			__atomic_store_n(owner, 0, __ATOMIC_RELAXED);
	}
	pthread_mutex_unlock(&lease->cache->lock);
}

/* ---------------------------------------------------------------- opening and releasing */

static int fill_lease(struct kv_lease *lease, const struct kv_lease_request *req, uint32_t index,
		      struct kv_error *err)
{
	if (req->n > lease->ids_cap) {
		uint32_t *ids =
			kv_fault(KV_LEASE_IDS) ? NULL : realloc(lease->ids, req->n * sizeof(*ids));

		if (!ids)
			return kv_fail(err, KV_ERR_NOMEM, req->name, "cannot keep %zu block ids",
				       req->n);
		lease->ids = ids;
		lease->ids_cap = req->n;
	}
	do
		lease->serial = atomic_fetch_add(&req->peer->engine->lease_serial, 1) + 1;
	while (!lease->serial);
	lease->id = kv_id(lease->serial, index);
	lease->peer = req->peer;
	lease->cache = req->cache;
	lease->tag = req->tag;
	lease->layers = req->layers;
	lease->expires_ns = req->expires_ns;
	lease->once = req->once;
	lease->open = true;
	return own_blocks(lease, req, err);
}

/*
 * In the order of their numbers: so a writer can see whether the message of a number is still to
 * come.
 */
static void announce_later(struct kv_lease *lease)
{
	struct kv_lease **at = &lease->peer->link->announce;

	while (*at)
		at = &(*at)->next;
	*at = lease;
	lease->peer->link->lease_work = true;
}

static void announce_no_more(struct kv_lease *lease)
{
	struct kv_lease **at = &lease->peer->link->announce;

	while (*at && *at != lease)
		at = &(*at)->next;
	if (*at)
		*at = lease->next;
}

int kv_lease_open(const struct kv_lease_request *req, struct kv_lease **lease_p,
		  struct kv_error *err)
{
	struct kv_link *link = req->peer->link;
	struct kv_lease *lease, **table;
	uint32_t i;
	int ret;

	for (i = 0; i < link->leases_cap && link->lease[i]; i++)
		;
	if (i == KV_LEASES_MAX)
		return kv_peer_fail(req->peer, err, KV_ERR_BUSY, req->name,
				    "%d leases are open towards %s", KV_LEASES_MAX,
				    req->peer->name);
	table = kv_table_grow(link->lease, &link->leases_cap, i + 1, sizeof(*table));
	if (table)
		link->lease = table;
	lease = table ? take_lease(req->peer->engine) : NULL;
	if (!lease)
		return kv_fail(err, KV_ERR_NOMEM, req->name, "cannot allocate a lease");
	ret = fill_lease(lease, req, i, err);
	if (ret) {
		give_lease(lease);
		return ret;
	}
	lease->n = (uint32_t)req->n;
	lease->magic = KV_MAGIC_LEASE;
	link->lease[i] = lease;
	link->leases++;
	if (i >= link->leases_end)
		link->leases_end = i + 1;
	announce_later(lease);
	atomic_fetch_add(&req->cache->users, 1);
	kv_peer_due(req->peer, req->expires_ns);
	kv_count(req->peer->engine, leases_opened, 1);
	kv_count(req->peer->engine, leases_open, 1);
	*lease_p = lease;
	return 0;
}

void kv_lease_release(struct kv_lease *lease)
{
	struct kv_peer *peer = lease->peer;
	struct kv_link *link = peer->link;

	announce_no_more(lease);
	disown_blocks(lease);
	link->lease[kv_id_place(lease->id)] = NULL;
	link->leases--;
	while (link->leases_end && !link->lease[link->leases_end - 1])
		link->leases_end--;
	atomic_fetch_sub(&lease->cache->users, 1);
	if (lease->magic == KV_MAGIC_LEASE) /* else kv_lease_close_here has counted it */
		kv_count(peer->engine, leases_open, -1);
	give_lease(lease);
}

/* ---------------------------------------------------------------- stopping */

void kv_recv_stop(struct kv_op *op, int code, int64_t stop_ns, const struct kv_error *cause)
{
	if (!kv_op_begin_stop(op, code, cause))
		return;
	op->deadline_ns = stop_ns;
	kv_peer_due(op->peer, stop_ns);
	kv_lease_stop(op->lease); /* ends the operation when nothing can land any more */
}

void kv_stop(struct kv_op *op, int code, int64_t stop_ns, const struct kv_error *cause)
{
	if (op->kind == KV_OP_RECV && op->stage != KV_STAGE_IDLE)
		kv_recv_stop(op, code, stop_ns, cause);
	else
		kv_op_stop(op, code, stop_ns, cause);
}

/* The writer did not answer in time: the operation ends, the blocks stay closed until the fence. */
static void orphan_lease(struct kv_lease *lease)
{
	struct kv_peer *peer = lease->peer;
	struct kv_op *op = lease->op;

	lease->op = NULL;
	lease->orphan = true;
	kv_op_end(op, op->end_code, &op->err);
	kv_peer_break(peer, KV_ERR_PEER_LOST,
		      "%s did not stop writing to revoked blocks within %d ms", peer->name,
		      KV_STOP_MS);
}

void kv_lease_stop(struct kv_lease *lease)
{
	lease->open = false;
	if (lease->revoke || lease->stopped)
		return;
	lease->revoke = true;
	announce_no_more(lease);
	if (lease->announced)
		lease->peer->link->lease_work = true;
	else
		kv_lease_stopped(lease); /* no LEASE was sent for it */
}

void kv_lease_close_here(struct kv_lease *lease)
{
	struct kv_engine *engine = lease->engine;

	disown_blocks(lease);
	lease->orphan = true;
	pthread_mutex_lock(&engine->pool_lock);
	lease->magic = KV_MAGIC_DEAD;
	pthread_mutex_unlock(&engine->pool_lock);
	kv_count(engine, leases_open, -1);
}

/* No byte can land any more. The lease may be gone after this. */
void kv_lease_stopped(struct kv_lease *lease)
{
	struct kv_op *op = lease->op;

	lease->open = false;
	lease->stopped = true;
	lease->op = NULL;
	kv_waiter_wake(&lease->peer->waiter);
	if (lease->orphan || op)
		kv_lease_release(lease);
	if (op)
		kv_op_end(op, op->end_code ? op->end_code : KV_ERR_REVOKED, &op->err);
}

void kv_lease_fenced(struct kv_peer *peer)
{
	for (unsigned int i = 0; i < peer->link->leases_end; i++) {
		struct kv_lease *lease = peer->link->lease[i];

		if (!lease || lease->stopped)
			continue;
		kv_count(peer->engine, leases_fenced, 1);
		kv_lease_stopped(lease);
	}
}

void kv_lease_lost(struct kv_peer *peer)
{
	for (unsigned int i = 0; i < peer->link->leases_end; i++) {
		struct kv_lease *lease = peer->link->lease[i];
		struct kv_op *op = lease ? lease->op : NULL;

		if (!lease)
			continue;
		lease->unfinished = lease->open && !op;
		lease->open = false;
		kv_waiter_wake(&lease->peer->waiter);
		if (!op)
			continue;
		/* The operation ends now; the blocks stay closed until the fence. */
		lease->op = NULL;
		lease->orphan = true;
		kv_op_lost(op);
	}
}

void kv_lease_close_all(struct kv_peer *peer)
{
	for (unsigned int i = 0; i < peer->link->leases_end; i++) {
		struct kv_lease *lease = peer->link->lease[i];

		if (!lease)
			continue;
		lease->open = false;
		if (lease->op)
			kv_recv_stop(lease->op, KV_ERR_CLOSED, kv_deadline_ns(KV_STOP_MS), NULL);
	}
}

void kv_lease_free_all(struct kv_peer *peer)
{
	for (unsigned int i = peer->link->leases_end; i-- > 0;) {
		struct kv_lease *lease = peer->link->lease[i];

		if (!lease)
			continue;
		if (lease->op)
			kv_op_end(lease->op, KV_ERR_CLOSED, NULL);
		kv_lease_release(lease);
	}
}

/* ---------------------------------------------------------------- time */

static void expire_one(struct kv_lease *lease, int64_t now)
{
	struct kv_peer *peer = lease->peer;
	struct kv_arrival arrival = {
		.kind = KV_ARRIVAL_EXPIRED,
		.status = KV_ERR_TIMEOUT,
		.peer = peer->owned ? peer : NULL,
		.cache = lease->cache,
		.layers = lease->layers,
		.tag = lease->tag,
		.lease = lease->id,
		.blocks = lease->n,
		.user = atomic_load(&peer->user),
	};

	if (now < lease->expires_ns) {
		kv_peer_due(peer, lease->expires_ns);
		return;
	}
	if (!lease->expired) {
		lease->expired = true;
		kv_count(peer->engine, leases_expired, 1);
		kv_lease_stop(lease);
	}
	if (!lease->expired_queued)
		lease->expired_queued = kv_arrivals_push(peer->engine, &arrival);
	if (!lease->expired_queued)
		kv_peer_due(peer, now + KV_TICK_MS * KV_NS_PER_MS);
}

/*
 * A receive whose time is up stops its lease first; if the writer does not answer, the connection
 * is fenced.
 */
static void expire_receive(struct kv_lease *lease, int64_t now)
{
	struct kv_op *op = lease->op;
	struct kv_error err;

	if (now < op->deadline_ns) {
		kv_peer_due(lease->peer, op->deadline_ns);
	} else if (op->stage != KV_STAGE_STOP) {
		int code = kv_op_late(op, &err);

		kv_recv_stop(op, code, kv_deadline_ns(KV_STOP_MS), &err);
	} else {
		orphan_lease(lease);
	}
}

void kv_lease_expire(struct kv_peer *peer, int64_t now)
{
	for (unsigned int i = 0; i < peer->link->leases_end; i++) {
		struct kv_lease *lease = peer->link->lease[i];

		if (lease && lease->op)
			expire_receive(lease, now);
		else if (lease && !lease->once)
			expire_one(lease, now);
	}
}
