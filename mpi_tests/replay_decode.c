/* SPDX-License-Identifier: Apache-2.0 */
/*
 * replay_decode.c -- a decode rank: admit requests, take arrivals, check, until all its requests
 * are over
 */
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "replay_flight.h"
#include "util.h"

enum { ARRIVALS_AT_ONCE = 32, OVERDUE = 3 };

static void on_free(void *arg, uint32_t id)
{
	struct decode *d = arg;

	replay_check_stamp(&d->check, id);
}

static void decode_create(struct decode *d, struct replay *rp)
{
	uint32_t i, k;

	*d = (struct decode){ .rp = rp };
	pool_create(&d->pool, rp->memory.blocks, rp->opt->job.seed + rp->rank->rank, on_free, d);
	d->check = (struct replay_check){ rp, &d->pool, rp->opt->job.seed };
	d->admit = (struct admit){
		.pool = &d->pool,
		.cut = &rp->opt->cut,
		.step_ms = REPLAY_STEP_MS,
	};
	for (i = 0; i < d->pool.blocks; i++) {
		replay_check_stamp(&d->check, i);
		replay_beat(rp);
	}
	d->flights = rp->opt->job.prefills * REPLAY_FLIGHTS;
	d->flight = need_calloc(d->flights, sizeof(*d->flight));
	for (i = 0; i < d->flights; i++) {
		k = i % REPLAY_FLIGHTS;
		d->flight[i].prefill = i / REPLAY_FLIGHTS;
		d->flight[i].mail =
			(rp->self * rp->opt->job.prefills + d->flight[i].prefill) * REPLAY_FLIGHTS +
			k;
	}
	d->mine = need_calloc(rp->trace->requests, sizeof(*d->mine));
	d->over = need_calloc(rp->trace->requests, sizeof(*d->over));
	for (i = 0; i < rp->trace->requests; i++)
		if (rp->schedule->decode[i] == rp->self)
			d->mine[d->mines++] = i;
	d->next = (uint32_t)atomic_load(&rp->rank->slot->resume);
	memset(d->over, 1, d->next);
	rp->result->requests_before = d->next;
}

static void decode_destroy(struct decode *d)
{
	uint32_t i;

	for (i = 0; i < d->flights; i++)
		if (d->flight[i].used)
			free(d->flight[i].got.ids);
	for (i = 0; i < d->admit.runs; i++)
		free(d->admit.running[i].ids);
	free(d->admit.running);
	free(d->flight);
	free(d->mine);
	free(d->over);
	pool_destroy(&d->pool);
}

static int blocks_arrived(struct decode *d, const struct kv_arrival *a)
{
	struct replay *rp = d->rp;
	struct flight *f = flight_by_tag(d, a->tag);
	uint32_t i, layers = a->layers.count ? a->layers.count : rp->opt->layers;

	if (!f && rp->opt->kill_rank >= 0) {
		/*
		 * Of a sending that was given up; but nothing arrives from a peer after its loss.
		 */
		rp->result->false_success += a->peer == d->gone;
		return 0;
	}
	if (!f || a->cache != rp->cache || a->peer != f->peer || a->blocks != f->chunk.count) {
		replay_note(rp, "an arrival that nobody waits for: tag 0x%llx, %llu blocks",
			    (unsigned long long)a->tag, (unsigned long long)a->blocks);
		return -1;
	}
	for (i = 0; i < layers; i++)
		if (flight_layer(d, f, a->layers.first + i))
			return -1;
	return 0;
}

static int peer_lost(struct decode *d, const struct kv_arrival *a)
{
	const struct kv_error err = { .code = a->status };
	struct kv_peer *peer = a->peer;
	struct replay *rp = d->rp;
	uint32_t i;

	d->gone = peer;
	for (i = 0; i < rp->peers; i++)
		if (rp->peer[i] == peer)
			d->peer_lost[i] = 1;
	for (i = 0; i < d->flights; i++)
		if (d->flight[i].used && d->flight[i].chunk.count && d->flight[i].peer == peer) {
			replay_failed(rp, "an open lease", &err);
			if (flight_lost(d, &d->flight[i]))
				return -1;
		}
	return 0;
}

