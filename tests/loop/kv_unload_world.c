/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_unload_world.c -- a library with the engine in it, which kv_unload_test closes while a thread
 * of it is in a call that does not return
 */
#include <pthread.h>
#include <signal.h>

#include "kv_rig.h"
#include "unload.h"

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[] = { 5, 6, 0 }, to[] = { 10, 11, 95 };
static void *kept; /* the call that was left behind reads it */

VISIBLE int unload_stuck_call(void)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct shape shape = rig_shape;
	struct kv_error err;
	struct child child;
	struct kv_op *op;
	struct node a;
	uint32_t port;
	char word = 1;

	child_start(&child, rig_stuck_receiver, NULL);
	child_receive(child.fd, &port, sizeof(port));
	shape.malloced = true;
	node_open(&a, 1, &shape, NULL);
	kept = a.mem;
	a.shape.malloced = false;
	node_connect(&a, port);
	child_send(child.fd, &word, 1);
	child_receive(child.fd, &word, 1);
	opts.timeout_ms = 60000;
	ok(kv_write_blocks_async(a.peer, a.cache, all_layers, from, to, 3, &opts, &op, &err), &err);
	node_close(&a);
	return (int)child.pid;
}

VISIBLE void unload_resolver(void)
{
	struct kv_peer *peer;
	struct kv_error err;
	struct node a;

	node_open(&a, 1, &rig_shape, NULL);
	assert_int_not_equal(kv_connect(a.engine, "never.test", 1, 100, &peer, &err), 0);
	node_close(&a);
}

static void *drive(void *arg)
{
	struct kv_engine *engine = arg;

	while (kv_progress(engine, 100, NULL) >= 0)
		;
	return NULL;
}

/* Its connects are heard, and not answered once the other end's thread is in the callback. */
static void knock_until(bool (*inside)(void), uint32_t port)
{
	struct kv_peer *peer;
	struct kv_error err;
	struct node b;

	node_open(&b, 2, &rig_shape, NULL);
	while (!inside())
		if (!kv_connect(b.engine, NULL, port, 100, &peer, &err))
			kv_peer_close(peer, 100, &err);
	node_close(&b);
}

VISIBLE void unload_log(int progress, void (*log)(void *arg, int level, const char *line),
			bool (*inside)(void))
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	pthread_t driver;
	struct node a;

	config.progress = progress;
	config.log = log;
	node_open(&a, 1, &rig_shape, &config);
	node_listen(&a);
	if (progress == KV_PROGRESS_CALLER) {
		assert_int_equal(pthread_create(&driver, NULL, drive, a.engine), 0);
		pthread_detach(driver);
	}
	knock_until(inside, a.port);
	kv_engine_close(a.engine);
}
