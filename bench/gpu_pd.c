/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_pd.c -- blocks of a KV cache between two processes of one host, of which one or both have
 * their cache on a GPU; beside one bare kernel that copies the same pieces
 *
 * The floor is the library's own kernel with lists that were made before, launched and waited for
 * by the caller. Every byte of the first round of each size is compared.
 */
#include <errno.h>
#include <getopt.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <kvrail/kv.h>

#include "cuda.h"
#include "results.h"
#include "util.h"

enum { SIZES = 5, ROUNDS_MAX = 1000, FLIGHT_MAX = 16, SMS_MAX = 256 };
static const uint64_t sizes[SIZES] = { 1024, 4096, 16384, 65536, 262144 };

static struct {
	uint64_t pool;
	uint32_t batch, rounds, flight, sms;
	int prefill, decode; /* ordinals of this process's GPU and of the other's */
	bool pieces;	     /* memory that is mapped piece by piece */
	const char *json;
} cfg = { .pool = UINT64_C(1) << 30, .batch = 1538, .rounds = 40, .flight = 4, .sms = 8 };

extern const char gpu_copy_ptx[];

static void check(int ret, const struct kv_error *err)
{
	if (ret)
		fail(err->op, err->message);
}

/* ---------------------------------------------------------------- caches and bytes */

enum place { GPU, HOST };

struct side {
	struct kv_engine *engine;
	struct kv_cache *cache[SIZES];
	void *pool;
	enum place place;
};

static uint64_t word_of(uint64_t key, uint64_t index)
{
	return mix64(index ^ key << 56);
}

static void side_fill(struct side *side, uint64_t key)
{
	uint64_t n = cfg.pool / 8, *words = side->place == HOST ? side->pool : malloc(cfg.pool);

	if (!words)
		fail("malloc", strerror(errno));
	for (uint64_t i = 0; i < n; i++)
		words[i] = word_of(key, i);
	if (side->place == HOST)
		return;
	must(cuda.to_device((cuda_ptr)(uintptr_t)side->pool, words, cfg.pool), "cuMemcpyHtoD");
	must(cuda.synchronize(), "cuCtxSynchronize");
	free(words);
}

static void side_open(struct side *side, enum place place, int ordinal, uint64_t key)
{
	struct kv_error err;
	cuda_ptr at;

	side->place = place;
	check(kv_engine_open(NULL, &side->engine, &err), &err);
	if (place == HOST) {
		check(kv_alloc(side->engine, cfg.pool, &side->pool, &err), &err);
	} else {
		if (cfg.pieces)
			at = cuda_alloc_pieces(ordinal, cfg.pool);
		else
			must(cuda.mem_alloc(&at, cfg.pool), "cuMemAlloc");
		side->pool = (void *)(uintptr_t)at;
	}
	side_fill(side, key);
	for (uint32_t i = 0; i < SIZES; i++) {
		struct kv_tensor tensor = { .name = "k",
					    .block_bytes = sizes[i],
					    .base = side->pool };
		struct kv_layout layout = KV_INIT(kv_layout);

		layout.cache_id = i;
		layout.layers = layout.tensors = 1;
		layout.blocks = (uint32_t)(cfg.pool / sizes[i]);
		layout.tensor = &tensor;
		layout.mem_kind = place == GPU ? KV_MEM_CUDA : KV_MEM_HOST;
		layout.flags = KV_CACHE_OPEN | KV_CACHE_READABLE;
		check(kv_cache_register(side->engine, &layout, &side->cache[i], &err), &err);
	}
}

/* The first `batch` of a shuffle of the block ids: the same for all that ask with this seed. */
static uint32_t shuffle(uint64_t block, uint64_t seed, int64_t *ids)
{
	uint32_t blocks = (uint32_t)(cfg.pool / block), n = blocks < cfg.batch ? blocks : cfg.batch;
	int64_t *all = malloc(blocks * sizeof(*all));

	if (!all)
		fail("malloc", strerror(errno));
	for (uint32_t i = 0; i < blocks; i++)
		all[i] = i;
	for (uint32_t i = 0; i < n; i++) {
		uint32_t k = i + (uint32_t)random_below(&seed, blocks - i);
		int64_t id = all[k];

		all[k] = all[i];
		all[i] = ids[i] = id;
	}
	free(all);
	return n;
}

