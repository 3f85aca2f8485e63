/* SPDX-License-Identifier: Apache-2.0 */
/* kv_dump.c -- the engine's state for people and programs: "why does it hang" */
#include <stdlib.h>
#include <string.h>

#include "base/report.h"
#include "base/thread.h"
#include "kv_api.h"

enum {
	PATIENCE_MS = 50, /* for peers in use, all together; then it says that they are */
	OPS_SHOWN = 64,	  /* the oldest */
	ROWS_SHOWN = 64,  /* of each list of a peer */
	SERVED_MS = 1000, /* after that it is said why */
	ROWS_OF_MANY = 4, /* where there are more than so many peers */
	PEERS_TIMED = 256,
};

/* ---------------------------------------------------------------- operations */

static const char *awaited(const struct kv_op_look *op)
{
	switch (op->stage) {
	case KV_STAGE_IDLE:
		return "the end of its group, a free slot, or another thread's call on the peer";
	case KV_STAGE_WAIT_GRANT:
		return "a lease that the peer has not opened";
	case KV_STAGE_BEGIN:
	case KV_STAGE_POST:
	case KV_STAGE_COMMIT:
		return "room in the transport (its peer's connection says why), or a thread "
		       "that posts the rest";
	case KV_STAGE_PROVE:
	case KV_STAGE_DIGEST:
		return "room for the digests of its blocks";
	case KV_STAGE_STOP:
		return "what was posted before it was stopped";
	default:
		break;
	}
	if (op->kind == KV_OP_RECV)
		return "the peer's write";
	if (op->kind == KV_OP_READ || !op->written)
		return "the transport";
	return op->visible ? "the peer's application, which takes no arrivals"
			   : "the peer's acknowledgement";
}

static void report_op(struct kv_report *r, const struct kv_op_look *op)
{
	kv_report_item(r, "operation");
	kv_report_text(r, "kind", "%s", kv_op_kind_name(op->kind));
	kv_report_text(r, "stage", "%s", kv_op_stage_name(op->stage));
	kv_report_age(r, "age_ms", op->begun_ns);
	kv_report_int(r, "left_ms", (op->deadline_ns - kv_now_ns()) / KV_NS_PER_MS);
	kv_report_int(r, "peer", op->peer);
	kv_report_text(r, "name", "%s", op->name);
	kv_report_text(r, "address", "%s", op->address);
	kv_report_text(r, "waits_for", "%s", awaited(op));
	kv_report_int(r, "blocks", (int64_t)op->blocks);
	kv_report_int(r, "bytes", (int64_t)op->bytes);
	kv_report_int(r, "layers", op->layers);
	kv_report_int(r, "next_layer", op->layer);
	kv_report_int(r, "tag", (int64_t)op->tag);
	kv_report_flag(r, "written", op->written);
	kv_report_flag(r, "acknowledged", op->acked);
	kv_report_end_item(r);
}

/* From the records themselves: no lock that a thread in trouble may keep. */
static void report_ops(struct kv_report *r, struct kv_engine *engine)
{
	struct kv_op_look *oldest = calloc(OPS_SHOWN, sizeof(*oldest));
	size_t idle, n = kv_op_look(engine, oldest, oldest ? OPS_SHOWN : 0, &idle);

	kv_report_int(r, "operations_in_flight", (int64_t)n);
	kv_report_int(r, "operations_not_begun", (int64_t)idle);
	kv_report_age(r, "oldest_ms", n && oldest ? oldest[0].begun_ns : kv_now_ns());
	if (!r->brief) {
		kv_report_list(r, "operations");
		for (size_t i = 0; oldest && i < n && i < OPS_SHOWN; i++)
			report_op(r, &oldest[i]);
		kv_report_end_list(r);
	}
	free(oldest);
}

/* ---------------------------------------------------------------- a peer, with its claim */

