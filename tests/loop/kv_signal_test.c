/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_signal_test.c -- a storm of signals whose handler was set without SA_RESTART, so that every
 * system call of the application's thread may end with EINTR
 */
#include <signal.h>
#include <stdlib.h>
#include <sys/time.h>

#include "base/clock.h"
#include "kv_rig.h"

enum { N = 4, EVERY_US = 500 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[N] = { 3, 9, 10, 40 }, to[N] = { 1, 2, 60, 61 };
static volatile sig_atomic_t signals;

static void count_signal(int number)
{
	signals = signals + 1;
}

static void blow(bool on)
{
	struct itimerval every = { { 0, on ? EVERY_US : 0 }, { 0, on ? EVERY_US : 0 } };
	struct sigaction action = { .sa_handler = on ? count_signal : SIG_IGN };

	assert_int_equal(sigaction(SIGALRM, &action, NULL), 0);
	assert_int_equal(setitimer(ITIMER_REAL, &every, NULL), 0);
}

CASE(a_storm_of_signals_changes_nothing)
{
	const int64_t wait_ms = slow_ms(100);

	for (int progress = KV_PROGRESS_AUTO; progress <= KV_PROGRESS_CALLER; progress++) {
		struct kv_engine_config config = KV_INIT(kv_engine_config);
		struct kv_options opts = KV_INIT(kv_options);
		struct kv_error err;
		struct node a, b;
		int64_t begun;

		signals = 0;
		blow(true);
		node_open(&b, 2, &rig_shape, NULL);
		node_listen(&b);
		config.progress = progress;
		node_open(&a, 1, &rig_shape, &config);
		node_connect(&a, b.port);
		node_await_peer(&b);
		for (int i = 0; i < 100; i++)
			ok(kv_write_blocks(a.peer, a.cache, all_layers, from, to, N, NULL, &err),
			   &err);
		assert_true(memory_is(&b, all_layers, 1, from, to, N, 0));
		/* A wait is neither cut short by a signal nor begun anew. */
		opts.timeout_ms = wait_ms;
		begun = kv_now_ns();
		assert_int_equal(
			kv_recv_blocks(a.peer, a.cache, all_layers, from, N, 7, &opts, &err),
			KV_ERR_TIMEOUT);
		assert_in_range((kv_now_ns() - begun) / KV_NS_PER_MS, wait_ms - 1, RIG_TIMEOUT_MS);
		ok(kv_peer_close(a.peer, RIG_TIMEOUT_MS, &err), &err);
		node_close(&a);
		node_close(&b);
		blow(false);
		assert_in_range(signals, wait_ms / 10, INT32_MAX);
	}
}

int main(int argc, char **argv)
{
	if (argc > 1)
		setenv("KVCACHE_SHM_PATH", argv[1], 1);
	return run_cases(NULL, NULL);
}
