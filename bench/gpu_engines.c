/* SPDX-License-Identifier: Apache-2.0 */
/*
 * gpu_engines.c -- when a GPU's copy engines are faster than the kernel: spans of one size, by the
 * library's kernel, by a call of cuMemcpyAsync each, and by one of cuMemcpyBatchAsync
 *
 * From the first call until the CPU has seen the end; lists are made before. Between two places of
 * one process: what another process maps costs the same (docs/gpu.md).
 */
#include <dlfcn.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>

#include "cuda.h"
#include "results.h"
#include "util.h"

enum { SPANS_MAX = 4096, ROUNDS = 20, SMS_MAX = 256, CHUNK = 512, SIZES = 9 };
static const uint64_t sizes[SIZES] = { 16 << 10, 64 << 10, 256 << 10, 512 << 10, 1 << 20,
				       2 << 20,	 4 << 20,  16 << 20,  64 << 20 };
static const uint64_t pool = UINT64_C(512) << 20;

static struct {
	int gpu, other;
	uint64_t bytes; /* of a batch, where the spans are not larger */
	const char *json;
} cfg = { .bytes = UINT64_C(64) << 20 };

extern const char gpu_copy_ptx[];

/* As copy.cu has them. */
enum { STEP = 64 };
static struct piece {
	uint64_t to, from, len;
} * piece, base;
static struct block {
	uint32_t to, from;
} * list;
static void *stream, *kernel;
static uint32_t spans;

/* Of cuda.h, from CUDA 12.8 on: a driver may not have it. */
struct attributes {
	int source_order;
	int hint[4];
	unsigned int flags;
};
static int (*copy_batch)(cuda_ptr *to, cuda_ptr *from, size_t *len, size_t n,
			 struct attributes *attributes, size_t *first, size_t kinds, size_t *bad_p,
			 void *stream);
static int (*copy)(cuda_ptr to, cuda_ptr from, size_t len, void *stream);
static int (*enable_peer)(void *context, unsigned int flags);

static double launched_us; /* from the first call until the last has returned */

static uint32_t warps, number;
static volatile uint32_t *ended; /* SMS_MAX words: each block of the kernel writes its number */

/* For so many multiprocessors. */
static void prepare(uint32_t sms)
{
	uint32_t chunks = (uint32_t)(piece[0].len / CHUNK) * spans;

	warps = sms * 32 < chunks ? sms * 32 : chunks;
	base = piece[0];
	for (uint32_t i = 0; i < spans; i++) {
		base.to = piece[i].to < base.to ? piece[i].to : base.to;
		base.from = piece[i].from < base.from ? piece[i].from : base.from;
	}
	for (uint32_t i = 0; i < spans; i++)
		list[i] = (struct block){ (uint32_t)((piece[i].to - base.to) / STEP),
					  (uint32_t)((piece[i].from - base.from) / STEP) };
}

static void by_kernel(void)
{
	const void *no_starts = NULL; /* the spans are of one size */
	void *params[] = { &list, &no_starts, &warps, &spans, &base, &ended, &number };

	number++;
	must(cuda.launch(kernel, (warps + 31) / 32, 1, 1, 1024, 1, 1, 0, stream, params, NULL),
	     "cuLaunchKernel");
}

static void by_calls(void)
{
	for (uint32_t i = 0; i < spans; i++)
		must(copy(piece[i].to, piece[i].from, piece[i].len, stream), "cuMemcpyAsync");
}

static void by_batch(void)
{
	static cuda_ptr to[SPANS_MAX], from[SPANS_MAX];
	static size_t len[SPANS_MAX];
	struct attributes in_order = { .source_order = 1 };
	size_t first = 0, bad;

	for (uint32_t i = 0; i < spans; i++) {
		to[i] = piece[i].to;
		from[i] = piece[i].from;
		len[i] = piece[i].len;
	}
	must(copy_batch(to, from, len, spans, &in_order, &first, 1, &bad, stream),
	     "cuMemcpyBatchAsync");
}

