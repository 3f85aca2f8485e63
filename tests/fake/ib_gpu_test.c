/* SPDX-License-Identifier: Apache-2.0 */
/*
 * ib_gpu_test.c -- memory that no CPU may touch (gpu.h): moved by the NIC, or refused with the
 * reason
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <kvrail/kv.h>

#include "gpu.h"
#include "lib/test.h"
#include "provider.h"
#include "setting.h"

enum { PAGE = 4096, OFFSET = 5 * PAGE + 72, LEN = 16 * PAGE, ALL = 32 * PAGE, BLANK = 0xee };

static const char bare[] = "/nowhere"; /* a machine without nvidia_peermem */
static const struct fake_config takes_dmabuf = { .dmabuf = true };

/* A setting, whose side 1 has a GPU, too. */
struct device {
	struct setting s;
	struct gpu gpu;
	struct tr_mem *mem; /* [OFFSET, OFFSET + LEN) of it */
};

static void device_make(struct device *d, const char *const *options)
{
	struct kv_error err;

	setting_make(&d->s, &takes_dmabuf, options, LEN);
	gpu_make(&d->gpu, ALL);
	memset(d->gpu.bytes, BLANK, ALL);
	if (tr_mem_reg_dmabuf(d->s.rig.side[1].tr, d->gpu.addr + OFFSET, LEN, d->gpu.fd, OFFSET,
			      TR_REMOTE_WRITE | TR_REMOTE_READ, &d->mem, &err))
		fail_msg("register: %s", err.message);
}

static void device_end(struct device *d)
{
	assert_int_equal(tr_mem_dereg(d->mem, NULL), 0);
	setting_end(&d->s);
	gpu_free(&d->gpu);
}

/*
 * The GPU's bytes are BLANK but for [at, at + len) of the region, which has those of the epoch from
 * `from` on.
 */
static void expect_gpu(const struct device *d, size_t at, size_t len, uint64_t epoch, size_t from)
{
	for (size_t i = 0; i < ALL; i++) {
		bool in = i >= OFFSET + at && i < OFFSET + at + len;
		uint8_t want = in ? rig_byte(epoch, i - OFFSET - at + from) : BLANK;

		if (d->gpu.bytes[i] != want)
			fail_msg("byte %zu of the GPU is 0x%02x, not 0x%02x", i, d->gpu.bytes[i],
				 want);
	}
}

/* The slices of the region are as small as they can be in the second round. */
CASE(bytes_go_in_and_out_and_neighbours_stay)
{
	struct tr_span in = { 300, 1000, 9 * PAGE }, back = { 1000, 200, 9 * PAGE };
	static const char *const options[] = { "KVCACHE_IB_LANES=2", NULL };
	struct device d;

	for (int small = 0; small < 2; small++) {
		ib_test_hook.slice_bytes = small ? PAGE : 0;
		device_make(&d, options);
		setting_fill(&d.s, 0, 1);
		rig_op(&d.s.rig, 0, TR_WRITE, 1, d.s.mem[0], rig_see(&d.s.rig, 0, d.mem), &in, 1,
		       TR_NOTIFY, 5);
		setting_expect_notify(&d.s, 1, 5);
		setting_expect_written(&d.s, 0, 1);
		fake_settle();
		expect_gpu(&d, 1000, 9 * PAGE, 1, 300);

		/* Out of the GPU, written by its owner; then read by the other side. */
		memset(setting_at(&d.s, 0, 0), 0, LEN);
		rig_op(&d.s.rig, 1, TR_WRITE, 2, d.mem, d.s.rmem[1], &back, 1, TR_NOTIFY, 6);
		setting_expect_notify(&d.s, 0, 6);
		setting_expect_written(&d.s, 1, 2);
		fake_settle();
		for (size_t i = 0; i < LEN; i++)
			assert_int_equal(*setting_at(&d.s, 0, i),
					 i >= 200 && i < 200 + 9 * PAGE ? rig_byte(1, i + 100) : 0);
		memset(setting_at(&d.s, 0, 0), 0, LEN);
		rig_op(&d.s.rig, 0, TR_READ_OP, 3, d.s.mem[0], rig_see(&d.s.rig, 0, d.mem), &in, 1,
		       0, 0);
		assert_non_null(rig_wait(&d.s.rig, 0, TR_READ, BUDGET));
		for (size_t i = 0; i < LEN; i++)
			assert_int_equal(*setting_at(&d.s, 0, i),
					 i >= 300 && i < 300 + 9 * PAGE ? rig_byte(1, i) : 0);
		expect_gpu(&d, 1000, 9 * PAGE, 1, 300);
		device_end(&d);
	}
	ib_test_hook.slice_bytes = 0;
}

