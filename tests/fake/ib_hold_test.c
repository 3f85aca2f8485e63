/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_hold_test.c -- when a region may go: never while something uses it, always when nothing does,
 * and it is never shared after its owner was given 0
 */
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/clock.h"
#include "base/fault.h"
#include "lib/bar.h"
#include "lib/test.h"
#include "provider.h"
#include "setting.h"

enum { REGIONS = 40, BLOCK = 4096, SIZE = REGIONS * BLOCK, MANY_MS = 20000 };

static bool holds(struct tr *tr, const struct tr_mem *mem)
{
	struct tr_mem *found = tr_mem_get(tr, mem->id);

	if (found)
		tr_mem_put(found);
	return found == mem;
}

/* All or none. */
static int dereg_all(struct setting *s, struct tr_mem **mems, size_t n)
{
	struct tr *tr = s->rig.side[0].tr;
	struct tr_mem *gone;
	int ret = tr_mem_dereg_begin(tr, mems, n, &gone, NULL);

	if (!ret)
		tr_mem_dereg_end(tr, gone);
	return ret;
}

/* One operation of `n` regions, one block each, of two calls each. */
static void begin_op(struct setting *s, struct tr_mem **mems, int n, struct tr_op **op_p)
{
	struct kv_error err;

	assert_int_equal(tr_op_begin(s->rig.side[0].conn, TR_WRITE, 1, op_p, &err), 0);
	for (int half = 0; half < 2; half++)
		for (int i = 0; i < n; i++) {
			uint64_t at = (uint64_t)half * (BLOCK / 2);
			struct tr_span span = { at, (uint64_t)i * BLOCK + at, BLOCK / 2 };

			assert_int_equal(tr_op_add(*op_p, mems[i], s->rmem[0], &span, 1, &err), 1);
		}
}

CASE(an_operation_of_many_regions_holds_these_and_no_other)
{
	static uint8_t bytes[REGIONS][BLOCK], spare[BLOCK];
	struct tr_mem *mem[REGIONS], *other;
	struct setting s;
	struct kv_error err;
	struct tr_op *op;

	setting_make(&s, NULL, NULL, SIZE);
	for (int i = 0; i < REGIONS; i++)
		mem[i] = rig_reg(&s.rig, 0, bytes[i], BLOCK, 0);
	for (int round = 0; round < 3; round++) { /* the list is used again */
		other = rig_reg(&s.rig, 0, spare, BLOCK, 0);
		memset(bytes, round + 1, sizeof(bytes));
		fake_hold_answers(true);
		begin_op(&s, mem, REGIONS - round, &op);
		assert_int_equal(tr_op_commit(op, TR_NOTIFY, 7, &err), 0);
		for (int i = 0; i < REGIONS; i++) {
			bool used = i < REGIONS - round;

			assert_int_equal(tr_mem_dereg(mem[i], &err), used ? KV_ERR_BUSY : 0);
			if (!used)
				mem[i] = rig_reg(&s.rig, 0, bytes[i], BLOCK, 0);
		}
		assert_int_equal(tr_mem_dereg(other, &err), 0);
		fake_hold_answers(false);
		setting_expect_written(&s, 0, 1);
		setting_expect_notify(&s, 1, 7);
		assert_memory_equal(setting_at(&s, 1, 0), bytes, (size_t)(REGIONS - round) * BLOCK);
	}
	/* A cancelled one lets go as well. */
	begin_op(&s, mem, REGIONS, &op);
	assert_int_equal(tr_op_cancel(op, kv_deadline_ns(MANY_MS), &err), 0);
	assert_non_null(rig_wait(&s.rig, 0, TR_CANCELLED, BUDGET));
	begin_op(&s, mem + REGIONS - 1, 1, &op);
	assert_int_equal(dereg_all(&s, mem, REGIONS), KV_ERR_BUSY);
	assert_int_equal(tr_op_commit(op, 0, 0, &err), 0);
	setting_expect_written(&s, 0, 1);
	for (int i = 0; i < REGIONS; i++)
		assert_true(holds(s.rig.side[0].tr, mem[i]));
	assert_int_equal(dereg_all(&s, mem, REGIONS), 0);
	setting_end(&s);
}

