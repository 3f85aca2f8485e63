/* SPDX-License-Identifier: Apache-2.0 */
/* fake_cuda.c -- a stand-in for libcuda.so.1 */
#include "fake_cuda.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define EXPORT __attribute__((visibility("default")))

enum { ARENA = 64 << 20, ALLOCATIONS = 256, PAGE = 4096 };
enum { SUCCESS = 0, INVALID_VALUE = 1, NOT_SUPPORTED = 801 };

EXPORT struct fake_cuda fake_cuda = { .ordering = 200 };

static struct {
	uint8_t *addr, *bytes;
	int fd;
	size_t used;
	struct {
		size_t at, len;
	} allocation[ALLOCATIONS];
	int n;
} arena;

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
		return INVALID_VALUE;
	switch (attribute) {
	case 1: /* context */
		*(void **)value = &arena;
		return SUCCESS;
	case 2: /* memory type: 1 host, 2 device */
		*(unsigned int *)value = fake_cuda.managed ? 1 : 2;
		return SUCCESS;
	case 9: /* device ordinal */
		*(int *)value = 3;
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
	return attribute == 118 && device == 3 ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuCtxPushCurrent_v2(void *context);
EXPORT int cuCtxPushCurrent_v2(void *context)
{
	fake_cuda.contexts++;
	return context == &arena ? SUCCESS : INVALID_VALUE;
}

EXPORT int cuCtxPopCurrent_v2(void **context_p);
EXPORT int cuCtxPopCurrent_v2(void **context_p)
{
	fake_cuda.contexts--;
	*context_p = &arena;
	return SUCCESS;
}

EXPORT int cuGetErrorName(int error, const char **name_p);
EXPORT int cuGetErrorName(int error, const char **name_p)
{
	*name_p = error == INVALID_VALUE   ? "CUDA_ERROR_INVALID_VALUE"
		  : error == NOT_SUPPORTED ? "CUDA_ERROR_NOT_SUPPORTED"
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
