/* SPDX-License-Identifier: Apache-2.0 */
/* dmabuf.c -- a GPU's memory as a DMA-BUF, for NICs that reach it */
#include <stdbool.h>
#include <stdint.h>
#include <unistd.h>

#include "base/error.h"
#include "gpu.h"

static int not_known(const void *addr, int error, struct kv_error *err)
{
	return kv_fail(err, KV_ERR_ARG, "register", "CUDA does not know the address %p: %s", addr,
		       cuda_error(error));
}

/* [addr, addr + len) is one GPU's, and all of it in one allocation. */
int gpu_check_range(const struct cuda_driver *cuda, const void *addr, size_t len,
		    struct kv_error *err)
{
	cuda_ptr at = (cuda_ptr)(uintptr_t)addr, first;
	unsigned int type;
	size_t size;
	int rc = cuda->pointer_get(&type, POINTER_MEMORY_TYPE, at);

	if (!rc && type != MEMORY_TYPE_DEVICE)
		return kv_fail(err, KV_ERR_ARG, "register", "%p is memory of the host to CUDA",
			       addr);
	if (!rc)
		rc = cuda->pointer_get(&first, POINTER_RANGE_START, at);
	if (!rc)
		rc = cuda->pointer_get(&size, POINTER_RANGE_SIZE, at);
	if (rc)
		return not_known(addr, rc, err);
	if (at - first > size || len > size - (at - first))
		return kv_fail(err, KV_ERR_ARG, "register",
			       "%zu bytes at %p leave their allocation of %zu bytes at 0x%llx", len,
			       addr, size, first);
	return 0;
}

int gpu_needs_flush(const void *addr, bool always)
{
	const struct cuda_driver *cuda = cuda_driver("register", NULL);
	int device = -1, order = 0;

	if (!cuda || cuda->pointer_get(&device, POINTER_DEVICE_ORDINAL, (cuda_ptr)(uintptr_t)addr))
		return -1; /* and nothing else is known of it either */
	if (cuda->device_attribute(&order, DEVICE_RDMA_WRITES_ORDERING, device))
		order = 0;
	return always || order < ORDERED_FOR_OWNER ? device : -1;
}

/* In the allocation's context, which the calling thread need not have. */
static int export(const struct cuda_driver *cuda, const void *addr, uint64_t first, size_t len,
		  int *fd_p)
{
	cuda_ptr at = (cuda_ptr)(uintptr_t)addr;
	void *context = NULL;
	bool pushed = !cuda->pointer_get(&context, POINTER_CONTEXT, at) && context &&
		      !cuda->push(context);
	unsigned int on = 1;
	int rc;

	/*
	 * A copy that CUDA calls synchronous has then ended before a NIC reads. Memory without the
	 * attribute has no such copies.
	 */
	cuda->pointer_set(&on, POINTER_SYNC_MEMOPS, at);
	rc = cuda->get_handle(fd_p, first, len, RANGE_HANDLE_DMA_BUF, 0);
	if (pushed)
		cuda->pop(&context);
	return rc;
}

int gpu_dmabuf(const void *addr, size_t len, int *fd_p, uint64_t *offset_p, struct kv_error *err)
{
	uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
	uint64_t first = (uintptr_t)addr & ~(page - 1);
	uint64_t end = ((uintptr_t)addr + len + page - 1) & ~(page - 1);
	const struct cuda_driver *cuda = cuda_driver("register", err);
	int rc, ret;

	if (!cuda)
		return KV_ERR_UNSUPPORTED;
	ret = gpu_check_range(cuda, addr, len, err);
	if (ret)
		return ret;
	if (!cuda->get_handle)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "register",
			       "CUDA before 11.7 exports no DMA-BUF");
	rc = export(cuda, addr, first, (size_t)(end - first), fd_p);
	if (rc)
		return kv_fail(err, KV_ERR_UNSUPPORTED, "register",
			       "CUDA exports no DMA-BUF of %zu bytes at %p: %s", len, addr,
			       cuda_error(rc));
	*offset_p = (uintptr_t)addr - first;
	return 0;
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
	while (b) {
		uint64_t rest = a % b;

		a = b;
		b = rest;
	}
	return a;
}

bool gpu_grid(const void *addr, size_t len, uint64_t *first_p, uint64_t *bytes_p)
{
	const struct cuda_driver *cuda = cuda_driver("register", NULL);
	cuda_ptr begin = (uintptr_t)addr, at = begin, base = 0, first = 0;
	uint64_t bytes = 0;

	while (cuda && at - begin < len) {
		size_t size = 0;

		if (cuda->pointer_get(&base, POINTER_MAPPING_BASE, at) ||
		    cuda->pointer_get(&size, POINTER_MAPPING_SIZE, at) || base > at ||
		    size <= at - base)
			return false;
		if (at == begin)
			first = base;
		else
			bytes = common_divisor(bytes, base - first);
		at = base + size;
	}
	*first_p = first;
	*bytes_p = bytes;
	return bytes;
}
