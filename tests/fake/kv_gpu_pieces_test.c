/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_gpu_pieces_test.c -- caches in a GPU's memory that is mapped piece by piece, each of which a
 * NIC reaches by a buffer of its own; and pieces so large that the copy engines take them
 *
 * libcuda is a stand-in (fake_cuda.h).
 */
#include "lib/process.h"
#include "loop/kv_rig.h"

#include <errno.h>
#include <string.h>

#include "fake.h"
#include "fake_cuda.h"
#include "gpu/gpu.h"
#include "gpu_flat.h"

static const struct kv_layers all_layers = { 0, 0 };

static struct kv_engine_config over(const char *const *options)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);

	config.options = options;
	return config;
}

static const char *const ib[] = { "KVCACHE_TRANSPORT=ib", NULL };
static const char *const shm[] = { "KVCACHE_TRANSPORT=shm", NULL };

/* The last block lies in two pieces. Staged where the driver exports none of them, either. */
CASE(a_nic_reaches_each_piece_where_no_buffer_holds_them_all)
{
	enum { PIECE = 2 << 20, BYTES = 96 << 10, BLOCKS = 60 };
	static const int64_t mine[] = { 0, 21, 42, 59 }, theirs[] = { 21, 59, 0, 42 };
	const struct kv_tensor tensor = { .name = "k", .block_bytes = BYTES };
	struct kv_engine_config config = over(ib);
	int fds = count_descriptors();

	for (int exported = 0; exported < 2; exported++) {
		uint8_t *seen[2], *addr[2], *begin[2];
		struct flat_pair p;
		struct kv_error err;

		fake_cuda.one_mapping = exported;
		for (size_t i = 0; i < 2; i++) {
			size_t at = i ? PIECE - BYTES / 2 : 640; /* where in the first piece */

			seen[i] = fake_cuda_map(4, &addr[i]);
			assert_non_null(seen[i]);
			seen[i] += at;
			begin[i] = addr[i] + at;
		}
		flat_open(&p, &config, tensor, BLOCKS, KV_CACHE_OPEN | KV_CACHE_READABLE, begin);
		for (size_t i = 0; i < (size_t)BLOCKS * BYTES; i++)
			seen[0][i] = (uint8_t)(i / BYTES * 7 + i % 251);
		ok(kv_write_blocks(p.peer, p.cache[0], all_layers, mine, theirs, 4, NULL, &err),
		   &err);
		for (int i = 0; i < 4; i++)
			assert_memory_equal(seen[1] + theirs[i] * BYTES, seen[0] + mine[i] * BYTES,
					    BYTES);
		ok(kv_read_blocks(p.peer, p.cache[0], all_layers, mine, theirs + 1, 3, NULL, &err),
		   &err);
		for (int i = 0; i < 3; i++)
			assert_memory_equal(seen[0] + mine[i] * BYTES,
					    seen[1] + theirs[i + 1] * BYTES, BYTES);
		assert_int_equal(fake_cuda.launched > 0, !exported);
		ok(kv_peer_close(p.peer, RIG_TIMEOUT_MS, &err), &err);
		for (size_t i = 0; i < 2; i++) {
			kv_engine_close(p.engine[i]);
			fake_cuda_unmap(addr[i]);
		}
		assert_int_equal(fake_cuda.open, 0);
		fake_cuda_reset();
		assert_int_equal(count_descriptors(), fds);
	}
}

CASE(a_piece_that_cannot_be_registered_leaves_nothing)
{
	enum { PIECES = 6, PIECE = 2 << 20, BYTES = 4096 };
	struct kv_tensor tensor = { .name = "k", .block_bytes = BYTES, .stride = PIECE };
	struct kv_layout layout = flat_layout(&tensor, PIECES, 0);
	struct kv_engine_config config = over(ib);
	struct fake_counts before, after;
	struct kv_engine *engine;
	struct kv_cache *cache;
	struct kv_error err;
	uint8_t *addr;
	int fds;

	fake_cuda.one_mapping = true;
	assert_non_null(fake_cuda_map(PIECES, &addr));
	tensor.base = addr;
	ok(kv_engine_open(&config, &engine, &err), &err);
	fake_counts(&before);
	fds = count_descriptors();
	for (int nth = 1; nth <= PIECES; nth++) {
		fake_fail_verb(FAKE_reg_dmabuf_mr, nth, EINVAL);
		assert_int_equal(kv_cache_register(engine, &layout, &cache, &err), KV_ERR_DEVICE);
		assert_non_null(strstr(err.message, "of a DMA-BUF"));
		fake_counts(&after);
		assert_int_equal(after.mrs, before.mrs);
		assert_int_equal(count_descriptors(), fds);
	}
	ok(kv_cache_register(engine, &layout, &cache, &err), &err);
	fake_counts(&after);
	assert_true(after.mrs >= before.mrs + PIECES);
	kv_engine_close(engine);
	fake_cuda_unmap(addr);
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
}

