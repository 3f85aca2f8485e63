/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_spin_test.c -- who waits for a write polls on while the device completes parts of it, though
 * that takes longer than it polls for nothing: over softnic's `model`, whose port is slow here
 */
#include "base/clock.h"
#include "kv_rig.h"

enum { BLOCKS = 512, BYTES = 16384, WRITES = 20 };

static const struct kv_layers all_layers = { 0, 0 };

/* Events of completions that it took: one at most for each time that it slept. */
static uint64_t calls_of(const struct node *node)
{
	struct kv_stats stats = KV_INIT(kv_stats);

	assert_int_equal(kv_stats(node->engine, &stats, NULL), 0);
	return stats.syscalls;
}

/* Until the device has done all: the acknowledgement is another thread's, which may be late. */
CASE(a_writer_does_not_sleep_between_two_completions)
{
	const char *options[] = { "KVCACHE_SPIN_US=200", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct shape shape = rig_shape;
	int64_t ids[BLOCKS], begun;
	int lasted = 0, slept = 0;
	struct kv_op *op;
	struct pair p;

	config.options = options;
	shape.layers = 1;
	shape.blocks = BLOCKS;
	shape.block_bytes[0] = shape.block_bytes[1] = BYTES;
	shape.stride[0] = shape.stride[1] = BYTES;
	node_open(&p.b, 2, &shape, &config);
	node_listen(&p.b);
	config.progress = KV_PROGRESS_CALLER; /* no other thread of the writer takes its peer */
	node_open(&p.a, 1, &shape, &config);
	node_connect(&p.a, p.b.port);
	for (int i = 0; i < BLOCKS; i++)
		ids[i] = BLOCKS - 1 - i;
	for (int i = 0; i < WRITES; i++) {
		uint64_t before;

		ok(kv_write_blocks_async(p.a.peer, p.a.cache, all_layers, ids, ids, BLOCKS, NULL,
					 &op, &p.a.err),
		   &p.a.err);
		before = calls_of(&p.a);
		begun = kv_now_ns();
		ok(kv_wait(op, KV_SENT, RIG_TIMEOUT_MS, &p.a.err), &p.a.err);
		lasted += kv_now_ns() - begun > KV_NS_PER_MS;
		slept += calls_of(&p.a) > before + 1;
		ok(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &p.a.err), &p.a.err);
		ok(kv_op_free(op, &p.a.err), &p.a.err);
	}
	/* Half: a busy machine may keep this thread from its processor for long. */
	assert_in_range(lasted, WRITES / 2, WRITES);
	assert_in_range(slept, 0, WRITES / 2);
	pair_close(&p);
}

int main(void)
{
	return run_cases(NULL, NULL);
}
