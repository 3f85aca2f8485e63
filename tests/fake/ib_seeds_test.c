/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_seeds_test.c -- random operations, random devices, random faults, against a shadow of both
 * memories
 *
 * For every byte of both pools the shadow knows what it must be, or, while an operation that writes
 * it is under way, the two values that it may have. Checked at each notify and proof, after each
 * cancel, and at the end with everything settled:
 *   no byte outside an open operation changes; a notified or proven operation is there in full;
 *   after TR_CANCELLED nothing of it
 *   changes; each operation ends exactly once; messages arrive in order; a failure is reported
 *   once, with a cause; after the fault a new
 *   connection works; nothing is left behind.
 *
 * usage: ib_seeds_test [first seed [number]]
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "lib/test.h"
#include "setting.h"

enum { CELLS = 12, CELL = 6000, SIZE = CELLS * CELL, SOURCE = CELL + 512, SPANS = 6, TURNS = 400 };

struct piece {
	struct tr_op *op;
	unsigned int flags;
	struct tr_span spans[SPANS];
	size_t n;
	bool open, cancelled, notified, ended;
	uint64_t epoch;
};

struct shadow {
	uint8_t must[SIZE];  /* the value, */
	uint8_t maybe[SIZE]; /* or this one */
	bool doubt[SIZE];    /* if this is set */
};

static uint64_t first_seed = 1, seeds = 150;
static struct setting s;
static struct shadow shadow[2];
static struct piece piece[2][CELLS]; /* by writing side */
static uint64_t chance, seed, epochs;
static uint32_t said[2], heard[2];
static int ends_due, lost[2];

static uint32_t roll(uint32_t below)
{
	chance ^= chance << 13;
	chance ^= chance >> 7;
	chance ^= chance << 17;
	return (uint32_t)(chance >> 20) % below;
}

