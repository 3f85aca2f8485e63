/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_plan_test.c -- ids to spans against a naive oracle, the checks of ids, and the parts of
 * resharded blocks
 */
#include <stdio.h>
#include <string.h>

#include "kv_geometry.h"
#include "kv_plan.h"
#include "lib/test.h"

static uint64_t seed = 1;

static uint64_t random_below(uint64_t n)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (seed >> 33) % n;
}

/* ---------------------------------------------------------------- spans */

enum { BLOCKS = 64, LEN_MAX = 24, PITCH_MAX = 32, MEM = 256 + BLOCKS * PITCH_MAX };

/* n different ids; every other time mostly in runs, so that spans merge. */
static size_t random_ids(int64_t *ids, bool runs)
{
	bool used[BLOCKS] = { false };
	size_t n = 1 + random_below(BLOCKS);
	int64_t next = (int64_t)random_below(BLOCKS);

	for (size_t i = 0; i < n; i++) {
		if (!runs || !random_below(4))
			next = (int64_t)random_below(BLOCKS);
		while (used[next % BLOCKS])
			next++;
		ids[i] = next % BLOCKS;
		used[ids[i]] = true;
		next++;
	}
	return n;
}

static void copy_spans(const struct kv_pitch *pitch, const int64_t *from, const int64_t *to,
		       size_t n, const uint8_t *source, uint8_t *destination)
{
	struct tr_span spans[TR_SPANS_GOOD];
	size_t max = 1 + random_below(8);
	size_t pieces = n * (pitch->rows ? pitch->rows : 1);
	struct kv_place place = { 0 };

	while (place.index < pieces) {
		size_t count = kv_plan_next(pitch, from, to, n, place, spans, max);
		size_t taken = random_below(count + 1); /* the transport may take fewer */
		uint64_t bytes = 0;

		assert_in_range(count, 1, max);
		for (size_t i = 0; i < count; i++)
			bytes += spans[i].len;
		assert_in_range(bytes, 1, pitch->most);
		for (size_t i = 0; i < taken; i++)
			memcpy(destination + spans[i].remote, source + spans[i].local,
			       spans[i].len);
		kv_plan_take(pitch, spans, taken, &place);
	}
	assert_int_equal(place.index, pieces);
	assert_int_equal(place.skip, 0);
}

CASE(random_spans_move_what_a_loop_over_the_blocks_moves)
{
	static uint8_t source[MEM], got[MEM], want[MEM];

	for (size_t i = 0; i < MEM; i++)
		source[i] = (uint8_t)(1 + random_below(255));
	for (int round = 0; round < 3000; round++) {
		int64_t from[BLOCKS], to[BLOCKS];
		bool runs = round % 2;
		size_t n = random_ids(to, runs);
		struct kv_pitch pitch = { .len = 1 + random_below(LEN_MAX) };

		for (size_t i = 0; i < n; i++)
			from[i] = runs ? (to[i] + 7) % BLOCKS : (int64_t)random_below(BLOCKS);
		pitch.local_stride = pitch.len + (random_below(2) ? 0 : random_below(8));
		pitch.remote_stride = pitch.len + (random_below(2) ? 0 : random_below(8));
		pitch.local_base = random_below(256);
		pitch.remote_base = random_below(256);
		pitch.most = 1 + random_below(4 * LEN_MAX); /* less than a block, or some */
		memset(got, 0, sizeof(got));
		memset(want, 0, sizeof(want));
		for (size_t i = 0; i < n; i++)
			memcpy(want + pitch.remote_base + (size_t)to[i] * pitch.remote_stride,
			       source + pitch.local_base + (size_t)from[i] * pitch.local_stride,
			       pitch.len);
		copy_spans(&pitch, from, to, n, source, got);
		assert_memory_equal(got, want, MEM);
	}
}

