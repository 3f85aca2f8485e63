/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_life.c -- many connections between two processes with caches on a GPU, and processes that are
 * killed while their kernels copy: nothing is lost of the GPU, nothing lands afterwards; and blocks
 * that a stream still fills when they are to be sent
 */
#include <errno.h>
#include <getopt.h>
#include <poll.h>
#include <string.h>

#include <kvrail/kv.h>

#include "../lib/process.h"
#include "cuda.h"
#include "util.h"

enum { BLOCK = 1 << 18, BLOCKS = 256, FLIGHT = 4, PATIENCE_MS = 30000, WARM = 20 };
#define BYTES ((uint64_t)BLOCK * BLOCKS)

static struct {
	int gpu, decode; /* this process's, and the other's */
	uint32_t connects, kills;
	bool pieces;
} cfg = { .connects = 1000, .kills = 20 };

static void check(int ret, const struct kv_error *err)
{
	if (ret < 0)
		fail(err->op, err->message);
}

/* ---------------------------------------------------------------- an engine and its cache */

struct node {
	struct kv_engine *engine;
	struct kv_cache *cache;
	cuda_ptr at;
	uint64_t *seen; /* a copy of it */
};

static uint64_t own_word(uint64_t i)
{
	return mix64(i);
}

static void node_open(struct node *node)
{
	struct kv_tensor tensor = { .name = "k", .block_bytes = BLOCK };
	struct kv_layout layout = KV_INIT(kv_layout);
	struct kv_error err;

	if (!cuda_start(cfg.gpu)) {
		fprintf(stderr, "gpu_life: there is no GPU here, or its driver does not start\n");
		exit(77);
	}
	node->seen = malloc(BYTES);
	if (!node->seen)
		fail("malloc", strerror(errno));
	if (cfg.pieces)
		node->at = cuda_alloc_pieces(cfg.gpu, BYTES);
	else
		must(cuda.mem_alloc(&node->at, BYTES), "cuMemAlloc");
	for (uint64_t i = 0; i < BYTES / 8; i++)
		node->seen[i] = own_word(i);
	must(cuda.to_device(node->at, node->seen, BYTES), "cuMemcpyHtoD");
	must(cuda.synchronize(), "cuCtxSynchronize");
	check(kv_engine_open(NULL, &node->engine, &err), &err);
	layout.layers = layout.tensors = 1;
	layout.blocks = BLOCKS;
	layout.tensor = &tensor;
	layout.mem_kind = KV_MEM_CUDA;
	layout.flags = KV_CACHE_OPEN | KV_CACHE_READABLE;
	tensor.base = (void *)(uintptr_t)node->at;
	check(kv_cache_register(node->engine, &layout, &node->cache, &err), &err);
}

static void node_close(struct node *node)
{
	kv_engine_close(node->engine);
	free(node->seen);
}

static struct kv_peer *node_connect(const struct node *node, uint32_t port)
{
	struct kv_error err;
	struct kv_peer *peer;

	check(kv_connect(node->engine, NULL, port, PATIENCE_MS, &peer, &err), &err);
	return peer;
}

/* Every even block, from an odd one. */
static void pairs_of(int64_t *from, int64_t *to)
{
	for (int i = 0; i < BLOCKS / 2; i++) {
		from[i] = 2 * i + 1;
		to[i] = 2 * i;
	}
}

/* ---------------------------------------------------------------- the other process */

/* It is this program again, as CUDA does not survive a fork. */
struct other {
	pid_t pid;
	FILE *says;
	int ends; /* it goes when this is closed */
	uint32_t port;
};

static struct other other_start(const char *role, uint32_t port)
{
	struct other other;
	int out[2], in[2];
	char number[16], gpu[16];

