/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_data_test.c -- the ib provider over the fake device: bytes, notifies, messages, credits,
 * merging, slices
 */
#include <stdlib.h>
#include <string.h>

#include "base/option.h"
#include "ib/ib.h"
#include "lib/test.h"
#include "setting.h"

enum { SIZE = 1 << 20 };

/*
 * Blocks of side 0 in order go to the places of a permutation at side 1; after the notify every
 * byte is there.
 */
static void write_blocks(struct setting *s, size_t block, uint64_t epoch, unsigned int flags)
{
	size_t n = s->size / block;
	struct tr_span *spans = calloc(n, sizeof(*spans));

	setting_fill(s, 0, epoch);
	for (size_t i = 0; i < n; i++)
		spans[i] = (struct tr_span){ i * block, (i * 7 + 3) % n * block, block };
	rig_op(&s->rig, 0, TR_WRITE, epoch, s->mem[0], s->rmem[0], spans, n, flags, epoch * 3);
	if (flags & TR_NOTIFY)
		setting_expect_notify(s, 1, epoch * 3);
	else
		setting_expect_written(s, 0, epoch);
	for (size_t i = 0; i < n; i++)
		assert_memory_equal(s->buf[1] + GUARD + spans[i].remote,
				    s->buf[0] + GUARD + spans[i].local, block);
	if (flags & TR_NOTIFY)
		setting_expect_written(s, 0, epoch);
	free(spans);
}

CASE(after_a_notify_every_byte_is_there)
{
	static const char *const lanes[][2] = { { "KVCACHE_IB_LANES=1" },
						{ "KVCACHE_IB_LANES=4" } };

	for (uint64_t seed = 1; seed <= 12; seed++) {
		struct fake_config config = { .seed = seed, .devices = seed % 3 == 0 ? 2 : 1 };
		struct setting s;

		setting_make(&s, &config, lanes[seed % 2], SIZE / 4);
		write_blocks(&s, 1024, seed, TR_NOTIFY);
		write_blocks(&s, 4096, seed + 100, TR_NOTIFY);
		setting_end(&s);
	}
}

CASE(after_a_proven_write_every_byte_is_there)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=4", NULL };

	for (uint64_t seed = 1; seed <= 12; seed++) {
		struct fake_config config = { .seed = seed };
		struct setting s;

		setting_make(&s, &config, options, SIZE / 8);
		write_blocks(&s, 512, seed, TR_PROVEN);
		setting_end(&s);
	}
}

/*
 * Shows that the fake is mean enough: without proof or notify the bytes may still be on their way.
 */
CASE(after_an_unproven_write_bytes_may_be_missing)
{
	struct fake_stats stats;
	uint64_t late = 0;

	for (uint64_t seed = 1; seed <= 12; seed++) {
		struct fake_config config = { .seed = seed };
		struct setting s;
		struct tr_span span = { 0, 0, 65536 };

		setting_make(&s, &config, NULL, 65536);
		rig_op(&s.rig, 0, TR_WRITE, 1, s.mem[0], s.rmem[0], &span, 1, 0, 0);
		setting_expect_written(&s, 0, 1);
		fake_settle();
		fake_stats(&stats);
		late += stats.late;
		setting_end(&s);
	}
	assert_true(late > 0);
}

CASE(reads_bring_the_peers_bytes)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=3", NULL };
	struct fake_config config = { .seed = 5, .devices = 2 };
	struct setting s;
	struct tr_span spans[64];

	setting_make(&s, &config, options, SIZE / 4);
	setting_fill(&s, 1, 9);
	for (size_t i = 0; i < 64; i++)
		spans[i] = (struct tr_span){ i * 4096, (63 - i) * 4096, 4000 };
	rig_op(&s.rig, 0, TR_READ_OP, 77, s.mem[0], s.rmem[0], spans, 64, 0, 0);
	assert_int_equal(rig_wait(&s.rig, 0, TR_READ, BUDGET)->user, 77);
	for (size_t i = 0; i < 64; i++) {
		assert_memory_equal(setting_at(&s, 0, spans[i].local),
				    setting_at(&s, 1, spans[i].remote), 4000);
		for (size_t g = 4000; g < 4096; g++)
			assert_int_equal(s.buf[0][GUARD + i * 4096 + g], 0xee);
	}
	setting_end(&s);
}

