/* SPDX-License-Identifier: Apache-2.0 */
/* kv_write_test.c -- one-sided operations between two engines: bytes, neighbours, and errors before any byte moves */
#include "kv_rig.h"

#include <stdlib.h>
#include <string.h>

static const struct kv_layers all_layers = { 0, 0 };

static void a_write_lands_in_its_blocks_and_nowhere_else(void **state)
{
	static const int64_t from[] = { 5, 6, 7, 0, 95, 40 }, to[] = { 10, 11, 12, 95, 0, 3 };
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_arrival arrival;
	struct pair p;

	(void)state;
	pair_open(&p, NULL, NULL);
	opts.tag = 77;
	ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, 6, &opts, &p.a.err),
	   &p.a.err);
	assert_true(memory_is(&p.b, all_layers, 1, from, to, 6, 0));
	assert_true(next_arrival(&p.b, &arrival, 1000));
	assert_int_equal(arrival.tag, 77);
	assert_int_equal(arrival.blocks, 6);
	assert_int_equal(arrival.bytes, 6 * RIG_LAYERS * (512 + 320));
	assert_ptr_equal(arrival.peer, p.b.peer);
	assert_ptr_equal(arrival.cache, p.b.cache);
	assert_int_equal(arrival.layers.count, RIG_LAYERS);
	assert_int_equal(kv_poll_arrivals(p.b.engine, &arrival, 1, NULL), 0);
	pair_close(&p);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_write_lands_in_its_blocks_and_nowhere_else),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
