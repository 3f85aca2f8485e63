/* SPDX-License-Identifier: Apache-2.0 */
/* check.h -- assertions of a process that has no test to fail but its exit status */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <unistd.h>

#define CHECK(condition)                                                                \
	do {                                                                            \
		if (!(condition)) {                                                     \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition); \
			_exit(1);                                                       \
		}                                                                       \
	} while (0)

/* The same for a call that returns a verdict other than 0 and leaves its reason in *s. */
#define PASSES(s, call)                                                                     \
	do {                                                                                \
		if (call) {                                                                 \
			fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, (s)->reason);    \
			_exit(1);                                                           \
		}                                                                           \
	} while (0)

#endif
