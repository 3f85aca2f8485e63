/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_kind_test.c -- another kind of memory than CUDA's is one file: this one, and its place in the
 * table of kinds, which is here instead of transport/kinds.c
 *
 * The memory of this device has an address that no CPU may touch. Its driver exports DMA-BUFs, has
 * a queue whose copies end after a few questions, and does not see a NIC's writes in their order.
 */
#include "loop/kv_rig.h"

#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/error.h"
#include "fake.h"
#include "gpu/gpu.h"
#include "gpu_blocks.h"
#include "lib/process.h"
#include "provider.h"

/* ---------------------------------------------------------------- the kind */

enum { MADE_UP = 2, ARENA = 16 << 20, PAGE = 4096, BATCH = GPU_ROOM, QUESTIONS = 3 };

static struct {
	uint8_t *addr, *bytes;
	int fd;
	size_t used;
	atomic_int open, exported, copied, flushable;
	bool no_dmabuf;
} made;

struct gpu {
	size_t scratch; /* 0: none */
};

struct gpu_queue {
	struct gpu_piece piece[BATCH];
	unsigned int n;
	uint64_t ended;
	int asked;
};

static void made_begin(void)
{
	made.fd = memfd_create("made-up", MFD_CLOEXEC);
	assert_int_equal(ftruncate(made.fd, ARENA), 0);
	made.bytes = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_SHARED, made.fd, 0);
	made.addr = mmap(NULL, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert_true(made.bytes != MAP_FAILED && made.addr != MAP_FAILED);
	made.used = PAGE;
}

static void made_end(void)
{
	munmap(made.addr, ARENA);
	munmap(made.bytes, ARENA);
	close(made.fd);
	memset(&made, 0, sizeof(made));
}

static uint8_t *made_alloc(size_t len, uint8_t **addr_p)
{
	size_t at = made.used;

	made.used += (len + PAGE - 1) / PAGE * PAGE;
	assert_true(made.used <= ARENA);
	*addr_p = made.addr + at;
	return made.bytes + at;
}

static int made_of(const void *addr, size_t len, int *device_p, struct kv_error *err)
{
	size_t at = (size_t)((const uint8_t *)addr - made.addr);

	*device_p = 1;
	return at < made.used && len <= made.used - at
		       ? 0
		       : kv_fail(err, KV_ERR_ARG, "register", "%p is not made up", addr);
}

static int made_open(bool apart, struct gpu **gpu_p, struct kv_error *err)
{
	*gpu_p = calloc(1, sizeof(**gpu_p));
	made.open++;
	return 0;
}

static void made_close(struct gpu *gpu)
{
	made.open--;
	free(gpu);
}

static int made_dmabuf(const void *addr, size_t len, int *fd_p, uint64_t *offset_p,
		       struct kv_error *err)
{
	int device, ret = made_of(addr, len, &device, err);
	char path[64];

	if (ret)
		return ret;
	if (made.no_dmabuf)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "register", "made-up memory stays here");
	snprintf(path, sizeof(path), "/proc/self/fd/%d", made.fd);
	*fd_p = open(path, O_RDWR | O_CLOEXEC);
	*offset_p = (uint64_t)((const uint8_t *)addr - made.addr);
	made.exported++;
	return 0;
}

static int made_needs_flush(const void *addr, bool always)
{
	return 1;
}

static int made_scratch(struct gpu *gpu, int device, void **addr_p, size_t *len_p,
			struct kv_error *err)
{
	uint8_t *addr;

	assert_int_equal(device, 1);
	if (!gpu->scratch) {
		made_alloc(PAGE, &addr);
		gpu->scratch = (size_t)(addr - made.addr);
		made.flushable++;
	}
	*addr_p = made.addr + gpu->scratch;
	*len_p = PAGE;
	return 0;
}

static int made_prepare(struct gpu *gpu, int device, struct kv_error *err)
{
	return 0;
}

static int made_pin(struct gpu *gpu, int device, void *addr, size_t len, bool *pinned_p,
		    uint64_t *at_p, struct kv_error *err)
{
	made.open++;
	*pinned_p = true;
	*at_p = (uintptr_t)addr;
	return 0;
}

static void made_unpin(struct gpu *gpu, int device, void *addr)
{
	made.open--;
}

static int queue_open(struct gpu *gpu, int device, int sms, struct gpu_queue **queue_p,
		      struct kv_error *err)
{
	assert_int_equal(device, 1);
	*queue_p = calloc(1, sizeof(**queue_p));
	made.open++;
	return 0;
}

static bool queue_close(struct gpu_queue *queue)
{
	made.open--;
	free(queue);
	return true;
}

static int queue_device(const struct gpu_queue *queue)
{
	return 1;
}

static int queue_room(struct gpu_queue *queue, bool engines, struct gpu_piece **piece_p,
		      struct kv_error *err)
{
	*piece_p = &queue->piece[queue->n];
	return BATCH - (int)queue->n;
}

static int queue_put(struct gpu_queue *queue, unsigned int n, uint64_t chunks, struct kv_error *err)
{
	queue->n += n;
	queue->asked = 0;
	return 0;
}

static uint64_t queue_last(const struct gpu_queue *queue)
{
	return queue->ended + 1;
}

static uint8_t *seen(uint64_t at)
{
	size_t in = (size_t)(at - (uintptr_t)made.addr);

	return in < ARENA ? made.bytes + in : (uint8_t *)(uintptr_t)at;
}

