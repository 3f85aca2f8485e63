/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_gpu_end_test.c -- kernels between two processes of a host: what they are given, and what ends
 * with them, or without
 */
#include "loop/kv_rig.h"

#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_blocks.h"

static uint8_t *on_gpu(size_t len, uint8_t **addr_p)
{
	return fake_cuda_alloc(len, addr_p);
}

static uint8_t *on_other_gpu(size_t len, uint8_t **addr_p)
{
	uint8_t *seen;

	fake_cuda.alloc_on = 2;
	seen = fake_cuda_alloc(len, addr_p);
	fake_cuda.alloc_on = 0;
	return seen;
}

static struct shape gpu_shape(void)
{
	struct shape shape = rig_shape;

	shape.cuda = on_gpu;
	return shape;
}

static const char *const ways[][3] = {
	{ "KVCACHE_TRANSPORT=shm", "KVCACHE_SHM_PATH=auto", NULL },
	{ "KVCACHE_TRANSPORT=shm", "KVCACHE_SHM_PATH=ring", NULL },
	{ "KVCACHE_TRANSPORT=tcp", "KVCACHE_TCP_STREAMS=1", NULL },
	{ "KVCACHE_TRANSPORT=ib", "KVCACHE_IB_LANES=2", NULL }, /* a NIC that reaches no GPU */
};
enum { WAYS = sizeof(ways) / sizeof(ways[0]), OVER_NIC = WAYS - 1 };

static struct kv_engine_config config_of(const char *const *options)
{
	struct kv_engine_config config = KV_INIT(kv_engine_config);

	config.options = options;
	return config;
}

static int write_now(struct pair *p)
{
	return kv_write_blocks(p->a.peer, p->a.cache, all_layers, from, to, N, NULL, &p->a.err);
}

/* The driver takes what lies in a context with it; nothing here uses it again. */
CASE(a_context_that_the_application_destroyed_is_an_error)
{
	enum { DESTROYED = 709 };
	struct shape shape = gpu_shape();

	for (int i = 0; i < 2 * WAYS; i++) {
		struct kv_engine_config config = config_of(ways[i / 2]);
		struct pair p = { 0 };

		fake_cuda.export_says = i / 2 == OVER_NIC ? 801 : 0;
		pair_open(&p, &shape, &config);
		if (i % 2) /* its queue, and what was pinned, are from before */
			ok(write_now(&p), &p.a.err);
		fake_cuda.push_says = DESTROYED;
		assert_int_equal(write_now(&p), KV_ERR_DEVICE);
		assert_non_null(strstr(p.a.err.message, "GPU 3"));
		pair_close(&p);
		assert_int_equal(fake_cuda.contexts, 0);
		fake_cuda_reset();
	}
}

/* A multiprocessor has one block of threads. */
CASE(a_kernel_has_as_many_multiprocessors_as_the_option_says)
{
	static const char *const three[] = { "KVCACHE_TRANSPORT=shm", "KVCACHE_GPU_SMS=3", NULL };
	struct shape shape = gpu_shape();
	int64_t ids[RIG_BLOCKS];

	for (int64_t i = 0; i < RIG_BLOCKS; i++)
		ids[i] = i;
	for (int i = 0; i < 2; i++) {
		struct kv_engine_config config = config_of(i ? three : ways[0]);
		struct pair p = { 0 };

		pair_open(&p, &shape, &config);
		ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, ids, ids, RIG_BLOCKS, NULL,
				   &p.a.err),
		   &p.a.err);
		assert_true(memory_is(&p.b, all_layers, 1, ids, ids, RIG_BLOCKS, 0));
		assert_int_equal(fake_cuda.blocks, i ? 3 : 8);
		pair_close(&p);
		fake_cuda_reset();
	}
}

static void note_line(void *arg, int level, const char *line)
{
	if (strstr(line, "ring (GPU 3 does not reach GPU 2)"))
		++*(atomic_int *)arg;
}

/* With a link between them a kernel stores into the other one; without it goes through the ring. */
CASE(two_gpus_are_reached_by_a_kernel_where_a_link_joins_them)
{
	static const char *const loud[] = { "KVCACHE_TRANSPORT=shm", "KVCACHE_DEBUG=1", NULL };
	atomic_int told = 0;

	for (int linked = 0; linked < 2; linked++) {
		struct kv_engine_config config = config_of(loud);
		struct shape shape = gpu_shape();
		struct pair p = { 0 };

		fake_cuda.linked = linked;
		config.log = note_line;
		config.log_arg = &told;
		node_open(&p.a, 1, &shape, &config);
		shape.cuda = on_other_gpu;
		node_open(&p.b, 2, &shape, &config);
		node_listen(&p.b);
		node_connect(&p.a, p.b.port);
		ok(write_now(&p), &p.a.err);
		assert_true(memory_is(&p.b, all_layers, 1, from, to, N, 0));
		assert_true(linked ? fake_cuda.launched == 1 : fake_cuda.launched > 1);
		assert_int_equal(atomic_load(&told) > 0, !linked);
		pair_close(&p);
		assert_int_equal(fake_cuda.open, 0);
		fake_cuda_reset();
		atomic_store(&told, 0);
	}
}

