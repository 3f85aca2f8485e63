/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_hang_test.c -- hangs made on purpose, of several kinds: the dumps of the two ends alone must
 * say why
 *
 *     kv_hang_test KVRAIL [CASE]       the program
 */
#include "loop/kv_rig.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "ask.h"
#include "lib/port.h"
#include "lib/process.h"

enum { N = 3, OP_MS = 600000, ROOM = 64, WRITES = ROOM + 4, TAG = 77, MANY = 90 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[N] = { 5, 6, 9 }, to[N] = { 10, 12, 3 };

static struct kv_op *begin_write(struct node *a, uint64_t tag, struct kv_group *group)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_error err;
	struct kv_op *op;

	opts.timeout_ms = OP_MS;
	opts.tag = tag;
	opts.group = group;
	ok(kv_write_blocks_async(a->peer, a->cache, all_layers, from, to, N, &opts, &op, &err),
	   &err);
	return op;
}

static void end_op(struct kv_op *op)
{
	struct kv_error err;

	ok(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &err), &err);
	assert_int_equal(kv_op_free(op, NULL), 0);
}

/* ---------------------------------------------------------------- a peer that is stopped */

static int receiver(int fd, const void *arg)
{
	struct node b;

	node_open(&b, 2, arg, NULL);
	child_listens(fd, &b);
	return child_ends(fd, &b);
}

/* Many large blocks to a process that is stopped: what is between the two is full soon. */
static void fill_up(const char *path, const char *why)
{
	struct shape large = rig_shape;
	struct kv_options opts = KV_INIT(kv_options);
	int64_t ids[MANY];
	struct child stopped;
	struct kv_error err;
	struct kv_op *op;
	char words[64];
	uint32_t port;
	struct node a;

	rig_path(path);
	large.block_bytes[0] = large.stride[0] = 128 << 10;
	large.malloced = true;
	child_start(&stopped, receiver, &large);
	child_receive(stopped.fd, &port, sizeof(port));
	node_open(&a, 1, &large, NULL);
	node_connect(&a, port);
	assert_true(stop_process(stopped.pid));
	for (int i = 0; i < MANY; i++)
		ids[i] = i;
	opts.timeout_ms = OP_MS;
	ok(kv_write_blocks_async(a.peer, a.cache, all_layers, ids, ids, MANY, &opts, &op, &err),
	   &err);
	dump_until(why);
	dump_until("operation write_blocks, stage post, ");
	dump_until("waits_for room in the transport (its peer's connection says why)");
	snprintf(words, sizeof(words), "peer process %d, which is stopped, ", (int)stopped.pid);
	if (strcmp(path, "tcp"))
		dump_until(words);
	child_kill(&stopped, SIGCONT);
	end_op(op);
	close(stopped.fd);
	assert_int_equal(child_join(&stopped), 0);
	node_close(&a);
	unsetenv("KVCACHE_TRANSPORT"); /* of rig_path("tcp") */
	rig_path("pool");
}

CASE(a_full_socket)
{
	fill_up("tcp", "out of room: the peer reads nothing, or its network carries nothing");
}

CASE(a_full_ring)
{
	fill_up("ring", "out of room: the peer takes nothing from the ring");
}

static int writer(int fd, const void *arg)
{
	struct node a;

	node_open(&a, 1, NULL, NULL);
	child_connects(fd, &a);
	child_send(fd, "", 1);
	return child_ends(fd, &a);
}

static void *take_back(void *arg)
{
	struct kv_error err;

	ok(kv_revoke(arg, OP_MS, &err), &err);
	return NULL;
}

CASE(a_writer_that_does_not_give_its_blocks_back)
{
	struct kv_arrival arrival;
	struct kv_lease *lease;
	struct child stopped;
	struct kv_error err;
	pthread_t thread;
	char byte;
	struct node b;

	child_start(&stopped, writer, NULL);
	node_open(&b, 2, NULL, NULL);
	node_listen(&b);
	child_send(stopped.fd, &b.port, sizeof(b.port));
	child_receive(stopped.fd, &byte, 1);
	assert_true(await_kind(&b, KV_ARRIVAL_PEER_UP, &arrival, RIG_TIMEOUT_MS));
	ok(kv_blocks_open(arrival.peer, b.cache, to, N, TAG, OP_MS, &lease, &err), &err);
	assert_true(stop_process(stopped.pid));
	assert_int_equal(pthread_create(&thread, NULL, take_back, lease), 0);
	dump_until("state closed, waits for the writer to stop, tag 77, ");
	dump_until("which is stopped, ");
	child_kill(&stopped, SIGCONT);
	pthread_join(thread, NULL);
	close(stopped.fd);
	assert_int_equal(child_join(&stopped), 0);
	node_close(&b);
}