CASE(adjacent_blocks_become_one_span_only_if_adjacent_on_both_sides)
{
	static const int64_t from[] = { 1, 2, 3, 9, 10 }, to[] = { 5, 6, 7, 8, 20 };
	struct kv_pitch pitch = { 0, 16, 0, 16, 16, .rows = 1, .most = 1024 };
	struct tr_span spans[8];

	assert_int_equal(kv_plan_next(&pitch, from, to, 5, (struct kv_place){ 0 }, spans, 8), 3);
	assert_int_equal(spans[0].len, 48);
	assert_int_equal(spans[0].local, 16);
	assert_int_equal(spans[0].remote, 80);
	pitch.remote_stride = 17;
	assert_int_equal(kv_plan_next(&pitch, from, to, 5, (struct kv_place){ 0 }, spans, 8), 5);
	/* Offsets are 64 bits wide. */
	pitch.local_stride = pitch.remote_stride = UINT64_C(1) << 34;
	assert_int_equal(kv_plan_next(&pitch, from, to, 5, (struct kv_place){ 0 }, spans, 8), 5);
	assert_true(spans[4].remote == UINT64_C(20) << 34);
}

/* ---------------------------------------------------------------- checks */

CASE(every_bad_id_is_found_at_its_index)
{
	struct kv_marks marks = { .mark = NULL };
	struct kv_error err;

	assert_int_equal(kv_marks_make(&marks, BLOCKS, &err), 0);
	for (int round = 0; round < 70000; round++) { /* the rounds' numbers wrap */
		int64_t from[BLOCKS], to[BLOCKS];
		size_t n = random_ids(from, false), bad;
		struct kv_plan_check check = { .op = "write_blocks",
					       .source = from,
					       .destination = to,
					       .n = n,
					       .source_blocks = BLOCKS,
					       .destination_blocks = BLOCKS,
					       .marks = &marks };

		if (round > 300 && round < 65400)
			n = check.n = 1;
		for (size_t i = 0; i < n; i++)
			to[i] = (int64_t)((i * 5 + (size_t)round) % BLOCKS);
		assert_int_equal(kv_plan_check(&check, &err), 0);
		bad = random_below(n);
		to[bad] = random_below(2) ? -1 - (int64_t)random_below(9) : BLOCKS;
		assert_int_equal(kv_plan_check(&check, &err), KV_ERR_BLOCK_ID);
		assert_int_equal(err.block_index, bad);
		assert_int_equal(err.block_id, to[bad]);
		if (!bad)
			continue;
		to[bad] = to[random_below(bad)];
		assert_int_equal(kv_plan_check(&check, &err), KV_ERR_DUP_BLOCK);
		assert_int_equal(err.block_index, bad);
	}
	kv_marks_free(&marks);
}

CASE(blocks_of_another_owner_are_refused)
{
	static const int64_t from[] = { 0, 1, 2 }, to[] = { 3, 4, 5 };
	uint32_t owner_of[8] = { 0, 0, 0, 7, 7, 8 };
	struct kv_marks marks = { .mark = NULL };
	struct kv_plan_check check = { .op = "write_blocks",
				       .source = from,
				       .destination = to,
				       .n = 3,
				       .source_blocks = 8,
				       .destination_blocks = 8,
				       .marks = &marks,
				       .owner_of = owner_of,
				       .owner = 7 };
	struct kv_error err;

	assert_int_equal(kv_marks_make(&marks, 8, &err), 0);
	assert_int_equal(kv_plan_check(&check, &err), KV_ERR_LEASE);
	assert_int_equal(err.block_index, 2);
	owner_of[5] = 7;
	assert_int_equal(kv_plan_check(&check, &err), 0);
	kv_marks_free(&marks);
}

/* ---------------------------------------------------------------- geometry */

static void put(char name[KV_TENSOR_NAME_MAX], const char *text)
{
	snprintf(name, KV_TENSOR_NAME_MAX, "%s", text);
}

static struct kv_geometry shape_of(uint32_t tp_size, uint32_t tp_rank, uint64_t whole)
{
	struct kv_geometry g = {
		.layers = 2, .tensors = 2, .blocks = 10, .tp_size = tp_size, .tp_rank = tp_rank
	};

