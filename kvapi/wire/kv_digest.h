/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_digest.h -- 32 bits of a block's bytes, by the processor's instruction for CRC-32C; pure
 *
 * Three sums, each of every third word of 8 bytes: the instruction takes a word a cycle and answers
 * after three. They are folded into one at the end, which both ends do alike; it is not the CRC-32C
 * of the bytes. Of all changes one in 2^32 is missed; of those within 32 bits of a word none is.
 */
#ifndef KV_DIGEST_H
#define KV_DIGEST_H

#include <stdbool.h>
#include <stdint.h>

bool kv_digest_works(void); /* this processor has the instruction */
/* Of `rows` pieces of `len` bytes, the first at `at`, the next one `row` bytes further on. */
uint32_t kv_digest(const uint8_t *at, uint64_t len, uint64_t row, uint32_t rows);

#endif