CASE(a_notify_without_bytes_arrives)
{
	struct setting s;

	setting_make(&s, NULL, NULL, 4096);
	for (uint64_t i = 0; i < 500; i++) {
		rig_op(&s.rig, 0, TR_WRITE, i, s.mem[0], s.rmem[0], NULL, 0, TR_NOTIFY, i + 1);
		setting_expect_notify(&s, 1, i + 1);
		setting_expect_written(&s, 0, i);
	}
	setting_end(&s);
}

/* Messages in order, each after the bytes of the operation that was notified before it. */
CASE(a_message_does_not_pass_the_operation_before_it)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=4", NULL };

	for (uint64_t seed = 1; seed <= 20; seed++) {
		struct fake_config config = { .seed = seed, .devices = 2 };
		struct setting s;
		struct tr_span span = { 0, 0, SIZE / 2 };
		struct rig_event *event;
		uint32_t n;

		setting_make(&s, &config, options, SIZE / 2);
		setting_fill(&s, 0, seed);
		rig_op(&s.rig, 0, TR_WRITE, 1, s.mem[0], s.rmem[0], &span, 1, TR_NOTIFY, 5);
		for (n = 0; n < 3; n++)
			assert_int_equal(tr_msg(s.rig.side[0].conn, &n, sizeof(n), NULL), 0);
		for (n = 0; n < 3; n++) {
			event = rig_wait(&s.rig, 1, TR_MSG, BUDGET);
			assert_non_null(event);
			assert_int_equal(event->len, sizeof(n));
			assert_memory_equal(event->msg, &n, sizeof(n));
			assert_memory_equal(setting_at(&s, 0, 0), setting_at(&s, 1, 0), s.size);
		}
		assert_non_null(rig_find(&s.rig, 1, TR_NOTIFIED));
		setting_end(&s);
	}
}

/* Thousands in both directions at once: credits run out, come back, and wrap around. */
CASE(messages_and_notifies_go_on_for_ever_in_both_directions)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=2", NULL };
	struct fake_config config = { .seed = 3 };
	struct setting s;
	uint32_t sent[2] = { 0 }, got[2] = { 0 }, notified[2] = { 0 }, sent_notifies[2] = { 0 };
	int again = 0;

	setting_make(&s, &config, options, 4096);
	for (int i = 0; i < BUDGET && (got[0] < 3000 || got[1] < 3000); i++) {
		for (int side = 0; side < 2; side++) {
			struct tr_conn *conn = s.rig.side[side].conn;
			struct tr_op *op;
			struct rig_event *event;
			int ret;

			while (sent[side] < 3000 && !(ret = tr_msg(conn, &sent[side], 4, NULL)))
				sent[side]++;
			again += sent[side] < 3000;
			if (!tr_op_begin(conn, TR_WRITE, 0, &op, NULL)) {
				if (!tr_op_commit(op, TR_NOTIFY, sent_notifies[side], NULL))
					sent_notifies[side]++;
				else
					tr_op_cancel(op, INT64_MAX, NULL);
			}
			rig_pump_side(&s.rig, side);
			while ((event = rig_find(&s.rig, side, TR_MSG)))
				assert_int_equal(*(uint32_t *)(void *)event->msg, got[side]++);
			while ((event = rig_find(&s.rig, side, TR_NOTIFIED)))
				assert_int_equal(event->value, notified[side]++);
			s.rig.side[side].events = 0;
		}
	}
	assert_int_equal(got[0], 3000);
	assert_int_equal(got[1], 3000);
	assert_true(notified[0] > 1000);
	assert_true(again > 0);
	setting_end(&s);
}

/* A receiver that takes nothing stops the sender, and loses nothing. */
CASE(a_receiver_that_does_not_poll_stops_the_sender)
{
	struct setting s;

	setting_make(&s, NULL, NULL, 4096);
	for (int again = 0; again < 5; again++) {
		uint32_t sent = 0;

		for (int i = 0; i < 5000; i++) {
			sent += tr_msg(s.rig.side[0].conn, &sent, 4, NULL) == 0;
			rig_pump_side(&s.rig, 0);
		}
		assert_true(sent >= 32 && sent < 200);
		for (uint32_t n = 0; n < sent; n++) {
			struct rig_event *event = rig_wait(&s.rig, 1, TR_MSG, BUDGET);

			assert_non_null(event);
			assert_memory_equal(event->msg, &n, 4);
		}
	}
	setting_end(&s);
}

static struct tr_counters counters(struct setting *s)
{
	struct tr_counters c;

	tr_conn_counters(s->rig.side[0].conn, &c);
	return c;
}

