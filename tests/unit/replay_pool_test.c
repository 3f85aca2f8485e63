/* SPDX-License-Identifier: Apache-2.0 */
/* replay_pool_test.c -- the block allocator and the scheduler of kv_pd_replay */
#include <stdlib.h>
#include <string.h>

#include "lib/test.h"
#include "pool.h"
#include "replay_admit.h"
#include "replay_schedule.h"
#include "util.h"

enum { BLOCKS = 16 };

static uint32_t freed[256], freed_n;

static void note_free(void *arg, uint32_t id)
{
	if (freed_n < 256)
		freed[freed_n++] = id;
}

static void new_pool(struct pool *p, uint32_t blocks)
{
	freed_n = 0;
	pool_create(p, blocks, 1, note_free, NULL);
}

/* One held block that is published under `key` and referenced by nobody. */
static uint32_t idle_block(struct pool *p, uint64_t key)
{
	int64_t id;

	assert_int_equal(pool_alloc(p, 1, &id), 0);
	pool_written(p, (uint32_t)id, key, 0, 0);
	pool_publish(p, (uint32_t)id, key);
	pool_release(p, (uint32_t)id);
	return (uint32_t)id;
}

CASE(ids_are_handed_out_once_and_in_no_order)
{
	uint8_t seen[1000] = { 0 };
	int64_t ids[1000];
	struct pool p;
	uint32_t i, neighbours = 0;

	new_pool(&p, 1000);
	assert_int_equal(pool_alloc(&p, 1000, ids), 0);
	for (i = 0; i < 1000; i++) {
		assert_true(ids[i] >= 0 && ids[i] < 1000);
		assert_int_equal(seen[ids[i]]++, 0);
		neighbours += i > 0 && ids[i] == ids[i - 1] + 1;
	}
	assert_true(neighbours < 20);
	pool_destroy(&p);
}

CASE(an_exhausted_pool_refuses_and_is_unchanged)
{
	int64_t ids[BLOCKS], more[BLOCKS] = { -1, -1 };
	struct pool p;

	new_pool(&p, BLOCKS);
	assert_int_equal(pool_alloc(&p, BLOCKS - 1, ids), 0);
	assert_int_equal(pool_alloc(&p, 2, more), -1);
	assert_int_equal(more[0], -1);
	assert_int_equal(pool_available(&p), 1);
	assert_int_equal(pool_alloc(&p, 1, more), 0);
	assert_int_equal(pool_alloc(&p, 1, more), -1);
	pool_release(&p, (uint32_t)more[0]);
	assert_int_equal(pool_available(&p), 1);
	assert_int_equal(freed_n, 1);
	assert_int_equal(freed[0], more[0]);
	pool_destroy(&p);
}

CASE(a_block_is_free_only_after_its_last_reference)
{
	struct pool p;
	int64_t id;

	new_pool(&p, BLOCKS);
	assert_int_equal(pool_alloc(&p, 1, &id), 0);
	assert_int_equal(pool_lookup(&p, 77), POOL_NO_BLOCK);
	pool_written(&p, (uint32_t)id, 5, 2, 1);
	pool_publish(&p, (uint32_t)id, 77);
	assert_int_equal(pool_take(&p, 77), id);
	assert_int_equal(pool_take(&p, 77), id);
	assert_int_equal(p.block[id].refs, 3);
	pool_release(&p, (uint32_t)id);
	pool_release(&p, (uint32_t)id);
	assert_int_equal(pool_available(&p), BLOCKS - 1);
	pool_release(&p, (uint32_t)id);
	/* Published: it can be evicted now, but is still held and found. */
	assert_int_equal(pool_available(&p), BLOCKS);
	assert_int_equal(freed_n, 0);
	assert_int_equal(p.block[id].state, POOL_HELD);
	assert_int_equal(pool_take(&p, 77), id);
	assert_int_equal(pool_available(&p), BLOCKS - 1);
	assert_int_equal(p.block[id].request, 5);
	assert_int_equal(p.block[id].index, 2);
	pool_destroy(&p);
}

CASE(eviction_takes_the_least_recently_used)
{
	uint32_t block[BLOCKS], i;
	int64_t ids[4];
	struct pool p;

	new_pool(&p, BLOCKS);
	for (i = 0; i < BLOCKS; i++)
		block[i] = idle_block(&p, 100 + i);
	/* 100 and 102 are used again: 101, 103 and 104 are the oldest now. */
	pool_release(&p, pool_take(&p, 100));
	pool_release(&p, pool_take(&p, 102));
	assert_int_equal(pool_alloc(&p, 3, ids), 0);
	assert_int_equal(p.evictions, 3);
	assert_int_equal(freed_n, 3);
	assert_int_equal(freed[0], block[1]);
	assert_int_equal(freed[1], block[3]);
	assert_int_equal(freed[2], block[4]);
	assert_int_equal(pool_lookup(&p, 101), POOL_NO_BLOCK);
	assert_int_equal(pool_lookup(&p, 100), block[0]);
	assert_int_equal(pool_lookup(&p, 102), block[2]);
	pool_destroy(&p);
}

