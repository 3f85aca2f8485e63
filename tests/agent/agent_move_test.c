/* SPDX-License-Identifier: Apache-2.0 */
/* agent_move_test.c -- bytes and notifications between agents that are well */
#include "agent_rig.h"

#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../lib/bar.h"
#include "../lib/process.h"

enum { LEN = 1 << 20 };

static bool slow_path; /* a device in software */
static int by_calls;   /* 1: of process_vm_writev */

static struct ag_pair pair_at(const struct rig_two *t, size_t local, size_t remote, size_t len)
{
	return (struct ag_pair){ t->a.mem, t->rmem, (uintptr_t)t->a.buf + local,
				 (uintptr_t)t->b.buf + remote, len };
}

CASE(a_write_lands_and_its_notification_comes_after)
{
	static const size_t lengths[] = { 0, 5, 250, 251, 252, 300, 70000, 1 << 20 };
	char name[64], *note = malloc(1 << 20), *came = malloc(1 << 20);
	struct rig_two t;

	rig_up(&t, LEN);
	for (unsigned int i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		struct ag_pair p = pair_at(&t, 100, 3000, 50000);

		rig_fill(t.a.buf, i, LEN);
		memset(t.b.buf, 0, LEN);
		rig_fill(note, 100 + i, lengths[i]);
		rig_move(&t.a, "b", AG_WRITE, &p, 1, note, lengths[i]);
		assert_memory_equal(t.b.buf + 3000, t.a.buf + 100, 50000);
		assert_int_equal(t.b.buf[2999], 0);
		assert_int_equal(t.b.buf[53000], 0);
		assert_int_equal(rig_note(&t.b, name, came, 1 << 20), lengths[i]);
		assert_string_equal(name, "a");
		assert_true(rig_is(came, 100 + i, lengths[i]));
	}
	assert_int_equal(rig_notes_now(&t.b), 0);
	rig_down(&t);
	free(note);
	free(came);
}

/*
 * Looked at when the notification is there, not when the writer says that it is done. In pieces
 * that may go different ways.
 */
CASE(a_notification_finds_every_byte)
{
	enum { PIECES = 16, PIECE = LEN / PIECES / 2 };
	struct ag_pair p[PIECES];
	struct kv_error err;
	struct rig_two t;

	rig_up(&t, LEN);
	for (unsigned int i = 0; i < 40; i++) {
		struct ag_xfer *xfer;

		for (size_t k = 0; k < PIECES; k++) {
			p[k] = pair_at(&t, 2 * k * PIECE, 2 * k * PIECE, PIECE);
			rig_fill(t.a.buf + 2 * k * PIECE, i + (unsigned int)k, PIECE);
		}
		assert_int_equal(ag_xfer_prepare(t.a.agent, "b", AG_WRITE, p, PIECES, &xfer, &err),
				 0);
		assert_true(ag_xfer_post(xfer, "n", 1, &err) >= 0);
		rig_note(&t.b, NULL, NULL, 0);
		for (size_t k = 0; k < PIECES; k++)
			assert_true(rig_is(t.b.buf + 2 * k * PIECE, i + (unsigned int)k, PIECE));
		assert_int_equal(rig_end_of(xfer, &err), 0);
		rig_release(xfer);
	}
	rig_down(&t);
}

CASE(a_read_from_a_peer_that_knows_nobody)
{
	char name[64], came[16];
	struct rig_two t;
	struct ag_pair p;

	rig_up(&t, LEN);
	rig_fill(t.b.buf, 7, LEN);
	p = pair_at(&t, 0, 0, LEN);
	rig_move(&t.a, "b", AG_READ, &p, 1, "read", 4);
	assert_true(rig_is(t.a.buf, 7, LEN));
	assert_int_equal(rig_note(&t.b, name, came, sizeof(came)), 4);
	assert_memory_equal(came, "read", 4);
	rig_down(&t);
}

CASE(notifications_alone_keep_their_order)
{
	struct kv_error err;
	struct rig_two t;

	rig_up(&t, LEN);
	for (uint32_t i = 0; i < 2000; i++) /* the first ones before the two are connected */
		assert_int_equal(ag_notify(t.a.agent, "b", &i, sizeof(i), &err), 0);
	for (uint32_t i = 0; i < 2000; i++) {
		uint32_t came;

		assert_int_equal(rig_note(&t.b, NULL, &came, sizeof(came)), sizeof(came));
		assert_int_equal(came, i);
	}
	rig_down(&t);
}

