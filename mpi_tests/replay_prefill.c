/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_prefill.c -- a prefill rank: take an order, compute layer by layer, write each layer as it
 * is ready
 *
 * "Computing" a layer is filling its source blocks with test data; it is not counted as transfer
 * time.
 */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "replay.h"
#include "util.h"

struct queued {
	struct kv_peer *peer;
	struct replay_order order;
};

struct prefill {
	struct replay *rp;
	struct queued
		*queue; /* a ring; as large as there are mail blocks, and each holds one order */
	uint32_t room, head, count;
	int64_t *ids; /* all source blocks, shuffled anew for each order */
	uint64_t random;
	int all_arrived;
};

static int order_is_sane(const struct replay *rp, const struct replay_order *o)
{
	return o->check == replay_order_hash(o) && o->request < rp->trace->requests &&
	       o->count > 0 && o->count <= rp->memory.blocks &&
	       rp->schedule->prefill[o->request] == rp->self;
}

static int take_order(struct prefill *p, const struct kv_arrival *a)
{
	struct replay *rp = p->rp;
	struct queued *q;

	if (a->cache != rp->mail || a->tag >= replay_mails(rp->opt) || p->count == p->room) {
		replay_note(rp, "an arrival that is not an order: tag %llu, %llu bytes",
			    (unsigned long long)a->tag, (unsigned long long)a->bytes);
		return -1;
	}
	q = &p->queue[(p->head + p->count) % p->room];
	q->peer = a->peer;
	memcpy(&q->order, rp->mail_memory + a->tag * REPLAY_MAIL_BYTES, sizeof(q->order));
	if (!order_is_sane(rp, &q->order)) {
		replay_note(rp, "order in mail block %llu is torn or not for this rank",
			    (unsigned long long)a->tag);
		return -1;
	}
	p->count++;
	return 0;
}

static int take_arrivals(struct prefill *p)
{
	struct kv_arrival arrivals[16];
	struct kv_error err;
	int i, n;

	n = kv_poll_arrivals(p->rp->engine, arrivals, 16, &err);
	if (n < 0) {
		replay_failed(p->rp, "kv_poll_arrivals", &err);
		return -1;
	}
	for (i = 0; i < n; i++)
		if (arrivals[i].kind == KV_ARRIVAL_BLOCKS && take_order(p, &arrivals[i]))
			return -1;
	return n;
}

static void shuffle_ids(struct prefill *p, uint32_t n)
{
	uint32_t i, at, blocks = p->rp->memory.blocks;
	int64_t id;

	for (i = 0; i < n; i++) {
		at = i + (uint32_t)random_below(&p->random, blocks - i);
		id = p->ids[i];
		p->ids[i] = p->ids[at];
		p->ids[at] = id;
	}
}

static void compute_layer(const struct prefill *p, const struct replay_order *o, uint32_t layer)
{
	const struct replay *rp = p->rp;
	const struct model *m = rp->opt->model;
	struct pattern pat = { .seed = rp->opt->job.seed, .request = o->request, .layer = layer };
	unsigned char *at;
	uint32_t i, t;

	pat.epoch = o->epoch;
	for (t = 0; t < m->tensors; t++) {
		pat.tensor = t;
		for (i = 0; i < o->count; i++) {
			pat.block = o->first + i;
			at = replay_block(&rp->memory, layer, t, (uint64_t)p->ids[i]);
			pattern_fill(at, m->tensor[t].block_bytes, pattern_key(&pat));
			rank_memory_put(&rp->memory.pool, at, m->tensor[t].block_bytes);
		}
	}
}

static int dies_here(const struct replay *rp, const struct replay_order *o, uint32_t layer)
{
	return rp->opt->kill_rank == (int64_t)rp->rank->rank && rp->rank->life == 0 &&
	       o->request >= rp->opt->kill_request && layer == rp->opt->layers / 2;
}

/* One layer of one order: 0, or the code of the failed operation. */
static int send_layer(struct prefill *p, const struct queued *q, uint32_t layer)
{
	struct replay *rp = p->rp;
	struct kv_options options = KV_INIT(kv_options);
	const struct kv_layers layers = { layer, 1 };
	struct kv_error err;
	uint64_t begin, took, bytes = model_layer_bytes(rp->opt->model) * q->order.count;
	int rc, dies = dies_here(rp, &q->order, layer);

	options.timeout_ms = rp->opt->job.timeout_ms;
	if (dies)
		replay_die(rp, 1 + (uint32_t)random_below(&p->random, 200));
	begin = now_ns();
	rc = kv_send_blocks(q->peer, rp->cache, layers, p->ids, q->order.count, q->order.tag,
			    &options, &err);
	took = now_ns() - begin;
	if (dies)
		replay_die(rp, 0);
	if (rc) {
		replay_failed(rp, "kv_send_blocks", &err);
		return rc;
	}
	hist_add(&rp->result->batch, took);
	timeline_add(&rp->result->timeline, begin + took - atomic_load(&rp->rank->slot->begin_ns),
		     bytes, took);
	rp->result->transfer_ns += took;
	rp->result->bytes += bytes;
	return 0;
}

static void serve(struct prefill *p, const struct queued *q)
{
	struct replay *rp = p->rp;
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_error err;
	uint32_t layer;
	int was_lost;

	was_lost = kv_peer_info(q->peer, &info, &err) == 0 && !info.connected;
	shuffle_ids(p, q->order.count);
	for (layer = 0; layer < rp->opt->layers; layer++) {
		compute_layer(p, &q->order, layer);
		replay_beat(rp);
		if (send_layer(p, q, layer))
			return;
		rp->result->false_success += (uint64_t)was_lost;
	}
	rp->result->requests++;
	rp->result->blocks += q->order.count;
}

/* Sleeps until an order may be there or all ranks have finished; 0, or -1. */
static int sleep_for_orders(struct prefill *p)
{
	struct pollfd fds[2] = {
		{ .fd = kv_arrivals_fd(p->rp->engine), .events = POLLIN },
		{ .fd = p->rp->rank->fd, .events = POLLIN },
	};
	int rc;

	poll(fds, 2, REPLAY_POLL_MS);
	replay_beat(p->rp);
	if (!fds[1].revents)
		return 0;
	rc = rank_arrived(p->rp->rank, 0);
	p->all_arrived = rc == 1;
	return rc < 0 ? -1 : 0;
}

int replay_prefill(struct replay *rp)
{
	struct prefill p = { .rp = rp, .random = rp->opt->job.seed + rp->rank->rank };
	struct queued next;
	uint32_t i;
	int n = 0;

	p.room = replay_mails(rp->opt) * 2;
	p.queue = need_calloc(p.room, sizeof(*p.queue));
	p.ids = need_calloc(rp->memory.blocks, sizeof(*p.ids));
	for (i = 0; i < rp->memory.blocks; i++)
		p.ids[i] = i;
	rp->result->begin_ns = now_ns();
	if (rp->rank->life == 0)
		atomic_store(&rp->rank->slot->begin_ns, rp->result->begin_ns);
	if (rank_arrive(rp->rank))
		n = -1;
	while (n >= 0 && !p.all_arrived) {
		n = take_arrivals(&p);
		if (n < 0)
			break;
		if (p.count > 0) {
			next = p.queue[p.head];
			p.head = (p.head + 1) % p.room;
			p.count--;
			serve(&p, &next);
		} else if (n == 0) {
			n = sleep_for_orders(&p);
		}
	}
	rp->result->end_ns = now_ns();
	free(p.queue);
	free(p.ids);
	return n < 0 ? -1 : 0;
}
