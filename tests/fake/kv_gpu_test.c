/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_gpu_test.c -- caches in a GPU's memory, from CUDA's address to the bytes at the peer, over the
 * fake device
 *
 * libcuda is a stand-in (fake_cuda.h): a CPU that touches the memory by CUDA's address ends the
 * test.
 */
#include "lib/process.h"
#include "loop/kv_rig.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/fault.h"
#include "fake.h"
#include "gpu_blocks.h"
#include "gpu_flat.h"

enum { K = 512 * RIG_BLOCKS, V = 384 * RIG_BLOCKS };

/* Every tensor of every layer is an allocation of its own; they touch. */
static uint8_t *in_pieces(size_t len, uint8_t **addr_p)
{
	uint8_t *seen = NULL, *first = NULL, *addr;

	for (size_t done = 0; done < len; done += K + V) {
		seen = fake_cuda_alloc(K, &addr);
		if (!first) {
			first = seen;
			*addr_p = addr;
		}
		assert_non_null(fake_cuda_alloc(V, &addr));
	}
	return first;
}

/* In the middle of a page, as a tensor of a caching allocator is. */
static uint8_t *in_one_piece(size_t len, uint8_t **addr_p)
{
	uint8_t *seen = fake_cuda_alloc(len + 4096, addr_p);

	*addr_p += 640;
	return seen + 640;
}

static struct shape cuda_shape(uint8_t *(*cuda)(size_t, uint8_t **))
{
	struct shape shape = rig_shape;

	shape.cuda = cuda;
	return shape;
}

static void ends_open(struct pair *p, const struct shape *a, const struct shape *b,
		      const struct kv_engine_config *config)
{
	node_open(&p->a, 1, a, config);
	node_open(&p->b, 2, b, config);
	node_listen(&p->b);
	node_connect(&p->a, p->b.port);
}

/* From GPU to GPU, host to GPU, GPU to host; written, then read back. */
static void blocks_go(const struct shape *shapes, size_t ends,
		      const struct kv_engine_config *config)
{
	struct kv_arrival arrival;
	struct pair p = { 0 };

	ends_open(&p, &shapes[ends % 3], &shapes[ends / 3], config);
	blocks_go_and_come(&p);
	assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
	assert_int_equal(arrival.blocks, N);
	pair_close(&p);
	assert_int_equal(fake_cuda.contexts, 0);
}

CASE(blocks_go_from_gpu_to_gpu_and_nowhere_else)
{
	struct shape shapes[] = { cuda_shape(in_pieces), cuda_shape(in_one_piece), rig_shape };
	int fds = count_descriptors();

	for (size_t ends = 0; ends < 8; ends++) {
		blocks_go(shapes, ends, NULL);
		assert_true(fake_cuda.exported >= (ends == 7 ? 1 : 2 * RIG_LAYERS));
		fake_cuda_reset();
		assert_int_equal(count_descriptors(), fds); /* every DMA-BUF was closed */
	}
}

static struct kv_engine_config over_shm(void)
{
	static const char *const shm[] = { "KVCACHE_TRANSPORT=shm", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);

	config.options = shm;
	return config;
}

static struct kv_engine_config over_ring(void)
{
	static const char *const ring[] = { "KVCACHE_TRANSPORT=shm", "KVCACHE_SHM_PATH=ring",
					    NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);

	config.options = ring;
	return config;
}

static struct kv_engine_config over_tcp(void)
{
	static const char *const tcp[] = { "KVCACHE_TRANSPORT=tcp", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);

	config.options = tcp;
	return config;
}

/* Over a NIC that reaches no GPU: what of that is the driver's part is lost by a reset. */
static const char *const staged[] = { "KVCACHE_TRANSPORT=ib", NULL };
static struct kv_engine_config over_ib(void)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);

	config.options = staged;
	return config;
}

static void begin_way(const struct kv_engine_config *config)
{
	fake_cuda.export_says = config->options == staged ? 801 : 0;
}

static void kernels_copy_them(const struct kv_engine_config *config, bool pool)
{
	struct shape shapes[] = { cuda_shape(in_pieces), cuda_shape(in_one_piece), rig_shape };
	int fds = count_descriptors();

	for (size_t ends = 0; ends < 16; ends++) {
		fake_cuda.slow = ends < 8 ? 0 : 3; /* looks that a kernel takes */
		fake_cuda.capturing = ends % 2;
		fake_cuda.pool = pool;
		blocks_go(shapes, ends % 8, config);
		assert_true(fake_cuda.launched >= 2);
		assert_int_equal(fake_cuda.open, 0); /* streams, pinned memory, contexts */
		fake_cuda_reset();
		assert_int_equal(count_descriptors(), fds);
	}
}