#define must(condition)                                                                  \
	do {                                                                             \
		if (!(condition))                                                        \
			fail_msg("seed %llu: %s", (unsigned long long)seed, #condition); \
	} while (0)

static void check_byte(int side, size_t i)
{
	uint8_t byte = *setting_at(&s, side, i);

	if (byte != shadow[side].must[i] &&
	    !(shadow[side].doubt[i] && byte == shadow[side].maybe[i]))
		fail_msg("seed %llu: byte %zu of side %d is 0x%x", (unsigned long long)seed, i,
			 side, byte);
}

static void check_pools(void)
{
	enum { STEP = 500 };

	_Static_assert(SIZE % STEP == 0, "whole steps");
	for (int side = 0; side < 2; side++)
		for (size_t at = 0; at < SIZE; at += STEP) {
			if (!memcmp(setting_at(&s, side, at), shadow[side].must + at, STEP))
				continue;
			for (size_t i = at; i < at + STEP; i++)
				check_byte(side, i);
		}
}

/* The bytes of an operation are no longer in doubt: all new, or whatever they are now. */
static void decide(int writer, const struct piece *p, bool all_new)
{
	struct shadow *to = &shadow[!writer];

	for (size_t k = 0; k < p->n; k++)
		for (uint64_t i = p->spans[k].remote; i < p->spans[k].remote + p->spans[k].len;
		     i++) {
			if (all_new)
				must(*setting_at(&s, !writer, i) == to->maybe[i]);
			to->must[i] = *setting_at(&s, !writer, i);
			to->doubt[i] = false;
		}
}

/* Sources lie in a region of their own, so that a pool is written by its peer only. */
static uint8_t *source[2];
static struct tr_mem *source_mem[2];

static void begin(int side, uint32_t cell)
{
	static const unsigned int kinds[] = { TR_NOTIFY, TR_PROVEN, TR_NOTIFY | TR_PROVEN };
	struct piece *p = &piece[side][cell];
	uint64_t at = 0;

	if (tr_op_begin(s.rig.side[side].conn, TR_WRITE, cell, &p->op, NULL))
		return;
	*p = (struct piece){
		.op = p->op, .open = true, .flags = kinds[roll(3)], .epoch = ++epochs
	};
	while (p->n < SPANS && at < CELL - 1) {
		uint64_t skip = roll(3) ? 0 : roll(300);
		uint64_t len = 1 + roll(1500);

		at += skip;
		if (at + len > CELL)
			break;
		p->spans[p->n++] =
			(struct tr_span){ (uint64_t)cell * SOURCE + at + (roll(2) ? 0 : skip / 2),
					  (uint64_t)cell * CELL + at, len };
		at += len;
	}
	for (size_t i = 0; i < SOURCE; i++)
		source[side][(size_t)cell * SOURCE + i] = rig_byte(p->epoch, i);
	ends_due++;
	for (size_t k = 0; k < p->n; k++)
		for (uint64_t i = 0; i < p->spans[k].len; i++) {
			shadow[!side].maybe[p->spans[k].remote + i] =
				source[side][p->spans[k].local + i];
			shadow[!side].doubt[p->spans[k].remote + i] = true;
		}
}

/* Adds what is left, commits; in any number of turns. */
static void go_on(int side, struct piece *p, size_t *added)
{
	long n;

	if (!p->open || p->cancelled || p->ended || *added > p->n)
		return;
	if (*added < p->n) {
		n = tr_op_add(p->op, source_mem[side], s.rmem[side], p->spans + *added,
			      1 + roll((uint32_t)(p->n - *added)), NULL);
		if (n > 0)
			*added += (size_t)n;
		return;
	}
	if (!tr_op_commit(p->op, p->flags, p->epoch << 8 | (uint64_t)(p - piece[side]), NULL))
		*added = p->n + 1;
}

static size_t added[2][CELLS];

static void close_piece(struct piece *p)
{
	if (p->ended && (p->notified || !(p->flags & TR_NOTIFY) || p->cancelled))
		p->open = false;
}

/*
 * The end of a lost connection's operations says nothing about the peer's memory; there a fence
 * does.
 */
static bool broken(void)
{
	return tr_conn_error(s.rig.side[0].conn)->code || tr_conn_error(s.rig.side[1].conn)->code;
}

static void ended(int side, struct rig_event *event)
{
	struct piece *p = &piece[side][event->user];

	must(p->open && !p->ended);
	p->ended = true;
	ends_due--;
	if (event->kind == TR_WRITTEN) {
		p->cancelled = false; /* too late */
		if (p->flags & TR_PROVEN)
			decide(side, p, true);
		close_piece(p);
	} else if (event->kind == TR_CANCELLED && !broken()) {
		decide(side, p, false);
		close_piece(p);
	} else { /* its blocks stay in doubt */
		must(event->kind != TR_IN_DOUBT || (event->cause.code && event->cause.message[0]));
	}
	check_pools();
}

static void take_events(int side)
{
	struct rig_event *event;

	while ((event = rig_find(&s.rig, side, TR_NOTIFIED))) {
		struct piece *p = &piece[!side][event->value & 0xff];

		must(p->open && !p->notified && p->epoch == event->value >> 8);
		p->notified = true;
		decide(!side, p, true);
		check_pools();
		close_piece(p);
	}
	while ((event = rig_find(&s.rig, side, TR_MSG))) {
		must(event->len == 4 && !memcmp(event->msg, &heard[side], 4));
		heard[side]++;
	}
	if (rig_find(&s.rig, side, TR_PEER_LOST))
		must(++lost[side] == 1);
	while ((event = rig_find(&s.rig, side, TR_WRITTEN)) ||
	       (event = rig_find(&s.rig, side, TR_CANCELLED)) ||
	       (event = rig_find(&s.rig, side, TR_IN_DOUBT)))
		ended(side, event);
	s.rig.side[side].events = 0;
}

static void turn(void)
{
	int side = (int)roll(2);
	uint32_t cell = roll(CELLS);
	struct piece *p = &piece[side][cell];

	if (!p->open) {
		added[side][cell] = 0;
		begin(side, cell);
	} else if (!roll(40) && !p->cancelled && !p->ended) {
		p->cancelled = !tr_op_cancel(p->op, kv_deadline_ns(10000), NULL);
	} else {
		go_on(side, p, &added[side][cell]);
	}
	if (!roll(5) && !tr_msg(s.rig.side[side].conn, &said[side], 4, NULL))
		said[side]++;
	if (!roll(50))
		tr_conn_arm(s.rig.side[side].conn);
	side = (int)roll(2);
	rig_pump_side(&s.rig, side);
	take_events(side);
}

static void wreck(void)
{
	static const enum ibv_wc_status statuses[] = { IBV_WC_RETRY_EXC_ERR, IBV_WC_REM_ACCESS_ERR,
						       IBV_WC_LOC_PROT_ERR, IBV_WC_GENERAL_ERR };

	switch (roll(5)) {
	case 0:
		fake_fail_completion(1 + (int)roll(20), statuses[roll(4)], 9);
		break;
	case 1:
		fake_fail_wr(1 + (int)roll(20));
		break;
	case 2:
		fake_fail_verb(FAKE_post_recv, 1 + (int)roll(5), ENOMEM);
		break;
	case 3:
		fake_link(0, 0, false);
		fake_step(2000);
		fake_link(0, 0, true);
		break;
	default:
		fake_fail_verb(FAKE_poll_cq, 1 + (int)roll(5), EIO);
	}
}

static void finish(void)
{
	for (int i = 0; i < BUDGET && (ends_due || heard[0] < said[1] || heard[1] < said[0]); i++) {
		for (int side = 0; side < 2; side++) {
			for (uint32_t cell = 0; cell < CELLS; cell++)
				go_on(side, &piece[side][cell], &added[side][cell]);
			rig_pump_side(&s.rig, side);
			take_events(side);
		}
		if (lost[0] && lost[1] && !ends_due)
			break;
	}
	must(!ends_due);
	must(lost[0] == lost[1]);
	must(lost[0] || (heard[0] == said[1] && heard[1] == said[0]));
}

/* A new connection of the same contexts carries new operations. */
static void start_again(void)
{
	struct tr_span span = { 0, 0, CELL };
	struct kv_error err;

	rig_disconnect(&s.rig);
	fake_settle();
	check_pools();
	if (rig_connect(&s.rig, &err))
		fail_msg("seed %llu: connecting again: %s", (unsigned long long)seed, err.message);
	s.rmem[0] = rig_see(&s.rig, 0, s.mem[1]);
	rig_op(&s.rig, 0, TR_WRITE, 0, source_mem[0], s.rmem[0], &span, 1, TR_NOTIFY, 1);
	setting_expect_notify(&s, 1, 1);
	assert_memory_equal(source[0], setting_at(&s, 1, 0), CELL);
	setting_expect_written(&s, 0, 0);
}

static void one_seed(void)
{
	static const char *const lanes[] = { "KVCACHE_IB_LANES=1", "KVCACHE_IB_LANES=2",
					     "KVCACHE_IB_LANES=4" };
	const char *options[] = { lanes[seed % 3], NULL };
	struct fake_config config = { .seed = seed,
				      .devices = 1 + (int)(seed / 3 % 2),
				      .prompt = seed % 7 == 0,
				      .infiniband = seed % 5 == 0,
				      .max_inline = seed % 11 ? 0 : -1,
				      .steps_per_poll = 1 + (int)(seed % 9) };

	chance = seed * UINT64_C(0x9e3779b97f4a7c15) | 1;
	memset(piece, 0, sizeof(piece));
	memset(shadow, 0, sizeof(shadow));
	memset(said, 0, sizeof(said));
	memset(heard, 0, sizeof(heard));
	memset(lost, 0, sizeof(lost));
	ends_due = 0;
	fake_begin(&config);
	ib_test_hook.slice_bytes = seed % 2 ? UINT64_C(4096) << seed % 4 : 0;
	ib_test_hook.sq_depth = seed % 4 == 1 ? 16 : 0;
	setting_connect(&s, options, SIZE, 0);
	for (int i = 0; i < 2; i++) {
		memset(setting_at(&s, i, 0), 0, SIZE);
		source[i] = aligned_alloc(4096, (CELLS * SOURCE + 4095) & ~4095u);
		source_mem[i] = rig_reg(&s.rig, i, source[i], CELLS * SOURCE, 0);
	}
	for (int i = 0; i < TURNS; i++) {
		if (i == TURNS / 2 && seed % 3)
			wreck();
		turn();
	}
	finish();
	start_again();
	rig_disconnect(&s.rig);
	for (int i = 0; i < 2; i++) {
		must(!tr_mem_dereg(source_mem[i], NULL));
		free(source[i]);
	}
	setting_end(&s);
}

CASE(no_seed_breaks_an_invariant)
{
	for (seed = first_seed; seed < first_seed + seeds; seed++)
		one_seed();
}

int main(int argc, char **argv)
{
	if (argc > 1)
		first_seed = strtoull(argv[1], NULL, 10);
	if (argc > 2)
		seeds = strtoull(argv[2], NULL, 10);
	return run_cases(NULL, NULL);
}
