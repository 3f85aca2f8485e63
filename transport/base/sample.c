/* SPDX-License-Identifier: Apache-2.0 */
/* sample.c -- lines of Prometheus' text format */
#include "sample.h"

#include <inttypes.h>

#include <kvrail/kv_error.h>

const char *kv_label(char *buf, size_t cap, const char *value)
{
	size_t n = 0;

	for (; *value && n + 2 < cap; value++) {
		if (*value == '"' || *value == '\\')
			buf[n++] = '\\';
		buf[n++] = *value;
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
