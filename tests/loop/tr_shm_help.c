/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr_shm_help.c -- threads that move pieces of what the owner of a connection moves by
 * process_vm_*: every byte where it belongs, and none of them waits for a page that does not come
 */
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "lib/bar.h"
#include "lib/test.h"
#include "shm/shm.h"
#include "lib/stuck.h"
#include "tr_pair.h"

enum { REGION = 12 << 20, HALF = REGION / 2, SPANS = 512, HELPERS = 3, MOST = 64 << 10 };
enum { PARENT_SEED = 1, CHILD_SEED = 2 };

struct helpers {
	struct tr *tr;
	pthread_t thread[HELPERS];
	atomic_bool stop;
	_Atomic uint64_t bytes;
};

static void *help(void *arg)
{
	struct helpers *h = arg;

	while (!atomic_load(&h->stop)) {
		uint64_t bytes = tr_help(h->tr, MOST);

		PAIR_CHECK(bytes <= MOST);
		atomic_fetch_add(&h->bytes, bytes);
		if (!bytes)
			sched_yield();
	}
	return NULL;
}

static void helpers_start(struct helpers *h, struct tr *tr)
{
	*h = (struct helpers){ .tr = tr };
	for (int i = 0; i < HELPERS; i++)
		PAIR_CHECK(!pthread_create(&h->thread[i], NULL, help, h));
}

static void helpers_stop(struct helpers *h)
{
	atomic_store(&h->stop, true);
	for (int i = 0; i < HELPERS; i++)
		pthread_join(h->thread[i], NULL);
}

/*
 * Half of the region in spans of many lengths, the last ones first; one is longer than a call, and
 * some are cut in pieces of MOST.
 */
static size_t make_spans(struct tr_span *span)
{
	static const uint64_t len[] = { 5 << 20, 65536, 300000, 65535, 40000, 131072, 1, 99999 };
	uint64_t at = HALF;
	size_t n = 0;

	while (at) {
		uint64_t bytes = len[n % (sizeof(len) / sizeof(*len))];

		bytes = bytes < at ? bytes : at;
		at -= bytes;
		span[n++] = (struct tr_span){ .local = at, .remote = HALF + at, .len = bytes };
		PAIR_CHECK(n < SPANS);
	}
	return n;
}

static void move(struct pair_side *s, int kind)
{
	struct tr_span span[SPANS];
	size_t n = make_spans(span);
	unsigned int ended = s->ended;
	struct tr_op *op = pair_begin(s, kind, 7);

	pair_add(s, op, span, n);
	pair_commit(s, op, 0, 0);
	pair_wait_ended(s, ended + 1);
	PAIR_CHECK(s->last_end == (kind == TR_WRITE ? TR_WRITTEN : TR_READ) && !s->lost);
}

static void move_until_helped(struct pair_side *s, int kind)
{
	int64_t end = kv_deadline_ns(PAIR_WAIT_MS);
	struct helpers h;

	helpers_start(&h, s->tr);
	do {
		PAIR_CHECK(kv_now_ns() < end);
		move(s, kind);
	} while (!atomic_load(&h.bytes));
	helpers_stop(&h);
}

static void moving(struct pair_side *s)
{
	pair_up(s);
	pair_fill(s->base, PARENT_SEED, 0, REGION);
	pair_meet(s);
	move_until_helped(s, TR_WRITE);
	pair_meet(s);
	pair_meet(s); /* the other has looked, and filled its region */
	move_until_helped(s, TR_READ_OP);
	PAIR_CHECK(pair_differs(s->base, CHILD_SEED, HALF, HALF) < 0);
	PAIR_CHECK(pair_differs(s->base + HALF, PARENT_SEED, HALF, HALF) < 0);
	pair_meet(s);
	pair_down(s);
}

static void target(struct pair_side *s)
{
	pair_up(s);
	/* Pages that are not there yet, and come: the owner leaves them to a thread. */
	PAIR_CHECK(!madvise(s->base + REGION - HALF / 2, HALF / 2, MADV_DONTNEED));
	pair_fill(s->base, CHILD_SEED, 0, HALF);
	pair_meet(s);
	pair_meet(s);
	PAIR_CHECK(pair_differs(s->base, CHILD_SEED, 0, HALF) < 0);
	PAIR_CHECK(pair_differs(s->base + HALF, PARENT_SEED, 0, HALF) < 0);
	pair_fill(s->base, CHILD_SEED, 0, REGION);
	pair_meet(s);
	pair_meet(s);
	pair_down(s);
}

CASE(helpers_move_pieces_and_every_byte_is_where_it_belongs)
{
	struct pair_config config = { .parent_path = "cma", .child_path = "cma", .region = REGION };

	assert_int_equal(pair_run(&config, moving, target), 0);
}

/* The last pages do not come. */
static void stuck_target(struct pair_side *s)
{
	int uffd;

	pair_up(s);
	memset(s->base, 0, REGION);
	uffd = stuck_begin_inside(s->base + REGION - MOST, MOST);
	PAIR_CHECK(uffd >= 0);
	pair_meet(s);
	PAIR_CHECK(pair_hear(s) == 2);
	stuck_end(uffd, s->base + REGION - MOST, MOST);
	while (pair_hear(s) != 4)
		;
	PAIR_CHECK(pair_differs(s->base + HALF, PARENT_SEED, 0, HALF) < 0);
	pair_down(s);
}

static void stuck(struct pair_side *s)
{
	struct tr_span span = { .local = HALF - (1 << 20),
				.remote = REGION - (1 << 20),
				.len = 1 << 20 };
	struct tr_span rest = { .local = 0, .remote = HALF, .len = HALF - (1 << 20) };
	struct helpers h;
	struct tr_op *op;
	struct bar bar;

	pair_up(s);
	pair_fill(s->base, PARENT_SEED, 0, REGION);
	pair_meet(s);
	helpers_start(&h, s->tr);
	op = pair_begin(s, TR_WRITE, 7);
	pair_add(s, op, &rest, 1);
	bar = bar_begin();
	pair_add(s, op, &span, 1);
	PAIR_CHECK(tr_op_commit(op, 0, 0, NULL) == TR_AGAIN);
	PAIR_CHECK(((struct shm_conn *)tr_conn_priv(s->conn))->late == op);
	helpers_stop(&h);
	PAIR_CHECK(bar_holds(bar, 3000, "a page that does not come, with helpers"));
	pair_say(s, 2);
	pair_commit(s, op, 0, 0);
	pair_wait_ended(s, 1);
	PAIR_CHECK(s->last_end == TR_WRITTEN && !s->lost);
	pair_say(s, 4);
	pair_down(s);
}

CASE(a_page_that_does_not_come_holds_up_no_helper)
{
	struct pair_config config = { .parent_path = "cma", .child_path = "cma", .region = REGION };

	if (!stuck_can()) /* which prints "skipped: why" */
		skip();
	assert_int_equal(pair_run(&config, stuck, stuck_target), 0);
}

int main(void)
{
	int failed = run_cases(NULL, NULL);

	return failed || stuck_can() ? failed : PAIR_SKIP;
}
