/* SPDX-License-Identifier: Apache-2.0 */
/* memfd.h -- the size of a memfd */
#ifndef BASE_MEMFD_H
#define BASE_MEMFD_H

#include <stddef.h>

/*
 * 0, or -1 and errno. Beyond RLIMIT_FSIZE, which counts for memfds, too, it is EFBIG: ftruncate
 * would send SIGXFSZ, which ends the application.
 */
int kv_memfd_size(int fd, size_t len);

#endif
