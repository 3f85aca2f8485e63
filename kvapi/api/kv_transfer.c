/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_transfer.c -- write, read, send and receive: from a public call to a running operation, and to
 * its end; every check is made before the first byte moves
 */
#include "kv_api.h"

/* A public call: its arguments, and the results of their checks. */
struct request {
	int kind;
	bool blocking;
	struct kv_peer *peer;
	struct kv_cache *cache;
	struct kv_layers layers;
	const struct kv_options *opts;
	/* Of the call. A send or receive has no remote ids, and the tag that joins the two. */
	const int64_t *local, *remote;
	size_t n;
	uint64_t tag;
};

static const char *request_name(const struct request *req)
{
	return kv_op_kind_name(req->kind);
}

static bool two_sided(int kind)
{
	return kind == KV_OP_SEND || kind == KV_OP_RECV;
}

/* kv_options as programs of 0.1.0 were compiled with it ends here. */
enum { OPTIONS_FIRST = offsetof(struct kv_options, events) };

static bool has_start(const struct request *req)
{
	const struct kv_options *opts = req->opts;

	return opts && opts->size > OPTIONS_FIRST && (opts->events || opts->stream);
}

static int check_options(const struct request *req, const char *name, struct kv_error *err)
{
	const struct kv_options *opts = req->opts;
	int64_t deadline;

	if (!opts)
		return 0;
	if (opts->size != sizeof(*opts) && opts->size != OPTIONS_FIRST)
		return kv_fail(err, KV_ERR_ARG, name,
			       "kv_options.size is %zu; this version knows %zu", opts->size,
			       sizeof(*opts));
	if (has_start(req) && (req->kind == KV_OP_RECV || (opts->events && opts->stream)))
		return kv_fail(err, KV_ERR_ARG, name, "%s",
			       req->kind == KV_OP_RECV ? "a receive has neither events nor a stream"
						       : "events and a stream exclude each other");
	return kv_engine_deadline(opts->timeout_ms, name, &deadline, err);
}

int kv_request_map(const struct kv_peer *peer, const struct kv_cache *cache, const char *name,
		   struct kv_error *err)
{
	const struct kv_map *map = peer->link->map[cache->geometry.cache_id];

	if (map->cache != cache) {
		kv_peer_fail(peer, err, KV_ERR_GEOMETRY, name,
			     "%s and this engine did not both have cache %u when they connected",
			     peer->name, cache->geometry.cache_id);
		kv_error_hint(err, "register caches before kv_listen and kv_connect");
		return KV_ERR_GEOMETRY;
	}
	if (!map->meets)
		return kv_peer_fail(
			peer, err, KV_ERR_GEOMETRY, name,
			"rank %u of %u here and rank %u of %u at %s share no part of a block",
			cache->geometry.tp_rank, cache->geometry.tp_size, map->remote.tp_rank,
			map->remote.tp_size, peer->name);
	return 0;
}

static int check_ids(const struct request *req, struct kv_error *err)
{
	bool remote = !two_sided(req->kind);
	size_t max = remote ? KV_CALL_BLOCKS_MAX : KV_LEASE_BLOCKS_MAX;

	if (req->n > max)
		return kv_fail(err, KV_ERR_ARG, request_name(req), "n is %zu; the limit is %zu",
			       req->n, max);
	if (req->n && (!req->local || (remote && !req->remote)))
		return kv_fail(err, KV_ERR_ARG, request_name(req), "%s is NULL",
			       !remote	     ? "ids"
			       : !req->local ? "local_ids"
					     : "remote_ids");
	return 0;
}

/* Everything but the ids, which need the claim. */
static int check_call(struct request *req, struct kv_error *err)
{
	int ret = kv_peer_use(req->peer, request_name(req), err);

	if (!ret)
		ret = kv_cache_use(req->cache, req->peer->engine, request_name(req), err);
	if (!ret)
		ret = check_options(req, request_name(req), err);
	if (!ret)
		ret = kv_cache_layers(req->cache, &req->layers, request_name(req), err);
	if (!ret)
		ret = check_ids(req, err);
	if (!ret)
		ret = kv_request_map(req->peer, req->cache, request_name(req), err);
	return ret;
}