static int queue_end(struct gpu_queue *queue, uint64_t batch, struct kv_error *err)
{
	if (batch <= queue->ended)
		return 0;
	if (queue->asked++ < QUESTIONS)
		return 1;
	for (unsigned int i = 0; i < queue->n; i++)
		memcpy(seen(queue->piece[i].to), seen(queue->piece[i].from), queue->piece[i].len);
	made.copied += (int)queue->n;
	queue->n = 0;
	queue->ended++;
	return 0;
}

static bool queue_quit(struct gpu_queue *queue, int64_t deadline_ns)
{
	queue->n = 0;
	return true;
}

static const struct gpu_kind made_up = {
	.name = "made-up devices",
	.open = made_open,
	.close = made_close,
	.dmabuf = made_dmabuf,
	.needs_flush = made_needs_flush,
	.scratch = made_scratch,
	.hint = "make it up",
	.of = made_of,
	.prepare = made_prepare,
	.pin = made_pin,
	.unpin = made_unpin,
	.queue_open = queue_open,
	.queue_close = queue_close,
	.queue_device = queue_device,
	.queue_room = queue_room,
	.queue_put = queue_put,
	.queue_last = queue_last,
	.queue_end = queue_end,
	.queue_quit = queue_quit,
};
const struct gpu_kind *const tr_kinds[TR_MEM_KINDS] = {
	[TR_MEM_CUDA] = &gpu_cuda,
	[MADE_UP] = &made_up,
};

/* ---------------------------------------------------------------- the cases */

/* Each end made up, or the host's; written, then read back. */
static void blocks_go(const char *transport, const char *path, int ends)
{
	const char *options[] = { transport, path, NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct shape shape[2] = { rig_shape, rig_shape };
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct pair p = { 0 };

	config.options = options;
	for (int i = 0; i < 2; i++)
		if (ends >> i & 1) {
			shape[i].cuda = made_alloc;
			shape[i].kind = MADE_UP;
		}
	node_open(&p.a, 1, &shape[0], &config);
	node_open(&p.b, 2, &shape[1], &config);
	node_listen(&p.b);
	node_connect(&p.a, p.b.port);
	ok(kv_peer_info(p.a.peer, &info, &p.a.err), &p.a.err);
	assert_string_equal(info.transport, strchr(transport, '=') + 1);
	blocks_go_and_come(&p);
	pair_close(&p);
	assert_int_equal(made.open, 0);
}

CASE(a_nic_moves_it_and_flushes_what_it_wrote)
{
	int fds = count_descriptors();

	fake_gpu_late(true);
	for (int ends = 1; ends < 4; ends++) {
		made_begin();
		blocks_go("KVCACHE_TRANSPORT=ib", "KVCACHE_IB_LANES=2", ends);
		assert_true(made.exported && made.flushable && !made.copied);
		made_end();
		assert_int_equal(count_descriptors(), fds); /* every DMA-BUF was closed */
	}
	fake_gpu_late(false);
}

CASE(its_queue_stages_it_through_the_ring_over_tcp_and_for_a_nic)
{
	static const char *const way[][2] = {
		{ "KVCACHE_TRANSPORT=shm", "KVCACHE_SHM_PATH=auto" },
		{ "KVCACHE_TRANSPORT=shm", "KVCACHE_SHM_PATH=ring" },
		{ "KVCACHE_TRANSPORT=tcp", "KVCACHE_TCP_STREAMS=2" },
		{ "KVCACHE_TRANSPORT=ib", "KVCACHE_IB_LANES=2" },
	};

	for (int i = 0; i < 12; i++) {
		made_begin();
		made.no_dmabuf = i / 3 == 3;
		blocks_go(way[i / 3][0], way[i / 3][1], i % 3 + 1);
		assert_true(made.copied);
		made_end();
	}
}

static int register_one(struct kv_engine *engine, int kind, void *base, struct kv_error *err)
{
	struct kv_tensor tensor = { .name = "k", .block_bytes = PAGE, .base = base };
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_cache *cache;

	layout.layers = layout.tensors = layout.blocks = 1;
	layout.tensor = &tensor;
	layout.mem_kind = kind;
	return kv_cache_register(engine, &layout, &cache, err);
}

static void note_line(void *arg, int level, const char *line)
{
	if (level == KV_LOG_WARN &&
	    strstr(line,
		   "made-up memory stays here, and a module for it is not loaded; make it up"))
		++*(atomic_int *)arg;
}

CASE(what_it_lacks_is_said_or_refused_in_its_words)
{
	static const int none[] = { -1, MADE_UP + 1, TR_MEM_KINDS, INT32_MAX };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	atomic_int told = 0;
	struct kv_engine *engine;
	struct kv_error err;
	uint8_t *addr;

	made_begin();
	made_alloc(PAGE, &addr);
	config.log = note_line;
	config.log_arg = &told;
	ok(kv_engine_open(&config, &engine, &err), &err);
	assert_int_equal(register_one(engine, MADE_UP, &made, &err), KV_ERR_ARG);
	assert_non_null(strstr(err.message, "is not made up"));
	for (size_t i = 0; i < sizeof(none) / sizeof(*none); i++) {
		assert_int_equal(register_one(engine, none[i], addr, &err), KV_ERR_ARG);
		assert_non_null(strstr(err.message, "there is no kind of memory with number"));
	}
	made.no_dmabuf = true;
	ok(register_one(engine, MADE_UP, addr, &err), &err); /* it is staged */
	assert_int_equal(told, 1);
	kv_engine_close(engine);
	made_end();
}
