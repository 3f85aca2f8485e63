/* SPDX-License-Identifier: Apache-2.0 */
/* sample.h -- what the metrics of expose.h are made of: counters, and lines of the text format */
#ifndef BASE_SAMPLE_H
#define BASE_SAMPLE_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "text.h"

/* Any thread counts; the order to anything else is not promised. */
static inline void kv_counter_add(_Atomic uint64_t *counter, uint64_t n)
{
	atomic_fetch_add_explicit(counter, n, memory_order_relaxed);
}

static inline uint64_t kv_counter_get(const _Atomic uint64_t *counter)
{
	return atomic_load_explicit(counter, memory_order_relaxed);
}

/* A label's value: quotes and backslashes escaped. */
const char *kv_label(char *buf, size_t cap, const char *value);

/*
 * A line for each code that was counted, and for `always`: NAME{LABELS,LABEL="code's name"} n.
 * counter[-code], `codes` of them. kind: of LABELS a further one, kind="..."; NULL: none.
 */
void kv_sample_codes(struct kv_text *text, const char *name, const char *labels, const char *kind,
		     const char *label, const _Atomic uint64_t *counter, int codes, int always);

#endif
