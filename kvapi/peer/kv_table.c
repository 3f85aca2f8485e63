/* SPDX-License-Identifier: Apache-2.0 */
/* kv_table.c -- the peers of an engine by their places in its table: watched, claimed, released */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "base/thread.h"
#include "kv_peer.h"

/*
 * A peer is named by index and generation, so that a closed one is not mistaken for its successor.
 */
_Static_assert(KV_PEERS_MAX + KV_TOKEN_PEERS < 1 << TR_SLOT_SHIFT, "a token has room for a slot");

static uint64_t token_of(const struct kv_peer *peer)
{
	return (uint64_t)peer->engine->peer_generation[peer->index] << 32 |
	       (peer->index + KV_TOKEN_PEERS);
}

int kv_table_watch(struct kv_peer *peer, struct kv_error *err)
{
	if (kv_fault(KV_WATCH))
		return kv_fail_errno(err, KV_ERR_SYSTEM, ENOMEM, "watch", "epoll_ctl failed");
	return tr_conn_enter_set(peer->conn, peer->engine->epoll_fd, token_of(peer), err);
}

/*
 * The peer at `index` with its claim held, or NULL. If the claim is taken, engine.wants is set: its
 * holder looks there after its release. So the second try gets the free claim, or the holder sees
 * the flag.
 */
struct kv_peer *kv_table_try(struct kv_engine *engine, uint32_t index, const uint32_t *generation)
{
	struct kv_peer *peer;
	bool taken = false;

	pthread_mutex_lock(&engine->lock);
	peer = engine->peer[index];
	if (peer && generation && engine->peer_generation[index] != *generation)
		peer = NULL;
	if (peer && !kv_claim_try(&peer->claim)) {
		if (generation)
			atomic_store(&engine->wants[index], true);
		if (!generation || !kv_claim_try(&peer->claim))
			taken = true;
		else
			atomic_store(&engine->wants[index], false);
	}
	pthread_mutex_unlock(&engine->lock);
	return taken ? NULL : peer;
}

struct kv_peer *kv_table_glance(struct kv_engine *engine, uint32_t index)
{
	struct kv_peer *peer;

	pthread_mutex_lock(&engine->lock);
	peer = engine->peer[index];
	if (peer && (atomic_load(&peer->claim.wanting) || !kv_claim_try(&peer->claim)))
		peer = NULL;
	pthread_mutex_unlock(&engine->lock);
	return peer;
}

struct kv_peer *kv_table_claim(struct kv_engine *engine, uint32_t index, int64_t deadline_ns)
{
	for (;;) {
		struct kv_peer *peer;
		bool mine;

		if (!kv_engine_lock_until(engine, deadline_ns))
			return NULL;
		peer = engine->peer[index];
		mine = peer && kv_claim_try(&peer->claim);
		pthread_mutex_unlock(&engine->lock);
		if (!peer || mine)
			return peer;
		if (kv_now_ns() >= deadline_ns)
			return NULL;
		poll(NULL, 0, 1);
	}
}

/* Under engine.lock, so that the peer stays. */
KV_LOOKS static void look_at_peer(const struct kv_peer *peer, struct kv_peer_look *to)
{
	to->incoming = KV_SEEN(peer->incoming);
	to->leaving = KV_SEEN(peer->leaving);
	to->state = peer->state;
	to->round_ns = KV_SEEN(peer->round_ns);
	for (size_t i = 0; i < sizeof(to->name) - 1; i++)
		to->name[i] = KV_SEEN(peer->name[i]);
	for (size_t i = 0; i < sizeof(to->address) - 1; i++)
		to->address[i] = KV_SEEN(peer->address[i]);
	for (size_t i = 0; i < sizeof(to->transport) - 1; i++)
		to->transport[i] = KV_SEEN(peer->transport[i]);
	kv_times_of(peer, &to->times);
}

uint32_t kv_table_count(const struct kv_engine *engine, unsigned int state)
{
	uint32_t n = 0;

	for (uint32_t i = 0; i < engine->peers_end; i++)
		n += engine->peer[i] && engine->peer[i]->state == state;
	return n;
}

bool kv_table_look(struct kv_engine *engine, uint32_t index, int64_t deadline_ns,
		   struct kv_peer_look *look)
{
	const struct kv_peer *peer;

	*look = (struct kv_peer_look){ .state = 0 };
	if (!kv_engine_lock_until(engine, deadline_ns))
		return false;
	peer = engine->peer[index];
	if (peer)
		look_at_peer(peer, look);
	pthread_mutex_unlock(&engine->lock);
	return peer;
}

void kv_table_leave(struct kv_peer *peer)
{
	struct kv_engine *engine = peer->engine;
	uint32_t index = peer->index;

	kv_table_keep_awake(peer);
	kv_claim_release(&peer->claim);
	if (atomic_load(&engine->wants[index]))
		kv_engine_wake(engine); /* the sweep gives the descriptor back to epoll */
}

enum { TABLE_LEAST = 16 };
_Static_assert(!(KV_OPS_MAX & (KV_OPS_MAX - 1)) && !(KV_LEASES_MAX & (KV_LEASES_MAX - 1)),
	       "a table that is doubled ends at its limit");

void *kv_table_grow(void *table, unsigned int *cap_p, unsigned int need, size_t entry_bytes)
{
	unsigned int cap = *cap_p ? *cap_p : TABLE_LEAST;
	uint8_t *grown;

	if (need <= *cap_p)
		return table;
	while (cap < need)
		cap *= 2;
	grown = kv_fault(KV_TABLE) ? NULL : realloc(table, cap * entry_bytes);
	if (!grown)
		return NULL;
	memset(grown + *cap_p * entry_bytes, 0, (cap - *cap_p) * entry_bytes);
	*cap_p = cap;
	return grown;
}

void kv_peer_leave_pending(struct kv_peer *peer, enum kv_peer_state state)
{
	pthread_mutex_lock(&peer->engine->lock);
	peer->engine->peers_pending -= peer->incoming;
	peer->state = (uint8_t)state;
	pthread_mutex_unlock(&peer->engine->lock);
}
