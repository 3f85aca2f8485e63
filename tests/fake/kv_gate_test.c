/* SPDX-License-Identifier: Apache-2.0 */
/*
 * kv_gate_test.c -- bytes that wait for a stream or an event of CUDA, which is reached late, or
 * never; libcuda is a stand-in (fake_cuda.h)
 */
#include "loop/kv_rig.h"

#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "fake_cuda.h"

static const struct kv_layers all_layers = { 0, 0 };
static const int64_t from[] = { 5, 6, 7, 0, 95, 40 }, to[] = { 10, 11, 12, 95, 0, 3 };
enum { N = 6 };

static uint8_t *on_a_gpu(size_t len, uint8_t **addr_p)
{
	return fake_cuda_alloc((len + 4095) / 4096 * 4096, addr_p);
}

/* Where the caches are, how bytes go, whose threads post them. */
static const struct setting {
	bool gpu;
	const char *transport;
	int progress;
} settings[] = {
	{ true, "KVCACHE_TRANSPORT=shm", KV_PROGRESS_AUTO },
	{ true, "KVCACHE_TRANSPORT=ib", KV_PROGRESS_AUTO },
	{ false, "KVCACHE_TRANSPORT=shm", KV_PROGRESS_AUTO },
	{ false, "KVCACHE_TRANSPORT=tcp", KV_PROGRESS_AUTO },
	{ false, "KVCACHE_TRANSPORT=shm", KV_PROGRESS_CALLER },
};
enum { SETTINGS = sizeof(settings) / sizeof(settings[0]) };

static void *context;

static void open_with(struct pair *p, const struct setting *setting)
{
	const char *options[] = { setting->transport, NULL };
	struct kv_engine_config config = KV_INIT(kv_engine_config);
	struct shape shape = rig_shape;

	shape.cuda = setting->gpu ? on_a_gpu : NULL;
	config.options = options;
	node_open(&p->b, 2, &shape, &config);
	node_listen(&p->b);
	config.progress = setting->progress;
	node_open(&p->a, 1, &shape, &config);
	node_connect(&p->a, p->b.port);
	node_await_peer(&p->b);
	assert_int_equal(cuDevicePrimaryCtxRetain(&context, 3), 0);
	assert_int_equal(cuCtxSetCurrent(context), 0);
}

static void close_all(struct pair *p)
{
	pair_close(p);
	cuCtxSetCurrent(NULL);
	cuDevicePrimaryCtxRelease_v2(3);
	assert_int_equal(fake_cuda.open, 0);
	assert_int_equal(fake_cuda.contexts, 0);
	fake_cuda_reset();
}

/* Everything that could move it has its turn. */
static void nothing_moves(struct pair *p, struct kv_op *op)
{
	for (int i = 0; i < 200; i++) {
		assert_int_equal(kv_test(op, &p->a.err), KV_NONE);
		kv_progress(p->a.engine, i % 50 == 0, NULL);
	}
	assert_true(memory_is(&p->b, all_layers, 2, NULL, NULL, 0, 0));
	assert_true(memory_is(&p->a, all_layers, 1, NULL, NULL, 0, 0));
}

static struct kv_op *begin(struct pair *p, bool read, const struct kv_options *options)
{
	struct kv_op *op;

	ok((read ? kv_read_blocks_async : kv_write_blocks_async)(
		   p->a.peer, p->a.cache, all_layers, from, to, N, options, &op, &p->a.err),
	   &p->a.err);
	return op;
}

