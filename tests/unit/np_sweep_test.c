/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_sweep_test.c -- every fault point of the NCCL plugin and of what it calls, and every call of
 * the C library, failed once: an error of NCCL's or the right bytes, never both wrong, never a
 * hang; afterwards everything works, and no descriptor is left over
 */
#include <stdlib.h>
#include <string.h>

#include "base/clock.h"
#include "base/fault.h"
#include "lib/libc.h"
#include "lib/process.h"
#include "lib/test.h"
#include "np.h"

extern const ncclNet_v12_t ncclNetPlugin_v12;
static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

enum { LEN = 70000, REGIONS = 70, PASSES = 3, WAIT_MS = 20000 };

static int64_t soon_ms = 5000; /* after a failure: longer than a handshake may take */

static unsigned int logged;

static void logger(ncclDebugLogLevel level, unsigned long flags, const char *file, int line,
		   const char *fmt, ...)
{
	logged += level == NCCL_LOG_WARN;
}

struct run {
	void *ctx, *listen, *send, *recv;
	uint8_t *from, *to;
	void *from_mh, *to_mh[REGIONS];
};

#define TRY(call)                         \
	do {                              \
		ncclResult_t r_ = (call); \
		if (r_)                   \
			return r_;        \
	} while (0)

static int armed = -1; /* the fault point */

static bool has_fired(void)
{
	return libc_fired() || (armed >= 0 && kv_fault_fired((enum kv_fault_point)armed));
}

static ncclResult_t join(struct run *r)
{
	int64_t begun = kv_now_ns();
	uint8_t handle[NCCL_HANDLE_MAX];

	TRY(net->listen(r->ctx, 0, handle, &r->listen));
	while (!r->send || !r->recv) {
		if (!r->send)
			TRY(net->connect(r->ctx, 0, handle, &r->send, NULL));
		if (!r->recv)
			TRY(net->accept(r->listen, &r->recv, NULL));
		/* After a fault one end may have given up, and the other waits for it. */
		if (kv_now_ns() - begun > (has_fired() ? soon_ms : WAIT_MS) * KV_NS_PER_MS)
			return ncclInternalError;
	}
	return ncclSuccess;
}

/* Each receive uses another region, so that the sender's table grows. */
static ncclResult_t move(struct run *r, int region)
{
	int64_t end = kv_deadline_ns(WAIT_MS);
	void *in = NULL, *out = NULL, *data = r->to;
	size_t size = LEN;
	int tag = region, done_in = 0, done_out = 0;

	for (int i = 0; i < LEN; i++)
		r->from[i] = (uint8_t)(i * 7 + region);
	memset(r->to, 0, LEN);
	while (!done_in || !done_out) {
		if (!in)
			TRY(net->irecv(r->recv, 1, &data, &size, &tag, &r->to_mh[region], NULL,
				       &in));
		if (!out)
			TRY(net->isend(r->send, r->from, LEN, tag, r->from_mh, NULL, &out));
		if (in && !done_in)
			TRY(net->test(in, &done_in, NULL));
		if (out && !done_out)
			TRY(net->test(out, &done_out, NULL));
		assert_true(kv_now_ns() < end);
	}
	assert_memory_equal(r->from, r->to, LEN);
	return ncclSuccess;
}

static ncclResult_t use(struct run *r)
{
	ncclNetAttr_v11_t attr = { 0 };

	TRY(net->init(&r->ctx, 1, NULL, logger, NULL));
	TRY(net->setNetAttr(r->ctx, &attr)); /* so that bytes may go by process_vm_writev */
	TRY(join(r));
	TRY(net->regMr(r->send, r->from, LEN, NCCL_PTR_HOST, &r->from_mh));
	for (int i = 0; i < REGIONS; i++)
		TRY(net->regMr(r->recv, r->to, LEN, NCCL_PTR_HOST, &r->to_mh[i]));
	for (int i = 0; i < REGIONS; i += 23)
		TRY(move(r, i));
	return ncclSuccess;
}

