/* SPDX-License-Identifier: Apache-2.0 */
/* replay_check.c -- does every byte of a decode pool hold what it must? */
#include "replay_check.h"

#include "util.h"

enum {
	EDGE_BYTES = 4096, /* of each neighbour, on the side of the block that arrived */
	FREE_SAMPLE = 8,   /* free blocks looked at for each arrival */
	OTHERS_SEARCHED = 4096,
};

static struct pattern expect_free(const struct replay_check *c, uint32_t layer, uint32_t tensor,
				  uint64_t id)
{
	return (struct pattern){
		.seed = c->rp->opt->job.seed,
		.request = PATTERN_FREE,
		.block = id,
		.layer = layer,
		.tensor = tensor,
	};
}

static struct pattern expect_sent(const struct replay_check *c, const struct replay_chunk *chunk,
				  uint32_t i, uint32_t layer, uint32_t tensor)
{
	return (struct pattern){
		.seed = c->rp->opt->job.seed,
		.request = chunk->request,
		.block = (uint64_t)chunk->first + i,
		.epoch = chunk->epoch,
		.layer = layer,
		.tensor = tensor,
	};
}

/* What an allocated or free block must hold; 0 where nothing can be said (OPEN). */
static int expect_pooled(const struct replay_check *c, uint32_t layer, uint32_t tensor, uint32_t id,
			 struct pattern *p)
{
	const struct pool_block *b = &c->pool->block[id];

	*p = expect_free(c, layer, tensor, id);
	if (b->state != POOL_HELD)
		return b->state == POOL_FREE;
	p->request = b->request;
	p->block = b->index;
	p->epoch = b->epoch;
	return 1;
}

/*
 * Whose bytes lie in a wrong block: the stamp, an older sending, or another block of the same
 * request.
 */
static void describe_found(const struct replay_check *c, const struct pattern *want, uint64_t id,
			   const void *bytes, size_t len, char *text, size_t cap)
{
	struct pattern p = expect_free(c, want->layer, want->tensor, id);
	uint64_t i;

	if (pattern_check(bytes, len, pattern_key(&p), NULL) == 0) {
		snprintf(text, cap, "it holds the stamp of a free block: never written");
		return;
	}
	p = *want;
	for (i = 0; i < OTHERS_SEARCHED; i++) {
		p.block = i;
		if (pattern_check(bytes, len < 64 ? len : 64, pattern_key(&p), NULL) == 0) {
			snprintf(text, cap, "it holds block %llu of the same request",
				 (unsigned long long)i);
			return;
		}
	}
	snprintf(text, cap, "what it holds is neither a block of this request nor a stamp");
}

/* Checks `len` bytes of a block from `offset` on; counts, describes and corrects what is wrong. */
static void check_part(struct replay_check *c, const struct pattern *want, uint64_t id,
		       size_t offset, size_t len, const char *when)
{
	struct replay *rp = c->rp;
	const struct model *m = rp->opt->model;
	unsigned char *at = replay_block(&rp->memory, want->layer, want->tensor, id) + offset;
	uint64_t key = pattern_key_at(pattern_key(want), offset);
	char found[96], who[48];
	size_t first, wrong;

	rank_memory_get(&rp->memory.pool, at, len);
	wrong = pattern_check(at, len, key, &first);
	rp->result->checked_bytes += len;
	if (__builtin_expect(wrong == 0, 1))
		return;
	rp->result->wrong_bytes += wrong;
	rp->result->wrong_blocks++;
	describe_found(c, want, id, at, len, found, sizeof(found));
	if (want->request == PATTERN_FREE)
		snprintf(who, sizeof(who), "a free block");
	else
		snprintf(who, sizeof(who), "request %llu block %llu",
			 (unsigned long long)want->request, (unsigned long long)want->block);
	replay_note(rp,
		    "%s: %zu wrong bytes in block id %llu (%s), layer %u, tensor %s, first at "
		    "offset %zu; %s",
		    when, wrong, (unsigned long long)id, who, want->layer,
		    m->tensor[want->tensor].name, offset + first,
		    wrong < len / 2 ? "the rest is right" : found);
	pattern_fill(at, len, key);
	rank_memory_put(&rp->memory.pool, at, len);
}

void replay_check_stamp(struct replay_check *c, uint32_t id)
{
	const struct model *m = c->rp->opt->model;
	struct pattern p;
	unsigned char *at;
	uint32_t layer, t;

	for (layer = 0; layer < c->rp->opt->layers; layer++)
		for (t = 0; t < m->tensors; t++) {
			p = expect_free(c, layer, t, id);
			at = replay_block(&c->rp->memory, layer, t, id);
			pattern_fill(at, m->tensor[t].block_bytes, pattern_key(&p));
			rank_memory_put(&c->rp->memory.pool, at, m->tensor[t].block_bytes);
		}
}