/* ---------------------------------------------------------------- under the claim */

static bool lacks_slot(const struct kv_op *op)
{
	return op->stage == KV_STAGE_IDLE && !kv_op_slot_free(op->peer);
}

/* When the application is first asked whether it gives the call up; never if it set no function. */
static int64_t ask_at(const struct kv_op *op)
{
	return op->engine->interrupted ? kv_deadline_ns(KV_ASK_MS) : KV_NO_DEADLINE;
}

/*
 * Waits for a slot, or the deadline. Claim held before, and after unless another call still holds
 * it (op->unclaimed): false. The operation is collected meanwhile: what ends it, a revoke or the
 * peer's close, ends the waiting too.
 */
static bool wait_for_slot(struct kv_op *op)
{
	struct kv_peer *peer = op->peer;
	int64_t ask_ns = ask_at(op);
	bool given_up = false;

	kv_op_collect(op);
	while (lacks_slot(op) && kv_now_ns() < op->deadline_ns) {
		uint32_t seq = kv_waiter_enter(&peer->waiter);

		kv_peer_progress(peer, true);
		if (lacks_slot(op)) {
			kv_peer_release(peer);
			kv_service_sleep(op->engine, &peer->waiter, seq,
					 kv_sooner(ask_ns, op->deadline_ns), op->deadline_ns);
			given_up = kv_engine_given_up(op->engine, &ask_ns);
			op->unclaimed = !kv_claim_until(
				&peer->claim, op->deadline_ns + KV_SLACK_MS * KV_NS_PER_MS);
		}
		kv_waiter_leave(&peer->waiter);
		if (op->unclaimed)
			return false;
		if (given_up && op->stage == KV_STAGE_IDLE)
			kv_op_end(op, KV_ERR_CANCELLED, NULL);
	}
	kv_op_uncollect(op);
	return true;
}

/* The claim could not be taken before the deadline. */
static int request_unclaimed(struct kv_op *op, struct kv_error *err)
{
	return kv_peer_fail(op->peer, err, KV_ERR_TIMEOUT, kv_op_name(op),
			    "another call on %s had not returned at the deadline", op->peer->name);
}

/* Opens the blocks of a receive; its end comes with the last layer. Claim held. */
int kv_recv_start(struct kv_op *op, struct kv_error *err)
{
	struct kv_lease_request req = { .name = kv_op_name(op),
					.peer = op->peer,
					.cache = op->cache,
					.layers = op->layers,
					.ids = op->local,
					.n = op->n,
					.tag = op->tag,
					.expires_ns = op->deadline_ns,
					.once = true };
	int ret = kv_lease_open(&req, &op->lease, err);

	if (ret)
		return ret;
	op->lease->op = op;
	op->grant = op->lease->id;
	kv_op_receives(op);
	kv_peer_progress(op->peer, true);
	return 0;
}

/* When its caller returns: the digests of a read come after its bytes. */
static bool needs_ids(const struct kv_op *op)
{
	if (op->blocking || op->stage > KV_STAGE_FLIGHT)
		return false;
	return op->stage < KV_STAGE_FLIGHT || (op->kind == KV_OP_READ && op->peer->link->checks);
}

/* Takes a slot and posts what the transport takes now; a receive opens its blocks. */
static int request_start(struct kv_op *op, bool wait, struct kv_error *err)
{
	int ret;

	if (op->kind == KV_OP_RECV)
		return kv_recv_start(op, err);
	ret = kv_op_activate(op, err);
	if (ret == KV_ERR_BUSY && wait) {
		if (!wait_for_slot(op))
			return request_unclaimed(op, err);
		ret = op->stage == KV_STAGE_ENDED ? kv_op_result(op, err) : kv_op_activate(op, err);
	}
	if (ret)
		return ret;
	kv_op_progress(op);
	if (needs_ids(op)) {
		struct kv_error cause;

		ret = kv_op_keep_ids(op, &cause);
		if (ret)
			kv_stop(op, ret, kv_deadline_ns(KV_STOP_MS), &cause);
	}
	return 0;
}