/* Bytes of `side` that are not as they must be after from -> to with the writer's key. */
static uint64_t count_wrong(const struct side *side, uint64_t block, uint64_t own, uint64_t other,
			    const int64_t *from, const int64_t *to, uint32_t n)
{
	uint64_t blocks = cfg.pool / block, words = block / 8, wrong = 0;
	int64_t *source = malloc(blocks * sizeof(*source));
	uint64_t *bytes = side->place == HOST ? side->pool : malloc(cfg.pool);

	if (!bytes || !source)
		fail("malloc", strerror(errno));
	if (side->place == GPU)
		must(cuda.to_host(bytes, (cuda_ptr)(uintptr_t)side->pool, cfg.pool),
		     "cuMemcpyDtoH");
	for (uint64_t i = 0; i < blocks; i++)
		source[i] = -1;
	for (uint32_t i = 0; i < n; i++)
		source[to[i]] = from[i];
	for (uint64_t i = 0; i < blocks; i++)
		for (uint64_t w = 0; w < words; w++) {
			uint64_t want = source[i] < 0
						? word_of(own, i * words + w)
						: word_of(other, (uint64_t)source[i] * words + w);

			wrong += (bytes[i * words + w] != want) * 8;
		}
	if (side->place == GPU)
		free(bytes);
	free(source);
	return wrong;
}

/* ---------------------------------------------------------------- the peer's process */

enum { WRITER = 1, READER = 2 }; /* keys of what their pools hold at first */

/* What the peer is asked: compare its pool after a write of that size, and restore it. */
struct question {
	uint32_t size;
};
struct hello {
	uint32_t port;
	struct cuda_ipc_handle handle;
};

static void get(int fd, void *buf, size_t len)
{
	if (read(fd, buf, len) != (ssize_t)len)
		_exit(0); /* the other end has gone */
}

static void put(int fd, const void *buf, size_t len)
{
	if (write(fd, buf, len) != (ssize_t)len)
		fail("the other process", "it has gone");
}

static void serve(int in, int out, enum place place)
{
	struct hello hello = { 0 };
	struct question question;
	struct side side;
	struct kv_error err;
	int64_t *from = malloc(cfg.batch * sizeof(*from)), *to = malloc(cfg.batch * sizeof(*to));

	if (!cuda_start(cfg.decode) || !from || !to)
		_exit(1); /* the other process says it */
	side_open(&side, place, cfg.decode, READER);
	if (place == GPU && !cfg.pieces)
		must(cuda.ipc_get(&hello.handle, (cuda_ptr)(uintptr_t)side.pool),
		     "cuIpcGetMemHandle");
	check(kv_listen(side.engine, NULL, 0, &hello.port, &err), &err);
	put(out, &hello, sizeof(hello));
	for (;;) {
		uint64_t block, wrong;
		uint32_t n;

		get(in, &question, sizeof(question));
		block = sizes[question.size];
		n = shuffle(block, 3, from);
		shuffle(block, 4, to);
		wrong = count_wrong(&side, block, READER, WRITER, from, to, n);
		side_fill(&side, READER);
		put(out, &wrong, sizeof(wrong));
	}
}

/* ---------------------------------------------------------------- measuring */

static double now_us(void)
{
	return (double)now_ns() / 1e3;
}

struct run {
	struct side *side;
	struct kv_peer *peer;
	uint32_t size, n;
	int64_t *from, *to;
	bool read;
};

static void go_once(const struct run *r)
{
	struct kv_layers layers = { 0, 0 };
	struct kv_error err;

	if (r->read)
		check(kv_read_blocks(r->peer, r->side->cache[r->size], layers, r->to, r->from, r->n,
				     NULL, &err),
		      &err);
	else
		check(kv_write_blocks(r->peer, r->side->cache[r->size], layers, r->from, r->to,
				      r->n, NULL, &err),
		      &err);
}

static double time_one(const struct run *r)
{
	double us[ROUNDS_MAX] = { 0 };

	for (uint32_t i = 0; i < cfg.rounds; i++) {
		double begin = now_us();

		go_once(r);
		us[i] = now_us() - begin;
	}
	return results_median(us, cfg.rounds);
}

