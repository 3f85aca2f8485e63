/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr_shm_piece.c -- a span of any length is copied in pieces: no call keeps its caller for all of
 * it
 */
#include <string.h>

#include "lib/test.h"
#include "shm/shm.h"
#include "tr_pair.h"

enum { REGION = 16 << 20, SOURCE = 1, TARGET = 2 };

struct way {
	const char *path;
	bool pool;
	unsigned int flags; /* of the operations */
	unsigned int conn_flags;
	int kind;
};

static const struct tr_span whole = { .len = REGION };

static struct shm_conn *shm_of(struct pair_side *s)
{
	return tr_conn_priv(s->conn);
}

/* One call, by whatever path: bytes that went into the ring, or that were copied. */
static uint64_t add_once(struct pair_side *s, struct tr_op *op, long *n_p)
{
	struct shm_conn *sc = shm_of(s);
	uint64_t tail = sc->out.tail, done = shm_op_of(op)->part.done;
	struct kv_error err;

	*n_p = tr_op_add(op, s->mem, s->rmem, &whole, 1, &err);
	PAIR_CHECK(*n_p >= 0);
	if (sc->out.tail != tail)
		return sc->out.tail - tail;
	return (*n_p ? REGION : shm_op_of(op)->part.done) - done;
}

static void mover(struct pair_side *s)
{
	const struct way *way = s->config->arg;
	uint64_t most = SHM_ADD_BYTES + SHM_ADD_BYTES / 64; /* heads of records */
	struct tr_op *op;
	int calls = 0;
	long n = 0;

	pair_up(s);
	pair_fill(s->base, SOURCE, 0, REGION);
	pair_meet(s);
	op = pair_begin(s, way->kind | (int)way->flags, 1);
	while (!n) {
		PAIR_CHECK(add_once(s, op, &n) <= most);
		/* It does not sleep with bytes to copy. */
		PAIR_CHECK(n || tr_conn_arm(s->conn));
		if (!n)
			pair_poll(s, 1);
		calls++;
	}
	/* What a ring has accepted follows in pieces, too. */
	while (shm_of(s)->rest.op) {
		uint64_t tail = shm_of(s)->out.tail;

		pair_poll(s, 1);
		PAIR_CHECK(shm_of(s)->out.tail - tail <= most);
	}
	PAIR_CHECK(calls == 1 || calls >= REGION / SHM_ADD_BYTES);
	pair_commit(s, op, way->kind == TR_WRITE ? TR_NOTIFY : 0, 5);
	pair_wait_ended(s, 1);
	if (way->kind == TR_READ_OP) {
		PAIR_CHECK(pair_differs(s->base, TARGET, 0, REGION) < 0);
		pair_send(s, "done", 4);
	}
	/* One that is given up in the middle: what is not copied is not. */
	if (way->kind == TR_WRITE && calls > 1) {
		pair_meet(s);
		op = pair_begin(s, way->kind | (int)way->flags, 2);
		for (int i = 0; i < 3; i++)
			add_once(s, op, &n);
		PAIR_CHECK(!n && !tr_op_cancel(op, kv_deadline_ns(PAIR_WAIT_MS), NULL));
		pair_wait_ended(s, 2);
		PAIR_CHECK(s->last_end == TR_CANCELLED);
		pair_meet(s);
	}
	PAIR_CHECK(pair_hear(s) == (calls > 1));
	pair_down(s);
}

static void target(struct pair_side *s)
{
	const struct way *way = s->config->arg;
	bool cut = way->pool || strcmp(way->path, "ring") != 0;

	pair_up(s);
	pair_fill(s->base, TARGET, 0, REGION);
	pair_meet(s);
	if (way->kind == TR_WRITE) {
		pair_wait_notifies(s, 1);
		PAIR_CHECK(pair_differs(s->base, SOURCE, 0, REGION) < 0);
	} else {
		pair_wait_msgs(s, 1);
	}
	if (way->kind == TR_WRITE && cut) {
		pair_fill(s->base, TARGET, 0, REGION);
		pair_meet(s);
		pair_meet(s);
		PAIR_CHECK(pair_differs(s->base, SOURCE, 0, 3 * SHM_ADD_BYTES) < 0);
		PAIR_CHECK(pair_differs(s->base + 3 * SHM_ADD_BYTES, TARGET, 3 * SHM_ADD_BYTES,
					REGION - 3 * SHM_ADD_BYTES) < 0);
	}
	pair_say(s, cut);
	pair_down(s);
}

CASE(a_large_span_is_copied_in_pieces)
{
	static const struct way ways[] = {
		{ .path = "pool", .pool = true, .kind = TR_WRITE },
		{ .path = "pool", .pool = true, .kind = TR_READ_OP },
		{ .path = "cma", .kind = TR_WRITE },
		{ .path = "cma", .kind = TR_READ_OP },
		/* the NCCL plugin's: lines in order, but for operations that may do without */
		{ .path = "auto",
		  .kind = TR_WRITE,
		  .flags = TR_ANY_ORDER,
		  .conn_flags = TR_LINE_ORDER },
		{ .path = "ring", .kind = TR_WRITE },
		{ .path = "ring", .kind = TR_READ_OP },
	};

	for (size_t i = 0; i < sizeof(ways) / sizeof(ways[0]); i++) {
		struct way way = ways[i];
		struct pair_config config = { .parent_path = way.path,
					      .child_path = way.path,
					      .parent_pool = way.pool,
					      .child_pool = way.pool,
					      .region = REGION,
					      .ring = 64 << 20,
					      .flags = way.conn_flags,
					      .arg = &way };

		print_message("%s\n", way.path);
		assert_int_equal(pair_run(&config, mover, target), 0);
	}
}