/* Both ends of a read are GPUs. */
CASE(one_gpu_reads_from_another)
{
	struct tr_span span = { 64, 128, 3 * PAGE };
	struct device d;
	struct gpu other;
	struct tr_mem *mem;

	device_make(&d, NULL);
	gpu_make(&other, ALL);
	memset(other.bytes, BLANK, ALL);
	for (size_t i = 0; i < ALL; i++)
		d.gpu.bytes[i] = rig_byte(3, i);
	assert_int_equal(
		tr_mem_reg_dmabuf(d.s.rig.side[0].tr, other.addr, ALL, other.fd, 0, 0, &mem, NULL),
		0);
	close(other.fd); /* what is registered keeps it */
	other.fd = dup(0);
	rig_op(&d.s.rig, 0, TR_READ_OP, 3, mem, rig_see(&d.s.rig, 0, d.mem), &span, 1, 0, 0);
	assert_non_null(rig_wait(&d.s.rig, 0, TR_READ, BUDGET));
	for (size_t i = 0; i < ALL; i++)
		assert_int_equal(other.bytes[i], i >= 64 && i < 64 + 3 * PAGE
							 ? rig_byte(3, OFFSET + 128 + i - 64)
							 : BLANK);
	assert_int_equal(tr_mem_dereg(mem, NULL), 0);
	gpu_free(&other);
	device_end(&d);
}

CASE(a_span_over_the_edge_of_a_slice_of_2_gib_arrives)
{
	const uint64_t edge = UINT64_C(2) << 30;
	struct tr_span span = { 0, edge - 5000, 9000 };
	struct setting s;
	struct gpu gpu;
	struct tr_mem *mem;
	struct stat st;

	setting_make(&s, &takes_dmabuf, NULL, LEN);
	gpu_make(&gpu, edge + 8 * PAGE); /* sparse */
	setting_fill(&s, 0, 4);
	assert_int_equal(tr_mem_reg_dmabuf(s.rig.side[1].tr, gpu.addr + PAGE, edge + 4 * PAGE,
					   gpu.fd, PAGE, TR_REMOTE_WRITE, &mem, NULL),
			 0);
	rig_op(&s.rig, 0, TR_WRITE, 1, s.mem[0], rig_see(&s.rig, 0, mem), &span, 1, TR_NOTIFY, 5);
	setting_expect_notify(&s, 1, 5);
	setting_expect_written(&s, 0, 1);
	fake_settle();
	for (size_t i = 0; i < 9000; i++)
		assert_int_equal(gpu.bytes[PAGE + edge - 5000 + i], rig_byte(4, i));
	fstat(gpu.fd, &st);
	assert_true(st.st_blocks * 512 <= 4 * PAGE); /* nothing else was written */
	assert_int_equal(tr_mem_dereg(mem, NULL), 0);
	gpu_free(&gpu);
	setting_end(&s);
}

CASE(a_region_in_use_is_not_deregistered)
{
	struct tr_span span = { 0, 0, LEN };
	struct device d;
	struct kv_error err;

	device_make(&d, NULL);
	rig_op(&d.s.rig, 1, TR_WRITE, 9, d.mem, d.s.rmem[1], &span, 1, TR_NOTIFY, 1);
	assert_int_equal(tr_mem_dereg(d.mem, &err), KV_ERR_BUSY);
	setting_expect_written(&d.s, 1, 9);
	setting_expect_notify(&d.s, 0, 1);
	device_end(&d);
}

CASE(a_device_without_dmabuf_says_so_and_how_to_get_it)
{
	struct setting s;
	struct gpu gpu;
	struct tr_mem *mem;
	struct kv_error err;

	setting_make(&s, NULL, NULL, PAGE);
	gpu_make(&gpu, ALL);
	assert_int_equal(
		tr_mem_reg_dmabuf(s.rig.side[0].tr, gpu.addr, ALL, gpu.fd, 0, 0, &mem, &err),
		KV_ERR_UNSUPPORTED);
	assert_non_null(strstr(err.message, "takes no DMA-BUF, and nvidia_peermem is not loaded"));
	assert_non_null(strstr(err.hint, "modprobe nvidia_peermem"));
	assert_string_equal(err.device, "fake0:1");
	assert_int_equal(tr_mem_reg(s.rig.side[0].tr, gpu.addr, ALL, TR_MEM_CUDA, 0, &mem, &err),
			 KV_ERR_UNSUPPORTED);
	assert_non_null(
		strstr(err.message, "CUDA does not run in this process, and nvidia_peermem"));
	gpu_free(&gpu);
	setting_end(&s);
}