/* While a caller polls, messages wake no service thread: it has to see that the caller stopped. */
CASE(who_polled_and_stopped_is_served)
{
	enum { BYTES = 4096 };
	struct kv_error err;
	struct rig_two t;
	struct bar since;
	struct ag_pair p;

	rig_up(&t, LEN);
	p = pair_at(&t, 0, 0, BYTES);
	rig_move(&t.a, "b", AG_WRITE, &p, 1, "", 0);
	rig_note(&t.b, NULL, NULL, 0);
	since = bar_begin();
	for (unsigned int i = 0; i < 60; i++) {
		for (int notes = 0; notes < 20; notes++) {
			int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);

			assert_int_equal(ag_notify(t.a.agent, "b", "n", 1, &err), 0);
			while (!rig_notes_now(&t.b))
				assert_true(kv_now_ns() < deadline);
		}
		rig_fill(t.a.buf, i, BYTES);
		rig_move(&t.a, "b", AG_WRITE, &p, 1, "", 0);
		rig_note(&t.b, NULL, NULL, 0);
		assert_true(rig_is(t.b.buf, i, BYTES));
	}
	/* What is forgotten is found at the next tick, 100 ms later. */
	assert_true(slow_path || bar_holds(since, 1500, "60 writes beside a poller"));
	rig_down(&t);
}

/* More than wait at the receiver: the sender is slowed, nothing is lost. */
CASE(notifications_that_nobody_takes_wait)
{
	enum { BIG = 8 << 20, N = 12 };
	char *note = malloc(BIG), *came = malloc(BIG);
	struct kv_error err;
	struct rig_two t;

	rig_up(&t, LEN);
	for (unsigned int i = 0; i < N; i++) {
		int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);
		int ret;

		rig_fill(note, i, BIG);
		while ((ret = ag_notify(t.a.agent, "b", note, BIG, &err)) == KV_ERR_BUSY)
			assert_true(kv_now_ns() < deadline);
		assert_int_equal(ret, 0);
	}
	for (unsigned int i = 0; i < N; i++) {
		assert_int_equal(rig_note(&t.b, NULL, came, BIG), BIG);
		assert_true(rig_is(came, i, BIG));
	}
	assert_int_equal(ag_notify(t.a.agent, "b", note, AG_NOTIFY_MAX + 1, &err), KV_ERR_ARG);
	rig_down(&t);
	free(note);
	free(came);
}

static int64_t thread_cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &ts);
	return ts.tv_sec * INT64_C(1000000000) + ts.tv_nsec;
}

/* The caller copies none of it: posting takes less than a millisecond, however long the list is. */
CASE(a_long_list_is_posted_at_once_and_moves_unwatched)
{
	enum { BLOCKS = 1538, BLOCK = 64 << 10 };
	size_t len = (size_t)BLOCKS * BLOCK;
	int64_t least = INT64_MAX;
	struct ag_pair *pair;
	struct rig_end a, b;
	struct ag_rmem *rmem;
	struct ag_xfer *xfer;
	struct kv_error err;

	if (slow_path) {
		print_message("skipped: 300 MiB over a device in software take minutes\n");
		skip();
	}
	pair = calloc(BLOCKS, sizeof(*pair));
	rig_open(&a, "a", len);
	rig_open(&b, "b", len);
	rig_load(&a, &b);
	rmem = rig_see(&a, &b, b.mem);
	for (size_t i = 0; i < BLOCKS; i++)
		pair[i] = (struct ag_pair){ a.mem, rmem, (uintptr_t)a.buf + i * BLOCK,
					    (uintptr_t)b.buf + (BLOCKS - 1 - i) * BLOCK, BLOCK };
	assert_int_equal(ag_xfer_prepare(a.agent, "b", AG_WRITE, pair, BLOCKS, &xfer, &err), 0);
	for (unsigned int round = 0; round < 3; round++) {
		int64_t begun;

		rig_fill(a.buf, round, len);
		begun = thread_cpu_ns();
		assert_true(ag_xfer_post(xfer, "moved", 5, &err) >= 0);
		begun = thread_cpu_ns() - begun;
		least = begun < least ? begun : least;
		assert_int_equal(rig_note(&b, NULL, NULL, 0), 5);
		for (size_t i = 0; i < BLOCKS; i++)
			assert_memory_equal((void *)pair[i].remote, (void *)pair[i].local, BLOCK);
		assert_int_equal(rig_end_of(xfer, &err), 0);
	}
	assert_true(least < BAR_FACTOR * 1000000);
	rig_release(xfer);
	ag_rmem_unload(rmem);
	rig_close(&a);
	rig_close(&b);
	free(pair);
}

