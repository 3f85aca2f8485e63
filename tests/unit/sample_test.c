/* SPDX-License-Identifier: Apache-2.0 */
/* sample_test.c -- lines of Prometheus' text format, whatever a peer calls itself; histograms */
#include <string.h>

#include "base/sample.h"
#include "lib/test.h"

CASE(a_label_is_utf8_whatever_a_name_is_made_of)
{
	char buf[64], small[8];

	assert_string_equal(kv_label(buf, sizeof(buf), "a \"b\" \\ \n\x1b \xff \xc3\xa9 \xc3"),
			    "a \\\"b\\\" \\\\ ?? ? \xc3\xa9 ?");
	assert_string_equal(kv_label(small, sizeof(small), "ab\xc3\xa9\xc3\xa9"), "ab\xc3\xa9");
	assert_string_equal(kv_label(small, sizeof(small), "\"\"\"\"\"\"\"\""), "\\\"\\\"");
}

CASE(a_time_is_counted_in_the_bucket_that_ends_above_it)
{
	static const int64_t ns[] = { -1, 1, 1024, 1025, 2048, 2049, INT64_MAX };
	static const int bucket[] = { 0, 0, 0, 1, 1, 2, KV_TIME_BUCKETS - 1 };
	char buf[16384];
	struct kv_text text = { buf, sizeof(buf), 0 };

	for (size_t i = 0; i < sizeof(ns) / sizeof(ns[0]); i++) {
		struct kv_times times = { .sum_ns = 0 };

		kv_times_count(&times, ns[i]);
		assert_int_equal(kv_times_n(&times), 1);
		assert_int_equal(kv_counter_get(&times.bucket[bucket[i]]), 1);
		assert_int_equal(kv_counter_get(&times.sum_ns), ns[i] > 0 ? ns[i] : 1);
		kv_sample_times(&text, "t", "a=\"b\"", "kind", "x", &times);
	}
	assert_non_null(strstr(buf, "t_bucket{a=\"b\",kind=\"x\",le=\"1.024e-06\"} 1\n"));
	assert_non_null(strstr(buf, "t_bucket{a=\"b\",kind=\"x\",le=\"17.179869184\"} 0\n"
				    "t_bucket{a=\"b\",kind=\"x\",le=\"+Inf\"} 1\n"));
	assert_non_null(strstr(buf, "t_sum{a=\"b\",kind=\"x\"} 2.049e-06\n"
				    "t_count{a=\"b\",kind=\"x\"} 1\n"));
}

CASE(p99_is_the_end_of_the_bucket_that_holds_99_of_100)
{
	struct kv_times one = { .sum_ns = 0 }, both = { .sum_ns = 0 };

	assert_int_equal(kv_times_p99_us(&one), 0);
	for (int i = 0; i < 99; i++)
		kv_times_count(&one, 3000);
	assert_int_equal(kv_times_p99_us(&one), 5);
	kv_times_count(&both, 900000);
	kv_times_add(&both, &one);
	assert_int_equal(kv_times_n(&both), 100);
	assert_int_equal(kv_times_p99_us(&both), 5);
	kv_times_count(&both, 900000);
	assert_int_equal(kv_times_p99_us(&both), 1049);
}
