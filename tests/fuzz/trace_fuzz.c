/* SPDX-License-Identifier: Apache-2.0 */
/* trace_fuzz.c -- one line of a request trace: numbers within their limits, or a reason in words */
#include <stdio.h>
#include <string.h>

#include "fuzz.h"
#include "trace.h"
#include "util.h"

size_t fuzz_seed(unsigned int which, uint8_t *buf, size_t cap)
{
	unsigned int hashes = which % 5 + 1;
	size_t len = (size_t)snprintf((char *)buf, cap,
				      "{\"timestamp\": %u, \"input_length\": %u, "
				      "\"output_length\": %u, \"hash_ids\": [",
				      which * 3000, hashes * TRACE_HASH_TOKENS - which, which);

	for (unsigned int i = 0; i < hashes; i++)
		len += (size_t)snprintf((char *)buf + len, cap - len, "%s%u", i ? ", " : "", i * 7);
	return len + (size_t)snprintf((char *)buf + len, cap - len, "]}");
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct trace_request r;
	char why[256] = "";
	uint64_t number;

	if (trace_parse_line((const char *)data, size, &r, why, sizeof(why))) {
		FUZZ_CHECK(why[0] && !r.hash);
		return 0;
	}
	FUZZ_CHECK(r.input_tokens && r.input_tokens <= TRACE_TOKENS_MAX &&
		   r.output_tokens <= TRACE_TOKENS_MAX);
	FUZZ_CHECK(r.hashes == (r.input_tokens + TRACE_HASH_TOKENS - 1) / TRACE_HASH_TOKENS);
	snprintf(why, sizeof(why), "%uK", r.input_tokens);
	FUZZ_CHECK(!size_parse(why, &number) && number == (uint64_t)r.input_tokens << 10);
	trace_request_free(&r);
	return 0;
}