CASE(on_one_host_kernels_copy_them)
{
	struct kv_engine_config config = over_shm();

	kernels_copy_them(&config, false);
}

/* Host memory outside a pool, memory that no other process maps, a GPU that it does not see. */
CASE(through_the_ring_they_go_where_no_kernel_reaches)
{
	static const char *const small[] = { "KVCACHE_TRANSPORT=shm", "KVCACHE_SHM_RING=65536",
					     NULL };
	struct shape shapes[] = { cuda_shape(in_pieces), cuda_shape(in_one_piece), rig_shape };
	struct kv_engine_config config = over_shm();
	int fds = count_descriptors();

	for (size_t i = 0; i < 8 * 5; i++) {
		size_t ends = i % 8;

		config.options =
			i / 8 == 1 ? small : (i / 8 == 2 ? over_ring() : over_shm()).options;
		shapes[2].malloced = i / 8 != 2;
		fake_cuda.pool = i / 8 == 1;
		fake_cuda.ipc_says = i / 8 == 3;
		fake_cuda.hidden = i / 8 == 4;
		fake_cuda.slow = (int)(i % 3) * 2;
		blocks_go(shapes, ends, &config);
		assert_true(fake_cuda.launched >= 2);
		assert_int_equal(fake_cuda.open, 0);
		fake_cuda_reset();
		assert_int_equal(count_descriptors(), fds);
	}
}

/* Also what no other process could map: a memory pool's. */
CASE(over_tcp_they_go_through_pinned_memory)
{
	static const char *const streams[] = { "KVCACHE_TRANSPORT=tcp", "KVCACHE_TCP_STREAMS=3",
					       NULL };
	struct kv_engine_config config = over_tcp();

	kernels_copy_them(&config, false);
	config.options = streams;
	kernels_copy_them(&config, true);
}

static void note_reason(void *arg, int level, const char *line)
{
	const char *reason = "does not reach a GPU's memory: CUDA exports no DMA-BUF of";

	if (level == KV_LOG_WARN && strstr(line, reason))
		++*(atomic_int *)arg;
}

/* Whichever end it is at, and with the reason in that end's log. */
CASE(what_no_nic_reaches_goes_through_pinned_memory)
{
	static const char *const options[] = { "KVCACHE_TRANSPORT=ib,tcp", "KVCACHE_IB_LANES=2",
					       NULL };
	struct shape shapes[] = { cuda_shape(in_pieces), cuda_shape(in_one_piece), rig_shape };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	int fds = count_descriptors();
	atomic_int told;

	config.options = options;
	config.log = note_reason;
	config.log_arg = &told;
	for (size_t ends = 0; ends < 8; ends++) {
		told = 0;
		fake_cuda.export_says = 801;
		fake_cuda.slow = (int)(ends % 3) * 2;
		blocks_go(shapes, ends, &config);
		assert_true(fake_cuda.launched >= 2);
		assert_int_equal(told, (ends % 3 < 2) + (ends / 3 < 2)); /* once an engine */
		assert_int_equal(fake_cuda.open, 0);
		fake_cuda_reset();
		assert_int_equal(count_descriptors(), fds);
	}
}

/* Expandable segments: the cache lies in two pieces of memory, in the middle of both. */
static uint8_t *segment[2];
static uint8_t *in_segment(size_t len, uint8_t **addr_p)
{
	size_t at = (2 << 20) - 65536 + 640;
	uint8_t *seen = fake_cuda_map(3, addr_p);

	assert_true(len > 65536 && len < 4 << 20);
	segment[segment[0] != NULL] = *addr_p;
	*addr_p += at;
	return seen + at;
}

static void free_segments(void)
{
	for (size_t i = 0; i < 2; i++)
		if (segment[i])
			fake_cuda_unmap(segment[i]);
	segment[0] = segment[1] = NULL;
}

