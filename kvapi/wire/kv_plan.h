/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_plan.h -- from block ids to the pieces of memory that move
 *
 * Pure. Two steps: kv_plan_check looks at every id once, before the first byte moves; kv_plan_next
 * then yields the spans of one tensor of one layer, a batch at a time, without memory of its own.
 */
#ifndef KV_PLAN_H
#define KV_PLAN_H

#include <stdbool.h>

#include <kvrail/kv.h>

#include "tr.h"

/* Bytes that move between two checks for deadlines, cancels and threads that want the peer. */
enum { KV_PIECE_BYTES = 4 << 20 };

/*
 * One mark per block; a block was seen in this round if its mark is the round's number. So nothing
 * is cleared between calls, except every 65535th time.
 */
struct kv_marks {
	uint16_t *mark; /* `blocks` of them */
	uint32_t blocks;
	uint16_t round;
};
int kv_marks_make(struct kv_marks *marks, uint32_t blocks, struct kv_error *err);
void kv_marks_free(struct kv_marks *marks);

struct kv_plan_check {
	const char *op;
	const int64_t *source, *destination; /* NULL: only the other ones are looked at */
	size_t n;
	uint32_t source_blocks, destination_blocks;
	bool pull;		/* the source is remote (kv_read_blocks), or there is none */
	struct kv_marks *marks; /* of the destination */
	/* Every destination block must be owned by `owner`; NULL: no lease is needed. */
	const uint32_t *owner_of;
	uint32_t owner;
};
/* BLOCK_ID, DUP_BLOCK or LEASE with block_index and block_id. */
int kv_plan_check(const struct kv_plan_check *check, struct kv_error *err);

/*
 * Where one tensor of one layer lies on both sides: block id b begins at base + b * stride, and
 * `rows` pieces of it move (0 counts as 1), each of `len` bytes and one row behind the last.
 */
struct kv_pitch {
	uint64_t local_base, local_stride;
	uint64_t remote_base, remote_stride;
	uint64_t len;
	uint64_t local_row, remote_row;
	uint32_t rows;
	uint64_t most; /* bytes that the spans of one kv_plan_next have together; not 0 */
};

/*
 * How far a tensor of a layer is: the index of the next piece (with one row a block that is the
 * index of the id), and the bytes of it that are done.
 */
struct kv_place {
	size_t index;
	uint64_t skip;
};

/*
 * The ids from `from` on for a transport that takes blocks: how many there are; 0: what comes next
 * is a part of a block.
 */
size_t kv_plan_blocks(const struct kv_pitch *pitch, const int64_t *local_ids,
		      const int64_t *remote_ids, size_t n, struct kv_place from,
		      struct tr_blocks *blocks);

/*
 * Fills at most `max` spans from `from` on; blocks that follow each other without a gap on both
 * sides become one span. A piece is cut only if it alone is larger than pitch->most. Returns the
 * number of spans.
 */
size_t kv_plan_next(const struct kv_pitch *pitch, const int64_t *local_ids,
		    const int64_t *remote_ids, size_t n, struct kv_place from,
		    struct tr_span *spans, size_t max);

/* Moves the place behind the first `count` spans of kv_plan_next; returns their bytes. */
uint64_t kv_plan_take(const struct kv_pitch *pitch, const struct tr_span *spans, size_t count,
		      struct kv_place *place);

#endif
