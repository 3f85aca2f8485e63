/* SPDX-License-Identifier: Apache-2.0 */
/* kv_plan.c -- checks block ids and turns them into spans; on the data path */
#include "kv_plan.h"

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/fault.h"

int kv_marks_make(struct kv_marks *marks, uint32_t blocks, struct kv_error *err)
{
	if (marks->mark)
		return 0;
	marks->mark = kv_fault(KV_MARKS) ? NULL : calloc(blocks, sizeof(*marks->mark));
	if (!marks->mark)
		return kv_fail(err, KV_ERR_NOMEM, "write_blocks",
			       "cannot allocate the marks of %u blocks", blocks);
	marks->blocks = blocks;
	marks->round = 0;
	return 0;
}

void kv_marks_free(struct kv_marks *marks)
{
	free(marks->mark);
	*marks = (struct kv_marks){ .mark = NULL };
}

static uint16_t next_round(struct kv_marks *marks)
{
	if (marks->round == UINT16_MAX) {
		memset(marks->mark, 0, marks->blocks * sizeof(*marks->mark));
		marks->round = 0;
	}
	return ++marks->round;
}

static int bad_block(const struct kv_plan_check *c, size_t i, bool destination, int code,
		     struct kv_error *err)
{
	int64_t id = destination ? c->destination[i] : c->source[i];
	uint32_t blocks = destination ? c->destination_blocks : c->source_blocks;
	const char *side = destination == c->pull ? "local" : "remote";

	if (code == KV_ERR_BLOCK_ID)
		kv_fail(err, code, c->op, "%s_ids[%zu] is %lld; the %s cache has blocks 0..%u",
			side, i, (long long)id, side, blocks - 1);
	else if (code == KV_ERR_DUP_BLOCK)
		kv_fail(err, code, c->op, "%s_ids[%zu] is block %lld, which an earlier index names",
			side, i, (long long)id);
	else
		kv_fail(err, code, c->op,
			"%s_ids[%zu] is block %lld, which the lease does not hold", side, i,
			(long long)id);
	if (err) {
		err->block_index = (int64_t)i;
		err->block_id = id;
	}
	return code;
}

/* Marks every destination block, unless one of them may not be written. */
static int mark_blocks(const struct kv_plan_check *c, struct kv_error *err)
{
	uint16_t round = next_round(c->marks), *mark = c->marks->mark;
	const int64_t *ids = c->destination;
	uint64_t blocks = c->destination_blocks;

	for (size_t i = 0; i < c->n; i++) {
		uint64_t to = (uint64_t)ids[i]; /* a negative id counts as a huge one */

		if (to >= blocks)
			return bad_block(c, i, true, KV_ERR_BLOCK_ID, err);
		if (mark[to] == round)
			return bad_block(c, i, true, KV_ERR_DUP_BLOCK, err);
		mark[to] = round;
		if (c->owner_of && c->owner_of[to] != c->owner)
			return bad_block(c, i, true, KV_ERR_LEASE, err);
	}
	return 0;
}

int kv_plan_check(const struct kv_plan_check *c, struct kv_error *err)
{
	uint64_t last = (uint64_t)c->source_blocks - 1;
	size_t bad = 0;

	if (c->source && !tr_ids_inside(c->source, c->n, last)) {
		while (tr_ids_inside(&c->source[bad], 1, last))
			bad++;
		return bad_block(c, bad, false, KV_ERR_BLOCK_ID, err);
	}
	return c->destination ? mark_blocks(c, err) : 0;
}

/* Blocks of which only a part of each token's heads moves. */
static size_t next_rows(const struct kv_pitch *pitch, const int64_t *local_ids,
			const int64_t *remote_ids, size_t n, struct kv_place from,
			struct tr_span *spans, size_t max)
{
	uint64_t left = pitch->most, skip = from.skip, len = pitch->len - skip;
	size_t count = 0, id = from.index / pitch->rows, row = from.index % pitch->rows;

