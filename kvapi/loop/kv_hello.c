/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_hello.c -- what two engines send each other in the handshake
 *
 * Hello: the engine's name and the shape of its caches (kv_wire.h). Setup, after both hellos were
 * accepted, for each of those caches in the order of the hello:
 *   u8 cache id, u16 regions, each u16 length + packed description (tr_mem_pack);
 *   u64 stride of each tensor; of each layer and tensor u16 region, u64 offset of block 0 in it
 */
#include "kv_loop.h"

#include <stdio.h>
#include <stdlib.h>

#include "base/wire.h"
#include "kv_digest.h"

/*
 * ---------------------------------------------------------------- the tables of an accepted peer
 */

const struct kv_map kv_no_map;

/* Under engine.lock: this peer gets to know the caches that exist now, and no later ones. */
static int make_link(struct kv_peer *peer, struct kv_error *err)
{
	struct kv_link *link = kv_fault(KV_LINK_ALLOC) ? NULL : calloc(1, sizeof(*link));

	peer->timing = link ? calloc(1, sizeof(*peer->timing)) : NULL;
	if (!peer->timing) {
		free(link);
		return kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate a peer's tables");
	}
	for (unsigned int i = 0; i < KV_CACHES_MAX; i++) {
		link->known[i] = peer->engine->cache[i];
		if (link->known[i])
			link->known[i]->peers++;
	}
	for (unsigned int i = 0; i < KV_CACHES_MAX; i++)
		link->map[i] = (struct kv_map *)(uintptr_t)&kv_no_map;
	peer->link = link;
	peer->engine->peers_up++;
	return 0;
}

void kv_hello_free(struct kv_peer *peer)
{
	struct kv_link *link = peer->link;

	if (!link)
		return;
	kv_lease_free_all(peer);
	kv_grant_free_all(peer);
	pthread_mutex_lock(&peer->engine->lock);
	for (unsigned int i = 0; i < KV_CACHES_MAX; i++)
		if (link->known[i])
			link->known[i]->peers--;
	peer->engine->peers_up--;
	pthread_mutex_unlock(&peer->engine->lock);
	for (unsigned int i = 0; i < KV_CACHES_MAX; i++) {
		if (link->map[i] == &kv_no_map)
			continue;
		free(link->map[i]->slab);
		kv_marks_free(&link->map[i]->remote_marks);
		kv_marks_free(&link->map[i]->local_marks);
	}
	free(link->maps);
	free(link->slot);
	free(link->in);
	free(link->lease);
	free(link->grant);
	free(link->checks);
	free(link);
	peer->link = NULL;
}

static int make_link_checked(struct kv_peer *peer, struct kv_error *err)
{
	struct kv_engine *engine = peer->engine;
	int ret;

	pthread_mutex_lock(&engine->lock);
	if (engine->peers_up >= engine->peers_max) {
		ret = kv_fail(err, KV_ERR_BUSY, "connect", "%s has its limit of %u peers",
			      engine->name, engine->peers_max);
		kv_error_hint(err, "raise KVCACHE_MAX_PEERS of that engine");
	} else {
		ret = make_link(peer, err);
	}
	pthread_mutex_unlock(&engine->lock);
	return ret;
}

/* ---------------------------------------------------------------- hello */

static int hello_put(void *arg, struct tr_conn *conn, void *buf, size_t cap)
{
	struct kv_peer *peer = arg;
	struct kv_hello hello = { .comm = peer->comm, .comm_rank = peer->comm_rank };
	size_t len;

	if (!peer->link) {
		int ret = make_link_checked(peer, &peer->error);

		if (ret)
			return ret;
	}
	kv_cache_hello(&hello, peer->engine->name, peer->link->known);
	len = kv_wire_put_hello(&hello, buf, cap);
	return len ? (int)len : KV_ERR_INTERNAL;
}

