/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model.h -- what the memory of every engine must hold: its shadow
 *
 * Each operation has a stamp, and each word of its source says stamp, block, layer, tensor and
 * place. So a word that is found anywhere says where it came from. A block of a destination changes
 * only while an operation that may land there is under way (it holds the block), and only to words
 * of that operation; everything else, gaps between blocks included, stays as the shadow has it.
 */
#ifndef SIM_MODEL_H
#define SIM_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <kvrail/kv.h>

enum {
	ENGINES = 3,
	CACHES = 2, /* 0: only with a lease; 1: open and readable */
	LAYERS = 5,
	TENSORS = 2,
	BLOCKS = 1024,
	STRIDE = 16,
	OP_BLOCKS = 192,
	/* blocks of a cache: what is sent, where others write, what they read, where reads land */
	SOURCE_FIRST = 0,
	TARGET_FIRST = 384,
	CONST_FIRST = 768,
	LAND_FIRST = 896,
};
extern const uint64_t model_block_bytes[TENSORS];

enum model_state { MODEL_LIVE, MODEL_DOUBT, MODEL_OVER };
struct model_op {
	uint32_t stamp;
	int from, to, cache; /* engines; a read goes `from` the peer `to` this one */
	struct kv_layers layers;
	unsigned int n;
	uint16_t src[OP_BLOCKS], dst[OP_BLOCKS];
	enum model_state state;
	unsigned int arrivals;
};

void model_begin(void);
void model_end(void);
/* The memory of an engine's cache, and its shadow; the constant blocks are filled. */
void model_map(int engine, int cache, uint8_t *const mem[LAYERS][TENSORS]);
void model_unmap(int engine, int cache);

/* An operation begins: its source gets its words (unless it reads), its destination is held. */
struct model_op *model_op(int from, int to, int cache, struct kv_layers layers, const int64_t *src,
			  const int64_t *dst, size_t n, bool reads);
struct model_op *model_find(uint32_t stamp);
/* Every byte of an engine against its shadow; what landed rightly becomes the shadow. */
void model_check(int engine);
/* It has ended well: each block that it holds has its words. */
void model_good(struct model_op *op);
/* Nothing of it may land any more, and its source may be anything. */
void model_over(struct model_op *op);
/* It has ended, and something of it may still be on its way. */
void model_doubt(struct model_op *op);
/* Nothing may land in this block any more, from no writer. */
void model_close(int engine, int cache, int64_t block);
/* The same for all blocks of a range that operations of this engine hold. */
void model_close_from(int engine, int cache, int first, int from);
/* An operation holds it. */
bool model_is_held(int engine, int cache, int64_t block);

#endif
