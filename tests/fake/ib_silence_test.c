/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_silence_test.c -- TCP packets get lost: what goes over RDMA, or over memory, keeps the
 * connection; with both silent the peer is lost in time
 */
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>

#include "base/clock.h"
#include "conn.h"
#include "lib/deaf.h"
#include "lib/slow.h"
#include "lib/test.h"
#include "setting.h"

enum { SIZE = 65536, TURN_MS = 20 };

static int64_t limit_ms(void)
{
	return slow_ms(2000);
}

static const char *const *options(void)
{
	static char limit[64];
	static const char *const list[] = { limit, NULL };

	snprintf(limit, sizeof(limit), "KVCACHE_PEER_TIMEOUT_MS=%lld", (long long)limit_ms());
	return list;
}

static void lose_tcp(struct rig *rig, bool on)
{
	for (int i = 0; i < 2; i++)
		assert_true(deaf_socket(rig->side[i].conn->sock, on));
}

/* As an engine does: polls until there is nothing, arms, sleeps a moment. */
static void turn(struct rig *rig)
{
	for (int i = 0; i < 2; i++) {
		rig_pump_side(rig, i);
		for (int n = 0; rig->side[i].conn && tr_conn_arm(rig->side[i].conn) && n < 100; n++)
			rig_pump_side(rig, i);
	}
	poll(NULL, 0, TURN_MS);
}

static void assert_up(struct rig *rig)
{
	for (int i = 0; i < 2; i++)
		if (tr_conn_error(rig->side[i].conn)->code)
			fail_msg("side %d: %s", i, tr_conn_error(rig->side[i].conn)->message);
}

/* ms until the side got TR_PEER_LOST. */
static int64_t until_lost(struct rig *rig, int side)
{
	int64_t begun = kv_now_ns(), end = kv_deadline_ns(10 * limit_ms());
	struct rig_event *event;

	while (!(event = rig_find(rig, side, TR_PEER_LOST))) {
		assert_true(kv_now_ns() < end);
		turn(rig);
	}
	assert_int_equal(event->status, KV_ERR_PEER_LOST);
	print_message("%s\n", event->cause.message);
	return (kv_now_ns() - begun) / KV_NS_PER_MS;
}

static void write_one(struct setting *s, uint64_t user)
{
	struct tr_span span = { 0, 0, SIZE };

	rig_op(&s->rig, 0, TR_WRITE, user, s->mem[0], s->rmem[0], &span, 1, TR_NOTIFY, user);
	setting_expect_written(s, 0, user);
	setting_expect_notify(s, 1, user);
}

static void mute(bool on)
{
	fake_mute(0, on);
	fake_mute(1, on);
}

static int64_t past_the_limit(void)
{
	return kv_deadline_ns(limit_ms() * 5 / 4);
}

CASE(what_moves_over_rdma_is_life)
{
	int64_t ms, end;
	struct setting s;

	setting_make(&s, NULL, options(), SIZE);
	lose_tcp(&s.rig, true);
	end = past_the_limit();
	for (uint64_t user = 1; kv_now_ns() < end; user++) {
		write_one(&s, user);
		turn(&s.rig);
		assert_up(&s.rig);
	}
	/* Now that stops, too: the time counts from the last completion. */
	mute(true);
	ms = until_lost(&s.rig, 0);
	assert_true(ms >= limit_ms() * 7 / 8 && ms <= limit_ms() * 2);
	mute(false);
	setting_end(&s);
}

/* Nobody writes, and the path would carry it. */
CASE(an_idle_peer_is_asked_over_rdma)
{
	int64_t end;
	struct setting s;

	setting_make(&s, NULL, options(), SIZE);
	lose_tcp(&s.rig, true);
	for (end = past_the_limit(); kv_now_ns() < end; turn(&s.rig))
		assert_up(&s.rig);
	write_one(&s, 1);
	/* TCP works again, as if nothing had been. */
	lose_tcp(&s.rig, false);
	for (end = past_the_limit(); kv_now_ns() < end; turn(&s.rig))
		assert_up(&s.rig);
	tr_conn_close(s.rig.side[0].conn);
	s.rig.side[0].conn = NULL;
	assert_true(until_lost(&s.rig, 1) < limit_ms() / 2);
	setting_end(&s);
}

