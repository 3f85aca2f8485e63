/* SPDX-License-Identifier: Apache-2.0 */
/* replay_flight.c -- a request on its way from a prefill rank into this decode rank's pool */
#include "replay_flight.h"

#include <string.h>

#include "util.h"

enum {
	LIFETIMES = 4, /* deadlines that a lease lives */
	KILL_US = 60,
	TAG_OF_NOBODY = 1 << 30, /* no request has so many blocks */
};

static int dies_at(const struct replay *rp, const struct flight *f)
{
	return rp->opt->kill_rank == (int64_t)rp->rank->rank && rp->rank->life == 0 &&
	       f->got.request >= rp->opt->kill_request;
}

static int is_replaced(const struct replay *rp, uint32_t prefill)
{
	return rp->opt->restart && rp->opt->kill_rank == (int64_t)prefill;
}

struct flight *flight_by_tag(struct decode *d, uint64_t tag)
{
	uint32_t i;

	for (i = 0; i < d->flights; i++)
		if (d->flight[i].used && d->flight[i].chunk.count && d->flight[i].tag == tag)
			return &d->flight[i];
	return NULL;
}

/*
 * The request is over, well or not. A replacement of this rank begins at the first one that is not
 * over.
 */
static void flight_over(struct decode *d, struct flight *f, int ok)
{
	struct replay_result *res = d->rp->result;
	struct rank_slot *slot = d->rp->rank->slot;
	uint32_t i, resume = (uint32_t)atomic_load(&slot->resume);

	for (i = resume; i < d->next; i++)
		if (d->mine[i] == f->got.request)
			d->over[i] = 1;
	while (resume < d->next && d->over[resume])
		resume++;
	atomic_store(&slot->resume, resume);
	atomic_fetch_add(&slot->done, 1);
	if (ok) {
		res->requests++;
		res->prompt_blocks += f->got.blocks;
		res->hit_blocks += f->got.hits;
		res->streamed += f->got.window > 0;
		admit_finished(&d->admit, &f->got);
		d->unchecked++;
	} else {
		res->requests_failed++;
		admit_dropped(&d->admit, &f->got);
	}
	f->used = 0;
	f->waiting = 0;
	d->used--;
}

static int write_order(struct decode *d, const struct flight *f, uint32_t mail, uint64_t tag)
{
	struct replay *rp = d->rp;
	const struct kv_layers layers = { 0, 1 };
	const int64_t block = mail;
	struct kv_options options = KV_INIT(kv_options);
	struct replay_order order = {
		.tag = tag,
		.request = f->chunk.request,
		.first = f->chunk.first,
		.count = f->chunk.count,
		.epoch = f->chunk.epoch,
	};
	struct kv_error err;
	int rc;

	_Static_assert(sizeof(order) <= REPLAY_MAIL_BYTES, "an order fits a mail block");
	order.check = replay_order_hash(&order);
	memcpy(rp->mail_memory + (size_t)mail * REPLAY_MAIL_BYTES, &order, sizeof(order));
	options.timeout_ms = rp->opt->job.timeout_ms;
	options.tag = mail;
	rc = kv_write_blocks(f->peer, rp->mail, layers, &block, &block, 1, &options, &err);
	if (rc)
		replay_failed(rp, "writing an order", &err);
	return rc;
}

/*
 * How many blocks the next chunk has: what is left, what the source pool and the window hold, what
 * one lease takes.
 */
static uint32_t chunk_size(const struct decode *d, const struct flight *f)
{
	const struct replay_options *opt = d->rp->opt;
	uint64_t source = opt->source_bytes / (model_layer_bytes(opt->model) * opt->layers);
	uint32_t n = f->got.blocks - f->next;

	if (f->got.window && n > f->got.window)
		n = f->got.window;
	if (n > source)
		n = (uint32_t)source;
	return n < KV_LEASE_BLOCKS_MAX ? n : KV_LEASE_BLOCKS_MAX;
}

/*
 * While the prefill rank is at its first layers. Should this process get no time to die in until
 * they have all been sent, the prefill rank is at an order more: it waits for blocks that nobody
 * has opened.
 */
static int die_soon(struct decode *d, const struct flight *f)
{
	const struct replay_options *opt = d->rp->opt;
	uint32_t last_mail = opt->job.decodes * opt->job.prefills * REPLAY_FLIGHTS + d->rp->self;
	int rc = write_order(d, f, last_mail, f->tag | TAG_OF_NOBODY);

	d->dies = 1;
	if (rc == 0)
		replay_die(d->rp, 1 + (uint32_t)random_below(&d->check.random, KILL_US));
	return rc;
}

static int chunk_open(struct decode *d, struct flight *f)
{
	struct replay *rp = d->rp;
	struct kv_error err;
	int rc;

	f->peer = rp->peer[f->prefill];
	f->chunk = (struct replay_chunk){
		.request = f->got.request,
		.first = f->next,
		.count = chunk_size(d, f),
		.epoch = f->epoch,
		.ids = f->got.ids + (f->got.window ? f->got.hits : f->next),
	};
	f->tag = (uint64_t)f->got.request << 40 | (uint64_t)(f->epoch & 0xff) << 32 | f->next;
	f->layers_here = 0;
	memset(f->layer_here, 0, sizeof(f->layer_here));
	f->opened_ns = now_ns();
	rc = kv_blocks_open(f->peer, rp->cache, f->chunk.ids, f->chunk.count, f->tag,
			    rp->opt->job.timeout_ms * LIFETIMES, &f->lease, &err);
	if (rc) {
		f->lease = NULL;
		replay_failed(rp, "kv_blocks_open", &err);
		return rc;
	}
	rc = write_order(d, f, f->mail, f->tag);
	return rc == 0 && dies_at(rp, f) && !d->dies ? die_soon(d, f) : rc;
}