CASE(an_operation_without_room_for_its_list_is_refused)
{
	static uint8_t bytes[REGIONS][BLOCK];
	struct tr_mem *mem[REGIONS];
	struct tr_span span = { 0, 0, BLOCK };
	struct setting s;
	struct kv_error err;
	struct tr_op *op;

	setting_make(&s, NULL, NULL, SIZE);
	for (int i = 0; i < REGIONS; i++)
		mem[i] = rig_reg(&s.rig, 0, bytes[i], BLOCK, 0);
	begin_op(&s, mem, TR_OP_MEMS, &op);
	kv_fault_arm(KV_FAULT_TR_OP_WIDE, 1);
	assert_int_equal(tr_op_add(op, mem[TR_OP_MEMS], s.rmem[0], &span, 1, &err), KV_ERR_NOMEM);
	assert_int_equal(tr_mem_dereg(mem[TR_OP_MEMS], &err), 0);
	assert_int_equal(tr_mem_dereg(mem[0], &err), KV_ERR_BUSY);
	mem[TR_OP_MEMS] = rig_reg(&s.rig, 0, bytes[TR_OP_MEMS], BLOCK, 0);
	assert_int_equal(tr_op_add(op, mem[TR_OP_MEMS], s.rmem[0], &span, 1, &err), 1);
	assert_int_equal(tr_op_commit(op, 0, 0, &err), 0);
	setting_expect_written(&s, 0, 1);
	assert_int_equal(dereg_all(&s, mem, REGIONS), 0);
	setting_end(&s);
}

/* Memory that was given back may be something else in the next moment. */
CASE(a_region_is_not_shared_after_an_owner_gave_it_back)
{
	static uint8_t bytes[4 * BLOCK];
	struct tr_mem *mem, *part, *again, *third;
	struct fake_counts before, after;
	struct setting s;
	struct tr_op *op;
	struct tr_span span = { 0, 0, BLOCK };

	setting_make(&s, NULL, NULL, SIZE);
	fake_counts(&before);
	/* The owner of a part does not promise the rest. */
	mem = rig_reg(&s.rig, 0, bytes, sizeof(bytes), 0);
	part = rig_reg(&s.rig, 0, bytes + BLOCK, BLOCK, 0);
	assert_ptr_equal(part, mem);
	assert_int_equal(tr_mem_dereg(mem, NULL), 0);
	again = rig_reg(&s.rig, 0, bytes, sizeof(bytes), 0);
	assert_ptr_not_equal(again, part);
	assert_int_equal(tr_mem_dereg(part, NULL), 0);
	/* Another one of the whole does. */
	third = rig_reg(&s.rig, 0, bytes, sizeof(bytes), 0);
	assert_ptr_equal(third, again);
	assert_int_equal(tr_mem_dereg(third, NULL), 0);
	third = rig_reg(&s.rig, 0, bytes, BLOCK, 0);
	assert_ptr_equal(third, again);
	assert_int_equal(tr_mem_dereg(third, NULL), 0);
	/* Abandoned: it goes when its last use has ended. */
	mem = again;
	fake_hold_answers(true);
	assert_int_equal(tr_op_begin(s.rig.side[0].conn, TR_WRITE, 1, &op, NULL), 0);
	assert_int_equal(tr_op_add(op, mem, s.rmem[0], &span, 1, NULL), 1);
	assert_int_equal(tr_op_commit(op, 0, 0, NULL), 0);
	tr_mem_abandon(mem);
	again = rig_reg(&s.rig, 0, bytes, sizeof(bytes), 0);
	assert_ptr_not_equal(again, mem);
	assert_true(holds(s.rig.side[0].tr, mem));
	fake_hold_answers(false);
	setting_expect_written(&s, 0, 1);
	assert_int_equal(tr_mem_dereg(again, NULL), 0);
	fake_counts(&after);
	assert_int_equal(after.mrs, before.mrs);
	setting_end(&s);
}

