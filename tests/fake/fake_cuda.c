/* SPDX-License-Identifier: Apache-2.0 */
/* fake_cuda.c -- a stand-in for libcuda.so.1 */
#include "fake_cuda.h"
#include "fake_vmm.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { ARENA = 64 << 20, ALLOCATIONS = 256, PAGE = 4096 };
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_READY = 600, NOT_SUPPORTED = 801 };
enum { GPUS = 4, OTHER_GPU = 2 };

static bool is_gpu(int device)
{
	return device == FAKE_GPU || device == OTHER_GPU;
}

EXPORT struct fake_cuda fake_cuda = { .ordering = 200 };

static struct {
	uint8_t *addr, *bytes;
	int fd;
	size_t used;
	struct {
		size_t at, len;
		int gpu;
	} allocation[ALLOCATIONS];
	int n;
} arena;

/* What a context that was destroyed had nobody gives back; what is left otherwise `open` counts. */
extern void __lsan_ignore_object(const void *p) __attribute__((weak));

static void *of_driver(void *p)
{
	if (p && __lsan_ignore_object)
		__lsan_ignore_object(p);
	return p;
}

static bool make_arena(void)
{
	arena.fd = memfd_create("fake-cuda", MFD_CLOEXEC);
	if (arena.fd < 0 || ftruncate(arena.fd, ARENA))
		return false;
	arena.bytes = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_SHARED, arena.fd, 0);
	arena.addr = mmap(NULL, ARENA, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return arena.bytes != MAP_FAILED && arena.addr != MAP_FAILED;
}

EXPORT uint8_t *fake_cuda_alloc(size_t len, uint8_t **addr_p);
EXPORT uint8_t *fake_cuda_alloc(size_t len, uint8_t **addr_p)
{
	size_t at = arena.used;

	if ((!arena.addr && !make_arena()) || arena.n == ALLOCATIONS || len > ARENA - at ||
	    len % PAGE)
		return NULL;
	arena.allocation[arena.n].at = at;
	arena.allocation[arena.n].gpu = fake_cuda.alloc_on ? fake_cuda.alloc_on : FAKE_GPU;
	arena.allocation[arena.n++].len = len;
	arena.used += len;
	*addr_p = arena.addr + at;
	return arena.bytes + at;
}

EXPORT void fake_cuda_reset(void);
EXPORT void fake_cuda_reset(void)
{
	if (arena.addr) {
		munmap(arena.addr, ARENA);
		munmap(arena.bytes, ARENA);
		close(arena.fd);
	}
	memset(&arena, 0, sizeof(arena));
	fake_cuda = (struct fake_cuda){ .ordering = 200 };
}

/* Its index, or -1. */
static int find(unsigned long long ptr)
{
	unsigned long long at = ptr - (unsigned long long)(uintptr_t)arena.addr;

	for (int i = 0; arena.addr && i < arena.n; i++)
		if (at >= arena.allocation[i].at &&
		    at - arena.allocation[i].at < arena.allocation[i].len)
			return i;
	return -1;
}

EXPORT int cuPointerGetAttribute(void *value, int attribute, unsigned long long ptr);
EXPORT int cuPointerGetAttribute(void *value, int attribute, unsigned long long ptr)
{
	int i = find(ptr);

	if (i < 0)
		return fake_vmm_attribute(value, attribute, ptr);
	switch (attribute) {
	case 1: /* context */
		*(void **)value = &arena;
		return SUCCESS;
	case 2: /* memory type: 1 host, 2 device */
		*(unsigned int *)value = fake_cuda.managed ? 1 : 2;
		return SUCCESS;
	case 9: /* device ordinal */
		*(int *)value = arena.allocation[i].gpu;
		return SUCCESS;
	case 10: /* capable of legacy IPC */
		*(bool *)value = !fake_cuda.pool;
		return SUCCESS;
	case 17: /* memory pool */
		*(void **)value = fake_cuda.pool ? &arena : NULL;
		return SUCCESS;
	case 11: /* range start */
		*(unsigned long long *)value = (uintptr_t)arena.addr + arena.allocation[i].at;
		return SUCCESS;
	case 12: /* range size */
		*(size_t *)value = arena.allocation[i].len;
		return SUCCESS;
	default:
		return INVALID_VALUE;
	}
}

