/* SPDX-License-Identifier: Apache-2.0 */
/* gpu.c -- memory as a GPU's is to the library */
#include "gpu.h"
#include "lib/test.h"

#include <sys/mman.h>
#include <unistd.h>

void gpu_make(struct gpu *gpu, size_t len)
{
	gpu->len = len;
	gpu->fd = memfd_create("gpu", MFD_CLOEXEC);
	assert_true(gpu->fd >= 0);
	assert_int_equal(ftruncate(gpu->fd, (off_t)len), 0);
	gpu->bytes = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, gpu->fd, 0);
	gpu->addr = mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	assert_true(gpu->bytes != MAP_FAILED && gpu->addr != MAP_FAILED);
}

void gpu_free(struct gpu *gpu)
{
	munmap(gpu->bytes, gpu->len);
	munmap(gpu->addr, gpu->len);
	close(gpu->fd);
}
