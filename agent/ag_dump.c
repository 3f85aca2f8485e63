/* SPDX-License-Identifier: Apache-2.0 */
/* ag_dump.c -- an agent's state for kvrail dump: its transfers, and what each waits for */
#include <poll.h>

#include "ag.h"
#include "base/report.h"

enum {
	PATIENCE_MS = 50, /* for peers that are driven, all together; then it says that they are */
	ROWS = 16,	  /* of each list of a peer */
};

static bool drive_until(struct ag_peer *peer, int64_t deadline_ns)
{
	while (pthread_mutex_trylock(&peer->drive)) {
		if (kv_now_ns() >= deadline_ns)
			return false;
		poll(NULL, 0, 1);
	}
	return true;
}

/* ---------------------------------------------------------------- transfers; drive held */

static const char *xfer_awaits(const struct ag_peer *peer, const struct ag_xfer *xfer)
{
	if (atomic_load(&peer->state) != AG_UP)
		return atomic_load(&peer->state) == AG_CONNECTING ? "the handshake"
								  : "the end of a lost connection";
	if (xfer->stopping)
		return "what was posted before it was stopped";
	if (xfer->committed)
		return "the transport";
	if (xfer != peer->queue.first)
		return "the transfers before it";
	for (size_t i = 0; !xfer->op && i < xfer->plan.runs; i++)
		if (xfer->plan.run[i].rmem->state != AG_RMEM_KNOWN)
			return "the peer's description of a region: its agent does not answer";
	return "room in the transport, or the agent's thread, which posts the rest";
}

static void report_xfer(struct kv_report *r, const struct ag_xfer *xfer, const char *awaits)
{
	kv_report_item(r, "operation");
	kv_report_text(r, "kind", "%s", xfer->kind == AG_WRITE ? "write" : "read");
	kv_report_age(r, "age_ms", xfer->posted_ns);
	kv_report_text(r, "waits_for", "%s", awaits);
	kv_report_int(r, "bytes", (int64_t)xfer->plan.bytes);
	kv_report_int(r, "spans", (int64_t)xfer->plan.spans);
	kv_report_flag(r, "released", atomic_load(&xfer->cancel));
	kv_report_end_item(r);
}

/* The oldest first: in flight, then the queue, then what callers have left. */
static void report_xfers(struct kv_report *r, struct ag_peer *peer)
{
	unsigned int n = 0;

	kv_report_list(r, "operations");
	for (struct ag_record *note = peer->out.first; note && n < ROWS; note = note->next)
		if (note->xfer && ++n)
			report_xfer(r, note->xfer, "its notification: the peer takes no messages");
	for (struct ag_xfer *x = peer->flight.first; x && n++ < ROWS; x = x->next)
		report_xfer(r, x, xfer_awaits(peer, x));
	for (struct ag_xfer *x = peer->queue.first; x && n++ < ROWS; x = x->next)
		report_xfer(r, x, xfer_awaits(peer, x));
	pthread_mutex_lock(&peer->inbox);
	for (struct ag_xfer *x = peer->posted.first; x && n++ < ROWS; x = x->next)
		report_xfer(r, x,
			    atomic_load(&peer->state) == AG_UP ? "the agent's thread"
							       : "the handshake");
	pthread_mutex_unlock(&peer->inbox);
	kv_report_end_list(r);
}

static int64_t oldest_of(struct ag_peer *peer)
{
	int64_t oldest = INT64_MAX;

	for (struct ag_record *note = peer->out.first; note; note = note->next)
		if (note->xfer && note->xfer->posted_ns < oldest)
			oldest = note->xfer->posted_ns;
	for (struct ag_xfer *x = peer->flight.first; x; x = x->next)
		oldest = x->posted_ns < oldest ? x->posted_ns : oldest;
	for (struct ag_xfer *x = peer->queue.first; x; x = x->next)
		oldest = x->posted_ns < oldest ? x->posted_ns : oldest;
	pthread_mutex_lock(&peer->inbox);
	if (peer->posted.first && peer->posted.first->posted_ns < oldest)
		oldest = peer->posted.first->posted_ns;
	pthread_mutex_unlock(&peer->inbox);
	return oldest;
}

