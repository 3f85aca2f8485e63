/* SPDX-License-Identifier: Apache-2.0 */
/* cuda_load.c -- libcuda.so.1, found where it is loaded; the only file that names its symbols */
#include "cuda_load.h"

#include <dlfcn.h>
#include <unistd.h>

#include "base/error.h"
#include "base/fault.h"
#include "base/library.h"

/* As cuda.h of CUDA 11.7 and later numbers them. */
enum {
	POINTER_CONTEXT = 1,
	POINTER_MEMORY_TYPE = 2,
	POINTER_SYNC_MEMOPS = 6,
	POINTER_DEVICE_ORDINAL = 9,
	POINTER_RANGE_START = 11,
	POINTER_RANGE_SIZE = 12,
	MEMORY_TYPE_DEVICE = 2,
	DEVICE_RDMA_WRITES_ORDERING = 118,
	ORDERED_FOR_OWNER = 100,
	RANGE_HANDLE_DMA_BUF = 1,
};

static struct cuda {
	int (*pointer_get)(void *value, int attribute, unsigned long long ptr);
	int (*pointer_set)(const void *value, int attribute, unsigned long long ptr);
	int (*device_get)(int *value, int attribute, int device);
	int (*push)(void *context);
	int (*pop)(void **context_p);
	int (*error_name)(int error, const char **name_p);
	int (*get_handle)(void *handle, unsigned long long ptr, size_t len, int type,
			  unsigned long long flags); /* NULL before CUDA 11.7 */
} cuda;

static const struct kv_symbol symbols[] = {
	{ "cuPointerGetAttribute", (void **)&cuda.pointer_get, false },
	{ "cuPointerSetAttribute", (void **)&cuda.pointer_set, false },
	{ "cuDeviceGetAttribute", (void **)&cuda.device_get, false },
	{ "cuCtxPushCurrent_v2", (void **)&cuda.push, false },
	{ "cuCtxPopCurrent_v2", (void **)&cuda.pop, false },
	{ "cuGetErrorName", (void **)&cuda.error_name, false },
	{ "cuMemGetHandleForAddressRange", (void **)&cuda.get_handle, true },
	{ NULL, NULL, false },
};

static int cuda_load(struct kv_error *err)
{
	static struct kv_library library = { "libcuda.so.1", RTLD_NOW | RTLD_NOLOAD, symbols,
					     false };
	const char *lacks;

	if (kv_library_load(&library, kv_fault(GPU_DLOPEN), &lacks))
		return 0;
	if (lacks)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "register", "%s has no %s", library.file,
			       lacks);
	return kv_fail(err, KV_ERR_UNSUPPORTED, "register", "CUDA does not run in this process");
}

static const char *name_of(int error)
{
	const char *name = NULL;

	return !cuda.error_name(error, &name) && name ? name : "an unknown error";
}

static int not_known(const void *addr, int error, struct kv_error *err)
{
	return kv_fail(err, KV_ERR_ARG, "register", "CUDA does not know the address %p: %s", addr,
		       name_of(error));
}

/* [addr, addr + len) is one GPU's, and all of it in one allocation. */
static int check_range(const void *addr, size_t len, struct kv_error *err)
{
	unsigned long long at = (unsigned long long)(uintptr_t)addr, first;
	unsigned int type;
	size_t size;
	int rc = cuda.pointer_get(&type, POINTER_MEMORY_TYPE, at);

	if (!rc && type != MEMORY_TYPE_DEVICE)
		return kv_fail(err, KV_ERR_ARG, "register", "%p is memory of the host to CUDA",
			       addr);
	if (!rc)
		rc = cuda.pointer_get(&first, POINTER_RANGE_START, at);
	if (!rc)
		rc = cuda.pointer_get(&size, POINTER_RANGE_SIZE, at);
	if (rc)
		return not_known(addr, rc, err);
	if (at - first > size || len > size - (at - first))
		return kv_fail(err, KV_ERR_ARG, "register",
			       "%zu bytes at %p leave their allocation of %zu bytes at 0x%llx", len,
			       addr, size, first);
	return 0;
}

/* Without the order a kernel might read what was there before, although the notify has come. */
static int check_order(const void *addr, struct kv_error *err)
{
	int device = -1, order = 0;
	int rc = cuda.pointer_get(&device, POINTER_DEVICE_ORDINAL,
				  (unsigned long long)(uintptr_t)addr);

	if (!rc)
		rc = cuda.device_get(&order, DEVICE_RDMA_WRITES_ORDERING, device);
	if (rc)
		return not_known(addr, rc, err);
	if (order >= ORDERED_FOR_OWNER)
		return 0;
	kv_fail(err, KV_ERR_DEVICE, "register", "GPU %d does not see a NIC's writes in their order",
		device);
	kv_error_hint(err, "compute capability 9.0 and later do; keep the cache in host memory");
	return KV_ERR_DEVICE;
}

/* In the allocation's context, which the calling thread need not have. */
static int export(const void *addr, uint64_t first, size_t len, int *fd_p)
{
	unsigned long long at = (unsigned long long)(uintptr_t)addr;
	void *context = NULL;
	bool pushed =
		!cuda.pointer_get(&context, POINTER_CONTEXT, at) && context && !cuda.push(context);
	unsigned int on = 1;
	int rc;

	/*
	 * A copy that CUDA calls synchronous has then ended before a NIC reads. Memory without the
	 * attribute has no such copies.
	 */
	cuda.pointer_set(&on, POINTER_SYNC_MEMOPS, at);
	rc = cuda.get_handle(fd_p, first, len, RANGE_HANDLE_DMA_BUF, 0);
	if (pushed)
		cuda.pop(&context);
	return rc;
}

int gpu_dmabuf(const void *addr, size_t len, bool written, int *fd_p, uint64_t *offset_p,
	       struct kv_error *err)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t first = (uintptr_t)addr & ~(page - 1);
	uint64_t end = ((uintptr_t)addr + len + page - 1) & ~(page - 1);
	int rc, ret = cuda_load(err);

	if (!ret)
		ret = check_range(addr, len, err);
	if (!ret && written)
		ret = check_order(addr, err);
	if (ret)
		return ret;
	if (!cuda.get_handle)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "register",
			       "CUDA before 11.7 exports no DMA-BUF");
	rc = export(addr, first, (size_t)(end - first), fd_p);
	if (rc)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "register",
			       "CUDA exports no DMA-BUF of %zu bytes at %p: %s", len, addr,
			       name_of(rc));
	*offset_p = (uintptr_t)addr - first;
	return 0;
}
