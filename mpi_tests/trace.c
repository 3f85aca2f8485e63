/* SPDX-License-Identifier: Apache-2.0 */
/* trace.c -- read a request trace */
#include "trace.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "util.h"

static int field_integer(const json_t *object, const char *name, uint64_t min, uint64_t max,
			 uint64_t *value_p, char *why, size_t why_cap)
{
	const json_t *v = json_object_get(object, name);
	json_int_t n;

	if (!v) {
		snprintf(why, why_cap, "%s is missing", name);
		return -1;
	}
	if (!json_is_integer(v)) {
		snprintf(why, why_cap, "%s is not an integer", name);
		return -1;
	}
	n = json_integer_value(v);
	if (n < 0 || (uint64_t)n < min || (uint64_t)n > max) {
		snprintf(why, why_cap, "%s is %lld, outside %llu to %llu", name, (long long)n,
			 (unsigned long long)min, (unsigned long long)max);
		return -1;
	}
	*value_p = (uint64_t)n;
	return 0;
}

static int field_hashes(const json_t *object, struct trace_request *r, char *why, size_t why_cap)
{
	const json_t *list = json_object_get(object, "hash_ids");
	size_t want = (r->input_tokens + TRACE_HASH_TOKENS - 1) / TRACE_HASH_TOKENS;
	size_t i;

	if (!json_is_array(list)) {
		snprintf(why, why_cap, "hash_ids is %s", list ? "not a list" : "missing");
		return -1;
	}
	if (json_array_size(list) != want) {
		snprintf(why, why_cap, "hash_ids has %zu ids, but %u input tokens make %zu",
			 json_array_size(list), r->input_tokens, want);
		return -1;
	}
	r->hash = need_calloc(want, sizeof(*r->hash));
	r->hashes = (uint32_t)want;
	for (i = 0; i < want; i++) {
		const json_t *v = json_array_get(list, i);

		if (!json_is_integer(v) || json_integer_value(v) < 0) {
			snprintf(why, why_cap, "hash_ids[%zu] is not a number from 0 on", i);
			return -1;
		}
		r->hash[i] = (uint64_t)json_integer_value(v);
	}
	return 0;
}

int trace_parse_line(const char *line, size_t len, struct trace_request *r, char *why,
		     size_t why_cap)
{
	uint64_t input = 0, output = 0;
	json_error_t error;
	json_t *object;
	int rc = -1;

	memset(r, 0, sizeof(*r));
	object = json_loadb(line, len, JSON_REJECT_DUPLICATES, &error);
	if (!object) {
		snprintf(why, why_cap, "not JSON: %s", error.text);
		return -1;
	}
	if (!json_is_object(object)) {
		snprintf(why, why_cap, "not a JSON object");
		goto free_object;
	}
	if (field_integer(object, "timestamp", 0, INT64_MAX, &r->timestamp_ms, why, why_cap) ||
	    field_integer(object, "input_length", 1, TRACE_TOKENS_MAX, &input, why, why_cap) ||
	    field_integer(object, "output_length", 0, TRACE_TOKENS_MAX, &output, why, why_cap))
		goto free_object;
	r->input_tokens = (uint32_t)input;
	r->output_tokens = (uint32_t)output;
	rc = field_hashes(object, r, why, why_cap);

free_object:
	json_decref(object);
	if (rc)
		trace_request_free(r);
	return rc;
}

static int trace_append(struct trace *trace, uint32_t *room, const struct trace_request *r)
{
	struct trace_request *grown;

	if (trace->requests == *room) {
		*room = *room ? *room * 2 : 256;
		grown = realloc(trace->request, *room * sizeof(*grown));
		if (!grown)
			return -1;
		trace->request = grown;
	}
	trace->request[trace->requests++] = *r;
	return 0;
}

static int trace_read(struct trace *trace, FILE *in, const char *path, uint32_t skip, uint32_t max,
		      char *why, size_t why_cap)
{
	char *line = NULL, text[256];
	struct trace_request r;
	uint64_t last_ms = 0, number = 0;
	uint32_t room = 0;
	size_t cap = 0;
	ssize_t len;
	int rc = 0;

	while (rc == 0 && (max == 0 || trace->requests < max) &&
	       (len = getline(&line, &cap, in)) >= 0) {
		if (++number <= skip)
			continue;
		if (len > TRACE_LINE_MAX) {
			snprintf(text, sizeof(text), "longer than %d bytes", TRACE_LINE_MAX);
			rc = -1;
		} else {
			rc = trace_parse_line(line, (size_t)len, &r, text, sizeof(text));
		}
		if (rc == 0 && r.timestamp_ms < last_ms) {
			snprintf(text, sizeof(text), "timestamp goes back");
			trace_request_free(&r);
			rc = -1;
		}
		if (rc == 0 &&
		    (trace->requests == TRACE_REQUESTS_MAX || trace_append(trace, &room, &r))) {
			snprintf(text, sizeof(text), "too many requests");
			trace_request_free(&r);
			rc = -1;
		}
		if (rc)
			snprintf(why, why_cap, "%s:%llu: %s", path, (unsigned long long)number,
				 text);
		else
			last_ms = r.timestamp_ms;
	}
	free(line);
	return rc;
}

int trace_load(struct trace *trace, const char *path, uint32_t skip, uint32_t max, char *why,
	       size_t why_cap)
{
	FILE *in;
	int rc;

	memset(trace, 0, sizeof(*trace));
	in = fopen(path, "re");
	if (!in) {
		snprintf(why, why_cap, "%s: %s", path, strerror(errno));
		return -1;
	}
	rc = trace_read(trace, in, path, skip, max, why, why_cap);
	if (rc == 0 && ferror(in)) {
		snprintf(why, why_cap, "%s: read error", path);
		rc = -1;
	}
	fclose(in);
	if (rc == 0 && trace->requests == 0) {
		snprintf(why, why_cap, "%s: no request after the first %u lines", path, skip);
		rc = -1;
	}
	return rc;
}

void trace_request_free(struct trace_request *r)
{
	free(r->hash);
	r->hash = NULL;
	r->hashes = 0;
}

void trace_free(struct trace *trace)
{
	uint32_t i;

	for (i = 0; i < trace->requests; i++)
		trace_request_free(&trace->request[i]);
	free(trace->request);
	trace->request = NULL;
	trace->requests = 0;
}