/* What the path costs, counted: work requests and doorbells of one batch without a notify. */
static void count(const struct fake_config *config, size_t n, size_t block, size_t lstride,
		  size_t rstride, uint64_t *wrs, uint64_t *bells)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=2", NULL };
	struct setting s;
	struct tr_span *spans = calloc(n, sizeof(*spans));
	struct tr_counters before, after;

	setting_make(&s, config, options, SIZE);
	setting_fill(&s, 0, 1);
	for (size_t i = 0; i < n; i++)
		spans[i] = (struct tr_span){ i * lstride, i * rstride, block };
	before = counters(&s);
	rig_op(&s.rig, 0, TR_WRITE, 1, s.mem[0], s.rmem[0], spans, n, TR_PROVEN, 0);
	setting_expect_written(&s, 0, 1);
	after = counters(&s);
	for (size_t i = 0; i < n; i++)
		assert_memory_equal(s.buf[1] + GUARD + i * rstride, s.buf[0] + GUARD + i * lstride,
				    block);
	*wrs = after.work_requests - before.work_requests;
	*bells = after.doorbells - before.doorbells;
	free(spans);
	setting_end(&s);
}

CASE(scattered_blocks_cost_one_request_each_and_few_doorbells)
{
	uint64_t wrs, bells;

	count(NULL, 256, 1024, 2048, 2048, &wrs, &bells);
	assert_int_equal(wrs, 256 + 2); /* and the proof on each lane */
	assert_int_equal(bells, 4 + 2);
}

CASE(blocks_that_are_adjacent_on_both_ends_become_one_request)
{
	uint64_t wrs, bells;

	count(NULL, 64, 1024, 1024, 1024, &wrs, &bells);
	assert_int_equal(wrs, 1 + 1);
	assert_int_equal(bells, 1); /* the proof goes behind it */
}

CASE(blocks_that_are_adjacent_only_in_the_peer_are_gathered_in_pairs)
{
	uint64_t wrs, bells;

	count(NULL, 64, 1024, 4096, 1024, &wrs, &bells);
	assert_int_equal(wrs, 32 + 1);
	assert_int_equal(bells, 1);
}

/*
 * One write of `size` bytes to a place that begins inside a line: how many bytes each device
 * carried.
 */
static void deal(int devices, size_t size, size_t offset, size_t *bytes, size_t *writes)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=2", NULL };
	static struct fake_write write[256];
	struct fake_config config = { .devices = devices };
	struct tr_span span = { 0, offset, size };
	struct setting s;
	size_t n;

	fake_begin(&config);
	setting_connect(&s, options, size + 1024, TR_LINE_ORDER);
	setting_fill(&s, 0, 1);
	fake_writes(NULL, 0);
	rig_op(&s.rig, 0, TR_WRITE, 1, s.mem[0], s.rmem[0], &span, 1, TR_PROVEN, 0);
	setting_expect_written(&s, 0, 1);
	assert_memory_equal(setting_at(&s, 1, offset), setting_at(&s, 0, 0), size);
	n = fake_writes(write, 256);
	memset(bytes, 0, 8 * sizeof(*bytes));
	for (size_t i = 0; i < n; i++) {
		bytes[write[i].device] += write[i].len;
		if (i) /* whole lines but at the ends */
			assert_int_equal(write[i].addr % 128, 0);
	}
	*writes = n;
	setting_end(&s);
}

CASE(every_device_gets_its_share)
{
	static const size_t sizes[] = { 512 << 10, (1 << 20) + 8, 1536 << 10, (5 << 20) + 77 };
	static const size_t offsets[] = { 0, 4, 127 };
	size_t bytes[8], writes;

	for (int devices = 2; devices <= 8; devices *= 2)
		for (size_t i = 0; i < 12; i++) {
			size_t size = sizes[i / 3];

			deal(devices, size, offsets[i % 3], bytes, &writes);
			for (int d = 0; d < devices; d++) {
				assert_true(bytes[d] * (size_t)devices < size + 65536);
				assert_true(bytes[d] * (size_t)devices + 65536 > size);
			}
			assert_int_equal(writes % (size_t)devices, 0);
			assert_true(writes <= (size + 127) / (256 << 10) + (size_t)devices);
		}
}

static void expect_writes(int devices, size_t size, size_t offset, size_t expected)
{
	size_t bytes[8], writes;

	deal(devices, size, offset, bytes, &writes);
	assert_int_equal(writes, expected);
}

CASE(few_bytes_go_over_few_devices)
{
	expect_writes(4, 128 << 10, 0, 2);
	expect_writes(4, 100000, 5, 1);
	expect_writes(8, 300000, 0, 4);
}

