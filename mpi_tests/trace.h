/* SPDX-License-Identifier: Apache-2.0 */
/*
 * trace.h -- a request trace: one JSON object a line
 *
 *   {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [...]}
 *
 * One hash id for every 512 input tokens; equal ids mean equal tokens up to and including that
 * part.
 */
#ifndef MPI_TESTS_TRACE_H
#define MPI_TESTS_TRACE_H

#include <stddef.h>
#include <stdint.h>

enum {
	TRACE_HASH_TOKENS = 512,
	TRACE_LINE_MAX = 1 << 20,      /* bytes of one line */
	TRACE_TOKENS_MAX = 16 << 20,   /* tokens of one request */
	TRACE_REQUESTS_MAX = 10000000, /* requests of one trace */
};

struct trace_request {
	uint64_t timestamp_ms;
	uint32_t input_tokens;
	uint32_t output_tokens;
	uint32_t hashes;
	uint64_t *hash; /* `hashes` of them */
};

struct trace {
	uint32_t requests;
	struct trace_request *request;
};

/*
 * Reads up to `max` requests (0 = all) after leaving out the first `skip`. Returns 0, or -1 with a
 * sentence in `why` that names the file, the line and the field. trace_free may be called either
 * way.
 */
int trace_load(struct trace *trace, const char *path, uint32_t skip, uint32_t max, char *why,
	       size_t why_cap);

/* One line into `r`; -1 with the field and what is wrong with it in `why`. */
int trace_parse_line(const char *line, size_t len, struct trace_request *r, char *why,
		     size_t why_cap);

void trace_request_free(struct trace_request *r);
void trace_free(struct trace *trace);

#endif
