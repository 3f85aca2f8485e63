/* SPDX-License-Identifier: Apache-2.0 */
/* kv_world.c -- engines, connections, arrivals */
#include "kv_world.h"

#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "fake.h"
#include "faults.h"
#include "schedule.h"

enum {
	AREA = BLOCKS * STRIDE,
	PAGE = 4096,
	GAP = PAGE, /* between layers: each tensor of each is a region of its own */
	JOIN_MS = 2000,
	CLOSE_TRIES = 400,
	PUMP_MS = 50,
	REGISTER_TRIES = 8,
	OPEN_TRIES = 600,
};

struct world w;

static void must(int ret, const struct kv_error *err, const char *what)
{
	if (ret < 0)
		sim_fail("%s: %s: %s", what, kv_error_name(ret), err->message);
}

/* ---------------------------------------------------------------- memory */

static uint8_t *place_of(int engine, int cache)
{
	return (uint8_t *)(uintptr_t)(SIM_MEMORY + ((uint64_t)engine * CACHES + (uint64_t)cache) *
							   (UINT64_C(1) << 32));
}

static void map_memory(struct engine *e, int cache)
{
	uint8_t *at = place_of(e->number, cache);

	for (int l = 0; l < LAYERS; l++)
		for (int t = 0; t < TENSORS; t++, at += AREA + GAP) {
			/* A page that another cache has is still there. */
			int stays = e->part && !cache && !l && !t ? PAGE : 0;

			mmap(at + stays, (size_t)(AREA - stays), PROT_READ | PROT_WRITE,
			     MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
			e->mem[cache][l][t] = at;
		}
	model_map(e->number, cache, e->mem[cache]);
}

/*
 * Another cache over the first page: it shares the region, and then it is an owner of a part of it.
 */
static void register_part(struct engine *e)
{
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_tensor tensor = { .name = "k", .block_bytes = STRIDE, .base = e->mem[0][0][0] };

	layout.cache_id = CACHES;
	layout.layers = layout.tensors = 1;
	layout.blocks = PAGE / STRIDE;
	layout.tensor = &tensor;
	if (TIMED(kv_cache_register, 0, e->kv, &layout, &e->part, NULL))
		e->part = NULL;
}

static int register_cache(struct engine *e, int cache, struct kv_error *err)
{
	struct kv_layout layout = KV_INIT(kv_layout);
	void *base[TENSORS][LAYERS];
	struct kv_tensor tensor[TENSORS] = { { .name = "k" }, { .name = "v" } };

	for (int t = 0; t < TENSORS; t++) {
		for (int l = 0; l < LAYERS; l++)
			base[t][l] = e->mem[cache][l][t];
		tensor[t].block_bytes = model_block_bytes[t];
		tensor[t].stride = STRIDE;
		tensor[t].layer_base = base[t];
	}
	layout.cache_id = (uint32_t)cache;
	layout.layers = LAYERS;
	layout.tensors = TENSORS;
	layout.blocks = BLOCKS;
	layout.tensor = tensor;
	layout.flags = cache ? KV_CACHE_OPEN | KV_CACHE_READABLE : 0;
	return TIMED(kv_cache_register, 0, e->kv, &layout, &e->cache[cache], err);
}

/* ---------------------------------------------------------------- connections */

struct slot *slot_new(void)
{
	for (int i = 0; i < SLOTS; i++)
		if (!w.slot[i].link) {
			uint32_t generation = w.slot[i].generation + 1;

			w.slot[i] = (struct slot){ .generation = generation };
			return &w.slot[i];
		}
	return NULL;
}

void slot_close(struct slot *slot)
{
	for (size_t i = 0; i < slot->n; i++)
		model_close(slot->to, slot->cache, slot->block[i]);
	slot->link = NULL;
	slot->lease = NULL;
	slot->generation++;
}

static struct link *current(int engine, int remote)
{
	struct link *link = w.engine[engine].links;

	while (link && link->remote != remote)
		link = link->next;
	return link;
}

static struct link *add_link(struct engine *e, int remote, struct kv_peer *peer)
{
	struct link *link = calloc(1, sizeof(*link));

	link->engine = e;
	link->remote = remote;
	link->peer = peer;
	link->next = e->links;
	e->links = link;
	return link;
}

/* Operations may still name it. */
static void forget_link(struct link *link)
{
	struct link **at = &link->engine->links;

	while (*at != link)
		at = &(*at)->next;
	*at = link->next;
	link->dead = true;
	link->next = w.dead;
	w.dead = link;
}

struct link *link_get(int engine, int remote)
{
	struct link *link = current(engine, remote);

	if (!link || link->closing || link->lost || w.joining[engine][remote] ||
	    w.engine[remote].frozen)
		return NULL;
	link->users++;
	return link;
}

void link_put(struct link *link)
{
	link->users--;
}

bool link_is_up(struct link *link)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);

	if (TIMED(kv_peer_info, 0, link->peer, &info, NULL) || !info.connected)
		link->lost = true;
	return !link->lost;
}