CASE(memory_in_pieces_is_mapped_by_the_peer)
{
	struct shape shapes[] = { cuda_shape(in_segment), cuda_shape(in_one_piece), rig_shape };
	struct kv_engine_config config = over_shm();
	int fds = count_descriptors();

	for (size_t i = 0; i < 16; i++) {
		size_t ends = i % 8;

		fake_cuda.no_types = i / 8; /* then none is, and the ring reaches it */
		blocks_go(shapes, ends, &config);
		/* Once a region, for the side that copies; one region lies in two of them. */
		assert_int_equal(fake_cuda.exported_pieces,
				 ends / 3 == 0 && i < 8 ? RIG_LAYERS * RIG_TENSORS + 1 : 0);
		free_segments();
		assert_int_equal(fake_cuda.open, 0);
		fake_cuda_reset();
		assert_int_equal(count_descriptors(), fds);
	}
}

/* More pieces than one message passes. */
CASE(a_cache_of_many_pieces_is_mapped_in_turns)
{
	enum { BLOCKS = 80, APART = 2 << 20, BYTES = 4096 };
	static const int64_t mine[] = { 3, 79 }, theirs[] = { 79, 0 };
	const struct kv_tensor tensor = { .name = "k", .block_bytes = BYTES, .stride = APART };
	struct kv_engine_config config = over_shm();
	uint8_t *seen[2], *addr[2];
	struct flat_pair p;
	struct kv_error err;

	for (size_t i = 0; i < 2; i++) {
		seen[i] = fake_cuda_map(BLOCKS, &addr[i]);
		assert_non_null(seen[i]);
	}
	flat_open(&p, &config, tensor, BLOCKS, KV_CACHE_OPEN, addr);
	memset(seen[0] + 3 * APART, 'x', BYTES);
	memset(seen[0] + 79 * APART, 'y', BYTES);
	ok(kv_write_blocks(p.peer, p.cache[0], all_layers, mine, theirs, 2, NULL, &err), &err);
	assert_memory_equal(seen[1] + 79 * APART, seen[0] + 3 * APART, BYTES);
	assert_memory_equal(seen[1], seen[0] + 79 * APART, BYTES);
	assert_int_equal(fake_cuda.exported_pieces, BLOCKS);
	ok(kv_peer_close(p.peer, RIG_TIMEOUT_MS, &err), &err);
	for (size_t i = 0; i < 2; i++) {
		kv_engine_close(p.engine[i]);
		fake_cuda_unmap(addr[i]);
	}
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
}

/* A typed error, and the next attempt works. */
CASE(a_piece_that_is_refused_is_an_error)
{
	static const struct {
		int pass, take;
		const char *message;
	} cases[] = {
		{ 2, 0, "the peer cannot pass its GPU memory: CUDA_ERROR_OUT_OF_MEMORY" },
		{ 0, 1, "cannot be mapped on GPU 3: CUDA_ERROR_INVALID_VALUE" },
	};
	struct shape shape = cuda_shape(in_segment);
	struct kv_engine_config config = over_shm();

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct pair p = { 0 };

		pair_open(&p, &shape, &config);
		fake_cuda.export_piece_says = cases[i].pass;
		fake_cuda.import_says = cases[i].take;
		assert_int_equal(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL,
						 &p.a.err),
				 KV_ERR_UNREACHABLE);
		assert_non_null(strstr(p.a.err.message, cases[i].message));
		fake_cuda.export_piece_says = fake_cuda.import_says = 0;
		ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &p.a.err),
		   &p.a.err);
		assert_true(memory_is(&p.b, all_layers, 1, from, to, N, 0));
		pair_close(&p);
		free_segments();
		assert_int_equal(fake_cuda.open, 0);
		fake_cuda_reset();
	}
}

/* As an application may do by mistake. */
CASE(memory_that_was_unmapped_while_registered_is_an_error)
{
	struct shape shape = cuda_shape(in_segment);
	struct kv_engine_config config = over_shm();
	struct pair p = { 0 };

	pair_open(&p, &shape, &config);
	fake_cuda_unmap(segment[0]); /* that of b */
	segment[0] = NULL;
	assert_int_equal(
		kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &p.a.err),
		KV_ERR_UNREACHABLE);
	assert_non_null(strstr(p.a.err.message, "the peer cannot pass its GPU memory"));
	pair_close(&p);
	free_segments();
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
}