/* ---------------------------------------------------------------- an application that does not */

CASE(a_lease_that_nobody_opens)
{
	struct kv_options opts = KV_INIT(kv_options);
	struct kv_error err;
	struct kv_op *op;
	struct pair p;

	pair_open(&p, NULL, NULL);
	opts.timeout_ms = OP_MS;
	ok(kv_send_blocks_async(p.a.peer, p.a.cache, all_layers, from, N, TAG, &opts, &op, &err),
	   &err);
	dump_until("operation send_blocks, stage waits for a lease, ");
	says("waits_for a lease that the peer has not opened, ");
	says("tag 77");
	assert_int_equal(kv_cancel(op, RIG_TIMEOUT_MS, &err), 0);
	assert_int_equal(kv_op_free(op, NULL), 0);
	pair_close(&p);
}

CASE(arrivals_that_nobody_takes)
{
	static const char *const options[] = { "KVCACHE_ARRIVALS=64", NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_arrival arrival;
	struct kv_op *op[WRITES];
	struct pair p;

	config.options = options;
	pair_open(&p, NULL, &config);
	for (int i = 0; i < WRITES; i++)
		op[i] = begin_write(&p.a, (uint64_t)i, NULL);
	dump_until("waits_for the peer's application, which takes no arrivals");
	dump_until("arrivals_waiting 64, arrivals_room 64"); /* the other engine, read before it */
	dump_until("state waits for room in the arrivals");
	for (int i = 0; i < WRITES; i++)
		assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
	for (int i = 0; i < WRITES; i++)
		end_op(op[i]);
	pair_close(&p);
}

static atomic_bool served;

static void *serve(void *arg)
{
	while (!atomic_load(&served))
		kv_progress(arg, 10, NULL);
	return NULL;
}

CASE(an_engine_that_nobody_drives)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_op *op;
	pthread_t thread;
	struct node a, b;

	config.progress = KV_PROGRESS_CALLER;
	config.name = "decode-3";
	node_open(&b, 2, NULL, &config);
	node_listen(&b);
	atomic_store(&served, false);
	assert_int_equal(pthread_create(&thread, NULL, serve, b.engine), 0);
	node_open(&a, 1, NULL, NULL);
	node_connect(&a, b.port);
	atomic_store(&served, true);
	pthread_join(thread, NULL);
	op = begin_write(&a, TAG, NULL);
	dump_until("not_served the application calls neither kv_progress nor a wait");
	dump_until("waits_for the peer's acknowledgement");
	atomic_store(&served, false);
	assert_int_equal(pthread_create(&thread, NULL, serve, b.engine), 0);
	end_op(op);
	atomic_store(&served, true);
	pthread_join(thread, NULL);
	node_close(&a);
	node_close(&b);
}

CASE(a_group_that_is_not_ended)
{
	struct kv_group *group;
	struct kv_error err;
	struct kv_op *op;
	struct pair p;

	pair_open(&p, NULL, NULL);
	ok(kv_group_start(p.a.engine, &group, &err), &err);
	op = begin_write(&p.a, TAG, group);
	dump("");
	says("operations_not_begun 1");
	says("waits_for the end of its group, ");
	ok(kv_group_end(group, RIG_TIMEOUT_MS, NULL, &err), &err);
	end_op(op);
	pair_close(&p);
}

/* ---------------------------------------------------------------- a handshake */

static void *connect_in_vain(void *arg)
{
	struct node *a = arg;
	struct kv_error err;

	assert_int_not_equal(kv_connect(a->engine, "127.0.0.1", a->port, OP_MS, &a->peer, &err), 0);
	return NULL;
}

CASE(a_handshake_that_nobody_answers)
{
	pthread_t thread;
	struct node a;
	int fd;

	node_open(&a, 1, NULL, NULL);
	fd = port_hold(&a.port);
	assert_int_equal(listen(fd, 1), 0);
	assert_int_equal(pthread_create(&thread, NULL, connect_in_vain, &a), 0);
	dump_until("handshake waiting for hello");
	says("peers_up 0, handshakes 1, ");
	says("state handshake, address 127.0.0.1:");
	close(fd); /* resets what was not accepted */
	pthread_join(thread, NULL);
	node_close(&a);
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	ask_program = argv[1];
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	setenv("KVCACHE_VIEW", "1", 1);
	return run_cases(NULL, NULL);
}
