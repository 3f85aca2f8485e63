/* SPDX-License-Identifier: Apache-2.0 */
/*
 * tr_paths.c -- every way that bytes are moved, between two processes: all bytes, their neighbours,
 * orders, limits. "tr_paths ib" is the same over verbs, where there are devices (tests/rxe).
 */
#include <stdlib.h>
#include <string.h>

#include "lib/test.h"
#include "tr_pair.h"

enum { REGION = 1 << 20, SOURCE_SEED = 1, TARGET_SEED = 2 };

struct path_row {
	struct pair_config config;
	const char *text; /* what tr_conn_path must say */
};

enum { POOL, CMA, RING, LINES_POOL, LINES_RING, TCP, STREAMS, IB, LINES_IB };
static const struct path_row rows[] = {
	[POOL] = { { .child_pool = true, .parent_pool = true }, "memfd pool" },
	[CMA] = { { .flags = 0 }, "process_vm_writev" },
	[RING] = { { .parent_path = "ring", .child_path = "ring" }, "ring (KVCACHE_SHM_PATH)" },
	[LINES_POOL] = { { .child_pool = true, .parent_pool = true, .flags = TR_LINE_ORDER },
			 "ordered stores" },
	[LINES_RING] = { { .flags = TR_LINE_ORDER },
			 "ring (process_vm_writev does not keep the order within lines)" },
	[TCP] = { { .parent_path = "tcp", .child_path = "tcp" }, "TCP, 1 stream" },
	[STREAMS] = { { .parent_path = "tcp",
			.child_path = "tcp",
			.option = "KVCACHE_TCP_STREAMS=3" },
		      "TCP, 3 streams" },
	[IB] = { { .parent_path = "ib", .child_path = "ib" }, "RoCE v2" },
	[LINES_IB] = { { .parent_path = "ib", .child_path = "ib", .flags = TR_LINE_ORDER },
		       "RoCE v2" },
};

/* What both processes do between their first and their last meeting. */
struct test {
	const struct path_row *row;
	pair_fn *parent, *child;
};
static const struct test *test;

static void whole(struct pair_side *s)
{
	pair_up(s);
	pair_fill(s->base, s->child ? TARGET_SEED : SOURCE_SEED, 0, REGION);
	pair_meet(s); /* before this, the fill could overwrite what arrives */
	(s->child ? test->child : test->parent)(s);
	pair_meet(s);
	pair_down(s);
}

static void run(void **state)
{
	struct pair_config config;

	test = *state;
	config = test->row->config;
	config.region = REGION;
	config.ring = 65536; /* small, so that it wraps around and is full */
	assert_int_equal(pair_run(&config, whole, whole), 0);
}

/* ---------------------------------------------------------------- every size and alignment */

enum { SIZES = 300, SLOT = 512 };

static struct tr_span size_span(unsigned int size)
{
	/* Offsets run through all 64 of a line at both ends while the sizes run. */
	return (struct tr_span){ .local = (uint64_t)(size * 7 % 64) + (size - 1) * (uint64_t)SLOT,
				 .remote = (uint64_t)(size * 13 % 64 + 64) +
					   (size - 1) * (uint64_t)SLOT,
				 .len = size };
}

static void sizes_parent(struct pair_side *s)
{
	struct tr_span spans[SIZES];
	struct tr_op *op;

	PAIR_CHECK(strstr(tr_conn_path(s->conn), test->row->text));
	for (unsigned int i = 0; i < SIZES; i++)
		spans[i] = size_span(i + 1);
	op = pair_begin(s, TR_WRITE, 77);
	pair_add(s, op, spans, SIZES);
	pair_commit(s, op, TR_NOTIFY, 4711);
	pair_wait_ended(s, 1);
	PAIR_CHECK(s->last_end == TR_WRITTEN && s->last_user == 77);
}

static void sizes_child(struct pair_side *s)
{
	uint64_t at = 0;

	pair_wait_notifies(s, 1);
	PAIR_CHECK(s->notified[0] == 4711);
	for (unsigned int i = 0; i < SIZES; i++) {
		struct tr_span span = size_span(i + 1);

		PAIR_CHECK(pair_differs(s->base + at, TARGET_SEED, at, span.remote - at) < 0);
		PAIR_CHECK(pair_differs(s->base + span.remote, SOURCE_SEED, span.local, span.len) <
			   0);
		at = span.remote + span.len;
	}
	PAIR_CHECK(pair_differs(s->base + at, TARGET_SEED, at, REGION - at) < 0);
}

