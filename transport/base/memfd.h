/* SPDX-License-Identifier: Apache-2.0 */
/* memfd.h -- the size and the mapping of a memfd */
#ifndef BASE_MEMFD_H
#define BASE_MEMFD_H

#include <stddef.h>

/*
 * 0, or -1 and errno. Beyond RLIMIT_FSIZE, which counts for memfds, too, it is EFBIG: ftruncate
 * would send SIGXFSZ, which ends the application.
 */
int kv_memfd_size(int fd, size_t len);

enum { KV_HUGE_PAGE = 2 << 20 };
/* All of it, at a multiple of KV_HUGE_PAGE if it is as long: else the kernel maps no huge page. */
void *kv_memfd_map(int fd, size_t len);

#endif
