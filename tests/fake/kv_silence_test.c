/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_silence_test.c -- engines whose TCP packets all get lost: the peer stays while the device
 * carries bytes, and is lost in time once that is silent, too, or fails, though nobody waits for it
 */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "lib/bar.h"
#include "lib/deaf.h"
#include "fake.h"
#include "loop/kv_rig.h"

static int progress;

static int64_t limit_ms(void)
{
	return slow_ms(2000);
}

static void rest(struct pair *p, int64_t ms)
{
	struct kv_arrival arrival;

	assert_false(await_kind(&p->a, KV_ARRIVAL_PEER_LOST, &arrival, ms / 2));
	assert_false(await_kind(&p->b, KV_ARRIVAL_PEER_LOST, &arrival, ms / 2));
}

static void open_both(struct pair *p, const char *const *options)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);

	config.options = options;
	node_open(&p->b, 2, &rig_shape, &config);
	node_listen(&p->b);
	config.progress = progress;
	node_open(&p->a, 1, &rig_shape, &config);
	node_connect(&p->a, p->b.port);
	node_await_peer(&p->b);
}

CASE(a_peer_is_lost_once_tcp_and_the_device_are_silent)
{
	static const int64_t ids[] = { 3, 4 };
	static const struct kv_layers all_layers = { 0, 0 };
	char limit[64];
	const char *const list[] = { limit, NULL };
	struct kv_arrival arrival;
	struct kv_error err;
	struct pair p;
	int64_t begun, ms;
	struct bar bar;

	snprintf(limit, sizeof(limit), "KVCACHE_PEER_TIMEOUT_MS=%lld", (long long)limit_ms());
	open_both(&p, list);
	assert_int_equal(deaf_all(true), 2);
	rest(&p, limit_ms() * 3 / 2);
	ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, ids, ids, 2, NULL, &err), &err);
	fake_mute(0, true);
	begun = kv_now_ns();
	bar = bar_begin();
	assert_true(await_kind(&p.a, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
	ms = (kv_now_ns() - begun) / KV_NS_PER_MS;
	/* Idle peers are asked now and then: the last answer came that long before, at most. */
	assert_true(ms >= limit_ms() / 8);
	assert_true(bar_ms(bar) <= limit_ms() * 2 * BAR_FACTOR);
	assert_true(await_kind(&p.b, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
	fake_mute(0, false);
	pair_close(&p);
}

/* Nothing is under way, and both threads sleep: the device's own word is all that there is. */
CASE(a_device_that_fails_is_noticed_though_nobody_moves_anything)
{
	static const char *const list[] = { "KVCACHE_PEER_TIMEOUT_MS=86400000", NULL };
	struct kv_arrival arrival;
	struct pair p;

	open_both(&p, list);
	assert_false(await_kind(&p.a, KV_ARRIVAL_PEER_LOST, &arrival, 20));
	fake_device_fatal(0, 0);
	assert_true(await_kind(&p.a, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
	pair_close(&p);
}

int main(int argc, char **argv)
{
	progress = argc > 1 && !strcmp(argv[1], "caller") ? KV_PROGRESS_CALLER : KV_PROGRESS_AUTO;
	return run_cases(NULL, NULL);
}
