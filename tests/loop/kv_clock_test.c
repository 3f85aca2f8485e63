/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_clock_test.c -- the clock of the host is set again and again, by years and in both directions:
 * no deadline and no lifetime depends on it
 */
#include <stdatomic.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "kv_rig.h"

static atomic_int asked;

/* Instead of the C library's, for the library as well: what is not monotonic is of no use. */
int clock_gettime(clockid_t id, struct timespec *ts)
{
	int ret = (int)syscall(SYS_clock_gettime, id, ts);

	if (id != CLOCK_REALTIME && id != CLOCK_REALTIME_COARSE && id != CLOCK_TAI)
		return ret;
	ts->tv_sec += (atomic_fetch_add(&asked, 1) % 2 ? 1 : -1) * 100000000L; /* three years */
	return ret;
}

int gettimeofday(struct timeval *tv, void *zone)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	tv->tv_sec = ts.tv_sec;
	tv->tv_usec = ts.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *at)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	if (at)
		*at = ts.tv_sec;
	return ts.tv_sec;
}

static int64_t ms_since(int64_t ns)
{
	return (kv_now_ns() - ns) / KV_NS_PER_MS;
}

CASE(deadlines_and_lifetimes_are_as_long_as_ever)
{
	static const struct kv_layers all_layers = { 0, 0 };
	static const int64_t ids[] = { 3, 9 };
	const int64_t wait_ms = slow_ms(100);
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_arrival arrival;
	struct kv_lease *lease;
	struct kv_error err;
	int64_t begun;
	struct pair p;

	pair_open(&p, NULL, NULL);
	for (int i = 0; i < 20; i++)
		ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, ids, ids, 2, NULL, &err), &err);
	assert_true(memory_is(&p.b, all_layers, 1, ids, ids, 2, 0));
	opts.timeout_ms = wait_ms;
	begun = kv_now_ns();
	assert_int_equal(kv_recv_blocks(p.a.peer, p.a.cache, all_layers, ids, 2, 7, &opts, &err),
			 KV_ERR_TIMEOUT);
	assert_in_range(ms_since(begun), wait_ms - 1, RIG_TIMEOUT_MS);
	begun = kv_now_ns();
	ok(kv_blocks_open(p.b.peer, p.b.cache, ids, 2, 7, wait_ms, &lease, &err), &err);
	assert_true(await_kind(&p.b, KV_ARRIVAL_EXPIRED, &arrival, RIG_TIMEOUT_MS));
	assert_in_range(ms_since(begun), wait_ms - 1, RIG_TIMEOUT_MS);
	ok(kv_revoke(lease, RIG_TIMEOUT_MS, &err), &err);
	pair_close(&p);
	assert_true(time(NULL) != time(NULL)); /* it does jump */
}
