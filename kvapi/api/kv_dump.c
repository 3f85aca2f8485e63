/* SPDX-License-Identifier: Apache-2.0 */
/* kv_dump.c -- the engine's state as text */
#include "base/text.h"
#include "kv_api.h"

enum { PATIENCE_MS = 50 }; /* for peers in use, all together; then it says that they are */

static long long age_ms(int64_t since_ns)
{
	return (kv_now_ns() - since_ns) / KV_NS_PER_MS;
}

static void dump_ops(struct kv_text *t, const struct kv_peer *peer)
{
	for (unsigned int i = 0; i < peer->link->slots; i++) {
		const struct kv_slot *slot = &peer->link->slot[i];
		const struct kv_op *op = slot->op;

		if (op)
			kv_text_add(
				t,
				"  op %u.%u %s: %s, %lld ms old, %lld ms left, %zu blocks, layer %u of %u, tensor %u, id index %zu%s%s%s\n",
				i, slot->generation, kv_op_name(op), kv_op_stage_name(op),
				age_ms(op->begun_ns), -age_ms(op->deadline_ns), op->n, op->layer,
				op->layers.count, op->tensor, op->place.index,
				op->written ? ", written" : "", op->acked ? ", acknowledged" : "",
				op->tr ? ", with the transport" : "");
		else if (slot->state != KV_SLOT_FREE)
			kv_text_add(t, "  op %u.%u ended, %s\n", i, slot->generation,
				    slot->state == KV_SLOT_ABORT
					    ? "ABORT is still to be sent"
					    : "its acknowledgement is still due");
	}
	for (const struct kv_op *op = peer->link->collected; op; op = op->after)
		kv_text_add(t, "  op %s: not begun, %lld ms old, %zu blocks\n", kv_op_name(op),
			    age_ms(op->begun_ns), op->n);
	for (unsigned int i = 0; i < peer->link->ins; i++) {
		const struct kv_incoming *in = &peer->link->in[i];

		if (in->begun)
			kv_text_add(
				t,
				"  incoming %u: %u blocks of cache %u, layers %u + %u, tag %llu%s\n",
				i, in->begin.blocks, in->begin.cache, in->begin.first,
				in->begin.count, (unsigned long long)in->begin.tag,
				kv_bit(peer->link->withheld, i) ? ", waits for room in the arrivals"
				: kv_bit(peer->link->ack, i)	? ", to be acknowledged"
								: ", not committed");
	}
}

static void dump_leases(struct kv_text *t, const struct kv_peer *peer)
{
	for (unsigned int i = 0; i < peer->link->leases_end; i++) {
		const struct kv_lease *l = peer->link->lease[i];

		if (l)
			kv_text_add(
				t,
				"  lease %llu tag %llu: %u blocks of cache %u, %s%s%s%s, %u of %u ids sent\n",
				(unsigned long long)l->id, (unsigned long long)l->tag, l->n,
				l->cache->geometry.cache_id, l->open ? "open" : "closed",
				l->expired ? ", expired" : "",
				l->revoke && !l->stopped ? ", waits for the writer to stop" : "",
				l->stopped ? ", stopped" : "", l->sent, l->n);
	}
	for (const struct kv_grant *g = peer->link->oldest; g; g = g->newer)
		kv_text_add(t, "  granted %llu tag %llu: %u of %u blocks of cache %u%s%s\n",
			    (unsigned long long)g->id, (unsigned long long)g->tag, g->got, g->n,
			    g->cache, g->revoked ? ", revoked" : "", g->failed ? ", failed" : "");
}

static void dump_peer(struct kv_text *t, const struct kv_peer *peer)
{
	static const char *const states[] = { "handshake", "up", "lost", "lost, fenced", "closed" };
	char conn[2048];

	kv_text_add(t, "peer %u %s (%s), %s, %s%s\n", peer->index, peer->name,
		    peer->conn ? tr_conn_address(peer->conn) : "",
		    peer->incoming ? "incoming" : "outgoing", states[peer->state],
		    peer->leaving ? ", closing" : "");
	if (peer->conn && tr_conn_transport(peer->conn)[0]) {
		tr_conn_dump(peer->conn, conn, sizeof(conn));
		kv_text_add(t, "  %s: %s\n  %s\n", tr_conn_transport(peer->conn),
			    tr_conn_path(peer->conn), conn);
	}
	if (peer->error.code)
		kv_text_add(t, "  error KV_ERR_%s: %s\n", kv_error_name(peer->error.code),
			    peer->error.message);
	if (!peer->link)
		return;
	dump_ops(t, peer);
	dump_leases(t, peer);
}

int kv_dump(struct kv_engine *engine, char *buf, size_t cap)
{
	struct kv_text t = { buf, cap, 0 };
	int64_t deadline = kv_deadline_ns(PATIENCE_MS);
	int ret = kv_engine_use(engine, "dump", NULL);

	if (cap && !buf)
		return KV_ERR_ARG;
	if (cap)
		buf[0] = 0;
	if (ret)
		return ret;
	pthread_mutex_lock(&engine->lock);
	kv_text_add(&t, "engine %s, %s progress, %u peers up, %u in handshake, %s\n", engine->name,
		    engine->caller_mode ? "caller" : "auto", engine->peers_up,
		    engine->peers_pending, engine->listener ? "listening" : "not listening");
	pthread_mutex_unlock(&engine->lock);
	pthread_mutex_lock(&engine->arrivals.lock);
	kv_text_add(&t, "arrivals: %zu of %zu wait\n", engine->arrivals.count,
		    engine->arrivals.cap);
	pthread_mutex_unlock(&engine->arrivals.lock);
	t.len += tr_pools_dump(engine->tr, t.len < cap ? buf + t.len : NULL,
			       t.len < cap ? cap - t.len : 0);
	for (uint32_t i = 0; i < engine->peers_end; i++) {
		struct kv_peer *peer = kv_table_claim(engine, i, deadline);

		if (peer) {
			dump_peer(&t, peer);
			kv_table_leave(peer);
		} else if (kv_table_knows(engine, i)) {
			kv_text_add(&t, "peer %u is busy in a call\n", i);
		}
	}
	return (int)t.len;
}
