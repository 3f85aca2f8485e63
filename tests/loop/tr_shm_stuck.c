/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr_shm_stuck.c -- process_vm_* into memory whose page fault nobody answers: the caller goes on,
 * the connection is given up, and nothing is called safe while the call may still move bytes
 */
#include <poll.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "lib/bar.h"
#include "lib/process.h"
#include "lib/test.h"
#include "shm/shm.h"
#include "lib/stuck.h"
#include "tr_pair.h"

enum { REGION = 1 << 18, SEED = 1 };

/* Its region lies behind userfaultfd from the moment that the parent asks for it. */
static void unanswering(struct pair_side *s)
{
	int uffd;

	pair_up(s);
	pair_meet(s);
	uffd = stuck_begin(s->base, REGION);
	PAIR_CHECK(uffd >= 0);
	pair_say(s, 1);
	PAIR_CHECK(pair_hear(s) == 2);
	stuck_end(uffd, s->base, REGION);
	pair_say(s, 3);
	while (pair_hear(s) != 4)
		;
	tr_conn_close(s->conn);
	s->conn = NULL;
	pair_down(s);
}

static bool helped; /* the pieces of a call are offered to others */

/* Begins an operation that cannot end: returns when its call is late. */
static void begin_stuck(struct pair_side *s, int kind)
{
	struct tr_span span = { .local = 0, .remote = 0, .len = REGION };
	int64_t end = kv_deadline_ns(PAIR_WAIT_MS);
	struct bar begun = bar_begin();
	struct tr_op *op;

	pair_up(s);
	pair_fill(s->base, SEED, 0, REGION);
	pair_meet(s);
	PAIR_CHECK(pair_hear(s) == 1);
	PAIR_CHECK(!helped || !tr_help(s->tr, REGION));
	op = pair_begin(s, kind, 7);
	pair_add(s, op, &span, 1);
	PAIR_CHECK(!tr_help(s->tr, REGION));
	PAIR_CHECK(tr_op_commit(op, 0, 0, NULL) == TR_AGAIN);
	PAIR_CHECK(bar_holds(begun, 3000, "a commit into stuck memory"));
	PAIR_CHECK(((struct shm_conn *)tr_conn_priv(s->conn))->late == op);
	/* A call that no thread has taken yet is taken back by a close, and is not stuck. */
	while (copy_is_quiet(tr_conn_priv(s->conn))) {
		PAIR_CHECK(kv_now_ns() < end);
		poll(NULL, 0, 1);
	}
}

static void given_up(struct pair_side *s)
{
	int kind = *(int *)s->config->arg;
	struct bar bar = bar_begin();
	int64_t begun;
	struct kv_error err;
	int ret;

	begin_stuck(s, kind);
	tr_op_cancel(((struct shm_conn *)tr_conn_priv(s->conn))->late,
		     kv_deadline_ns(slow_ms(1000)), &err);
	while (!s->lost) {
		PAIR_CHECK(bar_holds(bar, 8000, "giving up"));
		pair_poll(s, 20);
	}
	PAIR_CHECK(s->ended == 1 && s->last_end == TR_IN_DOUBT);
	PAIR_CHECK(s->cause.code == KV_ERR_TIMEOUT && strstr(s->cause.message, "does not return"));
	/* Its bytes may still come or go: neither the fence nor the memory is given. */
	while ((ret = tr_fence(s->conn, 0, &err)) == TR_AGAIN)
		poll(NULL, 0, 1);
	PAIR_CHECK(ret == KV_ERR_BUSY);
	PAIR_CHECK(tr_mem_dereg(s->mem, &err) == KV_ERR_BUSY);
	PAIR_CHECK(!((struct shm_conn *)tr_conn_priv(s->conn))->seg.shared->side[0].stopped);
	pair_say(s, 2);
	PAIR_CHECK(pair_hear(s) == 3);
	begun = kv_now_ns();
	while (!((struct shm_conn *)tr_conn_priv(s->conn))->seg.shared->side[0].stopped ||
	       (kind == TR_READ_OP && tr_mem_dereg(s->mem, &err) == KV_ERR_BUSY)) {
		PAIR_CHECK(kv_now_ns() - begun < PAIR_WAIT_MS * KV_NS_PER_MS);
		poll(NULL, 0, 1);
	}
	if (kind == TR_READ_OP)
		s->mem = NULL;
	pair_say(s, 4);
	pair_down(s);
}