/* A replacement has connected: its name says whose. */
static int peer_up(struct decode *d, struct kv_peer *peer)
{
	struct replay *rp = d->rp;
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_error err;
	unsigned int k;
	uint32_t i;

	if (kv_peer_info(peer, &info, &err) || sscanf(info.name, "prefill-%u", &k) != 1 ||
	    k >= rp->peers)
		return 0;
	rp->peer[k] = peer;
	d->peer_lost[k] = 0;
	d->waiting_since_ns = 0;
	for (i = 0; i < d->flights; i++) {
		struct flight *f = &d->flight[i];

		if (!f->used || !f->waiting || f->prefill != k)
			continue;
		f->waiting = 0;
		if (flight_advance(d, f))
			return -1;
	}
	return 0;
}

static int take_arrivals(struct decode *d)
{
	struct kv_arrival arrivals[ARRIVALS_AT_ONCE];
	struct kv_error err;
	int i, n, rc = 0;

	n = kv_poll_arrivals(d->rp->engine, arrivals, ARRIVALS_AT_ONCE, &err);
	if (n < 0) {
		replay_failed(d->rp, "kv_poll_arrivals", &err);
		return -1;
	}
	for (i = 0; i < n && rc == 0; i++)
		switch (arrivals[i].kind) {
		case KV_ARRIVAL_BLOCKS:
			rc = blocks_arrived(d, &arrivals[i]);
			break;
		case KV_ARRIVAL_PEER_LOST:
			rc = peer_lost(d, &arrivals[i]);
			break;
		case KV_ARRIVAL_EXPIRED:
			replay_note(d->rp, "lease %llu expired",
				    (unsigned long long)arrivals[i].lease);
			rc = -1;
			break;
		case KV_ARRIVAL_PEER_UP:
			rc = peer_up(d, arrivals[i].peer);
			break;
		}
	return rc ? -1 : n;
}

/* Nothing arrived for a while: is a chunk or a replacement overdue? */
static int look_after(struct decode *d)
{
	struct replay *rp = d->rp;
	uint64_t limit_ns = (uint64_t)rp->opt->job.timeout_ms * 1000000 * OVERDUE;
	uint32_t i, waiting = 0;

	for (i = 0; i < d->flights; i++) {
		struct flight *f = &d->flight[i];

		waiting += f->used && f->waiting;
		if (f->used && f->chunk.count && now_ns() - f->opened_ns > limit_ns) {
			replay_note(rp, "request %u: %u of %u layers arrived, then nothing more",
				    f->got.request, f->layers_here, rp->opt->layers);
			return -1;
		}
	}
	if (!waiting)
		return 0;
	if (d->waiting_since_ns == 0)
		d->waiting_since_ns = now_ns();
	if (now_ns() - d->waiting_since_ns < limit_ns)
		return 0;
	replay_note(rp, "the killed prefill rank did not come back within %lld ms",
		    (long long)rp->opt->job.timeout_ms * OVERDUE);
	return -1;
}

static int sleep_for_arrivals(struct decode *d)
{
	struct pollfd p = { .fd = kv_arrivals_fd(d->rp->engine), .events = POLLIN };

	replay_beat(d->rp);
	return poll(&p, 1, REPLAY_POLL_MS) == 0 ? look_after(d) : 0;
}

static int decode_run(struct decode *d)
{
	uint32_t every = d->rp->opt->check_every;
	int rc;

	while (d->next < d->mines || d->used > 0) {
		rc = 1;
		while (rc == 1 && d->next < d->mines)
			rc = flight_begin(d);
		if (rc >= 0)
			rc = take_arrivals(d);
		if (rc < 0)
			return -1;
		if (every && d->unchecked >= every) {
			replay_check_whole(&d->check);
			d->unchecked = 0;
		}
		if (rc == 0 && d->used > 0 && sleep_for_arrivals(d))
			return -1;
	}
	replay_check_whole(&d->check);
	return 0;
}

int replay_decode(struct replay *rp)
{
	struct decode d;
	int rc;

	decode_create(&d, rp);
	rp->result->begin_ns = now_ns();
	rc = decode_run(&d);
	rp->result->end_ns = now_ns();
	rp->result->pool_blocks = d.pool.blocks;
	rp->result->evictions = d.pool.evictions;
	decode_destroy(&d);
	return rc;
}