static double gb_per_s(void (*go)(void))
{
	double us[ROUNDS], calls_us[ROUNDS];

	for (uint32_t i = 0; i < ROUNDS + 3; i++) {
		uint64_t begin = now_ns(), called;

		go();
		called = now_ns();
		while (cuda.stream_query(stream))
			;
		us[i < 3 ? 0 : i - 3] = (double)(now_ns() - begin) / 1e3;
		calls_us[i < 3 ? 0 : i - 3] = (double)(called - begin) / 1e3;
	}
	launched_us = results_median(calls_us, ROUNDS);
	return (double)spans * (double)piece[0].len / results_median(us, ROUNDS) / 1e3;
}

static const struct results_column columns[] = {
	{ "way", "", "way", -14, 0 },
	{ "span", "KiB", "span_kib", 7, 0 },
	{ "spans", "", "spans", 6, 0 },
	{ "kernel_8", "GB/s", "kernel_8_gb_per_s", 9, 1 },
	{ "kernel_132", "GB/s", "kernel_132_gb_per_s", 11, 1 },
	{ "calls", "GB/s", "calls_gb_per_s", 8, 1 },
	{ "calls", "us", "calls_us", 8, 1 },
	{ "one batch", "GB/s", "batch_gb_per_s", 10, 1 },
	{ "batch", "us", "batch_us", 8, 1 },
};

/* Spans in the order of a shuffle, on both sides. */
static void measure_way(struct results *results, const char *way, cuda_ptr to, cuda_ptr from)
{
	for (int s = 0; s < SIZES; s++) {
		uint64_t len = sizes[s], slots = pool / len, seed = 5;

		spans = (uint32_t)(cfg.bytes / len < SPANS_MAX ? cfg.bytes / len : SPANS_MAX);
		spans = spans ? spans : 1;
		for (uint32_t i = 0; i < spans; i++)
			piece[i] = (struct piece){ to + i * len, from + i * len, len };
		for (uint32_t i = 0; i < spans && slots > 2 * (uint64_t)spans; i++)
			piece[i].from = from + (2 * i + random_below(&seed, 2)) * len;
		for (uint32_t i = spans - 1; i > 0; i--) {
			uint32_t k = (uint32_t)random_below(&seed, i + 1);
			uint64_t at = piece[i].to;

			piece[i].to = piece[k].to;
			piece[k].to = at;
		}
		results_cell_text(results, way);
		results_cell(results, (double)len / 1024);
		results_cell(results, spans);
		prepare(8);
		results_cell(results, gb_per_s(by_kernel));
		prepare(132);
		results_cell(results, gb_per_s(by_kernel));
		results_cell(results, gb_per_s(by_calls));
		results_cell(results, launched_us);
		results_cell(results, copy_batch ? gb_per_s(by_batch) : NAN);
		results_cell(results, copy_batch ? launched_us : NAN);
		fflush(stdout);
	}
}

/* Memory of another GPU, which this one's kernels and engines reach; 0: they do not. */
static cuda_ptr memory_of(int other)
{
	void *mine, *theirs;
	cuda_ptr at;
	int device, rc;

	must(cuda.device_get(&device, cfg.gpu), "cuDeviceGet");
	must(cuda.primary_retain(&mine, device), "cuDevicePrimaryCtxRetain");
	must(cuda.device_get(&device, other), "cuDeviceGet");
	must(cuda.primary_retain(&theirs, device), "cuDevicePrimaryCtxRetain");
	must(cuda.set_current(theirs), "cuCtxSetCurrent");
	must(cuda.mem_alloc(&at, pool), "cuMemAlloc");
	must(cuda.set_current(mine), "cuCtxSetCurrent");
	rc = enable_peer ? enable_peer(theirs, 0) : 1;
	return rc ? 0 : at;
}

/* ---------------------------------------------------------------- what a batch costs besides */

