/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_bounds_test.c -- every public function keeps its bound (docs/deadlines.md) beside a peer that
 * was stopped, one that floods, one whose pages never come, a name that does not resolve, and a
 * registration of a terabyte; with a service thread and without
 *
 * usage: kv_bounds_test stopped|flood|stuck|name|huge
 */
#include "kv_bounds.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "lib/names.h"
#include "lib/stuck.h"

enum { PEERS = 4 /* spare ones, and the one */, TIB_SHIFT = 40 };

static const char *asked; /* which scene */

/* ---------------------------------------------------------------- the other end */

static void *flood(void *arg)
{
	static const struct kv_layers all_layers = { 0, 0 };
	static _Atomic int64_t next = 10;
	const struct node *node = arg;
	int64_t id[1] = { atomic_fetch_add(&next, 1) };

	for (;;) {
		struct kv_lease *lease;

		kv_write_blocks(node->peer, node->cache, all_layers, id, id, 1, NULL, NULL);
		if (!kv_blocks_open(node->peer, node->cache, id, 1, 1, 60000, &lease, NULL))
			kv_revoke(lease, 1000, NULL);
	}
	return NULL;
}

static int other_end(int fd, const void *arg)
{
	const char *word = arg;
	struct shape shape = rig_shape;
	struct node node;
	char byte;

	shape.malloced = !strcmp(word, "stuck");
	node_open(&node, 2, &shape, NULL);
	child_listens(fd, &node);
	child_receive(fd, &byte, 1); /* it is connected */
	if (!strcmp(word, "flood")) {
		for (int i = 0; i < PEERS; i++) {
			struct node *one = malloc(sizeof(*one));
			pthread_t thread;

			node_await_peer(&node);
			*one = node;
			assert_int_equal(pthread_create(&thread, NULL, flood, one), 0);
		}
	} else if (!strcmp(word, "stuck") && stuck_begin_inside(node.mem, node.len) < 0) {
		return 1;
	}
	child_send(fd, "", 1);
	for (;;)
		poll(NULL, 0, 1000); /* until it is killed */
}

/* ---------------------------------------------------------------- a registration of a terabyte */

struct registrar {
	struct kv_engine *engine;
	atomic_bool stop;
	int ret;
	struct kv_error err;
	pthread_t thread;
};

static void *register_tib(void *arg)
{
	struct registrar *r = arg;

	while (!r->ret &&
	       !atomic_load(&r->stop)) /* BUSY: somebody connected meanwhile, and knows it */
		r->ret = register_untouched(r->engine, UINT64_C(1) << TIB_SHIFT, &r->err);
	return NULL;
}

static struct registrar registrar;

/* Before the engine is closed, which nobody may use then. */
static void join_registrar(struct scene *scene)
{
	if (!registrar.engine)
		return;
	atomic_store(&registrar.stop, true);
	pthread_join(registrar.thread, NULL);
	registrar.engine = NULL;
}

/* ---------------------------------------------------------------- */

static void *kept[2]; /* for good: by mode */

static void run_in(int progress)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct scene scene = { .name = asked };
	struct shape shape = rig_shape;
	struct kv_error err;
	struct child child;
	char byte = 1;

	names_answer(false);
	child_start(&child, other_end, asked);
	child_receive(child.fd, &scene.port, sizeof(scene.port));
	config.progress = progress;
	shape.malloced = !strcmp(asked, "stuck");
	node_open(&scene.node, 1, &shape, &config);
	if (shape.malloced) { /* a call that was given up reads it until the child is gone */
		kept[progress] = scene.node.mem;
		scene.node.shape.malloced = false;
	}
	for (int i = 0; i < 3; i++)
		ok(kv_connect(scene.node.engine, NULL, scene.port, RIG_TIMEOUT_MS, &scene.spare[i],
			      &err),
		   &err);
	node_connect(&scene.node, scene.port);
	child_send(child.fd, &byte, 1);
	child_receive(child.fd, &byte, 1);
	if (!strcmp(asked, "stopped"))
		child_kill(&child, SIGSTOP);
	if (!strcmp(asked, "name"))
		scene.host = "never.test";
	if (!strcmp(asked, "huge")) {
		registrar = (struct registrar){ .engine = scene.node.engine };
		assert_int_equal(pthread_create(&registrar.thread, NULL, register_tib, &registrar),
				 0);
		scene.before_close = join_registrar;
	}
	bounds_run(&scene);
	names_answer(true);
	child_kill(&child, SIGKILL);
	child_join(&child);
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
	asked = argc > 1 ? argv[1] : "stopped";
	if (!strcmp(asked, "stuck") && !stuck_can())
		return 77;
	bounds_setup();
	return run_cases(NULL, NULL);
}