struct registering {
	struct tr *tr;
	void *addr;
	struct tr_mem *mem;
	int ret;
};

static void *register_slowly(void *arg)
{
	struct registering *r = arg;

	r->ret = tr_mem_reg(r->tr, r->addr, BLOCK, TR_MEM_HOST, 0, &r->mem, NULL);
	return NULL;
}

/* Pinning takes a second for 64 GiB, and more. */
CASE(other_calls_do_not_wait_for_a_registration)
{
	struct setting s;
	struct registering r;
	struct tr_mem *mem, *known;
	struct kv_error err;
	pthread_t thread;
	uint8_t *pool, *pool2, *own;

	setting_make(&s, NULL, NULL, SIZE);
	r.tr = s.rig.side[0].tr;
	own = aligned_alloc(4096, BLOCK);
	known = rig_reg(&s.rig, 0, own, BLOCK, 0);
	mem = rig_reg(&s.rig, 0, own, BLOCK, TR_REMOTE_READ);
	assert_ptr_not_equal(mem, known);
	assert_int_equal(tr_alloc(r.tr, 2 * BLOCK, (void **)&pool, &err), 0);
	r.addr = pool;
	fake_hold_reg(true);
	assert_int_equal(pthread_create(&thread, NULL, register_slowly, &r), 0);
	while (!fake_reg_waits())
		poll(NULL, 0, 1);
	/* Registered as far as its pool goes, but nobody shares it before it is. */
	assert_int_equal(tr_free(r.tr, pool, &err), KV_ERR_BUSY);
	assert_int_equal(tr_alloc(r.tr, BLOCK, (void **)&pool2, &err), 0);
	assert_int_equal(tr_free(r.tr, pool2, &err), 0);
	assert_int_equal(tr_mem_dereg(mem, &err), 0);
	mem = rig_reg(&s.rig, 0, own, BLOCK, 0);
	assert_ptr_equal(mem, known);
	assert_int_equal(tr_mem_dereg(mem, &err), 0);
	assert_int_equal(tr_mem_dereg(known, &err), 0);
	fake_hold_reg(false);
	pthread_join(thread, NULL);
	assert_int_equal(r.ret, 0);
	assert_int_equal(tr_mem_dereg(r.mem, &err), 0);
	assert_int_equal(tr_free(r.tr, pool, &err), 0);
	free(own);
	setting_end(&s);
}