static void check_neighbour(struct replay_check *c, uint32_t layer, uint32_t tensor, int64_t id,
			    int before)
{
	size_t bytes = c->rp->opt->model->tensor[tensor].block_bytes;
	size_t edge = bytes < EDGE_BYTES ? bytes : EDGE_BYTES;
	struct pattern want;

	if (id < 0 || id >= c->pool->blocks ||
	    !expect_pooled(c, layer, tensor, (uint32_t)id, &want))
		return;
	check_part(c, &want, (uint64_t)id, before ? bytes - edge : 0, edge,
		   "beside an arrived block");
}

static void check_free_sample(struct replay_check *c, uint32_t layer)
{
	const struct model *m = c->rp->opt->model;
	struct pattern want;
	uint32_t i, t, id;

	for (i = 0; i < FREE_SAMPLE && c->pool->frees > 0; i++) {
		id = c->pool->free[random_below(&c->random, c->pool->frees)];
		t = (uint32_t)random_below(&c->random, m->tensors);
		want = expect_free(c, layer, t, id);
		check_part(c, &want, id, 0, m->tensor[t].block_bytes, "free block");
	}
}

void replay_check_arrived(struct replay_check *c, const struct replay_chunk *chunk, uint32_t layer)
{
	const struct model *m = c->rp->opt->model;
	uint64_t begin = now_ns();
	struct pattern want;
	uint32_t i, t;

	for (t = 0; t < m->tensors; t++) {
		for (i = 0; i < chunk->count; i++) {
			want = expect_sent(c, chunk, i, layer, t);
			check_part(c, &want, (uint64_t)chunk->ids[i], 0, m->tensor[t].block_bytes,
				   "after its arrival");
		}
		for (i = 0; i < chunk->count; i++) {
			check_neighbour(c, layer, t, chunk->ids[i] - 1, 1);
			check_neighbour(c, layer, t, chunk->ids[i] + 1, 0);
		}
	}
	check_free_sample(c, layer);
	c->rp->result->check_ns += now_ns() - begin;
}

void replay_check_whole(struct replay_check *c)
{
	const struct model *m = c->rp->opt->model;
	uint64_t begin = now_ns(), wrong;
	uint32_t layer, t, id;
	struct pattern want;

	for (layer = 0; layer < c->rp->opt->layers; layer++) {
		replay_beat(c->rp);
		for (t = 0; t < m->tensors; t++)
			for (id = 0; id < c->pool->blocks; id++)
				if (expect_pooled(c, layer, t, id, &want))
					check_part(c, &want, id, 0, m->tensor[t].block_bytes,
						   "in the whole pool");
	}
	wrong = replay_guards_check(&c->rp->memory);
	if (wrong) {
		replay_note(c->rp, "%llu wrong bytes in the guards around the tensors",
			    (unsigned long long)wrong);
		replay_guards_fill(&c->rp->memory);
	}
	c->rp->result->wrong_bytes += wrong;
	c->rp->result->whole_checks++;
	c->rp->result->check_ns += now_ns() - begin;
}

static void swap_bytes(unsigned char *a, unsigned char *b, size_t len)
{
	unsigned char x;
	size_t i;

	for (i = 0; i < len; i++) {
		x = a[i];
		a[i] = b[i];
		b[i] = x;
	}
}

void replay_check_corrupt(struct replay_check *c, const struct replay_chunk *chunk, uint32_t layer)
{
	const struct replay_memory *mem = &c->rp->memory;
	size_t bytes = c->rp->opt->model->tensor[0].block_bytes;
	unsigned char *block = replay_block(mem, layer, 0, (uint64_t)chunk->ids[0]);
	unsigned char *other = c->rp->opt->corrupt == CORRUPT_SWAP
				       ? replay_block(mem, layer, 0, (uint64_t)chunk->ids[1])
				       : replay_block(mem, layer, 0, c->pool->free[0]);

	rank_memory_get(&mem->pool, block, bytes);
	rank_memory_get(&mem->pool, other, bytes);
	switch (c->rp->opt->corrupt) {
	case CORRUPT_BYTE:
		block[bytes / 2] ^= 1;
		break;
	case CORRUPT_SWAP:
		swap_bytes(block, other, bytes);
		break;
	case CORRUPT_FREE:
		other[bytes - 1] ^= 0x80;
		break;
	}
	rank_memory_put(&mem->pool, block, bytes);
	rank_memory_put(&mem->pool, other, bytes);
}
