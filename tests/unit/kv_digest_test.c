/* SPDX-License-Identifier: Apache-2.0 */
/* kv_digest_test.c -- the digest of a block: what its header says, and another for other bytes */
#include "kv_digest.h"

#include <string.h>

#include "lib/test.h"

enum { MOST = 3 * 24 + 23 };

/* CRC-32C of a word, bit by bit. */
static uint64_t sum(uint64_t crc, uint64_t word)
{
	uint32_t r = (uint32_t)crc;

	for (int i = 0; i < 64; i++) {
		uint32_t bit = (r ^ (uint32_t)(word >> i)) & 1;

		r = r >> 1 ^ (bit ? 0x82f63b78 : 0);
	}
	return r;
}

/* What kv_digest.h says, of one piece. */
static uint32_t model(const uint8_t *at, uint64_t len)
{
	uint64_t s[3] = { 1, 2, 3 };
	uint8_t padded[MOST + 24] = { 0 };

	memcpy(padded, at, len);
	for (uint64_t i = 0; i < (len + 23) / 24 * 3; i++) {
		uint64_t word;

		memcpy(&word, padded + i * 8, 8);
		s[i % 3] = sum(s[i % 3], word);
	}
	for (int i = 1; i < 3; i++) {
		uint32_t factor = i == 1 ? 0x9e3779b1u : 0x85ebca6bu;

		s[0] = sum(s[0], (uint64_t)((uint32_t)s[i] * factor) << 32);
	}
	return (uint32_t)s[0];
}

static int needs_the_instruction(void **state)
{
	if (kv_digest_works())
		return 0;
	print_message("skipped: this processor has no instruction for CRC-32C\n");
	return 1;
}

CASE(it_is_what_its_header_says)
{
	uint8_t bytes[MOST];

	for (int i = 0; i < MOST; i++)
		bytes[i] = (uint8_t)(i * 37 + 11);
	for (uint64_t len = 0; len <= MOST; len++)
		assert_int_equal(kv_digest(bytes, len, 0, 1), model(bytes, len));
}

CASE(each_bit_counts_and_nothing_outside)
{
	uint8_t bytes[4 * MOST] = { 0 };
	enum { LEN = 61, ROW = MOST, ROWS = 4 };
	uint32_t digest = kv_digest(bytes, LEN, ROW, ROWS);

	for (unsigned int i = 0; i < sizeof(bytes) * 8; i++) {
		bytes[i / 8] ^= (uint8_t)(1 << i % 8);
		assert_int_equal(kv_digest(bytes, LEN, ROW, ROWS) != digest, i / 8 % ROW < LEN);
		bytes[i / 8] ^= (uint8_t)(1 << i % 8);
	}
}

CASE(words_that_changed_places_count)
{
	uint8_t bytes[MOST], other[MOST];

	for (int i = 0; i < MOST; i++)
		bytes[i] = (uint8_t)(i * 37 + 11);
	for (int a = 0; a + 8 <= MOST; a += 8)
		for (int b = 0; b < a; b += 8) {
			memcpy(other, bytes, MOST);
			memcpy(other + a, bytes + b, 8);
			memcpy(other + b, bytes + a, 8);
			assert_int_not_equal(kv_digest(other, MOST, 0, 1),
					     kv_digest(bytes, MOST, 0, 1));
		}
}

int main(void)
{
	if (needs_the_instruction(NULL))
		return 77;
	return run_cases(NULL, NULL);
}
