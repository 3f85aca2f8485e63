/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_layout_test.c -- layouts whose blocks share bytes are refused, and no others: a table, and
 * random small layouts against a map in which every byte of every block is marked
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "kv_layout.h"
#include "kv_overlap.h"
#include "lib/test.h"

static uint64_t seed = 1;

static uint64_t random_below(uint64_t n)
{
	seed = seed * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
	return (seed >> 33) % n;
}

static int place(const struct kv_layout *layout, struct kv_error *err)
{
	struct kv_extent *extents =
		calloc((size_t)layout->layers * layout->tensors, sizeof(*extents));
	uint64_t stride[KV_TENSORS_MAX];
	struct kv_geometry g;
	int ret = kv_layout_take(layout, &g, stride, err);

	assert_non_null(extents);
	if (!ret)
		ret = kv_layout_place(layout, &g, stride, extents, err);
	for (size_t i = 1; !ret && i < (size_t)g.layers * g.tensors; i++)
		assert_true(extents[i - 1].addr < extents[i].addr);
	free(extents);
	return ret;
}

/* ---------------------------------------------------------------- layouts of engines */

enum { KiB = 1 << 10, MiB = 1 << 20, GiB = 1 << 30 };
#define BASE(offset) ((void *)(uintptr_t)((UINT64_C(1) << 40) + (offset)))

struct row {
	const char *what;
	uint32_t layers, blocks;
	struct {
		uint64_t at, len, stride, layer_stride;
	} t[2];		  /* len 0: there is one */
	const char *says; /* NULL: legal */
};

static const struct row rows[] = {
	{ "K and V each of their own",
	  4,
	  64,
	  { { 0, KiB, 0, 64 * KiB }, { MiB, KiB, 0, 64 * KiB } },
	  NULL },
	{ "blocks, K and V of each",
	  1,
	  64,
	  { { 0, KiB, 2 * KiB, 0 }, { KiB, KiB, 2 * KiB, 0 } },
	  NULL },
	{ "layers inside of blocks",
	  32,
	  1 << 20,
	  { { 0, KiB, 64 * KiB, 2 * KiB }, { KiB, KiB, 64 * KiB, 2 * KiB } },
	  NULL },
	{ "layers inside of blocks, all K before all V",
	  32,
	  1 << 20,
	  { { 0, KiB, 64 * KiB, KiB }, { 32 * KiB, KiB, 64 * KiB, KiB } },
	  NULL },
	{ "a small tensor in the gaps of another with half its stride",
	  1,
	  64,
	  { { 0, 256, KiB, 0 }, { 256, 128, 512, 0 } },
	  NULL },
	{ "the same, a byte further down",
	  1,
	  64,
	  { { 0, 256, KiB, 0 }, { 255, 128, 512, 0 } },
	  "tensor[0] (k) of layer 0 and tensor[1] (v) of layer 0 share bytes" },
	{ "one block for each layer", 4, 1, { { 0, KiB, 0, KiB } }, NULL },
	{ "layers that touch", 4, 64, { { 0, KiB, 0, 64 * KiB } }, NULL },
	{ "one layer needs no distance", 1, 64, { { 0, KiB, 0, 0 } }, NULL },
	{ "four layers at one place",
	  4,
	  64,
	  { { 0, KiB, 0, 0 } },
	  "tensor[0].layer_stride is 0: its 4 layers would share their bytes" },
	{ "layers a byte too near",
	  4,
	  64,
	  { { 0, KiB, 0, 64 * KiB - 1 } },
	  "tensor[0] (k) of layer 0 and tensor[0] (k) of layer 1 share bytes" },
	{ "layers inside of blocks, no room for the last",
	  32,
	  1 << 20,
	  { { 0, KiB, 32 * KiB - 1, KiB } },
	  "tensor[0] (k) of layer 0 and tensor[0] (k) of layer 31 share bytes" },
	{ "two tensors at one place",
	  1,
	  64,
	  { { 0, KiB, 0, 0 }, { 0, KiB, 0, 0 } },
	  "tensor[0] (k) of layer 0 and tensor[1] (v) of layer 0 share bytes" },
	{ "the last byte of the one is the first of the other",
	  1,
	  64,
	  { { 0, KiB, 0, 0 }, { 64 * KiB - 1, KiB, 0, 0 } },
	  "tensor[0] (k) of layer 0 and tensor[1] (v) of layer 0 share bytes" },
	{ "strides without a common factor meet in the end",
	  1,
	  1 << 20,
	  { { 0, 1, 65537, 0 }, { 7, 1, 65536, 0 } },
	  "tensor[0] (k) of layer 0 and tensor[1] (v) of layer 0 share bytes" },
	{ "and do not before that",
	  1,
	  60000,
	  { { 0, 1, 65537, 0 }, { 65535, 1, 65536, 0 } },
	  NULL },
	{ "two blocks as far apart as addresses are",
	  1,
	  2,
	  { { 0, KiB, UINT64_MAX >> 1, 0 }, { KiB, KiB, UINT64_MAX >> 1, 0 } },
	  NULL },
};

CASE(layouts_of_engines)
{
	static const char *const names[] = { "k", "v" };

	for (size_t r = 0; r < sizeof(rows) / sizeof(rows[0]); r++) {
		struct kv_layout layout = KV_INIT(kv_layout);
		struct kv_tensor tensor[2] = { 0 };
		struct kv_error err;
		int ret;

		for (int i = 0; i < 2; i++)
			tensor[i] = (struct kv_tensor){ .name = names[i],
							.block_bytes = rows[r].t[i].len,
							.stride = rows[r].t[i].stride,
							.base = BASE(rows[r].t[i].at),
							.layer_stride = rows[r].t[i].layer_stride };
		layout.layers = rows[r].layers;
		layout.blocks = rows[r].blocks;
		layout.tensors = rows[r].t[1].len ? 2 : 1;
		layout.tensor = tensor;
		ret = place(&layout, &err);
		if (ret != (rows[r].says ? KV_ERR_ARG : 0))
			fail_msg("%s: %d %s", rows[r].what, ret, ret ? err.message : "");
		if (!rows[r].says)
			continue;
		assert_string_equal(err.message, rows[r].says);
		assert_non_null(strstr(err.hint, "layer_base"));
	}
}