/* What a batch has in one kernel it has in one piece, however many bytes that are. */
CASE(a_batch_is_one_kernel)
{
	enum { BLOCKS = 300, BYTES = 64 << 10 };
	const struct kv_tensor tensor = { .name = "k", .block_bytes = BYTES };
	struct kv_engine_config config = over(shm);
	int64_t mine[BLOCKS], theirs[BLOCKS];
	uint8_t *seen[2], *addr[2];
	struct flat_pair p;
	struct kv_error err;

	for (size_t i = 0; i < 2; i++)
		seen[i] = fake_cuda_alloc((size_t)BLOCKS * BYTES, &addr[i]);
	flat_open(&p, &config, tensor, BLOCKS, KV_CACHE_OPEN, addr);
	for (size_t i = 0; i < (size_t)BLOCKS * BYTES; i++)
		seen[0][i] = (uint8_t)(i / BYTES * 7 + i % 251);
	for (int64_t i = 0; i < BLOCKS; i++) {
		mine[i] = (i * 7) % BLOCKS;
		theirs[i] = (i * 11 + 5) % BLOCKS;
	}
	ok(kv_write_blocks(p.peer, p.cache[0], all_layers, mine, theirs, BLOCKS, NULL, &err), &err);
	assert_int_equal(fake_cuda.launched, 1);
	assert_int_equal(fake_cuda.engines, 0);
	for (int64_t i = 0; i < BLOCKS; i++)
		assert_memory_equal(seen[1] + theirs[i] * BYTES, seen[0] + mine[i] * BYTES, BYTES);
	kv_peer_close(p.peer, RIG_TIMEOUT_MS, &err);
	for (size_t i = 0; i < 2; i++)
		kv_engine_close(p.engine[i]);
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
}

/*
 * Neighbours at both ends that are 4 MiB together, wherever they stand in the list; the rest by
 * a kernel.
 */
CASE(large_spans_go_by_the_copy_engines)
{
	enum { BLOCKS = 160, BYTES = 64 << 10, EACH = (4 << 20) / BYTES };
	const struct kv_tensor tensor = { .name = "k", .block_bytes = BYTES };
	struct kv_engine_config config = over(shm);
	int64_t mine[2 * EACH + 2] = { 1 }, theirs[2 * EACH + 2] = { 0 };
	uint8_t *seen[2], *addr[2];
	struct flat_pair p;
	struct kv_error err;

	for (size_t i = 0; i < 2; i++)
		seen[i] = fake_cuda_alloc((size_t)BLOCKS * BYTES, &addr[i]);
	flat_open(&p, &config, tensor, BLOCKS, KV_CACHE_OPEN, addr);
	for (size_t i = 0; i < (size_t)BLOCKS * BYTES; i++)
		seen[0][i] = (uint8_t)(i / BYTES * 7 + i % 251);
	for (int64_t i = 1; i < 2 * EACH + 2; i++) { /* a block, two runs, and a block */
		mine[i] = i + 2;
		theirs[i] = i + 20 + (i > EACH) + (i > 2 * EACH);
	}
	memset(seen[1], 0, (size_t)BLOCKS * BYTES);
	ok(kv_write_blocks(p.peer, p.cache[0], all_layers, mine, theirs, 2 * EACH + 2, NULL, &err),
	   &err);
	assert_int_equal(fake_cuda.engines, 2);
	assert_int_equal(fake_cuda.together, 2);
	assert_int_equal(fake_cuda.launched, 2); /* for the two that are left */
	for (int64_t i = 0; i < 2 * EACH + 2; i++)
		assert_memory_equal(seen[1] + theirs[i] * BYTES, seen[0] + mine[i] * BYTES, BYTES);
	for (int64_t i = BYTES; i < 21 * BYTES; i++)
		assert_int_equal(seen[1][i], 0);
	fake_cuda.launch_says = 2;
	assert_int_equal(kv_write_blocks(p.peer, p.cache[0], all_layers, mine + 1, theirs + 1, EACH,
					 NULL, &err),
			 KV_ERR_DEVICE);
	fake_cuda.launch_says = 0;
	kv_peer_close(p.peer, RIG_TIMEOUT_MS, &err);
	for (size_t i = 0; i < 2; i++)
		kv_engine_close(p.engine[i]);
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
}