CASE(a_referenced_prefix_is_never_evicted)
{
	int64_t ids[BLOCKS];
	uint32_t held;
	struct pool p;

	new_pool(&p, BLOCKS);
	held = idle_block(&p, 1);
	assert_int_equal(pool_take(&p, 1), held);
	assert_int_equal(pool_alloc(&p, BLOCKS, ids), -1);
	assert_int_equal(pool_alloc(&p, BLOCKS - 1, ids), 0);
	assert_int_equal(pool_lookup(&p, 1), held);
	pool_destroy(&p);
}

CASE(a_key_that_is_taken_leaves_the_second_block_unpublished)
{
	struct pool p;
	uint32_t first;
	int64_t id;

	new_pool(&p, BLOCKS);
	first = idle_block(&p, 9);
	assert_int_equal(pool_alloc(&p, 1, &id), 0);
	pool_written(&p, (uint32_t)id, 1, 0, 0);
	pool_publish(&p, (uint32_t)id, 9);
	pool_release(&p, (uint32_t)id);
	assert_int_equal(p.block[id].state, POOL_FREE);
	assert_int_equal(pool_lookup(&p, 9), first);
	pool_destroy(&p);
}

CASE(a_random_history_loses_and_doubles_no_block)
{
	enum { STEPS = 20000, HELD = 64 };
	uint64_t random = 3;
	uint32_t held[HELD], n = 0, i, id, count;
	struct pool p;
	int64_t got;

	new_pool(&p, 40);
	for (i = 0; i < STEPS; i++) {
		if (n < HELD && random_below(&random, 2)) {
			id = pool_take(&p, random_below(&random, 60));
			if (id == POOL_NO_BLOCK && pool_alloc(&p, 1, &got) == 0) {
				id = (uint32_t)got;
				pool_written(&p, id, i, 0, 0);
				pool_publish(&p, id, random_below(&random, 60));
			}
			if (id != POOL_NO_BLOCK)
				held[n++] = id;
		} else if (n > 0) {
			uint32_t at = (uint32_t)random_below(&random, n);

			pool_release(&p, held[at]);
			held[at] = held[--n];
		}
		for (count = 0, id = 0; id < 40; id++)
			count += p.block[id].refs > 0;
		assert_int_equal(count + pool_available(&p), 40);
	}
	pool_destroy(&p);
}

/* ---------------------------------------------------------------- schedule and admission */

static struct trace_request make_request(uint32_t input, uint32_t output, uint64_t first_hash)
{
	struct trace_request r = { .input_tokens = input, .output_tokens = output };
	uint32_t i;

	r.hashes = (input + TRACE_HASH_TOKENS - 1) / TRACE_HASH_TOKENS;
	r.hash = need_calloc(r.hashes, sizeof(*r.hash));
	for (i = 0; i < r.hashes; i++)
		r.hash[i] = first_hash + i;
	return r;
}

CASE(only_full_blocks_have_keys_and_equal_prefixes_equal_ones)
{
	const struct schedule_cut cut = { 16, 1 }, coarse = { 16, 64 };
	struct trace_request a = make_request(1000, 1, 10), b = make_request(1000, 1, 10);
	uint32_t i, j;

	b.hash[1] = 99;
	assert_int_equal(schedule_blocks(&cut, &a), 63);
	for (i = 0; i < 62; i++)
		for (j = 0; j < i; j++)
			assert_true(schedule_key(&cut, &a, i) != schedule_key(&cut, &a, j));
	assert_true(schedule_key(&cut, &a, 62) == POOL_NO_KEY);
	for (i = 0; i < 32; i++)
		assert_true(schedule_key(&cut, &a, i) == schedule_key(&cut, &b, i));
	for (; i < 62; i++)
		assert_true(schedule_key(&cut, &a, i) != schedule_key(&cut, &b, i));
	/* 16 tokens at scale 64 are 1024 of the trace: not full. */
	assert_int_equal(schedule_blocks(&coarse, &a), 1);
	assert_true(schedule_key(&coarse, &a, 0) == POOL_NO_KEY);
	trace_request_free(&a);
	trace_request_free(&b);
}