	snprintf(number, sizeof(number), "%u", port);
	snprintf(gpu, sizeof(gpu), "%d", cfg.decode);
	if (pipe(out) || pipe(in))
		fail("pipe", strerror(errno));
	other.pid = fork();
	if (other.pid < 0)
		fail("fork", strerror(errno));
	if (!other.pid) {
		dup2(in[0], 0);
		dup2(out[1], 1);
		for (int fd = 3; fd < 1024; fd++)
			close(fd);
		execl("/proc/self/exe", "gpu_life", "--role", role, "--port", number, "--gpu", gpu,
		      cfg.pieces ? "--pieces" : NULL, NULL);
		_exit(127);
	}
	close(out[1]);
	close(in[0]);
	other.says = fdopen(out[0], "r");
	other.ends = in[1];
	if (!other.says || fscanf(other.says, "%u", &other.port) != 1)
		fail(role, "the other process did not start");
	return other;
}

static void other_kill(struct other *other)
{
	kill(other->pid, SIGKILL);
	waitpid(other->pid, NULL, 0);
	fclose(other->says);
	close(other->ends);
}

static void say(uint32_t number)
{
	printf("%u\n", number);
	fflush(stdout);
}

/* Listens, and takes what comes until its input ends. */
static void role_reads(void)
{
	struct node node;
	struct kv_arrival arrival;
	struct kv_error err;
	struct pollfd end = { .fd = 0, .events = POLLIN };
	uint32_t port;

	node_open(&node);
	check(kv_listen(node.engine, NULL, 0, &port, &err), &err);
	say(port);
	while (!poll(&end, 1, 1))
		while (kv_poll_arrivals(node.engine, &arrival, 1, &err) > 0)
			if (arrival.kind == KV_ARRIVAL_PEER_LOST)
				check(kv_peer_close(arrival.peer, PATIENCE_MS, &err), &err);
	node_close(&node);
}

/* Writes for ever. */
static void role_writes(uint32_t port)
{
	static const struct kv_layers all = { 0, 0 };
	int64_t from[BLOCKS / 2], to[BLOCKS / 2];
	struct kv_op *op[FLIGHT] = { 0 };
	struct kv_error err;
	struct node node;
	struct kv_peer *peer;

	node_open(&node);
	pairs_of(from, to);
	peer = node_connect(&node, port);
	for (uint32_t i = 0;; i++) {
		struct kv_op **at = &op[i % FLIGHT];

		if (*at) {
			check(kv_wait(*at, KV_ACKED, PATIENCE_MS, &err), &err);
			check(kv_op_free(*at, &err), &err);
		}
		check(kv_write_blocks_async(peer, node.cache, all, from, to, BLOCKS / 2, NULL, at,
					    &err),
		      &err);
		if (i == FLIGHT)
			say(port);
	}
}

/* ---------------------------------------------------------------- what there is */

static size_t free_bytes(void)
{
	size_t left, all;

	must(cuda.mem_info(&left, &all), "cuMemGetInfo");
	return left;
}

static unsigned int mappings(void)
{
	FILE *f = fopen("/proc/self/maps", "r");
	unsigned int n = 0;

	for (int c; f && (c = getc(f)) != EOF;)
		n += c == '\n';
	if (f)
		fclose(f);
	return n;
}

struct count {
	size_t free;
	unsigned int fds, maps;
};

static struct count count_now(void)
{
	return (struct count){ free_bytes(), (unsigned int)count_descriptors(), mappings() };
}

/* The driver and malloc may keep some; what is lost once in each round is more. */
#ifdef __SANITIZE_ADDRESS__
#define KEPT(rounds) (4 * (rounds)) /* what was freed stays mapped for a while */
#else
#define KEPT(rounds) ((rounds) / 4 + 8)
#endif

static void nothing_is_lost(const char *what, uint32_t rounds, const struct count *before)
{
	struct count now = count_now();

	printf("%s: %u rounds, %zd KiB of the GPU, %d descriptors, %d mappings more than before\n",
	       what, rounds, (ssize_t)(before->free - now.free) / 1024,
	       (int)(now.fds - before->fds), (int)(now.maps - before->maps));
	fflush(stdout);
	if ((ssize_t)(before->free - now.free) > (4 << 20) || now.fds > before->fds ||
	    now.maps > before->maps + KEPT(rounds))
		fail(what, "something is lost");
}

