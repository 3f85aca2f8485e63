/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_loss_test.c -- a peer is not connected any more when the first of its operations says that it
 * is lost
 *
 * The linker puts kv_engine_note in the library's place: each error is reported there first, by
 * whichever thread ends the operation.
 */
#include "kv_rig.h"

#include <signal.h>
#include <stdatomic.h>
#include <sys/socket.h>

enum { N = 2, OPS = 100 }; /* more than the engine takes events at a time */

static _Atomic(struct kv_peer *) watched;
static atomic_uint reported, lies;

static bool is_connected(struct kv_peer *peer)
{
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_error err;

	ok(kv_peer_info(peer, &info, &err), &err);
	return info.connected;
}

void __real_kv_engine_note(struct kv_engine *engine, const struct kv_error *err);
void __wrap_kv_engine_note(struct kv_engine *engine, const struct kv_error *err);
void __wrap_kv_engine_note(struct kv_engine *engine, const struct kv_error *err)
{
	if (atomic_load(&watched) && err->code == KV_ERR_PEER_LOST) {
		atomic_fetch_add(&reported, 1);
		atomic_fetch_add(&lies, is_connected(atomic_load(&watched)));
	}
	__real_kv_engine_note(engine, err);
}

/* Sends its port and serves until it is killed. */
static int receiver(int fd, const void *arg)
{
	struct node node;
	char end;

	(void)arg;
	node_open(&node, 2, NULL, NULL);
	child_listens(fd, &node);
	recv(fd, &end, 1, 0);
	return 1;
}

CASE(no_operation_says_that_a_connected_peer_is_lost)
{
	static const struct kv_layers all_layers = { 0, 0 };
	static const int64_t ids[N] = { 3, 4 };
	struct kv_op *ops[OPS];
	struct kv_error err;
	struct child child;
	struct node a;
	uint32_t port;

	child_start(&child, receiver, NULL); /* while this process has no other thread */
	child_receive(child.fd, &port, sizeof(port));
	node_open(&a, 1, NULL, NULL);
	node_connect(&a, port);
	atomic_store(&watched, a.peer);
	child_kill(&child, SIGSTOP); /* it cannot acknowledge them */
	for (int i = 0; i < OPS; i++)
		ok(kv_write_blocks_async(a.peer, a.cache, all_layers, ids, ids, N, NULL, &ops[i],
					 &err),
		   &err);
	child_kill(&child, SIGKILL);
	for (int i = 0; i < OPS; i++) {
		assert_int_equal(kv_wait(ops[i], KV_ACKED, RIG_TIMEOUT_MS, &err), KV_ERR_PEER_LOST);
		ok(kv_op_free(ops[i], &err), &err);
	}
	assert_false(is_connected(a.peer));
	assert_in_range(atomic_load(&reported), OPS, OPS + 1); /* the peer's own is one, too */
	assert_int_equal(atomic_load(&lies), 0);
	atomic_store(&watched, NULL);
	assert_int_equal(child_join(&child), 128 + SIGKILL);
	node_close(&a);
}

int main(int argc, char **argv)
{
	rig_path(argc > 1 ? argv[1] : "pool");
	return run_cases(NULL, NULL);
}