/* ---------------------------------------------------------------- many operations */

enum { MANY_SPANS = 3 };
static unsigned int many = 20000;

/*
 * The bytes of two operations are not ordered between streams: so many in a row go to places of
 * their own, then all of them have to be there.
 */
enum { MANY_APART = 64 };

static bool many_are_apart(void)
{
	return test->row == &rows[STREAMS];
}

/* The same on both sides: spans of operation i. */
static void many_spans(unsigned int op, uint64_t *random, struct tr_span spans[MANY_SPANS])
{
	uint64_t room = many_are_apart() ? REGION / MANY_APART : REGION;
	uint64_t from = many_are_apart() ? op % MANY_APART * room : 0;

	for (int i = 0; i < MANY_SPANS; i++) {
		uint64_t x = pair_random(random);

		spans[i].len = 1 + (x >> 40) % (x & 1 ? 40 : 1500);
		spans[i].local = (x >> 1) % (REGION - spans[i].len);
		spans[i].remote = from + pair_random(random) % (room - spans[i].len);
	}
}

/*
 * Spans of one operation are not ordered among each other: those that overlap an earlier one of it
 * are left out.
 */
static int distinct(struct tr_span *spans)
{
	int n = 0;

	for (int i = 0; i < MANY_SPANS; i++) {
		bool clear = true;

		for (int k = 0; k < n; k++)
			clear &= spans[i].remote + spans[i].len <= spans[k].remote ||
				 spans[k].remote + spans[k].len <= spans[i].remote;
		if (clear)
			spans[n++] = spans[i];
	}
	return n;
}

static void many_parent(struct pair_side *s)
{
	struct tr_span spans[MANY_SPANS];
	uint64_t random = 88172645463325252u;

	for (unsigned int i = 0; i < many; i++) {
		struct tr_op *op = pair_begin(s, TR_WRITE, i);

		many_spans(i, &random, spans);
		pair_add(s, op, spans, (size_t)distinct(spans));
		pair_commit(s, op, TR_NOTIFY | (i % 3 && !many_are_apart() ? 0 : TR_PROVEN), i);
		if (many_are_apart() && i % MANY_APART == MANY_APART - 1)
			pair_wait_ended(s, i + 1);
	}
	pair_wait_ended(s, many);
}

static void many_child(struct pair_side *s)
{
	struct tr_span spans[MANY_SPANS];
	uint64_t random = 88172645463325252u;
	uint8_t *model = malloc(REGION);

	PAIR_CHECK(model);
	pair_fill(model, TARGET_SEED, 0, REGION);
	for (unsigned int i = 0; i < many; i++) {
		pair_wait_notifies(s, i + 1);
		PAIR_CHECK(s->notified[i % PAIR_EVENTS_MAX] == i);
		many_spans(i, &random, spans);
		for (int k = 0, n = distinct(spans); k < n; k++)
			pair_fill(model + spans[k].remote, SOURCE_SEED, spans[k].local,
				  spans[k].len);
	}
	PAIR_CHECK(!memcmp(model, s->base, REGION));
	free(model);
}

/* ---------------------------------------------------------------- orders */

enum { ROUNDS = 300, ORDER_LEN = 3000 };

static void order_parent(struct pair_side *s)
{
	struct kv_error err;

	pair_meet(s);
	for (uint64_t i = 0; i < ROUNDS; i++) {
		uint64_t at = i * 3001 % (REGION - ORDER_LEN);
		struct tr_span span = { .local = at, .remote = at, .len = ORDER_LEN };
		struct tr_op *op = pair_begin(s, TR_WRITE, i);

		pair_add(s, op, &span, 1);
		pair_commit(s, op, TR_NOTIFY, i * 2);
		op = pair_begin(s, TR_WRITE, i);
		pair_commit(s, op, TR_NOTIFY, i * 2 + 1); /* no span at all */
		pair_send(s, &i, sizeof(i));
	}
	pair_send(s, s->base, TR_MSG_MAX);
	pair_send(s, s->base, 0);
	PAIR_CHECK(tr_msg(s->conn, s->base, TR_MSG_MAX + 1, &err) == KV_ERR_ARG);
	pair_wait_ended(s, 2 * ROUNDS);
}