/* After 0 of kv_peer_close nothing of the connection lands here. */
static void close_memory(const struct link *link)
{
	int to = link->engine->number;
	bool last = current(to, link->remote) == link;

	for (int i = 0; i < SLOTS; i++)
		if (w.slot[i].link == link)
			slot_close(&w.slot[i]);
	for (int c = 0; c < CACHES && last; c++) {
		model_close_from(to, c, c ? TARGET_FIRST : LAND_FIRST, link->remote);
		for (int b = 0; b < BLOCKS; b++)
			if (w.source[to][c][b] == link)
				w.source[to][c][b] = NULL;
	}
}

void link_close(struct link *link)
{
	static const int64_t waits[] = { 0, 10, 100, 1000 };
	struct kv_error err;
	int ret;

	if (link->closing)
		return;
	link->closing = true;
	for (int i = 0; i < SLOTS; i++)
		if (w.slot[i].link == link)
			w.slot[i].lease = NULL;
	while (link->users)
		sched_sleep(1000000);
	for (int i = 0;; i++) {
		int64_t ms = waits[i < 4 ? i : 3];

		ret = TIMED(kv_peer_close, ms, link->peer, ms, &err);
		if (ret != KV_ERR_BUSY)
			break;
		if (i == CLOSE_TRIES)
			sim_fail("a peer cannot be closed: %s", err.message);
		sched_sleep(5000000);
	}
	must(ret, &err, "kv_peer_close");
	close_memory(link);
	forget_link(link);
}

static void close_all_to(int engine, int remote)
{
	struct link *link;

	while ((link = current(engine, remote))) {
		if (link->closing)
			sched_sleep(1000000);
		else
			link_close(link);
	}
}

/* The connecting end is the one with the lower number. */
static bool connect_pair(int a, int b)
{
	struct engine *from = &w.engine[a < b ? a : b], *to = &w.engine[a < b ? b : a];
	struct kv_error err;
	struct kv_peer *peer;
	int ret;

	close_all_to(a, b);
	close_all_to(b, a);
	ret = TIMED(kv_connect, JOIN_MS, from->kv, NULL, to->port, JOIN_MS, &peer, &err);
	if (ret == KV_ERR_ARG || ret == KV_ERR_GEOMETRY || ret == KV_ERR_VERSION ||
	    ret == KV_ERR_AUTH || ret == KV_ERR_INTERNAL || ret == KV_ERR_PROTOCOL)
		must(ret, &err, "kv_connect");
	if (ret) {
		sim_say("connect %d-%d: %s %s", a, b, kv_error_name(ret), err.message);
		/* What the other end may have made of it ends there before the next try. */
		sched_sleep(100000000);
		return false;
	}
	add_link(from, to->number, peer);
	for (int i = 0; i < 40 && !current(to->number, from->number); i++)
		sched_sleep(50000000);
	return current(to->number, from->number);
}

bool world_join(int a, int b)
{
	bool good;

	if (w.joining[a][b] || w.engine[a].frozen || w.engine[b].frozen)
		return false;
	w.joining[a][b] = w.joining[b][a] = true;
	good = connect_pair(a, b);
	w.joining[a][b] = w.joining[b][a] = false;
	return good;
}

/* ---------------------------------------------------------------- arrivals */

