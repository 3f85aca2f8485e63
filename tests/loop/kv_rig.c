/* SPDX-License-Identifier: Apache-2.0 */
/* kv_rig.c -- two engines, their patterned memory, and child processes */
#include "kv_rig.h"

#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "lib/process.h"
#include "lib/stuck.h"

const struct shape rig_shape = {
	.layers = RIG_LAYERS,
	.blocks = RIG_BLOCKS,
	.block_bytes = { 512, 320 },
	.stride = { 512, 384 },
	.tp_size = 1,
	.flags = KV_CACHE_OPEN | KV_CACHE_READABLE,
};

void check_ok(int ret, const struct kv_error *err, const char *what)
{
	char line[768];

	if (ret >= 0)
		return;
	kv_error_format(err, line, sizeof(line));
	fail_msg("%s: %s", what, line);
}

/* ---------------------------------------------------------------- memory */

static uint64_t tensor_len(const struct shape *s, uint32_t tensor)
{
	return s->stride[tensor] * s->blocks;
}

static uint64_t layer_len(const struct shape *s)
{
	return tensor_len(s, 0) + tensor_len(s, 1);
}

uint8_t *block_at(const struct node *node, uint32_t layer, uint32_t tensor, int64_t block)
{
	const struct shape *s = &node->shape;

	return node->mem + layer * layer_len(s) + (tensor ? tensor_len(s, 0) : 0) +
	       (uint64_t)block * s->stride[tensor];
}

uint8_t pattern(unsigned int side, uint32_t layer, uint32_t tensor, int64_t block, uint64_t offset,
		unsigned int epoch)
{
	uint64_t x = side * UINT64_C(0x9e3779b97f4a7c15) + layer * UINT64_C(0xbf58476d1ce4e5b9) +
		     tensor * UINT64_C(0x94d049bb133111eb) +
		     (uint64_t)block * UINT64_C(0xd6e8feb86659fd93) +
		     offset * UINT64_C(0xa0761d6478bd642f) + epoch * UINT64_C(0xe7037ed1a0b428db);

	x ^= x >> 29;
	x *= UINT64_C(0xbf58476d1ce4e5b9);
	return (uint8_t)(x >> 56);
}

static void fill_one(struct node *node, unsigned int side, uint32_t l, uint32_t t, int64_t b,
		     unsigned int epoch)
{
	uint8_t *p = block_at(node, l, t, b);

	for (uint64_t o = 0; o < node->shape.stride[t]; o++)
		p[o] = pattern(side, l, t, b, o, epoch);
}

void fill_block(struct node *node, unsigned int side, int64_t block, unsigned int epoch)
{
	for (uint32_t l = 0; l < node->shape.layers; l++)
		for (uint32_t t = 0; t < RIG_TENSORS; t++)
			fill_one(node, side, l, t, block, epoch);
}

void fill_side(struct node *node, unsigned int side, unsigned int epoch)
{
	for (int64_t b = 0; b < node->shape.blocks; b++)
		fill_block(node, side, b, epoch);
}

/* Index of `block` in to[], or -1. */
static long moved_at(const int64_t *to, size_t n, int64_t block)
{
	for (size_t i = 0; i < n; i++)
		if (to[i] == block)
			return (long)i;
	return -1;
}

static bool block_is(const struct node *node, uint32_t l, uint32_t t, int64_t b, bool moved,
		     unsigned int side, int64_t from, unsigned int epoch)
{
	const uint8_t *p = block_at(node, l, t, b);

	for (uint64_t o = 0; o < node->shape.stride[t]; o++) {
		bool in_block = moved && o < node->shape.block_bytes[t];
		uint8_t want = in_block ? pattern(side, l, t, from, o, epoch)
					: pattern(node->side, l, t, b, o, 0);

		if (p[o] != want) {
			fprintf(stderr,
				"layer %u tensor %u block %lld offset %llu: 0x%02x, want 0x%02x (%s)\n",
				l, t, (long long)b, (unsigned long long)o, p[o], want,
				in_block ? "moved" : "untouched");
			return false;
		}
	}
	return true;
}

bool memory_is(const struct node *node, struct kv_layers layers, unsigned int side,
	       const int64_t *from, const int64_t *to, size_t n, unsigned int epoch)
{
	struct kv_stats stats = KV_INIT(kv_stats);
	bool is = true;

	/*
	 * Takes the locks of node's engine, here and below. What another process says, or
	 * through two mappings of one page, has no order that a race detector sees.
	 */
	kv_stats(node->engine, &stats, NULL);
	for (uint32_t l = 0; l < node->shape.layers; l++) {
		bool in = l >= layers.first && (!layers.count || l < layers.first + layers.count);

		for (uint32_t t = 0; t < RIG_TENSORS; t++)
			for (int64_t b = 0; b < node->shape.blocks && is; b++) {
				long i = in ? moved_at(to, n, b) : -1;

				is = block_is(node, l, t, b, i >= 0, side, i >= 0 ? from[i] : 0,
					      epoch);
			}
	}
	kv_stats(node->engine, &stats, NULL);
	return is;
}