/* A sparse terabyte has no page to look at. */
CASE(a_terabyte_is_looked_at_as_quickly_as_a_page)
{
	const size_t len = (size_t)1 << 40;
	uint8_t *big =
		mmap(NULL, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct bar began = bar_begin();
	struct kv_error err;
	struct tr_mem *mem;
	struct rig rig;

	assert_ptr_not_equal(big, MAP_FAILED);
	fake_begin(NULL);
	assert_int_equal(rig_open(&rig, "shm", NULL, &err), 0);
	assert_int_equal(tr_mem_reg(rig.side[0].tr, big, len, TR_MEM_HOST, 0, &mem, &err), 0);
	assert_int_equal(tr_mem_dereg(mem, &err), 0);
	assert_true(bar_holds(began, 2000, "registering what was never touched"));
	munmap(big + len / 2, 4096);
	assert_int_equal(tr_mem_reg(rig.side[0].tr, big, len, TR_MEM_HOST, 0, &mem, &err),
			 KV_ERR_SYSTEM);
	munmap(big, len);
	rig_close(&rig);
	assert_true(fake_end());
}

/* ---------------------------------------------------------------- a device in trouble */

static void write_once(struct setting *s)
{
	struct tr_span span = { 0, 0, SIZE };
	struct kv_error err;
	struct tr_op *op;

	if (tr_op_begin(s->rig.side[0].conn, TR_WRITE, 1, &op, &err) ||
	    tr_op_add(op, s->mem[0], s->rmem[0], &span, 1, &err) != 1 ||
	    tr_op_commit(op, 0, 0, &err))
		return;
}

/*
 * Closed without a fence, and the queue pair stays in the device: an owner of the same region gets
 * BUSY as long as the peer can write to it, and after 0 nothing lands.
 */
CASE(a_region_stays_until_the_device_has_destroyed_the_queue_pair)
{
	struct fake_config config = { .threads = true };
	int64_t end = kv_deadline_ns(MANY_MS);
	struct tr_mem *second, *elsewhere, *alone;
	static uint8_t bytes[BLOCK], others[BLOCK];
	struct setting s;
	struct kv_error err;
	int busy = 0;

	setting_make(&s, &config, NULL, SIZE);
	second = rig_reg(&s.rig, 1, setting_at(&s, 1, 0), SIZE, TR_REMOTE_WRITE | TR_REMOTE_READ);
	assert_ptr_equal(second, s.mem[1]); /* another connection's, say */
	elsewhere = rig_reg(&s.rig, 1, bytes, BLOCK, TR_REMOTE_WRITE);
	alone = rig_reg(&s.rig, 1, others, BLOCK, TR_REMOTE_WRITE);
	rig_see(&s.rig, 0, alone);
	fake_slow_teardown(1, 300);
	tr_conn_close(s.rig.side[1].conn);
	s.rig.side[1].conn = NULL;
	assert_int_equal(tr_mem_dereg(elsewhere, &err), 0); /* the peer never heard of it */
	/* Nobody else keeps it: this takes it from the device. */
	assert_int_equal(tr_mem_dereg(alone, &err), 0);
	while (tr_mem_dereg(second, &err) == KV_ERR_BUSY) {
		assert_true(kv_now_ns() < end);
		busy++;
		write_once(&s);
		rig_pump(&s.rig);
	}
	assert_true(busy > 0);
	memset(setting_at(&s, 1, 0), 0x77, SIZE);
	for (int i = 0; i < 100; i++) {
		write_once(&s);
		rig_pump(&s.rig);
	}
	fake_settle();
	for (int i = 0; i < SIZE; i++)
		assert_int_equal(*setting_at(&s, 1, (size_t)i), 0x77);
	while (tr_fence(s.rig.side[0].conn, 0, NULL) == TR_AGAIN)
		assert_true(kv_now_ns() < end);
	setting_end(&s);
}

/* A device that refuses at first is asked again; the region stays until it has agreed. */
CASE(a_region_comes_back_from_a_device_that_refuses_for_a_while)
{
	for (int threads = 0; threads < 2; threads++) {
		struct fake_config config = { .threads = threads };
		int64_t end = kv_deadline_ns(MANY_MS);
		struct tr_mem *second;
		struct setting s;
		struct kv_error err;

		setting_make(&s, &config, NULL, SIZE);
		second = rig_reg(&s.rig, 1, setting_at(&s, 1, 0), SIZE,
				 TR_REMOTE_WRITE | TR_REMOTE_READ);
		fake_refuse_destroy(1, 5);
		tr_conn_close(s.rig.side[1].conn);
		s.rig.side[1].conn = NULL;
		while (tr_mem_dereg(second, &err) == KV_ERR_BUSY) {
			assert_true(kv_now_ns() < end);
			poll(NULL, 0, 1);
		}
		setting_end(&s);
	}
}

CASE(a_fence_holds_only_when_the_queue_pairs_are_gone)
{
	static const char *const one_lane[] = { "KVCACHE_IB_LANES=1", NULL };
	int64_t end = kv_deadline_ns(MANY_MS);
	struct setting s;
	int again = 0;

	setting_make(&s, NULL, one_lane, SIZE);
	fake_refuse_destroy(1, 20);
	while (tr_fence(s.rig.side[1].conn, 0, NULL) == TR_AGAIN) {
		assert_true(kv_now_ns() < end);
		again++;
		rig_pump_side(&s.rig, 1);
	}
	assert_true(again >= 20);
	setting_end(&s);
}
