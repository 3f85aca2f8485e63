/* SPDX-License-Identifier: Apache-2.0 */
/* kv_world.h -- what the parts of kv_fuzz and api_fuzz know: the engine under test, its peer */
#ifndef KV_WORLD_H
#define KV_WORLD_H

#include "kv_api.h"
#include "rig.h"

enum {
	LAYERS = 2,
	TENSORS = 2,
	BLOCKS = 8,
	STRIDE = 64,
	SLABS = LAYERS * TENSORS,
	MEMORY = SLABS * BLOCKS * STRIDE,
	OPS = 8,
	LEASES = 6,
	IDS = 4,
	SLOTS = 4,
};

extern const uint64_t block_bytes[TENSORS]; /* without gaps, and with */

struct own_op {
	struct kv_op *op;
	bool ended, writes;
	int result;
	uint64_t id; /* that the peer sees */
	int64_t local[IDS], remote[IDS];
	int lease; /* of w.lease: a receive's; -1 */
};

struct own_lease {
	struct kv_lease *lease; /* NULL: void */
	uint64_t id;
	bool open;
	uint32_t blocks; /* a bit for each */
	struct kv_layers layers;
};

struct world {
	struct kv_engine *engine;
	struct kv_cache *cache;
	struct kv_peer *peer; /* NULL: none, or gone */
	struct kv_group *group;
	struct kv_geometry far; /* the peer's cache */
	uint32_t flags;
	uint64_t comm;
	struct own_op op[OPS];
	struct own_lease lease[LEASES];
	/* What the peer has said. */
	uint32_t generation[SLOTS];
	uint32_t serial;
	uint64_t grant_id[SLOTS];
	uint32_t grant_blocks[SLOTS], grant_n[SLOTS], grant_got[SLOTS];
	uint64_t acked[OPS]; /* operations of ours that it has acknowledged with 0, the last ones */
	unsigned int acks;
	/* What it has heard: BEGIN messages, the last ones. */
	uint64_t begun[OPS];
	unsigned int begins;
	unsigned int calls, words;
	uint8_t hello[TR_HELLO_MAX], setup[512];
	size_t hello_len, setup_len;
	unsigned int moves; /* of the handshake */
};
extern struct world w;

extern uint8_t memory[MEMORY], shadow[MEMORY]; /* the cache, and what it must be */

static inline size_t slab_of(size_t offset)
{
	return offset / (BLOCKS * STRIDE);
}
bool is_alive(void); /* the peer's record is still in the engine's table */
/* An address of this side: every byte lies in a block, none in a gap. */
void check_local(const uint8_t *at, uint64_t len);

/* kv_end.c */
void end_open(const struct step *s);
void end_connect(bool incoming);

/* kv_far.c */
void far_words(const struct step *s); /* hello and setup, for far_moves */
bool far_moves(void);		      /* one move of the peer's part of the handshake */
void far_says(const struct step *s);

#endif
