/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_life_test.c -- peers that die, stop, come back or fork: every operation ends once, and never
 * as a success
 */
#include "kv_rig.h"

#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/clock.h"
#include "lib/bar.h"
#include "lib/port.h"

enum { N = 6, OPS = 16 };

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[N] = { 5, 6, 7, 0, 95, 40 }, to[N] = { 10, 11, 12, 95, 0, 3 };

/* ---------------------------------------------------------------- children */

/* A receiver: sends its port, then serves until a byte ends it or it is killed. */
static int receiver(int fd, const void *arg)
{
	const struct shape *shape = arg;
	struct node node;
	char end;

	node_open(&node, 2, shape, NULL);
	child_listens(fd, &node);
	while (recv(fd, &end, 1, MSG_DONTWAIT) < 0) {
		struct kv_arrival arrivals[64];

		kv_poll_arrivals(node.engine, arrivals, 64, NULL);
		poll(NULL, 0, 1);
	}
	node_close(&node);
	return 0;
}

/* A writer: connects to the port it gets, says when it writes, and writes without end. */
static int writer(int fd, const void *arg)
{
	struct kv_error err;
	struct node node;
	uint64_t lease;

	node_open(&node, 1, NULL, NULL);
	child_connects(fd, &node);
	child_receive(fd, &lease, sizeof(lease));
	for (bool said = false;;) {
		struct kv_options opts = KV_INIT(kv_options);

		opts.lease = lease;
		if (kv_write_blocks(node.peer, node.cache, all_layers, from, to, N, &opts, &err))
			break;
		if (!said)
			child_send(fd, "", 1);
		said = true;
	}
	kv_engine_close(node.engine);
	return 0;
}

static uint32_t start_receiver(struct child *child, const struct shape *shape)
{
	uint32_t port;

	child_start(child, receiver, shape);
	child_receive(child->fd, &port, sizeof(port));
	return port;
}

/* Opens b's blocks to a started writer, and waits until it writes into them. */
static struct kv_lease *let_write(struct node *b, const struct child *child, int64_t lease_ms)
{
	struct kv_lease *lease;
	struct kv_error err;
	uint64_t id;
	char byte;

	child_send(child->fd, &b->port, sizeof(b->port));
	node_await_peer(b);
	ok(kv_blocks_open(b->peer, b->cache, to, N, 1, lease_ms, &lease, &err), &err);
	id = kv_lease_id(lease);
	child_send(child->fd, &id, sizeof(id));
	child_receive(child->fd, &byte, 1);
	return lease;
}

/* ---------------------------------------------------------------- death of the receiver */

/* Ends every operation: how many were acknowledged, how many lost. Anything else fails the test. */
static void end_all(struct kv_op **ops, int n, unsigned int *acked_p, unsigned int *lost_p)
{
	struct kv_error err;

	for (int i = 0; i < n; i++) {
		int ret = kv_wait(ops[i], KV_ACKED, RIG_TIMEOUT_MS, &err);

		if (ret) {
			assert_int_equal(ret, KV_ERR_PEER_LOST);
			assert_string_not_equal(err.op, "wait"); /* it has ended */
			assert_int_equal(err.scope, KV_SCOPE_PEER);
			++*lost_p;
		} else {
			++*acked_p;
		}
		ok(kv_op_free(ops[i], &err), &err);
	}
}