CASE(bytes_wait_for_the_stream)
{
	for (size_t i = 0; i < 2 * SETTINGS; i++) {
		struct kv_options options = KV_INIT(kv_options);
		bool read = i % 2;
		struct pair p = { 0 };
		struct kv_op *op;

		open_with(&p, &settings[i / 2]);
		options.stream = fake_cuda_stream();
		options.timeout_ms = RIG_TIMEOUT_MS;
		op = begin(&p, read, &options);
		nothing_moves(&p, op);
		fake_cuda_stream_ends(options.stream, 0);
		ok(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &p.a.err), &p.a.err);
		if (read)
			assert_true(memory_is(&p.a, all_layers, 2, to, from, N, 0));
		else
			assert_true(memory_is(&p.b, all_layers, 1, from, to, N, 0));
		ok(kv_op_free(op, &p.a.err), &p.a.err);
		free(options.stream);
		close_all(&p);
	}
}

/* Nobody waits for it, and the service thread sees that the GPU is done. */
CASE(an_operation_that_is_left_alone_goes_on)
{
	struct kv_options options = KV_INIT(kv_options);
	struct kv_arrival arrival;
	struct pair p = { 0 };
	struct kv_op *op;

	open_with(&p, &settings[0]);
	options.stream = fake_cuda_stream();
	options.timeout_ms = RIG_TIMEOUT_MS;
	op = begin(&p, false, &options);
	nothing_moves(&p, op);
	fake_cuda_stream_ends(options.stream, 0);
	assert_true(next_arrival(&p.b, &arrival, RIG_TIMEOUT_MS));
	assert_true(memory_is(&p.b, all_layers, 1, from, to, N, 0));
	ok(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &p.a.err), &p.a.err);
	ok(kv_op_free(op, &p.a.err), &p.a.err);
	free(options.stream);
	close_all(&p);
}

static bool layers_are(const struct pair *p, uint32_t count)
{
	return memory_is(&p->b, (struct kv_layers){ 0, count }, 1, from, to, count ? N : 0, 0);
}

CASE(each_layer_waits_for_its_event)
{
	struct kv_options options = KV_INIT(kv_options);
	void *events[RIG_LAYERS], *streams[RIG_LAYERS];
	struct pair p = { 0 };
	struct kv_op *op;

	open_with(&p, &settings[2]); /* where a layer is there as soon as it is posted */
	for (int i = 0; i < RIG_LAYERS; i++) {
		streams[i] = fake_cuda_stream();
		assert_int_equal(cuEventCreate(&events[i], 2), 0);
		assert_int_equal(cuEventRecord(events[i], streams[i]), 0);
	}
	cuEventDestroy_v2(events[1]);
	events[1] = NULL; /* at once, but not before layer 0 */
	options.events = events;
	options.timeout_ms = RIG_TIMEOUT_MS;
	op = begin(&p, false, &options);
	nothing_moves(&p, op);
	fake_cuda_stream_ends(streams[0], 0);
	fake_cuda_stream_ends(streams[3], 0);
	for (int64_t until = kv_deadline_ns(RIG_TIMEOUT_MS); !layers_are(&p, 2);)
		assert_true(kv_test(op, NULL) == KV_NONE && kv_now_ns() < until);
	for (int i = 0; i < 100; i++)
		assert_int_equal(kv_test(op, NULL), KV_NONE);
	assert_true(layers_are(&p, 2));
	fake_cuda_stream_ends(streams[2], 0);
	ok(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &p.a.err), &p.a.err);
	assert_true(layers_are(&p, RIG_LAYERS));
	ok(kv_op_free(op, &p.a.err), &p.a.err);
	for (int i = 0; i < RIG_LAYERS; i++) {
		if (events[i])
			cuEventDestroy_v2(events[i]);
		free(streams[i]);
	}
	close_all(&p);
}