static void request_fill(struct kv_op *op, const struct request *req)
{
	const struct kv_options *opts = req->opts;

	op->kind = (uint8_t)req->kind;
	op->peer = req->peer;
	kv_peer_hold(op->peer);
	op->cache = req->cache;
	op->map = req->peer->link->map[req->cache->geometry.cache_id];
	op->layers = req->layers;
	op->local = req->local;
	op->remote = req->remote;
	op->n = req->n;
	op->bytes = op->map->block_bytes * op->n * op->layers.count;
	op->blocking = req->blocking || (opts && opts->group);
	op->tag = two_sided(req->kind) || !opts ? req->tag : opts->tag;
	op->grant = req->kind == KV_OP_WRITE && opts ? opts->lease : 0;
	op->timeout_ms = opts && opts->timeout_ms ? opts->timeout_ms : op->engine->op_timeout_ms;
	op->begun_ns = kv_now_ns();
	op->deadline_ns = op->begun_ns + op->timeout_ms * KV_NS_PER_MS;
}

/* Checked now, so that the call itself says what is wrong, and again when it gets its slot. */
static int request_collect(struct kv_group *group, struct kv_op *op, struct kv_error *err)
{
	int ret = kv_op_admit(op, err);

	if (!ret)
		ret = kv_group_add(group, op, err);
	if (!ret)
		kv_op_collect(op);
	return ret;
}

static int request_begin(struct request *req, struct kv_op *op, struct kv_error *err)
{
	struct kv_group *group = req->opts ? req->opts->group : NULL;
	int ret;

	request_fill(op, req);
	if (!op->n) {
		kv_op_end(op, 0, NULL);
		return group ? kv_group_add(group, op, err) : 0;
	}
	ret = kv_peer_claim_for(op->peer, op->deadline_ns, KV_ERR_TIMEOUT, kv_op_name(op), err);
	if (ret)
		return ret;
	if (req->blocking)
		kv_peer_poll_on(op->peer);
	ret = group ? request_collect(group, op, err) : request_start(op, req->blocking, err);
	if (op->unclaimed)
		return ret;
	if (!ret && req->blocking) { /* not armed meanwhile: its end needs no bell */
		kv_op_spin(op, KV_ACKED, op->deadline_ns);
		op->spun = true;
	}
	kv_peer_release(op->peer);
	return ret;
}

/*
 * Where the bytes are copied by the caller they are copied inside its call: it goes on after
 * another thread has had the peer.
 */
static void request_go_on(struct kv_op *op)
{
	while (op->passed && kv_claim_until(&op->peer->claim, op->deadline_ns)) {
		kv_op_progress(op);
		kv_peer_release(op->peer);
	}
	op->passed = false;
}

static int request_run(struct request *req, struct kv_op **op_p, struct kv_error *err)
{
	struct kv_op *op;
	int ret = check_call(req, err);

	if (ret)
		return ret;
	if (!op_p)
		return kv_fail(err, KV_ERR_ARG, request_name(req), "op_p is NULL");
	ret = kv_op_take(req->peer->engine, &op, err);
	if (ret)
		return ret;
	if (has_start(req)) {
		op->events = req->opts->events;
		ret = tr_gate_open(&op->gate, req->opts->stream, err);
	}
	if (!ret)
		ret = request_begin(req, op, err);
	if (ret) {
		if (!op->unclaimed || !kv_op_leave(op))
			kv_op_give(op);
		return ret;
	}
	if (!req->blocking)
		request_go_on(op);
	*op_p = op;
	return 0;
}

/*
 * The error of a call that left its operation behind. That may be freed by now; its peer is valid
 * as long as the caller has the handle.
 */
static int stuck(const struct request *req, int code, struct kv_error *err)
{
	kv_peer_fail(req->peer, err, code, request_name(req),
		     "a call on %s, or its device, does not return long after the %s",
		     req->peer->name, code == KV_ERR_TIMEOUT ? "deadline" : "call was given up");
	kv_error_hint(err, "the local blocks may be in use until kv_peer_close has returned 0");
	if (err)
		err->in_doubt = 1;
	return code;
}

