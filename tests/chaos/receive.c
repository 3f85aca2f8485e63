/* SPDX-License-Identifier: Apache-2.0 */
/* receive.c -- opens blocks, orders their bytes, takes some back early, looks at each byte */
#include "peer.h"

#include <string.h>

enum request_state { UNUSED, OPEN, TAKEN_BACK };

struct request {
	enum request_state state; /* TAKEN_BACK: the call that takes the blocks back said BUSY */
	struct link *link;
	uint64_t slot; /* of the sender's mail, among this receiver's */
	uint64_t tag, n, seed;
	int64_t ids[N_MAX];
	struct kv_lease *lease; /* of kv_blocks_open, or */
	struct kv_op *op;	/* of kv_recv_blocks_async; */
	struct kv_op *word;	/* the write of the order */
	int64_t take_back_ms;
};
static struct request requests[MAIL_SLOTS]; /* each with the block of this end's mail cache */
static uint64_t last_tag;
static bool finishing;

static bool choose_blocks(struct request *r)
{
	uint64_t want = 1 + chance(&options.random, N_MAX);

	while (r->n < want) {
		uint64_t at = chance(&options.random, cache.shape.blocks), tries = 0;

		while (cache.incoming[at] && ++tries < cache.shape.blocks)
			at = (at + 1) % cache.shape.blocks;
		if (cache.incoming[at])
			break;
		cache.incoming[at] = seed_of(r->seed, r->n);
		cache.landed[at] = 0;
		r->ids[r->n++] = (int64_t)at;
	}
	return r->n;
}

static bool is_whole(int64_t id)
{
	uint32_t all = (1u << cache.shape.layers) - 1;

	return (cache.landed[id] & all) == all;
}

/* The blocks are this end's again: in a soak as they are now. */
static void close_blocks(struct request *r)
{
	for (uint64_t i = 0; i < r->n; i++) {
		if (options.soak && is_whole(r->ids[i])) {
			cache.stamp[r->ids[i]] = cache.incoming[r->ids[i]];
			cache.incoming[r->ids[i]] = 0;
			continue;
		}
		block_check(&cache, r->ids[i]);
		block_stamp(&cache, r->ids[i], &options.random);
	}
	kv_op_free(r->word, NULL);
	kv_op_free(r->op, NULL);
	*r = (struct request){ 0 };
}

static int open_blocks(struct request *r)
{
	struct kv_options opts = KV_INIT(kv_options);

	opts.timeout_ms = REQUEST_MS;
	if (chance(&options.random, 2))
		return CALL(may_open, 5000,
			    kv_blocks_open(r->link->peer, cache.handle, r->ids, r->n, r->tag,
					   20 * REQUEST_MS, &r->lease, &error));
	return CALL(may_open, REQUEST_MS,
		    kv_recv_blocks_async(r->link->peer, cache.handle, all_layers, r->ids, r->n,
					 r->tag, &opts, &r->op, &error));
}

static void send_order(struct request *r)
{
	int64_t local = r - requests, remote = (int64_t)(options.id * SLOTS_EACH + r->slot);
	struct order *order = (struct order *)(void *)mail_mem[local];
	struct kv_options opts = KV_INIT(kv_options);

	*order = (struct order){ .receiver = options.id,
				 .tag = r->tag,
				 .lease = r->lease ? kv_lease_id(r->lease) : 0,
				 .seed = r->seed,
				 .n = r->n };
	memcpy(order->ids, r->ids, sizeof(r->ids));
	order->check = order_check(order);
	opts.timeout_ms = OP_MS;
	opts.tag = (uint64_t)remote;
	if (CALL(may_end, OP_MS,
		 kv_write_blocks_async(r->link->peer, mail, all_layers, &local, &remote, 1, &opts,
				       &r->word, &error)))
		r->take_back_ms = 0;
}

static void begin(struct link *link, uint64_t slot)
{
	struct request *r = requests;

	while (r->state)
		if (++r == requests + MAIL_SLOTS)
			return;
	*r = (struct request){ .link = link, .slot = slot, .tag = ++last_tag };
	r->seed = mix(options.random + last_tag);
	r->take_back_ms = lived_ms() + 2 * REQUEST_MS;
	if (!options.soak && !chance(&options.random, 4))
		r->take_back_ms = lived_ms() + (int64_t)chance(&options.random, 4) * 10;
	if (!choose_blocks(r))
		return;
	if (open_blocks(r)) {
		status->failed++;
		if (error.scope >= KV_SCOPE_PEER)
			link_drop(link);
		close_blocks(r);
		return;
	}
	r->state = OPEN;
	send_order(r);
}

