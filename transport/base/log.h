/* SPDX-License-Identifier: Apache-2.0 */
/*
 * log.h -- one line to the application's callback, or to the files that the options name
 *
 * Nothing is printed unless asked for: a callback, KVCACHE_DEBUG=1 (stderr), KVCACHE_DEBUG_FILE,
 * KVCACHE_ERROR_FILE (errors and warnings). Not for the data path. Style: lower case, the exact
 * cause, once. errno is preserved. A line that a file or a pipe does not take at once is dropped:
 * a full disk and a pipe that nobody reads stop nobody.
 */
#ifndef BASE_LOG_H
#define BASE_LOG_H

#include <stdbool.h>
#include <stdint.h>

struct kv_log;
struct kv_option_set;

/*
 * Levels are enum kv_log_level: 1 error, 2 warn, 3 info, 4 debug. Never fails: a file that cannot
 * be opened is reported through the others.
 */
struct kv_log *kv_log_open(const struct kv_option_set *options,
			   void (*sink)(void *arg, int level, const char *line), void *arg);
void kv_log_close(struct kv_log *log);
/* log may be NULL */
void kv_log_line(struct kv_log *log, int level, const char *fmt, ...)
	__attribute__((format(printf, 3, 4)));

/*
 * A state that somebody asked for, as warnings: its lines, long ones cut between two fields. The
 * callback is left out while another thread is in it, as that thread may never come back. `text`
 * is as it was afterwards.
 */
void kv_log_state(struct kv_log *log, char *text);

/*
 * This thread is in a callback. A line is written wherever something happens, so under whatever
 * locks: a call that needs one of them is refused, not left to wait for itself.
 */
bool kv_log_inside(void);

/* Threads that are in the callback now, and when it was called last (CLOCK_MONOTONIC). */
unsigned int kv_log_callers(const struct kv_log *log, int64_t *since_ns);

#define kv_log_error(log, ...) kv_log_line(log, 1, __VA_ARGS__)
#define kv_log_warn(log, ...) kv_log_line(log, 2, __VA_ARGS__)
#define kv_log_info(log, ...) kv_log_line(log, 3, __VA_ARGS__)

#endif