/* Until the operation ends: 0. Else why it is left: its device still holds what was posted. */
static int await_end(struct kv_op *op)
{
	/* It ends at its own deadline, unless its device does not let go. */
	int64_t until_ns = op->deadline_ns + KV_SLACK_MS * KV_NS_PER_MS, ask_ns = ask_at(op);

	while (!kv_op_wait_for(op, KV_ACKED, kv_sooner(ask_ns, until_ns))) {
		if (kv_now_ns() >= until_ns)
			return KV_ERR_TIMEOUT;
		if (kv_engine_given_up(op->engine, &ask_ns) && kv_cancel(op, KV_STOP_MS, NULL))
			return KV_ERR_CANCELLED;
	}
	return 0;
}

/* A call that waits: request_run, then until the end of its operation. */
static int request_finish(struct request *req, struct kv_error *err)
{
	struct kv_op *op;
	int ret;

	if (req->opts && req->opts->size >= OPTIONS_FIRST && req->opts->group)
		return kv_fail(err, KV_ERR_ARG, request_name(req),
			       "a group takes only the *_async calls");
	ret = request_run(req, &op, err);
	if (ret)
		return ret;
	ret = await_end(op);
	if (ret && kv_op_leave(op))
		return stuck(req, ret, err);
	ret = kv_op_result(op, err);
	kv_op_give(op);
	return ret;
}

/* ---------------------------------------------------------------- the public calls */

int kv_write_blocks_async(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
			  const int64_t *local_ids, const int64_t *remote_ids, size_t n,
			  const struct kv_options *opts, struct kv_op **op_p, struct kv_error *err)
{
	struct request req = { KV_OP_WRITE, false,     peer,	   cache, layers,
			       opts,	    local_ids, remote_ids, n,	  0 };

	return request_run(&req, op_p, err);
}

int kv_write_blocks(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		    const int64_t *local_ids, const int64_t *remote_ids, size_t n,
		    const struct kv_options *opts, struct kv_error *err)
{
	struct request req = { KV_OP_WRITE, true,      peer,	   cache, layers,
			       opts,	    local_ids, remote_ids, n,	  0 };

	return request_finish(&req, err);
}

int kv_read_blocks_async(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
			 const int64_t *local_ids, const int64_t *remote_ids, size_t n,
			 const struct kv_options *opts, struct kv_op **op_p, struct kv_error *err)
{
	struct request req = { KV_OP_READ, false,     peer,	  cache, layers,
			       opts,	   local_ids, remote_ids, n,	 0 };

	return request_run(&req, op_p, err);
}

int kv_read_blocks(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		   const int64_t *local_ids, const int64_t *remote_ids, size_t n,
		   const struct kv_options *opts, struct kv_error *err)
{
	struct request req = { KV_OP_READ, true,      peer,	  cache, layers,
			       opts,	   local_ids, remote_ids, n,	 0 };

	return request_finish(&req, err);
}

int kv_send_blocks_async(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
			 const int64_t *ids, size_t n, uint64_t tag, const struct kv_options *opts,
			 struct kv_op **op_p, struct kv_error *err)
{
	struct request req = { KV_OP_SEND, false, peer, cache, layers, opts, ids, NULL, n, tag };

	return request_run(&req, op_p, err);
}

int kv_send_blocks(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		   const int64_t *ids, size_t n, uint64_t tag, const struct kv_options *opts,
		   struct kv_error *err)
{
	struct request req = { KV_OP_SEND, true, peer, cache, layers, opts, ids, NULL, n, tag };

	return request_finish(&req, err);
}

int kv_recv_blocks_async(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
			 const int64_t *ids, size_t n, uint64_t tag, const struct kv_options *opts,
			 struct kv_op **op_p, struct kv_error *err)
{
	struct request req = { KV_OP_RECV, false, peer, cache, layers, opts, ids, NULL, n, tag };

	return request_run(&req, op_p, err);
}

int kv_recv_blocks(struct kv_peer *peer, struct kv_cache *cache, struct kv_layers layers,
		   const int64_t *ids, size_t n, uint64_t tag, const struct kv_options *opts,
		   struct kv_error *err)
{
	struct request req = { KV_OP_RECV, true, peer, cache, layers, opts, ids, NULL, n, tag };

	return request_finish(&req, err);
}
