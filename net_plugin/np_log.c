/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_log.c -- everything that is said goes through NCCL's logger; errors become NCCL's codes here
 */
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>

#include "np.h"

/* NCCL gives the same function to every init; a harness may give none. */
static _Atomic(ncclDebugLogger_t) current;

void np_log_set(ncclDebugLogger_t logger)
{
	atomic_store(&current, logger);
}

void np_log_line(ncclDebugLogLevel level, unsigned long subsystem, const char *file, int line,
		 const char *fmt, ...)
{
	ncclDebugLogger_t logger = atomic_load(&current);
	char text[768];
	va_list ap;

	if (!logger)
		return;
	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	logger(level, subsystem, file, line, "NET/kvrail: %s", text);
}

/*
 * The transport's warnings (2) are not warnings here: they are about peers, and the plugin reports
 * those itself with NCCL's code.
 */
void np_log_sink(void *arg, int level, const char *line)
{
	np_log_line(level == 1	? NCCL_LOG_WARN
		    : level < 4 ? NCCL_LOG_INFO
				: NCCL_LOG_TRACE,
		    NCCL_NET, "transport", 0, "%s", line);
}

static ncclResult_t code_of(const struct kv_error *err)
{
	switch (err->scope) {
	case KV_SCOPE_CALL:
		return ncclInvalidUsage;
	case KV_SCOPE_REQUEST:
	case KV_SCOPE_PEER:
		return ncclRemoteError;
	default:
		return err->code == KV_ERR_INTERNAL ? ncclInternalError : ncclSystemError;
	}
}

ncclResult_t np_fail(const struct kv_error *err, const char *what)
{
	char line[640];

	kv_error_format(err, line, sizeof(line));
	np_warn("%s: %s", what, line);
	return code_of(err);
}

ncclResult_t np_misuse(const char *fmt, ...)
{
	char line[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	np_warn("%s", line);
	return ncclInternalError;
}
