/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_op_pool.c -- the records of operations, and the ids that one keeps
 *
 * A record stays until the engine closes, so that a handle which was freed is refused and not
 * followed into foreign memory.
 */
#include "kv_op.h"

#include <stdlib.h>
#include <string.h>

#include "base/thread.h"

enum { CHUNK_OPS = 16 };

struct kv_op_chunk {
	struct kv_op_chunk *next;
	struct kv_op op[CHUNK_OPS];
};

static bool grow_pool(struct kv_engine *engine)
{
	struct kv_op_chunk *chunk = kv_fault(KV_OP_CHUNK) ? NULL : calloc(1, sizeof(*chunk));

	if (!chunk)
		return false;
	for (int i = 0; i < CHUNK_OPS; i++) {
		chunk->op[i].engine = engine;
		chunk->op[i].next = engine->free_ops;
		engine->free_ops = &chunk->op[i];
	}
	chunk->next = engine->op_chunks;
	engine->op_chunks = chunk;
	return true;
}

int kv_op_take(struct kv_engine *engine, struct kv_op **op_p, struct kv_error *err)
{
	struct kv_op *op = NULL;

	pthread_mutex_lock(&engine->pool_lock);
	if (engine->free_ops || grow_pool(engine)) {
		op = engine->free_ops;
		engine->free_ops = op->next;
	}
	pthread_mutex_unlock(&engine->pool_lock);
	if (!op)
		return kv_fail(err, KV_ERR_NOMEM, "operation", "cannot allocate operations");
	op->magic = KV_MAGIC_OP;
	op->stage = KV_STAGE_IDLE;
	op->begun = op->committed = op->written = op->acked = op->visible = op->blocking = false;
	op->passed = op->unclaimed = op->admitted = op->early = op->wrong = false;
	op->peer = NULL;
	op->after = NULL;
	op->at = NULL;
	op->tr = NULL;
	op->lease = NULL;
	op->next = NULL;
	op->id = 0;
	op->first_ns = op->written_ns = 0;
	op->grant = 0;
	op->end_code = op->ack_status = op->result = 0;
	op->layer = op->tensor = op->gated = 0;
	op->events = NULL;
	op->place = (struct kv_place){ 0 };
	op->waiter = &op->own_waiter;
	atomic_store(&op->grouped, false);
	atomic_store(&op->grade, KV_NONE);
	atomic_store(&op->ids_gone, false);
	atomic_store(&op->ended, KV_OP_GOING);
	*op_p = op;
	return 0;
}

void kv_op_give(struct kv_op *op)
{
	struct kv_engine *engine = op->engine;
	struct kv_peer *peer;

	op->magic = KV_MAGIC_DEAD;
	tr_gate_close(&op->gate);
	pthread_mutex_lock(&engine->pool_lock);
	peer = op->peer; /* kv_op_look has seen it, or never will */
	op->peer = NULL;
	op->next = engine->free_ops;
	engine->free_ops = op;
	pthread_mutex_unlock(&engine->pool_lock);
	if (peer)
		kv_peer_drop(peer);
}

void kv_op_pool_free(struct kv_engine *engine)
{
	while (engine->op_chunks) {
		struct kv_op_chunk *chunk = engine->op_chunks;

		engine->op_chunks = chunk->next;
		for (int i = 0; i < CHUNK_OPS; i++) {
			tr_gate_close(&chunk->op[i].gate);
			if (chunk->op[i].peer) /* the application did not free it */
				kv_peer_drop(chunk->op[i].peer);
			free(chunk->op[i].ids);
		}
		free(chunk);
	}
}

/* ---------------------------------------------------------------- a look at all */