static void peer_up(struct engine *e, struct kv_peer *peer)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);

	if (kv_peer_info(peer, &info, NULL) || info.name[0] != 'e')
		sim_fail("a peer without a name: %s", info.name);
	add_link(e, info.name[1] - '0', peer);
}

static void blocks_came(const struct kv_arrival *arrival)
{
	struct model_op *op = model_find((uint32_t)arrival->tag);

	if (!op || op->arrivals++)
		sim_fail("operation %llu arrived %u times", (unsigned long long)arrival->tag,
			 op ? op->arrivals : 0);
	if (arrival->blocks != op->n)
		sim_fail("operation %u of %u blocks arrived with %llu", op->stamp, op->n,
			 (unsigned long long)arrival->blocks);
}

static void take_arrivals(struct engine *e)
{
	struct kv_arrival arrival;

	while (TIMED(kv_poll_arrivals, 0, e->kv, &arrival, 1, NULL) == 1) {
		if (arrival.kind == KV_ARRIVAL_PEER_UP)
			peer_up(e, arrival.peer);
		else if (arrival.kind == KV_ARRIVAL_BLOCKS)
			blocks_came(&arrival);
		for (struct link *l = e->links; l && arrival.kind == KV_ARRIVAL_PEER_LOST;
		     l = l->next)
			if (l->peer == arrival.peer)
				l->lost = true;
	}
}

static void *pump(void *arg)
{
	struct engine *e = arg;
	struct pollfd p = { .fd = kv_arrivals_fd(e->kv), .events = POLLIN };

	while (!e->ends) {
		take_arrivals(e);
		if (e->caller)
			TIMED(kv_progress, PUMP_MS, e->kv, PUMP_MS, NULL);
		else
			poll(&p, 1, PUMP_MS);
	}
	return NULL;
}

/* ---------------------------------------------------------------- life */

static void log_line(void *arg, int level, const char *line)
{
	sim_say("e%d log %d: %s", ((struct engine *)arg)->number, level, line);
}