/*
 * A thread that has just been started may wait long for a processor; one that sleeps is there at
 * once. It is taken for busy no longer when the next list comes, so it stays alone.
 */
CASE(the_thread_that_moves_lists_is_there_before_the_first)
{
	enum { BLOCKS = 512, BLOCK = 1024 };
	int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);
	struct ag_pair p[BLOCKS];
	struct rig_two t;

	rig_up(&t, LEN);
	while (threads_named("kvrail copy") < by_calls) {
		assert_true(kv_now_ns() < deadline);
		poll(NULL, 0, 1);
	}
	for (size_t i = 0; i < BLOCKS; i++)
		p[i] = pair_at(&t, 2 * i * BLOCK, 2 * (BLOCKS - 1 - i) * BLOCK, BLOCK);
	for (unsigned int round = 0; round < 20; round++) {
		rig_move(&t.a, "b", AG_WRITE, p, BLOCKS, NULL, 0);
		assert_int_equal(threads_named("kvrail copy"), by_calls);
	}
	rig_down(&t);
}

/* Blocks of many regions, in an order that changes the region with every pair. */
CASE(lists_between_many_regions)
{
	enum { REGIONS = 32, PAIRS = 20000, BLOCK = 512, PART = (PAIRS / REGIONS + 1) * BLOCK };
	struct ag_pair *pair = calloc(PAIRS, sizeof(*pair));
	struct ag_mem *mem[2][REGIONS];
	struct ag_rmem *rmem[REGIONS];
	uint8_t *buf[2][REGIONS];
	struct ag_xfer *xfer;
	struct kv_error err;
	struct rig_two t;

	rig_up(&t, LEN);
	for (unsigned int r = 0; r < REGIONS; r++) {
		for (int k = 0; k < 2; k++) {
			buf[k][r] = mmap(NULL, PART, PROT_READ | PROT_WRITE,
					 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			assert_int_equal(ag_mem_reg(k ? t.b.agent : t.a.agent, buf[k][r], PART,
						    AG_HOST, &mem[k][r], &err),
					 0);
		}
		rmem[r] = rig_see(&t.a, &t.b, mem[1][r]);
	}
	for (unsigned int i = 0; i < PAIRS; i++) {
		unsigned int r = i % REGIONS, at = i / REGIONS;
		/* every second one is swapped with its neighbour: nothing merges there */
		unsigned int to = at ^ 1u;

		pair[i] = (struct ag_pair){ mem[0][r], rmem[r], (uintptr_t)buf[0][r] + at * BLOCK,
					    (uintptr_t)buf[1][r] + to % (PART / BLOCK) * BLOCK,
					    BLOCK };
	}
	assert_int_equal(ag_xfer_prepare(t.a.agent, "b", AG_WRITE, pair, PAIRS, &xfer, &err), 0);
	for (unsigned int round = 0; round < 3; round++) { /* planned once */
		for (unsigned int r = 0; r < REGIONS; r++) {
			rig_fill(buf[0][r], round * REGIONS + r, PART);
			memset(buf[1][r], 0xee, PART);
		}
		assert_true(ag_xfer_post(xfer, NULL, 0, &err) >= 0);
		assert_int_equal(rig_end_of(xfer, &err), 0);
		for (unsigned int i = 0; i < PAIRS; i++)
			assert_memory_equal((void *)pair[i].remote, (void *)pair[i].local, BLOCK);
	}
	rig_release(xfer);
	for (unsigned int r = 0; r < REGIONS; r++)
		ag_rmem_unload(rmem[r]);
	rig_down(&t);
	for (unsigned int r = 0; r < 2 * REGIONS; r++)
		munmap(buf[r / REGIONS][r % REGIONS], PART);
	free(pair);
}

CASE(more_transfers_than_the_transport_takes)
{
	enum { N = 1000, BYTES = LEN / N };
	struct ag_xfer *xfer[N];
	struct kv_error err;
	struct rig_two t;

	rig_up(&t, LEN);
	rig_fill(t.a.buf, 3, LEN);
	for (size_t i = 0; i < N; i++) {
		struct ag_pair p = pair_at(&t, i * BYTES, i * BYTES, BYTES);

		assert_int_equal(ag_xfer_prepare(t.a.agent, "b", AG_WRITE, &p, 1, &xfer[i], &err),
				 0);
		assert_true(ag_xfer_post(xfer[i], &i, sizeof(i), &err) >= 0);
	}
	for (size_t i = 0; i < N; i++) {
		size_t came;

		assert_int_equal(rig_end_of(xfer[i], &err), 0);
		rig_release(xfer[i]);
		rig_note(&t.b, NULL, &came, sizeof(came));
	}
	assert_true(rig_is(t.b.buf, 3, N * BYTES));
	rig_down(&t);
}

/* The service thread and the callers offer the transport the same bytes in the same pieces. */
CASE(one_large_pair_is_moved_by_all_who_look)
{
	size_t len = slow_path ? 2 << 20 : 32 << 20;
	struct ag_xfer *xfer;
	struct kv_error err;
	struct rig_end a, b;
	struct ag_rmem *rmem;
	struct ag_pair p;

	rig_open(&a, "a", len);
	rig_open(&b, "b", len);
	rig_load(&a, &b);
	rmem = rig_see(&a, &b, b.mem);
	p = (struct ag_pair){ a.mem, rmem, (uintptr_t)a.buf, (uintptr_t)b.buf, len };
	for (unsigned int i = 0; i < 6; i++) {
		int ret;

		rig_fill(a.buf, i, len);
		assert_int_equal(ag_xfer_prepare(a.agent, "b", AG_WRITE, &p, 1, &xfer, &err), 0);
		ret = ag_xfer_post(xfer, NULL, 0, &err);
		while (ret == AG_AGAIN)
			ret = ag_xfer_check(xfer, &err);
		assert_int_equal(ret, 0);
		assert_true(rig_is(b.buf, i, len));
		rig_release(xfer);
	}
	ag_rmem_unload(rmem);
	rig_close(&a);
	rig_close(&b);
}

/* All of them are dialled at once; no caller waits for the others. */
CASE(many_peers_are_loaded_before_the_first_transfer)
{
	unsigned int n = slow_path ? 10 : 100;
	int64_t deadline = kv_deadline_ns(RIG_WAIT_MS);
	char most_ms[24];
	struct ag_rmem *rmem;
	struct rig_end a, b;
	struct kv_error err;
	struct ag_pair p;

	/* One thread on each side makes all of them: by a sanitizer, beside others, in seconds. */
	snprintf(most_ms, sizeof(most_ms), "%lld", (long long)RIG_WAIT_MS);
	setenv("KVCACHE_HANDSHAKE_MS", most_ms, 1);
	rig_open(&a, "a", LEN);
	rig_open(&b, "b", LEN);
	unsetenv("KVCACHE_HANDSHAKE_MS");
	for (unsigned int i = 0; i < n; i++) {
		snprintf(b.name, sizeof(b.name), "b%u", i); /* names are this agent's affair */
		rig_load(&a, &b);
	}
	rmem = rig_see(&a, &b, b.mem);
	p = (struct ag_pair){ a.mem, rmem, (uintptr_t)a.buf, (uintptr_t)b.buf, LEN };
	rig_fill(a.buf, 7, LEN);
	rig_move(&a, b.name, AG_WRITE, &p, 1, NULL, 0);
	assert_true(rig_is(b.buf, 7, LEN));
	for (unsigned int i = 0; i < n; i++) {
		int ret;

		snprintf(b.name, sizeof(b.name), "b%u", i);
		while ((ret = ag_peer_check(a.agent, b.name, &err)) == AG_AGAIN) {
			assert_true(kv_now_ns() < deadline);
			poll(NULL, 0, 1);
		}
		assert_int_equal(ret, 0);
	}
	ag_rmem_unload(rmem);
	rig_close(&a);
	rig_close(&b);
}

CASE(an_agent_reaches_itself)
{
	struct rig_end a;
	struct ag_rmem *rmem;
	struct ag_pair p;
	char name[64];

	rig_open(&a, "self", LEN);
	rig_load(&a, &a);
	rmem = rig_see(&a, &a, a.mem);
	rig_fill(a.buf, 1, LEN / 2);
	p = (struct ag_pair){ a.mem, rmem, (uintptr_t)a.buf, (uintptr_t)a.buf + LEN / 2, LEN / 2 };
	rig_move(&a, "self", AG_WRITE, &p, 1, "", 0);
	assert_true(rig_is(a.buf + LEN / 2, 1, LEN / 2));
	assert_int_equal(rig_note(&a, name, NULL, 0), 0);
	assert_string_equal(name, "self");
	ag_rmem_unload(rmem);
	rig_close(&a);
}

CASE(both_ways_at_once)
{
	struct ag_pair there, back;
	struct ag_xfer *x, *y;
	struct ag_rmem *rmem;
	struct kv_error err;
	struct rig_two t;

	rig_up(&t, LEN);
	rig_load(&t.b, &t.a);
	rmem = rig_see(&t.b, &t.a, t.a.mem);
	rig_fill(t.a.buf, 1, LEN / 2);
	rig_fill(t.b.buf + LEN / 2, 2, LEN / 2);
	there = pair_at(&t, 0, 0, LEN / 2);
	back = (struct ag_pair){ t.b.mem, rmem, (uintptr_t)t.b.buf + LEN / 2,
				 (uintptr_t)t.a.buf + LEN / 2, LEN / 2 };
	assert_int_equal(ag_xfer_prepare(t.a.agent, "b", AG_WRITE, &there, 1, &x, &err), 0);
	assert_int_equal(ag_xfer_prepare(t.b.agent, "a", AG_WRITE, &back, 1, &y, &err), 0);
	assert_true(ag_xfer_post(x, "x", 1, &err) >= 0 && ag_xfer_post(y, "y", 1, &err) >= 0);
	assert_int_equal(rig_end_of(x, &err), 0);
	assert_int_equal(rig_end_of(y, &err), 0);
	assert_true(rig_is(t.b.buf, 1, LEN / 2) && rig_is(t.a.buf + LEN / 2, 2, LEN / 2));
	rig_note(&t.a, NULL, NULL, 0);
	rig_note(&t.b, NULL, NULL, 0);
	rig_release(x);
	rig_release(y);
	ag_rmem_unload(rmem);
	rig_down(&t);
}

CASE(what_is_wrong_is_refused_where_it_stands)
{
	struct ag_config nameless = { .name = "" };
	struct ag_agent *agent;
	struct ag_xfer *xfer;
	struct ag_pair p[2];
	struct kv_error err;
	struct rig_two t;

	assert_int_equal(ag_open(&nameless, &agent, &err), KV_ERR_ARG);
	rig_up(&t, LEN);
	p[0] = pair_at(&t, 0, 0, 10);
	p[1] = pair_at(&t, LEN - 5, 0, 10);
	assert_int_equal(ag_xfer_prepare(t.a.agent, "b", AG_WRITE, p, 2, &xfer, &err), KV_ERR_ARG);
	assert_int_equal(err.block_index, 1);
	p[1] = pair_at(&t, 0, LEN - 5, 10);
	assert_int_equal(ag_xfer_prepare(t.a.agent, "b", AG_WRITE, p, 2, &xfer, &err), KV_ERR_ARG);
	p[1] = pair_at(&t, 0, 0, SIZE_MAX);
	assert_int_equal(ag_xfer_prepare(t.a.agent, "b", AG_WRITE, p, 2, &xfer, &err), KV_ERR_ARG);
	p[1] = pair_at(&t, 0, 0, 10);
	p[1].mem = t.b.mem;
	assert_int_equal(ag_xfer_prepare(t.a.agent, "b", AG_WRITE, p, 2, &xfer, &err), KV_ERR_ARG);
	assert_int_equal(ag_xfer_prepare(t.a.agent, "c", AG_WRITE, p, 1, &xfer, &err), KV_ERR_ARG);
	assert_int_equal(ag_xfer_prepare(t.a.agent, "b", 5, p, 1, &xfer, &err), KV_ERR_ARG);
	assert_int_equal(ag_notify(t.a.agent, "c", "", 0, &err), KV_ERR_ARG);
	assert_int_equal(ag_peer_load(t.a.agent, "c", "kvrail", 6, &err), KV_ERR_ARG);
	assert_int_equal(ag_peer_check(t.a.agent, "c", &err), KV_ERR_ARG);
	assert_int_equal(ag_xfer_prepare(t.a.agent, "b", AG_WRITE, p, 1, &xfer, &err), 0);
	assert_int_equal(ag_xfer_check(xfer, &err), KV_ERR_ARG);
	rig_release(xfer);
	p[0].len = 0; /* nothing to move is allowed */
	rig_move(&t.a, "b", AG_WRITE, p, 1, "none", 4);
	assert_int_equal(rig_note(&t.b, NULL, NULL, 0), 4);
	rig_down(&t);
}

int main(int argc, char **argv)
{
	bool device = argc > 1 && !strcmp(argv[1], "ib");

	slow_path = argc < 2 || device;
	by_calls = argc > 1 && !strcmp(argv[1], "cma");
	if (device) /* 64 MiB in messages of 256 bytes: minutes over an emulated wire */
		cmocka_set_skip_filter("notifications_that_nobody_takes_wait");
	rig_path(argc > 1 ? argv[1] : NULL);
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	return run_cases(NULL, NULL);
}
