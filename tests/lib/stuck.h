/* SPDX-License-Identifier: Apache-2.0 */
/* stuck.h -- memory whose page faults nobody answers, by userfaultfd; for tests of what waits */
#ifndef STUCK_H
#define STUCK_H

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* From now on a fault in these whole pages waits; -1 and errno where that cannot be. */
static inline int stuck_begin(void *addr, size_t len)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .range = { (uintptr_t)addr, len },
					 .mode = UFFDIO_REGISTER_MODE_MISSING };
	int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);

	if (fd < 0)
		return -1;
	if (ioctl(fd, UFFDIO_API, &api) || madvise(addr, len, MADV_DONTNEED) ||
	    ioctl(fd, UFFDIO_REGISTER, &range)) {
		close(fd);
		return -1;
	}
	return fd;
}

/* The same for the whole pages inside of [mem, mem + len). */
static inline int stuck_begin_inside(void *mem, size_t len)
{
	uintptr_t at = ((uintptr_t)mem + 4095) & ~(uintptr_t)4095;

	return stuck_begin((void *)at, (len - (at - (uintptr_t)mem)) & ~(size_t)4095);
}

/* Zeroes for the accesses that wait and for those to come. */
static inline void stuck_end(int fd, void *addr, size_t len)
{
	struct uffdio_range range = { (uintptr_t)addr, len };

	ioctl(fd, UFFDIO_UNREGISTER, &range);
	close(fd);
}

static inline bool stuck_can(void)
{
	void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	int fd = page == MAP_FAILED ? -1 : stuck_begin(page, 4096);

	if (fd < 0)
		printf("skipped: no userfaultfd here: %s\n", strerror(errno));
	else
		close(fd);
	munmap(page, 4096);
	return fd >= 0;
}

#endif
