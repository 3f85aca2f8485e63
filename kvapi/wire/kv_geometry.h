/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_geometry.h -- the shape of a cache, and how the blocks of two shapes meet
 *
 * Pure: no engine, no lock, no memory. ASSUMPTIONS: a geometry was checked by kv_geometry_check.
 */
#ifndef KV_GEOMETRY_H
#define KV_GEOMETRY_H

#include <stdbool.h>

#include <kvrail/kv.h>

enum { KV_TENSOR_NAME_MAX = 16 };

struct kv_geometry {
	uint32_t cache_id;
	uint32_t layers;
	uint32_t tensors;
	uint32_t blocks;
	uint32_t tp_size; /* >= 1 */
	uint32_t tp_rank;
	uint32_t block_tokens;
	uint32_t dtype;
	uint32_t flags; /* KV_CACHE_* */
	uint32_t kv_heads; /* of all ranks together; 0 = not given */
	struct kv_geometry_tensor {
		char name[KV_TENSOR_NAME_MAX];
		uint64_t block_bytes;
		uint32_t flags; /* KV_TENSOR_* */
		uint32_t order; /* enum kv_order */
	} tensor[KV_TENSORS_MAX];
};

/*
 * Which bytes of a block move between this side and the other: `rows` pieces of `len` bytes, the
 * first at the skip, the next one row of the block further on. One piece, except where both sides
 * cut each token's heads differently (NHD): then one for each token.
 */
struct kv_part {
	uint64_t local_skip, local_row;
	uint64_t remote_skip, remote_row;
	uint64_t len;
	uint32_t rows;
};

/* ARG and the field at fault. */
int kv_geometry_check(const struct kv_geometry *g, const char *op, struct kv_error *err);

/*
 * GEOMETRY if no block of one could ever go into the other; the message lists every field that
 * differs with both values.
 */
int kv_geometry_compare(const struct kv_geometry *local, const struct kv_geometry *remote,
			struct kv_error *err);

/*
 * The part of each tensor's block that the two ranks share. false if the ranks do not meet, as rank
 * 0 of 4 and rank 1 of 2. ASSUMPTION: kv_geometry_compare accepted the pair.
 */
bool kv_geometry_parts(const struct kv_geometry *local, const struct kv_geometry *remote,
		       struct kv_part part[KV_TENSORS_MAX]);

#endif
