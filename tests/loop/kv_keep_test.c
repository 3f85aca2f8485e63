/* SPDX-License-Identifier: Apache-2.0 */
/* kv_keep_test.c -- what an operation or a lease of very many blocks leaves behind: nothing */
#include "kv_rig.h"

#include <malloc.h>
#include <poll.h>
#include <stdlib.h>

#include "base/clock.h"

enum { MANY = KV_CALL_BLOCKS_MAX, LEASED = KV_LEASE_BLOCKS_MAX };
/* What may stay of the heap: short arrays of ids, and what the engines' threads hold just then. */
enum { SMALL = 64 << 10 };

static const struct kv_layers all_layers = { 0, 0 };
static const struct shape narrow = {
	.layers = 1,
	.blocks = MANY,
	.block_bytes = { 1, 1 },
	.stride = { 1, 1 },
	.tp_size = 1,
};
static int64_t *ids; /* 0, 2, 4 ... 1, 3, 5 ...: no two neighbours merge */

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
size_t __sanitizer_get_current_allocated_bytes(void);
static size_t heap(void)
{
	return __sanitizer_get_current_allocated_bytes();
}
#else
static size_t heap(void)
{
	struct mallinfo2 info = mallinfo2();

	return info.uordblks + info.hblkhd;
}
#endif

/* The writer forgets a lease a moment after it has answered the receiver. */
static void await_heap(size_t most)
{
	for (int64_t end = kv_deadline_ns(RIG_TIMEOUT_MS); heap() > most && kv_now_ns() < end;)
		poll(NULL, 0, 1);
	assert_in_range(heap(), 0, most);
}

static struct pair p;

static struct kv_lease *open_blocks(size_t n)
{
	struct kv_lease *lease;

	ok(kv_blocks_open(p.b.peer, p.b.cache, ids, n, 1, RIG_TIMEOUT_MS, &lease, &p.b.err),
	   &p.b.err);
	return lease;
}

/* Begins a write to the lease after this one, which is never opened: it keeps its ids and waits. */
static struct kv_op *write_early(const struct kv_lease *lease, size_t n)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_op *op;

	opts.lease = kv_lease_id(lease) + (1 << 16) + 1; /* serial, place in the table */
	opts.timeout_ms = RIG_TIMEOUT_MS;
	ok(kv_write_blocks_async(p.a.peer, p.a.cache, all_layers, ids, ids, n, &opts, &op,
				 &p.a.err),
	   &p.a.err);
	return op;
}

static void cancel_and_free(struct kv_op *op)
{
	ok(kv_cancel(op, RIG_TIMEOUT_MS, &p.a.err), &p.a.err);
	ok(kv_op_free(op, &p.a.err), &p.a.err);
}

static void move_pair(size_t n)
{
	struct kv_op *send, *recv;

	ok(kv_send_blocks_async(p.a.peer, p.a.cache, all_layers, ids, n, 7, NULL, &send, &p.a.err),
	   &p.a.err);
	ok(kv_recv_blocks_async(p.b.peer, p.b.cache, all_layers, ids, n, 7, NULL, &recv, &p.b.err),
	   &p.b.err);
	ok(kv_wait(send, KV_ACKED, RIG_TIMEOUT_MS, &p.a.err), &p.a.err);
	ok(kv_wait(recv, KV_ACKED, RIG_TIMEOUT_MS, &p.b.err), &p.b.err);
	ok(kv_op_free(send, &p.a.err), &p.a.err);
	ok(kv_op_free(recv, &p.b.err), &p.b.err);
}

/* A second time costs nothing new: records, tables of blocks, arrays of a few ids. */
static int open_pair(void **state)
{
	struct kv_lease *lease;

	pair_open(&p, &narrow, NULL);
	lease = open_blocks(8);
	cancel_and_free(write_early(lease, 8));
	ok(kv_revoke(lease, RIG_TIMEOUT_MS, &p.b.err), &p.b.err);
	move_pair(8);
	return 0;
}

static int close_pair(void **state)
{
	pair_close(&p);
	return 0;
}

CASE_WITH(a_million_ids_go_with_the_end_of_their_operation, open_pair, close_pair)
{
	struct kv_lease *lease = open_blocks(8);
	size_t before = heap(), kept = 2 * MANY * sizeof(*ids);
	struct kv_op *op = write_early(lease, MANY);

	assert_in_range(heap() - before, kept - SMALL, kept + SMALL);
	ok(kv_cancel(op, RIG_TIMEOUT_MS, &p.a.err), &p.a.err);
	assert_in_range(heap(), 0, before + SMALL); /* the handle is still there */
	ok(kv_op_free(op, &p.a.err), &p.a.err);
	ok(kv_revoke(lease, RIG_TIMEOUT_MS, &p.b.err), &p.b.err);
}

CASE_WITH(the_ids_of_a_lease_go_with_it_on_both_sides, open_pair, close_pair)
{
	size_t before = heap();
	struct kv_lease *lease = open_blocks(LEASED);
	struct kv_options opts = KV_INIT(kv_options);

	opts.lease = kv_lease_id(lease);
	ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, ids, ids, LEASED, &opts, &p.a.err),
	   &p.a.err);
	assert_in_range(heap() - before, LEASED * (4 + 8) - SMALL, 2 * LEASED * (4 + 8));
	ok(kv_revoke(lease, RIG_TIMEOUT_MS, &p.b.err), &p.b.err);
	await_heap(before + SMALL);
}

CASE_WITH(a_send_and_its_receive_leave_no_ids, open_pair, close_pair)
{
	size_t before = heap();

	for (int i = 0; i < 2; i++)
		move_pair(LEASED);
	await_heap(before + SMALL);
}

int main(int argc, char **argv)
{
	if (argc > 1)
		rig_path(argv[1]);
	ids = malloc(MANY * sizeof(*ids));
	assert_non_null(ids);
	for (int64_t i = 0; i < MANY; i++)
		ids[i] = i < MANY / 2 ? 2 * i : 2 * i - MANY + 1;
	return run_cases(NULL, NULL);
}