CASE(a_killed_receiver_ends_every_operation_as_peer_lost)
{
	unsigned int acked = 0, lost = 0;
	struct kv_stats stats = KV_INIT(kv_stats);
	struct kv_error err;
	struct node a;
	uint32_t port;

	for (unsigned int round = 0; round < 12; round++) {
		bool stop = round % 4 == 3; /* it cannot acknowledge what is posted then */
		struct kv_op *ops[OPS];
		struct child child;
		int64_t begun;
		int n = 0;

		port = start_receiver(&child, NULL); /* while this process has no other thread */
		node_open(&a, 1, NULL, NULL);
		node_connect(&a, port);
		for (; n < OPS; n++) {
			if (n == OPS / 2)
				child_kill(&child, stop ? SIGSTOP : SIGKILL);
			if (round % 3 && n > OPS / 2)
				usleep(round * 100);
			if (kv_write_blocks_async(a.peer, a.cache, all_layers, from, to, N, NULL,
						  &ops[n], &err)) {
				assert_int_equal(err.code, KV_ERR_PEER_LOST);
				break;
			}
		}
		if (stop)
			child_kill(&child, SIGKILL);
		begun = kv_now_ns();
		end_all(ops, n, &acked, &lost);
		assert_true(kv_now_ns() - begun <
			    RIG_TIMEOUT_MS / 2 * KV_NS_PER_MS); /* not by its deadline */
		/* One that begins after the death fails too, with the cause. */
		assert_int_equal(
			kv_write_blocks(a.peer, a.cache, all_layers, from, to, N, NULL, &err),
			KV_ERR_PEER_LOST);
		ok(kv_peer_close(a.peer, RIG_TIMEOUT_MS, &err), &err);
		assert_int_equal(child_join(&child), 128 + SIGKILL);
		ok(kv_stats(a.engine, &stats, &err), &err);
		assert_int_equal(stats.in_flight, 0);
		assert_int_equal(stats.writes, stats.ok + stats.failed + stats.cancelled);
		node_close(&a);
	}
	assert_true(lost > 0);
}

