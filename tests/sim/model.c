/* SPDX-License-Identifier: Apache-2.0 */
/* model.c -- the shadow of every engine's memory */
#include "model.h"

#include <stdlib.h>
#include <string.h>

#include "sim.h"

enum { OPS_MAX = 1 << 14, CONST_STAMP = 1, POISON_STAMP = 0xdead };

const uint64_t model_block_bytes[TENSORS] = { STRIDE, STRIDE / 2 };

struct area {
	uint8_t *mem[LAYERS][TENSORS]; /* NULL: not mapped */
	uint8_t shadow[LAYERS][TENSORS][BLOCKS * STRIDE];
	struct model_op *holder[BLOCKS];
	uint16_t at[BLOCKS]; /* the block's place in its holder's list */
};

static struct area area[ENGINES][CACHES];
static struct model_op *op_of[OPS_MAX];
static uint32_t next_stamp;

void model_begin(void)
{
	memset(area, 0, sizeof(area));
	memset(op_of, 0, sizeof(op_of));
	next_stamp = 2;
}

void model_end(void)
{
	while (next_stamp > 2)
		free(op_of[--next_stamp]);
}

static uint64_t word(uint32_t stamp, int64_t block, uint32_t l, uint32_t t, uint64_t w)
{
	uint64_t x = (uint64_t)block << 24 ^ (uint64_t)l << 16 ^ (uint64_t)t << 8 ^ w ^
		     (uint64_t)stamp << 40;

	return (uint64_t)stamp << 32 | (uint32_t)(sim_random(&x) >> 32);
}

/* The application writes a block of its own. */
static void fill(struct area *a, uint32_t stamp, int64_t block)
{
	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t t = 0; t < TENSORS; t++)
			for (uint64_t w = 0; w < model_block_bytes[t] / 8; w++) {
				uint64_t value = word(stamp, block, l, t, w);
				size_t at = (size_t)block * STRIDE + w * 8;

				memcpy(a->mem[l][t] + at, &value, 8);
				memcpy(a->shadow[l][t] + at, &value, 8);
			}
}

void model_map(int engine, int cache, uint8_t *const mem[LAYERS][TENSORS])
{
	struct area *a = &area[engine][cache];

	memset(a, 0, sizeof(*a));
	for (uint32_t l = 0; l < LAYERS; l++)
		for (uint32_t t = 0; t < TENSORS; t++) {
			a->mem[l][t] = mem[l][t];
			memset(mem[l][t], 0x33, sizeof(a->shadow[l][t]));
			memset(a->shadow[l][t], 0x33, sizeof(a->shadow[l][t]));
		}
	for (int b = CONST_FIRST; b < LAND_FIRST; b++)
		fill(a, CONST_STAMP, b);
}

void model_unmap(int engine, int cache)
{
	memset(area[engine][cache].mem, 0, sizeof(area[engine][cache].mem));
}

struct model_op *model_find(uint32_t stamp)
{
	return stamp < OPS_MAX ? op_of[stamp] : NULL;
}

struct model_op *model_op(int from, int to, int cache, struct kv_layers layers, const int64_t *src,
			  const int64_t *dst, size_t n, bool reads)
{
	struct model_op *op = calloc(1, sizeof(*op));
	struct area *a = &area[to][cache];

	if (next_stamp == OPS_MAX)
		sim_fail("more than %d operations", OPS_MAX);
	op->stamp = reads ? CONST_STAMP : next_stamp;
	op_of[next_stamp++] = op;
	op->from = from;
	op->to = to;
	op->cache = cache;
	op->layers = layers;
	op->n = (unsigned int)n;
	for (size_t i = 0; i < n; i++) {
		op->src[i] = (uint16_t)src[i];
		op->dst[i] = (uint16_t)dst[i];
		if (!reads)
			fill(&area[from][cache], op->stamp, src[i]);
		if (a->holder[dst[i]])
			sim_fail("the simulation uses block %lld twice", (long long)dst[i]);
		a->holder[dst[i]] = op;
		a->at[dst[i]] = (uint16_t)i;
	}
	sim_result->operations++;
	return op;
}

static bool in_layers(const struct model_op *op, uint32_t l)
{
	return l >= op->layers.first &&
	       (!op->layers.count || l < op->layers.first + op->layers.count);
}

/* The word that the holder of a block would put here; false: it writes nothing here. */
static bool wanted(const struct area *a, int64_t block, uint32_t l, uint32_t t, uint64_t w,
		   uint64_t *value)
{
	const struct model_op *op = a->holder[block];

	if (!op || op->state == MODEL_OVER || !in_layers(op, l) || w >= model_block_bytes[t] / 8)
		return false;
	*value = word(op->stamp, op->src[a->at[block]], l, t, w);
	return true;
}