static void connects(struct node *node)
{
	static const int64_t from[] = { 1, 3, 5, 7 }, to[] = { 0, 2, 4, 6 };
	static const struct kv_layers all = { 0, 0 };
	struct other other = other_start("reads", 0);
	struct count before = { 0 };
	struct kv_error err;

	for (uint32_t i = 0; i < WARM + cfg.connects; i++) {
		struct kv_peer *peer;

		if (i == WARM)
			before = count_now();
		peer = node_connect(node, other.port);
		check(kv_write_blocks(peer, node->cache, all, from, to, 4, NULL, &err), &err);
		check(kv_peer_close(peer, PATIENCE_MS, &err), &err);
	}
	nothing_is_lost("connects", cfg.connects, &before);
	other_kill(&other);
}

/* ---------------------------------------------------------------- streams */

static void look(struct node *node)
{
	must(cuda.to_host(node->seen, node->at, BYTES), "cuMemcpyDtoH");
	must(cuda.synchronize(), "cuCtxSynchronize");
}

/*
 * A stream that fills the cache again and again, for milliseconds: what goes out with it, and is
 * read back into other blocks, is what it left at the end.
 */
static void streams(struct node *node)
{
	enum { FILLS = 300, SENT = 32 };
	static const struct kv_layers all = { 0, 0 };
	struct other other = other_start("reads", 0);
	struct kv_peer *peer = node_connect(node, other.port);
	struct kv_options options = KV_INIT(kv_options);
	int64_t from[SENT], to[SENT];
	const uint32_t *word = (const uint32_t *)node->seen;
	struct kv_error err;

	for (int i = 0; i < SENT; i++) {
		from[i] = i;
		to[i] = BLOCKS / 2 + i;
	}
	must(cuda.stream_create(&options.stream, 1), "cuStreamCreate");
	for (uint32_t i = 1; i <= FILLS; i++)
		must(cuda.fill_async(node->at, i, BYTES / 2 / 4, options.stream),
		     "cuMemsetD32Async");
	check(kv_write_blocks(peer, node->cache, all, from, to, SENT, &options, &err), &err);
	check(kv_read_blocks(peer, node->cache, all, to, to, SENT, NULL, &err), &err);
	look(node);
	for (uint64_t i = 0; i < (uint64_t)SENT * BLOCK / 4; i++)
		if (word[BYTES / 2 / 4 + i] != FILLS)
			fail("streams", "a block was sent before the stream had filled it");
	printf("streams: right\n");
	must(cuda.stream_destroy(options.stream), "cuStreamDestroy");
	check(kv_peer_close(peer, PATIENCE_MS, &err), &err);
	other_kill(&other);
}

/* ---------------------------------------------------------------- kills */

/* Odd blocks are nobody's to write; and what was seen after the fence stays. */
static void nothing_lands(struct node *node, uint64_t *copy)
{
	look(node);
	memcpy(copy, node->seen, BYTES);
	for (uint64_t i = 0; i < BYTES / 8; i++)
		if (i / (BLOCK / 8) % 2 && copy[i] != own_word(i))
			fail("kills", "a block that nobody may write has changed");
	look(node);
	if (memcmp(copy, node->seen, BYTES))
		fail("kills", "a byte landed after the peer was closed");
}

static struct kv_peer *await_loss(struct node *node)
{
	struct kv_arrival arrival;
	struct kv_error err;

	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		while (kv_poll_arrivals(node->engine, &arrival, 1, &err) > 0)
			if (arrival.kind == KV_ARRIVAL_PEER_LOST)
				return arrival.peer;
		poll(NULL, 0, 1);
	}
	fail("kills", "the loss of the process is not noticed");
}

static void kill_the_writer(struct node *node, uint32_t port, uint64_t *copy, uint32_t round)
{
	struct other other = other_start("writes", port);
	struct kv_error err;

	poll(NULL, 0, (int)(round % 7)); /* somewhere in a copy */
	other_kill(&other);
	check(kv_peer_close(await_loss(node), PATIENCE_MS, &err), &err);
	nothing_lands(node, copy);
}

