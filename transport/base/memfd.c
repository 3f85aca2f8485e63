/* SPDX-License-Identifier: Apache-2.0 */
/* memfd.c -- the size and the mapping of a memfd */
#include "memfd.h"

#include <errno.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

int kv_memfd_size(int fd, size_t len)
{
	struct rlimit limit;

	if (!getrlimit(RLIMIT_FSIZE, &limit) && limit.rlim_cur < len) {
		errno = EFBIG;
		return -1;
	}
	return ftruncate(fd, (off_t)len);
}

void *kv_memfd_map(int fd, size_t len)
{
	size_t slack = len < KV_HUGE_PAGE ? 0 : KV_HUGE_PAGE, before;
	uint8_t *at;
	void *mapped;

	if (!slack || len > SIZE_MAX - slack)
		return mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	at = mmap(NULL, len + slack, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (at == MAP_FAILED)
		return at;
	before = -(uintptr_t)at & (KV_HUGE_PAGE - 1);
	mapped = mmap(at + before, len, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0);
	if (mapped == MAP_FAILED) {
		int error = errno;

		munmap(at, len + slack);
		errno = error;
		return mapped;
	}
	if (before)
		munmap(at, before);
	munmap(at + before + len, slack - before);
	return mapped;
}