static int (*push)(void *context), (*pop)(void **context_p), (*capture_mode)(int *mode);
static int (*event_create)(void **event_p, unsigned int flags);
static int (*event_record)(void *event, void *on), (*event_query)(void *event);
static int (*write_value)(void *on, cuda_ptr at, uint32_t value, unsigned int flags);
static void *context, *event;
static volatile uint32_t *flag;
static uint32_t rounds_done;

static void enter_and_leave(void)
{
	int mode = 2;

	push(context);
	capture_mode(&mode);
	capture_mode(&mode);
	pop(&context);
}

static void record_only(void)
{
	event_record(event, stream);
}

static void query_only(void)
{
	event_query(event);
}

static void write_only(void)
{
	write_value(stream, (cuda_ptr)(uintptr_t)flag, 0, 0);
}

static void until_event(void)
{
	by_kernel();
	event_record(event, stream);
	while (event_query(event))
		;
}

static void until_value(void)
{
	by_kernel();
	write_value(stream, (cuda_ptr)(uintptr_t)flag, ++rounds_done, 0);
	while (*flag != rounds_done)
		;
}

static void until_blocks(void)
{
	by_kernel();
	while (*ended != number)
		;
}

static void until_stream(void)
{
	by_kernel();
	while (cuda.stream_query(stream))
		;
}

static const struct {
	const char *name;
	void (*go)(void);
} steps[] = {
	{ "enter and leave the context", enter_and_leave },
	{ "the call that launches", by_kernel },
	{ "the call that records an event", record_only },
	{ "the question for an event", query_only },
	{ "the call that has a value written", write_only },
	{ "a kernel, until the stream says so", until_stream },
	{ "a kernel, until an event says so", until_event },
	{ "a kernel, until a value is written", until_value },
	{ "a kernel, until its blocks say so", until_blocks },
};

/* One piece of a chunk: nothing but what it costs to have it done. */
static void measure_steps(cuda_ptr to, cuda_ptr from)
{
	void *library = dlopen("libcuda.so.1", RTLD_NOW), *memory;
	double us[ROUNDS * 10];

	*(void **)&push = dlsym(library, "cuCtxPushCurrent_v2");
	*(void **)&pop = dlsym(library, "cuCtxPopCurrent_v2");
	*(void **)&capture_mode = dlsym(library, "cuThreadExchangeStreamCaptureMode");
	*(void **)&event_create = dlsym(library, "cuEventCreate");
	*(void **)&event_record = dlsym(library, "cuEventRecord");
	*(void **)&event_query = dlsym(library, "cuEventQuery");
	*(void **)&write_value = dlsym(library, "cuStreamWriteValue32_v2");
	must(cuda.host_alloc(&memory, 64, 3), "cuMemHostAlloc");
	flag = memory;
	*flag = 0;
	must(cuda.primary_retain(&context, cfg.gpu), "cuDevicePrimaryCtxRetain");
	if (!push || !pop || !capture_mode || !event_create || !event_record || !event_query ||
	    event_create(&event, 2))
		return;
	piece[0] = (struct piece){ to, from, CHUNK };
	spans = 1;
	prepare(8);
	for (size_t s = 0; s < sizeof(steps) / sizeof(steps[0]); s++) {
		if (!write_value && (steps[s].go == write_only || steps[s].go == until_value))
			continue;
		for (uint32_t i = 0; i < ROUNDS * 10; i++) {
			uint64_t begin = now_ns();

			steps[s].go();
			us[i] = (double)(now_ns() - begin) / 1e3;
			while (cuda.stream_query(stream))
				;
		}
		printf("# %-36s %6.2f us\n", steps[s].name, results_median(us, ROUNDS * 10));
	}
}