CASE(requests_go_where_their_prefix_is_unless_that_rank_is_overloaded)
{
	const struct schedule_cut cut = { 16, 1 };
	struct trace_request r[40];
	struct trace t = { 40, r };
	struct schedule s;
	uint32_t i, on[2] = { 0, 0 };

	for (i = 0; i < 40; i++)
		r[i] = make_request(2048, 1, i < 20 ? 1000 * i : 1000 * (i - 20));
	schedule_make(&s, &t, &cut, 3, 2);
	for (i = 0; i < 40; i++) {
		assert_int_equal(s.prefill[i], i % 3);
		on[s.decode[i]]++;
		if (i >= 20)
			assert_int_equal(s.decode[i], s.decode[i - 20]);
	}
	assert_int_equal(on[0], 20);
	schedule_free(&s);
	/* All with one prefix: balance wins over affinity. */
	for (i = 0; i < 40; i++)
		memcpy(r[i].hash, r[0].hash, r[0].hashes * sizeof(*r[0].hash));
	schedule_make(&s, &t, &cut, 3, 2);
	for (on[0] = on[1] = 0, i = 0; i < 40; i++)
		on[s.decode[i]]++;
	assert_true(on[0] >= 8 && on[1] >= 8);
	schedule_free(&s);
	for (i = 0; i < 40; i++)
		trace_request_free(&r[i]);
}

CASE(a_second_request_gets_the_prefix_of_the_first)
{
	const struct schedule_cut cut = { 16, 1 };
	struct trace_request a = make_request(1024, 10, 5), b = make_request(1536, 10, 5);
	struct admit admit = { .cut = &cut, .step_ms = 30 };
	struct admitted first, second;
	struct pool p;
	uint32_t i;

	new_pool(&p, 1000);
	admit.pool = &p;
	assert_int_equal(admit_request(&admit, &a, 0, &first), ADMIT_OK);
	assert_int_equal(first.blocks, 64);
	assert_int_equal(first.hits, 0);
	assert_int_equal(first.held, 64);
	for (i = 0; i < 64; i++) {
		pool_written(&p, (uint32_t)first.ids[i], 0, i, 0);
		pool_publish(&p, (uint32_t)first.ids[i], schedule_key(&cut, &a, i));
	}
	assert_int_equal(admit_request(&admit, &b, 1, &second), ADMIT_OK);
	assert_int_equal(second.hits, 64);
	assert_int_equal(second.held, 96);
	assert_int_equal(second.end_ms, 300);
	admit_dropped(&admit, &second);
	admit_finished(&admit, &first);
	admit_free(&admit);
	assert_int_equal(pool_available(&p), 1000);
	trace_request_free(&a);
	trace_request_free(&b);
	pool_destroy(&p);
}

CASE(a_full_pool_moves_time_on_or_makes_the_request_wait)
{
	const struct schedule_cut cut = { 16, 1 };
	struct trace_request a = make_request(16 * 40, 10, 5), b = make_request(16 * 40, 10, 500);
	struct admit admit = { .cut = &cut, .step_ms = 30 };
	struct admitted x, y, z;
	struct pool p;

	new_pool(&p, 100);
	admit.pool = &p;
	assert_int_equal(admit_request(&admit, &a, 0, &x), ADMIT_OK);
	assert_int_equal(admit_request(&admit, &b, 1, &y), ADMIT_OK);
	/* Both are under way: nobody's end would free a block. */
	assert_int_equal(admit_request(&admit, &b, 2, &z), ADMIT_WAIT);
	assert_int_equal(pool_available(&p), 20);
	admit_finished(&admit, &x);
	assert_int_equal(admit_request(&admit, &b, 2, &z), ADMIT_OK);
	assert_int_equal(admit.clock_ms, 300);
	assert_int_equal(z.end_ms, 600);
	admit_dropped(&admit, &y);
	admit_dropped(&admit, &z);
	assert_int_equal(pool_available(&p), 100);
	admit_free(&admit);
	trace_request_free(&a);
	trace_request_free(&b);
	pool_destroy(&p);
}

CASE(a_request_larger_than_the_pool_gets_a_window)
{
	const struct schedule_cut cut = { 16, 1 };
	struct trace_request a = make_request(16 * 300, 10, 5);
	struct admit admit = { .cut = &cut, .step_ms = 30 };
	struct admitted x;
	struct pool p;

	new_pool(&p, 100);
	admit.pool = &p;
	assert_int_equal(admit_request(&admit, &a, 0, &x), ADMIT_OK);
	assert_int_equal(x.blocks, 300);
	assert_int_equal(x.window, 50);
	assert_int_equal(x.held, 50);
	admit_dropped(&admit, &x);
	assert_int_equal(pool_available(&p), 100);
	admit_free(&admit);
	trace_request_free(&a);
	pool_destroy(&p);
}