/* One batch has both: what goes in rows is not what stands first in it. */
CASE(host_memory_goes_beside_a_large_piece_that_has_not_begun)
{
	enum { TO = 5 << 20, SHORT = 64 };
	struct gpu_queue *queue;
	struct gpu_piece *piece;
	struct kv_error err;
	uint8_t *seen, *addr, from[SHORT];
	struct gpu *gpu;
	int device;

	seen = fake_cuda_map(6, &addr);
	assert_non_null(seen);
	for (size_t i = 0; i < GPU_LARGE; i++)
		seen[i] = (uint8_t)(i % 251);
	memset(from, 7, sizeof(from));
	ok(gpu_open(true, &gpu, &err), &err);
	ok(gpu_of(addr, GPU_LARGE, &device, &err), &err);
	ok(gpu_queue_open(gpu, device, 8, &queue, &err), &err);
	assert_true(gpu_queue_room(queue, true, &piece, &err) > 0);
	*piece = (struct gpu_piece){ (uintptr_t)addr + TO, (uintptr_t)addr, GPU_LARGE };
	ok(gpu_queue_put(queue, 1, gpu_chunks(GPU_LARGE), &err), &err);
	assert_int_equal(fake_cuda.engines, 0);
	assert_true(gpu_queue_room(queue, true, &piece, &err) > 0);
	ok(gpu_queue_put_host(queue, (uintptr_t)addr + GPU_LARGE, from, SHORT, &err), &err);
	while (gpu_queue_end(queue, gpu_queue_last(queue), &err) > 0)
		;
	assert_memory_equal(seen + TO, seen, GPU_LARGE);
	assert_memory_equal(seen + GPU_LARGE, from, SHORT);
	assert_true(gpu_queue_close(queue));
	gpu_close(gpu);
	fake_cuda_unmap(addr);
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
}

/* Blocks of one length are a short list; what differs makes it a long one, in the same kernel. */
CASE(blocks_become_pieces_when_a_piece_joins_them)
{
	enum { BLOCK = 4096, N = 6 };
	const uint64_t far = (uint64_t)GPU_STEP << 32;
	struct gpu_bounds to, from, away;
	struct gpu_queue *queue;
	struct gpu_piece *piece, base;
	struct gpu_block *block;
	struct kv_error err;
	uint8_t *seen, *addr;
	struct gpu *gpu;
	int device;

	seen = fake_cuda_map(2, &addr);
	assert_non_null(seen);
	for (size_t i = 0; i < 2 << 20; i++)
		seen[i] = (uint8_t)(i / BLOCK * 5 + i % 251);
	from = (struct gpu_bounds){ (uintptr_t)addr, (uintptr_t)addr + (2 << 20) };
	to = (struct gpu_bounds){ from.end, from.end + (2 << 20) };
	away = (struct gpu_bounds){ to.first + far, to.end + far };
	ok(gpu_open(true, &gpu, &err), &err);
	ok(gpu_of(addr, BLOCK, &device, &err), &err);
	ok(gpu_queue_open(gpu, device, 8, &queue, &err), &err);
	for (int mixed = 0; mixed < 2; mixed++) {
		memset(seen + (2 << 20), 0, 2 << 20);
		assert_true(gpu_queue_takes_blocks(queue, &to, &from, BLOCK));
		assert_true(gpu_queue_room_blocks(queue, &to, &from, BLOCK, &block, &base, &err) >=
			    N);
		for (uint32_t i = 0; i < N; i++) {
			uint64_t there = to.first + (uint64_t)(N - i) * BLOCK;
			uint64_t here = from.first + (uint64_t)i * 3 * BLOCK;

			block[i].to = (uint32_t)((there - base.to) / GPU_STEP);
			block[i].from = (uint32_t)((here - base.from) / GPU_STEP);
		}
		ok(gpu_queue_put(queue, N, N * gpu_chunks(BLOCK), &err), &err);
		assert_true(gpu_queue_takes_blocks(queue, &to, &from, BLOCK));
		assert_false(gpu_queue_takes_blocks(queue, &to, &from, 2 * BLOCK));
		assert_false(gpu_queue_takes_blocks(queue, &away, &from, BLOCK));
		assert_false(gpu_queue_takes_blocks(queue, &to, &away, BLOCK));
		if (mixed) {
			assert_true(gpu_queue_room(queue, false, &piece, &err) > 0);
			*piece = (struct gpu_piece){ to.first + 40 * BLOCK + 1, from.first + 7, 9 };
			ok(gpu_queue_put(queue, 1, gpu_chunks(9), &err), &err);
			assert_false(gpu_queue_takes_blocks(queue, &to, &from, BLOCK));
		}
		while (gpu_queue_end(queue, gpu_queue_last(queue), &err) > 0)
			;
		assert_int_equal(fake_cuda.launched, mixed + 1);
		for (size_t i = 0; i < N; i++)
			assert_memory_equal(seen + (2 << 20) + (N - i) * BLOCK,
					    seen + i * 3 * BLOCK, BLOCK);
		assert_memory_equal(seen + (2 << 20) + 40 * BLOCK + 1,
				    mixed ? seen + 7 : seen + (3 << 20), 9);
	}
	assert_true(gpu_queue_close(queue));
	gpu_close(gpu);
	fake_cuda_unmap(addr);
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
}

int main(void)
{
	ib_test_hook.sysroot = "/nowhere"; /* a machine without nvidia_peermem */
	return run_cases(NULL, NULL);
}