/* ---------------------------------------------------------------- engines */

void rig_path(const char *path)
{
	if (strcmp(path, "tcp"))
		setenv("KVCACHE_SHM_PATH", path, 1);
	else
		setenv("KVCACHE_TRANSPORT", "tcp", 1);
}

static void register_cache(struct node *node)
{
	const struct shape *s = &node->shape;
	struct kv_tensor tensor[RIG_TENSORS] = {
		{ .name = "k",
		  .block_bytes = s->block_bytes[0],
		  .stride = s->stride[0],
		  .base = node->addr,
		  .layer_stride = layer_len(s) },
		{ .name = "v",
		  .block_bytes = s->block_bytes[1],
		  .stride = s->stride[1],
		  .base = node->addr + tensor_len(s, 0),
		  .layer_stride = layer_len(s) },
	};
	struct kv_layout layout = KV_INIT(kv_layout);

	layout.layers = s->layers;
	layout.tensors = RIG_TENSORS;
	layout.blocks = s->blocks;
	layout.tensor = tensor;
	layout.tp_size = s->tp_size;
	layout.tp_rank = s->tp_rank;
	layout.flags = s->flags;
	layout.mem_kind = !s->cuda ? KV_MEM_HOST : s->kind ? s->kind : KV_MEM_CUDA;
	ok(kv_cache_register(node->engine, &layout, &node->cache, &node->err), &node->err);
}

void node_open(struct node *node, unsigned int side, const struct shape *shape,
	       const struct kv_engine_config *config)
{
	void *mem;

	memset(node, 0, sizeof(*node));
	node->side = side;
	node->shape = shape ? *shape : rig_shape;
	node->len = layer_len(&node->shape) * node->shape.layers;
	ok(kv_engine_open(config, &node->engine, &node->err), &node->err);
	if (node->shape.cuda)
		mem = node->shape.cuda(node->len, &node->addr);
	else if (node->shape.malloced)
		assert_int_equal(posix_memalign(&mem, 4096, node->len), 0);
	else
		ok(kv_alloc(node->engine, node->len, &mem, &node->err), &node->err);
	node->mem = mem;
	if (!node->addr)
		node->addr = mem;
	fill_side(node, side, 0);
	register_cache(node);
}

void node_close(struct node *node)
{
	kv_engine_close(node->engine);
	if (node->shape.malloced)
		free(node->mem);
	node->engine = NULL;
}

void node_listen(struct node *node)
{
	ok(kv_listen(node->engine, NULL, 0, &node->port, &node->err), &node->err);
}

void node_connect(struct node *node, uint32_t port)
{
	ok(kv_connect(node->engine, NULL, port, RIG_TIMEOUT_MS, &node->peer, &node->err),
	   &node->err);
}

bool await_kind(struct node *node, int kind, struct kv_arrival *arrival, int64_t ms)
{
	int64_t deadline = kv_deadline_ns(ms);

	do {
		int n = kv_poll_arrivals(node->engine, arrival, 1, &node->err);

		ok(n, &node->err);
		if (n && arrival->kind == kind)
			return true;
		if (!n) {
			kv_progress(node->engine, 0, NULL);
			poll(NULL, 0, 1);
		}
	} while (kv_now_ns() < deadline);
	return false;
}

void await_count(struct node *node, size_t at, uint64_t want)
{
	int64_t deadline = kv_deadline_ns(RIG_TIMEOUT_MS);
	struct kv_stats stats = KV_INIT(kv_stats);
	uint64_t now;

	for (;;) {
		ok(kv_stats(node->engine, &stats, &node->err), &node->err);
		memcpy(&now, (const char *)&stats + at, sizeof(now));
		if (now == want || kv_now_ns() >= deadline)
			break;
		kv_progress(node->engine, 0, NULL);
		poll(NULL, 0, 1);
	}
	assert_int_equal(now, want);
}

void node_await_peer(struct node *node)
{
	struct kv_arrival arrival;

	assert_true(await_kind(node, KV_ARRIVAL_PEER_UP, &arrival, RIG_TIMEOUT_MS));
	node->peer = arrival.peer;
}

bool next_arrival(struct node *node, struct kv_arrival *arrival, int64_t ms)
{
	return await_kind(node, KV_ARRIVAL_BLOCKS, arrival, ms);
}