/* The lease or receive is closed; of a lost peer the end of the connection does that. */
static void take_back(struct request *r)
{
	int64_t wait_ms = r->state == OPEN ? STOP_MS : 0;
	int ret;

	if (r->lease)
		ret = CALL(may_close, wait_ms, kv_revoke(r->lease, wait_ms, &error));
	else
		ret = CALL(may_close, wait_ms, kv_cancel(r->op, wait_ms, &error));
	r->state = TAKEN_BACK;
	if (!ret)
		close_blocks(r);
}

static void count_good(struct request *r)
{
	bool good = true;

	for (uint64_t i = 0; i < r->n; i++)
		good &= block_check(&cache, r->ids[i]);
	if (!good)
		return;
	status->good[r->link->id]++;
	status->bytes += r->n * cache.shape.layers * (cache.shape.bytes[0] + cache.shape.bytes[1]);
}

static void look_at_op(struct request *r)
{
	call_begin("kv_test", 0);
	int ret = call_end(kv_test(r->op, &error), &error, may_end);

	if (ret == KV_ACKED) {
		for (uint64_t i = 0; i < r->n; i++)
			cache.landed[r->ids[i]] = UINT32_MAX;
		count_good(r);
		close_blocks(r);
	} else if (ret < 0) {
		status->failed++;
		/* Of a lost peer the blocks are this end's again when it is closed. */
		if (error.scope >= KV_SCOPE_PEER)
			link_drop(r->link);
		else
			take_back(r);
	}
}

static void look_at_word(struct request *r)
{
	int ret = CALL(may_end, 0, kv_test(r->word, &error));

	if (ret >= 0 && ret < KV_ACKED)
		return;
	if (ret < 0) {
		status->failed++;
		r->take_back_ms = 0;
		if (error.scope >= KV_SCOPE_PEER)
			link_drop(r->link);
	}
	kv_op_free(r->word, NULL);
	r->word = NULL;
}

static void advance(struct request *r)
{
	if (r->link->lost)
		return;
	if (r->word)
		look_at_word(r);
	if (r->link->lost)
		return;
	if (r->state == TAKEN_BACK) {
		take_back(r);
	} else if (lived_ms() >= r->take_back_ms) {
		status->taken_back++;
		take_back(r);
	} else if (r->op) {
		look_at_op(r);
	}
}

static bool slot_is_free(const struct link *link, uint64_t slot)
{
	for (const struct request *r = requests; r < requests + MAIL_SLOTS; r++)
		if (r->state && r->link == link && r->slot == slot)
			return false;
	return true;
}

static bool step(void)
{
	static int64_t next;
	uint64_t before = last_tag;

	for (struct request *r = requests; r < requests + MAIL_SLOTS; r++)
		if (r->state)
			advance(r);
	for (struct link *link = links; link < links + LINKS && !finishing; link++)
		for (uint64_t slot = 0; slot < options.in_flight; slot++)
			if (link->peer && !link->lost && slot_is_free(link, slot))
				begin(link, slot);
	if (!options.soak || last_tag == before)
		block_check(&cache, next++ % cache.shape.blocks);
	return last_tag != before;
}

static void arrival(struct link *link, const struct kv_arrival *a)
{
	uint32_t end = a->layers.count ? a->layers.first + a->layers.count : cache.shape.layers;
	struct request *r = requests;

	while (!(r->state && r->lease && r->link == link && r->tag == a->tag))
		if (++r == requests + MAIL_SLOTS)
			return; /* it was taken back while the arrival waited here */
	for (uint64_t i = 0; i < r->n; i++)
		for (uint32_t l = a->layers.first; l < end; l++) {
			cache.landed[r->ids[i]] |= 1u << l;
			if (!options.soak) /* then once, when all are there */
				block_check_layer(&cache, r->ids[i], l);
		}
	if (is_whole(r->ids[0])) {
		count_good(r);
		take_back(r);
	}
}

static void closed(struct link *link)
{
	for (struct request *r = requests; r < requests + MAIL_SLOTS; r++)
		if (r->state && r->link == link) {
			status->failed++;
			close_blocks(r);
		}
}

static bool idle(void)
{
	for (struct request *r = requests; r < requests + MAIL_SLOTS; r++)
		if (r->state)
			return false;
	return true;
}

static void finish(void)
{
	finishing = true;
}

const struct role receiver = { step, arrival, closed, idle, finish };
