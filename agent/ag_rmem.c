/* SPDX-License-Identifier: Apache-2.0 */
/* ag_rmem.c -- regions of a peer: loaded, asked for, opened, gone */
#include <stdlib.h>

#include "ag.h"
#include "base/wire.h"

int ag_rmem_load(struct ag_agent *agent, const char *name, const void *info, size_t len,
		 struct ag_rmem **rmem_p, struct kv_error *err)
{
	struct ag_region region;
	struct ag_rmem *rmem;
	struct ag_peer *peer;
	int state, ret = ag_region_get(&region, info, len, err);

	if (ret)
		return ret;
	peer = ag_peer_get(agent, name, "load", err);
	if (!peer)
		return KV_ERR_ARG;
	rmem = calloc(1, sizeof(*rmem));
	if (!rmem) {
		ag_peer_put(peer);
		return kv_fail(err, KV_ERR_NOMEM, "load", "cannot allocate a region's record");
	}
	rmem->peer = peer;
	rmem->region = region;
	atomic_init(&rmem->refs, 1);
	pthread_mutex_lock(&peer->inbox);
	state = atomic_load(&peer->state);
	if (state == AG_LOST) { /* nobody takes it any more */
		rmem->state = AG_RMEM_GONE;
	} else {
		atomic_fetch_add(&rmem->refs, 1); /* the peer's list */
		rmem->next = peer->loaded;
		peer->loaded = rmem;
	}
	pthread_mutex_unlock(&peer->inbox);
	if (state == AG_UP) /* else it is asked for as soon as the peer is */
		ag_kick(peer);
	*rmem_p = rmem;
	return 0;
}

void ag_rmem_put(struct ag_rmem *rmem)
{
	if (atomic_fetch_sub(&rmem->refs, 1) != 1)
		return;
	ag_peer_put(rmem->peer);
	free(rmem);
}

void ag_rmem_unload(struct ag_rmem *rmem)
{
	atomic_store(&rmem->unloaded, true);
	atomic_fetch_add(&rmem->peer->unloads, 1);
	ag_rmem_put(rmem);
}

/* ---------------------------------------------------------------- under the peer's drive */

static void close_rmem(struct ag_rmem *rmem)
{
	if (rmem->rmem)
		tr_mem_close(rmem->rmem);
	rmem->rmem = NULL;
}

/* Only the list holds it, or an operation that goes on. */
static bool is_unwanted(const struct ag_rmem *rmem)
{
	return atomic_load(&rmem->unloaded) && atomic_load(&rmem->refs) == 1 && !rmem->uses &&
	       !rmem->leaving;
}

static void prune_rmems(struct ag_peer *peer)
{
	struct ag_rmem **at = &peer->rmems;
	unsigned int left = 0;

	atomic_store(&peer->unloads, 0);
	while (*at) {
		struct ag_rmem *rmem = *at;

		if (!is_unwanted(rmem)) {
			left += atomic_load(&rmem->unloaded);
			at = &rmem->next;
			continue;
		}
		*at = rmem->next;
		close_rmem(rmem);
		ag_rmem_put(rmem);
	}
	atomic_fetch_add(&peer->unloads, left);
}

void ag_rmem_take(struct ag_peer *peer, struct ag_rmem *loaded)
{
	while (loaded) {
		struct ag_rmem *rmem = loaded;

		loaded = rmem->next;
		rmem->next = peer->rmems;
		peer->rmems = rmem;
		peer->wanting = true;
	}
	if (atomic_load(&peer->unloads))
		prune_rmems(peer);
}

static bool say_id(struct ag_peer *peer, int kind, uint64_t id)
{
	struct ag_record *record;
	uint8_t body[8];
	struct wire_writer w = wire_writer_of(body, sizeof(body));

	wire_put_u64(&w, id);
	record = ag_record_new(kind, body, sizeof(body), NULL);
	if (record)
		ag_records_add(&peer->out, record);
	return record;
}

