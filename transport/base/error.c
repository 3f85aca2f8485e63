/* SPDX-License-Identifier: Apache-2.0 */
/*
 * error.c -- names, sentences and scopes of the error codes; filling and printing a struct kv_error
 */
#include "error.h"

#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>

#include "text.h"

struct code_row {
	int code;
	int scope;
	const char *name;
	const char *text;
};

static const struct code_row code_rows[] = { { KV_OK, KV_SCOPE_NONE, "OK", "success" },
#define ROW(name, value, scope, text) { -(value), KV_SCOPE_##scope, #name, text },
					     KV_ERROR_LIST(ROW)
#undef ROW
};

static const struct code_row *find_code(int code)
{
	static const struct code_row unknown = { 0, KV_SCOPE_DEVICE, "UNKNOWN",
						 "unknown error code" };

	for (size_t i = 0; i < sizeof(code_rows) / sizeof(code_rows[0]); i++)
		if (code_rows[i].code == code)
			return &code_rows[i];
	return &unknown;
}

const char *kv_error_name(int code)
{
	return find_code(code)->name;
}

const char *kv_error_text(int code)
{
	return find_code(code)->text;
}

bool kv_error_is_known(int code)
{
	return find_code(code)->code == code;
}

int kv_error_scope(int code)
{
	return find_code(code)->scope;
}

void kv_error_clear(struct kv_error *err)
{
	if (!err)
		return;
	memset(err, 0, sizeof(*err));
	err->size = sizeof(*err);
	err->block_index = -1;
	err->block_id = -1;
}

static void error_begin(struct kv_error *err, int code, const char *op, const char *fmt, va_list ap)
{
	kv_error_clear(err);
	err->code = code;
	err->scope = kv_error_scope(code);
	snprintf(err->op, sizeof(err->op), "%s", op);
	vsnprintf(err->message, sizeof(err->message), fmt, ap);
}

/* glibc 2.32 has better functions for this, but the library is to run on 2.28. */
const char *kv_errno_text(int sys_errno)
{
	return strerror_l(sys_errno, newlocale(LC_ALL_MASK, "C", NULL)); /* "C" is static */
}

int kv_fail(struct kv_error *err, int code, const char *op, const char *fmt, ...)
{
	va_list ap;

	if (err) {
		va_start(ap, fmt);
		error_begin(err, code, op, fmt, ap);
		va_end(ap);
	}
	return code;
}

static void hint_limit(struct kv_error *err)
{
	struct rlimit limit = { 0 };

	getrlimit(RLIMIT_NOFILE, &limit);
	kv_error_hint(err, "raise the limit on open files (ulimit -n): it is %llu, and may be %llu",
		      (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
}

int kv_fail_errno(struct kv_error *err, int code, int sys_errno, const char *op, const char *fmt,
		  ...)
{
	va_list ap;
	size_t len;

	if (sys_errno == EMFILE || sys_errno == ENFILE)
		code = KV_ERR_NOFD;
	else if (sys_errno == ENOMEM)
		code = KV_ERR_NOMEM;
	if (err) {
		va_start(ap, fmt);
		error_begin(err, code, op, fmt, ap);
		va_end(ap);
		err->sys_errno = sys_errno;
		len = strlen(err->message);
		snprintf(err->message + len, sizeof(err->message) - len, ": %s",
			 kv_errno_text(sys_errno));
		if (code == KV_ERR_NOFD)
			hint_limit(err);
		else if (sys_errno == EFBIG)
			kv_error_hint(err, "raise the limit on the size of files (ulimit -f): it "
					   "counts for shared memory, too");
	}
	errno = sys_errno;
	return code;
}

void kv_error_hint(struct kv_error *err, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return;
	va_start(ap, fmt);
	vsnprintf(err->hint, sizeof(err->hint), fmt, ap);
	va_end(ap);
}

int kv_error_copy(struct kv_error *dst, const struct kv_error *src)
{
	if (!src || !src->code)
		return kv_fail(dst, KV_ERR_INTERNAL, "error",
			       "a failure was passed on without a cause");
	if (dst && dst != src)
		*dst = *src;
	return src->code;
}

int kv_error_format(const struct kv_error *err, char *buf, size_t cap)
{
	struct kv_text text = { buf, cap, 0 };

	kv_text_add(&text, "%s: KV_ERR_%s: %s", err->op[0] ? err->op : "kvrail",
		    kv_error_name(err->code),
		    err->message[0] ? err->message : kv_error_text(err->code));
	if (err->peer[0])
		kv_text_add(&text, "; peer %s", err->peer);
	if (err->device[0])
		kv_text_add(&text, "; device %s", err->device);
	if (err->qp_num)
		kv_text_add(&text, "; qp 0x%x", err->qp_num);
	if (err->wc_status)
		kv_text_add(&text, "; completion status %d vendor 0x%x", err->wc_status,
			    err->vendor_err);
	if (err->sys_errno)
		kv_text_add(&text, "; errno %d", err->sys_errno);
	if (err->block_index >= 0)
		kv_text_add(&text, "; block %lld at index %lld", (long long)err->block_id,
			    (long long)err->block_index);
	if (err->in_doubt)
		kv_text_add(&text, "; destination blocks are undefined");
	if (err->hint[0])
		kv_text_add(&text, " (%s)", err->hint);
	return (int)text.len;
}