CASE(a_killed_writer_is_reported_and_its_blocks_come_back_after_the_fence)
{
	struct kv_arrival arrival;
	struct kv_lease *lease, *again;
	struct shape shape = rig_shape;
	struct kv_error err;
	struct child child[4];
	struct node b;

	shape.flags = 0;
	for (int round = 0; round < 4; round++) /* before this process has threads */
		child_start(&child[round], writer, NULL);
	node_open(&b, 2, &shape, NULL);
	node_listen(&b);
	for (int round = 0; round < 4; round++) {
		lease = let_write(&b, &child[round], 60000);
		usleep((unsigned int)round * 700);
		child_kill(&child[round], SIGKILL);
		assert_true(await_kind(&b, KV_ARRIVAL_UNFINISHED, &arrival, RIG_TIMEOUT_MS));
		assert_ptr_equal(arrival.peer, b.peer);
		assert_ptr_equal(arrival.cache, b.cache);
		assert_int_equal(arrival.lease, kv_lease_id(lease));
		assert_int_equal(arrival.blocks, N);
		assert_int_equal(arrival.status, KV_ERR_PEER_LOST);
		assert_true(await_kind(&b, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
		assert_ptr_equal(arrival.peer, b.peer);
		ok(kv_revoke(lease, RIG_TIMEOUT_MS, &err), &err);
		fill_side(&b, 2, 0);
		usleep(5000);
		assert_true(memory_is(&b, all_layers, 1, NULL, NULL, 0, 0));
		assert_int_equal(kv_blocks_open(b.peer, b.cache, to, N, 1, 1000, &again, &err),
				 KV_ERR_PEER_LOST);
		ok(kv_peer_close(b.peer, RIG_TIMEOUT_MS, &err), &err);
		assert_int_equal(child_join(&child[round]), 128 + SIGKILL);
	}
	node_close(&b);
}

/* The process is there, and its sockets: nothing but the heartbeat tells. */
CASE(a_stopped_peer_is_lost_after_five_heartbeats)
{
	char beat[64];
	const char *const options[] = { slow_setting(beat, "KVCACHE_HEARTBEAT_MS", 200), NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_arrival arrival;
	struct kv_error err;
	struct child child;
	struct kv_op *op;
	struct bar bar;
	struct node a;
	uint32_t port;

	config.options = options;
	port = start_receiver(&child, NULL);
	node_open(&a, 1, NULL, &config);
	node_connect(&a, port);
	ok(kv_write_blocks(a.peer, a.cache, all_layers, from, to, N, NULL, &err), &err);
	child_kill(&child, SIGSTOP);
	bar = bar_begin();
	ok(kv_write_blocks_async(a.peer, a.cache, all_layers, from, to, N, NULL, &op, &err), &err);
	assert_int_equal(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &err), KV_ERR_PEER_LOST);
	assert_true(await_kind(&a, KV_ARRIVAL_PEER_LOST, &arrival, RIG_TIMEOUT_MS));
	assert_true(bar_holds(bar, 1200, "the loss of a stopped peer"));
	assert_non_null(strstr(err.message, "though its process is there"));
	ok(kv_op_free(op, &err), &err);
	child_kill(&child, SIGKILL);
	child_join(&child);
	node_close(&a);
}

/* The one that the engines of this run use. */
static const char *transport(void)
{
	const char *name = getenv("KVCACHE_TRANSPORT");

	return name && strcmp(name, "auto") ? name : "shm";
}

static bool has_direct_access(void)
{
	const char *path = getenv("KVCACHE_SHM_PATH");

	return !strcmp(transport(), "shm") && (!path || strcmp(path, "ring"));
}

/* BUSY comes then; without direct access this end stops it alone in the second half of the time. */
static int64_t while_it_is_stopped_ms(void)
{
	return has_direct_access() ? slow_ms(100) : slow_ms(500);
}

CASE(a_stopped_writer_keeps_its_blocks_in_quarantine_until_it_is_gone)
{
	struct kv_lease *lease;
	struct kv_error err;
	struct child child;
	struct node b;
	int64_t begun;
	int ret;

	child_start(&child, writer, NULL); /* before this process has threads */
	node_open(&b, 2, NULL, NULL);
	node_listen(&b);
	lease = let_write(&b, &child, 60000);
	child_kill(&child, SIGSTOP);
	begun = kv_now_ns();
	ret = kv_revoke(lease, while_it_is_stopped_ms(), &err);
	assert_true(kv_now_ns() - begun < RIG_TIMEOUT_MS / 2 * KV_NS_PER_MS);
	if (has_direct_access()) {
		assert_int_equal(ret, KV_ERR_BUSY); /* it could store at any time */
		assert_int_equal(kv_peer_close(b.peer, slow_ms(50), &err), KV_ERR_BUSY);
		child_kill(&child, SIGKILL);
		for (int i = 0; i < 200 && (ret = kv_peer_close(b.peer, slow_ms(50), &err)); i++)
			poll(NULL, 0, 5);
		ok(ret, &err);
	} else {
		if (ret == KV_ERR_BUSY) /* queue pairs take their time on a slow machine */
			ret = kv_revoke(lease, RIG_TIMEOUT_MS, &err);
		ok(ret,
		   /* ring: this side copies, and has stopped; ib: its queue pairs are gone */
		   &err);
		fill_side(&b, 2, 0);
		child_kill(&child, SIGCONT);
		usleep(20000);
		assert_true(memory_is(&b, all_layers, 1, NULL, NULL, 0, 0));
		ok(kv_peer_close(b.peer, RIG_TIMEOUT_MS, &err), &err);
		child_kill(&child, SIGKILL);
	}
	child_join(&child);
	node_close(&b);
}

static void *kill_soon(void *child)
{
	usleep(150000);
	child_kill(child, SIGKILL);
	return NULL;
}

CASE(a_revoke_of_a_stopped_writer_waits_until_it_is_killed)
{
	struct kv_lease *lease;
	struct kv_error err;
	pthread_t killer;
	struct child child;
	struct node b;
	int ret;

	child_start(&child, writer, NULL); /* before this process has threads */
	node_open(&b, 2, NULL, NULL);
	node_listen(&b);
	lease = let_write(&b, &child, 60000);
	child_kill(&child, SIGSTOP);
	ret = kv_revoke(lease, slow_ms(20), &err);
	assert_int_equal(pthread_create(&killer, NULL, kill_soon, &child), 0);
	if (ret ==
	    KV_ERR_BUSY) /* the patience of the fence has passed already: it is the caller's now */
		ret = kv_revoke(lease, RIG_TIMEOUT_MS, &err);
	pthread_join(killer, NULL);
	ok(ret, &err);
	child_join(&child);
	fill_side(&b, 2, 0);
	assert_true(memory_is(&b, all_layers, 1, NULL, NULL, 0, 0));
	node_close(&b);
}

CASE(a_receive_is_not_cancelled_while_its_stopped_sender_could_write)
{
	const int64_t blocks[] = { 70, 71 };
	struct kv_error err;
	struct child child;
	struct kv_op *op;
	struct node b;
	int ret;

	child_start(&child, writer, NULL); /* before this process has threads */
	node_open(&b, 2, NULL, NULL);
	node_listen(&b);
	let_write(&b, &child, 60000);
	ok(kv_recv_blocks_async(b.peer, b.cache, all_layers, blocks, 2, 9, NULL, &op, &err), &err);
	child_kill(&child, SIGSTOP);
	ret = kv_cancel(op, while_it_is_stopped_ms(), &err);
	if (has_direct_access()) {
		assert_int_equal(ret, KV_ERR_BUSY);
		assert_int_equal(kv_test(op, NULL), KV_ERR_CANCELLED);
		assert_int_equal(kv_cancel(op, 0, &err),
				 KV_ERR_BUSY); /* nor now that it has ended */
		child_kill(&child, SIGKILL);
		ret = kv_cancel(op, RIG_TIMEOUT_MS, &err);
	} else if (ret == KV_ERR_BUSY) { /* queue pairs take their time on a slow machine */
		ret = kv_cancel(op, RIG_TIMEOUT_MS, &err);
	}
	ok(ret, &err);
	ok(kv_op_free(op, &err), &err);
	child_kill(&child, SIGKILL);
	child_join(&child);
	node_close(&b);
}

/* ---------------------------------------------------------------- coming back */

static int receiver_on_port(int fd, const void *arg)
{
	const struct shape *shape = arg;
	struct node node;
	uint32_t port;
	char end;

	child_receive(fd, &port, sizeof(port));
	node_open(&node, 2, shape, NULL);
	ok(kv_listen(node.engine, NULL, port, &port, &node.err), &node.err);
	child_send(fd, &port, sizeof(port));
	while (recv(fd, &end, 1, 0) > 0)
		;
	node_close(&node);
	return 0;
}

CASE(a_restarted_receiver_is_a_new_peer)
{
	uint8_t before[16], zero[16] = { 0 };
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct kv_error err;
	struct child child[3];
	uint32_t port;
	struct node a;
	int held = port_hold(&port); /* also while no receiver has it */

	for (int i = 0; i < 3; i++) /* before this process has threads */
		child_start(&child[i], receiver_on_port, NULL);
	node_open(&a, 1, NULL, NULL);
	memcpy(before, zero, sizeof(before));
	for (int i = 0; i < 3; i++) {
		child_send(child[i].fd, &port, sizeof(port));
		child_receive(child[i].fd, &port, sizeof(port));
		node_connect(&a, port);
		ok(kv_peer_info(a.peer, &info, &err), &err);
		assert_memory_not_equal(info.incarnation, before, sizeof(before));
		assert_string_equal(info.transport, transport());
		memcpy(before, info.incarnation, sizeof(before));
		ok(kv_write_blocks(a.peer, a.cache, all_layers, from, to, N, NULL, &err), &err);
		child_kill(&child[i], SIGKILL);
		child_join(&child[i]);
		assert_int_equal(
			kv_write_blocks(a.peer, a.cache, all_layers, from, to, N, NULL, &err),
			KV_ERR_PEER_LOST);
		ok(kv_peer_close(a.peer, RIG_TIMEOUT_MS, &err), &err);
	}
	node_close(&a);
	close(held);
}

CASE(a_receiver_that_comes_back_with_another_shape_is_refused_by_name)
{
	struct shape shape = rig_shape;
	struct kv_error err;
	struct node a, b;
	int ret;

	shape.layers = RIG_LAYERS + 1;
	shape.block_bytes[1] = 256;
	node_open(&a, 1, NULL, NULL);
	node_open(&b, 2, &shape, NULL);
	node_listen(&b);
	ret = kv_connect(a.engine, NULL, b.port, RIG_TIMEOUT_MS, &a.peer, &err);
	assert_int_equal(ret, KV_ERR_GEOMETRY);
	assert_non_null(strstr(err.message, "layers"));
	assert_non_null(strstr(err.message, "block_bytes"));
	/* The other end may know it before this one has counted. */
	await_stat(&b, rejected_geometry, 1);
	await_stat(&b, peers_now, 0);
	node_close(&a);
	node_close(&b);
}

/* A pool and memory of the program's own are reached in two ways: neither hides the other. */
CASE(a_path_names_each_way_that_its_regions_take)
{
	static const char *const any[] = { "KVCACHE_SHM_PATH=auto", NULL };
	static _Alignas(4096) uint8_t own[2][4096];
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct kv_peer_info info = KV_INIT(kv_peer_info);
	struct node node[2];
	struct kv_error err;

	config.options = any;
	for (unsigned int i = 0; i < 2; i++) {
		struct kv_tensor tensor = { .name = "own", .block_bytes = 64, .base = own[i] };
		struct kv_layout layout = KV_INIT(kv_layout);
		struct kv_cache *cache;

		node_open(&node[i], i + 1, NULL, &config);
		layout.cache_id = layout.layers = layout.tensors = layout.blocks = 1;
		layout.tensor = &tensor;
		ok(kv_cache_register(node[i].engine, &layout, &cache, &err), &err);
	}
	node_listen(&node[1]);
	node_connect(&node[0], node[1].port);
	ok(kv_peer_info(node[0].peer, &info, &err), &err);
	if (!strcmp(info.transport, "shm")) {
		assert_non_null(strstr(info.path, "memfd pool"));
		assert_non_null(strstr(info.path, "; ")); /* and process_vm, or the ring */
	}
	node_close(&node[0]);
	node_close(&node[1]);
}

static void *connect_in_vain(void *arg)
{
	struct node *a = arg;
	struct kv_peer *peer;

	assert_int_equal(kv_connect(a->engine, NULL, a->port, slow_ms(500), &peer, NULL),
			 KV_ERR_TIMEOUT);
	return NULL;
}

/* KVCACHE_MAX_PENDING is about those who come. */
CASE(own_connects_that_wait_do_not_count_as_handshakes_of_strangers)
{
	enum { THREADS = 4 };
	static const char *const one[] = { "KVCACHE_MAX_PENDING=1", NULL };
	struct kv_engine_config caller = KV_INIT(kv_engine_config), few = KV_INIT(kv_engine_config);
	pthread_t thread[THREADS];
	struct node a, b;

	caller.progress = KV_PROGRESS_CALLER;
	few.options = one;
	node_open(&b, 2, NULL, &caller); /* listens, and never accepts */
	node_listen(&b);
	node_open(&a, 1, NULL, &few);
	a.port = b.port;
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&thread[i], NULL, connect_in_vain, &a), 0);
	for (int i = 0; i < THREADS; i++)
		pthread_join(thread[i], NULL);
	node_close(&a);
	node_close(&b);
}