static void report_slots(struct kv_report *r, const struct kv_link *link)
{
	unsigned int aborts = 0, unacked = 0;

	for (unsigned int i = 0; i < link->slots; i++) {
		aborts += link->slot[i].state == KV_SLOT_ABORT;
		unacked += link->slot[i].state == KV_SLOT_UNACKED;
	}
	kv_report_int(r, "slots", link->slots_used);
	kv_report_int(r, "aborts_to_send", aborts);
	kv_report_int(r, "acknowledgements_due", unacked);
}

static void report_incoming(struct kv_report *r, const struct kv_link *link, unsigned int rows)
{
	unsigned int n = 0;

	kv_report_list(r, "incoming");
	for (unsigned int i = 0; i < link->ins; i++) {
		const struct kv_incoming *in = &link->in[i];

		if (!in->begun || n++ >= rows)
			continue;
		kv_report_item(r, "incoming");
		kv_report_int(r, "slot", i);
		kv_report_text(r, "state", "%s",
			       kv_bit(link->withheld, i) ? "waits for room in the arrivals"
			       : kv_bit(link->ack, i)	 ? "to be acknowledged"
							 : "not committed");
		kv_report_int(r, "blocks", in->begin.blocks);
		kv_report_int(r, "cache", in->begin.cache);
		kv_report_int(r, "first_layer", in->begin.first);
		kv_report_int(r, "layers", in->begin.count);
		kv_report_int(r, "tag", (int64_t)in->begin.tag);
		kv_report_end_item(r);
	}
	kv_report_end_list(r);
}

static void report_leases(struct kv_report *r, const struct kv_link *link, unsigned int rows)
{
	unsigned int n = 0;

	kv_report_list(r, "leases");
	for (unsigned int i = 0; i < link->leases_end; i++) {
		const struct kv_lease *l = link->lease[i];

		if (!l || n++ >= rows)
			continue;
		kv_report_item(r, "lease");
		kv_report_int(r, "id", (int64_t)l->id);
		kv_report_text(r, "state", "%s%s%s", l->open ? "open" : "closed",
			       l->expired ? ", expired" : "",
			       l->stopped  ? ", stopped"
			       : l->revoke ? ", waits for the writer to stop"
					   : "");
		kv_report_int(r, "tag", (int64_t)l->tag);
		kv_report_int(r, "cache", l->cache->geometry.cache_id);
		kv_report_int(r, "blocks", l->n);
		kv_report_int(r, "ids_sent", l->sent);
		kv_report_end_item(r);
	}
	kv_report_end_list(r);
	kv_report_list(r, "granted");
	n = 0;
	for (const struct kv_grant *g = link->oldest; g && n++ < rows; g = g->newer) {
		kv_report_item(r, "granted");
		kv_report_int(r, "id", (int64_t)g->id);
		kv_report_int(r, "tag", (int64_t)g->tag);
		kv_report_int(r, "cache", g->cache);
		kv_report_int(r, "blocks", g->n);
		kv_report_int(r, "ids_here", g->got);
		kv_report_flag(r, "revoked", g->revoked);
		kv_report_flag(r, "failed", g->failed);
		kv_report_end_item(r);
	}
	kv_report_end_list(r);
}

static const char *state_name(unsigned int state)
{
	static const char *const states[] = { "handshake", "up", "lost", "lost, fenced", "closed" };

	return states[state];
}

static void report_peer(struct kv_report *r, const struct kv_peer *peer)
{
	unsigned int rows = peer->engine->peers_end > ROWS_SHOWN ? ROWS_OF_MANY : ROWS_SHOWN;
	struct kv_times times = { .sum_ns = 0 };

	kv_report_text(r, "name", "%s", peer->name);
	kv_report_text(r, "state", "%s", state_name(peer->state));
	kv_report_text(r, "address", "%s", peer->conn ? tr_conn_address(peer->conn) : "");
	kv_report_text(r, "by", "%s", peer->incoming ? "peer" : "engine");
	kv_report_flag(r, "closing", peer->leaving);
	if (peer->heard_ns)
		kv_report_age(r, "heard_ms_ago", peer->heard_ns);
	if (peer->error.code) {
		kv_report_text(r, "error", "KV_ERR_%s", kv_error_name(peer->error.code));
		kv_report_text(r, "cause", "%s", peer->error.message);
	}
	kv_times_of(peer, &times);
	kv_times_report_p99(r, &times);
	if (peer->link) {
		kv_report_int(r, "leases_open", peer->link->leases);
		report_slots(r, peer->link);
	}
	if (peer->conn)
		tr_conn_report(peer->conn, r);
	if (!peer->link)
		return;
	report_incoming(r, peer->link, rows);
	report_leases(r, peer->link, rows);
}

