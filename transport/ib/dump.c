/* SPDX-License-Identifier: Apache-2.0 */
/* dump.c -- a connection's lanes, credits and operations as text, to answer "why does it hang" */
#include "base/clock.h"
#include "base/text.h"
#include "ib.h"

static void put_ops(struct kv_text *t, const struct ib_conn *c)
{
	int64_t now = kv_now_ns(), oldest = now;
	unsigned int busy = 0, committed = 0;
	uint64_t requests = 0;

	for (unsigned int i = 0; i < tr_conn_ops(c->conn); i++) {
		const struct ib_op *state = ib_op_at(c, i);

		if (!state->busy)
			continue;
		busy++;
		committed += state->committed;
		requests += state->in_flight;
		oldest = state->began_ns < oldest ? state->began_ns : oldest;
	}
	kv_text_add(
		t,
		"  operations %u (%u committed, %u stopping), %llu work requests, oldest %lld ms\n",
		busy, committed, c->stopping, (unsigned long long)requests,
		(long long)((now - oldest) / KV_NS_PER_MS));
}

void ib_set_path(struct ib_conn *c)
{
	const struct ib_path *path = &c->path[0];

	tr_conn_set_path(c->conn, "%s%d lanes on %d rails, the first %s (%s), mtu %u, %s",
			 c->staged ? "GPU through pinned memory; " : "", c->lanes, c->paths,
			 path->rail->name, path->rail->ethernet ? "RoCE v2" : "InfiniBand",
			 ib_path_packet(path), path->chosen);
}

int ib_dump(const struct tr_conn *conn, char *buf, size_t cap)
{
	static const char *const states[] = { "setup", "live", "breaking", "down" };
	const struct ib_conn *c = ib_conn_of(conn);
	struct kv_text t = { buf, cap, 0 };

	kv_text_add(&t, "  ib %s, %d paths, next number out %u in %u, stale completions %llu\n",
		    states[c->state], c->paths, c->seq_out, c->seq_in,
		    (unsigned long long)c->stale);
	for (int i = 0; i < c->paths; i++) {
		const struct ib_path *path = &c->path[i];

		kv_text_add(&t, "  path %d %s with the peer's rail %u, %s; %s; mtu %u", i,
			    path->rail->name, path->peer.rail, path->chosen, path->address.reason,
			    128u << ib_path_mtu(path));
		if (!path->rail->ethernet)
			kv_text_add(&t, ", lid %u to %u, P_Key 0x%04x", ib_path_lid(path),
				    path->peer.lid, path->pkey);
		kv_text_add(&t, "\n");
	}
	put_ops(&t, c);
	ib_staged_dump(&t, c);
	for (int i = 0; c->lane && i < c->lanes; i++) {
		const struct ib_lane *lane = &c->lane[i];

		kv_text_add(
			&t,
			"  lane %d %s qp 0x%x -> 0x%x%s: %u of %u requests under way, credits %u, owed "
			"%u\n",
			i, lane->path->rail->name, lane->qpn, lane->peer_qpn,
			lane->failed ? " failed" : "", lane->posted - lane->retired,
			c->ctx->sq_depth, lane->credits, lane->owed);
	}
	return (int)t.len;
}
