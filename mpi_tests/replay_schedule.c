/* SPDX-License-Identifier: Apache-2.0 */
/* replay_schedule.c -- which rank serves which request, and which prefix blocks are equal */
#include "replay_schedule.h"

#include <stdlib.h>

#include "pool.h"
#include "util.h"

uint32_t schedule_blocks(const struct schedule_cut *cut, const struct trace_request *r)
{
	uint32_t tokens = (r->input_tokens + cut->scale - 1) / cut->scale;

	return (tokens + cut->block_tokens - 1) / cut->block_tokens;
}

uint64_t schedule_key(const struct schedule_cut *cut, const struct trace_request *r, uint32_t block)
{
	uint64_t end = (uint64_t)(block + 1) * cut->block_tokens * cut->scale;
	uint64_t key;

	if (end > r->input_tokens)
		return POOL_NO_KEY;
	key = mix64(mix64(r->hash[(end - 1) / TRACE_HASH_TOKENS] + 1) + block);
	return key == POOL_NO_KEY ? 0 : key;
}

/* hash id -> the decode rank that got it last; open addressing, never more than half full. */
struct owner_table {
	uint64_t mask;
	uint64_t *id; /* id + 1; 0 = empty */
	uint16_t *rank;
};

static uint64_t owner_slot(const struct owner_table *t, uint64_t id)
{
	uint64_t at = mix64(id) & t->mask;

	while (t->id[at] != 0 && t->id[at] != id + 1)
		at = (at + 1) & t->mask;
	return at;
}

static void owner_create(struct owner_table *t, const struct trace *trace)
{
	uint64_t ids = 0, slots = 2;
	uint32_t i;

	for (i = 0; i < trace->requests; i++)
		ids += trace->request[i].hashes;
	while (slots < ids * 2)
		slots *= 2;
	t->mask = slots - 1;
	t->id = need_calloc(slots, sizeof(*t->id));
	t->rank = need_calloc(slots, sizeof(*t->rank));
}

static uint16_t least_loaded(const uint64_t *load, uint32_t ranks)
{
	uint32_t i, best = 0;

	for (i = 1; i < ranks; i++)
		if (load[i] < load[best])
			best = i;
	return (uint16_t)best;
}

static uint16_t choose_decode(const struct owner_table *t, const struct trace_request *r,
			      const uint64_t *load, uint64_t total, uint32_t ranks)
{
	uint32_t h;

	/* The first part is the system prompt, which all requests share: it attracts nobody. */
	for (h = r->hashes; h-- > 1;) {
		uint64_t at = owner_slot(t, r->hash[h]);

		if (t->id[at] == 0)
			continue;
		if (load[t->rank[at]] * ranks * 2 > total * 3)
			break;
		return t->rank[at];
	}
	return least_loaded(load, ranks);
}

void schedule_make(struct schedule *s, const struct trace *trace, const struct schedule_cut *cut,
		   uint32_t prefills, uint32_t decodes)
{
	uint64_t *load = need_calloc(decodes, sizeof(*load));
	struct owner_table owners;
	uint64_t total = 0, at;
	uint32_t i, h, blocks;

	owner_create(&owners, trace);
	s->requests = trace->requests;
	s->prefill = need_calloc(trace->requests, sizeof(*s->prefill));
	s->decode = need_calloc(trace->requests, sizeof(*s->decode));
	for (i = 0; i < trace->requests; i++) {
		const struct trace_request *r = &trace->request[i];

		s->prefill[i] = (uint16_t)(i % prefills);
		s->decode[i] = choose_decode(&owners, r, load, total, decodes);
		for (h = 0; h < r->hashes; h++) {
			at = owner_slot(&owners, r->hash[h]);
			owners.id[at] = r->hash[h] + 1;
			owners.rank[at] = s->decode[i];
		}
		blocks = schedule_blocks(cut, r);
		load[s->decode[i]] += blocks;
		total += blocks;
	}
	free(owners.id);
	free(owners.rank);
	free(load);
}

void schedule_free(struct schedule *s)
{
	free(s->prefill);
	free(s->decode);
}
