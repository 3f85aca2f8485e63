/* SPDX-License-Identifier: Apache-2.0 */
/* replay_pattern_test.c -- no misplaced, stale or damaged block looks right */
#include <stdlib.h>
#include <string.h>

#include "lib/test.h"
#include "pattern.h"
#include "util.h"

enum { BYTES = 1000 }; /* whole groups, whole words and a tail */

static struct pattern any_block(void)
{
	return (struct pattern){
		.seed = 1, .request = 7, .block = 3, .epoch = 0, .layer = 5, .tensor = 1
	};
}

CASE(what_was_filled_is_right_at_every_length_and_alignment)
{
	static unsigned char buf[BYTES + 32];
	const struct pattern p = any_block();
	size_t len, align, first;

	for (align = 0; align < 16; align++)
		for (len = 0; len <= 300; len++) {
			memset(buf, 0xee, sizeof(buf));
			pattern_fill(buf + align, len, pattern_key(&p));
			assert_int_equal(pattern_check(buf + align, len, pattern_key(&p), &first),
					 0);
			assert_int_equal(buf[align + len], 0xee);
			if (align)
				assert_int_equal(buf[align - 1], 0xee);
		}
}

CASE(every_single_byte_change_is_found_and_located)
{
	static unsigned char buf[BYTES];
	const struct pattern p = any_block();
	size_t i, first, bit;

	pattern_fill(buf, BYTES, pattern_key(&p));
	for (i = 0; i < BYTES; i++)
		for (bit = 0; bit < 8; bit++) {
			buf[i] ^= (unsigned char)(1u << bit);
			assert_int_equal(pattern_check(buf, BYTES, pattern_key(&p), &first), 1);
			assert_int_equal(first, i);
			buf[i] ^= (unsigned char)(1u << bit);
		}
	buf[0] ^= 1;
	buf[500] ^= 1;
	buf[BYTES - 1] ^= 1;
	assert_int_equal(pattern_check(buf, BYTES, pattern_key(&p), &first), 3);
	assert_int_equal(first, 0);
}

CASE(a_block_with_any_other_input_is_wrong_in_every_word)
{
	static unsigned char buf[4096];
	const struct pattern right = any_block();
	struct pattern p[7];
	size_t i, first;

	for (i = 0; i < 7; i++)
		p[i] = right;
	p[0].seed++;
	p[1].request++;
	p[2].block++;
	p[3].epoch++;
	p[4].layer++;
	p[5].tensor++;
	p[6].request = PATTERN_FREE;
	for (i = 0; i < 7; i++) {
		pattern_fill(buf, sizeof(buf), pattern_key(&p[i]));
		/* A chance byte may be equal; a whole word may not. */
		assert_true(pattern_check(buf, sizeof(buf), pattern_key(&right), &first) > 3900);
	}
}

CASE(swapped_inputs_are_not_equal)
{
	struct pattern a = any_block(), b = any_block();

	a.layer = 1, a.tensor = 0;
	b.layer = 0, b.tensor = 1;
	assert_true(pattern_key(&a) != pattern_key(&b));
	a = b = any_block();
	a.request = 3, a.block = 4;
	b.request = 4, b.block = 3;
	assert_true(pattern_key(&a) != pattern_key(&b));
}

CASE(bytes_that_are_shifted_inside_a_block_are_wrong)
{
	static unsigned char buf[4096 + 512];
	const struct pattern p = any_block();
	size_t shift;

	pattern_fill(buf, sizeof(buf), pattern_key(&p));
	for (shift = 1; shift <= 512; shift++)
		assert_true(pattern_check(buf + shift, 4096, pattern_key(&p), NULL) > 3600);
}

CASE(part_of_a_block_can_be_checked_alone)
{
	static unsigned char buf[4096];
	const struct pattern p = any_block();

	pattern_fill(buf, sizeof(buf), pattern_key(&p));
	assert_int_equal(
		pattern_check(buf + 3000, 1096, pattern_key_at(pattern_key(&p), 3000), NULL), 0);
	assert_true(pattern_check(buf + 3000, 1096, pattern_key(&p), NULL) > 0);
}

CASE(many_blocks_share_no_word)
{
	/* 64 requests x 64 blocks x 8 words: sorted, no two are equal. */
	enum { WORDS = 8, BLOCKS = 64 * 64 };
	uint64_t *w = need_calloc((size_t)BLOCKS * WORDS, sizeof(*w));
	struct pattern p = any_block();
	uint64_t key, table_size = 1 << 17, *table = need_calloc(table_size, sizeof(*table)), at;
	size_t i, n = 0;

	for (p.request = 0; p.request < 64; p.request++)
		for (p.block = 0; p.block < 64; p.block++) {
			pattern_fill(w + n, WORDS * sizeof(*w), pattern_key(&p));
			n += WORDS;
		}
	for (i = 0; i < n; i++) {
		key = w[i];
		for (at = mix64(key) % table_size; table[at]; at = (at + 1) % table_size)
			assert_true(table[at] != key);
		table[at] = key;
	}
	free(table);
	free(w);
}