static void stray(int engine, int cache, int64_t block, uint32_t l, uint32_t t, uint64_t w,
		  uint64_t is, uint64_t was)
{
	const struct area *a = &area[engine][cache];
	const struct model_op *holder = a->holder[block], *by = model_find((uint32_t)(is >> 32));

	sim_fail("engine %d cache %d block %lld layer %u tensor %u word %llu became %016llx "
		 "(was %016llx), written by operation %u (engine %d to %d, state %d) %s; the block "
		 "is held by operation %u",
		 engine, cache, (long long)block, l, t, (unsigned long long)w,
		 (unsigned long long)is, (unsigned long long)was, (unsigned int)(is >> 32),
		 by ? by->from : -1, by ? by->to : -1, by ? (int)by->state : -1,
		 is >> 32 == POISON_STAMP ? "that read its source after its end" : "",
		 holder ? holder->stamp : 0);
}

static void check_block(int engine, int cache, int64_t block, uint32_t l, uint32_t t)
{
	struct area *a = &area[engine][cache];
	const uint8_t *mem = a->mem[l][t] + block * STRIDE;
	uint8_t *shadow = a->shadow[l][t] + block * STRIDE;

	for (uint64_t w = 0; w < STRIDE / 8; w++) {
		uint64_t is, was, may;

		memcpy(&is, mem + w * 8, 8);
		memcpy(&was, shadow + w * 8, 8);
		if (is == was)
			continue;
		if (!wanted(a, block, l, t, w, &may) || is != may)
			stray(engine, cache, block, l, t, w, is, was);
		memcpy(shadow + w * 8, &is, 8);
	}
}

void model_check(int engine)
{
	sim_result->checks++;
	for (int c = 0; c < CACHES; c++)
		for (uint32_t l = 0; l < LAYERS; l++)
			for (uint32_t t = 0; t < TENSORS; t++) {
				const struct area *a = &area[engine][c];

				if (!a->mem[l][t] ||
				    !memcmp(a->mem[l][t], a->shadow[l][t], sizeof(a->shadow[l][t])))
					continue;
				for (int64_t b = 0; b < BLOCKS; b++)
					check_block(engine, c, b, l, t);
			}
}

static bool holds(const struct model_op *op, unsigned int i)
{
	return area[op->to][op->cache].holder[op->dst[i]] == op;
}

void model_good(struct model_op *op)
{
	const struct area *a = &area[op->to][op->cache];

	model_check(op->to);
	for (unsigned int i = 0; i < op->n; i++)
		for (uint32_t l = 0; l < LAYERS; l++)
			for (uint32_t t = 0; t < TENSORS && holds(op, i); t++)
				for (uint64_t w = 0; w < model_block_bytes[t] / 8; w++) {
					uint64_t is, must;

					if (!wanted(a, op->dst[i], l, t, w, &must))
						continue;
					memcpy(&is, a->mem[l][t] + op->dst[i] * STRIDE + w * 8, 8);
					if (is != must)
						sim_fail(
							"operation %u (engine %d to %d) succeeded, "
							"and block %u layer %u tensor %u word %llu "
							"is %016llx, not %016llx",
							op->stamp, op->from, op->to, op->dst[i], l,
							t, (unsigned long long)w,
							(unsigned long long)is,
							(unsigned long long)must);
				}
	for (uint32_t l = 0; l < LAYERS; l++)
		sim_result->blocks += in_layers(op, l) ? TENSORS * op->n : 0;
}

void model_over(struct model_op *op)
{
	model_check(op->to);
	for (unsigned int i = 0; i < op->n; i++) {
		if (holds(op, i))
			area[op->to][op->cache].holder[op->dst[i]] = NULL;
		if (op->stamp != CONST_STAMP && area[op->from][op->cache].mem[0][0])
			fill(&area[op->from][op->cache], POISON_STAMP, op->src[i]);
	}
	op->state = MODEL_OVER;
}

void model_doubt(struct model_op *op)
{
	op->state = MODEL_DOUBT;
}

void model_close(int engine, int cache, int64_t block)
{
	model_check(engine);
	area[engine][cache].holder[block] = NULL;
}

void model_close_from(int engine, int cache, int first, int from)
{
	model_check(engine);
	for (int b = first; b < BLOCKS; b++) {
		const struct model_op *op = area[engine][cache].holder[b];

		if (op && op->from == from)
			area[engine][cache].holder[b] = NULL;
	}
}

bool model_is_held(int engine, int cache, int64_t block)
{
	return area[engine][cache].holder[block];
}