	if (len > left)
		len = left; /* a part of one row */
	while (id < n && count < max && len <= left) {
		spans[count++] = (struct tr_span){
			.local = pitch->local_base + (uint64_t)local_ids[id] * pitch->local_stride +
				 row * pitch->local_row + skip,
			.remote = pitch->remote_base +
				  (uint64_t)remote_ids[id] * pitch->remote_stride +
				  row * pitch->remote_row + skip,
			.len = len,
		};
		left -= len;
		len = pitch->len;
		skip = 0;
		if (++row == pitch->rows) {
			row = 0;
			id++;
		}
	}
	return count;
}

/* A part of one block: what is left of it, or as much as may move at once. */
static size_t next_part(const struct kv_pitch *pitch, int64_t local_id, int64_t remote_id,
			uint64_t skip, struct tr_span *span)
{
	uint64_t len = pitch->len - skip;

	*span = (struct tr_span){
		.local = pitch->local_base + (uint64_t)local_id * pitch->local_stride + skip,
		.remote = pitch->remote_base + (uint64_t)remote_id * pitch->remote_stride + skip,
		.len = len < pitch->most ? len : pitch->most,
	};
	return 1;
}

/* The limit is kept by the number of blocks: nothing is added up for each of them. */
static size_t end_of_piece(const struct kv_pitch *pitch, size_t first, size_t n)
{
	return (n - first) * pitch->len > pitch->most ? first + pitch->most / pitch->len : n;
}

size_t kv_plan_blocks(const struct kv_pitch *pitch, const int64_t *local_ids,
		      const int64_t *remote_ids, size_t n, struct kv_place from,
		      struct tr_blocks *blocks)
{
	if (pitch->rows > 1 || from.skip || pitch->len > pitch->most)
		return 0;
	*blocks = (struct tr_blocks){
		.local_base = pitch->local_base,
		.local_stride = pitch->local_stride,
		.remote_base = pitch->remote_base,
		.remote_stride = pitch->remote_stride,
		.len = pitch->len,
		.local = local_ids + from.index,
		.remote = remote_ids + from.index,
	};
	return n - from.index;
}

size_t kv_plan_next(const struct kv_pitch *pitch, const int64_t *local_ids,
		    const int64_t *remote_ids, size_t n, struct kv_place from,
		    struct tr_span *spans, size_t max)
{
	bool dense = pitch->local_stride == pitch->len && pitch->remote_stride == pitch->len;
	size_t count = 0, first = from.index;

	if (pitch->rows > 1)
		return next_rows(pitch, local_ids, remote_ids, n, from, spans, max);
	if (first < n && (from.skip || pitch->len > pitch->most))
		return next_part(pitch, local_ids[first], remote_ids[first], from.skip, spans);
	n = end_of_piece(pitch, first, n);
	for (size_t i = first; i < n; i++) {
		if (dense && i > first && local_ids[i] == local_ids[i - 1] + 1 &&
		    remote_ids[i] == remote_ids[i - 1] + 1) {
			spans[count - 1].len += pitch->len;
			continue;
		}
		if (count == max)
			break;
		spans[count++] = (struct tr_span){
			.local = pitch->local_base + (uint64_t)local_ids[i] * pitch->local_stride,
			.remote =
				pitch->remote_base + (uint64_t)remote_ids[i] * pitch->remote_stride,
			.len = pitch->len,
		};
	}
	return count;
}

uint64_t kv_plan_take(const struct kv_pitch *pitch, const struct tr_span *spans, size_t count,
		      struct kv_place *place)
{
	uint64_t bytes = 0, done;

	for (size_t i = 0; i < count; i++)
		bytes += spans[i].len;
	done = place->skip + bytes;
	place->index += (size_t)(done / pitch->len);
	place->skip = done % pitch->len;
	return bytes;
}