/* *theirs: the same difference as the peer has to read it. */
static int compare_caches(struct kv_cache *const *ours, const struct kv_hello *hello,
			  struct kv_error *err, struct kv_error *theirs)
{
	for (uint32_t i = 0; i < hello->caches; i++) {
		const struct kv_cache *cache = ours[hello->cache[i].cache_id];
		int ret = cache ? kv_geometry_compare(&cache->geometry, &hello->cache[i], err) : 0;

		if (ret)
			return kv_geometry_compare(&hello->cache[i], &cache->geometry, theirs);
	}
	return 0;
}

static bool names(const struct kv_hello *hello, unsigned int id)
{
	for (uint32_t i = 0; i < hello->caches; i++)
		if (hello->cache[i].cache_id == id)
			return true;
	return false;
}

/* A peer gets only the caches that it named itself, and no other memory. */
static void forget_others(struct kv_peer *peer, const struct kv_hello *hello)
{
	struct kv_cache **known = peer->link->known;

	pthread_mutex_lock(&peer->engine->lock);
	for (unsigned int i = 0; i < KV_CACHES_MAX; i++)
		if (known[i] && !names(hello, i)) {
			known[i]->peers--;
			known[i] = NULL;
		}
	pthread_mutex_unlock(&peer->engine->lock);
}

static int make_maps(struct kv_peer *peer, const struct kv_hello *hello, struct kv_error *err)
{
	struct kv_link *link = peer->link;

	link->maps =
		kv_fault(KV_LINK_ALLOC) ? NULL : calloc(hello->caches + 1, sizeof(*link->maps));
	if (!link->maps)
		return kv_fail(err, KV_ERR_NOMEM, "connect",
			       "cannot allocate what a peer has of %u caches", hello->caches);
	for (uint32_t i = 0; i < hello->caches; i++) {
		struct kv_map *map = &link->maps[i];

		link->map[hello->cache[i].cache_id] = map;
		map->remote = hello->cache[i];
		map->cache = link->known[hello->cache[i].cache_id];
		if (!map->cache)
			continue;
		map->meets = kv_geometry_parts(&map->cache->geometry, &map->remote, map->part);
		for (uint32_t t = 0; t < map->remote.tensors; t++)
			map->block_bytes += map->part[t].len * map->part[t].rows;
	}
	return 0;
}

uint64_t kv_hello_features(const struct kv_engine *engine)
{
	/* With KV_PROGRESS_CALLER nothing answers while the application does something else. */
	return (kv_digest_works() ? KV_CAN_CHECK : 0) | (engine->checks ? KV_WANTS_CHECK : 0) |
	       (engine->caller_mode ? 0 : KV_SENDS_PONG);
}

/* Digests are made if either end wants them; both must be able to. */
static int agree_on_checks(struct kv_peer *peer, uint64_t theirs, struct kv_error *err)
{
	const struct kv_engine *engine = peer->engine;

	if (!engine->checks && !(theirs & KV_WANTS_CHECK))
		return 0;
	if (!(theirs & kv_hello_features(engine) & KV_CAN_CHECK))
		return kv_fail(err, KV_ERR_VERSION, "connect",
			       "KVCACHE_CHECKSUM is on at %s, and %s cannot make digests: its "
			       "version or its processor is older",
			       engine->checks ? engine->name : peer->name,
			       engine->checks ? peer->name : engine->name);
	for (unsigned int i = 0; i < KV_CACHES_MAX; i++)
		if (peer->link->known[i] && peer->link->known[i]->device)
			return kv_fail(err, KV_ERR_UNSUPPORTED, "connect",
				       "KVCACHE_CHECKSUM is on at %s, and cache %u of %s is a "
				       "GPU's memory, of which no CPU makes a digest",
				       engine->checks ? engine->name : peer->name, i, engine->name);
	peer->link->checks = kv_fault(KV_LINK_ALLOC) ? NULL : calloc(1, sizeof(struct kv_checks));
	if (!peer->link->checks)
		return kv_fail(err, KV_ERR_NOMEM, "connect",
			       "cannot allocate what compares a peer's blocks");
	return 0;
}

