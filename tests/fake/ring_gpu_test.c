/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ring_gpu_test.c -- a GPU's memory through the rings of shm, with kernels that end when the test
 * says so: what follows them waits
 */
#include <string.h>

#include "base/clock.h"
#include "fake_cuda.h"
#include "lib/slow.h"
#include "lib/test.h"
#include "rig.h"

enum { RING = 65536, LEN = 4 * RING, TURNS = 1000, BUDGET = 200000 };

/* Side 0 has host memory, side 1 a GPU. */
struct ends {
	struct rig rig;
	uint8_t host[LEN], *seen, *addr;
	struct tr_mem *mem[2];
	struct tr_rmem *rmem[2]; /* what side i sees of the other */
};
static struct ends ends;

static struct ends *begin(void)
{
	static const char *const options[] = { "KVCACHE_SHM_PATH=ring", "KVCACHE_SHM_RING=65536",
					       NULL };
	struct ends *e = &ends;
	struct kv_error err;

	rig_make(&e->rig, "shm", options);
	e->seen = fake_cuda_alloc(LEN, &e->addr);
	memset(e->seen, 0, LEN);
	for (size_t i = 0; i < LEN; i++)
		e->host[i] = rig_byte(1, i);
	e->mem[0] = rig_reg(&e->rig, 0, e->host, LEN, TR_REMOTE_WRITE | TR_REMOTE_READ);
	if (tr_mem_reg(e->rig.side[1].tr, e->addr, LEN, TR_MEM_CUDA,
		       TR_REMOTE_WRITE | TR_REMOTE_READ, &e->mem[1], &err))
		fail_msg("register: %s", err.message);
	for (int i = 0; i < 2; i++)
		e->rmem[i] = rig_see(&e->rig, i, e->mem[!i]);
	return e;
}

static void end(struct ends *e)
{
	rig_disconnect(&e->rig);
	for (int i = 0; i < 2; i++)
		assert_int_equal(tr_mem_dereg(e->mem[i], NULL), 0);
	rig_close(&e->rig);
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
}

static void turn(struct ends *e, int n)
{
	while (n--)
		rig_pump(&e->rig);
}

static struct tr_op *begin_op(struct ends *e, int side, int kind, size_t len)
{
	struct tr_span span = { 0, 0, len };
	struct kv_error err;
	struct tr_op *op;

	assert_int_equal(tr_op_begin(e->rig.side[side].conn, kind, 7, &op, &err), 0);
	assert_int_equal(tr_op_add(op, e->mem[side], e->rmem[side], &span, 1, &err), 1);
	return op;
}

/* The ring is not written over before the kernel has read it, and the notify comes last. */
CASE(what_a_kernel_reads_stays_and_the_notify_follows)
{
	struct ends *e = begin();
	struct tr_op *op;
	int ret;

	fake_cuda.hold = true;
	op = begin_op(e, 0, TR_WRITE, LEN);
	for (int i = 0; i < TURNS; i++) {
		rig_pump(&e->rig);
		assert_int_equal(tr_op_commit(op, TR_NOTIFY, 9, NULL), TR_AGAIN);
	}
	assert_int_equal(fake_cuda.launched, 1);
	assert_null(rig_find(&e->rig, 1, TR_NOTIFIED));
	fake_cuda.hold = false;
	fake_cuda.slow = 3;
	while ((ret = tr_op_commit(op, TR_NOTIFY, 9, NULL)) == TR_AGAIN)
		rig_pump(&e->rig);
	assert_int_equal(ret, 0);
	assert_non_null(rig_wait(&e->rig, 1, TR_NOTIFIED, BUDGET));
	assert_memory_equal(e->seen, e->host, LEN);
	assert_non_null(rig_wait(&e->rig, 0, TR_WRITTEN, BUDGET));
	end(e);
}