/* A thread keeps it: in a call, in the log callback, in a device's verb. */
static void report_busy(struct kv_report *r, const struct kv_peer_look *look)
{
	kv_report_text(r, "name", "%s", look->name);
	kv_report_text(r, "state", "%s", state_name(look->state));
	kv_report_text(r, "address", "%s", look->address);
	kv_report_text(r, "by", "%s", look->incoming ? "peer" : "engine");
	kv_report_flag(r, "closing", look->leaving);
	kv_report_text(r, "transport", "%s", look->transport);
	kv_report_text(r, "busy", "another thread is in a call on it");
	if (look->round_ns)
		kv_report_age(r, "progress_ms_ago", look->round_ns);
	kv_times_report_p99(r, &look->times);
}

static void report_peers(struct kv_report *r, struct kv_engine *engine)
{
	int64_t deadline = kv_deadline_ns(PATIENCE_MS);

	kv_report_list(r, "peers");
	for (uint32_t i = 0; i < engine->peers_end; i++) {
		struct kv_peer *peer = kv_table_claim(engine, i, deadline);
		struct kv_peer_look look;

		if (!peer && !kv_table_look(engine, i, deadline, &look))
			continue;
		kv_report_item(r, "peer");
		kv_report_int(r, "index", i);
		if (peer) {
			report_peer(r, peer);
			kv_table_leave(peer);
		} else {
			report_busy(r, &look);
		}
		kv_report_end_item(r);
	}
	kv_report_end_list(r);
}

/* ---------------------------------------------------------------- the engine */

static void report_last(struct kv_report *r, struct kv_engine *engine)
{
	struct kv_error last;
	int64_t at_ns;

	pthread_mutex_lock(&engine->pool_lock);
	last = engine->last_error;
	at_ns = engine->last_error_ns;
	pthread_mutex_unlock(&engine->pool_lock);
	kv_report_last_error(r, &last, at_ns);
}

static void report_callback(struct kv_report *r, const struct kv_engine *engine)
{
	int64_t since_ns;
	unsigned int n = kv_log_callers(engine->log, &since_ns);

	if (n) {
		kv_report_int(r, "threads_in_log_callback", n);
		kv_report_age(r, "log_callback_ms", since_ns);
	}
}

KV_LOOKS static int64_t served_ns(const struct kv_engine *engine)
{
	return KV_SEEN(engine->swept_ns);
}

/* Peers are looked at each KV_TICK_MS at least. */
static void report_service(struct kv_report *r, const struct kv_engine *engine)
{
	int64_t since_ns = served_ns(engine);

	kv_report_age(r, "served_ms_ago", since_ns);
	if (kv_now_ns() - since_ns > SERVED_MS * KV_NS_PER_MS)
		kv_report_text(r, "not_served", "%s",
			       engine->caller_mode
				       ? "the application calls neither kv_progress nor a wait"
				       : "the engine's thread is in a call, or gets no processor");
}

static void report_pools(struct kv_report *r, struct kv_engine *engine)
{
	char said[256] = "";

	tr_pools_dump(engine->tr, said, sizeof(said));
	said[strcspn(said, "\n")] = 0;
	kv_report_text(r, "memory", "%s", said);
}