static const char usage[] =
	"usage: gpu_engines [OPTION...]\n"
	"\n"
	"The library's kernel (8 and 132 multiprocessors) beside the copy engines: spans of one size,\n"
	"within a GPU, to another one, to pinned memory and from it. us: the calls alone.\n"
	"\n"
	"  -g, --gpu N       the GPU, as CUDA numbers them (0)\n"
	"  -o, --other N     to this one, too\n"
	"  -b, --bytes MIB   of a batch (64)\n"
	"  -j, --json FILE   the same numbers\n"
	"\n"
	"Exit status: 0, 1 an error, 77 there is no GPU here.\n";

static void read_options(int argc, char **argv)
{
	static const struct option options[] = {
		{ "gpu", required_argument, NULL, 'g' },
		{ "other", required_argument, NULL, 'o' },
		{ "bytes", required_argument, NULL, 'b' },
		{ "json", required_argument, NULL, 'j' },
		{ "help", no_argument, NULL, 'h' },
		{ NULL, 0, NULL, 0 },
	};
	int c;

	while ((c = getopt_long(argc, argv, "g:o:b:j:h", options, NULL)) != -1) {
		unsigned long v = optarg ? strtoul(optarg, NULL, 10) : 0;

		switch (c) {
		case 'g':
			cfg.gpu = (int)v;
			break;
		case 'o':
			cfg.other = (int)v;
			break;
		case 'b':
			cfg.bytes = (uint64_t)v << 20;
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
	if (!cfg.bytes || cfg.bytes > pool)
		fail("options", "a batch has 1 to 512 MiB");
}

int main(int argc, char **argv)
{
	char *command = results_command(argc, argv);
	struct results *results;
	void *library, *memory, *module;
	cuda_ptr near, far, other, host;

	cfg.other = -1;
	read_options(argc, argv);
	if (results_can_write("gpu_engines", cfg.json))
		return 1;
	if (!cuda_start(cfg.gpu)) {
		fprintf(stderr,
			"gpu_engines: there is no GPU here, or its driver does not start\n");
		return 77;
	}
	library = dlopen("libcuda.so.1", RTLD_NOW);
	*(void **)&copy_batch = dlsym(library, "cuMemcpyBatchAsync");
	*(void **)&copy = dlsym(library, "cuMemcpyAsync");
	*(void **)&enable_peer = dlsym(library, "cuCtxEnablePeerAccess");
	if (!copy)
		fail("cuMemcpyAsync", "libcuda does not have it");
	must(cuda.stream_create(&stream, 1), "cuStreamCreate");
	must(cuda.module_load(&module, gpu_copy_ptx), "cuModuleLoadData");
	must(cuda.module_function(&kernel, module, "kvrail_copy"), "cuModuleGetFunction");
	must(cuda.host_alloc(&memory, SPANS_MAX * sizeof(*piece), 3), "cuMemHostAlloc");
	piece = memory;
	must(cuda.host_alloc(&memory, SPANS_MAX * sizeof(*list), 3), "cuMemHostAlloc");
	list = memory;
	must(cuda.host_alloc(&memory, SMS_MAX * sizeof(*ended), 3), "cuMemHostAlloc");
	ended = memory;
	must(cuda.mem_alloc(&near, pool), "cuMemAlloc");
	must(cuda.mem_alloc(&far, pool), "cuMemAlloc");
	must(cuda.host_alloc(&memory, pool, 3), "cuMemHostAlloc");
	host = (cuda_ptr)(uintptr_t)memory;
	other = cfg.other >= 0 ? memory_of(cfg.other) : 0;
	measure_steps(far, near);
	results = results_new("gpu_engines", command, NULL, "CUDA", NULL);
	results_open(results, "settings", '{');
	results_integer(results, "bytes", cfg.bytes);
	results_integer(results, "rounds", ROUNDS);
	results_close(results);
	results_table(results, columns, sizeof(columns) / sizeof(columns[0]));
	measure_way(results, "same-gpu", far, near);
	if (other)
		measure_way(results, "other-gpu", other, near);
	measure_way(results, "gpu-host", host, near);
	measure_way(results, "host-gpu", near, host);
	free(command);
	return results_end(results, cfg.json);
}
