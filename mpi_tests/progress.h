/* SPDX-License-Identifier: Apache-2.0 */
/* progress.h -- a bar on stderr; the caller asks for it only where stderr is a terminal */
#ifndef MPI_TESTS_PROGRESS_H
#define MPI_TESTS_PROGRESS_H

#include <stdint.h>

/* `last` wipes the line. */
void progress_show(const char *what, uint64_t done, uint64_t total, int last);

#endif