static void report_traffic(struct kv_report *r, const struct kv_engine *engine)
{
	uint64_t in = 0, out = 0, read = 0;

	for (int i = 0; i < KV_TRANSPORTS; i++) {
		const struct kv_traffic *of = &engine->traffic[i];

		out += atomic_load_explicit(&of->bytes_out, memory_order_relaxed);
		in += atomic_load_explicit(&of->bytes_in, memory_order_relaxed);
		read += atomic_load_explicit(&of->bytes_read, memory_order_relaxed);
	}
	kv_report_int(r, "bytes_out", (int64_t)out);
	kv_report_int(r, "bytes_in", (int64_t)in);
	kv_report_int(r, "bytes_read", (int64_t)read);
}

/* Since the first who asked. */
static void report_times(struct kv_report *r, struct kv_engine *engine)
{
	struct kv_times sum = { .sum_ns = 0 };
	struct kv_timing all;
	size_t n;

	if (!kv_times_look(engine, &all, NULL, 0, &n))
		return;
	for (int kind = 0; kind < KV_KINDS; kind++)
		kv_times_add(&sum, &all.of[kind][KV_TIME_ALL]);
	kv_times_report(r, &sum);
}

static void report_times_of_peers(struct kv_report *r, struct kv_engine *engine)
{
	int64_t deadline = kv_deadline_ns(PATIENCE_MS);
	unsigned int n = 0;

	kv_report_list(r, "peers");
	for (uint32_t i = 0; i < engine->peers_end && n < PEERS_TIMED; i++) {
		struct kv_peer_look look;

		if (!kv_table_look(engine, i, deadline, &look) || look.state == KV_PEER_HANDSHAKE)
			continue;
		n++;
		kv_report_item(r, "peer");
		kv_report_int(r, "index", i);
		kv_report_text(r, "name", "%s", look.name);
		kv_report_text(r, "state", "%s", state_name(look.state));
		kv_times_report(r, &look.times);
		kv_report_end_item(r);
	}
	kv_report_end_list(r);
}

void kv_report_engine(struct kv_engine *engine, struct kv_report *r)
{
	bool locked = kv_engine_lock_until(engine, kv_deadline_ns(PATIENCE_MS));
	uint32_t up = locked ? kv_table_count(engine, KV_PEER_UP) : 0;
	uint32_t pending = locked ? kv_table_count(engine, KV_PEER_HANDSHAKE) : 0;
	bool listens = locked && engine->listener;

	if (locked)
		pthread_mutex_unlock(&engine->lock);
	kv_report_item(r, "engine");
	kv_report_text(r, "name", "%s", engine->name);
	kv_report_text(r, "version", "%s", kv_version());
	kv_report_text(r, "progress", "%s", engine->caller_mode ? "caller" : "auto");
	kv_report_flag(r, "listening", listens);
	if (!locked)
		kv_report_text(r, "lock", "a thread has kept it for %d ms: no peer is shown",
			       PATIENCE_MS);
	kv_report_int(r, "peers_up", up);
	kv_report_int(r, "handshakes", pending);
	if (up + pending)
		report_service(r, engine);
	report_callback(r, engine);
	pthread_mutex_lock(&engine->arrivals.lock);
	kv_report_int(r, "arrivals_waiting", (int64_t)engine->arrivals.count);
	kv_report_int(r, "arrivals_room", (int64_t)engine->arrivals.cap);
	pthread_mutex_unlock(&engine->arrivals.lock);
	report_traffic(r, engine);
	report_last(r, engine);
	report_pools(r, engine);
	report_ops(r, engine);
	if (r->brief) {
		atomic_store(&engine->timed, true);
		report_times(r, engine);
	}
	if (r->peers)
		report_times_of_peers(r, engine);
	if (locked && !r->brief)
		report_peers(r, engine);
	kv_report_end_item(r);
}

int kv_dump(struct kv_engine *engine, char *buf, size_t cap)
{
	struct kv_report r = { .text = { buf, cap, 0 } };
	int ret = kv_engine_use(engine, "dump", NULL);

	if (cap && !buf)
		return KV_ERR_ARG;
	if (cap)
		buf[0] = 0;
	if (ret)
		return ret;
	kv_report_engine(engine, &r);
	return (int)r.text.len;
}