static void order_on_notify(struct pair_side *s, uint64_t value)
{
	uint64_t i = value / 2, at = i * 3001 % (REGION - ORDER_LEN);

	PAIR_CHECK(value == s->notifies);
	PAIR_CHECK(pair_differs(s->base + at, SOURCE_SEED, at, ORDER_LEN) < 0);
	/* The message that follows this round's second notify has not overtaken it. */
	PAIR_CHECK(s->msgs <= i);
}

static void order_child(struct pair_side *s)
{
	s->on_notify = order_on_notify;
	pair_meet(s);
	pair_wait_msgs(s, ROUNDS + 2);
	PAIR_CHECK(s->notifies == 2 * ROUNDS);
	for (uint64_t i = 0; i < ROUNDS; i++)
		PAIR_CHECK(s->msg_len[i] == sizeof(i) && !memcmp(s->msg[i], &i, sizeof(i)));
	PAIR_CHECK(s->msg_len[ROUNDS] == TR_MSG_MAX);
	PAIR_CHECK(pair_differs(s->msg[ROUNDS], SOURCE_SEED, 0, 16) < 0);
	PAIR_CHECK(s->msg_len[ROUNDS + 1] == 0);
}

/* ---------------------------------------------------------------- reads */

enum { READS = 500, READ_SPANS = 4 };

static void reads_parent(struct pair_side *s)
{
	uint64_t random = 42;
	uint8_t *model = malloc(REGION);

	PAIR_CHECK(model);
	pair_fill(model, SOURCE_SEED, 0, REGION);
	for (unsigned int i = 0; i < READS; i++) {
		struct tr_op *op = pair_begin(s, TR_READ_OP, i);
		struct tr_span spans[READ_SPANS];

		for (unsigned int k = 0; k < READ_SPANS; k++) {
			uint64_t part = REGION / READ_SPANS;

			/* one in 100 is larger than the ring */
			spans[k].len = 1 + pair_random(&random) % (i % 100 ? 9000 : part - 1);
			spans[k].local = k * part + pair_random(&random) % (part - spans[k].len);
			spans[k].remote = pair_random(&random) % (REGION - spans[k].len);
			pair_fill(model + spans[k].local, TARGET_SEED, spans[k].remote,
				  spans[k].len);
		}
		pair_add(s, op, spans, READ_SPANS);
		pair_commit(s, op, 0, 0);
		pair_wait_ended(s, i + 1);
		PAIR_CHECK(s->last_end == TR_READ && s->last_user == i);
	}
	PAIR_CHECK(!memcmp(model, s->base, REGION));
	free(model);
	pair_meet(s);
}

static void reads_child(struct pair_side *s)
{
	pair_meet(s);
	PAIR_CHECK(pair_differs(s->base, TARGET_SEED, 0, REGION) < 0);
}

/* ---------------------------------------------------------------- both directions at once */

enum { BOTH = 200 };

/* Each side writes into the peer's first half and reads from its second half. */
static void both_parent(struct pair_side *s)
{
	uint64_t half = REGION / 2, mine = s->child ? TARGET_SEED : SOURCE_SEED;
	uint64_t theirs = s->child ? SOURCE_SEED : TARGET_SEED;

	for (unsigned int i = 0; i < BOTH; i++) {
		struct tr_span write = { .local = half + i * 100,
					 .remote = i * 100,
					 .len = half - BOTH * 100 };
		struct tr_span read = { .local = half - 30000, .remote = half, .len = 30000 };
		struct tr_op *op = pair_begin(s, TR_WRITE, i);

		write.len = i % 20 ? 30000 : write.len;
		pair_add(s, op, &write, 1);
		pair_commit(s, op, TR_NOTIFY, i);
		op = pair_begin(s, TR_READ_OP, i);
		pair_add(s, op, &read, 1);
		pair_commit(s, op, 0, 0);
	}
	pair_wait_ended(s, 2 * BOTH);
	pair_wait_notifies(s, BOTH);
	pair_meet(s);
	PAIR_CHECK(pair_differs(s->base, theirs, half, 100) < 0);
	PAIR_CHECK(pair_differs(s->base + half, mine, half, half) < 0);
}

#define both_child both_parent

/* ---------------------------------------------------------------- cancel */