static void begin_once(const struct run *r, struct kv_op **op_p)
{
	struct kv_layers layers = { 0, 0 };
	struct kv_error err;

	check(r->read ? kv_read_blocks_async(r->peer, r->side->cache[r->size], layers, r->to,
					     r->from, r->n, NULL, op_p, &err)
		      : kv_write_blocks_async(r->peer, r->side->cache[r->size], layers, r->from,
					      r->to, r->n, NULL, op_p, &err),
	      &err);
}

static void end_once(struct kv_op *op)
{
	struct kv_error err;

	check(kv_wait(op, KV_ACKED, 5000, &err), &err);
	check(kv_op_free(op, &err), &err);
}

/* Of a batch, what the processor does: the call that checks it and launches its kernels. */
static double time_post(const struct run *r)
{
	double us[ROUNDS_MAX] = { 0 };
	struct kv_op *op;

	for (uint32_t i = 0; i < cfg.rounds; i++) {
		double begin = now_us();

		begin_once(r, &op);
		us[i] = now_us() - begin;
		end_once(op);
	}
	return results_median(us, cfg.rounds);
}

/* Time of one of several that are in flight. */
static double time_many(const struct run *r)
{
	struct kv_op *op[FLIGHT_MAX] = { 0 };
	double begin = now_us();
	uint32_t rounds = cfg.rounds < cfg.flight ? cfg.flight : cfg.rounds;

	for (uint32_t i = 0; i < rounds + cfg.flight; i++) {
		struct kv_op **at = &op[i % cfg.flight];

		if (*at)
			end_once(*at);
		*at = NULL;
		if (i < rounds)
			begin_once(r, at);
	}
	return (now_us() - begin) / rounds;
}

/* ---------------------------------------------------------------- the floor */

/* As copy.cu has them. */
enum { STEP = 64 };
struct piece {
	uint64_t to, from, len;
};
struct block {
	uint32_t to, from;
};

static double time_floor(const struct run *r, cuda_ptr far)
{
	static void *stream, *module, *kernel;
	static struct block *list;
	const void *no_starts = NULL; /* the pieces are of one size */
	uint64_t block = sizes[r->size], all = block / 512 * r->n, step = block / STEP;
	cuda_ptr near = (cuda_ptr)(uintptr_t)r->side->pool;
	uint32_t warps = cfg.sms * 32;
	void *memory;
	uint32_t n = r->n;
	struct piece base = { r->read ? near : far, r->read ? far : near, block };
	static uint32_t *ended;
	uint32_t number = 0;
	void *params[] = { &list, &no_starts, &warps, &n, &base, &ended, &number };
	double us[ROUNDS_MAX] = { 0 };

	if (!stream) {
		must(cuda.stream_create(&stream, 1), "cuStreamCreate");
		must(cuda.module_load(&module, gpu_copy_ptx), "cuModuleLoadData");
		must(cuda.module_function(&kernel, module, "kvrail_copy"), "cuModuleGetFunction");
		must(cuda.host_alloc(&memory, cfg.batch * sizeof(*list), 3), "cuMemHostAlloc");
		list = memory;
		must(cuda.host_alloc(&memory, SMS_MAX * sizeof(*ended), 3), "cuMemHostAlloc");
		ended = memory;
	}
	for (uint32_t i = 0; i < r->n; i++) {
		uint32_t here = (uint32_t)(r->from[i] * step), there = (uint32_t)(r->to[i] * step);

		/* read: what was written comes back */
		list[i] = r->read ? (struct block){ here, there } : (struct block){ there, here };
	}
	if (warps > all)
		warps = (uint32_t)all;
	for (uint32_t i = 0; i < cfg.rounds + 3; i++) {
		double begin = now_us();

		must(cuda.launch(kernel, (warps + 31) / 32, 1, 1, 1024, 1, 1, 0, stream, params,
				 NULL),
		     "cuLaunchKernel");
		while (cuda.stream_query(stream))
			;
		us[i < 3 ? 0 : i - 3] = now_us() - begin;
	}
	return results_median(us, cfg.rounds);
}

/* ---------------------------------------------------------------- rows */

static const struct results_column columns[] = {
	{ "way", "", "way", -14, 0 },
	{ "block", "KiB", "block_kib", 6, 0 },
	{ "one", "GB/s", "one_gb_per_s", 8, 1 },
	{ "several", "GB/s", "several_gb_per_s", 8, 1 },
	{ "floor", "GB/s", "floor_gb_per_s", 8, 1 },
	{ "post", "us", "post_us", 8, 1 },
	{ "one/floor", "", "one_ratio", 9, 2 },
	{ "sev/floor", "", "several_ratio", 9, 2 },
	{ "wrong", "bytes", "wrong_bytes", 7, 0 },
};

