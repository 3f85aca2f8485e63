/* SPDX-License-Identifier: Apache-2.0 */
/* replay_trace_test.c -- the trace parser and the percentiles of kv_pd_replay */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "hist.h"
#include "lib/test.h"
#include "trace.h"
#include "util.h"

#define GOOD "{\"timestamp\": 5, \"input_length\": 600, \"output_length\": 7, \"hash_ids\": [3, 9]}"

CASE(a_good_line_gives_its_four_fields)
{
	struct trace_request r;
	char why[256] = "";

	assert_int_equal(trace_parse_line(GOOD, strlen(GOOD), &r, why, sizeof(why)), 0);
	assert_int_equal(r.timestamp_ms, 5);
	assert_int_equal(r.input_tokens, 600);
	assert_int_equal(r.output_tokens, 7);
	assert_int_equal(r.hashes, 2);
	assert_int_equal(r.hash[0], 3);
	assert_int_equal(r.hash[1], 9);
	trace_request_free(&r);
}

CASE(a_bad_line_is_refused_with_the_field_that_is_wrong)
{
	static const struct {
		const char *line, *why;
	} cases[] = {
		{ "", "not JSON" },
		{ "{\"timestamp\": 5", "not JSON" },
		{ "[1, 2]", "not a JSON object" },
		{ "{\"input_length\": 1, \"output_length\": 1, \"hash_ids\": [1]}",
		  "timestamp is missing" },
		{ "{\"timestamp\": \"5\", \"input_length\": 1, \"output_length\": 1, \"hash_ids\": [1]}",
		  "timestamp is not an integer" },
		{ "{\"timestamp\": 5, \"input_length\": 0, \"output_length\": 1, \"hash_ids\": []}",
		  "input_length is 0" },
		{ "{\"timestamp\": 5, \"input_length\": -3, \"output_length\": 1, \"hash_ids\": []}",
		  "input_length is -3" },
		{ "{\"timestamp\": 5, \"input_length\": 99999999999, \"output_length\": 1, \"hash_ids\": []}",
		  "input_length is 99999999999" },
		{ "{\"timestamp\": 5, \"input_length\": 1, \"output_length\": 1.5, \"hash_ids\": [1]}",
		  "output_length is not an integer" },
		{ "{\"timestamp\": 5, \"input_length\": 1, \"output_length\": 1}",
		  "hash_ids is missing" },
		{ "{\"timestamp\": 5, \"input_length\": 1, \"output_length\": 1, \"hash_ids\": 1}",
		  "hash_ids is not a list" },
		{ "{\"timestamp\": 5, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [1]}",
		  "hash_ids has 1 ids, but 600 input tokens make 2" },
		{ "{\"timestamp\": 5, \"input_length\": 600, \"output_length\": 1, \"hash_ids\": [1, -1]}",
		  "hash_ids[1] is not a number from 0 on" },
		{ GOOD "x", "not JSON" },
	};
	struct trace_request r;
	char why[256];
	size_t i;

	for (i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		assert_int_equal(trace_parse_line(cases[i].line, strlen(cases[i].line), &r, why,
						  sizeof(why)),
				 -1);
		if (!strstr(why, cases[i].why))
			fail_msg("\"%s\" instead of \"%s\"", why, cases[i].why);
		assert_null(r.hash);
	}
}

static void write_file(char *path, const char *text)
{
	int fd;

	snprintf(path, 64, "/tmp/kvrail-trace-XXXXXX");
	fd = mkstemp(path);
	assert_true(fd >= 0);
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	close(fd);
}

CASE(an_error_names_the_file_and_the_line)
{
	char path[64], why[512], want[128];
	struct trace t;

	write_file(path, GOOD "\n" GOOD "\n{\"timestamp\": 5}\n");
	assert_int_equal(trace_load(&t, path, 0, 0, why, sizeof(why)), -1);
	snprintf(want, sizeof(want), "%s:3: input_length is missing", path);
	assert_string_equal(why, want);
	trace_free(&t);
	assert_int_equal(trace_load(&t, path, 1, 1, why, sizeof(why)), 0);
	assert_int_equal(t.requests, 1);
	trace_free(&t);
	assert_int_equal(trace_load(&t, path, 3, 0, why, sizeof(why)), -1);
	assert_non_null(strstr(why, "no request after the first 3 lines"));
	trace_free(&t);
	unlink(path);
	assert_int_equal(trace_load(&t, path, 0, 0, why, sizeof(why)), -1);
	assert_non_null(strstr(why, "No such file"));
	trace_free(&t);
}

CASE(a_timestamp_that_goes_back_is_refused)
{
	char path[64], why[512];
	struct trace t;

	write_file(path, GOOD "\n{\"timestamp\": 4, \"input_length\": 1, \"output_length\": 1, "
			      "\"hash_ids\": [1]}\n");
	assert_int_equal(trace_load(&t, path, 0, 0, why, sizeof(why)), -1);
	assert_non_null(strstr(why, ":2: timestamp goes back"));
	trace_free(&t);
	unlink(path);
}

static int by_value(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

CASE(a_percentile_is_at_most_one_percent_above_the_sorted_one)
{
	enum { N = 10007 };
	static const uint32_t asked[] = { 1, 100, 5000, 9000, 9900, 9990, 9999, 10000 };
	static uint64_t v[N];
	static struct hist h, half;
	uint64_t random = 7, got, want;
	size_t i;

	for (i = 0; i < N; i++) {
		v[i] = random_below(&random, UINT64_C(1) << (1 + random_below(&random, 36)));
		hist_add(i % 2 ? &h : &half, v[i]);
	}
	hist_merge(&h, &half);
	qsort(v, N, sizeof(v[0]), by_value);
	assert_int_equal(h.samples, N);
	assert_int_equal(h.max_ns, v[N - 1]);
	for (i = 0; i < sizeof(asked) / sizeof(asked[0]); i++) {
		want = v[(N * (uint64_t)asked[i] + 9999) / 10000 - 1];
		got = hist_percentile(&h, asked[i]);
		assert_true(got >= want);
		assert_true((double)got <= (double)want * 1.008);
	}
}

CASE(percentiles_of_nothing_and_of_one_sample)
{
	static struct hist h;

	assert_int_equal(hist_percentile(&h, 5000), 0);
	hist_add(&h, 123456789);
	assert_int_equal(hist_percentile(&h, 1), 123456789);
	assert_int_equal(hist_percentile(&h, 9990), 123456789);
	hist_add(&h, UINT64_MAX);
	assert_true(hist_percentile(&h, 10000) >= UINT64_C(1) << 40);
}

CASE(sizes_take_suffixes_and_refuse_the_rest)
{
	static const char *const bad[] = { "",	 "K",	"-1", "1KB", "1.5M", "99999999999G",
					   " 1", "0x10" };
	uint64_t v;
	size_t i;

	assert_int_equal(size_parse("0", &v), 0);
	assert_int_equal(v, 0);
	assert_int_equal(size_parse("4K", &v), 0);
	assert_int_equal(v, 4096);
	assert_int_equal(size_parse("3m", &v), 0);
	assert_int_equal(v, 3 << 20);
	assert_int_equal(size_parse("2G", &v), 0);
	assert_int_equal(v, UINT64_C(2) << 30);
	for (i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
		if (size_parse(bad[i], &v) == 0)
			fail_msg("\"%s\" was taken as a size", bad[i]);
}