static void cancel_parent(struct pair_side *s)
{
	struct tr_span big = { .local = 0, .remote = 0, .len = REGION };
	struct kv_error err;
	struct tr_op *op;

	/*
	 * Open, with a span that a ring cannot hold: what went ahead may arrive, the rest must not
	 * follow.
	 */
	op = pair_begin(s, TR_WRITE, 1);
	PAIR_CHECK(tr_op_add(op, s->mem, s->rmem, &big, 1, &err) == 1);
	PAIR_CHECK(!tr_op_cancel(op, kv_deadline_ns(PAIR_WAIT_MS), &err));
	pair_wait_ended(s, 1);
	PAIR_CHECK(s->last_end == TR_CANCELLED && s->last_user == 1);
	pair_meet(s);
	/* Nothing of it lands from here on: the child looks twice. */
	pair_meet(s);
	/* A read, with its slot and its place used again at once. */
	op = pair_begin(s, TR_READ_OP, 2);
	PAIR_CHECK(tr_op_add(op, s->mem, s->rmem, &big, 1, &err) == 1);
	PAIR_CHECK(!tr_op_cancel(op, kv_deadline_ns(PAIR_WAIT_MS), &err));
	pair_wait_ended(s, 2);
	PAIR_CHECK(s->last_end == TR_CANCELLED && s->last_user == 2);
	pair_fill(s->base, 9, 0, REGION);
	op = pair_begin(s, TR_READ_OP, 3);
	big = (struct tr_span){ .local = 100, .remote = REGION - 50, .len = 50 };
	pair_add(s, op, &big, 1);
	pair_commit(s, op, 0, 0);
	pair_wait_ended(s, 3);
	PAIR_CHECK(s->last_end == TR_READ && s->last_user == 3);
	PAIR_CHECK(pair_differs(s->base + 100, 3, REGION - 50, 50) < 0);
	PAIR_CHECK(pair_differs(s->base, 9, 0, 100) < 0);
	PAIR_CHECK(pair_differs(s->base + 150, 9, 150, REGION - 150) < 0);
	pair_meet(s);
}

static void cancel_child(struct pair_side *s)
{
	pair_meet(s);
	pair_fill(s->base, 3, 0, REGION);
	for (int i = 0; i < 20; i++)
		pair_poll(s, 1);
	PAIR_CHECK(pair_differs(s->base, 3, 0, REGION) < 0);
	pair_meet(s);
	pair_meet(s);
	PAIR_CHECK(!s->notifies && !s->lost);
}

/* ---------------------------------------------------------------- back-pressure */

static void quiet_parent(struct pair_side *s)
{
	struct kv_error err;
	unsigned int sent = 0;
	int ret;

	pair_say(s, 1);
	/* The child does not poll: messages are refused, not waited for. */
	while (!(ret = tr_msg(s->conn, &sent, sizeof(sent), &err)))
		sent++;
	PAIR_CHECK(ret == TR_AGAIN && sent > 40 && sent < PAIR_EVENTS_MAX);
	pair_say(s, sent);
	/* The wake-up comes when there is room again, without any event. */
	while ((ret = tr_msg(s->conn, &sent, sizeof(sent), &err)) == TR_AGAIN)
		pair_poll(s, (int)PAIR_WAIT_MS);
	PAIR_CHECK(!ret);
}

static void quiet_child(struct pair_side *s)
{
	unsigned int sent;

	PAIR_CHECK(pair_hear(s) == 1);
	sent = (unsigned int)pair_hear(s);
	pair_wait_msgs(s, sent + 1);
	for (unsigned int i = 0; i <= sent; i++)
		PAIR_CHECK(!memcmp(s->msg[i], &i, sizeof(i)));
}

/* The child does not poll: a ring takes a part, then nothing, and goes on when there is room. */
static void part_parent(struct pair_side *s)
{
	struct tr_span spans[100];
	struct kv_error err;
	struct tr_op *op;
	long first;

	PAIR_CHECK(pair_hear(s) == 9); /* the child polls no more */
	for (uint64_t i = 0; i < 100; i++)
		spans[i] = (struct tr_span){ .local = i * 5000, .remote = i * 5001, .len = 5000 };
	op = pair_begin(s, TR_WRITE, 1);
	first = tr_op_add(op, s->mem, s->rmem, spans, 100, &err);
	PAIR_CHECK(first > 0 && first < 100);
	PAIR_CHECK(!tr_op_add(op, s->mem, s->rmem, spans + first, 100 - (size_t)first, &err));
	PAIR_CHECK(tr_op_commit(op, TR_NOTIFY, 1, &err) ==
		   TR_AGAIN); /* the last taken one is cut */
	pair_say(s, 1);
	pair_add(s, op, spans + first, 100 - (size_t)first);
	pair_commit(s, op, TR_NOTIFY, 1);
	pair_wait_ended(s, 1);
}

