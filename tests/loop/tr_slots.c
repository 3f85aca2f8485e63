/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr_slots.c -- slots of operations: made as they are needed, used again, and never more than
 * TR_OPS_MAX
 */
#include "base/fault.h"
#include "conn.h"
#include "lib/test.h"
#include "tr_pair.h"

enum { BLOCK = 64, REGION = TR_OPS_MAX * BLOCK, SEED = 3 };

static struct tr_op *begin_one(struct pair_side *s, unsigned int i)
{
	struct kv_error err;
	struct tr_op *op;

	PAIR_CHECK(!tr_op_begin(s->conn, TR_WRITE, i, &op, &err));
	return op;
}

static void write_alone(struct pair_side *s)
{
	struct tr_op *op = begin_one(s, 0);

	pair_commit(s, op, 0, 0);
	pair_wait_ended(s, s->ended + 1);
}

static void writer(struct pair_side *s)
{
	static struct tr_op *op[TR_OPS_MAX];
	struct tr_op *more;
	struct kv_error err;

	pair_up(s);
	pair_fill(s->base, SEED, 0, REGION);
	for (int i = 0; i < 3 * CONN_CHUNK; i++)
		write_alone(s); /* one after the other: the same slot */
	PAIR_CHECK(tr_conn_ops(s->conn) == CONN_CHUNK);
	for (unsigned int i = 0; i < TR_OPS_MAX; i++) {
#ifdef KVRAIL_FAULTS
		if (i == 2 * CONN_CHUNK) { /* no memory for further ones: it is tried again */
			kv_fault_arm(KV_FAULT_TR_OP_CHUNK, 1);
			PAIR_CHECK(tr_op_begin(s->conn, TR_WRITE, i, &more, &err) == TR_AGAIN);
		}
#endif
		op[i] = begin_one(s, i);
		PAIR_CHECK(tr_conn_ops(s->conn) == i / CONN_CHUNK * CONN_CHUNK + CONN_CHUNK);
	}
	PAIR_CHECK(tr_op_begin(s->conn, TR_WRITE, 0, &more, &err) == TR_AGAIN);
	for (unsigned int i = TR_OPS_MAX; i-- > 0;)
		pair_add(s, op[i], &(struct tr_span){ i * BLOCK, i * BLOCK, BLOCK }, 1);
	for (unsigned int i = 0; i < TR_OPS_MAX; i++)
		pair_commit(s, op[i], TR_NOTIFY, i);
	pair_wait_ended(s, 3 * CONN_CHUNK + TR_OPS_MAX);
	write_alone(s);
	pair_meet(s);
	pair_down(s);
}

static void reader(struct pair_side *s)
{
	pair_up(s);
	pair_wait_notifies(s, TR_OPS_MAX);
	for (unsigned int i = 0; i < TR_OPS_MAX; i++)
		PAIR_CHECK(s->notified[i] == i);
	PAIR_CHECK(pair_differs(s->base, SEED, 0, REGION) < 0);
	pair_meet(s);
	pair_down(s);
}

static void all_slots_are_made_as_needed_and_no_more_than_there_may_be(void **state)
{
	const char *path = *state;
	struct pair_config config = { .parent_path = path, .child_path = path, .region = REGION };

	config.parent_pool = config.child_pool = !strcmp(path, "pool");
	assert_int_equal(pair_run(&config, writer, reader), 0);
}

#define OVER(path)                                                                              \
	{                                                                                       \
		"all_slots_are_made_as_needed_and_no_more_than_there_may_be (" path ")",        \
			all_slots_are_made_as_needed_and_no_more_than_there_may_be, NULL, NULL, \
			(void *)path                                                            \
	}

int main(void)
{
	const struct CMUnitTest tests[] = { OVER("pool"), OVER("cma"), OVER("ring"), OVER("tcp") };

	return cmocka_run_group_tests(tests, NULL, NULL);
}