/* The kernel's own verdict, however it came to that, is no more than silence. */
CASE(a_control_socket_that_timed_out_is_silence)
{
	unsigned int soon = 200;
	int64_t end;
	struct setting s;

	setting_make(&s, NULL, options(), SIZE);
	for (int i = 0; i < 2; i++)
		setsockopt(s.rig.side[i].conn->sock, IPPROTO_TCP, TCP_USER_TIMEOUT, &soon,
			   sizeof(soon));
	lose_tcp(&s.rig, true);
	for (end = kv_deadline_ns(slow_ms(20000)); !s.rig.side[0].conn->silence.deaf;
	     turn(&s.rig)) {
		assert_true(kv_now_ns() < end);
		assert_up(&s.rig);
	}
	for (end = past_the_limit(); kv_now_ns() < end; turn(&s.rig))
		assert_up(&s.rig);
	write_one(&s, 1);
	setting_end(&s);
}

CASE(silence_on_both_is_the_end)
{
	struct setting s;
	int64_t ms;

	setting_make(&s, NULL, options(), SIZE);
	write_one(&s, 1);
	lose_tcp(&s.rig, true);
	mute(true);
	ms = until_lost(&s.rig, 0);
	/* The last keepalive was answered up to one second before. */
	assert_true(ms >= limit_ms() - slow_ms(1100) && ms <= limit_ms() * 2);
	assert_true(until_lost(&s.rig, 1) <= limit_ms() * 2);
	mute(false);
	setting_end(&s);
}

/* Its packets get lost and this end's arrive: both ends learn of it. */
CASE(silence_of_one_is_the_end_for_both)
{
	struct setting s;

	setting_make(&s, NULL, options(), SIZE);
	write_one(&s, 1);
	lose_tcp(&s.rig, true);
	fake_mute(1, true);
	assert_true(until_lost(&s.rig, 1) <= limit_ms() * 2);
	assert_true(until_lost(&s.rig, 0) <= limit_ms() * 2);
	fake_mute(1, false);
	setting_end(&s);
}

static struct rig local;

static void make_local(unsigned int flags)
{
	struct kv_error err;

	fake_begin(NULL);
	if (rig_open(&local, "shm", options(), &err))
		fail_msg("open: %s", err.message);
	local.flags = flags;
	if (rig_connect(&local, &err))
		fail_msg("connect: %s", err.message);
}

/* On one host the local socket says who is gone: there is no TCP any more. */
CASE(memory_needs_no_tcp)
{
	int64_t end;

	make_local(0);
	for (end = kv_deadline_ns(10 * limit_ms());
	     local.side[0].conn->sock >= 0 || local.side[1].conn->sock >= 0; turn(&local))
		assert_true(kv_now_ns() < end);
	for (end = past_the_limit(); kv_now_ns() < end; turn(&local))
		assert_up(&local);
	tr_conn_close(local.side[0].conn);
	local.side[0].conn = NULL;
	assert_true(until_lost(&local, 1) <= limit_ms() * 2);
	rig_close(&local);
	assert_true(fake_end());
}

/* As the NCCL plugin has it: the local socket is closed, the pidfd remains. */
CASE(memory_needs_no_tcp_where_nobody_sleeps)
{
	int64_t end;

	make_local(TR_POLLED);
	lose_tcp(&local, true);
	for (end = past_the_limit(); kv_now_ns() < end; turn(&local))
		for (int i = 0; i < 1000; i++)
			rig_pump(&local);
	assert_up(&local);
	rig_close(&local);
	assert_true(fake_end());
}