void no_arrival(struct node *node)
{
	struct kv_arrival arrival;

	assert_int_equal(kv_poll_arrivals(node->engine, &arrival, 1, NULL), 0);
}

int register_untouched(struct kv_engine *engine, size_t len, struct kv_error *err)
{
	struct kv_tensor tensor = { .name = "huge", .block_bytes = len >> 10 };
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_cache *cache;
	int ret;

	tensor.base = mmap(NULL, len, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	layout.cache_id = 1;
	layout.layers = layout.tensors = 1;
	layout.blocks = 1 << 10;
	layout.tensor = &tensor;
	ret = kv_cache_register(engine, &layout, &cache, err);
	if (!ret)
		ret = kv_cache_unregister(cache, err);
	munmap(tensor.base, len);
	return ret;
}

void pair_open(struct pair *pair, const struct shape *shape, const struct kv_engine_config *config)
{
	node_open(&pair->b, 2, shape, config);
	node_listen(&pair->b);
	node_open(&pair->a, 1, shape, config);
	node_connect(&pair->a, pair->b.port);
	node_await_peer(&pair->b);
}

void pair_close(struct pair *pair)
{
	node_close(&pair->a);
	node_close(&pair->b);
}

/* ---------------------------------------------------------------- children */

/*
 * AddressSanitizer's allocator does not survive a fork beside a thread that is in it: the child's
 * first thread to allocate stands still, and what is seen is a kv_connect that times out. glibc's
 * does. A thread that was joined may be listed a moment longer.
 */
static void assert_no_threads(void)
{
#ifdef __SANITIZE_ADDRESS__
	struct stat tasks;

	for (int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS); kv_now_ns() < end;) {
		assert_int_equal(stat("/proc/self/task", &tasks), 0);
		if (tasks.st_nlink == 3) /* itself, its parent, one thread */
			return;
		poll(NULL, 0, 1);
	}
	fail_msg("a child is started beside %ju threads", (uintmax_t)tasks.st_nlink - 3);
#endif
}

void child_start(struct child *child, int (*run)(int fd, const void *arg), const void *arg)
{
	int fds[2];

	assert_no_threads();
	assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds), 0);
	fflush(NULL);
	child->pid = fork();
	assert_true(child->pid >= 0);
	if (!child->pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		setenv("CMOCKA_TEST_ABORT", "1", 1); /* or it would go on with the parent's tests */
		close(fds[0]);
		_exit(run(fds[1], arg));
	}
	close(fds[1]);
	child->fd = fds[0];
}

void child_send(int fd, const void *p, size_t n)
{
	assert_int_equal(send(fd, p, n, MSG_NOSIGNAL), (ssize_t)n);
}

void child_receive(int fd, void *p, size_t n)
{
	struct pollfd pfd = { .fd = fd, .events = POLLIN };

	assert_int_equal(poll(&pfd, 1, (int)RIG_TIMEOUT_MS), 1);
	assert_int_equal(recv(fd, p, n, MSG_WAITALL), (ssize_t)n);
}

int child_join(struct child *child)
{
	int64_t deadline = kv_deadline_ns(RIG_TIMEOUT_MS);
	int status;

	close(child->fd);
	while (kv_now_ns() < deadline) {
		pid_t pid = waitpid(child->pid, &status, WNOHANG);

		if (pid == child->pid)
			return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
		poll(NULL, 0, 5);
	}
	kill(child->pid, SIGKILL);
	waitpid(child->pid, &status, 0);
	return -1; /* it hung */
}

void child_kill(struct child *child, int sig)
{
	if (sig == SIGSTOP)
		assert_true(stop_process(child->pid));
	else
		assert_int_equal(kill(child->pid, sig), 0);
}

void child_listens(int fd, struct node *node)
{
	node_listen(node);
	child_send(fd, &node->port, sizeof(node->port));
}

void child_connects(int fd, struct node *node)
{
	uint32_t port;

	child_receive(fd, &port, sizeof(port));
	node_connect(node, port);
}

int child_ends(int fd, struct node *node)
{
	char byte;

	if (recv(fd, &byte, 1, 0) > 0)
		return 1;
	node_close(node);
	return 0;
}

int rig_stuck_receiver(int fd, const void *arg)
{
	struct shape shape = rig_shape;
	struct node node;
	char word;

	shape.malloced = true;
	node_open(&node, 2, &shape, NULL);
	child_listens(fd, &node);
	child_receive(fd, &word, 1);
	if (word == 1 && stuck_begin_inside(node.mem, node.len) < 0)
		return 1;
	child_send(fd, "", 1);
	for (;;)
		pause(); /* until it is killed */
}
