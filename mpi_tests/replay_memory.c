/* SPDX-License-Identifier: Apache-2.0 */
/* replay_memory.c -- where the blocks of a rank lie, and the guards around them */
#include "replay.h"

enum { PAGE = 4096 };

static uint64_t tensor_bytes(const struct model *model, uint32_t layers, uint32_t blocks,
			     uint32_t tensor)
{
	uint64_t bytes = (uint64_t)model->tensor[tensor].block_bytes * layers * blocks;

	return (bytes + PAGE - 1) & ~(uint64_t)(PAGE - 1);
}

uint64_t replay_memory_bytes(const struct model *model, uint32_t layers, uint32_t blocks)
{
	uint64_t bytes = REPLAY_GUARD;
	uint32_t t;

	for (t = 0; t < model->tensors; t++)
		bytes += tensor_bytes(model, layers, blocks, t) + REPLAY_GUARD;
	return bytes;
}

void replay_memory_place(struct replay_memory *m)
{
	unsigned char *at = m->pool.bytes;
	uint32_t t;

	for (t = 0; t < m->model->tensors; t++) {
		at += REPLAY_GUARD;
		m->tensor[t] = at;
		at += tensor_bytes(m->model, m->layers, m->blocks, t);
	}
}

unsigned char *replay_block(const struct replay_memory *m, uint32_t layer, uint32_t tensor,
			    uint64_t id)
{
	return m->tensor[tensor] +
	       ((uint64_t)layer * m->blocks + id) * m->model->tensor[tensor].block_bytes;
}

/* Guard g lies before tensor g, the last one behind the last tensor. */
static unsigned char *guard(const struct replay_memory *m, uint32_t g, uint64_t *key_p)
{
	const struct pattern p = { .seed = m->seed, .request = PATTERN_FREE - 1, .block = g };
	uint32_t last = m->model->tensors - 1;

	*key_p = pattern_key(&p);
	if (g <= last)
		return m->tensor[g] - REPLAY_GUARD;
	return m->tensor[last] + tensor_bytes(m->model, m->layers, m->blocks, last);
}

void replay_guards_fill(const struct replay_memory *m)
{
	unsigned char *at;
	uint64_t key;
	uint32_t g;

	for (g = 0; g <= m->model->tensors; g++) {
		at = guard(m, g, &key);
		pattern_fill(at, REPLAY_GUARD, key);
		rank_memory_put(&m->pool, at, REPLAY_GUARD);
	}
}

uint64_t replay_guards_check(const struct replay_memory *m)
{
	unsigned char *at;
	uint64_t key, wrong = 0;
	uint32_t g;

	for (g = 0; g <= m->model->tensors; g++) {
		at = guard(m, g, &key);
		rank_memory_get(&m->pool, at, REPLAY_GUARD);
		wrong += pattern_check(at, REPLAY_GUARD, key, NULL);
	}
	return wrong;
}