static int try_open(struct engine *e, struct kv_error *err)
{
	static const char *const options[] = { "KVCACHE_SPIN_US=2",
					       "KVCACHE_SERVICE_SPIN_US=2",
					       "KVCACHE_OP_TIMEOUT_MS=5000",
					       "KVCACHE_HANDSHAKE_MS=3000",
					       "KVCACHE_DEBUG=1",
					       "KVCACHE_VIEW=0",
					       "KVCACHE_PEER_TIMEOUT_MS=5000",
					       NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	char name[] = { 'e', (char)('0' + e->number), '\0' };
	int ret;

	config.name = name;
	config.options = options;
	config.log = log_line;
	config.log_arg = e;
	config.progress = e->caller ? KV_PROGRESS_CALLER : KV_PROGRESS_AUTO;
	fake_host(e->number);
	ret = TIMED(kv_engine_open, 0, &config, &e->kv, err);
	if (ret)
		return ret;
	for (int c = 0; c < CACHES && !ret; c++)
		ret = register_cache(e, c, err);
	if (!ret)
		ret = TIMED(kv_listen, 3000, e->kv, NULL, 0, &e->port, err);
	if (ret)
		kv_engine_close(e->kv);
	return ret;
}

/* While something is wrong an engine may not be opened; it is when nothing is. */
static void open_engine(struct engine *e)
{
	struct kv_error err;
	int ret, tries = 0;

	for (int c = 0; c < CACHES; c++)
		map_memory(e, c);
	while ((ret = try_open(e, &err)) && tries++ < OPEN_TRIES)
		sched_sleep(100000000);
	must(ret, &err, "opening an engine again");
	e->ends = false;
	pthread_create(&e->pump, NULL, pump, e);
}

/* After it nothing lands in the engine's memory, whatever its peers do. */
static void close_engine(struct engine *e)
{
	struct bound bound;

	e->ends = true;
	pthread_join(e->pump, NULL);
	for (struct link *link = e->links; link; link = link->next)
		for (int i = 0; i < SLOTS; i++)
			if (w.slot[i].link == link)
				w.slot[i].lease = NULL;
	w.left_open |= faults_device_is_slow(e->number);
	bound = bound_begin();
	kv_engine_close(e->kv);
	e->part = NULL;
	bound_end(&bound, "kv_engine_close", 0);
	while (e->links) {
		close_memory(e->links);
		forget_link(e->links);
	}
	model_check(e->number);
}

void world_open(uint64_t seed, int engines)
{
	uint64_t random = seed;

	memset(&w, 0, sizeof(w));
	model_begin();
	w.engines = engines;
	for (int i = 0; i < w.engines; i++) {
		w.engine[i].number = i;
		w.engine[i].caller = sim_below(&random, 4) == 0;
		open_engine(&w.engine[i]);
	}
	for (int i = 0; i < w.engines; i++)
		for (int j = i + 1; j < w.engines; j++)
			if (!world_join(i, j))
				sim_fail("engines %d and %d cannot be connected", i, j);
}

void world_close(void)
{
	for (int i = 0; i < w.engines; i++)
		for (int j = 0; j < w.engines; j++)
			close_all_to(i, j);
	for (int i = 0; i < w.engines; i++)
		close_engine(&w.engine[i]);
	while (w.dead) {
		struct link *link = w.dead;

		w.dead = link->next;
		free(link);
	}
	model_end();
}

static void unmap_memory(struct engine *e, int c)
{
	model_check(e->number);
	model_unmap(e->number, c);
	for (int l = 0; l < LAYERS; l++)
		for (int t = 0; t < TENSORS; t++) {
			int stays = e->part && !c && !l && !t ? PAGE : 0;

			munmap(e->mem[c][l][t] + stays, (size_t)(AREA - stays));
		}
}

static void reopen_engine(struct engine *e)
{
	close_engine(e);
	for (int c = 0; c < CACHES; c++)
		unmap_memory(e, c);
	open_engine(e);
}

static void unregister(struct engine *e, struct kv_cache **cache)
{
	struct kv_error err;
	int ret;

	for (int i = 0; (ret = TIMED(kv_cache_unregister, 0, *cache, &err)) == KV_ERR_BUSY; i++) {
		if (i == CLOSE_TRIES)
			sim_fail("a cache cannot be unregistered: %s", err.message);
		for (int r = 0; r < w.engines; r++)
			close_all_to(e->number, r);
		sched_sleep(50000000);
	}
	must(ret, &err, "kv_cache_unregister");
	*cache = NULL;
}

/* No step uses the engine until it thaws; none of its operations is under way. */
static bool freeze(struct engine *e)
{
	if (e->frozen)
		return false;
	e->frozen = true;
	while (e->users)
		sched_sleep(1000000);
	for (int r = 0; r < w.engines; r++)
		while (w.joining[e->number][r])
			sched_sleep(1000000);
	return true;
}

void world_recycle(int engine, bool keep_part)
{
	struct engine *e = &w.engine[engine];
	struct kv_error err;
	int ret = 0;

	if (!freeze(e))
		return;
	for (int r = 0; r < w.engines; r++)
		close_all_to(engine, r);
	if (e->part && !keep_part)
		unregister(e, &e->part);
	for (int c = 0; c < CACHES; c++) {
		unregister(e, &e->cache[c]);
		unmap_memory(e, c);
	}
	for (int c = 0; c < CACHES; c++) {
		map_memory(e, c);
		for (int i = 0; !ret && i < REGISTER_TRIES; i++) {
			ret = register_cache(e, c, &err);
			if (ret != KV_ERR_DEVICE && ret != KV_ERR_NOMEM && ret != KV_ERR_MEMLOCK)
				break;
			sched_sleep(50000000);
			ret = i < REGISTER_TRIES - 1 ? 0 : ret;
		}
	}
	if (ret == KV_ERR_DEVICE) /* its scope: the engine is opened again */
		reopen_engine(e);
	else
		must(ret, &err, "kv_cache_register");
	if (!e->part)
		register_part(e);
	e->frozen = false;
}

void world_reopen(int engine)
{
	struct engine *e = &w.engine[engine];

	if (!freeze(e))
		return;
	reopen_engine(e);
	e->frozen = false;
}
