/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_gpu_test.c -- GPU memory under the NCCL plugin, where the two ranks or two devices do not
 * offer the same
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "gpu.h"
#include "np.h"
#include "np_rig.h"

static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

enum { LEN = 8192, SMALL = 100 }; /* small enough to go ahead of its receive */

static void set_support(int dev, int ptr_support)
{
	((struct np_device *)np_device_get(dev))->ptr_support = ptr_support;
}

/* As np_rig_join, but its receiver is of a rank with KVCACHE_NET_GDR=0. */
static struct np_loop join_with_plain_receiver(void **ctx_p)
{
	struct np_loop l = { 0 };
	uint8_t handle[NCCL_HANDLE_MAX];
	int offered;

	CHECK(!net->init(ctx_p, 1, NULL, np_rig_logger, NULL));
	CHECK(!net->init(&l.ctx, 2, NULL, np_rig_logger, NULL));
	offered = np_device_get(0)->ptr_support;
	CHECK(offered == (NCCL_PTR_HOST | NCCL_PTR_DMABUF));
	set_support(0, NCCL_PTR_HOST);
	CHECK(!net->listen(*ctx_p, 0, handle, &l.listen));
	set_support(0, offered);
	while (!l.send || !l.recv) {
		if (!l.send)
			CHECK(!net->connect(l.ctx, 0, handle, &l.send, NULL));
		if (!l.recv)
			CHECK(!net->accept(l.listen, &l.recv, NULL));
	}
	return l;
}

static void send_before_the_receive(void)
{
	void *plain, *in = NULL, *out = NULL, *from_mh, *to_mh;
	struct np_loop l = join_with_plain_receiver(&plain);
	uint8_t to[LEN];
	void *data = to;
	size_t room = LEN;
	struct gpu gpu;
	int tag = 0;

	gpu_make(&gpu, LEN);
	for (int i = 0; i < LEN; i++)
		gpu.bytes[i] = (uint8_t)(i * 7);
	memset(to, 0xa5, LEN);
	CHECK(!net->regMrDmaBuf(l.send, gpu.addr, LEN, NCCL_PTR_CUDA, 0, gpu.fd, &from_mh));
	CHECK(net->regMrDmaBuf(l.recv, gpu.addr, LEN, NCCL_PTR_CUDA, 0, gpu.fd, &to_mh));
	CHECK(!net->regMr(l.recv, to, LEN, NCCL_PTR_HOST, &to_mh));
	CHECK(!net->isend(l.send, gpu.addr + 64, SMALL, tag, from_mh, NULL, &out) && out);
	CHECK(!net->irecv(l.recv, 1, &data, &room, &tag, &to_mh, NULL, &in) && in);
	for (int done[2] = { 0 }; !done[0] || !done[1];) {
		if (!done[0])
			CHECK(!net->test(out, &done[0], NULL));
		if (!done[1])
			CHECK(!net->test(in, &done[1], NULL));
	}
	CHECK(!memcmp(to, gpu.bytes + 64, SMALL) && to[SMALL] == 0xa5);
	CHECK(!net->deregMr(l.send, from_mh) && !net->deregMr(l.recv, to_mh));
	np_rig_part(&l);
	CHECK(!net->finalize(plain));
	gpu_free(&gpu);
}

static void flush_and_virtual_devices(void)
{
	ncclNetVDeviceProps_v12_t parts = { 2, { 0, 1 } };
	ncclNetProperties_v12_t p;
	struct np_loop l = np_rig_join(-1, 0);
	void *mh, *request = NULL, *data;
	int dev, size = 8;
	struct gpu gpu;

	CHECK(!net->getProperties(1, &p));
	CHECK(p.ptrSupport == (NCCL_PTR_HOST | NCCL_PTR_DMABUF));
	CHECK(!net->makeVDevice(&dev, &parts) && !net->getProperties(dev, &p));
	CHECK(p.ptrSupport == (NCCL_PTR_HOST | NCCL_PTR_DMABUF));
	set_support(1, NCCL_PTR_HOST);
	CHECK(!net->makeVDevice(&dev, &parts) && !net->getProperties(dev, &p));
	CHECK(p.ptrSupport == NCCL_PTR_HOST); /* what one of them cannot, both cannot */
	gpu_make(&gpu, LEN);
	data = gpu.addr;
	CHECK(net->regMr(l.recv, gpu.addr, LEN, NCCL_PTR_CUDA, &mh)); /* no nvidia_peermem */
	CHECK(!net->regMrDmaBuf(l.recv, gpu.addr, LEN, NCCL_PTR_CUDA, 0, gpu.fd, &mh));
	CHECK(net->iflush(l.recv, 1, &data, &size, &mh, &request) && !request);
	CHECK(strstr(np_rig_log, "cannot be flushed yet"));
	np_rig_part(&l);
	gpu_free(&gpu);
}

static const char *const gdr[] = { "KVCACHE_NET_GDR=1", NULL };

static void no_gpus_bytes_go_ahead_of_their_receive(void **state)
{
	(void)state;
	np_rig_process(gdr, send_before_the_receive);
}

static void a_flush_is_refused_and_a_virtual_device_offers_what_all_do(void **state)
{
	(void)state;
	np_rig_process(gdr, flush_and_virtual_devices);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(no_gpus_bytes_go_ahead_of_their_receive),
		cmocka_unit_test(a_flush_is_refused_and_a_virtual_device_offers_what_all_do),
	};

	ib_test_hook.sysroot = "/nowhere"; /* a machine without nvidia_peermem */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
