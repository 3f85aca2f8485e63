/* SPDX-License-Identifier: Apache-2.0 */
/* sample.c -- lines of Prometheus' text format */
#include "sample.h"

#include <inttypes.h>
#include <string.h>

#include <kvrail/kv_error.h>

void kv_times_add(struct kv_times *to, const struct kv_times *from)
{
	for (int i = 0; i < KV_TIME_BUCKETS; i++)
		kv_counter_add(&to->bucket[i], kv_counter_get(&from->bucket[i]));
	kv_counter_add(&to->sum_ns, kv_counter_get(&from->sum_ns));
}

uint64_t kv_times_n(const struct kv_times *times)
{
	uint64_t n = 0;

	for (int i = 0; i < KV_TIME_BUCKETS; i++)
		n += kv_counter_get(&times->bucket[i]);
	return n;
}

uint64_t kv_times_p99_us(const struct kv_times *times)
{
	uint64_t all = kv_times_n(times), n = 0;

	for (int i = 0; all && i < KV_TIME_BUCKETS; i++) {
		n += kv_counter_get(&times->bucket[i]);
		if (n * 100 >= all * 99)
			return (kv_times_end_ns((size_t)i) + 999) / 1000;
	}
	return 0;
}

void kv_times_report_p99(struct kv_report *r, const struct kv_times *times)
{
	uint64_t n = kv_times_n(times);

	if (!n)
		return;
	kv_report_int(r, "operations_timed", (int64_t)n);
	kv_report_int(r, "p99_us", (int64_t)kv_times_p99_us(times));
}

void kv_times_report(struct kv_report *r, const struct kv_times *times)
{
	char said[KV_TIME_BUCKETS * 21];
	struct kv_text text = { said, sizeof(said), 0 };

	for (int i = 0; i < KV_TIME_BUCKETS; i++)
		kv_text_add(&text, i ? " %" PRIu64 : "%" PRIu64, kv_counter_get(&times->bucket[i]));
	kv_report_text(r, "times", "%s", said);
}

void kv_sample_times(struct kv_text *text, const char *name, const char *labels, const char *label,
		     const char *value, const struct kv_times *times)
{
	uint64_t n = 0;

	for (int i = 0; i < KV_TIME_BUCKETS - 1; i++) {
		n += kv_counter_get(&times->bucket[i]);
		kv_text_add(text, "%s_bucket{%s,%s=\"%s\",le=\"%.11g\"} %" PRIu64 "\n", name,
			    labels, label, value, (double)kv_times_end_ns((size_t)i) / 1e9, n);
	}
	n += kv_counter_get(&times->bucket[KV_TIME_BUCKETS - 1]);
	kv_text_add(text,
		    "%s_bucket{%s,%s=\"%s\",le=\"+Inf\"} %" PRIu64 "\n"
		    "%s_sum{%s,%s=\"%s\"} %.9g\n"
		    "%s_count{%s,%s=\"%s\"} %" PRIu64 "\n",
		    name, labels, label, value, n, name, labels, label, value,
		    (double)kv_counter_get(&times->sum_ns) / 1e9, name, labels, label, value, n);
}

const char *kv_label(char *buf, size_t cap, const char *value)
{
	const unsigned char *p = (const unsigned char *)value;
	size_t n = 0;

	while (*p && n + 5 < cap) {
		unsigned int len = kv_utf8_length(p);

		if (!len || *p < 0x20 || *p == 0x7f) {
			buf[n++] = '?';
			p++;
			continue;
		}
		if (*p == '"' || *p == '\\')
			buf[n++] = '\\';
		memcpy(buf + n, p, len);
		n += len;
		p += len;
	}
	buf[n] = 0;
	return buf;
}

void kv_sample_codes(struct kv_text *text, const char *name, const char *labels, const char *kind,
		     const char *label, const _Atomic uint64_t *counter, int codes, int always)
{
	for (int code = 0; code < codes; code++) {
		uint64_t n = kv_counter_get(&counter[code]);

		if (n || -code == always)
			kv_text_add(text, "%s{%s%s%s%s,%s=\"%s\"} %" PRIu64 "\n", name, labels,
				    kind ? ",kind=\"" : "", kind ? kind : "", kind ? "\"" : "",
				    label, kv_error_name(-code), n);
	}
}