int ag_rmem_want(struct ag_peer *peer)
{
	int n = 0;

	if (!peer->wanting)
		return 0;
	for (struct ag_rmem *rmem = peer->rmems; rmem; rmem = rmem->next) {
		if (rmem->state != AG_RMEM_NEW)
			continue;
		if (peer->wanted == AG_WANTS || !say_id(peer, AG_WANT, rmem->region.id))
			return n; /* with an answer, or at the next tick */
		rmem->state = AG_RMEM_WANTED;
		peer->wanted++;
		n++;
	}
	peer->wanting = false;
	return n;
}

/* The description lies where the region said that it is. */
static bool covers_region(const struct ag_rmem *rmem)
{
	uint64_t len = tr_rmem_len(rmem->rmem), skip = rmem->region.addr - rmem->base;

	return rmem->region.addr >= rmem->base && skip <= len && rmem->region.len <= len - skip;
}

int ag_rmem_known(struct ag_peer *peer, const uint8_t *body, size_t len, struct kv_error *err)
{
	struct wire_reader r = wire_reader_of(body, len);
	uint64_t id = wire_get_u64(&r), base = wire_get_u64(&r);
	size_t left = wire_left(&r);
	const uint8_t *packed = wire_get(&r, left);

	if (r.bad || !peer->wanted)
		return kv_fail(err, KV_ERR_PROTOCOL, "hear",
			       "a description is cut off, or was not asked for");
	peer->wanted--;
	for (struct ag_rmem *rmem = peer->rmems; rmem; rmem = rmem->next) {
		int ret;

		if (rmem->region.id != id || rmem->state != AG_RMEM_WANTED)
			continue;
		rmem->state = AG_RMEM_GONE;
		if (!left)
			continue;
		ret = tr_mem_open(peer->conn, packed, left, &rmem->rmem, err);
		if (ret)
			return ret;
		rmem->base = base;
		if (!covers_region(rmem))
			return kv_fail(
				err, KV_ERR_PROTOCOL, "hear",
				"a description is not that of the region that was asked for");
		rmem->state = AG_RMEM_KNOWN;
	}
	return 0;
}

void ag_rmem_withdrawn(struct ag_peer *peer, uint64_t id)
{
	bool due = true;

	for (struct ag_rmem *rmem = peer->rmems; rmem; rmem = rmem->next)
		if (rmem->region.id == id) {
			rmem->state = AG_RMEM_GONE;
			rmem->leaving =
				due; /* one of them says it, when none has anything under way */
			peer->leaving = true;
			due = false;
		}
	if (due)
		say_id(peer, AG_LEFT, id);
}

static bool is_used(const struct ag_peer *peer, uint64_t id)
{
	for (const struct ag_rmem *rmem = peer->rmems; rmem; rmem = rmem->next)
		if (rmem->region.id == id && rmem->uses)
			return true;
	return false;
}

static void close_id(struct ag_peer *peer, uint64_t id)
{
	for (struct ag_rmem *rmem = peer->rmems; rmem; rmem = rmem->next)
		if (rmem->region.id == id)
			close_rmem(rmem);
}

int ag_rmem_leave(struct ag_peer *peer)
{
	bool left = false;
	int n = 0;

	if (!peer->leaving)
		return 0;
	for (struct ag_rmem *rmem = peer->rmems; rmem; rmem = rmem->next) {
		if (!rmem->leaving)
			continue;
		left = is_used(peer, rmem->region.id) || !say_id(peer, AG_LEFT, rmem->region.id);
		if (left)
			break; /* again when an operation has ended, or at the next tick */
		rmem->leaving = false;
		close_id(peer, rmem->region.id);
		n++;
	}
	peer->leaving = left;
	return n;
}

void ag_rmem_drop_all(struct ag_peer *peer)
{
	while (peer->rmems) {
		struct ag_rmem *rmem = peer->rmems;

		peer->rmems = rmem->next;
		rmem->state = AG_RMEM_GONE;
		rmem->rmem = NULL; /* closed with the connection */
		ag_rmem_put(rmem);
	}
}