static int hello_get(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	struct kv_peer *peer = arg;
	struct kv_engine *engine = peer->engine;
	struct kv_error theirs;
	struct kv_hello hello;
	int ret;

	if (!kv_wire_get_hello(buf, len, &hello))
		return kv_fail(err, KV_ERR_PROTOCOL, "connect", "the hello is malformed");
	if (peer->link) {
		ret = compare_caches(peer->link->known, &hello, err, &theirs);
	} else {
		pthread_mutex_lock(&engine->lock);
		ret = compare_caches(engine->cache, &hello, err, &theirs);
		pthread_mutex_unlock(&engine->lock);
	}
	if (ret)
		tr_conn_refuse(conn, &theirs);
	else if (!peer->link)
		ret = make_link_checked(peer, err);
	if (ret)
		return ret;
	if (peer->incoming) {
		peer->comm = hello.comm;
		peer->comm_rank = hello.comm_rank;
	}
	snprintf(peer->name, sizeof(peer->name), "%s", hello.name);
	forget_others(peer, &hello);
	ret = make_maps(peer, &hello, err);
	return ret ? ret : agree_on_checks(peer, tr_conn_features(conn), err);
}

/* ---------------------------------------------------------------- setup */

static int put_regions(struct tr_conn *conn, const struct kv_cache *cache, struct wire_writer *w,
		       struct kv_error *err)
{
	uint8_t packed[TR_MEM_PACK_MAX];

	wire_put_u16(w, (uint16_t)cache->regions);
	for (size_t i = 0; i < cache->regions; i++) {
		size_t len;
		int ret = tr_mem_pack(conn, cache->region[i], packed, sizeof(packed), &len, err);

		if (ret)
			return ret;
		wire_put_u16(w, (uint16_t)len);
		wire_put_bytes(w, packed, len);
	}
	return 0;
}

static void put_slabs(const struct kv_cache *cache, struct wire_writer *w)
{
	size_t slabs = (size_t)cache->geometry.layers * cache->geometry.tensors;
	uint16_t region = 0;

	for (uint32_t t = 0; t < cache->geometry.tensors; t++)
		wire_put_u64(w, cache->stride[t]);
	for (size_t i = 0; i < slabs; i++) {
		/* Neighbours mostly share a region: the search begins where the last one ended. */
		while (cache->region[region] != cache->slab[i].mem)
			region = (uint16_t)((region + 1) % cache->regions);
		wire_put_u16(w, region);
		wire_put_u64(w, cache->slab[i].offset);
	}
}

static int setup_put(void *arg, struct tr_conn *conn, void *buf, size_t cap, struct kv_error *err)
{
	struct kv_peer *peer = arg;
	struct wire_writer w = wire_writer_of(buf, cap);

	for (unsigned int i = 0; i < KV_CACHES_MAX; i++) {
		const struct kv_cache *cache = peer->link->known[i];
		int ret;

		if (!cache)
			continue;
		wire_put_u8(&w, (uint8_t)i);
		ret = put_regions(conn, cache, &w, err);
		if (ret)
			return ret;
		put_slabs(cache, &w);
	}
	if (w.bad)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "connect",
			       "the regions of this engine's caches need more than %d bytes",
			       TR_SETUP_MAX);
	return (int)w.len;
}

static int bad_setup(unsigned int id, const char *what, struct kv_error *err)
{
	return kv_fail(err, KV_ERR_PROTOCOL, "connect", "the setup of cache %u: %s", id, what);
}

/* Whether every block of a tensor at `offset` lies inside a region of `len` bytes. */
static bool inside(uint64_t len, uint64_t offset, uint64_t stride, uint64_t block_bytes,
		   uint32_t blocks)
{
	uint64_t end;

	return !__builtin_mul_overflow(stride, (uint64_t)blocks - 1, &end) &&
	       !__builtin_add_overflow(end, block_bytes, &end) &&
	       !__builtin_add_overflow(end, offset, &end) && end <= len;
}

