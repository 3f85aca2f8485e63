/* SPDX-License-Identifier: Apache-2.0 */
/*
 * np_gpu_test.c -- GPU memory under the NCCL plugin, where the two ranks or two devices do not
 * offer the same
 */
#include <string.h>

#include "fake_cuda.h"
#include "gpu.h"
#include "lib/test.h"
#include "np.h"
#include "np_rig.h"

static const ncclNet_v12_t *const net = &ncclNetPlugin_v12;

enum { LEN = 8192, SMALL = 100 }; /* small enough to go ahead of its receive */
enum { HOST_LEN = 40 << 10 };

static void set_support(int dev, int ptr_support)
{
	((struct np_device *)np_device_get(dev))->ptr_support = ptr_support;
}

/* A connection whose receiver is of a rank with KVCACHE_NET_GDR=0. */
static struct side join_with_plain_receiver(struct side *plain)
{
	struct side s = np_rig_init(-1, 0);
	struct handle handle;
	int offered;

	*plain = np_rig_init(-1, 0);
	side_handle_init(&handle);
	offered = np_device_get(0)->ptr_support;
	CHECK(offered == (NCCL_PTR_HOST | NCCL_PTR_DMABUF));
	set_support(0, NCCL_PTR_HOST);
	CHECK(!net->listen(plain->ctx, 0, handle.bytes, &s.loop.listen));
	set_support(0, offered);
	PASSES(&s, side_join(&s, &s.loop, &handle));
	return s;
}

static void send_before_the_receive(void)
{
	struct side plain, s = join_with_plain_receiver(&plain);
	void *in, *out, *from_mh, *refused;
	struct gpu gpu;

	gpu_make(&gpu, LEN);
	side_fill(gpu.bytes + 64, SMALL, 1);
	CHECK(!net->regMrDmaBuf(s.loop.send, gpu.addr, LEN, NCCL_PTR_CUDA, 0, gpu.fd, &from_mh));
	CHECK(net->regMrDmaBuf(s.loop.recv, gpu.addr, LEN, NCCL_PTR_CUDA, 0, gpu.fd, &refused));
	PASSES(&s, side_buffer(&s, s.loop.recv, LEN, &s.to));
	PASSES(&s, side_isend(&s, s.loop.send, gpu.addr + 64, SMALL, 0, from_mh, &out));
	PASSES(&s, side_irecv1(&s, s.loop.recv, &s.to, LEN, 0, &in));
	PASSES(&s, side_wait(&s, out, NULL));
	PASSES(&s, side_wait(&s, in, NULL));
	PASSES(&s, side_check(&s, &s.to, SMALL, 1));
	CHECK(!net->deregMr(s.loop.send, from_mh));
	PASSES(&s, side_buffer_free(&s, s.loop.recv, &s.to));
	PASSES(&s, side_loop_close(&s, &s.loop));
	PASSES(&s, side_stop(&s));
	PASSES(&plain, side_stop(&plain));
	gpu_free(&gpu);
}

static void flush_and_virtual_devices(void)
{
	ncclNetVDeviceProps_v12_t parts = { 2, { 0, 1 } };
	ncclNetProperties_v12_t p;
	struct side s = np_rig_join(-1, 0, 64);
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
	CHECK(net->regMr(s.loop.recv, gpu.addr, LEN, NCCL_PTR_CUDA, &mh)); /* no nvidia_peermem */
	CHECK(!net->regMrDmaBuf(s.loop.recv, gpu.addr, LEN, NCCL_PTR_CUDA, 0, gpu.fd, &mh));
	CHECK(net->iflush(s.loop.recv, 1, &data, &size, &mh, &request) && !request);
	CHECK(side_log_has("cannot be flushed yet"));
	np_rig_part(&s);
	gpu_free(&gpu);
}

/* A message of n rows from one allocation of the GPU to itself, LEN / 2 on. */
static void move(struct side *s, uint8_t *at, void *mh, void *const *from_mh, int n, bool watched)
{
	int tags[] = { 5, 6 };
	size_t sizes[] = { SMALL, SMALL };
	void *data[] = { at + LEN / 2, at + LEN / 2 + SMALL }, *mhs[] = { mh, mh }, *ph[2] = { 0 };
	void *in = watched ? NCCL_NET_OPTIONAL_RECV_COMPLETION : NULL, *out[2], *request = NULL;
	int64_t end = side_ms() + SIDE_WAIT_MS;
	int got[2], all = 0;

	CHECK(!net->irecv(s->loop.recv, n, data, sizes, tags, mhs, ph, &in) && in);
	for (int i = 0; i < n; i++)
		PASSES(s, side_isend(s, s->loop.send, at + i * SMALL, SMALL, tags[i], *from_mh,
				     &out[i]));
	for (int i = 0, done; i < n; i++)
		for (done = 0; !done;) { /* the receiver passes its memory in between */
			CHECK(!net->test(out[i], &done, NULL));
			if (in)
				CHECK(!net->test(in, &all, got));
			in = all ? NULL : in;
			CHECK(side_ms() < end);
		}
	if (in)
		PASSES(s, side_wait(s, in, got));
	CHECK(!net->iflush(s->loop.recv, n, data, got, mhs, &request) && !request);
}