static void part_child(struct pair_side *s)
{
	pair_say(s, 9);
	PAIR_CHECK(pair_hear(s) == 1);
	pair_wait_notifies(s, 1);
	for (uint64_t i = 0; i < 100; i++) {
		PAIR_CHECK(pair_differs(s->base + i * 5001, SOURCE_SEED, i * 5000, 5000) < 0);
		PAIR_CHECK(s->base[i * 5001 + 5000] == pair_byte(TARGET_SEED, i * 5001 + 5000));
	}
}

/* One call keeps its caller for a bounded time: the rest is asked for, without a sleep between. */
static void large_parent(struct pair_side *s)
{
	static struct tr_span spans[40];
	struct kv_error err;
	struct tr_op *op;
	size_t done = 0, calls = 0;

	for (int i = 0; i < 40; i++)
		spans[i] = (struct tr_span){ .len = REGION };
	op = pair_begin(s, TR_WRITE, 1);
	while (done < 40) {
		long n = tr_op_add(op, s->mem, s->rmem, spans + done, 40 - done, &err);

		PAIR_CHECK(n > 0 && n <= 4);
		done += (size_t)n;
		calls++;
		PAIR_CHECK(tr_conn_arm(s->conn) == (done < 40));
		PAIR_CHECK(tr_conn_arm(s->conn) == 0); /* said once */
	}
	PAIR_CHECK(calls == 10);
	pair_commit(s, op, TR_NOTIFY, 1);
	pair_wait_ended(s, 1);
}

static void large_child(struct pair_side *s)
{
	pair_wait_notifies(s, 1);
	PAIR_CHECK(pair_differs(s->base, SOURCE_SEED, 0, REGION) < 0);
}

#define TEST(sentence, what, with)                                        \
	{                                                                 \
#sentence " (" #with ")", run, NULL, NULL, &(struct test) \
		{                                                         \
			&rows[with], what##_parent, what##_child          \
		}                                                         \
	}
#define TESTS(sentence, what)                                                              \
	TEST(sentence, what, POOL), TEST(sentence, what, CMA), TEST(sentence, what, RING), \
		TEST(sentence, what, LINES_POOL), TEST(sentence, what, LINES_RING),        \
		TEST(sentence, what, TCP), TEST(sentence, what, STREAMS)
#define IB_TESTS(sentence, what) TEST(sentence, what, IB), TEST(sentence, what, LINES_IB)
#define EVERYWHERE(TESTS)                                                                      \
	TESTS(every_size_and_alignment_arrives_and_the_neighbours_stay, sizes),                \
		TESTS(many_operations_arrive_in_order_through_every_wraparound, many),         \
		TESTS(a_notify_comes_after_its_bytes_and_a_message_after_the_notify, order),   \
		TESTS(reads_bring_the_peers_bytes_and_nothing_else, reads),                    \
		TESTS(both_sides_write_and_read_at_once_without_waiting_for_each_other, both), \
		TESTS(nothing_of_a_cancelled_operation_lands_after_its_event, cancel)

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		EVERYWHERE(TESTS),
		TEST(a_full_ring_accepts_a_part_and_the_rest_later, part, RING),
		TEST(a_full_ring_accepts_a_part_and_the_rest_later, part, LINES_RING),
		TEST(a_call_copies_at_most_4_mib_and_arm_says_go_on, large, POOL),
		TEST(a_call_copies_at_most_4_mib_and_arm_says_go_on, large, CMA),
		TEST(a_peer_that_does_not_poll_makes_again_and_room_wakes_the_sender, quiet, POOL),
		TEST(a_peer_that_does_not_poll_makes_again_and_room_wakes_the_sender, quiet, TCP),
		TEST(a_peer_that_does_not_poll_makes_again_and_room_wakes_the_sender, quiet,
		     STREAMS),
	};
	const struct CMUnitTest over_ib[] = {
		EVERYWHERE(IB_TESTS),
		TEST(a_peer_that_does_not_poll_makes_again_and_room_wakes_the_sender, quiet, IB),
	};

	if (argc < 2 || strcmp(argv[1], "ib"))
		return cmocka_run_group_tests(tests, NULL, NULL);
	many = 2000; /* emulated; the queues have 512 places */
	return cmocka_run_group_tests(over_ib, NULL, NULL);
}