/* ---------------------------------------------------------------- peers */

static void report_regions(struct kv_report *r, const struct ag_peer *peer)
{
	unsigned int asked = 0, told = 0, not_left = 0;

	for (const struct ag_rmem *rmem = peer->rmems; rmem; rmem = rmem->next)
		asked += rmem->state == AG_RMEM_NEW || rmem->state == AG_RMEM_WANTED;
	for (const struct ag_told *t = peer->told; t; t = t->next) {
		told++;
		not_left += t->said;
	}
	kv_report_int(r, "regions_not_described_by_it", asked);
	kv_report_int(r, "regions_described_to_it", told);
	kv_report_int(r, "withdrawn_and_not_left_by_it", not_left);
	kv_report_int(r, "messages_waiting", (int64_t)peer->out.n);
}

static void report_reason(struct kv_report *r, struct ag_peer *peer)
{
	pthread_mutex_lock(&peer->inbox);
	if (peer->unreached)
		kv_report_text(r, "not_reached", "%s", peer->reason.message);
	pthread_mutex_unlock(&peer->inbox);
}

static void report_far(struct kv_report *r, struct ag_peer *peer, int64_t deadline_ns)
{
	static const char *const states[] = { "handshake", "up", "lost" };
	int state = atomic_load(&peer->state);
	bool held = drive_until(peer, deadline_ns);

	kv_report_item(r, "peer");
	kv_report_int(r, "index", peer->index);
	kv_report_text(r, "name", "%s", peer->name && (held || !peer->incoming) ? peer->name : "");
	kv_report_text(r, "state", "%s", states[held ? atomic_load(&peer->state) : state]);
	kv_report_text(r, "by", "%s", peer->incoming ? "peer" : "agent");
	kv_report_flag(r, "dropped", atomic_load(&peer->dropped));
	if (held) {
		if (atomic_load(&peer->state) == AG_LOST) {
			kv_report_text(r, "error", "KV_ERR_%s", kv_error_name(peer->error.code));
			kv_report_text(r, "cause", "%s", peer->error.message);
		}
		report_reason(r, peer);
		if (peer->conn) {
			kv_report_text(r, "address", "%s", tr_conn_address(peer->conn));
			tr_conn_report(peer->conn, r);
		}
		report_regions(r, peer);
		report_xfers(r, peer);
		pthread_mutex_unlock(&peer->drive);
	} else {
		kv_report_text(r, "busy", "another thread is in a call on it");
	}
	kv_report_end_item(r);
}

void ag_report_agent(struct ag_agent *agent, struct kv_report *r)
{
	int64_t deadline_ns = kv_deadline_ns(PATIENCE_MS), oldest = INT64_MAX;
	unsigned int up = 0, handshakes = 0;
	struct ag_peer *peer;

	for (uint32_t i = 0; i < agent->peers_max; i++) {
		peer = ag_peer_at(agent, i);
		if (!peer)
			continue;
		up += atomic_load(&peer->state) == AG_UP;
		handshakes += atomic_load(&peer->state) == AG_CONNECTING;
		if (drive_until(peer, deadline_ns)) {
			int64_t of = oldest_of(peer);

			oldest = of < oldest ? of : oldest;
			pthread_mutex_unlock(&peer->drive);
		}
		ag_peer_put(peer);
	}
	kv_report_int(r, "peers_up", up);
	kv_report_int(r, "handshakes", handshakes);
	kv_report_age(r, "oldest_ms", oldest == INT64_MAX ? kv_now_ns() : oldest);
	kv_report_int(r, "notifications_waiting_bytes", (int64_t)atomic_load(&agent->notes_bytes));
	if (ag_note_full(agent))
		kv_report_text(r, "no_peer_is_read",
			       "the engine takes no notifications, and there is no more room");
	if (r->brief)
		return;
	kv_report_list(r, "peers");
	for (uint32_t i = 0; i < agent->peers_max; i++) {
		peer = ag_peer_at(agent, i);
		if (!peer)
			continue;
		report_far(r, peer, deadline_ns);
		ag_peer_put(peer);
	}
	kv_report_end_list(r);
}