/* `rmem` is NULL for a cache that this side has not. */
static int get_slabs(struct kv_map *map, struct tr_rmem **rmem, uint16_t regions,
		     struct wire_reader *r, struct kv_error *err)
{
	const struct kv_geometry *g = &map->remote;

	for (uint32_t t = 0; t < g->tensors; t++) {
		map->stride[t] = wire_get_u64(r);
		if (map->stride[t] < g->tensor[t].block_bytes)
			return bad_setup(g->cache_id, "a stride is less than its block", err);
	}
	for (uint32_t i = 0; i < g->layers * g->tensors; i++) {
		uint32_t t = i % g->tensors;
		uint16_t region = wire_get_u16(r);
		uint64_t offset = wire_get_u64(r);

		if (r->bad || region >= regions)
			return bad_setup(g->cache_id, "a region number is out of range", err);
		if (!rmem)
			continue;
		if (!inside(tr_rmem_len(rmem[region]), offset, map->stride[t],
			    g->tensor[t].block_bytes, g->blocks))
			return bad_setup(g->cache_id, "blocks leave their region", err);
		map->slab[i] = (struct kv_rslab){ .rmem = rmem[region], .offset = offset };
	}
	return 0;
}

static int get_regions(struct tr_conn *conn, unsigned int id, struct tr_rmem **rmem,
		       uint16_t regions, struct wire_reader *r, struct kv_error *err)
{
	for (uint16_t i = 0; i < regions; i++) {
		size_t len = wire_get_u16(r);
		const uint8_t *packed = wire_get(r, len);
		int ret;

		if (!packed)
			return bad_setup(id, "it ends inside a region", err);
		ret = rmem ? tr_mem_open(conn, packed, len, &rmem[i], err) : 0;
		if (ret)
			return ret;
	}
	return 0;
}

static int get_cache(struct kv_peer *peer, struct tr_conn *conn, struct wire_reader *r,
		     struct kv_error *err)
{
	unsigned int id = wire_get_u8(r);
	uint16_t regions = wire_get_u16(r);
	struct tr_rmem **rmem = NULL;
	struct kv_map *map;
	size_t slabs;
	int ret;

	if (id >= KV_CACHES_MAX || !peer->link->map[id]->remote.layers)
		return bad_setup(id, "the hello did not name it", err);
	map = peer->link->map[id];
	slabs = (size_t)map->remote.layers * map->remote.tensors;
	if (!regions || regions > slabs || map->slab)
		return bad_setup(id, "the number of regions is out of range", err);
	if (map->cache) {
		map->slab = kv_fault(KV_RSLABS) ? NULL : calloc(slabs, sizeof(*map->slab));
		rmem = map->slab ? calloc(regions, sizeof(struct tr_rmem *)) : NULL;
		if (!rmem)
			return kv_fail(err, KV_ERR_NOMEM, "connect", "cannot allocate %zu slabs",
				       slabs);
	}
	/* What is opened here is closed with the connection. */
	ret = get_regions(conn, id, rmem, regions, r, err);
	if (!ret)
		ret = get_slabs(map, rmem, regions, r, err);
	free(rmem);
	return ret;
}

static int setup_get(void *arg, struct tr_conn *conn, const void *buf, size_t len,
		     struct kv_error *err)
{
	struct kv_peer *peer = arg;
	struct wire_reader r = wire_reader_of(buf, len);

	while (wire_left(&r)) {
		int ret = get_cache(peer, conn, &r, err);

		if (ret)
			return ret;
	}
	for (unsigned int i = 0; i < KV_CACHES_MAX; i++)
		if (peer->link->map[i]->cache && !peer->link->map[i]->slab)
			return bad_setup(i, "it is missing", err);
	return 0;
}

const struct tr_upper_ops kv_upper_ops = {
	.id = TR_UPPER_KV,
	.version = KV_WIRE_VERSION,
	.hello_put = hello_put,
	.hello_get = hello_get,
	.setup_put = setup_put,
	.setup_get = setup_get,
	.may = kv_place_may,
};