CASE(one_device_gets_as_few_requests_as_ever)
{
	expect_writes(1, 1 << 20, 0, 4);
	expect_writes(1, 300000, 0, 2);
	expect_writes(1, 1 << 20, 4, 5);
}

/* Packets of the fake's first device have 1024 bytes. */
CASE(soft_roce_gets_one_packet_a_request)
{
	static const struct fake_config soft = { .soft = true };
	uint64_t wrs, bells;

	count(&soft, 64, 1024, 1024, 1024, &wrs, &bells);
	assert_int_equal(wrs, 64 + 1);
	assert_int_equal(bells, 1 + 1); /* a chain is as long as ever */
	count(&soft, 16, 4096, 8192, 8192, &wrs, &bells);
	assert_int_equal(wrs, 64 + 1);
}

/* 8 KiB slices and spans that begin and end anywhere. */
CASE(spans_that_straddle_slices_arrive_whole)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=2", NULL };

	for (unsigned int flags = 0; flags <= TR_LINE_ORDER; flags += TR_LINE_ORDER) {
		struct setting s;
		struct tr_span spans[] = {
			{ 1, 8000, 30000 },  { 40001, 40000, 24000 }, { 65536 + 5, 65536, 8192 },
			{ 80000, 75001, 1 }, { 80001, 75002, 50001 },
		};

		fake_begin(NULL);
		ib_test_hook.slice_bytes = 8192;
		setting_connect(&s, options, 200000, flags);
		/* Regions inside pages, and not alike on both ends. */
		for (int i = 0; i < 2; i++) {
			assert_int_equal(tr_mem_dereg(s.mem[i], NULL), 0);
			s.mem[i] = rig_reg(&s.rig, i, setting_at(&s, i, i ? 128 : 37), 190000,
					   TR_REMOTE_WRITE);
		}
		s.rmem[0] = rig_see(&s.rig, 0, s.mem[1]);
		setting_fill(&s, 0, 4);
		rig_op(&s.rig, 0, TR_WRITE, 1, s.mem[0], s.rmem[0], spans, 5, TR_NOTIFY, 8);
		setting_expect_notify(&s, 1, 8);
		for (size_t i = 0; i < 5; i++)
			assert_memory_equal(setting_at(&s, 1, 128 + spans[i].remote),
					    setting_at(&s, 0, 37 + spans[i].local), spans[i].len);
		for (size_t i = 0; i < 8128; i++)
			assert_int_equal(*setting_at(&s, 1, i), 0xee);
		setting_end(&s);
	}
}

/* A send queue of 16: every kind of room runs out all the time. */
CASE(a_small_send_queue_is_slow_and_right)
{
	for (uint64_t seed = 1; seed <= 8; seed++) {
		struct fake_config config = { .seed = seed };
		struct setting s;

		fake_begin(&config);
		ib_test_hook.sq_depth = 16;
		setting_connect(&s, NULL, 65536, 0);
		write_blocks(&s, 256, seed, TR_NOTIFY | TR_PROVEN);
		setting_end(&s);
	}
}

CASE(infiniband_addresses_by_lid)
{
	struct fake_config config = { .infiniband = true, .devices = 2 };
	struct setting s;

	setting_make(&s, &config, NULL, SIZE / 8);
	write_blocks(&s, 4096, 2, TR_NOTIFY);
	assert_non_null(strstr(tr_conn_path(s.rig.side[0].conn), "InfiniBand"));
	setting_end(&s);
}

CASE(a_device_that_takes_nothing_inline_works)
{
	struct fake_config config = { .max_inline = -1, .seed = 4 };
	struct setting s;

	setting_make(&s, &config, NULL, SIZE / 8);
	write_blocks(&s, 4096, 2, TR_NOTIFY);
	setting_end(&s);
}

/* A completion that is there already makes no event: the caller must not go to sleep. */
CASE(arming_tells_of_what_is_there_already)
{
	struct setting s;

	setting_make(&s, NULL, NULL, 4096);
	while (tr_conn_arm(s.rig.side[1].conn))
		rig_pump(&s.rig);
	rig_op(&s.rig, 0, TR_WRITE, 1, s.mem[0], s.rmem[0], NULL, 0, TR_NOTIFY, 6);
	fake_settle();
	assert_int_equal(tr_conn_arm(s.rig.side[1].conn), 1);
	setting_expect_notify(&s, 1, 6);
	setting_end(&s);
}

