/* SPDX-License-Identifier: Apache-2.0 */
/*
 * data.c -- the bytes of a cache, each of which is known at any time
 *
 * A block's words follow from a seed, its layer and tensor; the gaps between blocks and two guards
 * from the place. A block nobody may write has its stamp. One that is being written has, byte for
 * byte, its stamp or what comes. One that has come has that.
 */
#include <inttypes.h>
#include <stdlib.h>

#include "peer.h"

#define STEP UINT64_C(0x9e3779b97f4a7c15)
enum { GUARD = 4096 };

uint64_t mix(uint64_t x)
{
	x = (x ^ x >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ x >> 27) * UINT64_C(0x94d049bb133111eb);
	return x ^ x >> 31;
}

uint64_t chance(uint64_t *random, uint64_t of)
{
	*random += STEP;
	return mix(*random) % of;
}

uint64_t seed_of(uint64_t request, size_t index)
{
	return mix(request + index * STEP) | 1;
}

static uint64_t first_word(uint64_t seed, uint32_t layer, uint32_t tensor)
{
	return mix(seed + (layer * TENSORS + tensor + 1) * UINT64_C(0xd6e8feb86659fd93));
}

static size_t layer_len(const struct shape *s)
{
	return s->blocks * (s->stride[0] + s->stride[1]);
}

size_t cache_len(const struct shape *s)
{
	return GUARD + s->layers * layer_len(s) + GUARD;
}

static uint64_t *words_at(const struct cache *c, uint32_t layer, uint32_t tensor, int64_t id)
{
	const struct shape *s = &c->shape;

	return (uint64_t *)(c->mem + GUARD + layer * layer_len(s) +
			    (tensor ? s->blocks * s->stride[0] : 0) +
			    (uint64_t)id * s->stride[tensor]);
}

static void fill_words(uint64_t *at, size_t bytes, uint64_t word)
{
	for (size_t i = 0; i < bytes / 8; i++, word += STEP)
		at[i] = word;
}

static uint64_t differ(const uint64_t *at, size_t bytes, uint64_t word)
{
	uint64_t n = 0;

	for (size_t i = 0; i < bytes / 8; i++, word += STEP)
		n += at[i] != word;
	return n;
}

/* Words with a byte that is neither of one nor of the other. */
static uint64_t differ_from_both(const uint64_t *at, size_t bytes, uint64_t one, uint64_t other)
{
	uint64_t n = 0;

	for (size_t i = 0; i < bytes / 8; i++, one += STEP, other += STEP) {
		const volatile uint64_t *live = &at[i];
		uint64_t seen = *live, bad = 0;

		if (seen != one && seen != other)
			for (int b = 0; b < 64; b += 8)
				bad |= ((seen ^ one) >> b & 255) && ((seen ^ other) >> b & 255);
		n += bad;
	}
	return n;
}

static uint64_t canary_of(uint32_t layer, uint32_t tensor, int64_t id)
{
	return first_word((uint64_t)id * 2 + UINT64_C(0xca0a41), layer, tensor);
}

void cache_begin(struct cache *c, uint64_t *random)
{
	const struct shape *s = &c->shape;

	c->stamp = calloc(s->blocks, sizeof(*c->stamp));
	c->incoming = calloc(s->blocks, sizeof(*c->incoming));
	c->landed = calloc(s->blocks, sizeof(*c->landed));
	if (!c->stamp || !c->incoming || !c->landed)
		abort();
	fill_words((uint64_t *)c->mem, GUARD, canary_of(0, 0, -1));
	fill_words((uint64_t *)(c->mem + cache_len(s) - GUARD), GUARD, canary_of(0, 0, -2));
	for (int64_t id = 0; id < s->blocks; id++) {
		for (uint32_t l = 0; l < s->layers; l++)
			for (uint32_t t = 0; t < TENSORS; t++)
				fill_words(words_at(c, l, t, id) + s->bytes[t] / 8,
					   s->stride[t] - s->bytes[t], canary_of(l, t, id));
		block_stamp(c, id, random);
	}
}

void cache_end(struct cache *c)
{
	free(c->stamp);
	free(c->incoming);
	free(c->landed);
}

void block_fill(struct cache *c, int64_t id, uint64_t seed)
{
	for (uint32_t l = 0; l < c->shape.layers; l++)
		for (uint32_t t = 0; t < TENSORS; t++)
			fill_words(words_at(c, l, t, id), c->shape.bytes[t],
				   first_word(seed, l, t));
	c->stamp[id] = seed;
	c->incoming[id] = 0;
	c->landed[id] = 0;
}

void block_stamp(struct cache *c, int64_t id, uint64_t *random)
{
	chance(random, 2);
	block_fill(c, id, mix(*random) | 1);
}

static bool count_wrong(const struct cache *c, uint64_t words, const char *what, uint32_t layer,
			int64_t id)
{
	if (!words)
		return true;
	if (c->incoming[id])
		status->wrong += words * 8;
	else
		status->late += words * 8;
	tell("WRONG %" PRIu64 " words of %s, layer %u, block %lld", words, what, layer,
	     (long long)id);
	return false;
}

bool block_check_layer(struct cache *c, int64_t id, uint32_t l)
{
	const struct shape *s = &c->shape;
	uint64_t comes = c->incoming[id], words = 0, gap = 0;
	bool whole;

	for (uint32_t t = 0; t < TENSORS; t++) {
		const uint64_t *at = words_at(c, l, t, id);

		if (!comes)
			words += differ(at, s->bytes[t], first_word(c->stamp[id], l, t));
		else if (c->landed[id] >> l & 1)
			words += differ(at, s->bytes[t], first_word(comes, l, t));
		else
			words += differ_from_both(at, s->bytes[t], first_word(comes, l, t),
						  first_word(c->stamp[id], l, t));
		gap += differ(at + s->bytes[t] / 8, s->stride[t] - s->bytes[t],
			      canary_of(l, t, id));
		status->checked += s->stride[t];
	}
	whole = count_wrong(c, words, comes ? "a block being written" : "a closed block", l, id);
	return count_wrong(c, gap, "a gap", l, id) && whole;
}

bool block_check(struct cache *c, int64_t id)
{
	bool good = true;

	for (uint32_t l = 0; l < c->shape.layers; l++)
		good &= block_check_layer(c, id, l);
	return good;
}

bool cache_check(struct cache *c)
{
	size_t end = cache_len(&c->shape) - GUARD;
	bool good =
		count_wrong(c,
			    differ((uint64_t *)c->mem, GUARD, canary_of(0, 0, -1)) +
				    differ((uint64_t *)(c->mem + end), GUARD, canary_of(0, 0, -2)),
			    "the guards", 0, 0);

	for (int64_t id = 0; id < c->shape.blocks; id++)
		good &= block_check(c, id);
	return good;
}