static uint64_t measure_way(struct results *results, const char *way, enum place place, bool read)
{
	int there[2], back[2];
	struct side side = { 0 };
	struct hello hello;
	struct run r = { .side = &side, .read = read };
	uint64_t bad = 0;
	cuda_ptr far = 0;
	struct kv_error err;
	void *pinned;
	pid_t child;

	if (pipe(there) || pipe(back))
		fail("pipe", strerror(errno));
	child = fork(); /* before CUDA starts in this process */
	if (child < 0)
		fail("fork", strerror(errno));
	if (!child) {
		close(there[1]);
		close(back[0]);
		serve(there[0], back[1], place);
	}
	close(there[0]);
	close(back[1]);
	if (!cuda_start(cfg.prefill)) {
		fprintf(stderr, "gpu_pd: there is no GPU here, or its driver does not start\n");
		exit(77);
	}
	side_open(&side, GPU, cfg.prefill, WRITER);
	get(back[0], &hello, sizeof(hello));
	check(kv_connect(side.engine, NULL, hello.port, 10000, &r.peer, &err), &err);
	if (place == GPU && cfg.pieces) {
		must(cuda.mem_alloc(&far, cfg.pool), "cuMemAlloc"); /* no IPC handle */
	} else if (place == GPU) {
		must(cuda.ipc_open(&far, hello.handle, 1), "cuIpcOpenMemHandle");
	} else {
		must(cuda.host_alloc(&pinned, cfg.pool, 3), "cuMemHostAlloc");
		memset(pinned, 0, cfg.pool);
		far = (cuda_ptr)(uintptr_t)pinned;
	}
	r.from = malloc(cfg.batch * sizeof(*r.from));
	r.to = malloc(cfg.batch * sizeof(*r.to));
	for (r.size = 0; r.size < SIZES; r.size++) {
		uint64_t wrong;
		double bytes, one, many, floor, post;
		struct question question = { .size = r.size };

		r.n = shuffle(sizes[r.size], 3, r.from);
		shuffle(sizes[r.size], 4, r.to);
		go_once(&r);
		if (read) {
			/* Local block to[i] came from from[i] of the peer; the rest is its own. */
			wrong = count_wrong(&side, sizes[r.size], WRITER, READER, r.from, r.to,
					    r.n);
		} else {
			put(there[1], &question, sizeof(question));
			get(back[0], &wrong, sizeof(wrong));
		}
		bad += wrong;
		bytes = (double)r.n * (double)sizes[r.size];
		time_one(&r);
		one = time_one(&r);
		many = time_many(&r);
		post = time_post(&r);
		floor = time_floor(&r, far);
		if (read)
			side_fill(&side, WRITER);
		else {
			put(there[1], &question, sizeof(question)); /* restores the pool */
			get(back[0], &wrong, sizeof(wrong));
		}
		results_cell_text(results, way);
		results_cell(results, (double)sizes[r.size] / 1024);
		results_cell(results, bytes / one / 1e3);
		results_cell(results, bytes / many / 1e3);
		results_cell(results, bytes / floor / 1e3);
		results_cell(results, post);
		results_cell(results, floor / one);
		results_cell(results, floor / many);
		results_cell(results, (double)wrong);
		fflush(stdout);
	}
	kv_peer_close(r.peer, 1000, &err);
	close(there[1]);
	waitpid(child, NULL, 0);
	kv_engine_close(side.engine); /* no thread runs when the process ends */
	free(r.from);
	free(r.to);
	return bad;
}