CASE(what_is_no_dmabuf_of_the_memory_is_refused)
{
	struct device d;
	struct tr *tr;
	struct tr_mem *mem;
	struct kv_error err;
	uint8_t *addr;

	device_make(&d, NULL);
	tr = d.s.rig.side[0].tr;
	addr = d.gpu.addr;
	assert_int_equal(tr_mem_reg_dmabuf(tr, addr, LEN, -1, 0, 0, &mem, &err), KV_ERR_ARG);
	assert_int_equal(tr_mem_reg_dmabuf(tr, addr, LEN, d.gpu.fd, 8, 0, &mem, &err), KV_ERR_ARG);
	assert_int_equal(
		tr_mem_reg_dmabuf(tr, addr, LEN, d.gpu.fd, UINT64_MAX - PAGE + 1, 0, &mem, &err),
		KV_ERR_ARG);
	assert_int_equal(tr_mem_reg_dmabuf(tr, NULL, LEN, d.gpu.fd, 0, 0, &mem, &err), KV_ERR_ARG);
	assert_int_equal(tr_mem_reg_dmabuf(tr, addr, ALL + PAGE, d.gpu.fd, 0, 0, &mem, &err),
			 KV_ERR_DEVICE);
	assert_non_null(strstr(err.message, "of a DMA-BUF"));
	assert_int_equal(tr_mem_reg_dmabuf(tr, addr, LEN, 9999, 0, 0, &mem, &err), KV_ERR_DEVICE);
	device_end(&d);
}

/* What `kvrail info` says of the device. */
static int reach_of(const struct setting *s)
{
	struct kv_device_info info;
	size_t row = 0;

	do
		assert_int_equal(tr_device_get(s->rig.side[0].tr, row++, &info), 0);
	while (strcmp(info.transport, "ib"));
	return info.gpu_reach;
}

CASE(peermem_is_taken_where_dmabuf_is_not)
{
	static const char *const dirs[] = { "/sys", "/sys/module", "/sys/module/nvidia_peermem" };
	char root[] = "/tmp/kvrail-peermem-XXXXXX", path[128];
	struct tr_span span = { 0, 700, PAGE };
	struct setting s;
	struct gpu gpu;
	struct tr_mem *mem;

	assert_non_null(mkdtemp(root));
	ib_test_hook.sysroot = root;
	for (size_t i = 0; i < sizeof(dirs) / sizeof(*dirs); i++) {
		snprintf(path, sizeof(path), "%s%s", root, dirs[i]);
		assert_int_equal(mkdir(path, 0700), 0);
	}
	setting_make(&s, NULL, NULL, LEN);
	gpu_make(&gpu, ALL);
	fake_peermem(gpu.addr, ALL, gpu.bytes);
	assert_int_equal(reach_of(&s), KV_GPU_PEERMEM);
	setting_fill(&s, 0, 6);
	for (int i = 0; i < 2; i++) {
		memset(gpu.bytes, BLANK, ALL);
		assert_int_equal(i ? tr_mem_reg(s.rig.side[1].tr, gpu.addr, ALL, TR_MEM_CUDA,
						TR_REMOTE_WRITE, &mem, NULL)
				   : tr_mem_reg_dmabuf(s.rig.side[1].tr, gpu.addr, ALL, gpu.fd, 0,
						       TR_REMOTE_WRITE, &mem, NULL),
				 0);
		rig_op(&s.rig, 0, TR_WRITE, 1, s.mem[0], rig_see(&s.rig, 0, mem), &span, 1,
		       TR_NOTIFY, 5);
		setting_expect_notify(&s, 1, 5);
		setting_expect_written(&s, 0, 1);
		fake_settle();
		for (size_t k = 0; k < ALL; k++)
			assert_int_equal(gpu.bytes[k],
					 k >= 700 && k < 700 + PAGE ? rig_byte(6, k - 700) : BLANK);
		assert_int_equal(tr_mem_dereg(mem, NULL), 0);
	}
	gpu_free(&gpu);
	setting_end(&s);
	ib_test_hook.sysroot = bare;
	for (size_t i = sizeof(dirs) / sizeof(*dirs); i--;) {
		snprintf(path, sizeof(path), "%s%s", root, dirs[i]);
		assert_int_equal(rmdir(path), 0);
	}
	assert_int_equal(rmdir(root), 0);
}

