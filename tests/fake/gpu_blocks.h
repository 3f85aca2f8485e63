/* SPDX-License-Identifier: Apache-2.0 */
/* gpu_blocks.h -- six blocks of every layer, in another order at each end, in memory of a device */
#ifndef GPU_BLOCKS_H
#define GPU_BLOCKS_H

#include <poll.h>

#include "fake_cuda.h"
#include "loop/kv_rig.h"

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[] = { 5, 6, 7, 0, 95, 40 }, to[] = { 10, 11, 12, 95, 0, 3 };
enum { N = 6 };

/* Written, then other bytes read back. */
static inline void blocks_go_and_come(struct pair *p)
{
	ok(kv_write_blocks(p->a.peer, p->a.cache, all_layers, from, to, N, NULL, &p->a.err),
	   &p->a.err);
	assert_true(memory_is(&p->b, all_layers, 1, from, to, N, 0));
	assert_true(memory_is(&p->a, all_layers, 1, NULL, NULL, 0, 0));
	fill_side(&p->b, 2, 0);
	ok(kv_read_blocks(p->a.peer, p->a.cache, all_layers, to, from, N, NULL, &p->a.err),
	   &p->a.err);
	assert_true(memory_is(&p->a, all_layers, 2, from, to, N, 0));
	assert_true(memory_is(&p->b, all_layers, 2, NULL, NULL, 0, 0));
}

/* A write into a lease whose kernel does not end: revoked only when it has. Returns the write. */
static inline struct kv_op *revoke_waits_for_kernel(struct pair *p)
{
	struct kv_options options = KV_INIT(kv_options);
	struct kv_lease *lease;
	struct kv_op *op;

	ok(kv_blocks_open(p->b.peer, p->b.cache, to, N, 1, RIG_TIMEOUT_MS, &lease, &p->b.err),
	   &p->b.err);
	fake_cuda.hold = true;
	options.timeout_ms = RIG_TIMEOUT_MS;
	options.lease = kv_lease_id(lease);
	ok(kv_write_blocks_async(p->a.peer, p->a.cache, all_layers, from, to, N, &options, &op,
				 &p->a.err),
	   &p->a.err);
	while (!fake_cuda.launched)
		poll(NULL, 0, 1);
	assert_int_equal(kv_revoke(lease, 50, &p->b.err), KV_ERR_BUSY);
	fake_cuda.hold = false;
	ok(kv_revoke(lease, RIG_TIMEOUT_MS, &p->b.err), &p->b.err);
	return op;
}

#endif