/* It is killed while kernels of this process write into its memory. */
static void kill_the_reader(struct node *node)
{
	static const struct kv_layers all = { 0, 0 };
	struct other other = other_start("reads", 0);
	struct kv_peer *peer = node_connect(node, other.port);
	int64_t from[BLOCKS / 2], to[BLOCKS / 2];
	struct kv_op *op[FLIGHT];
	struct kv_error err;

	pairs_of(from, to);
	check(kv_write_blocks(peer, node->cache, all, from, to, BLOCKS / 2, NULL, &err), &err);
	for (int i = 0; i < FLIGHT; i++)
		check(kv_write_blocks_async(peer, node->cache, all, from, to, BLOCKS / 2, NULL,
					    &op[i], &err),
		      &err);
	other_kill(&other);
	for (int i = 0; i < FLIGHT; i++) {
		int ret = kv_wait(op[i], KV_ACKED, PATIENCE_MS, &err);

		if (ret && ret != KV_ERR_PEER_LOST && ret != KV_ERR_IN_DOUBT)
			fail("kills", err.message);
		check(kv_op_free(op[i], &err), &err);
	}
	check(kv_peer_close(peer, PATIENCE_MS, &err), &err);
}

static void kills(struct node *node)
{
	uint64_t *copy = malloc(BYTES);
	struct count before = { 0 };
	struct kv_error err;
	uint32_t port;

	if (!copy)
		fail("malloc", strerror(errno));
	check(kv_listen(node->engine, NULL, 0, &port, &err), &err);
	for (uint32_t i = 0; i < 2 + cfg.kills; i++) {
		if (i == 2)
			before = count_now();
		kill_the_writer(node, port, copy, i);
		kill_the_reader(node);
	}
	nothing_is_lost("kills", cfg.kills, &before);
	free(copy);
}

static const char usage[] =
	"usage: gpu_life [--gpu N] [--decode N] [--connects N] [--kills N] [--pieces]\n"
	"\n"
	"Exit status: 0, 1 an error, something lost or a wrong byte, 77 there is no GPU here.\n";

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "gpu", required_argument, NULL, 'g' },
		{ "decode", required_argument, NULL, 'd' },
		{ "connects", required_argument, NULL, 'c' },
		{ "kills", required_argument, NULL, 'k' },
		{ "pieces", no_argument, NULL, 'm' },
		{ "role", required_argument, NULL, 'r' },
		{ "port", required_argument, NULL, 'p' },
		{ NULL, 0, NULL, 0 },
	};
	const char *role = NULL;
	uint32_t port = 0;
	struct node node;
	int c;

	while ((c = getopt_long(argc, argv, "g:d:c:k:m", options, NULL)) != -1) {
		unsigned long v = optarg ? strtoul(optarg, NULL, 10) : 0;

		switch (c) {
		case 'g':
			cfg.gpu = (int)v;
			break;
		case 'd':
			cfg.decode = (int)v;
			break;
		case 'c':
			cfg.connects = (uint32_t)v;
			break;
		case 'k':
			cfg.kills = (uint32_t)v;
			break;
		case 'm':
			cfg.pieces = true;
			break;
		case 'r':
			role = optarg;
			break;
		case 'p':
			port = (uint32_t)v;
			break;
		default:
			fputs(usage, stderr);
			return 2;
		}
	}
	setenv("KVCACHE_TRANSPORT", "shm", 0);
	setenv("KVCACHE_OP_TIMEOUT_MS", "30000", 1);
	if (role && !strcmp(role, "reads"))
		role_reads();
	else if (role)
		role_writes(port);
	if (role)
		return 0;
	node_open(&node);
	if (cfg.connects)
		connects(&node);
	if (cfg.kills)
		kills(&node);
	streams(&node); /* the last: it changes every block */
	node_close(&node);
	return 0;
}