CASE(connecting_to_nobody_fails_at_once_and_to_silence_at_the_deadline)
{
	struct kv_engine_config caller = KV_INIT(kv_engine_config);
	struct kv_error err;
	struct node a, b;
	int64_t begun;
	uint32_t port;
	int fd;

	caller.progress = KV_PROGRESS_CALLER;
	node_open(&a, 1, NULL, NULL);
	node_open(&b, 2, NULL, &caller); /* listens, and never accepts */
	node_listen(&b);
	begun = kv_now_ns();
	assert_int_equal(kv_connect(a.engine, NULL, b.port, slow_ms(200), &a.peer, &err),
			 KV_ERR_TIMEOUT);
	assert_non_null(strstr(err.hint, "kv_progress"));
	assert_in_range((kv_now_ns() - begun) / KV_NS_PER_MS, slow_ms(200) - 1, RIG_TIMEOUT_MS / 2);
	node_close(&b);
	fd = port_hold(&port);
	assert_int_equal(kv_connect(a.engine, NULL, port, RIG_TIMEOUT_MS, &a.peer, &err),
			 KV_ERR_PEER_LOST);
	close(fd);
	assert_int_equal(kv_connect(a.engine, NULL, 0, 2000, &a.peer, &err), KV_ERR_ARG);
	assert_int_equal(kv_connect(a.engine, NULL, 1, -1, &a.peer, &err), KV_ERR_ARG);
	node_close(&a);
}
