/* SPDX-License-Identifier: Apache-2.0 */
/* bounds.h -- each call returns within its deadline and the slack of docs/deadlines.md */
#ifndef SIM_BOUNDS_H
#define SIM_BOUNDS_H

#include <stdint.h>

void bounds_read(const char *path); /* the table of docs/deadlines.md */
struct bound {
	int64_t began_ns, stalled_ns;
};
struct bound bound_begin(void);
void bound_end(const struct bound *bound, const char *function, int64_t timeout_ms);

#define TIMED(function, timeout_ms, ...)                                             \
	({                                                                           \
		struct bound timed_bound = bound_begin();                            \
		__typeof__(function(__VA_ARGS__)) timed_ret = function(__VA_ARGS__); \
		bound_end(&timed_bound, #function, (timeout_ms));                    \
		timed_ret;                                                           \
	})

#endif
