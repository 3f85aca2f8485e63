/* SPDX-License-Identifier: Apache-2.0 */
/* tr_shm_store.c -- the copy loops and the ring by themselves, in one process */
#include <string.h>

#include "lib/test.h"
#include "shm/ring.h"
#include "shm/store.h"
#include "lib/step.h"

enum { MAX = 300, GUARD = 128 };

static void check_store(store_fn *store)
{
	static _Alignas(128) uint8_t src[MAX + 256], dst[MAX + 2 * GUARD + 256];

	for (size_t i = 0; i < sizeof(src); i++)
		src[i] = (uint8_t)(i * 7 + i / 256 + 1);
	for (size_t n = 0; n <= MAX; n++) {
		/* Every place in a 128-byte line on one side, some on the other. */
		for (size_t at = 0; at < 128; at++) {
			size_t from = (at * 5 + n) % 128;

			memset(dst, 0xee, sizeof(dst));
			store(dst + GUARD + at, src + from, n,
			      (struct store_ahead){ src, dst + GUARD });
			store_drain();
			assert_memory_equal(dst + GUARD + at, src + from, n);
			for (size_t i = 0; i < GUARD; i++) {
				assert_int_equal(dst[at + i], 0xee);
				assert_int_equal(dst[GUARD + at + n + i], 0xee);
			}
		}
	}
}

CASE(every_size_and_offset_is_copied_by_each_loop_and_not_a_byte_more)
{
	const char *name = NULL;
	store_fn *widest = store_nt(&name);

	assert_non_null(name);
	check_store(widest);
	check_store(store_plain);
	check_store(store_ordered);
#if defined(__x86_64__)
	/* The narrower ones too, which this machine would not choose. */
	check_store(store_nt_sse2);
	if (__builtin_cpu_supports("avx2"))
		check_store(store_nt_avx2);
#endif
}

static void plain_copy(uint8_t *dst, const uint8_t *src, size_t n)
{
	memcpy(dst, src, n);
}

static void ordered_copy(uint8_t *dst, const uint8_t *src, size_t n)
{
	store_ordered(dst, src, n, (struct store_ahead){ src, dst });
}

static void last_word_first(uint8_t *dst, const uint8_t *src, size_t n)
{
	memcpy(dst + n - 8, src + n - 8, 8);
	__atomic_signal_fence(__ATOMIC_SEQ_CST);
	memcpy(dst, src, n - 8);
}

/*
 * What the compiler made of store_ordered, instruction by instruction. How many lengths memcpy gets
 * wrong depends on the processor: glibc has a memcpy for each width of its vectors.
 */
CASE(the_last_word_of_a_line_is_stored_last_by_the_ordered_copy_alone)
{
	int out_of_order = 0;

	for (size_t n = 128; n <= STEP_MAX; n += n < 768 ? 128 : 640) {
		for (size_t at = 0; at < STEP_LINE; at += 56) {
			int word = step_lines(ordered_copy, at, n);

			if (word == STEP_REFUSED) {
				print_message("skipped: ptrace is not allowed here\n");
				skip();
			}
			assert_int_equal(word, STEP_ORDERED);
		}
		out_of_order += step_lines(plain_copy, 0, n) >= 0;
	}
	assert_int_equal(step_lines(last_word_first, 0, 256), 16);
	print_message("memcpy stores %d of these lengths out of order\n", out_of_order);
}

/* ---------------------------------------------------------------- ring */

enum { RING = 4096 };

struct ring_pair {
	struct ring_out out;
	struct ring_in in;
	struct ring_shared shared;
	_Alignas(128) uint8_t data[RING];
};

static void ring_pair_init(struct ring_pair *r)
{
	memset(r, 0, sizeof(*r));
	r->out = (struct ring_out){ .data = r->data, .shared = &r->shared, .size = RING };
	r->in = (struct ring_in){ .data = r->data, .shared = &r->shared, .size = RING };
}

/* Puts a record of n bytes if it fits as a whole. */
static bool put(struct ring_pair *r, uint32_t n, uint8_t seed)
{
	struct ring_record record = { .type = RING_DATA, .len = n, .a = seed };
	uint8_t payload[RING];

	memset(payload, seed, n);
	if (!ring_refresh(&r->out) || ring_fit(&r->out, n, n, 0) < (int64_t)n)
		return false;
	ring_put(&r->out, &record, payload);
	ring_publish(&r->out);
	return true;
}

static bool take(struct ring_pair *r, uint32_t n, uint8_t seed)
{
	struct ring_record record = { .type = RING_PAD };
	const uint8_t *payload;

	while (record.type == RING_PAD) {
		if (ring_next(&r->in, &record, &payload) != 1)
			return false;
		ring_consume(&r->in, &record);
	}
	for (uint32_t i = 0; i < n; i++)
		if (payload[i] != seed)
			return false;
	ring_publish_head(&r->in);
	return record.type == RING_DATA && record.len == n && record.a == seed;
}

CASE(records_of_every_size_pass_through_every_place_of_the_ring)
{
	static struct ring_pair r;

	ring_pair_init(&r);
	for (uint32_t i = 0; i < 20000; i++) {
		uint32_t n = i * 37 % 1500;

		assert_true(put(&r, n, (uint8_t)i));
		assert_true(put(&r, n / 2, (uint8_t)(i + 1)));
		assert_true(take(&r, n, (uint8_t)i));
		assert_true(take(&r, n / 2, (uint8_t)(i + 1)));
	}
	assert_true(r.out.tail > 1000 * (uint64_t)RING);
}

CASE(a_full_ring_takes_nothing_and_an_emptied_one_takes_again)
{
	static struct ring_pair r;
	uint32_t full = 0;

	ring_pair_init(&r);
	while (put(&r, 0, 0))
		full++;
	assert_int_equal(full, RING / RING_ALIGN);
	assert_int_equal(ring_fit(&r.out, 0, 0, 0), -1);
	assert_true(take(&r, 0, 0));
	assert_true(put(&r, 0, 0));
	assert_false(put(&r, 0, 0));
	/* `keep` leaves room for others */
	ring_pair_init(&r);
	assert_int_equal(ring_fit(&r.out, RING, 1, 1024), RING - 1024 - RING_ALIGN);
	assert_int_equal(ring_fit(&r.out, RING, 1, RING - RING_ALIGN), -1);
}