	put(g.tensor[0].name, "k");
	g.tensor[0].order = KV_ORDER_HND;
	g.tensor[0].block_bytes = whole / tp_size;
	put(g.tensor[1].name, "scale");
	g.tensor[1].block_bytes = 24;
	g.tensor[1].flags = KV_TENSOR_REPLICATED;
	return g;
}

/*
 * Every rank of one size writes to every rank of another: each byte of each block is written
 * exactly once.
 */
CASE(ranks_of_any_two_sizes_cover_each_block_once)
{
	static const uint32_t sizes[] = { 1, 2, 4, 8 };
	enum { WHOLE = 64 };

	for (int i = 0; i < 16; i++) {
		uint32_t p = sizes[i / 4], d = sizes[i % 4];

		for (uint32_t to = 0; to < d; to++) {
			uint8_t byte_from[WHOLE];
			uint64_t mine = WHOLE / d;
			uint64_t count[WHOLE] = { 0 };

			for (uint32_t from = 0; from < p; from++) {
				struct kv_geometry a = shape_of(p, from, WHOLE),
						   b = shape_of(d, to, WHOLE);
				struct kv_part part[KV_TENSORS_MAX];

				assert_int_equal(kv_geometry_compare(&a, &b, NULL), 0);
				if (!kv_geometry_parts(&a, &b, part))
					continue;
				assert_true(part[0].local_skip + part[0].len <= WHOLE / p);
				assert_true(part[0].remote_skip + part[0].len <= mine);
				assert_int_equal(part[1].len, 24);
				assert_int_equal(part[1].local_skip + part[1].remote_skip, 0);
				for (uint64_t o = 0; o < part[0].len; o++) {
					count[part[0].remote_skip + o]++;
					byte_from[part[0].remote_skip + o] =
						(uint8_t)(from * (WHOLE / p) + part[0].local_skip +
							  o);
				}
			}
			for (uint64_t o = 0; o < mine; o++) {
				assert_int_equal(count[o], 1);
				assert_int_equal(byte_from[o], to * mine + o);
			}
		}
	}
}

/* ---------------------------------------------------------------- heads */

enum { TOKENS = 3, DIM = 2, HEADS_MAX = 8 };

struct group {
	uint32_t size, heads, order;
};

static uint32_t heads_of_rank(const struct group *g)
{
	return g->heads > g->size ? g->heads / g->size : 1;
}

/* What the model keeps at this byte of block `block` on this rank, as an engine lays it out. */
static uint8_t model(const struct group *g, uint32_t rank, uint32_t block, uint32_t at)
{
	uint32_t mine = heads_of_rank(g), dim = at % DIM, x = at / DIM;
	uint32_t head = g->order == KV_ORDER_HND ? x / TOKENS : x % mine;
	uint32_t token = g->order == KV_ORDER_HND ? x % TOKENS : x / mine;

	head += g->heads > g->size ? rank * mine : rank / (g->size / g->heads);
	return (uint8_t)(1 + dim + DIM * (head + HEADS_MAX * (token + TOKENS * block)));
}

static struct kv_geometry cache_of(const struct group *g, uint32_t rank)
{
	struct kv_geometry shape = shape_of(g->size, rank, 0);

	shape.tensors = 1;
	shape.block_tokens = TOKENS;
	shape.kv_heads = g->heads;
	shape.tensor[0].order = g->order;
	shape.tensor[0].block_bytes = heads_of_rank(g) * TOKENS * DIM;
	assert_int_equal(kv_geometry_check(&shape, "test", NULL), 0);
	return shape;
}

enum { HEAD_BLOCKS = 3, BLOCK_MAX = HEADS_MAX * TOKENS * DIM };