static struct kv_op *begin_write(struct pair *p)
{
	struct kv_options options = KV_INIT(kv_options);
	struct kv_op *op;

	options.timeout_ms = RIG_TIMEOUT_MS;
	ok(kv_write_blocks_async(p->a.peer, p->a.cache, all_layers, from, to, N, &options, &op,
				 &p->a.err),
	   &p->a.err);
	while (!fake_cuda.launched)
		poll(NULL, 0, 1);
	return op;
}

/* What a cancel leaves in the receiver's memory stays as it is. */
CASE(after_a_cancel_no_kernel_of_the_operation_writes)
{
	struct shape shape = gpu_shape();
	uint8_t *left;

	for (int i = 0; i < WAYS; i++) {
		struct kv_engine_config config = config_of(ways[i]);
		struct pair p = { 0 };
		struct kv_op *op;

		fake_cuda.export_says = i == OVER_NIC ? 801 : 0;
		pair_open(&p, &shape, &config);
		fake_cuda.slow = 20;
		op = begin_write(&p);
		ok(kv_cancel(op, RIG_TIMEOUT_MS, &p.a.err), &p.a.err);
		left = malloc(p.b.len);
		memcpy(left, p.b.mem, p.b.len);
		ok(kv_op_free(op, &p.a.err), &p.a.err);
		poll(NULL, 0, 20);
		assert_memory_equal(p.b.mem, left, p.b.len);
		free(left);
		fake_cuda.slow = 0;
		ok(write_now(&p), &p.a.err);
		assert_true(memory_is(&p.b, all_layers, 1, from, to, N, 0));
		pair_close(&p);
		assert_int_equal(fake_cuda.open, 0);
		fake_cuda_reset();
	}
}

/* A kernel of the writer that does not end: the blocks are the receiver's again when it has. */
CASE(a_revoke_waits_for_a_kernel_of_the_writer)
{
	struct kv_engine_config config = config_of(ways[0]);
	struct shape shape = gpu_shape();
	struct pair p = { 0 };
	struct kv_op *op;

	shape.flags = 0; /* only the lease opens them */
	pair_open(&p, &shape, &config);
	op = revoke_waits_for_kernel(&p);
	fill_side(&p.b, 2, 0);
	assert_true(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &p.a.err) < 0);
	ok(kv_op_free(op, &p.a.err), &p.a.err);
	assert_true(memory_is(&p.b, all_layers, 1, NULL, NULL, 0, 0));
	pair_close(&p);
	fake_cuda_reset();
}

/* ---------------------------------------------------------------- another process */

static int receiver(int fd, const void *arg)
{
	struct kv_engine_config config = config_of(ways[0]);
	struct shape shape = gpu_shape();
	struct node b;
	char byte, right;

	node_open(&b, 2, &shape, &config);
	node_listen(&b);
	child_send(fd, &b.port, sizeof(b.port));
	child_receive(fd, &byte, 1);
	right = memory_is(&b, all_layers, 1, from, to, N, 0);
	child_send(fd, &right, 1);
	child_receive(fd, &byte, 1); /* it is killed here */
	return 1;
}

/* A typed error, and the next attempt works; of a dead peer nothing stays mapped. */
CASE(an_ipc_handle_may_be_refused_and_its_process_may_die)
{
	struct kv_engine_config config = config_of(ways[0]);
	struct shape shape = gpu_shape();
	struct pair p = { 0 };
	struct child child;
	uint32_t port;
	char byte = 0;

	child_start(&child, receiver, NULL);
	child_receive(child.fd, &port, sizeof(port));
	node_open(&p.a, 1, &shape, &config);
	node_connect(&p.a, port);
	fake_cuda.open_says = 2;
	assert_int_equal(write_now(&p), KV_ERR_UNREACHABLE);
	assert_non_null(strstr(p.a.err.message, "cannot be mapped on GPU 3: CUDA_ERROR_OUT_OF"));
	fake_cuda.open_says = 0;
	for (int i = 0; i < 3; i++)
		ok(write_now(&p), &p.a.err);
	assert_int_equal(fake_cuda.mapped, RIG_LAYERS * RIG_TENSORS); /* each region once */
	child_send(child.fd, &byte, 1);
	child_receive(child.fd, &byte, 1);
	assert_true(byte);
	child_kill(&child, SIGKILL);
	assert_int_equal(child_join(&child), 128 + SIGKILL);
	assert_int_equal(kv_error_scope(write_now(&p)), KV_SCOPE_PEER);
	ok(kv_peer_close(p.a.peer, RIG_TIMEOUT_MS, &p.a.err), &p.a.err);
	node_close(&p.a);
	assert_int_equal(fake_cuda.open, 0);
	fake_cuda_reset();
}