EXPORT int cuPointerSetAttribute(const void *value, int attribute, unsigned long long ptr);
EXPORT int cuPointerSetAttribute(const void *value, int attribute, unsigned long long ptr)
{
	return find(ptr) >= 0 && attribute == 6 && *(const unsigned int *)value == 1
		       ? SUCCESS
		       : INVALID_VALUE;
}

EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device);
EXPORT int cuDeviceGetAttribute(int *value, int attribute, int device)
{
	*value = fake_cuda.ordering;
	return attribute == 118 && is_gpu(device) ? SUCCESS : INVALID_VALUE;
}

static _Thread_local void *current; /* that an application has set */

/* One of its own, beside the primary one. */
EXPORT int cuCtxCreate_v2(void **context_p, unsigned int flags, int device);
EXPORT int cuCtxCreate_v2(void **context_p, unsigned int flags, int device)
{
	*context_p = &arena.fd;
	fake_cuda.contexts++;
	fake_cuda.open++;
	return !flags && device == FAKE_GPU ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuCtxDestroy_v2(void *context);
EXPORT int cuCtxDestroy_v2(void *context)
{
	fake_cuda.open--;
	return context == &arena.fd ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuCtxPushCurrent_v2(void *context);
EXPORT int cuCtxPushCurrent_v2(void *context)
{
	if (fake_cuda.push_says)
		return fake_cuda.push_says;
	fake_cuda.contexts++;
	return context == &arena || context == &arena.fd ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuCtxPopCurrent_v2(void **context_p);
EXPORT int cuCtxPopCurrent_v2(void **context_p)
{
	fake_cuda.contexts--;
	*context_p = &arena;
	return SUCCESS;
}

static _Thread_local int capture_mode; /* 2: relaxed */

EXPORT int cuThreadExchangeStreamCaptureMode(int *mode);
EXPORT int cuThreadExchangeStreamCaptureMode(int *mode)
{
	int was = capture_mode;

	capture_mode = *mode;
	*mode = was;
	return SUCCESS;
}

/* A call that would end the capture of a graph by another thread. */
static bool ends_capture(void)
{
	return fake_cuda.capturing && capture_mode != 2;
}

EXPORT int cuGetErrorName(int error, const char **name_p);
EXPORT int cuGetErrorName(int error, const char **name_p)
{
	*name_p = error == INVALID_VALUE   ? "CUDA_ERROR_INVALID_VALUE"
		  : error == NOT_SUPPORTED ? "CUDA_ERROR_NOT_SUPPORTED"
		  : error == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY"
		  : error == NOT_READY	   ? "CUDA_ERROR_NOT_READY"
					   : NULL;
	return *name_p ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuMemGetHandleForAddressRange(void *handle, unsigned long long ptr, size_t len, int type,
					 unsigned long long flags);
EXPORT int cuMemGetHandleForAddressRange(void *handle, unsigned long long ptr, size_t len, int type,
					 unsigned long long flags)
{
	char path[64];
	int i = find(ptr), fd;

	if (fake_cuda.export_says)
		return fake_cuda.export_says;
	if (fake_vmm_seen(ptr)) {
		fd = fake_cuda.one_mapping ? fake_vmm_export(ptr, len) : -1;
		fake_cuda.exported += fd >= 0;
		*(int *)handle = fd;
		return fd < 0 ? NOT_SUPPORTED : SUCCESS;
	}
	/* Whole pages, of one allocation, in its context. */
	if (i < 0 || type != 1 || flags || ptr % PAGE || len % PAGE || !fake_cuda.contexts ||
	    find(ptr + len - 1) != i)
		return INVALID_VALUE;
	snprintf(path, sizeof(path), "/proc/self/fd/%d", arena.fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || lseek(fd, (off_t)(ptr - (uintptr_t)arena.addr), SEEK_SET) < 0)
		return NOT_SUPPORTED;
	fake_cuda.exported++;
	*(int *)handle = fd;
	return SUCCESS;
}

/* ---------------------------------------------------------------- IPC */

struct ipc_handle {
	uint64_t pid, fd, at, len;
	char rest[32];
} __attribute__((packed)); /* bytes to the caller: they lie anywhere */

EXPORT int cuIpcGetMemHandle(struct ipc_handle *handle, unsigned long long ptr);
EXPORT int cuIpcGetMemHandle(struct ipc_handle *handle, unsigned long long ptr)
{
	int i = find(ptr);

	if (fake_cuda.pool)
		return INVALID_VALUE;
	if (fake_cuda.ipc_says)
		return fake_cuda.ipc_says;
	if (i < 0 || !fake_cuda.contexts || ptr != (uintptr_t)arena.addr + arena.allocation[i].at)
		return INVALID_VALUE;
	*handle = (struct ipc_handle){ .pid = (uint64_t)getpid(),
				       .fd = (uint64_t)arena.fd,
				       .at = arena.allocation[i].at,
				       .len = arena.allocation[i].len };
	return SUCCESS;
}

enum { MAPPINGS = 64 };
static struct {
	uint8_t *at;
	size_t len;
} mapping[MAPPINGS];

EXPORT int cuIpcOpenMemHandle_v2(unsigned long long *ptr_p, struct ipc_handle handle,
				 unsigned int flags);
EXPORT int cuIpcOpenMemHandle_v2(unsigned long long *ptr_p, struct ipc_handle handle,
				 unsigned int flags)
{
	char path[64];
	void *at;
	int fd, i = 0;

	if (fake_cuda.open_says)
		return fake_cuda.open_says;
	if (handle.pid == (uint64_t)getpid() || !fake_cuda.contexts || flags != 1)
		return INVALID_VALUE;
	while (i < MAPPINGS && mapping[i].at)
		i++;
	snprintf(path, sizeof(path), "/proc/%d/fd/%d", (int)handle.pid, (int)handle.fd);
	fd = open(path, O_RDWR | O_CLOEXEC);
	if (fd < 0 || i == MAPPINGS)
		return INVALID_VALUE;
	at = mmap(NULL, handle.len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)handle.at);
	close(fd);
	if (at == MAP_FAILED)
		return OUT_OF_MEMORY;
	mapping[i].at = at;
	mapping[i].len = handle.len;
	fake_cuda.mapped++;
	fake_cuda.open++;
	*ptr_p = (uintptr_t)at;
	return SUCCESS;
}

EXPORT int cuIpcCloseMemHandle(unsigned long long ptr);
EXPORT int cuIpcCloseMemHandle(unsigned long long ptr)
{
	for (int i = 0; i < MAPPINGS; i++)
		if (mapping[i].at == (uint8_t *)(uintptr_t)ptr) {
			munmap(mapping[i].at, mapping[i].len);
			mapping[i].at = NULL;
			fake_cuda.open--;
			return SUCCESS;
		}
	return INVALID_VALUE;
}

/* ---------------------------------------------------------------- GPUs, contexts, host memory */

EXPORT int cuInit(unsigned int flags);
EXPORT int cuInit(unsigned int flags)
{
	return flags ? INVALID_VALUE : SUCCESS;
}

EXPORT int cuDeviceGetCount(int *count_p);
EXPORT int cuDeviceGetCount(int *count_p)
{
	*count_p = fake_cuda.hidden ? 0 : GPUS;
	return SUCCESS;
}

EXPORT int cuDeviceGet(int *device_p, int ordinal);
EXPORT int cuDeviceGet(int *device_p, int ordinal)
{
	*device_p = ordinal;
	return ordinal < GPUS ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuDeviceGetUuid_v2(char uuid[16], int device);
EXPORT int cuDeviceGetUuid_v2(char uuid[16], int device)
{
	memset(uuid, 'a' + device, 16);
	return SUCCESS;
}

EXPORT int cuDeviceCanAccessPeer(int *can_p, int from, int to);
EXPORT int cuDeviceCanAccessPeer(int *can_p, int from, int to)
{
	*can_p = fake_cuda.linked;
	return from == to ? INVALID_VALUE : SUCCESS;
}

EXPORT int cuDevicePrimaryCtxRetain(void **context_p, int device)
{
	fake_cuda.open++;
	*context_p = &arena;
	return is_gpu(device) ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuDevicePrimaryCtxRelease_v2(int device)
{
	fake_cuda.open--;
	return is_gpu(device) ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuMemFree_v2(unsigned long long ptr);
EXPORT int cuMemFree_v2(unsigned long long ptr)
{
	return find(ptr) < 0 || !fake_cuda.contexts ? INVALID_VALUE : SUCCESS;
}

EXPORT int cuMemHostAlloc(void **ptr_p, size_t len, unsigned int flags);
EXPORT int cuMemHostAlloc(void **ptr_p, size_t len, unsigned int flags)
{
	if (!fake_cuda.contexts || flags != 3 || ends_capture())
		return INVALID_VALUE;
	*ptr_p = of_driver(malloc(len));
	fake_cuda.open += *ptr_p != NULL;
	return *ptr_p ? SUCCESS : OUT_OF_MEMORY;
}

EXPORT int cuMemFreeHost(void *ptr);
EXPORT int cuMemFreeHost(void *ptr)
{
	free(ptr);
	fake_cuda.open--;
	return SUCCESS;
}

EXPORT int cuMemHostRegister_v2(void *ptr, size_t len, unsigned int flags);
EXPORT int cuMemHostRegister_v2(void *ptr, size_t len, unsigned int flags)
{
	if (!ptr || !len || !fake_cuda.contexts || flags != 3 || ends_capture())
		return INVALID_VALUE;
	fake_cuda.open++;
	return SUCCESS;
}

EXPORT int cuMemHostUnregister(void *ptr);
EXPORT int cuMemHostUnregister(void *ptr)
{
	fake_cuda.open--;
	return ptr ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuMemHostGetDevicePointer_v2(unsigned long long *ptr_p, void *host, unsigned int flags);
EXPORT int cuMemHostGetDevicePointer_v2(unsigned long long *ptr_p, void *host, unsigned int flags)
{
	*ptr_p = (uintptr_t)host;
	return flags ? INVALID_VALUE : SUCCESS;
}

/* ---------------------------------------------------------------- the kernel */

/* One for each that loads the kernel; the function is the module's. */
struct module {
	int running; /* kernels that have not ended */
};

EXPORT int cuModuleLoadData(void **module_p, const void *image);
EXPORT int cuModuleLoadData(void **module_p, const void *image)
{
	if (!strstr(image, ".visible .entry kvrail_copy(") || !fake_cuda.contexts)
		return INVALID_VALUE;
	fake_cuda.open++;
	*module_p = of_driver(calloc(1, sizeof(struct module)));
	return SUCCESS;
}

EXPORT int cuModuleGetFunction(void **function_p, void *of, const char *name);
EXPORT int cuModuleGetFunction(void **function_p, void *of, const char *name)
{
	*function_p = of;
	return !strcmp(name, "kvrail_copy") ? SUCCESS : INVALID_VALUE;
}

enum { CHUNK = 512, JOBS = 128 };

EXPORT int cuModuleUnload(struct module *module);
EXPORT int cuModuleUnload(struct module *module)
{
	fake_cuda.waited += module->running > 0; /* CUDA would wait for them */
	fake_cuda.open--;
	free(module);
	return SUCCESS;
}

struct piece {
	uint64_t to, from, len;
};
struct start {
	uint32_t piece, chunk;
};
struct stream {
	struct job {
		struct module *module; /* NULL: a copy engine's, of `copy`, or of rows */
		struct piece copy, base;
		size_t row, from_pitch, to_pitch;
		const struct piece *piece;
		const struct start *start;
		unsigned int warps, n, blocks, number;
		uint32_t *ended;
	} job[JOBS];
	int launched, done;
	bool blocked; /* the application's: what is on it does not end, or */
	int fails;    /* ends so */
};
struct event {
	struct stream *stream;
	int until, looks;
};

EXPORT int cuStreamCreate(void **stream_p, unsigned int flags);
EXPORT int cuStreamCreate(void **stream_p, unsigned int flags)
{
	*stream_p = of_driver(calloc(1, sizeof(struct stream)));
	fake_cuda.open++;
	return flags == 1 && fake_cuda.contexts ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuCtxGetStreamPriorityRange(int *least_p, int *greatest_p);
EXPORT int cuCtxGetStreamPriorityRange(int *least_p, int *greatest_p)
{
	*least_p = 0;
	*greatest_p = -5;
	return fake_cuda.contexts ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuStreamCreateWithPriority(void **stream_p, unsigned int flags, int priority);
EXPORT int cuStreamCreateWithPriority(void **stream_p, unsigned int flags, int priority)
{
	return priority == -5 ? cuStreamCreate(stream_p, flags) : INVALID_VALUE;
}

EXPORT int cuStreamDestroy_v2(void *stream);
EXPORT int cuStreamDestroy_v2(void *stream)
{
	free(stream);
	fake_cuda.open--;
	return SUCCESS;
}

EXPORT int cuEventCreate(void **event_p, unsigned int flags)
{
	*event_p = of_driver(calloc(1, sizeof(struct event)));
	fake_cuda.open++;
	return flags == 2 && fake_cuda.contexts ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuEventDestroy_v2(void *event)
{
	free(event);
	fake_cuda.open--;
	return SUCCESS;
}

/* Where the CPU finds what the GPU calls so. */
static uint8_t *seen(uint64_t at)
{
	if (fake_vmm_seen(at))
		return fake_vmm_seen(at);
	return find(at) >= 0 ? arena.bytes + (at - (uintptr_t)arena.addr)
			     : (uint8_t *)(uintptr_t)at;
}

/* Where warp w begins, and the one before it ends. */
static struct start start_of(const struct job *job, unsigned int w)
{
	uint64_t each = (job->base.len + CHUNK - 1) / CHUNK, all = job->n * each, at;

	if (!each)
		return job->start[w];
	at = w * (all / job->warps) + (w < all % job->warps ? w : all % job->warps);
	return (struct start){ (uint32_t)(at / each), (uint32_t)(at % each) };
}

static struct piece piece_of(const struct job *job, uint32_t i)
{
	const uint32_t *block = (const uint32_t *)job->piece + 2 * (size_t)i;

	return job->base.len ? (struct piece){ job->base.to + block[0] * 64ULL,
					       job->base.from + block[1] * 64ULL, job->base.len }
			     : job->piece[i];
}

static void run(const struct job *job)
{
	if (!job->module) {
		size_t row = job->row ? job->row : job->copy.len;

		for (size_t i = 0; row && i < job->copy.len / row; i++)
			memcpy(seen(job->copy.to) + i * job->to_pitch,
			       seen(job->copy.from) + i * job->from_pitch, row);
		return;
	}
	job->module->running--;
	for (unsigned int w = 0; w < job->warps; w++) {
		struct start begin = start_of(job, w), end = start_of(job, w + 1);

		for (uint32_t i = begin.piece; i <= end.piece && i < job->n; i++) {
			const struct piece piece = piece_of(job, i), *p = &piece;
			uint64_t from = i == begin.piece ? (uint64_t)begin.chunk * CHUNK : 0;
			uint64_t to = i == end.piece ? (uint64_t)end.chunk * CHUNK : p->len;

			to = to < p->len ? to : p->len;
			if (from < to)
				memcpy(seen(p->to) + from, seen(p->from) + from, to - from);
		}
	}
	for (unsigned int i = 0; i < job->blocks; i++)
		__atomic_store_n(&job->ended[i], job->number, __ATOMIC_RELEASE);
}

static void run_until(struct stream *stream, int until)
{
	while (stream->done < until)
		run(&stream->job[stream->done++ % JOBS]);
}

EXPORT int cuLaunchKernel(struct module *function, unsigned int gx, unsigned int gy,
			  unsigned int gz, unsigned int bx, unsigned int by, unsigned int bz,
			  unsigned int shared, struct stream *stream, void **params, void **extra);
EXPORT int cuLaunchKernel(struct module *function, unsigned int gx, unsigned int gy,
			  unsigned int gz, unsigned int bx, unsigned int by, unsigned int bz,
			  unsigned int shared, struct stream *stream, void **params, void **extra)
{
	struct job *job = &stream->job[stream->launched % JOBS];

	if (fake_cuda.launch_says)
		return fake_cuda.launch_says;
	if (gy * gz * by * bz != 1 || bx != 1024 || shared || extra || !fake_cuda.contexts ||
	    stream->launched - stream->done == JOBS)
		return INVALID_VALUE;
	memcpy(&job->piece, params[0], sizeof(job->piece));
	memcpy(&job->start, params[1], sizeof(job->start));
	memcpy(&job->warps, params[2], sizeof(job->warps));
	memcpy(&job->n, params[3], sizeof(job->n));
	memcpy(&job->base, params[4], sizeof(job->base));
	memcpy(&job->ended, params[5], sizeof(job->ended));
	memcpy(&job->number, params[6], sizeof(job->number));
	job->blocks = gx;
	if (job->warps > gx * bx / 32)
		return INVALID_VALUE;
	stream->launched++;
	job->module = function;
	function->running++;
	if ((int)gx > fake_cuda.blocks)
		fake_cuda.blocks = (int)gx;
	fake_cuda.launched++;
	if (!fake_cuda.hold && !fake_cuda.slow && !fake_cuda.kernel_says)
		run_until(stream, stream->launched);
	return SUCCESS;
}

EXPORT int cuMemcpyAsync(unsigned long long to, unsigned long long from, size_t len,
			 struct stream *stream);
EXPORT int cuMemcpyAsync(unsigned long long to, unsigned long long from, size_t len,
			 struct stream *stream)
{
	if (fake_cuda.launch_says)
		return fake_cuda.launch_says;
	if (!fake_cuda.contexts || stream->launched - stream->done == JOBS)
		return INVALID_VALUE;
	stream->job[stream->launched++ % JOBS] = (struct job){ .copy = { to, from, len } };
	fake_cuda.engines++;
	return SUCCESS;
}

struct rows {
	struct rows_end {
		size_t x, y;
		int type;
		void *host;
		unsigned long long device;
		void *array;
		size_t pitch;
	} from, to;
	size_t width, height;
};

/* From the host to a GPU, as the library uses it. */
EXPORT int cuMemcpy2DAsync_v2(const struct rows *rows, struct stream *stream);
EXPORT int cuMemcpy2DAsync_v2(const struct rows *rows, struct stream *stream)
{
	int rc;

	if (rows->from.type != 1 || rows->to.type != 2 || rows->from.x || rows->from.y ||
	    rows->to.x || rows->to.y || rows->from.pitch < rows->width ||
	    rows->to.pitch < rows->width)
		return INVALID_VALUE;
	rc = cuMemcpyAsync(rows->to.device, (uintptr_t)rows->from.host, rows->width * rows->height,
			   stream);
	if (rc)
		return rc;
	stream->job[(stream->launched - 1) % JOBS].row = rows->width;
	stream->job[(stream->launched - 1) % JOBS].from_pitch = rows->from.pitch;
	stream->job[(stream->launched - 1) % JOBS].to_pitch = rows->to.pitch;
	fake_cuda.rows++;
	return SUCCESS;
}

/* copies: CUmemcpyAttributes, which begin with the order of the source and end with flags. */
EXPORT int cuMemcpyBatchAsync(unsigned long long *to, unsigned long long *from, size_t *len,
			      size_t n, const int *copies, size_t *first, size_t kinds,
			      size_t *bad_p, struct stream *stream);
EXPORT int cuMemcpyBatchAsync(unsigned long long *to, unsigned long long *from, size_t *len,
			      size_t n, const int *copies, size_t *first, size_t kinds,
			      size_t *bad_p, struct stream *stream)
{
	int rc = SUCCESS;

	*bad_p = SIZE_MAX;
	if (copies[0] != 1 || copies[5] || kinds != 1 || *first)
		return INVALID_VALUE;
	for (size_t i = 0; i < n && !rc; i++)
		rc = cuMemcpyAsync(to[i], from[i], len[i], stream);
	fake_cuda.together += rc ? 0 : (int)n;
	return rc;
}

EXPORT int cuStreamGetCtx(const struct stream *stream, void **context_p);
EXPORT int cuStreamGetCtx(const struct stream *stream, void **context_p)
{
	*context_p = &arena;
	return stream ? SUCCESS : INVALID_VALUE;
}

EXPORT void *fake_cuda_stream(void)
{
	struct stream *stream = calloc(1, sizeof(*stream));

	stream->blocked = true;
	return stream;
}

EXPORT void fake_cuda_stream_ends(void *stream, int error)
{
	((struct stream *)stream)->fails = error;
	__atomic_store_n(&((struct stream *)stream)->blocked, false, __ATOMIC_RELEASE);
}

EXPORT int cuEventRecord(void *event, void *stream)
{
	const struct stream *on = stream;

	if (!fake_cuda.contexts)
		return INVALID_VALUE;
	*(struct event *)event = (struct event){ .stream = stream, .until = on->launched };
	return SUCCESS;
}

EXPORT int cuEventQuery(struct event *event);
EXPORT int cuEventQuery(struct event *event)
{
	struct stream *stream = event->stream;

	fake_cuda.asked++;
	if (fake_cuda.hold || __atomic_load_n(&stream->blocked, __ATOMIC_ACQUIRE) ||
	    event->looks++ < fake_cuda.slow)
		return NOT_READY;
	if (stream->fails || !fake_cuda.contexts)
		return stream->fails ? stream->fails : INVALID_VALUE;
	if (ends_capture())
		return INVALID_VALUE;
	if (fake_cuda.kernel_says) {
		/* Its context is of no use any more, and nothing runs in it. */
		for (; stream->done < stream->launched; stream->done++)
			if (stream->job[stream->done % JOBS].module)
				stream->job[stream->done % JOBS].module->running--;
		return fake_cuda.kernel_says;
	}
	run_until(stream, event->until);
	return SUCCESS;
}

/* ---------------------------------------------------------------- what an application calls */

EXPORT int cuCtxSetCurrent(void *context)
{
	current = context;
	fake_cuda.contexts += context ? 1 : -1;
	return !context || context == &arena ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuCtxGetCurrent(void **context_p);
EXPORT int cuCtxGetCurrent(void **context_p)
{
	*context_p = current;
	return SUCCESS;
}

EXPORT int cuMemGetInfo_v2(size_t *free_p, size_t *total_p);
EXPORT int cuMemGetInfo_v2(size_t *free_p, size_t *total_p)
{
	*total_p = ARENA;
	*free_p = ARENA - arena.used;
	return fake_cuda.contexts ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuMemAlloc_v2(unsigned long long *ptr_p, size_t len);
EXPORT int cuMemAlloc_v2(unsigned long long *ptr_p, size_t len)
{
	uint8_t *addr;

	if (!fake_cuda_alloc(len, &addr))
		return OUT_OF_MEMORY;
	*ptr_p = (uintptr_t)addr;
	return SUCCESS;
}

EXPORT int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t len);
EXPORT int cuMemcpyDtoH_v2(void *to, unsigned long long from, size_t len)
{
	memcpy(to, seen(from), len);
	return SUCCESS;
}

EXPORT int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t len);
EXPORT int cuMemcpyHtoD_v2(unsigned long long to, const void *from, size_t len)
{
	memcpy(seen(to), from, len);
	return SUCCESS;
}

/* On a stream of the application: nothing of it is late here. */
EXPORT int cuMemsetD32Async(unsigned long long ptr, unsigned int word, size_t words, void *stream);
EXPORT int cuMemsetD32Async(unsigned long long ptr, unsigned int word, size_t words, void *stream)
{
	uint32_t *at = (uint32_t *)(void *)seen(ptr);

	for (size_t i = 0; i < words; i++)
		at[i] = word;
	return stream ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuStreamQuery(struct stream *stream);
EXPORT int cuStreamQuery(struct stream *stream)
{
	run_until(stream, stream->launched);
	return SUCCESS;
}
