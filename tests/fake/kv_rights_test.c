/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_rights_test.c -- what a peer's device may reach: a cache that is not readable is not read, the
 * memory of a connection is open in two small parts, and nothing takes an atomic operation
 */
#include <infiniband/verbs.h>

#include "fake.h"
#include "loop/kv_rig.h"

enum {
	WRITE = IBV_ACCESS_REMOTE_WRITE,
	READ = IBV_ACCESS_REMOTE_READ,
	LOCAL = IBV_ACCESS_LOCAL_WRITE
};

static int others(void)
{
	return fake_regions(0, ~(unsigned int)(WRITE | READ | LOCAL));
}

CASE(nothing_is_open_that_need_not_be)
{
	static const uint32_t flags[] = { KV_CACHE_OPEN, KV_CACHE_OPEN | KV_CACHE_READABLE };

	for (int readable = 0; readable < 2; readable++) {
		struct shape shape = rig_shape;
		struct ibv_qp_attr attr;
		struct node a, b;
		int caches, qps = 0;

		shape.flags = flags[readable];
		node_open(&a, 1, &shape, NULL);
		node_open(&b, 2, &shape, NULL);
		caches = fake_regions(0, WRITE);
		assert_true(caches > 0);
		assert_int_equal(fake_regions(0, READ), readable ? caches : 0);
		node_listen(&b);
		node_connect(&a, b.port);
		node_await_peer(&b);
		/* Of each end the cells that are written, and the page that is read. */
		assert_int_equal(fake_regions(0, WRITE) - caches, 2);
		assert_int_equal(fake_regions(0, READ) - (readable ? caches : 0), 2);
		assert_int_equal(fake_regions(0, WRITE | READ) - caches, 4);
		assert_int_equal(others(), 0);
		for (; fake_qp_attr(qps, &attr); qps++)
			assert_int_equal(attr.qp_access_flags, WRITE | READ);
		assert_int_equal(qps, 4);
		node_close(&a);
		node_close(&b);
	}
}