/* Of one host: without CUDA no kernel copies; what is registered before it connects takes a NIC. */
CASE(shared_memory_does_not_get_it)
{
	static const char *const options[] = { "KVCACHE_IB_LANES=1", NULL };
	uint8_t bytes[TR_MEM_PACK_MAX], small[PAGE];
	struct tr_span span = { 0, 0, PAGE };
	struct tr_mem *mem, *mem_small;
	struct kv_error err;
	struct tr_op *op;
	struct gpu gpu;
	struct rig rig;
	size_t len;

	fake_begin(&takes_dmabuf);
	gpu_make(&gpu, ALL);
	assert_int_equal(rig_open(&rig, "auto", options, &err), 0);
	mem_small = rig_reg(&rig, 1, small, sizeof(small), TR_REMOTE_WRITE);
	assert_int_equal(rig_connect(&rig, &err), 0);
	assert_int_equal(tr_mem_reg_dmabuf(rig.side[0].tr, gpu.addr, ALL, gpu.fd, 0,
					   TR_REMOTE_WRITE, &mem, &err),
			 0);
	assert_null(tr_conn_region(rig.side[0].conn, mem->id)); /* a ring's receiver copies */
	assert_string_equal(tr_conn_transport(rig.side[0].conn), "shm");
	assert_int_equal(tr_mem_usable(rig.side[0].conn, mem, &err), KV_ERR_UNSUPPORTED);
	assert_non_null(strstr(err.message, "CUDA does not run in this process"));
	assert_int_equal(tr_mem_pack(rig.side[0].conn, mem, bytes, sizeof(bytes), &len, &err),
			 KV_ERR_UNSUPPORTED);
	assert_int_equal(rig_try_op(&rig, 0, TR_WRITE, 2, mem, rig_see(&rig, 0, mem_small), &span,
				    1, 0, 0, &op, &err),
			 KV_ERR_UNSUPPORTED);
	rig_disconnect(&rig);
	assert_int_equal(rig_connect(&rig, &err), 0);
	assert_string_equal(tr_conn_transport(rig.side[0].conn), "ib");
	rig_op(&rig, 0, TR_WRITE, 2, mem, rig_see(&rig, 0, mem_small), &span, 1, 0, 0);
	assert_non_null(rig_wait(&rig, 0, TR_WRITTEN, BUDGET));
	rig_disconnect(&rig);
	assert_int_equal(tr_mem_dereg(mem, NULL), 0);
	assert_int_equal(tr_mem_dereg(mem_small, NULL), 0);
	rig_close(&rig);
	assert_int_equal(rig_open(&rig, "shm", NULL, &err), 0);
	assert_int_equal(tr_mem_reg_dmabuf(rig.side[0].tr, gpu.addr, ALL, gpu.fd, 0, 0, &mem, &err),
			 KV_ERR_UNSUPPORTED);
	assert_non_null(strstr(err.message, "CUDA does not run in this process"));
	rig_close(&rig);
	assert_true(fake_end());
	gpu_free(&gpu);
}

/* What would promise a reader on the GPU more than is known. */
CASE(flush_and_proof_are_refused)
{
	struct tr_span span = { 0, 0, PAGE };
	struct device d;
	struct kv_error err;
	struct tr_op *op;

	device_make(&d, NULL);
	assert_int_equal(tr_flush(d.s.rig.side[1].conn, d.mem, &err), KV_ERR_UNSUPPORTED);
	assert_int_equal(rig_try_op(&d.s.rig, 0, TR_WRITE, 1, d.s.mem[0],
				    rig_see(&d.s.rig, 0, d.mem), &span, 1, TR_PROVEN, 0, &op, &err),
			 KV_ERR_UNSUPPORTED);
	assert_non_null(strstr(err.message, "proves nothing about a GPU's"));
	assert_int_equal(tr_op_commit(op, TR_NOTIFY, 7, &err), 0); /* it is as it was */
	setting_expect_notify(&d.s, 1, 7);
	device_end(&d);
}

CASE(device_rows_say_whether_dmabuf_is_taken)
{
	struct setting s;

	for (int dmabuf = 0; dmabuf < 2; dmabuf++) {
		setting_make(&s, &(struct fake_config){ .dmabuf = dmabuf }, NULL, PAGE);
		assert_int_equal(reach_of(&s) & KV_GPU_DMABUF, dmabuf ? KV_GPU_DMABUF : 0);
		setting_end(&s);
	}
}

int main(void)
{
	ib_test_hook.sysroot = bare;
	return run_cases(NULL, NULL);
}
