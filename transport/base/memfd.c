/* SPDX-License-Identifier: Apache-2.0 */
/* memfd.c -- the size of a memfd */
#include "memfd.h"

#include <errno.h>
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