/* ---------------------------------------------------------------- against a map of bytes */

enum { MAP = 4096, RANDOM_TENSORS = 3, RANDOM_LAYERS = 4, RANDOM_BLOCKS = 9 };

static bool marks_one_twice(const struct kv_layout *layout)
{
	static bool map[MAP];

	memset(map, 0, sizeof(map));
	for (uint32_t l = 0; l < layout->layers; l++)
		for (uint32_t i = 0; i < layout->tensors; i++)
			for (uint64_t b = 0; b < layout->blocks; b++) {
				const struct kv_tensor *t = &layout->tensor[i];
				uint64_t at = (uintptr_t)t->base - (uintptr_t)BASE(0) +
					      l * t->layer_stride + b * t->stride;

				for (uint64_t k = 0; k < t->block_bytes; k++, at++) {
					assert_true(at < MAP);
					if (map[at])
						return true;
					map[at] = true;
				}
			}
	return false;
}

CASE(small_layouts_are_judged_as_a_map_of_their_bytes_judges_them)
{
	static const char *const names[RANDOM_TENSORS] = { "a", "b", "c" };
	unsigned int refused = 0, taken = 0;

	for (int round = 0; round < 200000; round++) {
		struct kv_layout layout = KV_INIT(kv_layout);
		struct kv_tensor tensor[RANDOM_TENSORS];
		uint64_t unit = 1 + random_below(4), common = unit * (2 + random_below(12));
		bool same = random_below(2), twice;
		struct kv_error err;
		int ret;

		layout.layers = 1 + (uint32_t)random_below(RANDOM_LAYERS);
		layout.tensors = 1 + (uint32_t)random_below(RANDOM_TENSORS);
		layout.blocks = 1 + (uint32_t)random_below(RANDOM_BLOCKS);
		layout.tensor = tensor;
		for (uint32_t i = 0; i < layout.tensors; i++) {
			uint64_t stride = same ? common : unit * (1 + random_below(12));

			tensor[i] = (struct kv_tensor){
				.name = names[i],
				.block_bytes = 1 + random_below(stride < 6 ? stride : 6),
				.stride = stride,
				.base = BASE(unit * random_below(90)),
				.layer_stride = unit * (1 + random_below(40)),
			};
		}
		twice = marks_one_twice(&layout);
		ret = place(&layout, &err);
		if (ret != (twice ? KV_ERR_ARG : 0))
			fail_msg("round %d: %d although %s", round, ret,
				 twice ? "a byte is shared" : "no byte is shared");
		refused += twice;
		taken += !twice;
	}
	assert_in_range(refused, 20000, 180000);
	assert_in_range(taken, 20000, 180000);
}

static bool rows_meet_slowly(const struct kv_row *x, const struct kv_row *y)
{
	for (uint64_t i = 0; i < x->n; i++)
		for (uint64_t k = 0; k < y->n; k++) {
			uint64_t a = x->at + i * x->stride, b = y->at + k * y->stride;

			if (a < b + y->len && b < a + x->len)
				return true;
		}
	return false;
}

static struct kv_row random_row(void)
{
	uint64_t stride = 1 + random_below(60);

	return (struct kv_row){ .at = random_below(400),
				.stride = stride,
				.len = 1 + random_below(random_below(2) ? stride : 1),
				.n = 1 + random_below(30) };
}

CASE(rows_of_any_stride_and_number)
{
	unsigned int met = 0;

	for (int round = 0; round < 300000; round++) {
		struct kv_row x = random_row(), y = random_row();
		bool meet = rows_meet_slowly(&x, &y);

		if (kv_rows_meet(&x, &y) != meet || kv_rows_meet(&y, &x) != meet)
			fail_msg("round %d: they %s", round, meet ? "meet" : "do not meet");
		met += meet;
	}
	assert_in_range(met, 50000, 250000);
}

/* ---------------------------------------------------------------- cost */

/* Of this process: what else the machine does is not counted. */
static long long cpu_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return t.tv_sec * 1000LL + t.tv_nsec / 1000000;
}

/* As many layers, tensors and blocks as there may be, all of them between each other's blocks. */
CASE(the_largest_cache_is_judged_without_a_look_at_its_blocks)
{
	static const char *const names[KV_TENSORS_MAX] = { "a", "b", "c", "d", "e", "f", "g", "h" };
	const uint64_t each = 16, stride = each * KV_TENSORS_MAX * KV_LAYERS_MAX;
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_tensor tensor[KV_TENSORS_MAX];
	long long begun = cpu_ms();
	struct kv_error err;

	layout.layers = KV_LAYERS_MAX;
	layout.tensors = KV_TENSORS_MAX;
	layout.blocks = KV_BLOCKS_MAX;
	layout.tensor = tensor;
	for (uint64_t i = 0; i < KV_TENSORS_MAX; i++)
		tensor[i] = (struct kv_tensor){ .name = names[i],
						.block_bytes = each,
						.stride = stride,
						.base = BASE(i * each),
						.layer_stride = each * KV_TENSORS_MAX };
	assert_int_equal(place(&layout, &err), 0);
	print_message("%lld ms\n", cpu_ms() - begun);
	assert_true(cpu_ms() - begun < 20000);
}
