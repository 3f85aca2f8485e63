/* SPDX-License-Identifier: Apache-2.0 */
/* kv_overlap.h -- whether blocks of a cache share bytes; pure */
#ifndef KV_OVERLAP_H
#define KV_OVERLAP_H

#include <stdbool.h>
#include <stdint.h>

/* The blocks of one tensor of one layer: `n` pieces of `len` bytes, one each `stride` bytes. */
struct kv_row {
	uint64_t at;
	uint64_t stride; /* >= len */
	uint64_t len;	 /* > 0 */
	uint64_t n;	 /* > 0 */
};

/*
 * Whether a byte lies in a block of both. Exact, also where the blocks of one lie between those of
 * the other, and in a time that does not grow with the number of blocks. ASSUMPTION: neither
 * reaches beyond the address space.
 */
bool kv_rows_meet(const struct kv_row *x, const struct kv_row *y);

#endif