/* Its last words still count, although a kernel has to end before them. */
CASE(a_writer_that_leaves_is_heard_to_the_end)
{
	struct ends *e = begin();

	fake_cuda.hold = true;
	assert_int_equal(tr_op_commit(begin_op(e, 0, TR_WRITE, 4096), TR_NOTIFY, 9, NULL), 0);
	rig_pump_side(&e->rig, 1);
	assert_int_equal(fake_cuda.launched, 1);
	assert_int_equal(tr_conn_arm(e->rig.side[1].conn), 1); /* nothing would wake it */
	tr_conn_close(e->rig.side[0].conn);
	e->rig.side[0].conn = NULL;
	for (int i = 0; i < TURNS; i++)
		rig_pump_side(&e->rig, 1);
	assert_null(rig_find(&e->rig, 1, TR_PEER_LOST));
	assert_null(rig_find(&e->rig, 1, TR_NOTIFIED));
	fake_cuda.hold = false;
	for (int i = 0; i < BUDGET && !rig_find(&e->rig, 1, TR_PEER_LOST); i++)
		rig_pump_side(&e->rig, 1);
	assert_non_null(rig_find(&e->rig, 1, TR_NOTIFIED));
	assert_memory_equal(e->seen, e->host, 4096);
	end(e);
}

/* What a kernel gathers is not sent, and its operation does not end, before it has ended. */
CASE(what_is_gathered_waits_for_the_kernel)
{
	struct ends *e = begin();
	struct tr_op *op;

	for (size_t i = 0; i < LEN; i++)
		e->seen[i] = rig_byte(2, i);
	fake_cuda.hold = true;
	op = begin_op(e, 1, TR_WRITE, 4096);
	assert_int_equal(tr_msg(e->rig.side[1].conn, "after", 5, NULL), 0);
	for (int i = 0; i < TURNS; i++) {
		rig_pump(&e->rig);
		assert_int_equal(tr_op_commit(op, TR_NOTIFY, 9, NULL), TR_AGAIN);
		assert_int_equal(tr_conn_arm(e->rig.side[1].conn), 1); /* nothing would wake it */
	}
	assert_null(rig_find(&e->rig, 0, TR_MSG));
	fake_cuda.hold = false;
	assert_non_null(rig_wait(&e->rig, 0, TR_MSG, BUDGET));
	assert_memory_equal(e->host, e->seen, 4096);
	assert_int_equal(tr_op_commit(op, TR_NOTIFY, 9, NULL), 0);
	assert_non_null(rig_wait(&e->rig, 0, TR_NOTIFIED, BUDGET));
	end(e);
}

/* A read that is cancelled while a kernel writes: it ends when that has, or never well. */
CASE(a_cancelled_read_waits_for_the_kernel)
{
	const struct rig_event *lost;

	for (int ends_in_time = 0; ends_in_time < 2; ends_in_time++) {
		struct ends *e = begin();
		struct tr_op *op = begin_op(e, 1, TR_READ_OP, 4096);
		int64_t deadline_ns = kv_deadline_ns(ends_in_time ? slow_ms(10000) : 0);

		fake_cuda.hold = true;
		assert_int_equal(tr_op_commit(op, 0, 0, NULL), 0);
		turn(e, 10);
		assert_int_equal(fake_cuda.launched, 1);
		fake_cuda.hold = !ends_in_time;
		assert_int_equal(tr_op_cancel(op, deadline_ns, NULL), 0);
		if (ends_in_time) {
			assert_non_null(rig_wait(&e->rig, 1, TR_READ, BUDGET));
			assert_memory_equal(e->seen, e->host, 4096);
		} else {
			lost = rig_wait(&e->rig, 1, TR_PEER_LOST, BUDGET);
			assert_non_null(lost);
			assert_int_equal(lost->cause.code, KV_ERR_TIMEOUT);
			assert_non_null(rig_find(&e->rig, 1, TR_IN_DOUBT));
			assert_null(rig_find(&e->rig, 1, TR_CANCELLED));
			assert_int_equal(tr_mem_dereg(e->mem[1], NULL), KV_ERR_BUSY);
		}
		fake_cuda.hold = false;
		end(e);
	}
}

int main(void)
{
	return run_cases(NULL, NULL);
}