/* The peer stays: its holder gives it up under the lock that the caller holds. */
KV_LOOKS static void look_at_op(struct kv_op *op, const struct kv_peer *peer, struct kv_op_look *to)
{
	to->kind = KV_SEEN(op->kind);
	to->stage = KV_SEEN(op->stage);
	to->begun = KV_SEEN(op->begun);
	to->written = KV_SEEN(op->written);
	to->visible = KV_SEEN(op->visible);
	to->acked = KV_SEEN(op->acked);
	to->begun_ns = KV_SEEN(op->begun_ns);
	to->deadline_ns = KV_SEEN(op->deadline_ns);
	to->blocks = KV_SEEN(op->n);
	to->bytes = KV_SEEN(op->bytes);
	to->tag = KV_SEEN(op->tag);
	to->layer = KV_SEEN(op->layer);
	to->layers = KV_SEEN(op->layers.count);
	to->peer = KV_SEEN(peer->index);
	for (size_t i = 0; i < sizeof(to->name) - 1; i++)
		to->name[i] = KV_SEEN(peer->name[i]);
	for (size_t i = 0; i < sizeof(to->address) - 1; i++)
		to->address[i] = KV_SEEN(peer->address[i]);
}

KV_LOOKS static const struct kv_peer *peer_under_way(struct kv_op *op)
{
	if (KV_SEEN(op->magic) != KV_MAGIC_OP || KV_SEEN(op->stage) == KV_STAGE_ENDED)
		return NULL;
	return KV_SEEN(op->peer);
}

size_t kv_op_look(struct kv_engine *engine, struct kv_op_look *oldest, size_t cap, size_t *idle_p)
{
	size_t n = 0, kept = 0, idle = 0;

	pthread_mutex_lock(&engine->pool_lock);
	for (struct kv_op_chunk *chunk = engine->op_chunks; chunk; chunk = chunk->next)
		for (int i = 0; i < CHUNK_OPS; i++) {
			const struct kv_peer *peer = peer_under_way(&chunk->op[i]);
			struct kv_op_look seen = { .kind = 0 };
			size_t at;

			if (!peer)
				continue;
			look_at_op(&chunk->op[i], peer, &seen);
			n++;
			idle += seen.stage == KV_STAGE_IDLE;
			for (at = kept; at && oldest[at - 1].begun_ns > seen.begun_ns; at--)
				if (at < cap)
					oldest[at] = oldest[at - 1];
			kept += kept < cap;
			if (at < cap)
				oldest[at] = seen;
		}
	pthread_mutex_unlock(&engine->pool_lock);
	*idle_p = idle;
	return n;
}

/* ---------------------------------------------------------------- its ids */

void kv_op_trim_ids(struct kv_op *op)
{
	if (op->ids_cap * sizeof(*op->ids) <= KV_IDS_KEEP_BYTES)
		return;
	free(op->ids);
	op->ids = NULL;
	op->ids_cap = 0;
	op->local = op->remote = NULL;
}

int kv_op_keep_ids(struct kv_op *op, struct kv_error *err)
{
	bool both = op->kind != KV_OP_SEND; /* its remote ids are the grant's */
	size_t need = both ? 2 * op->n : op->n;

	if (need > op->ids_cap) {
		int64_t *ids = kv_fault(KV_OP_IDS) ? NULL : realloc(op->ids, need * sizeof(*ids));

		if (!ids)
			return kv_fail(err, KV_ERR_NOMEM, kv_op_name(op),
				       "cannot keep %zu block ids", need);
		op->ids = ids;
		op->ids_cap = need;
	}
	memcpy(op->ids, op->local, op->n * sizeof(*op->ids));
	op->local = op->ids;
	if (both) {
		memcpy(op->ids + op->n, op->remote, op->n * sizeof(*op->ids));
		op->remote = op->ids + op->n;
	}
	return 0;
}

const char *kv_op_kind_name(int kind)
{
	static const char *const kind_names[] = { "write_blocks", "read_blocks", "send_blocks",
						  "recv_blocks" };

	return kind_names[kind];
}

const char *kv_op_name(const struct kv_op *op)
{
	return kv_op_kind_name(op->kind);
}