CASE(a_call_that_does_not_return_gives_the_connection_up)
{
	for (int kind = TR_WRITE; kind <= TR_READ_OP; kind++) {
		struct pair_config config = {
			.parent_path = "cma", .child_path = "cma", .region = REGION, .arg = &kind
		};

		assert_int_equal(pair_run(&config, given_up, unanswering), 0);
	}
}

/* The late call returns after all: its operation goes on, and a thread that sleeps is woken. */
static void answered_late(struct pair_side *s)
{
	begin_stuck(s, TR_WRITE);
	pair_say(s, 2);
	pair_commit(s, ((struct shm_conn *)tr_conn_priv(s->conn))->late, 0, 0);
	pair_wait_ended(s, 1);
	PAIR_CHECK(s->last_end == TR_WRITTEN && !s->lost);
	PAIR_CHECK(pair_hear(s) == 3);
	pair_say(s, 4);
	pair_down(s);
}

CASE(a_call_that_is_late_goes_on_when_it_returns)
{
	struct pair_config config = { .parent_path = "cma", .child_path = "cma", .region = REGION };

	assert_int_equal(pair_run(&config, answered_late, unanswering), 0);
}

/* Closing waits for nobody; what the thread needs is freed when it is back. */
static void closed_while_stuck(struct pair_side *s)
{
	struct bar bar;
	int64_t begun;
	struct kv_error err;
	int before;

	pair_open(s);
	before = count_descriptors();
	s->tr = (tr_close(s->tr), NULL);
	kv_option_free(s->options);
	munmap(s->base, REGION);
	begin_stuck(s, TR_WRITE);
	bar = bar_begin();
	tr_conn_close(s->conn);
	s->conn = NULL;
	PAIR_CHECK(bar_holds(bar, 2000, "tr_conn_close"));
	PAIR_CHECK(tr_mem_dereg(s->mem, &err) == KV_ERR_BUSY);
	pair_say(s, 2);
	PAIR_CHECK(pair_hear(s) == 3);
	begun = kv_now_ns();
	while (tr_mem_dereg(s->mem, &err) == KV_ERR_BUSY) {
		PAIR_CHECK(kv_now_ns() - begun < PAIR_WAIT_MS * KV_NS_PER_MS);
		poll(NULL, 0, 1);
	}
	s->mem = NULL;
	pair_say(s, 4);
	tr_close(s->tr); /* joins the thread and frees the rest */
	s->tr = NULL;
	PAIR_CHECK(count_descriptors() <= before);
	munmap(s->base, REGION);
	kv_option_free(s->options);
}

CASE(a_connection_is_closed_while_its_call_is_stuck)
{
	struct pair_config config = { .parent_path = "cma", .child_path = "cma", .region = REGION };

	assert_int_equal(pair_run(&config, closed_while_stuck, unanswering), 0);
}

/* A context that is closed leaves the thread alone. */
static void context_closed(struct pair_side *s)
{
	struct bar begun;

	begin_stuck(s, TR_WRITE);
	begun = bar_begin();
	tr_conn_close(s->conn);
	tr_close(s->tr);
	PAIR_CHECK(bar_holds(begun, SHM_COPY_CLOSE_MS + 3000, "tr_close"));
	pair_say(s, 2);
	PAIR_CHECK(pair_hear(s) == 3);
	pair_say(s, 4);
}

CASE(a_context_is_closed_while_a_call_is_stuck)
{
	struct pair_config config = { .parent_path = "cma", .child_path = "cma", .region = REGION };

	assert_int_equal(pair_run(&config, context_closed, unanswering), 0);
}

int main(void)
{
	if (!stuck_can())
		return PAIR_SKIP;
	for (int i = 0; i < 2; i++) {
		int failed;

		helped = i;
		failed = run_cases(NULL, NULL);
		if (failed)
			return failed;
	}
	return 0;
}
