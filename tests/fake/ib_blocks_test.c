/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_blocks_test.c -- blocks that are handed over by their ids: the same bytes as a loop over them
 * moves, and none outside of the regions
 */
#include <string.h>

#include "ib/ib.h"
#include "lib/test.h"
#include "setting.h"

enum { AREA = 32 << 10, AREAS = 6, SIZE = AREAS * AREA, IDS = AREA / 64, EMPTY = 0xee };

static uint64_t seed;

static uint64_t random_below(uint64_t n)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (seed >> 33) % n;
}

/* A permutation of n ids, of which many follow each other where `runs`. */
static void make_ids(int64_t *ids, size_t n, bool runs)
{
	for (size_t i = 0; i < n; i++)
		ids[i] = (int64_t)i;
	for (size_t i = n; i > 1; i -= 1 + (runs ? random_below(i - 1) : 0)) {
		size_t other = random_below(i);
		int64_t id = ids[i - 1];

		ids[i - 1] = ids[other];
		ids[other] = id;
	}
}

static void add_all(struct setting *s, struct tr_op *op, struct tr_blocks b, size_t n)
{
	while (n) {
		struct kv_error err;
		long added = tr_op_add_blocks(op, s->mem[0], s->rmem[0], &b, n, &err);

		if (added < 0)
			fail_msg("blocks: %s", err.message);
		b.local += added;
		b.remote += added;
		n -= (size_t)added;
		if (n)
			rig_pump(&s->rig);
	}
}

/* Blocks of another size in each area, some of them with gaps; *want is what is to be there. */
static void add_area(struct setting *s, struct tr_op *op, size_t area, uint8_t *want)
{
	static const uint64_t lens[] = { 64, 64, 256, 700, 5000 };
	uint64_t len = lens[random_below(5)];
	struct tr_blocks b = { .local_base = area * AREA,
			       .local_stride = len + random_below(2) * 24,
			       .remote_base = area * AREA,
			       .remote_stride = len + random_below(2) * 24,
			       .len = len };
	uint64_t most = b.local_stride > b.remote_stride ? b.local_stride : b.remote_stride;
	int64_t local[IDS], remote[IDS];
	size_t n = AREA / most;

	make_ids(local, n, random_below(2));
	make_ids(remote, n, random_below(2));
	if (!random_below(3))
		memcpy(remote, local, sizeof(remote));
	b.local = local;
	b.remote = remote;
	add_all(s, op, b, n);
	for (size_t i = 0; i < n; i++)
		memcpy(want + b.remote_base + (uint64_t)remote[i] * b.remote_stride,
		       setting_at(s, 0, b.local_base + (uint64_t)local[i] * b.local_stride), len);
}

CASE(blocks_move_what_a_loop_over_them_moves)
{
	static const char *const lanes[][2] = { { "KVCACHE_IB_LANES=1" },
						{ "KVCACHE_IB_LANES=3" } };
	static uint8_t want[SIZE];

	for (uint64_t round = 1; round <= 24; round++) {
		struct fake_config config = { .seed = round, .devices = round % 3 ? 1 : 2 };
		struct setting s;
		struct kv_error err;
		struct tr_op *op;

		seed = round;
		fake_begin(&config);
		ib_test_hook.slice_bytes = round % 2 ? 8192 : 0;
		ib_test_hook.sq_depth = round % 4 ? 0 : 16;
		setting_connect(&s, lanes[round % 2], SIZE, round % 5 ? 0 : TR_LINE_ORDER);
		setting_fill(&s, 0, round);
		memset(want, EMPTY, SIZE);
		assert_int_equal(tr_op_begin(s.rig.side[0].conn, TR_WRITE, 1, &op, &err), 0);
		for (size_t area = 0; area < AREAS; area++)
			add_area(&s, op, area, want);
		while (tr_op_commit(op, TR_NOTIFY, 2, &err) == TR_AGAIN)
			rig_pump(&s.rig);
		setting_expect_notify(&s, 1, 2);
		assert_memory_equal(setting_at(&s, 1, 0), want, SIZE);
		setting_end(&s);
	}
}

CASE(a_block_outside_of_a_region_is_refused_with_its_index)
{
	static const int64_t good[] = { 0, 1, 2, 3 };
	static const int64_t bad[][4] = { { 0, 1, 4, 2 }, { 0, -1, 1, 2 }, { 3, 2, 1, INT64_MAX } };
	static const int64_t at[] = { 2, 1, 3 };
	struct kv_error err;
	struct setting s;
	struct tr_op *op;

	setting_make(&s, NULL, NULL, 4096);
	assert_int_equal(tr_op_begin(s.rig.side[0].conn, TR_WRITE, 1, &op, &err), 0);
	for (int i = 0; i < 6; i++) {
		struct tr_blocks b = {
			0, 1024, 0, 1024, 1024, i % 2 ? good : bad[i / 2], i % 2 ? bad[i / 2] : good
		};

		assert_int_equal(tr_op_add_blocks(op, s.mem[0], s.rmem[0], &b, 4, &err),
				 KV_ERR_ARG);
		assert_int_equal(err.block_index, at[i / 2]);
		b.local = b.remote = good;
		b.local_base = (uint64_t)i % 2;
		b.remote_base = !b.local_base;
		assert_int_equal(tr_op_add_blocks(op, s.mem[0], s.rmem[0], &b, 4, &err),
				 KV_ERR_ARG);
		assert_int_equal(err.block_index, 3);
	}
	assert_int_equal(tr_op_commit(op, TR_NOTIFY, 5, &err), 0);
	setting_expect_notify(&s, 1, 5);
	for (size_t i = 0; i < 4096; i++)
		assert_int_equal(*setting_at(&s, 1, i), EMPTY);
	setting_end(&s);
}
