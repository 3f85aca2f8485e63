/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_bounds_fake_test.c -- every public function keeps its bound (docs/deadlines.md) beside a
 * device that does not return from a post, or takes its time over a queue pair
 *
 * usage: kv_bounds_fake_test auto|caller post|teardown
 */
#include <stdlib.h>
#include <string.h>

#include "fake.h"
#include "kv_bounds.h"

enum { TEARDOWN_MS = 1500 };

static struct node other;
static bool post;

static void relax(struct scene *scene)
{
	fake_stick(0, false);
	fake_mute(0, false);
	fake_slow_teardown(0, 0);
}

/* A peer that is up, and then the trouble. */
static void arrange(struct scene *scene)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct node *n = &scene->node;
	struct kv_error err;

	relax(scene);
	ok(kv_peer_info(n->peer, &info, &err), &err);
	if (!info.connected) {
		ok(kv_peer_close(n->peer, RIG_TIMEOUT_MS, &err), &err);
		node_connect(n, other.port);
	}
	if (post) {
		fake_stick(0, true);
	} else {
		fake_mute(0, true);
		fake_slow_teardown(0, TEARDOWN_MS);
	}
}

static void run_in(int progress)
{
	static const struct fake_config config = { .hosts = 2, .threads = true };
	struct kv_engine_config engine_config = KV_INIT(kv_engine_config);
	struct scene scene = {
		.name = "a device", .device = true, .arrange = arrange, .relax = relax
	};

	fake_begin(&config);
	fake_host(1);
	node_open(&other, 2, NULL, NULL);
	node_listen(&other);
	fake_host(0);
	engine_config.progress = progress;
	node_open(&scene.node, 1, NULL, &engine_config);
	scene.port = other.port;
	node_connect(&scene.node, other.port);
	bounds_run(&scene);
	relax(&scene);
	node_close(&other);
	fake_end(); /* what a device still held at the close stays open */
}

CASE(with_a_service_thread)
{
	run_in(KV_PROGRESS_AUTO);
}

CASE(without_one)
{
	run_in(KV_PROGRESS_CALLER);
}

int main(int argc, char **argv)
{
	post = argc < 3 || strcmp(argv[2], "teardown");
	setenv("KVCACHE_TRANSPORT", "ib", 1);
	setenv("KVCACHE_IB_LANES", "1", 1);
	bounds_setup();
	cmocka_set_test_filter(argc > 1 && !strcmp(argv[1], "caller") ? "without_one" : "with_*");
	return run_cases(NULL, NULL);
}