/* The writers that meet this rank of `d`; returns how many wrote. */
static unsigned int write_heads(const struct group *p, const struct group *d, uint32_t to,
				uint8_t *got)
{
	static const int64_t ids[HEAD_BLOCKS] = { 0, 1, 2 };
	struct kv_geometry b = cache_of(d, to);
	unsigned int writers = 0;

	for (uint32_t from = 0; from < p->size; from++) {
		struct kv_geometry a = cache_of(p, from);
		uint64_t len = a.tensor[0].block_bytes;
		uint8_t source[HEAD_BLOCKS * BLOCK_MAX];
		struct kv_part part[KV_TENSORS_MAX];
		struct kv_pitch pitch;

		assert_int_equal(kv_geometry_compare(&a, &b, NULL), 0);
		if (!kv_geometry_parts(&a, &b, part))
			continue;
		for (uint32_t i = 0; i < HEAD_BLOCKS * len; i++)
			source[i] = model(p, from, (uint32_t)(i / len), (uint32_t)(i % len));
		pitch = (struct kv_pitch){ .local_base = part->local_skip,
					   .local_stride = len,
					   .local_row = part->local_row,
					   .remote_base = part->remote_skip,
					   .remote_stride = b.tensor[0].block_bytes,
					   .remote_row = part->remote_row,
					   .len = part->len,
					   .rows = part->rows,
					   .most = 1 + random_below(2 * part->len) };
		copy_spans(&pitch, ids, ids, HEAD_BLOCKS, source, got);
		writers++;
	}
	return writers;
}

/* Fewer heads than ranks (each head on several ranks), MLA's one head, both orders. */
CASE(each_rank_of_any_size_gets_its_heads_in_both_orders)
{
	static const uint32_t sizes[] = { 1, 2, 4, 8 };

	for (unsigned int i = 0; i < 4 * 4 * 4 * 2; i++) {
		uint32_t heads = sizes[i / 2 % 4], order = KV_ORDER_HND + i % 2;
		struct group p = { sizes[i / 8 % 4], heads, order };
		struct group d = { sizes[i / 32], heads, order };
		uint32_t same = p.size > heads ? p.size / heads : 1;

		for (uint32_t to = 0; to < d.size; to++) {
			uint8_t got[HEAD_BLOCKS * BLOCK_MAX] = { 0 };
			unsigned int writers = write_heads(&p, &d, to, got);
			uint32_t len = heads_of_rank(&d) * TOKENS * DIM;
			unsigned int coarser = heads_of_rank(&d) / heads_of_rank(&p);

			assert_int_equal(writers, same * (coarser ? coarser : 1));
			for (uint32_t at = 0; at < HEAD_BLOCKS * len; at++)
				assert_int_equal(got[at], model(&d, to, at / len, at % len));
		}
	}
}

static void is_refused(const struct kv_geometry *a, const struct kv_geometry *b, const char *why)
{
	struct kv_error err;

	assert_int_equal(kv_geometry_compare(a, b, &err), KV_ERR_GEOMETRY);
	if (!strstr(err.message, why))
		fail_msg("\"%s\" does not say \"%s\"", err.message, why);
	assert_true(err.hint[0]);
}

CASE(heads_that_would_be_scrambled_are_refused_by_name)
{
	const struct group two = { 2, 4, KV_ORDER_NHD }, four = { 4, 4, KV_ORDER_NHD };
	struct kv_geometry a = cache_of(&two, 0), b = cache_of(&four, 0);

	assert_int_equal(kv_geometry_compare(&a, &b, NULL), 0);
	b.tensor[0].order = KV_ORDER_HND;
	is_refused(&a, &b, "tensor 0 (k) order here NHD, peer HND");
	b.tensor[0].order = KV_ORDER_UNKNOWN;
	is_refused(&a, &b,
		   "tensor 0 (k) order here NHD, peer not given (needed, as tp_size differs)");
	a.tensor[0].order = KV_ORDER_UNKNOWN;
	is_refused(&a, &b, "tensor 0 (k) order here not given, peer not given");
	a.tensor[0].order = b.tensor[0].order = KV_ORDER_NHD;
	b.block_tokens = 0;
	is_refused(&a, &b, "block_tokens here 3, peer 0 (needed by tensor 0 (k), which is NHD)");
	b.block_tokens = TOKENS;
	b.kv_heads = 8;
	is_refused(&a, &b, "kv_heads here 4, peer 8");
	b.kv_heads = 0; /* one side's word is enough */
	assert_int_equal(kv_geometry_compare(&a, &b, NULL), 0);
	b.tp_size = 3;
	is_refused(&a, &b, "tp_size here 2, peer 3 with 4 kv_heads");
	/* Equal sizes: an order that was not given goes with each, two that differ do not. */
	a = b = cache_of(&two, 1);
	a.tensor[0].order = KV_ORDER_UNKNOWN;
	assert_int_equal(kv_geometry_compare(&a, &b, NULL), 0);
	a.tensor[0].order = KV_ORDER_HND;
	is_refused(&a, &b, "tensor 0 (k) order here HND, peer NHD");
}