static void end(struct run *r)
{
	if (r->send)
		assert_int_equal(net->closeSend(r->send), ncclSuccess);
	if (r->recv)
		assert_int_equal(net->closeRecv(r->recv), ncclSuccess);
	if (r->listen)
		assert_int_equal(net->closeListen(r->listen), ncclSuccess);
	if (r->ctx)
		assert_int_equal(net->finalize(r->ctx), ncclSuccess);
}

static ncclResult_t once(void)
{
	static uint8_t from[LEN], to[LEN];
	struct run r = { .from = from, .to = to };
	ncclResult_t ret;

	ret = use(&r);
	end(&r);
	return ret;
}

static void sweep(void)
{
	unsigned int fired = 0, own = 0;
	int before;

	assert_int_equal(once(), ncclSuccess);
	before = count_descriptors();
	for (enum kv_fault_point point = 0; point < KV_FAULT_POINTS; point++)
		for (uint32_t nth = 1; nth <= PASSES; nth++) {
			unsigned int lines = logged;
			ncclResult_t ret;

			kv_fault_arm(point, nth);
			armed = (int)point;
			ret = once();
			armed = -1;
			if (kv_fault_fired(point)) {
				fired++;
				own += !strncmp(kv_fault_name(point), "NP_", 3);
				if (ret && logged == lines)
					fail_msg("%s: an error without a word",
						 kv_fault_name(point));
			} else if (ret) {
				fail_msg("%s was not passed, but the result is %d",
					 kv_fault_name(point), (int)ret);
			}
			kv_fault_arm(point, 0);
			if (count_descriptors() != before)
				fail_msg("%s: %d descriptors, %d before", kv_fault_name(point),
					 count_descriptors(), before);
			if (!kv_fault_passes(point))
				break;
		}
	assert_int_equal(once(), ncclSuccess);
	print_message("%u faults, %u of them in the plugin\n", fired, own);
	assert_true(own >= 8);
}

CASE(each_point_failed_once_is_reported_and_leaves_nothing)
{
	sweep();
}

CASE(the_same_with_copy_threads)
{
	setenv("KVCACHE_NET_COPY_THREADS", "2", 1);
	sweep();
	assert_true(kv_fault_passes(KV_FAULT_SHM_COPY_THREAD) > 0);
	unsetenv("KVCACHE_NET_COPY_THREADS");
}

/* Whether the call was made so often. */
static bool call_fails_once(enum libc_call call, uint32_t nth)
{
	int before = count_descriptors();
	unsigned int lines = logged;
	ncclResult_t ret;

	/* A handshake that a failed call has cut off is not waited for for long, */
	setenv("KVCACHE_HANDSHAKE_MS", "300", 1);
	soon_ms = 1000;
	libc_arm(call, nth);
	ret = once();
	setenv("KVCACHE_HANDSHAKE_MS", "20000", 1);
	if (ret && !libc_fired()) { /* but a busy machine may need it. */
		libc_arm(call, nth);
		ret = once();
	}
	libc_arm(call, 0);
	if (ret && (!libc_fired() || logged == lines))
		fail_msg("%s, call %u: %d, an error without a word", libc_name(call), nth,
			 (int)ret);
	if (count_descriptors() != before)
		fail_msg("%s, call %u: %d descriptors, %d before", libc_name(call), nth,
			 count_descriptors(), before);
	return libc_fired();
}

CASE(each_call_of_the_c_library_failed_once_is_reported)
{
	unsigned int failed = 0;

	for (enum libc_call call = 0; call < LIBC_COUNT; call++)
		for (uint32_t nth = 1; call_fails_once(call, nth); nth = libc_next(nth))
			failed++;
	assert_int_equal(once(), ncclSuccess);
	print_message("%u calls failed\n", failed);
	assert_true(failed > 2 * LIBC_COUNT);
}