/* One message of host memory to `to`. */
static void move_host(struct side *s, uint8_t *to, void *to_mh, size_t size)
{
	int tag = 7, done = 0, all = 0, got;
	int64_t end = side_ms() + SIDE_WAIT_MS;
	void *in = NULL, *out, *data = to;

	CHECK(!net->irecv(s->loop.recv, 1, &data, &size, &tag, &to_mh, NULL, &in) && in);
	PASSES(s, side_isend(s, s->loop.send, s->from.bytes, size, tag, s->from.mhandle, &out));
	while (!done || !all) {
		if (!done)
			CHECK(!net->test(out, &done, NULL));
		if (!all)
			CHECK(!net->test(in, &all, &got));
		CHECK(side_ms() < end);
	}
	CHECK(got == (int)size);
}

/* What a short linear copy waits for on a GPU, a copy of rows does not (transport/gpu/copy.c). */
static void short_host_memory_goes_in_rows(struct side *s, uint8_t *bytes, uint8_t *addr)
{
	static const struct {
		size_t size;
		bool rows;
	} of[] = { { 16, true }, { LEN, true }, { 48, true }, { 24, false }, { HOST_LEN, false } };
	int engines = fake_cuda.engines, rows = fake_cuda.rows;
	void *mh;

	PASSES(s, side_buffer(s, s->loop.send, HOST_LEN, &s->from));
	CHECK(!net->regMr(s->loop.recv, addr, 2 * HOST_LEN, NCCL_PTR_CUDA, &mh));
	for (unsigned int i = 0; i < sizeof(of) / sizeof(of[0]); i++) {
		side_fill(s->from.bytes, HOST_LEN, 10 + i);
		memset(bytes, 0, 2 * HOST_LEN);
		move_host(s, addr + 64, mh, of[i].size);
		rows += of[i].rows;
		CHECK(fake_cuda.engines == ++engines && fake_cuda.rows == rows);
		CHECK(!memcmp(bytes + 64, s->from.bytes, of[i].size));
		CHECK(!bytes[63] && !bytes[64 + of[i].size]);
	}
	CHECK(!net->deregMr(s->loop.recv, mh));
	PASSES(s, side_buffer_free(s, s->loop.send, &s->from));
}

static void copy_between_ranks(void)
{
	ncclNetProperties_v12_t p;
	struct side s = np_rig_init(-1, 0);
	void *from_mh, *to_mh;
	uint8_t *addr, *bytes = fake_cuda_map(1, &addr), *other;

	CHECK(!net->getProperties(0, &p) && p.ptrSupport == (NCCL_PTR_HOST | NCCL_PTR_CUDA));
	CHECK(!p.pciPath);
	PASSES(&s, side_loop(&s, &s.loop));
	CHECK(fake_cuda_alloc(LEN, &other));
	CHECK(net->regMr(s.loop.send, other, LEN, NCCL_PTR_CUDA, &from_mh));
	CHECK(side_log_has("does not see memory of cudaMalloc"));
	CHECK(!net->regMr(s.loop.send, addr, LEN, NCCL_PTR_CUDA, &from_mh));
	CHECK(!net->regMr(s.loop.recv, addr, LEN, NCCL_PTR_CUDA, &to_mh));
	side_fill(bytes, 2 * SMALL, 1);
	move(&s, addr, to_mh, &from_mh, 1, false); /* who calls is not known to mark receives */
	CHECK(fake_cuda.launched == 1 && fake_cuda.engines == 0);
	PASSES(&s, side_attributes(&s));
	move(&s, addr, to_mh, &from_mh, 1, true);
	CHECK(fake_cuda.launched == 2 && fake_cuda.engines == 0);
	move(&s, addr, to_mh, &from_mh, 1, false);
	CHECK(fake_cuda.launched == 2 && fake_cuda.engines == 1);
	move(&s, addr, to_mh, &from_mh, 2, false);
	CHECK(fake_cuda.launched == 2 && fake_cuda.engines == 3);
	CHECK(!memcmp(bytes, bytes + LEN / 2, 2 * SMALL));
	short_host_memory_goes_in_rows(&s, bytes + LEN, addr + LEN);
	CHECK(!net->deregMr(s.loop.send, from_mh) && !net->deregMr(s.loop.recv, to_mh));
	PASSES(&s, side_loop_close(&s, &s.loop));
	PASSES(&s, side_stop(&s));
	fake_cuda_unmap(addr);
	CHECK(!fake_cuda.open);
}

static const char *const gdr[] = { "KVCACHE_NET_GDR=1", NULL };

CASE(no_gpus_bytes_go_ahead_of_their_receive)
{
	np_rig_process(gdr, send_before_the_receive);
}

CASE(a_flush_is_refused_and_a_virtual_device_offers_what_all_do)
{
	np_rig_process(gdr, flush_and_virtual_devices);
}

CASE(gpus_copy_between_ranks_of_a_host_by_engines_where_no_line_is_watched)
{
	static const char *const shm[] = { "KVCACHE_NET_GDR=1", "KVCACHE_TRANSPORT=shm", NULL };

	np_rig_process(shm, copy_between_ranks);
}

int main(void)
{
	ib_test_hook.sysroot = "/nowhere"; /* a machine without nvidia_peermem */
	return run_cases(NULL, NULL);
}
