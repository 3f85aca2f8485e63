/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_times.c -- how long operations took: counted in their peer's record, with no lock; those of a
 * peer that goes stay with the engine, so that no sum of all ever falls
 */
#include <string.h>

#include "kv_peer.h"

enum { PATIENCE_MS = 20 };
_Static_assert(sizeof(struct kv_timing) == 2592, "docs/operate.md says what they cost a peer");

static void add_timing(struct kv_timing *to, const struct kv_timing *from)
{
	for (int kind = 0; kind < KV_KINDS; kind++)
		for (int part = 0; part < KV_TIMES; part++)
			kv_times_add(&to->of[kind][part], &from->of[kind][part]);
}

void kv_times_keep(struct kv_peer *peer)
{
	if (peer->timing)
		add_timing(&peer->engine->timing_gone, peer->timing);
}

void kv_times_of(const struct kv_peer *peer, struct kv_times *sum)
{
	for (int kind = 0; peer->timing && kind < KV_KINDS; kind++)
		kv_times_add(sum, &peer->timing->of[kind][KV_TIME_ALL]);
}

bool kv_times_look(struct kv_engine *engine, struct kv_timing *all, struct kv_timed_peer *rows,
		   size_t cap, size_t *n_p)
{
	size_t n = 0;

	if (!kv_engine_lock_until(engine, kv_deadline_ns(PATIENCE_MS)))
		return false;
	memset(all, 0, sizeof(*all));
	add_timing(all, &engine->timing_gone);
	for (uint32_t i = 0; i < engine->peers_end; i++) {
		const struct kv_peer *peer = engine->peer[i];

		if (!peer || !peer->timing)
			continue;
		add_timing(all, peer->timing);
		/* From now on its name is as it stays. */
		if (n == cap || peer->state == KV_PEER_HANDSHAKE)
			continue;
		memset(&rows[n], 0, sizeof(rows[n]));
		rows[n].index = i;
		memcpy(rows[n].name, peer->name, sizeof(rows[n].name));
		add_timing(&rows[n].timing, peer->timing);
		n++;
	}
	pthread_mutex_unlock(&engine->lock);
	*n_p = n;
	return true;
}