/*
 * Room comes without an event: who was refused, then polls and finds nothing, must not go to sleep.
 */
CASE(arming_tells_of_room_that_a_poll_has_found)
{
	struct tr_conn *conn;
	struct setting s;
	uint32_t sent = 0;

	setting_make(&s, NULL, NULL, 4096);
	conn = s.rig.side[0].conn;
	while (!tr_msg(conn, &sent, sizeof(sent), NULL))
		sent++;
	for (uint32_t got = 0; got < sent; got += rig_find(&s.rig, 1, TR_MSG) != NULL)
		rig_pump_side(&s.rig, 1);
	fake_settle();
	for (int i = 0; i < 10; i++)
		rig_pump_side(&s.rig, 0);
	assert_int_equal(s.rig.side[0].events, 0);
	assert_int_equal(tr_conn_arm(conn), 1);
	assert_int_equal(tr_msg(conn, &sent, sizeof(sent), NULL), 0);
	setting_end(&s);
}

static uint64_t calls_of(const struct tr_conn *conn)
{
	struct tr_counters counters;

	tr_conn_counters(conn, &counters);
	return counters.syscalls;
}

/* Who lets the connection go takes the events of what it has seen, and asks for no more. */
CASE(handing_over_costs_no_call_for_what_has_not_come)
{
	struct tr_conn *conn;
	struct setting s;
	uint64_t calls;

	setting_make(&s, NULL, NULL, 4096);
	conn = s.rig.side[1].conn;
	while (tr_conn_arm(conn))
		rig_pump(&s.rig);
	calls = calls_of(conn);
	for (int i = 0; i < 10; i++)
		assert_int_equal(tr_conn_hand_over(conn), 0);
	assert_int_equal(calls_of(conn), calls);
	rig_op(&s.rig, 0, TR_WRITE, 1, s.mem[0], s.rmem[0], NULL, 0, TR_NOTIFY, 6);
	fake_settle();
	assert_true(tr_conn_wait(conn, 0)); /* its sleeper is woken */
	assert_int_equal(tr_conn_hand_over(conn), 1);
	setting_expect_notify(&s, 1, 6);
	while (tr_conn_hand_over(conn))
		rig_pump_side(&s.rig, 1);
	assert_false(tr_conn_wait(conn, 0)); /* nor again for what was seen */
	assert_true(calls_of(conn) - calls <= 2);
	setting_end(&s);
}

CASE(a_sleeper_is_woken)
{
	struct setting s;

	setting_make(&s, NULL, NULL, 4096);
	rig_op(&s.rig, 0, TR_WRITE, 1, s.mem[0], s.rmem[0], NULL, 0, TR_NOTIFY, 6);
	for (int i = 0; i < 100 && tr_conn_arm(s.rig.side[1].conn); i++)
		rig_pump_side(&s.rig, 1);
	/* Side 1 sleeps; that side 0 goes to sleep as well lets the world run. */
	for (int i = 0; i < 100 && tr_conn_arm(s.rig.side[0].conn); i++)
		rig_pump_side(&s.rig, 0);
	setting_expect_notify(&s, 1, 6);
	setting_end(&s);
}

/*
 * The control socket is the faster one: a goodbye on it that came first would end the peer's
 * polling.
 */
CASE(a_fence_says_goodbye_after_what_was_sent)
{
	int arrived = 0, ret;
	bool late = false;
	struct setting s;

	fake_begin(NULL);
	fake_port(0, 0)->slow = 50; /* steps between two messages */
	setting_connect(&s, NULL, 4096, 0);
	ib_conn_of(s.rig.side[0].conn)->end.linger_deadline_ns =
		INT64_MAX; /* its patience is another matter */
	for (int i = 0; i < 8; i++)
		assert_int_equal(tr_msg(s.rig.side[0].conn, "the last", 8, NULL), 0);
	while ((ret = tr_fence(s.rig.side[0].conn, INT64_MAX, NULL)) == TR_AGAIN) {
		bool left = tr_conn_peer_left(s.rig.side[1].conn);

		rig_pump_side(&s.rig, 1);
		while (rig_find(&s.rig, 1, TR_MSG))
			arrived++;
		assert_true(!left || arrived == 8);
		late |= !left && arrived;
	}
	assert_int_equal(ret, 0);
	assert_true(late);
	assert_int_equal(arrived, 8);
	assert_non_null(rig_wait(&s.rig, 1, TR_PEER_LOST, BUDGET));
	assert_true(tr_conn_peer_left(s.rig.side[1].conn));
	setting_end(&s);
}