/* One batch for all tensors of all layers, not one for each call of the transport. */
CASE(one_kernel_copies_all_layers)
{
	struct shape shape = cuda_shape(in_pieces);
	struct kv_engine_config config = over_shm();
	struct pair p = { 0 };

	ends_open(&p, &shape, &shape, &config);
	ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &p.a.err), &p.a.err);
	assert_int_equal(fake_cuda.launched, 1);
	assert_int_equal(fake_cuda.asked, 0); /* the kernel has said that it has ended */
	pair_close(&p);
	fake_cuda_reset();
}

/* What a kernel may still use of the ring. */
static bool ring_is_mapped(void)
{
	FILE *maps = fopen("/proc/self/maps", "re");
	char line[512];
	bool found = false;

	assert_non_null(maps);
	while (fgets(line, sizeof(line), maps))
		found |= strstr(line, "kvrail-segment") != NULL;
	fclose(maps);
	return found;
}

static void kernels_fail(const struct kv_engine_config *config, bool read)
{
	static const struct {
		int launch, kernel, code;
		bool hold;
		const char *message;
	} cases[] = {
		{ .launch = 2, .code = KV_ERR_DEVICE, .message = "CUDA_ERROR_OUT_OF_MEMORY" },
		{ .kernel = 1, .code = KV_ERR_DEVICE, .message = "a copy failed on GPU 3" },
		{ .hold = true, .code = KV_ERR_TIMEOUT, .message = "" },
	};
	struct shape shape = cuda_shape(in_one_piece);
	struct kv_options options = KV_INIT(kv_options);

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct pair p = { 0 };

		begin_way(config);
		ends_open(&p, &shape, read ? &rig_shape : &shape, config);
		fake_cuda.launch_says = cases[i].launch;
		fake_cuda.kernel_says = cases[i].kernel;
		fake_cuda.hold = cases[i].hold;
		options.timeout_ms = 200;
		assert_int_equal((read ? kv_read_blocks : kv_write_blocks)(p.a.peer, p.a.cache,
									   all_layers, from, to, N,
									   &options, &p.a.err),
				 cases[i].code);
		assert_non_null(strstr(p.a.err.message, cases[i].message));
		fake_cuda.launch_says = fake_cuda.kernel_says = 0;
		pair_close(&p);
		/* What a kernel may still use stays, and nothing waits for it. */
		assert_int_equal(fake_cuda.waited, 0);
		assert_true(cases[i].hold ? fake_cuda.open > 0 : !fake_cuda.open);
		assert_true(!cases[i].hold || !config->options[1] || ring_is_mapped());
		fake_cuda_reset();
	}
}

/* Of the peer's memory nothing is promised then, and no operation ends as if it had gone well. */
CASE(a_kernel_that_fails_or_does_not_end_is_an_error)
{
	struct kv_engine_config shm = over_shm(), ring = over_ring(), tcp = over_tcp();
	struct kv_engine_config ib = over_ib();

	kernels_fail(&ib, false);
	kernels_fail(&ib, true);
	kernels_fail(&shm, false);
	kernels_fail(&ring, false);
	kernels_fail(&ring, true); /* what is read is copied into the GPU by the reader */
	kernels_fail(&tcp, false);
	kernels_fail(&tcp, true);
}

/* What the receiver's GPU cannot place the receiver does not report. */
static void receiver_fails(const struct kv_engine_config *config)
{
	struct shape shape = cuda_shape(in_one_piece);
	struct kv_arrival arrival;
	struct pair p = { 0 };

	begin_way(config);
	ends_open(&p, &rig_shape, &shape, config);
	fake_cuda.kernel_says = 1;
	assert_int_equal(
		kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &p.a.err),
		KV_ERR_PEER_LOST);
	assert_true(await_kind(&p.b, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
	assert_int_equal(arrival.status, KV_ERR_PEER_LOST);
	pair_close(&p);
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
}

CASE(a_kernel_of_the_receiver_that_fails_is_its_error)
{
	struct kv_engine_config ring = over_ring(), tcp = over_tcp(), ib = over_ib();

	receiver_fails(&ib);
	receiver_fails(&ring);
	receiver_fails(&tcp);
}

/* The blocks of a lease are not given back while a kernel may still write into them. */
static void revoke_waits(const struct kv_engine_config *config)
{
	struct shape shape = cuda_shape(in_one_piece);
	struct pair p = { 0 };
	struct kv_op *op;

	shape.flags = 0; /* only the lease opens them */
	begin_way(config);
	ends_open(&p, &rig_shape, &shape, config);
	node_await_peer(&p.b);
	op = revoke_waits_for_kernel(&p);
	assert_int_equal(kv_error_scope(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &p.a.err)),
			 KV_SCOPE_PEER);
	ok(kv_op_free(op, &p.a.err), &p.a.err);
	pair_close(&p);
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
}

