/* SPDX-License-Identifier: Apache-2.0 */
/*
 * error.h -- filling a struct kv_error
 *
 * The function that first decides that something failed calls kv_fail or kv_fail_errno; callers
 * above return the code untouched. All accept err == NULL.
 */
#ifndef BASE_ERROR_H
#define BASE_ERROR_H

#include <stdarg.h>
#include <stdbool.h>

#include <kvrail/kv_error.h>

/*
 * Fills *err (code, scope, op, message; block_index and block_id -1, the rest 0) and returns code.
 * `fmt` is one sentence, no full stop.
 */
int kv_fail(struct kv_error *err, int code, const char *op, const char *fmt, ...)
	__attribute__((format(printf, 4, 5)));

/*
 * The same with sys_errno and ": <strerror>" at the end. EMFILE and ENFILE become NOFD, ENOMEM
 * NOMEM whatever `code` says. Keeps errno.
 */
int kv_fail_errno(struct kv_error *err, int code, int sys_errno, const char *op, const char *fmt,
		  ...) __attribute__((format(printf, 5, 6)));

/*
 * The sentence for an errno value, in English whatever the locale; this thread's until the next
 * call.
 */
const char *kv_errno_text(int sys_errno);

void kv_error_hint(struct kv_error *err, const char *fmt, ...)
	__attribute__((format(printf, 2, 3)));
void kv_error_clear(struct kv_error *err);
bool kv_error_is_known(int code); /* a later version may have others */

/*
 * Copies all of src (may be NULL: then a KV_ERR_INTERNAL) to dst (may be NULL); returns the code.
 */
int kv_error_copy(struct kv_error *dst, const struct kv_error *src);

#endif