static const char usage[] =
	"usage: gpu_pd [OPTION...]\n"
	"\n"
	"Blocks between the caches of two processes of one host, one or both on a GPU; all bytes\n"
	"are compared once. The floor is one bare kernel over the same pieces. They go over shared\n"
	"memory, or over TCP with KVCACHE_TRANSPORT=tcp.\n"
	"\n"
	"  -w, --way NAME    gpu-gpu, gpu-host (written into a memfd pool) or host-gpu (read from it)\n"
	"  -b, --batch N     blocks of a batch (1538)\n"
	"  -r, --rounds N    batches of a median (40)\n"
	"  -f, --flight N    operations in flight, in the column `several` (4)\n"
	"  -s, --sms N       multiprocessors of the copies and of the floor (8)\n"
	"  -g, --prefill N   this process's GPU, as CUDA numbers them (0)\n"
	"  -d, --decode N    the other process's GPU (0)\n"
	"  -p, --pool MIB    bytes of each cache (1024)\n"
	"  -m, --pieces      memory of the GPU as expandable segments make it (cuMemMap); the floor of\n"
	"                    gpu-gpu is then within this process\n"
	"  -j, --json FILE   the same numbers\n"
	"\n"
	"Exit status: 0 all bytes were right, 1 an error or a wrong byte, 77 there is no GPU here.\n";

static void read_options(int argc, char **argv, const char **way_p)
{
	static const struct option options[] = {
		{ "way", required_argument, NULL, 'w' },
		{ "batch", required_argument, NULL, 'b' },
		{ "rounds", required_argument, NULL, 'r' },
		{ "flight", required_argument, NULL, 'f' },
		{ "sms", required_argument, NULL, 's' },
		{ "pool", required_argument, NULL, 'p' },
		{ "prefill", required_argument, NULL, 'g' },
		{ "decode", required_argument, NULL, 'd' },
		{ "pieces", no_argument, NULL, 'm' },
		{ "json", required_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "w:b:r:f:s:g:d:p:mj:h", options, NULL)) != -1) {
		unsigned long v = optarg ? strtoul(optarg, NULL, 10) : 0;

		switch (c) {
		case 'w':
			*way_p = optarg;
			break;
		case 'b':
			cfg.batch = (uint32_t)v;
			break;
		case 'r':
			cfg.rounds = (uint32_t)v;
			break;
		case 'f':
			cfg.flight = (uint32_t)v;
			break;
		case 's':
			cfg.sms = (uint32_t)v;
			break;
		case 'g':
			cfg.prefill = (int)v;
			break;
		case 'd':
			cfg.decode = (int)v;
			break;
		case 'p':
			cfg.pool = (uint64_t)v << 20;
			break;
		case 'm':
			cfg.pieces = true;
			break;
		case 'j':
			cfg.json = optarg;
			break;
		case 'h':
			fputs(usage, stdout);
			exit(0);
		default:
			fputs(usage, stderr);
			exit(2);
		}
	}
	if (!cfg.batch || !cfg.rounds || cfg.rounds > ROUNDS_MAX || !cfg.flight ||
	    cfg.flight > FLIGHT_MAX || !cfg.sms || cfg.sms > SMS_MAX || !cfg.pool)
		fail("options", "0, or more than there can be (--help)");
}

int main(int argc, char **argv)
{
	static const struct {
		const char *name;
		enum place place;
		bool read;
	} ways[] = { { "gpu-gpu", GPU, false },
		     { "gpu-host", HOST, false },
		     { "host-gpu", HOST, true } };
	char *command = results_command(argc, argv), sms[16];
	const char *wanted = "gpu-gpu";
	struct results *results;
	size_t i = 0;
	uint64_t bad;

	read_options(argc, argv, &wanted);
	while (i < sizeof(ways) / sizeof(ways[0]) && strcmp(ways[i].name, wanted))
		i++;
	if (i == sizeof(ways) / sizeof(ways[0]))
		fail(wanted, "no such way (--help)");
	if (results_can_write("gpu_pd", cfg.json))
		return 1;
	snprintf(sms, sizeof(sms), "%u", cfg.sms);
	setenv("KVCACHE_GPU_SMS", sms, 1);
	setenv("KVCACHE_TRANSPORT", "shm", 0);
	results =
		results_new("gpu_pd", command, getenv("KVCACHE_TRANSPORT"), "CUDA kernels", "auto");
	results_open(results, "settings", '{');
	results_integer(results, "batch", cfg.batch);
	results_integer(results, "pool_bytes", cfg.pool);
	results_integer(results, "rounds", cfg.rounds);
	results_integer(results, "multiprocessors", cfg.sms);
	results_integer(results, "in_flight", cfg.flight);
	results_close(results);
	results_table(results, columns, sizeof(columns) / sizeof(columns[0]));
	bad = measure_way(results, wanted, ways[i].place, ways[i].read);
	free(command);
	return results_end(results, cfg.json) || bad;
}