CASE(a_revoke_waits_for_a_kernel_of_this_side)
{
	struct kv_engine_config ring = over_ring(), tcp = over_tcp(), ib = over_ib();

	revoke_waits(&ib);
	revoke_waits(&ring);
	revoke_waits(&tcp);
}

/* Block by block, as most engines lay them out now: one region, and not one for each layer. */
CASE(layers_that_overlap_are_registered_once)
{
	enum { LAYERS = 4, BYTES = 4096, BLOCKS = 64 };
	struct kv_tensor tensor[2] = {
		{ .name = "k",
		  .block_bytes = BYTES,
		  .stride = 2 * LAYERS * BYTES,
		  .layer_stride = 2 * BYTES },
		{ .name = "v",
		  .block_bytes = BYTES,
		  .stride = 2 * LAYERS * BYTES,
		  .layer_stride = 2 * BYTES },
	};
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_engine *engine;
	struct kv_cache *cache;
	struct kv_error err;
	uint8_t *addr;

	ok(kv_engine_open(NULL, &engine, &err), &err);
	assert_non_null(fake_cuda_alloc((size_t)2 * LAYERS * BLOCKS * BYTES, &addr));
	tensor[0].base = addr;
	tensor[1].base = addr + BYTES;
	layout.layers = LAYERS;
	layout.tensors = 2;
	layout.blocks = BLOCKS;
	layout.tensor = tensor;
	layout.mem_kind = KV_MEM_CUDA;
	ok(kv_cache_register(engine, &layout, &cache, &err), &err);
	assert_int_equal(fake_cuda.exported, 1);
	kv_engine_close(engine);
	fake_cuda_reset();
}

static int register_one(struct kv_engine *engine, void *base, uint32_t blocks, struct kv_error *err)
{
	struct kv_tensor tensor = { .name = "k", .block_bytes = 4096, .base = base };
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_cache *cache;

	layout.layers = layout.tensors = 1;
	layout.blocks = blocks;
	layout.tensor = &tensor;
	layout.mem_kind = KV_MEM_CUDA;
	return kv_cache_register(engine, &layout, &cache, err);
}

CASE(what_cannot_be_reached_is_refused_with_the_cause)
{
	struct kv_engine *engine;
	struct kv_error err;
	uint8_t *addr, host[8192];

	ok(kv_engine_open(NULL, &engine, &err), &err);
	assert_non_null(fake_cuda_alloc(1 << 20, &addr));

	assert_int_equal(register_one(engine, host, 1, &err), KV_ERR_ARG);
	assert_non_null(strstr(err.message, "CUDA does not know the address"));
	assert_non_null(strstr(err.message, "CUDA_ERROR_INVALID_VALUE"));
	assert_int_equal(register_one(engine, addr + 4096, 256, &err), KV_ERR_ARG);
	assert_non_null(strstr(err.message, "leave their allocation of 1048576 bytes"));
	fake_cuda.managed = true;
	assert_int_equal(register_one(engine, addr, 1, &err), KV_ERR_ARG);
	assert_non_null(strstr(err.message, "is memory of the host to CUDA"));
	fake_cuda.managed = false;

	fake_cuda.ordering = 0;
	kv_fault_arm(KV_FAULT_GPU_SCRATCH, 1);
	assert_int_equal(register_one(engine, addr, 1, &err), KV_ERR_DEVICE);
	assert_non_null(strstr(err.message, "GPU 3 needs a flush after a NIC's writes"));
	fake_cuda.ordering = 100;

	fake_cuda.export_says = 801;
	ok(register_one(engine, addr, 1, &err), &err); /* it is staged */
	fake_cuda.export_says = 0;
	assert_int_equal(fake_cuda.contexts, 0);
	kv_engine_close(engine);
	fake_cuda_reset();
}