CASE(copies_of_heads_without_kv_heads_are_refused_with_both_sizes)
{
	const struct group four = { 4, 4, KV_ORDER_HND }, eight = { 8, 4, KV_ORDER_HND };
	struct kv_geometry a = cache_of(&four, 0), b = cache_of(&eight, 0);

	assert_int_equal(kv_geometry_compare(&a, &b, NULL), 0);
	a.kv_heads = b.kv_heads = 0;
	is_refused(&a, &b, "tensor 0 (k) block_bytes here 6 at tp_size 4, peer 6 at tp_size 8");
}

CASE(heads_that_do_not_go_into_a_block_are_refused)
{
	const struct group two = { 2, 8, KV_ORDER_NHD };
	struct kv_geometry g = cache_of(&two, 0);

	g.kv_heads = 3;
	assert_int_equal(kv_geometry_check(&g, "test", NULL), KV_ERR_ARG);
	g.kv_heads = 14;
	assert_int_equal(kv_geometry_check(&g, "test", NULL), KV_ERR_ARG);
	g.tensor[0].flags = KV_TENSOR_REPLICATED; /* holds all heads, or has none */
	assert_int_equal(kv_geometry_check(&g, "test", NULL), 0);
	g.block_tokens = 5;
	assert_int_equal(kv_geometry_check(&g, "test", NULL), KV_ERR_ARG);
	g.tensor[0].order = KV_ORDER_NHD + 1;
	assert_int_equal(kv_geometry_check(&g, "test", NULL), KV_ERR_ARG);
}

CASE(a_difference_is_reported_with_both_values)
{
	struct kv_geometry a = shape_of(1, 0, 64), b = a;
	struct kv_error err;

	b.layers = 3;
	b.dtype = 5; /* 0 on the other side: not given, not compared */
	b.tensor[0].block_bytes = 128;
	put(b.tensor[1].name, "v");
	assert_int_equal(kv_geometry_compare(&a, &b, &err), KV_ERR_GEOMETRY);
	assert_non_null(strstr(err.message, "layers here 2, peer 3"));
	assert_non_null(strstr(err.message, "tensor 0 (k) block_bytes here 64, peer 128"));
	assert_non_null(strstr(err.message, "tensor 1 name here scale, peer v"));
	assert_null(strstr(err.message, "dtype"));
	b = a;
	b.tp_size = 3;
	a.tp_size = 2;
	assert_int_equal(kv_geometry_compare(&a, &b, &err), KV_ERR_GEOMETRY);
	assert_non_null(strstr(err.message, "tp_size here 2, peer 3"));
	/* Many differences: as many as fit, and the number of the others. */
	a = b = shape_of(1, 0, 64);
	a.tensors = b.tensors = KV_TENSORS_MAX;
	for (int i = 0; i < KV_TENSORS_MAX; i++) {
		put(a.tensor[i].name, "fifteen-letters");
		put(b.tensor[i].name, "other-fifteen-l");
	}
	assert_int_equal(kv_geometry_compare(&a, &b, &err), KV_ERR_GEOMETRY);
	assert_non_null(strstr(err.message, " more"));
}