/* Few blocks, for which no kernel is begun while more of them come. */
CASE(a_layer_on_a_gpu_is_copied_while_the_next_one_is_awaited)
{
	struct kv_options options = KV_INIT(kv_options);
	void *events[RIG_LAYERS] = { NULL }, *stream = fake_cuda_stream();
	struct pair p = { 0 };
	struct kv_op *op;

	open_with(&p, &settings[0]);
	assert_int_equal(cuEventCreate(&events[1], 2), 0);
	assert_int_equal(cuEventRecord(events[1], stream), 0);
	options.events = events;
	options.timeout_ms = RIG_TIMEOUT_MS;
	op = begin(&p, false, &options);
	for (int64_t until = kv_deadline_ns(RIG_TIMEOUT_MS); !fake_cuda.launched;)
		assert_true(kv_test(op, NULL) == KV_NONE && kv_now_ns() < until);
	for (int i = 0; i < 100; i++)
		assert_int_equal(kv_test(op, NULL), KV_NONE);
	fake_cuda_stream_ends(stream, 0);
	ok(kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &p.a.err), &p.a.err);
	assert_true(fake_cuda.launched >= 2);
	assert_true(layers_are(&p, RIG_LAYERS));
	ok(kv_op_free(op, &p.a.err), &p.a.err);
	cuEventDestroy_v2(events[1]);
	free(stream);
	close_all(&p);
}

/* It is cancelled, its time is up, or the stream fails: no byte has moved, or ever does. */
CASE(what_waits_can_be_stopped)
{
	enum { CANCEL, DEADLINE, FAIL, ENDS };

	for (size_t i = 0; i < ENDS * SETTINGS; i++) {
		struct kv_options options = KV_INIT(kv_options);
		struct pair p = { 0 };
		struct kv_op *op;
		int ret;

		open_with(&p, &settings[i / ENDS]);
		options.stream = fake_cuda_stream();
		options.timeout_ms = i % ENDS == DEADLINE ? 50 : RIG_TIMEOUT_MS;
		op = begin(&p, false, &options);
		if (i % ENDS == CANCEL)
			ok(kv_cancel(op, RIG_TIMEOUT_MS, &p.a.err), &p.a.err);
		if (i % ENDS == FAIL)
			fake_cuda_stream_ends(options.stream, 1);
		ret = kv_wait(op, KV_ACKED, RIG_TIMEOUT_MS, &p.a.err);
		if (i % ENDS == CANCEL)
			assert_int_equal(ret, KV_ERR_CANCELLED);
		if (i % ENDS == DEADLINE) {
			assert_int_equal(ret, KV_ERR_TIMEOUT);
			assert_non_null(strstr(p.a.err.message, "GPU was not done with the block"));
		}
		if (i % ENDS == FAIL) {
			assert_int_equal(ret, KV_ERR_DEVICE);
			assert_non_null(strstr(p.a.err.message, "CUDA_ERROR_INVALID_VALUE"));
		}
		ok(kv_op_free(op, &p.a.err), &p.a.err);
		fake_cuda_stream_ends(options.stream, 0);
		/* The peer is good for more; of the first no byte comes with the second. */
		ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, 1, NULL, &p.a.err),
		   &p.a.err);
		assert_true(memory_is(&p.b, all_layers, 1, from, to, 1, 0));
		free(options.stream);
		close_all(&p);
	}
}

CASE(what_cannot_be_waited_for_is_refused)
{
	struct kv_options options = KV_INIT(kv_options);
	void *events[RIG_LAYERS] = { NULL };
	struct pair p = { 0 };
	struct kv_op *op;

	open_with(&p, &settings[2]);
	options.events = events;
	cuCtxSetCurrent(NULL);
	assert_int_equal(
		kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, &options, &p.a.err),
		KV_ERR_ARG);
	assert_non_null(strstr(p.a.err.message, "has no current CUDA context"));
	cuCtxSetCurrent(context);
	ok(kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, &options, &p.a.err),
	   &p.a.err);
	assert_int_equal(kv_recv_blocks_async(p.a.peer, p.a.cache, all_layers, from, N, 1, &options,
					      &op, &p.a.err),
			 KV_ERR_ARG);
	options.stream = fake_cuda_stream();
	assert_int_equal(
		kv_write_blocks(p.a.peer, p.a.cache, all_layers, from, to, N, &options, &p.a.err),
		KV_ERR_ARG);
	free(options.stream);
	close_all(&p);
}