/* What the NIC has written is on its way until it reads from the GPU. */
CASE(what_a_nic_writes_into_an_older_gpu_is_flushed)
{
	static const char *const always[] = { "KVCACHE_GDRCOPY_FLUSH_ENABLE=1",
					      "KVCACHE_IB_LANES=4", NULL };
	struct shape shapes[] = { cuda_shape(in_pieces), cuda_shape(in_one_piece), rig_shape };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	int fds = count_descriptors();

	config.options = always;
	fake_gpu_late(true);
	for (size_t i = 0; i < 16; i++) {
		fake_cuda.ordering = i < 8 ? 0 : 200;
		blocks_go(shapes, i % 8, i < 8 ? NULL : &config);
		assert_int_equal(fake_cuda.open, 0);
		fake_cuda_reset();
		assert_int_equal(count_descriptors(), fds);
	}
	fake_gpu_late(false);
}

/* The region cannot be described, and the next attempt works. */
CASE(a_flush_that_cannot_be_made_refuses_the_peer)
{
	struct shape shape = cuda_shape(in_one_piece);
	struct pair p = { 0 };
	struct kv_error err;

	fake_cuda.ordering = 0;
	node_open(&p.a, 1, &shape, NULL);
	node_open(&p.b, 2, &shape, NULL);
	node_listen(&p.b);
	kv_fault_arm(KV_FAULT_GPU_LOOP_ALLOC, 1);
	assert_true(kv_connect(p.a.engine, NULL, p.b.port, RIG_TIMEOUT_MS, &p.a.peer, &err) < 0);
	assert_true(kv_fault_fired(KV_FAULT_GPU_LOOP_ALLOC));
	assert_non_null(strstr(err.message, "cannot allocate a flush of fake0:1"));
	node_connect(&p.a, p.b.port);
	pair_close(&p);
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
}

/* Only a NIC's writes need the flush. */
CASE(an_older_gpu_is_reached_on_one_host)
{
	static const char *const both[] = { "KVCACHE_TRANSPORT=auto", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct shape shape = cuda_shape(in_one_piece);
	struct pair p = { 0 };

	fake_cuda.ordering = 0;
	config.options = both;
	pair_open(&p, &shape, &config);
	ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL, &p.a.err), &p.a.err);
	assert_true(memory_is(&p.b, all_layers, 1, from, to, N, 0));
	assert_int_equal(fake_cuda.launched, 1);
	pair_close(&p);
	fake_cuda_reset();
}

/* No CPU reads it, so none makes a digest. */
CASE(digests_of_it_are_refused_with_the_cause)
{
	static const char *const checked[] = { "KVCACHE_CHECKSUM=1", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct shape shape = cuda_shape(in_one_piece);
	struct pair p = { 0 };
	struct kv_error err;

	node_open(&p.a, 1, &shape, NULL);
	config.options = checked;
	node_open(&p.b, 2, NULL, &config);
	node_listen(&p.b);
	assert_int_equal(kv_connect(p.a.engine, NULL, p.b.port, RIG_TIMEOUT_MS, &p.a.peer, &err),
			 KV_ERR_UNSUPPORTED);
	assert_non_null(strstr(err.message, "GPU's memory, of which no CPU makes a digest"));
	pair_close(&p);
	fake_cuda_reset();
}

/* Each of its fault points: an error with its cause, nothing left, and the next write goes. */
CASE(each_fault_is_an_error_and_leaves_nothing)
{
	static const struct {
		enum kv_fault_point point;
		int code;
		bool host; /* at the other end */
		int way;
	} cases[] = {
		{ KV_FAULT_GPU_ALLOC, KV_ERR_NOMEM, false, 0 },
		{ KV_FAULT_GPU_LAUNCH, KV_ERR_DEVICE, false, 0 },
		{ KV_FAULT_GPU_PIN, KV_ERR_DEVICE, true, 0 },
		{ KV_FAULT_GPU_ALLOC, KV_ERR_NOMEM, false, 1 },
		{ KV_FAULT_GPU_LAUNCH, KV_ERR_DEVICE, false, 1 },
		{ KV_FAULT_GPU_PIN, KV_ERR_DEVICE, false, 1 },
		{ KV_FAULT_GPU_STAGE, KV_ERR_NOMEM, false, 1 },
		{ KV_FAULT_GPU_ALLOC, KV_ERR_NOMEM, false, 2 },
		{ KV_FAULT_GPU_LAUNCH, KV_ERR_DEVICE, false, 2 },
		{ KV_FAULT_GPU_PIN, KV_ERR_DEVICE, false, 2 },
		{ KV_FAULT_GPU_STAGE, KV_ERR_NOMEM, false, 2 },
		{ KV_FAULT_TCP_STAGE, KV_ERR_NOMEM, false, 2 },
		{ KV_FAULT_GPU_ALLOC, KV_ERR_NOMEM, false, 3 },
		{ KV_FAULT_GPU_LAUNCH, KV_ERR_DEVICE, false, 3 },
		{ KV_FAULT_GPU_PIN, KV_ERR_DEVICE, false, 3 },
		{ KV_FAULT_GPU_STAGE, KV_ERR_NOMEM, false, 3 },
		{ KV_FAULT_GPU_SLOTS, KV_ERR_NOMEM, false, 3 },
	};
	struct shape shape = cuda_shape(in_one_piece);
	struct kv_engine_config ways[] = { over_shm(), over_ring(), over_tcp(), over_ib() };

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		const struct kv_engine_config *config = &ways[cases[i].way];
		bool lost = cases[i].point == KV_FAULT_GPU_LAUNCH;
		struct pair p = { 0 };

		begin_way(config);
		ends_open(&p, &shape, cases[i].host ? &rig_shape : &shape, config);
		kv_fault_arm(cases[i].point, 1);
		assert_int_equal(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL,
						 &p.a.err),
				 cases[i].code);
		assert_true(kv_fault_fired(cases[i].point));
		if (!lost)
			ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, NULL,
					   &p.a.err),
			   &p.a.err);
		pair_close(&p);
		assert_int_equal(fake_cuda.open, 0);
		assert_int_equal(fake_cuda.contexts, 0);
		fake_cuda_reset();
	}
}