/*
 * Closes the lease: after it no byte can land in the chunk's blocks. A writer that died is gone
 * only when the kernel has ended it, so BUSY is asked again until the deadline.
 */
static int lease_end(struct decode *d, struct flight *f)
{
	struct replay *rp = d->rp;
	uint64_t until_ns = now_ns() + (uint64_t)rp->opt->job.timeout_ms * 1000000;
	struct kv_error err;
	int rc;

	if (!f->lease)
		return 0;
	do {
		rc = kv_revoke(f->lease, rp->opt->job.timeout_ms, &err);
		replay_beat(rp);
	} while (rc == KV_ERR_BUSY && now_ns() < until_ns);
	if (rc) {
		rp->result->errors += err.code == KV_ERR_PEER_LOST;
		replay_failed(rp, "kv_revoke", &err);
	}
	f->lease = NULL;
	return rc;
}

int flight_lost(struct decode *d, struct flight *f)
{
	struct replay *rp = d->rp;
	int is_new;

	if (lease_end(d, f))
		return -1;
	f->chunk.count = 0;
	if (!is_replaced(rp, f->prefill)) {
		d->peer_lost[f->prefill] = 1;
		flight_over(d, f, 0);
		return 0;
	}
	/* The replacement may have connected before the loss was noticed. */
	is_new = rp->peer[f->prefill] != f->peer;
	f->epoch++;
	rp->result->resent++;
	if (is_new)
		return flight_advance(d, f);
	d->peer_lost[f->prefill] = 1;
	f->waiting = 1;
	return 0;
}

/*
 * The chunk is here and right: hold its blocks. A streamed request gives them back and takes as
 * many others.
 */
static void chunk_done(struct decode *d, struct flight *f)
{
	const struct trace_request *r = &d->rp->trace->request[f->got.request];
	uint32_t i, n = f->chunk.count;
	uint64_t key;

	for (i = 0; i < n; i++) {
		uint32_t id = (uint32_t)f->chunk.ids[i];

		key = schedule_key(&d->rp->opt->cut, r, f->chunk.first + i);
		pool_written(&d->pool, id, f->got.request, f->chunk.first + i, f->epoch);
		if (f->got.window)
			pool_release(&d->pool, id);
		else if (key != POOL_NO_KEY)
			pool_publish(&d->pool, id, key);
	}
	f->next += n;
	f->chunk.count = 0;
	if (!f->got.window)
		return;
	if (f->next < f->got.blocks) {
		/* Cannot fail: as many were given back just now. */
		pool_alloc(&d->pool, n, f->got.ids + f->got.hits);
		return;
	}
	for (i = f->got.hits + n; i < f->got.held; i++)
		pool_release(&d->pool, (uint32_t)f->got.ids[i]);
	f->got.held = f->got.hits;
}

int flight_layer(struct decode *d, struct flight *f, uint32_t layer)
{
	struct replay *rp = d->rp;
	int damaged = 0;

	if (layer >= rp->opt->layers || f->layer_here[layer]) {
		replay_note(rp, "layer %u of request %u arrived twice or does not exist", layer,
			    f->got.request);
		return -1;
	}
	f->layer_here[layer] = 1;
	f->layers_here++;
	if (f->layers_here < rp->opt->layers && dies_at(rp, f))
		replay_die(rp, 0);
	if (rp->opt->corrupt && rp->self == 0 && !d->corrupted && f->chunk.count > 1 &&
	    d->pool.frees > 0) {
		damaged = d->corrupted = 1;
		replay_check_corrupt(&d->check, &f->chunk, layer);
	}
	replay_check_arrived(&d->check, &f->chunk, layer);
	if (damaged)
		replay_check_whole(
			&d->check); /* a free block may be written over before the next */
	replay_beat(rp);
	if (f->layers_here < rp->opt->layers)
		return 0;
	if (lease_end(d, f))
		return -1;
	chunk_done(d, f);
	return flight_advance(d, f);
}

int flight_advance(struct decode *d, struct flight *f)
{
	int rc;

	if (f->next == f->got.blocks) {
		flight_over(d, f, 1);
		return 0;
	}
	rc = chunk_open(d, f);
	if (rc == KV_ERR_PEER_LOST || rc == KV_ERR_CLOSED)
		return flight_lost(d, f);
	return rc ? -1 : 0;
}

int flight_begin(struct decode *d)
{
	struct replay *rp = d->rp;
	uint32_t i, number = d->mine[d->next], prefill = rp->schedule->prefill[number];
	struct flight *f = NULL;

	for (i = 0; i < d->flights && !f; i++)
		if (!d->flight[i].used && d->flight[i].prefill == prefill)
			f = &d->flight[i];
	if (!f)
		return 0;
	if (admit_request(&d->admit, &rp->trace->request[number], number, &f->got) == ADMIT_WAIT) {
		if (d->used > 0)
			return 0;
		replay_note(rp, "request %u does not fit the empty pool", number);
		return -1;
	}
	d->next++;
	d->used++;
	f->used = 1;
	f->waiting = 0;
	f->epoch = 0;
	f->next = f->got.hits;
	f->chunk.count = 0;
	if (d->peer_lost[prefill] && is_replaced(rp, prefill))
		f->waiting = 1;
	else if (d->peer_lost[prefill])
		flight_over(d, f, 0);
	else
		return flight_advance(d, f) ? -1 : 1;
	return 1;
}