CASE(a_region_or_table_that_cannot_be_allocated_is_an_error)
{
	struct kv_engine_config config = over_shm();
	struct kv_engine *engine;
	struct kv_error err;
	uint8_t *addr;

	kv_fault_arm(KV_FAULT_GPU_ALLOC, 1);
	assert_int_equal(kv_engine_open(&config, &engine, &err), KV_ERR_NOMEM);
	ok(kv_engine_open(&config, &engine, &err), &err);
	assert_non_null(fake_cuda_alloc(1 << 20, &addr));
	kv_fault_arm(KV_FAULT_SHM_REGION, 1);
	assert_int_equal(register_one(engine, addr, 1, &err), KV_ERR_NOMEM);
	ok(register_one(engine, addr, 1, &err), &err);
	kv_engine_close(engine);
	fake_cuda_reset();
}

CASE(memory_in_pieces_is_measured)
{
	struct kv_engine_config config = over_shm();
	struct kv_engine *engine;
	struct kv_error err;
	uint8_t *pieces;

	ok(kv_engine_open(&config, &engine, &err), &err);
	assert_non_null(fake_cuda_map(3, &pieces));
	assert_int_equal(register_one(engine, pieces + 4096, 3 * 512, &err), KV_ERR_ARG);
	assert_non_null(strstr(err.message, "no memory is mapped from"));
	ok(register_one(engine, pieces, 3 * 512, &err), &err);
	kv_engine_close(engine);
	fake_cuda_unmap(pieces);
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
}

static void note_no_cuda(void *arg, int level, const char *line)
{
	if (level == KV_LOG_WARN && strstr(line, "CUDA does not run in this process"))
		++*(atomic_int *)arg;
}

/* When it is asked for a DMA-BUF; copies find it. ib_gpu_test has a process without it. */
CASE(without_cuda_in_the_process_it_says_so)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_engine *engine;
	atomic_int told = 0;
	struct kv_error err;
	uint8_t *addr;

	config.log = note_no_cuda;
	config.log_arg = &told;
	ok(kv_engine_open(&config, &engine, &err), &err);
	assert_non_null(fake_cuda_alloc(4096, &addr));
	kv_fault_arm(KV_FAULT_GPU_DLOPEN, 1);
	ok(register_one(engine, addr, 1, &err), &err);
	assert_true(kv_fault_fired(KV_FAULT_GPU_DLOPEN));
	assert_int_equal(told, 1);
	kv_engine_close(engine);
	fake_cuda_reset();
}

int main(void)
{
	ib_test_hook.sysroot = "/nowhere"; /* a machine without nvidia_peermem */
	return run_cases(NULL, NULL);
}
